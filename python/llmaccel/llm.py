"""LLM: a model that answers; text in, text out, from scripts, notebooks, threads and event loops.

Owns the public methods and how a call becomes requests: prompts to ids, parameters to the engine's
numbers, waiting, streaming, cancelling. Invariant: every method checks the process and the open
state first, so nothing hangs after fork() or close(); a call that is interrupted cancels what it
submitted. Loading is in loading.py, the background thread in driver.py,
waiting in waiting.py, text in request.py.

Called by users, by cli.py and by the wings.
"""

from __future__ import annotations

import itertools
import logging
import math
import numbers
import queue
import secrets
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.arguments import (
    check_switches,
    priority_of,
    refuse_foreign,
    seconds_of,
    spread,
)
from llmaccel.driver import Driver
from llmaccel.environment import configure_log, open_backend, open_device
from llmaccel.errors import LoadError, RequestError, shown
from llmaccel.loading import (
    forget_metadata,
    load_weights,
    naming_file,
    open_tokenizer,
    prepare,
)
from llmaccel.memory import MemoryPlan, check_available
from llmaccel.options import KV_NAMES, LoadOptions
from llmaccel.outputs import RequestOutput
from llmaccel.params import SamplingParams, engine_fields, score_fields
from llmaccel.prompts import (
    encode_text,
    ids_of,
    parts_of,
    prompt_list,
    template_variables,
)
from llmaccel.request import Request
from llmaccel.waiting import Chunks, RequestFuture, abandon, output_kind, wait_all, waker

_LOG = logging.getLogger("llmaccel")
# Continuations of one context that go into one request; more become several requests.
_SUFFIXES_PER_REQUEST = 1024

