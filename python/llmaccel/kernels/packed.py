"""Weights in the core's layout and products with them. Sources: csrc/model/pack.c, gemm*.h.

A packed weight holds units of 32 output columns by all of K, in one layout for one row and for a
thousand. 4- to 8-bit weights stay as wide as they are, exact to their file. A weight from a device
is packed there, in the order that its products want: F16, BF16, and 4 bits in groups of 32 or more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import ConfigError, UnsupportedError, shown
from llmaccel.kernels import arguments, device
from llmaccel.kernels.arguments import ANYWHERE, Tensor, run_core
from llmaccel.recipes import QUANTIZATIONS, number_format

FLOATS = ("F32", "F16", "BF16")
_FLOAT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FORMS = {
    "float32": "f32",
    "bfloat16": "bf16",
    "int8": "i8",
    "int8x2": "i8x2",
    "float64": "f64",
}  # as the core calls them
ACTIVATIONS = ("auto", *FORMS)
GROUPS = (16, 32, 64, 128, 256)
_ROUND_AT_ONCE = 1 << 28  # values; counted in int
MOST_EXTENT = 2**30  # what rounds it up to units, groups or steps still fits an int
# Where a grouped row keeps k of each 8: byte -> k (csrc/kernels/kernels.h).
ORDER8 = np.array([0, 4, 1, 5, 2, 6, 3, 7])
META = np.dtype([("scale", "f4"), ("sum", "f4"), ("isum", "i4"), ("pad", "i4")])


class PackedWeight:
    """A weight matrix [N, K] (rows are outputs, as torch.nn.Linear keeps them); made by `pack`.

    Its bytes are written once, so several threads may use it at a time. layout: what, with shape,
    says how they lie: "F32", "F16", "BF16", a quantization ("int8", "w4g128", ...) or the GGUF
    type of the blocks that were packed.
    """

    def __init__(self, core: _core.Packed, layout: str) -> None:
        self.core = core
        self.layout = layout

    @classmethod
    def over(cls, data: Any, shape: tuple[int, int], layout: str) -> PackedWeight:
        """A weight on bytes that another one's `data` had, without a copy, whoever owns them now.

        data: U8 of packed_shape(shape, layout), row-major, at a multiple of 64 bytes; read where
        it lies and kept alive. shape: (N, K). ConfigError where it does not fit.
        """
        t = arguments.tensor(data, "data")
        wanted = packed_shape(shape, layout)
        if t.dtype != "U8":
            raise ConfigError(f"data: expected U8, got {t.dtype}")
        arguments.expect(t, "data", wanted)
        return cls(run_core(_core.Packed.over, t, *_plan_of(shape, layout)), layout)

    @property
    def data(self) -> Tensor:
        """Its bytes, not a copy: U8 [units, bytes of a unit], a unit being 32 rows of all K.

        What writes there changes the weight. csrc/kernels/kernels.h draws a unit; that of F32 is
        [K, 32], so data.numpy().view(np.float32).reshape(-1, K, 32).transpose(0, 2, 1) is the
        matrix, 32 rows at a time. UnsupportedError on a device, whose order is its own.
        """
        self._need_host("data")
        return Tensor(self.core)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.core.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form, padding to 32 columns included."""
        return self.core.nbytes

    @property
    def format(self) -> dict[str, Any]:
        """What it stores.

        codes: F32, F16, BF16, int4, int5, int6, int8 or fp8; group: k that share a scale,
        0 for floats; scales: F16, F32, F16_I8 (an F16 for 256 k times an int8) or None; offsets:
        groups have one; per_row: one scale for a whole row.
        """
        return self.core.format

    @property
    def device(self) -> str:
        """Where it is, as Tensor.device says it; products take rows that are there."""
        return self.core.device

    def _need_host(self, name: str) -> None:
        if self.device != arguments.HOST:
            raise UnsupportedError(
                f"{name}: this weight is packed on {self.device}, for products there alone"
            )

    def rows(self, ids: Any, *, out: Any = None, isa: str = "auto") -> Tensor:
        """Rows by number, as floats: an embedding lookup. F32 [*ids.shape, K].

        ids: integers of any shape, each in 0..N-1. A value is scale * code + offset, rounded once.
        UnsupportedError on a device.
        """
        self._need_host("ids")
        table = np.asarray(ids)
        if table.dtype.kind not in "iu" and table.size:
            raise ConfigError(f"ids: expected integers, got {table.dtype}")
        n, k = self.shape
        if table.size and not 0 <= int(table.min()) <= int(table.max()) < n:
            raise ConfigError(f"ids: {int(table.min())}..{int(table.max())} is not in 0..{n - 1}")
        y = arguments.result(out, (*table.shape, k))
        level = arguments.level(isa)
        if table.size:
            run_core(self.core.unpack, level, np.ascontiguousarray(table, np.int32).reshape(-1), y)
        return y

    def dequantize(self, *, out: Any = None, isa: str = "auto") -> Tensor:
        """The whole matrix as F32 [N, K]."""
        return self.rows(np.arange(self.shape[0], dtype=np.int32), out=out, isa=isa)

    def __repr__(self) -> str:
        f = self.format
        group = f" in groups of {f['group']}" if f["group"] else ""
        place = "" if self.device == arguments.HOST else f", on {self.device}"
        return f"PackedWeight(shape={self.shape}, {f['codes']}{group}{place})"


