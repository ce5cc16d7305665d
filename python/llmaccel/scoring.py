"""Scoring: log probabilities and logits of given tokens, without drawing any.

Owns `logits`, `hidden_states`, `loglikelihood` and `perplexity`. Invariant: equal contexts of one
call are computed once.

A base of LLM (llm.py).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmaccel import _core
from llmaccel.calls import Calls, Prompt
from llmaccel.errors import RequestError, shown
from llmaccel.memory import check_available
from llmaccel.params import SamplingParams, score_fields
from llmaccel.prompts import encode_text, one_or_many
from llmaccel.request import Request
from llmaccel.states import layers_of, prompt_states, states_bytes
from llmaccel.whole import is_whole

# Continuations of one context that go into one request; more become several requests.
_SUFFIXES_PER_REQUEST = 1024


class Scoring(Calls):
    """The methods of LLM that score given tokens."""

    def logits(self, prompts: Prompt | Sequence[Prompt], *, out: Any = None) -> Any:
        """Logits of every position of one prompt, or of many at once, before temperature.

        prompts: as in generate. Returns a Tensor float32 [T, V] that NumPy, DLPack and the buffer
        protocol read without a copy; of a list of prompts a list of them. out: where to write them
        instead, such a tensor of yours (or a list): anything with DLPack, row-major. A position's
        logits depend on the tokens up to it alone. MemoryPlanError where there is no room.
        """
        self._driver.check()
        self._check_head()
        one, items = one_or_many(prompts)
        if not items:
            raise RequestError("prompts: empty")
        rooms = [out] if one else [None] * len(items) if out is None else out
        if not isinstance(rooms, Sequence) or len(rooms) != len(items):
            raise RequestError(f"out: expected a list of {len(items)} tensors, one for each prompt")
        encoded, n_vocab = [], self._config.n_vocab
        for i, item in enumerate(items):
            where = "prompt" if one else f"prompts[{i}]"
            encoded.append(self._encode(item, where))
            self._check_length(encoded[i][1], 0, where)
        fresh = sum(len(ids) for (_, ids), room in zip(encoded, rooms, strict=True) if room is None)
        if fresh:
            what = f"logits of {fresh} positions and {n_vocab} tokens"
            check_available(what, 4 * fresh * n_vocab)
        work, results = [], []
        for i, (text, ids) in enumerate(encoded):
            where = "out" if one else f"out[{i}]"
            results.append(_logits_room(rooms[i], (len(ids), n_vocab), where))
            request = self._score_request(text, ids, 1)
            work.append((request, score_fields(), {"logits": results[i]}))
        self._score(work)
        return results[0] if one else results

    def hidden_states(self, prompt: Prompt, layers: Sequence[int] = (-1,)) -> list[Any]:
        """Hidden states of every position of one prompt, of the layers named.

        layers: as transformers' output_hidden_states has them: 0 the embeddings, l what the l-th
        layer gives, the last (-1) that of the last layer after the final norm. Returns a Tensor
        float32 [T, D] for each, which NumPy, DLPack and the buffer protocol read without a copy.
        MemoryPlanError where there is no room for them, UnsupportedError where the backend hands
        none out.
        """
        self._driver.check()
        text, ids = self._encode(prompt, "prompt")
        self._check_length(ids, 0, "prompt")
        wanted = layers_of(layers, self._config.n_layers, "layers")
        check_available(
            f"hidden states of {len(ids)} positions and {len(wanted)} layers",
            states_bytes(self._config, len(ids), len(wanted)),
        )
        shown, options = prompt_states(self._config, len(ids), wanted)
        self._score([(self._score_request(text, ids, 1), score_fields(), options)])
        assert shown.prompt_states is not None
        return shown.prompt_states

    def loglikelihood(
        self, contexts: Sequence[Prompt], continuations: Sequence[Prompt]
    ) -> list[tuple[float, bool]]:
        """For each pair the log probability of the continuation after the context, summed over its
        tokens, and whether greedy decoding would produce it: whether its first token is the best
        (of equal logits the lower id) and no logit is above that of any later one.

        Equal contexts are computed once and shared. Text pairs are tokenized together, so a token
        may cross the border; an empty context stands for the tokenizer's BOS (or EOS) token.
        """
        self._driver.check()
        self._check_head()
        for name, given in (("contexts", contexts), ("continuations", continuations)):
            if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
                kind = type(given).__name__
                raise RequestError(f"{name}: expected a list of prompts, got {kind}")
        if len(contexts) != len(continuations):
            raise RequestError(
                f"continuations: expected one for each of {len(contexts)} contexts, got "
                f"{len(continuations)}"
            )
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for i, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
            head, tail = self._encode_pair(context, continuation, i)
            # The last token is only predicted, so it takes no place in the context.
            self._check_length(head + tail, -1, f"contexts[{i}] with continuations[{i}]")
            groups.setdefault(tuple(head), []).append((i, tail))
        work = []
        places: list[list[int]] = []
        for head_ids, members in groups.items():
            for start in range(0, len(members), _SUFFIXES_PER_REQUEST):
                part = members[start : start + _SUFFIXES_PER_REQUEST]
                request = self._score_request(None, list(head_ids), len(part))
                fields, options = _suffix_options(head_ids, [tail for _, tail in part])
                work.append((request, fields, options))
                places.append([i for i, _ in part])
        self._score(work)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(contexts)
        for (request, _, options), where in zip(work, places, strict=True):
            for i, result in zip(where, _suffix_results(request, options["suffixes"]), strict=True):
                results[i] = result
        return results

    def perplexity(self, text: Prompt, *, stride: int | None = None) -> float:
        """exp of the mean negative log probability of a text's tokens, each after those before it.

        text: one prompt of at least two tokens; the first is given and not scored. Where it is
        longer than max_model_len it is cut into windows of that many tokens, each of which scores
        what follows the one before: `stride` tokens (1 to max_model_len - 1), after as many of
        those before them as fit. None: half of max_model_len.
        """
        self._driver.check()
        ids = self._encode(text, "text")[1]
        if len(ids) < 2:
            raise RequestError("text: expected at least two tokens, the first is given")
        window = self._config.max_len
        if stride is None:
            stride = max(1, window // 2)
        if not is_whole(stride, 1, window - 1):
            raise RequestError(f"stride: expected 1 to {window - 1}, got {shown(stride)}")
        work = []
        scored, end = 1, min(len(ids), window)
        while scored < len(ids):
            request = self._score_request(None, ids[max(0, end - window) : scored], 1)
            work.append((request, score_fields(), {"suffixes": [ids[scored:end]]}))
            scored, end = end, min(len(ids), end + stride)
        self._score(work)
        logprobs = []
        for request, _, _ in work:
            scores = request.branches[0].scores
            assert scores is not None
            logprobs += scores.logprobs
        return math.exp(-math.fsum(logprobs) / len(logprobs))

    def _encode_pair(
        self, context: Prompt, continuation: Prompt, i: int
    ) -> tuple[list[int], list[int]]:
        if isinstance(context, str) and isinstance(continuation, str) and context:
            tokenizer = self.get_tokenizer()
            # Spaces go with the word that follows them.
            kept = context.rstrip()
            head = encode_text(tokenizer, kept, f"contexts[{i}]")
            whole = kept + context[len(kept) :] + continuation
            both = encode_text(tokenizer, whole, f"continuations[{i}]")
            head, tail = both[: len(head)], both[len(head) :]
        else:
            head = (
                []
                if isinstance(context, str) and not context
                else self._encode(context, f"contexts[{i}]")[1]
            )
            if isinstance(continuation, str):
                tail = encode_text(
                    self.get_tokenizer(),
                    continuation,
                    f"continuations[{i}]",
                    add_special_tokens=False,
                )
            else:
                tail = self._encode(continuation, f"continuations[{i}]")[1]
        if not head:
            tokenizer = self.get_tokenizer()
            first = tokenizer.bos_token_id
            first = tokenizer.eos_token_id if first is None else first
            if first is None:
                raise RequestError(f"contexts[{i}]: empty, and there is no BOS or EOS token")
            head = [first]
        if not tail:
            raise RequestError(f"continuations[{i}]: empty")
        return head, tail

    def _score_request(self, text: str | None, ids: list[int], n_branches: int) -> Request:
        params = SamplingParams(temperature=0.0, logprobs=0, detokenize=False)
        return Request(self._next_id()[1], text, ids, params, n_branches=n_branches, draws=False)

    def _score(self, work: list[tuple[Request, dict[str, Any], dict[str, Any]]]) -> None:
        """Run requests that draw nothing, with their fields and options, and wait."""
        self._driver.check_wait()
        self._run_all(work, 1, False)


def _suffix_options(
    head: Sequence[int], tails: list[list[int]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields, options) of a request that scores tails behind one head. The row of the head's last
    token is computed once: the first tail's branch asks it for the first tokens of all."""
    firsts = list(dict.fromkeys(tail[0] for tail in tails))
    fields = {"prompt_logprobs": 1, "prompt_logprob_start": len(head), "prompt_scores": firsts}
    return score_fields() | fields, {"suffixes": tails, "skip_first": True}


