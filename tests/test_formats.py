"""Every tensor type of GGUF files, end to end: LLM against the float64 specification.

The specification runs on the weights that the `gguf` package dequantizes from the same file, so a
code, scale or offset that is read or packed wrongly is felt in the logits. Mixed files are those of
real recipes, where the parts of one fused matrix have different types.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tiny
import tiny_gguf

from llmaccel import LLM, ConfigError, SamplingParams
from llmaccel.loading import arrays_checkpoint
from llmaccel.models.gguf import open_gguf
from llmaccel.models.mapping import build_config

IDS = np.random.default_rng(2).integers(0, 301, 40).tolist()
BLOCK_TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
TABLES = ["IQ4_NL", "IQ4_XS", "MXFP4"]
MIXED = {
    "k_m": lambda name: "Q6_K" if "attn_v" in name or "ffn_down" in name else "Q4_K",
    "k_s": lambda name: "Q3_K" if "attn_k" in name or "ffn_up" in name else "Q2_K",
    "iq4": lambda name: "Q5_K" if "attn_v" in name or "ffn_down" in name else "IQ4_XS",
    "old": lambda name: "Q8_0" if "token_embd" in name else "Q5_1" if "attn_v" in name else "Q4_0",
    "floats": lambda name: "F16" if "ffn" in name else "BF16" if "attn" in name else "F32",
}
# Of the error's deviation to that of the logits. Measured at most 5e-6, 0.017, 0.043.
BOUNDS = {"float32": 2e-5, "bf16": 0.03, "int8": 0.08}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "head_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
    }
    return tiny.make_checkpoint("llama", tmp_path_factory.mktemp("formats"), seed=3, **sizes)


@pytest.fixture(scope="module", params=["F32", "F16", "BF16", *BLOCK_TYPES, *TABLES, *MIXED])
def model(request, folder):
    """(type, file, expected logits)."""
    path = folder / f"{request.param}.gguf"
    tiny_gguf.make_gguf("llama", folder, path, MIXED.get(request.param, request.param))
    file = open_gguf(path)
    config = build_config(file.metadata, gguf=True, tensors=file)
    return request.param, path, reference.forward(config, reference.load_weights(config, file), IDS)


def check(path, expected: np.ndarray, bound: float, **options) -> None:
    with LLM(path, max_num_seqs=2, **options) as llm:
        ours = np.asarray(llm.logits(IDS))
    assert np.std(ours - expected) <= bound * np.std(expected)


def test_float32(model):
    _, path, expected = model
    check(path, expected, BOUNDS["float32"], dtype="float32")


@pytest.mark.parametrize("activation", ["bf16", "int8"])
def test_quantized_weights_stay_quantized(model, activation):
    name, path, expected = model
    if name in ("F32", "F16", "floats") or (name in ("BF16", *TABLES) and activation == "int8"):
        with pytest.raises(ConfigError, match="activation"):
            LLM(path, activation=activation)
        return
    check(path, expected, BOUNDS[activation], activation=activation, kv_cache_dtype="float32")


def test_the_plan_counts_what_is_packed(model):
    _, path, _ = model
    with LLM(path) as llm:
        assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights


def test_defaults_generate(model):
    """dtype="auto" as a user gets it: close, and the same tokens in chunks and alone."""
    _, path, expected = model
    check(path, expected, BOUNDS["int8"])
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=0, ignore_eos=True)
    seen = []
    for budget in (512, 5):
        with LLM(path, max_num_seqs=2, max_num_batched_tokens=budget) as llm:
            out = llm.generate({"prompt_token_ids": IDS}, params)[0].outputs[0]
            seen.append((out.token_ids, out.logprob_array.tobytes()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("family", ["llama", "qwen2_moe-all"])
def test_nvfp4(tmp_path, family):
    """Blocks of 64, and numbers of a tensor or of each expert that multiply them."""
    import gguf

    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4,
             "num_key_value_heads": 4}  # fmt: skip
    if family != "llama":
        sizes |= {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    else:
        sizes |= {"head_dim": 32}
    folder = tiny.make_checkpoint(family, tmp_path / "hf", seed=3, **sizes)
    rng = np.random.default_rng(4)
    scales: dict[str, np.ndarray] = {}

    def kind(name: str) -> str:
        return "NVFP4" if name.startswith("blk.") and "gate_inp" not in name else "F32"

    def more(writer) -> None:
        for part, count in (("attn_v", 1), ("ffn_down", 1), ("ffn_up_exps", 7), ("attn_q", 1)):
            if (part == "ffn_down" and family != "llama") or (count > 1 and family == "llama"):
                continue
            scales[f"blk.1.{part}.scale"] = rng.uniform(0.5, 2, count).astype(np.float32)
            writer.add_tensor(f"blk.1.{part}.scale", scales[f"blk.1.{part}.scale"])
        writer.add_tensor("blk.0.attn_q.input_scale", np.ones(1, np.float32))

    path = tiny_gguf.make_gguf(family, folder, tmp_path / "model.gguf", kind, more)
    file, values = open_gguf(path), {}
    for name in file.names():
        tensor = file[name]
        if tensor.dtype != "NVFP4":
            values[name] = tensor.float32()
            continue
        blocks = tensor.data.reshape(int(np.prod(tensor.shape[:-1])), -1)
        whole = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4)
        number = scales.get(name.replace(".weight", ".scale"), np.ones(1, np.float32))
        whole = whole.reshape(len(number), -1) * number[:, None]
        values[name] = whole.reshape(tensor.shape)
    config = build_config(file.metadata, gguf=True, tensors=file)
    weights = reference.load_weights(config, arrays_checkpoint(values))
    want = reference.forward(config, weights, IDS)
    check(path, want, BOUNDS["float32"], dtype="float32")
    with LLM(path, max_num_seqs=2, kv_cache_dtype="float32") as llm:
        assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights
        ours = np.asarray(llm.logits(IDS))
    close = np.abs(ours - want).mean(-1) / np.abs(want).mean(-1)  # experts may change hands
    assert np.median(close) <= BOUNDS["bf16"]
