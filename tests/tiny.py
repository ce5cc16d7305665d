"""Tiny random checkpoints, one per family row and variant, as Hugging Face folders.

Shapes are ugly on purpose: head size other than D/H where the family allows it, three query heads
per kv head, an odd vocabulary, an FFN that is no multiple of 32, layers of several kinds. Tensor
names and shapes come from the family table; that they are right is told by transformers, which must
load every tensor of a folder and miss none (test_families.py). Also turns stories260K into a
Hugging Face folder. tiny_gguf.py writes the same folders as GGUF files.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmaccel.models.mapping import build_config, tensor_specs

_SIZES = {
    "vocab_size": 301,
    "hidden_size": 96,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WIDE = {**_SIZES, "head_dim": 20}
_WINDOWED = {"sliding_window": 5}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 44}
_ROUTED = {
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 44,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
# Every layer dense.
_LATENT = {
    **_SIZES,
    "num_key_value_heads": 6,
    "kv_lora_rank": 36,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 18,
    "first_k_dense_replace": 3,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}


def _ramp(count: int, first: float, step: float) -> list[float]:
    return [first + step * i for i in range(count)]


# fmt: off  (tables laid out by hand)
# name: config.json. The name up to "-" is the family row.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_WIDE},
    "llama-llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_SIZES,
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3,
        "tie_word_embeddings": True,
    },
    "llama-linear": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_SIZES,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama-dynamic": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_SIZES,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "llama-yarn": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_WIDE,
        "rope_scaling": _YARN,
    },
    "llama-bias": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_WIDE,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **_WIDE,
        **_WINDOWED,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **_SIZES,
        **_WINDOWED,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen2-full": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **_SIZES,
        "rope_scaling": {
            **_YARN,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **_WIDE,
        "rope_theta": 1000000.0,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **_SIZES,
        **_WINDOWED,
        "pad_token_id": 0,
    },
    "phi3-longrope": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **_SIZES,
        "pad_token_id": 0,
        "original_max_position_embeddings": 200,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope",
            "attention_factor": 1.25,
            "short_factor": _ramp(6, 1.0, 0.125),
            "long_factor": _ramp(6, 1.25, 0.5),
        },
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **_WIDE,
        **_WINDOWED,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.0,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **_WIDE,
        **_WINDOWED,
        "num_hidden_layers": 4,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 20,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "olmo2": {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        **_SIZES,
        "pad_token_id": 0,
        "rope_theta": 500000.0,
    },
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        **_SIZES,
        "embedding_multiplier": 6.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.25,
        "attention_multiplier": 0.125,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 301,
        "n_embd": 60,
        "n_head": 3,
        "n_layer": 3,
        "n_positions": 160,
        "n_inner": 100,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": 301,
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 160,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox-serial": {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": 301,
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 160,
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "starcoder2": {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        **_SIZES,
        **_WINDOWED,
    },
    "starcoder2-plain": {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        **_SIZES,
        "use_bias": False,
        "tie_word_embeddings": False,
    },
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        **_LATENT,
        "q_lora_rank": None,
        "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek_v2-lora": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        **_LATENT,
        "q_lora_rank": 44,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **_LATENT,
        "q_lora_rank": 50,
        "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "deepseek_v2-experts": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        **_LATENT,
        **_ROUTED,
        "q_lora_rank": 44,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 2.5,
    },
    "deepseek_v3-experts": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **_LATENT,
        **_ROUTED,
        "q_lora_rank": None,
        "routed_scaling_factor": 1.75,
    },
    "deepseek_v3-halves": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **_LATENT,
        "q_lora_rank": None,
        "rope_interleave": False,
        "rms_norm_eps": 0.001,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **_WIDE,
        **_WINDOWED,
        "num_local_experts": 5,
    },
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        **_SIZES,
        **_EXPERTS,
        **_WINDOWED,
        "shared_expert_intermediate_size": 60,
        "use_sliding_window": True,
        "max_window_layers": 2,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **_WIDE,
        **_EXPERTS,
        "decoder_sparse_step": 2,
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
    },
    "qwen2_moe-all": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        **_SIZES,
        **_EXPERTS,
        "num_hidden_layers": 2,
        "shared_expert_intermediate_size": 36,
    },
    "qwen3_moe-all": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **_WIDE,
        **_EXPERTS,
        "num_hidden_layers": 2,
        "norm_topk_prob": True,
    },
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        **_SIZES,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
    },
    "flex_olmo": {
        "architectures": ["FlexOlmoForCausalLM"],
        "model_type": "flex_olmo",
        **_SIZES,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
    },
    "granitemoe": {
        "architectures": ["GraniteMoeForCausalLM"],
        "model_type": "granitemoe",
        **_SIZES,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "embedding_multiplier": 6.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.25,
        "attention_multiplier": 0.125,
        "tie_word_embeddings": True,
    },
    "granitemoeshared": {
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "model_type": "granitemoeshared",
        **_SIZES,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 52,
        "embedding_multiplier": 6.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.25,
        "attention_multiplier": 0.125,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **_WIDE,
        **_WINDOWED,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "attention_bias": True,
        "rope_theta": 150000.0,
        "rope_scaling": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    },
    "llama4": {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        **_WIDE,
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 76,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 3,
        "attention_chunk_size": 160,
        "floor_scale": 7,
        "attn_scale": 0.4,
        "rope_theta": 500000.0,
        "pad_token_id": 0,
    },
    "glm4_moe": {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        **_WIDE,
        "attention_bias": True,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
        **_ROUTED,
        "routed_scaling_factor": 1.75,
        "num_nextn_predict_layers": 0,
    },
}
# fmt: on
FAMILIES = list(CONFIGS)
# Those that a GGUF file can say; llama.cpp's files carry no sliding window for Qwen2, no dense
# layers among those with experts of Qwen, no biases and no rotation of halves for DeepSeek.
_NOT_GGUF = (
    "qwen2",
    "llama-dynamic",
    "qwen2-full",
    "qwen2_moe",
    "qwen3_moe",
    "llama4",
    "flex_olmo",
    "deepseek_v2-lora",
    "deepseek_v3-halves",
)
GGUF_FAMILIES = [name for name in FAMILIES if name not in _NOT_GGUF]


# Values that an untrusted file may hold where another is expected.
HUGE = 10**400
JUNK = (
    *(None, True, -1, 0, 1, 2**31, HUGE, 0.0, -0.5, 1e300, float("nan"), float("inf"), "", "x"),
    *(4.0, [], [1], [None], {}, {"x": 1}, {"type": "yarn"}, {"type": "longrope", "long_factor": 3}),
    ["\ud800"],
)


def differing(a, b, *but: str) -> list[str]:
    """Names of the fields in which two ModelConfigs differ; `raw` and `but` are left out."""

    def equal(x, y) -> bool:
        if isinstance(x, list) and x and isinstance(x[0], np.ndarray):
            return len(x) == len(y) and all(map(np.array_equal, x, y))
        return x == y

    names = [f.name for f in dataclasses.fields(a) if f.name not in ("raw", *but)]
    return [n for n in names if not equal(getattr(a, n), getattr(b, n))]


def config_of(family: str, **overrides: Any) -> dict[str, Any]:
    """The config.json of a variant; an override of None keeps the key as null."""
    return {**CONFIGS[family], "dtype": "float32", **overrides}


def arrays_of(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors for a config dict, scaled so that every feature moves the logits."""
    rng = np.random.default_rng(seed)
    built = build_config(config)
    gemma = config["model_type"].startswith("gemma")
    arrays = {}
    for name, shape in tensor_specs(built):
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) >= 2:
            embedding = "embed" in name or "wte" in name or "wpe" in name
            # Small beside what the layers add, or a tied head repeats its input.
            values *= 0.25 / built.embed_scale if embedding else 1.5 * min(shape[-2:]) ** -0.5
        elif name.endswith(".bias"):
            values *= 0.2
        else:
            values = values * np.float32(0.2) + np.float32(0 if gemma else 1)
        arrays[name] = values
    return arrays


