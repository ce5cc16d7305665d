"""The specification of the forward pass: NumPy, float64, one line per formula.

`forward` says what csrc/model/forward.c computes, from the fields of `ModelConfig` alone; it knows
no family. A field that is off is neutral, a slot that is not filled is a step that is not taken.
The tests hold it against transformers, and the C core against it. Kernel references are in
reference_kernels.py.

Shapes: T tokens, D model, H heads, K kv heads, d head size, F ffn, V vocab.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llmaccel.config import ModelConfig

Weights = Mapping[tuple[str, int], Sequence[np.ndarray]]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, kind: str, eps: float
) -> np.ndarray:
    """x [..., n] normalized over its last axis."""
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return y if bias is None else y + bias


def activation(x: np.ndarray, kind: str) -> np.ndarray:
    """The gate's function."""
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "clip":
        x = np.minimum(x, 7)
        return x / (1 + np.exp(-1.702 * x))
    raise ValueError(kind)


def softcap(x: np.ndarray, cap: float) -> np.ndarray:
    """c * tanh(x / c); cap 0 is off."""
    return cap * np.tanh(x / cap) if cap else x


def rope(
    x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray, scale: float, interleaved: bool
) -> np.ndarray:
    """x [T, n, d] with its first 2 * len(inv_freq) dimensions rotated by position * inv_freq."""
    half = len(inv_freq)
    angle = positions[:, None, None] * inv_freq.astype(np.float64)  # [T, 1, half]
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if interleaved
        else (slice(0, half), slice(half, 2 * half))
    )
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float,
    cap: float,
    window: int,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """q [T, H, d], k and v [T, K, d] -> [T, H, d]; causal, `window` last tokens (0: all).

    sinks [H]: one more logit of each head's softmax, whose value is 0.
    """
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = softcap(np.einsum("thd,shd->hts", q, k) * scale, cap)
    age = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    hidden = (age < 0) | ((age >= window) if window else False)
    scores = np.where(hidden, -np.inf, scores)
    extra = np.full(heads, -np.inf) if sinks is None else sinks
    top = np.maximum(scores.max(-1), extra[:, None])[..., None]
    p = np.exp(scores - top)
    total = p.sum(-1, keepdims=True) + np.exp(extra[:, None, None] - top)
    return np.einsum("hts,shd->thd", p / total, v)


def route(
    logits: np.ndarray, config: ModelConfig, correction: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """logits [T, E] -> experts [T, k], best first, and their weights [T, k]."""
    c = config
    if c.route_score == "sigmoid":
        score = 1 / (1 + np.exp(-logits))
    else:
        score = np.exp(logits - logits.max(-1, keepdims=True))
        score = score / score.sum(-1, keepdims=True)
    choice = score if correction is None else score + correction
    if c.route_groups > 1:
        groups = choice.reshape(len(logits), c.route_groups, -1)
        value = np.sort(groups, -1)[..., -c.route_group_best :].sum(-1)
        best = np.argsort(-value, -1, kind="stable")[:, : c.route_groups_used]
        closed = np.ones(value.shape, bool)
        np.put_along_axis(closed, best, False, -1)
        choice = np.where(np.repeat(closed, groups.shape[-1], -1), -np.inf, choice)
    experts = np.argsort(-choice, -1, kind="stable")[:, : c.n_experts_used]
    weights = np.take_along_axis(score, experts, -1)
    if c.route_norm:
        weights = weights / weights.sum(-1, keepdims=True)
    return experts, weights * c.route_scale


def latent_attention(
    q: np.ndarray,
    latent: np.ndarray,
    key: np.ndarray,
    up: tuple[np.ndarray, np.ndarray],
    scale: float,
) -> np.ndarray:
    """MLA, expanded: q [T, H, nope + rope], latent [T, r], key [T, rope] -> [T, H, v].

    up: what takes a latent to keys [H, nope, r] and to values [H, v, r] of each head.
    """
    to_keys, to_values = up
    k = np.einsum("tr,hnr->thn", latent, to_keys)
    k = np.concatenate([k, np.repeat(key[:, None], q.shape[1], axis=1)], axis=2)
    v = np.einsum("tr,hvr->thv", latent, to_values)
    scores = np.einsum("thd,shd->hts", q, k) * scale
    age = np.arange(len(q))[:, None] - np.arange(len(q))[None, :]
    scores = np.where(age < 0, -np.inf, scores)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v)


