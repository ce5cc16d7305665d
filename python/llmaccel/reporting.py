"""Reporting: what a loaded model is, what was chosen for it and what it has done.

A base of LLM (llm.py).
"""

from __future__ import annotations

from typing import Any

from llmaccel.calls import Calls
from llmaccel.driver import Driver
from llmaccel.memory import MemoryPlan
from llmaccel.options import KV_NAMES, LoadOptions


class Reporting(Calls):
    """The methods of LLM that tell about it."""

    @property
    def engine(self) -> Driver:
        """The thread that runs the engine: stats() and preempt(n) for measurements and tests."""
        return self._driver

    def plan(self) -> MemoryPlan:
        """The memory plan that this model was admitted by; str() of it is a table."""
        # LLM.plan("model") is an obvious try at planning without loading: the string is self then
        if not isinstance(self, Calls):
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
                "n_parameters": self._count_parameters(),
                "n_embedding_parameters": self._count_parameters("embed", "pos_embed"),
                "max_model_len": config.max_len,
                "learned_positions": config.d_rope == 0,
                "dtype": self._forms.dtype,
                "head_dtype": self._forms.head,
                "quantized": self._forms.quantized,
                "activation": self._forms.rows(config.activation, self._backend.info["name"]),
                "wide_activations": list(self._forms.wide),
                "products": self._forms.products,
                "kv_cache_dtype": KV_NAMES[config.kv_form],
                "stop_token_ids": sorted(self._own_stop_ids),
                "mtp_tensors": self._forms.later,
                "vision_tensors": self._forms.towers,
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
                "host_bytes": self._plan.host,
            },
            "options": given,
            "no_effect": sorted({*options.idle(), *self._forms.no_effect, *self._idle_params}),
            "stats": stats,
        }

    def _count_parameters(self, *of: str) -> int:
        """Values of the checkpoint that the model holds, of some slots or of all."""
        return sum(
            count * rows * cols
            for slot, parts, count in self._slots
            if not of or slot in of
            for _, rows, cols in parts
        )
