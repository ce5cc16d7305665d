"""From checkpoint tensors to weight slots: shapes, slices and the few layouts that need a
temporary.

Owns `Source` (where a slot's parts lie in a checkpoint and how they are stored there), the shape of
every slot of `la_slot`, and the walk that yields one slot at a time. Parts are zero-copy row slices
of the mapped file wherever the layout allows; the others (GPT-2's transposed matrices, GPT-NeoX's
interleaved heads, norms stored as w for 1 + w) live as temporaries of that one tensor. Invariant:
every part that comes out has exactly the shape that `slot_shapes` names. The rows of families.py
are written in these terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmaccel.config import ModelConfig
from llmaccel.errors import LoadError, UnsupportedError
from llmaccel.models.checkpoint import RawTensor, quoted
from llmaccel.models.plain import plain_form

MODEL_SLOTS = ("embed", "pos_embed", "final_norm", "final_norm_bias", "head")
LAYER_SLOTS = (
    "attn_norm",
    "attn_norm_bias",
    "qkv",
    "qkv_bias",
    "q_norm",
    "k_norm",
    "o",
    "o_bias",
    "attn_post_norm",
    "ffn_norm",
    "ffn_norm_bias",
    "gate_up",
    "gate_up_bias",
    "down",
    "down_bias",
    "ffn_post_norm",
)
# What la_dtype knows; F64 is converted on the way.
_DTYPES = frozenset(
    (
        "F32",
        "F16",
        "BF16",
        "F64",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "MXFP4",
    )
)


class TensorTable(Protocol):
    """What is asked of a checkpoint."""

    def __contains__(self, name: str) -> bool: ...
    def __getitem__(self, name: str) -> RawTensor: ...
    def names(self) -> list[str]: ...


@dataclass(frozen=True)
class Source:
    """Where a slot comes from.

    names: one checkpoint name per part, or a single one that holds all parts. "{i}" is the layer, a
    leading "/" means that the family's prefix is not put in front, "a|b" are spellings to try in
    order. layout: "rows": as the slot wants it; "transposed": [K, N]; "heads": rows go (head,
    q/k/v, d) instead of (q/k/v, head, d); "minus_one": a vector stored as w - 1.
    """

    names: tuple[str, ...]
    layout: str = "rows"


def source(*names: str, layout: str = "rows") -> Source:
    """Shorthand for the tables."""
    return Source(names, layout)


def slot_shapes(config: ModelConfig, slot: str) -> list[tuple[int, ...]]:
    """Shapes of the parts of `slot`, in `la_slot`'s order."""
    d_model, d_ffn, vocab = config.d_model, config.d_ffn, config.n_vocab
    q, kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    per_head = config.qk_norm == "head"
    ffn_parts = 2 if config.gated else 1
    shapes: dict[str, list[tuple[int, ...]]] = {
        "embed": [(vocab, d_model)],
        "pos_embed": [(config.max_position_embeddings, d_model)],
        "head": [(vocab, d_model)],
        "qkv": [(q, d_model), (kv, d_model), (kv, d_model)],
        "qkv_bias": [(q,), (kv,), (kv,)],
        "q_norm": [(config.d_head if per_head else q,)],
        "k_norm": [(config.d_head if per_head else kv,)],
        "o": [(d_model, q)],
        "gate_up": [(d_ffn, d_model)] * ffn_parts,
        "gate_up_bias": [(d_ffn,)] * ffn_parts,
        "down": [(d_model, d_ffn)],
    }
    return shapes.get(slot, [(d_model,)])


