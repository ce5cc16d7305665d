"""TensorRT Model Optimizer (modelopt): FP8 and NVFP4.

FP8: weight F8_E4M3, weight_scale of one number. NVFP4: weight U8 of two E2M1 codes a byte,
weight_scale E4M3 for 16 k, weight_scale_2 of the tensor. input_scale is of rows, for
activation="checkpoint". The settings stand in config.json, or in a hf_quant_config.json of their
own, whose inner "quantization" counts.
"""

from __future__ import annotations

from llmaccel.errors import LoadError
from llmaccel.models.plain import PlainForm
from llmaccel.models.quantized.fp8 import SCALES, e4m3_linear
from llmaccel.models.quantized.linear import (
    Foretold,
    Linear,
    Rounding,
    Settings,
    count_of,
    header,
    make_form,
    matrix,
)
from llmaccel.models.quantized.mx import nvfp4
from llmaccel.models.quantized.names import ModuleNames
from llmaccel.models.slots import TensorTable

_ALGORITHMS = ("FP8", "NVFP4", "FP8_PER_CHANNEL_PER_TOKEN")


def _layers(config: Settings) -> tuple[str, ModuleNames]:
    """(algorithm, layers that stay floats)."""
    inner = config.get("quantization")
    if inner is not None:
        config.done("producer")
        config = Settings(inner, f"{config.where}: quantization")
    algorithm = config.choice("quant_algo", _ALGORITHMS)
    config.choice("group_size", (16, None))
    config.choice("quant_method", ("modelopt", None))
    skips = ModuleNames(config.names("exclude_modules", "ignore"), config.where)
    config.done(
        "kv_cache_quant_algo", "kv_cache_scheme", "producer", "config_groups", "quant_method"
    )
    return algorithm, skips


def foretell(config: Settings, half: bool) -> Foretold:
    """Of layers but the head, which the library leaves."""
    algorithm, skips = _layers(config)

    def form(module: str, k: int) -> PlainForm | None:
        if module in skips or module.endswith("lm_head"):
            return None
        return make_form(module, *(("E2M1", 16, k) if algorithm == "NVFP4" else ("F8", k, k)))

    return form


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every layer with E4M3 or U8 weights and a weight_scale."""
    _, skips = _layers(config)
    found = []
    for name in table.names():
        module = name.removesuffix(".weight")
        if module == name or table[name].dtype not in ("F8_E4M3", "U8"):
            continue
        if module in skips:
            raise LoadError(f"{name}: {config.where} says that this layer is not quantized")
        if table[name].dtype == "F8_E4M3":
            scale = header(table, f"{module}.weight_scale", SCALES, None)
            block = (0, 0) if count_of(scale) == 1 else (1, 0)
            given = f"{module}.input_scale" if f"{module}.input_scale" in table else None
            weight = matrix(table, name, ("F8_E4M3",))
            rounding = Rounding("e4m3", 0, given)
            found.append(e4m3_linear(weight, scale, block, table, rounding))
        else:
            unread = [f"{module}.{own}" for own in ("input_scale",) if f"{module}.{own}" in table]
            found.append(nvfp4(table, name, f"{module}.weight_scale_2", False, unread))
    return found
