"""Where NVIDIA's cuBLASLt is, which models with fast_math multiply with on a GPU.

Owns the order of the search: what the process has loaded already (torch brings one), the wheel
nvidia-cublas of `pip install llmaccel[cublas]`, $CUDA_HOME, the loader's own path. Invariant:
nothing here loads it; the backend does, and says why not. Called by loading.py and cli.py.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from llmaccel.errors import UnsupportedError

_FILE = "libcublasLt.so.13"


def candidates() -> list[tuple[str, bool]]:
    """(file, only if it is loaded already), best first."""
    found = [(_FILE, True)]
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(at) / "cu13" / "lib" for at in (spec and spec.submodule_search_locations) or ()]
    if home := os.environ.get("CUDA_HOME"):
        folders.append(Path(home) / "lib64")
    found += [(str(at / _FILE), False) for at in folders if (at / _FILE).is_file()]
    return [*found, (_FILE, False)]


def find_cublas(backend: Any) -> tuple[str | None, str]:
    """(the library that the backend uses from now on, ""), or (None, why it uses none)."""
    if backend.info["library"] is None:
        reasons = []
        for file, loaded in candidates():
            try:
                backend.load_library(file, loaded)
                break
            except UnsupportedError as error:
                if not loaded:
                    reasons.append(str(error).removeprefix("library: "))
        else:
            return None, "; ".join(reasons)
    return backend.info["library"], ""
