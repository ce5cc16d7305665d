"""What the schemes share: a quantized linear layer as a tensor that is made when its data is asked.

Owns `Linear` (what headers tell of a layer, and how to read it), `Settings` (a quantization_config
whose every key must be known) and the checks of what files bring. Invariant: nothing is read before
`data` is asked for, and what comes out is plain rows of exactly the size that the form requires;
every message names the tensor or the key.

Called by the schemes beside it and by __init__.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmaccel.errors import ConfigError, LoadError, UnsupportedError, shown
from llmaccel.models.checkpoint import RawTensor, drop_pages, quoted
from llmaccel.models.plain import PlainForm, cut_groups, plain_rows
from llmaccel.models.slots import TensorTable

FLOATS = ("F32", "F16", "BF16")
_ROUNDINGS = ("int8", "int8 offset", "e4m3", "e4m3 power")  # la_round, from 1 on
_MAX_CODES = 1 << 34  # of a layer: what no layer of a model has


@dataclass(frozen=True)
class Codes:
    """A layer's numbers: weight = scale * (q - zero), or scale * the value that q stands for.

    q: uint8 [N, K] of `bits`. scale: float32 [N, ceil(K / group)]. zero: the same shape, or None
    for the middle of the codes. order: int32 [K], the layer's column at each place.
    """

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None = None
    order: np.ndarray | None = None


@dataclass(frozen=True)
class Rounding:
    """How the file says that rows are rounded before a layer: to "int8", "int8 offset", "e4m3" or
    "e4m3 power" (whose scale is a power of two), by the largest value of each `group` k (0: the
    row), or by the number of a tensor, `scale`.
    """

    kind: str
    group: int = 0
    scale: str | None = None

    def core(self, table: TensorTable) -> tuple[int, int, float]:
        """As la_rounding has it."""
        number = 0.0
        if self.scale is not None:
            tensor = header(table, self.scale, FLOATS, None)
            values = tensor.float32().reshape(-1)
            if values.size != 1 or not (np.isfinite(values) & (values > 0)).all():
                raise LoadError(f"{self.scale}: expected one number above 0")
            number = float(values[0])
        return 1 + _ROUNDINGS.index(self.kind), self.group, number


@dataclass(frozen=True)
class Linear:
    """A quantized layer as its headers tell it.

    name: of the weight, as models know it. bits: of a code. group: k that share a scale in the
    file. sources: the file's tensors. read: opens them. rounding: of the layer's rows. some: opens
    entries start .. stop - 1 of the first dimension alone, where experts are stacked.
    """

    name: str
    shape: tuple[int, ...]
    form: PlainForm
    bits: int
    group: int
    sources: tuple[str, ...]
    read: Callable[[], Codes]
    rounding: Rounding | None = None
    some: Callable[[int, int], Codes] | None = None

    def rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(plain rows as bytes, order)."""
        codes = self.read()
        q, scale, offset = codes.q, _finite(self.name, codes.scale), None
        middle = 1 << (self.bits - 1)
        if self.form.codes in ("I4", "I8"):
            center = 8 if self.form.codes == "I4" else 128
            if self.form.offset:
                # of I8 codes 128 is taken away whatever the zero is
                offset = _finite(self.name, scale * ((center & 128) - codes.zero))
            else:
                self._check_middle(codes.zero, middle)
                q = q + np.uint8(center - middle) if center != middle else q
        elif self.form.codes == "F8" and ((q & 0x7F) == 0x7F).any():
            raise LoadError(f"{self.name}: a value is not a number")
        return plain_rows(self.form, q, scale, offset, self.group), codes.order

    def _check_middle(self, zero: np.ndarray | None, middle: int) -> None:
        if zero is not None and (zero != middle).any():
            raise LoadError(
                f"{self.name}: the quantization is said to be symmetric, but zero points other "
                f"than {middle} occur; a quantization_config with sym false would load it"
            )