def _may_hold(memory: str, dtype: str) -> bool:
    """Whether a tensor of one dtype may be the memory of another: bytes, the same, and words for
    the bfloat16 that NumPy has not."""
    return memory in ("U8", "I8", dtype) or (memory, dtype) == ("U16", "BF16")


def _plan_of(shape: Any, layout: Any) -> tuple[str, int, int, str, str]:
    """(dtype, N, K, format, quantize) that the core packs a layout by."""
    n, k = _extents(shape)
    arguments.choice(layout, "layout", dict.fromkeys((*FLOATS, *QUANTIZATIONS, *_core.DTYPES)))
    quantize = layout if layout in QUANTIZATIONS else "keep"
    return ("F32" if layout in QUANTIZATIONS else layout, n, k, "auto", quantize)


def packed_shape(shape: tuple[int, int], layout: str) -> tuple[int, int]:
    """(units, bytes of a unit) of a packed weight's data, from its (N, K) and its layout."""
    return run_core(_core.Packed.extents, *_plan_of(shape, layout))


def pack(
    weight: Any,
    format: str = "auto",
    *,
    dtype: str | None = None,
    shape: tuple[int, int] | None = None,
    threads: int = 0,
) -> PackedWeight:
    """A weight in the core's layout; the source is copied and may be dropped.

    weight: F32, F16 or BF16 [N, K]; or blocks of a GGUF tensor as bytes, with dtype "Q4_0", "Q4_1",
    "Q5_0", "Q5_1", "Q8_0", "Q2_K" ... "Q6_K" and shape (N, K), K a multiple of the block (32, 256).
    Floats without dtype have a shape of their own, and no other is taken.
    format: what floats become: "F32", "F16", "BF16" (or as LLM's dtype is spelled: "bfloat16",
    "bf16", torch.bfloat16); "int8" or "fp8" (E4M3), a scale per row;
    "w4g128" or "w4g32", 4 bits with a scale per group, "w6g16", 6 bits; "auto" keeps their own.
    Blocks keep their codes, scales and offsets exactly; "F32" dequantizes them. threads: 0
    takes all processors. A weight on a device is packed by the host, for products on that device.

    ConfigError: shapes and sizes that do not fit, values that are not finite where they are to be
    quantized, quantizing blocks again. UnsupportedError: an unknown dtype or format.
    MemoryPlanError: no memory for it.
    """
    t = arguments.tensor(weight, "weight", ANYWHERE)
    if dtype is None:
        if t.dtype not in FLOATS:
            raise ConfigError(f"weight: expected F32, F16 or BF16 (or dtype=), got {t.dtype}")
        if shape is not None and _extents(shape) != t.shape:
            raise ConfigError(f"shape: the weight is {list(t.shape)}, not {shown(shape)}")
        dtype = t.dtype
    elif not isinstance(dtype, str) or not dtype.isprintable():
        raise ConfigError(f"dtype: expected a name, got {shown(dtype)}")
    elif shape is None:
        raise ConfigError("shape: blocks of a GGUF tensor need (N, K)")
    elif dtype not in _core.DTYPES:
        raise UnsupportedError(f"dtype: {dtype:.40} is not a weight format of this build")
    elif not _may_hold(t.dtype, dtype):
        raise ConfigError(f"weight: {t.dtype} is no memory of {shown(dtype)}; give it as bytes")
    n, k = _extents(t.shape if shape is None else shape)
    threads = arguments.count_threads(threads, t.nbytes)
    format = _format(format)
    arguments.choice(format, "format", ("auto", *FLOATS, *QUANTIZATIONS))
    quantize = format if format in QUANTIZATIONS else "keep"
    if quantize != "keep" and dtype not in FLOATS:
        raise ConfigError(f"format: {dtype} blocks are quantized already and stay exact")
    floats = "auto" if format in QUANTIZATIONS else format
    layout = dtype if format == "auto" else format
    try:
        core = run_core(_core.Packed, t.to("cpu"), dtype, n, k, floats, quantize, threads, t)
        return PackedWeight(core, layout)
    except UnsupportedError as error:
        if t.device == arguments.HOST:
            raise
        raise UnsupportedError(f"weight: {error}") from error
    except ConfigError as error:  # the core speaks of the parts of a weight; this one has one
        text = str(error).removeprefix("pack: ").removeprefix("part 0 ")
        raise ConfigError(f"weight: {text}") from error


