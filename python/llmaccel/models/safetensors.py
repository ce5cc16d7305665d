"""Opens safetensors checkpoints: one file, several, or shards listed by an index.

A file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, data_offsets)
and the data, which the tensors must cover without overlap, hole or remainder. The header is read by
a scanner that accepts only that shape of JSON: it stops at the first wrong character, so a hostile
header costs a small multiple of its own bytes, cannot recurse, and cannot repeat a key.

Invariant: every tensor of the returned `Checkpoint` lies inside its mapped file. Called by the
model loader; the bytes stay in the file (see checkpoint.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from json.decoder import JSONDecodeError, scanstring
from pathlib import Path

import numpy as np

from llmaccel.errors import LoadError
from llmaccel.models.checkpoint import (
    Checkpoint,
    RawTensor,
    map_file,
    quoted,
    tensor_bytes,
)

_SINGLE_NAME = "model.safetensors"
_INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_DIMS = 8
_MAX_DIGITS = 20  # of an unsigned 64-bit integer
_MAX_INDEX_DEPTH = 8

# The dtypes of this format: the table of storage formats also has GGUF's block formats.
_DTYPES = frozenset(
    {
        "F64",
        "F32",
        "F16",
        "BF16",
        "C64",
        "BOOL",
        "I8",
        "I16",
        "I32",
        "I64",
        "U8",
        "U16",
        "U32",
        "U64",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E8M0",
        "F8_E4M3FNUZ",
        "F8_E5M2FNUZ",
        "F4",
        "F6_E2M3",
        "F6_E3M2",
    }
)

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LITERAL = re.compile(r"true|false|null")
# Members as writers spell them, with the comma before them, read at one go: large models have tens
# of thousands. What is allowed beside that (fields in another order, escapes) is read in pieces.
_GAP = r"[ \t\n\r]*"
_COLON, _COMMA, _NAME = f"{_GAP}:{_GAP}", f"{_GAP},{_GAP}", r'"([^"\\\x00-\x1f]*)"'
_COUNT = rf"(?:0|[1-9][0-9]{{0,{_MAX_DIGITS - 1}}})"
_TENSOR = re.compile(
    rf'{_COMMA}(?!"__metadata__"){_NAME}{_COLON}{{{_GAP}"dtype"{_COLON}"([A-Z0-9_]+)"{_COMMA}'
    rf'"shape"{_COLON}\[{_GAP}(?:({_COUNT}(?:{_COMMA}{_COUNT}){{0,{_MAX_DIMS - 1}}}){_GAP})?\]'
    rf'{_COMMA}"data_offsets"{_COLON}\[{_GAP}({_COUNT}){_COMMA}({_COUNT}){_GAP}\]{_GAP}}}'
)
_LISTED = re.compile(rf'{_COMMA}{_NAME}{_COLON}"([^"/\\\x00-\x1f]+\.safetensors)"')


def open_safetensors(path: str | Path) -> Checkpoint:
    """Open a `.safetensors` file, or a folder that holds a checkpoint in that format.

    In a folder: `model.safetensors` if it is there, else the shards that
    `model.safetensors.index.json` lists (only the tensors in its weight_map are visible), else all
    `*.safetensors` files together. Raises LoadError, naming file and tensor, if anything is missing
    or contradicts the format.
    """
    path = Path(path)
    if not path.is_dir():
        return Checkpoint(path, _read_file(path))
    if (path / _SINGLE_NAME).exists():
        return Checkpoint(path / _SINGLE_NAME, _read_file(path / _SINGLE_NAME))
    if (path / _INDEX_NAME).exists():
        return Checkpoint(path / _INDEX_NAME, _read_shards(path / _INDEX_NAME))
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = any(path.glob("*.bin"))
        hint = ", only pickled weights (.bin): convert them to safetensors" if pickled else ""
        raise LoadError(f"{path}: the folder holds no .safetensors file{hint}")
    tensors: dict[str, RawTensor] = {}
    for file in files:
        for name, tensor in _read_file(file).items():
            if name in tensors:
                raise LoadError(
                    f"{file}: tensor {quoted(name)} is in another file of the folder as well, and "
                    f"there is no {_INDEX_NAME} to choose"
                )
            tensors[name] = tensor
    return Checkpoint(path, tensors)


class _Scanner:
    """Reads the JSON these files need, left to right; LoadError at the first wrong character."""

    def __init__(self, raw: bytes, where: str) -> None:
        self.where = where
        self.pos = 0
        try:
            self.text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise LoadError(f"{where} is not UTF-8 (byte {error.start})") from None

    def fail(self, problem: str) -> LoadError:
        return LoadError(f"{self.where}, character {self.pos}: {problem}")

    def peek(self) -> str:
        """The next character that is no white space, or '' at the end."""
        self.pos = _SPACE.match(self.text, self.pos).end()
        return self.text[self.pos : self.pos + 1]

    def take(self, char: str) -> None:
        found = self.peek()
        if found != char:
            raise self.fail(f"expected {char!r}, found {ascii(found) if found else 'the end'}")
        self.pos += 1

    def string(self) -> str:
        self.take('"')
        try:
            value, self.pos = scanstring(self.text, self.pos, True)
        except JSONDecodeError as error:
            raise self.fail(error.msg) from None
        if _SURROGATE.search(value):
            raise self.fail("a string holds half of a surrogate pair")
        return value

    def unsigned(self) -> int:
        self.peek()
        match = _NUMBER.match(self.text, self.pos)
        if match is None or match[1] or match[2] or match[0][0] == "-":
            raise self.fail("expected a non-negative integer")
        if len(match[0]) > _MAX_DIGITS:
            raise self.fail(f"an integer of {len(match[0])} digits")
        self.pos = match.end()
        return int(match[0])

    def unsigned_list(self, most: int) -> tuple[int, ...]:
        """A list of at most `most` non-negative integers."""
        self.take("[")
        values: list[int] = []
        if self.peek() != "]":
            values.append(self.unsigned())
            while self.peek() == ",":
                if len(values) == most:
                    raise self.fail(f"a list of more than {most} integers")
                self.pos += 1
                values.append(self.unsigned())
        self.take("]")
        return tuple(values)

    def members(
        self, usual: re.Pattern[str] | None = None, found: list[tuple[str, ...]] | None = None
    ) -> Iterator[str]:
        """The keys of an object; the caller reads the value after each. Refuses a repeated key.

        Members behind the first that `usual` fits as a whole, from the comma before them on, do not
        come out: their groups, of which the first is the key, are added to `found`.
        """
        seen: set[str] = set()
        self.take("{")
        while self.peek() != "}":
            if seen:
                self.take(",")
            key = self.string()
            if key in seen:
                raise self.repeated(key)
            seen.add(key)
            self.take(":")
            yield key
            if usual is not None and found is not None:
                self.run(usual, found, seen)
        self.pos += 1

    def run(self, usual: re.Pattern[str], found: list[tuple[str, ...]], seen: set[str]) -> None:
        """Reads members of an object as long as `usual` fits."""
        # Local names: this loop reads tens of thousands.
        text, pos, fit, first = self.text, self.pos, usual.match, len(found)
        while (match := fit(text, pos)) is not None:
            found.append(match.groups(""))
            pos = match.end()
        self.pos = pos
        keys = [groups[0] for groups in found[first:]]
        if len(set(keys)) == len(keys) and seen.isdisjoint(keys):
            seen.update(keys)
            return
        for key in keys:
            if key in seen:
                raise self.repeated(key)
            seen.add(key)

    def repeated(self, key: str) -> LoadError:
        return self.fail(f"key {quoted(key)} is repeated")

    def skip(self, depth: int) -> None:
        """Pass over any one value, nested at most `depth` deep."""
        first = self.peek()
        if first in ("{", "[") and depth == 0:
            raise self.fail(f"nested deeper than {_MAX_INDEX_DEPTH}")
        if first == '"':
            self.string()
        elif first == "{":
            for _ in self.members():
                self.skip(depth - 1)
        elif first == "[":
            self.pos += 1
            if self.peek() != "]":
                self.skip(depth - 1)
                while self.peek() == ",":
                    self.pos += 1
                    self.skip(depth - 1)
            self.take("]")
        else:
            match = _NUMBER.match(self.text, self.pos) or _LITERAL.match(self.text, self.pos)
            if match is None:
                raise self.fail("expected a value")
            self.pos = match.end()

    def end(self) -> None:
        if self.peek():
            raise self.fail("text after the closing brace")


def _read_file(path: Path) -> dict[str, RawTensor]:
    """The tensors of one file, by name, in header order."""
    mapped = map_file(path)
    if mapped.size < 8:
        raise LoadError(f"{path}: {mapped.size} bytes are too short for a safetensors file")
    length = int.from_bytes(mapped[:8].tobytes(), "little")
    if length > _MAX_HEADER_BYTES:
        raise LoadError(
            f"{path}: the header says it has {length} bytes; the limit is {_MAX_HEADER_BYTES}"
        )
    if length > mapped.size - 8:
        raise LoadError(
            f"{path}: the header says it has {length} bytes, the file has {mapped.size - 8} left"
        )
    data = mapped[8 + length :]
    scanner = _Scanner(mapped[8 : 8 + length].tobytes(), f"{path}: header")
    if not scanner.text.startswith("{"):
        raise LoadError(f"{path}: the header does not start with '{{'")
    tensors = _Tensors(path, data)
    found: list[tuple[str, ...]] = []
    for name in scanner.members(_TENSOR, found):
        tensors.add(found)
        if name == "__metadata__":
            for _ in scanner.members():
                scanner.string()
            continue
        found.append((name, *_read_entry(scanner, f"{path}: tensor {quoted(name)}")))
    tensors.add(found)
    scanner.end()
    tensors.check_cover()
    return tensors.by_name


class _Tensors:
    """A file's tensors over its data, each checked as it is added."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path = path
        self.data = data
        self.by_name: dict[str, RawTensor] = {}
        self.begins: list[int] = []  # in the order of by_name
        self.ends: list[int] = []

    def add(self, entries: list[tuple[str, ...]]) -> None:
        """Takes (name, dtype, dims, begin, end), as they are spelled, out of the list."""
        data, size, by_name = self.data, self.data.size, self.by_name
        begins, ends = self.begins, self.ends
        for name, dtype, dims, first, last in entries:
            begin, end = int(first), int(last)
            try:
                shape, needed = _extent(dtype, dims)
            except ValueError as error:
                raise LoadError(f"{self.path}: tensor {quoted(name)}: {error}") from None
            if not begin <= end <= size or needed != end - begin:
                where = f"{self.path}: tensor {quoted(name)}"
                raise _wrong_range(where, f"{dtype} {list(shape)}", needed, (begin, end), size)
            by_name[name] = RawTensor(name, dtype, shape, data[begin:end])
            begins.append(begin)
            ends.append(end)
        entries.clear()

    def check_cover(self) -> None:
        """Refuses overlaps, holes and a remainder: the format wants all bytes indexed."""
        size = self.data.size
        if [0, *self.ends] == [*self.begins, size]:  # one behind the other, as they are written
            return
        reached = 0
        for begin, end, name in sorted(zip(self.begins, self.ends, self.by_name, strict=True)):
            if begin != reached:
                problem = "overlaps the tensor before it" if begin < reached else "leaves a hole"
                raise LoadError(
                    f"{self.path}: tensor {quoted(name)} {problem}: it starts at byte {begin}, "
                    f"expected {reached}"
                )
            reached = end
        if reached != size:
            raise LoadError(f"{self.path}: the tensors cover {reached} of {size} data bytes")


