"""Rows of the family table whose attention reads latents (MLA).

What a row is says family.py; latent.py reads the numbers of a latent and cuts kv_b. DeepSeek's
classes scale scores by yarn's magnitude as well, and rotate pairs unless the config says halves.
Called by families.py.
"""

from __future__ import annotations

from typing import Any

from llmaccel.config import Keys
from llmaccel.errors import UnsupportedError
from llmaccel.models.family import BASE, LLAMA_TENSORS, MLP_BIAS, SELF, Family
from llmaccel.models.latent import EXPERT_KEYS, INERT_KEYS, LATENT_KEYS
from llmaccel.models.rope import RopeKeys, softmax_factor
from llmaccel.models.slots import Source, source


def _deepseek(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    """transformers' scale of scores; layers with experts are not here yet."""
    dense = keys.integer("first_k_dense_replace", 0, 2**31 - 1, none=True) or 0
    if dense < sizes["n_layers"]:
        raise UnsupportedError(
            f"{keys.where}: first_k_dense_replace = {dense}: layers with experts are not supported"
        )
    if sizes["q_rank"] == 0 and keys.flag("attention_bias"):
        raise UnsupportedError(f"{keys.where}: attention_bias without q_lora_rank is not supported")
    return {"attn_scale": sizes["d_head"] ** -0.5 * softmax_factor(keys, RopeKeys())}


_TENSORS: dict[str, Source] = {
    **{k: v for k, v in LLAMA_TENSORS.items() if not k.startswith("qkv")},
    "mla_in": source(SELF + "q_a_proj.weight", SELF + "kv_a_proj_with_mqa.weight"),
    "mla_in_bias": source(SELF + "q_a_proj.bias", SELF + "kv_a_proj_with_mqa.bias"),
    "mla_q_norm": source(SELF + "q_a_layernorm.weight"),
    "mla_kv_norm": source(SELF + "kv_a_layernorm.weight"),
    "mla_q": source(SELF + "q_b_proj.weight"),
    "mla_uk": source(SELF + "kv_b_proj.weight", layout="latent_k"),
    "mla_uv": source(SELF + "kv_b_proj.weight", layout="latent_v"),
}
_DIRECT = {"mla_in": source(SELF + "q_proj.weight", SELF + "kv_a_proj_with_mqa.weight")}
_BIAS = {"mla_in_bias": "attention_bias", "o_bias": "attention_bias"}
_GGUF_TENSORS = {
    "mla_in": source(
        "blk.{i}.attn_q_a.weight|blk.{i}.attn_q.weight", "blk.{i}.attn_kv_a_mqa.weight"
    ),
    "mla_in_bias": source("blk.{i}.attn_q_a.bias", "blk.{i}.attn_kv_a_mqa.bias"),
    "mla_q_norm": source("blk.{i}.attn_q_a_norm.weight"),
    "mla_kv_norm": source("blk.{i}.attn_kv_a_norm.weight"),
    "mla_q": source("blk.{i}.attn_q_b.weight"),
    "mla_uk": source("blk.{i}.attn_k_b.weight|blk.{i}.attn_kv_b.weight", layout="latent_k"),
    "mla_uv": source("blk.{i}.attn_v_b.weight|blk.{i}.attn_kv_b.weight", layout="latent_v"),
}
_GGUF_KEYS = {
    "kv_lora_rank": "attention.kv_lora_rank",
    "q_lora_rank": "attention.q_lora_rank",
    "first_k_dense_replace": "leading_dense_block_count",
    "scoring_func": "expert_gating_func",
}

LATENT_FAMILIES: tuple[Family, ...] = (
    Family(  # DeepSeek-V2, V2-Lite
        "deepseek_v2",
        ("DeepseekV2ForCausalLM",),
        ("deepseek_v2",),
        {
            **BASE,
            **EXPERT_KEYS,
            **LATENT_KEYS,
            "vocab_size": 102400,
            "attention_bias": False,
            "mlp_bias": False,
            "first_k_dense_replace": 0,
        },
        _TENSORS,
        "deepseek2",
        extra=_deepseek,
        latent=True,
        direct=_DIRECT,
        interleaved=lambda keys: True,
        optional={**_BIAS, **MLP_BIAS},
        gguf_tensors=_GGUF_TENSORS,
        gguf_keys=_GGUF_KEYS,
        inert=INERT_KEYS,
    ),
    Family(  # DeepSeek-V3, R1, Kimi-K2
        "deepseek_v3",
        ("DeepseekV3ForCausalLM",),
        ("deepseek_v3", "kimi_k2"),
        {
            **BASE,
            **EXPERT_KEYS,
            **LATENT_KEYS,
            "vocab_size": 129280,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "max_position_embeddings": 4096,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "attention_bias": False,
            "first_k_dense_replace": 3,
            "rope_interleave": True,
        },
        {k: v for k, v in _TENSORS.items() if k not in MLP_BIAS},
        "deepseek2",
        extra=_deepseek,
        latent=True,
        direct=_DIRECT,
        interleaved=lambda keys: bool(keys.value("rope_interleave")),
        optional=_BIAS,
        gguf_tensors=_GGUF_TENSORS,
        gguf_keys=_GGUF_KEYS,
        gguf_tells={"expert_gating_func": 2},  # sigmoid
        inert=INERT_KEYS,
    ),
)
