"""Rows of the family table whose layers have experts.

Beside what family.py says of a row, `experts` reads the keys about them: how many, how a token's
are chosen and weighed, what every token passes beside them, and which layers have some. Checkpoints
store an expert's matrices one by one or all experts of a layer in one tensor; rows name both.
Called by families.py and families_latent.py.
"""

from __future__ import annotations

from typing import Any

from llmaccel.config import (
    MAX_D_FFN,
    MAX_EXPERTS,
    MAX_EXPERTS_USED,
    MAX_LAYERS,
    MAX_POSITIONS,
    Keys,
)
from llmaccel.errors import UnsupportedError
from llmaccel.models.family import (
    ATTN_BIAS,
    ATTN_BIAS_TENSORS,
    BASE,
    FULL,
    LLAMA_TENSORS,
    MLP,
    NO_BIAS,
    QK_NORMS,
    SLIDING,
    Family,
    every_window,
    granite,
    layer_types,
    typed_window,
)
from llmaccel.models.rope import RopeKeys
from llmaccel.models.slots import Source, source

_FEED = "layers.{i}.feed_forward."
_SPARSE = "layers.{i}.block_sparse_moe."


def expert_count(keys: Keys, key: str) -> dict[str, int]:
    """Experts of a layer and of a token."""
    experts = keys.integer(key, 1, MAX_EXPERTS)
    used = keys.integer("num_experts_per_tok", 1, min(experts, MAX_EXPERTS_USED))
    return {"n_experts": experts, "n_experts_used": used}