def _suffix_results(request: Request, tails: list[list[int]]) -> Iterator[tuple[float, bool]]:
    """(sum of logprobs, whether each is the best) of each tail. The first token is the best where
    its row names it so, which all tails share; a later one where no logit is above its own."""
    row = request.branches[0].scores
    assert row is not None
    assert row.top[0] is not None
    ids, logprobs = (array(kind, part) for kind, part in zip("if", row.top[0], strict=True))
    firsts = dict(zip(ids[1:], logprobs[1:], strict=True))
    for branch, tail in zip(request.branches, tails, strict=True):
        assert branch.scores is not None
        found, later = branch.scores.logprobs, branch.scores.ranks
        if branch.index > 0:
            found = [firsts[tail[0]], *found]
        else:
            later = later[1:]
        yield math.fsum(found), tail[0] == ids[0] and all(rank == 1 for rank in later)


def _logits_room(out: Any, shape: tuple[int, int], where: str) -> _core.Tensor:
    """A new Tensor, or the caller's."""
    if out is None:
        return _core.Tensor.zeros(shape, "F32")
    tensor = out if isinstance(out, _core.Tensor) else _core.Tensor(out, name=where)
    if tensor.device != "cpu":
        raise RequestError(f"{where}: is on {tensor.device}, and logits go to host memory")
    if tensor.dtype != "F32" or tensor.shape != shape or tensor.read_only:
        raise RequestError(
            f"{where}: expected a writable F32 {list(shape)}, got {tensor.dtype} "
            f"{list(tensor.shape)}"
        )
    return tensor
