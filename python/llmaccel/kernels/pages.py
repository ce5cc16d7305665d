"""Paged attention on user tensors. Sources: csrc/kernels/cpu/attention*.h.

Keys and values lie in pages of 64 tokens in the order the dot instructions want. A row takes whole
pages in 256-token chunks at absolute positions, so prefill and decode give a token the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import ConfigError, UnsupportedError, shown
from llmaccel.kernels import arguments
from llmaccel.kernels.arguments import Tensor
from llmaccel.recipes import number_format

MOST_TOKENS = 2**24
# Names of LLM's kv_cache_dtype -> the core's.
FORMS = {"float32": "F32", "bfloat16": "BF16", "int8": "int8", "fp8": "fp8"}


def positions_of(positions: Any, tokens: int, stored: int) -> np.ndarray:
    """int32 [tokens], each of a stored token; None: the last ones."""
    if positions is None:
        if tokens > stored:
            raise ConfigError(f"q: {tokens} tokens, but {stored} are stored")
        return np.arange(stored - tokens, stored, dtype=np.int32)
    at = np.asarray(positions)
    if at.shape != (tokens,) or (at.dtype.kind not in "iu" and tokens):
        raise ConfigError(f"positions: expected {tokens} integers, got {at.dtype} {list(at.shape)}")
    if tokens and not 0 <= int(at.min()) <= int(at.max()) < stored:
        raise ConfigError(f"positions: {int(at.min())}..{int(at.max())} is not in 0..{stored - 1}")
    return np.ascontiguousarray(at, np.int32)


class KVPages:
    """Keys and values of one sequence, appended as they come, and attention over them.

    n_kv_heads: K; d: head size, 1 to 256; max_tokens: room, at most 2^24 (memory is used as tokens
    come); dtype: "bfloat16" or "float32", what keys, values, queries and probabilities are rounded
    to; "int8" and "fp8" (E4M3) store codes with a scale per token and head, half the memory.
    len() is the number of stored tokens. One KVPages may be read by several threads; store from
    one at a time. Keys and values must be finite: a page is read whole.
    """

    def __init__(
        self, n_kv_heads: int, d: int, *, max_tokens: int = 4096, dtype: str = "bfloat16"
    ) -> None:
        self.n_kv_heads = arguments.integer(n_kv_heads, "n_kv_heads", 1, 65536)
        self.d = arguments.integer(d, "d", 1, 256)
        self.max_tokens = arguments.integer(max_tokens, "max_tokens", 1, MOST_TOKENS)
        dtype = number_format(dtype)
        if not isinstance(dtype, str):
            raise ConfigError(f"dtype: expected a name, got {shown(dtype)}")
        if dtype not in FORMS:
            raise UnsupportedError(f"dtype: {shown(dtype)} is none of {', '.join(FORMS)}")
        self.dtype = dtype
        self._core = _core.Pages(self.n_kv_heads, self.d, self.max_tokens, FORMS[dtype])

    def __len__(self) -> int:
        return len(self._core)

    @property
    def nbytes(self) -> int:
        """Bytes at max_tokens."""
        return self._core.nbytes

    def store(self, k: Any, v: Any, *, isa: str = "auto") -> None:
        """Appends T tokens: k and v [T, K, d], after rotation. ConfigError if they do not fit."""
        keys, values = arguments.floats(k, "k"), arguments.floats(v, "v")
        if keys.shape[1:] != (self.n_kv_heads, self.d):
            raise ConfigError(
                f"k: expected [T, {self.n_kv_heads}, {self.d}], got {list(keys.shape)}"
            )
        arguments.expect(values, "v", keys.shape)
        room = self.max_tokens - len(self)
        if keys.shape[0] > room:
            raise ConfigError(f"k: {keys.shape[0]} tokens, room for {room} of {self.max_tokens}")
        level = arguments.level(isa)
        if keys.nbytes:
            self._core.store(level, keys, values)

    def attend(
        self,
        q: Any,
        positions: Any = None,
        *,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Any = None,
        out: Any = None,
        isa: str = "auto",
        threads: int = 0,
    ) -> Tensor:
        """softmax(scale * q K^T) V of every query over the tokens up to its own. F32 [T, H, d].

        q: [T, H, d], H a multiple of K (head h reads kv head h // (H / K)). positions: T integers,
        where each query stands; None: the last T stored tokens, in order. scale: None is d^-0.5.
        window: only the last `window` tokens count, the query's own included; 0: all. softcap:
        scores become softcap * tanh(score / softcap); 0: off. sinks: float32 [H], one more logit
        of each head's softmax that has no value; None: none. threads: 0 takes all processors.
        """
        rows = arguments.floats(q, "q")
        if len(rows.shape) != 3 or rows.shape[2] != self.d:
            raise ConfigError(f"q: expected [T, H, {self.d}], got {list(rows.shape)}")
        tokens, heads, _ = rows.shape
        if heads == 0 or heads % self.n_kv_heads or heads > 65536:
            raise ConfigError(f"q: {heads} heads are no multiple of {self.n_kv_heads} kv heads")
        at = positions_of(positions, tokens, len(self))
        extra = None if sinks is None else arguments.floats(sinks, "sinks")
        if extra is not None:
            arguments.expect(extra, "sinks", (heads,))
        read = (rows,) if extra is None else (rows, extra)
        y = arguments.result(out, rows.shape, *read)
        level, work = arguments.level(isa), rows.nbytes * (1 + len(self) // 16)
        threads = arguments.count_threads(threads, work)
        factor = self.d**-0.5 if scale is None else arguments.real(scale, "scale")
        cap = arguments.real(softcap, "softcap", 0.0)
        width = arguments.integer(window, "window", 0, MOST_TOKENS)
        if tokens:
            self._core.attend(level, rows, at, y, extra, heads, factor, cap, width, threads)
        return y

    def __repr__(self) -> str:
        return (
            f"KVPages({len(self)} of {self.max_tokens} tokens, "
            f"{self.n_kv_heads} heads of {self.d}, {self.dtype})"
        )