def linear(
    x: Any,
    weight: PackedWeight,
    bias: Any = None,
    *,
    activation: str = "auto",
    out: Any = None,
    isa: str = "auto",
    threads: int = 0,
) -> Tensor:
    """x W^T + bias, as torch.nn.functional.linear. F32 [..., N].

    x: [..., K]; bias: [N] or None. activation: how rows enter the product, "float32", "bfloat16"
    (rounded to nearest even), "int8" (8-bit weights and below: quantized per row and group,
    integer dots), "int8x2" (what that rounding leaves is quantized again and multiplied too: 15
    bits of a group's largest value) or "float64" (F32 weights: float32 rows, whose products are
    added up in fp64); "auto" is float32 for F32 and F16 weights and bfloat16 for all others. Sums
    are fp32 otherwise, in an order that depends on (N, K) alone; those of int8, int8x2 and float64
    have the same bits on every instruction set. threads: 0 takes all processors where the
    product is large enough to gain; bits do not depend on it. On a device rows enter as float16 for
    F16 weights, those beyond it as its largest, and as bfloat16 for all others.
    """
    if not isinstance(weight, PackedWeight):
        raise ConfigError(f"weight: expected a PackedWeight, got {type(weight).__name__}")
    t = arguments.rows(x, "x", ANYWHERE)
    n, k = weight.shape
    if t.device != weight.device:
        raise ConfigError(f"weight: is packed on {weight.device}, and x is on {t.device}")
    if t.shape[-1] != k:
        raise ConfigError(f"x: expected [..., {k}], got {list(t.shape)}")
    b = None if bias is None else arguments.vector(bias, "bias", n, t.device)
    y = arguments.result(out, (*t.shape[:-1], n), *(t,) if b is None else (t, b))
    if arguments.on_device(t, isa, threads):
        device.check_activation(number_format(activation), weight.format["codes"])
        device.linear(t, weight.core, b, y)
        return y
    level, form = arguments.level(isa), form_of(activation, weight)
    m = t.nbytes // (4 * k)
    threads = arguments.count_threads(threads, weight.nbytes * (1 + m // 16))
    if t.nbytes:
        run_core(weight.core.linear, level, form, t, y, b, threads)
    return y


def quantize_rows(x: Any, group: int = 32, *, isa: str = "auto") -> tuple[Tensor, Tensor]:
    """Rows as int8 with a scale per group: what activation="int8" multiplies with.

    x: [..., K]; group: 16, 32, 64, 128 or 256 values of k (the last group may be shorter). Returns
    codes I8 [..., K] and scales F32 [..., ceil(K / group)]: x is about codes * scale of the group.
    """
    t = arguments.rows(x, "x")
    group = arguments.integer(group, "group", min(GROUPS), max(GROUPS))
    if group not in GROUPS:
        raise ConfigError(f"group: {group!r} is none of {', '.join(map(str, GROUPS))}")
    k, lead = t.shape[-1], t.shape[:-1]
    groups = -(-k // group)
    codes, scales = Tensor.zeros(t.shape, "I8"), Tensor.zeros((*lead, groups), "F32")
    level = arguments.level(isa)
    if t.nbytes:
        raw, pitch, meta = _core.act_rows(level, "i8", t, k, group)
        stored = np.frombuffer(raw, np.int8).reshape(-1, pitch)[:, : -(-k // 8) * 8]
        in_order = np.empty_like(stored).reshape(-1, 8)
        in_order[:, ORDER8] = stored.reshape(-1, 8)
        codes.numpy()[...] = in_order.reshape(len(stored), -1)[:, :k].reshape(t.shape)
        scales.numpy()[...] = np.frombuffer(meta, META)["scale"].reshape(scales.shape)
    return codes, scales


def round_bf16(x: Any, *, isa: str = "auto") -> Tensor:
    """x rounded to bfloat16, nearest even: what activation="bfloat16" multiplies with.

    x: any shape. Returns BF16 of that shape, which torch.from_dlpack reads.
    """
    t = arguments.floats(x, "x")
    y = Tensor.zeros(t.shape, "BF16")
    level = arguments.level(isa)
    if not t.nbytes:
        return y
    source, target = memoryview(t).cast("B"), memoryview(y).cast("B")
    for at in range(0, t.nbytes, 4 * _ROUND_AT_ONCE):
        piece = source[at : at + 4 * _ROUND_AT_ONCE].cast("f")
        raw, _, _ = _core.act_rows(level, "bf16", piece, len(piece), 0)
        target[at // 2 : at // 2 + 2 * len(piece)] = raw[: 2 * len(piece)]
    return y


def _extents(shape: Any) -> tuple[int, int]:
    """(N, K) of what a caller gave as one."""
    try:
        extents = tuple(shape)
    except TypeError:
        raise ConfigError(f"shape: expected (N, K), got {shown(shape)}") from None
    if len(extents) != 2:
        raise ConfigError(f"shape: expected [N, K], got {list(extents)}")
    n, k = (arguments.integer(extent, "shape", 1, MOST_EXTENT) for extent in extents)
    return n, k


def _format(format: Any) -> Any:
    """The core's name of a format, however LLM's options spell it; the rest as it is."""
    name = number_format(format)
    return _FLOAT_NAMES.get(name, name) if isinstance(name, str) else name


def form_of(activation: str, weight: PackedWeight) -> str:
    """How rows enter, for the core, with "auto" decided."""
    codes = weight.format["codes"]
    floats = {"F32": ("float32", "float64"), "F16": ("float32",)}
    floats |= dict.fromkeys(("BF16", "fp8"), ("bfloat16",))
    allowed = floats.get(codes, ("bfloat16", "int8", "int8x2"))
    activation = number_format(activation)
    arguments.choice(activation, "activation", ACTIVATIONS)
    chosen = allowed[0] if activation == "auto" else activation
    if chosen not in allowed:
        raise ConfigError(
            f"activation: {codes} weights take {', '.join(allowed)} rows, not {activation}"
        )
    return FORMS[chosen]
