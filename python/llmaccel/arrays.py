"""A checkpoint as fp32 arrays: what `LLM.from_arrays` takes, whatever the file's formats are.

Owns the way back from slots to the names and layouts of a Hugging Face checkpoint. Invariant: a
model from these arrays computes what the file's does at dtype="float32", up to the order of sums.

Called by users, by the wings and by benchmarks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmaccel.errors import LoadError, UnsupportedError
from llmaccel.loading import prepare
from llmaccel.models.checkpoint import FLOATS, RawTensor, drop_pages
from llmaccel.models.mapping import family_of, iter_slots
from llmaccel.models.slots import NameTable
from llmaccel.options import LoadOptions


def read_arrays(
    model: str | Path, *, revision: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, arrays) of a dense model: the contents of a config.json, and float32 arrays under
    the names of a Hugging Face checkpoint, GGUF blocks dequantized.

    model, revision: as those of LLM. UnsupportedError for a layout that has no such arrays yet
    (experts, latents, transposed or shifted tensors, foreign packings).
    """
    prepared = prepare(LoadOptions(model, revision=revision, load_format="auto"))
    config = prepared.config
    family = family_of(config)
    table = NameTable(family.tensors, family.prefix, None)
    turned = config.gguf and family.gguf_interleaved
    arrays: dict[str, np.ndarray] = {}
    for slot, layer, _, parts in iter_slots(config, prepared.checkpoint):
        names = table.names(slot, layer)
        if table.source(slot, layer).layout != "rows" or config.n_experts or config.kv_rank:
            raise UnsupportedError(f"{names[0]}: arrays of {config.architecture} are not read yet")
        values = [_float32(part) for part in parts]
        if turned and slot in ("qkv", "qkv_bias"):
            heads = (config.n_heads, config.n_kv_heads)
            values[:2] = [_halves(w, n) for w, n in zip(values[:2], heads, strict=True)]
        if len(names) == 1 and len(values) > 1:
            values = [np.concatenate(values)]
        arrays.update(zip(names, values, strict=True))
    kept = {**config.raw, "model_type": family.model_types[0]}
    return kept, arrays


def _float32(part: RawTensor) -> np.ndarray:
    if part.dtype in FLOATS:
        values = part.float32()
    elif part.dtype.startswith("QI") or part.order is not None or len(part.shape) != 2:
        raise UnsupportedError(f"{part.name}: {part.dtype} is not read as an array yet")
    else:
        from llmaccel.kernels import pack

        try:
            packed = pack(part.data, "F32", dtype=part.dtype, shape=part.shape)
        except ValueError as error:
            raise LoadError(f"{part.name}: {error}") from error
        values = np.asarray(packed.dequantize())
    drop_pages(part.data)
    return values


def _halves(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs that are rotated together to halves."""
    half = w.shape[0] // heads // 2
    return np.ascontiguousarray(w.reshape(heads, half, 2, -1).swapaxes(1, 2)).reshape(w.shape)
