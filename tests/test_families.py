"""The family table: each row against transformers through the NumPy specification, and against bad
files.

Here the C core computes nothing: reference.py runs on what build_config and iter_slots give. The
same rows run through the core in test_models.py.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import reference
import tiny
import tiny_gguf

from llmaccel.config import load_hf_config
from llmaccel.errors import ConfigError, LLMAccelError, LoadError, UnsupportedError
from llmaccel.loading import arrays_checkpoint
from llmaccel.models.checkpoint import Checkpoint, RawTensor
from llmaccel.models.families import FAMILIES
from llmaccel.models.gguf import open_gguf
from llmaccel.models.mapping import (
    build_config,
    iter_slots,
    later_tensors,
    slot_forms,
    tensor_specs,
    unused_tensors,
)
from llmaccel.models.safetensors import open_safetensors
from llmaccel.models.slots import MODEL_SLOTS, slot_shapes

IDS = np.random.default_rng(3).integers(0, 301, 40).tolist()
TOLERANCE = 2e-4


def logits(config, checkpoint, ids=IDS) -> np.ndarray:
    return reference.forward(config, reference.load_weights(config, checkpoint), ids)


def arrays(family: str, **overrides):
    """(config dict, tensors) of a variant, without files."""
    raw = tiny.config_of(family, **overrides)
    return raw, tiny.arrays_of(raw, seed=1)


# ---- against transformers ------------------------------------------------------------------------


def check_against_transformers(folder, max_model_len=None):
    config = build_config(load_hf_config(folder), max_model_len=max_model_len)
    ours = logits(config, open_safetensors(folder))
    theirs = tiny.hf_logits(folder, IDS)
    assert ours.shape == theirs.shape == (len(IDS), config.n_vocab)
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.torch
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_equal_transformers(family, tmp_path):
    check_against_transformers(tiny.make_checkpoint(family, tmp_path))


def test_every_row_has_a_tiny_checkpoint():
    assert {name.partition("-")[0] for name in tiny.FAMILIES} == {f.name for f in FAMILIES}


NEUTRAL = {
    "attn_softcap": 0.0, "logit_softcap": 0.0, "logit_scale": 1.0, "embed_scale": 1.0,
    "residual_scale": 1.0, "parallel": False, "qk_norm": "none", "rope_scale": [1.0, 1.0],
    "route_score": "softmax", "route_norm": False, "route_scale": 1.0, "route_groups": 1,
    "route_input": False, "shared_gate": False, "attn_grow": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_feature_of_a_row_is_felt(family):
    """Without any one feature the logits leave the tolerance: the comparisons above can fail."""
    raw, tensors = arrays(family)
    config = build_config(raw)
    weights = reference.load_weights(config, arrays_checkpoint(tensors))
    expected = reference.forward(config, weights, IDS)

    def moves(changed, w=weights) -> bool:
        return np.abs(reference.forward(changed, w, IDS) - expected).max() > 10 * TOLERANCE

    for name, off in NEUTRAL.items():
        if getattr(config, name) not in (off, [1.0], []):
            assert moves(dataclasses.replace(config, **{name: off})), name
    assert moves(dataclasses.replace(config, attn_scale=1.1 * config.attn_scale))
    assert moves(dataclasses.replace(config, norm_eps=config.norm_eps + 0.1))
    if any(layer.window for layer in config.layers):
        layers = [layer._replace(window=0) for layer in config.layers]
        assert moves(dataclasses.replace(config, layers=layers))
    for table in range(len(config.rope_inv_freq)):
        layers = [v._replace(rope=-1 if v.rope == table else v.rope) for v in config.layers]
        assert moves(dataclasses.replace(config, layers=layers)), table
    rng = np.random.default_rng(9)
    for slot in config.slots:
        layer = next(i for i in range(config.n_layers) if (slot, i) in weights)
        for part, values in enumerate(weights[slot, layer]):
            if slot == "qkv_bias" and part == 1 and not config.d_rope:
                continue  # unrotated, it adds the same to all scores of a query
            other = list(weights[slot, layer])
            other[part] = values * rng.uniform(0.5, 1.5, values.shape)
            assert moves(config, {**weights, (slot, layer): other}), (slot, part)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"hidden_act": "gelu", "rms_norm_eps": 0.1}),
        ("qwen3", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 3,
                   "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
        ("gemma2", {"attention_bias": True, "query_pre_attn_scalar": 144,
                    "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("gemma3", {"attention_bias": True, "final_logit_softcapping": 4.0}),
        ("olmo2", {"attention_bias": True}),
        ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("gpt2", {"tie_word_embeddings": False, "scale_attn_weights": False, "n_inner": None}),
        ("gpt_neox", {"attention_bias": False, "hidden_act": "relu", "tie_word_embeddings": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False}),
        ("phi3-longrope", {"original_max_position_embeddings": 20}),
        ("phi3-longrope", {"original_max_position_embeddings": 20, "rope_scaling": {
            "type": "su", "original_max_position_embeddings": 20,
            "short_factor": [1.0] * 6, "long_factor": [2.0, 3, 4, 5, 6, 7]}}),
        ("llama-yarn", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("mixtral", {"sliding_window": None, "num_experts_per_tok": 1}),
        ("qwen2_moe", {"norm_topk_prob": True, "qkv_bias": False, "use_sliding_window": False,
                       "mlp_only_layers": None}),
        ("qwen3_moe", {"norm_topk_prob": False, "attention_bias": True, "mlp_only_layers": [0],
                       "decoder_sparse_step": 1, "use_sliding_window": True, "sliding_window": 3}),
        ("olmoe", {"norm_topk_prob": True, "attention_bias": True}),
        ("granitemoeshared", {"attention_bias": True, "shared_intermediate_size": 0}),
        ("llama4", {"use_qk_norm": False, "attn_temperature_tuning": False,
                    "num_experts_per_tok": 2, "attention_bias": True, "moe_layers": [0, 3],
                    "no_rope_layers": [0, 1, 1, 0]}),
        ("gpt_oss", {"attention_bias": False, "layer_types": ["full_attention"] * 3}),
        ("deepseek_v2-experts", {"topk_method": "greedy", "q_lora_rank": None,
                                 "first_k_dense_replace": 0}),
        ("deepseek_v3-experts", {"norm_topk_prob": False, "attention_bias": True,
                                 "q_lora_rank": 44, "n_shared_experts": 1}),
        ("glm4_moe", {"attention_bias": False, "use_qk_norm": False, "n_group": 1, "topk_group": 1,
                      "norm_topk_prob": False, "first_k_dense_replace": 0}),
    ],
)  # fmt: skip
def test_switches_equal_transformers(family, overrides, tmp_path):
    check_against_transformers(tiny.make_checkpoint(family, tmp_path, **overrides))


@pytest.mark.torch
def test_dynamic_rope_beyond_the_trained_length(tmp_path, caplog):
    folder = tiny.make_checkpoint("llama-dynamic", tmp_path, max_position_embeddings=32)
    check_against_transformers(folder, max_model_len=len(IDS))
    assert not caplog.records  # twice as long is what its factor says
    short = build_config(load_hf_config(folder))
    long = build_config(load_hf_config(folder), max_model_len=len(IDS))
    assert not np.array_equal(short.rope_inv_freq[0], long.rope_inv_freq[0])


ROPES = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.7},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0},
    {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
     "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0,
     "original_max_position_embeddings": 4096,
     "mscale": 1.0, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0,
     "original_max_position_embeddings": 4096,
     "attention_factor": 0.9, "truncate": False, "beta_fast": 20.0, "beta_slow": 3.0},
    {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1 + i / 64 for i in range(64)],
     "long_factor": [2 + i / 8 for i in range(64)], "original_max_position_embeddings": 4096},
]  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("length", [4096, 131072, 200000])
@pytest.mark.parametrize("params", ROPES, ids=lambda p: p["rope_type"])
def test_frequencies_equal_transformers(params, length):
    """The tables themselves: within two units in the last place."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 131072}
    config = LlamaConfig(**sizes, rope_parameters=copy.deepcopy(params))
    if params["rope_type"] == "default":
        theirs, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        fill = ROPE_INIT_FUNCTIONS[params["rope_type"]]
        theirs, scale = fill(config, torch.device("cpu"), seq_len=length)
    raw = {"architectures": ["LlamaForCausalLM"], **sizes, "rope_parameters": params}
    if length > 131072 and params["rope_type"] not in ("linear", "dynamic"):
        if params.get("factor") != 40.0:  # of 4096 positions
            with pytest.raises(ConfigError, match="max_model_len=200000"):
                build_config(raw, max_model_len=length)
        return
    ours = build_config(raw, max_model_len=length)
    assert ours.rope_inv_freq[0].dtype == np.float32
    np.testing.assert_allclose(ours.rope_inv_freq[0], theirs.numpy(), rtol=2.4e-7)
    assert ours.rope_scale[0] == np.float32(scale)


