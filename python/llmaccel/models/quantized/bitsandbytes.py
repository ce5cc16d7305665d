"""bitsandbytes: NF4 and FP4 in blocks, with or without double quantization, and LLM.int8 rows.

4 bits: weight U8 [N * K / 2, 1], the first of two codes in the high nibble, numbered along rows;
weight.absmax, the scale of each block (F32, or U8 codes of a second quantization beside
weight.nested_absmax and weight.nested_quant_map); weight.quant_map, the 16 values;
weight.quant_state.bitsandbytes__nf4, JSON in bytes with shape, block size and offset.
8 bits: weight I8 [N, K] and SCB [N], the largest value of each row; a weight is q * SCB / 127. What
LLM.int8 does with columns of outliers concerns activations, which stay what their option says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from llmaccel.errors import LoadError, UnsupportedError
from llmaccel.models.plain import PlainForm
from llmaccel.models.quantized.linear import (
    Codes,
    Foretold,
    Linear,
    Settings,
    header,
    is_extent,
    make_form,
    matrix,
    taken,
)
from llmaccel.models.quantized.names import ModuleNames
from llmaccel.models.slots import TensorTable

_STATE = ".quant_state.bitsandbytes__"
_MAX_STATE = 1 << 16
# quant_map, times what the core multiplies it by.
_KINDS = {"nf4": ("NF4", 1), "fp4": ("FP4", 192)}
_NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
_FP4 = (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
_VALUES = {"nf4": np.float32(_NF4), "fp4": np.float32([*_FP4, *(-value for value in _FP4)])}


_BLOCK = 64  # what the library takes; only a layer's state says it


def _layers(config: Settings) -> tuple[str, ModuleNames]:
    """(codes of a layer: a key of _KINDS or "int8", layers that stay floats)."""
    eight = config.flag("load_in_8bit") or config.flag("_load_in_8bit")
    for key in ("load_in_4bit", "_load_in_4bit", "load_in_8bit", "_load_in_8bit"):
        config.flag(key)
    kind = config.choice("bnb_4bit_quant_type", ("nf4", "fp4", None)) or "fp4"
    config.flag("bnb_4bit_use_double_quant")
    config.choice("bnb_4bit_quant_storage", ("uint8", None))
    skips = ModuleNames(config.names("llm_int8_skip_modules"), config.where)
    config.done(
        "bnb_4bit_compute_dtype", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight",
        "llm_int8_threshold",
    )  # fmt: skip
    return "int8" if eight else kind, skips


def foretell(config: Settings, half: bool) -> Foretold:
    """Of layers but the head, which transformers leaves."""
    kind, skips = _layers(config)

    def form(module: str, k: int) -> PlainForm | None:
        if module in skips or module.endswith("lm_head"):
            return None
        if kind == "int8":
            return make_form(module, "I8", k, k)
        return make_form(module, _KINDS[kind][0], _BLOCK, k)

    return form


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every layer with a quant_state or an SCB."""
    _, skips = _layers(config)
    found = []
    for name in table.names():
        weight, state, kind = name.partition(_STATE)
        if state:
            found.append(_four_bits(table, weight, name, kind))
        elif name.endswith(".SCB"):
            found.append(_eight_bits(table, name.removesuffix(".SCB") + ".weight"))
    for linear in found:
        module = linear.name.removesuffix(".weight")
        if module in skips:
            raise LoadError(f"{linear.name}: {config.where} says that it is not quantized")
    return found


# ---- 4 bits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What the JSON of a layer says."""

    shape: tuple[int, int]
    block: int
    nested_block: int  # 0: absmax is plain
    offset: float


