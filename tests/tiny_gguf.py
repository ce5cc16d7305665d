"""The tiny checkpoints of tiny.py as GGUF files.

Names, row orders and metadata keys are those of llama.cpp's converters, written out here on their
own and through the `gguf` package, so that a mistake in llmaccel's reading of them shows as a
difference from the Hugging Face folder. Called by the tests of formats, families, stories and
lifecycles.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmaccel.models.mapping import build_config
from llmaccel.models.safetensors import open_safetensors

_BLOCK = "blk.{i}."
# fmt: off
_RENAMES = [    # Hugging Face, GGUF; {i} is the layer
    ("embed_tokens", "token_embd"), ("embed_in", "token_embd"), ("wte", "token_embd"),
    ("wpe", "position_embd"), ("lm_head", "output"), ("embed_out", "output"), ("norm",
    "output_norm"),
    ("ln_f", "output_norm"), ("final_layer_norm", "output_norm"),
    ("layers.{i}.input_layernorm", _BLOCK + "attn_norm"), ("h.{i}.ln_1", _BLOCK + "attn_norm"),
    ("layers.{i}.self_attn.q_proj", _BLOCK + "attn_q"), ("layers.{i}.self_attn.k_proj",
    _BLOCK + "attn_k"),
    ("layers.{i}.self_attn.v_proj", _BLOCK + "attn_v"),
    ("layers.{i}.self_attn.q_a_proj", _BLOCK + "attn_q_a"),
    ("layers.{i}.self_attn.q_a_layernorm", _BLOCK + "attn_q_a_norm"),
    ("layers.{i}.self_attn.q_b_proj", _BLOCK + "attn_q_b"),
    ("layers.{i}.self_attn.kv_a_proj_with_mqa", _BLOCK + "attn_kv_a_mqa"),
    ("layers.{i}.self_attn.kv_a_layernorm", _BLOCK + "attn_kv_a_norm"),
    ("layers.{i}.self_attn.kv_b_proj", _BLOCK + "attn_kv_b"),
    ("layers.{i}.self_attn.q_norm", _BLOCK + "attn_q_norm"),
    ("layers.{i}.self_attn.k_norm", _BLOCK + "attn_k_norm"),
    ("layers.{i}.self_attn.qkv_proj", _BLOCK + "attn_qkv"), ("h.{i}.attn.c_attn",
    _BLOCK + "attn_qkv"),
    ("layers.{i}.attention.query_key_value", _BLOCK + "attn_qkv"),
    ("layers.{i}.self_attn.o_proj", _BLOCK + "attn_output"), ("h.{i}.attn.c_proj",
    _BLOCK + "attn_output"),
    ("layers.{i}.attention.dense", _BLOCK + "attn_output"),
    ("layers.{i}.pre_feedforward_layernorm", _BLOCK + "ffn_norm"), ("h.{i}.ln_2",
    _BLOCK + "ffn_norm"),
    ("layers.{i}.post_feedforward_layernorm", _BLOCK + "post_ffw_norm"),
    ("layers.{i}.mlp.gate_proj", _BLOCK + "ffn_gate"), ("layers.{i}.mlp.up_proj",
    _BLOCK + "ffn_up"),
    ("layers.{i}.mlp.gate_up_proj", _BLOCK + "ffn_up"), ("layers.{i}.mlp.c_fc", _BLOCK + "ffn_up"),
    ("h.{i}.mlp.c_fc", _BLOCK + "ffn_up"), ("layers.{i}.mlp.dense_h_to_4h", _BLOCK + "ffn_up"),
    ("layers.{i}.mlp.down_proj", _BLOCK + "ffn_down"), ("layers.{i}.mlp.c_proj",
    _BLOCK + "ffn_down"),
    ("h.{i}.mlp.c_proj", _BLOCK + "ffn_down"), ("layers.{i}.mlp.dense_4h_to_h",
    _BLOCK + "ffn_down"),
    ("layers.{i}.mlp.router", _BLOCK + "ffn_gate_inp"),
    ("layers.{i}.mlp.gate", _BLOCK + "ffn_gate_inp"),
    ("layers.{i}.block_sparse_moe.gate", _BLOCK + "ffn_gate_inp"),
    ("layers.{i}.block_sparse_moe.router.layer", _BLOCK + "ffn_gate_inp"),
    ("layers.{i}.mlp.shared_expert_gate", _BLOCK + "ffn_gate_inp_shexp"),
    ("layers.{i}.mlp.shared_expert.gate_proj", _BLOCK + "ffn_gate_shexp"),
    ("layers.{i}.mlp.shared_expert.up_proj", _BLOCK + "ffn_up_shexp"),
    ("layers.{i}.mlp.shared_expert.down_proj", _BLOCK + "ffn_down_shexp"),
    ("layers.{i}.mlp.shared_experts.gate_proj", _BLOCK + "ffn_gate_shexp"),
    ("layers.{i}.mlp.shared_experts.up_proj", _BLOCK + "ffn_up_shexp"),
    ("layers.{i}.mlp.shared_experts.down_proj", _BLOCK + "ffn_down_shexp"),
    ("layers.{i}.shared_mlp.output_linear", _BLOCK + "ffn_down_shexp"),
    ("layers.{i}.block_sparse_moe.output_linear", _BLOCK + "ffn_down_exps"),
    ("layers.{i}.mlp.experts.gate_proj", _BLOCK + "ffn_gate_exps"),
    ("layers.{i}.mlp.experts.up_proj", _BLOCK + "ffn_up_exps"),
    ("layers.{i}.mlp.experts.down_proj", _BLOCK + "ffn_down_exps"),
    ("layers.{i}.block_sparse_moe.experts.w1", _BLOCK + "ffn_gate_exps"),
    ("layers.{i}.block_sparse_moe.experts.w3", _BLOCK + "ffn_up_exps"),
    ("layers.{i}.block_sparse_moe.experts.w2", _BLOCK + "ffn_down_exps"),
]
# fmt: on
_ARCHS = {
    "mistral": "llama",
    "mixtral": "llama",
    "gpt_neox": "gptneox",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "granitemoeshared": "granitemoe",
    "glm4_moe": "glm4moe",
    "gpt_oss": "gpt-oss",
}
# Rows of these, gate and then up, become two tensors.
_SPLIT = {
    "block_sparse_moe.input_linear": ("ffn_gate_exps", "ffn_up_exps"),
    "shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp"),
}
PAIRED = ("llama", "mistral", "mixtral", "granite", "granitemoe", "granitemoeshared")


def _gguf_name(name: str, family: str) -> str:
    if name.endswith("e_score_correction_bias"):
        return f"blk.{name.split('.')[2]}.exp_probs_b.bias"
    if name.endswith(".sinks"):
        return f"blk.{name.split('.')[2]}.attn_sinks.weight"
    stem, kind = name.rsplit(".", 1)
    for prefix in ("model.", "transformer.", "gpt_neox."):
        stem = stem.removeprefix(prefix)
    layer = next((part for part in stem.split(".") if part.isdigit()), "0")
    if stem.endswith("post_attention_layernorm"):
        sandwich = family in ("gemma2", "gemma3", "olmo2", "glm4_moe", "gpt_oss")
        return f"blk.{layer}.{'post_attention_norm' if sandwich else 'ffn_norm'}.{kind}"
    for ours, theirs in _RENAMES:
        if ours.replace("{i}", layer) == stem:
            return f"{theirs.replace('{i}', layer)}.{kind}"
    raise KeyError(name)


def _gguf_values(name: str, values: np.ndarray, family: str, config: dict[str, Any]) -> np.ndarray:
    """`values` as converters store them in GGUF files."""
    heads = config.get("num_attention_heads", config.get("n_head"))
    if family in PAIRED and (".q_proj." in name or ".k_proj." in name):
        count = heads if ".q_proj." in name else config["num_key_value_heads"]
        halves = values.reshape(count, 2, -1, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return values + np.float32(1)
    if family == "gpt2" and values.ndim == 2 and ".h." in name:
        return np.ascontiguousarray(values.T)
    if "query_key_value" in name:
        grouped = values.reshape(heads, 3, -1, *values.shape[1:])
        return np.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(values.shape)
    return values


def make_gguf(
    family: str,
    folder: Path,
    path: Path,
    quant: str | Callable[[str], str] | None = None,
    extend: Callable[[Any], None] | None = None,
    *,
    layout: str = "split",
) -> Path:
    """Write the folder of a variant as a GGUF file, the way llama.cpp's converters lay it out.

    quant: a GGUF type for the matrices whose rows are whole blocks, or a function of the GGUF name
    that gives one; None: all F32. K types, which the `gguf` package cannot write, get random blocks
    of the folder's spread. extend: adds metadata of its own to the writer. layout: "split":
    kv_b of MLA as k_b and v_b, and the metadata that goes with it, as files since absorption have
    them; "whole": kv_b, as older ones; "fused": "split", and gate and up of a layer's experts in
    one tensor, rows of an expert's gate before those of its up.
    """
    import gguf

    row = family.partition("-")[0]
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, _ARCHS.get(row, row))
    _gguf_metadata(writer, config)
    if "kv_lora_rank" in config:
        _gguf_latents(writer, config, layout != "whole")
    tensors = dict(_gguf_tensors(folder, row, config))
    for name in [n for n in tensors if layout != "whole" and n.endswith("attn_kv_b.weight")]:
        whole = tensors.pop(name).reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
        nope = config["qk_nope_head_dim"]
        tensors[name.replace("kv_b", "k_b")] = whole[:, :nope].swapaxes(1, 2)
        tensors[name.replace("kv_b", "v_b")] = whole[:, nope:]
    for name in [n for n in tensors if layout == "fused" and "ffn_gate_exps" in n]:
        halves = tensors.pop(name), tensors.pop(name.replace("gate", "up"))
        tensors[name.replace("gate", "gate_up")] = np.concatenate(halves, axis=1)
    for name, values in tensors.items():
        wanted = quant(name) if callable(quant) else quant
        kind = gguf.GGMLQuantizationType[wanted or "F32"]
        if values.ndim > 1 and values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(name, _gguf_blocks(name, values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    _gguf_factors(writer, config)
    if extend is not None:
        extend(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(
    folder: Path, family: str, config: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF names and values; the experts of a layer in one tensor."""
    checkpoint = open_safetensors(folder)
    experts: dict[str, dict[int, np.ndarray]] = {}
    for theirs in checkpoint.names():
        values = _gguf_values(theirs, checkpoint[theirs].numpy(), family, config)
        halves = next((names for part, names in _SPLIT.items() if part in theirs), None)
        one = re.search(r"\.experts\.(\d+)\.", theirs)
        if halves is not None:
            layer = theirs.split(".")[2]
            for name, half in zip(halves, np.split(values, 2, axis=-2), strict=True):
                yield f"blk.{layer}.{name}.weight", half
        elif family == "gpt_oss" and ".experts." in theirs:
            yield from _gpt_oss_experts(theirs, values)
        elif one is not None:
            name = _gguf_name(theirs.replace(one[0], ".experts."), family)
            experts.setdefault(name, {})[int(one[1])] = values
        else:
            name = _gguf_name(theirs, family)
            yield name, values[0] if name.endswith("inp_shexp.weight") else values
    for name, parts in experts.items():
        yield name, np.stack([parts[e] for e in range(len(parts))])


