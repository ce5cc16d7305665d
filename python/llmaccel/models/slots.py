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
from llmaccel.models.latent import latent_half
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
    "mla_in",
    "mla_in_bias",
    "mla_q_norm",
    "mla_kv_norm",
    "mla_q",
    "mla_uk",
    "mla_uv",
    "sinks",
    "router",
    "router_bias",
    "router_correction",
    "shared_gate_up",
    "shared_down",
    "expert_gate_up",
    "expert_gate_up_bias",
    "expert_down",
    "expert_down_bias",
)
# Layers have the first or, where they have experts, the second.
DENSE_SLOTS = frozenset(("gate_up", "gate_up_bias", "down", "down_bias"))
MOE_SLOTS = frozenset(LAYER_SLOTS[LAYER_SLOTS.index("router") :])
LATENT_LAYOUTS = ("latent_k", "latent_v")
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
    def dtypes_of(self, names: list[str]) -> list[str]: ...
    def names(self) -> list[str]: ...


@dataclass(frozen=True)
class Source:
    """Where a slot comes from.

    names: one checkpoint name per part, or a single one that holds all parts. "{i}" is the layer,
    "{e}" the expert; names of an expert's slot without it hold all experts, stacked. A leading "/"
    means that the family's prefix is not put in front, "a|b" are spellings to try in order. layout:
    "rows": as the slot wants it; "transposed": [K, N]; "heads": rows go (head, q/k/v, d) instead of
    (q/k/v, head, d); "minus_one": a vector stored as w - 1; "pairs": gate and up take turns;
    "transposed_pairs": both; "latent_k" and "latent_v": the halves of MLA's kv_b, whose rows go
    (head, d_nope + d_v). other: another way of storing it, meant where its first
    tensor is there and this one's is not.
    """

    names: tuple[str, ...]
    layout: str = "rows"
    other: Source | None = None


def source(*names: str, layout: str = "rows", other: Source | None = None) -> Source:
    """Shorthand for the tables."""
    return Source(names, layout, other)


def slot_shapes(config: ModelConfig, slot: str) -> list[tuple[int, ...]]:
    """Shapes of the parts of `slot`, of one expert's, in `la_slot`'s order."""
    d_model, d_ffn, vocab = config.d_model, config.d_ffn, config.n_vocab
    heads, rank = config.n_heads, config.kv_rank
    q, kv = heads * config.d_head, config.n_kv_heads * config.d_head
    made_of, latent = config.q_rank or q, rank + config.d_rope
    per_head = config.qk_norm == "head"
    ffn_parts = 2 if config.gated else 1
    experts, d_expert, d_shared = config.n_experts, config.d_expert, config.d_shared
    shapes: dict[str, list[tuple[int, ...]]] = {
        "embed": [(vocab, d_model)],
        "pos_embed": [(config.max_position_embeddings, d_model)],
        "head": [(vocab, d_model)],
        "qkv": [(q, d_model), (kv, d_model), (kv, d_model)],
        "qkv_bias": [(q,), (kv,), (kv,)],
        "q_norm": [(config.d_head if per_head else q,)],
        "k_norm": [(config.d_head if per_head else kv,)],
        "o": [(d_model, heads * config.d_v if config.attn == "latent" else q)],
        "gate_up": [(d_ffn, d_model)] * ffn_parts,
        "gate_up_bias": [(d_ffn,)] * ffn_parts,
        "down": [(d_model, d_ffn)],
        "mla_in": [(made_of, d_model), (latent, d_model)],
        "mla_in_bias": [(made_of,), (latent,)],
        "mla_q_norm": [(config.q_rank,)],
        "mla_kv_norm": [(rank,)],
        "mla_q": [(q, config.q_rank)],
        "mla_uk": [(heads * rank, config.d_nope)],
        "mla_uv": [(heads * config.d_v, rank)],
        "sinks": [(config.n_heads,)],
        "router": [(experts, d_model)] + [(1, d_model)] * config.shared_gate,
        "router_bias": [(experts,)],
        "router_correction": [(experts,)],
        "shared_gate_up": [(d_shared, d_model)] * ffn_parts,
        "shared_down": [(d_model, d_shared)],
        "expert_gate_up": [(d_expert, d_model)] * ffn_parts,
        "expert_gate_up_bias": [(d_expert,)] * ffn_parts,
        "expert_down": [(d_model, d_expert)],
    }
    return shapes.get(slot, [(d_model,)])


