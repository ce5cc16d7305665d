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
import reference_kernels as ref
import tiny
import tiny_quantized
from tiny_quantized import BF16_ONLY, SCHEMES

from llmaccel import LLM, ConfigError, LoadError, SamplingParams, _core, kernels
from llmaccel.loading import arrays_checkpoint
from llmaccel.models.mapping import build_config
from llmaccel.models.quantized import open_quantized
from llmaccel.models.safetensors import open_safetensors

GOLDENS = Path(__file__).parent / "goldens" / "quantized"
IDS = np.random.default_rng(2).integers(0, 301, 40).tolist()
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "head_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
}
# Of the layers' matrices: q and o, k and v, gate, up and down.
WEIGHTS = 256 * (2 * 256 + 2 * 64 + 3 * 384)
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
    return request.param, path, expected_logits(folder, values)


def logits(path, **options) -> np.ndarray:
    with LLM(path, max_num_seqs=2, kv_cache_dtype="float32", **options) as llm:
        return np.asarray(llm.logits(IDS))


def test_float32(model):
    """The acceptance: within 1e-3 of the dequantized weights."""
    _, path, expected = model
    np.testing.assert_allclose(logits(path, activation="float32"), expected, atol=1e-3)


@pytest.mark.parametrize("activation", ["bf16", "int8"])
def test_weights_stay_quantized(model, activation):
    """Close to the same logits, in the memory that the plan counts: bytes or half bytes, and
    scales, which in groups of 16 with offsets take as much again."""
    name, path, expected = model
    if name in BF16_ONLY and activation == "int8":
        with pytest.raises(ConfigError, match="activation='int8'"):
            LLM(path, activation=activation)
        return
    with LLM(path, max_num_seqs=2, kv_cache_dtype="float32", activation=activation) as llm:
        ours = np.asarray(llm.logits(IDS))
        assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights
        packed = llm.plan().weights - 2 * 2 * 320 * SIZES["hidden_size"]
    assert np.std(ours - expected) <= BOUNDS[activation] * np.std(expected)
    eight = any(sign in name for sign in ("8", "fbgemm"))
    assert packed < WEIGHTS * (1.3 if eight else 1.05)


@pytest.mark.parametrize("scheme", ["gptq-4-order", "ct-fp8-dynamic", "bnb-nf4"])
def test_chunks(folder, tmp_path, scheme):
    """The same bits whatever the chunk; with the head quantized as well."""
    tiny_quantized.write(folder, tmp_path, scheme)
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=0, ignore_eos=True)
    seen = []
    for budget in (512, 5):
        with LLM(tmp_path, max_num_seqs=2, max_num_batched_tokens=budget) as llm:
            out = llm.generate({"prompt_token_ids": IDS}, params)[0].outputs[0]
            seen.append((out.token_ids, out.logprob_array.tobytes()))
    assert seen[0] == seen[1]


def expected_logits(folder, values) -> np.ndarray:
    config = build_config(json.loads((folder / "config.json").read_text()))
    return reference.forward(config, reference.load_weights(config, arrays_checkpoint(values)), IDS)


HEADS = {"gptq-4-order": {"lm_head": True}, "bnb-int8": {"llm_int8_skip_modules": []}}


@pytest.mark.parametrize("scheme", HEADS)
def test_a_quantized_head(folder, tmp_path, scheme, monkeypatch):
    config, packer = SCHEMES[scheme]
    monkeypatch.setitem(SCHEMES, scheme, ({**config, **HEADS[scheme]}, packer))
    wide = tiny.make_checkpoint("llama", tmp_path / "f", seed=3, **{**SIZES, "vocab_size": 304})
    values = tiny_quantized.write(wide, tmp_path / "q", scheme, head=True)
    np.testing.assert_allclose(
        logits(tmp_path / "q", activation="float32"), expected_logits(wide, values), atol=1e-3
    )


@pytest.mark.parametrize("scheme", ["gptq-4-order", "ct-w4a16-asym", "fp8-tensor"])
@pytest.mark.parametrize("family", ["phi3", "qwen2"])
def test_other_families(tmp_path, family, scheme):
    """Fused q, k and v; biases, tied embeddings and windows."""
    sizes = {k: v for k, v in SIZES.items() if k != "head_dim"}
    source = tiny.make_checkpoint(family, tmp_path / "f", seed=4, **sizes)
    values = tiny_quantized.write(source, tmp_path / "q", scheme)
    want = expected_logits(source, values)
    np.testing.assert_allclose(logits(tmp_path / "q", activation="float32"), want, atol=1e-3)
    ours = logits(tmp_path / "q", activation="bf16")
    assert np.std(ours - want) <= BOUNDS["bf16"] * np.std(want)


