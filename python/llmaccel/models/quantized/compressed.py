"""compressed-tensors: schemes for groups of layers, as the library of that name writes them.

Formats: pack-quantized (weight_packed int32 [N, K * bits / 32] of codes along k, low bits first and
about 2^(bits - 1); weight_scale; weight_zero_point packed the same way along n; weight_shape),
int-quantized and naive-quantized (weight I8), float-quantized (weight F8_E4M3), nvfp4- and
mxfp4-pack-quantized (see mx.py). Scales are of a tensor, a row (channel), groups along k or blocks.
input_activations are checked and then left to the activation option: rows are converted per group
of 128 or finer, never by a file's static scale, but for activation="checkpoint".
Sparse formats and transforms are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmaccel.errors import LoadError, UnsupportedError
from llmaccel.models.checkpoint import quoted
from llmaccel.models.plain import PlainForm
from llmaccel.models.quantized.fp8 import SCALES, e4m3_linear
from llmaccel.models.quantized.gptq import sorted_columns
from llmaccel.models.quantized.linear import (
    FLOATS,
    Codes,
    Foretold,
    Linear,
    Rounding,
    Settings,
    fields,
    header,
    make_form,
    matrix,
    spread_scale,
    taken,
)
from llmaccel.models.quantized.mx import mxfp4_packed, nvfp4
from llmaccel.models.quantized.names import ModuleNames
from llmaccel.models.slots import TensorTable

_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "dense",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)
_PACKED = ".weight_packed"
# Beside the weights: scales of activations and of the KV cache, which nothing here reads.
_UNREAD = (
    "input_global_scale",
    "input_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
)


@dataclass(frozen=True)
class _Weights:
    """A scheme's weights. block: rows and columns that share a scale, as `spread_scale` has it."""

    bits: int
    kind: str
    sym: bool
    block: tuple[int, int]
    actorder: bool
    rounding: Rounding | None = None


@dataclass(frozen=True)
class _Scheme:
    targets: frozenset[str]
    matched: ModuleNames  # what the expressions among the targets mean
    weights: _Weights | None


def _layers(config: Settings) -> tuple[ModuleNames, list[_Scheme]]:
    """(layers that stay floats, the schemes of the others)."""
    config.choice("format", (*_FORMATS, None))
    config.choice("quantization_status", ("compressed", "frozen", None))
    for key in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        value = config.get(key)
        if value and value not in ({"format": "dense"}, {"config_groups": {}}):
            raise config.unsupported(key, "weights are read as they are stored")
    ignored = ModuleNames(config.names("ignore"), config.where)
    groups = config.get("config_groups")
    schemes = [
        _scheme(value, f"{config.where}: {name[:80]!a}")
        for name, value in Settings(groups or {}, f"{config.where}: config_groups").raw.items()
    ]
    config.done("kv_cache_scheme", "global_compression_ratio", "version", "run_compressed")
    return ignored, schemes


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every layer with packed, I8 or E4M3 weights."""
    ignored, schemes = _layers(config)
    found = []
    for name in table.names():
        module = name.removesuffix(_PACKED)
        if module == name:
            module = name.removesuffix(".weight")
            if module == name or table[name].dtype not in ("I8", "F8_E4M3"):
                continue
        if module in ignored:
            raise LoadError(f"{name}: {config.where}: ignore says that this layer is not quantized")
        weights = _weights_of(module, schemes)
        if weights is None:
            raise LoadError(f"{name}: no group of {config.where} has this layer as a target")
        found.append(_linear(table, module, name, weights))
    return found


def foretell(config: Settings, half: bool) -> Foretold:
    """half: scales are fp16, as the model's floats."""
    ignored, schemes = _layers(config)

    def form(module: str, k: int) -> PlainForm | None:
        weights = None if module in ignored else _weights_of(module, schemes)
        if weights is None:
            return None
        group = weights.block[1] or k
        if weights.kind == "float" and weights.bits == 4:
            return make_form(module, "MX4" if group == 32 else "E2M1", group, k)
        if weights.kind == "float":
            return make_form(module, "F8", group, k)
        return _integer_form(module, weights, k, half=half, ordered=weights.actorder)

    return form


def _integer_form(name: str, weights: _Weights, k: int, *, half: bool, ordered: bool) -> PlainForm:
    codes, group = "I8" if weights.bits == 8 else "I4", weights.block[1] or k
    return make_form(name, codes, group, k, offset=not weights.sym, half=half, ordered=ordered)


