"""What a caller may give as a prompt, taken apart: one or many, text or ids, vLLM's dicts.

Invariant: whatever is wrong with a prompt is a RequestError (or, for what other engines have and
this one has not, an UnsupportedError) that names the prompt and its key, before anything is
submitted. Called by llm.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmaccel.errors import RequestError, UnsupportedError, shown
from llmaccel.whole import is_whole

# Keys of vLLM's prompt dicts that this version has no use for.
_VLLM_KEYS = (
    "multi_modal_data",
    "multi_modal_uuids",
    "mm_processor_kwargs",
    "prompt_embeds",
    "token_type_ids",
    "encoder_prompt",
    "decoder_prompt",
    "media_io_kwargs",
)
# What it takes; a salt keeps prefixes apart in a cache that is not here.
_KNOWN_KEYS = ("prompt", "prompt_token_ids", "cache_salt")


# Sequences of integers that are no token ids.
BYTES = (bytes, bytearray, memoryview)


def prompt_list(prompts: Any) -> list[Any]:
    """One prompt or many, as a list of prompts."""
    return one_or_many(prompts)[1]


def one_or_many(prompts: Any) -> tuple[bool, list[Any]]:
    """Whether it is one prompt, and the list of prompts."""
    if isinstance(prompts, (str, Mapping)):
        return True, [prompts]
    prompts = _as_array(prompts, "prompts")
    if isinstance(prompts, np.ndarray):
        if prompts.ndim == 0:
            raise RequestError("prompts: expected token ids, got an array without axes")
        return prompts.ndim == 1, [prompts] if prompts.ndim == 1 else list(prompts)
    if not isinstance(prompts, Sequence) or isinstance(prompts, BYTES):
        kind = type(prompts).__name__
        raise RequestError(f"prompts: expected text, token ids or a list of these, got {kind}")
    if prompts and all(isinstance(item, numbers.Integral) for item in prompts):
        return True, [prompts]
    return False, list(prompts)


def parts_of(prompt: Mapping[str, Any], where: str) -> tuple[str | None, Any]:
    """(text or None, what to run) of a prompt dict."""
    for key in prompt:
        if key in _VLLM_KEYS:
            if prompt[key] is not None:
                raise UnsupportedError(f"{where}: {key!r} is not supported")
        elif key not in _KNOWN_KEYS:
            raise RequestError(
                f"{where}: unknown key {shown(key)}; known: prompt, prompt_token_ids"
            )
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if text is None and ids is None:
        raise RequestError(
            f"{where}: expected text or token ids, in 'prompt' or 'prompt_token_ids'"
        )
    if text is not None and not isinstance(text, str):
        raise RequestError(f"{where}: 'prompt' must be a string, got {type(text).__name__}")
    if isinstance(ids, str):
        raise RequestError(f"{where}: 'prompt_token_ids' must be a list of token ids, got a string")
    return text, text if ids is None else ids


def _as_array(given: Any, where: str) -> Any:
    """A torch tensor or another thing that NumPy can view as its array; the rest as it is."""
    if isinstance(given, (np.ndarray, np.generic, Sequence)) or not hasattr(given, "__array__"):
        return given
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # on a device, or wants detach()
        raise RequestError(f"{where}: {error}") from error


def ids_of(given: Any, where: str) -> list[int]:
    """Token ids from a sequence, or from an array or tensor of one axis."""
    given = _as_array(given, where)
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "iu":
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, BYTES):
        raise RequestError(f"{where}: expected text or token ids, got {type(given).__name__}")
    return checked_ids(given, where)


def checked_ids(given: Sequence[Any], where: str) -> list[int]:
    """`given` as a list of ints; RequestError names the first that is no id."""
    for i, item in enumerate(given):
        if not is_whole(item, 0, 2**31 - 1):
            raise RequestError(f"{where}[{i}]: expected a token id, got {shown(item)}")
    return list(map(int, given))


def encode_text(tokenizer: Any, text: str, where: str, **options: Any) -> list[int]:
    """Token ids; RequestError names `where` for text that cannot be encoded."""
    try:
        return tokenizer.encode(text, **options)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


@dataclass(frozen=True)
class Tokenization:
    """How prompts become ids beyond what the tokenizer does: vLLM's tokenization_kwargs.

    add_special_tokens: None: as the tokenizer says. limit: ids that are kept; -1: as many as the
    model takes. side: from which the others are cut. most: ids above which a prompt is refused.
    """

    add_special_tokens: bool | None = None
    limit: int | None = None
    side: str = "left"
    most: int | None = None

    def ids_of_text(self, tokenizer: Any, text: str, where: str, room: int) -> list[int]:
        """Token ids of a text; room: what limit -1 stands for. RequestError names `where`."""
        added = (
            {}
            if self.add_special_tokens is None
            else {"add_special_tokens": self.add_special_tokens}
        )
        ids = encode_text(tokenizer, text, where, **added)
        limit = self._limit(room)
        if limit is not None and len(ids) > limit and self.add_special_tokens is not False:
            bare = encode_text(tokenizer, text, where, add_special_tokens=False)
            return cut_between(ids, bare, limit, self.side)
        return self.cut(ids, where, room)

    def ids_of_pair(
        self, tokenizer: Any, pair: tuple[str, str], where: str, room: int
    ) -> list[int]:
        """Token ids of two texts that belong together; the rest as of ids_of_text."""
        special = self.add_special_tokens is not False
        ids, limit = tokenizer.encode_pair(*pair, special), self._limit(room)
        if limit is not None and len(ids) > limit:
            both = [encode_text(tokenizer, one, where, add_special_tokens=False) for one in pair]
            return cut_pair(ids, both, limit, self.side)
        return self.cut(ids, where, room)

    def cut(self, ids: list[int], where: str, room: int) -> list[int]:
        """The ids that are kept; RequestError where there are more than `most`."""
        limit = self._limit(room)
        if self.most is not None and len(ids) > self.most:
            raise RequestError(
                f"{where}: {len(ids)} tokens, but max_length of tokenization_kwargs is "
                f"{self.most}; truncation=True cuts it"
            )
        if limit is None or len(ids) <= limit:
            return ids
        return ids[len(ids) - limit :] if self.side == "left" else ids[:limit]

    def _limit(self, room: int) -> int | None:
        return room if self.limit == -1 else self.limit


def cut_between(ids: list[int], bare: list[int], limit: int, side: str) -> list[int]:
    """`ids` cut to `limit` so that the special tokens around `bare` stay, as transformers does."""
    first = next((i for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare), 0)
    before, after = ids[:first], ids[first + len(bare) :]
    room = limit - len(before) - len(after)
    if ids[first : first + len(bare)] != bare or room < 0:
        return ids[len(ids) - limit :] if side == "left" else ids[:limit]
    return [*before, *(bare[len(bare) - room :] if side == "left" else bare[:room]), *after]


def cut_pair(
    ids: list[int], both: Sequence[list[int]], limit: int, side: str, *, first_only: bool = False
) -> list[int]:
    """`ids` of two texts cut to `limit` so that the special tokens around and between `both` stay,
    as transformers does: of the longer text first, or of the first only, which RequestError says
    does not do. Where there is no room for the special tokens, what is left over is cut."""
    a, b = both
    start = _place(ids, a, 0)
    middle = None if start is None else _place(ids, b, start + len(a))
    room = limit - (len(ids) - len(a) - len(b))
    if start is None or middle is None or room < 0:
        return ids[len(ids) - limit :] if side == "left" else ids[:limit]
    if first_only:
        n, m = room - len(b), len(b)
        if n < 1:
            raise RequestError(
                f"truncation='only_first': the first of a pair of {len(a)} and {len(b)} tokens "
                f"cannot be cut so that {room} are left"
            )
    else:
        shorter = min(len(a), len(b), room // 2)
        n, m = (shorter, room - shorter) if len(a) <= len(b) else (room - shorter, shorter)
    kept = [x[len(x) - k :] if side == "left" else x[:k] for x, k in ((a, n), (b, m))]
    between, after = ids[start + len(a) : middle], ids[middle + len(b) :]
    return [*ids[:start], *kept[0], *between, *kept[1], *after]


def _place(ids: list[int], part: list[int], start: int) -> int | None:
    """Where `part` begins from `start` on."""
    ends = range(start, len(ids) - len(part) + 1)
    return next((i for i in ends if ids[i : i + len(part)] == part), None)


def tokenization_of(given: Any, side: str) -> Tokenization | None:
    """A checked tokenization_kwargs. side: from which a prompt is cut where it does not say so."""
    if not given:
        return None
    name = "tokenization_kwargs"
    if not isinstance(given, Mapping):
        raise RequestError(f"{name}: expected a dict, got {shown(given)}")
    for key, value in given.items():
        off = key in _TOKENIZATION_OFF and value in _TOKENIZATION_OFF[key]
        if key not in _TOKENIZATION and not off:
            raise UnsupportedError(f"{name}: {shown(key)}={shown(value)}: not supported here")
    length, keep = given.get("max_length"), given.get("truncate_prompt_tokens")
    for key, value, least in (("max_length", length, 1), ("truncate_prompt_tokens", keep, -1)):
        if value is not None and (not is_whole(value, least) or value == 0):
            raise RequestError(f"{name}: {key}: expected a number of tokens, got {shown(value)}")
    special, truncation = given.get("add_special_tokens"), given.get("truncation")
    side = given.get("truncation_side") or side
    if special not in (None, True, False) or side not in ("left", "right"):
        raise RequestError(
            f"{name}: expected add_special_tokens True or False and truncation_side 'left' or "
            f"'right', got {shown(special)} and {shown(side)}"
        )
    if truncation not in (None, True, False, "longest_first", "do_not_truncate"):
        raise UnsupportedError(f"{name}: truncation={shown(truncation)}: not supported here")
    if truncation in (True, "longest_first"):
        limits = [n for n in (length, keep) if n is not None and n > 0]
        return Tokenization(special, min(limits, default=-1), side)
    return Tokenization(special, keep, side, length)


_TOKENIZATION = (
    *("add_special_tokens", "max_length", "truncation", "truncation_side"),
    "truncate_prompt_tokens",
)
_TOKENIZATION_OFF: dict[str, tuple[Any, ...]] = {
    "padding": (None, False, "do_not_pad"),
    "pad_prompt_tokens": (None,),
    "do_lower_case": (None, False),
    "needs_detokenization": (None, False, True),
    "return_offsets_mapping": (None, False),
}

# What chat() itself gives to apply_chat_template.
_CHAT_ARGUMENTS = (
    "conversation",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
)


def template_variables(given: Any) -> Mapping[str, Any]:
    """chat_template_kwargs, of which none may be an argument of chat() itself."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise RequestError(f"chat_template_kwargs: expected a dict with names, got {shown(given)}")
    for key in given:
        if key in _CHAT_ARGUMENTS or key == "self":
            raise RequestError(f"chat_template_kwargs: {key!r} is no variable of a template")
    return given