def _mixtral(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    """Mixtral, Granite: every layer; the experts' logits alone are weighed."""
    return {
        **expert_count(keys, "num_local_experts"),
        "d_expert": sizes["d_ffn"],
        "route_norm": True,
        "moe": [True] * sizes["n_layers"],
    }


def _olmoe(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        **expert_count(keys, "num_experts"),
        "d_expert": sizes["d_ffn"],
        "route_norm": keys.flag("norm_topk_prob"),
        "moe": [True] * sizes["n_layers"],
    }


def _granite_shared(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    shared = keys.integer("shared_intermediate_size", 0, MAX_D_FFN)
    return {**_mixtral(keys, sizes), "d_shared": shared}


def _qwen_layers(keys: Keys, n_layers: int) -> list[bool]:
    """Every decoder_sparse_step-th layer but those of mlp_only_layers."""
    step = keys.integer("decoder_sparse_step", 1, MAX_LAYERS)
    dense = keys.value("mlp_only_layers")
    if dense is not None and not isinstance(dense, list):
        raise keys.error("mlp_only_layers", "must be a list of layers")
    for i, layer in enumerate(dense or ()):
        keys.check_integer(f"mlp_only_layers[{i}]", layer, 0, MAX_LAYERS)
    return [(i + 1) % step == 0 and i not in (dense or ()) for i in range(n_layers)]


def _qwen3(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        **expert_count(keys, "num_experts"),
        "d_expert": keys.integer("moe_intermediate_size", 1, MAX_D_FFN),
        "route_norm": keys.flag("norm_topk_prob"),
        "moe": _qwen_layers(keys, sizes["n_layers"]),
    }


def _qwen2(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    shared = keys.integer("shared_expert_intermediate_size", 1, MAX_D_FFN)
    return {**_qwen3(keys, sizes), "d_shared": shared, "shared_gate": True}


def _qwen2_window(keys: Keys, n_layers: int) -> list[int]:
    """Every second layer up to max_window_layers, where the config asks for it."""
    enabled = keys.flag("use_sliding_window")
    kinds = layer_types(keys, n_layers)
    if kinds is None:
        end = keys.integer("max_window_layers", 0, MAX_LAYERS) if enabled else 0
        kinds = [SLIDING if i % 2 == 0 and i < end else FULL for i in range(n_layers)]
    return typed_window(keys, kinds, enabled)


def _qwen3_window(keys: Keys, n_layers: int) -> list[int]:
    return every_window(keys, n_layers) if keys.flag("use_sliding_window") else [0] * n_layers


def expert_groups(keys: Keys, count: dict[str, int]) -> dict[str, int]:
    """Groups that experts are chosen from, and how many of them."""
    groups = keys.integer("n_group", 1, count["n_experts"])
    used = keys.integer("topk_group", 1, groups)
    if count["n_experts"] % groups or count["n_experts"] // groups * used < count["n_experts_used"]:
        raise keys.error(
            "n_group",
            f"{groups}, of which {used} are used, do not offer {count['n_experts_used']} of "
            f"{count['n_experts']} experts",
        )
    return {"route_groups": groups, "route_groups_used": used}


def shared_width(keys: Keys, width: int) -> int:
    """Of the shared experts, which are one of their summed widths."""
    shared = keys.integer("n_shared_experts", 0, MAX_EXPERTS, none=True) or 0
    if width * shared > MAX_D_FFN:
        raise keys.error("n_shared_experts", f"{shared} of width {width} are too wide")
    return width * shared


def grouped_experts(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek-V3's router: sigmoid, chosen with a correction, from the best groups."""
    count = expert_count(keys, "n_routed_experts")
    groups = expert_groups(keys, count)
    size = count["n_experts"] // groups["route_groups"]
    width = keys.integer("moe_intermediate_size", 1, MAX_D_FFN)
    first = keys.integer("first_k_dense_replace", 0, MAX_LAYERS)
    return {
        **count,
        "d_expert": width,
        "d_shared": shared_width(keys, width),
        "route_score": "sigmoid",
        "route_norm": keys.flag("norm_topk_prob"),
        "route_scale": keys.number("routed_scaling_factor", 1e-6, 1e6),
        **groups,
        "route_group_best": min(2, size),
        "moe": [i >= first for i in range(sizes["n_layers"])],
    }


def _gpt_oss(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    for key, value in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if keys.number(key, 0.0, 1e9) != value:
            raise UnsupportedError(f"{keys.where}: {key} other than {value} is not supported")
    return {"act": "clip"}


def _llama4_turns(keys: Keys, n_layers: int) -> list[bool]:
    given = keys.value("no_rope_layers")
    if given:
        if not isinstance(given, list) or len(given) < n_layers:
            raise keys.error("no_rope_layers", f"must be a list of {n_layers} numbers")
        flags = [keys.check_integer(f"no_rope_layers[{i}]", v, 0, 1) for i, v in enumerate(given)]
        return [flag == 1 for flag in flags[:n_layers]]
    every = keys.integer("no_rope_layer_interval", 1, MAX_LAYERS)
    return [(i + 1) % every != 0 for i in range(n_layers)]


def _llama4(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    n_layers = sizes["n_layers"]
    turned = _llama4_turns(keys, n_layers)
    kinds = keys.value("layer_types")
    if kinds is not None and kinds != [("full_attention", "chunked_attention")[t] for t in turned]:
        raise UnsupportedError(f"{keys.where}: layer_types other than those of no_rope_layers")
    chunk = keys.integer("attention_chunk_size", 1, MAX_POSITIONS, none=True)
    if chunk is not None and any(turned) and sizes["max_len"] > chunk:
        raise UnsupportedError(
            f"{keys.where}: attention in chunks of {chunk} tokens is not supported; "
            f"max_model_len={chunk} needs none"
        )
    grows = keys.flag("attn_temperature_tuning")
    return {
        "qk_norm": "unit" if keys.flag("use_qk_norm") else "none",
        "attn_grow": keys.number("attn_scale", -1e3, 1e3) if grows else 0.0,
        "attn_grow_every": keys.integer("floor_scale", 1, MAX_POSITIONS) if grows else 0,
    }


def _llama4_experts(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    n_layers, moe = sizes["n_layers"], keys.value("moe_layers")
    if moe is None:
        step = keys.integer("interleave_moe_layer_step", 1, MAX_LAYERS)
        moe = list(range(step - 1, n_layers, step))
    if not isinstance(moe, list):
        raise keys.error("moe_layers", "must be a list of layers")
    for i, layer in enumerate(moe):
        keys.check_integer(f"moe_layers[{i}]", layer, 0, MAX_LAYERS)
    return {
        **expert_count(keys, "num_local_experts"),
        "d_ffn": keys.integer("intermediate_size_mlp", 1, MAX_D_FFN),
        "d_expert": sizes["d_ffn"],
        "d_shared": sizes["d_ffn"],
        "route_score": "sigmoid",
        "route_input": True,
        "moe": [i in moe for i in range(n_layers)],
    }


def _every_second_window(keys: Keys, n_layers: int) -> list[int]:
    kinds = layer_types(keys, n_layers)
    return typed_window(keys, kinds or [(SLIDING, FULL)[i % 2] for i in range(n_layers)])


def _glm4(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    return {"qk_norm": "head" if keys.flag("use_qk_norm") else "none"}


def _experts(block: str, gate: str, up: str, down: str) -> dict[str, Source]:
    """One by one under `block`, or stacked as transformers 5 holds them."""
    return {
        "router": source(block + "gate.weight|" + MLP + "gate.weight"),
        "expert_gate_up": source(
            f"{block}experts.{{e}}.{gate}.weight",
            f"{block}experts.{{e}}.{up}.weight",
            other=source(MLP + "experts.gate_up_proj"),
        ),
        "expert_down": source(
            f"{block}experts.{{e}}.{down}.weight", other=source(MLP + "experts.down_proj")
        ),
    }


MLP_EXPERTS = _experts(MLP, "gate_proj", "up_proj", "down_proj")
_GRANITE_EXPERTS = {
    "router": source(_SPARSE + "router.layer.weight|" + _SPARSE + "router.weight"),
    "expert_gate_up": source(_SPARSE + "input_linear.weight|" + _SPARSE + "experts.gate_up_proj"),
    "expert_down": source(_SPARSE + "output_linear.weight|" + _SPARSE + "experts.down_proj"),
}
_NO_FFN = {k: v for k, v in NO_BIAS.items() if k not in ("gate_up", "down")}


def shared_expert(block: str) -> dict[str, Source]:
    return {
        "shared_gate_up": source(
            MLP + block + ".gate_proj.weight", MLP + block + ".up_proj.weight"
        ),
        "shared_down": source(MLP + block + ".down_proj.weight"),
    }


def _llama4_name(src: Source) -> Source:
    return source(*(name.replace(MLP, _FEED) for name in src.names))


_COUNTS = {"num_experts_per_tok": "expert_used_count"}
GROUPED_KEYS = {
    **_COUNTS,
    "n_routed_experts": "expert_count",
    "n_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "first_k_dense_replace": "leading_dense_block_count",
}
_GRANITE_BASE: dict[str, Any] = {
    **BASE,
    "attention_bias": False,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
_GRANITE_KEYS = {
    **_COUNTS,
    "num_local_experts": "expert_count",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_QWEN_BASE: dict[str, Any] = {
    **BASE,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "norm_topk_prob": False,
}

MOE_FAMILIES: tuple[Family, ...] = (
    Family(
        "mixtral",
        ("MixtralForCausalLM",),
        ("mixtral",),
        {
            **BASE,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "sliding_window": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        {**_NO_FFN, **_experts(_SPARSE, "w1", "w3", "w2")},
        "llama",
        experts=_mixtral,
        window=every_window,
        rope=RopeKeys(theta=("rope_theta", 1e6)),
        gguf_interleaved=True,
        gguf_keys={
            **_COUNTS,
            "num_local_experts": "expert_count",
            "sliding_window": "attention.sliding_window",
        },
        gguf_tells={"expert_count": None},
    ),
    Family(  # Qwen1.5-MoE, Qwen2-57B-A14B
        "qwen2_moe",
        ("Qwen2MoeForCausalLM",),
        ("qwen2_moe",),
        {
            **_QWEN_BASE,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_window_layers": 28,
            "layer_types": None,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "qkv_bias": True,
        },
        {
            **NO_BIAS,
            "qkv_bias": LLAMA_TENSORS["qkv_bias"],
            **MLP_EXPERTS,
            "router": source(MLP + "gate.weight", MLP + "shared_expert_gate.weight"),
            **shared_expert("shared_expert"),
        },
        "qwen2moe",
        experts=_qwen2,
        window=_qwen2_window,
        optional={"qkv_bias": "qkv_bias"},
        gguf_keys={
            **_COUNTS,
            "num_experts": "expert_count",
            "moe_intermediate_size": "expert_feed_forward_length",
            "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        },
        gguf_tensors={
            "router": source("blk.{i}.ffn_gate_inp.weight", "blk.{i}.ffn_gate_inp_shexp.weight")
        },
        gguf_values={"norm_topk_prob": False},
        inert=("attention_bias",),
    ),
    Family(
        "qwen3_moe",
        ("Qwen3MoeForCausalLM",),
        ("qwen3_moe",),
        {
            **_QWEN_BASE,
            "intermediate_size": 6144,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "attention_bias": False,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        {**NO_BIAS, **ATTN_BIAS_TENSORS, **QK_NORMS, **MLP_EXPERTS},
        "qwen3moe",
        experts=_qwen3,
        window=_qwen3_window,
        optional=ATTN_BIAS,
        qk_norm="head",
        aliases={"num_experts": "num_local_experts"},
        inert=("num_local_experts",),
        gguf_keys={
            **_COUNTS,
            "num_experts": "expert_count",
            "moe_intermediate_size": "expert_feed_forward_length",
        },
        gguf_values={"norm_topk_prob": True},
    ),
    Family(
        "olmoe",
        ("OlmoeForCausalLM",),
        ("olmoe",),
        {
            **BASE,
            "vocab_size": 50304,
            "hidden_size": 2048,
            "intermediate_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "bos_token_id": None,
            "eos_token_id": 50279,
            "attention_bias": False,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        },
        {**_NO_FFN, **ATTN_BIAS_TENSORS, **QK_NORMS, **MLP_EXPERTS},
        "olmoe",
        experts=_olmoe,
        optional=ATTN_BIAS,
        qk_norm="row",
        gguf_keys={**_COUNTS, "num_experts": "expert_count"},
        gguf_values={"norm_topk_prob": False},
    ),
    Family(
        "flex_olmo",
        ("FlexOlmoForCausalLM",),
        ("flex_olmo",),
        {
            **BASE,
            "vocab_size": 100352,
            "bos_token_id": None,
            "eos_token_id": 100257,
            "max_position_embeddings": 4096,
            "attention_bias": False,
            "num_experts": 7,
            "num_experts_per_tok": 5,
            "norm_topk_prob": False,
        },
        {
            **{k: v for k, v in _NO_FFN.items() if k not in ("attn_norm", "ffn_norm")},
            **ATTN_BIAS_TENSORS,
            **QK_NORMS,
            **MLP_EXPERTS,
            "attn_post_norm": source("layers.{i}.post_attention_layernorm.weight"),
            "ffn_post_norm": source("layers.{i}.post_feedforward_layernorm.weight"),
        },
        None,
        experts=_olmoe,
        optional=ATTN_BIAS,
        qk_norm="row",
        rope=RopeKeys(theta=("rope_theta", 500000.0)),
    ),
    Family(
        "granitemoe",
        ("GraniteMoeForCausalLM",),
        ("granitemoe",),
        _GRANITE_BASE,
        {**_NO_FFN, **ATTN_BIAS_TENSORS, **_GRANITE_EXPERTS},
        "granitemoe",
        extra=granite,
        experts=_mixtral,
        optional=ATTN_BIAS,
        gguf_interleaved=True,
        gguf_keys=_GRANITE_KEYS,
    ),
    Family(
        "granitemoeshared",
        ("GraniteMoeSharedForCausalLM",),
        ("granitemoeshared",),
        {**_GRANITE_BASE, "shared_intermediate_size": 0},
        {
            **_NO_FFN,
            **ATTN_BIAS_TENSORS,
            **_GRANITE_EXPERTS,
            "shared_gate_up": source("layers.{i}.shared_mlp.input_linear.weight"),
            "shared_down": source("layers.{i}.shared_mlp.output_linear.weight"),
        },
        "granitemoe",
        extra=granite,
        experts=_granite_shared,
        optional=ATTN_BIAS,
        gguf_interleaved=True,
        gguf_keys={
            **_GRANITE_KEYS,
            "shared_intermediate_size": "expert_shared_feed_forward_length",
        },
        gguf_tells={"expert_shared_feed_forward_length": None},
    ),
    Family(
        "gpt_oss",
        ("GptOssForCausalLM",),
        ("gpt_oss",),
        {
            **BASE,
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "bos_token_id": None,
            "eos_token_id": None,
            "sliding_window": 128,
            "layer_types": None,
            "attention_bias": True,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        },
        {
            **_NO_FFN,
            **ATTN_BIAS_TENSORS,
            "sinks": source("layers.{i}.self_attn.sinks"),
            "router": source(MLP + "router.weight"),
            "router_bias": source(MLP + "router.bias"),
            "expert_gate_up": source(
                MLP + "experts.gate_up_proj",
                layout="transposed_pairs",
                other=source(MLP + "experts.gate_up_proj_blocks", layout="pairs"),
            ),
            "expert_gate_up_bias": source(MLP + "experts.gate_up_proj_bias", layout="pairs"),
            "expert_down": source(
                MLP + "experts.down_proj",
                layout="transposed",
                other=source(MLP + "experts.down_proj_blocks"),
            ),
            "expert_down_bias": source(MLP + "experts.down_proj_bias"),
        },
        "gpt-oss",
        extra=_gpt_oss,
        experts=_mixtral,
        window=_every_second_window,
        optional=ATTN_BIAS,
        rope=RopeKeys(
            theta=("rope_theta", 150000.0),
            absent={
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        ),
        gguf_keys={
            **_COUNTS,
            "num_local_experts": "expert_count",
            "sliding_window": "attention.sliding_window",
            "intermediate_size": "expert_feed_forward_length",
        },
        gguf_tensors={"ffn_norm": source("blk.{i}.post_attention_norm.weight")},
    ),
    Family(
        "llama4",
        ("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
        ("llama4_text", "llama4"),
        {
            **BASE,
            "vocab_size": 202048,
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "moe_layers": None,
            "interleave_moe_layer_step": 1,
            "use_qk_norm": True,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "layer_types": None,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        {
            **{k: _llama4_name(v) for k, v in NO_BIAS.items()},
            **ATTN_BIAS_TENSORS,
            "router": source(_FEED + "router.weight"),
            "shared_gate_up": source(
                _FEED + "shared_expert.gate_proj.weight", _FEED + "shared_expert.up_proj.weight"
            ),
            "shared_down": source(_FEED + "shared_expert.down_proj.weight"),
            "expert_gate_up": source(_FEED + "experts.gate_up_proj", layout="transposed"),
            "expert_down": source(_FEED + "experts.down_proj", layout="transposed"),
        },
        None,
        extra=_llama4,
        experts=_llama4_experts,
        rotates=_llama4_turns,
        optional=ATTN_BIAS,
        rope=RopeKeys(theta=("rope_theta", 500000.0)),
        interleaved=lambda keys: True,
        outer="language_model.",
        towers=(r"vision_model\..*", r"multi_modal_projector\..*"),
    ),
    Family(  # GLM-4.5, 4.5-Air, 4.6, 4.7
        "glm4_moe",
        ("Glm4MoeForCausalLM",),
        ("glm4_moe",),
        {
            **BASE,
            "vocab_size": 151552,
            "intermediate_size": 10944,
            "num_hidden_layers": 46,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "bos_token_id": None,
            "eos_token_id": None,
            "attention_bias": False,
            "use_qk_norm": False,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "n_routed_experts": 128,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
        },
        {
            **NO_BIAS,
            "qkv_bias": LLAMA_TENSORS["qkv_bias"],
            **QK_NORMS,
            **MLP_EXPERTS,
            "router_correction": source(MLP + "gate.e_score_correction_bias"),
            **shared_expert("shared_experts"),
        },
        "glm4moe",
        extra=_glm4,
        experts=grouped_experts,
        optional={"qkv_bias": "attention_bias", "q_norm": "use_qk_norm", "k_norm": "use_qk_norm"},
        rope=RopeKeys(partial=("partial_rotary_factor", 0.5)),
        gguf_keys=GROUPED_KEYS,
        gguf_tensors={"ffn_norm": source("blk.{i}.post_attention_norm.weight")},
    ),
)