# ---- rows rounded as the file says ---------------------------------------------------------------


def round_rows(x: np.ndarray, kind: str, group: int = 0, scale: float = 0.0) -> np.ndarray:
    """x [T, K] to 8 bits and back by compressed-tensors' formulas, in fp32."""
    size = group or x.shape[1]
    rows = np.asarray(x, np.float32).reshape(len(x), x.shape[1] // size, size)
    low, high = np.minimum(rows.min(-1), 0), np.maximum(rows.max(-1), 0)
    zero = np.float32(0)
    if kind == "int8 offset":
        step = ((high - low) / np.float32(255))[..., None]
        zero = np.rint(np.clip(-128 - low[..., None] / step, -128, 127))
    else:
        step = np.maximum(-low, high) / np.float32(448 if kind.startswith("e4m3") else 127.5)
        step = np.full_like(step, scale)[..., None] if scale else step[..., None]
        step = np.exp2(np.ceil(np.log2(step))) if kind == "e4m3 power" else step
    if kind.startswith("e4m3"):
        q = ref.F8_VALUES[tiny_quantized.e4m3(rows / step)].astype(np.float32)
    else:
        q = np.rint(np.clip(rows / step + zero, -128, 127))
    return ((q - zero) * step).reshape(x.shape)


RULES = {
    "int8": ("int8",),
    "int8 offset": ("int8 offset",),
    "e4m3": ("e4m3",),
    "e4m3 128": ("e4m3", 128),
    "int8 static": ("int8", 0, 0.02),
    "e4m3 static": ("e4m3", 0, 0.02),
}
# What the library does not have; the specification alone has it.
POWER = ("e4m3 power", 128)


@pytest.mark.parametrize("name", RULES)
def test_rules_are_those_of_the_library(name):
    from safetensors.numpy import load_file

    found = load_file(GOLDENS / "rows.safetensors")
    ours = round_rows(found["x"], *RULES[name])
    np.testing.assert_allclose(ours, found[name], rtol=1e-6, atol=1e-6)


def check_rounded(ours: np.ndarray, want: np.ndarray, plain: np.ndarray) -> None:
    """Within 1e-3 for most tokens; a value that falls between two codes may take either, and moves
    its token by part of what the rounding itself does."""
    assert np.median(np.abs(ours - want).max(1)) < 1e-3
    assert np.std(ours - want) < 0.2 * np.std(plain - want)
    assert np.std(plain - want) > 5e-3 * np.std(want)  # the rounding is felt


ROUNDED = {
    "ct-w8a8": "int8",
    "ct-w8a8-asym": "int8",
    "ct-fp8-dynamic": "e4m3",
    "ct-fp8-block": "e4m3 128",
    "fp8-block": "e4m3 128",
    "fp8-block-power": POWER,
}


@pytest.mark.parametrize("scheme", ROUNDED)
def test_rows_rounded_as_the_file_says(folder, tmp_path, scheme):
    """activation="checkpoint" against the forward pass with rows rounded before each layer."""
    values = tiny_quantized.write(folder, tmp_path, scheme)
    config = build_config(json.loads((folder / "config.json").read_text()))
    weights = reference.load_weights(config, arrays_checkpoint(values))
    rule = RULES.get(ROUNDED[scheme], POWER)
    want = reference.forward(config, weights, IDS, lambda rows: round_rows(rows, *rule))
    plain = reference.forward(config, weights, IDS)
    check_rounded(logits(tmp_path, activation="checkpoint"), want, plain)
    with LLM(tmp_path, activation="checkpoint") as llm:
        assert llm.report()["model"]["activation"] == "checkpoint"


def rounded_logits(source: Path, values: dict, prompts: list, rule: tuple) -> np.ndarray:
    """[prompts, T, V] of the float64 specification with rows rounded by the rule, latents too."""
    config = build_config(json.loads((source / "config.json").read_text()))
    weights = reference.load_weights(config, arrays_checkpoint(values))
    rounded = (reference.forward(config, weights, ids, lambda r: round_rows(r, *rule), latents=True)
               for ids in prompts)  # fmt: skip
    return np.array(list(rounded))


@pytest.mark.parametrize(("family", "scheme"), tiny_quantized.FORWARDS)
def test_forward_passes_are_those_of_the_library(tmp_path, family, scheme):
    """About as many prompts are answered with the library's own logits as the float64 specification
    answers so. In the others a value of a row lies at a tie, which one of its fp32 sums decides.
    With latents of kv_b left in floats no prompt of deepseek_v3 would be."""
    from safetensors.numpy import load_file

    found = load_file(GOLDENS / "forwards.safetensors")
    source = tiny.make_checkpoint(family, tmp_path / "f", **tiny_quantized.FORWARD_SIZES[family])
    tiny_quantized.write(source, tmp_path / "q", scheme)
    with LLM(tmp_path / "q", max_num_seqs=2, activation="checkpoint") as llm:
        prompts = tiny_quantized.forward_prompts().tolist()
        ours = np.array([np.asarray(llm.logits(ids)) for ids in prompts])
    off = np.abs(ours - found[f"{family} {scheme}"]).max((1, 2))
    moved = found[f"{family} {scheme}.moved"][0]
    assert (off > 1e-4).sum() <= 1.2 * moved + 1 < 0.5 * len(prompts)
    assert np.median(off) < 1e-5


def test_static_scales_of_rows(folder, tmp_path):
    values = tiny_quantized.write(folder, tmp_path, "ct-fp8-static")
    scales = open_safetensors(tmp_path)
    number = {
        n: float(scales[n].float32().reshape(-1)[0]) for n in scales.names() if "input_scale" in n
    }
    assert len(set(number.values())) > 1
    with pytest.raises(LoadError, match=r"gate_proj.*rounded in other ways"):
        LLM(tmp_path, activation="checkpoint")
    del scales
    for name in number:  # one for all, so that the specification needs one
        number[name] = 0.03
    set_numbers(tmp_path, number)
    config = build_config(json.loads((folder / "config.json").read_text()))
    weights = reference.load_weights(config, arrays_checkpoint(values))
    want = reference.forward(config, weights, IDS, lambda rows: round_rows(rows, "e4m3", 0, 0.03))
    plain = reference.forward(config, weights, IDS)
    check_rounded(logits(tmp_path, activation="checkpoint"), want, plain)


def set_numbers(path: Path, numbers: dict[str, float]) -> None:
    table = open_safetensors(path)
    whole = {name: (table[name].dtype, table[name].numpy().copy()) for name in table.names()}
    del table
    for name, number in numbers.items():
        whole[name] = tiny_quantized.stored(np.float32(number))
    tiny_quantized.write_safetensors(path / "model.safetensors", whole)


def test_no_rule_no_checkpoint_activation(folder, tmp_path):
    tiny_quantized.write(folder, tmp_path, "gptq-4")
    for path in (tmp_path, folder):
        with pytest.raises(ConfigError, match="activation='checkpoint'"):
            LLM(path, activation="checkpoint")


def test_settings_beside_the_configuration(folder, tmp_path):
    """modelopt's hf_quant_config.json, where config.json says nothing."""
    values = tiny_quantized.write(folder, tmp_path, "modelopt-fp8")
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw))
    settings = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    both = {"producer": {"name": "modelopt"}, "quantization": settings}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(both))
    np.testing.assert_allclose(
        logits(tmp_path, activation="float32"), expected_logits(folder, values), atol=1e-3
    )


