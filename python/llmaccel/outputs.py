"""What a request gives back: RequestOutput, CompletionOutput, Logprob, under vLLM's names.

Token ids and log probabilities stay in NumPy arrays and packed bytes; lists and dicts of Python
objects are made when somebody looks at them, so a long completion that is only printed costs no
object per token. Invariant: an output is a snapshot and never changes after it was handed out.

Made by request.py; read by users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, NoReturn, overload

import numpy as np

Decode = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate token: log probability before temperature (or what LLM's logprobs_mode says),
    rank from 1, text if it was decoded."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class Scores:
    """Log probabilities of a run of tokens as the engine gives them.

    ids, logprobs, ranks: one entry per token. top: per token the packed int32 ids and float32 log
    probabilities of the best, best first, or None.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    top: list[tuple[bytes, bytes] | None] = field(default_factory=list)

    def add(self, token: int, logprob: float, rank: int, top: tuple[bytes, bytes] | None) -> None:
        """Append one token."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.ranks.append(rank)
        self.top.append(top)

    def part(self, start: int, stop: int) -> Scores:
        """A copy of the entries start:stop."""
        return Scores(
            self.ids[start:stop],
            self.logprobs[start:stop],
            self.ranks[start:stop],
            self.top[start:stop],
        )


class LogprobList(Sequence[dict[int, Logprob] | None]):
    """A list of {token id: Logprob} per position, each dict made when it is first looked at.

    The sampled token comes first, then the others from the best on, then those asked for by id,
    which have no rank. The first `leading` positions are None: the first token of a prompt has no
    prediction. n_best: of the others so many come by rank; -1: all.
    """

    def __init__(
        self, scores: Scores, decode: Decode | None, leading: int = 0, n_best: int = -1
    ) -> None:
        self._scores = scores
        self._decode = decode
        self._shift = leading
        self._n_best = n_best
        self._made: dict[int, dict[int, Logprob]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: all dicts, made, and no tokenizer."""
        for at in range(len(self)):
            self[at]
        return {**vars(self), "_decode": None}

    def __len__(self) -> int:
        return len(self._scores.ids) + self._shift

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob] | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[int, Logprob] | None]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index] - self._shift
        if at < 0:
            return None
        if at not in self._made:
            self._made[at] = self._make(at)
        return self._made[at]

    def __iter__(self) -> Iterator[dict[int, Logprob] | None]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def _make(self, at: int) -> dict[int, Logprob]:
        s = self._scores
        made = {s.ids[at]: self._logprob(s.ids[at], s.logprobs[at], s.ranks[at])}
        packed = s.top[at]
        if packed is not None:
            ids = np.frombuffer(packed[0], np.int32).tolist()
            values = np.frombuffer(packed[1], np.float32).tolist()
            for rank, (token, value) in enumerate(zip(ids, values, strict=True), 1):
                if token not in made:
                    by_rank = self._n_best < 0 or rank <= self._n_best
                    made[token] = self._logprob(token, value, rank if by_rank else 0)
        return made

    def _logprob(self, token: int, value: float, rank: int) -> Logprob:
        text = self._decode(token) if self._decode is not None else None
        return Logprob(value, rank if rank > 0 else None, text)


class FlatLogprobs(LogprobList):
    """The same under flat_logprobs: entries of all positions one after another, as arrays.

    Those of position i are start_indices[i] : end_indices[i]; none where a position is None.
    """

    @cached_property
    def _counts(self) -> np.ndarray:
        each = [len(self[i] or ()) for i in range(len(self))]
        return np.array(each, np.int64)

    @cached_property
    def end_indices(self) -> np.ndarray:
        """int64 [positions]."""
        return np.cumsum(self._counts)

    @cached_property
    def start_indices(self) -> np.ndarray:
        """int64 [positions]."""
        return self.end_indices - self._counts

    @cached_property
    def token_ids(self) -> np.ndarray:
        """int32 [entries]."""
        return np.array([token for one in self for token in one or ()], np.int32)

    @cached_property
    def logprobs(self) -> np.ndarray:
        """float32 [entries]."""
        return np.array([entry.logprob for entry in self._entries()], np.float32)

    @cached_property
    def ranks(self) -> np.ndarray:
        """int32 [entries]; 0 for ids that were asked for."""
        return np.array([entry.rank or 0 for entry in self._entries()], np.int32)

    @cached_property
    def decoded_tokens(self) -> list[str | None]:
        """Texts of the entries."""
        return [entry.decoded_token for entry in self._entries()]

    def _entries(self) -> Iterator[Logprob]:
        return (entry for one in self for entry in (one or {}).values())