def _four_bits(table: TensorTable, weight: str, state_name: str, kind: str) -> Linear:
    if kind not in _KINDS:
        raise UnsupportedError(f"{state_name}: known are nf4 and fp4")
    state = _read_state(table, state_name, kind)
    n, k = state.shape
    if n * k % 2 or k % state.block:
        raise UnsupportedError(
            f"{weight}: blocks of {state.block} do not fill rows of {k}; they would cross them"
        )
    stored = header(table, weight, ("U8",), None)
    if stored.data.size != n * k // 2:
        raise LoadError(f"{weight}: {stored.data.size} bytes, expected {n * k // 2} of {[n, k]}")
    blocks = n * k // state.block
    header(table, f"{weight}.absmax", ("U8",) if state.nested_block else ("F32",), (blocks,))
    header(table, f"{weight}.quant_map", ("F32",), (16,))
    sources = [weight, state_name, f"{weight}.absmax", f"{weight}.quant_map"]
    if state.nested_block:
        outer = -(-blocks // state.nested_block)
        header(table, f"{weight}.nested_absmax", ("F32",), (outer,))
        header(table, f"{weight}.nested_quant_map", ("F32",), (256,))
        sources += [f"{weight}.nested_absmax", f"{weight}.nested_quant_map"]
    codes, times = _KINDS[kind]

    def read() -> Codes:
        if not np.allclose(taken(table[f"{weight}.quant_map"]), _VALUES[kind], atol=1e-6):
            raise LoadError(f"{weight}.quant_map: not the values of {kind}")
        packed = taken(table[weight]).reshape(-1)
        q = np.stack([packed >> 4, packed & 15], axis=-1).reshape(n, k)
        return Codes(q, _absmax(table, weight, state).reshape(n, -1) / np.float32(times))

    form = make_form(weight, codes, state.block, k)
    return Linear(weight, (n, k), form, 4, state.block, tuple(sources), read)


def _absmax(table: TensorTable, weight: str, state: _State) -> np.ndarray:
    absmax = taken(table[f"{weight}.absmax"])
    if not state.nested_block:
        return absmax
    values = taken(table[f"{weight}.nested_quant_map"])[absmax]
    outer = np.repeat(taken(table[f"{weight}.nested_absmax"]), state.nested_block)[: absmax.size]
    return values * outer + np.float32(state.offset)


def _read_state(table: TensorTable, name: str, kind: str) -> _State:
    tensor = header(table, name, ("U8",), None)
    if tensor.data.size > _MAX_STATE:
        raise LoadError(f"{name}: {tensor.data.size} bytes")
    try:
        raw = json.loads(tensor.data.tobytes())
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{name}: no JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("quant_type") != kind:
        raise LoadError(f"{name}: quant_type {str(raw)[:80]!a}, expected {kind}")
    shape = raw.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(map(is_extent, shape))):
        raise LoadError(f"{name}: shape {str(shape)[:80]!a}, expected two extents")
    block, nested = raw.get("blocksize"), raw.get("nested_blocksize", 0)
    offset = raw.get("nested_offset", 0.0)
    plain = isinstance(offset, float) or offset == 0
    if not is_extent(block) or not (nested == 0 or is_extent(nested)) or not plain:
        raise LoadError(f"{name}: blocksize, nested_blocksize or nested_offset is no number")
    return _State((shape[0], shape[1]), block, nested, float(offset))


# ---- 8 bits --------------------------------------------------------------------------------------


def _eight_bits(table: TensorTable, weight: str) -> Linear:
    stored = matrix(table, weight, ("I8",))
    n, k = stored.shape
    module = weight.removesuffix(".weight")
    header(table, f"{module}.SCB", ("F32",), (n,))
    sources = [weight, f"{module}.SCB"]
    form = f"{module}.weight_format"
    if form in table:
        if header(table, form, ("U8",), None).data.tolist() != [0]:
            raise UnsupportedError(f"{form}: {table[form].data[:8].tolist()}; known is 0, rows")
        sources.append(form)

    def read() -> Codes:
        scale = taken(table[f"{module}.SCB"])[:, None] / np.float32(127)
        return Codes(taken(table[weight]).view(np.uint8) ^ np.uint8(128), scale)

    return Linear(weight, (n, k), make_form(weight, "I8", k, k), 8, k, tuple(sources), read)
