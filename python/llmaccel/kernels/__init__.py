"""Single kernels on your own tensors: anything with DLPack or the buffer protocol in, Tensor out.

    x = torch.randn(8, 1024)
    weight = kernels.pack(torch.randn(4096, 1024), "BF16")
    y = torch.from_dlpack(kernels.linear(kernels.rms_norm(x, torch.ones(1024)), weight))

What every function keeps to:

* Arguments are NumPy arrays, torch tensors, `llmaccel.Tensor`s, buffers, row-major without gaps.
  float32 is read where it lies; float16 and bfloat16 are widened to a copy.
* All arguments lie in one place, where the result will be: host memory, or a CUDA device for the
  functions marked * below. Others refuse tensors of a device. `isa` and `threads` are the CPU's.
* Results are `llmaccel.Tensor`s in float32 unless a function says otherwise; torch.from_dlpack and
  np.asarray share their memory. `out=` writes into a tensor of yours instead and returns it as a
  Tensor; it may be the input itself where the function says so, and must not overlap it otherwise.
* The last axis is a row. A row's bits depend on that row's inputs alone: not on how many rows come
  with it, nor on threads. `isa` picks an instruction set of `isas()`; "auto" is the highest. Row
  and sampling kernels and int8 products give the same bits on all of them.
* Wrong shapes, dtypes, addresses and values raise ConfigError, what this version cannot serve
  UnsupportedError; both name the argument.

| family | functions |
|---|---|
| rows | rms_norm*, layer_norm*, add*, act*, act_mul*, rope*, softcap* |
| formats | pack*, packed_shape, PackedWeight, linear*, quantize_rows, round_bf16 |
| experts | route, pack_experts, PackedExperts, grouped_linear_contiguous, grouped_linear_masked |
| 8-bit floats | fp8_encode, fp8_decode, fp8_quantize, fp8_dequantize, fp8_linear |
| attention | KVPages, LatentPages, kv_cache*, kv_cache_shape, kv_store*, paged_attention* |
| sampling | argmax*, logsumexp, softmax, select_above, top_k* |
"""

from __future__ import annotations

from llmaccel.kernels.arguments import isas
from llmaccel.kernels.experts import (
    PackedExperts,
    grouped_linear_contiguous,
    grouped_linear_masked,
    pack_experts,
    route,
)
from llmaccel.kernels.fp8 import (
    fp8_decode,
    fp8_dequantize,
    fp8_encode,
    fp8_linear,
    fp8_quantize,
)
from llmaccel.kernels.latent import LatentPages
from llmaccel.kernels.packed import (
    PackedWeight,
    linear,
    pack,
    packed_shape,
    quantize_rows,
    round_bf16,
)
from llmaccel.kernels.pages import KVPages, kv_cache, kv_cache_shape, kv_store, paged_attention
from llmaccel.kernels.rows import act, act_mul, add, layer_norm, rms_norm, rope, softcap
from llmaccel.kernels.sampling import argmax, logsumexp, select_above, softmax, top_k

__all__ = [
    "KVPages",
    "LatentPages",
    "PackedExperts",
    "PackedWeight",
    "act",
    "act_mul",
    "add",
    "argmax",
    "fp8_decode",
    "fp8_dequantize",
    "fp8_encode",
    "fp8_linear",
    "fp8_quantize",
    "grouped_linear_contiguous",
    "grouped_linear_masked",
    "isas",
    "kv_cache",
    "kv_cache_shape",
    "kv_store",
    "layer_norm",
    "linear",
    "logsumexp",
    "pack",
    "pack_experts",
    "packed_shape",
    "paged_attention",
    "quantize_rows",
    "rms_norm",
    "rope",
    "round_bf16",
    "route",
    "select_above",
    "softcap",
    "softmax",
    "top_k",
]
