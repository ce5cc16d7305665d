"""Arguments and results of the kernel functions: what is taken, what is refused, and by which name.

Invariant: what passes here has the type, shape and place that the C functions take for granted, and
nothing was copied that was right already. A place is a device ("cpu", "cuda:0"), ANYWHERE for a
first argument, or None for functions that have no kernels but the CPU's. Used by the other files of
kernels/.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import ConfigError, LLMAccelError, UnsupportedError, shown

Tensor = _core.Tensor

HOST, ANYWHERE = "cpu", "anywhere"
MOST_VALUES = 2**31 - 1  # of one row kernel call; the kernels count in int
MOST_THREADS = 256
CUDA = 2  # DLPack's number of its memory
WIDENINGS = {"F16": 0, "BF16": 1}  # LA_ELEMENT_*
MOST_FLOAT, LEAST_FLOAT = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
# What float() would take all the same.
_NO_NUMBERS = (str, bytes, bytearray, bool, np.bool_, np.complexfloating)
WORTH_THREADS = 2**20  # bytes moved, or as long: starting threads takes about 50 us


def isas() -> list[str]:
    """Instruction sets that the kernels can use here, lowest first: "scalar", "avx2", ..."""
    return _core.kernel_isas()


def level(isa: str) -> str:
    """The name of an available instruction set; "auto" is the highest."""
    names = isas()
    return names[-1] if choice(isa, "isa", ("auto", *names)) == "auto" else isa


def choice(value: Any, name: str, known: Iterable[str]) -> str:
    """One of the known names."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise ConfigError(f"{name}: {shown(value)} is none of {', '.join(names)}")
    return value


