"""The table of model families: one row maps a family's config keys and tensor names to the C model.

A row (`Family`) holds the config keys that the family reads with the class defaults that
transformers gives them, where each weight slot lies in a checkpoint, and a small function for the
numbers that are its own. mapping.py applies a row to a config or a checkpoint and knows no family
by name. Invariant: a key or tensor that changes the arithmetic is used or refused, never ignored;
keys that no row may ignore are listed in mapping.py. To add a family, add a row; the tests pick it
up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmaccel.config import MAX_LAYERS, MAX_POSITIONS, Keys
from llmaccel.errors import ConfigError, UnsupportedError
from llmaccel.models.latent import EXPERT_KEYS, INERT_KEYS, LATENT_KEYS
from llmaccel.models.rope import RopeKeys, softmax_factor
from llmaccel.models.slots import Source, source

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Family:
    """One row. See the module's head; the fields that are la_model_desc's carry its names.

    defaults: every config key the family reads, under transformers' common names, with class
    defaults. aliases: the family's own spelling of a common name. tensors, gguf_tensors: slot ->
    Source. optional: slot -> config key that says whether it is there. extra: numbers of the
    family's own. window: which layers slide. ignored: patterns of tensors that are known to be of
    no use. gguf_arch: general.architecture; gguf_keys: config key -> metadata key after the
    architecture.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    defaults: Mapping[str, Any]
    tensors: Mapping[str, Source]
    gguf_arch: str
    extra: Callable[[Keys, dict[str, Any]], dict[str, Any]] = lambda keys, sizes: {}
    window: Callable[[Keys, int], list[int]] = lambda keys, n_layers: [0] * n_layers
    rope: RopeKeys | None = field(default_factory=RopeKeys)
    prefix: str = "model."
    aliases: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    eps: str = "rms_norm_eps"
    act: str = "hidden_act"
    norm: str = "rms"
    gated: bool = True
    qk_norm: str = "none"
    gguf_tensors: Mapping[str, Source] = field(default_factory=dict)
    gguf_keys: Mapping[str, str] = field(default_factory=dict)
    gguf_interleaved: bool = False
    # Attention over latents (MLA); direct: tensors in place of those above where queries are made
    # of x; mtp: layers behind the last may be there, kept for later.
    latent: bool = False
    direct: Mapping[str, Source] = field(default_factory=dict)
    mtp: bool = False
    interleaved: Callable[[Keys], bool] = lambda keys: False  # rotation of pairs (2i, 2i + 1)
    inert: tuple[str, ...] = ()  # keys that the family's class does not read, whatever their value


# ---- pieces that rows share ----------------------------------------------------------------------

# fmt: off  (the tables are laid out by hand)
_BASE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

_SELF = "layers.{i}.self_attn."
_MLP = "layers.{i}.mlp."
_LLAMA_TENSORS: dict[str, Source] = {
    "embed": source("embed_tokens.weight"),
    "final_norm": source("norm.weight"),
    "head": source("/lm_head.weight"),
    "attn_norm": source("layers.{i}.input_layernorm.weight"),
    "qkv": source(_SELF + "q_proj.weight", _SELF + "k_proj.weight", _SELF + "v_proj.weight"),
    "qkv_bias": source(_SELF + "q_proj.bias", _SELF + "k_proj.bias", _SELF + "v_proj.bias"),
    "o": source(_SELF + "o_proj.weight"),
    "o_bias": source(_SELF + "o_proj.bias"),
    "ffn_norm": source("layers.{i}.post_attention_layernorm.weight"),
    "gate_up": source(_MLP + "gate_proj.weight", _MLP + "up_proj.weight"),
    "gate_up_bias": source(_MLP + "gate_proj.bias", _MLP + "up_proj.bias"),
    "down": source(_MLP + "down_proj.weight"),
    "down_bias": source(_MLP + "down_proj.bias"),
}
_NO_BIAS = {k: v for k, v in _LLAMA_TENSORS.items() if not k.endswith("_bias")}
_QK_NORMS = {"q_norm": source(_SELF + "q_norm.weight"), "k_norm": source(_SELF + "k_norm.weight")}
_ATTN_BIAS = {"qkv_bias": "attention_bias", "o_bias": "attention_bias"}
_MLP_BIAS = {"gate_up_bias": "mlp_bias", "down_bias": "mlp_bias"}
_ATTN_BIAS_TENSORS = {k: _LLAMA_TENSORS[k] for k in ("qkv_bias", "o_bias")}
_GEMMA_TENSORS: dict[str, Source] = {
    **_NO_BIAS,
    **_ATTN_BIAS_TENSORS,
    "final_norm": source("norm.weight", layout="minus_one"),
    "attn_norm": source("layers.{i}.input_layernorm.weight", layout="minus_one"),
    "attn_post_norm": source("layers.{i}.post_attention_layernorm.weight", layout="minus_one"),
    "ffn_norm": source("layers.{i}.pre_feedforward_layernorm.weight", layout="minus_one"),
    "ffn_post_norm": source("layers.{i}.post_feedforward_layernorm.weight", layout="minus_one"),
}
_GEMMA_BASE: dict[str, Any] = {
    **_BASE,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "final_logit_softcapping": None,
}

