"""Fake quantization: a forward pass in NumPy whose weights, activations, keys and values are
rounded to any number of bits.

Owns the rounding (round-to-nearest, asymmetric groups, as Qllm-Eval does it; or rows and cache as
the engine's kernels round them) and the arithmetic of models of the Llama kind, in fp64: a value
that falls to the other side of a code moves those of all later layers, and in fp32 two computations
of one format differ by 0.2 % over 200 tokens. Invariant: with 16 bits everywhere it computes what
LLM does with dtype="float32"; nothing of the engine is used, so what formats cost can be told from
what kernels cost. What a model has that this forward has not is refused by name.

Called by quant.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmaccel import UnsupportedError

FLOAT_BITS = 16  # and above: not rounded
_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
_ROWS_OF_HEAD = 256  # rows of logits at once
_PAGE, _CHUNK = 64, 256  # tokens of the engine's attention: of a page, and of a softmax of its own
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True)
class KernelRule:
    """How the engine's int8 kernels round, where Qllm-Eval takes asymmetric groups: symmetric codes
    of +-127 with the scale max|x| / 127, of a row's groups and of each token and head of keys,
    values and, for integer scores, queries; what such values are weighted by is bfloat16.

    group: k that share a scale of a row. wide: slots (qkv, o, gate_up, down) whose rows are finer;
    fine: what those are, "int8x2" (a second lane of codes, 254 times as fine, in groups of
    wide_group) or "bfloat16".
    """

    group: int
    wide: Sequence[str]
    wide_group: int
    fine: str


@dataclass(frozen=True)
class Rounding:
    """Bits of weights, of what enters linear layers, and of keys and values; values that share a
    scale, along the last axis (of keys and values: at most a head). rule: of rows and cache of 8
    bits, instead of groups; None: groups."""

    w: int = FLOAT_BITS
    a: int = FLOAT_BITS
    kv: int = FLOAT_BITS
    w_group: int = 128
    a_group: int = 128
    kv_group: int = 128
    rule: KernelRule | None = None


def quantize(x: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, scale, zero) of floats [..., K] in groups of `group` along the last axis.

    scale = (max - min) / (2^bits - 1), zero = round(-min / scale), codes = round(x / scale) + zero
    cut to 0..2^bits - 1. codes [..., K]; scale, zero [..., ceil(K / group)], all as floats. A
    group of equal values x has scale x, zero 0 and codes 1.
    """
    starts = np.arange(0, x.shape[-1], group)
    low = np.minimum.reduceat(x, starts, axis=-1)
    high = np.maximum.reduceat(x, starts, axis=-1)
    top = 2**bits - 1
    scale = (high - low) / top
    flat = scale == 0
    scale = np.where(flat, np.where(low == 0, 1, low), scale)
    zero = np.where(flat, 0, np.rint(-low / scale))
    sizes = np.diff(np.append(starts, x.shape[-1]))
    wide = np.repeat(zero, sizes, axis=-1)
    codes = np.clip(np.rint(x / np.repeat(scale, sizes, axis=-1)) + wide, 0, top)
    return codes, scale, zero


