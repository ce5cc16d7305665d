"""What the row, attention and sampling kernels mean: NumPy float64, one function per slot.

Each function takes and returns arrays instead of filling buffers; the names are those of
csrc/kernels/kernels.h. bf16 values are float arrays already rounded (`bf16`). Used by
test_rows.py, test_attention.py and test_sample_kernels.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

PAGE = 64  # tokens of a page
LANE = 16  # tokens or dimensions of a line

# The slots that this file specifies, each by the function of its name.
ROW_SLOTS = [
    *("rms_norm", "layer_norm", "add_scaled", "add", "act_mul", "act", "rope", "softcap"),
    *("kv_store_f32", "kv_store_bf16", "kv_store_i8", "kv_store_f8"),
    *("attend_f32", "attend_bf16", "attend_i8", "attend_f8", "attend_merge"),
    *("mla_store_f32", "mla_store_bf16", "mla_store_f8"),
    *("mla_attend_f32", "mla_attend_bf16", "mla_attend_f8"),
    *("attend_finish", "argmax", "block_max", "sum_exp", "exp_sub", "select_above", "mask"),
]

State = tuple[Any, Any, np.ndarray]  # maximum, sum of exp, unnormalised output

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def bf16(x: np.ndarray) -> np.ndarray:
    """Rounds to nearest even bf16, as float32. No NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


# ---- rows ----------------------------------------------------------------------------------------


def rms_norm(x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(x * x) + eps) * w


