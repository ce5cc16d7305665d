"""What sampling parameters mean: the draw from a row of logits, in NumPy, one step after another.

The order of operations is that of csrc/model/backend_cpu_sample.c: allowed, banned, bias,
penalties, temperature, min_p, top_k, top_p, draw. Logits are changed in float32 as the core does
it, what follows is float64. Used by test_sampling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

F = np.float32


def uniform(seed: int, branch: int, position: int) -> float:
    """In [0, 1): Philox 4x32-10 keyed by the seed, at counter (position, branch)."""
    low = 0xFFFFFFFF
    c = [position & low, position >> 32, branch & low, branch >> 32]
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & low, (p0 >> 32) ^ c[3] ^ k1, p0 & low]
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return float(((c[0] << 32 | c[1]) >> 11) * 2.0**-53)


def ruled(logits: np.ndarray, p: dict[str, Any], given: Sequence[int], made: Sequence[int]) -> Any:
    """Logits [V] after masks, bias and penalties; given, made: tokens of prompt and output."""
    x = logits.astype(np.float32).copy()
    if p["allowed"]:
        keep = np.zeros(len(x), bool)
        keep[p["allowed"]] = True
        x[~keep] = -np.inf
    if len(made) < p["min_tokens"]:
        x[p["stop_ids"]] = -np.inf
    for word in p["bad"]:
        if (
            list(made[len(made) - len(word) + 1 :]) == list(word[:-1])
            and len(made) >= len(word) - 1
        ):
            x[word[-1]] = -np.inf
    for i, bias in zip(p["bias_ids"], p["bias"], strict=True):
        x[i] += F(bias)
    repetition = p["repetition_penalty"]
    seen = {*made, *(given if repetition != 1 else ())}
    if repetition != 1 or p["presence_penalty"] or p["frequency_penalty"]:
        for i in seen:
            x[i] = x[i] / F(repetition) if x[i] > 0 else x[i] * F(repetition)
            count = list(made).count(i)
            if count:
                x[i] -= F(p["frequency_penalty"]) * F(count) + F(p["presence_penalty"])
    return x


def choices(x: np.ndarray, p: dict[str, Any], top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """(ids, probabilities) in the order of the draw."""
    scaled = x * (F(1) / F(p["temperature"]))
    weights = np.exp((scaled - scaled.max()).astype(np.float64))
    ids = np.flatnonzero((weights >= p["min_p"]) & (weights > 0))
    if p["top_k"] > 0 or p["top_p"] < 1:
        ids = ids[np.lexsort((ids, -weights[ids]))]
        ids = ids[: p["top_k"]] if p["top_k"] > 0 else ids
    if p["top_p"] < 1:
        reached = np.cumsum(weights[ids]) / weights[ids].sum()
        ids = ids[: 1 + int((reached < top_p).sum())]
    return ids, weights[ids] / weights[ids].sum()


def draws(x: np.ndarray, p: dict[str, Any], u: float) -> set[int]:
    """The token at u; also its neighbours where sums in float32 cannot tell them apart."""
    if p["temperature"] == 0:
        return {int(np.argmax(x))}
    found = set()
    for off in (-1e-6, 0.0, 1e-6):
        ids, probabilities = choices(x, p, p["top_p"] + off)
        reached = np.cumsum(probabilities)
        first, last = np.searchsorted(reached, [u - 1e-6, u + 1e-6], "right")
        found.update(ids[min(first, len(ids) - 1) : last + 1].tolist())
    return found
