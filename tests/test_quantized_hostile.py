"""Quantized checkpoints that lie: each is refused by a message that names the key or the tensor.

Broken bytes and configurations go through LLM(...) as in test_hostile.py; the contradictions that a
mutation would hardly find are written out below.
"""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import tiny
import tiny_quantized
from test_hostile import COUNT, attempt, broken, replaced
from tiny_quantized import SCHEMES, stored

from llmaccel import LLM, ConfigError, LLMAccelError, LoadError, UnsupportedError, _core
from llmaccel.models.checkpoint import RawTensor
from llmaccel.models.mapping import build_config
from llmaccel.models.plain import PlainForm, plain_rows
from llmaccel.models.quantized import names
from llmaccel.models.quantized.linear import spread_scale
from llmaccel.models.quantized.names import ModuleNames

FUZZED = ["gptq-4-order-asym", "awq-gemv", "ct-w4a16-asym", "fp8-block", "bnb-nf4-double", "hqq-4"]
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "head_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_checkpoint("llama", tmp_path_factory.mktemp("float"), seed=3, **SIZES)


@pytest.mark.parametrize("scheme", FUZZED)
def test_broken_tensors(folder, tmp_path, scheme):
    tiny_quantized.write(folder, tmp_path, scheme)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    ends: Counter = Counter()
    for variant in broken(data, header, COUNT // 4, 5):
        path.write_bytes(variant)
        ends[attempt(tmp_path)] += 1
    assert ends["LoadError"] > 0, ends


@pytest.mark.parametrize("scheme", FUZZED)
def test_broken_settings(folder, tmp_path, scheme):
    tiny_quantized.write(folder, tmp_path, scheme)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    source = random.Random(scheme)
    ends: Counter = Counter()
    for _ in range(COUNT // 4):
        settings = replaced(
            {"quantization_config": copy.deepcopy(raw["quantization_config"])}, source
        )
        path.write_text(json.dumps({**raw, **settings}))
        ends[attempt(tmp_path)] += 1
    assert sum(ends.values()) > ends["loaded"], ends


# ---- contradictions ------------------------------------------------------------------------------

LAYER = "model.layers.0.mlp.down_proj"


def refused(tmp_path, error, match: str, config=None, tensors=None) -> None:
    """Loading fails so, with keys of the configuration or tensors of one layer replaced; None
    removes one."""
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    settings = {**raw["quantization_config"], **(config or {})}
    raw["quantization_config"] = {k: v for k, v in settings.items() if v is not None}
    path.write_text(json.dumps(raw))
    if tensors is not None:
        from llmaccel.models.safetensors import open_safetensors

        table = open_safetensors(tmp_path)
        whole = {name: (table[name].dtype, table[name].numpy().copy()) for name in table.names()}
        for part, tensor in tensors.items():
            whole[f"{LAYER}.{part}"] = tensor
            if tensor is None:
                del whole[f"{LAYER}.{part}"]
        del table
        tiny_quantized.write_safetensors(tmp_path / "model.safetensors", whole)
    with pytest.raises(error, match=match) as caught:
        LLM(tmp_path)
    assert str(tmp_path) in str(caught.value)


SETTINGS = [
    ("gptq-4", {"quant_method": "exl3"}, UnsupportedError, r"quant_method 'exl3'.*mlp.down_proj"),
    ("gptq-4", {"quant_method": None}, UnsupportedError, "quant_method None"),
    ("gptq-4", {"bits": 5}, UnsupportedError, "bits = 5"),
    ("gptq-4", {"bits": 4.0}, UnsupportedError, "bits = 4.0"),
    ("gptq-4", {"group_size": -1.0}, ConfigError, "group_size = -1.0"),
    ("gptq-4", {"rotation": "hadamard"}, UnsupportedError, "rotation = 'hadamard'"),
    ("gptq-4", {"packing": "half"}, UnsupportedError, "packing = 'half'"),
    ("gptq-4", {"group_size": 24}, LoadError, "down_proj.scales: expected"),
    ("gptq-4", {"sparse": 1}, UnsupportedError, "sparse = 1: this key is not known"),
    ("gptq-4", {"checkpoint_format": "marlin"}, UnsupportedError, "checkpoint_format = 'marlin'"),
    ("gptq-4", {"dynamic": {"-:.*down_proj": {}}}, LoadError, "down_proj.qweight.*not quantized"),
    ("gptq-4", {"dynamic": {"+:(a+)+": {}}}, ConfigError, "repetitions"),
    ("gptq-4-v2", {"sym": True}, LoadError, r"_proj.*symmetric"),
    ("awq-gemm", {"version": "gemv_fast"}, UnsupportedError, "version = 'gemv_fast'"),
    ("awq-gemm", {"modules_to_not_convert": ["mlp"]}, LoadError, "mlp.*not quantized"),
    ("awq-gemm", {"zero_point": False}, UnsupportedError, "zero_point"),
    ("ct-w4a16", {"format": "marlin-24"}, UnsupportedError, "format = 'marlin-24'"),
    ("ct-w4a16", {"ignore": ["re:.*down"]}, LoadError, "down_proj.*ignore"),
    ("ct-w4a16", {"config_groups": {}}, LoadError, "no group of quantization_config"),
    ("ct-w4a16", {"transform_config": {"R1": 1}}, UnsupportedError, "transform_config"),
    ("ct-w4a16", {"sparsity_config": {"format": "24"}}, UnsupportedError, "sparsity_config"),
    ("fp8-block", {"weight_block_size": [128]}, ConfigError, "weight_block_size"),
    ("fp8-block", {"weight_block_size": [64, 64]}, LoadError, "weight_scale_inv: expected"),
    ("fp8-block", {"fmt": "e5m2"}, UnsupportedError, "fmt = 'e5m2'"),
    ("bnb-nf4", {"llm_int8_skip_modules": ["q_proj"]}, LoadError, "q_proj.*not quantized"),
    ("bnb-nf4", {"quant_method": "awq", "bits": 4, "group_size": 1}, UnsupportedError, "not known"),
    ("modelopt-fp8", {"quant_algo": "W4A8_AWQ"}, UnsupportedError, "quant_algo = 'W4A8_AWQ'"),
    ("hqq-4", {"quant_config": {}}, LoadError, "has no rule for this layer"),
]  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS, ids=lambda case: f"{case[0]}-{next(iter(case[1]))}")
def test_settings(folder, tmp_path, case):
    scheme, config, error, match = case
    tiny_quantized.write(folder, tmp_path, scheme)
    refused(tmp_path, error, match, config)


_SCALES = np.ones((1, 128), np.float16)
_NAN = np.full((1, 128), np.nan, np.float16)
_ORDER = np.arange(128, dtype=np.int32) // 64
_CODES = np.zeros((128, 128), np.uint8)
TENSORS = [
    ("gptq-4", {"scales": None}, "down_proj.scales' is missing"),
    ("gptq-4", {"qweight": None}, "down_proj.qweight' is missing, but .*down_proj.qzeros' is"),
    ("awq-gemm", {"qweight": None}, "down_proj.qweight' is missing, but .*down_proj.qzeros' is"),
    ("ct-w4a16", {"weight_packed": None}, "weight_packed' is missing, but .*weight_shape' is"),
    ("hqq-4", {"W_q": None}, "down_proj.W_q' is missing, but .*down_proj.zero' is"),
    ("gptq-4", {"scales": stored(_SCALES[:, :64])}, r"down_proj.scales: expected \[1, 128\]"),
    ("gptq-4", {"scales": stored(_NAN)}, "down_proj.*not finite"),
    ("gptq-4", {"qzeros": stored(np.zeros((1, 16), np.float16))}, "qzeros: expected I32"),
    ("gptq-4", {"qweight": stored(np.zeros((0, 128), np.int32))}, "qweight: expected a matrix"),
    ("gptq-4", {"weight": stored(_CODES.astype(np.float16))}, "down_proj.*several weights"),
    ("gptq-4-order", {"g_idx": stored(_ORDER * 9)}, "g_idx: groups 0..9 of 2"),
    ("gptq-4-order", {"g_idx": stored(_ORDER * 0)}, "64 columns"),
    ("gptq-4-order", {"g_idx": None}, "down_proj.g_idx' is missing"),
    ("awq-gemv", {"qzeros": stored(np.zeros((128, 0), np.int32))}, "qzeros: expected"),
    ("ct-w4a16", {"weight_zero_point": stored(np.zeros((16, 1), np.int32))}, "symmetric"),
    ("ct-w4a16", {"weight_shape": stored(np.array([128, 4000]))}, "weight_shape.*does not fit"),
    ("ct-w4a16", {"weight_shape": stored(np.array([2**62, 2]))}, "weight_shape.*does not fit"),
    ("fp8-block", {"weight": stored(_CODES, "F8_E5M2")}, "F8_E5M2"),
    ("fp8-block", {"weight": stored(_CODES | 0x7F, "F8_E4M3")}, "down_proj.*not a number"),
    ("fp8-block", {"weight_scale_inv": None}, "down_proj.weight: E4M3 weights without"),
    ("bnb-nf4", {"weight.quant_map": stored(np.zeros(16, np.float32))}, "not the values of nf4"),
    ("bnb-nf4", {"weight": stored(np.zeros((7, 1), np.uint8))}, "down_proj.weight: 7 bytes"),
    (
        "bnb-nf4",
        {"weight.quant_state.bitsandbytes__nf4": stored(np.frombuffer(b"[[[", np.uint8))},
        "no JSON",
    ),
    ("hqq-4", {"shape": stored(np.array([-1, 128]))}, r"down_proj.shape: \[-1, 128\]"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "tensors", "match"), TENSORS)
def test_tensors(folder, tmp_path, scheme, tensors, match):
    tiny_quantized.write(folder, tmp_path, scheme)
    refused(tmp_path, LoadError, match, tensors=tensors)


def test_blocks_larger_than_the_layer_take_no_memory():
    scale = RawTensor("s", "F32", (1, 8), np.ones(8, np.float32).view(np.uint8))
    tracemalloc.start()
    read = spread_scale(scale, (4, 128), (2**24 - 1, 16))
    assert read().shape == (4, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_gate_and_up_in_two_orders(folder, tmp_path):
    """They are one matrix: a file that sorts their columns apart cannot be packed."""
    tiny_quantized.write(folder, tmp_path, "gptq-4-order")
    from llmaccel.models.safetensors import open_safetensors

    table = open_safetensors(tmp_path)
    whole = {name: (table[name].dtype, table[name].numpy().copy()) for name in table.names()}
    name = "model.layers.0.mlp.up_proj.g_idx"
    whole[name] = stored(whole[name][1][::-1].copy())
    del table
    tiny_quantized.write_safetensors(tmp_path / "model.safetensors", whole)
    with pytest.raises(LLMAccelError, match=r"up_proj.*other orders"):
        LLM(tmp_path)


def test_names_of_modules():
    gate = "model.layers.0.mlp.gate"
    for listed in (
        "mlp.gate",
        ".mlp.",
        gate,
        r"re:.*mlp\.gate$",
        "*mlp*",
        "*.*.*.*.*",
        "model.layers",
    ):
        assert gate in ModuleNames([listed], ""), listed
    for listed in ("mlp.gat", "layers.0.gate", "", ".", "re:mlp", "mlp*", "*.up", r"re:.*mlp\.up$"):
        assert gate not in ModuleNames([listed], ""), listed
    assert "lm_head" in ModuleNames(["a", "lm_head"], "")
    assert f"{gate}_proj" not in ModuleNames(["mlp.gate", r"re:.*mlp\.gate$"], "")
    assert "x" * 300 not in ModuleNames(["re:x"], "")
    proj = "model.layers.3.self_attn.q_proj"
    for listed in (r"re:.*(gate|up|q)_proj$", r"re:model\.layers\.(\d+)\.(self_attn|mlp)\..*"):
        assert proj in ModuleNames([listed], ""), listed
    assert proj not in ModuleNames([r"re:.*layers\.(0|1|2|4|5)\.(mlp|self_attn).*"], "")
    for slow in (
        "re:.*.*.*.*.*",
        "re:" + "(a|aa)" * 40,
        "re:" + "a?" * 40,
        r"re:(a)\1",
        "re:(a+)+",
    ):
        with pytest.raises(ConfigError, match=r"somewhere: .*repetitions or choices"):
            ModuleNames([slow], "somewhere")
    with pytest.raises(ConfigError, match=r"somewhere: .*pattern of 1001 characters"):
        ModuleNames(["*" * 1001], "somewhere")


def test_matching_that_takes_too_long_ends(monkeypatch):
    monkeypatch.setattr(names, "_MAX_SECONDS", 0.01)
    slow = ModuleNames(["re:.*.*.*.*x"], "somewhere")

    def search() -> None:
        for i in range(100_000):
            assert f"{i}{'.' * 150}" not in slow

    with pytest.raises(ConfigError, match=r"somewhere: the expressions take more than 0\.01 s"):
        search()


@pytest.mark.parametrize("scale", [0.75, -1.0, 0.0, 2.0**-128, np.inf, np.nan])
def test_scales_that_must_be_powers_of_two(scale):
    form = PlainForm("MX4", 32)
    codes = np.full((1, 64), 3, np.uint8)
    good, bad = np.float32([[2.0**-127, 2.0**127]]), np.float32([[2.0, scale]])
    rows = plain_rows(form, codes, good, None, 32)
    assert _core.Packed(rows, form.name, 1, 64, "auto", "keep", 1) is not None
    rows = plain_rows(form, codes, bad, None, 32)
    with pytest.raises(LLMAccelError, match="finite"):
        _core.Packed(rows, form.name, 1, 64, "auto", "keep", 1)


def test_every_scheme_is_an_option():
    from llmaccel.models.quantized import METHODS
    from llmaccel.options import FILE_QUANTIZATIONS

    assert sorted([*METHODS, "gguf"]) == sorted([*FILE_QUANTIZATIONS, "fp8"])
    assert {config["quant_method"] for config, _ in SCHEMES.values()} == set(METHODS)


@pytest.mark.parametrize(
    ("rounding", "activation", "message"),
    [
        ((9, 0, 0.0), "f32", "o: rows are rounded in way 9, which is none"),
        ((-1, 0, 0.0), "f32", "o: rows are rounded in way -1"),
        ((1, -4, 0.0), "f32", "o: rows are rounded by groups of -4"),
        ((1, 0, -1.0), "f32", "o: rows are rounded with a scale of -1"),
        ((3, 0, float("nan")), "f32", "o: rows are rounded with a scale of nan"),
        ((2, 0, 0.5), "f32", "o: rows are rounded about an offset with a fixed scale of 0.5"),
        ((1, 0, 0.0), "bf16", "o: rows are rounded before products that are not of fp32"),
    ],
)
def test_the_core_checks_roundings(rounding, activation, message):
    config = build_config(tiny.config_of("llama"))
    cols = config.n_heads * config.d_head
    part = (np.zeros((config.d_model, cols), np.float32), "F32", config.d_model, cols)
    model = _core.Model(_core.Backend("cpu", None, 1), {**vars(config), "activation": activation})
    model.set("o", 0, [(*part, None, (2, 0, 0.0))] if activation == "f32" else [part])
    with pytest.raises(LLMAccelError, match=message):
        model.set("o", 0, [(*part, None, rounding)])