# Form of a layer by its name and K, None where it stays floats: what a configuration alone tells.
Foretold = Callable[[str, int], PlainForm | None]


class LinearTensor:
    """A `Linear` in the place of a RawTensor: its data is made when it is asked for."""

    def __init__(self, linear: Linear, table: TensorTable) -> None:
        self._table = table
        self.name = linear.name
        self.dtype = linear.form.name
        self.shape = linear.shape
        self._linear = linear
        self._whole: RawTensor | None = None

    def _raw(self) -> RawTensor:
        if self._whole is None:
            data, order = self._linear.rows()
            rule = self._linear.rounding
            rounding = None if rule is None else rule.core(self._table)
            self._whole = RawTensor(self.name, self.dtype, self.shape, data, order, rounding)
        return self._whole

    @property
    def data(self) -> np.ndarray:
        return self._raw().data

    @property
    def order(self) -> np.ndarray | None:
        return self._raw().order

    @property
    def rounding(self) -> tuple[int, int, float] | None:
        return self._raw().rounding

    def rows(self, start: int, stop: int) -> RawTensor:
        if self._whole is None and self._linear.some is not None:
            read = functools.partial(self._linear.some, start, stop)
            shape = (stop - start, *self.shape[1:])
            return LinearTensor(replace(self._linear, shape=shape, read=read), self._table)._raw()
        return self._raw().rows(start, stop)


def make_form(
    name: str,
    codes: str,
    group: int,
    cols: int,
    *,
    offset: bool = False,
    half: bool = False,
    ordered: bool = False,
) -> PlainForm:
    """The form of a layer's rows. UnsupportedError for groups that no kernel has."""
    form = cut_groups(PlainForm(codes, 0, offset, half and not offset, ordered), group, cols)
    if form is None:
        raise UnsupportedError(f"{name}: groups of {group} weights; supported are multiples of 16")
    return form


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise LoadError(f"{name}: a scale or zero point is not finite")
    return values


# ---- tensors of a layer --------------------------------------------------------------------------


def header(
    table: TensorTable, name: str, dtypes: Iterable[str], shape: tuple[int, ...] | None
) -> RawTensor:
    """The tensor, its dtype and shape checked; None leaves the shape to the caller."""
    if name not in table:
        wanted = "" if shape is None else f"; expected {list(shape)}"
        raise LoadError(f"tensor {quoted(name)} is missing{wanted}")
    tensor = table[name]
    if tensor.dtype not in dtypes:
        raise LoadError(f"{name}: expected {' or '.join(dtypes)}, got {tensor.dtype}")
    if shape is not None and tensor.shape != shape:
        raise LoadError(f"{name}: expected {list(shape)}, got {list(tensor.shape)}")
    return tensor


def matrix(table: TensorTable, name: str, dtypes: Iterable[str]) -> RawTensor:
    """A tensor of two dimensions, neither of them empty."""
    tensor = header(table, name, dtypes, None)
    if len(tensor.shape) != 2 or not 0 < tensor.shape[0] * tensor.shape[1] <= _MAX_CODES:
        raise LoadError(f"{name}: expected a matrix, got {list(tensor.shape)}")
    return tensor


def count_of(tensor: RawTensor) -> int:
    """How many numbers a tensor has."""
    return math.prod(tensor.shape)


def taken(tensor: RawTensor) -> np.ndarray:
    """The tensor's numbers, floats as float32, in memory of their own; the file's pages go."""
    values = tensor.float32() if tensor.dtype in FLOATS else tensor.numpy().copy()
    drop_pages(tensor.data)
    return values


