"""Calls: what public methods of LLM are made of: prompts to ids, parameters to numbers, waiting.

Owns the state of a loaded model that calls read, and how one call becomes requests. Invariant:
all of a call is checked before its first request is submitted, no change of weights comes between
its requests, and a call that is interrupted cancels what it submitted.

A base of what LLM (llm.py), which sets the state, is made of.
"""

from __future__ import annotations

import itertools
import numbers
import queue
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmaccel.arguments import check_switches, priority_of, seconds_of, spread
from llmaccel.chat import CONTENT_FORMATS
from llmaccel.config import ModelConfig
from llmaccel.driver import Driver
from llmaccel.errors import (
    LoadError,
    RequestError,
    UnsupportedCombination,
    UnsupportedError,
    shown,
)
from llmaccel.memory import MemoryPlan
from llmaccel.options import LoadOptions
from llmaccel.params import DRY_BREAKERS, NO_EFFECT, SamplingParams, engine_fields
from llmaccel.processors import Processing
from llmaccel.prompts import (
    Tokenization,
    encode_text,
    ids_of,
    parts_of,
    prompt_list,
    template_variables,
    tokenization_of,
)
from llmaccel.request import Request
from llmaccel.states import Wanted, show
from llmaccel.thinking import think_tags
from llmaccel.waiting import Chunks, abandon, wait_all

Prompt = str | Sequence[int] | np.ndarray | Mapping[str, Any]
Params = SamplingParams | Sequence[SamplingParams] | None


# Strings whose tokens are remembered.
_MOST_BREAKERS = 64


