"""Weights of experts changed in place: one by one, in differing forms, under rules of rounding."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import tiny
import tiny_quantized
from test_quantized import set_numbers
from test_quantized_experts import SIZES

from llmaccel import LLM, RequestError, UnsupportedError
from llmaccel.models.safetensors import open_safetensors

IDS = [5, 17, 200, 3, 88, 41, 7, 9]


def bits(llm: LLM) -> bytes:
    return llm.logits(IDS).numpy().tobytes()


def stacked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts of a layer in one tensor, as transformers 5 has them."""
    made, experts = {}, {}
    for name, array in arrays.items():
        block, found, rest = name.partition(".experts.")
        if found:
            number, part = rest.removesuffix(".weight").split(".")
            experts.setdefault((block, part), {})[int(number)] = array
        else:
            made[name] = array
    for block in {block for block, _ in experts}:
        gate, up, down = (
            np.stack([rows for _, rows in sorted(experts[block, part].items())])
            for part in ("gate_proj", "up_proj", "down_proj")
        )
        made[f"{block}.experts.gate_up_proj"] = np.concatenate([gate, up], 1)
        made[f"{block}.experts.down_proj"] = down
    return made


def some(arrays: dict[str, np.ndarray], *words: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if any(w in name for w in words)}


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_stacked_experts_come_one_by_one(quantization):
    config = tiny.config_of("qwen3_moe")
    old, new = tiny.arrays_of(config, 0), tiny.arrays_of(config, 1)
    options = {"quantization": quantization} if quantization else {}
    want_arrays = {**old, **some(new, ".experts.2.", ".experts.5.")}
    with (
        LLM.from_arrays(config, stacked(old), **options) as llm,
        LLM.from_arrays(config, want_arrays, **options) as want,
    ):
        before = bits(llm)
        llm.update_weights(some(new, ".experts.2.gate_proj", ".experts.2.up_proj"))
        llm.update_weights(some(new, ".experts.2.down_proj", ".experts.5."))
        assert bits(llm) == bits(want) != before
        with pytest.raises(RequestError, match=r"experts.3.gate_proj.weight' is missing: .* both"):
            llm.update_weights(some(new, "layers.1.mlp.experts.3.up_proj"))
        with pytest.raises(RequestError, match=r"experts.down_proj' is no weight of this"):
            llm.update_weights({**stacked(new), **some(new, ".experts.2.down_proj")})
        name = "model.layers.1.mlp.experts.99.down_proj.weight"
        with pytest.raises(RequestError, match=f"{name}' is no weight of this model"):
            llm.update_weights({name: new[name.replace(".99.", ".0.")]})
        assert bits(llm) == bits(want)
        llm.update_weights(stacked(old))
        assert bits(llm) == before


def test_names_stand_where_the_checkpoint_has_them():
    """One tensor alone says as well as all of them what stands before its name."""
    config = tiny.config_of("qwen3_moe")
    new = tiny.arrays_of(config, 1)
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    with LLM.from_arrays(config, tiny.arrays_of(config, 0)) as llm:
        seen = set()
        for spelled in (name, name.removeprefix("model.")):
            llm.update_weights({spelled: new[name]})
            seen.add(bits(llm))
            llm.update_weights(tiny.arrays_of(config, 0))
        assert len(seen) == 1
        assert bits(llm) not in seen
    config = tiny.config_of("llama4")
    new = tiny.arrays_of(config, 1)
    name = "model.layers.1.self_attn.o_proj.weight"
    with LLM.from_arrays(config, tiny.arrays_of(config, 0)) as llm:
        before = bits(llm)
        llm.update_weights({f"language_model.{name}": new[name]})
        after = bits(llm)
        assert after != before
        llm.update_weights({name: new[name]})
        assert bits(llm) == after