_DEEPSEEK_TENSORS: dict[str, Source] = {
    **{k: v for k, v in _LLAMA_TENSORS.items() if not k.startswith("qkv")},
    "mla_in": source(_SELF + "q_a_proj.weight", _SELF + "kv_a_proj_with_mqa.weight"),
    "mla_in_bias": source(_SELF + "q_a_proj.bias", _SELF + "kv_a_proj_with_mqa.bias"),
    "mla_q_norm": source(_SELF + "q_a_layernorm.weight"),
    "mla_kv_norm": source(_SELF + "kv_a_layernorm.weight"),
    "mla_q": source(_SELF + "q_b_proj.weight"),
    "mla_uk": source(_SELF + "kv_b_proj.weight", layout="latent_k"),
    "mla_uv": source(_SELF + "kv_b_proj.weight", layout="latent_v"),
}
_DEEPSEEK_DIRECT = {
    "mla_in": source(_SELF + "q_proj.weight", _SELF + "kv_a_proj_with_mqa.weight"),
}

_DEEPSEEK_GGUF: dict[str, Any] = {
    "gguf_tensors": {
        "mla_in": source(
            "blk.{i}.attn_q_a.weight|blk.{i}.attn_q.weight", "blk.{i}.attn_kv_a_mqa.weight"
        ),
        "mla_in_bias": source("blk.{i}.attn_q_a.bias", "blk.{i}.attn_kv_a_mqa.bias"),
        "mla_q_norm": source("blk.{i}.attn_q_a_norm.weight"),
        "mla_kv_norm": source("blk.{i}.attn_kv_a_norm.weight"),
        "mla_q": source("blk.{i}.attn_q_b.weight"),
        "mla_uk": source("blk.{i}.attn_k_b.weight|blk.{i}.attn_kv_b.weight", layout="latent_k"),
        "mla_uv": source("blk.{i}.attn_v_b.weight|blk.{i}.attn_kv_b.weight", layout="latent_v"),
    },
    "gguf_keys": {
        "kv_lora_rank": "attention.kv_lora_rank",
        "q_lora_rank": "attention.q_lora_rank",
        "first_k_dense_replace": "leading_dense_block_count",
        "scoring_func": "expert_gating_func",
    },
}