def _gpt_oss_experts(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """[E, D, 2F], gate and up in turns, as two tensors [E, F, D]; [E, F, D] as [E, D, F]."""
    layer, kind = name.split(".")[2], "bias" if name.endswith("_bias") else "weight"
    if kind == "weight":
        values = np.ascontiguousarray(values.swapaxes(1, 2))
    if "gate_up_proj" in name:
        yield f"blk.{layer}.ffn_gate_exps.{kind}", values[:, 0::2]
        yield f"blk.{layer}.ffn_up_exps.{kind}", values[:, 1::2]
    else:
        yield f"blk.{layer}.ffn_down_exps.{kind}", values


# Byte offsets of the fp16 fields of a K block.
_K_HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_K_HALVES |= {"IQ4_NL": (0,), "IQ4_XS": (0,)}


def _gguf_blocks(name: str, values: np.ndarray, kind) -> np.ndarray:
    """`values` as bytes of a GGUF type."""
    import gguf

    if kind.name == "NVFP4":
        return _nvfp4_blocks(values)
    if kind.name not in _K_HALVES:
        return gguf.quants.quantize(np.ascontiguousarray(values), kind)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, n_blocks = math.prod(values.shape[:-1]), values.shape[-1] // block
    raw = rng.integers(0, 256, (rows, n_blocks, size), dtype=np.uint8)
    shape = (len(_K_HALVES[kind.name]), rows, n_blocks, 1)
    halves = rng.uniform(0.5, 1, shape) * rng.choice([-1, 1], shape)  # signed: a mean near 0

    def with_scale(scale: float) -> np.ndarray:
        for at, half in zip(_K_HALVES[kind.name], halves, strict=True):
            raw[:, :, at : at + 2] = (half * scale).astype(np.float16).view(np.uint8)
        return raw.reshape(*values.shape[:-1], -1)

    # Values are proportional to the fp16 fields.
    drawn = gguf.quants.dequantize(with_scale(1.0), kind)
    return with_scale(float(values.std() / np.sqrt(np.mean(drawn * drawn))))


def _nvfp4_blocks(values: np.ndarray) -> np.ndarray:
    """Groups of 16 under E4M3 scales, four to a block, which the `gguf` package can only read."""
    from gguf.quants import NVFP4

    groups = values.reshape(-1, 4, 16)
    code = NVFP4.fp32_to_ue4m3(np.abs(groups).max(-1) / 6)
    steps = np.maximum(NVFP4.ue4m3_to_fp32(code), 1e-9)[..., None]
    q = np.abs((groups / steps)[..., None] - np.array(NVFP4.kvalues)).argmin(-1).astype(np.uint8)
    pairs = (q[..., :8] | q[..., 8:] << 4).reshape(-1, 32)
    return np.concatenate([code, pairs], axis=-1).reshape(*values.shape[:-1], -1)


def _gguf_metadata(writer, config: dict[str, Any]) -> None:
    c = {
        **config,
        **{
            common: config[own]
            for common, own in (
                ("hidden_size", "n_embd"),
                ("num_attention_heads", "n_head"),
                ("num_hidden_layers", "n_layer"),
                ("max_position_embeddings", "n_positions"),
                ("intermediate_size", "n_inner"),
            )
            if own in config
        },
    }
    heads, kv_heads = (
        c["num_attention_heads"],
        c.get("num_key_value_heads", c["num_attention_heads"]),
    )
    head_dim = c.get("head_dim", c["hidden_size"] // heads)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_bos_token_id(c["bos_token_id"])
    writer.add_eos_token_id(c["eos_token_id"])
    built = build_config(config)
    (writer.add_layer_norm_eps if built.norm == "layer" else writer.add_layer_norm_rms_eps)(
        built.norm_eps
    )
    if "head_dim" in c:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if "sliding_window" in c:
        writer.add_sliding_window(c["sliding_window"])
    if "sliding_window_pattern" in c:
        writer.add_sliding_window_pattern(c["sliding_window_pattern"])
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
        ("rope_local_base_freq", writer.add_rope_freq_base_swa),
    ):
        if key in c:
            add(c[key])
    _gguf_experts(writer, c)
    if c["model_type"] == "gpt_neox":
        writer.add_parallel_residual(c.get("use_parallel_residual", True))
    if built.d_rope:
        writer.add_rope_dimension_count(built.d_rope)
        writer.add_rope_freq_base(
            float(c.get("rope_theta", 1e6 if c["model_type"] == "mixtral" else 10000.0))
        )
    _gguf_scaling(writer, c)


def _gguf_latents(writer, c: dict[str, Any], split: bool) -> None:
    rank, turned = c["kv_lora_rank"], c["qk_rope_head_dim"]
    writer.add_kv_lora_rank(rank)
    if c["q_lora_rank"] is not None:
        writer.add_q_lora_rank(c["q_lora_rank"])
    key, value = c["qk_nope_head_dim"] + turned, c["v_head_dim"]
    writer.add_key_length(rank + turned if split else key)
    writer.add_value_length(rank if split else value)
    if split:
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(value)
    scaling = c.get("rope_scaling") or {}
    if "mscale_all_dim" in scaling:
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])