def make_checkpoint(family: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write config.json and model.safetensors (F32) of a variant into `folder`."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(family, **overrides)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(arrays_of(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def hf_model(folder: Path):
    """The folder in transformers, float32 on the CPU; fails if a tensor is missing or left over."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model.eval()


def hf_logits(folder: Path, ids: Sequence[int]) -> np.ndarray:
    """transformers' logits [T, V] of every position, float32."""
    import torch

    with torch.no_grad():
        return hf_model(folder)(torch.tensor([list(ids)])).logits[0].numpy()


def hf_greedy(folder: Path, ids: Sequence[int], count: int) -> list[int]:
    """`count` greedy tokens after `ids`, each from a whole forward pass; no stop tokens."""
    import torch

    model, tokens = hf_model(folder), list(ids)
    with torch.no_grad():
        for _ in range(count):
            logits = model(torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(ids) :]


# ---- stories260K ---------------------------------------------------------------------------------


def stories260k_folder(shared: Path, dst: Path) -> Path:
    """Write `shared`/data/models/stories260K as a Hugging Face folder with a tokenizer."""
    from safetensors.numpy import save_file

    source = shared / "data" / "models" / "stories260K"
    dst.mkdir(parents=True, exist_ok=True)
    config, arrays = _read_llama2c((source / "stories260K.bin").read_bytes())
    (dst / "config.json").write_text(json.dumps(config, indent=1))
    (dst / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [1, 2]})
    )
    save_file(arrays, dst / "model.safetensors", metadata={"format": "pt"})
    tokenizer = _read_llama2c_tokens((source / "tok512.bin").read_bytes(), config["vocab_size"])
    (dst / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1))
    (dst / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "add_bos_token": True,
                "add_eos_token": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": 512,
            }
        )
    )
    return dst