def rounded(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """`x` as its codes stand for it; `x` itself for 16 bits and more."""
    if bits >= FLOAT_BITS:
        return x
    codes, scale, zero = quantize(x, bits, group)
    sizes = np.full(scale.shape[-1], group)
    sizes[-1] = x.shape[-1] - group * (len(sizes) - 1)
    return (codes - np.repeat(zero, sizes, axis=-1)) * np.repeat(scale, sizes, axis=-1)


def symmetric(x: np.ndarray, group: int, lanes: int = 1) -> np.ndarray:
    """`x` as int8 codes stand for it: the largest of each `group` of the last axis is +-127. With
    two lanes the second holds what rounding leaves, in steps 254 times as fine."""
    starts = np.arange(0, x.shape[-1], group)
    most = np.maximum.reduceat(np.abs(x), starts, axis=-1)
    scale = np.repeat(most / 127, np.diff(np.append(starts, x.shape[-1])), axis=-1)
    y = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
    codes = np.rint(y)
    if lanes == 2:
        codes += np.rint((y - codes) * 254) / 254
    return codes * scale


def bfloat16(x: np.ndarray) -> np.ndarray:
    """`x` rounded to the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def page_weights(scores: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Softmax of scores [.., T, keys] as the kernels weigh values of int8 pages.

    A page of 64 tokens is taken relative to the largest score so far of its chunk of 256; times the
    scale [.., 1, keys] of its value a weight becomes bfloat16, the sum keeps what was not rounded.
    """
    best = scores.max(axis=-1, keepdims=True)
    scale = np.where(scale > 0, scale, 1)
    weights, total = np.empty_like(scores), np.zeros_like(best)
    top = np.full_like(best, -np.inf)
    for start in range(0, scores.shape[-1], _PAGE):
        here = slice(start, start + _PAGE)
        page = scores[..., here]
        most = page.max(axis=-1, keepdims=True)
        top = most if start % _CHUNK == 0 else np.maximum(top, most)
        seen = np.where(np.isinf(top), 0, top)  # nothing yet, where a row comes before the chunk
        e, shrink = np.exp(page - seen), np.exp(top - best)
        weights[..., here] = bfloat16(e * scale[..., here]) / scale[..., here] * shrink
        total += e.sum(axis=-1, keepdims=True) * shrink
    return weights / total


class FakeModel:
    """A model of the Llama kind whose numbers can be rounded.

    config, arrays: as `llmaccel.read_arrays` gives them. UnsupportedError for a model that has more
    than this forward.
    """

    def __init__(self, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._check(config)
        self.config = config
        self.arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.size = config.get("head_dim") or config["hidden_size"] // self.heads
        self.eps = config.get("rms_norm_eps", 1e-6)
        head = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
        self.head = self.arrays[f"{head}.weight"]
        self._weights: dict[str, np.ndarray] = {}
        self._rounding = Rounding()

    @staticmethod
    def _check(config: Mapping[str, Any]) -> None:
        name = (config.get("architectures") or ["?"])[0]
        if name not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise UnsupportedError(f"eval quant: {name}; this forward knows {known}")
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if scaling.get("rope_type", scaling.get("type", "default")) != "default":
            raise UnsupportedError("eval quant: rope_scaling other than default")
        if config.get("sliding_window") and config.get("use_sliding_window", True):
            raise UnsupportedError("eval quant: sliding_window")
        if config.get("hidden_act", "silu") != "silu":
            raise UnsupportedError(f"eval quant: hidden_act {config['hidden_act']!r}")

    def round_weights(self, rounding: Rounding) -> None:
        """Take `rounding` from here on; weights are rounded anew where theirs differs."""
        old, self._rounding = self._rounding, rounding
        if not self._weights or (old.w, old.w_group) != (rounding.w, rounding.w_group):
            self._weights = {
                name: rounded(w, rounding.w, rounding.w_group)
                for name, w in self.arrays.items()
                if name.removesuffix(".weight").endswith(LINEARS) and w.ndim == 2
            }

    def nll(self, windows: Sequence[Sequence[int]]) -> tuple[float, int]:
        """(sum of -ln p, number) of the tokens after the first of each window."""
        total, count = 0.0, 0
        by_length: dict[int, list[Sequence[int]]] = {}
        for window in windows:
            by_length.setdefault(len(window), []).append(window)
        for length, group in by_length.items():
            ids = np.array(group)
            hidden = self._forward(ids[:, :-1]).reshape(-1, self.config["hidden_size"])
            targets = ids[:, 1:].reshape(-1)
            for start in range(0, len(targets), _ROWS_OF_HEAD):
                logits = hidden[start : start + _ROWS_OF_HEAD] @ self.head.T
                best = logits.max(axis=1, keepdims=True)
                spread = np.log(np.exp(logits - best).sum(axis=1))
                own = np.take_along_axis(
                    logits, targets[start : start + _ROWS_OF_HEAD, None], axis=1
                )
                total += float(np.sum(spread - (own - best)[:, 0]))
            count += len(group) * (length - 1)
        return total, count

    # ---- the forward -----------------------------------------------------------------------------

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        """Normed hidden states float64 [B, T, D] of ids [B, T]."""
        x = self.arrays["model.embed_tokens.weight"][ids]
        rotation = self._rotation(ids.shape[1])
        for i in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{i}"
            h = self._entering(self._norm(x, f"{name}.input_layernorm"), "qkv")
            h = self._entering(self._attend(h, f"{name}.self_attn", rotation), "o")
            x = x + self._linear(h, f"{name}.self_attn.o_proj")
            h = self._entering(self._norm(x, f"{name}.post_attention_layernorm"), "gate_up")
            gate = self._linear(h, f"{name}.mlp.gate_proj")
            with np.errstate(over="ignore"):  # exp of a large number: the gate is shut
                gate = gate / (1 + np.exp(-gate))
            h = self._entering(gate * self._linear(h, f"{name}.mlp.up_proj"), "down")
            x = x + self._linear(h, f"{name}.mlp.down_proj")
        return self._norm(x, "model.norm")

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.eps) * self.arrays[f"{name}.weight"]

    def _entering(self, x: np.ndarray, slot: str) -> np.ndarray:
        """Rows as the product of `slot` takes them."""
        rounding, rule = self._rounding, self._rounding.rule
        if rule is None or rounding.a >= FLOAT_BITS:
            return rounded(x, rounding.a, rounding.a_group)
        if slot not in rule.wide:
            return symmetric(x, rule.group)
        return symmetric(x, rule.wide_group, 2) if rule.fine == "int8x2" else bfloat16(x)

    def _cached(self, *parts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Queries, keys and values [.., size] as scores and pages have them."""
        q, k, v = parts
        if self._rounding.rule is not None and self._rounding.kv < FLOAT_BITS:
            return tuple(symmetric(part, self.size) for part in parts)
        group = min(self._rounding.kv_group, self.size)
        return q, *(rounded(part, self._rounding.kv, group) for part in (k, v))

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self._weights[f"{name}.weight"].T
        bias = self.arrays.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _rotation(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(cos, sin) [T, size / 2]."""
        parameters = self.config.get("rope_parameters") or {}
        theta = self.config.get("rope_theta") or parameters.get("rope_theta", 10000.0)
        angles = np.outer(
            np.arange(count), float(theta) ** -(np.arange(0, self.size, 2) / self.size)
        )
        return np.cos(angles), np.sin(angles)

    def _attend(
        self, h: np.ndarray, name: str, rotation: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray:
        b, t, _ = h.shape
        q, k, v = (
            self._linear(h, f"{name}.{part}_proj")
            .reshape(b, t, heads, self.size)
            .transpose(0, 2, 1, 3)
            for part, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        )
        if f"{name}.q_norm.weight" in self.arrays:
            q, k = self._norm(q, f"{name}.q_norm"), self._norm(k, f"{name}.k_norm")
        q, k = _rotated(q, *rotation), _rotated(k, *rotation)
        q, k, v = self._cached(q, k, v)
        share = self.heads // self.kv_heads
        q = q.reshape(b, self.kv_heads, share * t, self.size)
        scores = (q @ k.swapaxes(2, 3)).reshape(b, self.kv_heads, share, t, t)
        scores *= 1 / math.sqrt(self.size)
        scores += np.triu(np.full((t, t), -np.inf), 1)
        if self._rounding.rule is not None and self._rounding.kv < FLOAT_BITS:
            scores = page_weights(scores, np.abs(v).max(axis=-1)[:, :, None, None] / 127)
        else:
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
        out = scores.reshape(b, self.kv_heads, share * t, t) @ v
        out = out.reshape(b, self.heads, t, self.size)
        return out.transpose(0, 2, 1, 3).reshape(b, t, self.heads * self.size)


def _rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
