"""E4M3 weights with one scale a tensor, a row or a block: quant_method "fp8" and "fbgemm_fp8".

weight F8_E4M3 [N, K]; weight_scale_inv [ceil(N / 128), ceil(K / 128)] (DeepSeek, Qwen3-FP8; the
name notwithstanding it multiplies), or weight_scale of one number or one a row. A scale_fmt of
"ue8m0" says that scales are powers of two, stored as floats or as their exponents, and those of
rows as well. Rows of
activations stay what the activation option says; scales for them (input_scale) are read for
activation="checkpoint" alone, which rounds them to E4M3 per group of the block or per row.
"""

from __future__ import annotations

from llmaccel.errors import LoadError
from llmaccel.models.checkpoint import RawTensor
from llmaccel.models.quantized.linear import (
    FLOATS,
    Codes,
    Linear,
    Rounding,
    Settings,
    is_named,
    make_form,
    matrix,
    spread_scale,
    taken,
)
from llmaccel.models.slots import TensorTable

SCALES = (*FLOATS, "F8_E8M0")
_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub")


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every layer with E4M3 weights."""
    static = config.choice("activation_scheme", ("dynamic", "static", None)) == "static"
    config.choice("fmt", ("e4m3", "float8_e4m3fn", None))
    config.choice("weight_fmt", ("e4m3", None))
    powers = config.choice("scale_fmt", ("ue8m0", "float", None)) == "ue8m0"
    block = config.get("weight_block_size")
    if block is not None and not _is_block(block):
        raise config.error("weight_block_size", "two positive integers")
    skips = config.names("modules_to_not_convert", "ignored_layers", "ignore")
    config.done("activation_scale_ub", "kv_cache_scheme", "dequantize", "modules_to_convert")
    found = []
    for module, weight in e4m3_weights(table):
        if is_named(module, skips, config.where):
            raise LoadError(f"{weight.name}: {config.where} says that this layer is not quantized")
        own = [name for name in ("weight_scale_inv", "weight_scale") if f"{module}.{name}" in table]
        if not own:
            raise LoadError(f"{weight.name}: E4M3 weights without weight_scale or weight_scale_inv")
        scale = table[f"{module}.{own[0]}"]
        if scale.dtype not in SCALES:
            raise LoadError(f"{scale.name}: expected {' or '.join(SCALES)}, got {scale.dtype}")
        fitting = (0, 0) if scale_count(scale) == 1 else (1, 0)
        own = fitting if block is None else tuple(block)
        given = f"{module}.input_scale" if static else None
        rounding = Rounding("e4m3 power" if powers else "e4m3", own[1], given)
        found.append(e4m3_linear(weight, scale, own, table, rounding))
    return found


def _is_block(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 24 for n in value)
    )


def scale_count(scale: RawTensor) -> int:
    """How many numbers a tensor has."""
    count = 1
    for extent in scale.shape:
        count *= extent
    return count


def e4m3_weights(table: TensorTable):
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