def _read_llama2c(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    dim, hidden, layers, heads, kv_heads, vocab, positions = struct.unpack_from("<7i", data)
    assert vocab > 0, "a negative vocabulary means an untied head, which this file does not have"
    values, at = np.frombuffer(data, "<f4", offset=28), 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return values[at - count : at].reshape(shape).copy()

    def halves(w: np.ndarray, count: int) -> np.ndarray:
        """llama2.c rotates pairs (2i, 2i + 1); a Hugging Face folder (i, i + d/2)."""
        return w.reshape(count, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)

    d, kv = dim // heads, dim // heads * kv_heads
    arrays = {"model.embed_tokens.weight": take(vocab, dim)}
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv, dim),
        "self_attn.v_proj": take(layers, kv, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    arrays["model.norm.weight"] = take(dim)
    take(2, positions, d // 2)  # cos and sin tables
    assert at == len(values), (at, len(values))
    for name, stack in stacked.items():
        for layer, w in enumerate(stack):
            count = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            arrays[f"model.layers.{layer}.{name}.weight"] = halves(w, count) if count else w
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    return config, {name: np.ascontiguousarray(a) for name, a in arrays.items()}


def _read_llama2c_tokens(data: bytes, vocab: int) -> dict[str, Any]:
    """A tokenizer.json for a llama2.c vocabulary: merges by falling score, with byte fallback."""
    pieces, scores, at = [], [], 4  # after the longest length
    for _ in range(vocab):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode("utf-8").replace(" ", "\u2581"))
        scores.append(score)
        at += 8 + length
    assert at == len(data)
    pieces[0:3] = ["<unk>", "<s>", "</s>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    assert len(ids) == vocab
    merges = sorted(
        (-scores[ids[piece]], ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece in pieces[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    )
    special = [
        {
            "id": i,
            "content": pieces[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i in range(3)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [[m[3], m[4]] for m in merges],
        },
    }