def test_quantization_may_be_named(folder, tmp_path):
    tiny_quantized.write(folder, tmp_path, "awq-gemm")
    with LLM(tmp_path, quantization="awq") as llm:
        assert llm.plan().weights
    with pytest.raises(ConfigError, match=r"quantization='gptq'.*already.*'awq'"):
        LLM(tmp_path, quantization="gptq")
    with pytest.raises(ConfigError, match=r"quantization='int8'.*already"):
        LLM(tmp_path, quantization="int8")
    with pytest.raises(ConfigError, match=r"quantization='awq'.*no quantization_config"):
        LLM(folder, quantization="awq")


# ---- layers that reference libraries packed ------------------------------------------------------

CASES = json.loads((GOLDENS / "configs.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES)
def test_golden_layer(case, tmp_path):
    """Codes, scales and zero points of one layer against the library's own dequantization."""
    (tmp_path / "model.safetensors").write_bytes((GOLDENS / f"{case}.safetensors").read_bytes())
    table = open_safetensors(tmp_path)
    expected = table["expected"].float32()
    tensor = open_quantized(CASES[case], table)["layer.weight"]
    assert tensor.shape == expected.shape
    dtype = tensor.dtype.removesuffix("_P")
    packed = kernels.PackedWeight(
        _core.Packed(tensor.data, dtype, *tensor.shape, "F32", "keep", 1), "F32"
    )
    values = np.asarray(packed.dequantize())
    if tensor.order is not None:
        values[:, tensor.order] = values.copy()
    # The libraries multiply in the checkpoint's 16-bit type; four of its last places.
    bits = 8 if "ct-" in case else 11
    exact = case.startswith(("bnb-nf4", "bnb-fp4", "hqq"))
    np.testing.assert_allclose(values, expected, rtol=1e-6 if exact else 2.0**-bits, atol=1e-7)
