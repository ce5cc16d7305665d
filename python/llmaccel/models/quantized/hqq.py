"""HQQ: plain codes with a scale and a zero point, which need not be an integer, for groups of k.

W_q U8: the weight [N, K] cut into groups along k, [N * K / group, group], and rows packed: of 4
bits the first half of the rows in the high nibbles, of 2 bits quarters. scale and zero float
[N * K / group, 1]; a weight is scale * (q - zero). shape holds [N, K]. Other tensors repeat the
settings. Layout as published by the library of that name, axis 1.
"""

from __future__ import annotations

import numpy as np

from llmaccel.errors import LoadError
from llmaccel.models.plain import PlainForm
from llmaccel.models.quantized.linear import (
    FLOATS,
    Codes,
    Foretold,
    Linear,
    Settings,
    header,
    make_form,
    taken,
)
from llmaccel.models.quantized.names import ModuleNames
from llmaccel.models.slots import TensorTable

_REPEATED = (
    *("nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float"),
    *("quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict"),
    *("stores_quant_config", "channel_wise", "optimize", "round_zero"),
)


def _layers(config: Settings) -> tuple[dict[str, tuple[int, int]], ModuleNames]:
    """(rules, layers that stay floats)."""
    rules = _rules(Settings(config.get("quant_config"), f"{config.where}: quant_config"))
    skips = ModuleNames(config.names("skip_modules"), config.where)
    config.done()
    return rules, skips


def _rule_of(rules: dict[str, tuple[int, int]], module: str) -> tuple[int, int] | None:
    return next((rule for tag, rule in rules.items() if f".{module}".endswith(tag)), None)


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every layer with a W_q."""
    rules, skips = _layers(config)
    found = []
    for name in table.names():
        module = name.removesuffix(".W_q")
        if module == name:
            continue
        if module in skips:
            raise LoadError(f"{name}: {config.where} says that this layer is not quantized")
        own = _rule_of(rules, module)
        if own is None:
            raise LoadError(f"{module}: {config.where}: quant_config has no rule for this layer")
        found.append(_linear(table, module, *own))
    return found


def foretell(config: Settings, half: bool) -> Foretold:
    """Of layers but the head, which transformers leaves."""
    rules, skips = _layers(config)

    def form(module: str, k: int) -> PlainForm | None:
        own = _rule_of(rules, module)
        if own is None or module in skips or module.endswith("lm_head"):
            return None
        return _form(module, own[0], own[1] or k, k)

    return form


def _form(name: str, bits: int, group: int, k: int) -> PlainForm:
    return make_form(name, "I8" if bits == 8 else "I4", group, k, offset=True)


def _rules(config: Settings) -> dict[str, tuple[int, int]]:
    """(bits, group) by the end of a layer's name: one rule for all, or one for each name that
    layers have within their block."""
    if "weight_quant_params" in config.raw:
        return {"": _rule(config)}
    where = config.where
    return {
        f".{tag}": _rule(Settings(raw, f"{where}: {tag[:80]!a}")) for tag, raw in config.raw.items()
    }


def _rule(rules: Settings) -> tuple[int, int]:
    params = Settings(rules.get("weight_quant_params"), f"{rules.where}: weight_quant_params")
    for key in ("scale_quant_params", "zero_quant_params", "offload_meta"):
        if rules.get(key):
            raise rules.unsupported(key, "scales and zero points are floats")
    rules.done()
    bits = params.choice("nbits", (2, 4, 8))
    group = params.group("group_size")
    params.choice("axis", (1,), 1)
    params.choice("view_as_float", (False, None))
    params.done("channel_wise", "optimize", "round_zero")
    return bits, group


def _linear(table: TensorTable, module: str, bits: int, group: int) -> Linear:
    extents = header(table, f"{module}.shape", ("I64", "I32"), (2,)).numpy()
    n, k = (int(extent) for extent in extents)
    group = group or k
    if not (0 < n < 1 << 24 and 0 < k < 1 << 24) or k % group:
        raise LoadError(f"{module}.shape: [{n}, {k}] in groups of {group}")
    rows = n * k // group
    packed = header(table, f"{module}.W_q", ("U8",), None)
    if rows * bits % 8 or packed.shape != (rows * bits // 8, group):
        raise LoadError(
            f"{packed.name}: expected {[rows * bits // 8, group]}, got {list(packed.shape)}"
        )
    for part in ("scale", "zero"):
        header(table, f"{module}.{part}", FLOATS, (rows, 1))

    def read() -> Codes:
        words = taken(table[packed.name])
        shifts = range(8 - bits, -1, -bits)
        q = np.concatenate([words >> shift & ((1 << bits) - 1) for shift in shifts])
        scale, zero = (
            taken(table[f"{module}.{part}"]).reshape(n, -1) for part in ("scale", "zero")
        )
        return Codes(q.reshape(n, k), scale, zero)

    name = f"{module}.weight"
    form = _form(name, bits, group, k)
    sources = [packed.name, f"{module}.scale", f"{module}.zero"]
    sources += [f"{module}.{part}" for part in _REPEATED if f"{module}.{part}" in table]
    return Linear(name, (n, k), form, bits, group, tuple(sources), read)