def _gguf_experts(writer, c: dict[str, Any]) -> None:
    import gguf

    for key, add in (
        ("num_local_experts", writer.add_expert_count),
        ("num_experts", writer.add_expert_count),
        ("n_routed_experts", writer.add_expert_count),
        ("num_experts_per_tok", writer.add_expert_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length),
        ("shared_intermediate_size", writer.add_expert_shared_feed_forward_length),
        ("n_shared_experts", writer.add_expert_shared_count),
        ("routed_scaling_factor", writer.add_expert_weights_scale),
        ("n_group", writer.add_expert_group_count),
        ("topk_group", writer.add_expert_group_used_count),
        ("first_k_dense_replace", writer.add_leading_dense_block_count),
    ):
        if key in c:
            add(c[key])
    if c["model_type"] == "gpt_oss":
        writer.add_expert_feed_forward_length(c["intermediate_size"])
    if c["model_type"] in ("glm4_moe", "deepseek_v3"):
        writer.add_expert_weights_norm(c.get("norm_topk_prob", True))
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _gguf_scaling(writer, c: dict[str, Any]) -> None:
    import gguf

    scaling = c.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(c["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(scaling["attention_factor"])


def _gguf_factors(writer, c: dict[str, Any]) -> None:
    scaling = c.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "longrope":
        for name in ("long", "short"):
            writer.add_tensor(
                f"rope_factors_{name}.weight", np.array(scaling[f"{name}_factor"], np.float32)
            )
    if kind == "llama3":
        plain = build_config({**c, "rope_scaling": None}).rope_inv_freq[0].astype(np.float64)
        scaled = build_config(c).rope_inv_freq[0].astype(np.float64)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