def walk(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """(slot, layer) of every slot that `config` fills; layer 0 for those of the whole model."""
    for slot in MODEL_SLOTS:
        if slot in config.slots:
            yield slot, 0
    for layer in range(config.n_layers):
        for slot in LAYER_SLOTS:
            if slot in config.slots:
                yield slot, layer


def stored_shapes(src: Source, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes that the tensors of `src` have in the checkpoint, one per name."""
    if len(src.names) == len(shapes) and len(shapes) > 1:
        return shapes
    fused = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return [fused[::-1] if src.layout == "transposed" else fused]


class NameTable:
    """Resolves a family's name templates against one checkpoint."""

    def __init__(
        self, tensors: Mapping[str, Source], prefix: str, checkpoint: TensorTable | None
    ) -> None:
        self.tensors = tensors
        self.checkpoint = checkpoint
        self.prefix = prefix
        # A checkpoint of the bare model has the same names without the prefix.
        bare = tensors["embed"].names[0]
        if checkpoint is not None and prefix + bare not in checkpoint and bare in checkpoint:
            self.prefix = ""

    def names(self, slot: str, layer: int) -> list[str]:
        """The checkpoint's names of a slot's tensors; the first spelling where none is there."""
        return [self._resolve(name.replace("{i}", str(layer))) for name in self.tensors[slot].names]

    def _resolve(self, template: str) -> str:
        spellings = [
            name[1:] if name.startswith("/") else self.prefix + name for name in template.split("|")
        ]
        there = [
            name for name in spellings if self.checkpoint is not None and name in self.checkpoint
        ]
        return (there or spellings)[0]


def fill(config: ModelConfig, table: NameTable, slot: str, layer: int) -> list[RawTensor]:
    """The parts of one slot. LoadError names a tensor that is missing or has another shape."""
    src = table.tensors[slot]
    shapes = slot_shapes(config, slot)
    stored = [
        _checked(table.checkpoint, name, shape)
        for name, shape in zip(table.names(slot, layer), stored_shapes(src, shapes), strict=True)
    ]
    if src.layout == "minus_one":
        return [_plus_one(stored[0])]
    if len(stored) == len(shapes) and src.layout == "rows":
        return stored
    if src.layout == "heads":
        return _split_heads(stored[0], config)
    whole = _transpose(stored[0]) if src.layout == "transposed" else stored[0]
    parts, start = [], 0
    for shape in shapes:
        parts.append(whole.rows(start, start + shape[0]))
        start += shape[0]
    return parts


def _checked(checkpoint: TensorTable | None, name: str, shape: tuple[int, ...]) -> RawTensor:
    if checkpoint is None or name not in checkpoint:
        raise LoadError(f"tensor {quoted(name)} is missing; expected {list(shape)}")
    tensor = checkpoint[name]
    if tensor.shape != shape:
        raise LoadError(f"{name}: expected {list(shape)}, got {list(tensor.shape)}")
    weight_dtype(tensor)
    return _from_array(name, tensor.float32()) if tensor.dtype == "F64" else tensor


def weight_dtype(tensor: RawTensor) -> str:
    """The form `tensor` is packed from. UnsupportedError names one that is no weight."""
    if tensor.dtype not in _DTYPES and plain_form(tensor.dtype) is None:
        raise UnsupportedError(f"{tensor.name}: weights of type {tensor.dtype} are not supported")
    return "F32" if tensor.dtype == "F64" else tensor.dtype


def _from_array(name: str, values: np.ndarray) -> RawTensor:
    """A float32 array as a tensor."""
    flat = np.ascontiguousarray(values, dtype="<f4")
    return RawTensor(name, "F32", flat.shape, flat.reshape(-1).view(np.uint8))


def _plus_one(tensor: RawTensor) -> RawTensor:
    # In float32, as the published model adds it: 1 + w has no exact bf16.
    return _from_array(tensor.name, tensor.float32() + np.float32(1))


def _transpose(tensor: RawTensor) -> RawTensor:
    turned = np.ascontiguousarray(tensor.numpy().T)
    return RawTensor(tensor.name, tensor.dtype, turned.shape, turned.reshape(-1).view(np.uint8))


def _split_heads(tensor: RawTensor, config: ModelConfig) -> list[RawTensor]:
    """q, k, v from rows that go (head, q/k/v, d); bytes are moved, so any dtype will do."""
    rows = tensor.shape[0]
    grouped = tensor.data.reshape(config.n_heads, 3, -1)
    return [
        RawTensor(
            tensor.name,
            tensor.dtype,
            (rows // 3, *tensor.shape[1:]),
            np.ascontiguousarray(grouped[:, part]).reshape(-1),
            tensor.order,
            tensor.rounding,
        )
        for part in range(3)
    ]
