"""Models whose layers have experts: bits, formats, loading, counters, and what is refused.

Against transformers the rows are in test_models.py and test_families.py, the kernels in
test_moe_kernels.py.
"""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import reference
import tiny
import tiny_gguf

from llmaccel import LLM, SamplingParams, _core, kernels
from llmaccel.config import load_hf_config
from llmaccel.errors import ConfigError, LLMAccelError, LoadError, UnsupportedError
from llmaccel.loading import arrays_checkpoint
from llmaccel.models.gguf import open_gguf
from llmaccel.models.mapping import build_config

# Rows of whole blocks, so that every format has something to store.
BLOCKY = {"hidden_size": 128, "moe_intermediate_size": 64, "intermediate_size": 128,
          "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
FAMILIES = ["qwen2_moe", "glm4_moe", "mixtral", "gpt_oss", "llama4"]


def params_for(index: int) -> SamplingParams:
    common = {"max_tokens": 6 + index % 5, "ignore_eos": True, "logprobs": 2, "detokenize": False}
    if index % 2:
        return SamplingParams(temperature=0.9, top_p=0.9, seed=index, **common)
    return SamplingParams(temperature=0, **common)


def prompts(count: int) -> list[dict]:
    rng = np.random.default_rng(8)
    return [{"prompt_token_ids": rng.integers(3, 301, n).tolist()}
            for n in rng.integers(1, 90, count)]  # fmt: skip


def fingerprints(llm: LLM, which: list[int]) -> dict[int, tuple]:
    asked = prompts(12)
    outputs = llm.generate([asked[i] for i in which], [params_for(i) for i in which])
    return {i: (tuple(o.outputs[0].token_ids), o.outputs[0].logprob_array.tobytes())
            for i, o in zip(which, outputs, strict=True)}  # fmt: skip


OPTIONS = [
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"quantization": "int8"},
    {"quantization": "w4g32", "activation": "bfloat16"},
    {"quantization": "w4g128"},
    {"quantization": "fp8"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_has_the_same_bits_in_any_company(family, options, tmp_path):
    """Alone, in batches of other orders, chunk sizes and thread counts."""
    folder = tiny.make_checkpoint(family, tmp_path, **BLOCKY)
    everyone = list(range(12))
    with LLM(str(folder), max_num_seqs=16, **options) as llm:
        together = fingerprints(llm, everyone)
        assert fingerprints(llm, everyone[::-1]) == together
        for i in (0, 3, 7):
            assert fingerprints(llm, [i])[i] == together[i]
    with LLM(str(folder), max_num_seqs=3, max_num_batched_tokens=23, threads=1, **options) as llm:
        assert fingerprints(llm, everyone) == together


@pytest.mark.parametrize("isa", _core.kernel_isas())
def test_threads_change_no_bit(isa, tmp_path, monkeypatch):
    """More threads than processors, on every instruction set."""
    folder = tiny.make_checkpoint("qwen2_moe", tmp_path, **BLOCKY)
    seen = []
    for threads in (1, 5):
        monkeypatch.setattr(
            "llmaccel.llm.open_backend", lambda *_, n=threads: _core.Backend("cpu", isa, -n)
        )
        with LLM(str(folder), quantization="int8", max_num_seqs=8, isa=isa) as llm:
            assert llm.report()["backend"]["n_threads"] == threads
            seen.append(fingerprints(llm, list(range(8))))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("options", OPTIONS[1:], ids=lambda o: "-".join(o.values()))
def test_formats_stay_close_and_the_plan_counts_them(options, tmp_path):
    """Beside the same model whose weights were quantized before it was loaded in float32."""
    raw = tiny.config_of("glm4_moe", **BLOCKY)
    arrays = tiny.arrays_of(raw)
    ids = prompts(12)[5]["prompt_token_ids"]
    with LLM.from_arrays(raw, quantized(arrays, options), dtype="float32") as llm:
        exact = np.asarray(llm.logits(ids))
        whole = llm.report()["memory"]["weight_bytes"]
    with LLM.from_arrays(raw, arrays, **options) as llm:
        got = np.asarray(llm.logits(ids))
        memory, plan = llm.report()["memory"], llm.plan()
    assert memory["weight_bytes"] == plan.weights < whole
    # of the middle token, because rounded activations send some to another expert
    error = np.median(np.abs(got - exact).mean(-1) / np.abs(exact).mean(-1))
    assert 1e-5 < error < 0.06


def quantized(arrays: dict[str, np.ndarray], options: dict) -> dict[str, np.ndarray]:
    """What the codes of quantize at load stand for; routers and embeddings keep their bits."""
    done = {}
    for name, values in arrays.items():
        format = options.get("quantization")
        if name == "lm_head.weight":
            format = format and "int8"
        elif values.ndim < 2 or "embed" in name or name.endswith("mlp.gate.weight"):
            format = None
        done[name] = kernels.pack(values, format).dequantize().numpy() if format else values
    return done


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "mixed"])
def test_gguf_experts_keep_their_blocks(quant, tmp_path):
    sizes = {**BLOCKY, "shared_expert_intermediate_size": 64}
    if quant.endswith("_K"):
        sizes.update(hidden_size=256, moe_intermediate_size=256,
                     shared_expert_intermediate_size=256)  # fmt: skip
    folder = tiny.make_checkpoint("qwen2_moe-all", tmp_path / "hf", **sizes)

    def kind(name: str) -> str:  # llama.cpp keeps routers in float
        if "gate_inp" in name:
            return "F32"
        if quant == "mixed":  # rows enter experts and the shared one in two forms
            return "F16" if "shexp" in name else "Q5_0" if "down" in name else "Q4_1"
        return quant

    path = tiny_gguf.make_gguf("qwen2_moe-all", folder, tmp_path / "model.gguf", quant=kind)
    file = open_gguf(path)
    config = build_config(file.metadata, gguf=True, tensors=file)
    ids = prompts(1)[0]["prompt_token_ids"][:30]
    want = reference.forward(config, reference.load_weights(config, file), ids)
    with LLM(str(path), dtype="float32", activation="float32") as llm:
        assert np.abs(np.asarray(llm.logits(ids)) - want).max() <= 3e-4
    with LLM(str(path)) as llm:
        assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights
        close = np.asarray(llm.logits(ids))
    with LLM(str(path), dtype="bfloat16") as llm:  # of a float router no option changes the form
        assert llm.report()["no_effect"] == ([] if quant == "mixed" else ["dtype"])
    assert 0 < np.abs(close - want).mean() < 0.2 * np.abs(want).mean()


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
@pytest.mark.parametrize("family", ["qwen3_moe-all", "gpt_oss", "glm4_moe"])
def test_gguf_gate_and_up_in_one_tensor(family, quant, tmp_path):
    """`ffn_gate_up_exps`, as llama.cpp's converters write it on demand: the same model."""
    folder = tiny.make_checkpoint(family, tmp_path / "hf", **BLOCKY)

    def kind(name: str) -> str:
        return quant if name.endswith("exps.weight") else "F32"

    seen, names = [], []
    for layout in ("split", "fused"):
        path = tmp_path / f"{layout}.gguf"
        tiny_gguf.make_gguf(family, folder, path, kind, layout=layout)
        names.append({name for name in open_gguf(path).names() if "exps" in name})
        with LLM(str(path)) as llm:
            assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights
            seen.append(np.asarray(llm.logits(list(range(3, 40)))).tobytes())
    assert any("ffn_gate_up_exps.weight" in name for name in names[1])
    assert not names[1] & {name for name in names[0] if "ffn_down" not in name}
    assert seen[0] == seen[1]


