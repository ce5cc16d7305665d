"""backend="cuda" beyond the generic path: Hopper's products, 4-bit weights, many chunks.

Whole models on the emulated device as in test_cuda_backend.py, whose device has the generic
kernels; here it says that it is a Hopper. The specification is the CPU backend with the same
formats.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_quantized
from test_cuda_backend import agree, checkpoint, emulated, greedy, nothing_stays, open_on, prompts

from llmaccel import LLM, LoadError, UnsupportedError

__all__ = ["emulated", "nothing_stays"]
WIDTHS = {"intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2}  # multiples of 32


@pytest.fixture
def hopper(emulated: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LLMACCEL_EMU_CC", "90")
    return emulated


def logits_of(folder: Path, backend: str, ids: list[int], **options) -> np.ndarray:
    with open_on(folder, backend, **options) as llm:
        return np.asarray(llm.logits(ids)).copy()


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "bfloat16"), pytest.param("qwen3", "float16", marks=pytest.mark.slow)],
)
def test_hopper_multiplies_whole_models(
    family: str, dtype: str, tmp_path: Path, hopper: str
) -> None:
    """Logits as near as the CPU's; tokens are its, and no bit depends on company or cuts."""
    folder, asked = checkpoint(family, tmp_path, num_hidden_layers=1), prompts(3, 16, seed=8)
    exact = logits_of(folder, "cpu", asked[0], dtype="float32")
    near = apart(logits_of(folder, "cpu", asked[0], dtype=dtype), exact)
    with open_on(folder, "cpu", dtype=dtype) as cpu, open_on(folder, "cuda", dtype=dtype) as cuda:
        assert cuda._backend.info["isa"] == "sm_90"
        assert 0.0 < apart(np.asarray(cuda.logits(asked[0])), exact) <= 1.2 * max(near, 1e-3)
        ours = greedy(cuda, asked, 3)
        assert agree(ours, greedy(cpu, asked, 3)) >= 5
        alone = [greedy(cuda, [ids], 3)[0] for ids in asked[:2]]
    with open_on(folder, "cuda", dtype=dtype, max_num_batched_tokens=9) as llm:
        cut = greedy(llm, asked[:2], 3)
    for other in (alone, cut):
        for (ids, best), (want, wanted) in zip(other, ours[:2], strict=True):
            assert ids == want
            assert np.array_equal(best, wanted)


@pytest.mark.parametrize("quantization", ["w4g128", "w4g32"])
def test_four_bits_are_the_cpus(quantization: str, tmp_path: Path, emulated: str) -> None:
    """The same codes and scales; the head, which the CPU quantizes, keeps bf16 here."""
    folder, asked = checkpoint("llama", tmp_path, **WIDTHS), prompts(3, 30, seed=9)
    options = {"quantization": quantization}
    ids = asked[0] * 2 + list(range(3, 40))
    cpu = logits_of(folder, "cpu", ids, **options, activation="bfloat16")
    floats = logits_of(folder, "cpu", ids, dtype="float32")
    with open_on(folder, "cuda", **options) as cuda:
        found = np.asarray(cuda.logits(ids)).copy()
        said = cuda.report()["model"]
        assert (said["dtype"], said["head_dtype"]) == (quantization, "bfloat16")
        assert said["activation"] == "bfloat16"
        together = greedy(cuda, asked, 3)
        alone = [greedy(cuda, [one], 3)[0] for one in asked]
    assert apart(found, cpu) < 0.02
    assert apart(found, floats) > 4 * apart(found, cpu)  # what 4 bits cost is in both
    for (got, best), (want, wanted) in zip(alone, together, strict=True):
        assert got == want
        assert np.array_equal(best, wanted)


SCHEMES = ["awq-gemm", "gptq-4-v2", "ct-w4a16-channel"]
MORE = ["awq-gemv", "gptq-4", "gptq-4-row", "ct-w4a16-asym", "awq-gemm-32", "gptq-4-asym-v1"]
MORE += ["ct-w4a16"]
SIZES = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 8, "head_dim": 32}
SIZES |= {"num_hidden_layers": 1}


