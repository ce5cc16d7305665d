"""Weights by their names: every name of every way to store it, views that are the model's memory,
and lifetimes in any order."""

from __future__ import annotations

import gc
import hashlib
import itertools

import numpy as np
import pytest
import tiny
import tiny_gguf
from test_formats import MIXED

from llmaccel import (
    LLM,
    ConfigError,
    LLMAccelError,
    MemoryPlanError,
    RequestError,
    _core,
    kernels,
)
from llmaccel.models.checkpoint import FLOATS
from llmaccel.models.gguf import open_gguf

EVEN = {"intermediate_size": 96, "head_dim": 32}  # whole units, so that matrices can be views
IDS = [5, 17, 200, 3, 88]


def even(seed: int = 0):
    config = tiny.config_of("llama", **EVEN)
    return config, tiny.arrays_of(config, seed)


def rounded(values: np.ndarray) -> np.ndarray:
    """To bfloat16, nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return (bits << np.uint32(16)).view(np.float32)


# by part and fused, transposed, (head, q/k/v, d), stored as w for 1 + w, latents, experts apart,
# stacked, in turns
FAMILIES = ["llama-bias", "phi3", "gpt2", "gpt_neox", "gemma2", "deepseek_v3", "starcoder2"]
ROUTED = ["deepseek_v2-experts", "qwen2_moe", "granitemoe", "gpt_oss", "llama4"]


@pytest.mark.parametrize("family", [*FAMILIES, *ROUTED])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_name_gives_the_tensor_of_the_file(family, dtype):
    config = tiny.config_of(family)
    arrays = tiny.arrays_of(config)
    views = set()
    with LLM.from_arrays(config, arrays, dtype=dtype) as llm:
        names = llm.weight_names()
        assert set(names) <= set(arrays)
        assert len(names) == len(set(names)) >= len(arrays) - 2  # what is tied or useless
        for name in names:
            found = llm.weight(name)
            want = arrays[name].astype(np.float32)
            assert found.name == name
            assert found.shape == want.shape
            got = found.numpy()
            routes = any(part in name for part in ("router", "mlp.gate.w", "shared_expert_gate"))
            matrix = want.ndim > 1 and not routes  # which stay float32
            if dtype == "bfloat16" and matrix and not name.endswith("bias"):
                want = rounded(want)
            if family == "gemma2" and "norm" in name:
                np.testing.assert_allclose(got, want, atol=2e-7)
            else:
                np.testing.assert_array_equal(got, want)
            views.add(found.is_view)
            if not found.is_view:
                assert found.tensor.dtype == "F32"
                assert found.tensor.shape == found.shape
    assert views == {True, False}


@pytest.mark.parametrize(("dtype", "form"), [("float32", "F32"), ("bfloat16", "BF16")])
def test_views_are_the_models_memory(dtype, form):
    config, arrays = even()
    with LLM.from_arrays(config, arrays, dtype=dtype) as llm:
        shown = dict(zip(llm.weight_names(), llm.weight(llm.weight_names()), strict=True))
        copies = {name for name, one in shown.items() if not one.is_view}
        assert copies == {"model.embed_tokens.weight", "lm_head.weight"}  # 301 rows
        for name, one in shown.items():
            exact = form == "F32" or len(one.shape) == 1
            values = arrays[name] if exact else rounded(arrays[name])
            np.testing.assert_array_equal(one.numpy(), values)
            if one.is_view and len(one.shape) == 2:
                assert one.tensor.dtype == form
                assert len(one.tensor.shape) == (3 if form == "F32" else 4)
                assert np.prod(one.tensor.shape) == values.size
                assert one.tensor.nbytes == values.size * (4 if form == "F32" else 2)
        q, again = shown["model.layers.1.self_attn.q_proj.weight"], llm.weight(q_name(1))
        assert q.tensor.data_ptr() == again.tensor.data_ptr()
        k = llm.weight("model.layers.1.self_attn.k_proj.weight").tensor
        assert k.data_ptr() - q.tensor.data_ptr() == q.tensor.nbytes  # one matrix
        gate, up = (
            llm.weight(f"model.layers.0.mlp.{x}_proj.weight").tensor for x in ("gate", "up")
        )
        assert up.data_ptr() - gate.data_ptr() == 64  # half a unit's rows further


def q_name(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj.weight"


def test_views_are_read_only_and_say_that_they_have_strides():
    config, arrays = even()
    with LLM.from_arrays(config, arrays, dtype="float32") as llm:
        one = llm.weight(q_name(0)).tensor
        assert one.shape == (192 // 32, 32, 96)
        assert one.strides == (96 * 32, 1, 32)
        assert not one.is_contiguous
        assert not one.numpy().flags.writeable
        assert memoryview(one).readonly
        assert memoryview(one).strides == (4 * 96 * 32, 4, 128)
        with pytest.raises(BufferError, match="read-only, which DLPack"):
            one.__dlpack__()
        with pytest.raises(BufferError, match="has strides"):
            hashlib.sha256(one)
        with pytest.raises(ConfigError, match="x: must be row-major"):
            kernels.rms_norm(one, np.ones(96, np.float32))
        with pytest.raises(RequestError, match="row-major"):
            llm.update_weights({q_name(0): one})
        norm = llm.weight("model.layers.0.input_layernorm.weight")
        assert norm.is_view
        assert norm.tensor.is_contiguous
        kernels.rms_norm(np.ones((1, 96), np.float32), norm.tensor)


def test_strides_stay_inside():
    of = _core.Tensor(np.arange(24, dtype=np.float32))
    turned = of.strided("F32", 0, (4, 6), (1, 4))
    np.testing.assert_array_equal(turned.numpy(), of.numpy().reshape(6, 4).T)
    np.testing.assert_array_equal(np.from_dlpack(turned, copy=True), of.numpy().reshape(6, 4).T)
    assert of.strided("U8", 95, (1,), (7,)).shape == (1,)
    for args in (
        ("F32", 0, (4, 7), (1, 4)),
        ("F32", 1, (4, 6), (1, 4)),
        ("F32", -1, (1,), (1,)),
        ("F32", 25, (0,), (1,)),
        ("F32", 0, (2,), (-1,)),
        ("F32", 0, (1,), (2**62,)),
        ("F32", 0, (3, 3), (2**62, 2**62)),
        ("F32", 0, (2, 2), (1,)),
        ("U8", 0, (2**62, 2**62), (0, 0)),
    ):
        with pytest.raises(ConfigError):
            of.strided(*args)
    with pytest.raises(ConfigError):
        turned.strided("F32", 0, (1,), (1,))


@pytest.mark.torch
def test_torch_reads_views_without_a_copy():
    import torch

    config, arrays = even()
    with LLM.from_arrays(config, arrays, dtype="bfloat16") as llm:
        for name in (q_name(0), "model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
            one = llm.weight(name)
            theirs = torch.from_dlpack(one.tensor)
            assert theirs.data_ptr() == one.tensor.data_ptr()
            want = torch.from_numpy(arrays[name])
            want = want.bfloat16() if want.dim() > 1 else want
            assert torch.equal(theirs.reshape(one.shape), want)
    gc.collect()
    assert torch.isfinite(theirs).all()


@pytest.mark.parametrize("quantization", ["int8", "w4g32", "fp8", "w6g16"])
def test_codes_come_as_copies_of_what_they_stand_for(quantization):
    config, arrays = even()
    with LLM.from_arrays(config, arrays, quantization=quantization) as llm:
        for name in (q_name(1), "model.layers.0.mlp.gate_proj.weight"):
            one = llm.weight(name)
            assert not one.is_view
            want = kernels.pack(arrays[name], quantization).dequantize().numpy()
            np.testing.assert_array_equal(one.numpy(), want)


@pytest.mark.parametrize("kind", ["F32", "old", "floats"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe-all"])
def test_names_of_a_gguf_file(family, kind, tmp_path):
    folder = tiny.make_checkpoint(family, tmp_path)
    path = tiny_gguf.make_gguf(family, folder, tmp_path / "model.gguf", MIXED.get(kind, kind))
    file = open_gguf(path)
    with LLM(path) as llm:
        assert len(llm.weight_names()) >= len(file.names()) - 2
        for name in llm.weight_names():
            stored, one = file[name], llm.weight(name)
            if stored.dtype in FLOATS:
                want = stored.float32()
            else:
                rows, cols = int(np.prod(stored.shape[:-1])), stored.shape[-1]
                packed = kernels.pack(stored.data, dtype=stored.dtype, shape=(rows, cols))
                want = packed.dequantize().numpy().reshape(stored.shape)
                assert not one.is_view
            np.testing.assert_array_equal(one.numpy(), want.reshape(one.shape))


def test_lifetimes_in_any_order():
    """Model, view, array over it and what DLPack gave go; the rest stays readable."""
    config, arrays = even()
    for order in itertools.permutations(["llm", "view", "array", "capsule"]):
        kept = {"llm": LLM.from_arrays(config, arrays, dtype="float32")}
        kept["view"] = kept["llm"].weight(q_name(2)).tensor
        kept["array"] = kept["view"].numpy()
        kept["capsule"] = np.from_dlpack(kept["view"])
        for name in order:
            if name == "llm":
                kept["llm"].close()
            del kept[name]
            for left in kept.values():
                if not isinstance(left, LLM):
                    got = np.asarray(left).reshape(192, 96)
                    np.testing.assert_array_equal(got, arrays[q_name(2)])


def test_changes_wait_for_views(tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path, **EVEN)
    with LLM(folder, dtype="float32") as llm:
        one = llm.weight(q_name(0))
        old = one.numpy()
        array = one.tensor.numpy()
        del one
        with pytest.raises(LLMAccelError, match="update_weights: 1 views of weights are alive"):
            llm.update_weights({"model.norm.weight": np.ones(96, np.float32)})
        with pytest.raises(LLMAccelError, match="1 views of this Model's weights"):
            llm.engine._model.set("final_norm", 0, [(np.ones(96, np.float32), "F32", 1, 96)])
        llm.sleep(level=2)
        np.testing.assert_array_equal(array.reshape(192, 96), old)
        with pytest.raises(
            LLMAccelError, match=r"weight: this LLM sleeps; wake_up\(\) comes first"
        ):
            llm.weight(q_name(0))
        llm.wake_up()
        again = llm.weight(q_name(0))
        np.testing.assert_array_equal(again.numpy(), old)
        assert again.tensor.data_ptr() != array.ctypes.data
        del again, array
        llm.update_weights({"model.norm.weight": np.ones(96, np.float32)})
        np.testing.assert_array_equal(llm.weight("model.norm.weight").numpy(), np.ones(96))
        assert llm.generate([IDS])[0].outputs[0].token_ids


def test_bad_names_and_no_room(monkeypatch):
    config, arrays = even()
    with LLM.from_arrays(config, arrays, dtype="float32") as llm:
        near = "model.layers.1.self_attn.q_proj.wieght"
        with pytest.raises(RequestError, match=f"^name: '{near}' is no weight .*did you mean"):
            llm.weight(near)
        with pytest.raises(RequestError, match=r"^name: 7 is no weight"):
            llm.weight([q_name(0), 7])
        with pytest.raises(RequestError, match=r"^name: expected a name or a list"):
            llm.weight(7)
        monkeypatch.setattr("llmaccel.memory.available_memory", lambda: (1000, "a test"))
        with pytest.raises(MemoryPlanError, match=r"weight 'lm_head\.weight'"):
            llm.weight("lm_head.weight")
        assert llm.weight(q_name(0)).is_view
    with pytest.raises(LLMAccelError, match="closed"):
        llm.weight(q_name(0))


def test_the_core_checks_places():
    config, arrays = even()
    with LLM.from_arrays(config, arrays, dtype="float32") as llm:
        model = llm.engine._model
        for place in (("qkv", 3, 0, 0), ("qkv", -1, 0, 0), ("qkv", 0, 1, 0), ("qkv", 0, 0, 3)):
            with pytest.raises(ConfigError):
                model.show(*place)
        with pytest.raises(ConfigError, match="slot: unknown"):
            model.show("kvq", 0, 0, 0)
        with pytest.raises(LLMAccelError, match="qkv_bias"):
            model.show("qkv_bias", 0, 0, 0)
        with pytest.raises(ConfigError, match="out: expected 18432 float32"):
            model.copy("qkv", 0, 0, 0, np.zeros((192, 95), np.float32))
        assert model.views == 0


def test_a_classifiers_head(tmp_path):
    config = tiny.config_of("llama", architectures=["LlamaForSequenceClassification"], num_labels=3)
    arrays = tiny.arrays_of(config)
    arrays.setdefault("score.weight", np.ones((3, 96), np.float32))
    with LLM.from_arrays(config, arrays) as llm:
        assert "score.weight" in llm.weight_names()
        one = llm.weight("score.weight")
        assert not one.is_view
        np.testing.assert_array_equal(one.numpy(), arrays["score.weight"])
