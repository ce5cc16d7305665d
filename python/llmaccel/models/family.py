"""What a row of the family table is, and the pieces that rows share.

A row (`Family`) holds the config keys that the family reads with the class defaults that
transformers gives them, where each weight slot lies in a checkpoint, and a small function for the
numbers that are its own. mapping.py applies a row to a config or a checkpoint and knows no family
by name. Invariant: a key or tensor that changes the arithmetic is used or refused, never ignored;
keys that no row may ignore are listed in mapping.py. The rows are in families.py, families_moe.py
and families_latent.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmaccel.config import MAX_LAYERS, MAX_POSITIONS, Keys
from llmaccel.errors import UnsupportedError
from llmaccel.models.rope import RopeKeys
from llmaccel.models.slots import Source, source

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Family:
    """One row. See the module's head; the fields that are la_model_desc's carry its names.

    defaults: every config key the family reads, under transformers' common names, with class
    defaults. aliases: the family's own spelling of a common name. tensors, gguf_tensors: slot ->
    Source. optional: slot -> config key that says whether it is there. extra: numbers of the
    family's own. window, rotates: which layers slide, which rotate. experts: the fields about
    experts, and `moe`, which layers have some; {} where none has. ignored: patterns of tensors that
    are known to be of no use. gguf_arch: general.architecture, None where such files are refused;
    gguf_keys: config key -> metadata key after the architecture; gguf_tells: metadata keys that
    mean this row where several have that architecture, by their value (None: any but 0);
    gguf_values: config values that the architecture implies. latent: attention over latents (MLA);
    direct: tensors in place of those above where its queries are made of x. interleaved: rotation
    of pairs (2i, 2i + 1). inert: keys that the family's class does not read, whatever their value.
    outer: what stands before all names in checkpoints of a class that sees as well; towers:
    patterns of its other tensors, which are left in the file.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    defaults: Mapping[str, Any]
    tensors: Mapping[str, Source]
    gguf_arch: str | None
    extra: Callable[[Keys, dict[str, Any]], dict[str, Any]] = lambda keys, sizes: {}
    window: Callable[[Keys, int], list[int]] = lambda keys, n_layers: [0] * n_layers
    rotates: Callable[[Keys, int], list[bool]] = lambda keys, n_layers: [True] * n_layers
    experts: Callable[[Keys, dict[str, Any]], dict[str, Any]] = lambda keys, sizes: {}
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
    latent: bool = False
    direct: Mapping[str, Source] = field(default_factory=dict)
    interleaved: Callable[[Keys], bool] = lambda keys: False
    gguf_interleaved: bool = False
    gguf_tells: Mapping[str, Any] = field(default_factory=dict)
    gguf_values: Mapping[str, Any] = field(default_factory=dict)
    inert: tuple[str, ...] = ()
    outer: str = ""
    towers: tuple[str, ...] = ()


# ---- pieces that rows share ----------------------------------------------------------------------

