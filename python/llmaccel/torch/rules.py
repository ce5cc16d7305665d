"""What changes logits before a draw, in transformers' order, where the engine's own order would not
give its numbers: functions of users, and fields that look at the place in the text.

Owns the chain and its arithmetic. Invariant: a row is changed by itself alone; `changed` gives for
a text what the draw saw. Stopping criteria are asked here too, before the token that would follow:
where one says so, the row is cut where it stood. Made and used by generation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmaccel import RequestError

# Fields that make the chain run in Python, for the tokens as well as for scores.
CUSTOM = (
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "sequence_bias",
    "bad_words_ids",
    "begin_suppress_tokens",
    "stopping_criteria",
)


class Rules:
    """The chain of one call of generate.

    fields: those of the call. ends: its end tokens. least: new tokens before one of them. prompts:
    the rows of input_ids, padding included, as functions of users see them.
    """

    def __init__(
        self, fields: Mapping[str, Any], ends: list[int], least: int, prompts: Tensor, n_vocab: int
    ) -> None:
        self.prompts = prompts
        self._penalty = fields.get("repetition_penalty", 1.0)
        self._ngram = fields.get("no_repeat_ngram_size") or 0
        self._ends, self._least = ends, least
        self._bias = _biases(fields.get("sequence_bias"), n_vocab)
        self._bad = [
            one
            for one in _sequences("bad_words_ids", fields.get("bad_words_ids") or (), n_vocab)
            if one not in [[end] for end in ends]
        ]
        self._suppressed = _single("suppress_tokens", fields, n_vocab)
        self._at_first = _single("begin_suppress_tokens", fields, n_vocab)
        self._allowed = fields.get("prefix_allowed_tokens_fn")
        self._processors = _functions(fields, "logits_processor")
        self._criteria = _functions(fields, "stopping_criteria")
        self.custom = any(asks(fields.get(name)) for name in CUSTOM)

    def changed(self, row: int, prompt: list[int], new: list[int], logits: Tensor) -> Tensor:
        """float32 [V] as the draw, or the temperature, gets it: a copy.

        row: of input_ids. prompt: its tokens without padding. new: those generated so far.
        """
        logits = logits.clone()
        text = prompt + new
        if self._bias:
            logits += self._biased(text, logits.shape[0])
        if self._penalty != 1.0:
            seen = torch.tensor(sorted(set(text)))
            kept = logits[seen]
            logits[seen] = torch.where(kept > 0, kept / self._penalty, kept * self._penalty)
        banned = _ngram_ends(text, self._ngram)
        banned += [one[-1] for one in self._bad if _ends_with(text, one[:-1])]
        banned += self._ends if len(new) < self._least else []
        banned += self._suppressed + (self._at_first if not new else [])
        if banned:
            logits[banned] = -torch.inf
        seen_by_users = torch.cat([self.prompts[row], torch.tensor(new, dtype=torch.int64)])
        if self._allowed is not None:
            logits = self._only_allowed(row, seen_by_users, logits)
        for i, function in enumerate(self._processors):
            found = function(seen_by_users[None], logits[None].clone())
            logits = _row_of(found, logits.shape[0], f"logits_processor[{i}]")
        return logits

    def stops(self, row: int, new: list[int]) -> bool:
        """Whether a criterion ends the row behind these tokens."""
        if not new or not self._criteria:
            return False
        ids = torch.cat([self.prompts[row], torch.tensor(new, dtype=torch.int64)])[None]
        return any(bool(torch.as_tensor(one(ids, None)).all()) for one in self._criteria)

    def _biased(self, text: list[int], n_vocab: int) -> Tensor:
        found = torch.zeros(n_vocab)
        for ids, bias in self._bias:
            if _ends_with(text, ids[:-1]):
                found[ids[-1]] += bias
        return found

    def _only_allowed(self, row: int, ids: Tensor, logits: Tensor) -> Tensor:
        allowed = self._allowed(row, ids)
        if not len(allowed):
            raise ValueError(f"prefix_allowed_tokens_fn: no token is allowed in row {row}")
        mask = torch.full_like(logits, -torch.inf)
        mask[torch.as_tensor(allowed, dtype=torch.int64)] = 0
        return logits + mask


class Drawing:
    """The chain as one row's logits processor; keeps what the draws saw, where asked to.

    rules: of the call. row: of input_ids. prompt: its tokens. end: what is drawn to end it early.
    """

    def __init__(self, rules: Rules, row: int, prompt: list[int], end: int, keep: bool) -> None:
        self._rules, self._row, self._prompt = rules, row, prompt
        self._end = end
        self._kept: dict[tuple[int, ...], Tensor] | None = {} if keep else None
        self._cuts: set[tuple[int, ...]] = set()

    def __call__(self, output_ids: list[int], logits: Any) -> Any:
        if self._is_cut(output_ids) or self._rules.stops(self._row, output_ids):
            self._cuts.add(tuple(output_ids))
            logits[:] = -torch.inf
            logits[self._end] = 0
            return logits
        row = torch.from_numpy(logits)
        changed = self._rules.changed(self._row, self._prompt, output_ids, row)
        if self._kept is not None:
            self._kept[tuple(output_ids)] = changed.clone()
        row.copy_(changed)
        return logits

    def _is_cut(self, ids: list[int]) -> bool:
        return bool(self._cuts) and len(self.cut(ids)) < len(ids)

    def cut(self, ids: list[int]) -> list[int]:
        """The tokens up to where a criterion ended them."""
        for n in sorted(map(len, self._cuts)):
            if tuple(ids[:n]) in self._cuts:
                return ids[:n]
        return ids

    def kept(self, new: list[int]) -> list[Tensor]:
        """What each of these tokens was drawn from."""
        assert self._kept is not None
        return [self._kept[tuple(new[:i])] for i in range(len(new))]


# ---- arguments ----------------------------------------------------------------------------------


def asks(value: Any) -> bool:
    """Whether a field says anything."""
    return value is not None and not (hasattr(value, "__len__") and not len(value))


def _functions(fields: Mapping[str, Any], name: str) -> list[Callable[..., Any]]:
    """A LogitsProcessorList, a StoppingCriteriaList, a list, or one function."""
    value = fields.get(name)
    if value is None:
        return []
    found = list(value) if isinstance(value, Iterable) else [value]
    for i, one in enumerate(found):
        if not callable(one):
            raise RequestError(f"{name}[{i}]: expected a function, got {type(one).__name__}")
    return found


def _single(name: str, fields: Mapping[str, Any], n_vocab: int) -> list[int]:
    value = fields.get(name)
    return [] if value is None else _checked(name, torch.as_tensor(value).reshape(-1), n_vocab)


def _sequences(name: str, value: Any, n_vocab: int) -> list[list[int]]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise RequestError(f"{name}: expected lists of token ids, got {value!r:.80}")
    found = [_checked(name, torch.as_tensor(one).reshape(-1), n_vocab) for one in value]
    if not all(found):
        raise RequestError(f"{name}: a list without tokens")
    return found


def _checked(name: str, ids: Tensor, n_vocab: int) -> list[int]:
    if ids.numel() and (ids.is_floating_point() or ids.min() < 0 or ids.max() >= n_vocab):
        raise RequestError(f"{name}: expected token ids below {n_vocab}, got {ids.tolist()!r:.80}")
    return ids.tolist()


def _biases(value: Any, n_vocab: int) -> list[tuple[list[int], float]]:
    """sequence_bias: {(ids): bias} or [[ids, bias], ...]."""
    if value is None:
        return []
    pairs = list(value.items()) if isinstance(value, Mapping) else [tuple(one) for one in value]
    ids = _sequences("sequence_bias", [one[0] for one in pairs], n_vocab)
    return [(one, float(pair[1])) for one, pair in zip(ids, pairs, strict=True)]


def _row_of(found: Any, n_vocab: int, name: str) -> Tensor:
    tensor = torch.as_tensor(found)
    if tensor.shape != (1, n_vocab):
        raise ValueError(f"{name}: expected scores [1, {n_vocab}], got {list(tensor.shape)}")
    return tensor[0].float()


# ---- arithmetic ---------------------------------------------------------------------------------


def _ends_with(text: list[int], tail: list[int]) -> bool:
    return not tail or text[-len(tail) :] == tail


def _ngram_ends(before: list[int], n: int) -> list[int]:
    """Tokens that would complete a run of n for the second time."""
    if n < 1 or len(before) < n:
        return []
    tail = before[len(before) - n + 1 :]
    return [before[i + n - 1] for i in range(len(before) - n + 1) if before[i : i + n - 1] == tail]
