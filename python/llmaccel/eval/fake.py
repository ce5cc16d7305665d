"""Fake quantization: a forward pass in NumPy whose weights, activations, keys and values are
rounded to any number of bits.

Owns the rounding (round-to-nearest, asymmetric groups, as Qllm-Eval does it) and the arithmetic of
models of the Llama kind, in fp64: a value that falls to the other side of a code moves those of all
later layers, and in fp32 two computations of one format differ by 0.2 % over 200 tokens. Invariant:
with 16 bits everywhere it computes what LLM does with dtype="float32"; nothing of the engine is
used, so what formats cost can be told from what kernels cost. What a model has that this forward
has not is refused by name.

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
class Rounding:
    """Bits of weights, of what enters linear layers, and of keys and values; values that share a
    scale, along the last axis (of keys and values: at most a head)."""

    w: int = FLOAT_BITS
    a: int = FLOAT_BITS
    kv: int = FLOAT_BITS
    w_group: int = 128
    a_group: int = 128
    kv_group: int = 128


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
            h = self._entering(self._norm(x, f"{name}.input_layernorm"))
            x = x + self._linear(
                self._entering(self._attend(h, f"{name}.self_attn", rotation)),
                f"{name}.self_attn.o_proj",
            )
            h = self._entering(self._norm(x, f"{name}.post_attention_layernorm"))
            gate = self._linear(h, f"{name}.mlp.gate_proj")
            with np.errstate(over="ignore"):  # exp of a large number: the gate is shut
                gate = gate / (1 + np.exp(-gate))
            h = self._entering(gate * self._linear(h, f"{name}.mlp.up_proj"))
            x = x + self._linear(h, f"{name}.mlp.down_proj")
        return self._norm(x, "model.norm")

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.eps) * self.arrays[f"{name}.weight"]

    def _entering(self, x: np.ndarray) -> np.ndarray:
        return rounded(x, self._rounding.a, self._rounding.a_group)

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
        group = min(self._rounding.kv_group, self.size)
        k, v = (rounded(part, self._rounding.kv, group) for part in (k, v))
        share = self.heads // self.kv_heads
        q = q.reshape(b, self.kv_heads, share * t, self.size)
        scores = (q @ k.swapaxes(2, 3)).reshape(b, self.kv_heads, share, t, t)
        scores *= 1 / math.sqrt(self.size)
        scores += np.triu(np.full((t, t), -np.inf), 1)
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