@pytest.mark.parametrize(
    "scheme", [*SCHEMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_checkpoints_of_four_bits(scheme: str, tmp_path: Path, emulated: str) -> None:
    """Codes with scales and offsets that others made, beside the CPU's products of them."""
    source = checkpoint("llama", tmp_path / "source", **SIZES)
    folder = tmp_path / scheme
    folder.mkdir()
    tiny_quantized.write(source, folder, scheme)
    ids = prompts(1, 40, seed=10)[0] + [7, 8, 9]
    cpu = logits_of(folder, "cpu", ids, activation="bfloat16")
    cuda = logits_of(folder, "cuda", ids)
    assert apart(cuda, cpu) < 0.01


def test_long_contexts_are_cut_into_chunks(tmp_path: Path, emulated: str) -> None:
    """Prompts of two chunks, prefilled whole and in parts, decoded by graphs, alone and together:
    chunks are dealt out in small steps and folded in large ones, and nobody can tell."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    folder = checkpoint("llama", tmp_path, num_hidden_layers=1, **heads)
    rng = np.random.default_rng(11)
    asked = [rng.integers(3, 300, n).tolist() for n in (261, 20)]
    widths = {"max_model_len": 400, "hf_overrides": {"max_position_embeddings": 400}}
    with open_on(folder, "cuda", **widths) as llm:
        together = greedy(llm, asked, 3)
        alone = [greedy(llm, [ids], 3)[0] for ids in asked]
    with open_on(folder, "cuda", max_num_batched_tokens=30, **widths) as llm:
        cut = greedy(llm, asked, 3)
    with open_on(folder, "cpu", **widths) as llm:
        theirs = greedy(llm, asked, 3)
    assert agree(together, theirs) >= 4
    for other in (alone, cut):
        for (ids, best), (want, wanted) in zip(other, together, strict=True):
            assert ids == want
            assert np.array_equal(best, wanted)


def test_four_bits_in_activation_order_are_refused(tmp_path: Path, emulated: str) -> None:
    source = checkpoint("llama", tmp_path / "source", **SIZES)
    (tmp_path / "made").mkdir()
    tiny_quantized.write(source, tmp_path / "made", "gptq-4-order")
    with pytest.raises(UnsupportedError, match="columns in activation order yet"):
        open_on(tmp_path / "made", "cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "w6g16"}, "no quantization='w6g16' yet, only 'w4g128' and 'w4g32'"),
        ({"quantization": "fp8"}, "no quantization='fp8' yet, only"),
        ({"quantization": "w4g128", "activation": "int8"}, "no activation='int8' yet, only 'bfl"),
        (
            {"quantization": "w4g128"},
            r"o_proj.weight' \(F32\): .*4-bit codes where K is a multiple of 32, which 120 is",
        ),
        ({"quantization": "w4g128", "kv_cache_dtype": "fp8"}, "no kv_cache_dtype='fp8' yet, only"),
    ],
)
def test_other_formats_are_refused(
    options: dict, message: str, tmp_path: Path, emulated: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        open_on(checkpoint("llama", tmp_path), "cuda", **options)


@pytest.mark.parametrize(
    ("place", "blocks", "words"),
    [
        (
            "token_embd",
            "Q8_0",
            "8-bit codes with float16 scales for groups of 32 yet, only of bfloat16, ",
        ),
        ("attn_v", "Q5_1", "5-bit codes with float16 scales for groups of 32 yet"),
        ("attn_v", "Q4_K", "4-bit codes with int8 times float16 scales for groups of 32 yet"),
        ("ffn_down", "MXFP4", "e2m1 codes with power-of-two scales for groups of 32 yet"),
    ],
)
def test_blocks_of_a_file_are_refused_by_tensor_and_format(
    place: str, blocks: str, words: str, tmp_path: Path, emulated: str
) -> None:
    """Between tensors that are taken."""
    pytest.importorskip("gguf")
    source, file = checkpoint("llama", tmp_path, **SIZES), tmp_path / "mixed.gguf"
    rest = {"token_embd": "BF16", "output": "BF16"}
    tiny_gguf.make_gguf(
        *("llama", source, file),
        lambda name: blocks if place in name else rest.get(name.partition(".")[0], "Q4_1"),
    )
    with pytest.raises(UnsupportedError, match=rf"{place}\.weight' \({blocks}\).*: .*{words}"):
        open_on(file, "cuda", dtype="auto")


def test_what_cannot_be_quantized_is_named(tmp_path: Path, emulated: str) -> None:
    from safetensors.numpy import load_file, save_file

    folder = checkpoint("llama", tmp_path, **WIDTHS)
    arrays = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    arrays[name][3, 5] = np.inf
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"down_proj.*not finite"):
        LLM(str(folder), backend="cuda", dtype="bfloat16", quantization="w4g32")
    gc.collect()
