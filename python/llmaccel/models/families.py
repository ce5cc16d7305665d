"""The table of model families: one row maps a family's config keys and tensor names to the C
model.

Owns the rows without experts, the table of all rows, and which row a config or a GGUF file means.
What a row is says family.py; rows with experts are in families_moe.py, those with latents in
families_latent.py. To add a family, add a row; the tests pick it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmaccel.config import MAX_LAYERS, Keys
from llmaccel.errors import ConfigError, UnsupportedError
from llmaccel.models.families_latent import LATENT_FAMILIES
from llmaccel.models.families_moe import MOE_FAMILIES
from llmaccel.models.family import (
    ATTN_BIAS,
    ATTN_BIAS_TENSORS,
    BASE,
    FULL,
    GGUF_FUSED_QKV,
    GGUF_UP,
    LLAMA_TENSORS,
    MLP,
    MLP_BIAS,
    NO_BIAS,
    QK_NORMS,
    SELF,
    SLIDING,
    Family,
    every_window,
    granite,
    layer_types,
    qwen_window,
    typed_window,
)
from llmaccel.models.gguf_config import plain
from llmaccel.models.rope import RopeKeys
from llmaccel.models.slots import Source, source

_GEMMA_TENSORS: dict[str, Source] = {
    **NO_BIAS,
    **ATTN_BIAS_TENSORS,
    "final_norm": source("norm.weight", layout="minus_one"),
    "attn_norm": source("layers.{i}.input_layernorm.weight", layout="minus_one"),
    "attn_post_norm": source("layers.{i}.post_attention_layernorm.weight", layout="minus_one"),
    "ffn_norm": source("layers.{i}.pre_feedforward_layernorm.weight", layout="minus_one"),
    "ffn_post_norm": source("layers.{i}.post_feedforward_layernorm.weight", layout="minus_one"),
}
_GEMMA_BASE: dict[str, Any] = {
    **BASE,
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


def _pattern_window(keys: Keys, n_layers: int) -> list[int]:
    """Gemma: every `sliding_window_pattern`th layer is full."""
    kinds = layer_types(keys, n_layers)
    if kinds is None:
        period = keys.integer("sliding_window_pattern", 1, MAX_LAYERS)
        kinds = [SLIDING if (i + 1) % period else FULL for i in range(n_layers)]
    return typed_window(keys, kinds)


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


def _gpt2(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    return {} if keys.flag("scale_attn_weights") else {"attn_scale": 1.0}


def _neox(keys: Keys, sizes: dict[str, Any]) -> dict[str, Any]:
    return {"parallel": keys.flag("use_parallel_residual")}


# ---- the rows ------------------------------------------------------------------------------------

# fmt: off
_DENSE: tuple[Family, ...] = (
    Family(     # Llama 2, 3, 3.1, 3.2, SmolLM2, TinyLlama
        "llama", ("LlamaForCausalLM",), ("llama",),
        {**BASE, "attention_bias": False, "mlp_bias": False}, LLAMA_TENSORS, "llama",
        optional={**ATTN_BIAS, **MLP_BIAS}, gguf_interleaved=True,
    ),
    Family(
        "mistral", ("MistralForCausalLM",), ("mistral",),
        {**BASE, "intermediate_size": 14336, "num_key_value_heads": 8,
         "max_position_embeddings": 131072, "sliding_window": 4096},
        NO_BIAS, "llama", window=every_window, gguf_interleaved=True,
        gguf_keys={"sliding_window": "attention.sliding_window"},
        gguf_tells={"attention.sliding_window": None},
    ),
    Family(     # Qwen2, Qwen2.5
        "qwen2", ("Qwen2ForCausalLM",), ("qwen2",),
        {**BASE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
         "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None,
         "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
         "layer_types": None},
        {**NO_BIAS, "qkv_bias": LLAMA_TENSORS["qkv_bias"]}, "qwen2", window=qwen_window,
        inert=("attention_bias",),
    ),
    Family(
        "qwen3", ("Qwen3ForCausalLM",), ("qwen3",),
        {**BASE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
         "head_dim": 128, "max_position_embeddings": 32768, "bos_token_id": None,
         "eos_token_id": None,
         "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
         "layer_types": None, "attention_bias": False},
        {**NO_BIAS, **ATTN_BIAS_TENSORS, **QK_NORMS}, "qwen3", window=qwen_window,
        optional=ATTN_BIAS, qk_norm="head",
    ),
    Family(
        "phi3", ("Phi3ForCausalLM",), ("phi3",),
        {**BASE, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
         "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "eos_token_id": 32000,
         "sliding_window": None},
        {**NO_BIAS, "qkv": source(SELF + "qkv_proj.weight"),
         "gate_up": source(MLP + "gate_up_proj.weight")},
        "phi3", window=every_window, gguf_keys={"sliding_window": "attention.sliding_window"},
        rope=RopeKeys(partial=("partial_rotary_factor", 1.0), types=("default", "longrope"),
                      aliases={"su": "longrope", "yarn": "longrope"}, original=4096),
        gguf_tensors={"qkv": GGUF_FUSED_QKV["qkv"], "gate_up": GGUF_UP["gate_up"]},
    ),
    Family(
        "gemma2", ("Gemma2ForCausalLM",), ("gemma2",),
        {**_GEMMA_BASE, "vocab_size": 256000, "max_position_embeddings": 8192,
         "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
         "sliding_window_pattern": 2},
        _GEMMA_TENSORS, "gemma2", extra=_gemma, window=_pattern_window, optional=ATTN_BIAS,
        act="hidden_activation",
        gguf_keys={"sliding_window": "attention.sliding_window",
                   "attn_logit_softcapping": "attn_logit_softcapping",
                   "final_logit_softcapping": "final_logit_softcapping"},
    ),
    Family(
        "gemma3", ("Gemma3ForCausalLM",), ("gemma3_text",),
        {**_GEMMA_BASE, "vocab_size": 262208, "max_position_embeddings": 131072,
         "sliding_window_pattern": 6},
        {**_GEMMA_TENSORS, "q_norm": source(SELF + "q_norm.weight", layout="minus_one"),
         "k_norm": source(SELF + "k_norm.weight", layout="minus_one")},
        "gemma3", extra=_gemma, window=_pattern_window, optional=ATTN_BIAS,
        act="hidden_activation",
        qk_norm="head",
        rope=RopeKeys(theta=("rope_theta", 1e6), local_theta=("rope_local_base_freq", 10000.0)),
        gguf_keys={"sliding_window": "attention.sliding_window",
                   "final_logit_softcapping": "final_logit_softcapping"},
    ),
    Family(
        "olmo2", ("Olmo2ForCausalLM",), ("olmo2",),
        {**BASE, "vocab_size": 50304, "rms_norm_eps": 1e-5, "bos_token_id": None,
         "eos_token_id": 50279, "attention_bias": False},
        {**{k: v for k, v in NO_BIAS.items() if k not in ("attn_norm", "ffn_norm")},
         **ATTN_BIAS_TENSORS, **QK_NORMS,
         "attn_post_norm": source("layers.{i}.post_attention_layernorm.weight"),
         "ffn_post_norm": source("layers.{i}.post_feedforward_layernorm.weight")},
        "olmo2", optional=ATTN_BIAS, qk_norm="row",
    ),
    Family(
        "granite", ("GraniteForCausalLM",), ("granite",),
        {**BASE, "attention_bias": False, "mlp_bias": False, "embedding_multiplier": 1.0,
         "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0},
        LLAMA_TENSORS, "granite", extra=granite, optional={**ATTN_BIAS, **MLP_BIAS},
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
        gguf_tensors={**GGUF_FUSED_QKV, **GGUF_UP},
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
         "gate_up": source(MLP + "dense_h_to_4h.weight"),
         "gate_up_bias": source(MLP + "dense_h_to_4h.bias"),
         "down": source(MLP + "dense_4h_to_h.weight"),
         "down_bias": source(MLP + "dense_4h_to_h.bias")},
        "gptneox", extra=_neox, prefix="gpt_neox.", eps="layer_norm_eps", norm="layer", gated=False,
        rope=RopeKeys(theta=("rotary_emb_base", 10000.0), partial=("rotary_pct", 0.25)),
        optional=ATTN_BIAS, gguf_tensors={**GGUF_FUSED_QKV, **GGUF_UP},
        gguf_keys={"use_parallel_residual": "use_parallel_residual"},
        ignored=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias)",),
    ),
    Family(
        "starcoder2", ("Starcoder2ForCausalLM",), ("starcoder2",),
        {**BASE, "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288,
         "num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2,
         "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 4096, "norm_epsilon": 1e-5,
         "bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": True,
         "sliding_window": None, "use_bias": True},
        {**LLAMA_TENSORS, "final_norm_bias": source("norm.bias"),
         "attn_norm_bias": source("layers.{i}.input_layernorm.bias"),
         "ffn_norm_bias": source("layers.{i}.post_attention_layernorm.bias"),
         "gate_up": source(MLP + "c_fc.weight"), "gate_up_bias": source(MLP + "c_fc.bias"),
         "down": source(MLP + "c_proj.weight"), "down_bias": source(MLP + "c_proj.bias")},
        "starcoder2", window=every_window, eps="norm_epsilon", norm="layer", gated=False,
        optional=dict.fromkeys(("qkv_bias", "o_bias", "gate_up_bias", "down_bias"), "use_bias"),
        gguf_tensors=GGUF_UP, gguf_keys={"sliding_window": "attention.sliding_window"},
    ),
)
# fmt: on
FAMILIES = _DENSE + LATENT_FAMILIES + MOE_FAMILIES


# ---- which row -----------------------------------------------------------------------------------


# Not attention: their layers carry a state from token to token.
_RECURRENT = (
    *("Mamba", "Mamba2", "FalconMamba", "Jamba", "Bamba", "Zamba", "Zamba2", "FalconH1"),
    *("Qwen3Next", "Qwen3_5", "Qwen3_5Moe", "GraniteMoeHybrid", "NemotronH", "Lfm2", "Lfm2Moe"),
    *("Rwkv", "RecurrentGemma", "MiniMax", "KimiLinear", "Plamo2", "xLSTM"),
)


# What follows a family's name in an architecture: what is made of its hidden states.
_TASKS = {
    "ForCausalLM": "generate",
    "LMHeadModel": "generate",
    "ForSequenceClassification": "classify",
    "Model": "embed",
}


def task_of(architecture: str) -> str:
    """What a model of a known architecture is for: "generate", "classify" or "embed"."""
    found = (task for end, task in _TASKS.items() if architecture.endswith(end))
    return next(found, "generate")  # a row's own name may end otherwise


def classifier_of(architecture: str) -> str:
    """The sequence classifier of a known architecture's family."""
    stem = _stem(architecture).partition("For")[0]
    return f"{stem}ForSequenceClassification"


