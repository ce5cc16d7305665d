"""Checkpoints that others have quantized, read as they are: quantization_config and its tensors.

Owns which scheme a quant_method means and the table that stands in front of a checkpoint: a layer's
packed tensors appear as one weight of plain rows (models/plain.py), everything else as it is.
Invariant: what the configuration says and the tensors show must agree; a scheme, key or tensor that
is not known is an error that names it, never a guess. Each scheme is a file beside this one.

Called by loading.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
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
# quant_method: the scheme, whose `find_linears` finds layers and whose `foretell` says their forms.
_SCHEMES = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": compressed,
    "fp8": fp8,
    "fbgemm_fp8": fp8,
    "bitsandbytes": bitsandbytes,
    "hqq": hqq,
    "modelopt": modelopt,
    "mxfp4": mx,
}
METHODS = tuple(_SCHEMES)
# The tensor by which a scheme's layers are found, and others that never come without it.
_PARTS = {
    "gptq": (".qweight", (".qzeros", ".g_idx")),
    "awq": (".qweight", (".qzeros",)),
    "compressed-tensors": (".weight_packed", (".weight_shape", ".weight_global_scale")),
    "hqq": (".W_q", (".zero",)),
    "mxfp4": ("_blocks", ("_scales",)),
}
_EXPERT = re.compile(r"\.experts\.\d+\.")
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
    first = (name for name in table.names() if _is_packed(table[name]))
    method = _method(config, first)
    linears = _SCHEMES[method].find_linears(table, config)
    _check_parts(table, method)
    if not linears:
        raise LoadError(f"{_WHERE}: quant_method {method!r}, but no layer is quantized by it")
    return QuantizedTensors(table, linears)


def _method(config: Settings, layers: Iterator[str]) -> str:
    """The name of the scheme. UnsupportedError for one that is not known, with the first of its
    `layers`."""
    method = config.get("quant_method")
    if isinstance(method, str) and method in _SCHEMES:
        return method
    first = next(layers, None)
    layer = f" (the first layer of it is {quoted(first)})" if first else ""
    raise UnsupportedError(
        f"{_WHERE}: quant_method {shown(method)} is not known{layer}; this version has "
        f"{', '.join(sorted(_SCHEMES))}"
    )


class ForetoldTensors:
    """The headers of a quantized checkpoint whose files are not there: what its config.json tells.

    plain: its tensors as floats, those of each layer's first expert for all; dtype: theirs. layers:
    (name, K, stacked) of the matrices that a scheme may quantize; stacked: all experts in one.
    """

    rounds_rows = True  # of plans, which are the same whether files say how

    def __init__(
        self, raw: Any, plain: TensorTable, dtype: str, layers: Iterable[tuple[str, int, bool]]
    ) -> None:
        config = Settings(raw, _WHERE)
        method = _method(config, iter(()))
        form_of = _SCHEMES[method].foretell(config, dtype == "F16")
        self._plain, self._dtype = plain, dtype
        self._forms: dict[str, str] = {}
        for name, k, stacked in layers:
            form = form_of(name.removesuffix(".weight"), k)
            if form is None:
                continue
            if stacked and method != "mxfp4":
                raise UnsupportedError(
                    f"{_WHERE}: how {method} files hold {quoted(name)}, the experts of a layer, "
                    "is not known without them"
                )
            self._forms[name] = form.name

    def names(self) -> list[str]:
        return self._plain.names()

    def __contains__(self, name: str) -> bool:
        return name in self._plain

    def dtypes_of(self, names: list[str]) -> list[str]:
        first = (_EXPERT.sub(".experts.0.", name) for name in names)
        return [self._forms.get(name, self._dtype) for name in first]

    def __getitem__(self, name: str) -> RawTensor:
        raise UnsupportedError(
            "load_format='dummy': a quantized model can be planned from its config.json alone, but "
            "has no random weights"
        )


def _check_parts(table: TensorTable, method: str) -> None:
    """LoadError for a layer that lacks its codes: else its weight would seem to be missing."""
    codes, others = _PARTS.get(method, ("", ()))
    for name in table.names():
        for part in others:
            wanted = name.removesuffix(part) + codes
            if name.endswith(part) and wanted not in table:
                raise LoadError(f"tensor {quoted(wanted)} is missing, but {quoted(name)} is there")


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
