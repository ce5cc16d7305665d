"""LLM: a model that answers; text in, text out, from scripts, notebooks, threads and event loops.

Owns loading and closing, and the methods that generate. Invariant: every method checks the process
and the open state first, so nothing hangs after fork() or close(). What loads is in loading.py, the
background thread in driver.py, what calls are made of in calls.py, the other methods in its bases,
a file each, waiting in waiting.py, text in request.py.

Called by users, by cli.py and by the wings.
"""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmaccel import _core
from llmaccel.arguments import check_switches, refuse_foreign, seconds_of
from llmaccel.beams import Searching
from llmaccel.calls import Params, Prompt
from llmaccel.compatible import Compatible
from llmaccel.driver import Driver
from llmaccel.environment import configure_log, open_backend, open_device
from llmaccel.loading import (
    forget_metadata,
    load_weights,
    naming_file,
    open_tokenizer,
    prepare,
)
from llmaccel.measuring import Measuring
from llmaccel.metrics import Recorder
from llmaccel.models.mapping import weight_table
from llmaccel.models.module import ModuleTensors, module_config, module_generation
from llmaccel.models.score import load_score
from llmaccel.options import LoadOptions, options_of
from llmaccel.outputs import RequestOutput
from llmaccel.params import SamplingParams
from llmaccel.pooling import Pooling
from llmaccel.pooling_params import PoolerConfig
from llmaccel.processors import refuse_wait
from llmaccel.prompts import tokenization_of
from llmaccel.queued import Queued
from llmaccel.reporting import Reporting
from llmaccel.showing import Showing
from llmaccel.states import show, wanted_of
from llmaccel.stepping import Steps
from llmaccel.stored import Stored
from llmaccel.waiting import RequestFuture, abandon, output_kind, waker
from llmaccel.weights import Weights

_LOG = logging.getLogger("llmaccel")


