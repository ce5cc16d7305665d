"""Plans of quantized models from config.json alone: the forms that their files turn out to have."""

from __future__ import annotations

import json

import pytest
import tiny
import tiny_quantized
from tiny_quantized import SCHEMES

from llmaccel import LLM, UnsupportedError, cli, loading
from llmaccel.loading import prepare
from llmaccel.options import LoadOptions

SIZES = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 32, "num_attention_heads": 8}
EXPERTS = {"num_experts": 5, "moe_intermediate_size": 128, **SIZES}
# Its blocks are twice the library's default, which only a layer's own state says; and no experts.
APART = ("bnb-fp4", "mxfp4-blocks")


def coded(folder, **options) -> list:
    """(slot, parts, count) of the slots that hold codes."""
    slots = prepare(LoadOptions(str(folder), **options)).slots
    return [slot for slot in slots if any(dtype.startswith("Q") for dtype, *_ in slot[1])]


def alone(folder, path, **keys) -> str:
    """A folder with nothing but the config.json of another."""
    path.mkdir()
    raw = json.loads((folder / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "dtype": "float16", **keys}))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_checkpoint("llama", tmp_path_factory.mktemp("float"), seed=3, **SIZES)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in APART])
def test_forms_are_those_of_the_files(folder, tmp_path, scheme):
    tiny_quantized.write(folder, tmp_path / "all", scheme)
    files = coded(tmp_path / "all")
    assert len(files) == 12
    assert coded(alone(tmp_path / "all", tmp_path / "bare"), load_format="dummy") == files


@pytest.mark.parametrize("scheme", ["gptq-4-order", "ct-fp8-block", "fp8-block", "modelopt-nvfp4"])
def test_experts(tmp_path, scheme):
    source = tiny.make_checkpoint("qwen3_moe", tmp_path / "float", seed=3, **EXPERTS)
    tiny_quantized.write(source, tmp_path / "all", scheme)
    total = {}
    for path, options in ((tmp_path / "all", {}), ("bare", {"load_format": "dummy"})):
        path = path if options == {} else alone(tmp_path / "all", tmp_path / path)
        total[str(path)] = sum(
            count * rows * cols for _, parts, count in coded(path, **options)
            for _, rows, cols in parts)  # fmt: skip
    assert len(set(total.values())) == 1


def test_gpt_oss(tmp_path):
    source = tiny.make_checkpoint("gpt_oss", tmp_path / "float", seed=3, intermediate_size=64)
    tiny_quantized.write_gpt_oss(source, tmp_path / "all")
    bare = alone(tmp_path / "all", tmp_path / "bare")
    assert coded(bare, load_format="dummy") == coded(tmp_path / "all") != []


def test_layers_that_stay_floats(folder, tmp_path):
    """By the file's own list; and a head that the file quantizes."""
    config = dict(SCHEMES["gptq-4"][0])
    for i, (keys, slots) in enumerate((
        ({"modules_to_not_convert": ["mlp"]}, {"qkv", "o"}),
        ({"dynamic": {"-:.*down_proj": {}}}, {"qkv", "o", "gate_up"}),
        ({"lm_head": True}, {"qkv", "o", "gate_up", "down", "head"}),
    )):  # fmt: skip
        bare = alone(folder, tmp_path / str(i), quantization_config={**config, **keys})
        assert {slot for slot, *_ in coded(bare, load_format="dummy")} == slots
    unknown = {"quantization_config": {"quant_method": "exl3"}}
    with pytest.raises(UnsupportedError, match="quant_method 'exl3' is not known; this"):
        prepare(LoadOptions(alone(folder, tmp_path / "x", **unknown), load_format="dummy"))


def test_experts_in_one_tensor_are_not_guessed(tmp_path):
    source = tiny.make_checkpoint("llama4", tmp_path / "float", seed=3)
    config = {"quantization_config": SCHEMES["ct-w8a8"][0]}
    with pytest.raises(UnsupportedError, match=r"experts\.gate_up_proj.*not known without them"):
        prepare(LoadOptions(alone(source, tmp_path / "bare", **config), load_format="dummy"))


def test_the_command_plans_what_has_no_files(folder, tmp_path, capsys):
    tiny_quantized.write(folder, tmp_path / "all", "gptq-4")
    bare = alone(tmp_path / "all", tmp_path / "bare", dtype="float32")
    said = []
    for path in (str(tmp_path / "all"), bare):
        assert cli.main(["plan", path, "--max-model-len", "64", "--kv-cache-memory", "1M"]) == 0
        said.append(capsys.readouterr().out)
    assert said[1].startswith("no files of weights: planned from config.json alone\n")
    assert "weights QI4_G128_H" in said[0]
    assert "weights QI4_G128_H" in said[1]
    with pytest.raises(UnsupportedError, match="has no random weights"):
        LLM(bare, load_format="dummy")


@pytest.mark.parametrize(("backend", "rows"), [("cpu", "int8"), ("cuda", "bfloat16")])
def test_the_command_names_the_rows_of_the_backend(
    folder, tmp_path, capsys, monkeypatch, *, backend, rows
):
    """A device takes rows of 16 bits."""
    tiny_quantized.write(folder, tmp_path, "gptq-4")
    monkeypatch.setattr(loading, "plan_memory", lambda *args: "")  # asks the device for its memory
    assert cli.main(["plan", str(tmp_path), "--backend", backend]) == 0
    assert f"activations {rows}, " in capsys.readouterr().out
