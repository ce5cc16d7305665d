"""Measuring: metrics and profiles of what an LLM does.

A base of LLM (llm.py).
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from llmaccel.arguments import refuse_foreign
from llmaccel.calls import Calls
from llmaccel.errors import ConfigError, UnsupportedError, shown
from llmaccel.metrics import Metric, collect, expert_tokens
from llmaccel.options import KV_NAMES, profile_folder
from llmaccel.profile import Profile


class Measuring(Calls):
    """The methods of LLM that measure it."""

    def get_metrics(self) -> list[Metric]:
        """Counters, gauges and histograms since the LLM was made, under vLLM's names (of
        llmaccel.metrics: Counter, Gauge, Histogram; and Vector, the tokens of a layer's experts).
        UnsupportedError where disable_log_stats=True turned them off."""
        self._driver.check()
        recorder = self._driver.recorder
        if recorder is None:
            raise UnsupportedError("get_metrics: disable_log_stats=True turned metrics off")
        name = self._config.architecture if self._path is None else str(self._path)
        cache = {
            "block_size": "64",
            "cache_dtype": KV_NAMES[self._config.kv_form],
            "num_gpu_blocks": str(self._plan.limits["kv_pages"]),
        }
        labels = {"model_name": name, "engine": "0"}
        found = self._driver.read(lambda stats: collect(recorder, stats, labels, cache))
        load = self.expert_load()
        routed = {i: load[i] for i, layer in enumerate(self._config.layers) if layer.moe}
        return found + expert_tokens(routed, labels)

    def expert_load(self) -> np.ndarray:
        """Tokens that every expert was given so far: int64 [n_layers, n_experts], 0 where dense.

        Of the last layer those whose logits were wanted (of a prompt that is only continued its
        last token), or all of a step in which somebody wanted final hidden states.
        """
        load = np.frombuffer(self._driver.expert_load(), np.int64)
        return load.reshape(self._config.n_layers, self._config.n_experts)

    def start_profile(
        self, path: str | Path | None = None, *, profile_prefix: str | None = None, **foreign: Any
    ) -> None:
        """Record steps and requests from here on.

        path: the file that stop_profile writes, or a folder for it; None: the torch_profiler_dir of
        LLM's profiler_config, which is made, else the current folder. profile_prefix: how the name
        of a file in a folder begins. foreign: vLLM's delay_iterations and max_iterations, which may
        be None. ConfigError where its folder is not there; LLMAccelError where a profile runs
        already.
        """
        self._driver.check()
        refuse_foreign("start_profile", foreign)
        if path is not None and not isinstance(path, (str, Path)):
            raise ConfigError(f"path={shown(path)}: expected a file or a folder")
        prefix = "llmaccel" if profile_prefix is None else profile_prefix
        if not isinstance(prefix, str) or not prefix or Path(prefix).name != prefix:
            raise ConfigError(
                f"profile_prefix={shown(prefix)}: expected the start of a file's name"
            )
        place = Path() if path is None else Path(path)
        if path is None and (folder := profile_folder(self._options.profiler_config)) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            place = folder
        if place.is_dir():
            names = (place / f"{prefix}-{os.getpid()}-{i}.json" for i in itertools.count())
            place = next(name for name in names if not name.exists())
        if not place.parent.is_dir():
            raise ConfigError(f"path={shown(str(path))}: no such folder")
        self._driver.start_profile(Profile(place))

    def stop_profile(self) -> Path:
        """Write what was recorded as a Chrome trace (chrome://tracing, ui.perfetto.dev) and return
        its path. LLMAccelError where no profile runs; where the file cannot be written (OSError) it
        goes on, with what it has."""
        profile = self._driver.stop_profile()
        try:
            return profile.write()
        except OSError:
            self._driver.start_profile(profile)
            raise