# ---- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "glm4_moe"])
def test_stacked_experts_are_the_same_model(family):
    """One tensor for all experts, as transformers 5 holds them."""
    raw = tiny.config_of(family)
    arrays = tiny.arrays_of(raw)
    ids = list(range(40))
    with LLM.from_arrays(raw, arrays, dtype="float32") as llm:
        want = np.asarray(llm.logits(ids)).tobytes()
    stacked: dict[str, np.ndarray] = {}
    experts: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for name, values in arrays.items():
        found = re.fullmatch(r"(.*\.)(mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight", name)
        if found is None:
            stacked[name.replace("block_sparse_moe", "mlp")] = values
        else:
            experts.setdefault((found[1], found[4]), {})[int(found[3])] = values
    for (layer, what), parts in experts.items():
        whole = np.stack([parts[e] for e in range(len(parts))])
        if what in ("gate_proj", "w1"):
            up = experts[layer, "up_proj" if what == "gate_proj" else "w3"]
            ups = np.stack([up[e] for e in range(len(up))])
            stacked[f"{layer}mlp.experts.gate_up_proj"] = np.concatenate([whole, ups], 1)
        if what in ("down_proj", "w2"):
            stacked[f"{layer}mlp.experts.down_proj"] = whole
    with LLM.from_arrays(raw, stacked, dtype="float32") as llm:
        assert np.asarray(llm.logits(ids)).tobytes() == want