def _scheme(raw: Any, where: str) -> _Scheme:
    group = Settings(raw, where)
    targets = group.names("targets")
    group.choice("format", (*_FORMATS, None))
    weights = group.get("weights")
    inputs = group.get("input_activations")
    rounding = None if inputs is None else _rounding(inputs, f"{where}: input_activations")
    if group.get("output_activations") is not None:
        raise group.unsupported("output_activations", "outputs stay floats")
    group.done()
    own = None
    if weights is not None:
        own = replace(_arguments(weights, f"{where}: weights"), rounding=rounding)
    matched = ModuleNames((t for t in targets if t.startswith("re:")), where)
    return _Scheme(frozenset(targets), matched, own)


def _rounding(raw: Any, where: str) -> Rounding | None:
    """What input_activations say; None for those that activation="checkpoint" cannot follow."""
    args = Settings(raw, where)
    bits, kind = args.integer("num_bits", 1, 16, 8), args.choice("type", ("int", "float"), "int")
    sym = args.flag("symmetric", True)
    strategies = ("tensor", "token", "group", "tensor_group", "attn_head", None)
    strategy, group = args.choice("strategy", strategies), args.group("group_size")
    dynamic = args.choice("dynamic", (True, False, "local"), False)
    for key in ("scale_dtype", "zp_dtype", "block_structure", "actorder"):
        args.get(key)
    args.done("observer", "observer_kwargs", "is_mse")
    if bits != 8 or strategy in ("tensor_group", "attn_head") or dynamic == "local":
        return None
    name = "e4m3" if kind == "float" else "int8" if sym else "int8 offset"
    if dynamic is True:
        return None if strategy == "tensor" else Rounding(name, group if strategy == "group" else 0)
    return Rounding(name, 0, "input_scale") if sym and strategy in ("tensor", None) else None


def _arguments(raw: Any, where: str) -> _Weights:
    """Quantization arguments of weights; what they cannot have is refused."""
    args = Settings(raw, where)
    bits = args.integer("num_bits", 1, 16, 8)
    kind = args.choice("type", ("int", "float"), "int")
    sym = args.flag("symmetric", True)
    strategies = ("tensor", "channel", "token", "group", "block", "tensor_group", None)
    strategy = args.choice("strategy", strategies)
    group = args.group("group_size")
    block = _block_structure(args)
    dynamic = args.get("dynamic", False)
    order = args.choice("actorder", ("weight", "static", "group", "dynamic", False, None))
    for key in ("scale_dtype", "zp_dtype"):
        args.get(key)
    args.done("observer", "observer_kwargs", "is_mse")
    if dynamic:
        raise args.unsupported("dynamic", "scales of weights come with the file")
    if strategy is None:
        strategy = "group" if group else "tensor"
    if bits not in ((2, 3, 4, 8) if kind == "int" else (4, 8)):
        raise args.unsupported("num_bits", "known: int of 2, 3, 4, 8, float of 4 and 8")
    if kind == "float" and not sym:
        raise args.unsupported("symmetric", "floats have no zero points")
    if strategy in ("group", "tensor_group") and not group:
        raise args.error("group_size", "a positive integer")
    if strategy == "block" and block is None:
        raise args.error("block_structure", "two positive integers")
    blocks = {"tensor": (0, 0), "channel": (1, 0), "group": (1, group), "tensor_group": (1, group)}
    if strategy not in ("block", *blocks):
        raise args.unsupported("strategy", "known of weights: tensor, channel, group, block")
    own = block if strategy == "block" else blocks[strategy]
    return _Weights(bits, kind, sym, own, order in ("group", "dynamic"))


def _block_structure(args: Settings) -> tuple[int, int] | None:
    """Two integers, or both in a string with an x between them."""
    key, value = "block_structure", args.get("block_structure")
    if isinstance(value, str):
        extents = [int(n) for n in value.split("x") if n.isdecimal() and len(n) < 9]
        args = Settings({key: extents}, args.where)
    return args.block(key)


def _weights_of(module: str, schemes: list[_Scheme]) -> _Weights | None:
    """Of the scheme whose target fits best: the name, an expression, the class of all layers."""
    kinds: tuple[Callable[[_Scheme], bool], ...] = (
        lambda scheme: module in scheme.targets,
        lambda scheme: module in scheme.matched,
        lambda scheme: "Linear" in scheme.targets,
    )
    return next((scheme.weights for fits in kinds for scheme in schemes if fits(scheme)), None)