def places(config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """(slot, layer, how many experts have it) of every slot that `config` fills; layer 0 for those
    of the whole model, 1 for those that are no expert's."""
    for slot in MODEL_SLOTS:
        if slot in config.slots:
            yield slot, 0, 1
    for layer, desc in enumerate(config.layers):
        for slot in LAYER_SLOTS:
            if slot in config.slots and slot not in (DENSE_SLOTS if desc.moe else MOE_SLOTS):
                yield slot, layer, config.n_experts if is_expert(slot) else 1


def walk(config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """(slot, layer, expert) of the same slots, one expert's at a time, expert 0 for those that are
    no expert's."""
    for slot, layer, count in places(config):
        for expert in range(count):
            yield slot, layer, expert


def is_expert(slot: str) -> bool:
    """Whether a layer has the slot once for each expert."""
    return slot.startswith("expert_")


def stored_shapes(
    config: ModelConfig, src: Source, shapes: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Shapes that the tensors of `src` have in the checkpoint, one per name."""
    if src.layout in LATENT_LAYOUTS:
        return [(config.n_heads * (config.d_nope + config.d_v), config.kv_rank)]
    if len(src.names) == len(shapes) and len(shapes) > 1:
        return shapes
    fused = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return [fused[::-1] if src.layout.startswith("transposed") else fused]


class NameTable:
    """Resolves a family's name templates against one checkpoint."""

    def __init__(
        self,
        tensors: Mapping[str, Source],
        prefix: str,
        checkpoint: TensorTable | None,
        outer: str = "",
    ) -> None:
        self.tensors = tensors
        self.checkpoint = checkpoint
        self.prefix = prefix
        # a layer may have hundreds of experts
        self._found: dict[tuple[str, int], Source] = {}
        self._resolved: dict[tuple[str, int], list[str]] = {}
        # A checkpoint of the bare model has the same names without the prefix.
        bare = tensors["embed"].names[0]
        if checkpoint is not None and prefix + bare not in checkpoint and bare in checkpoint:
            self.prefix = ""
        # One of a class that sees as well has them behind another prefix.
        seeing = checkpoint is not None and outer + prefix + bare in checkpoint
        self.outer = outer if seeing else ""

    def source(self, slot: str, layer: int) -> Source:
        """The way in which this checkpoint stores a slot; the usual one where none is there."""
        found = self._found.get((slot, layer))
        if found is None:
            found = first = self.tensors[slot]
            while found.other is not None and not self._has(found, layer):
                found = found.other
            found = found if found is first or self._has(found, layer) else first
            self._found[slot, layer] = found
        return found

    def _has(self, src: Source, layer: int) -> bool:
        return self._is_there(self._resolve(src.names[0].replace("{i}", str(layer))))

    def _is_there(self, name: str) -> bool:
        return self.checkpoint is not None and name.replace("{e}", "0") in self.checkpoint

    def names(self, slot: str, layer: int, expert: int = 0) -> list[str]:
        """The checkpoint's names of a slot's tensors; the first spelling where none is there. All
        experts of a layer are spelled as its first one."""
        return [name.replace("{e}", str(expert)) for name in self._templates(slot, layer)]

    def names_of_all(self, slot: str, layer: int, count: int) -> list[list[str]]:
        """Of each tensor of a slot its names for `count` experts."""
        numbers = [str(expert) for expert in range(count)]
        return [
            [name.replace("{e}", number) for number in numbers]
            for name in self._templates(slot, layer)
        ]

    def _templates(self, slot: str, layer: int) -> list[str]:
        resolved = self._resolved.get((slot, layer))
        if resolved is None:
            names = self.source(slot, layer).names
            resolved = [self._resolve(name.replace("{i}", str(layer))) for name in names]
            self._resolved[slot, layer] = resolved
        return resolved

    def _resolve(self, template: str) -> str:
        spellings = [
            self.outer + (name[1:] if name.startswith("/") else self.prefix + name)
            for name in template.split("|")
        ]
        if len(spellings) == 1:
            return spellings[0]
        return next(filter(self._is_there, spellings), spellings[0])


class PartTable(NameTable):
    """The same of some of a checkpoint's tensors, which may be those of one expert, or lack the
    embedding; so prefix and outer are what they are said to be."""

    def __init__(
        self, tensors: Mapping[str, Source], prefix: str, checkpoint: TensorTable, outer: str
    ) -> None:
        super().__init__(tensors, prefix, checkpoint, outer)
        self.prefix, self.outer = prefix, outer
        self._of_some = {any_of for name in checkpoint.names() for any_of in _with_any(name)}

    def count(self, config: ModelConfig) -> int:
        """Slots of which something is there, those of experts once."""
        return sum(self._has(self.source(slot, at), at) for slot, at, _ in places(config))

    def _has(self, src: Source, layer: int) -> bool:
        names = [self._resolve(name.replace("{i}", str(layer))) for name in src.names]
        return any(map(self._is_there, names))

    def _is_there(self, name: str) -> bool:
        assert self.checkpoint is not None
        return name in self.checkpoint or name in self._of_some


def _with_any(name: str) -> Iterator[str]:
    """A name with "{e}" in the place of each of its numbers."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            yield ".".join((*parts[:i], "{e}", *parts[i + 1 :]))


def fill(
    config: ModelConfig, table: NameTable, slot: str, layer: int, expert: int = 0
) -> list[RawTensor]:
    """The parts of one slot. LoadError names a tensor that is missing or has another shape."""
    src = table.source(slot, layer)
    shapes = slot_shapes(config, slot)
    if src.layout in LATENT_LAYOUTS:
        (name,) = table.names(slot, layer)
        keys = src.layout == "latent_k"
        shape = stored_shapes(config, src, shapes)[0]
        return [latent_half(_there(table.checkpoint, name, shape), config, keys)]
    stack = config.n_experts if is_stacked(src, slot) else 0
    stored = []
    names = table.names(slot, layer, expert)
    for name, shape in zip(names, stored_shapes(config, src, shapes), strict=True):
        tensor = _checked(table.checkpoint, name, (stack, *shape) if stack else shape)
        if stack:
            tensor = tensor.rows(expert, expert + 1)
        if tensor.dtype == "F64":
            tensor = _from_array(name, tensor.float32())
        rows = (tensor.order, tensor.rounding)
        stored.append(RawTensor(name, tensor.dtype, shape, tensor.data, *rows))
    if src.layout == "minus_one":
        return [_plus_one(stored[0])]
    if len(stored) == len(shapes) and src.layout == "rows":
        return stored
    if src.layout == "heads":
        return _split_heads(stored[0], config)
    whole = _transpose(stored[0]) if src.layout.startswith("transposed") else stored[0]
    if src.layout.endswith("pairs") and len(shapes) > 1:
        return _split_pairs(whole)
    parts, start = [], 0
    for shape in shapes:
        parts.append(whole.rows(start, start + shape[0]))
        start += shape[0]
    return parts


def is_stacked(src: Source, slot: str) -> bool:
    """Whether a tensor of `src` holds all experts."""
    return is_expert(slot) and "{e}" not in src.names[0]


def _there(checkpoint: TensorTable | None, name: str, shape: tuple[int, ...]) -> RawTensor:
    if checkpoint is None or name not in checkpoint:
        raise LoadError(f"tensor {quoted(name)} is missing; expected {list(shape)}")
    tensor = checkpoint[name]
    weight_dtype(name, tensor.dtype)
    return tensor


def _checked(checkpoint: TensorTable | None, name: str, shape: tuple[int, ...]) -> RawTensor:
    tensor = _there(checkpoint, name, shape)
    # llama.cpp's files drop dimensions of 1.
    if tensor.shape != shape and (shape[0] != 1 or tensor.shape != shape[1:]):
        raise LoadError(f"{name}: expected {list(shape)}, got {list(tensor.shape)}")
    return tensor


def weight_dtype(name: str, dtype: str) -> str:
    """The form that a tensor is packed from. UnsupportedError names one that is no weight."""
    if dtype not in _DTYPES and plain_form(dtype) is None:
        raise UnsupportedError(f"{name}: weights of type {dtype} are not supported")
    return "F32" if dtype == "F64" else dtype


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


def _split_pairs(tensor: RawTensor) -> list[RawTensor]:
    """Gate and up from rows (or values) that take turns."""
    rows = tensor.shape[0] // 2
    turns = tensor.data.reshape(rows, 2, -1)
    return [
        RawTensor(
            tensor.name,
            tensor.dtype,
            (rows, *tensor.shape[1:]),
            np.ascontiguousarray(turns[:, part]).reshape(-1),
        )
        for part in range(2)
    ]


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