def test_each_expert_keeps_its_own_form():
    """Gate and up of two types are packed as fp32, which lies beside experts of fp32; what comes
    takes the type that the same tensor had."""
    config = tiny.config_of("qwen3_moe", dtype="float32")
    old, new = tiny.arrays_of(config, 0), tiny.arrays_of(config, 1)
    halves = ("layers.0.mlp.experts.0.gate_proj", "layers.1.mlp.experts.3.up_proj")

    def mixed(arrays):
        return {**arrays, **{k: a.astype(np.float16) for k, a in some(arrays, *halves).items()}}

    with (
        LLM.from_arrays(config, mixed(old)) as llm,
        LLM.from_arrays(config, mixed(new)) as want,
        LLM.from_arrays(config, new) as exact,
    ):
        before = bits(llm)
        wide = {k: a.copy() for k, a in new.items()}
        name = "model.layers.1.mlp.experts.3.up_proj.weight"
        wide[name][0, 0] = 7e4
        with pytest.raises(RequestError, match=f"{name}' holds a value beyond float16's 65504"):
            llm.update_weights(wide)
        assert bits(llm) == before
        llm.update_weights(new)
        assert bits(llm) == bits(want) != bits(exact)


@pytest.mark.parametrize("quantization", ["w4g128", "w6g16"])
def test_values_that_scales_of_float16_cannot_hold(quantization):
    """Nothing is changed by an update of which one matrix cannot be packed."""
    config = tiny.config_of("qwen3_moe")
    old, new = tiny.arrays_of(config, 0), tiny.arrays_of(config, 1)
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    with LLM.from_arrays(config, old, quantization=quantization) as llm:
        before = bits(llm)
        new[name] = new[name].copy()
        new[name][1, 2] = 1e12
        with pytest.raises(RequestError, match=f"{name}' holds a value that is too large for fp16"):
            llm.update_weights(new)
        assert bits(llm) == before
        new[name][1, 2] = 1e5  # beyond float16 itself, not beyond what its scales can say
        llm.update_weights({name: new[name]})
        assert bits(llm) != before


def test_values_beyond_a_dtype_that_was_asked_for():
    config = tiny.config_of("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    new = tiny.arrays_of(config, 1)
    with LLM.from_arrays(config, tiny.arrays_of(config, 0), dtype="float16") as llm:
        before = bits(llm)
        new[name] = new[name].copy()
        new[name][0, 0] = -1e6
        with pytest.raises(RequestError, match=f"{name}' holds a value beyond float16's 65504"):
            llm.update_weights(new)
        assert bits(llm) == before


# ---- rules of rounding ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        ("qwen3_moe-all", "ct-w8a8"),
        ("qwen3_moe-all", "modelopt-fp8"),  # with a fixed scale, of each expert another
        ("deepseek_v3-experts", "ct-fp8-dynamic"),  # latents too
        ("deepseek_v3-experts", "fp8-block"),
    ],
)
def test_rows_go_on_being_rounded(family, scheme, tmp_path):
    """activation="checkpoint": with the numbers that the file stands for nothing changes, all at
    once or one expert, and so do others, which are rounded as well."""
    source = tiny.make_checkpoint(family, tmp_path / "float", **SIZES[family])
    (tmp_path / "packed").mkdir()
    values = tiny_quantized.write(source, tmp_path / "packed", scheme)
    values = {name: np.asarray(array, np.float32) for name, array in values.items()}
    if scheme == "modelopt-fp8":
        names = open_safetensors(tmp_path / "packed").names()
        fixed = [name for name in names if name.endswith("input_scale")]
        joint = {name: name.replace("gate_proj", "up_proj") for name in fixed}
        numbers = {name: 0.02 + zlib.crc32(joint[name].encode()) % 97 / 5e3 for name in fixed}
        assert len(set(numbers.values())) > 8
        set_numbers(tmp_path / "packed", numbers)
    with (
        LLM(str(tmp_path / "packed"), activation="checkpoint") as llm,
        LLM(str(tmp_path / "packed"), dtype="float32") as plain,
    ):
        before = bits(llm)
        assert before != bits(plain)
        llm.update_weights(values)
        assert bits(llm) == before
        llm.update_weights(some(values, ".experts.1."))
        llm.update_weights(some(values, ".self_attn."))
        assert bits(llm) == before
        name = next(name for name in values if ".experts.0.down_proj" in name)
        llm.update_weights({name: values[name] * 2})
        assert bits(llm) != before
    with (
        LLM(str(tmp_path / "packed"), dtype="bfloat16") as coded,
        pytest.raises(UnsupportedError, match="the model keeps it as Q"),
    ):
        coded.update_weights({name: values[name]})
