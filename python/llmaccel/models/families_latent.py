"""Rows of the family table whose attention reads latents (MLA).

What a row is says family.py; latent.py reads the numbers of a latent and cuts kv_b. DeepSeek's
classes scale scores by yarn's magnitude as well, and rotate pairs unless the config says halves.
Called by families.py.
"""

from __future__ import annotations

from typing import Any

from llmaccel.config import MAX_D_FFN, MAX_LAYERS, Keys
from llmaccel.errors import UnsupportedError
from llmaccel.models.families_moe import (
    GROUPED_KEYS,
    MLP_EXPERTS,
    expert_count,
    expert_groups,
    grouped_experts,
    shared_expert,
    shared_width,
)
from llmaccel.models.family import BASE, LLAMA_TENSORS, MLP, MLP_BIAS, SELF, Family
from llmaccel.models.latent import EXPERT_KEYS, INERT_KEYS, LATENT_KEYS
from llmaccel.models.rope import RopeKeys, softmax_factor
from llmaccel.models.slots import Source, source


def _deepseek(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    """transformers' scale of scores."""
    if sizes["q_rank"] == 0 and keys.flag("attention_bias"):
        raise UnsupportedError(f"{keys.where}: attention_bias without q_lora_rank is not supported")
    return {"attn_scale": sizes["d_head"] ** -0.5 * softmax_factor(keys, RopeKeys())}


def _is_dense(keys: Keys, sizes: dict[str, Any]) -> bool:
    """Whether no layer has experts: what a config says of them counts for nothing then."""
    first = keys.integer("first_k_dense_replace", 0, 2**31 - 1, none=True) or 0
    return first >= sizes["n_layers"]


def _only(keys: Keys, key: str, *known: Any) -> None:
    """UnsupportedError where `key` is there and says something else."""
    if keys.raw.get(key) not in (None, *known):
        raise UnsupportedError(
            f"{keys.where}: {key} = {ascii(keys.raw[key])[:80]} is not supported here; known: "
            f"{', '.join(map(str, known))}"
        )


def _v2_experts(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    """V2's router: softmax, the best of all or of the groups with the best; weights as they are."""
    if _is_dense(keys, sizes):
        return {}
    _only(keys, "moe_layer_freq", 1)
    _only(keys, "scoring_func", "softmax")
    _only(keys, "norm_topk_prob", False)  # the published code and transformers differ about it
    _only(keys, "topk_method", "greedy", "group_limited_greedy")
    if keys.flag("mlp_bias"):
        raise UnsupportedError(f"{keys.where}: mlp_bias with experts is not supported")
    count = expert_count(keys, "n_routed_experts")
    width = keys.integer("moe_intermediate_size", 1, MAX_D_FFN)
    limited = keys.value("topk_method") == "group_limited_greedy"
    first = keys.integer("first_k_dense_replace", 0, MAX_LAYERS, none=True) or 0
    return {
        **count,
        **(expert_groups(keys, count) if limited else {}),
        "d_expert": width,
        "d_shared": shared_width(keys, width),
        "route_scale": keys.number("routed_scaling_factor", 1e-6, 1e6),
        "moe": [i >= first for i in range(sizes["n_layers"])],
    }


def _v3_experts(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    if _is_dense(keys, sizes):
        return {}
    _only(keys, "moe_layer_freq", 1)
    _only(keys, "scoring_func", "sigmoid")
    _only(keys, "topk_method", "noaux_tc")
    return grouped_experts(keys, sizes)


_TENSORS: dict[str, Source] = {
    **{k: v for k, v in LLAMA_TENSORS.items() if not k.startswith("qkv")},
    **MLP_EXPERTS,
    **shared_expert("shared_experts"),
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
    **GROUPED_KEYS,
    "kv_lora_rank": "attention.kv_lora_rank",
    "q_lora_rank": "attention.q_lora_rank",
}

LATENT_FAMILIES: tuple[Family, ...] = (
    Family(  # DeepSeek-V2, V2-Lite
        "deepseek_v2",
        ("DeepseekV2ForCausalLM",),
        ("deepseek_v2",),
        {
            **BASE,
            **LATENT_KEYS,
            **EXPERT_KEYS,
            "vocab_size": 102400,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": None,
            "moe_intermediate_size": 1407,
            "n_group": None,
            "topk_group": None,
            "topk_method": "greedy",
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "attention_bias": False,
            "mlp_bias": False,
            "first_k_dense_replace": 0,
        },
        _TENSORS,
        "deepseek2",
        extra=_deepseek,
        experts=_v2_experts,
        aliases={"n_routed_experts": "num_experts"},
        latent=True,
        direct=_DIRECT,
        interleaved=lambda keys: True,
        optional={**_BIAS, **MLP_BIAS},
        gguf_tensors=_GGUF_TENSORS,
        gguf_keys=_GGUF_KEYS,
        # files of the greedy name no groups, which is one
        gguf_values={"topk_method": "group_limited_greedy", "n_group": 1, "topk_group": 1},
        inert=INERT_KEYS,
    ),
    Family(  # DeepSeek-V3, R1, Kimi-K2
        "deepseek_v3",
        ("DeepseekV3ForCausalLM",),
        ("deepseek_v3", "kimi_k2"),
        {
            **BASE,
            **LATENT_KEYS,
            **EXPERT_KEYS,
            "vocab_size": 129280,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
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
        {
            **{k: v for k, v in _TENSORS.items() if k not in MLP_BIAS},
            "router_correction": source(MLP + "gate.e_score_correction_bias"),
        },
        "deepseek2",
        extra=_deepseek,
        experts=_v3_experts,
        aliases={"n_routed_experts": "num_local_experts"},
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
