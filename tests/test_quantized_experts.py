"""Checkpoints with experts that others have quantized, and DeepSeek-V3's own FP8 arithmetic.

tiny_quantized.py writes tiny models expert by expert, as the hub has them; the float64
specification runs on the weights that the packers say the file stands for. One dense layer of every
packing is in test_quantized.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import reference
import tiny
import tiny_gguf
import tiny_quantized
from test_quantized import round_rows
from tiny_quantized import BF16_ONLY

from llmaccel import LLM, ConfigError, LoadError, SamplingParams, _core
from llmaccel.loading import arrays_checkpoint
from llmaccel.models.gguf import open_gguf
from llmaccel.models.mapping import build_config
from llmaccel.models.safetensors import open_safetensors

IDS = np.random.default_rng(2).integers(3, 301, 60).tolist()
WIDE = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES = {
    "qwen3_moe-all": {**WIDE, "head_dim": 64, "moe_intermediate_size": 128},
    "mixtral": {**WIDE, "head_dim": 64, "intermediate_size": 128},
    "deepseek_v3-experts": {
        **WIDE, "num_hidden_layers": 2, "intermediate_size": 128, "moe_intermediate_size": 128,
        "num_key_value_heads": 4,
        "kv_lora_rank": 128, "q_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64,
        "v_head_dim": 64,
    },
}  # fmt: skip
# What models with experts come in. bitsandbytes' int8 and HQQ write experts like layers.
SCHEMES = ["gptq-4", "gptq-4-order", "gptq-4-order-asym", "gptq-8-order", "awq-gemm", "ct-w4a16",
           "ct-w8a8", "ct-fp8-dynamic", "ct-fp8-block", "fp8-block", "fp8-tensor", "bnb-nf4",
           "bnb-nf4-double", "bnb-int8", "ct-nvfp4", "modelopt-nvfp4", "modelopt-fp8",
           "hqq-4"]  # fmt: skip
CASES = [("qwen3_moe-all", scheme) for scheme in SCHEMES]
CASES += [("mixtral", scheme) for scheme in ("gptq-4-order", "awq-gemm", "bnb-nf4")]
CASES += [("deepseek_v3-experts", scheme) for scheme in ("gptq-4-order", "ct-w4a16", "fp8-block")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A float checkpoint of each family."""
    made = {}
    for family, sizes in SIZES.items():
        folder = tmp_path_factory.mktemp("float") / family
        made[family] = tiny.make_checkpoint(family, folder, seed=3, **sizes)
    return made


def specified(folder, values, rounding=lambda rows: rows, latents=False) -> np.ndarray:
    """Logits of the float64 specification."""
    config = build_config(json.loads((folder / "config.json").read_text()))
    weights = reference.load_weights(config, arrays_checkpoint(values))
    return reference.forward(config, weights, IDS, rounding, latents)


def logits(path, **options) -> np.ndarray:
    with LLM(str(path), max_num_seqs=2, kv_cache_dtype="float32", **options) as llm:
        assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights
        return np.asarray(llm.logits(IDS)).copy()


def off(ours: np.ndarray, want: np.ndarray) -> np.ndarray:
    """[T] distance of each token's logits, relative."""
    return np.linalg.norm(ours - want, axis=-1) / np.linalg.norm(want, axis=-1)


@pytest.mark.parametrize(("family", "scheme"), CASES)
def test_experts(folders, tmp_path, family, scheme):
    """Within 1e-3 of the dequantized weights; near them with the rows that the engine takes."""
    values = tiny_quantized.write(folders[family], tmp_path, scheme)
    want = specified(folders[family], values)
    assert np.abs(logits(tmp_path, activation="float32") - want).max() <= 1e-3
    for activation, bound in (("bfloat16", 0.03), ("int8", 0.08)):
        if activation == "int8" and scheme in BF16_ONLY:
            continue
        # of the middle token, because rounded rows send some to another expert
        assert np.median(off(logits(tmp_path, activation=activation), want)) <= bound


@pytest.mark.parametrize("isa", _core.kernel_isas())
@pytest.mark.parametrize("scheme", ["gptq-4-order", "fp8-block"])
def test_chunks_and_company_change_no_bit(folders, tmp_path, scheme, isa):
    """Few rows and many: every expert gathers its own columns, whoever else comes to it."""
    tiny_quantized.write(folders["qwen3_moe-all"], tmp_path, scheme)
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=0, ignore_eos=True)
    lengths = (60, 1, 7, 33)
    seen = []
    for options in ({"max_num_seqs": 4}, {"max_num_batched_tokens": 5, "max_num_seqs": 1}):
        with LLM(str(tmp_path), isa=isa, **options) as llm:
            outs = llm.generate([{"prompt_token_ids": IDS[:n]} for n in lengths], params)
            seen.append([(o.outputs[0].token_ids, o.outputs[0].logprob_array.tobytes())
                         for o in outs])  # fmt: skip
    assert seen[0] == seen[1]