class Calls:
    """State of a loaded model, and the way of a call through it."""

    _options: LoadOptions
    _config: ModelConfig
    _forms: Any
    _plan: MemoryPlan
    _slots: list[tuple[str, list[tuple[str, int, int]], int]]
    _path: Path | None
    _generation: Any
    _tokenizer: Any
    _backend: Any
    _driver: Driver
    _weight_bytes: int
    _token_bytes: int
    _own_stop_ids: frozenset[int]
    _counter: itertools.count[int]
    _seed: int
    _given_ids: set[str]  # that callers chose for requests under way
    _idle_params: set[str]  # sampling parameters without effect that requests brought
    _known_breakers: dict[str, list[int]]  # tokens that contain a string
    _score_head: np.ndarray | None
    _sleeping: bool

    def get_tokenizer(self) -> Any:
        """The tokenizer; LoadError where the model has none."""
        if self._tokenizer is None:
            why = "no tokenizer files; pass tokenizer= to LLM"
            if self._options.skip_tokenizer_init:
                why = "skip_tokenizer_init=True left the tokenizer out; set_tokenizer takes one"
            raise LoadError(f"{self._path or 'this model'}: {why}, or use token ids as prompts")
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """SamplingParams with the values that the model's generation_config sets."""
        values = dict(self._generation.sampling)
        if self._generation.do_sample is False:
            values.setdefault("temperature", 0.0)
        return replace(SamplingParams(), **values)

    def _run(
        self,
        encoded: list[tuple[str | None, list[int]]],
        params: Params,
        *,
        priority: int | Sequence[int] | None,
        timeout: float | None,
        stream: bool,
        use_tqdm: Any,
        wanted: Wanted | None = None,
    ) -> Any:
        """Submit all and wait, or hand out chunks."""
        self._driver.check_wait()
        check_switches(stream=stream, use_tqdm=use_tqdm)
        news: queue.SimpleQueue[Request] = queue.SimpleQueue()
        started = self._start(
            encoded,
            params,
            news,
            priority=priority,
            timeout=timeout,
            stream=stream,
            wanted=wanted,
        )
        if stream:
            return Chunks(self, started, news)
        try:
            wait_all(started, news, use_tqdm)
            return [request.output() for request in started]
        except BaseException:
            abandon(self._driver, started)
            raise

    def _start(
        self,
        encoded: list[tuple[str | None, list[int]]],
        params: Params,
        news: queue.SimpleQueue[Request],
        *,
        priority: int | Sequence[int] | None,
        timeout: float | None,
        stream: bool = False,
        wanted: Wanted | None = None,
    ) -> list[Request]:
        """Submit all; `news` is given each as it ends, of a stream also as it goes on."""
        count = len(encoded)
        all_params = spread("sampling_params", params, count, SamplingParams)
        priorities = [
            self._priority(one) for one in spread("priority", priority, count, numbers.Integral)
        ]
        seconds = seconds_of(timeout)
        made = []
        for i, (text, ids) in enumerate(encoded):
            where = f"prompts[{i}]" if count > 1 else "prompt"
            made.append(self._make_request(text, ids, all_params[i], i, where))
        rooms = show(self._config, wanted, made)
        started: list[Request] = []
        try:
            with self._driver.one_call():
                for i, (request, fields) in enumerate(made):
                    request.streaming = stream
                    request.listener = news.put
                    started.append(request)  # first: an interrupt may come right behind the submit
                    options = {"priority": priorities[i], "timeout": seconds, **rooms[i]}
                    self._submit(request, fields, count, **options)
        except BaseException:
            abandon(self._driver, started)
            raise
        return started

    def _priority(self, value: Any) -> int:
        """A priority as the engine takes it; None is 0."""
        number = priority_of(0 if value is None else value)
        if number != 0 and self._options.scheduling_policy == "fcfs":
            raise RequestError(
                f"priority={number}: scheduling_policy='fcfs' runs requests as they come; "
                "make the LLM with scheduling_policy='priority'"
            )
        return number

    def _run_all(
        self,
        work: list[tuple[Request, dict[str, Any], dict[str, Any]]],
        count: int,
        use_tqdm: Any,
    ) -> None:
        """Submit requests with their fields and options, wait, and raise the first one's error."""
        news: queue.SimpleQueue[Request] = queue.SimpleQueue()
        started: list[Request] = []
        try:
            with self._driver.one_call():
                for request, fields, options in work:
                    request.listener = news.put
                    started.append(request)
                    self._submit(request, fields, count, **options)
            wait_all(started, news, use_tqdm)
        except BaseException:
            abandon(self._driver, started)
            raise
        for request in started:
            if request.error is not None:
                raise request.error

    def _submit(self, request: Request, fields: dict[str, Any], count: int, **options: Any) -> None:
        try:
            self._driver.submit(request, fields, **options)
        except RequestError as error:
            if count == 1:
                raise
            raise RequestError(f"prompts[{request.prompt_index}]: {error}") from None

    # ---- prompts and parameters -----------------------------------------------------------------

    def _encode(
        self, prompt: Prompt, where: str, how: Tokenization | None = None, room: int = 0
    ) -> tuple[str | None, list[int]]:
        """(text or None, token ids). room: tokens that `how` keeps where it says as many as go."""
        text: str | None = None
        given: Any = prompt
        how = Tokenization() if how is None else how
        if isinstance(prompt, Mapping):
            text, given = parts_of(prompt, where)
            if prompt.get("cache_salt") is not None:
                self._idle_params.add("cache_salt")
        if isinstance(given, str):
            text = given
            ids = how.ids_of_text(self.get_tokenizer(), given, where, room)
        else:
            ids = how.cut(ids_of(given, where), where, room)
        if not ids:
            raise RequestError(f"{where}: empty")
        return text, ids

    def _encode_chat(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        chat_template: str | None,
        add_generation_prompt: bool | None,
        continue_final_message: bool,
        chat_template_kwargs: Mapping[str, Any] | None,
        chat_template_content_format: str = "auto",
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[tuple[str | None, list[int]]]:
        """The same of a conversation or a list of them, as the template writes them."""
        if not isinstance(messages, (list, tuple)) or not messages:
            raise RequestError(f"messages: expected a list of dicts, got {shown(messages)}")
        check_switches(add_generation_prompt=add_generation_prompt)
        if not isinstance(continue_final_message, str):  # else the name of a field
            check_switches(continue_final_message=continue_final_message)
        variables = template_variables(chat_template_kwargs)
        if chat_template_content_format not in CONTENT_FORMATS:
            raise RequestError(
                f"chat_template_content_format: expected one of {', '.join(CONTENT_FORMATS)}, got "
                f"{shown(chat_template_content_format)}"
            )
        how = tokenization_of(tokenization_kwargs, "left") or Tokenization()
        many = isinstance(messages[0], (list, tuple))
        conversations = list(messages) if many else [messages]
        tokenizer = self.get_tokenizer()
        encoded: list[tuple[str | None, list[int]]] = []
        for i, one in enumerate(conversations):
            text = tokenizer.apply_chat_template(
                tokenizer.prepare_chat(one, chat_template, tools, chat_template_content_format),
                tools=tools,
                chat_template=chat_template,
                tokenize=False,
                add_generation_prompt=not continue_final_message
                if add_generation_prompt is None
                else add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
            # The template wrote its special tokens, BOS included.
            special = bool(how.add_special_tokens)
            ids = tokenizer.encode(text, add_special_tokens=special, split_special_tokens=False)
            where = f"messages[{i}]" if many else "messages"
            encoded.append((text, how.cut(ids, where, self._room())))
        return encoded

    def _encode_prompts(
        self, prompts: Any, tokenization_kwargs: Mapping[str, Any] | None
    ) -> list[tuple[str | None, list[int]]]:
        """Prompts to continue, one or many."""
        how, room = tokenization_of(tokenization_kwargs, "left"), self._room()
        items = prompt_list(prompts)
        return [self._encode(item, f"prompts[{i}]", how, room) for i, item in enumerate(items)]

    def _room(self) -> int:
        """Tokens of a prompt that leave room for one more."""
        return max(1, self._config.max_len - 1)

    def _find_stop_ids(self) -> frozenset[int]:
        """The union of what config, generation config and tokenizer call the end."""
        ids = {*self._config.eos_token_ids, *self._generation.eos_token_ids}
        if self._tokenizer is not None:
            ids.update(self._tokenizer.stop_token_ids)
        return frozenset(i for i in ids if 0 <= i < self._config.n_vocab)

    def _check_length(self, ids: Sequence[int], room: int, where: str) -> None:
        limit = self._config.max_len
        if len(ids) + room > limit:
            raise RequestError(
                f"{where}: {len(ids)} tokens, but max_model_len is {limit}"
                + (" and one must be left to generate" if room > 0 else "")
            )

    def _make_request(
        self,
        text: str | None,
        ids: list[int],
        params: SamplingParams | None,
        index: int,
        where: str,
    ) -> tuple[Request, dict[str, Any]]:
        self._check_head()
        params = self.get_default_sampling_params() if params is None else params
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params: expected SamplingParams, got {shown(params)}")
        params = params.clone()
        if params.truncate_prompt_tokens is not None:
            keep = params.truncate_prompt_tokens
            ids = ids[-(keep if keep > 0 else self._room()) :]
        self._check_length(ids, 1, where)
        self._check_logprobs(params)
        number, name = self._next_id()
        request = Request(name, text, ids, params, n_branches=params.n_drawn, prompt_index=index)
        self._idle_params.update(k for k, off in NO_EFFECT.items() if getattr(params, k) != off)
        if params.logits_processors is not None:
            request.processing = Processing(
                params.logits_processors, request.prompt_ids, request.branches, self._config.n_vocab
            )
        if not params.ignore_eos:
            request.own_stop_ids = self._own_stop_ids
        if self._tokenizer is not None:
            request.attach_text(self._tokenizer)
        elif params.stop or params.bad_words:
            self.get_tokenizer()  # raises: strings need one
        room = self._config.max_len - len(ids)
        wanted = room if params.max_tokens is None else min(params.max_tokens, room)
        fields = engine_fields(
            params,
            n_vocab=self._config.n_vocab,
            max_tokens=wanted,
            seed=_mix(self._seed, number),
            stop_ids=request.own_stop_ids,
            bad=self._bad_words(params),
            think=self._think_tags(params),
            breakers=self._breakers(params),
            logprobs_mode=self._options.logprobs_mode,
        )
        return request, fields

    def _check_logprobs(self, params: SamplingParams) -> None:
        """RequestError where more log probabilities are asked for than max_logprobs allows;
        UnsupportedCombination where best_of would add up logits."""
        mode = self._options.logprobs_mode
        if params.n_drawn > params.n and mode.endswith("logits"):
            raise UnsupportedCombination(f"best_of: not together with logprobs_mode={mode!r}")
        most = self._options.max_logprobs
        if most is None or most < 0:
            return
        for name in ("logprobs", "prompt_logprobs"):
            k = getattr(params, name)
            if k is not None and (k < 0 or k > most):
                raise RequestError(f"{name}={k}: max_logprobs={most} of this LLM allows no more")

    def _check_head(self) -> None:
        """UnsupportedError where the model has no head to give tokens a logit."""
        if self._config.task != "generate":
            raise UnsupportedError(
                f"{self._config.architecture} has no head that predicts tokens; this model is for "
                + ("classify()" if self._config.task == "classify" else "embed()")
            )

    def _next_id(self) -> tuple[int, str]:
        """A number, and a name that no caller has given: abort takes either."""
        number = next(self._counter)
        name = str(number)
        while name in self._given_ids:
            name = f"_{name}"
        return number, name

    def _think_tags(self, params: SamplingParams) -> tuple[list[int], list[int]]:
        """Tokens around thoughts, where they have a budget."""
        budget = params.thinking_token_budget
        return ([], []) if budget is None or budget < 0 else think_tags(self.get_tokenizer())

    def _breakers(self, params: SamplingParams) -> list[int]:
        """Tokens of dry_sequence_breakers; of the default ones none where there is no tokenizer."""
        given = params.dry_sequence_breakers
        if params.dry_multiplier == 0.0 or (given is None and self._tokenizer is None):
            return []
        found: set[int] = set()
        for one in DRY_BREAKERS if given is None else given:
            ids = self._tokens_with(one) if isinstance(one, str) else [one]
            if given is not None and not ids:
                raise RequestError(f"dry_sequence_breakers: no token contains {shown(one)}")
            if max(ids, default=0) >= self._config.n_vocab:
                raise RequestError(f"dry_sequence_breakers: id {one} is outside the vocabulary")
            found.update(ids)
        return sorted(found)

    def _tokens_with(self, text: str) -> list[int]:
        """All tokens whose bytes contain the text's: a look at the whole vocabulary, remembered."""
        known = self._known_breakers  # before the tokenizer: another one comes with another dict
        ids = known.get(text)
        if ids is None:
            if len(known) >= _MOST_BREAKERS:
                known.clear()
            tokenizer, part = self.get_tokenizer(), text.encode("utf-8", "surrogatepass")
            count = min(len(tokenizer), self._config.n_vocab)
            ids = known[text] = [i for i in range(count) if part in tokenizer.token_bytes(i)]
        return ids

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        """Token sequences of bad_words, at the start of a text and inside it."""
        found: list[list[int]] = []
        for word in params.bad_words or ():
            tokenizer = self.get_tokenizer()
            for spelled in (word.lstrip(), " " + word.lstrip()):
                ids = encode_text(tokenizer, spelled, "bad_words", add_special_tokens=False)
                if ids and ids not in found:
                    found.append(ids)
        return found


def _mix(seed: int, number: int) -> int:
    """A 64-bit seed for request `number` (the finaliser of splitmix64)."""
    mask = 2**64 - 1
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
