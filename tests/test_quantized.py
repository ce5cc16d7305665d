"""Checkpoints that others have quantized: every packing end to end, and what is refused.

A tiny Llama is written in each scheme by tiny_quantized.py, whose packers know the published
layouts and nothing of llmaccel; the float64 specification runs on the weights that they say the
file stands for.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny
import tiny_quantized
from tiny_quantized import BF16_ONLY, SCHEMES

from llmaccel import LLM, ConfigError, SamplingParams, _core, kernels
from llmaccel.loading import arrays_checkpoint
from llmaccel.models.mapping import build_config
from llmaccel.models.quantized import open_quantized
from llmaccel.models.safetensors import open_safetensors

IDS = np.random.default_rng(2).integers(0, 301, 40).tolist()
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
# Of the error's deviation to that of the logits.
BOUNDS = {"bf16": 0.03, "int8": 0.08}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_checkpoint("llama", tmp_path_factory.mktemp("float"), seed=3, **SIZES)


@pytest.fixture(scope="module", params=list(SCHEMES))
def model(request, folder, tmp_path_factory):
    """(scheme, folder, expected logits)."""
    path = tmp_path_factory.mktemp(request.param)
    values = tiny_quantized.write(folder, path, request.param)
    config = build_config(json.loads((folder / "config.json").read_text()))
    weights = reference.load_weights(config, arrays_checkpoint(values))
    return request.param, path, reference.forward(config, weights, IDS)


def logits(path, **options) -> np.ndarray:
    with LLM(path, max_num_seqs=2, kv_cache_dtype="float32", **options) as llm:
        return np.asarray(llm.logits(IDS))


def test_float32(model):
    """The acceptance: within 1e-3 of the dequantized weights."""
    _, path, expected = model
    np.testing.assert_allclose(logits(path, activation="float32"), expected, atol=1e-3)


@pytest.mark.parametrize("activation", ["bf16", "int8"])
def test_weights_stay_quantized(model, activation):
    name, path, expected = model
    if name in BF16_ONLY and activation == "int8":
        with pytest.raises(ConfigError, match="activation='int8'"):
            LLM(path, activation=activation)
        return
    ours = logits(path, activation=activation)
    assert np.std(ours - expected) <= BOUNDS[activation] * np.std(expected)


def test_memory(model):
    """4-bit weights take half a byte and their scales, and the plan counts what is packed."""
    _, path, _ = model
    with LLM(path) as llm:
        assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights
        packed = llm.plan().weights
    with LLM(path, activation="float32") as llm:
        assert packed < llm.plan().weights * 0.6


def test_chunks(model):
    """The same bits whatever the chunk."""
    _, path, _ = model
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=0, ignore_eos=True)
    seen = []
    for budget in (512, 5):
        with LLM(path, max_num_seqs=2, max_num_batched_tokens=budget) as llm:
            out = llm.generate({"prompt_token_ids": IDS}, params)[0].outputs[0]
            seen.append((out.token_ids, out.logprob_array.tobytes()))
    assert seen[0] == seen[1]


# ---- layers that reference libraries packed ------------------------------------------------------

GOLDENS = Path(__file__).parent / "goldens" / "quantized"
CASES = json.loads((GOLDENS / "configs.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES)
def test_golden_layer(case, tmp_path):
    """Codes, scales and zero points of one layer against the library's own dequantization."""
    (tmp_path / "model.safetensors").write_bytes((GOLDENS / f"{case}.safetensors").read_bytes())
    table = open_safetensors(tmp_path)
    expected = table["expected"].float32()
    tensor = open_quantized(CASES[case], table)["layer.weight"]
    assert tensor.shape == expected.shape
    packed = kernels.PackedWeight(
        _core.Packed(tensor.data, tensor.dtype.removesuffix("_P"), *tensor.shape, "F32", "keep", 1)
    )
    values = np.asarray(packed.dequantize())
    if tensor.order is not None:
        values[:, tensor.order] = values.copy()
    # The libraries multiply in the checkpoint's 16-bit type; four of its last places.
    bits = 8 if "ct-" in case else 11
    exact = case.startswith(("bnb-nf4", "bnb-fp4", "hqq"))
    np.testing.assert_allclose(values, expected, rtol=1e-6 if exact else 2.0**-bits, atol=1e-7)
