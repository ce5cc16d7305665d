"""The options of `LLM`: their names, values and spellings, checked before anything is looked for.

Owns `LoadOptions`; which of vLLM's other options are taken is in engine_table.py. Invariant:
`check` names the first bad option, and what passed it holds one spelling of each number format,
whichever was given.

Called by llm.py, loading.py, memory.py and `llmaccel plan`.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmaccel.engine_table import ARGUMENTS, check_unused
from llmaccel.environment import MAX_THREADS
from llmaccel.errors import ConfigError, UnsupportedError, shown
from llmaccel.hints import MODEL_NAMES, QUANTIZATION_NAMES, hint
from llmaccel.params import LOGPROBS_MODES
from llmaccel.pooling_params import pooler_config
from llmaccel.recipes import QUANTIZATIONS, number_format
from llmaccel.whole import is_whole

BACKENDS = ("cpu", "cuda")
_POLICIES = ("fcfs", "priority")
_LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")
_CONVERTS = ("auto", "none", "embed", "classify", "reward")
_PROFILER_OFF = ("delay_iterations", "max_iterations", "wait_iterations", "warmup_iterations")
AUTO_LENGTH = "auto"  # max_model_len: what fits
# dtype: the core's name of the weights' form
WEIGHT_FORMS = {"auto": "auto", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
KV_FORMS = {"float32": "f32", "bfloat16": "bf16", "int8": "i8", "fp8": "f8"}
KV_NAMES = {form: name for name, form in KV_FORMS.items()}
# Names of what a checkpoint may have been quantized by; saying it is allowed, not needed.
FILE_QUANTIZATIONS = (
    *("gguf", "awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "gptq", "hqq"),
    *("modelopt", "mxfp4"),
)
ACTIVATION_FORMS = {"int8": "i8", "bfloat16": "bf16", "float32": "f32"}
ACTIVATION_NAMES = {form: name for name, form in ACTIVATION_FORMS.items()}
_SPELLED = ("dtype", "activation", "kv_cache_dtype")
# vLLM's None stands for a choice of its own.
_CHOSEN = {"max_num_seqs": 64, "max_num_batched_tokens": 512}
# Numbers that may be written "4K", as vLLM reads it: small letters are powers of 1000, capitals of
# 1024.
_SIZES = ("max_model_len", "max_num_batched_tokens", "kv_cache_memory_bytes")
_UNITS = {"": 1} | {
    unit: base**power
    for units, base in (("kmgt", 1000), ("KMGT", 1024))
    for power, unit in enumerate(units, 1)
}

# What the core takes (engine.c, pool.c, model.c), but fewer tokens a step, where more gain nothing;
# for bytes, more than any machine has.
# Whether None stands for a choice comes last.
_COUNTS = (
    ("max_num_seqs", 1, 65536, False),
    ("max_num_batched_tokens", 1, 1 << 20, False),
    ("max_model_len", 1, 1 << 24, True),
    ("kv_cache_memory_bytes", 1, 1 << 62, True),
    ("threads", 1, MAX_THREADS, True),
    ("max_logprobs", -1, (1 << 31) - 1, True),
    ("seed", 0, (1 << 64) - 1, True),
)


@dataclass(frozen=True)
class LoadOptions:
    """The keyword arguments of `LLM`; their meaning is documented there."""

    model: Any
    tokenizer: Any = None
    revision: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    activation: str = "auto"
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    max_model_len: int | str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    backend: str = "cpu"
    threads: int | None = None
    isa: str | None = None
    seed: int | None = 0
    load_format: str = "auto"
    generation_config: Any = "auto"
    chat_template: Any = None
    override_generation_config: Mapping[str, Any] | None = None
    hf_overrides: Mapping[str, Any] | Callable[[Any], Any] | None = None
    convert: str = "auto"
    pooler_config: Any = None
    profiler_config: Any = None
    skip_tokenizer_init: bool = False
    tokenizer_revision: str | None = None
    max_logprobs: int | None = None
    logprobs_mode: str = LOGPROBS_MODES[0]
    scheduling_policy: str | None = None
    disable_log_stats: bool = False
    fast_math: bool = False
    compatible: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _SPELLED:
            object.__setattr__(self, name, number_format(getattr(self, name)))
        if isinstance(self.quantization, str):
            object.__setattr__(self, "quantization", self.quantization.lower())
        for name, chosen in _CHOSEN.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, chosen)
        for name, *_ in _COUNTS:
            value = getattr(self, name)
            value = whole_number(value) if name in _SIZES else value
            object.__setattr__(self, name, value)
            if name == "max_model_len" and is_whole(value, -1, -1):
                object.__setattr__(self, name, value := AUTO_LENGTH)
            if is_whole(value):
                object.__setattr__(self, name, int(value))  # NumPy's integers are as good

    def check(self) -> None:
        """ConfigError, UnsupportedError or TypeError naming the first bad option."""
        choices = (
            ("dtype", tuple(WEIGHT_FORMS)),
            ("activation", ("auto", *ACTIVATION_FORMS, "checkpoint")),
            ("load_format", _LOAD_FORMATS),
            ("convert", _CONVERTS),
            ("backend", BACKENDS),
            ("logprobs_mode", LOGPROBS_MODES),
        )
        for name, known in choices:
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ConfigError(f"{name}={shown(value)}: expected one of {', '.join(known)}")
        if self.scheduling_policy is not None and self.scheduling_policy not in _POLICIES:
            raise ConfigError(
                f"scheduling_policy={shown(self.scheduling_policy)}: expected one of "
                f"{', '.join(_POLICIES)}"
            )
        for name in ("quantization", "kv_cache_dtype", "isa", "revision", "tokenizer_revision"):
            value = getattr(self, name)
            left_out = value is None and name != "kv_cache_dtype"
            if not left_out and not (isinstance(value, str) and value and value.isprintable()):
                raise ConfigError(f"{name}={shown(value)}: expected a name")
        if self.kv_cache_dtype == "fp8_e5m2":
            raise UnsupportedError(
                "kv_cache_dtype='fp8_e5m2': two bits of mantissa are too few; "
                "use 'fp8' (E4M3) or 'int8', which take the same memory"
            )
        if self.kv_cache_dtype not in ("auto", *KV_FORMS):
            raise UnsupportedError(
                f"kv_cache_dtype={shown(self.kv_cache_dtype)}: this version has auto, "
                f"{', '.join(KV_FORMS)}"
            )
        if self.quantization not in (None, *FILE_QUANTIZATIONS, *QUANTIZATIONS):
            raise UnsupportedError(
                f"quantization={shown(self.quantization)}: this version has "
                f"{', '.join(QUANTIZATIONS)}, and the name of what a file has been quantized by"
                + hint(
                    self.quantization or "",
                    (*FILE_QUANTIZATIONS, *QUANTIZATIONS),
                    QUANTIZATION_NAMES,
                )
            )
        if self.backend != "cpu" and self.isa is not None:
            raise ConfigError(f"isa: backend={self.backend!r} has no such choice")
        self._check_switches()
        pooler_config(self.pooler_config)
        profile_folder(self.profiler_config)
        if self.fast_math and self.backend == "cpu":
            raise UnsupportedError(
                "fast_math: backend='cpu' has exact kernels only; leave it False"
            )
        for name, lo, hi, optional in _COUNTS:
            value = getattr(self, name)
            left_out = value is None or (name == "max_model_len" and value == AUTO_LENGTH)
            if not (optional and left_out):
                _check_count(name, value, lo, hi)
        for name, value in self.compatible.items():
            _check_compatible(name, value)

    def idle(self) -> list[str]:
        """vLLM's options that were set to something and change nothing."""
        found = [k for k, v in self.compatible.items() if not ARGUMENTS[k].is_default(v)]
        return found + ([] if self.convert in ("auto", "classify", "reward") else ["convert"])

    def _check_switches(self) -> None:
        for name in ("skip_tokenizer_init", "disable_log_stats", "fast_math"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={shown(getattr(self, name))}: expected True or False")
        if self.skip_tokenizer_init:
            for name in ("tokenizer", "tokenizer_revision", "chat_template"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name}: skip_tokenizer_init=True leaves the tokenizer out")


def _check_count(name: str, value: Any, lo: int, hi: int) -> None:
    if not is_whole(value, lo, hi):
        raise ConfigError(f"{name}={shown(value)}: expected an integer from {lo} to {hi}")


def profile_folder(config: Any) -> Path | None:
    """Where vLLM's profiler_config has profiles written; ConfigError or UnsupportedError names what
    is wrong with it."""
    if config is None:
        return None
    given = config if isinstance(config, Mapping) else getattr(config, "__dict__", None)
    if not isinstance(given, Mapping):
        raise ConfigError(f"profiler_config={shown(config)}: expected a dict")
    for name, value in given.items():
        known = name in ("profiler", "torch_profiler_dir", *_PROFILER_OFF)
        if not known and not str(name).startswith("torch_profiler_"):
            raise ConfigError(f"profiler_config: {shown(name)} is no key of a profiler_config")
        if name in _PROFILER_OFF and value not in (None, 0, False):
            raise UnsupportedError(f"profiler_config: {name}: not supported by this version")
    if given.get("profiler") not in (None, "torch"):
        raise UnsupportedError(
            f"profiler_config: profiler={shown(given['profiler'])}: this version writes Chrome "
            "traces, for 'torch'"
        )
    folder = given.get("torch_profiler_dir")
    if not isinstance(folder, (str, Path, type(None))):
        raise ConfigError(f"profiler_config: torch_profiler_dir={shown(folder)}: expected a folder")
    return Path(folder) if folder else None


def options_of(given: Mapping[str, Any]) -> LoadOptions:
    """The options that keywords of LLM name, `model` among them."""
    known = set(LoadOptions.__dataclass_fields__) - {"compatible"}
    used = {name: value for name, value in given.items() if name in known}
    return LoadOptions(
        **used, compatible={name: value for name, value in given.items() if name not in known}
    )


def whole_number(value: Any) -> Any:
    """The number of "1k" (1000), "1K" (1024) or "2.5M"; other values as they are."""
    found = (
        re.fullmatch(r"(\d{1,20})(\.\d{1,9})?([kmgtKMGT]?)", value)
        if isinstance(value, str)
        else None
    )
    if found is None:
        return value
    whole, part, unit = found.groups()
    if part is None:
        return int(whole) * _UNITS[unit]
    return int(float(whole + part) * _UNITS[unit]) if unit.islower() else value


def _check_compatible(name: str, value: Any) -> None:
    if name not in ARGUMENTS:
        known = [one for one in LoadOptions.__dataclass_fields__ if one != "compatible"]
        raise TypeError(
            f"LLM() got an unexpected keyword argument {name!r}"
            + hint(name, (*known, *ARGUMENTS), MODEL_NAMES)
        )
    if name == "gpu_memory_utilization" and value is not None:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not 0.0 < value <= 1.0:
            raise ConfigError(f"{name}={shown(value)}: expected a number above 0, at most 1")
    check_unused(name, value, BACKENDS)
