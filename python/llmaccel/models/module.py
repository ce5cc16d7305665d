"""Weights that are in memory already: arrays of any kind, and the modules of torch that hold them.

Nothing here imports torch: a module is what has `state_dict` and `config`, a tensor what DLPack can
take. Invariant: numbers are read where they lie; of a module that is to be released, a parameter's
storage is let go as soon as the last slot that is made of it has been packed. Called by loading.py,
weights.py and llm.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import ConfigError, LoadError, UnsupportedError
from llmaccel.models.checkpoint import RawTensor, quoted

_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}


def raw_tensor(name: str, array: Any) -> RawTensor:
    """A NumPy array, torch tensor or DLPack exporter on the CPU as a checkpoint's tensor, without a
    copy. ConfigError names it where it cannot be taken."""
    source = array.detach() if hasattr(array, "detach") else array
    try:
        tensor = _core.Tensor(source)
        data = np.frombuffer(tensor, np.uint8) if tensor.nbytes else np.empty(0, np.uint8)
    except (TypeError, BufferError, ConfigError, UnsupportedError) as error:
        raise ConfigError(f"{quoted(name)}: {error}") from error
    return RawTensor(name, tensor.dtype, tensor.shape, data)


class ModuleTensors:
    """A torch module as a checkpoint. release: let go of what is packed."""

    def __init__(self, module: Any, release: bool) -> None:
        self._tensors: dict[str, Any] = dict(module.state_dict(keep_vars=True))
        self._release = release
        self._left: Counter[int] = Counter()

    def names(self) -> list[str]:
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def dtypes_of(self, names: list[str]) -> list[str]:
        found = []
        for name in names:
            dtype = str(self._there(name).dtype)
            if dtype not in _DTYPES:
                raise UnsupportedError(f"from_torch: {quoted(name)}: weights of {dtype}")
            found.append(_DTYPES[dtype])
        return found

    def __getitem__(self, name: str) -> RawTensor:
        tensor = self._there(name)
        if not tensor.is_contiguous():  # a copy of this one, gone when it is packed
            tensor = tensor.detach().contiguous()
        try:
            return raw_tensor(name, tensor)
        except ConfigError as error:
            raise ConfigError(f"from_torch: {error}") from error

    def _there(self, name: str) -> Any:
        if name not in self._tensors:
            raise LoadError(f"from_torch: the module has no parameter {quoted(name)}")
        return self._tensors[name]

    def expect(self, uses: Counter[str]) -> None:
        """How often each tensor will be packed. One parameter may have several names."""
        for name, count in uses.items():
            if name in self._tensors:
                self._left[id(self._tensors[name])] += count

    def packed(self, names: Iterable[str]) -> None:
        """A slot has been packed from these tensors."""
        for name in names:
            tensor = self._tensors[name]
            self._left[id(tensor)] -= 1
            if self._release and self._left[id(tensor)] == 0:
                tensor.data = tensor.data.new_empty(0)


def module_config(module: Any) -> dict[str, Any]:
    """The config.json of a transformers module. ConfigError where it is none."""
    config = getattr(module, "config", None)
    if not hasattr(config, "to_dict") or not hasattr(module, "state_dict"):
        raise ConfigError(
            f"from_torch: expected a transformers module with config and state_dict, got "
            f"{type(module).__name__}"
        )
    return {**config.to_dict(), "architectures": [type(module).__name__]}


def module_generation(module: Any) -> dict[str, Any]:
    """What its generation config says that is no default."""
    given = getattr(module, "generation_config", None)
    return dict(given.to_diff_dict()) if hasattr(given, "to_diff_dict") else {}
