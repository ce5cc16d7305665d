"""What every checkpoint reader returns: named raw tensors over read-only memory maps.

Owns the table of storage formats (elements and bytes per block), the mapping of a file into memory,
and the two types `RawTensor` and `Checkpoint`. Nothing here decodes a block format and nothing is
copied: a tensor is a uint8 view into the file, and NumPy's base reference keeps the map alive for
as long as any view of it lives, so a tensor may be used when its `Checkpoint` is gone.

Invariant: a `RawTensor` holds exactly the bytes that its dtype and shape require, and they lie
inside the map. The readers (safetensors.py, gguf.py) check that before they build one, because
files are untrusted; the weight loader and the packer rely on it.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmaccel.errors import LoadError, UnsupportedError
from llmaccel.models.plain import plain_form

# dtype: (elements per block, bytes per block). A plain number is a block of one element.
BLOCKS: dict[str, tuple[int, int]] = {
    "F64": (1, 8),
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "C64": (1, 8),
    "I8": (1, 1),
    "I16": (1, 2),
    "I32": (1, 4),
    "I64": (1, 8),
    "U8": (1, 1),
    "U16": (1, 2),
    "U32": (1, 4),
    "U64": (1, 8),
    "BOOL": (1, 1),
    "F8_E4M3": (1, 1),
    "F8_E5M2": (1, 1),
    "F8_E8M0": (1, 1),
    "F8_E4M3FNUZ": (1, 1),
    "F8_E5M2FNUZ": (1, 1),
    "F4": (2, 1),
    "F6_E2M3": (4, 3),
    "F6_E3M2": (4, 3),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q1_0": (128, 18),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}

FLOATS = ("F64", "F32", "F16", "BF16")

# NumPy has no bfloat16 or 8-bit float: those are handed out as their bit patterns.
_NUMPY: dict[str, np.dtype] = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",
        "C64": "<c8",
        "I8": "i1",
        "I16": "<i2",
        "I32": "<i4",
        "I64": "<i8",
        "U8": "u1",
        "U16": "<u2",
        "U32": "<u4",
        "U64": "<u8",
        "BOOL": "?",
        "F8_E4M3": "u1",
        "F8_E5M2": "u1",
        "F8_E8M0": "u1",
        "F8_E4M3FNUZ": "u1",
        "F8_E5M2FNUZ": "u1",
    }.items()
}

# Byte offsets are int64 in the C core and in NumPy.
_MAX_ELEMENTS = 2**63 - 1
_SHOWN_CHARACTERS = 96


def quoted(name: str) -> str:
    """`name` from an untrusted file as messages show it: escaped, and cut where it is long."""
    if len(name) > _SHOWN_CHARACTERS:
        return f"{name[:_SHOWN_CHARACTERS]!a}... ({len(name)} characters)"
    return ascii(name)


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor occupies; ValueError if `shape` overflows or fills no whole blocks."""
    plain = plain_form(dtype)
    if plain is not None:
        rows, cols = shape[:-1], shape[-1]
        return tensor_bytes("U8", (*rows, plain.row_bytes(cols)))
    elements_per_block, bytes_per_block = BLOCKS[dtype]
    elements, bound = 1, 1
    for extent in shape:
        elements *= extent
        bound *= max(extent, 1)  # a zero must not hide extents that overflow an index
        if bound > _MAX_ELEMENTS // bytes_per_block:
            raise ValueError(f"shape {list(shape)} overflows")
    if elements % elements_per_block:
        raise ValueError(
            f"{elements} elements are no multiple of the {elements_per_block} of a {dtype} block"
        )
    return elements // elements_per_block * bytes_per_block


def is_coded(dtype: str) -> bool:
    """Whether weights of this type are codes with scales, not floats."""
    return dtype not in FLOATS


def map_file(path: Path) -> np.ndarray:
    """Map a whole file read-only; returns its bytes as uint8 [file size], a view of the map.

    Raises LoadError if `path` is no readable, non-empty regular file. The size is taken from the
    open file. Reading bytes that a file has lost since would end the process with SIGBUS, so
    `Checkpoint` looks at the size again whenever a tensor is asked for.
    """
    try:
        # A FIFO in place of a checkpoint must be refused, not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise LoadError(f"{path}: not a regular file")
            if info.st_size == 0:
                raise LoadError(f"{path}: the file is empty")
            mapped = mmap.mmap(fd, info.st_size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: cannot open the file: {error}") from error
    return np.frombuffer(mapped, dtype=np.uint8)


def _map_of(data: np.ndarray) -> mmap.mmap | None:
    """The file map that `data` is a view of, if it is one."""
    owner: object = data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, mmap.mmap) else None


