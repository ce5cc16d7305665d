"""What numbers of bits cost: perplexity over weights x activations x KV cache.

Owns the grid of Qllm-Eval and what stands beside it. A cell is fake quantization (fake.py) by the
study's rule, asymmetric groups, so it is the format's cost. Where the engine has kernels for its
bits, weights of the same codes, scales and zero points run through them; rows and cache of 8 bits
they round by a rule of their own (KernelRule), so that rule is computed too, in fp64, and what
differs between it and the kernels is their arithmetic.

Called by command.py and by users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from llmaccel import LLM, RequestError, UnsupportedError, load_tokenizer, read_arrays
from llmaccel.eval.fake import FLOAT_BITS, LINEARS, FakeModel, KernelRule, Rounding, quantize

_MOST_BITS = 16
# Rows and cache of the engine by their bits.
_ACTIVATIONS = {16: "float32", 8: "int8"}
_CACHES = {16: "float32", 8: "int8"}
_PACKED_BITS = (2, 3, 4, 8)
_ROW_GROUP = 64  # most k of an int8 row that share a scale (LA_ACT_I8_GROUP)
_FINE_INT8 = ("vnni", "bf16")  # where finer rows are two lanes of int8


@dataclass(frozen=True)
class Grid:
    """Bits to combine, 16 standing for floats, and how many values share a scale: of weights along
    a row, of activations along a token, of keys and values along a head at most."""

    w_bits: Sequence[int] = (16, 8, 4, 3, 2)
    a_bits: Sequence[int] = (16, 8)
    kv_bits: Sequence[int] = (16, 8, 4)
    w_group: int = 128
    a_group: int = 128
    kv_group: int = 128

    def cells(self) -> Iterator[Rounding]:
        """All combinations, weights slowest. RequestError for bits or groups that are none."""
        for name in ("w_bits", "a_bits", "kv_bits"):
            for bits in getattr(self, name):
                if not 2 <= bits <= _MOST_BITS:
                    raise RequestError(f"{name}: {bits} is not in [2, {_MOST_BITS}]")
        for name in ("w_group", "a_group", "kv_group"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}: {getattr(self, name)}, expected at least 1")
        for w, a, kv in product(self.w_bits, self.a_bits, self.kv_bits):
            yield Rounding(w, a, kv, self.w_group, self.a_group, self.kv_group)


@dataclass(frozen=True)
class Cell:
    """One combination of bits.

    perplexity: by fake quantization with the study's rule. kernels: by the engine, or None where it
    has no kernels for these bits. kernel_rule: by fake quantization again, with rows and cache
    rounded as those kernels do; None without them. It is `perplexity` where rows and cache are
    floats, since weights are rounded alike.
    """

    w: int
    a: int
    kv: int
    perplexity: float
    kernel_rule: float | None = None
    kernels: float | None = None

    @property
    def difference(self) -> float | None:
        """Of the kernels to their own rule in fp64, in percent."""
        return None if self.kernels is None else 100 * (self.kernels / self.kernel_rule - 1)


def run_grid(
    model: str | Path,
    documents: Sequence[str],
    grid: Grid | None = None,
    *,
    chunk: int | None = None,
    tokens: int = 4096,
    kernels: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """Perplexity of every cell on the same windows, in the order of `Grid.cells`.

    model: a float model of the Llama kind (folder or GGUF). Each document is cut into windows of
    `chunk` tokens after BOS (None: 512, or what the context holds), `tokens` in all at most.
    kernels: run the engine too where it has the formats: weights of 16, 8, 4, 3 or 2 bits, rows
    and cache of 16 or 8. UnsupportedError for another kind of model.
    """
    grid = grid or Grid()
    roundings = list(grid.cells())
    config, arrays = read_arrays(model)
    fake = FakeModel(config, arrays)
    windows = _windows(load_tokenizer(model), documents, _chunk(config, chunk), tokens)
    found = []
    for rounding in roundings:
        found.append(_cell(fake, (config, arrays), rounding, windows, kernels))
        if progress is not None:
            progress(len(found), len(roundings))
    return found


def _cell(
    fake: FakeModel,
    model: tuple[Mapping[str, Any], Mapping[str, np.ndarray]],
    rounding: Rounding,
    windows: list[list[int]],
    kernels: bool,
) -> Cell:
    study = _perplexity(fake, rounding, windows)
    found = _kernels(*model, rounding, windows) if kernels else None
    if found is None:
        return Cell(rounding.w, rounding.a, rounding.kv, study)
    real, rule = found
    own = study
    if (rounding.a, rounding.kv) != (FLOAT_BITS, FLOAT_BITS):
        own = _perplexity(fake, replace(rounding, rule=rule), windows)
    return Cell(rounding.w, rounding.a, rounding.kv, study, own, real)


def _perplexity(fake: FakeModel, rounding: Rounding, windows: list[list[int]]) -> float:
    fake.round_weights(rounding)
    total, count = fake.nll(windows)
    return exp(total / count)


def _chunk(config: Mapping[str, Any], chunk: int | None) -> int:
    limit = config["max_position_embeddings"]
    chunk = min(512, limit) if chunk is None else chunk
    if not 1 < chunk <= limit:
        raise RequestError(f"chunk: {chunk} is not in [2, {limit}], what the context holds")
    return chunk


def _windows(tokenizer: Any, documents: Sequence[str], chunk: int, tokens: int) -> list[list[int]]:
    """BOS and up to `chunk` tokens each."""
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    if start is None:
        raise RequestError("the tokenizer has neither BOS nor EOS to start a text with")
    found: list[list[int]] = []
    for text in documents:
        ids = tokenizer.encode(text, add_special_tokens=False)[: max(tokens, 0)]
        tokens -= len(ids)
        found += [[start, *ids[i : i + chunk]] for i in range(0, len(ids), chunk)]
    if not found:
        raise RequestError("documents: no token to score")
    return found


# ---- the engine's kernels ------------------------------------------------------------------------


def _kernels(
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    rounding: Rounding,
    windows: list[list[int]],
) -> tuple[float, KernelRule] | None:
    """Perplexity by the engine and how it rounds, or None where it has no kernels for these
    bits."""
    if rounding.a not in _ACTIVATIONS or rounding.kv not in _CACHES:
        return None
    if rounding.w not in (FLOAT_BITS, *_PACKED_BITS) or (rounding.w, rounding.a) == (16, 8):
        return None
    config = dict(config)
    options = {"kv_cache_dtype": _CACHES[rounding.kv], "max_model_len": max(map(len, windows)) - 1}
    if rounding.w == FLOAT_BITS:
        options["dtype"] = "float32"
    else:
        options["activation"] = _ACTIVATIONS[rounding.a]
        config["quantization_config"] = _packed_config(rounding)
        try:
            arrays = packed_arrays(arrays, rounding.w, rounding.w_group)
        except UnsupportedError:  # the format has no code for these weights' zero points
            return None
    with LLM.from_arrays(config, arrays, **options) as llm:
        scores = llm.loglikelihood([w[:1] for w in windows], [w[1:] for w in windows])
        rule = _rule_of(llm, rounding.w_group)
    return exp(-sum(score for score, _ in scores) / sum(len(w) - 1 for w in windows)), rule


def _rule_of(llm: LLM, group: int) -> KernelRule:
    """How a loaded model rounds rows and cache of 8 bits; group: of its weights."""
    report = llm.report()
    fine = "int8x2" if report["backend"]["isa"] in _FINE_INT8 else "bfloat16"
    return KernelRule(min(group, _ROW_GROUP), report["model"]["wide_activations"], group, fine)


def _packed_config(rounding: Rounding) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    weights = {
        "num_bits": rounding.w,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": rounding.w_group,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def packed_arrays(arrays: Mapping[str, np.ndarray], bits: int, group: int) -> dict[str, np.ndarray]:
    """Arrays whose linear layers are codes, scales and zero points, as compressed-tensors'
    pack-quantized has them; the rest as it is. UnsupportedError for a zero point beyond the codes,
    which that format cannot say."""
    found = {}
    for name, w in arrays.items():
        module = name.removesuffix(".weight")
        if not module.endswith(LINEARS) or w.ndim != 2:
            found[name] = w
            continue
        codes, scale, zero = quantize(w, bits, group)
        if zero.min() < 0 or zero.max() > 2**bits - 1:
            raise UnsupportedError(f"{name}: a group of {group} weights lies on one side of zero")
        found[f"{module}.weight_packed"] = _bit_stream(codes, bits)
        found[f"{module}.weight_scale"] = scale.astype(np.float32)
        found[f"{module}.weight_zero_point"] = np.ascontiguousarray(_bit_stream(zero.T, bits).T)
        found[f"{module}.weight_shape"] = np.array(w.shape, np.int64)
    return found


def _bit_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis as a stream of bits, low first, in int32 words."""
    ones = (codes.astype(np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    flat = ones.reshape(len(codes), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.packbits(flat, axis=1, bitorder="little").view("<i4")
