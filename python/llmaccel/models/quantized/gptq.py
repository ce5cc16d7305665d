"""GPTQ: 2, 3, 4 and 8 bits packed along k, scales and zero points per group, columns in any order.

qweight int32 [K * bits / 32, N]: a column's codes one after another, low bits first (3 bits run
across words). qzeros int32 [G, N * bits / 32], the same along n; files of checkpoint_format "gptq"
store them less one, "gptq_v2" as they are. scales float [G, N]. g_idx int32 [K]: the group of each
k; with desc_act that is no ascending run, and columns are sorted by it here, which the core undoes
on activation rows. 2- and 3-bit codes are held in 4 bits. Layout as published by AutoGPTQ and
GPTQModel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from llmaccel.errors import LoadError
from llmaccel.models.checkpoint import quoted
from llmaccel.models.plain import PlainForm
from llmaccel.models.quantized.linear import (
    FLOATS,
    Codes,
    Foretold,
    Linear,
    Settings,
    fields,
    header,
    make_form,
    matrix,
    taken,
)
from llmaccel.models.quantized.names import ModuleNames, Patterns, regex
from llmaccel.models.slots import TensorTable

# Keys that tell how the file was made, or how others run it.
_INERT = (
    "dataset", "tokenizer", "damp_percent", "damp_auto_increment", "true_sequential", "meta",
    "model_name_or_path", "model_file_base_name", "static_groups", "model_seqlen", "batch_size",
    "block_name_to_quantize", "module_name_preceding_first_block", "use_cuda_fp16", "backend",
    "use_exllama", "max_input_length", "exllama_config", "cache_block_outputs", "mse",
    "act_group_aware", "cache_examples_on_gpu", "disable_exllama", "hyb_act", "is_distributed",
    "quantizer", "offload_to_disk", "offload_to_disk_path", "pack_impl", "mock", "v2", "v2_alpha",
    "v2_memory_device", "gptaq", "format_version", "device",
)  # fmt: skip
_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class _Rule:
    """How a layer is packed; skip: not at all."""

    bits: int
    group: int
    sym: bool
    skip: bool = False


class _Layers:
    """What a configuration says about layers. ordered: columns may be in any order; v1: zero points
    are stored less one."""

    def __init__(self, config: Settings) -> None:
        self._rule = rule = _Rule(
            config.choice("bits", _BITS), config.group("group_size", -1), config.flag("sym", False)
        )
        self.ordered = config.flag("desc_act")
        self.v1 = config.choice("checkpoint_format", ("gptq", "gptq_v2", None), "gptq") != "gptq_v2"
        config.choice("format", ("gptq", "gptq_v2", None))
        if config.raw.get("checkpoint_format") is None and config.raw.get("format") is not None:
            self.v1 = config.raw["format"] != "gptq_v2"
        config.choice("pack_dtype", ("int32", None))
        self.head = config.choice("lm_head", (True, False, None)) is True
        self._dynamic = _dynamic(config, rule)
        self._skips = ModuleNames(
            config.names("modules_to_not_convert", "modules_in_block_to_quantize_excluded"),
            config.where,
        )
        config.get("modules_in_block_to_quantize")  # the tensors say the same
        config.choice("is_marlin_format", (False, None))
        for key in ("adapter", "rotation", "packing", "quant_type"):
            config.choice(key, (None, ""))
        config.done(*_INERT)
        self._clock = Patterns(f"{config.where}: dynamic")

    def rule_of(self, module: str) -> _Rule:
        rules = (other for pattern, other in self._dynamic if self._clock.match(pattern, module))
        own = next(rules, self._rule)
        return replace(own, skip=True) if module in self._skips else own


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every layer with a qweight."""
    layers = _Layers(config)
    found = []
    for name in table.names():
        module = name.removesuffix(".qweight")
        if module == name:
            continue
        own = layers.rule_of(module)
        if own.skip:
            raise LoadError(f"{name}: {config.where} says that this layer is not quantized")
        if layers.ordered and own.group and f"{module}.g_idx" not in table:
            raise LoadError(f"tensor {quoted(f'{module}.g_idx')} is missing; desc_act is set")
        found.append(_linear(table, module, own, layers.v1))
    return found


