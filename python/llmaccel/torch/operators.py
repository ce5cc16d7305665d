"""llmaccel.kernels as torch operators: torch.ops.llmaccel.*, with shapes for the compiler.

Owns the registrations. Invariants: an operator computes what the function of its name in
llmaccel.kernels does and refuses what that refuses; results are new memory (kv_store alone writes,
into its cache); the fake kernel beside each gives the shapes, dtypes and strides of the real one
without looking at a value. Arguments that are not row-major are copied, nothing else is. No
operator has a gradient: torch says so where one is asked for.

A packed weight is a uint8 tensor [units, bytes of a unit] with its layout and number of rows named
beside it, so that it can lie in a buffer of a module, in a state_dict and in a compiled graph.
Used by linear.py and by users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmaccel import kernels

OPERATORS: list[str] = []

Real = Callable[..., Any]
_F32, _I64, _I32, _U8 = torch.float32, torch.int64, torch.int32, torch.uint8


def _operator(
    signature: str, fake: Real, *, writes: tuple[str, ...] = ()
) -> Callable[[Real], Real]:
    """Registers a function under its name in torch.ops.llmaccel."""

    def register(real: Real) -> Real:
        name = f"llmaccel::{real.__name__.lstrip('_')}"
        made = torch.library.custom_op(name, real, mutates_args=writes, schema=signature)
        made.register_fake(fake)
        OPERATORS.append(name)
        return real

    return register


def _in(x: Tensor | None) -> Tensor | None:
    """What a kernel takes: row-major, and known to need no gradient here."""
    return None if x is None else x.detach().contiguous()


def _out(x: Any) -> Tensor:
    return torch.from_dlpack(x)


def _floats(x: Tensor, *shape: Any) -> Tensor:
    """A fake result: float32 of a shape, or of x's own."""
    return x.new_empty(shape or x.shape, dtype=_F32)


# ---- rows ---------------------------------------------------------------------------------------


@_operator("(Tensor x, Tensor weight, float eps=1e-6) -> Tensor", lambda x, w, eps=0.0: _floats(x))
def _rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return _out(kernels.rms_norm(_in(x), _in(weight), eps))


@_operator(
    "(Tensor x, Tensor weight, Tensor? bias=None, float eps=1e-5) -> Tensor",
    lambda x, weight, bias=None, eps=0.0: _floats(x),
)
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    return _out(kernels.layer_norm(_in(x), _in(weight), _in(bias), eps))