@pytest.mark.torch
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_spellings_give_one_config(family, tmp_path):
    """A config as transformers 4 spells it, and as transformers 5 saves the same one."""
    from transformers import AutoConfig

    folder = tiny.make_checkpoint(family, tmp_path / "four")
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "five")
    four, five = load_hf_config(folder), load_hf_config(tmp_path / "five")
    assert four.keys() != five.keys()
    assert not tiny.differing(build_config(four), build_config({**four, **five}))
    five["architectures"] = four["architectures"]
    assert not tiny.differing(build_config(four), build_config(five))


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_missing_keys_take_class_defaults(family):
    """An empty config is what the config class of transformers makes of no arguments."""
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family.model_types[0]).to_dict()
    bare = {"architectures": list(family.architectures)}
    if family.name in ("qwen2", "qwen3"):
        theirs["use_sliding_window"] = bare["use_sliding_window"] = False
    if family.name == "deepseek_v2":  # the class leaves it open
        theirs["num_experts_per_tok"] = bare["num_experts_per_tok"] = 6
    if family.name == "glm4_moe":  # the class's own sizes do not divide
        theirs["head_dim"] = bare["head_dim"] = 128
    if family.name == "llama4":  # beyond a chunk's length only by the caller's leave
        theirs["attention_chunk_size"] = bare["attention_chunk_size"] = None
    assert not tiny.differing(build_config(bare), build_config({**theirs, **bare}), "eos_token_ids")
    assert build_config(bare).eos_token_ids == build_config({**theirs, **bare}).eos_token_ids


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_slots_have_the_announced_shapes(family):
    raw, weights = arrays(family)
    config = build_config(raw)
    assert dict(tensor_specs(config)) == {name: a.shape for name, a in weights.items()}
    seen = set()
    for slot, layer, _, parts in iter_slots(config, arrays_checkpoint(weights)):
        assert [part.shape for part in parts] == slot_shapes(config, slot)
        for part in parts:
            assert part.data.dtype == np.uint8
            assert part.data.nbytes == 4 * math.prod(part.shape)
        seen.add((slot, layer))
    moe = {i for i, layer in enumerate(config.layers) if layer.moe}
    dense = set(range(config.n_layers)) - moe
    for slot in config.slots:
        layers = {0} if slot in MODEL_SLOTS else moe | dense
        if slot.startswith(("router", "shared", "expert")):
            layers = moe
        if slot.startswith(("gate_up", "down")):
            layers = dense
        assert {layer for s, layer in seen if s == slot} == layers, slot
    assert {slot for slot, _ in seen} == set(config.slots)


