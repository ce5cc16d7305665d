"""What sampling parameters mean: the draw from a row of logits, in NumPy, one step after another.

The order of operations is that of csrc/sampling.h: allowed, banned, bias, penalties, DRY,
top-n-sigma, temperature, min_p, top_k, typical_p, top_p, XTC, draw; mirostat stands for all after
temperature. Logits are changed in float32 as the core does it, what follows is float64. Used by
test_sampling.py and test_parameter_table.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

F = np.float32


def uniform(seed: int, branch: int, position: int, lane: int = 0) -> float:
    """In [0, 1): Philox 4x32-10 keyed by the seed, at counter (position, branch); two numbers."""
    low = 0xFFFFFFFF
    c = [position & low, position >> 32, branch & low, branch >> 32]
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & low, (p0 >> 32) ^ c[3] ^ k1, p0 & low]
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return float(((c[2 * lane] << 32 | c[2 * lane + 1]) >> 11) * 2.0**-53)


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
    tokens, n = [*given, *made], p["no_repeat_ngram"]
    for end in range(n - 1, len(tokens)) if n > 0 else ():
        if tokens[end - n + 1 : end] == tokens[len(tokens) - n + 1 :]:
            x[tokens[end]] = -np.inf
    for i, bias in zip(p["bias_ids"], p["bias"], strict=True):
        x[i] += F(bias)
    repetition = p["repetition_penalty"]
    last = p["repeat_last_n"] if p["repeat_last_n"] >= 0 else len(tokens)
    made = made[max(0, len(made) - last) :]
    given = given[max(0, len(tokens) - last) :]
    seen = {*made, *(given if repetition != 1 else ())}
    if repetition != 1 or p["presence_penalty"] or p["frequency_penalty"]:
        for i in seen:
            x[i] = x[i] / F(repetition) if x[i] > 0 else x[i] * F(repetition)
            count = list(made).count(i)
            if count:
                x[i] -= F(p["frequency_penalty"]) * F(count) + F(p["presence_penalty"])
    for i, length in repetitions(tokens, p).items():
        x[i] -= F(p["dry_multiplier"] * p["dry_base"] ** (length - p["dry_allowed_length"]))
    return x


def repetitions(tokens: list[int], p: dict[str, Any]) -> dict[int, int]:
    """Of each token that DRY penalises the length of the repetition that it would continue."""
    if p["dry_multiplier"] == 0:
        return {}
    last = p["dry_last_n"] if p["dry_last_n"] >= 0 else len(tokens)
    window = tokens[max(0, len(tokens) - last) :]
    broken = [i for i, token in enumerate(window) if token in p["dry_breakers"]]
    most = len(window) - 1 - broken[-1] if broken else len(window)
    found: dict[int, int] = {}
    for end in range(1, len(window)):
        n = 0
        while n < min(end, most) and window[end - 1 - n] == window[-1 - n]:
            n += 1
        if n >= p["dry_allowed_length"] and window[end] not in p["dry_breakers"]:
            found[window[end]] = max(n, found.get(window[end], 0))
    return found


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


def is_filtered(p: dict[str, Any]) -> bool:
    """Whether the draw takes what vLLM has not; its candidates stay in the order of ids."""
    return (
        p["typical_p"] < 1
        or p["top_n_sigma"] > 0
        or p["xtc_probability"] > 0
        or p["dynatemp_range"] > 0
        or p["mirostat"] > 0
    )


def entropy(q: np.ndarray) -> float:
    """In nats, of probabilities above 0."""
    return float(-(q * np.log(q)).sum())


def softmax(x: np.ndarray) -> np.ndarray:
    w = np.exp((x - x.max()).astype(np.float64))
    return w / w.sum()


def first_of(order: np.ndarray, mass: np.ndarray, want: float) -> np.ndarray:
    """The first in that order that have a mass of `want`, in order of their places."""
    reached = np.cumsum(mass[order]) < want
    return np.sort(order[: 1 + int(reached.sum())])


def zipf_size(q: np.ndarray, mu: float, n_vocab: int) -> int:
    """Mirostat 1: how many candidates of a Zipf distribution have an expected surprise of mu."""
    best = np.log(np.sort(q)[::-1][:100])
    if len(best) < 2:
        return 1
    t = np.log((np.arange(len(best) - 1) + 2) / (np.arange(len(best) - 1) + 1))
    exponent = (t * -np.diff(best)).sum() / (t * t).sum()
    epsilon = exponent - 1
    k = (epsilon * 2**mu / (1 - n_vocab**-epsilon)) ** (1 / exponent)
    return int(min(max(k, 1), len(q)))


def near(x: np.ndarray, p: dict[str, Any], off: float) -> np.ndarray:
    """Which logits top_n_sigma leaves."""
    alive = x > -np.inf
    if p["top_n_sigma"] > 0:
        alive &= x >= x.max() - (p["top_n_sigma"] + off) * x[alive].astype(np.float64).std()
    return alive


def dynamic_scale(x: np.ndarray, p: dict[str, Any], off: float = 0.0) -> Any:
    """What multiplies logits: one over the temperature, dynamic or not."""
    if p["dynatemp_range"] == 0:
        return F(1) / F(p["temperature"])
    q = softmax(x[near(x, p, off)])
    flat = entropy(q) / np.log(len(q)) if len(q) > 1 else 0.0
    least = max(0.0, p["temperature"] - p["dynatemp_range"])
    most = p["temperature"] + p["dynatemp_range"]
    t = least + (most - least) * flat ** p["dynatemp_exponent"]
    return F(1 / max(t, 0.01))


def filtered(
    x: np.ndarray, p: dict[str, Any], u: float, mu: float, off: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, probabilities) in the order of ids. u: XTC's number. mu: mirostat's state. off: added
    to every threshold."""
    alive = near(x, p, off)
    scale = dynamic_scale(x, p, off)
    w = np.exp((x * scale - (x * scale).max()).astype(np.float64))
    ids = np.flatnonzero(alive & (w >= p["min_p"]) & (w > 0))
    q = w[ids] / w[ids].sum()
    if p["mirostat"] == 1:
        keep = np.sort(np.lexsort((ids, -q))[: zipf_size(q, mu + 10 * off, len(x))])
    elif p["mirostat"] == 2:
        keep = np.flatnonzero(-np.log2(q) <= mu + 10 * off)
        keep = keep if len(keep) else np.array([int(q.argmax())])
    else:
        keep = np.arange(len(q))
    if p["top_k"] > 0:
        keep = np.sort(np.lexsort((ids, -q))[: p["top_k"]])
    ids, q = ids[keep], q[keep] / q[keep].sum()
    if p["typical_p"] < 1:
        surprise = F(np.abs(-np.log(q) - entropy(q)))
        keep = first_of(np.lexsort((ids, surprise)), q, p["typical_p"] + off)
        ids, q = ids[keep], q[keep] / q[keep].sum()
    if p["top_p"] < 1:
        keep = first_of(np.lexsort((ids, -q)), q, p["top_p"] + off)
        ids, q = ids[keep], q[keep] / q[keep].sum()
    likely = np.flatnonzero(q >= p["xtc_threshold"] + off)
    if u < p["xtc_probability"] and len(likely) > 1:
        last = likely[np.lexsort((-ids[likely], q[likely]))[0]]
        keep = np.setdiff1d(np.arange(len(q)), likely[likely != last])
        ids, q = ids[keep], q[keep] / q[keep].sum()
    return ids, q


