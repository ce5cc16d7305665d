"""What scripts written for vLLM touch beside generation: its engine object, switches, refusals.

Invariant: a name is here because it does what vLLM's does, or raises UnsupportedError that says
what to use instead; nothing pretends.

A base of LLM (llm.py).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NoReturn

from llmaccel.calls import Calls
from llmaccel.config import ConfigView
from llmaccel.errors import ConfigError, UnsupportedError, shown
from llmaccel.memory import PAGE_TOKENS
from llmaccel.options import KV_NAMES
from llmaccel.stepping import LLMEngine, Steps
from llmaccel.views import CacheView, EngineConfigView, ModelView, ParallelView, SchedulerView


class Compatible(Calls):
    """Names of vLLM's LLM."""

    _steps: Steps

    @property
    def llm_engine(self) -> LLMEngine:
        """The engine under vLLM's name: its configuration, tokenizer, add_request and step."""
        self._driver.check()
        return LLMEngine(self)  # type: ignore[arg-type]  # an LLM, of which this is a base

    @property
    def model_config(self) -> ModelView:
        """What the model is, under the names of vLLM's model_config; read-only."""
        self._driver.check()
        config, options = self._config, self._options
        name = config.architecture if self._path is None else str(self._path)
        tokenizer = options.tokenizer
        return ModelView(
            model=name,
            max_model_len=config.max_len,
            vocab_size=config.n_vocab,
            dtype=self._forms.dtype,
            hf_config=ConfigView(copy.deepcopy(config.raw)),
            tokenizer=str(tokenizer) if isinstance(tokenizer, (str, Path)) else name,
            seed=options.seed,
            quantization=options.quantization,
            max_logprobs=options.max_logprobs,
            runner_type="generate" if config.task == "generate" else "pooling",
            hidden_size=config.d_model,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            head_size=config.d_head,
            sampling=dict(self._generation.sampling),
        )

    @property
    def vllm_config(self) -> EngineConfigView:
        """The configuration of the engine, as vLLM groups it; read-only."""
        model, plan = self.model_config, self._plan
        return EngineConfigView(
            model,
            CacheView(PAGE_TOKENS, KV_NAMES[self._config.kv_form], plan.kv_pages),
            SchedulerView(
                plan.max_num_seqs,
                plan.max_num_batched_tokens,
                plan.max_model_len,
                self._options.scheduling_policy or "priority",
            ),
            ParallelView(),
        )

    @property
    def supported_tasks(self) -> list[str]:
        """What it can do, under vLLM's names: "generate", "embed", "classify", "score" and those of
        every token."""
        config = self._config
        tasks = ["generate"] if config.task == "generate" else []
        tasks += ["classify", "token_classify"] if config.task == "classify" else []
        return [*tasks, "embed", "token_embed", *(["score"] if config.n_labels < 2 else [])]

    def get_world_size(self, include_dp: bool = True) -> int:
        """1: everything runs in this process."""
        self._driver.check()
        return 1

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use another tokenizer from the next call on: a path or hub name, or what load_tokenizer
        gave. Its stop ids replace those of the one before."""
        from llmaccel.tokenize import Tokenizer, load_tokenizer

        self._driver.check()
        if isinstance(tokenizer, (str, Path)):
            tokenizer = load_tokenizer(tokenizer)
        if not isinstance(tokenizer, Tokenizer):
            raise ConfigError(f"tokenizer={shown(tokenizer)}: expected a path or a Tokenizer")
        self._tokenizer = tokenizer
        self._known_breakers = {}  # after the tokenizer: whoever sees this one sees that
        self._own_stop_ids = self._find_stop_ids()

    def reset_prefix_cache(self, *args: Any, **given: Any) -> NoReturn:
        """Raises UnsupportedError: this version keeps no prefix cache."""
        raise UnsupportedError(
            "reset_prefix_cache: this version keeps no cache of prefixes beyond a request"
        )

    def collective_rpc(self, *args: Any, **given: Any) -> NoReturn:
        """Raises UnsupportedError: there are no worker processes to call."""
        raise UnsupportedError(
            "collective_rpc: everything runs in this process; call methods of LLM, or "
            "llmaccel.kernels, from a thread"
        )

    def apply_model(self, *args: Any, **given: Any) -> NoReturn:
        """Raises UnsupportedError: the model is no torch module."""
        raise UnsupportedError(
            "apply_model: the model is no torch module; logits() and report() tell about it"
        )