def switch(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def integer(value: Any, name: str, low: int, high: int) -> int:
    """An integer in low..high."""
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise ConfigError(f"{name}: expected an integer, got {shown(value)}") from None
    if not low <= number <= high:
        raise ConfigError(f"{name}: {shown(number)} is not in {low}..{high}")
    return number


def real(value: Any, name: str, low: float = -math.inf) -> float:
    """A number >= low that is finite as a float32 too."""
    try:
        number = float(None if isinstance(value, _NO_NUMBERS) else value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name}: expected a number, got {shown(value)}") from None
    if not abs(number) <= MOST_FLOAT or number < low:
        bound = "" if low == -math.inf else f" or below {low}"
        raise ConfigError(f"{name}: {number} is not finite as a float32{bound}")
    return number


def positive(value: Any, name: str) -> float:
    """A finite number above 0, also as a float32, and 1 by it: a scale, a temperature."""
    number = real(value, name)
    if number < LEAST_FLOAT:
        raise ConfigError(f"{name}: {number} is not above 0 as a float32")
    return number


def scales(x: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """floats of a shape, each finite and above 0."""
    t = floats(x, name)
    expect(t, name, shape)
    values = t.numpy()
    if not ((values > 0) & (values < np.inf)).all():
        raise ConfigError(f"{name}: holds a scale that is not finite or not above 0")
    return t


def count_threads(threads: Any, work: int) -> int:
    """1 to MOST_THREADS, or 0: all processors, but one where `work` bytes are not worth it."""
    n = integer(threads, "threads", 0, MOST_THREADS)
    return 1 if n == 0 and work < WORTH_THREADS else n


def tensor(x: Any, name: str, place: str | None = None) -> Tensor:
    """x as a Tensor over the same memory, which must be at that place."""
    if isinstance(x, Tensor) and x.is_contiguous:
        return at(x, name, place)
    try:
        return at(Tensor(x, name=name), name, place)
    except LLMAccelError:
        raise
    except (TypeError, BufferError, ValueError, RuntimeError) as error:  # exporters' own ones too
        text = str(error)
        raise ConfigError(text if text.startswith(f"{name}:") else f"{name}: {text}") from error


def at(t: Tensor, name: str, place: str | None) -> Tensor:
    """t, if it is there."""
    if place in (t.device, ANYWHERE) or (place is None and t.device == HOST):
        return t
    if place is None:
        raise UnsupportedError(
            f"{name}: is on {t.device}, for which this function has no kernel; "
            f"take .to('cpu') of it"
        )
    raise ConfigError(f"{name}: is on {t.device}, and other arguments on {place}")


def elsewhere(x: Any) -> bool:
    """Is it an array on a device?"""
    if isinstance(x, Tensor):
        return x.device != HOST
    asked = getattr(x, "__dlpack_device__", None)
    return asked is not None and int(asked()[0]) == CUDA


def integers(x: Any, name: str, place: str) -> Any:
    """Numbers of places in memory, which the host looks at: those of a device in a copy."""
    if place == HOST:
        if elsewhere(x):
            raise ConfigError(f"{name}: is on a device, and other arguments on {place}")
        return x
    t = tensor(x, name, place)
    if t.dtype not in ("I64", "I32", "I16", "U8"):
        raise ConfigError(f"{name}: expected integers, got {t.dtype}")
    return t.to(HOST).numpy()


def on_device(t: Tensor, isa: str, threads: int = 0) -> bool:
    """Is the call a device's? isa and threads are the CPU's, so they must not ask for anything."""
    if t.device == HOST:
        return False
    if isa != "auto":
        raise ConfigError(f"isa: {shown(isa)} is the CPU's, and the arguments are on {t.device}")
    if isinstance(threads, bool) or threads != 0:
        raise ConfigError(
            f"threads: {shown(threads)} are the CPU's, and the arguments are on {t.device}"
        )
    return True


def widen(x: Tensor) -> Tensor:
    """F16 or BF16 as F32, exactly."""
    if x.device != HOST:
        y = Tensor.zeros(x.shape, "F32", x.device)
        if x.nbytes:
            op = WIDENINGS[x.dtype]
            run_core(_core.device_elements, op, x, None, y, math.prod(x.shape), 0, 1.0, 0.0)
        return y
    bits = np.asarray(memoryview(x))
    if x.dtype == "BF16":
        bits = (bits.astype(np.uint32) << 16).view(np.float32)
    return Tensor(np.asarray(bits, np.float32, order="C"))


def few_enough(x: Tensor, name: str) -> None:
    """Refuses more values than kernels count."""
    if math.prod(x.shape) > MOST_VALUES:
        raise UnsupportedError(f"{name}: more than {MOST_VALUES} values in one call; split it")


def floats(x: Any, name: str, place: str | None = None) -> Tensor:
    """x as F32: the same memory if it is, a copy if it is F16 or BF16."""
    t = tensor(x, name, place)
    few_enough(t, name)
    if t.dtype in ("F16", "BF16"):
        return widen(t)
    if t.dtype != "F32":
        raise ConfigError(f"{name}: expected F32, F16 or BF16, got {t.dtype}")
    return t


def rows(x: Any, name: str, place: str | None = None) -> Tensor:
    """floats with at least one axis, the last not empty."""
    t = floats(x, name, place)
    if not t.shape or t.shape[-1] == 0:
        raise ConfigError(f"{name}: expected [..., n] with n >= 1, got {list(t.shape)}")
    return t


def vector(x: Any, name: str, n: int, place: str | None = None) -> Tensor:
    """floats of shape [n]."""
    t = floats(x, name, place)
    expect(t, name, (n,))
    return t


def expect(t: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Refuses another shape."""
    if t.shape != shape:
        raise ConfigError(f"{name}: expected {list(shape)}, got {list(t.shape)}")


def result(
    out: Any, shape: tuple[int, ...], *apart: Tensor, same: Tensor | None = None, dtype: str = "F32"
) -> Tensor:
    """A new Tensor, or `out` checked: it may be exactly `same`, and overlaps nothing of `apart`.

    It is where these are.
    """
    inputs = apart if same is None else (*apart, same)
    place = inputs[0].device if inputs else HOST
    if out is None:
        return Tensor.zeros(shape, dtype, place)
    t = tensor(out, "out", place)
    if t.dtype != dtype:
        raise ConfigError(f"out: expected {dtype}, got {t.dtype}")
    expect(t, "out", shape)
    if t.read_only:
        raise ConfigError("out: is read-only")
    exact = same is not None and same.data_ptr() == t.data_ptr()
    for other in apart if exact else inputs:
        if overlap(t, other):
            raise ConfigError("out: overlaps an input")
    return t


def overlap(a: Tensor, b: Tensor) -> bool:
    """Do they share a byte?"""
    first, second = a.data_ptr(), b.data_ptr()
    return first < second + b.nbytes and second < first + a.nbytes


def copy_into(out: Tensor, x: Tensor) -> None:
    """out's values become x's, for kernels that work in place."""
    if out.data_ptr() != x.data_ptr():
        np.copyto(out.numpy(), x.numpy())


def run_core(call: Any, *args: Any) -> Any:
    """Calls the core; what it still refuses is an argument's fault."""
    try:
        return call(*args)
    except LLMAccelError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