def moved(x: np.ndarray, p: dict[str, Any], token: int, mu: float) -> float:
    """Mirostat's state after a draw."""
    for off in (0.0, -1e-6, 1e-6):
        ids, q = filtered(x, p, 0.0, mu, off)
        if token in ids:
            surprise = -np.log2(q[ids == token][0])
            return mu - p["mirostat_eta"] * (surprise - p["mirostat_tau"])
    raise ValueError(f"{token} was no candidate")


def draws(x: np.ndarray, p: dict[str, Any], u: tuple[float, float], mu: float) -> set[int]:
    """The token at u[0]; also its neighbours where sums in float32 cannot tell them apart."""
    if p["temperature"] == 0:
        return {int(np.argmax(x))}
    found = set()
    for off in (-1e-6, 0.0, 1e-6):
        if is_filtered(p):
            ids, probabilities = filtered(x, p, u[1], mu, off)
        else:
            ids, probabilities = choices(x, p, p["top_p"] + off)
        reached = np.cumsum(probabilities)
        first, last = np.searchsorted(reached, [u[0] - 1e-6, u[0] + 1e-6], "right")
        found.update(ids[min(first, len(ids) - 1) : last + 1].tolist())
    return found


def reported(
    x: np.ndarray, p: dict[str, Any], u: float, mu: float, off: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """What a draw was made from, of the ruled row: (logits [V], -inf for what was dropped; its log
    probabilities). u: XTC's number. off: added to the thresholds."""
    if p["temperature"] == 0:
        ids, scale = np.flatnonzero(x > -np.inf), F(1)
    elif is_filtered(p):
        ids, scale = filtered(x, p, u, mu, off)[0], dynamic_scale(x, p)
    else:
        ids, scale = choices(x, p, p["top_p"] + off)[0], F(1) / F(p["temperature"])
    row = np.full(len(x), -np.inf, np.float64)
    row[ids] = x[ids] * scale
    with np.errstate(divide="ignore"):
        return row, np.log(softmax(row))
