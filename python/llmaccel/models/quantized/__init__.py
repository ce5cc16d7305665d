"""Checkpoints that others have quantized, read as they are: quantization_config and its tensors.

Owns which scheme a quant_method means and the table that stands in front of a checkpoint: a layer's
packed tensors appear as one weight of plain rows (models/plain.py), everything else as it is.
Invariant: what the configuration says and the tensors show must agree; a scheme, key or tensor that
is not known is an error that names it, never a guess. Each scheme is a file beside this one.

Called by loading.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmaccel.errors import LoadError, UnsupportedError, shown
from llmaccel.files import is_there, read_json_object
from llmaccel.models.checkpoint import RawTensor, quoted
from llmaccel.models.quantized import (
    awq,
    bitsandbytes,
    compressed,
    fp8,
    gptq,
    hqq,
    modelopt,
    mx,
    nvfp4_gguf,
)
from llmaccel.models.quantized.linear import Linear, LinearTensor, Settings
from llmaccel.models.slots import TensorTable

_WHERE = "quantization_config"
_MAX_JSON_BYTES = 1 << 24
# quant_method: the scheme's finder of layers.
_SCHEMES = {
    "gptq": gptq.find_linears,
    "awq": awq.find_linears,
    "compressed-tensors": compressed.find_linears,
    "fp8": fp8.find_linears,
    "fbgemm_fp8": fp8.find_linears,
    "bitsandbytes": bitsandbytes.find_linears,
    "hqq": hqq.find_linears,
    "modelopt": modelopt.find_linears,
    "mxfp4": mx.find_linears,
}
METHODS = tuple(_SCHEMES)
# Scales of a KV cache, which makes its own.
_CACHE = (
    "k_scale",
    "v_scale",
    "q_scale",
    "k_zero_point",
    "v_zero_point",
    "kv_scale",
    "prob_output_scale",
)


class QuantizedTensors:
    """A checkpoint whose quantized layers appear under the names of their weights. table: it."""

    def __init__(self, table: TensorTable, linears: list[Linear]) -> None:
        self.table = table
        self._linears: dict[str, Linear] = {}
        hidden = set()
        for linear in linears:
            if linear.name in self._linears or (
                linear.name in table and linear.name not in linear.sources
            ):
                raise LoadError(f"{linear.name}: the layer has several weights")
            self._linears[linear.name] = linear
            hidden.update(linear.sources)
        self._others = [
            name
            for name in table.names()
            if name not in hidden and name.rpartition(".")[2] not in _CACHE
        ]

    @property
    def rounds_rows(self) -> bool:
        """Whether the file says of some layer how its rows are rounded."""
        return any(linear.rounding is not None for linear in self._linears.values())

    def names(self) -> list[str]:
        return [*self._linears, *self._others]

    def __contains__(self, name: str) -> bool:
        return name in self._linears or name in self.table

    def dtypes_of(self, names: list[str]) -> list[str]:
        return [
            self._linears[name].form.name
            if name in self._linears
            else self.table.dtypes_of([name])[0]
            for name in names
        ]

    def __getitem__(self, name: str) -> RawTensor | LinearTensor:
        if name in self._linears:
            return LinearTensor(self._linears[name], self.table)
        return self.table[name]


def open_quantized(raw: Any, table: TensorTable) -> QuantizedTensors:
    """The tensors of a checkpoint whose config.json has `raw` as its quantization_config.

    UnsupportedError names a quant_method or key that is not known, LoadError a tensor that
    contradicts it.
    """
    config = Settings(raw, _WHERE)
    method = config.get("quant_method")
    if not isinstance(method, str) or method not in _SCHEMES:
        first = next((name for name in table.names() if _is_packed(table[name])), None)
        layer = f" (the first layer of it is {quoted(first)})" if first else ""
        raise UnsupportedError(
            f"{_WHERE}: quant_method {shown(method)} is not known{layer}; this version has "
            f"{', '.join(sorted(_SCHEMES))}"
        )
    linears = _SCHEMES[method](table, config)
    if not linears:
        raise LoadError(f"{_WHERE}: quant_method {method!r}, but no layer is quantized by it")
    return QuantizedTensors(table, linears)


def open_blocks(table: TensorTable) -> Any:
    """A GGUF file, or what stands in front of one whose blocks are opened here (NVFP4)."""
    linears = nvfp4_gguf.find_linears(table)
    return QuantizedTensors(table, linears) if linears else table


def quantization_beside(folder: Path) -> Any:
    """What a hf_quant_config.json says that modelopt has put beside config.json; None without."""
    path = folder / "hf_quant_config.json"
    if not is_there(path):
        return None
    return {"quant_method": "modelopt", **read_json_object(path, _MAX_JSON_BYTES)}


def _is_packed(tensor: RawTensor) -> bool:
    return len(tensor.shape) == 2 and tensor.dtype in ("I32", "U8", "I8", "F8_E4M3")