def _check_whole(where: str, data: np.ndarray) -> None:
    """LoadError if the file that `data` is a view of has become shorter than its map."""
    owner = _map_of(data)
    # size() asks the system about the file, which the map keeps open; len() is what was mapped.
    if owner is not None and owner.size() < len(owner):
        raise LoadError(
            f"{where}: the file has been cut from {len(owner)} to {owner.size()} "
            "bytes since it was opened"
        )


def drop_pages(data: np.ndarray) -> None:
    """Takes the pages under `data` out of this process's memory, where it is a view of a mapped
    file; they stay in the system's cache and come back when they are read. Other memory is left
    alone.
    """
    owner = _map_of(data)
    if owner is None or data.size == 0:
        return
    first = data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    owner.madvise(mmap.MADV_DONTNEED, start, first + data.size - start)


@dataclass(eq=False, slots=True)  # not frozen, which makes one take a microsecond more
class RawTensor:
    """One tensor as it is stored; never changed.

    name: as in the file. dtype: a key of `BLOCKS`, or the name of plain rows. shape: row-major,
    rows first ([N, K] for a linear layer's weight, whatever the file's own order). data: uint8,
    1-D, a read-only view of the mapped file (of plain rows its own memory); its address has only
    the alignment that the file gives it. order: int32 [K] of plain rows whose columns are sorted.
    rounding: of the rows that the weight multiplies, (kind, group, scale) as la_rounding has it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray
    order: np.ndarray | None = None
    rounding: tuple[int, int, float] | None = None

    def rows(self, start: int, stop: int) -> RawTensor:
        """Slices `start:stop` of the first dimension, zero-copy, block formats included.

        Raises LoadError if the range is not inside the tensor, or if one row is not whole blocks
        (a 1-D tensor of a block format).
        """
        total = self.shape[0] if self.shape else 0
        if not self.shape or not 0 <= start <= stop <= total:
            raise LoadError(
                f"tensor {quoted(self.name)}: rows {start}:{stop} are outside its shape "
                f"{list(self.shape)}"
            )
        try:
            row = tensor_bytes(self.dtype, self.shape[1:])
        except ValueError as error:
            raise LoadError(f"tensor {quoted(self.name)}: has no row slices: {error}") from error
        return RawTensor(
            self.name,
            self.dtype,
            (stop - start, *self.shape[1:]),
            self.data[start * row : stop * row],
            self.order,
            self.rounding,
        )

    def numpy(self) -> np.ndarray:
        """A zero-copy, read-only view with the tensor's shape.

        BF16 comes as uint16 and the 8-bit floats as uint8 bit patterns. Raises UnsupportedError for
        block formats and LoadError for a BOOL tensor that holds anything but 0 and 1.
        """
        if self.dtype not in _NUMPY:
            raise UnsupportedError(
                f"tensor {quoted(self.name)}: {self.dtype} is a block format, not plain numbers"
            )
        if self.dtype == "BOOL" and self.data.size and self.data.max() > 1:
            raise LoadError(f"tensor {quoted(self.name)}: BOOL bytes other than 0 and 1")
        return self.data.view(_NUMPY[self.dtype]).reshape(self.shape)

    def float32(self) -> np.ndarray:
        """A new float32 array with the tensor's shape, from F64, F32, F16 or BF16.

        Raises UnsupportedError for any other dtype.
        """
        if self.dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            bits = self.numpy().astype(np.uint32)
            bits <<= 16
            return bits.view(np.float32)
        if self.dtype in ("F64", "F32", "F16"):
            # F64 beyond the float32 range becomes inf, as every conversion to float32 does.
            with np.errstate(over="ignore"):
                return self.numpy().astype(np.float32)
        raise UnsupportedError(
            f"tensor {quoted(self.name)}: {self.dtype} has no direct conversion to float32"
        )


class Checkpoint:
    """Tensors by name, from one file or several; mapping-like.

    A file is unmapped when this and the last array over it are gone. Asking for a tensor raises
    LoadError when it is missing or its file has been cut since.
    """

    def __init__(self, path: Path, tensors: dict[str, RawTensor]) -> None:
        self.path = path
        self._tensors = tensors

    def names(self) -> list[str]:
        """The tensors' names, in file order."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def dtypes_of(self, names: list[str]) -> list[str]:
        """The tensors' dtypes, by their headers alone."""
        tensors = self._tensors
        try:
            return [tensors[name].dtype for name in names]
        except KeyError as error:
            raise self._missing(error.args[0]) from None

    def _missing(self, name: str) -> LoadError:
        return LoadError(f"{self.path}: tensor {quoted(name)} is missing")

    def __getitem__(self, name: str) -> RawTensor:
        if name not in self._tensors:
            raise self._missing(name)
        tensor = self._tensors[name]
        _check_whole(f"{self.path}: tensor {quoted(name)}", tensor.data)
        return tensor

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)