@pytest.mark.parametrize("isa", _core.kernel_isas())
def test_columns_of_one_expert_are_sorted(folders, tmp_path, isa, monkeypatch):
    """The others' rows stay as they are, and are copied; an expert that calibration never reached
    has no order."""
    config, ordered = tiny_quantized.SCHEMES["gptq-4-order"]
    plain = tiny_quantized.gptq(4, 64, sym=True, v1=True)

    def pack(w, rng):
        expert = rng.bit_generator.seed_seq.entropy[1] - 1
        return (ordered if expert == 3 else plain)(w, rng)

    monkeypatch.setitem(tiny_quantized.SCHEMES, "gptq-4-order", (config, pack))
    values = tiny_quantized.write(folders["qwen3_moe-all"], tmp_path, "gptq-4-order")
    want = specified(folders["qwen3_moe-all"], values)
    assert np.abs(logits(tmp_path, activation="float32", isa=isa) - want).max() <= 1e-3
    assert np.median(off(logits(tmp_path, activation="int8", isa=isa), want)) <= 0.08


def test_gate_and_up_of_one_expert_have_one_order(folders, tmp_path):
    tiny_quantized.write(folders["qwen3_moe-all"], tmp_path, "gptq-4-order")
    table = open_safetensors(tmp_path)
    whole = {name: (table[name].dtype, table[name].numpy().copy()) for name in table.names()}
    del table
    name = "model.layers.0.mlp.experts.2.up_proj.g_idx"
    whole[name] = whole[name][0], whole[name][1][::-1].copy()
    tiny_quantized.write_safetensors(tmp_path / "model.safetensors", whole)
    message = r"experts\.2\.gate_proj.*expert_gate_up: gate and up have their columns in other"
    with pytest.raises(LoadError, match=message):
        LLM(str(tmp_path))


# ---- rows rounded as the file says ---------------------------------------------------------------

RULES = {
    "ct-w8a8": ("int8",),
    "ct-fp8-dynamic": ("e4m3",),
    "fp8-block": ("e4m3", 128),
    "fp8-block-power": ("e4m3 power", 128),
}


@pytest.mark.parametrize("scheme", RULES)
@pytest.mark.parametrize("family", ["qwen3_moe-all", "deepseek_v3-experts"])
def test_rows_rounded_as_the_file_says(folders, tmp_path, family, scheme):
    """activation="checkpoint": each expert's rows, not the router's. Latents are the rows of kv_b:
    compressed-tensors rounds them as all rows, DeepSeek's code does not."""
    values = tiny_quantized.write(folders[family], tmp_path, scheme)
    rounded, latents = lambda rows: round_rows(rows, *RULES[scheme]), scheme.startswith("ct-")
    want = specified(folders[family], values, rounded, latents)
    other = specified(folders[family], values, rounded, not latents)
    plain = specified(folders[family], values)
    ours = logits(tmp_path, activation="checkpoint")
    # A value that falls between two codes may take either, and moves its token and later ones; a
    # token without one is right to fp32, which no other rule would be.
    assert np.sort(off(ours, want))[4] < 1e-5
    assert np.median(off(ours, want)) < 0.4 * np.median(off(plain, want))
    assert off(plain, want).min() > 1e-3  # the rounding is felt
    if family.startswith("deepseek"):  # and so is whether latents are rounded
        assert np.median(off(ours, want)) < 0.5 * np.median(off(other, want))
    with LLM(str(tmp_path), activation="checkpoint", max_num_batched_tokens=7) as llm:
        pieces = np.asarray(llm.logits(IDS)).tobytes()
    with LLM(str(tmp_path), activation="checkpoint") as llm:
        assert np.asarray(llm.logits(IDS)).tobytes() == pieces


