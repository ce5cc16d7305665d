"""Sampling kernels on user tensors, row by row. Sources: csrc/kernels/cpu/sample.h.

NaN is never chosen; of equal values the lowest index wins. Every instruction set gives the same
bits. argmax and top_k of tensors on a device are computed there (device.py).
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import ConfigError, shown
from llmaccel.kernels import arguments, device
from llmaccel.kernels.arguments import ANYWHERE, Tensor

FIRST = 4096  # values that top_k looks at to find where to cut the rest


def argmax(x: Any, *, isa: str = "auto") -> Tensor:
    """Index of the largest value of each row. x: [..., V]; returns I64 [...].

    A row of nothing but NaN gives 0.
    """
    t = arguments.rows(x, "x", ANYWHERE)
    level = arguments.level(isa)
    y = Tensor.zeros(t.shape[:-1], "I64", t.device)
    if arguments.on_device(t, isa):
        device.best(t, 1, y, None)
        return y
    flat = y.numpy().reshape(-1)
    for i, row in enumerate(_rows(t)):
        flat[i], _ = _core.argmax(level, row)
    return y


def logsumexp(x: Any, *, isa: str = "auto") -> Tensor:
    """log(sum(exp(row))) of each row. x: [..., V]; returns F64 [...].

    float32 exponentials in fixed blocks, summed in double. -inf for a row of nothing but -inf, NaN
    where the largest value is infinite or the row holds NaN.
    """
    t = arguments.rows(x, "x")
    level = arguments.level(isa)
    y = Tensor.zeros(t.shape[:-1], "F64")
    flat = y.numpy().reshape(-1)
    for i, row in enumerate(_rows(t)):
        _, top = _core.argmax(level, row)
        if top == -math.inf:
            flat[i] = math.nan if np.isnan(row).any() else top
        else:
            total = _core.sum_exp(level, row, 1.0, top) if math.isfinite(top) else math.nan
            flat[i] = top + math.log(total)
    return y


def softmax(x: Any, temperature: float = 1.0, *, out: Any = None, isa: str = "auto") -> Tensor:
    """exp(x / temperature) over its sum, row by row. x: [..., V]; returns F32 of its shape.

    temperature > 0. out may be x. Rows without a finite largest value are NaN.
    """
    t = arguments.rows(x, "x")
    level, heat = arguments.level(isa), arguments.positive(temperature, "temperature")
    y = arguments.result(out, t.shape, same=t)
    arguments.copy_into(y, t)
    for row in _rows(y):
        if heat != 1.0:
            _core.softcap(level, row, 1.0 / heat, 0.0)
        _, top = _core.argmax(level, row)
        if not math.isfinite(top):
            row[:] = math.nan
            continue
        total = _core.sum_exp(level, row, 1.0, top)
        _core.exp_sub(level, row, 1.0, top, row)
        _core.softcap(level, row, 1.0 / total, 0.0)
    return y


def select_above(x: Any, threshold: float, *, isa: str = "auto") -> Tensor:
    """Indices of the values above a threshold, ascending. x: [V]; returns I64 [how many].

    threshold: a number, infinities among them, no NaN.
    """
    t = arguments.rows(x, "x")
    if len(t.shape) != 1:
        raise ConfigError(f"x: expected [V], got {list(t.shape)}")
    try:
        number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
        bound = float(threshold) if number else math.nan
    except OverflowError:
        bound = math.inf if threshold > 0 else -math.inf
    if math.isnan(bound):
        raise ConfigError(f"threshold: expected a number, got {shown(threshold)}")
    return Tensor(_above(arguments.level(isa), t.numpy(), bound))


def top_k(x: Any, k: int, *, isa: str = "auto") -> tuple[Tensor, Tensor]:
    """The k largest values of each row, best first, and where they are.

    x: [..., V]; k: 1 to V, on a device to 32. Returns F32 [..., k] and I64 [..., k]. Only values
    above a cut, found in the row's first part, are sorted. NaN comes last.
    """
    t = arguments.rows(x, "x", ANYWHERE)
    n = arguments.integer(k, "k", 1, t.shape[-1])
    level = arguments.level(isa)
    values = Tensor.zeros((*t.shape[:-1], n), "F32", t.device)
    places = Tensor.zeros((*t.shape[:-1], n), "I64", t.device)
    if arguments.on_device(t, isa):
        device.best(t, n, places, values)
        return values, places
    flat_values, flat_places = values.numpy().reshape(-1, n), places.numpy().reshape(-1, n)
    for i, row in enumerate(_rows(t)):
        best = _best(level, row, n)
        flat_places[i], flat_values[i] = best, row[best]
    return values, places


def _best(level: str, row: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest, best first."""
    first = -row[: max(FIRST, k)]
    cut = -float(np.partition(first, k - 1)[k - 1])  # the k-th largest; partition puts NaN last
    found = np.arange(len(row))
    if math.isfinite(cut):
        found = _above(level, row, float(np.nextafter(np.float32(cut), np.float32(-np.inf))))
    return found[np.argsort(-row[found], kind="stable")[:k]]


def _above(level: str, row: np.ndarray, threshold: float) -> np.ndarray:
    """int64 indices of the values above."""
    found = np.empty(min(len(row), FIRST), np.int32)
    n = _core.select_above(level, row, threshold, found)
    if n > len(found):
        found = np.empty(n, np.int32)
        _core.select_above(level, row, threshold, found)
    return found[:n].astype(np.int64)


def _rows(t: Tensor) -> np.ndarray:
    """[rows, V] over the same memory."""
    return t.numpy().reshape(math.prod(t.shape[:-1]), t.shape[-1])