def test_arrays_and_files_are_the_same_model(tmp_path):
    folder = tiny.make_checkpoint("phi3", tmp_path, seed=1)
    raw, weights = arrays("phi3")
    config = build_config(raw)
    assert np.array_equal(logits(config, arrays_checkpoint(weights)),
                          logits(config, open_safetensors(folder)))  # fmt: skip


def test_slices_are_views():
    raw, weights = arrays("phi3")
    checkpoint = arrays_checkpoint(weights)
    for slot, _, _, parts in iter_slots(build_config(raw), checkpoint):
        for part in parts:
            assert np.shares_memory(part.data, weights[part.name]), slot


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_moved_layouts_keep_half_precision(family):
    """Transposed and interleaved tensors come out in the dtype that they are stored in."""
    raw, weights = arrays(family)
    half = {name: a.astype(np.float16) for name, a in weights.items()}
    config = build_config(raw)
    for slot, _, _, parts in iter_slots(config, arrays_checkpoint(half)):
        assert {part.dtype for part in parts} == {"F16"}, slot
    wide = {name: a.astype(np.float32) for name, a in half.items()}
    assert np.array_equal(logits(config, arrays_checkpoint(half)),
                          logits(config, arrays_checkpoint(wide)))  # fmt: skip


def test_a_bfloat16_matrix_is_turned():
    raw, weights = arrays("gpt2")
    checkpoint = arrays_checkpoint(weights)
    tensors = {name: checkpoint[name] for name in checkpoint.names()}
    name = "transformer.h.0.mlp.c_fc.weight"
    bits = (weights[name].view(np.uint32) >> 16).astype(np.uint16)
    tensors[name] = RawTensor(name, "BF16", bits.shape, bits.reshape(-1).view(np.uint8))
    mixed = Checkpoint(checkpoint.path, tensors)
    for slot, layer, _, parts in iter_slots(build_config(raw), mixed):
        if (slot, layer) == ("gate_up", 0):
            assert np.array_equal(parts[0].numpy(), bits.T)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_names_without_the_prefix(family):
    raw, weights = arrays(family)
    config = build_config(raw)
    prefix = next(f.prefix for f in FAMILIES if f.name == family)
    bare = {name.removeprefix(prefix): a for name, a in weights.items()}
    assert bare.keys() != weights.keys()
    assert np.array_equal(logits(config, arrays_checkpoint(bare)),
                          logits(config, arrays_checkpoint(weights)))  # fmt: skip