@_operator("(Tensor x, Tensor y, float scale=1.0) -> Tensor", lambda x, y, scale=1.0: _floats(y))
def _add(x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    return _out(kernels.add(_in(x), _in(y), scale))


@_operator('(Tensor x, str kind="silu") -> Tensor', lambda x, kind="": _floats(x))
def _act(x: Tensor, kind: str = "silu") -> Tensor:
    return _out(kernels.act(_in(x), kind))


@_operator('(Tensor gate, Tensor up, str kind="silu") -> Tensor', lambda g, u, kind="": _floats(g))
def _act_mul(gate: Tensor, up: Tensor, kind: str = "silu") -> Tensor:
    return _out(kernels.act_mul(_in(gate), _in(up), kind))


@_operator(
    "(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor",
    lambda x, cos, sin, interleaved=False: _floats(x),
)
def _rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    return _out(kernels.rope(_in(x), _in(cos), _in(sin), interleaved=interleaved))


@_operator("(Tensor x, float cap, float scale=1.0) -> Tensor", lambda x, cap, scale=1.0: _floats(x))
def _softcap(x: Tensor, cap: float, scale: float = 1.0) -> Tensor:
    return _out(kernels.softcap(_in(x), cap, scale))


# ---- packed weights -----------------------------------------------------------------------------


def _weight(data: Tensor, n: int, k: int, layout: str) -> kernels.PackedWeight:
    return kernels.PackedWeight.over(_in(data), (n, k), layout)


def _pack_fake(weight: Tensor, layout: str) -> Tensor:
    n, k = (int(extent) for extent in weight.shape)
    return weight.new_empty(kernels.packed_shape((n, k), layout), dtype=_U8)


@_operator("(Tensor weight, str layout) -> Tensor", _pack_fake)
def _pack(weight: Tensor, layout: str) -> Tensor:
    kernels.packed_shape(tuple(weight.shape), layout)  # refuses what has no one layout: "auto"
    return _out(kernels.pack(_in(weight), layout).data)


def _pack_blocks_fake(blocks: Tensor, n: int, k: int, layout: str) -> Tensor:
    return blocks.new_empty(kernels.packed_shape((int(n), int(k)), layout), dtype=_U8)


@_operator("(Tensor blocks, SymInt n, SymInt k, str layout) -> Tensor", _pack_blocks_fake)
def _pack_blocks(blocks: Tensor, n: int, k: int, layout: str) -> Tensor:
    return _out(kernels.pack(_in(blocks), dtype=layout, shape=(n, k)).data)


@_operator(
    "(Tensor packed, SymInt n, SymInt k, str layout) -> Tensor",
    lambda packed, n, k, layout: _floats(packed, n, k),
)
def _unpack(packed: Tensor, n: int, k: int, layout: str) -> Tensor:
    return _out(_weight(packed, n, k, layout).dequantize())


@_operator(
    "(Tensor packed, Tensor ids, SymInt n, SymInt k, str layout) -> Tensor",
    lambda packed, ids, n, k, layout: _floats(packed, *ids.shape, k),
)
def _embedding(packed: Tensor, ids: Tensor, n: int, k: int, layout: str) -> Tensor:
    return _out(_weight(packed, n, k, layout).rows(_in(ids)))


@_operator(
    "(Tensor x, Tensor packed, SymInt n, str layout, Tensor? bias=None, *, "
    'str activation="auto", int threads=0) -> Tensor',
    lambda x, packed, n, layout, bias=None, *, activation="", threads=0: _floats(
        x, *x.shape[:-1], n
    ),
)
def _linear(
    x: Tensor,
    packed: Tensor,
    n: int,
    layout: str,
    bias: Tensor | None = None,
    *,
    activation: str = "auto",
    threads: int = 0,
) -> Tensor:
    weight = _weight(packed, n, x.shape[-1], layout)
    made = kernels.linear(_in(x), weight, _in(bias), activation=activation, threads=threads)
    return _out(made)


def _quantize_rows_fake(x: Tensor, group: int = 32) -> tuple[Tensor, Tensor]:
    groups = (x.shape[-1] + group - 1) // group
    return x.new_empty(x.shape, dtype=torch.int8), _floats(x, *x.shape[:-1], groups)


@_operator("(Tensor x, int group=32) -> (Tensor, Tensor)", _quantize_rows_fake)
def _quantize_rows(x: Tensor, group: int = 32) -> tuple[Tensor, Tensor]:
    codes, scales = kernels.quantize_rows(_in(x), group)
    return _out(codes), _out(scales)


@_operator("(Tensor x) -> Tensor", lambda x: x.new_empty(x.shape, dtype=torch.bfloat16))
def _round_bf16(x: Tensor) -> Tensor:
    return _out(kernels.round_bf16(_in(x)))


# ---- experts ------------------------------------------------------------------------------------


def _experts(packed: Tensor, n: int, k: int, layout: str) -> kernels.PackedExperts:
    return kernels.PackedExperts(_weight(one, n, k, layout) for one in packed)


def _route_fake(logits: Tensor, k: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], k)
    return logits.new_empty(shape, dtype=_I32), _floats(logits, *shape)


@_operator(
    '(Tensor logits, int k, Tensor? correction=None, *, str score="softmax", '
    "bool normalize=False, float scale=1.0, int groups=1, int groups_used=1, int group_best=1) "
    "-> (Tensor, Tensor)",
    _route_fake,
)
def _route(
    logits: Tensor, k: int, correction: Tensor | None = None, **rule: Any
) -> tuple[Tensor, Tensor]:
    experts, weights = kernels.route(_in(logits), k, correction=_in(correction), **rule)
    return _out(experts), _out(weights)


@_operator(
    "(Tensor x, Tensor packed, Tensor m_indices, SymInt n, str layout, *, "
    'str activation="auto", int threads=0) -> Tensor',
    lambda x, packed, m_indices, n, layout, *, activation="", threads=0: _floats(x, x.shape[0], n),
)
def _grouped_linear_contiguous(
    x: Tensor, packed: Tensor, m_indices: Tensor, n: int, layout: str, **how: Any
) -> Tensor:
    experts = _experts(packed, n, x.shape[-1], layout)
    index = _in(m_indices)
    return _out(kernels.grouped_linear_contiguous(_in(x), experts, index, **how))


@_operator(
    "(Tensor x, Tensor packed, Tensor masked_m, SymInt n, str layout, *, "
    'str activation="auto", int threads=0) -> Tensor',
    lambda x, packed, masked_m, n, layout, *, activation="", threads=0: _floats(
        x, x.shape[0], x.shape[1], n
    ),
)
def _grouped_linear_masked(
    x: Tensor, packed: Tensor, masked_m: Tensor, n: int, layout: str, **how: Any
) -> Tensor:
    experts = _experts(packed, n, x.shape[-1], layout)
    return _out(kernels.grouped_linear_masked(_in(x), experts, _in(masked_m), **how))


# ---- 8-bit floats -------------------------------------------------------------------------------


@_operator(
    '(Tensor x, str format="e4m3", *, float scale=1.0) -> Tensor',
    lambda x, format="", *, scale=1.0: x.new_empty(x.shape, dtype=_U8),
)
def _fp8_encode(x: Tensor, format: str = "e4m3", *, scale: float = 1.0) -> Tensor:
    return _out(kernels.fp8_encode(_in(x), format, scale=scale))