@dataclass(frozen=True, slots=True)
class Timings:
    """Moments of a request on the clock of time.monotonic(), seconds; 0.0 for what has not
    happened.

    scheduled: start of the first step that computed some of the prompt; a preempted request keeps
    it.
    """

    arrival: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0
    n_tokens: int = 0

    @property
    def queue(self) -> float:
        """Seconds from submission to the first step that had room for it; 0.0 before that."""
        return max(0.0, self.scheduled - self.arrival)

    @property
    def prefill(self) -> float:
        """Seconds from the start of that step to the first token; 0.0 before it."""
        return max(0.0, self.first_token - self.scheduled)

    @property
    def ttft(self) -> float:
        """Seconds from submission to the first token; 0.0 before it."""
        return max(0.0, self.first_token - self.arrival)

    @property
    def decode(self) -> float:
        """Seconds from the first token to the end; 0.0 before it."""
        return max(0.0, self.finished - self.first_token) if self.first_token else 0.0

    @property
    def total(self) -> float:
        """Seconds from submission to the end; 0.0 before it."""
        return max(0.0, self.finished - self.arrival)

    @property
    def per_token(self) -> float:
        """Mean seconds between tokens after the first, all branches together."""
        return self.decode / (self.n_tokens - 1) if self.n_tokens > 1 else 0.0


class TokenIds:
    """The field token_ids: any sequence is taken and kept as an array; the list is made when
    somebody looks at it."""

    @overload
    def __get__(self, output: None, owner: type) -> NoReturn: ...
    @overload
    def __get__(self, output: CompletionOutput, owner: type) -> list[int]: ...

    def __get__(self, output: CompletionOutput | None, owner: type) -> list[int]:
        if output is None:
            raise AttributeError("token_ids")  # so that the field has no default
        kept = vars(output)
        if "_list" not in kept:
            kept["_list"] = kept["_ids"].tolist()
        return kept["_list"]

    def __set__(self, output: CompletionOutput, ids: Sequence[int] | np.ndarray) -> None:
        vars(output)["_ids"] = np.asarray(ids, np.int32)
        vars(output).pop("_list", None)


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, sequences, arrays and Tensors as lists, all the way down."""
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, LogprobList)):
        return [_plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


@dataclass(eq=False)
class CompletionOutput:
    """One continuation of a prompt.

    index: 0 to n - 1. text: the decoded tokens; token_ids: the tokens, a stop token included.
    cumulative_logprob, logprobs: None unless logprobs were asked for; best_of gives the first too.
    finish_reason: "stop", "length", "abort", "timeout", "repetition", or None while it runs.
    stop_reason: the stop string or the id of stop_token_ids that ended it; None for the model's own
    end.
    lora_request, routed_experts: vLLM's fields, always None in this version.
    """

    index: int
    text: str
    token_ids: TokenIds = TokenIds()
    cumulative_logprob: float | None = None
    logprobs: LogprobList | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprob_array: np.ndarray | None = None
    """float32 [tokens], of the sampled tokens; None unless logprobs were asked for."""
    lora_request: Any = None
    routed_experts: Any = None
    logits: Any = None
    """Tensor float32 [tokens, V] that each token was drawn from, before temperature and rules; None
    unless output_logits."""
    hidden_states: list[Any] | None = None
    """Tensors float32 [tokens, D] behind those logits, one per layer of output_hidden_states."""

    @property
    def token_ids_array(self) -> np.ndarray:
        """The tokens as int32 [tokens]."""
        return vars(self)["_ids"]

    def to_dict(self) -> dict[str, Any]:
        """What json.dumps takes: every field, lists in place of arrays and Tensors, and dicts in
        place of Logprob. dataclasses.asdict copies them as they are."""
        return _plain(self)

    def finished(self) -> bool:
        """Whether this continuation has ended."""
        return self.finish_reason is not None

    def __repr__(self) -> str:
        return (
            f"CompletionOutput(index={self.index}, text={self.text!r}, token_ids={self.token_ids}, "
            f"cumulative_logprob={self.cumulative_logprob}, finish_reason={self.finish_reason!r}, "
            f"stop_reason={self.stop_reason!r})"
        )


@dataclass(eq=False)
class RequestOutput:
    """A prompt and its continuations, whole or (in a stream) what is new.

    request_id: unique in its LLM. prompt_index: position of the prompt in the call that submitted
        it.
    prompt_logprobs: as asked for, first entry None. timings, metrics: the same object.
    num_cached_tokens, lora_request, encoder_prompt, encoder_prompt_token_ids, kv_transfer_params,
        multi_modal_placeholders: vLLM's fields, never set in this version.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: LogprobList | None = None
    timings: Timings = field(default_factory=Timings)
    prompt_index: int = 0
    num_cached_tokens: int = 0
    lora_request: Any = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    multi_modal_placeholders: dict[str, Any] | None = None
    hidden_states: list[Any] | None = None
    """Tensors float32 [T, D] of the prompt, one per layer of output_hidden_states; None without."""

    def to_dict(self) -> dict[str, Any]:
        """What json.dumps takes: every field, as of CompletionOutput.to_dict."""
        return _plain(self)

    @property
    def metrics(self) -> Timings:
        """vLLM's name of timings."""
        return self.timings
