"""Opens GGUF files, single and split: metadata as Python values, tensors as views of the file.

Reads versions 2 and 3, little-endian. Every length and count in the file is compared with the bytes
that are left before anything of that size is built, so a lying file fails at once and cheaply; the
few things that cost more memory than their bytes in the file (keys, tensors, nested arrays) are
capped. Numeric arrays become NumPy arrays and string arrays lists, in one tight loop: a vocabulary
has 150,000 strings and lies on the cold-start path.

Invariant: every tensor of the returned `GGUFFile` lies inside its mapped file and overlaps no
other. Called by the model loader and by the tokenizer, which needs the metadata alone.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Any, overload

import numpy as np

from llmaccel.errors import LoadError
from llmaccel.models.checkpoint import Checkpoint, RawTensor, map_file, quoted, tensor_bytes

_VERSIONS = (2, 3)
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_NESTED_ARRAYS = 1 << 16
_MAX_ARRAY_DEPTH = 4
_MAX_NAME_BYTES = 65535
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16

_SPLIT_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)

# Numbers 4, 5, 31-33 and 36-38 were withdrawn from the format; 9 and 15 are never stored in files.
_TENSOR_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_U32 = Struct("<I")
_U64 = Struct("<Q")


class StringArray(Sequence[str]):
    """The strings of a metadata array, each made when it is looked at.

    A vocabulary as a list is some hundred thousand small objects that live for a moment; what else
    is made meanwhile lands between them and keeps their memory from the system when they are gone.
    data: the bytes; extents: start and length of each string, checked to be UTF-8.
    """

    def __init__(self, data: bytes, extents: array[int]) -> None:
        self._data = data
        self._extents = extents

    def __len__(self) -> int:
        return len(self._extents) // 2

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = 2 * range(len(self))[index]
        start, length = self._extents[at : at + 2]
        return self._data[start : start + length].decode()

    def __iter__(self) -> Iterator[str]:
        data, extents = self._data, iter(self._extents)
        for start, length in zip(extents, extents, strict=True):
            yield data[start : start + length].decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"


class GGUFFile(Checkpoint):
    """A `Checkpoint` with the file's metadata.

    metadata: key -> int, float, bool, str, a NumPy array (arrays of numbers or booleans, copied out
    of the map), a StringArray, or a list of those (nested arrays). For a split file it is that of
    the first part.
    """

    def __init__(
        self,
        path: Path,
        tensors: dict[str, RawTensor],
        metadata: dict[str, Any],
    ) -> None:
        super().__init__(path, tensors)
        self.metadata = metadata


def open_gguf(path: str | Path) -> GGUFFile:
    """Open a GGUF file; of a split one, any part stands for the whole.

    Raises LoadError naming the file, and the key or tensor, if a part is missing or anything in the
    file contradicts the format, the file's size or the other parts.
    """
    path = Path(path)
    opened = _read_file(path)
    match = _SPLIT_NAME.fullmatch(path.name)
    count = opened.metadata.get("split.count", 0)
    if not _is_integer(count) or count < 0:
        raise LoadError(f"{path}: split.count is {_brief(count)}, expected a non-negative integer")
    if count <= 1 and (match is None or int(match[3]) == 1):  # merging parts leaves a count of 0
        return opened
    if match is None:
        raise LoadError(
            f"{path}: a part of {count} (split.count), but its name does not end in "
            f"-00001-of-{count:05d}.gguf, so the other parts cannot be found"
        )
    if int(match[3]) != count or not 1 <= int(match[2]) <= count:
        raise LoadError(
            f"{path}: the name says part {int(match[2])} of {int(match[3])}, split.count is "
            f"{opened.metadata.get('split.count', 'absent')}"
        )
    return _join(path, opened, match[1], count)


def _join(path: Path, opened: GGUFFile, stem: str, count: int) -> GGUFFile:
    """All `count` parts as one file; `opened` is the part at `path`."""
    names = (f"{stem}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1))
    files = [path.with_name(name) for name in names]
    for file in files:
        if not file.exists():
            raise LoadError(f"{file}: the part is missing; {path.name} is one of {count}")
    tensors: dict[str, RawTensor] = {}
    first = opened
    for number, file in enumerate(files):
        part = opened if file == path else _read_file(file)
        first = part if number == 0 else first
        for key, expected in (("split.count", count), ("split.no", number)):
            found = part.metadata.get(key)
            if not _is_integer(found) or found != expected:
                raise LoadError(f"{file}: {key} is {_brief(found)}, expected {expected}")
        for name in part:
            if name in tensors:
                raise LoadError(f"{file}: tensor {quoted(name)} is in an earlier part as well")
            tensors[name] = part[name]
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if not _is_integer(expected) or expected != len(tensors):
        raise LoadError(
            f"{first.path}: split.tensors.count is {_brief(expected)}, the parts hold "
            f"{len(tensors)} tensors"
        )
    return GGUFFile(first.path, tensors, first.metadata)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _brief(value: Any) -> str:
    """A metadata value in a message."""
    if isinstance(value, int | float | None):
        return str(value)
    return f"of type {type(value).__name__}"


class _Reader:
    """A position in the mapped file. Each method checks the bytes that are left before it reads."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path = path
        self.bytes = memoryview(data)
        self.size = data.size
        self.pos = 0
        self.arrays_left = _MAX_NESTED_ARRAYS

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.pos:
            raise LoadError(
                f"{self.path}: {what} needs {count} bytes at offset {self.pos}, the file has "
                f"{self.size - self.pos} left"
            )

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.bytes, self.pos)
        self.pos += 4
        return value

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.bytes, self.pos)
        self.pos += 8
        return value

    def name(self, what: str) -> str:
        """A key or a tensor name: a string, not empty and of bounded length."""
        (value,) = self.strings(1, what, _MAX_NAME_BYTES)
        if not value:
            raise LoadError(f"{self.path}: {what} is empty")
        return value

    def strings(self, count: int, what: str, longest: int | None = None) -> StringArray:
        """`count` strings, each of at most `longest` bytes."""
        # Local names: this loop reads whole vocabularies.
        data, size, start, unpack = self.bytes, self.size, self.pos, _U64.unpack_from
        limit = size if longest is None else longest
        pos, extents = start, array("q")
        try:
            for _ in range(count):
                if size - pos < 8:
                    self.pos = pos
                    self.need(8, f"{what}, string {len(extents) // 2},")
                (length,) = unpack(data, pos)
                pos += 8
                if length > size - pos or length > limit:
                    raise LoadError(
                        f"{self.path}: {what}, string {len(extents) // 2}, says it has {length} "
                        f"bytes; at most {min(size - pos, limit)} are possible at offset {pos}"
                    )
                str(data[pos : pos + length], "utf-8")
                extents.append(pos - start)
                extents.append(length)
                pos += length
        except UnicodeDecodeError:
            raise LoadError(
                f"{self.path}: {what}, string {len(extents) // 2}, is not UTF-8 (offset {pos})"
            ) from None
        self.pos = pos
        return StringArray(bytes(data[start:pos]), extents)

    def numbers(self, count: int, kind: int, what: str) -> np.ndarray:
        """`count` numbers or booleans, as an array of their own: it must not pin the map."""
        dtype = _NUMBERS[kind]
        self.need(count * dtype.itemsize, what)
        values = np.frombuffer(self.bytes, dtype, count, self.pos).copy()
        self.pos += values.nbytes
        if kind == _BOOL:
            if values.size and values.max() > 1:
                raise LoadError(f"{self.path}: {what} holds booleans other than 0 and 1")
            values = values.view(np.bool_)
        return values

    def value(self, kind: int, what: str) -> Any:
        """One metadata value of type `kind`."""
        if kind == _STRING:
            return self.strings(1, what)[0]
        if kind == _ARRAY:
            return self.array(what, _MAX_ARRAY_DEPTH)
        if kind not in _NUMBERS:
            raise LoadError(f"{self.path}: {what} has the unknown value type {kind}")
        return self.numbers(1, kind, what)[0].item()

    def array(self, what: str, depth: int) -> Any:
        """An array; `depth` levels are still allowed."""
        if depth == 0:
            raise LoadError(f"{self.path}: {what} nests arrays deeper than {_MAX_ARRAY_DEPTH}")
        kind = self.u32(f"{what} (element type)")
        count = self.u64(f"{what} (length)")
        if kind in _NUMBERS:
            return self.numbers(count, kind, what)
        if kind == _STRING:
            self.need(count * 8, what)
            return self.strings(count, what)
        if kind != _ARRAY:
            raise LoadError(f"{self.path}: {what} has the unknown element type {kind}")
        self.need(count * 12, what)
        self.arrays_left -= count
        if self.arrays_left < 0:
            raise LoadError(f"{self.path}: {what}: more than {_MAX_NESTED_ARRAYS} nested arrays")
        return [self.array(what, depth - 1) for _ in range(count)]


