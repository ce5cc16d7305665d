"""E4M3 weights with one scale a tensor, a row or a block: quant_method "fp8" and "fbgemm_fp8".

weight F8_E4M3 [N, K]; weight_scale_inv [ceil(N / 128), ceil(K / 128)] (DeepSeek, Qwen3-FP8; the
name notwithstanding it multiplies), or weight_scale of one number or one a row. A scale_fmt of
"ue8m0" says that scales are powers of two, stored as floats or as their exponents, and those of
rows as well. Rows of activations stay what the activation option says; scales for them
(input_scale) are read for activation="checkpoint" alone, which rounds them to E4M3 per group of the
block or per row. DeepSeek's own code absorbs kv_b in floats, so latents are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmaccel.errors import LoadError
from llmaccel.models.checkpoint import RawTensor
from llmaccel.models.plain import PlainForm
from llmaccel.models.quantized.linear import (
    FLOATS,
    Codes,
    Foretold,
    Linear,
    Rounding,
    Settings,
    count_of,
    header,
    make_form,
    matrix,
    spread_scale,
    taken,
)
from llmaccel.models.quantized.names import ModuleNames
from llmaccel.models.slots import TensorTable

SCALES = (*FLOATS, "F8_E8M0")
_SCALE_NAMES = ("weight_scale_inv", "weight_scale")
_ABSORBED = "kv_b_proj"
_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub")


@dataclass(frozen=True)
class _Layers:
    """What a configuration says. block: rows and columns that share a scale, None where the scales
    tell; powers: scales are powers of two; static: rows have scales; skips: layers of floats."""

    block: tuple[int, int] | None
    powers: bool
    static: bool
    skips: ModuleNames


def _layers(config: Settings) -> _Layers:
    static = config.choice("activation_scheme", ("dynamic", "static", None)) == "static"
    config.choice("fmt", ("e4m3", "float8_e4m3fn", None))
    config.choice("weight_fmt", ("e4m3", None))
    powers = config.choice("scale_fmt", ("ue8m0", "float", None)) == "ue8m0"
    block = config.block("weight_block_size")
    skips = ModuleNames(
        config.names("modules_to_not_convert", "ignored_layers", "ignore"), config.where
    )
    config.done("activation_scale_ub", "kv_cache_scheme", "dequantize", "modules_to_convert")
    return _Layers(block, powers, static, skips)


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every layer with E4M3 weights."""
    layers = _layers(config)
    found = []
    for module, weight in e4m3_weights(table):
        if module in layers.skips:
            raise LoadError(f"{weight.name}: {config.where} says that this layer is not quantized")
        name = next((n for n in _SCALE_NAMES if f"{module}.{n}" in table), None)
        if name is None:
            raise LoadError(f"{weight.name}: E4M3 weights without {' or '.join(_SCALE_NAMES)}")
        scale = header(table, f"{module}.{name}", SCALES, None)
        block = layers.block or ((0, 0) if count_of(scale) == 1 else (1, 0))
        of_rows = f"{module}.input_scale" if layers.static else None
        rounding = Rounding("e4m3 power" if layers.powers else "e4m3", block[1], of_rows)
        rounding = None if module.endswith(_ABSORBED) else rounding
        found.append(e4m3_linear(weight, scale, block, table, rounding))
    return found


def foretell(config: Settings, half: bool) -> Foretold:
    """Of layers but the head, which the published files leave."""
    layers = _layers(config)
    group = layers.block[1] if layers.block else 0

    def form(module: str, k: int) -> PlainForm | None:
        if module in layers.skips or module.endswith("lm_head"):
            return None
        return make_form(module, "F8", group or k, k)

    return form


def e4m3_weights(table: TensorTable) -> Iterator[tuple[str, RawTensor]]:
    """(module, weight) of every E4M3 matrix."""
    for name in table.names():
        if not name.endswith(".weight"):
            continue
        dtype = table[name].dtype
        if dtype in ("F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"):
            raise LoadError(f"{name}: {dtype}; of the 8-bit floats weights can be E4M3 only")
        if dtype == "F8_E4M3":
            yield name.removesuffix(".weight"), matrix(table, name, ("F8_E4M3",))


def e4m3_linear(
    weight: RawTensor,
    scale: RawTensor,
    block: tuple[int, int],
    table: TensorTable,
    rounding: Rounding | None = None,
) -> Linear:
    """The layer of a weight [N, K], a scale for each block [rows, columns]; see `spread_scale`."""
    module = weight.name.removesuffix(".weight")
    shape = (weight.shape[0], weight.shape[1])
    group = block[1] or shape[1]
    spread = spread_scale(scale, shape, block)
    unread = [f"{module}.{name}" for name in _ACTIVATIONS]
    sources = [weight.name, scale.name, *(name for name in unread if name in table)]

    def read() -> Codes:
        return Codes(taken(table[weight.name]), spread())

    return Linear(
        weight.name,
        shape,
        make_form(weight.name, "F8", group, shape[1]),
        8,
        group,
        tuple(sources),
        read,
        rounding,
    )
