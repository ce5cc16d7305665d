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
import logging
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, TypeVar

from llmaccel.errors import RequestError, UnsupportedCombination, UnsupportedError, shown
from llmaccel.hints import SAMPLING_NAMES, hint
from llmaccel.whole import is_whole

_T = TypeVar("_T")
_INT32_MAX = 2**31 - 1
_MAX_BRANCHES = 16384  # LA_MAX_BRANCHES of csrc/engine/request.h
_MAX_PATTERN = 4096  # LA_MAX_PATTERN of csrc/engine/sampler.h
REPETITION_PENALTIES = (1e-4, 1e4)  # least and largest, as csrc/engine/request.c takes them
# Below this a temperature only multiplies rounding errors; vLLM clamps at the same value.
_MIN_TEMPERATURE = 0.01
_LOG = logging.getLogger("llmaccel")
# Parameters of vLLM and Hugging Face for what this version has not.
# None, False and empty lists ask for nothing, and of these 1.
_OFF_AT_ONE = ("beam_width", "length_penalty", "num_beams")
_ABSENT = {
    "allowed_tokens_mask": "",
    "beam_width": "; LLM.beam_search does",
    "do_sample": "; temperature=0 is greedy",
    "early_stopping": "; BeamSearchParams has it",
    "ebnf": "",
    "guided_choice": "",
    "guided_decoding": "",
    "guided_grammar": "",
    "guided_json": "",
    "guided_regex": "",
    "length_penalty": "; BeamSearchParams has it",
    "logits_processor": "; logits_processors takes functions of one request",
    "num_beams": "; LLM.beam_search does",
    "response_format": "",
    "return_hidden_states": "",
    "routed_experts_prompt_start": "; LLM.expert_load() counts the tokens of every expert",
    "stopping_criteria": "; stop and stop_token_ids end the text",
    "structured_outputs": "",
    "t_max_predict_ms": "; timeout= of generate ends a request",
    "use_beam_search": "; LLM.beam_search does",
    "watermark": "",
    "watermarking": "",
}
# vLLM's logprobs_mode, in the order of LA_REPORT_* of csrc/sampling.h.
LOGPROBS_MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
DRY_BREAKERS = ("\n", ":", '"', "*")
# Fields of vLLM that steer what is not here; report() lists those that were set.
NO_EFFECT = {"extra_args": None, "skip_clone": False, "skip_reading_prefix_cache": None}


class RequestOutputKind(IntEnum):
    """What the chunks of a stream carry."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new since the last chunk."""
    FINAL_ONLY = 2
    """One chunk, at the end."""


class SamplingType(IntEnum):
    """How a request draws."""

    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