@lru_cache(maxsize=256)  # of at most _MAX_DIMS numbers: texts are short
def _extent(dtype: str, dims: str) -> tuple[tuple[int, ...], int]:
    """Shape and bytes of a tensor; dims as in a list. ValueError says what is wrong with them."""
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {quoted(dtype)}")
    shape = tuple(int(n) for n in dims.split(",")) if dims else ()
    return shape, tensor_bytes(dtype, shape)


def _wrong_range(
    where: str, form: str, needed: int, found: tuple[int, int], size: int
) -> LoadError:
    begin, end = found
    if not begin <= end <= size:
        return LoadError(
            f"{where}: data_offsets [{begin}, {end}] are outside the {size} data bytes"
        )
    return LoadError(
        f"{where}: {form} needs {needed} bytes, data_offsets [{begin}, {end}] hold {end - begin}"
    )


def _read_entry(scanner: _Scanner, where: str) -> tuple[str, ...]:
    """(dtype, dims, begin, end), each spelled, of a tensor whose fields come in any order."""
    dtype, shape, offsets = None, None, None
    for field in scanner.members():
        if field == "dtype":
            dtype = scanner.string()
        elif field == "shape":
            shape = scanner.unsigned_list(_MAX_DIMS)
        elif field == "data_offsets":
            offsets = scanner.unsigned_list(2)
        else:
            raise LoadError(f"{where}: unknown field {quoted(field)}")
    if dtype is None or shape is None or offsets is None:
        missing = [
            key
            for key, value in (("dtype", dtype), ("shape", shape), ("data_offsets", offsets))
            if value is None
        ]
        raise LoadError(f"{where}: missing {' and '.join(missing)}")
    if len(offsets) != 2:
        raise LoadError(f"{where}: data_offsets {list(offsets)} are not [begin, end]")
    return dtype, ",".join(map(str, shape)), *map(str, offsets)