GGUF_TENSORS: dict[str, Source] = {
    "embed": source("token_embd.weight"),
    "pos_embed": source("position_embd.weight"),
    "final_norm": source("output_norm.weight"),
    "final_norm_bias": source("output_norm.bias"),
    "head": source("output.weight"),
    "attn_norm": source("blk.{i}.attn_norm.weight"),
    "attn_norm_bias": source("blk.{i}.attn_norm.bias"),
    "qkv": source("blk.{i}.attn_q.weight", "blk.{i}.attn_k.weight", "blk.{i}.attn_v.weight"),
    "qkv_bias": source("blk.{i}.attn_q.bias", "blk.{i}.attn_k.bias", "blk.{i}.attn_v.bias"),
    "q_norm": source("blk.{i}.attn_q_norm.weight"),
    "k_norm": source("blk.{i}.attn_k_norm.weight"),
    "o": source("blk.{i}.attn_output.weight"),
    "o_bias": source("blk.{i}.attn_output.bias"),
    "attn_post_norm": source("blk.{i}.post_attention_norm.weight"),
    "ffn_norm": source("blk.{i}.ffn_norm.weight"),
    "ffn_norm_bias": source("blk.{i}.ffn_norm.bias"),
    "gate_up": source("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
    "gate_up_bias": source("blk.{i}.ffn_gate.bias", "blk.{i}.ffn_up.bias"),
    "down": source("blk.{i}.ffn_down.weight"),
    "down_bias": source("blk.{i}.ffn_down.bias"),
    "ffn_post_norm": source("blk.{i}.post_ffw_norm.weight"),
}
_GGUF_FUSED_QKV = {
    "qkv": source("blk.{i}.attn_qkv.weight"),
    "qkv_bias": source("blk.{i}.attn_qkv.bias"),
}
_GGUF_UP = {
    "gate_up": source("blk.{i}.ffn_up.weight"),
    "gate_up_bias": source("blk.{i}.ffn_up.bias"),
}
# fmt: on


def _every_window(keys: Keys, n_layers: int) -> list[int]:
    """Mistral, Phi-3, StarCoder2: all layers slide, or none."""
    return [keys.integer("sliding_window", 1, MAX_POSITIONS, none=True) or 0] * n_layers


def _typed_window(keys: Keys, kinds: list[str], enabled: bool = True) -> list[int]:
    window = keys.integer("sliding_window", 1, MAX_POSITIONS, none=True) if enabled else None
    if window is None and _SLIDING in kinds:
        raise keys.error("sliding_window", "is off, but layer_types has sliding layers")
    return [window if kind == _SLIDING else 0 for kind in kinds]


def _layer_types(keys: Keys, n_layers: int) -> list[str] | None:
    """The checked `layer_types`, or None where the config has none."""
    kinds = keys.value("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise keys.error("layer_types", f"must be a list of {n_layers} names")
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise UnsupportedError(f"{keys.where}: layer type {ascii(kind)[:80]} is not supported")
    return kinds


def _qwen_window(keys: Keys, n_layers: int) -> list[int]:
    enabled = keys.flag("use_sliding_window")
    kinds = _layer_types(keys, n_layers)
    if kinds is None:
        first = keys.integer("max_window_layers", 0, MAX_LAYERS)
        slides = enabled and keys.value("sliding_window") is not None
        kinds = [_SLIDING if slides and i >= first else _FULL for i in range(n_layers)]
    return _typed_window(keys, kinds, enabled)


def _pattern_window(keys: Keys, n_layers: int) -> list[int]:
    """Gemma: every `sliding_window_pattern`th layer is full."""
    kinds = _layer_types(keys, n_layers)
    if kinds is None:
        period = keys.integer("sliding_window_pattern", 1, MAX_LAYERS)
        kinds = [_SLIDING if (i + 1) % period else _FULL for i in range(n_layers)]
    return _typed_window(keys, kinds)


def _rounded(value: float, keys: Keys) -> float:
    """`value` in the checkpoint's dtype: Gemma multiplies embeddings by a scale of that dtype."""
    dtype = keys.raw.get("dtype", keys.raw.get("torch_dtype"))
    if dtype == "bfloat16":
        bits = int(np.float32(value).view(np.uint32))
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return float(np.uint32(bits).view(np.float32))
    return float(np.float16(value)) if dtype == "float16" else value


def _gemma(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    softcaps = {
        field_name: keys.number(key, 1e-3, 1e6, none=True) or 0.0
        for field_name, key in (
            ("attn_softcap", "attn_logit_softcapping"),
            ("logit_softcap", "final_logit_softcapping"),
        )
        if key in keys.defaults
    }
    return {
        "attn_scale": keys.number("query_pre_attn_scalar", 1e-6, 1e9) ** -0.5,
        "embed_scale": _rounded(sizes["d_model"] ** 0.5, keys),
        **softcaps,
    }


def _granite(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        "attn_scale": keys.number("attention_multiplier", 1e-9, 1e9),
        "embed_scale": keys.number("embedding_multiplier", 1e-9, 1e9),
        "residual_scale": keys.number("residual_multiplier", 1e-9, 1e9),
        "logit_scale": 1.0 / keys.number("logits_scaling", 1e-9, 1e9),
    }


def _gpt2(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    return {} if keys.flag("scale_attn_weights") else {"attn_scale": 1.0}


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


def _rope_interleave(keys: Keys) -> bool:
    return bool(keys.value("rope_interleave"))


def _neox(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    return {"parallel": keys.flag("use_parallel_residual")}


# ---- the rows ------------------------------------------------------------------------------------

# fmt: off
FAMILIES: tuple[Family, ...] = (
    Family(     # Llama 2, 3, 3.1, 3.2, SmolLM2, TinyLlama
        "llama", ("LlamaForCausalLM",), ("llama",),
        {**_BASE, "attention_bias": False, "mlp_bias": False}, _LLAMA_TENSORS, "llama",
        optional={**_ATTN_BIAS, **_MLP_BIAS}, gguf_interleaved=True,
    ),
    Family(
        "mistral", ("MistralForCausalLM",), ("mistral",),
        {**_BASE, "intermediate_size": 14336, "num_key_value_heads": 8,
         "max_position_embeddings": 131072, "sliding_window": 4096},
        _NO_BIAS, "llama", window=_every_window, gguf_interleaved=True,
        gguf_keys={"sliding_window": "attention.sliding_window"},
    ),
    Family(     # Qwen2, Qwen2.5
        "qwen2", ("Qwen2ForCausalLM",), ("qwen2",),
        {**_BASE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
         "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None,
         "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
         "layer_types": None},
        {**_NO_BIAS, "qkv_bias": _LLAMA_TENSORS["qkv_bias"]}, "qwen2", window=_qwen_window,
        inert=("attention_bias",),
    ),
    Family(
        "qwen3", ("Qwen3ForCausalLM",), ("qwen3",),
        {**_BASE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
         "head_dim": 128, "max_position_embeddings": 32768, "bos_token_id": None,
         "eos_token_id": None,
         "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
         "layer_types": None, "attention_bias": False},
        {**_NO_BIAS, **_ATTN_BIAS_TENSORS, **_QK_NORMS}, "qwen3", window=_qwen_window,
        optional=_ATTN_BIAS, qk_norm="head",
    ),
    Family(
        "phi3", ("Phi3ForCausalLM",), ("phi3",),
        {**_BASE, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
         "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "eos_token_id": 32000,
         "sliding_window": None},
        {**_NO_BIAS, "qkv": source(_SELF + "qkv_proj.weight"),
         "gate_up": source(_MLP + "gate_up_proj.weight")},
        "phi3", window=_every_window, gguf_keys={"sliding_window": "attention.sliding_window"},
        rope=RopeKeys(partial=("partial_rotary_factor", 1.0), types=("default", "longrope"),
                      aliases={"su": "longrope", "yarn": "longrope"}, original=4096),
        gguf_tensors={"qkv": _GGUF_FUSED_QKV["qkv"], "gate_up": _GGUF_UP["gate_up"]},
    ),
    Family(
        "gemma2", ("Gemma2ForCausalLM",), ("gemma2",),
        {**_GEMMA_BASE, "vocab_size": 256000, "max_position_embeddings": 8192,
         "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
         "sliding_window_pattern": 2},
        _GEMMA_TENSORS, "gemma2", extra=_gemma, window=_pattern_window, optional=_ATTN_BIAS,
        act="hidden_activation",
        gguf_keys={"sliding_window": "attention.sliding_window",
                   "attn_logit_softcapping": "attn_logit_softcapping",
                   "final_logit_softcapping": "final_logit_softcapping"},
    ),
    Family(
        "gemma3", ("Gemma3ForCausalLM",), ("gemma3_text",),
        {**_GEMMA_BASE, "vocab_size": 262208, "max_position_embeddings": 131072,
         "sliding_window_pattern": 6},
        {**_GEMMA_TENSORS, "q_norm": source(_SELF + "q_norm.weight", layout="minus_one"),
         "k_norm": source(_SELF + "k_norm.weight", layout="minus_one")},
        "gemma3", extra=_gemma, window=_pattern_window, optional=_ATTN_BIAS,
        act="hidden_activation",
        qk_norm="head",
        rope=RopeKeys(theta=("rope_theta", 1e6), local_theta=("rope_local_base_freq", 10000.0)),
        gguf_keys={"sliding_window": "attention.sliding_window",
                   "final_logit_softcapping": "final_logit_softcapping"},
    ),
    Family(
        "olmo2", ("Olmo2ForCausalLM",), ("olmo2",),
        {**_BASE, "vocab_size": 50304, "rms_norm_eps": 1e-5, "bos_token_id": None,
         "eos_token_id": 50279, "attention_bias": False},
        {**{k: v for k, v in _NO_BIAS.items() if k not in ("attn_norm", "ffn_norm")},
         **_ATTN_BIAS_TENSORS, **_QK_NORMS,
         "attn_post_norm": source("layers.{i}.post_attention_layernorm.weight"),
         "ffn_post_norm": source("layers.{i}.post_feedforward_layernorm.weight")},
        "olmo2", optional=_ATTN_BIAS, qk_norm="row",
    ),
    Family(
        "granite", ("GraniteForCausalLM",), ("granite",),
        {**_BASE, "attention_bias": False, "mlp_bias": False, "embedding_multiplier": 1.0,
         "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0},
        _LLAMA_TENSORS, "granite", extra=_granite, optional={**_ATTN_BIAS, **_MLP_BIAS},
        gguf_interleaved=True,
        gguf_keys={"attention_multiplier": "attention.scale",
                   "embedding_multiplier": "embedding_scale",
                   "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"},
    ),
    Family(
        "gpt2", ("GPT2LMHeadModel",), ("gpt2",),
        {"vocab_size": 50257, "hidden_size": 768, "intermediate_size": None,
         "num_hidden_layers": 12,
         "num_attention_heads": 12, "hidden_act": "gelu_new", "max_position_embeddings": 1024,
         "layer_norm_epsilon": 1e-5, "bos_token_id": 50256, "eos_token_id": 50256,
         "tie_word_embeddings": True, "scale_attn_weights": True},
        {"embed": source("wte.weight"), "pos_embed": source("wpe.weight"),
         "final_norm": source("ln_f.weight"), "final_norm_bias": source("ln_f.bias"),
         "head": source("/lm_head.weight"),
         "attn_norm": source("h.{i}.ln_1.weight"), "attn_norm_bias": source("h.{i}.ln_1.bias"),
         "qkv": source("h.{i}.attn.c_attn.weight", layout="transposed"),
         "qkv_bias": source("h.{i}.attn.c_attn.bias"),
         "o": source("h.{i}.attn.c_proj.weight", layout="transposed"),
         "o_bias": source("h.{i}.attn.c_proj.bias"),
         "ffn_norm": source("h.{i}.ln_2.weight"), "ffn_norm_bias": source("h.{i}.ln_2.bias"),
         "gate_up": source("h.{i}.mlp.c_fc.weight", layout="transposed"),
         "gate_up_bias": source("h.{i}.mlp.c_fc.bias"),
         "down": source("h.{i}.mlp.c_proj.weight", layout="transposed"),
         "down_bias": source("h.{i}.mlp.c_proj.bias")},
        "gpt2", extra=_gpt2, rope=None, prefix="transformer.", eps="layer_norm_epsilon",
        norm="layer",
        gated=False, ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
        aliases={"hidden_size": "n_embd", "num_hidden_layers": "n_layer",
                 "num_attention_heads": "n_head",
                 "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
                 "hidden_act": "activation_function"},
        gguf_tensors={**_GGUF_FUSED_QKV, **_GGUF_UP},
    ),
    Family(     # GPT-NeoX, Pythia
        "gpt_neox", ("GPTNeoXForCausalLM",), ("gpt_neox",),
        {"vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576,
         "num_hidden_layers": 44,
         "num_attention_heads": 64, "hidden_act": "gelu", "max_position_embeddings": 2048,
         "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False,
         "use_parallel_residual": True, "attention_bias": True},
        {"embed": source("embed_in.weight"), "final_norm": source("final_layer_norm.weight"),
         "final_norm_bias": source("final_layer_norm.bias"),
         "head": source("/embed_out.weight|/lm_head.weight"),
         "attn_norm": source("layers.{i}.input_layernorm.weight"),
         "attn_norm_bias": source("layers.{i}.input_layernorm.bias"),
         "qkv": source("layers.{i}.attention.query_key_value.weight", layout="heads"),
         "qkv_bias": source("layers.{i}.attention.query_key_value.bias", layout="heads"),
         "o": source("layers.{i}.attention.dense.weight"),
         "o_bias": source("layers.{i}.attention.dense.bias"),
         "ffn_norm": source("layers.{i}.post_attention_layernorm.weight"),
         "ffn_norm_bias": source("layers.{i}.post_attention_layernorm.bias"),
         "gate_up": source(_MLP + "dense_h_to_4h.weight"),
         "gate_up_bias": source(_MLP + "dense_h_to_4h.bias"),
         "down": source(_MLP + "dense_4h_to_h.weight"),
         "down_bias": source(_MLP + "dense_4h_to_h.bias")},
        "gptneox", extra=_neox, prefix="gpt_neox.", eps="layer_norm_eps", norm="layer", gated=False,
        rope=RopeKeys(theta=("rotary_emb_base", 10000.0), partial=("rotary_pct", 0.25)),
        optional=_ATTN_BIAS, gguf_tensors={**_GGUF_FUSED_QKV, **_GGUF_UP},
        gguf_keys={"use_parallel_residual": "use_parallel_residual"},
        ignored=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias)",),
    ),
    Family(
        "starcoder2", ("Starcoder2ForCausalLM",), ("starcoder2",),
        {**_BASE, "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288,
         "num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2,
         "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 4096, "norm_epsilon": 1e-5,
         "bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": True,
         "sliding_window": None, "use_bias": True},
        {**_LLAMA_TENSORS, "final_norm_bias": source("norm.bias"),
         "attn_norm_bias": source("layers.{i}.input_layernorm.bias"),
         "ffn_norm_bias": source("layers.{i}.post_attention_layernorm.bias"),
         "gate_up": source(_MLP + "c_fc.weight"), "gate_up_bias": source(_MLP + "c_fc.bias"),
         "down": source(_MLP + "c_proj.weight"), "down_bias": source(_MLP + "c_proj.bias")},
        "starcoder2", window=_every_window, eps="norm_epsilon", norm="layer", gated=False,
        optional=dict.fromkeys(("qkv_bias", "o_bias", "gate_up_bias", "down_bias"), "use_bias"),
        gguf_tensors=_GGUF_UP, gguf_keys={"sliding_window": "attention.sliding_window"},
    ),
    Family(     # DeepSeek-V2, V2-Lite
        "deepseek_v2", ("DeepseekV2ForCausalLM",), ("deepseek_v2",),
        {**_BASE, **EXPERT_KEYS, **LATENT_KEYS, "vocab_size": 102400,
         "attention_bias": False, "mlp_bias": False, "first_k_dense_replace": 0},
        _DEEPSEEK_TENSORS, "deepseek2", extra=_deepseek, latent=True, direct=_DEEPSEEK_DIRECT,
        mtp=True, interleaved=lambda keys: True, **_DEEPSEEK_GGUF,
        optional={"mla_in_bias": "attention_bias", "o_bias": "attention_bias", **_MLP_BIAS},
        inert=INERT_KEYS,
    ),
    Family(     # DeepSeek-V3, R1, Kimi-K2
        "deepseek_v3", ("DeepseekV3ForCausalLM",), ("deepseek_v3", "kimi_k2"),
        {**_BASE, **EXPERT_KEYS, **LATENT_KEYS, "vocab_size": 129280, "hidden_size": 7168,
         "intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128,
         "num_key_value_heads": 128, "max_position_embeddings": 4096, "bos_token_id": 0,
         "eos_token_id": 1, "attention_bias": False, "first_k_dense_replace": 3,
         "rope_interleave": True},
        {k: v for k, v in _DEEPSEEK_TENSORS.items() if k not in _MLP_BIAS},
        "deepseek2", extra=_deepseek, latent=True, direct=_DEEPSEEK_DIRECT, mtp=True,
        interleaved=_rope_interleave, **_DEEPSEEK_GGUF,
        optional={"mla_in_bias": "attention_bias", "o_bias": "attention_bias"},
        inert=INERT_KEYS,
    ),
)
# fmt: on


# ---- which row -----------------------------------------------------------------------------------


def find_family(raw: Mapping[str, Any]) -> tuple[Family, str]:
    """The row for a config dict, and the architecture; UnsupportedError lists the known ones."""
    names = raw.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(n, str) for n in names)
    ):
        raise ConfigError("config.json: architectures must be a list of strings")
    for name in names or ():
        for family in FAMILIES:
            if name in family.architectures:
                return family, name
    model_type = raw.get("model_type")
    if not names:
        for family in FAMILIES:
            if model_type in family.model_types:
                return family, family.architectures[0]
    shown = (
        ", ".join(ascii(n)[:80] for n in names[:4])
        if names
        else f"model_type {ascii(model_type)[:80]}"
    )
    known = ", ".join(a for family in FAMILIES for a in family.architectures)
    raise UnsupportedError(f"architecture {shown} is not supported; known: {known}")


def gguf_family(metadata: Mapping[str, Any]) -> Family:
    """The row for a GGUF file; UnsupportedError lists the known architectures."""
    arch = metadata.get("general.architecture")
    rows = [family for family in FAMILIES if isinstance(arch, str) and family.gguf_arch == arch]
    if not rows:
        known = ", ".join(dict.fromkeys(family.gguf_arch for family in FAMILIES))
        raise UnsupportedError(
            f"GGUF architecture {ascii(arch)[:80]} is not supported; known: {known}"
        )
    # Mistral files are llama files, and V3's are V2's: the window and the gate tell them apart.
    windowed = f"{arch}.attention.sliding_window" in metadata
    sigmoid = metadata.get(f"{arch}.expert_gating_func") == 2
    return rows[1] if len(rows) > 1 and (windowed or sigmoid) else rows[0]
