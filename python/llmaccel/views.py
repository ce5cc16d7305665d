"""What scripts read of vLLM's configuration objects: an LLM's sizes and limits under those names.

Invariant: read-only, and every value is what runs, not what was asked for; a name that is not here
raises AttributeError with those that are. Made by compatible.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from llmaccel.config import ConfigView
from llmaccel.hints import hint


class _View:
    """An AttributeError tells which names there are."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = [field.name for field in fields(self)]  # type: ignore[arg-type]
        raise AttributeError(
            f"{type(self).__name__} has no {name!r} here{hint(name, known)}; it has "
            f"{', '.join(known)}; LLM.report() tells more"
        )


@dataclass(frozen=True)
class ModelView(_View):
    """model: what LLM was given, or where it was found. max_model_len: tokens of a sequence.
    vocab_size: V. dtype: of most weights. hf_config, hf_text_config: the keys of config.json as
    attributes, nested ones brought up and overrides applied. runner_type: "generate" or "pooling".
    sampling: what the model's generation config says, under vLLM's names."""

    model: str
    max_model_len: int
    vocab_size: int
    dtype: str
    hf_config: ConfigView
    tokenizer: str
    seed: int | None
    quantization: str | None
    max_logprobs: int | None
    runner_type: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    sampling: dict[str, Any]
    trust_remote_code: bool = False
    is_multimodal_model: bool = False
    is_encoder_decoder: bool = False
    enforce_eager: bool = True

    @property
    def hf_text_config(self) -> ConfigView:
        """The same as hf_config."""
        return self.hf_config

    @property
    def served_model_name(self) -> str:
        """The same as model."""
        return self.model

    @property
    def architectures(self) -> list[str]:
        """Of hf_config."""
        return list(self.hf_config.get("architectures") or ())

    def get_vocab_size(self) -> int:
        """vocab_size."""
        return self.vocab_size

    def get_hidden_size(self) -> int:
        """hidden_size."""
        return self.hidden_size

    def get_head_size(self) -> int:
        """head_size."""
        return self.head_size

    def get_num_layers(self, parallel_config: Any = None) -> int:
        """n_layers."""
        return self.n_layers

    def get_num_attention_heads(self, parallel_config: Any = None) -> int:
        """n_heads."""
        return self.n_heads

    def get_total_num_kv_heads(self) -> int:
        """n_kv_heads."""
        return self.n_kv_heads

    def get_diff_sampling_param(self) -> dict[str, Any]:
        """sampling."""
        return dict(self.sampling)


@dataclass(frozen=True)
class CacheView(_View):
    """The KV cache: tokens of a page, its number format, and pages at its cap."""

    block_size: int
    cache_dtype: str
    num_gpu_blocks: int
    enable_prefix_caching: bool = False


@dataclass(frozen=True)
class SchedulerView(_View):
    """Limits of a step and of a sequence."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    policy: str


@dataclass(frozen=True)
class ParallelView(_View):
    """One process."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    world_size: int = 1


@dataclass(frozen=True)
class EngineConfigView(_View):
    """vLLM's vllm_config."""

    model_config: ModelView
    cache_config: CacheView
    scheduler_config: SchedulerView
    parallel_config: ParallelView
    lora_config: Any = None
    speculative_config: Any = None
    kv_transfer_config: Any = None
