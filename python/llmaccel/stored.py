"""Keys and values that requests have stored: copies of their pages, for other code to look at.

Owns `StoredKV` and the reading of pages into floats. Invariant: what is handed out is a copy, made
between two steps, because the engine writes to pages, shares them, and gives them to others when a
request ends or is preempted; no memory of the engine is shown. A base of LLM (llm.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.calls import Calls
from llmaccel.config import ModelConfig
from llmaccel.errors import RequestError, UnsupportedError, shown
from llmaccel.memory import PAGE_TOKENS, check_available
from llmaccel.options import KV_NAMES
from llmaccel.whole import is_whole


@dataclass(frozen=True, eq=False)
class StoredKV:
    """What a request had stored at one moment.

    n_tokens: whose keys and values there are, those of positions 0 to n_tokens - 1. dtype: what
    pages hold, as kv_cache_dtype names it. data: Tensor U8 [L, P, K, bytes], for each layer P pages
    of 64 tokens and in each the keys and values of K heads, a copy, yours to write in: data[l], or
    layer(l), is a cache for kernels.paged_attention, whose table is range(P). With latents (MLA) K
    is 1 and a page holds latents and keys. is_view: False; nothing of the engine's is shown.
    """

    n_tokens: int
    dtype: str
    data: Any
    config: ModelConfig
    is_view: bool = False

    def layer(self, layer: int) -> Any:
        """Tensor U8 [P, K, bytes] over the pages of a layer, the same memory as data."""
        return _core.Tensor(self.data.numpy()[self._checked(layer)])

    def keys(self, layer: int) -> Any:
        """Keys of a layer after rotation, a copy: Tensor F32 [n_tokens, K, d]; with latents each
        latent and the key behind it, [n_tokens, 1, kv_rank + d_rope]."""
        return self._floats(layer, values=False)

    def values(self, layer: int) -> Any:
        """Values of a layer, a copy: Tensor F32 [n_tokens, K, d]. UnsupportedError with latents,
        which are in keys()."""
        if self.config.attn == "latent":
            raise UnsupportedError("values: with latents they are made of those in keys()")
        return self._floats(layer, values=True)

    def _checked(self, layer: Any) -> int:
        n_layers = self.config.n_layers
        if not is_whole(layer, -n_layers, n_layers - 1):
            raise RequestError(
                f"layer: expected one from {-n_layers} to {n_layers - 1}, got {shown(layer)}"
            )
        return int(layer)

    def _floats(self, layer: Any, values: bool) -> Any:
        config = self.config
        latent = config.attn == "latent"
        d = config.kv_rank + config.d_rope if latent else config.d_head
        if latent and self.dtype == "fp8":
            raise UnsupportedError("keys: latents of fp8 pages are shown as bytes only, by data")
        pages = self.data.numpy()[self._checked(layer)]  # [P, K, bytes]
        if len(pages) == 0:  # nothing is stored yet
            return _core.Tensor.zeros((0, pages.shape[1], d), "F32")
        read = _READERS[self.dtype, values]
        k_bytes = 0 if latent else _key_bytes(self.dtype, d)
        blocks = pages[..., k_bytes:] if values else pages[..., : k_bytes or None]
        found = read(np.ascontiguousarray(blocks), d)  # [P, K, 64, d]
        rows = found.transpose(0, 2, 1, 3).reshape(-1, pages.shape[1], found.shape[-1])
        return _core.Tensor(np.ascontiguousarray(rows[: self.n_tokens, :, :d], np.float32))


class Stored(Calls):
    """The method of LLM that shows what requests have stored."""

    def kv_pages(self, request: Any, *, branch: int = 0) -> StoredKV:
        """Keys and values that a request under way has stored so far: a copy, made between two
        steps.

        request: its request_id, or what has one: what submit gave, a chunk of a stream. branch:
        which of its n continuations. A request that waits, or was preempted, has stored nothing
        yet. RequestError where no such request is under way, LLMAccelError while the LLM sleeps or
        on the engine's own thread, MemoryPlanError where there is no room for the copy,
        UnsupportedError on backend="cuda".
        """
        self._driver.check()
        if self._options.backend != "cpu":
            raise UnsupportedError(
                f"kv_pages: not on backend={self._options.backend!r} in this version"
            )
        name = request if isinstance(request, str) else getattr(request, "request_id", None)
        if not isinstance(name, str):
            raise RequestError(f"request: expected a request_id, got {shown(request)}")
        found = [one for one in self._driver.find({name}) if not one.done]
        if not found:
            raise RequestError(f"request: none under way has the id {shown(name)}")
        branches = len(found[0].branches)
        if not is_whole(branch, 0, branches - 1):
            raise RequestError(
                f"branch: expected one from 0 to {branches - 1}, got {shown(branch)}"
            )
        number = found[0].engine_id

        def look(engine: Any) -> tuple[int, Any]:
            if found[0].ended:
                raise RequestError(f"request: none under way has the id {shown(name)}")
            _, size = engine.kv(number, int(branch))
            check_available(f"a copy of the pages of request {shown(name)}", size)
            heads = 1 if self._config.attn == "latent" else self._config.n_kv_heads
            page = self._plan.kv_page_bytes
            head_bytes = page // (self._config.n_layers * heads)
            room = _core.Tensor.zeros(
                (self._config.n_layers, size // page, heads, head_bytes), "U8"
            )
            return engine.kv(number, int(branch), room)[0], room

        n_tokens, room = self._driver.between_steps("kv_pages", look)
        return StoredKV(n_tokens, KV_NAMES[self._config.kv_form], room, self._config)


# ---- pages to floats: csrc/kernels/kernels.h draws them; blocks are [P, K, bytes] ----------------


def _key_bytes(dtype: str, d: int) -> int:
    """Of a head's keys in a page; its values follow."""
    if dtype == "float32":
        return 4 * PAGE_TOKENS * d
    if dtype == "bfloat16":
        return 4 * PAGE_TOKENS * (-(-d // 2))
    return 4 * PAGE_TOKENS * (-(-d // 4)) + 4 * PAGE_TOKENS  # codes, then a scale for each token


def _widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _keys_f32(b: np.ndarray, d: int) -> np.ndarray:
    k = b.view(np.float32)[..., : PAGE_TOKENS * d]
    k = k.reshape(*b.shape[:2], 4, d, 16)
    return k.transpose(0, 1, 2, 4, 3).reshape(*b.shape[:2], PAGE_TOKENS, d)


def _values_f32(b: np.ndarray, d: int) -> np.ndarray:
    v = b.view(np.float32).reshape(*b.shape[:2], -1, PAGE_TOKENS, 16)
    return v.transpose(0, 1, 3, 2, 4).reshape(*b.shape[:2], PAGE_TOKENS, -1)


def _keys_bf16(b: np.ndarray, d: int) -> np.ndarray:
    pairs = -(-d // 2)
    k = b.view(np.uint16)[..., : 2 * PAGE_TOKENS * pairs]
    k = k.reshape(*b.shape[:2], 4, pairs, 16, 2).transpose(0, 1, 2, 4, 3, 5)
    return _widened(k.reshape(*b.shape[:2], PAGE_TOKENS, 2 * pairs))


def _values_bf16(b: np.ndarray, d: int) -> np.ndarray:
    v = b.view(np.uint16).reshape(*b.shape[:2], -1, PAGE_TOKENS // 2, 16, 2)
    v = v.transpose(0, 1, 3, 5, 2, 4)
    return _widened(v.reshape(*b.shape[:2], PAGE_TOKENS, -1))


def _codes(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, float32 scale of each token [P, K, 64, 1])."""
    scales = np.ascontiguousarray(b[..., -4 * PAGE_TOKENS :]).view(np.float32)
    return b[..., : -4 * PAGE_TOKENS], scales[..., None]


def _keys_i8(b: np.ndarray, d: int) -> np.ndarray:
    codes, scales = _codes(b)
    k = codes.reshape(*b.shape[:2], 4, -1, 16, 4).transpose(0, 1, 2, 4, 3, 5)
    k = k.reshape(*b.shape[:2], PAGE_TOKENS, -1).astype(np.float32) - np.float32(128)
    return k * scales


def _keys_f8(b: np.ndarray, d: int) -> np.ndarray:
    codes, scales = _codes(b)
    # blocks of 64: [4 column groups][2 pairs of d][4 columns][2 of the pair]
    k = codes.reshape(*b.shape[:2], 4, -1, 4, 2, 4, 2).transpose(0, 1, 2, 4, 6, 3, 5, 7)
    return _E4M3[k.reshape(*b.shape[:2], PAGE_TOKENS, -1)] * scales


def _values_coded(b: np.ndarray, table: np.ndarray) -> np.ndarray:
    codes, scales = _codes(b)
    # [d / 16][16 runs of 4 tokens], blocks of 64: [4 column groups][2 pairs][4 columns][2 tokens]
    v = codes.reshape(*b.shape[:2], -1, 16, 4, 2, 4, 2).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return table[v.reshape(*b.shape[:2], PAGE_TOKENS, -1)] * scales


def _values_i8(b: np.ndarray, d: int) -> np.ndarray:
    return _values_coded(b, _SIGN_MAGNITUDE)


def _values_f8(b: np.ndarray, d: int) -> np.ndarray:
    return _values_coded(b, _E4M3)


def _e4m3() -> np.ndarray:
    """float32 [256] of every code."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[code & 127 == 127] = np.nan
    return np.where(code > 127, -values, values).astype(np.float32)


_E4M3 = _e4m3()
_SIGN_MAGNITUDE = np.array([c if c < 128 else 128 - c for c in range(256)], np.float32)
_READERS = {
    ("float32", False): _keys_f32,
    ("float32", True): _values_f32,
    ("bfloat16", False): _keys_bf16,
    ("bfloat16", True): _values_bf16,
    ("int8", False): _keys_i8,
    ("int8", True): _values_i8,
    ("fp8", False): _keys_f8,
    ("fp8", True): _values_f8,
}
