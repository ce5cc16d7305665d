"""Layers with experts, piece by piece: routing, and products of many experts at once. Sources:
csrc/kernels/route.h, csrc/python/py_kernels_moe.c.

Both layouts of grouped products are DeepGEMM's: rows of all experts one after another with an index
per row (`grouped_linear_contiguous`), or a block of rows per expert with a count
(`grouped_linear_masked`). A row's bits are those that `linear` gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.config import MAX_EXPERTS
from llmaccel.errors import ConfigError, UnsupportedError
from llmaccel.kernels import arguments
from llmaccel.kernels.arguments import Tensor, run_core
from llmaccel.kernels.packed import PackedWeight, form_of, pack

SCORES = ("softmax", "sigmoid")


class PackedExperts:
    """Weights of experts, all [N, K] and in one format; made by `pack_experts`."""

    def __init__(self, weights: Iterable[PackedWeight]) -> None:
        if not isinstance(weights, Iterable):
            raise ConfigError(f"weights: expected PackedWeights, got {type(weights).__name__}")
        self._weights = list(weights)
        if not self._weights or not all(isinstance(w, PackedWeight) for w in self._weights):
            raise ConfigError("weights: expected at least one PackedWeight")
        first = self._weights[0]
        for i, w in enumerate(self._weights):
            if w.device != arguments.HOST:
                raise UnsupportedError(
                    f"weights: {i} is packed on {w.device}, where experts have no kernels"
                )
            if w.shape != first.shape or w.format != first.format:
                raise ConfigError(f"weights: {i} is {w!r}, the first {first!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, K)."""
        return (len(self._weights), *self._weights[0].shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form of all experts."""
        return sum(w.nbytes for w in self._weights)

    @property
    def format(self) -> dict[str, Any]:
        """As PackedWeight.format."""
        return self._weights[0].format

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, expert: int) -> PackedWeight:
        return self._weights[expert]

    def __repr__(self) -> str:
        return f"PackedExperts({len(self)} x {self._weights[0]!r})"


def pack_experts(weight: Any, format: str = "auto", *, threads: int = 0) -> PackedExperts:
    """Weights of experts in the core's layout; the source is copied and may be dropped.

    weight: F32, F16 or BF16 [E, N, K]. format, threads, errors: as pack. GGUF blocks are packed
    expert by expert: PackedExperts(pack(...) for ...).
    """
    t = arguments.tensor(weight, "weight")
    if len(t.shape) != 3 or 0 in t.shape:
        raise ConfigError(f"weight: expected [E, N, K], got {list(t.shape)}")
    return PackedExperts(pack(t[e], format, threads=threads) for e in range(t.shape[0]))


def route(
    logits: Any,
    k: int,
    *,
    score: str = "softmax",
    normalize: bool = False,
    scale: float = 1.0,
    correction: Any = None,
    groups: int = 1,
    groups_used: int = 1,
    group_best: int = 1,
    isa: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Experts of every token and what they count: I32 [T, k], best first, and F32 [T, k].

    logits: [T, E]. score: of an expert, softmax over all or sigmoid of its logit. The k of largest
    score + correction ([E] or None) are chosen, ties by the lower index; with groups > 1 only from
    the groups_used best of that many groups of neighbours, a group being worth its group_best (1 or
    2) largest together. They count their score, divided by the sum of the chosen ones' if
    `normalize`, times scale (above 0). A correction is no NaN; -inf leaves an expert out. A token
    with a NaN logit gets NaN weights. Every instruction set gives the same bits.

    Mixtral and Qwen3-MoE: normalize=True. DeepSeek-V3, GLM-4.5: score="sigmoid", normalize=True,
    correction, scale, groups, groups_used, group_best=2.
    """
    t = arguments.rows(logits, "logits")
    if len(t.shape) != 2:
        raise ConfigError(f"logits: expected [T, E], got {list(t.shape)}")
    tokens, experts = t.shape
    arguments.integer(experts, "logits", 1, MAX_EXPERTS)
    k = arguments.integer(k, "k", 1, experts)
    groups = arguments.integer(groups, "groups", 1, experts)
    if experts % groups:
        raise ConfigError(f"groups: {groups} do not divide {experts} experts")
    size = experts // groups
    groups_used = arguments.integer(groups_used, "groups_used", 1, groups)
    if groups_used * size < k:
        raise ConfigError(f"groups_used: {groups_used} groups of {size} experts offer no {k}")
    group_best = arguments.integer(group_best, "group_best", 1, min(2, size))
    bias = None if correction is None else arguments.vector(correction, "correction", experts)
    if bias is not None and np.isnan(bias.numpy()).any():
        raise ConfigError("correction: holds a NaN")
    rule = (
        experts,
        k,
        arguments.choice(score, "score", SCORES) == "sigmoid",
        arguments.switch(normalize, "normalize"),
        arguments.positive(scale, "scale"),
        groups,
        groups_used,
        group_best,
    )
    chosen, weights = Tensor.zeros((tokens, k), "I32"), Tensor.zeros((tokens, k), "F32")
    level = arguments.level(isa)
    if tokens:
        run_core(_core.route, level, t, bias, chosen, weights, tokens, rule)
    return chosen, weights


def grouped_linear_contiguous(
    x: Any,
    experts: PackedExperts,
    m_indices: Any,
    *,
    activation: str = "auto",
    out: Any = None,
    isa: str = "auto",
    threads: int = 0,
) -> Tensor:
    """Row i of x times expert m_indices[i], as x[i] W^T. F32 [M, N].

    x: [M, K]. m_indices: integers [M], each an expert or -1: such a row of `out` stays as it is (0
    in a fresh result), whatever x holds. Rows of one expert should lie together; segments need no
    alignment. activation, threads: as linear.
    """
    t = arguments.rows(x, "x")
    count, n, k = _experts(experts).shape
    if len(t.shape) != 2 or t.shape[1] != k:
        raise ConfigError(f"x: expected [M, {k}], got {list(t.shape)}")
    index = _integers(m_indices, "m_indices", (t.shape[0],), -1, count - 1)
    borders = np.flatnonzero(np.diff(index)) + 1
    first = np.concatenate([[0], borders]) if len(index) else np.empty(0, np.int64)
    rows = np.diff(np.concatenate([first, [len(index)]]))
    segments = np.stack([index[first], first, rows], 1)[index[first] >= 0]
    y = arguments.result(out, (t.shape[0], n), t)
    _multiply(t, experts, segments, y, (activation, isa, threads))
    return y


def grouped_linear_masked(
    x: Any,
    experts: PackedExperts,
    masked_m: Any,
    *,
    activation: str = "auto",
    out: Any = None,
    isa: str = "auto",
    threads: int = 0,
) -> Tensor:
    """The first masked_m[e] rows of x[e] times expert e, as x[e] W^T. F32 [E, max_m, N].

    x: [E, max_m, K]. masked_m: integers [E], each in 0..max_m; rows of `out` beyond them stay as
    they are (0 in a fresh result), whatever x holds. activation, threads: as linear.
    """
    t = arguments.rows(x, "x")
    count, n, k = _experts(experts).shape
    if len(t.shape) != 3 or t.shape[0] != count or t.shape[2] != k:
        raise ConfigError(f"x: expected [{count}, max_m, {k}], got {list(t.shape)}")
    most = t.shape[1]
    rows = _integers(masked_m, "masked_m", (count,), 0, most)
    ids = np.arange(count)
    segments = np.stack([ids, ids * most, rows], 1)[rows > 0]
    y = arguments.result(out, (count, most, n), t)
    _multiply(t, experts, segments, y, (activation, isa, threads))
    return y


def _experts(experts: Any) -> PackedExperts:
    if not isinstance(experts, PackedExperts):
        raise ConfigError(f"experts: expected PackedExperts, got {type(experts).__name__}")
    return experts


def _integers(value: Any, name: str, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """int64 of a shape, each in low..high."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu" and array.size:
        raise ConfigError(f"{name}: expected integers, got {array.dtype}")
    if array.shape != shape:
        raise ConfigError(f"{name}: expected {list(shape)}, got {list(array.shape)}")
    if array.size and not low <= int(array.min()) <= int(array.max()) <= high:
        raise ConfigError(f"{name}: {int(array.min())}..{int(array.max())} is not in {low}..{high}")
    return array.astype(np.int64)


def _multiply(
    x: Tensor,
    experts: PackedExperts,
    segments: np.ndarray,
    y: Tensor,
    how: tuple[str, str, int],
) -> None:
    activation, isa, threads = how
    form, level = form_of(activation, experts[0]), arguments.level(isa)
    rows = int(segments[:, 2].sum())
    threads = arguments.count_threads(threads, experts[0].nbytes * (len(segments) + rows // 16))
    if rows == 0:
        return
    flat = np.ascontiguousarray(segments, np.int32)
    m = math.prod(x.shape[:-1])
    weights = [w.core for w in experts]
    run_core(_core.grouped_linear, level, form, weights, x, y, flat, m, len(flat), threads)