@dataclass(frozen=True, slots=True)
class RepetitionDetectionParams:
    """When a text counts as stuck: a pattern of min_pattern_size to max_pattern_size tokens (at
    most 4096) comes min_count times in a row, 2 at least."""

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 2

    def __post_init__(self) -> None:
        name = "repetition_detection"
        _integer(f"{name}.max_pattern_size", self.max_pattern_size, 1, _MAX_PATTERN)
        _integer(f"{name}.min_pattern_size", self.min_pattern_size, 1, self.max_pattern_size)
        _integer(f"{name}.min_count", self.min_count, 2, _INT32_MAX)


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
    temperature: 0 takes the most likely token; below 0.01 it becomes that. top_p: (0, 1]. top_k: 0
        or -1 for all. min_p: [0, 1].
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
    output_kind: what chunks of a stream carry; None: the new part. stream_interval: tokens between
        two chunks after the first.

    best_of: draw that many continuations and keep the n of the largest cumulative logprob, best
        first; a stream of them is one chunk, at the end.
    logprob_token_ids: ids whose log probabilities are reported at every position, beside those of
        logprobs; without a rank. prompt_logprob_token_ids: the same for tokens of the prompt.
    prompt_logprob_start: first token of the prompt that is scored; None stands for those before.
    flat_logprobs: logprobs and prompt_logprobs are FlatLogprobs, arrays instead of dicts.
    logits_processors: functions f(output_ids, logits) or f(prompt_ids, output_ids, logits), called
        in turn before each draw, on the engine's thread, before all other rules. logits: a NumPy
        array float32 [V] to change in place (torch.from_dlpack shares its memory), valid during the
        call; what a function returns, if not None, takes its place. An exception is the request's.
        No function can wait for a model, this one or another, or load one (LLMAccelError).
    no_repeat_ngram_size: no run of that many tokens, the prompt's included, comes twice; 0: off.
    repeat_last_n: penalties look at that many last tokens of prompt and output; -1: at all.
    typical_p: (0, 1]; the tokens whose surprise is nearest the entropy, up to that mass.
    top_n_sigma: drops logits that many standard deviations below the best; 0 or -1: off.
    xtc_probability, xtc_threshold: with that probability all tokens of at least xtc_threshold but
        the least likely of them are dropped.
    dry_multiplier: repetitions of dry_allowed_length tokens and more cost the token that would
        continue one dry_multiplier * dry_base ** (length - dry_allowed_length); 0: off.
        dry_penalty_last_n: looked for in that many last tokens; -1: in all.
        dry_sequence_breakers: token ids, or strings, each token with one of them, that no
        repetition contains; None: newline, colon, quotation mark and asterisk.
    dynatemp_range: temperature moves so far below and above with how flat the distribution is,
        (entropy / its most) ** dynatemp_exponent.
    mirostat_mode: 1 or 2 holds the surprise of draws, in bits, near mirostat_tau, at the rate
        mirostat_eta; it stands in place of min_p and what follows.
    The order: logits_processors, masks and bans, logit_bias, penalties, DRY, top_n_sigma,
        temperature, min_p, top_k, typical_p, top_p, XTC; mirostat follows temperature.
    repetition_detection: RepetitionDetectionParams, or a dict of its fields: such a text ends with
        finish_reason "repetition".
    thinking_token_budget: tokens after the tag that opens a thought, in the prompt or the output,
        until the tag that closes it is emitted; -1, None: no limit. RequestError where the model
        has no such tags.
    trace_decode_token_ids: emitted one after another in place of draws; logprobs are the model's,
        and logits_processors are not called for them.
    extra_args, skip_clone, skip_reading_prefix_cache: vLLM's, without effect; report() lists them.
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
    stream_interval: int = 1
    best_of: int | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprob_token_ids: list[int] | None = None
    prompt_logprob_start: int = 0
    flat_logprobs: bool = False
    logits_processors: list[Callable[..., Any]] | None = None
    no_repeat_ngram_size: int = 0
    repeat_last_n: int = -1
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: list[str | int] | None = None
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repetition_detection: RepetitionDetectionParams | Mapping[str, int] | None = None
    thinking_token_budget: int | None = None
    trace_decode_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None
    skip_clone: bool = False
    skip_reading_prefix_cache: bool | None = None

    @classmethod
    def from_names(cls, **given: Any) -> SamplingParams:
        """Parameters under the names of other engines: max_new_tokens, random_seed, stop_words,
        repeat_penalty and the like become what they are called here, do_sample=False
        temperature=0. RequestError where two names of one parameter are given."""
        found: dict[str, Any] = {}
        sample = given.pop("do_sample", None)
        if not isinstance(sample, bool | None):
            raise RequestError(f"do_sample must be True or False, got {shown(sample)}")
        for name, value in given.items():
            ours = SAMPLING_NAMES.get(name, name)
            if ours in found:
                raise RequestError(f"{name}: {ours} was given under another name")
            found[ours] = value
        if sample is False:
            found["temperature"] = 0.0
        return cls(**found)

    @classmethod
    def from_optional(cls, **given: Any) -> SamplingParams:
        """Parameters of which None is as good as left out; logit_bias is held in -100 to 100, as
        OpenAI's interface says."""
        bias = given.get("logit_bias")
        if isinstance(bias, Mapping):
            numbers_ = {
                key: _number("logit_bias", value, -1e30, 1e30) for key, value in bias.items()
            }
            given["logit_bias"] = {k: min(100.0, max(-100.0, v)) for k, v in numbers_.items()}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def sampling_type(self) -> SamplingType:
        """How tokens are drawn."""
        if self.temperature == 0.0:
            return SamplingType.GREEDY
        seeded = self.seed is not None and self.seed >= 0
        return SamplingType.RANDOM_SEED if seeded else SamplingType.RANDOM

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
        if 0.0 < self.temperature < _MIN_TEMPERATURE:
            _LOG.warning(
                "temperature %g becomes %g, below which it only multiplies rounding errors; 0 is "
                "greedy",
                self.temperature,
                _MIN_TEMPERATURE,
            )
            self.temperature = _MIN_TEMPERATURE
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
            "flat_logprobs",
            "skip_clone",
        ):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(
                    f"{name} must be True or False, got {shown(getattr(self, name))}"
                )
        self._validate_lists()
        self._validate_output()
        self._validate_repetition()
        self._validate_filters()

    def _validate_output(self) -> None:
        if self.truncate_prompt_tokens is not None:
            self.truncate_prompt_tokens = _integer(
                "truncate_prompt_tokens", self.truncate_prompt_tokens, -1, _INT32_MAX
            )
            if self.truncate_prompt_tokens == 0:
                raise RequestError("truncate_prompt_tokens must be -1 or at least 1, got 0")
        if self.output_kind is not None:
            self.output_kind = RequestOutputKind(_integer("output_kind", self.output_kind, 0, 2))
        self.stream_interval = _integer("stream_interval", self.stream_interval, 1, _INT32_MAX)
        self.best_of = _optional("best_of", self.best_of, self.n, _MAX_BRANCHES)
        self.logprob_token_ids = _ids("logprob_token_ids", self.logprob_token_ids)
        self.prompt_logprob_token_ids = _ids(
            "prompt_logprob_token_ids", self.prompt_logprob_token_ids
        )
        self.prompt_logprob_start = _integer(
            "prompt_logprob_start", self.prompt_logprob_start, 0, _INT32_MAX
        )
        if self.prompt_logprob_start > 0 and not self.scores_prompt:
            raise RequestError("prompt_logprob_start needs prompt_logprobs")
        if self.extra_args is not None and not isinstance(self.extra_args, dict):
            raise RequestError(f"extra_args must be a dict, got {shown(self.extra_args)}")
        if not isinstance(self.skip_reading_prefix_cache, bool | None):
            raise RequestError(
                "skip_reading_prefix_cache must be True, False or None, got "
                f"{shown(self.skip_reading_prefix_cache)}"
            )

    def _validate_repetition(self) -> None:
        self.no_repeat_ngram_size = _integer(
            "no_repeat_ngram_size", self.no_repeat_ngram_size, 0, _INT32_MAX
        )
        self.repeat_last_n = _integer("repeat_last_n", self.repeat_last_n, -1, _INT32_MAX)
        self.repetition_detection = _detection(self.repetition_detection)
        self.thinking_token_budget = _optional(
            "thinking_token_budget", self.thinking_token_budget, -1, _INT32_MAX
        )

    def _validate_filters(self) -> None:
        for name, hi in (
            ("typical_p", 1.0),
            ("xtc_probability", 1.0),
            ("xtc_threshold", 1.0),
            ("dry_multiplier", 1e6),
            ("dynatemp_range", 1e6),
            ("dynatemp_exponent", 1e6),
            ("mirostat_tau", 1e6),
            ("mirostat_eta", 1e6),
        ):
            setattr(self, name, _number(name, getattr(self, name), 0.0, hi))
        if self.typical_p == 0.0:
            raise RequestError("typical_p must be in (0, 1], got 0.0")
        self.top_n_sigma = _number("top_n_sigma", self.top_n_sigma, -1.0, 1e6)
        self.dry_base = _number("dry_base", self.dry_base, 1.0, 1e6)
        self.dry_allowed_length = _integer(
            "dry_allowed_length", self.dry_allowed_length, 1, _INT32_MAX
        )
        self.dry_penalty_last_n = _integer(
            "dry_penalty_last_n", self.dry_penalty_last_n, -1, _INT32_MAX
        )
        self.dry_sequence_breakers = _breakers(self.dry_sequence_breakers)
        self.mirostat_mode = _integer("mirostat_mode", self.mirostat_mode, 0, 2)
        if self.mirostat_mode == 0:
            return
        for name, off in (
            ("min_p", self.min_p == 0.0),
            ("top_k", self.top_k <= 0),
            ("top_p", self.top_p == 1.0),
            ("typical_p", self.typical_p == 1.0),
            ("xtc_probability", self.xtc_probability == 0.0),
        ):
            if not off:
                raise UnsupportedCombination(f"mirostat_mode: not together with {name}")

    @property
    def scores_prompt(self) -> bool:
        """Whether log probabilities of the prompt are asked for."""
        return self.prompt_logprobs is not None or self.prompt_logprob_token_ids is not None

    @property
    def scores_output(self) -> bool:
        """Whether log probabilities of the output are asked for."""
        return self.logprobs is not None or self.logprob_token_ids is not None

    @property
    def n_drawn(self) -> int:
        """Continuations that are made; n of them are returned."""
        return self.n if self.best_of is None else self.best_of

    def _validate_lists(self) -> None:
        self.stop = _strings("stop", self.stop)
        if self.stop and not self.detokenize:
            raise RequestError("stop needs text: detokenize must be True where stop is set")
        self.bad_words = _strings("bad_words", self.bad_words)
        self.stop_token_ids = _ids("stop_token_ids", self.stop_token_ids)
        self.allowed_token_ids = _ids("allowed_token_ids", self.allowed_token_ids)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids must not be empty")
        self.trace_decode_token_ids = _ids("trace_decode_token_ids", self.trace_decode_token_ids)
        if self.trace_decode_token_ids is not None and not self.trace_decode_token_ids:
            raise RequestError("trace_decode_token_ids must not be empty")
        self.logits_processors = _functions("logits_processors", self.logits_processors)
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
    think: tuple[list[int], list[int]] = ([], []),
    breakers: Sequence[int] = (),
    logprobs_mode: str = LOGPROBS_MODES[0],
) -> dict[str, Any]:
    """The values of `la_sampling` for validated parameters.

    max_tokens: as bounded by the context. seed: used where the parameters give none. stop_ids: the
    model's own, already empty for ignore_eos. bad: the tokens of bad_words. think: those of the
    tags around thoughts. breakers: those of dry_sequence_breakers. RequestError names a list with
    an id outside the vocabulary.
    """
    bias = params.logit_bias or {}
    for name, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", bias),
        ("allowed_token_ids", params.allowed_token_ids),
        ("logprob_token_ids", params.logprob_token_ids),
        ("prompt_logprob_token_ids", params.prompt_logprob_token_ids),
        ("trace_decode_token_ids", params.trace_decode_token_ids),
    ):
        for token in ids or ():
            if token >= n_vocab:
                raise RequestError(f"{name}: id {token} is outside the vocabulary of {n_vocab}")
    trace, budget = params.trace_decode_token_ids or [], params.thinking_token_budget
    max_tokens = min(max_tokens, len(trace)) if trace else max_tokens
    found = params.repetition_detection
    assert not isinstance(found, Mapping)  # validate made it one of ours
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_k": max(params.top_k, 0),
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "repeat_last_n": params.repeat_last_n,
        "no_repeat_ngram": params.no_repeat_ngram_size,
        "seed": seed if params.seed is None or params.seed < 0 else params.seed,
        "min_tokens": min(params.min_tokens, max_tokens),
        "max_tokens": max_tokens,
        "logprobs": best_logprobs(params, n_vocab),
        "prompt_logprobs": best_prompt_logprobs(params, n_vocab),
        "prompt_logprob_start": params.prompt_logprob_start,
        "report": LOGPROBS_MODES.index(logprobs_mode),
        "score_ids": list(dict.fromkeys(params.logprob_token_ids or ())),
        "prompt_scores": list(dict.fromkeys(params.prompt_logprob_token_ids or ())),
        "stop_ids": sorted({*stop_ids, *(params.stop_token_ids or ())}),
        "bias_ids": sorted(bias),  # a device adds ids in order side by side
        "bias": [bias[token] for token in sorted(bias)],
        "allowed": sorted(set(params.allowed_token_ids or ())),
        "bad": bad,
        "trace": trace,
        "dry_multiplier": params.dry_multiplier,
        "dry_base": params.dry_base,
        "dry_allowed_length": params.dry_allowed_length,
        "dry_last_n": params.dry_penalty_last_n,
        "dry_breakers": breakers,
        "top_n_sigma": max(params.top_n_sigma, 0.0),
        "dynatemp_range": params.dynatemp_range,
        "dynatemp_exponent": params.dynatemp_exponent,
        "typical_p": params.typical_p,
        "xtc_probability": params.xtc_probability,
        "xtc_threshold": params.xtc_threshold,
        "mirostat": params.mirostat_mode,
        "mirostat_tau": params.mirostat_tau,
        "mirostat_eta": params.mirostat_eta,
        "pattern_count": found.min_count if found is not None else 0,
        "pattern_min": found.min_pattern_size if found is not None else 0,
        "pattern_max": found.max_pattern_size if found is not None else 0,
        "think_budget": -1 if budget is None or not think[1] else budget,
        "think_start": think[0],
        "think_end": think[1],
    }