def test_both_names_of_the_neox_head():
    raw, weights = arrays("gpt_neox")
    config = build_config(raw)
    renamed = {name.replace("embed_out", "lm_head"): a for name, a in weights.items()}
    assert renamed.keys() != weights.keys()
    assert np.array_equal(logits(config, arrays_checkpoint(renamed)),
                          logits(config, arrays_checkpoint(weights)))  # fmt: skip
    del renamed["lm_head.weight"]
    with pytest.raises(LoadError, match=r"'embed_out.weight' is missing"):
        list(iter_slots(config, arrays_checkpoint(renamed)))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_tensor_is_needed_and_checked(family):
    raw, weights = arrays(family)
    config = build_config(raw)
    for name in weights:
        less = {k: a for k, a in weights.items() if k != name}
        with pytest.raises(LoadError, match=f"tensor '{name}' is missing"):
            list(iter_slots(config, arrays_checkpoint(less)))
        wrong = {**weights, name: weights[name][:-1]}
        with pytest.raises(LoadError) as caught:
            list(iter_slots(config, arrays_checkpoint(wrong)))
        shape, cut = list(weights[name].shape), list(wrong[name].shape)
        assert str(caught.value) == f"{name}: expected {shape}, got {cut}"


def test_unused_tensors_are_named(caplog):
    raw, weights = arrays("llama-llama3")
    config = build_config(raw)
    extra = np.ones(4, np.float32)
    useless = {
        "lm_head.weight": weights["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": extra,
        "model.mtp.0.weight": extra,
    }
    with caplog.at_level(logging.WARNING, logger="llmaccel"):
        list(iter_slots(config, arrays_checkpoint({**weights, **useless})))
        assert not caplog.records
        more = {**weights, "model.layers.0.self_attn.q_proj.bias": extra, "other": extra}
        list(iter_slots(config, arrays_checkpoint(more)))
    assert "2 tensors of the checkpoint are not used: 'model.layers.0" in caplog.text
    assert unused_tensors(config, arrays_checkpoint(more)) == [
        "model.layers.0.self_attn.q_proj.bias", "other"]  # fmt: skip
    raw, weights = arrays("gpt2")
    mask = {f"transformer.h.{i}.attn.{n}": extra for i in range(3) for n in ("bias", "masked_bias")}
    assert not unused_tensors(build_config(raw), arrays_checkpoint({**weights, **mask}))


def test_mtp_tensors_are_kept_for_later(caplog):
    """Layers behind the last predict further tokens: known, and left in the file."""
    raw, weights = arrays("deepseek_v3")
    config = build_config({**raw, "num_nextn_predict_layers": 1})
    names = ("eh_proj", "enorm", "hnorm", "shared_head.norm", "shared_head.head", "embed_tokens",
             "self_attn.o_proj", "mlp.experts.0.up_proj")  # fmt: skip
    mtp = {f"model.layers.3.{name}.weight": np.ones(4, np.float32) for name in names}
    with caplog.at_level(logging.WARNING, logger="llmaccel"):
        list(iter_slots(config, arrays_checkpoint({**weights, **mtp})))
    assert not caplog.records
    assert later_tensors(config, arrays_checkpoint({**weights, **mtp})) == list(mtp)
    raw, weights = arrays("llama")
    assert set(mtp) == set(unused_tensors(build_config(raw), arrays_checkpoint({**weights, **mtp})))


def test_dtypes_of_weights():
    raw, weights = arrays("llama")
    config = build_config(raw)
    name = "model.layers.1.mlp.down_proj.weight"
    wide = {**weights, name: weights[name].astype(np.float64)}
    assert np.array_equal(logits(config, arrays_checkpoint(wide)),
                          logits(config, arrays_checkpoint(weights)))  # fmt: skip
    checkpoint = arrays_checkpoint(weights)
    tensors = {key: checkpoint[key] for key in checkpoint.names()}
    shape = weights[name].shape
    tensors[name] = RawTensor(name, "I8", shape, np.zeros(math.prod(shape), np.uint8))
    with pytest.raises(UnsupportedError, match=f"{name}: weights of type I8"):
        list(iter_slots(config, Checkpoint(checkpoint.path, tensors)))
    for bad in ({"a": [1.0]}, {3: np.ones(2, np.float32)}, {"a": np.ones((2, 3)).T},
                {"a": np.ones(2, ">f4")}, [1]):  # fmt: skip
        with pytest.raises(ConfigError, match="from_arrays"):
            arrays_checkpoint(bad)


# ---- GGUF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.GGUF_FAMILIES)
def test_gguf_is_the_same_model(family, tmp_path):
    folder = tiny.make_checkpoint(family, tmp_path / "hf")
    ours = build_config(load_hf_config(folder))
    file = open_gguf(tiny_gguf.make_gguf(family, folder, tmp_path / "model.gguf"))
    config = build_config(file.metadata, gguf=True, tensors=file)
    different = ["gguf"]
    if family.partition("-")[0] in tiny_gguf.PAIRED:
        different.append("rope_interleaved")  # their q and k rows are permuted for pairs
    if family == "llama-llama3":  # the file holds rounded factors
        np.testing.assert_allclose(config.rope_inv_freq[0], ours.rope_inv_freq[0], rtol=3e-7)
        assert not tiny.differing(ours, config, *different, "rope_inv_freq")
    else:
        assert not tiny.differing(ours, config, *different)
    assert all(getattr(ours, n) != getattr(config, n) for n in different)
    assert not unused_tensors(config, file)
    got, expected = logits(config, file), logits(ours, open_safetensors(folder))
    assert np.abs(got - expected).max() <= (1e-4 if family == "llama-llama3" else 1e-9)


@pytest.mark.parametrize("quant", [None, "Q8_0"])
def test_gguf_latents_before_and_since_absorption(quant, tmp_path):
    """kv_b whole, of which the key half is turned, or both halves as they are wanted: one model."""
    sizes = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
    folder = tiny.make_checkpoint("deepseek_v3", tmp_path / "hf", **sizes)
    files, configs = [], []
    for layout in ("whole", "split"):
        path = tmp_path / f"{layout}.gguf"
        tiny_gguf.make_gguf("deepseek_v3", folder, path, quant, layout=layout)
        files.append(open_gguf(path))
        configs.append(build_config(files[-1].metadata, gguf=True, tensors=files[-1]))
    assert not tiny.differing(*configs)
    forms = {slot: {p[0] for p in parts} for slot, parts, _ in slot_forms(configs[0], files[0])}
    assert forms["mla_uk"] == forms["mla_uv"] == {"F32"}
    exact = logits(build_config(load_hf_config(folder)), open_safetensors(folder))
    for config, file in zip(configs, files, strict=True):
        for slot, layer, _, parts in iter_slots(config, file):
            assert [part.shape for part in parts] == slot_shapes(config, slot), (slot, layer)
        off = np.abs(logits(config, file) - exact).mean()
        assert off <= 1e-9 if quant is None else 0 < off < 0.2


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
def test_gguf_blocks_are_sliced_without_a_copy(family, tmp_path):
    folder = tiny.make_checkpoint(family, tmp_path / "hf")
    file = open_gguf(tiny_gguf.make_gguf(family, folder, tmp_path / "model.gguf", quant="Q8_0"))
    config = build_config(file.metadata, gguf=True, tensors=file)
    kinds = {}
    for slot, layer, _, parts in iter_slots(config, file):
        assert [part.shape for part in parts] == slot_shapes(config, slot)
        assert all(np.shares_memory(part.data, file[part.name].data) for part in parts)
        kinds[slot, layer] = {part.dtype for part in parts}
    assert kinds["qkv", 0] == {"Q8_0"}
    assert kinds["expert_down" if family == "mixtral" else "down", 0] == {"F32"}  # rows of 100
    exact = logits(build_config(load_hf_config(folder)), open_safetensors(folder))
    # The logits' deviation is 1.5; a row out of place is felt at once.
    assert 0 < np.abs(logits(config, file) - exact).mean() < 0.1


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """(metadata, tensors) of a llama and a gemma3 GGUF file."""
    files = {}
    for family in (
        *("llama", "gemma2", "gemma3", "gpt_neox", "phi3-longrope", "glm4_moe", "deepseek_v2"),
    ):
        path = tmp_path_factory.mktemp("gguf")
        folder = tiny.make_checkpoint(family, path / "hf")
        files[family] = open_gguf(tiny_gguf.make_gguf(family, folder, path / "model.gguf"))
    return files


def from_gguf(file, **changes):
    """The config of a file with some metadata replaced; None removes a key."""
    arch = file.metadata["general.architecture"]
    metadata = dict(file.metadata)
    for suffix, value in changes.items():
        key = suffix if suffix.startswith(("general.", "tokenizer.")) else f"{arch}.{suffix}"
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value
    return build_config(metadata, gguf=True, tensors=file)


def test_gguf_metadata_forms(gguf_file):
    llama, gemma3 = gguf_file["llama"], gguf_file["gemma3"]
    plain = from_gguf(llama)
    per_layer = np.array([100, 100, 100], np.uint32)
    assert not tiny.differing(plain, from_gguf(llama, feed_forward_length=per_layer))
    with pytest.raises(UnsupportedError, match=r"llama.feed_forward_length differs between layers"):
        from_gguf(llama, feed_forward_length=np.array([100, 100, 99]))
    stops = from_gguf(llama, **{"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 8})
    assert stops.eos_token_ids == [2, 9, 8]
    linear = from_gguf(llama, **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert np.array_equal(linear.rope_inv_freq[0], plain.rope_inv_freq[0] / 4)
    assert not tiny.differing(linear, from_gguf(llama, **{"rope.scaling.factor": 4.0}))
    assert not tiny.differing(linear, from_gguf(llama, **{"rope.scale_linear": 4.0}))
    assert not tiny.differing(plain, from_gguf(llama, **{"rope.scaling.type": "none"}))
    assert not tiny.differing(plain, from_gguf(llama, **{"attention.causal": True}))
    assert not tiny.differing(plain, from_gguf(llama, **{"rope.dimension_count_swa": 20}))
    pattern = np.array([True, True, False, True])
    assert not tiny.differing(
        from_gguf(gemma3), from_gguf(gemma3, **{"attention.sliding_window_pattern": pattern})
    )
    assert from_gguf(gguf_file["llama"], **{"attention.sliding_window": 9}).family == "mistral"
    predicts = from_gguf(gguf_file["glm4_moe"], nextn_predict_layers=1)
    assert (predicts.n_layers, predicts.raw["num_nextn_predict_layers"]) == (2, 1)
    assert not unused_tensors(predicts, gguf_file["glm4_moe"])


def test_gguf_gemma_query_scale(gguf_file):
    """Files do not say it: the 27B shapes use hidden size over heads."""
    for family, layers in (("gemma2", 46), ("gemma3", 62)):
        assert from_gguf(gguf_file[family]).attn_scale == np.float32(20**-0.5)
        wide = from_gguf(gguf_file[family], **{
            "block_count": layers, "embedding_length": 5376, "attention.head_count": 32,
            "attention.head_count_kv": 16})  # fmt: skip
        assert wide.attn_scale == np.float32(168**-0.5)
        said = from_gguf(gguf_file[family], **{"attention.scale": 0.125})
        assert said.attn_scale == 0.125


@pytest.mark.parametrize(
    ("family", "change", "error", "message"),
    [
        ("llama", {"general.architecture": "mamba"}, UnsupportedError, "'mamba'.*known: llama"),
        ("llama", {"general.architecture": 3}, UnsupportedError, "known: llama"),
        ("llama", {"block_count": None}, ConfigError, "llama.block_count is missing"),
        ("llama", {"block_count": "3"}, ConfigError, "llama.block_count must be an integer"),
        ("llama", {"embedding_length": 2**31}, ConfigError, "llama.embedding_length"),
        ("llama", {"attention.head_count": 0}, ConfigError, "llama.attention.head_count must"),
        ("llama", {"attention.head_count": [6, 6, 5]}, UnsupportedError, "differs between layers"),
        ("llama", {"attention.layer_norm_rms_epsilon": None}, ConfigError, "rms_epsilon"),
        ("llama", {"attention.layer_norm_rms_epsilon": math.nan}, ConfigError, "rms_epsilon"),
        ("llama", {"attention.value_length": 16}, UnsupportedError, "value_length"),
        ("llama", {"attention.key_length": 0, "attention.value_length": 0}, ConfigError, "key_le"),
        ("llama", {"attention.causal": False}, UnsupportedError, "llama.attention.causal"),
        ("llama", {"rope.dimension_count_swa": 10}, UnsupportedError, "dimension_count_swa"),
        ("llama", {"rope.dimension_count": 10}, UnsupportedError, "rope.dimension_count"),
        ("llama", {"rope.dimension_count": 22}, ConfigError, "rope.dimension_count"),
        ("llama", {"rope.freq_base": -1.0}, ConfigError, "llama.rope.freq_base"),
        ("llama", {"rope.scaling.type": "mystery"}, UnsupportedError, "mystery"),
        ("llama", {"rope.scaling.factor": math.inf}, ConfigError, "llama.rope.scaling.factor"),
        ("phi3-longrope", {"expert_count": 8}, UnsupportedError, "phi3.expert_count"),
        ("glm4_moe", {"expert_count": 0}, ConfigError, "glm4moe.expert_count must be in 1"),
        ("glm4_moe", {"expert_used_count": 13}, ConfigError, "expert_used_count must be in 1..12"),
        ("glm4_moe", {"expert_gating_func": 1}, UnsupportedError, "glm4moe.expert_gating_func"),
        ("glm4_moe", {"expert_group_count": 5}, ConfigError, "expert_group_count 5, of which 2"),
        ("glm4_moe", {"nextn_predict_layers": 3}, ConfigError, "nextn_predict_layers must"),
        ("deepseek_v2", {"attention.key_length_mla": 12}, ConfigError, "key_length_mla must be"),
        ("deepseek_v2", {"attention.value_length_mla": 0}, ConfigError, "value_length_mla must be"),
        ("deepseek_v2", {"rope.dimension_count": None}, ConfigError, "rope.dimension_count must"),
        ("deepseek_v2", {"attention.kv_lora_rank": 34}, UnsupportedError, "no multiple of 4"),
        ("deepseek_v2", {"rope.scaling.yarn_log_multiplier": -1.0}, ConfigError, "log_multiplier"),
        ("llama", {"attention.key_length_mla": 20}, UnsupportedError, "key_length_mla"),
        ("llama", {"attention.clamp_kqv": 8.0}, UnsupportedError, "llama.attention.clamp_kqv"),
        ("gpt_neox", {"use_parallel_residual": 3}, ConfigError, "gptneox.use_parallel_residual"),
        ("phi3-longrope", {"context_length": "x"}, ConfigError, "phi3.context_length"),
    ],
)  # fmt: skip
def test_bad_gguf_metadata(gguf_file, family, change, error, message):
    with pytest.raises(error, match=message):
        from_gguf(gguf_file[family], **change)


def test_any_gguf_junk_is_one_of_our_errors(gguf_file):
    junk = (*tiny.JUNK, np.array([]), np.array([1.5, 2.0]), np.array([[1]]), np.float32(3))
    refused = 0
    for file in gguf_file.values():
        for key in file.metadata:
            for value in junk:
                try:
                    build_config({**file.metadata, key: value}, gguf=True, tensors=file)
                except LLMAccelError:
                    refused += 1
    assert refused > 500
    with pytest.raises(ConfigError, match="needs its tensors"):
        build_config(gguf_file["llama"].metadata, gguf=True)


def test_gguf_rope_tensors_are_checked(gguf_file):
    file = gguf_file["phi3-longrope"]
    name = "rope_factors_short.weight"
    for shape in ((5,), (6, 1), (0,), None):
        tensors = {n: file[n] for n in file.names() if n != name}
        if shape is not None:
            data = np.ones(math.prod(shape), np.float32).view(np.uint8)
            tensors[name] = RawTensor(name, "F32", shape, data)
        with pytest.raises((LoadError, ConfigError), match=r"short_factor|factors_short"):
            build_config(file.metadata, gguf=True, tensors=Checkpoint(file.path, tensors))
    bare = Checkpoint(file.path, {n: file[n] for n in file.names() if n != "token_embd.weight"})
    with pytest.raises(LoadError, match=r"token_embd.weight"):
        build_config(file.metadata, gguf=True, tensors=bare)


# ---- real files ----------------------------------------------------------------------------------

REAL = {
    "Qwen--Qwen3-0.6B": ("qwen3", 28, 1024, 16, 8, 128),
    "Qwen--Qwen3-8B": ("qwen3", 36, 4096, 32, 8, 128),
    "Qwen--Qwen3-32B": ("qwen3", 64, 5120, 64, 8, 128),
    "meta-llama--Meta-Llama-3.1-8B": ("llama", 32, 4096, 32, 8, 128),
    "meta-llama--Meta-Llama-3.1-70B": ("llama", 80, 8192, 64, 8, 128),
    "meta-llama--Meta-Llama-3.1-405B": ("llama", 126, 16384, 128, 8, 128),
    "nvidia--Llama-3.1-70B-Instruct-FP8": ("llama", 80, 8192, 64, 8, 128),
    "llama-3-8b": ("llama", 32, 4096, 32, 8, 128), "qwen2-7b": ("qwen2", 28, 3584, 28, 4, 128),
    "qwen2-0_5b": ("qwen2", 24, 1024, 16, 16, 64), "ipex_phi3": ("phi3", 1, 3072, 32, 32, 96),
    "Qwen--Qwen3-30B-A3B": ("qwen3_moe", 48, 2048, 32, 4, 128),
    "Qwen--Qwen3-235B-A22B": ("qwen3_moe", 94, 4096, 64, 4, 128),
    "mistralai--Mixtral-8x7B-v0.1": ("mixtral", 32, 4096, 32, 8, 128),
    "ipex_deepseekv2": ("deepseek_v2", 2, 2560, 128, 1, 192),
    "ipex_mistral": ("mistral", 1, 2048, 16, 8, 128),
    "ipex_gptneox": ("gpt_neox", 1, 2048, 16, 16, 128),
}  # fmt: skip


def test_real_configs_map_or_are_refused(shared_data):
    seen = set()
    for path in sorted((shared_data / "configs").glob("*.json")):
        raw = json.loads(path.read_text())
        if path.stem in REAL:
            c = build_config(raw)
            sizes = (c.family, c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.d_head)
            assert sizes == REAL[path.stem], path.name
            seen.add(path.stem)
        else:
            with pytest.raises(UnsupportedError, match="not supported") as caught:
                build_config(raw)
            chunks = raw.get("model_type") == "llama4"  # the class is known, its long attention not
            for name in ("in chunks of 8192",) if chunks else raw.get("architectures", ()):
                assert name in str(caught.value)
    assert seen == REAL.keys()


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """stories260K as a Hugging Face folder, and the folder of its expected outputs."""
    shared = tiny.Path(__file__).resolve().parents[1].parent / "shared"
    if not (shared / "data").is_dir():
        pytest.skip("../shared/data is not there")
    folder = tiny.stories260k_folder(shared, tmp_path_factory.mktemp("stories") / "hf")
    return folder, shared / "data" / "models" / "stories260K"


def test_stories260k_logits(stories):
    folder, golden = stories
    config = build_config(load_hf_config(folder))
    weights = reference.load_weights(config, open_safetensors(folder))
    with np.load(golden / "golden_logits.npz") as expected:
        count = len([name for name in expected if name.startswith("ids_")])
        assert count == 5
        for i in range(count):
            got = reference.forward(config, weights, expected[f"ids_{i}"])
            assert np.abs(got - expected[f"logits_{i}"]).max() <= 1e-4


def test_stories260k_tokenizer(stories):
    from tokenizers import Tokenizer

    folder, golden = stories
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for line in (golden / "golden_prompts.jsonl").read_text().splitlines():
        case = json.loads(line)
        assert tokenizer.encode(case["prompt"]).ids == case["ids"]
        assert tokenizer.decode(case["ids"] + case["greedy_ids"]) == case["greedy_text"]
    text = "h\u00e9llo \u65e5\u672c \U0001f600"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