def test_an_expert_that_is_missing_or_cut_is_named():
    raw = tiny.config_of("qwen3_moe")
    arrays = tiny.arrays_of(raw)
    name = "model.layers.1.mlp.experts.6.up_proj.weight"
    less = {k: v for k, v in arrays.items() if k != name}
    with pytest.raises(LoadError, match=f"tensor '{name}' is missing"):
        LLM.from_arrays(raw, less, dtype="float32")
    with pytest.raises(LoadError, match=rf"{name}: expected \[44, 96\], got \[43, 96\]"):
        LLM.from_arrays(raw, {**arrays, name: arrays[name][:43]}, dtype="float32")
    bad = arrays[name].copy()
    bad[3, 5] = np.nan
    with pytest.raises(LoadError, match=f"{name}.*not finite"):
        LLM.from_arrays(raw, {**arrays, name: bad}, quantization="int8")


def test_experts_of_one_layer_are_in_one_format():
    raw = tiny.config_of("qwen3_moe")
    arrays = tiny.arrays_of(raw)
    for part in ("gate_proj", "up_proj"):
        name = f"model.layers.1.mlp.experts.2.{part}.weight"
        arrays[name] = arrays[name].astype(np.float16)
    with pytest.raises(UnsupportedError, match=r"expert_gate_up \(layer 1\): experts 0 and 2 are"):
        LLM.from_arrays(raw, arrays)
    with LLM.from_arrays(raw, arrays, dtype="float32") as llm:
        assert np.isfinite(np.asarray(llm.logits([1, 2, 3]))).all()


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("mixtral", {"num_local_experts": 0}, "num_local_experts must be in 1..1024, is 0"),
        ("mixtral", {"num_local_experts": 2000}, "num_local_experts must be in 1..1024"),
        ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok must be in 1..5, is 6"),
        ("qwen3_moe", {"num_experts_per_tok": 0}, "num_experts_per_tok must be in 1..7"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be in 1"),
        ("qwen3_moe", {"mlp_only_layers": 3}, "mlp_only_layers must be a list"),
        ("qwen3_moe", {"mlp_only_layers": ["x"]}, r"mlp_only_layers\[0\] must be an integer"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size"),
        ("glm4_moe", {"n_group": 5}, "n_group 5, of which 2 are used"),
        ("glm4_moe", {"topk_group": 5}, "topk_group must be in 1..4"),
        ("glm4_moe", {"n_group": 12, "topk_group": 2}, "do not offer 3 of 12 experts"),
        ("glm4_moe", {"routed_scaling_factor": float("inf")}, "routed_scaling_factor must be"),
        ("llama4", {"moe_layers": 3}, "moe_layers must be a list"),
        ("llama4", {"no_rope_layers": [1]}, "no_rope_layers must be a list of 4"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(family, change, message):
    with pytest.raises(ConfigError, match=message):
        build_config({**tiny.config_of(family), **change})


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit other than 7.0"),
        ("llama4", {"attention_chunk_size": 64}, "chunks of 64 tokens .* max_model_len=64"),
        ("llama4", {"layer_types": ["full_attention"] * 4}, "layer_types other than"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
    ],
)
def test_what_is_not_computed_is_refused(family, change, message):
    with pytest.raises(UnsupportedError, match=message):
        build_config({**tiny.config_of(family), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_experts_used": 8}, "n_experts_used: expected 1 to 7, got 8"),
        ({"n_experts_used": 0}, "n_experts_used: expected 1 to 7, got 0"),
        ({"n_experts": 0}, r"layers\[1\].moe: 1, n_experts is 0"),
        ({"n_experts": 5000}, "n_experts: expected 0 to 1024"),
        ({"d_expert": 0}, "d_expert: expected 1"),
        ({"d_shared": -1}, "d_shared: expected 0"),
        ({"shared_gate": 1}, "shared_gate: expected 0 to 0"),
        ({"route_groups": 2}, "route_groups: 2 groups"),
        ({"route_groups": 7, "route_groups_used": 2}, "do not offer 3 of 7 experts"),
        ({"route_group_best": 3}, "route_group_best: expected 1 to 2"),
        ({"route_scale": float("nan")}, "route_scale: nan is not a finite"),
        ({"route_score": "tanh"}, "route_score: unknown value"),
        ({"norm_eps": -0.5}, "norm_eps: -0.5 is negative"),
        ({"parallel": True}, "parallel: layers with experts"),
    ],
)
def test_the_core_checks_descriptions_itself(change, message):
    desc = {**vars(build_config(tiny.config_of("qwen3_moe"))), **change}
    with pytest.raises(LLMAccelError, match=message):
        _core.Model(_core.Backend("cpu", None, 1), desc)


@pytest.mark.parametrize("tokens", [2**20 - 1, 2**20])
def test_sums_of_experts_fit_a_share(tokens):
    """With few experts a token the pieces of its sum are the most items of a step."""
    sizes = {"d_model": 2**14, "n_experts_used": 1, "max_len": 2**20}
    desc = {**vars(build_config(tiny.config_of("qwen3_moe"))), **sizes}
    limits = {"max_seqs": 1, "max_batch_tokens": tokens, "max_len": 64, "kv_pages": 1}
    if tokens < 2**20:  # * 16 pieces are 16 below the bound
        assert _core.plan(desc, limits, 1)["workspace_bytes"] > 0
        return
    with pytest.raises(ConfigError, match="max_num_batched_tokens: steps of 1048576 tokens"):
        _core.plan(desc, limits, 1)


def test_the_core_checks_slots_itself():
    config = build_config(tiny.config_of("qwen3_moe"))
    model = _core.Model(_core.Backend("cpu", None, 1), vars(config))
    down = [(np.zeros((96, 44), np.float32), "F32", 96, 44)]
    model.set("expert_down", 1, down, 6)
    for args, message in [
        (("expert_down", 1, down, 7), "expert: expected 0 to 6, got 7"),
        (("expert_down", 1, down, -1), "expert: expected 0 to 6, got -1"),
        (("expert_down", 0, down, 1), r"expert_down \(layer 0\): this layer has no experts"),
        (("down", 1, down), r"down \(layer 1\): this layer has experts"),
        (("expert_down", 3, down, 0), "layer 3 of 3"),
        (("shared_down", 1, down), "this model has no shared expert"),
        (("expert_gate_up", 1, down, 0), "expected 2 tensors, got 1"),
    ]:
        with pytest.raises(LLMAccelError, match=message):
            model.set(*args)
    with pytest.raises(LLMAccelError, match="missing"):
        model.finish()


def test_layers_that_predict_further_tokens_are_left_alone(tmp_path, caplog):
    """The checkpoint's last layer is no layer of the model."""
    folder = tiny.make_checkpoint("glm4_moe", tmp_path)
    ids = list(range(20))
    with LLM(str(folder), dtype="float32") as llm:
        want = np.asarray(llm.logits(ids)).tobytes()
    raw = json.loads((folder / "config.json").read_text())
    arrays = tiny.arrays_of(raw, seed=0)
    for name, values in list(arrays.items()):
        if name.startswith("model.layers.2."):
            arrays[name.replace(".2.", ".3.", 1)] = values
    raw["num_nextn_predict_layers"] = 1
    with LLM.from_arrays(raw, arrays, dtype="float32") as llm:
        assert np.asarray(llm.logits(ids)).tobytes() == want
    assert "not used" not in caplog.text


@pytest.mark.torch
def test_sinks_count_once_whatever_the_chunks(tmp_path):
    """Several chunks of 256 tokens, as one prompt, in pieces, and token by token."""
    folder = tiny.make_checkpoint("gpt_oss", tmp_path, max_position_embeddings=700)
    ids = np.random.default_rng(4).integers(3, 301, 560).tolist()
    seen = set()
    for budget in (560, 61, 1):
        with LLM(str(folder), dtype="float32", max_num_batched_tokens=budget) as llm:
            logits = np.asarray(llm.logits(ids))
        seen.add(logits.tobytes())
    assert len(seen) == 1
    assert np.abs(logits - tiny.hf_logits(folder, ids)).max() <= 3e-4


# ---- counters ------------------------------------------------------------------------------------


def test_expert_load_counts_every_token(tmp_path):
    folder = tiny.make_checkpoint("qwen3_moe", tmp_path)
    config = build_config(load_hf_config(folder))
    with LLM(str(folder), dtype="float32", max_num_batched_tokens=16) as llm:
        assert llm.expert_load().shape == (config.n_layers, config.n_experts)
        assert (llm.expert_load() == 0).all()
        ids = prompts(1)[0]["prompt_token_ids"]
        llm.logits(ids)
        load = llm.expert_load()
        llm.logits(ids[:3])  # few rows take another way
        more = llm.expert_load() - load
    for layer, desc in enumerate(config.layers):
        assert load[layer].sum() == (len(ids) * config.n_experts_used if desc.moe else 0)
        assert more[layer].sum() == (3 * config.n_experts_used if desc.moe else 0)
    want = expected_load(config, tiny.arrays_of(tiny.config_of("qwen3_moe")), ids)
    assert np.abs(load - want).sum() <= 2  # one choice may be as good as another


def test_experts_of_the_last_layer_get_what_is_wanted(tmp_path):
    folder = tiny.make_checkpoint("qwen2_moe", tmp_path)  # a dense layer between two
    config = build_config(load_hf_config(folder))
    assert [desc.moe for desc in config.layers] == [True, False, True]
    ids, loads = prompts(1)[0]["prompt_token_ids"], []
    with LLM(str(folder), dtype="float32", max_num_batched_tokens=16) as llm:
        llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=2, ignore_eos=True))
        loads.append(llm.expert_load())
        llm.hidden_states(ids)
        loads.append(llm.expert_load() - loads[0])
    fed = [(len(ids) + 1, 2), (len(ids), len(ids))]
    for load, (first, last) in zip(loads, fed, strict=True):
        assert load[0].sum() == first * config.n_experts_used
        assert load[2].sum() == last * config.n_experts_used


