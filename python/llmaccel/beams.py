"""Beam search: the most likely continuations, found by keeping the best few at every token.

Owns `BeamSearchParams` and what a search gives back, under vLLM's names and rules, or transformers'
rules where early_stopping is given. Invariant: a search draws nothing; the engine
(csrc/engine/beam.c) keeps the beams, which share pages, and its result does not depend on what else
runs.

A base of LLM (llm.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmaccel.arguments import check_switches, refuse_foreign, seconds_of
from llmaccel.calls import Calls, Prompt
from llmaccel.errors import RequestError, UnsupportedCombination, UnsupportedError, shown
from llmaccel.hints import SAMPLING_NAMES, hint
from llmaccel.outputs import LogprobList
from llmaccel.params import SamplingParams, _ids, _integer, _number, engine_fields
from llmaccel.prompts import prompt_list
from llmaccel.request import Request

_INT32_MAX = 2**31 - 1
_LENGTH_PENALTIES = (-10.0, 10.0)  # as csrc/engine/request.c takes them
# LA_BEAM_* of csrc/llmaccel.h by early_stopping
_RULES = {None: 1, False: 2, True: 3, "never": 4}


def _refuse_sampling(cls: type) -> type:
    """Has __init__ answer the names of SamplingParams, which a search does not combine with."""
    init, known = cls.__init__, tuple(field.name for field in fields(cls))  # type: ignore[misc]
    sampling = {field.name for field in fields(SamplingParams)}

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        for name in [one for one in given if one not in known]:
            if name in sampling:
                raise UnsupportedCombination(f"{name}: not with beam search")
            raise TypeError(
                f"BeamSearchParams() got an unexpected keyword argument {name!r}"
                + hint(name, known, SAMPLING_NAMES)
            )
        init(self, *args, **given)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


@_refuse_sampling
@dataclass(slots=True)
class BeamSearchParams:
    """Parameters of a beam search. Bad values raise RequestError, parameters of SamplingParams
    UnsupportedCombination.

    beam_width: continuations kept at every token, and returned; at most max_num_seqs and 256.
    max_tokens: at most that many new tokens. ignore_eos: the model's own stop ids end nothing.
    length_penalty: results are ordered by cum_logprob / length ** length_penalty; the length is
        that of the prompt and what follows, a stop id not counted.
    include_stop_str_in_output: whether text shows the stop id (where it is no special token that
        skip_special_tokens leaves out).
    temperature: must be 0; a search draws nothing. structured_outputs: must be None.
    stop_token_ids: end a continuation beside the model's own stop ids.
    early_stopping: None searches by vLLM's rule: every stop id among the 2 * beam_width best tokens
        of a beam gives a result, until no beam can do better. Others by transformers': a stop id
        gives one only among the beam_width best of all beams' tokens, length is that of the new
        tokens with the stop id, and once there are beam_width results the search ends at once
        (True), or when the best beam scores no better than the worst of them, as long as it is
        (False) or as long as it may become ("never").
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    structured_outputs: Any = None
    stop_token_ids: list[int] | None = None
    early_stopping: bool | str | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every value; RequestError or UnsupportedError names the first bad field."""
        self.beam_width = _integer("beam_width", self.beam_width, 1, _INT32_MAX)
        self.max_tokens = _integer("max_tokens", self.max_tokens, 1, _INT32_MAX)
        self.length_penalty = _number("length_penalty", self.length_penalty, *_LENGTH_PENALTIES)
        self.temperature = _number("temperature", self.temperature, 0.0, 1e6)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(
                    f"{name} must be True or False, got {shown(getattr(self, name))}"
                )
        self.stop_token_ids = _ids("stop_token_ids", self.stop_token_ids)
        known = self.early_stopping is None or isinstance(self.early_stopping, bool)
        if not known and self.early_stopping != "never":
            raise RequestError(
                'early_stopping must be True, False, "never" or None, got '
                f"{shown(self.early_stopping)}"
            )
        if self.temperature != 0.0:
            raise UnsupportedError(
                f"temperature={self.temperature:g}: beam search draws nothing; leave it 0"
            )
        if self.structured_outputs is not None:
            raise UnsupportedError("structured_outputs: not supported by this version")


@dataclass(eq=False)
class BeamSearchSequence:
    """One result of a beam search.

    tokens: the prompt's and those that follow, a stop id included. logprobs: of each token that
    follows a dict with the token itself. cum_logprob: their sum. text: of all tokens; None where
    the model has no tokenizer. finish_reason: "stop", "length", "abort", "timeout". stop_reason:
    the stop id. lora_request: vLLM's field, always None in this version. orig_prompt: the prompt as
    a dict of type, prompt_token_ids and, where it was a text, prompt.
    """

    tokens: list[int]
    logprobs: LogprobList
    cum_logprob: float
    text: str | None
    finish_reason: str | None
    stop_reason: int | str | None
    lora_request: Any = None
    orig_prompt: dict[str, Any] | None = None


@dataclass(eq=False)
class BeamSearchOutput:
    """The results of one prompt, best first: beam_width of them, or fewer where the vocabulary, or
    the time until a cancellation, gives no more."""

    sequences: list[BeamSearchSequence]


class Searching(Calls):
    """The method of LLM that searches."""

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        *,
        priority: int = 0,
        timeout: float | None = None,
        use_tqdm: Any = False,
        concurrency_limit: int | None = None,
        stream: bool = False,
        **foreign: Any,
    ) -> list[BeamSearchOutput]:
        """The params.beam_width most likely continuations of each prompt that a search finds.

        prompts, priority, timeout, use_tqdm: as in generate. concurrency_limit: prompts searched at
        a time; None: as many as run. stream: must be False; a search knows its results at its end.
        Raises RequestError, naming the prompt, before anything is submitted.
        """
        self._driver.check_wait()
        refuse_foreign("beam_search", foreign)
        if stream:
            raise UnsupportedCombination("stream: beam search knows its results at its end")
        check_switches(use_tqdm=use_tqdm)
        if not isinstance(params, BeamSearchParams):
            raise RequestError(f"params: expected BeamSearchParams, got {shown(params)}")
        params.validate()
        options = {
            "priority": self._priority(priority),
            "timeout": seconds_of(timeout),
            "length_penalty": params.length_penalty,
            "beam": _RULES[params.early_stopping],
        }
        made = []
        for i, item in enumerate(prompt_list(prompts)):
            text, ids = self._encode(item, f"prompts[{i}]")
            made.append((*self._search_request(text, ids, params, i), options))
        at_once = len(made) or 1
        if concurrency_limit is not None:
            at_once = _integer("concurrency_limit", concurrency_limit, 1, _INT32_MAX)
        with self._driver.one_call():
            for start in range(0, len(made), at_once):
                self._run_all(made[start : start + at_once], len(made), use_tqdm)
        return [
            BeamSearchOutput(self._sequences(request, params))  # of those that have a token
            for request, *_ in made
        ]

    def _search_request(
        self, text: str | None, ids: list[int], params: BeamSearchParams, index: int
    ) -> tuple[Request, dict[str, Any]]:
        self._check_length(ids, 1, f"prompts[{index}]")
        sampling = SamplingParams(
            temperature=0.0, logprobs=0, detokenize=False, max_tokens=params.max_tokens
        )
        request = Request(
            self._next_id()[1],
            text,
            ids,
            sampling,
            n_branches=params.beam_width,
            prompt_index=index,
        )
        own = () if params.ignore_eos else self._own_stop_ids
        fields_ = engine_fields(
            sampling,
            n_vocab=self._config.n_vocab,
            max_tokens=min(params.max_tokens, self._config.max_len - len(ids)),
            seed=0,
            stop_ids={*own, *(params.stop_token_ids or ())},
            bad=[],
        )
        return request, fields_

    def _sequences(self, request: Request, params: BeamSearchParams) -> list[BeamSearchSequence]:
        prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": list(request.prompt_ids)}
        prompt |= {} if request.prompt is None else {"prompt": request.prompt}
        found = []
        for branch in request.branches:
            scores = branch.scores
            if scores is None or not branch.n:
                continue
            tokens = [*request.prompt_ids, *branch.ids]
            hidden = branch.finish_reason == "stop" and not params.include_stop_str_in_output
            text, token_text = None, None
            if self._tokenizer is not None:
                token_text = self._tokenizer.token_text
                text = self._tokenizer.decode(
                    tokens[:-1] if hidden else tokens,
                    skip_special_tokens=params.skip_special_tokens,
                )
            found.append(
                BeamSearchSequence(
                    tokens,
                    LogprobList(scores, token_text),
                    float(sum(scores.logprobs)),
                    text,
                    branch.finish_reason,
                    branch.stop_reason,
                    orig_prompt=dict(prompt),
                )
            )
        return found
