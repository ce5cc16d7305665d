"""What scripts written for vLLM touch beside generation: its engine object, switches, refusals.

Invariant: a name is here because it does what vLLM's does, or raises UnsupportedError that says
what to use instead; nothing pretends.

A base of LLM (llm.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llmaccel.calls import Calls
from llmaccel.errors import ConfigError, UnsupportedError, shown


@dataclass(frozen=True, slots=True)
class ModelView:
    """model: what LLM was given. max_model_len: tokens of a sequence. vocab_size: V."""

    model: str
    max_model_len: int
    vocab_size: int
    dtype: str

    def get_vocab_size(self) -> int:
        """vLLM's name of vocab_size."""
        return self.vocab_size


@dataclass(frozen=True, slots=True)
class EngineView:
    """What evaluation code reads of vLLM's `llm.llm_engine`."""

    model_config: ModelView


class Compatible(Calls):
    """Names of vLLM's LLM."""

    @property
    def llm_engine(self) -> EngineView:
        """`llm.llm_engine.model_config.max_model_len` and its neighbours; read-only."""
        self._driver.check()
        config = self._config
        name = config.architecture if self._path is None else str(self._path)
        view = ModelView(name, config.max_len, config.n_vocab, self._forms.dtype)
        return EngineView(view)

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