def expected_load(config, arrays, ids) -> np.ndarray:
    """From the reference's own routing."""
    weights = reference.load_weights(config, arrays_checkpoint(arrays))
    load, route = [], reference.route

    def counted(logits, *rest):
        experts, shares = route(logits, *rest)
        load.append(np.bincount(experts.reshape(-1), minlength=config.n_experts))
        return experts, shares

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "route", counted)
        reference.forward(config, weights, ids)
    layers = iter(load)
    return np.stack([next(layers) if desc.moe else np.zeros(config.n_experts, int)
                     for desc in config.layers])  # fmt: skip


def test_a_dense_model_has_no_load(tmp_path):
    with LLM(str(tiny.make_checkpoint("llama", tmp_path)), dtype="float32") as llm:
        assert llm.expert_load().shape == (3, 0)


def test_a_token_reads_its_own_experts(tmp_path):
    """Bytes of a decoded token: of experts those that it uses."""
    folder = tiny.make_checkpoint("mixtral", tmp_path)
    with LLM(str(folder), dtype="float32") as llm:
        memory = llm.report()["memory"]
        config = llm._config
        assert llm.engine._model.read(0, 0.0) > 0
    parts = [("expert_gate_up", [("F32", 100, 96)] * 2, 1), ("expert_down", [("F32", 96, 100)], 1)]
    recipe = {"floats": "F32", "body": "keep", "head": "keep", "embed": "keep", "wide": []}
    expert = _core.weight_bytes(vars(config), recipe, parts)
    idle = config.n_layers * (config.n_experts - config.n_experts_used) * expert
    dense = dataclasses.replace(config, slots=("embed",))
    embed = _core.weight_bytes(vars(dense), recipe, [("embed", [("F32", 301, 96)], 1)])
    norms = (2 * config.n_layers + 1) * 96 * 4
    assert memory["token_bytes"] == memory["weight_bytes"] - idle - embed - norms