@pytest.mark.parametrize("scheme", ["fp8-block", "fp8-block-power"])
def test_deepseek_v3_arithmetic(folders, tmp_path, scheme):
    """Weights in E4M3 under scales of 128 x 128: both ways of computing with them are within 2 % of
    float64, for the middle token, and as a whole where every expert is chosen (a token that goes to
    another one is no matter of precision).

    With the rows that the engine takes, bf16, against exact products of the stored weights. With
    those of DeepSeek's own inference, E4M3 per token and 128 k, against float64 products of rows
    rounded so: what E4M3 itself takes from a row is a property of the format, 2.6 % of a product of
    noise, and no bound on whoever computes it (see DECISIONS.md).
    """
    sizes = {**SIZES["deepseek_v3-experts"], "n_routed_experts": 4, "num_experts_per_tok": 4,
             "n_group": 1, "topk_group": 1}  # fmt: skip
    every = tiny.make_checkpoint("deepseek_v3-experts", tmp_path / "every", seed=3, **sizes)
    for folder in (folders["deepseek_v3-experts"], every):
        path = tmp_path / f"{folder.name}-fp8"
        values = tiny_quantized.write(folder, path, scheme)
        exact = specified(folder, values)
        rounded = specified(folder, values, lambda rows: round_rows(rows, *RULES[scheme]))
        for activation, want in (("bfloat16", exact), ("checkpoint", rounded)):
            ours = logits(path, activation=activation)
            assert np.median(off(ours, want)) <= 0.02
            if folder == every:
                assert np.linalg.norm(ours - want) <= 0.02 * np.linalg.norm(want)


# ---- gpt-oss -------------------------------------------------------------------------------------

GPT_OSS = {"intermediate_size": 64}


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """(float folder, MXFP4 folder, the weights that it stands for)"""
    base = tmp_path_factory.mktemp("gpt_oss")
    source = tiny.make_checkpoint("gpt_oss", base / "float", seed=3, **GPT_OSS)
    return source, base / "mxfp4", tiny_quantized.write_gpt_oss(source, base / "mxfp4")


def test_gpt_oss_as_the_hub_has_it(gpt_oss):
    source, folder, values = gpt_oss
    want = specified(source, values)
    assert np.abs(logits(folder, activation="float32") - want).max() <= 1e-3
    assert np.median(off(logits(folder), want)) <= 0.03
    with LLM(str(folder), dtype="bfloat16") as llm:
        assert llm.report()["model"]["dtype"] == "QMX4_G32"
        packed = llm.report()["memory"]["weight_bytes"]
    with LLM(str(source), dtype="bfloat16") as llm:
        experts = 3 * 6 * 3 * 96 * 64  # layers, experts, matrices
        assert packed <= llm.report()["memory"]["weight_bytes"] - 1.3 * experts
    with pytest.raises(ConfigError, match="activation='int8'"):
        LLM(str(folder), activation="int8")


@pytest.mark.torch
def test_gpt_oss_equals_the_dequantized_model_of_transformers(gpt_oss):
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config

    _, folder, _ = gpt_oss
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    )  # fmt: skip
    with torch.no_grad():
        want = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(logits(folder, activation="float32") - want).max() <= 1e-3


def test_gpt_oss_in_a_gguf_file(tmp_path):
    """Experts in MXFP4 blocks, the rest in Q8_0, as llama.cpp's files have them."""
    source = tiny.make_checkpoint("gpt_oss", tmp_path / "float", seed=3, **GPT_OSS)

    def kind(name: str) -> str:
        return "MXFP4" if "exps.weight" in name else "Q8_0" if "attn" in name else "F32"

    path = tiny_gguf.make_gguf("gpt_oss", source, tmp_path / "model.gguf", quant=kind)
    file = open_gguf(path)
    config = build_config(file.metadata, gguf=True, tensors=file)
    want = reference.forward(config, reference.load_weights(config, file), IDS)
    assert np.abs(logits(path, activation="float32") - want).max() <= 1e-3
    assert np.median(off(logits(path), want)) <= 0.03


def test_gpt_oss_blocks_that_do_not_fit(gpt_oss, tmp_path):
    _, folder, _ = gpt_oss
    table = open_safetensors(folder)
    whole = {name: (table[name].dtype, table[name].numpy().copy()) for name in table.names()}
    del table
    name = "model.layers.1.mlp.experts.down_proj_blocks"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for change, message in [
        ((name, whole[name][1][:5]), rf"{name[:-7]}_scales: expected \[5, 96, 2\]"),
        ((name, whole[name][1][..., :8]), rf"{name}: expected \[N, K / 32, 16\]"),
        ((name[:-7] + "_scales", whole[name[:-7] + "_scales"][1] | 255), "is not finite"),
    ]:
        changed = {**whole, change[0]: ("U8", np.ascontiguousarray(change[1]))}
        tiny_quantized.write_safetensors(tmp_path / "model.safetensors", changed)
        with pytest.raises(LoadError, match=message):
            LLM(str(tmp_path))