def _read_shards(index: Path) -> dict[str, RawTensor]:
    """The tensors that an index file lists, each from the shard that it names."""
    weight_map = _read_index(index)
    shards: dict[str, dict[str, RawTensor]] = {}
    for shard in sorted(set(weight_map.values())):
        file = index.parent / shard
        if not file.exists():
            raise LoadError(f"{file}: the shard is missing; {index.name} lists it")
        shards[shard] = _read_file(file)
    try:
        return {name: shards[shard][name] for name, shard in weight_map.items()}
    except KeyError as error:
        name = error.args[0]
        raise LoadError(
            f"{index.parent / weight_map[name]}: tensor {quoted(name)} is missing; {index.name} "
            f"says it is in this shard"
        ) from None


def _read_index(index: Path) -> dict[str, str]:
    """The index file's weight_map: tensor name -> plain file name of its shard."""
    mapped: np.ndarray = map_file(index)
    if mapped.size > _MAX_HEADER_BYTES:
        raise LoadError(f"{index}: {mapped.size} bytes; the limit is {_MAX_HEADER_BYTES}")
    scanner = _Scanner(mapped.tobytes(), f"{index}: index")
    weight_map: dict[str, str] = {}
    for key in scanner.members():
        if key != "weight_map":
            scanner.skip(_MAX_INDEX_DEPTH)
            continue
        found: list[tuple[str, ...]] = []
        for name in scanner.members(_LISTED, found):
            weight_map.update(found)
            found.clear()
            shard = scanner.string()
            # The index must not reach outside its folder.
            if not re.fullmatch(r"[^/\\\x00-\x1f]+\.safetensors", shard):
                raise LoadError(
                    f"{index}: tensor {quoted(name)} is said to be in {quoted(shard)}, which is no "
                    f"plain .safetensors file name"
                )
            weight_map[name] = shard
        weight_map.update(found)
    scanner.end()
    if not weight_map:
        raise LoadError(f"{index}: there is no weight_map, or it is empty")
    return weight_map
