"""SamplingParams: how one request is sampled, under vLLM's names, defaults and meaning.

A plain dataclass: it may be built once, used for many requests and changed between them. Its values
are checked when it is made and again, with a copy, when a request is submitted, so a later change
cannot reach a running request. `engine_fields` turns it into the numbers of `la_sampling`; the
names on that side are those of the table in csrc/python/py_params.c, and a test compares the three.

Called by users, by llm.py and by cli.py.
"""

from __future__ import annotations

import copy
import functools
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, TypeVar

from llmaccel.errors import RequestError, UnsupportedError, shown
from llmaccel.hints import SAMPLING_NAMES, hint

_T = TypeVar("_T")
_INT32_MAX = 2**31 - 1
_MAX_BRANCHES = 16384  # LA_MAX_BRANCHES of csrc/engine/request.h
REPETITION_PENALTIES = (1e-4, 1e4)  # least and largest, as csrc/engine/request.c takes them
# Below this a temperature only multiplies rounding errors; vLLM clamps at the same value.
_MIN_TEMPERATURE = 0.01
# Parameters of vLLM and Hugging Face for what this version has not.
# None, False and empty lists ask for nothing, and of these 1.
_OFF_AT_ONE = ("beam_width", "best_of", "length_penalty", "num_beams")
_ABSENT = {
    "allowed_tokens_mask": "",
    "beam_width": "",
    "best_of": "; n gives several continuations",
    "do_sample": "; temperature=0 is greedy",
    "early_stopping": "",
    "extra_args": "",
    "guided_choice": "",
    "guided_decoding": "",
    "guided_grammar": "",
    "guided_json": "",
    "guided_regex": "",
    "length_penalty": "",
    "logits_processor": "; logit_bias adds to the logits of single tokens",
    "logits_processors": "; logit_bias adds to the logits of single tokens",
    "num_beams": "",
    "response_format": "",
    "stopping_criteria": "; stop and stop_token_ids end the text",
    "structured_outputs": "",
    "use_beam_search": "",
}


class RequestOutputKind(IntEnum):
    """What the chunks of a stream carry."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new since the last chunk."""
    FINAL_ONLY = 2
    """One chunk, at the end."""


def _refuse_foreign(cls: type[_T]) -> type[_T]:
    """Has __init__ answer names that are no field; its signature stays."""
    init, known = cls.__init__, tuple(field.name for field in fields(cls))  # type: ignore[arg-type]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        for name in [one for one in given if one not in known]:
            _refuse(name, given.pop(name), known)
        init(self, *args, **given)

    cls.__init__ = checked  # type: ignore[method-assign, assignment]
    return cls


def _refuse(name: str, value: Any, known: Iterable[str]) -> None:
    """UnsupportedError for what other engines have, unless it asks for nothing; else TypeError."""
    if name not in _ABSENT:
        raise TypeError(
            f"SamplingParams() got an unexpected keyword argument {name!r}"
            + hint(name, known, SAMPLING_NAMES)
        )
    one = name in _OFF_AT_ONE and isinstance(value, numbers.Real) and value == 1
    off = value is False and name != "do_sample"  # whose False asks for greedy
    if not (value is None or off or one or (isinstance(value, (list, tuple)) and not value)):
        raise UnsupportedError(f"{name}: not supported by this version{_ABSENT[name]}")


@_refuse_foreign
@dataclass(slots=True)
class SamplingParams:
    """Sampling parameters of a request. Unknown names raise TypeError, parameters of vLLM that this
    version has not UnsupportedError, bad values RequestError.

    n: continuations of the prompt; their common pages are shared.
    presence_penalty, frequency_penalty: -2 to 2, subtracted for tokens already generated (once, per
        count).
    repetition_penalty: 0.0001 to 10000; divides the positive and multiplies the negative logits of
        tokens in the prompt or the output; 1 is off.
    temperature: 0 takes the most likely token. top_p: (0, 1]. top_k: 0 or -1 for all. min_p:
        [0, 1].
    seed: makes the draw reproducible whatever else runs; None or -1: from the LLM's own seed.
    stop: strings that end the text, themselves cut off unless include_stop_str_in_output.
    stop_token_ids: end the text beside the model's own stop ids; ignore_eos lifts the model's own.
    min_tokens: no stop before that many. max_tokens: at most that many; None: until the context is
        full.
    logprobs: k best and the sampled token at each position; 0: the sampled one; -1: the whole
        vocabulary.
    prompt_logprobs: the same for the tokens of the prompt.
    detokenize: False leaves text empty. skip_special_tokens, spaces_between_special_tokens: of the
        text.
    logit_bias: token id to a number added to its logit. allowed_token_ids: nothing else is sampled.
    bad_words: strings whose tokens are never completed.
    truncate_prompt_tokens: keep the last k tokens of the prompt; -1: as many as leave room for one
        more.
    output_kind: what chunks of a stream carry; None: the new part.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    output_kind: RequestOutputKind | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every value; RequestError names the first bad field. Strings become lists."""
        self.n = _integer("n", self.n, 1, _MAX_BRANCHES)
        self.presence_penalty = _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self.frequency_penalty = _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self.repetition_penalty = _number(
            "repetition_penalty", self.repetition_penalty, *REPETITION_PENALTIES
        )
        self.temperature = _number("temperature", self.temperature, 0.0, 1e6)
        self.top_p = _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise RequestError("top_p must be in (0, 1], got 0.0")
        self.top_k = _integer("top_k", self.top_k, -1, _INT32_MAX)
        self.min_p = _number("min_p", self.min_p, 0.0, 1.0)
        self.seed = _optional("seed", self.seed, -1, 2**64 - 1)
        self.max_tokens = _optional("max_tokens", self.max_tokens, 1, _INT32_MAX)
        self.min_tokens = _integer("min_tokens", self.min_tokens, 0, _INT32_MAX)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
        self.logprobs = _optional("logprobs", self.logprobs, -1, _INT32_MAX)
        self.prompt_logprobs = _optional("prompt_logprobs", self.prompt_logprobs, -1, _INT32_MAX)
        for name in (
            "include_stop_str_in_output",
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
        ):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(
                    f"{name} must be True or False, got {shown(getattr(self, name))}"
                )
        self._validate_lists()
        if self.truncate_prompt_tokens is not None:
            self.truncate_prompt_tokens = _integer(
                "truncate_prompt_tokens", self.truncate_prompt_tokens, -1, _INT32_MAX
            )
            if self.truncate_prompt_tokens == 0:
                raise RequestError("truncate_prompt_tokens must be -1 or at least 1, got 0")
        if self.output_kind is not None:
            self.output_kind = RequestOutputKind(_integer("output_kind", self.output_kind, 0, 2))

    def _validate_lists(self) -> None:
        self.stop = _strings("stop", self.stop)
        if self.stop and not self.detokenize:
            raise RequestError("stop needs text: detokenize must be True where stop is set")
        self.bad_words = _strings("bad_words", self.bad_words)
        self.stop_token_ids = _ids("stop_token_ids", self.stop_token_ids)
        self.allowed_token_ids = _ids("allowed_token_ids", self.allowed_token_ids)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids must not be empty")
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias must be a dict, got {shown(self.logit_bias)}")
        bias = {}
        for key, value in self.logit_bias.items():
            number = isinstance(key, str) and key.isdecimal() and len(key) <= 10
            token = int(key) if number else key
            token = _integer("logit_bias key", token, 0, _INT32_MAX)
            bias[token] = _number(f"logit_bias[{token}]", value, -1e30, 1e30)
        self.logit_bias = bias

    def clone(self) -> SamplingParams:
        """A checked copy that later changes of this object do not reach."""
        clone = copy.copy(self)
        clone.validate()
        return clone