def _read_file(path: Path) -> GGUFFile:
    """One file, whatever its split keys say."""
    data = map_file(path)
    reader = _Reader(path, data)
    if data.size < 4 or data[:4].tobytes() != b"GGUF":
        raise LoadError(f"{path}: not a GGUF file (it does not start with 'GGUF')")
    _check_version(reader)
    tensor_count = reader.u64("the tensor count")
    key_count = reader.u64("the metadata count")
    metadata = _read_metadata(reader, key_count)
    alignment = _alignment(path, metadata)
    infos = _read_infos(reader, tensor_count)
    start = min(-(-reader.pos // alignment) * alignment, data.size)
    tensors = _locate(path, infos, data[start:], alignment)
    return GGUFFile(path, tensors, metadata)


def _check_version(reader: _Reader) -> None:
    """Refuses any version but 2 and 3; leaves `reader` behind it."""
    reader.pos = 4
    version = reader.u32("the version")
    if version in _VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *_VERSIONS):
        raise LoadError(f"{reader.path}: a big-endian GGUF file; only little-endian is supported")
    raise LoadError(f"{reader.path}: GGUF version {version}; supported are 2 and 3")


def _read_metadata(reader: _Reader, count: int) -> dict[str, Any]:
    """The key-value pairs."""
    if count > _MAX_KEYS:
        raise LoadError(f"{reader.path}: {count} metadata keys; the limit is {_MAX_KEYS}")
    metadata: dict[str, Any] = {}
    for number in range(count):
        key = reader.name(f"metadata key {number}")
        what = f"metadata {quoted(key)}"
        if key in metadata:
            raise LoadError(f"{reader.path}: {what} is repeated")
        metadata[key] = reader.value(reader.u32(f"{what} (type)"), what)
    return metadata


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    # A power of two, as the format's own implementation demands.
    if not _is_integer(value) or value < 8 or value > _MAX_ALIGNMENT or value & (value - 1):
        raise LoadError(
            f"{path}: general.alignment is {_brief(value)}, expected a power of two from 8 to "
            f"{_MAX_ALIGNMENT}"
        )
    return value


def _read_infos(reader: _Reader, count: int) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """name -> (dtype, shape with rows first, offset in the data, bytes)."""
    if count > _MAX_TENSORS:
        raise LoadError(f"{reader.path}: {count} tensors; the limit is {_MAX_TENSORS}")
    infos: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for number in range(count):
        name = reader.name(f"tensor name {number}")
        what = f"tensor {quoted(name)}"
        if name in infos:
            raise LoadError(f"{reader.path}: {what} is repeated")
        dims = reader.u32(f"{what} (dimensions)")
        if dims > _MAX_DIMS:
            raise LoadError(f"{reader.path}: {what} has {dims} dimensions, at most {_MAX_DIMS}")
        # The file's order has the innermost dimension first.
        extents = [reader.u64(f"{what} (shape)") for _ in range(dims)]
        shape = tuple(reversed(extents))
        kind = reader.u32(f"{what} (type)")
        offset = reader.u64(f"{what} (offset)")
        if kind not in _TENSOR_TYPES:
            raise LoadError(f"{reader.path}: {what} has the unknown type {kind}")
        dtype = _TENSOR_TYPES[kind]
        try:
            tensor_bytes(dtype, shape[-1:])  # each row must be whole blocks, not only their sum
            size = tensor_bytes(dtype, shape)
        except ValueError as error:
            raise LoadError(f"{reader.path}: {what}: {error}") from None
        infos[name] = (dtype, shape, offset, size)
    return infos


def _locate(
    path: Path,
    infos: dict[str, tuple[str, tuple[int, ...], int, int]],
    data: np.ndarray,
    alignment: int,
) -> dict[str, RawTensor]:
    """The tensors over `data` (uint8, all bytes from the first tensor on), each range checked."""
    tensors: dict[str, RawTensor] = {}
    for name, (dtype, shape, offset, size) in infos.items():
        if offset % alignment:
            raise LoadError(
                f"{path}: tensor {quoted(name)}: offset {offset} is no multiple of the alignment "
                f"{alignment}"
            )
        if offset > data.size or size > data.size - offset:
            raise LoadError(
                f"{path}: tensor {quoted(name)}: {size} bytes at offset {offset} are outside the "
                f"{data.size} data bytes"
            )
        tensors[name] = RawTensor(name, dtype, shape, data[offset : offset + size])
    ranges = sorted((offset, size, name) for name, (_, _, offset, size) in infos.items() if size)
    for (offset, size, name), (following, _, other) in pairwise(ranges):
        if offset + size > following:
            raise LoadError(
                f"{path}: tensors {quoted(name)} and {quoted(other)} overlap: bytes {offset} to "
                f"{offset + size}, and from {following} on"
            )
    return tensors
