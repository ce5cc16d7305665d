"""The options of `LLM`: their names, values and spellings, checked before anything is looked for.

Owns `LoadOptions` and what is done with vLLM's options that this version has no use for: those that
mean nothing here are accepted and reported, those that would mean something are refused by name.
Invariant: `check` names the first bad option, and what passed it holds one spelling of each number
format, whichever was given.

Called by llm.py, loading.py, memory.py and `llmaccel plan`.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmaccel.environment import MAX_THREADS
from llmaccel.errors import ConfigError, UnsupportedError, shown
from llmaccel.hints import MODEL_NAMES, QUANTIZATION_NAMES, hint
from llmaccel.params import LOGPROBS_MODES
from llmaccel.recipes import QUANTIZATIONS, number_format
from llmaccel.whole import is_whole

BACKENDS = ("cpu", "cuda")
_POLICIES = ("fcfs", "priority")
_LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")
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

_INSTEAD = {
    "download_dir": "set HF_HUB_CACHE",
    "hf_token": "set HF_TOKEN",
    "rope_scaling": "give it in hf_overrides",
    "rope_theta": "give it in hf_overrides",
}
# What vLLM's options for what is not here may be: 0 is False, and an empty container does as well.
_ABSENT = (None, False)
# vLLM's options, and the values that are no lie: None allows any.
COMPATIBLE: dict[str, tuple[Any, ...] | None] = {
    "trust_remote_code": None,
    "code_revision": None,
    "enforce_eager": None,
    "compilation_config": None,
    "max_seq_len_to_capture": None,
    "disable_custom_all_reduce": None,
    "served_model_name": None,
    "distributed_executor_backend": None,
    "async_scheduling": None,
    "gpu_memory_utilization": None,
    "swap_space": None,
    "prefix_caching_hash_algo": None,  # of a cache that is not here
    "enable_sleep_mode": None,
    "block_size": (None, 64),
    "device": (None, "auto", "cpu"),
    "task": (None, "auto", "generate", "embed", "embedding", "classify", "score", "reward"),
    "runner": (None, "auto", "generate", "pooling"),
    "convert": (None, "auto", "none", "embed"),
    "tokenizer_mode": (None, "auto"),
    "config_format": (None, "auto"),
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "expert_parallel_size": (1,),
    "long_prefill_token_threshold": (None, 0),
    "max_num_partial_prefills": (None, 1),
    "max_long_partial_prefills": (None, 1),
    "enable_chunked_prefill": (None, True),
    **dict.fromkeys(
        (
            "cpu_offload_gb",
            "enable_expert_parallel",
            "enable_lora",
            "enable_prefix_caching",
            "kv_transfer_config",
            "limit_mm_per_prompt",
            "logits_processors",
            "mm_processor_kwargs",
            "num_speculative_tokens",
            "pooler_config",
            "speculative_config",
            "speculative_model",
            "slo",
            "structured_outputs_config",
            "weights_budget",
            "kv_tiers",
            *_INSTEAD,
        ),
        _ABSENT,
    ),
    # vLLM's defaults of parts that are not here ask for nothing either
    "allowed_local_media_path": (*_ABSENT, ""),
    "guided_decoding_backend": (*_ABSENT, "auto"),
    "reasoning_parser": (*_ABSENT, ""),
    "tool_call_parser": (*_ABSENT, ""),
    "max_lora_rank": (*_ABSENT, 16),
    "max_loras": (*_ABSENT, 1),
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
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    backend: str = "cpu"
    threads: int | None = None
    isa: str | None = None
    seed: int | None = 0
    load_format: str = "auto"
    generation_config: Any = "auto"
    chat_template: Any = None
    hf_overrides: Mapping[str, Any] | None = None
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
        for name, *_ in _COUNTS:
            value = getattr(self, name)
            if is_whole(value):
                object.__setattr__(self, name, int(value))  # NumPy's integers are as good

    def check(self) -> None:
        """ConfigError, UnsupportedError or TypeError naming the first bad option."""
        choices = (
            ("dtype", tuple(WEIGHT_FORMS)),
            ("activation", ("auto", *ACTIVATION_FORMS, "checkpoint")),
            ("load_format", _LOAD_FORMATS),
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
        if self.fast_math and self.backend == "cpu":
            raise UnsupportedError(
                "fast_math: backend='cpu' has exact kernels only; leave it False"
            )
        for name, lo, hi, optional in _COUNTS:
            value = getattr(self, name)
            if value is not None or not optional:
                _check_count(name, value, lo, hi)
        for name, value in self.compatible.items():
            _check_compatible(name, value)

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


def _check_compatible(name: str, value: Any) -> None:
    if name not in COMPATIBLE:
        known = [one for one in LoadOptions.__dataclass_fields__ if one != "compatible"]
        raise TypeError(
            f"LLM() got an unexpected keyword argument {name!r}" + hint(name, known, MODEL_NAMES)
        )
    allowed = COMPATIBLE[name]
    plain = isinstance(value, (numbers.Real, str, type(None)))
    if allowed is None or (plain and value in allowed):
        return
    if allowed[: len(_ABSENT)] == _ABSENT:
        if isinstance(value, (dict, list, tuple, set, frozenset)) and not value:
            return
        instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise UnsupportedError(f"{name}={shown(value)}: not supported by this version{instead}")
    known = " or ".join(map(repr, allowed))
    instead = f"; give backend={value!r}" if name == "device" and value in BACKENDS else ""
    raise UnsupportedError(f"{name}={shown(value)}: this version has {known} only{instead}")
