"""8-bit floats: E4M3 and E5M2, their scale layouts, and products of two such matrices.
Source: csrc/kernels/cpu/fp8.h.

Codes are uint8, the bits that torch.float8_e4m3fn and float8_e5m2 have. Encoding divides by a
scale, rounds to nearest even and keeps what is too large at the largest finite value (448, 57344);
decoding is exact but for the product with the scale. Every instruction set gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import ConfigError
from llmaccel.kernels import arguments
from llmaccel.kernels.arguments import Tensor, run_core

FORMATS = {"e4m3": 448.0, "e5m2": 57344.0}  # largest finite value
LAYOUTS = ("tensor", "row", "group", "block")
GROUP = 128


def fp8_encode(
    x: Any, format: str = "e4m3", *, scale: float = 1.0, out: Any = None, isa: str = "auto"
) -> Tensor:
    """Codes of x / scale: U8 of x's shape. x: F32, F16 or BF16, which are widened exactly. scale:
    above 0, also as a float32."""
    t = arguments.floats(x, "x")
    codes = arguments.result(out, t.shape, t, dtype="U8")
    by = np.full(1, arguments.positive(scale, "scale"), np.float32)
    level, e5m2 = arguments.level(isa), _e5m2(format)
    if t.nbytes:
        run_core(_core.fp8_encode, level, e5m2, t, by, codes)
    return codes


def fp8_decode(
    codes: Any, format: str = "e4m3", *, scale: float = 1.0, out: Any = None, isa: str = "auto"
) -> Tensor:
    """Values of codes times scale, as in fp8_encode: F32 of the codes' shape."""
    t = _codes(codes, "codes")
    y = arguments.result(out, t.shape, t)
    by = np.full(1, arguments.positive(scale, "scale"), np.float32)
    level, e5m2 = arguments.level(isa), _e5m2(format)
    if t.nbytes:
        run_core(_core.fp8_decode, level, e5m2, y, by, t)
    return y


def fp8_quantize(
    x: Any, layout: str = "row", format: str = "e4m3", *, isa: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(codes U8 [M, K], scales F32): x [M, K] with the largest |x| of each scale at the format's
    largest value.

    layout: "tensor", scales []; "row" (a token, or a weight's channel), [M]; "group" of 128 k of a
    row, [M, ceil(K / 128)]; "block" of 128 x 128, [ceil(M / 128), ceil(K / 128)]. Where all of a
    scale's values are 0 it is 1. ConfigError where a value is not finite.
    """
    arguments.choice(layout, "layout", LAYOUTS)
    level, e5m2 = arguments.level(isa), _e5m2(format)
    values = _matrix(arguments.floats(x, "x"), "x").numpy()
    if not np.isfinite(values).all():
        raise ConfigError("x: holds a value that is not finite")
    rows, cols = _extents(layout, values.shape)
    m, k = values.shape
    padded = np.zeros((-(-m // rows) * rows, -(-k // cols) * cols), np.float32)
    padded[:m, :k] = np.abs(values)
    peaks = padded.reshape(-1, rows, padded.shape[1] // cols, cols).max((1, 3))
    scales = peaks / np.float32(FORMATS[format])
    scales[scales == 0] = 1
    padded[:m, :k] = values
    codes = np.empty(padded.shape, np.uint8)
    spread = np.ascontiguousarray(np.repeat(scales, rows, axis=0))
    run_core(_core.fp8_encode, level, e5m2, padded, spread, codes)
    shape = {"tensor": (), "row": (m,)}.get(layout, scales.shape)
    return Tensor(np.ascontiguousarray(codes[:m, :k])), Tensor(scales.reshape(shape))


def fp8_dequantize(
    codes: Any, scales: Any, layout: str = "row", format: str = "e4m3", *, isa: str = "auto"
) -> Tensor:
    """The values of `fp8_quantize`: F32 [M, K]. ConfigError for scales of another shape, or one
    that is not finite and above 0."""
    arguments.choice(layout, "layout", LAYOUTS)
    return _opened((codes, "codes"), (scales, "scales"), layout, _e5m2(format), isa)


def _opened(
    codes: tuple[Any, str], scales: tuple[Any, str], layout: str, e5m2: bool, isa: str
) -> Tensor:
    """Codes and scales come with the names that their user knows them by."""
    level = arguments.level(isa)
    given = _matrix(_codes(*codes), codes[1]).numpy()
    (m, k), (rows, cols) = given.shape, _extents(layout, given.shape)
    high, wide = -(-m // rows), -(-k // cols)
    shape = {"tensor": (), "row": (m,)}.get(layout, (high, wide))
    factors = arguments.scales(*scales, shape)
    padded = np.zeros((m, wide * cols), np.uint8)
    padded[:, :k] = given
    spread = np.repeat(factors.numpy().reshape(high, wide), rows, axis=0)[:m]
    values = np.empty(padded.shape, np.float32)
    run_core(_core.fp8_decode, level, e5m2, values, np.ascontiguousarray(spread), padded)
    return Tensor(np.ascontiguousarray(values[:, :k]))


def fp8_linear(
    x: Any,
    x_scales: Any,
    weight: Any,
    weight_scales: Any,
    *,
    layouts: tuple[str, str] = ("row", "row"),
    format: str = "e4m3",
    isa: str = "auto",
    threads: int = 0,
) -> Tensor:
    """x W^T of two matrices of codes with their scales: F32 [M, N].

    x: [M, K], weight: [N, K]; layouts: of x's and of the weight's scales. Processors multiply no
    8-bit floats, so both are opened to F32 and multiplied in F32: the product of the dequantized
    operands, to the rounding of fp32 sums (of noise, 8e-7 of it at K = 2048, 2e-6 at 16384).
    """
    from llmaccel.kernels.packed import linear, pack

    if not isinstance(layouts, tuple) or len(layouts) != 2:
        raise ConfigError("layouts: expected one for x and one for the weight")
    for layout in layouts:
        arguments.choice(layout, "layouts", LAYOUTS)
    e5m2 = _e5m2(format)
    a = _opened((x, "x"), (x_scales, "x_scales"), layouts[0], e5m2, isa)
    w = _opened((weight, "weight"), (weight_scales, "weight_scales"), layouts[1], e5m2, isa)
    if a.shape[1] != w.shape[1]:
        raise ConfigError(f"weight: expected [N, {a.shape[1]}], got {list(w.shape)}")
    return linear(a, pack(w, "F32", threads=threads), isa=isa, threads=threads)


def _e5m2(format: str) -> bool:
    return arguments.choice(format, "format", FORMATS) == "e5m2"


def _codes(x: Any, name: str) -> Tensor:
    t = arguments.tensor(x, name)
    arguments.few_enough(t, name)
    if t.dtype not in ("U8", "F8_E4M3", "F8_E5M2"):
        raise ConfigError(f"{name}: expected U8, got {t.dtype}")
    return t


def _matrix(t: Tensor, name: str) -> Tensor:
    if len(t.shape) != 2 or 0 in t.shape:
        raise ConfigError(f"{name}: expected [M, K], got {list(t.shape)}")
    return t


def _extents(layout: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    return {
        "tensor": (shape[0], shape[1]),
        "row": (1, shape[1]),
        "group": (1, GROUP),
        "block": (GROUP, GROUP),
    }[layout]
