"""Paged attention on user tensors. Sources: csrc/kernels/cpu/attention*.h.

KVPages keeps one sequence and owns its memory. kv_cache, kv_store and paged_attention work on pages
in memory of yours, which any number of sequences share by tables of page numbers.

Keys and values lie in pages of 64 tokens in the order the dot instructions want. A row takes whole
pages in 256-token chunks at absolute positions, so prefill and decode give a token the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import ConfigError, UnsupportedError, shown
from llmaccel.kernels import arguments, device
from llmaccel.kernels.arguments import ANYWHERE, Tensor, run_core
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


def _form(dtype: Any) -> tuple[str, str]:
    """(LLM's name, the core's name) of what a page stores."""
    name = number_format(dtype)
    if not isinstance(name, str):
        raise ConfigError(f"dtype: expected a name, got {shown(name)}")
    if name not in FORMS:
        raise UnsupportedError(f"dtype: {shown(name)} is none of {', '.join(FORMS)}")
    return name, FORMS[name]


def _rule(d: int, scale: Any, softcap: Any, window: Any) -> tuple[float, float, int]:
    """What scores become: (scale, softcap, window), checked."""
    factor = d**-0.5 if scale is None else arguments.positive(scale, "scale")
    cap = arguments.real(softcap, "softcap", 0.0)
    return factor, cap, arguments.integer(window, "window", 0, MOST_TOKENS)


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
        self.dtype, form = _form(dtype)
        self._core = _core.Pages(self.n_kv_heads, self.d, self.max_tokens, form)

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
        where each query stands; None: the last T stored tokens, in order. scale: above 0;
        None is d^-0.5. window: only the last `window` tokens count, the query's own included; 0:
        all. softcap: scores become softcap * tanh(score / softcap); 0: off. sinks: float32 [H], one
        more logit of each head's softmax that has no value; None: none. threads: 0 takes all
        processors.
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
        rule = _rule(self.d, scale, softcap, window)
        if tokens:
            self._core.attend(level, rows, at, y, extra, heads, *rule, threads)
        return y

    def __repr__(self) -> str:
        return (
            f"KVPages({len(self)} of {self.max_tokens} tokens, "
            f"{self.n_kv_heads} heads of {self.d}, {self.dtype})"
        )


def kv_cache_shape(
    n_pages: int, n_kv_heads: int, d: int, dtype: str = "bfloat16"
) -> tuple[int, int, int]:
    """(n_pages, n_kv_heads, bytes): of a cache of that many pages of 64 tokens, as U8.

    bytes: of a head's keys and values in a page. dtype: as KVPages.
    """
    pages = arguments.integer(n_pages, "n_pages", 1, MOST_TOKENS)
    heads = arguments.integer(n_kv_heads, "n_kv_heads", 1, 65536)
    size = arguments.integer(d, "d", 1, 256)
    return pages, heads, run_core(_core.kv_bytes, _form(dtype)[1], heads, size)


def kv_cache(
    n_pages: int, n_kv_heads: int, d: int, dtype: str = "bfloat16", device: str = "cpu"
) -> Tensor:
    """A new, cleared cache: U8 of kv_cache_shape. Zeros of your own serve as well.

    device: as Tensor.to takes it; pages of a cache stay where they were written.
    """
    if not isinstance(device, str):
        raise ConfigError(f"device: expected its name, got {shown(device)}")
    return Tensor.zeros(kv_cache_shape(n_pages, n_kv_heads, d, dtype), "U8", device)


def _cache(cache: Any, d: int, dtype: Any, place: str) -> tuple[Tensor, int, str]:
    """(cache, kv heads, the core's name of the form), checked against a head's size."""
    t, (_, form) = arguments.tensor(cache, "cache", place), _form(dtype)
    if place != arguments.HOST:
        device.check_form(form, place)
    if t.dtype != "U8" or len(t.shape) != 3 or 0 in t.shape:
        raise ConfigError(f"cache: expected U8 [pages, K, bytes], got {t.dtype} {list(t.shape)}")
    arguments.expect(t, "cache", kv_cache_shape(*t.shape[:2], d, dtype))
    return t, t.shape[1], form


def _numbers(value: Any, name: str, n_dims: int, place: str) -> np.ndarray:
    """int32 of so many axes. The core looks at the values."""
    array = np.asarray(arguments.integers(value, name, place))
    if array.ndim != n_dims or (array.dtype.kind not in "iu" and array.size):
        raise ConfigError(
            f"{name}: expected integers of {n_dims} axes, got {array.dtype} {list(array.shape)}"
        )
    limit = np.iinfo(np.int32)
    if array.size and not limit.min <= int(array.min()) <= int(array.max()) <= limit.max:
        raise ConfigError(f"{name}: {int(array.min())}..{int(array.max())} is not of 32 bits")
    return np.ascontiguousarray(array, np.int32)


def kv_store(
    cache: Any, slots: Any, k: Any, v: Any, *, dtype: str = "bfloat16", isa: str = "auto"
) -> None:
    """Puts T tokens into a cache, in place.

    cache: of kv_cache_shape, of any owner, writable. k and v: [T, K, d], after rotation, finite.
    slots: integers [T], page * 64 + place in the page, or -1 for nowhere. Places of a page are
    filled from 0 on, which clears it. dtype: the cache's. ConfigError for other shapes and slots.
    """
    keys = arguments.floats(k, "k", ANYWHERE)
    values = arguments.floats(v, "v", keys.device)
    if len(keys.shape) != 3:
        raise ConfigError(f"k: expected [T, K, d], got {list(keys.shape)}")
    room, heads, form = _cache(cache, keys.shape[2], dtype, keys.device)
    at = _numbers(slots, "slots", 1, keys.device)
    arguments.expect(keys, "k", (len(at), heads, keys.shape[2]))
    arguments.expect(values, "v", keys.shape)
    if room.read_only:
        raise ConfigError("cache: is read-only")
    level = arguments.level(isa)
    if arguments.on_device(keys, isa):
        device.kv_store(room, at, keys, values)
        return
    run_core(_core.kv_cache_store, level, form, room, at, keys, values, heads, keys.shape[2])


def paged_attention(
    q: Any,
    cache: Any,
    tables: Any,
    sequences: Any,
    positions: Any,
    *,
    dtype: str = "bfloat16",
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Any = None,
    out: Any = None,
    isa: str = "auto",
    threads: int = 0,
) -> Tensor:
    """Attention of T queries of any sequences over pages of a cache. F32 [T, H, d].

    q: [T, H, d]; cache: as in kv_store; tables: integers [S, P], row s has the pages of sequence s
    in order (those that no query reads may hold anything); sequences, positions: integers [T],
    whose token a query is, and where in it: it reads what is stored from there backwards. Queries
    of a sequence best lie side by side. The rest: as KVPages.attend, whose bits these are.
    """
    rows = arguments.floats(q, "q", ANYWHERE)
    place = rows.device
    if len(rows.shape) != 3 or 0 in rows.shape[1:]:
        raise ConfigError(f"q: expected [T, H, d], got {list(rows.shape)}")
    tokens, heads, d = rows.shape
    pages, n_heads, form = _cache(cache, d, dtype, place)
    if heads % n_heads or heads > 65536:
        raise ConfigError(f"q: {heads} heads are no multiple of {n_heads} kv heads")
    index = _numbers(tables, "tables", 2, place)
    owner, at = (
        _numbers(sequences, "sequences", 1, place),
        _numbers(positions, "positions", 1, place),
    )
    if not len(at) == len(owner) == tokens:
        raise ConfigError(
            f"sequences, positions: expected {tokens} of each, got {len(owner)} and {len(at)}"
        )
    extra = None if sinks is None else arguments.vector(sinks, "sinks", heads, place)
    y = arguments.result(out, rows.shape, *(rows,) if extra is None else (rows, extra))
    level, most = arguments.level(isa), int(at.max()) if tokens else 0
    rule = _rule(d, scale, softcap, window)
    if arguments.on_device(rows, isa, threads):
        device.paged_attention(rows, pages, (index, owner, at), y, extra, options=rule)
        return y
    threads = arguments.count_threads(threads, rows.nbytes * (1 + most // 16))
    sizes = (n_heads, heads, d, index.shape[1])
    if tokens:
        given = (pages, index.reshape(-1), owner, at, rows, y, extra)
        run_core(_core.kv_attend, level, form, *given, sizes, *rule, threads)
    return y