# fmt: off  (the tables are laid out by hand)
BASE: dict[str, Any] = {
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

SELF = "layers.{i}.self_attn."
MLP = "layers.{i}.mlp."
LLAMA_TENSORS: dict[str, Source] = {
    "embed": source("embed_tokens.weight"),
    "final_norm": source("norm.weight"),
    "head": source("/lm_head.weight"),
    "attn_norm": source("layers.{i}.input_layernorm.weight"),
    "qkv": source(SELF + "q_proj.weight", SELF + "k_proj.weight", SELF + "v_proj.weight"),
    "qkv_bias": source(SELF + "q_proj.bias", SELF + "k_proj.bias", SELF + "v_proj.bias"),
    "o": source(SELF + "o_proj.weight"),
    "o_bias": source(SELF + "o_proj.bias"),
    "ffn_norm": source("layers.{i}.post_attention_layernorm.weight"),
    "gate_up": source(MLP + "gate_proj.weight", MLP + "up_proj.weight"),
    "gate_up_bias": source(MLP + "gate_proj.bias", MLP + "up_proj.bias"),
    "down": source(MLP + "down_proj.weight"),
    "down_bias": source(MLP + "down_proj.bias"),
}
NO_BIAS = {k: v for k, v in LLAMA_TENSORS.items() if not k.endswith("_bias")}
QK_NORMS = {
    "q_norm": source(SELF + "q_norm.weight"),
    "k_norm": source(SELF + "k_norm.weight"),
}
ATTN_BIAS = {"qkv_bias": "attention_bias", "o_bias": "attention_bias"}
MLP_BIAS = {"gate_up_bias": "mlp_bias", "down_bias": "mlp_bias"}
ATTN_BIAS_TENSORS = {k: LLAMA_TENSORS[k] for k in ("qkv_bias", "o_bias")}
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
    "sinks": source("blk.{i}.attn_sinks.weight"),
    "router": source("blk.{i}.ffn_gate_inp.weight"),
    "router_bias": source("blk.{i}.ffn_gate_inp.bias"),
    "router_correction": source("blk.{i}.exp_probs_b.bias"),
    "shared_gate_up": source("blk.{i}.ffn_gate_shexp.weight", "blk.{i}.ffn_up_shexp.weight"),
    "shared_down": source("blk.{i}.ffn_down_shexp.weight"),
    "expert_gate_up": source(
        "blk.{i}.ffn_gate_exps.weight",
        "blk.{i}.ffn_up_exps.weight",
        other=source("blk.{i}.ffn_gate_up_exps.weight"),
    ),
    "expert_gate_up_bias": source(
        "blk.{i}.ffn_gate_exps.bias",
        "blk.{i}.ffn_up_exps.bias",
        other=source("blk.{i}.ffn_gate_up_exps.bias"),
    ),
    "expert_down": source("blk.{i}.ffn_down_exps.weight"),
    "expert_down_bias": source("blk.{i}.ffn_down_exps.bias"),
}
GGUF_FUSED_QKV = {
    "qkv": source("blk.{i}.attn_qkv.weight"),
    "qkv_bias": source("blk.{i}.attn_qkv.bias"),
}
GGUF_UP = {
    "gate_up": source("blk.{i}.ffn_up.weight"),
    "gate_up_bias": source("blk.{i}.ffn_up.bias"),
}
# fmt: on


def every_window(keys: Keys, n_layers: int) -> list[int]:
    """Mistral, Phi-3, StarCoder2: all layers slide, or none."""
    return [keys.integer("sliding_window", 1, MAX_POSITIONS, none=True) or 0] * n_layers


def typed_window(keys: Keys, kinds: list[str], enabled: bool = True) -> list[int]:
    """`sliding_window` for the layers that slide."""
    window = keys.integer("sliding_window", 1, MAX_POSITIONS, none=True) if enabled else None
    if window is None and SLIDING in kinds:
        raise keys.error("sliding_window", "is off, but layer_types has sliding layers")
    return [window if kind == SLIDING else 0 for kind in kinds]


def layer_types(keys: Keys, n_layers: int) -> list[str] | None:
    """The checked `layer_types`, or None where the config has none."""
    kinds = keys.value("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise keys.error("layer_types", f"must be a list of {n_layers} names")
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise UnsupportedError(f"{keys.where}: layer type {ascii(kind)[:80]} is not supported")
    return kinds


def qwen_window(keys: Keys, n_layers: int) -> list[int]:
    """Qwen2, Qwen3: layers from max_window_layers on, where the config asks for it."""
    enabled = keys.flag("use_sliding_window")
    kinds = layer_types(keys, n_layers)
    if kinds is None:
        first = keys.integer("max_window_layers", 0, MAX_LAYERS)
        slides = enabled and keys.value("sliding_window") is not None
        kinds = [SLIDING if slides and i >= first else FULL for i in range(n_layers)]
    return typed_window(keys, kinds, enabled)


def granite(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    """Granite's four multipliers."""
    return {
        "attn_scale": keys.number("attention_multiplier", 1e-9, 1e9),
        "embed_scale": keys.number("embedding_multiplier", 1e-9, 1e9),
        "residual_scale": keys.number("residual_multiplier", 1e-9, 1e9),
        "logit_scale": 1.0 / keys.number("logits_scaling", 1e-9, 1e9),
    }
