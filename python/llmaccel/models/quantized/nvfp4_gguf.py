"""NVFP4 blocks of GGUF files: 4-bit floats (E2M1) in groups of 16 under E4M3 scales.

A block is 64 k in 36 bytes: four scales without sign, then eight bytes for each 16 k, element j in
the low and j + 8 in the high nibble of byte j. X.scale F32, where the file has it, multiplies the
tensor X.weight, or each of its experts; X.input_scale is for rows that others round. Layout as
published by ggml. Here and not in the core because of that second tensor.
"""

from __future__ import annotations

import numpy as np

from llmaccel.errors import LoadError
from llmaccel.models.checkpoint import drop_pages
from llmaccel.models.quantized.linear import Codes, Linear, header, make_form, taken
from llmaccel.models.quantized.mx import E4M3
from llmaccel.models.slots import TensorTable

_BLOCK, _BYTES, _SCALES = 64, 36, 4


def find_linears(table: TensorTable) -> list[Linear]:
    """Every tensor of that type."""
    return [_linear(table, name) for name in table.names() if table[name].dtype == "NVFP4"]


def _linear(table: TensorTable, name: str) -> Linear:
    shape = table[name].shape
    if len(shape) not in (2, 3) or shape[-1] % _BLOCK:
        raise LoadError(f"{name}: expected rows of whole blocks of {_BLOCK}, got {list(shape)}")
    k, stacked = shape[-1], len(shape) == 3
    module = name.removesuffix(".weight")
    outer = f"{module}.scale" if f"{module}.scale" in table else None
    if outer is not None:
        header(table, outer, ("F32",), (shape[0] if stacked else 1,))
    more = [outer, f"{module}.input_scale"]
    sources = (name, *(own for own in more if own is not None and own in table))

    def some(start: int, stop: int) -> Codes:
        data = table[name].rows(start, stop).data
        blocks = data.reshape(-1, k // _BLOCK, _BYTES).copy()
        drop_pages(data)
        pairs = blocks[:, :, _SCALES:].reshape(-1, k // 16, 8)
        q = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(-1, k)
        code = blocks[:, :, :_SCALES].reshape(-1, k // 16) & 127
        scale = np.where(code == 127, np.float32(0), E4M3[code])
        if outer is not None:
            numbers = taken(table[outer])
            numbers = np.repeat(numbers[start:stop], shape[1])[:, None] if stacked else numbers
            scale = scale * numbers
        return Codes(q, scale)

    form = make_form(name, "E2M1", 16, k, half=outer is None)
    return Linear(name, shape, form, 4, 16, sources, lambda: some(0, shape[0]), None, some)