def fields(words: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 2, 3, 4 or 8 bits out of little-endian words along the last axis: uint8 [..., n]."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data
    if bits == 3:  # 32 codes in three words
        ones = np.unpackbits(data, axis=-1, bitorder="little")
        whole = ones.shape[-1] // 3 * 3  # the last word may end inside a code
        ones = ones[..., :whole].reshape(*data.shape[:-1], -1, 3)
        return ones[..., 0] | ones[..., 1] << 1 | ones[..., 2] << 2
    per = 8 // bits
    out = np.empty((*data.shape[:-1], data.shape[-1] * per), np.uint8)
    for i in range(per):
        out[..., i::per] = data >> (bits * i) & ((1 << bits) - 1)
    return out


def spread_scale(
    tensor: RawTensor, shape: tuple[int, int], block: tuple[int, int]
) -> Callable[[], np.ndarray]:
    """Reads a layer's scales as float32 [N, ceil(K / block[1])], of blocks [rows, columns] or less.

    block (0, 0): one for the tensor; (1, 0): one for each row. LoadError for another shape.
    """
    n, k = shape
    rows, cols = min(block[0] or n, n), min(block[1] or k, k)
    wanted = (-(-n // rows), -(-k // cols))
    if tensor.shape != wanted and not (count_of(tensor) == wanted[0] and wanted[1] == 1):
        raise LoadError(f"{tensor.name}: expected {list(wanted)}, got {list(tensor.shape)}")

    def read() -> np.ndarray:
        scale = (
            e8m0(taken(tensor)) if tensor.dtype in ("F8_E8M0", "U8") else taken(tensor)
        ).reshape(wanted)
        return np.repeat(scale, rows, axis=0)[:n]

    return read


def e8m0(codes: np.ndarray) -> np.ndarray:
    """Powers of two by their biased exponents, 255 being NaN."""
    bits = codes.astype(np.uint32) << 23
    bits[codes == 0] = 1 << 22  # 2^-127 has no exponent of its own
    bits[codes == 255] = 0x7FC00000
    return bits.view(np.float32)


# ---- quantization_config -------------------------------------------------------------------------


def is_extent(value: object) -> bool:
    """Whether a configuration's value may be the extent of a matrix, or of blocks of it."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 24


class Settings:
    """A mapping of a configuration that is read key by key; `done` refuses what was not read."""

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
            raise ConfigError(f"{where}: expected an object, got {shown(raw)}")
        self.raw = raw
        self.where = where
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value, None where it is null; the default where it is missing."""
        self._read.add(key)
        return self.raw.get(key, default)

    def error(self, key: str, expected: str) -> ConfigError:
        return ConfigError(f"{self.where}: {key} = {shown(self.raw.get(key))}: expected {expected}")

    def unsupported(self, key: str, instead: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.where}: {key} = {shown(self.raw.get(key))} is not supported; {instead}"
        )

    def choice(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        """One of `allowed`; UnsupportedError names the key for another value."""
        value = self.get(key, default)
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise self.unsupported(key, f"known: {', '.join(map(str, allowed))}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def integer(self, key: str, lo: int, hi: int, default: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not lo <= value <= hi:
            raise self.error(key, f"an integer in {lo}..{hi}")
        return value

    def group(self, key: str, default: int | None = None) -> int:
        """A group size; -1, 0 and None stand for the whole row, which comes as 0."""
        value = self.get(key, default)
        if value is None or (type(value) is int and value in (-1, 0)):
            return 0
        return self.integer(key, 1, 1 << 24, default)

    def names(self, *keys: str) -> list[str]:
        """The strings of those of `keys` that are there."""
        found: list[str] = []
        for key in keys:
            value = self.get(key)
            if value is None:
                continue
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise self.error(key, "a list of names")
            found += value
        return found

    def block(self, key: str) -> tuple[int, int] | None:
        """Rows and columns that share a scale; None where the key is null or missing."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(map(is_extent, value)):
            raise self.error(key, "two positive integers")
        return value[0], value[1]

    def done(self, *inert: str) -> None:
        """UnsupportedError for the first key that was neither read nor is `inert` (it cannot
        change what the weights mean)."""
        for key in self.raw:
            if key not in self._read and key not in inert:
                raise UnsupportedError(
                    f"{self.where}: {key} = {shown(self.raw[key])}: this key is not known, and "
                    "may change what the weights mean"
                )
