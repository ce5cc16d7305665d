"""Attention over latents (MLA, DeepSeek): its numbers in a config, its tensors in a checkpoint.

A token leaves one latent of `kv_lora_rank` values and one rotated key behind, which all heads read.
kv_b, which made keys and values of the latent, is cut into what each head's query is multiplied by
before it meets latents (`mla_uk`, turned), and what is found is multiplied by after (`mla_uv`).
Invariant: both become floats in the core; a block-quantized kv_b is opened here. Called by
mapping.py and slots.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from llmaccel.config import MAX_ROW, Keys, ModelConfig
from llmaccel.errors import LoadError, UnsupportedError
from llmaccel.models.checkpoint import RawTensor
from llmaccel.models.plain import plain_form

MAX_RANK = 1 << 13  # MOST_RANK of csrc/model/latent.c
MAX_Q_RANK = 1 << 20
# Of the norms of latents: their classes do not take the config's.
_EPS = 1e-6
_FLOATS = ("F32", "F16", "BF16")
# Slots that are not there where queries are made of x itself.
DIRECT_LACKS = ("mla_q_norm", "mla_q")

LATENT_KEYS: dict[str, Any] = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
# What transformers derives, or does not read when it computes.
INERT_KEYS = (
    "head_dim",
    "qk_head_dim",
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "ep_size",
    "seq_aux",
    "aux_loss_alpha",
    "output_router_logits",
    "num_experts",
    "num_local_experts",
)
# Of experts, beside what transformers' classes have.
EXPERT_KEYS: dict[str, Any] = dict.fromkeys(("moe_layer_freq", "scoring_func", "topk_method"))


def latent_sizes(keys: Keys, n_heads: int, n_kv_heads: int) -> dict[str, Any]:
    """The fields of a `ModelConfig` that an MLA family has in place of others'."""
    if n_kv_heads != n_heads:
        raise UnsupportedError(
            f"{keys.where}: num_key_value_heads other than num_attention_heads is not supported "
            "with kv_lora_rank"
        )
    rank = keys.integer("kv_lora_rank", 1, MAX_RANK)
    nope = keys.integer("qk_nope_head_dim", 1, 2**20)
    turned = keys.integer("qk_rope_head_dim", 2, 2**20)
    if rank % 4:
        raise UnsupportedError(f"{keys.where}: kv_lora_rank {rank} is no multiple of 4")
    if n_heads * (rank + turned) > MAX_ROW:
        raise keys.error("num_attention_heads", f"{n_heads} latents of {rank} are too many")
    return {
        "attn": "latent",
        "n_kv_heads": 1,
        "d_head": nope + turned,
        "d_nope": nope,
        "kv_rank": rank,
        "q_rank": keys.integer("q_lora_rank", 1, MAX_Q_RANK, none=True) or 0,
        "d_v": keys.integer("v_head_dim", 1, 256),
        "latent_eps": _EPS,
    }


def latent_dtype(stored: str) -> str:
    """What `latent_half` makes of a tensor of that form: floats stay, codes are opened."""
    return stored if stored in _FLOATS else "F32"


def latent_half(tensor: RawTensor, config: ModelConfig, keys: bool) -> RawTensor:
    """`mla_uk` [H * r, d_nope] or `mla_uv` [H * d_v, r] of the tensor that holds it.

    That is kv_b [H * (d_nope + d_v), r], or in newer GGUF files k_b [H, r, d_nope] and v_b
    [H, d_v, r], which lie as the slots want them. A rule for the rows of kv_b is one for latents,
    which are rounded before they are stored. LoadError for another shape.
    """
    heads, rank, nope = config.n_heads, config.kv_rank, config.d_nope
    own = (heads, rank, nope) if keys else (heads, config.d_v, rank)
    fused = (heads * (nope + config.d_v), rank)
    if tensor.shape not in (own, fused):
        raise LoadError(f"{tensor.name}: expected {list(fused)}, got {list(tensor.shape)}")
    dtype = latent_dtype(tensor.dtype)
    part = tensor.numpy() if dtype == tensor.dtype else _opened(tensor)
    if tensor.shape == fused:
        whole = part.reshape(heads, nope + config.d_v, rank)
        part = whole[:, :nope].transpose(0, 2, 1) if keys else whole[:, nope:]
    flat = np.ascontiguousarray(part).reshape(-1, own[2])
    data = flat.reshape(-1).view(np.uint8)
    return RawTensor(tensor.name, dtype, flat.shape, data, None, tensor.rounding)


def _opened(tensor: RawTensor) -> np.ndarray:
    """A quantized matrix as float32, which the core rounds to what heads multiply by."""
    from llmaccel import _core

    cols = tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])
    form = plain_form(tensor.dtype)
    dtype = tensor.dtype if form is None else replace(form, ordered=False).name
    packed = _core.Packed(tensor.data, dtype, rows, cols, "F32", "keep", 0)
    out = np.empty((rows, cols), np.float32)
    packed.unpack("scalar", np.arange(rows, dtype=np.int32), out)
    if tensor.order is not None:
        out[:, tensor.order] = out.copy()
    return out
