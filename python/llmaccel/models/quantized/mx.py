"""4-bit floats (E2M1) under small scales: MXFP4 and NVFP4.

MXFP4: 32 k share a power of two, stored as its biased exponent. NVFP4: 16 k share an E4M3 number,
and all of a tensor an fp32 one that multiplies it (modelopt's weight_scale_2) or divides it
(compressed-tensors' weight_global_scale). Two codes a byte, the first in the low nibble. Also
quant_method "mxfp4": X_blocks U8 [N, K / 32, 16] and X_scales U8 [N, K / 32], or stacked.
"""

from __future__ import annotations

import numpy as np

from llmaccel import _core
from llmaccel.errors import LoadError
from llmaccel.models.plain import PlainForm
from llmaccel.models.quantized.linear import (
    Codes,
    Foretold,
    Linear,
    Settings,
    e8m0,
    fields,
    header,
    make_form,
    matrix,
    taken,
)
from llmaccel.models.quantized.names import ModuleNames
from llmaccel.models.slots import TensorTable

_BLOCKS = "_blocks"
E4M3 = np.empty(256, np.float32)  # the value of each code
_core.fp8_decode("scalar", 0, E4M3, np.ones(1, np.float32), np.arange(256, dtype=np.uint8))


def _layers(config: Settings) -> ModuleNames:
    """Layers that stay floats."""
    skips = ModuleNames(config.names("modules_to_not_convert"), config.where)
    config.done("dequantize")
    return skips


def foretell(config: Settings, half: bool) -> Foretold:
    """Of experts, which alone the published files have in blocks."""
    skips = _layers(config)

    def form(module: str, k: int) -> PlainForm | None:
        if module in skips or ".experts." not in module:
            return None
        return make_form(module, "MX4", 32, k)

    return form


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every tensor that comes as blocks and scales (quant_method "mxfp4")."""
    skips = _layers(config)
    found = []
    for name in table.names():
        whole = name.removesuffix(_BLOCKS)
        if whole == name or f"{whole}_scales" not in table:
            continue
        if whole.removesuffix(".weight") in skips:
            raise LoadError(f"{name}: {config.where} says that this layer is not quantized")
        found.append(mxfp4_blocks(table, whole))
    return found


def mxfp4_blocks(table: TensorTable, whole: str) -> Linear:
    """The weight [N, K] of X_blocks [N, K / 32, 16] and X_scales, under the name X; or experts'
    [E, N, K] of one dimension more under the name X_blocks, since X itself names floats [E, K, N]
    (gpt-oss)."""
    blocks = header(table, f"{whole}{_BLOCKS}", ("U8",), None)
    shape = blocks.shape
    if len(shape) not in (3, 4) or shape[-1] != 16 or not all(shape):
        raise LoadError(f"{blocks.name}: expected [N, K / 32, 16], got {list(shape)}")
    scales = header(table, f"{whole}_scales", ("U8", "F8_E8M0"), shape[:-1])
    k = shape[-2] * 32
    first = shape[0]

    def some(start: int, stop: int) -> Codes:
        q = fields(taken(table[blocks.name].rows(start, stop)).reshape(-1, k // 2), 4)
        return Codes(q, e8m0(taken(table[scales.name].rows(start, stop))).reshape(len(q), -1))

    form = make_form(blocks.name, "MX4", 32, k)
    name = blocks.name if len(shape) == 4 else whole
    sources = (blocks.name, scales.name)
    return Linear(name, (*shape[:-2], k), form, 4, 32, sources, lambda: some(0, first), None, some)


def mxfp4_packed(table: TensorTable, module: str, unread: list[str]) -> Linear:
    """compressed-tensors' weight_packed U8 [N, K / 2] with weight_scale U8 [N, K / 32]."""
    packed = matrix(table, f"{module}.weight_packed", ("U8",))
    n, k = packed.shape[0], packed.shape[1] * 2
    scale = header(table, f"{module}.weight_scale", ("U8", "F8_E8M0"), (n, -(-k // 32)))

    def read() -> Codes:
        return Codes(fields(taken(table[packed.name]), 4), e8m0(taken(table[scale.name])))

    name = f"{module}.weight"
    form = make_form(name, "MX4", 32, k)
    return Linear(name, (n, k), form, 4, 32, (packed.name, scale.name, *unread), read)


def nvfp4(table: TensorTable, packed: str, outer: str, divides: bool, unread: list[str]) -> Linear:
    """Codes U8 [N, K / 2] of the tensor `packed`, weight_scale E4M3 [N, K / 16] beside it, and the
    tensor's own number `outer`."""
    module = packed.rpartition(".")[0]
    stored = matrix(table, packed, ("U8",))
    n, k = stored.shape[0], stored.shape[1] * 2
    scale = header(table, f"{module}.weight_scale", ("F8_E4M3",), (n, -(-k // 16)))
    whole = header(table, outer, ("F32",), None)
    if whole.data.size != 4:
        raise LoadError(f"{outer}: expected one number, got {list(whole.shape)}")

    def read() -> Codes:
        number = taken(table[outer]).reshape(-1)[0]
        with np.errstate(divide="ignore", over="ignore"):
            number = np.float32(1) / number if divides else number
        return Codes(fields(taken(table[packed]), 4), E4M3[taken(table[scale.name])] * number)

    name = f"{module}.weight"
    form = make_form(name, "E2M1", 16, k)
    return Linear(name, (n, k), form, 4, 16, (packed, scale.name, outer, *unread), read)