def layer_norm(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    y = (x - x.mean()) / np.sqrt(x.var() + eps) * w
    return y if b is None else y + b


def add_scaled(x: np.ndarray, s: float, y: np.ndarray) -> np.ndarray:
    return y.astype(np.float64) + x.astype(np.float64) * float(np.float32(s))


def add(b: np.ndarray, y: np.ndarray) -> np.ndarray:
    return y.astype(np.float64) + b


def act(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        if name == "silu":
            return x / (1 + np.exp(-x))
        if name == "gelu":
            return x * 0.5 * _erfc(-x / math.sqrt(2))
        if name == "gelu_tanh":  # (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)), which keeps its digits
            u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return x / (1 + np.exp(-2 * u))
        if name == "clip":
            x = np.minimum(x, 7)
            return x / (1 + np.exp(-np.float64(np.float32(1.702)) * x))
    assert name == "relu"
    return np.maximum(x, 0)


def act_mul(name: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return act(name, gate) * (np.clip(up.astype(np.float64), -7, 7) + 1 if name == "clip" else up)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """x [d]; the first 2 * len(cos) values are rotated as pairs (i, i + half) or (2i, 2i + 1)."""
    y = x.astype(np.float64)
    half = len(cos)
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = y[first].copy(), y[second].copy()
    y[first] = a * cos - b * sin
    y[second] = b * cos + a * sin
    return y


def softcap(x: np.ndarray, s: float, c: float) -> np.ndarray:
    x = x.astype(np.float64) * float(np.float32(s))
    return x if c == 0 else c * np.tanh(x / c)


# ---- attention -----------------------------------------------------------------------------------


def kv_store_f32(k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pages of tokens [T, d]: K [pages, 4, d, 16], V [pages, ceil(d/16), 64, 16]; empty slots 0."""
    tokens, d = v.shape
    pages, blocks = -(-tokens // PAGE), -(-d // LANE)
    kp = np.zeros((pages * PAGE, k.shape[1]), np.float32)
    vp = np.zeros((pages * PAGE, blocks * LANE), np.float32)
    kp[:tokens] = k
    vp[:tokens, :d] = v
    return (
        kp.reshape(pages, PAGE // LANE, LANE, -1).transpose(0, 1, 3, 2).copy(),
        vp.reshape(pages, PAGE, blocks, LANE).transpose(0, 2, 1, 3).copy(),
    )


def kv_store_bf16(k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K [pages, 4, ceil(d/2), 16, 2], V [pages, ceil(d/16), 32, 16, 2] as bf16 codes."""
    kp, vp = kv_store_f32(np.pad(k, ((0, 0), (0, k.shape[1] % 2))), v)
    pages, subs, even, lane = kp.shape
    blocks = vp.shape[1]

    def codes(x: np.ndarray) -> np.ndarray:
        return (bf16(x).view(np.uint32) >> 16).astype(np.uint16)

    kp = kp.reshape(pages, subs, even // 2, 2, lane).transpose(0, 1, 2, 4, 3)
    vp = vp.reshape(pages, blocks, PAGE // 2, 2, LANE).transpose(0, 1, 2, 4, 3)
    return codes(kp), codes(vp)


# Every E4M3 magnitude by its code: S.EEEE.MMM, bias 7; code 127 is NaN and never written.
E4M3 = np.array(
    [c * 2.0**-9 if c < 8 else (1 + c % 8 / 8) * 2.0 ** (c // 8 - 7) for c in range(127)]
)


def e4m3(x: np.ndarray) -> np.ndarray:
    """Codes of values within +-448, to nearest, ties to the even code."""
    at = np.searchsorted(E4M3, np.abs(x)).clip(1, 126)
    below, above = np.abs(x) - E4M3[at - 1], E4M3[at] - np.abs(x)
    code = np.where((above < below) | ((above == below) & (at % 2 == 0)), at, at - 1)
    return (code | np.signbit(x) * 128).astype(np.uint8)


def scaled(x: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """x [T, d] by rows as x / scale within +-top, and scales [T], in the kernels' fp32 steps."""
    amax = np.abs(x).max(axis=1).astype(np.float32)
    tiny = amax < 1e-36
    inverse = np.where(tiny, np.float32(0), np.float32(top) / np.where(tiny, np.float32(1), amax))
    y = np.clip(x.astype(np.float32) * inverse[:, None].astype(np.float32), -top, top)
    return y, np.where(tiny, np.float32(0), amax / np.float32(top)).astype(np.float32)


def int8_codes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, scale = scaled(x, 127)
    return np.rint(y).astype(np.int8), scale


def e4m3_codes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, scale = scaled(x, 448)
    return e4m3(y), scale


def int8_values(x: np.ndarray) -> np.ndarray:
    """x [T, d] as int8 pages and int8 queries hold it."""
    code, scale = int8_codes(x)
    return code * scale.astype(np.float64)[:, None]


def e4m3_values(x: np.ndarray) -> np.ndarray:
    code, scale = e4m3_codes(x)
    sign = np.where(code & 128, -1.0, 1.0)
    return sign * E4M3[code & 127] * scale.astype(np.float64)[:, None]


def _with_scales(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Bytes [pages, n]: codes [pages, ...], then 64 scales."""
    tail = np.zeros(len(codes) * PAGE, np.float32)
    tail[: len(scale)] = scale
    flat = codes.reshape(len(codes), -1).view(np.uint8)
    return np.concatenate([flat, tail.reshape(-1, PAGE).view(np.uint8)], axis=1)


def _blocks(lines: np.ndarray) -> np.ndarray:
    """Lines [.., 2 pairs, 16 columns, 2] as blocks [.., 4 groups, 2 pairs, 4 columns, 2]."""
    *outer, pairs, _, two = lines.shape
    return np.moveaxis(lines.reshape(*outer, pairs, 4, 4, two), -4, -3)


def _v_blocks(code: np.ndarray) -> np.ndarray:
    """V codes [T, d] as [pages, ceil(d/16), 16, block]."""
    tokens, d = code.shape
    pages, blocks = -(-tokens // PAGE), -(-d // LANE)
    padded = np.zeros((pages * PAGE, blocks * LANE), code.dtype)
    padded[:tokens, :d] = code
    lines = padded.reshape(pages, 16, 2, 2, blocks, LANE).transpose(0, 4, 1, 2, 5, 3)
    return np.ascontiguousarray(_blocks(lines))


def _k_lanes(code: np.ndarray) -> np.ndarray:
    """K codes [T, d] as [pages, 4, ceil(d/4), 16 tokens, 4]; empty slots 0."""
    tokens, d = code.shape
    pages, quads = -(-tokens // PAGE), -(-d // 4)
    padded = np.zeros((pages * PAGE, quads * 4), code.dtype)
    padded[:tokens, :d] = code
    return padded.reshape(pages, 4, LANE, quads, 4).transpose(0, 1, 3, 2, 4)


def kv_store_i8(k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the K and V pages [pages, n] of tokens [T, d]; empty slots are code 0, scale 0."""
    (kc, ks), (vc, vs) = int8_codes(k), int8_codes(v)
    biased = np.ascontiguousarray(_k_lanes(kc)).view(np.uint8) ^ 0x80
    signed = np.abs(vc).view(np.uint8) | (vc < 0) * np.uint8(128)
    return _with_scales(biased, ks), _with_scales(_v_blocks(signed), vs)


def kv_store_f8(k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (kc, ks), (vc, vs) = e4m3_codes(k), e4m3_codes(v)
    lanes = _k_lanes(kc)  # [.., 16, 4]: two pairs
    lines = lanes.reshape(*lanes.shape[:-1], 2, 2).swapaxes(-2, -3)
    return _with_scales(np.ascontiguousarray(_blocks(lines)), ks), _with_scales(_v_blocks(vc), vs)


@dataclass(frozen=True)
class View:
    """What a row counts and how scores are made; window and softcap 0 are off."""

    first: int = 0  # position of the first token
    window: int = 0
    scale: float = 1.0
    softcap: float = 0.0


def attend_f32(q: np.ndarray, k: np.ndarray, v: np.ndarray, pos: np.ndarray, view: View) -> State:
    """q [R, d] at positions pos [R] over tokens k, v [T, d]: m [R], l [R], o [R, d]."""
    token = view.first + np.arange(len(k))
    s = softcap(q.astype(np.float64) @ k.T.astype(np.float64), view.scale, view.softcap)
    counts = token[None, :] <= pos[:, None]
    if view.window:
        counts &= token[None, :] > pos[:, None] - view.window
    s = np.where(counts, s, -np.inf)
    m = s.max(axis=1)
    p = np.exp(s - np.where(np.isinf(m), 0, m)[:, None])
    return m, p.sum(axis=1), p @ v.astype(np.float64)


def attend_bf16(q: np.ndarray, k: np.ndarray, v: np.ndarray, pos: np.ndarray, view: View) -> State:
    """The same on rounded values; the rounding of the probabilities is left to the tolerance."""
    return attend_f32(bf16(q), bf16(k), bf16(v), pos, view)


def attend_i8(q: np.ndarray, k: np.ndarray, v: np.ndarray, pos: np.ndarray, view: View) -> State:
    """The same on values as the pages hold them; q has codes too."""
    return attend_f32(int8_values(q), int8_values(k), int8_values(v), pos, view)


def attend_f8(q: np.ndarray, k: np.ndarray, v: np.ndarray, pos: np.ndarray, view: View) -> State:
    return attend_f32(bf16(q), e4m3_values(k), e4m3_values(v), pos, view)


GROUP = 128  # values of a latent that share a scale


def _latent_groups(x: np.ndarray) -> list[np.ndarray]:
    return [x[:, i : i + GROUP] for i in range(0, x.shape[1], GROUP)]


def mla_store_f32(latent: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Pages [pages, 4, r + p, 16] of latents [T, r] and keys [T, p]; empty slots 0."""
    return kv_store_f32(np.concatenate([latent, key], axis=1), latent)[0]


def mla_store_bf16(latent: np.ndarray, key: np.ndarray) -> np.ndarray:
    return kv_store_bf16(np.concatenate([latent, key], axis=1), latent)[0]


def mla_store_f8(latent: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Bytes [pages, 64 (r + 2 p + 4 ceil(r / 128))]: codes, keys, scales [ceil(r / 128), 64]."""
    groups = [e4m3_codes(part) for part in _latent_groups(latent)]
    lanes = _k_lanes(np.concatenate([code for code, _ in groups], axis=1))
    lines = lanes.reshape(*lanes.shape[:-1], 2, 2).swapaxes(-2, -3)
    codes = np.ascontiguousarray(_blocks(lines))
    keys = kv_store_bf16(key, key)[0]
    scales = np.zeros((len(groups), len(codes) * PAGE), np.float32)
    scales[:, : len(latent)] = [scale for _, scale in groups]
    scales = scales.reshape(len(groups), -1, PAGE).swapaxes(0, 1)
    parts = [np.ascontiguousarray(x).reshape(len(codes), -1) for x in (codes, keys, scales)]
    return np.concatenate([part.view(np.uint8) for part in parts], axis=1)


def mla_values(latent: np.ndarray) -> np.ndarray:
    """What fp8 pages hold of latents, as it is multiplied: code times scale, in bf16."""
    return np.concatenate(
        [bf16(e4m3_values(part).astype(np.float32)) for part in _latent_groups(latent)], axis=1
    )


def mla_attend_f32(
    q: np.ndarray, latent: np.ndarray, key: np.ndarray, pos: np.ndarray, view: View
) -> State:
    """Absorbed: q [R, r + p] over latents [T, r] and keys [T, p]; values are the latents."""
    return attend_f32(q, np.concatenate([latent, key], axis=1), latent, pos, view)


def mla_attend_bf16(
    q: np.ndarray, latent: np.ndarray, key: np.ndarray, pos: np.ndarray, view: View
) -> State:
    return mla_attend_f32(bf16(q), bf16(latent), bf16(key), pos, view)


def mla_attend_f8(
    q: np.ndarray, latent: np.ndarray, key: np.ndarray, pos: np.ndarray, view: View
) -> State:
    return mla_attend_f32(bf16(q), mla_values(latent), bf16(key), pos, view)


def attend_merge(left: State, right: State) -> State:
    """(m, l, o [d]) of the tokens of both."""
    top = max(left[0], right[0])
    if math.isinf(top):
        return left
    a, b = math.exp(left[0] - top), math.exp(right[0] - top)
    joined = left[2].astype(np.float64) * a + right[2].astype(np.float64) * b
    return top, left[1] * a + right[1] * b, joined


def attend_finish(o: np.ndarray, mass: float) -> np.ndarray:
    return np.zeros(o.shape) if mass == 0 else o.astype(np.float64) / mass


# ---- sampling ------------------------------------------------------------------------------------


def argmax(x: np.ndarray) -> tuple[int, float]:
    if np.isnan(x).all():
        return 0, math.nan
    at = int(np.nanargmax(x))
    return at, float(x[at])


def block_max(x: np.ndarray) -> np.ndarray:
    x = np.where(np.isnan(x), -np.inf, x).astype(np.float32)
    return np.pad(x, (0, -len(x) % 32), constant_values=-np.inf).reshape(-1, 32).max(1)


def sum_exp(x: np.ndarray, scale: float, top: float) -> float:
    return float(exp_sub(x, scale, top).sum())


def exp_sub(x: np.ndarray, scale: float, top: float) -> np.ndarray:
    return np.exp((x * np.float32(scale) - np.float32(top)).astype(np.float64))


def select_above(x: np.ndarray, threshold: float) -> np.ndarray:
    return np.flatnonzero(x > np.float32(threshold))


def mask(bits: np.ndarray, x: np.ndarray) -> np.ndarray:
    """bits: int32 words [ceil(n/32)]."""
    keep = np.unpackbits(bits.view(np.uint8), bitorder="little")[: len(x)]
    return np.where(keep == 1, x, np.float32(-np.inf))