def best_logprobs(params: SamplingParams, n_vocab: int) -> int:
    """How many best tokens are reported with each of the output; -1: not even that one."""
    if params.logprobs is None and (params.scores_output or params.n_drawn > params.n):
        return 0
    return _top(params.logprobs, n_vocab)


def best_prompt_logprobs(params: SamplingParams, n_vocab: int) -> int:
    """The same for tokens of the prompt."""
    if params.prompt_logprobs is None and params.scores_prompt:
        return 0
    return _top(params.prompt_logprobs, n_vocab)


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
    if not is_whole(value):
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


def _functions(name: str, value: Any) -> list[Callable[..., Any]] | None:
    if value is None:
        return None
    items = [value] if callable(value) else value
    if not isinstance(items, (list, tuple)) or not all(callable(item) for item in items):
        raise RequestError(f"{name} must be a list of functions, got {shown(value)}")
    return list(items) or None


def _breakers(value: Any) -> list[str | int] | None:
    name = "dry_sequence_breakers"
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise RequestError(f"{name} must be a list of strings or token ids, got {shown(value)}")
    items = list(value)
    for i, item in enumerate(items):
        if item == "":
            raise RequestError(f"{name}[{i}] must not be empty")
        if not isinstance(item, str):
            items[i] = _integer(f"{name}[{i}]", item, 0, _INT32_MAX)
    return items


def _detection(value: Any) -> RepetitionDetectionParams | None:
    if value is None or isinstance(value, RepetitionDetectionParams):
        return value
    names = ("max_pattern_size", "min_pattern_size", "min_count")
    if not isinstance(value, Mapping):  # vLLM's own object
        value = {name: getattr(value, name) for name in names if hasattr(value, name)}
    if "max_pattern_size" not in value or not set(value) <= set(names):
        raise RequestError(
            f"repetition_detection must have {', '.join(names)} (the first at least), got "
            f"{shown(dict(value))}"
        )
    return RepetitionDetectionParams(**value)


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