def engine_fields(
    params: SamplingParams,
    *,
    n_vocab: int,
    max_tokens: int,
    seed: int,
    stop_ids: Iterable[int],
    bad: list[list[int]],
) -> dict[str, Any]:
    """The values of `la_sampling` for validated parameters.

    max_tokens: as bounded by the context. seed: used where the parameters give none. stop_ids: the
    model's own, already empty for ignore_eos. bad: the tokens of bad_words. RequestError names a
    list with an id outside the vocabulary.
    """
    bias = params.logit_bias or {}
    for name, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", bias),
        ("allowed_token_ids", params.allowed_token_ids),
    ):
        for token in ids or ():
            if token >= n_vocab:
                raise RequestError(f"{name}: id {token} is outside the vocabulary of {n_vocab}")
    temperature = params.temperature
    return {
        "temperature": max(temperature, _MIN_TEMPERATURE) if temperature > 0.0 else 0.0,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_k": max(params.top_k, 0),
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "seed": seed if params.seed is None or params.seed < 0 else params.seed,
        "min_tokens": min(params.min_tokens, max_tokens),
        "max_tokens": max_tokens,
        "logprobs": _top(params.logprobs, n_vocab),
        "prompt_logprobs": _top(params.prompt_logprobs, n_vocab),
        "stop_ids": sorted({*stop_ids, *(params.stop_token_ids or ())}),
        "bias_ids": sorted(bias),  # a device adds ids in order side by side
        "bias": [bias[token] for token in sorted(bias)],
        "allowed": sorted(set(params.allowed_token_ids or ())),
        "bad": bad,
    }


def score_fields() -> dict[str, Any]:
    """The values of `la_sampling` for a request that draws nothing and only scores given tokens."""
    return engine_fields(
        SamplingParams(temperature=0.0), n_vocab=0, max_tokens=0, seed=0, stop_ids=(), bad=[]
    )


def _top(k: int | None, n_vocab: int) -> int:
    """vLLM's None, -1, k as the core's -1, V, k."""
    if k is None:
        return -1
    return n_vocab if k < 0 else min(k, n_vocab)


def _integer(name: str, value: Any, lo: int, hi: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise RequestError(f"{name} must be an integer, got {shown(value)}")
    if not lo <= value <= hi:
        raise RequestError(
            f"{name} must be at least {lo} and at most {hi}, got {shown(int(value))}"
        )
    return int(value)


def _optional(name: str, value: Any, lo: int, hi: int) -> int | None:
    return None if value is None else _integer(name, value, lo, hi)


def _number(name: str, value: Any, lo: float, hi: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RequestError(f"{name} must be a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if math.isnan(number) or not lo <= number <= hi:
        raise RequestError(f"{name} must be in [{lo:g}, {hi:g}], got {number}")
    return number


def _strings(name: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise RequestError(f"{name} must be a string or a list of strings, got {shown(value)}")
    for item in items:
        if not isinstance(item, str) or not item:
            raise RequestError(f"{name} must hold non-empty strings, got {shown(item)}")
    return list(items)


def _ids(name: str, value: Any) -> list[int] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise RequestError(f"{name} must be a list of token ids, got {shown(value)}")
    try:
        items = list(value)
    except TypeError:  # an array without axes
        raise RequestError(f"{name} must be a list of token ids, got {shown(value)}") from None
    return [_integer(f"{name}[{i}]", token, 0, _INT32_MAX) for i, token in enumerate(items)]