def _stem(architecture: str) -> str:
    """The family's part of an architecture's name."""
    end = next((end for end in _TASKS if architecture.endswith(end)), "")
    return architecture.removesuffix(end)


def find_family(raw: Mapping[str, Any]) -> tuple[Family, str]:
    """The row for a config dict, and the architecture; UnsupportedError lists the known ones. Every
    row stands for the bare model and the sequence classifier of its family too."""
    names = raw.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(n, str) for n in names)
    ):
        raise ConfigError("config.json: architectures must be a list of strings")
    for name in names or ():
        for family in FAMILIES:
            if name in family.architectures:
                return family, name
    for name in names or ():
        for family in FAMILIES:
            if name.endswith(tuple(_TASKS)) and _stem(name) in map(_stem, family.architectures):
                return family, name
    model_type = raw.get("model_type")
    if not names:
        for family in FAMILIES:
            if model_type in family.model_types:
                return family, family.architectures[0]
    for name in names or ():
        if name.partition("For")[0] in _RECURRENT:
            raise UnsupportedError(
                f"{ascii(name)[1:-1]}: layers with a state (state-space, linear attention, hybrid) "
                "are not supported"
            )
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
        names = (family.gguf_arch for family in FAMILIES)
        known = ", ".join(dict.fromkeys(name for name in names if name is not None))
        raise UnsupportedError(
            f"GGUF architecture {ascii(arch)[:80]} is not supported; known: {known}"
        )
    # Mistral and Mixtral files are llama files, V3's are V2's: experts, a window or the gate tell.
    for row in reversed(rows):
        told = ((plain(metadata.get(f"{arch}.{k}")), v) for k, v in row.gguf_tells.items())
        if any(got == want if want is not None else got not in (None, 0) for got, want in told):
            return row
    return rows[0]