def _linear(table: TensorTable, module: str, name: str, weights: _Weights) -> Linear:
    unread = [f"{module}.{own}" for own in _UNREAD if f"{module}.{own}" in table]
    if weights.kind == "float" and weights.bits == 4:
        if weights.block == (1, 32):
            return mxfp4_packed(table, module, unread)
        if weights.block == (1, 16):
            return nvfp4(table, name, f"{module}.weight_global_scale", True, unread)
        raise UnsupportedError(f"{name}: 4-bit floats in groups of {weights.block[1]}")
    if table[name].dtype == "F8_E4M3":
        if weights.kind != "float":
            raise LoadError(f"{name}: F8_E4M3, but its scheme says int")
        scale = header(table, f"{module}.weight_scale", SCALES, None)
        weight, rounding = matrix(table, name, ("F8_E4M3",)), _of_layer(weights, module)
        return e4m3_linear(weight, scale, weights.block, table, rounding)
    if weights.kind != "int":
        raise UnsupportedError(f"{name}: {table[name].dtype}, but its scheme says float")
    return _integers(table, module, name, weights)


def _of_layer(weights: _Weights, module: str) -> Rounding | None:
    """The rule with the name of the layer's own scale."""
    rule = weights.rounding
    if rule is None or rule.scale is None:
        return rule
    return replace(rule, scale=f"{module}.{rule.scale}")


def _integers(table: TensorTable, module: str, name: str, weights: _Weights) -> Linear:
    bits, packed = weights.bits, name.endswith(_PACKED)
    stored = matrix(table, name, ("I32",) if packed else ("I8",))
    shape = _packed_shape(table, module, stored.shape, bits) if packed else stored.shape
    n, k = shape
    scale = header(table, f"{module}.weight_scale", FLOATS, None)
    spread = spread_scale(scale, shape, weights.block)
    group = weights.block[1] or k
    sources = [name, scale.name]
    sources += [f"{module}.weight_shape"] if packed else []
    zero = None  # of a symmetric layer that has zero points all the same, they are the middle
    if not weights.sym or f"{module}.weight_zero_point" in table:
        zero = _zero(table, module, weights, shape)
        sources.append(f"{module}.weight_zero_point")
    ordered = f"{module}.weight_g_idx" in table
    if ordered:
        header(table, f"{module}.weight_g_idx", ("I32", "I64"), (k,))
        sources.append(f"{module}.weight_g_idx")
    elif weights.actorder:
        raise LoadError(
            f"{name}: actorder is set, but tensor {quoted(module)}.weight_g_idx missing"
        )
    sources += [f"{module}.{own}" for own in _UNREAD if f"{module}.{own}" in table]

    def read() -> Codes:
        values = taken(table[name])
        # Packed codes are about 2^(bits - 1), plain ones about 0.
        q = fields(values, bits)[:, :k] if packed else values.view(np.uint8) ^ np.uint8(128)
        if not packed and bits != 8:
            q = q - np.uint8(128 - (1 << (bits - 1)))
            if q.max() >> bits:
                raise LoadError(f"{name}: codes of more than {bits} bits")
        order = None
        if ordered:
            index = taken(table[f"{module}.weight_g_idx"])
            order = sorted_columns(f"{module}.weight_g_idx", index, group, -(-k // group))
            q = np.take(q, order, axis=1)
        return Codes(q, spread(), None if zero is None else zero(), order)

    form = _integer_form(name, weights, k, half=scale.dtype == "F16", ordered=ordered)
    rule = _of_layer(weights, module)
    return Linear(f"{module}.weight", (n, k), form, bits, group, tuple(sources), read, rule)


def _packed_shape(
    table: TensorTable, module: str, stored: tuple[int, ...], bits: int
) -> tuple[int, int]:
    """The layer's own shape, which the words must just hold."""
    tensor = header(table, f"{module}.weight_shape", ("I64", "I32"), None)
    if tensor.shape not in ((2,), (2, 1)):
        raise LoadError(f"{tensor.name}: expected [2], got {list(tensor.shape)}")
    n, k = (int(extent) for extent in tensor.numpy().reshape(-1))
    if n != stored[0] or k < 1 or -(-k * bits // 32) != stored[1]:
        raise LoadError(f"{tensor.name}: [{n}, {k}] does not fit words of {list(stored)}")
    return n, k


def _zero(
    table: TensorTable, module: str, weights: _Weights, shape: tuple[int, int]
) -> Callable[[], np.ndarray]:
    """Reads zero points as codes have them, about 2^(bits - 1)."""
    name, middle = f"{module}.weight_zero_point", np.float32(1 << (weights.bits - 1))
    if name in table and table[name].dtype == "I32":
        count = -(-shape[1] // weights.block[1]) if weights.block[1] else 1
        words = (-(-shape[0] * weights.bits // 32), count)
        header(table, name, ("I32",), words)
        return lambda: fields(taken(table[name]).T, weights.bits)[:, : shape[0]].T.astype(
            np.float32
        )
    spread = spread_scale(header(table, name, ("I8",), None), shape, weights.block)
    return lambda: spread() + middle