def forward(
    config: ModelConfig,
    weights: Weights,
    ids: Sequence[int],
    rounding: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
    latents: bool = False,
) -> np.ndarray:
    """Logits [T, V] of every position of `ids`. rounding: of the rows that layers multiply, and of
    latents, kv_b's rows, where the file says it of them too."""
    c = config

    def get(slot: str, layer: int = 0) -> list[np.ndarray] | None:
        parts = weights.get((slot, layer))
        return None if parts is None else [np.asarray(part, np.float64) for part in parts]

    def one(slot: str, layer: int = 0) -> np.ndarray | None:
        parts = get(slot, layer)
        return None if parts is None else parts[0]

    def normed(x: np.ndarray, slot: str, layer: int = 0) -> np.ndarray:
        weight = one(slot, layer)
        return (
            x if weight is None else norm(x, weight, one(slot + "_bias", layer), c.norm, c.norm_eps)
        )

    def linear(x: np.ndarray, slot: str, layer: int) -> list[np.ndarray]:
        biases = get(slot + "_bias", layer)
        x = x if slot == "router" else rounding(x)
        return [
            x @ w.T + (0 if biases is None else biases[i])
            for i, w in enumerate(get(slot, layer) or [])
        ]

    def heads(x: np.ndarray, count: int, slot: str, layer: int) -> np.ndarray:
        """x [T, n*d] -> [T, n, d], normalized per head or over the row where the model does so."""
        weight = one(slot, layer)
        if c.qk_norm == "row":
            x = norm(x, weight, None, "rms", c.norm_eps)
        x = x.reshape(len(x), count, c.d_head)
        if c.qk_norm == "unit" and c.layers[layer].rope >= 0:
            weight = np.ones(c.d_head)
        if c.qk_norm == "head" or (c.qk_norm == "unit" and weight is not None):
            return norm(x, weight, None, "rms", c.norm_eps)
        return x

    def attend(x: np.ndarray, layer: int) -> np.ndarray:
        window, table, _ = c.layers[layer]
        q, k, v = linear(normed(x, "attn_norm", layer), "qkv", layer)
        q = heads(q, c.n_heads, "q_norm", layer)
        k = heads(k, c.n_kv_heads, "k_norm", layer)
        v = v.reshape(len(v), c.n_kv_heads, c.d_head)
        if table >= 0:
            turn = (positions, c.rope_inv_freq[table], c.rope_scale[table], c.rope_interleaved)
            q, k = rope(q, *turn), rope(k, *turn)
        elif c.attn_grow_every:
            steps = np.floor((positions + 1) / c.attn_grow_every)
            q = q * (1 + c.attn_grow * np.log1p(steps))[:, None, None]
        how = {"scale": c.attn_scale, "cap": c.attn_softcap, "window": window}
        a = attention(q, k, v, sinks=one("sinks", layer), **how)
        (o,) = linear(a.reshape(len(a), -1), "o", layer)
        return c.residual_scale * normed(o, "attn_post_norm", layer)

    def attend_latents(x: np.ndarray, layer: int) -> np.ndarray:
        made_of, kv = linear(normed(x, "attn_norm", layer), "mla_in", layer)
        if c.q_rank:
            made_of = norm(made_of, one("mla_q_norm", layer), None, "rms", c.latent_eps)
            (made_of,) = linear(made_of, "mla_q", layer)
        q = made_of.reshape(len(x), c.n_heads, c.d_head)
        latent = norm(kv[:, : c.kv_rank], one("mla_kv_norm", layer), None, "rms", c.latent_eps)
        latent = rounding(latent) if latents else latent
        key = kv[:, None, c.kv_rank :]
        table = c.layers[layer].rope
        if table >= 0:
            turn = (positions, c.rope_inv_freq[table], c.rope_scale[table], c.rope_interleaved)
            turned = rope(q[:, :, c.d_nope :], *turn)
            q, key = np.concatenate([q[:, :, : c.d_nope], turned], axis=2), rope(key, *turn)
        up = one("mla_uk", layer).reshape(c.n_heads, c.kv_rank, c.d_nope).swapaxes(1, 2)
        out = one("mla_uv", layer).reshape(c.n_heads, c.d_v, c.kv_rank)
        a = latent_attention(q, latent, key[:, 0], (up, out), c.attn_scale)
        (o,) = linear(a.reshape(len(a), -1), "o", layer)
        return c.residual_scale * normed(o, "attn_post_norm", layer)

    def gated(h: list[np.ndarray]) -> np.ndarray:
        up = np.clip(h[1], -7, 7) + 1 if c.act == "clip" else h[1] if c.gated else 1
        return activation(h[0], c.act) * up

    def expert(x: np.ndarray, layer: int, e: int, scale: np.ndarray) -> np.ndarray:
        """Rows x through expert e; scale [T, 1] multiplies what enters where the model says so."""
        up, down = get("expert_gate_up", layer), get("expert_down", layer)
        b_up, b_down = get("expert_gate_up_bias", layer), get("expert_down_bias", layer)
        x = rounding(x)
        x = x * scale if c.route_input else x
        h = [x @ w[e].T + (b_up[i][e] if b_up else 0) for i, w in enumerate(up)]
        y = rounding(gated(h)) @ down[0][e].T + (b_down[0][e] if b_down else 0)
        return y if c.route_input else y * scale

    def moe(x: np.ndarray, layer: int) -> np.ndarray:
        x = normed(x, "ffn_norm", layer)
        scores = linear(x, "router", layer)
        experts, shares = route(scores[0], c, one("router_correction", layer))
        y = np.zeros_like(x)
        for e in range(c.n_experts):
            tokens, slot = np.nonzero(experts == e)
            y[tokens] += expert(x[tokens], layer, e, shares[tokens, slot][:, None])
        if c.d_shared:
            (shared,) = linear(gated(linear(x, "shared_gate_up", layer)), "shared_down", layer)
            y += shared / (1 + np.exp(-scores[1])) if c.shared_gate else shared
        return c.residual_scale * normed(y, "ffn_post_norm", layer)

    def feed(x: np.ndarray, layer: int) -> np.ndarray:
        if c.layers[layer].moe:
            return moe(x, layer)
        h = linear(normed(x, "ffn_norm", layer), "gate_up", layer)
        (y,) = linear(gated(h), "down", layer)
        return c.residual_scale * normed(y, "ffn_post_norm", layer)

    ids = np.asarray(ids)
    positions = np.arange(len(ids), dtype=np.float64)
    x = one("embed")[ids] * c.embed_scale
    if ("pos_embed", 0) in weights:
        x = x + one("pos_embed")[: len(ids)]
    for layer in range(c.n_layers):
        if c.parallel:
            x = x + attend(x, layer) + feed(x, layer)
        else:
            x = x + (attend_latents if c.attn == "latent" else attend)(x, layer)
            x = x + feed(x, layer)
    head = one("head") if ("head", 0) in weights else one("embed")
    logits = normed(x, "final_norm") @ head.T
    return softcap(logits * c.logit_scale, c.logit_softcap)


def load_weights(config: ModelConfig, checkpoint) -> dict[tuple[str, int], list[np.ndarray]]:
    """All slots as float32 arrays; the `gguf` package is the oracle for block formats."""
    from llmaccel.models.mapping import iter_slots

    weights = {}
    for slot, layer, expert, parts in iter_slots(config, checkpoint):
        values = [_float32(part) for part in parts]
        if slot.startswith("expert_"):  # [E, ..] of each part
            before = weights[slot, layer] if expert else [()] * len(values)
            values = [np.stack([*others, one]) for others, one in zip(before, values, strict=True)]
        weights[slot, layer] = values
    return weights


def _float32(part) -> np.ndarray:
    if part.dtype in ("F32", "F16", "BF16"):
        return part.float32()
    import gguf

    kind = gguf.GGMLQuantizationType[part.dtype]
    blocks = part.data.reshape(part.shape[0], -1)
    return gguf.quants.dequantize(blocks, kind).reshape(part.shape)
