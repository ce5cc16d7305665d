"""The file that `compress` writes: a head that says what can read it, then the codes.

Owns the bytes of that file. Invariant: reading checks every length before it is used, and whatever
is wrong with a file is a LoadError that says what.

    magic "LLMZ", format 1 byte
    model            16 bytes, compress.fingerprint
    isa, version     a length byte and ASCII each
    checksum         4 bytes, CRC-32 of the text
    chunk            varint, tokens of a chunk
    chunks a stream  varint
    pieces           varint count, then of each varint 2 * length + kind: kind 0 is of that many
                     tokens, kind 1 of that many raw bytes
    raw bytes        varint length, then zlib's
    streams          varint length of each
    head             4 bytes, CRC-32 of all so far
    streams          their bytes

A varint is seven bits a byte, lowest first, the top bit set where more follow.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmaccel import LoadError

MAGIC = b"LLMZ"
FORMAT = 2
TOKENS, RAW = 0, 1
_MODEL_BYTES = 16
_LONGEST_VARINT = 9
_MOST_CHUNKS = 1536  # of a stream: compress ends one after as many bytes, a chunk is one or more
_ZLIB_RATIO = 1032  # no byte of zlib's gives more


@dataclass
class Container:
    """A file's contents. pieces: (kind, tokens or bytes); raw: the raw pieces in order."""

    model: bytes
    isa: str
    version: str
    checksum: int
    chunk: int
    chunks_per_stream: int
    pieces: list[tuple[int, int]] = field(default_factory=list)
    raw: bytes = b""
    streams: list[bytes] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens of all pieces."""
        return sum(count for kind, count in self.pieces if kind == TOKENS)

    def stream_tokens(self) -> Iterator[int]:
        """Tokens of every stream, in chunks of `chunk` and a last one of what is left."""
        left, most = self.n_tokens, self.chunk * self.chunks_per_stream
        for _ in self.streams:
            yield min(left, most)
            left -= most

    def to_bytes(self) -> bytes:
        """The file."""
        out = bytearray(MAGIC)
        out.append(FORMAT)
        out += self.model
        for text in (self.isa, self.version):
            out.append(len(text))
            out += text.encode("ascii")
        out += self.checksum.to_bytes(4, "little")
        for value in (self.chunk, self.chunks_per_stream, len(self.pieces)):
            out += _varint(value)
        for kind, count in self.pieces:
            out += _varint(2 * count + kind)
        packed = zlib.compress(self.raw, 9) if self.raw else b""
        out += _varint(len(packed)) + packed
        for stream in self.streams:
            out += _varint(len(stream))
        out += zlib.crc32(out).to_bytes(4, "little")
        return bytes(out) + b"".join(self.streams)

    @classmethod
    def from_bytes(cls, data: bytes) -> Container:
        """Read a file; LoadError where it is none."""
        if data[: len(MAGIC)] != MAGIC:
            raise LoadError(f"not a file of llmaccel compress: it begins with {data[:4]!r}")
        reader = _Reader(data, len(MAGIC))
        if (number := reader.take(1)[0]) != FORMAT:
            raise LoadError(f"format {number} of llmaccel compress; this version reads {FORMAT}")
        found = cls(
            model=reader.take(_MODEL_BYTES),
            isa=reader.text(),
            version=reader.text(),
            checksum=int.from_bytes(reader.take(4), "little"),
            chunk=reader.varint(),
            chunks_per_stream=reader.varint(),
        )
        if found.chunk < 1 or not 1 <= found.chunks_per_stream <= _MOST_CHUNKS:
            raise LoadError("damaged: chunks or streams of a size that nothing writes")
        for _ in range(reader.varint()):
            value = reader.varint()
            found.pieces.append((value & 1, value >> 1))
        expected = sum(count for kind, count in found.pieces if kind == RAW)
        found.raw = _unpacked(reader.take(reader.varint()), expected)
        per_stream = found.chunk * found.chunks_per_stream
        n_streams = -(-found.n_tokens // per_stream)
        if n_streams > len(data):
            raise LoadError("damaged: more streams than bytes")
        lengths = [reader.varint() for _ in range(n_streams)]
        end = reader.at
        if zlib.crc32(data[:end]) != int.from_bytes(reader.take(4), "little"):
            raise LoadError("damaged: its head has another checksum than the one written")
        found.streams = [reader.take(length) for length in lengths]
        if reader.at != len(data):
            raise LoadError(f"damaged: {len(data) - reader.at} bytes after the end")
        return found


def _unpacked(packed: bytes, expected: int) -> bytes:
    """What zlib packed; LoadError, before it takes memory, where that is not `expected` bytes."""
    wrong = "damaged: its raw pieces have another length than they should"
    if expected > _ZLIB_RATIO * len(packed):
        raise LoadError(wrong)
    if not packed:
        return b""
    reader = zlib.decompressobj()
    try:
        raw = reader.decompress(packed, expected + 1)
    except zlib.error as error:
        raise LoadError(f"damaged: {error}") from None
    if len(raw) != expected or not reader.eof or reader.unused_data:
        raise LoadError(wrong)
    return raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise LoadError(f"truncated: {count} bytes wanted at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = 0
        for i in range(_LONGEST_VARINT):
            byte = self.take(1)[0]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value
        raise LoadError(f"damaged: a number without end at {self.at}")

    def text(self) -> str:
        return self.take(self.take(1)[0]).decode("latin-1")
