"""The arithmetic coder: tokens to bytes and back, by the probabilities that logits give.

Owns the two halves of one code and the integers that both take from a row of logits. Invariant:
`upper` uses operations that IEEE 754 rounds in one way only (add, multiply, round to an integer,
scale by a power of two) and sums integers, so equal rows give equal integers whatever NumPy does
with them; the coder itself computes in integers.

Called by compress.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmaccel import LLMAccelError

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
# 2^f for |f| <= 1/2 as a polynomial, highest power first; off by 1.7e-7 of the value at most.
_TERMS = 7
# A token's share is rounded down to a unit of 2^-30 of the best one's and gets one unit more, so
# that every token can be written. The units of a vocabulary of 2^18 cost 3.5e-4 bits a token.
_UNITS = 30
_NEGLIGIBLE = -64.0  # powers of two below it give no unit
# The interval is kept at least this wide: a total of 2^49 units cuts off 2^-31 of it.
_WIDTH_BITS = 80
_STATE_BYTES = _WIDTH_BITS // 8 + 1


def _coefficients() -> list[float]:
    terms = [1.0]
    for k in range(1, _TERMS):
        terms.append(terms[-1] * _LN_2 / k)
    return terms[::-1]


class Shares:
    """The integers of rows of `n_vocab` logits; keeps the buffers that they are computed in."""

    def __init__(self, n_vocab: int) -> None:
        self._x = np.empty(n_vocab, np.float64)
        self._n = np.empty(n_vocab, np.float64)
        self._p = np.empty(n_vocab, np.float64)
        self._exponent = np.empty(n_vocab, np.int32)
        self._upper = np.empty(n_vocab, np.int64)
        self._terms = _coefficients()

    def upper(self, row: np.ndarray) -> np.ndarray:
        """int64 [V] of float32 [V]: token i has the units from upper[i - 1] to upper[i].

        Valid until the next call. LLMAccelError for a row without a largest number.
        """
        x, n, p = self._x, self._n, self._p
        best = float(row.max())
        if not np.isfinite(best):
            raise LLMAccelError(f"the model gave {best} as its best logit")
        np.subtract(row, best, out=x, dtype=np.float64)
        np.multiply(x, _LOG2_E, out=x)
        np.maximum(x, _NEGLIGIBLE, out=x)
        np.rint(x, out=n)
        np.subtract(x, n, out=x)
        p.fill(self._terms[0])
        for term in self._terms[1:]:
            np.multiply(p, x, out=p)
            np.add(p, term, out=p)
        np.add(n, _UNITS, out=self._exponent, casting="unsafe")
        np.ldexp(p, self._exponent, out=p)
        np.copyto(self._upper, p, casting="unsafe")  # towards zero
        self._upper += 1
        return np.cumsum(self._upper, out=self._upper)


class Encoder:
    """Writes tokens. The code is one integer that grows, so nothing ever carries over."""

    def __init__(self) -> None:
        self._low = 0
        self._range = 1 << 8 * _STATE_BYTES
        self._shifted = 0

    def put(self, upper: Any, token: int) -> None:
        """Write one token; upper: Shares.upper of its row."""
        start = int(upper[token - 1]) if token else 0
        unit = self._range // int(upper[-1])
        self._low += unit * start
        self._range = unit * (int(upper[token]) - start)
        while self._range >> _WIDTH_BITS == 0:
            self._low <<= 8
            self._range <<= 8
            self._shifted += 1

    @property
    def n_bytes(self) -> int:
        """Bytes of the code so far, nearly."""
        return self._shifted

    def finish(self) -> bytes:
        """The bytes that say what was written; what follows them is read as zeros."""
        # The range holds a multiple of this whatever low is.
        step = 1 << _WIDTH_BITS
        value = -(-self._low // step) * step
        return value.to_bytes(self._shifted + _STATE_BYTES, "big").rstrip(b"\0")


class Decoder:
    """Reads tokens from the bytes of an Encoder."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = _STATE_BYTES
        head = data[:_STATE_BYTES]
        self._value = int.from_bytes(head + bytes(_STATE_BYTES - len(head)), "big")
        self._range = 1 << 8 * _STATE_BYTES

    def take(self, upper: np.ndarray) -> int:
        """The next token; upper: Shares.upper of its row."""
        total = int(upper[-1])
        unit = self._range // total
        # Bytes that no encoder wrote may lie beyond the last token.
        units = min(self._value // unit, total - 1)
        token = int(np.searchsorted(upper, units, side="right"))
        start = int(upper[token - 1]) if token else 0
        self._value -= unit * start
        self._range = unit * (int(upper[token]) - start)
        while self._range >> _WIDTH_BITS == 0:
            byte = self._data[self._at] if self._at < len(self._data) else 0
            self._value = (self._value << 8 | byte) & ((1 << 8 * _STATE_BYTES) - 1)
            self._range <<= 8
            self._at += 1
        return token