Prompt = str | Sequence[int] | np.ndarray | Mapping[str, Any]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model.

    model: a Hugging Face folder, a GGUF file (of a split one, any part), or a name on the Hugging
        Face hub; "owner/name:file.gguf" takes one GGUF file of several.
    tokenizer: a path or hub name, or what load_tokenizer gave; None: the model's own. revision: of
        the model's repository on the hub.
    dtype: "auto" keeps the file's formats; "float32" dequantizes and computes in fp32 everywhere;
        "bfloat16", "float16" convert float tensors.
    quantization: what float tensors become as they are packed: "int8" and "fp8" (E4M3), one scale
        per output row, "w4g128" and "w4g32", 4 bits with a scale per group of 128 or 32, "w6g16", 6
        bits; the head becomes int8, with w4g32 and w6g16 w6g16; norms and biases stay fp32. None
        keeps what the file has ("gguf" says so).
    activation: of products with 4- to 8-bit weights: "auto" (int8; bfloat16 with fp8), "int8",
        "bfloat16", "float32". Where int8 would cost too much they are finer; report() says where.
        "checkpoint" computes in float32 and rounds rows as a quantized file says others do.
    kv_cache_dtype: "auto", "float32", "bfloat16"; "int8" and "fp8" (E4M3) take half of bfloat16's
        memory, with a scale per token and head made as the token arrives. Of these three options
        each takes "bf16", "half", "fp16", "fp32", "fp8_e4m3" and torch dtypes too.
        kv_cache_memory_bytes: its cap; it grows only as tokens arrive. None: a share of the free.
    max_model_len: tokens of a sequence, prompt and output; None: what the model was made for.
    max_num_seqs, max_num_batched_tokens: sequences and tokens of a step.
    backend: "cpu", or "cuda": an NVIDIA GPU, which refuses by name what it has no kernels for.
    threads: None: LLMACCEL_NUM_THREADS, else one per usable processor, which is also the most that
        start. isa: the highest instruction set to use; None: LLMACCEL_ISA, else the best there is.
    seed: of requests that have none; None: a fresh one. load_format: "auto", "safetensors", "gguf",
        "dummy" (seeded random weights, needs config.json alone).
    generation_config: "auto" takes sampling defaults and stop ids from the model's file, "vllm"
        none; or a path or dict. chat_template: Jinja source or a file. hf_overrides: config keys to
        replace.
    fast_math: must be False in this version.

    Raises ConfigError, LoadError, MemoryPlanError (before anything is read), UnsupportedError;
    TypeError for an unknown option. Options of vLLM that mean nothing here are accepted and, as a
    dtype that converts nothing of a quantized file, listed by report().
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        activation: str = "auto",
        kv_cache_dtype: str = "auto",
        kv_cache_memory_bytes: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        backend: str = "cpu",
        threads: int | None = None,
        isa: str | None = None,
        seed: int | None = 0,
        load_format: str = "auto",
        generation_config: Any = "auto",
        chat_template: str | Path | None = None,
        hf_overrides: Mapping[str, Any] | None = None,
        fast_math: bool = False,
        **compatible: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        self._load(LoadOptions(**given), None)

    @classmethod
    def from_arrays(cls, config: Any, arrays: Mapping[str, Any], **options: Any) -> LLM:
        """A model from weights that are already in memory.

        config: the contents of a config.json as a dict, or the path of one. arrays: checkpoint
        names to NumPy arrays, torch tensors or DLPack exporters on the CPU, row-major; read in
        place and free to go afterwards. options: those of LLM; text needs tokenizer=.
        """
        llm = cls.__new__(cls)
        known = set(LoadOptions.__dataclass_fields__) - {"model", "compatible", "load_format"}
        compatible = {name: options.pop(name) for name in list(options) if name not in known}
        llm._load(LoadOptions(config, compatible=compatible, **options), arrays)
        return llm

    def _load(self, options: LoadOptions, arrays: Mapping[str, Any] | None) -> None:
        configure_log()
        options.check()
        device = open_device(options.backend) if options.backend != "cpu" else None
        prepared = prepare(options, arrays)
        self._options = options
        self._config = prepared.config
        self._forms = prepared.forms
        self._plan = prepared.plan
        self._path = prepared.path
        self._generation = prepared.generation
        self._tokenizer = open_tokenizer(options, prepared)
        prepared = forget_metadata(prepared)
        self._backend = device or open_backend(options.isa, options.threads)
        model = _core.Model(self._backend, vars(prepared.config), prepared.forms.weights)
        with naming_file(prepared.path):
            load_weights(model, prepared)
        self._weight_bytes, self._token_bytes = model.bytes, model.token_bytes
        self._driver = Driver(_core.Engine(model, prepared.plan.limits), model)
        self._close = weakref.finalize(self, self._driver.close)
        self._own_stop_ids = self._find_stop_ids()
        self._counter = itertools.count()
        self._seed = secrets.randbits(64) if options.seed is None else options.seed
        known, n_vocab = len(self._tokenizer or ()), self._config.n_vocab
        if known > n_vocab:
            _LOG.warning("the tokenizer has %d tokens, the model %d", known, n_vocab)

    def _find_stop_ids(self) -> frozenset[int]:
        """The union of what config, generation config and tokenizer call the end."""
        ids = {*self._config.eos_token_ids, *self._generation.eos_token_ids}
        if self._tokenizer is not None:
            ids.update(self._tokenizer.stop_token_ids)
        return frozenset(i for i in ids if 0 <= i < self._config.n_vocab)

    # ---- generation -----------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        priority: int | Sequence[int] = 0,
        timeout: float | None = None,
        stream: bool = False,
        use_tqdm: bool | None = None,
        **foreign: Any,
    ) -> Any:
        """Continue prompts; a list of RequestOutput, one per prompt, in order.

        prompts: a string, a list of token ids, {"prompt": ...} or {"prompt_token_ids": ...}, or a
        list of these; of a dict with both the ids run, and the output reports the text.
        sampling_params: one for all or one per prompt; None:
        get_default_sampling_params().
        priority: lower runs first. timeout: seconds, after which what is there is returned with
        finish_reason "timeout". stream: an iterator of RequestOutput chunks instead, whose outputs
        carry what is new (or what output_kind says). use_tqdm: progress bar; None: on a terminal or
        in a notebook. Raises RequestError, naming the prompt: all prompts and parameters are
        checked before the first is submitted, and where the engine refuses one (an id outside the
        vocabulary, more tokens than the cache holds) those before it are cancelled, as Ctrl-C
        does. foreign: vLLM's arguments that this version has not: None, or UnsupportedError.
        """
        self._driver.check()
        refuse_foreign("generate", foreign)
        items = prompt_list(prompts)
        encoded = [self._encode(item, f"prompts[{i}]") for i, item in enumerate(items)]
        return self._run(
            encoded,
            sampling_params,
            priority=priority,
            timeout=timeout,
            stream=stream,
            use_tqdm=use_tqdm,
        )

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int | Sequence[int] = 0,
        timeout: float | None = None,
        stream: bool = False,
        use_tqdm: bool | None = None,
        **foreign: Any,
    ) -> Any:
        """Answer a conversation, or a list of conversations; returns what generate returns.

        messages: {"role", "content"} dicts; content is a string or a list of text parts, which
            become lines of one string unless the template takes lists.
        tools and chat_template_kwargs go to the template; RequestError where it reads no tools.
        add_generation_prompt: None: unless continue_final_message, which continues the last
            message.
        """
        self._driver.check()
        refuse_foreign("chat", foreign)
        if not isinstance(messages, (list, tuple)) or not messages:
            raise RequestError(f"messages: expected a list of dicts, got {shown(messages)}")
        check_switches(add_generation_prompt=add_generation_prompt)
        if not isinstance(continue_final_message, str):  # else the name of a field
            check_switches(continue_final_message=continue_final_message)
        variables = template_variables(chat_template_kwargs)
        many = isinstance(messages[0], (list, tuple))
        conversations = list(messages) if many else [messages]
        tokenizer = self.get_tokenizer()
        encoded = []
        for one in conversations:
            text = tokenizer.apply_chat_template(
                tokenizer.prepare_chat(one, chat_template, tools),
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
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)
            encoded.append((text, ids))
        return self._run(
            encoded,
            sampling_params,
            priority=priority,
            timeout=timeout,
            stream=stream,
            use_tqdm=use_tqdm,
        )

    def submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        **foreign: Any,
    ) -> RequestFuture:
        """Start one prompt and return at once: a future of its RequestOutput, for result() or
        await."""
        self._driver.check()
        refuse_foreign("submit", foreign)
        text, ids = self._encode(prompt, "prompt")
        request, fields = self._make_request(text, ids, sampling_params, 0, "prompt")
        future = RequestFuture(self, request)
        request.listener = future._on_done
        future.set_running_or_notify_cancel()
        self._driver.submit(
            request, fields, priority=priority_of(priority), timeout=seconds_of(timeout)
        )
        return future

    async def agenerate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        **foreign: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Continue one prompt on an event loop: an async iterator of chunks as in stream=True.

        Leaving the loop early, or cancelling its task, cancels the request.
        """
        import asyncio  # here: a third of what importing this module would cost

        self._driver.check()
        refuse_foreign("agenerate", foreign)
        text, ids = self._encode(prompt, "prompt")
        request, fields = self._make_request(text, ids, sampling_params, 0, "prompt")
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        request.streaming = True
        request.listener = waker(self._driver, loop, news)
        kind = output_kind(request)
        self._driver.submit(
            request, fields, priority=priority_of(priority), timeout=seconds_of(timeout)
        )
        try:
            finished = False
            while not finished:
                await news.wait()
                news.clear()
                chunk = request.snapshot(kind)
                if chunk is not None:
                    finished = chunk.finished
                    yield chunk
        finally:
            abandon(self._driver, [request])

    def _run(
        self,
        encoded: list[tuple[str | None, list[int]]],
        params: Params,
        *,
        priority: int | Sequence[int],
        timeout: float | None,
        stream: bool,
        use_tqdm: bool | None,
    ) -> Any:
        """Submit all and wait, or hand out chunks."""
        self._driver.check_wait()
        check_switches(stream=stream, use_tqdm=use_tqdm)
        count = len(encoded)
        all_params = spread("sampling_params", params, count, SamplingParams)
        priorities = [
            priority_of(one) for one in spread("priority", priority, count, numbers.Integral)
        ]
        seconds = seconds_of(timeout)
        made = []
        for i, (text, ids) in enumerate(encoded):
            where = f"prompts[{i}]" if count > 1 else "prompt"
            made.append(self._make_request(text, ids, all_params[i], i, where))
        news: queue.SimpleQueue[Request] = queue.SimpleQueue()
        started: list[Request] = []
        try:
            for i, (request, fields) in enumerate(made):
                request.streaming = stream
                request.listener = news.put
                started.append(request)  # first: an interrupt may come right after it is submitted
                self._submit(request, fields, count, priority=priorities[i], timeout=seconds)
            if not stream:
                wait_all(started, news, use_tqdm)
                return [request.output() for request in started]
        except BaseException:
            abandon(self._driver, started)
            raise
        return Chunks(self, started, news)

    def _submit(self, request: Request, fields: dict[str, Any], count: int, **options: Any) -> None:
        try:
            self._driver.submit(request, fields, **options)
        except RequestError as error:
            if count == 1:
                raise
            raise RequestError(f"prompts[{request.prompt_index}]: {error}") from None

    # ---- scoring --------------------------------------------------------------------------------

    def logits(self, prompt: Prompt) -> Any:
        """Logits of every position of one prompt, before temperature.

        Returns a Tensor float32 [T, V] that NumPy, DLPack and the buffer protocol read without a
        copy. MemoryPlanError where there is no room for it.
        """
        self._driver.check()
        text, ids = self._encode(prompt, "prompt")
        self._check_length(ids, 0, "prompt")
        n_vocab = self._config.n_vocab
        check_available(
            f"logits of {len(ids)} positions and {n_vocab} tokens", 4 * len(ids) * n_vocab
        )
        tensor = _core.Tensor.zeros((len(ids), n_vocab), "F32")
        request = self._score_request(text, ids, 1)
        self._score([(request, {"logits": tensor})])
        return tensor

    def loglikelihood(
        self, contexts: Sequence[Prompt], continuations: Sequence[Prompt]
    ) -> list[tuple[float, bool]]:
        """For each pair the log probability of the continuation after the context, summed over its
        tokens, and whether greedy decoding would produce it.

        Equal contexts are computed once and shared. Text pairs are tokenized together, so a token
        may cross the border; an empty context stands for the tokenizer's BOS (or EOS) token.
        """
        self._driver.check()
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
            self._check_length(head + tail, 0, f"contexts[{i}] with continuations[{i}]")
            groups.setdefault(tuple(head), []).append((i, tail))
        work = []
        places: list[list[int]] = []
        for head_ids, members in groups.items():
            for start in range(0, len(members), _SUFFIXES_PER_REQUEST):
                part = members[start : start + _SUFFIXES_PER_REQUEST]
                request = self._score_request(None, list(head_ids), len(part))
                work.append((request, {"suffixes": [tail for _, tail in part]}))
                places.append([i for i, _ in part])
        self._score(work)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(contexts)
        for (request, _), where in zip(work, places, strict=True):
            for i, branch in zip(where, request.branches, strict=True):
                assert branch.scores is not None
                results[i] = (
                    math.fsum(branch.scores.logprobs),
                    all(rank == 1 for rank in branch.scores.ranks),
                )
        return results

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
        return Request(self._next_id()[1], text, ids, params, n_branches=n_branches)

    def _score(self, work: list[tuple[Request, dict[str, Any]]]) -> None:
        """Run requests that draw nothing, and wait."""
        self._driver.check_wait()
        news: queue.SimpleQueue[Request] = queue.SimpleQueue()
        started: list[Request] = []
        try:
            for request, options in work:
                request.listener = news.put
                started.append(request)
                self._driver.submit(request, score_fields(), **options)
            wait_all(started, news, False)
        except BaseException:
            abandon(self._driver, started)
            raise
        for request in started:
            if request.error is not None:
                raise request.error

    # ---- prompts and parameters -----------------------------------------------------------------

    def _encode(self, prompt: Prompt, where: str) -> tuple[str | None, list[int]]:
        """(text or None, token ids)."""
        text: str | None = None
        given: Any = prompt
        if isinstance(prompt, Mapping):
            text, given = parts_of(prompt, where)
        if isinstance(given, str):
            text = given
            ids = encode_text(self.get_tokenizer(), given, where)
        else:
            ids = ids_of(given, where)
        if not ids:
            raise RequestError(f"{where}: empty")
        return text, ids

    def _check_length(self, ids: Sequence[int], room: int, where: str) -> None:
        limit = self._config.max_len
        if len(ids) + room > limit:
            raise RequestError(
                f"{where}: {len(ids)} tokens, but max_model_len is {limit}"
                + (" and one must be left to generate" if room else "")
            )

    def _make_request(
        self,
        text: str | None,
        ids: list[int],
        params: SamplingParams | None,
        index: int,
        where: str,
    ) -> tuple[Request, dict[str, Any]]:
        params = self.get_default_sampling_params() if params is None else params
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params: expected SamplingParams, got {shown(params)}")
        params = params.clone()
        if params.truncate_prompt_tokens is not None:
            keep = params.truncate_prompt_tokens
            ids = ids[-(keep if keep > 0 else max(1, self._config.max_len - 1)) :]
        self._check_length(ids, 1, where)
        number, name = self._next_id()
        request = Request(name, text, ids, params, n_branches=params.n, prompt_index=index)
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
        )
        return request, fields

    def _next_id(self) -> tuple[int, str]:
        number = next(self._counter)
        return number, str(number)

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

    # ---- what it is -----------------------------------------------------------------------------

    def get_tokenizer(self) -> Any:
        """The tokenizer; LoadError where the model has none."""
        if self._tokenizer is None:
            raise LoadError(
                f"{self._path or 'this model'}: no tokenizer files; pass tokenizer= to LLM, or use "
                "token ids as prompts"
            )
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """SamplingParams with the values that the model's generation_config sets."""
        values = dict(self._generation.sampling)
        if self._generation.do_sample is False:
            values.setdefault("temperature", 0.0)
        return replace(SamplingParams(), **values)

    @property
    def engine(self) -> Driver:
        """The thread that runs the engine: stats() and preempt(n) for measurements and tests."""
        return self._driver

    def plan(self) -> MemoryPlan:
        """The memory plan that this model was admitted by; str() of it is a table."""
        # LLM.plan("model") is an obvious try at planning without loading: the string is self then
        if not isinstance(self, LLM):
            raise TypeError(
                "LLM.plan: expected a loaded LLM; `llmaccel plan MODEL` plans without loading"
            )
        self._driver.check()
        return self._plan

    def report(self) -> dict[str, Any]:
        """What was chosen: model, backend, memory, options as given, options without effect,
        counters."""
        self._driver.check()
        config, options = self._config, self._options
        skipped = ("compatible", "model")
        given = {
            name: getattr(options, name)
            for name in LoadOptions.__dataclass_fields__
            if name not in skipped
        }
        stats = self._driver.stats()
        return {
            "model": {
                "path": str(self._path) if self._path is not None else None,
                "architecture": config.architecture,
                "family": config.family,
                "n_layers": config.n_layers,
                "d_model": config.d_model,
                "n_vocab": config.n_vocab,
                "max_model_len": config.max_len,
                "dtype": self._forms.dtype,
                "head_dtype": self._forms.head,
                "quantized": self._forms.quantized,
                "activation": self._forms.rows(config.activation, self._backend.info["name"]),
                "wide_activations": list(self._forms.wide),
                "kv_cache_dtype": KV_NAMES[config.kv_form],
                "stop_token_ids": sorted(self._own_stop_ids),
                "mtp_tensors": self._forms.later,
            },
            "backend": self._backend.info,
            "memory": {
                "weight_bytes": self._weight_bytes,
                "token_bytes": self._token_bytes,
                "kv_page_bytes": self._plan.kv_page_bytes,
                "kv_cap_bytes": self._plan.kv_bytes,
                "kv_bytes": stats["kv_bytes"],
                "workspace_bytes": stats["workspace_bytes"],
                "rope_bytes": self._plan.rope,
            },
            "options": given,
            "no_effect": sorted({*options.compatible, *self._forms.no_effect}),
            "stats": stats,
        }

    def expert_load(self) -> np.ndarray:
        """Tokens that every expert was given so far: int64 [n_layers, n_experts], 0 where dense."""
        load = np.frombuffer(self._driver.expert_load(), np.int64)
        return load.reshape(self._config.n_layers, self._config.n_experts)

    def close(self) -> None:
        """Cancel what runs and free weights and cache. May be called again."""
        self._close()

    def __repr__(self) -> str:
        if not hasattr(self, "_forms"):  # loading failed or goes on
            return "LLM(not loaded)"
        name = self._config.architecture if self._path is None else str(self._path)
        dtype, max_len = self._forms.dtype, self._config.max_len
        return f"LLM({name!r}, dtype={dtype!r}, max_model_len={max_len})"

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# ---- helpers -------------------------------------------------------------------------------------


def _mix(seed: int, number: int) -> int:
    """A 64-bit seed for request `number` (the finaliser of splitmix64)."""
    mask = 2**64 - 1
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