class LLM(Pooling, Searching, Queued, Measuring, Weights, Showing, Stored, Compatible, Reporting):
    """A loaded model.

    model: a Hugging Face folder, a GGUF file (of a split one, any part), or a name on the Hugging
        Face hub; "owner/name:file.gguf" takes one GGUF file of several.
    tokenizer: a path or hub name, or what load_tokenizer gave; None: the model's own. revision: of
        the model's repository on the hub.
    dtype: "auto" keeps the file's formats; "float32" dequantizes and computes in fp32 everywhere;
        "bfloat16", "float16" convert float tensors.
    quantization: what float tensors become as they are packed: "int8" and "fp8" (E4M3), one scale
        per output row, "w4g128" and "w4g32", 4 bits with a scale per group of 128 or 32, "w6g16", 6
        bits; the head becomes int8, with w4g32 and w6g16 w6g16, on backend="cuda" it stays as it
        is; norms and biases stay fp32. None keeps what the file has ("gguf" says so).
    activation: of products with 4- to 8-bit weights: "auto" (int8; bfloat16 with fp8 and on
        backend="cuda"), "int8", "bfloat16", "float32". Where int8 would cost too much they are
        finer; report() says where. "checkpoint" rounds rows as a quantized file says others do and
        computes in float32, sums of products in float64: for comparison with others, not for speed.
    kv_cache_dtype: "auto", "float32", "bfloat16"; "int8" and "fp8" (E4M3) take half of bfloat16's
        memory, with a scale per token and head made as the token arrives. Of these three options
        each takes "bf16", "half", "fp16", "fp32", "fp8_e4m3" and torch dtypes too.
        kv_cache_memory_bytes: its cap; it grows only as tokens arrive. None: a share of the free.
    max_model_len: tokens of a sequence, prompt and output; None: what the model was made for;
        "auto" or -1: as much of that as there is memory for. Also "4K" (4096) or "4k" (4000). More
        than the model was made for, its rope scaling counted, is a ConfigError.
    max_num_seqs, max_num_batched_tokens: sequences and tokens of a step; None: 64 and 512.
    backend: "cpu", or "cuda": an NVIDIA GPU, which refuses by name what it has no kernels for.
    threads: None: LLMACCEL_NUM_THREADS, else one per usable processor, which is also the most that
        start. isa: the highest instruction set to use; None: LLMACCEL_ISA, else the best there is.
    seed: of requests that have none; None: a fresh one. load_format: "auto", "safetensors", "gguf",
        "dummy" (seeded random weights, needs config.json alone; of a quantized model it has none,
        and `llmaccel plan` alone takes it).
    generation_config: "auto" takes sampling defaults and stop ids from the model's file, "vllm"
        none; or a path or dict; override_generation_config: a dict of keys that win over it.
        chat_template: Jinja source or a file. hf_overrides: config keys to replace, or a function
        that is given the config (keys as attributes too), changes it or returns another.
    convert: "classify" and "reward" take a causal model as the sequence classifier of its family,
        by its score.weight or classifier_from_token in hf_overrides; "embed" needs no conversion.
        pooler_config: a PoolerConfig, or a dict of its fields: how embed, classify, score and
        encode pool where their PoolingParams leave it open. profiler_config: a dict, whose
        torch_profiler_dir is where start_profile writes.
    skip_tokenizer_init: True leaves the tokenizer out: token ids only. tokenizer_revision: of the
        tokenizer's repository on the hub. max_logprobs: the most that a request may ask for; None
        or -1: any. logprobs_mode: what logprobs hold: "raw_logprobs" and "raw_logits" of the
        model's logits, "processed_logprobs" and "processed_logits" of what tokens were drawn from,
        after all rules, temperature and filters, -inf for what these dropped; those of a prompt are
        raw in each, and loglikelihood and beam_search take no notice. scheduling_policy: "fcfs"
        refuses priorities; None, "priority" takes them. disable_log_stats: True records no metrics.
    fast_math: True, with backend="cuda", multiplies float weights by cuBLASLt where that is found
        (`pip install llmaccel[cublas]`): its sums are cut by the number of rows, so a request's
        bits may depend on its company. report() says who multiplies; without cuBLASLt our own
        kernels do.

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
        max_model_len: int | str | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        backend: str = "cpu",
        threads: int | None = None,
        isa: str | None = None,
        seed: int | None = 0,
        load_format: str = "auto",
        generation_config: Any = "auto",
        override_generation_config: Mapping[str, Any] | None = None,
        chat_template: str | Path | None = None,
        hf_overrides: Mapping[str, Any] | Callable[[Any], Any] | None = None,
        convert: str = "auto",
        pooler_config: PoolerConfig | Mapping[str, Any] | None = None,
        profiler_config: Any = None,
        skip_tokenizer_init: bool = False,
        tokenizer_revision: str | None = None,
        max_logprobs: int | None = None,
        logprobs_mode: str = "raw_logprobs",
        scheduling_policy: str | None = None,
        disable_log_stats: bool = False,
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
        return cls._from(config, arrays, options)

    @classmethod
    def from_torch(cls, module: Any, *, release: bool = False, **options: Any) -> LLM:
        """A model from a transformers module on the CPU: its config, and its parameters packed one
        matrix at a time, bfloat16 included.

        release: let go of each parameter's storage as soon as it is packed; the module is of no use
        afterwards. options: those of LLM; text needs tokenizer=. ConfigError where it is no such
        module, UnsupportedError for an architecture that is not known.
        """
        check_switches(release=release)
        options.setdefault("generation_config", module_generation(module))
        return cls._from(module_config(module), ModuleTensors(module, release), options)

    @classmethod
    def _from(cls, config: Any, arrays: Any, options: dict[str, Any]) -> LLM:
        llm = cls.__new__(cls)
        for name in {"model", "load_format"} & set(options):
            raise TypeError(f"an unexpected keyword argument {name!r}: the weights are given")
        llm._load(options_of({"model": config, **options}), arrays)
        return llm

    @classmethod
    def from_engine_args(cls, engine_args: Any) -> LLM:
        """The model that an EngineArgs describes; the same as LLM(**vars(engine_args))."""
        return cls(**vars(engine_args))

    def _load(self, options: LoadOptions, arrays: Mapping[str, Any] | ModuleTensors | None) -> None:
        refuse_wait()
        configure_log()
        options.check()
        device = open_device(options.backend) if options.backend != "cpu" else None
        prepared = prepare(options, arrays)
        self._options = options
        self._config = prepared.config
        self._forms = prepared.forms
        self._plan = prepared.plan
        self._path = prepared.path
        self._slots = prepared.slots
        self._names, self._uses = weight_table(prepared.config, prepared.checkpoint), None
        self._sleeping = False
        self._generation = prepared.generation
        self._tokenizer = open_tokenizer(options, prepared)
        prepared = forget_metadata(prepared)
        self._backend = device or open_backend(options.isa, options.threads)
        model = _core.Model(self._backend, vars(prepared.config), prepared.forms.weights)
        with naming_file(prepared.path):
            load_weights(model, prepared)
            self._score_head = load_score(prepared.config, prepared.checkpoint, self._tokenizer)
        self._weight_bytes, self._token_bytes = model.bytes, model.token_bytes
        recorder = None if options.disable_log_stats else Recorder(prepared.config.max_len)
        self._driver = Driver(_core.Engine(model, prepared.plan.limits), model, recorder)
        self._close = weakref.finalize(self, self._driver.close)
        self._own_stop_ids = self._find_stop_ids()
        self._counter = itertools.count()
        self._enqueued = queue.SimpleQueue()
        self._steps = Steps()
        self._given_ids = set()
        self._idle_params, self._known_breakers = set(), {}
        self._seed = secrets.randbits(64) if options.seed is None else options.seed
        known, n_vocab = len(self._tokenizer or ()), self._config.n_vocab
        if known > n_vocab:
            _LOG.warning("the tokenizer has %d tokens, the model %d", known, n_vocab)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "an LLM cannot be pickled or copied: it holds weights and threads; another process "
            "opens the model itself by LLM(path)"
        )

    # ---- generation -----------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        priority: int | Sequence[int] | None = 0,
        timeout: float | None = None,
        stream: bool = False,
        use_tqdm: bool | Callable[..., Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        output_logits: bool = False,
        output_hidden_states: Sequence[int] | None = None,
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
        in a notebook; or what makes it in place of tqdm. tokenization_kwargs: a dict of truncation
        (True), max_length, truncate_prompt_tokens (-1: as many as leave room for one more),
        truncation_side ("left"), add_special_tokens. output_logits: outputs carry the logits that
        tokens were drawn from. output_hidden_states: layers of which prompt and outputs carry the
        states, as hidden_states() counts them; both take memory for max_tokens tokens,
        MemoryPlanError where it is not there. Raises RequestError, naming the prompt: all prompts
        and parameters are checked before the first is submitted, and where the engine refuses one
        (an id outside the vocabulary, more tokens than the cache holds) those before it are
        cancelled, as Ctrl-C does. foreign: vLLM's arguments that this version has not: None, or
        UnsupportedError.
        """
        self._driver.check()
        refuse_foreign("generate", foreign)
        return self._run(
            self._encode_prompts(prompts, tokenization_kwargs),
            sampling_params,
            priority=priority,
            timeout=timeout,
            stream=stream,
            use_tqdm=use_tqdm,
            wanted=wanted_of(output_logits, output_hidden_states, self._config.n_layers),
        )

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = None,
        use_tqdm: bool | Callable[..., Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        priority: int | Sequence[int] | None = 0,
        timeout: float | None = None,
        stream: bool = False,
        output_logits: bool = False,
        output_hidden_states: Sequence[int] | None = None,
        **foreign: Any,
    ) -> Any:
        """Answer a conversation, or a list of conversations; returns what generate returns.

        messages: {"role", "content"} dicts; content is a string or a list of text parts, which
            become lines of one string unless the template takes lists. chat_template_content_format
            says so for it: "string", or "openai", by which every content is a list.
        tools and chat_template_kwargs go to the template; RequestError where it reads no tools.
        add_generation_prompt: None: unless continue_final_message, which continues the last
            message.
        """
        self._driver.check()
        refuse_foreign("chat", foreign)
        encoded = self._encode_chat(
            messages,
            tools=tools,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
            chat_template_content_format=chat_template_content_format,
            tokenization_kwargs=tokenization_kwargs,
        )
        return self._run(
            encoded,
            sampling_params,
            priority=priority,
            timeout=timeout,
            stream=stream,
            use_tqdm=use_tqdm,
            wanted=wanted_of(output_logits, output_hidden_states, self._config.n_layers),
        )

    def submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        output_logits: bool = False,
        output_hidden_states: Sequence[int] | None = None,
        **foreign: Any,
    ) -> RequestFuture:
        """Start one prompt and return at once: a future of its RequestOutput, for result() or
        await. Arguments and errors are those of generate."""
        self._driver.check()
        refuse_foreign("submit", foreign)
        wanted = wanted_of(output_logits, output_hidden_states, self._config.n_layers)
        text, ids = self._encode(prompt, "prompt")
        request, fields = self._make_request(text, ids, sampling_params, 0, "prompt")
        options = {"priority": self._priority(priority), "timeout": seconds_of(timeout)}
        options |= show(self._config, wanted, [(request, fields)])[0]
        future = RequestFuture(self, request)
        request.listener = future._on_done
        future.set_running_or_notify_cancel()
        self._driver.submit(request, fields, **options)
        return future

    async def agenerate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        output_logits: bool = False,
        output_hidden_states: Sequence[int] | None = None,
        **foreign: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Continue one prompt on an event loop: an async iterator of chunks as in stream=True.

        Leaving the loop early, or cancelling its task, cancels the request. request_id: of its
        outputs, for abort; None: a number. RequestError where it is in use. The rest: as in
        generate.
        """
        import asyncio  # here: a third of what importing this module would cost

        self._driver.check_wait()
        refuse_foreign("agenerate", foreign)
        wanted = wanted_of(output_logits, output_hidden_states, self._config.n_layers)
        if request_id is not None:
            self._take_id(request_id)
        try:
            how = tokenization_of(tokenization_kwargs, "left")
            text, ids = self._encode(prompt, "prompt", how, self._room())
            request, fields = self._make_request(text, ids, sampling_params, 0, "prompt")
            if request_id is not None:
                request.request_id = request_id
            loop, news = asyncio.get_running_loop(), asyncio.Event()
            request.streaming = True
            request.listener = waker(self._driver, loop, news)
            kind = output_kind(request)
            options = {"priority": self._priority(priority), "timeout": seconds_of(timeout)}
            options |= show(self._config, wanted, [(request, fields)])[0]
            self._driver.submit(request, fields, **options)
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
        finally:
            if request_id is not None:
                self._given_ids.discard(request_id)

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