@pytest.mark.parametrize(
    "name",
    ["MambaForCausalLM", "Mamba2ForCausalLM", "JambaForCausalLM", "BambaForCausalLM",
     "FalconH1ForCausalLM", "Qwen3NextForCausalLM", "GraniteMoeHybridForCausalLM",
     "NemotronHForCausalLM", "Zamba2ForCausalLM", "RwkvForCausalLM"],
)  # fmt: skip
def test_state_space_and_hybrid_models_are_refused_by_name(name):
    with pytest.raises(UnsupportedError, match=f"{name}: layers with a state"):
        build_config({"architectures": [name]})


@pytest.mark.torch
def test_llama4_without_its_eyes(tmp_path, caplog):
    """The published class sees as well: its text model is loaded, the rest is left and counted."""
    import torch
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = tiny.config_of("llama4")
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
              "intermediate_size": 32, "vision_output_dim": 32, "projector_input_dim": 32,
              "projector_output_dim": 32, "patch_size": 14}  # fmt: skip
    torch.manual_seed(3)
    config = Llama4Config(text_config=text, vision_config=vision)
    config._attn_implementation = "eager"
    model = Llama4ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.language_model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.1)
            assert name
        model.save_pretrained(tmp_path)
        ids = list(range(3, 40))
        want = model(torch.tensor([ids])).logits[0].numpy()
    with LLM(str(tmp_path)) as llm:
        np.testing.assert_allclose(np.asarray(llm.logits(ids)), want, atol=3e-4)
        report = llm.report()["model"]
    assert report["architecture"] == "Llama4ForConditionalGeneration"
    others = [n for n in model.state_dict() if not n.startswith("language_model.")]
    assert report["vision_tensors"] == len(others) > 5
    assert "not used" not in caplog.text