@_operator(
    '(Tensor codes, str format="e4m3", *, float scale=1.0) -> Tensor',
    lambda codes, format="", *, scale=1.0: _floats(codes),
)
def _fp8_decode(codes: Tensor, format: str = "e4m3", *, scale: float = 1.0) -> Tensor:
    return _out(kernels.fp8_decode(_in(codes), format, scale=scale))


def _fp8_quantize_fake(x: Tensor, layout: str = "row", format: str = "") -> tuple[Tensor, Tensor]:
    m, k = x.shape
    wide, high = (k + 127) // 128, (m + 127) // 128
    shapes = {"tensor": (), "row": (m,), "group": (m, wide), "block": (high, wide)}
    return x.new_empty(x.shape, dtype=_U8), x.new_empty(shapes[layout], dtype=_F32)


@_operator(
    '(Tensor x, str layout="row", str format="e4m3") -> (Tensor, Tensor)', _fp8_quantize_fake
)
def _fp8_quantize(x: Tensor, layout: str = "row", format: str = "e4m3") -> tuple[Tensor, Tensor]:
    codes, scales = kernels.fp8_quantize(_in(x), layout, format)
    return _out(codes), _out(scales)


@_operator(
    '(Tensor codes, Tensor scales, str layout="row", str format="e4m3") -> Tensor',
    lambda codes, scales, layout="", format="": _floats(codes),
)
def _fp8_dequantize(
    codes: Tensor, scales: Tensor, layout: str = "row", format: str = "e4m3"
) -> Tensor:
    return _out(kernels.fp8_dequantize(_in(codes), _in(scales), layout, format))


@_operator(
    "(Tensor x, Tensor x_scales, Tensor weight, Tensor weight_scales, *, "
    'str x_layout="row", str weight_layout="row", str format="e4m3") -> Tensor',
    lambda x, x_scales, weight, weight_scales, **how: _floats(x, x.shape[0], weight.shape[0]),
)
def _fp8_linear(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    *,
    x_layout: str = "row",
    weight_layout: str = "row",
    format: str = "e4m3",
) -> Tensor:
    given = (_in(x), _in(x_scales), _in(weight), _in(weight_scales))
    return _out(kernels.fp8_linear(*given, layouts=(x_layout, weight_layout), format=format))


# ---- attention ----------------------------------------------------------------------------------


@_operator(
    '(Tensor(a!) cache, Tensor slots, Tensor k, Tensor v, *, str dtype="bfloat16") -> ()',
    lambda cache, slots, k, v, *, dtype="": None,
    writes=("cache",),
)
def _kv_store(
    cache: Tensor, slots: Tensor, k: Tensor, v: Tensor, *, dtype: str = "bfloat16"
) -> None:
    # not _in: a copy would be written instead of the cache, so gaps are refused
    kernels.kv_store(cache.detach(), _in(slots), _in(k), _in(v), dtype=dtype)


@_operator(
    "(Tensor q, Tensor cache, Tensor tables, Tensor sequences, Tensor positions, "
    'Tensor? sinks=None, *, str dtype="bfloat16", float? scale=None, int window=0, '
    "float softcap=0.0, int threads=0) -> Tensor",
    lambda q, *args, **how: _floats(q),
)
def _paged_attention(  # noqa: PLR0917  (a schema's tensors have places)
    q: Tensor,
    cache: Tensor,
    tables: Tensor,
    sequences: Tensor,
    positions: Tensor,
    sinks: Tensor | None = None,
    **how: Any,
) -> Tensor:
    numbers = [_in(x) for x in (tables, sequences, positions)]
    return _out(kernels.paged_attention(_in(q), _in(cache), *numbers, sinks=_in(sinks), **how))


# ---- sampling -----------------------------------------------------------------------------------


@_operator("(Tensor x) -> Tensor", lambda x: x.new_empty(x.shape[:-1], dtype=_I64))
def _argmax(x: Tensor) -> Tensor:
    return _out(kernels.argmax(_in(x)))


@_operator("(Tensor x) -> Tensor", lambda x: x.new_empty(x.shape[:-1], dtype=torch.float64))
def _logsumexp(x: Tensor) -> Tensor:
    return _out(kernels.logsumexp(_in(x)))


@_operator("(Tensor x, float temperature=1.0) -> Tensor", lambda x, temperature=1.0: _floats(x))
def _softmax(x: Tensor, temperature: float = 1.0) -> Tensor:
    return _out(kernels.softmax(_in(x), temperature))


def _select_above_fake(x: Tensor, threshold: float) -> Tensor:
    return x.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=_I64)


@_operator("(Tensor x, float threshold) -> Tensor", _select_above_fake)
def _select_above(x: Tensor, threshold: float) -> Tensor:
    return _out(kernels.select_above(_in(x), threshold))


def _top_k_fake(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape, dtype=_F32), x.new_empty(shape, dtype=_I64)


@_operator("(Tensor x, int k) -> (Tensor, Tensor)", _top_k_fake)
def _top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, places = kernels.top_k(_in(x), k)
    return _out(values), _out(places)
