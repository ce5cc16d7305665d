"""Plain rows: the one form that every foreign packing of weights is turned into before the core
packs it.

Owns the names of these types ("QI4_G128_H"), their size, and the assembly of codes, scales and
offsets into rows: blocks of `group` codes, a byte each, behind their fp32 scale and offset.
csrc/base/dtype.h (LA_PLAIN) has the same. A weight is scale * (code - zero) + offset with zero 8
for I4 without offsets, 0 with them, 128 for I8; F8 codes are E4M3 bits, NF4, FP4, E2M1 and IQ4
codes number the values of a table; MX4 is E2M1 under powers of two. Invariant: rows are exact
to the file; what a group of the file spans is cut into smaller equal ones, never joined.

Called by models/quantized; checkpoint.py and slots.py ask for sizes.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

import numpy as np

GROUPS = (256, 128, 64, 32, 16)
# What each kind's codes may be.
CODES = {"I4": 4, "I8": 8, "F8": 8, "NF4": 4, "FP4": 4, "E2M1": 4, "IQ4": 4, "MX4": 4}
_ROWS_AT_ONCE = 64  # codes may lie in columns: a line of each is then read once
_NAME = re.compile(r"Q(I4|I8|F8|NF4|FP4|E2M1|IQ4|MX4)_(?:R|G(16|32|64|128|256))(_O)?(_H)?(_P)?")


@dataclass(frozen=True)
class PlainForm:
    """A type of plain rows.

    codes: a key of CODES. group: k that share a scale, one of GROUPS, 0: the whole row. offset:
    groups have one. half: scales are fp16 numbers. ordered: columns are sorted, and the tensor's
    `order` says which column of the layer each is.
    """

    codes: str
    group: int
    offset: bool = False
    half: bool = False
    ordered: bool = False

    @property
    def name(self) -> str:
        """As `RawTensor.dtype` has it; the core reads the same."""
        group = f"G{self.group}" if self.group else "R"
        flags = (("_O", self.offset), ("_H", self.half), ("_P", self.ordered))
        return f"Q{self.codes}_{group}" + "".join(text for text, on in flags if on)

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` weights."""
        groups = -(-cols // self.group) if self.group else 1
        return groups * (8 if self.offset else 4) + cols


@functools.cache
def plain_form(dtype: str) -> PlainForm | None:
    """The form that a dtype names, None if it is no plain one."""
    match = _NAME.fullmatch(dtype)
    if match is None:
        return None
    codes, group, *flags = match.groups()
    return PlainForm(codes, int(group or 0), *(flag is not None for flag in flags))


def cut_groups(form: PlainForm, group: int, cols: int) -> PlainForm | None:
    """`form` with the largest group that fills the file's `group` of `cols` columns evenly; None if
    there is none. A group that spans the row becomes the row's."""
    if group >= cols:
        return replace(form, group=0, half=False)
    fitting = [own for own in GROUPS if group % own == 0]
    return replace(form, group=fitting[0]) if fitting else None


def plain_rows(
    form: PlainForm,
    codes: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray | None,
    group: int,
) -> np.ndarray:
    """Rows as bytes, uint8 [N * row_bytes].

    codes: uint8 [N, K], any strides. scale, offset: float32 [N, ceil(K / group)] of the file's
    groups, of which a row's own are equal parts.
    """
    n, cols = codes.shape
    own = form.group or cols
    count = -(-cols // own)
    head = 8 if form.offset else 4
    parts = [scale] if offset is None else [scale, offset]
    heads = np.empty((n, count, len(parts)), "<f4")
    for i, values in enumerate(parts):
        wide = np.repeat(values, max(group // own, 1), axis=1) if form.group else values
        heads[:, :, i] = wide[:, :count]
    rows = np.empty((n, form.row_bytes(cols)), np.uint8)
    whole = cols // own
    blocks = rows[:, : whole * (head + own)].reshape(n, whole, head + own)
    blocks[:, :, :head] = heads.view(np.uint8)[:, :whole].reshape(n, whole, head)
    for i in range(0, n, _ROWS_AT_ONCE):
        some = slice(i, min(i + _ROWS_AT_ONCE, n))
        blocks[some, :, head:] = codes[some, : whole * own].reshape(-1, whole, own)
    if whole < count:
        rest = rows[:, whole * (head + own) :]
        rest[:, :head] = heads[:, whole:].view(np.uint8).reshape(n, head)
        rest[:, head:] = codes[:, whole * own :]
    return rows.reshape(-1)
