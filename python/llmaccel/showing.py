"""Weights of a loaded model by their names: views of packed memory where strides can say how it
lies, else copies.

Owns `ShownWeight` and the way from a checkpoint's name to the slots that are made of it. Invariant:
a view is read-only and holds the memory that it shows: closing or sleeping frees that when the last
view has gone, and update_weights waits for it by refusing. A copy is float32, of what the model
computes with. A base of LLM (llm.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llmaccel import _core
from llmaccel.calls import Calls
from llmaccel.config import ModelConfig
from llmaccel.errors import RequestError, UnsupportedError, shown
from llmaccel.hints import hint
from llmaccel.memory import check_available
from llmaccel.models.checkpoint import quoted
from llmaccel.models.mapping import SCORE, class_tokens
from llmaccel.models.slots import NameTable, slot_shapes, walk

_UNIT = 32  # rows of a unit of packed memory, csrc/kernels/kernels.h
_HALF = 16  # of them gate's, the others up's
_STRIDED = ("rows", "transposed", "pairs", "transposed_pairs")  # layouts that a view can have


@dataclass(frozen=True, eq=False)
class ShownWeight:
    """A weight as LLM.weight gives it.

    name, shape: of the tensor in the checkpoint, [N, K] for a matrix. tensor: its values. is_view:
    whether that is the model's own memory, read-only: F32, F16 or BF16, with axes for units of 32
    rows and pairs of k, whose reshape to `shape` is the tensor; else a copy, F32 of `shape`, codes
    times their scales plus their offsets.
    """

    name: str
    shape: tuple[int, ...]
    tensor: Any
    is_view: bool

    def numpy(self) -> np.ndarray:
        """float32 of `shape`; of a view a copy."""
        if self.tensor.dtype == "BF16":  # which is the upper half of a float32
            bits = np.asarray(memoryview(self.tensor)).astype(np.uint32)
            return (bits << np.uint32(16)).view(np.float32).reshape(self.shape)
        return self.tensor.numpy().astype(np.float32, copy=self.is_view).reshape(self.shape)


class _Use(NamedTuple):
    """A slot that is made of a tensor: of its part, -1: of all of them, in this layout."""

    slot: str
    layer: int
    expert: int
    part: int
    layout: str


class _Part(NamedTuple):
    """A part where it lies, as la_shown of csrc/llmaccel.h has it."""

    memory: Any
    dtype: str | None
    unit_bytes: int
    first: int
    rows: int
    cols: int
    paired: int


class Showing(Calls):
    """The methods of LLM that show its weights."""

    _names: NameTable
    _uses: dict[str, list[_Use]] | None  # made when the first weight is asked for

    def weight_names(self) -> list[str]:
        """Names of the checkpoint's tensors that this model is made of, for weight()."""
        self._driver.check()
        return list(self._known_uses())

    def weight(self, name: str | Sequence[str]) -> Any:
        """A weight by its name in the checkpoint (weight_names() lists them), as a ShownWeight; of
        a list of names a list.

        It is a view of the model's own memory, without a copy, where that can be: vectors, and
        matrices of floats with whole units of rows (32, of gate and up 16). Codes, matrices of all
        experts stacked, and what is stored in other ways than it is used come as copies; is_view
        says which, and ShownWeight how a view is read. Both outlive the LLM. While a view is alive
        update_weights is refused, and closing or sleeping frees no weights; while a copy is made
        requests run, both changes are refused and close() waits. RequestError for a name
        that is not there, LLMAccelError while the LLM sleeps, MemoryPlanError where there is no
        room for a copy, UnsupportedError on backend="cuda".
        """
        self._driver.check()
        if isinstance(name, str):
            return self._shown_weight(name)
        if not isinstance(name, Sequence):
            raise RequestError(f"name: expected a name or a list of names, got {shown(name)}")
        return [self._shown_weight(one) for one in name]

    def _shown_weight(self, name: str) -> ShownWeight:
        known = self._known_uses()
        if not isinstance(name, str) or name not in known:
            near = hint(name, known) if isinstance(name, str) else ""
            raise RequestError(f"name: {shown(name)} is no weight of this model{near}")
        if self._options.backend != "cpu":
            raise UnsupportedError(
                f"weight: not on backend={self._options.backend!r} in this version"
            )
        uses = known[name]
        with self._driver.weights("weight") as model:
            if not uses:
                assert self._score_head is not None
                head = np.array(self._score_head, np.float32)
                return ShownWeight(name, head.shape, _core.Tensor(head), False)
            view = None
            if len(uses) == 1:
                view = _view(
                    [_Part(*model.show(*at)) for at in _parts_of(self._config, uses[0])], uses[0]
                )
            if view is not None:
                return ShownWeight(name, _shape_of(self._config, uses), view, True)
            shape = _shape_of(self._config, uses)
            check_available(f"weight {quoted(name)}", 2 * 4 * math.prod(shape))
            values = _copied(self._config, model, uses).reshape(shape)
            tensor = _core.Tensor(np.ascontiguousarray(values))
            return ShownWeight(name, shape, tensor, False)

    def _known_uses(self) -> dict[str, list[_Use]]:
        """Of each name the slots that are made of it; of a classifier's head, which is none, []."""
        if self._uses is None:
            self._uses = _uses_of(self._config, self._names)
        return self._uses


