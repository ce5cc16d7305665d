"""Kernels of a device on user tensors. Sources: csrc/device.h, backend_kernels.cu of csrc.

The other files of kernels/ check the arguments, which are all on one device, and call these instead
of the CPU's. Everything is asked for on the stream that backend="cuda" uses and done some time
after the call; Tensor.to and __dlpack__ wait as they say, and memory of others that was written to
is done when a call returns. Results are those of the device: close to the CPU's, and the same bits
for a row whatever rows come with it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import UnsupportedError, shown
from llmaccel.kernels.arguments import Tensor, run_core

RMS, LAYER = 0, 1  # LA_NORM_*
ADD, ACT, ACT_MUL, SOFTCAP = 2, 3, 4, 5  # LA_ELEMENT_*
GATES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "clip": 4}  # LA_GATE_*
MOST_BEST = 32  # LA_SAMPLE_TOPS


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, *, kind: int, eps: float
) -> None:
    """Rows of x through a norm, to y."""
    if x.nbytes:
        n, width = math.prod(x.shape[:-1]), x.shape[-1]
        run_core(_core.device_norm, kind, x, weight, bias, y, n, width, eps)


def elements(
    op: int,
    x: Tensor,
    other: Tensor | None,
    y: Tensor,
    *,
    kind: str = "silu",
    scale: float = 1.0,
    cap: float = 0.0,
) -> None:
    """Each element of x, and of the other, to y."""
    if x.nbytes:
        n = math.prod(x.shape)
        run_core(_core.device_elements, op, x, other, y, n, GATES[kind], scale, cap)


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, y: Tensor) -> None:
    """Heads of x turned, to y."""
    if x.nbytes:
        run_core(_core.device_rope, x, cos, sin, y, (*x.shape, cos.shape[1]), interleaved)


def best(x: Tensor, k: int, places: Tensor, values: Tensor | None) -> None:
    """The k best of each row, or without values the best alone."""
    if values is not None and k > MOST_BEST:
        raise UnsupportedError(
            f"k: {shown(k)} is above {MOST_BEST}, the most that is ranked on {x.device}; "
            "take .to('cpu') of x"
        )
    if x.nbytes:
        n, width = math.prod(x.shape[:-1]), x.shape[-1]
        run_core(_core.device_best, x, places, values, n, width, k)


def check_form(dtype: str, place: str) -> None:
    """Pages on a device are bf16."""
    if dtype != "BF16":
        raise UnsupportedError(
            f"dtype: pages on {place} are bfloat16, for others there are no kernels"
        )


def kv_store(cache: Tensor, slots: np.ndarray, k: Tensor, v: Tensor) -> None:
    """Tokens to slots; of those that are named twice the last stays, as on the CPU."""
    _, last = np.unique(slots[::-1], return_index=True)
    once = np.full(slots.shape, -1, np.int32)
    last = len(slots) - 1 - last
    once[last] = slots[last]
    if k.nbytes:
        run_core(_core.device_store, cache, once, k, v, k.shape[1], k.shape[2])


def paged_attention(
    q: Tensor,
    cache: Tensor,
    numbers: tuple[np.ndarray, np.ndarray, np.ndarray],
    y: Tensor,
    sinks: Tensor | None,
    *,
    options: tuple[float, float, int],
) -> None:
    """Queries over the pages of their sequences. numbers: tables, sequences, positions; options:
    scale, softcap, window."""
    tables, owners, at = numbers
    _, heads, d = q.shape
    sizes = (cache.shape[1], heads, d, tables.shape[1])
    if q.nbytes:
        given: tuple[Any, ...] = (q, cache, tables.reshape(-1), owners, at, y, sinks, sizes)
        run_core(_core.device_attend, *given, *options)


def check_activation(activation: str, codes: str) -> None:
    """How rows enter a product there is the weight's affair: as 16 bits of its kind."""
    allowed = ("auto",) if codes == "F16" else ("auto", "bfloat16")
    if activation not in allowed:
        raise UnsupportedError(
            f"activation: {shown(activation)} has no kernel for {codes} weights on a device, "
            f"only {', '.join(allowed)}"
        )


def linear(x: Tensor, core: _core.Packed, bias: Tensor | None, y: Tensor) -> None:
    """Rows of x times a weight that is packed there."""
    if x.nbytes:
        run_core(core.linear, "scalar", "bf16", x, y, bias, 1)
