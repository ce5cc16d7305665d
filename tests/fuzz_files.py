"""Seeded mutations of valid files, and the one property every parser must keep on them.

A parser either reads a mutated file, in which case every byte it hands out can be read, or raises
LoadError; it raises nothing else and does not allocate more than a few times the file's size.
`LLMACCEL_FUZZ` sets the number of mutations per seed file (default 200).
"""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from llmaccel.errors import LoadError, UnsupportedError
from llmaccel.models.checkpoint import Checkpoint

FUZZ_COUNT = int(os.environ.get("LLMACCEL_FUZZ", "200"))

# Python's own caches (compiled patterns, an exception with its traceback) are not the file's doing.
_SLACK_BYTES = 128 * 1024

_LENGTHS = (
    0,
    1,
    2,
    7,
    8,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 8,
    2**64 - 1,
)
_TEXTS = (
    b"-1",
    b"1e9",
    b"0.5",
    b"null",
    b"NaN",
    b"[[[[",
    b"{{{{",
    b'"a":',
    b'"\\ud800"',
    b"\xff\xfe",
    b"\x00",
    b"}",
    b"]",
    b",",
    b'"',
    b"9" * 30,
    b"18446744073709551616",
    b'"dtype":"F32",',
)


def mutations(valid: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` broken variants of `valid`, one to three faults each, mostly near its start."""
    source = random.Random(seed)
    for _ in range(count):
        data = bytearray(valid)
        for _ in range(source.choice((1, 1, 2, 3))):
            _mutate(data, source)
        yield bytes(data)


def _mutate(data: bytearray, source: random.Random) -> None:
    """One fault, in place."""
    at = int(len(data) * source.random() ** 2)
    fault = source.randrange(8)
    if fault == 0:  # truncation
        del data[at:]
    elif fault == 1:  # bit flips
        for _ in range(source.randint(1, 8)):
            where = int(len(data) * source.random() ** 2)
            if where < len(data):
                data[where] ^= 1 << source.randrange(8)
    elif fault in (2, 3):  # a length or a count that lies: absurd, or off by a little
        width = source.choice((4, 8))
        value = source.choice(_LENGTHS)
        if fault == 3:
            value = int.from_bytes(data[at : at + width], "little") + source.randint(-9, 9)
        data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    elif fault == 4:  # inserted bytes: text that JSON stumbles over, or noise
        noise = source.randbytes(source.randint(1, 40))
        data[at:at] = source.choice((source.choice(_TEXTS), noise))
    elif fault == 5:  # a range repeated: duplicate keys, shifted fields
        data[at:at] = data[at : at + source.randint(1, 80)]
    elif fault == 6:  # a range lost
        del data[at : at + source.randint(1, 80)]
    else:  # a number in a text replaced
        digits = [i for i in range(len(data)) if 48 <= data[i] <= 57]
        if digits:
            where = source.choice(digits)
            data[where : where + 1] = str(source.choice(_LENGTHS)).encode()


def check_survives(open_file: Callable[[Path], Checkpoint], path: Path, data: bytes) -> bool:
    """Write `data` to `path` and open it; returns whether it was accepted. Any other end fails."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        opened = open_file(path)
        for name in opened:
            tensor = opened[name]
            int(tensor.data.sum(dtype="uint64"))
            try:
                tensor.numpy()
                tensor.float32()
            except UnsupportedError:
                pass  # a block format or an integer: refused by name, which is right
        accepted = True
    except LoadError as error:
        assert path.name in str(error) or "tensor" in str(error), error
        accepted = False
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= 8 * len(data) + _SLACK_BYTES, f"{peak} bytes for a file of {len(data)}"
    return accepted


def check_mutations(
    open_file: Callable[[Path], Checkpoint], path: Path, valid: bytes, seed: int
) -> None:
    """`check_survives` of a valid file and of its mutations; most faults are in the header and are
    seen."""
    assert check_survives(open_file, path, valid)
    broken = mutations(valid, FUZZ_COUNT, seed)
    assert sum(check_survives(open_file, path, data) for data in broken) < FUZZ_COUNT // 2