def _uses_of(config: ModelConfig, table: NameTable) -> dict[str, list[_Use]]:
    found: dict[str, list[_Use]] = {}
    for slot, layer, expert in walk(config):
        names, layout = table.names(slot, layer, expert), table.source(slot, layer).layout
        for part, name in enumerate(names):
            use = _Use(slot, layer, expert, part if len(names) > 1 else -1, layout)
            found.setdefault(name, []).append(use)
    if config.task == "classify" and not class_tokens(config.raw):
        found[SCORE] = []
    return found


def _stored(parts: list[np.ndarray], layout: str, config: ModelConfig) -> np.ndarray:
    """Parts of one slot as a checkpoint of this layout stores them."""
    if layout == "minus_one":
        return parts[0] - np.float32(1)
    if layout == "latent_k":
        return parts[0].reshape(config.n_heads, config.kv_rank, config.d_nope)
    if layout == "latent_v":
        return parts[0].reshape(config.n_heads, config.d_v, config.kv_rank)
    if layout == "heads":
        each = [part.reshape(config.n_heads, config.d_head, -1) for part in parts]
        return np.stack(each, axis=1).reshape(sum(map(len, parts)), *parts[0].shape[1:])
    if layout.endswith("pairs") and len(parts) > 1:
        whole = np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
    else:
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.T if layout.startswith("transposed") else whole


def _view(parts: list[_Part], use: _Use) -> Any:
    """A Tensor over the packed memory of these parts, or None where no strides describe it."""
    one, layout = parts[0], use.layout
    same = all(part.memory.data_ptr() == one.memory.data_ptr() for part in parts)
    if one.dtype is None or not same or layout not in _STRIDED:
        return None
    vector = one.unit_bytes == 0
    wide = 1 if vector or one.dtype == "F32" else 2  # neighbouring k beside each other
    unit = _UNIT if vector else one.unit_bytes // (4 if one.dtype == "F32" else 2)
    rows = sum(part.rows for part in parts)
    if not vector and one.cols % wide:
        return None
    if one.paired:
        if one.rows % _HALF:
            return None
        axes = [(one.rows // _HALF, unit), (_HALF, wide)]
        offset = one.first * wide
        if len(parts) > 1:
            turns = [(2, _HALF * wide)]
            axes = axes + turns if layout.endswith("pairs") else turns + axes
    elif vector:
        axes, offset = [(rows, 1)], one.first
    elif one.first % _UNIT or rows % _UNIT:
        return None
    else:
        axes, offset = [(rows // _UNIT, unit), (_UNIT, wide)], one.first // _UNIT * unit
    depth = [] if vector else [(one.cols // wide, _UNIT * wide), (wide, 1)][:wide]
    axes = depth + axes if layout.startswith("transposed") else axes + depth
    extents, strides = zip(*axes, strict=True)
    return one.memory.strided(one.dtype, offset, extents, strides)


def _parts_of(config: ModelConfig, use: _Use) -> list[tuple[str, int, int, int]]:
    """Places of the parts that one use is of, for the core."""
    every = range(len(slot_shapes(config, use.slot)))
    parts = every if use.part < 0 else (use.part,)
    return [(use.slot, use.layer, use.expert, part) for part in parts]


def _shape_of(config: ModelConfig, uses: list[_Use]) -> tuple[int, ...]:
    """Of the tensor that is used so."""
    use = uses[0]
    if use.layout == "latent_k":
        if len(uses) == 2:
            return (config.n_heads * (config.d_nope + config.d_v), config.kv_rank)
        return (config.n_heads, config.kv_rank, config.d_nope)
    if use.layout == "latent_v":
        return (config.n_heads, config.d_v, config.kv_rank)
    shapes = slot_shapes(config, use.slot)
    shapes = shapes if use.part < 0 else [shapes[use.part]]
    shape = (sum(one[0] for one in shapes), *shapes[0][1:])
    shape = shape[::-1] if use.layout.startswith("transposed") else shape
    return (len(uses), *shape) if len(uses) > 1 else shape


def _copied(config: ModelConfig, model: Any, uses: list[_Use]) -> np.ndarray:
    """The tensor's values, float32; its shape is the caller's business."""
    found = []
    for use in uses:
        shapes = slot_shapes(config, use.slot)
        parts = []
        for place in _parts_of(config, use):
            values = np.empty(shapes[place[3]], np.float32)
            model.copy(*place, values)
            parts.append(values)
        found.append(_stored(parts, use.layout, config))
    if uses[0].layout == "latent_k" and len(uses) == 2:
        return np.concatenate(
            [found[0].transpose(0, 2, 1), found[1]], axis=1
        )  # [H, d_nope + d_v, r]
    return found[0] if len(found) == 1 else np.stack(found)
