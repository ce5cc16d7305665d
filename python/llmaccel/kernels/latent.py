"""Attention over latents (MLA) on user tensors. Sources: csrc/kernels/cpu/attention_mla*.h.

A token leaves one latent and one rotated key behind, which all heads read; a page of 64 tokens
holds each once. Attention is absorbed: a head's query comes multiplied by the head's W_UK, and what
is found is a latent, which the head's W_UV takes to its value. Chunks and rows are as in KVPages.
"""

from __future__ import annotations

from typing import Any

from llmaccel import _core
from llmaccel.errors import ConfigError, UnsupportedError, shown
from llmaccel.kernels import arguments
from llmaccel.kernels.arguments import Tensor
from llmaccel.kernels.pages import FORMS, MOST_TOKENS, positions_of
from llmaccel.recipes import number_format

_FORMS = {name: form for name, form in FORMS.items() if name != "int8"}


class LatentPages:
    """Latents and rotated keys of one sequence, appended as they come, and attention over them.

    kv_rank: r, width of a latent, a multiple of 4 up to 8192; d_rope: p, width of a key, even, up
    to 256; max_tokens: room, at most 2^24 (memory is used as tokens come); dtype: "bfloat16" or
    "float32", what latents, keys, queries and probabilities are rounded to; "fp8" stores latents
    as E4M3 codes with a float32 scale per 128 values, keys as bfloat16: 656 bytes a token for 512
    and 64. len() is the number of stored tokens. One LatentPages may be read by several threads;
    store from one at a time.
    """

    def __init__(
        self, kv_rank: int, d_rope: int, *, max_tokens: int = 4096, dtype: str = "bfloat16"
    ) -> None:
        self.kv_rank = arguments.integer(kv_rank, "kv_rank", 4, 8192)
        self.d_rope = arguments.integer(d_rope, "d_rope", 2, 256)
        self.max_tokens = arguments.integer(max_tokens, "max_tokens", 1, MOST_TOKENS)
        if self.kv_rank % 4 or self.d_rope % 2:
            raise ConfigError(f"kv_rank, d_rope: {kv_rank} is no multiple of 4, or {d_rope} of 2")
        dtype = number_format(dtype)
        if not isinstance(dtype, str):
            raise ConfigError(f"dtype: expected a name, got {shown(dtype)}")
        if dtype not in _FORMS:
            raise UnsupportedError(f"dtype: {shown(dtype)} is none of {', '.join(_FORMS)}")
        self.dtype = dtype
        self._core = _core.LatentPages(self.kv_rank, self.d_rope, self.max_tokens, _FORMS[dtype])

    def __len__(self) -> int:
        return len(self._core)

    @property
    def nbytes(self) -> int:
        """Bytes at max_tokens."""
        return self._core.nbytes

    def store(self, latent: Any, key: Any, *, isa: str = "auto") -> None:
        """Appends T tokens: latent [T, r], after its norm, and key [T, p], after rotation.

        ConfigError if they do not fit.
        """
        values, keys = arguments.floats(latent, "latent"), arguments.floats(key, "key")
        if values.shape[1:] != (self.kv_rank,):
            raise ConfigError(f"latent: expected [T, {self.kv_rank}], got {list(values.shape)}")
        arguments.expect(keys, "key", (values.shape[0], self.d_rope))
        room = self.max_tokens - len(self)
        if values.shape[0] > room:
            raise ConfigError(
                f"latent: {values.shape[0]} tokens, room for {room} of {self.max_tokens}"
            )
        level = arguments.level(isa)
        if values.nbytes:
            self._core.store(level, values, keys)

    def attend(
        self,
        q: Any,
        positions: Any = None,
        *,
        scale: float,
        out: Any = None,
        isa: str = "auto",
        threads: int = 0,
    ) -> Tensor:
        """softmax(scale * q [latents | keys]^T) latents, over the tokens up to each query's own.

        q: [T, H, r + p]: W_UK^T q_nope of the head, then its rotated part; scale, above 0, is that
        of the expanded head, such as (d_nope + p)^-0.5. Result: F32 [T, H, r], of which W_UV makes
        the head's value. positions: T integers, where each query stands; None: the last T stored
        tokens, in order. threads: 0 takes all processors.
        """
        rows = arguments.floats(q, "q")
        width = self.kv_rank + self.d_rope
        if len(rows.shape) != 3 or rows.shape[2] != width or not 1 <= rows.shape[1] <= 65536:
            raise ConfigError(f"q: expected [T, H, {width}], got {list(rows.shape)}")
        tokens, heads, _ = rows.shape
        at = positions_of(positions, tokens, len(self))
        y = arguments.result(out, (tokens, heads, self.kv_rank), rows)
        level, work = arguments.level(isa), rows.nbytes * (1 + len(self) // 16)
        threads = arguments.count_threads(threads, work)
        factor = arguments.positive(scale, "scale")
        if tokens:
            self._core.attend(level, rows, at, y, heads, factor, threads)
        return y

    def __repr__(self) -> str:
        return (
            f"LatentPages({len(self)} of {self.max_tokens} tokens, "
            f"{self.kv_rank} + {self.d_rope}, {self.dtype})"
        )