def foretell(config: Settings, half: bool) -> Foretold:
    """Scales are fp16, columns in any order where desc_act is set."""
    layers = _Layers(config)

    def form(module: str, k: int) -> PlainForm | None:
        own = layers.rule_of(module)
        if own.skip or (module.endswith("lm_head") and not layers.head):
            return None
        group = own.group if 0 < own.group < k else k
        return _form(module, own, group, k, half=True, ordered=layers.ordered and group < k)

    return form


def _form(module: str, rule: _Rule, group: int, k: int, *, half: bool, ordered: bool) -> PlainForm:
    codes = "I8" if rule.bits == 8 else "I4"
    return make_form(module, codes, group, k, offset=not rule.sym, half=half, ordered=ordered)


def _dynamic(config: Settings, base: _Rule) -> list[tuple[re.Pattern[str], _Rule]]:
    """(pattern, rule) of the layers that the file treats in other ways."""
    rules = config.get("dynamic")
    if not rules:
        return []
    found = []
    for pattern, values in Settings(rules, f"{config.where}: dynamic").raw.items():
        where = f"{config.where}: dynamic: {pattern[:80]!a}"
        own = Settings(values or {}, where)
        skip = pattern.startswith("-:")
        rule = _Rule(
            own.choice("bits", _BITS, base.bits),
            own.group("group_size", base.group or -1),
            own.flag("sym", base.sym),
            skip,
        )
        own.flag("desc_act")
        if not skip:
            own.done(*_INERT)
        found.append((regex(pattern.removeprefix("+:").removeprefix("-:"), where), rule))
    return found


def _linear(table: TensorTable, module: str, rule: _Rule, v1: bool) -> Linear:
    qweight = matrix(table, f"{module}.qweight", ("I32", "U32"))
    bits = rule.bits
    n, words = qweight.shape[1], qweight.shape[0]
    if words * 32 % bits or n * bits % 32:
        raise LoadError(f"{qweight.name}: {list(qweight.shape)} words hold no codes of {bits} bits")
    k = words * 32 // bits
    group = rule.group if 0 < rule.group < k else k
    groups = -(-k // group)
    scales = header(table, f"{module}.scales", FLOATS, (groups, n))
    header(table, f"{module}.qzeros", ("I32", "U32"), (groups, n * bits // 32))
    sources = [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]
    ordered = False
    if f"{module}.g_idx" in table:
        index = header(table, f"{module}.g_idx", ("I32", "I64"), (k,)).numpy()
        ordered = bool((index != np.arange(k) // group).any())
        sources.append(f"{module}.g_idx")

    def read() -> Codes:
        q = fields(taken(table[sources[0]]).T, bits)
        zero = _zeros(taken(table[sources[1]]), bits, v1).T.astype(np.float32)
        scale = np.ascontiguousarray(taken(table[sources[2]]).T)
        order = None
        if ordered:
            order = sorted_columns(sources[3], taken(table[sources[3]]), group, groups)
            q = np.take(q, order, axis=1)
        return Codes(q, scale, np.ascontiguousarray(zero), order)

    half = scales.dtype == "F16"
    form = _form(qweight.name, rule, group, k, half=half, ordered=ordered)
    return Linear(f"{module}.weight", (n, k), form, bits, group, tuple(sources), read)


def _zeros(words: np.ndarray, bits: int, v1: bool) -> np.ndarray:
    """Zero points [G, N]. Of v1 one is added to whole words, as one was taken from them: where a
    zero point was 0, the field below had lent to it. Fields of 3 bits wrap each for itself."""
    if not v1:
        return fields(words, bits)
    if bits == 3:
        return (fields(words, bits) + 1) & 7
    ones = np.uint32(0xFFFFFFFF // ((1 << bits) - 1))
    return fields(words.view(np.uint32) + ones, bits)


def sorted_columns(name: str, index: np.ndarray, group: int, groups: int) -> np.ndarray:
    """The order that puts the columns of each group together: int32 [K]. LoadError where a group
    has not `group` columns."""
    if index.min() < 0 or index.max() >= groups:
        raise LoadError(f"{name}: groups {index.min()}..{index.max()} of {groups}")
    order = np.argsort(index, kind="stable").astype(np.int32)
    if (index[order] != np.arange(len(index)) // group).any():
        raise LoadError(f"{name}: the groups do not have {group} columns each")
    return order
