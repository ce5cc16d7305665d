"""The C core as Python sees it; use llmaccel.LLM instead. Sources: csrc/python/."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import Buffer

EVENT_KINDS: tuple[int, int, int]
"""Of a drawn token, a scored given token, the end of a branch."""
DTYPES: tuple[str, ...]
"""Forms that weights may have in a file, by their number in the core."""
QUANTIZATIONS: tuple[str, ...]
"""What float weights may become, by number; the first, "keep", leaves them."""

class Backend:
    """Where the arithmetic runs: a pool of threads and a table of kernels.

    threads: 0 for one per usable processor, which is also the most that start; negative: exactly
    -threads, for tests. library: a shared object that holds the backend, with its device, in place
    of name, isa and threads.
    """

    def __init__(
        self,
        name: str = "cpu",
        isa: str | None = None,
        threads: int = 0,
        trace: Callable[[str, int, int, int, int], object] | None = None,
        library: str | None = None,
        device: int = 0,
    ) -> None: ...
    @property
    def info(self) -> dict[str, Any]: ...
    def probe_read(self, bytes: int, huge: bool = True, /) -> dict[str, float]: ...
    def probe_peak(self, what: str, /) -> float: ...
    def step_threads(self, n: int, /) -> None: ...
    def load_library(self, file: str, loaded: bool = False, /) -> None: ...

class Model:
    """Packed weights.

    weights: a recipe (llmaccel.recipes.make_recipe), or the form of all float tensors: "auto",
    "F32", "F16" or "BF16".
    """

    def __init__(
        self, backend: Backend, desc: Mapping[str, Any], weights: str | dict[str, Any] = "auto"
    ) -> None: ...
    def set(
        self, slot: str, layer: int, parts: Sequence[tuple[Any, ...]], expert: int = 0, /
    ) -> None: ...
    def finish(self) -> None: ...
    def read(self, pattern: int, seconds: float, /) -> float: ...
    def show(
        self, slot: str, layer: int, expert: int, part: int, /
    ) -> tuple[Tensor, str | None, int, int, int, int, int]: ...
    def copy(self, slot: str, layer: int, expert: int, part: int, out: Buffer, /) -> None: ...
    def close(self) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def token_bytes(self) -> int: ...
    @property
    def views(self) -> int: ...

class Engine:
    """Continuous batching over a paged KV cache."""

    def __init__(self, model: Model, limits: Mapping[str, int]) -> None: ...
    def add(
        self,
        prompt: Sequence[int] | Buffer,
        params: Mapping[str, Any],
        *,
        branches: int = 1,
        suffixes: Sequence[Sequence[int]] | None = None,
        priority: int = 0,
        timeout: float = 0.0,
        logits: Buffer | None = None,
        drawn_logits: Buffer | None = None,
        states: Buffer | None = None,
        drawn_states: Buffer | None = None,
        layers: Sequence[int] | Buffer | None = None,
        state_from: int = 0,
        state_to: int = 0,
        process: tuple[Callable[[int], bool], Buffer] | None = None,
        length_penalty: float | None = None,
        beam: int = 1,
        skip_first: bool = False,
    ) -> int: ...
    def cancel(self, id: int, branch: int = -1, /) -> None: ...
    def kv(self, id: int, branch: int, out: Buffer | None = None, /) -> tuple[int, int]: ...
    def step(
        self,
    ) -> list[tuple[int, int, int, int, int, int, float, int, bytes | None, bytes | None]]: ...
    def preempt(self, n: int, /) -> None: ...
    def has_work(self) -> bool: ...
    def stats(self) -> dict[str, Any]: ...
    def expert_load(self) -> bytes: ...
    def close(self) -> None: ...

class Tensor:
    """Numbers in host memory or on a device, contiguous unless their maker says so; cross to NumPy,
    DLPack and buffers without a copy."""

    def __init__(self, array: Any, *, name: str = "array") -> None: ...
    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: str, device: str = "cpu", /) -> Tensor: ...
    @classmethod
    def from_bytes(cls, data: Buffer, dtype: str, shape: tuple[int, ...], /) -> Tensor: ...
    def tolist(self) -> Any: ...
    def item(self) -> int | float | bool: ...
    def to(self, device: str) -> Tensor: ...
    @property
    def device(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def is_contiguous(self) -> bool: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def strided(
        self, dtype: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], /
    ) -> Tensor: ...
    def numpy(self) -> np.ndarray: ...
    def data_ptr(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __float__(self) -> float: ...
    def __int__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Packed:
    """A weight in the core's layout; use llmaccel.kernels.pack instead."""

    def __init__(
        self,
        data: Buffer,
        dtype: str,
        rows: int,
        cols: int,
        format: str,
        quantize: str,
        threads: int,
        near: Tensor | None = None,
    ) -> None: ...
    @property
    def device(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def format(self) -> dict[str, Any]: ...
    def linear(
        self,
        isa: str,
        activation: str,
        x: Buffer | Tensor,
        y: Buffer | Tensor,
        bias: Buffer | Tensor | None,
        threads: int,
        /,
    ) -> None: ...
    def unpack(self, isa: str, ids: Buffer, out: Buffer, /) -> None: ...
    @classmethod
    def extents(
        cls, dtype: str, rows: int, cols: int, format: str, quantize: str, /
    ) -> tuple[int, int]: ...
    @classmethod
    def over(
        cls, data: Buffer, dtype: str, rows: int, cols: int, format: str, quantize: str, /
    ) -> Packed: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Pages:
    """KV pages of one sequence; use llmaccel.kernels.KVPages instead."""

    def __init__(self, n_heads: int, d: int, max_tokens: int, dtype: str) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def store(self, isa: str, k: Buffer, v: Buffer, /) -> None: ...
    def attend(
        self,
        isa: str,
        q: Buffer,
        positions: Buffer,
        out: Buffer,
        sinks: Buffer | None,
        H: int,
        scale: float,
        softcap: float,
        window: int,
        threads: int,
        /,
    ) -> None: ...

class LatentPages:
    """MLA pages of one sequence; use llmaccel.kernels.LatentPages instead."""

    def __init__(self, r: int, p: int, max_tokens: int, dtype: str) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def store(self, isa: str, latent: Buffer, key: Buffer, /) -> None: ...
    def attend(
        self,
        isa: str,
        q: Buffer,
        positions: Buffer,
        out: Buffer,
        H: int,
        scale: float,
        threads: int,
        /,
    ) -> None: ...

def plan(
    desc: Mapping[str, Any],
    limits: Mapping[str, int],
    threads: int = 0,
    backend: Backend | None = None,
    /,
) -> dict[str, int]: ...
def weight_bytes(
    desc: Mapping[str, Any],
    weights: str | dict[str, Any],
    slots: Sequence[tuple[str, Sequence[tuple[str, int, int]], int]],
    /,
) -> int: ...
def balance_experts(
    load: Buffer,
    n_layers: int,
    n_experts: int,
    n_slots: int,
    n_groups: int,
    n_nodes: int,
    n_devices: int,
    /,
) -> tuple[bytes, bytes]: ...
def sampling_fields() -> list[tuple[str, str, int]]: ...
def kernel_isas() -> list[str]: ...
def __getattr__(name: str) -> Any: ...  # kernels and tables on their own, for tests
