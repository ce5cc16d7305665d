"""Configuration files: spellings, class defaults, overrides, and every kind of bad value.

No weights and no transformers here: config dicts go in, a ModelConfig or one of our errors comes
out. That the class defaults are transformers' own is tested in test_families.py.
"""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import tiny

from llmaccel.config import (
    GenerationConfig,
    load_generation_config,
    load_hf_config,
    parse_generation_config,
)
from llmaccel.errors import ConfigError, LLMAccelError, LoadError, UnsupportedError
from llmaccel.models.families import FAMILIES
from llmaccel.models.mapping import build_config

# ---- spellings, defaults, overrides, without transformers ----------------------------------------


def test_rope_spellings():
    base = {"architectures": ["LlamaForCausalLM"]}
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    spelled = [
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}
            }
        },
        {"rope_scaling": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}},
    ]
    configs = [build_config({**base, **s}) for s in spelled]
    assert not np.array_equal(configs[0].rope_inv_freq, build_config(base).rope_inv_freq)
    for config in configs[1:]:
        assert not tiny.differing(configs[0], config)


def test_gemma3_rope_spellings():
    base = {"architectures": ["Gemma3ForCausalLM"]}
    old = build_config({**base, "rope_theta": 2e6, "rope_local_base_freq": 500.0,
                        "rope_scaling": {"rope_type": "linear", "factor": 8.0}})  # fmt: skip
    new = build_config({**base, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}})  # fmt: skip
    assert not tiny.differing(old, new)
    assert old.layers[5][:2] == (0, 0)
    assert old.layers[0][:2] == (4096, 1)
    assert old.rope_inv_freq[0][0] == 0.125
    assert old.rope_inv_freq[1][0] == 1.0


def test_text_config_is_brought_up():
    raw = tiny.config_of("qwen3")
    inner = {k: v for k, v in raw.items() if k != "architectures"}
    nested = {"architectures": raw["architectures"], "model_type": "outer", "vocab_size": 7,
              "text_config": inner}  # fmt: skip
    assert not tiny.differing(build_config(raw), build_config(nested))
    with pytest.raises(ConfigError, match="text_config"):
        build_config({**nested, "text_config": [1]})


def test_model_type_stands_in_for_architectures():
    raw = tiny.config_of("gemma3")
    del raw["architectures"]
    assert build_config(raw).architecture == "Gemma3ForCausalLM"


def test_overrides():
    raw = tiny.config_of("llama-llama3")
    changed = build_config(raw, hf_overrides={"rope_scaling": None, "rms_norm_eps": 0.5})
    assert changed.norm_eps == 0.5
    assert np.array_equal(changed.rope_inv_freq[0],
                          build_config({**raw, "rope_scaling": None}).rope_inv_freq[0])  # fmt: skip
    five = {**raw, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
    del five["rope_scaling"], five["rope_theta"]
    changed = build_config(five, hf_overrides={"rope_theta": 99.0})
    expected = build_config({**five, "rope_parameters": {"rope_theta": 99.0}})
    assert np.array_equal(changed.rope_inv_freq[0], expected.rope_inv_freq[0])
    assert raw == tiny.config_of("llama-llama3")
    for bad in ([1], "x", {3: 4}):
        with pytest.raises(ConfigError, match="hf_overrides"):
            build_config(raw, hf_overrides=bad)
    for name in ("max_positions", "n_embd", "rope_thetas"):
        with pytest.raises(ConfigError, match=f"hf_overrides: '{name}' is no key"):
            build_config(raw, hf_overrides={name: 4})
    with pytest.raises(ConfigError, match=r"'rms_norm_ep' .*; did you mean rms_norm_eps"):
        build_config(raw, hf_overrides={"rms_norm_ep": 0.1})
    odd = {**raw, "my_key": 1}  # in the file, so it may be replaced
    assert not tiny.differing(build_config(odd, hf_overrides={"my_key": 2}), build_config(raw))
    build_config(raw, hf_overrides={"torch_dtype": "float32", "use_cache": False})


def test_overrides_by_a_function():
    raw = tiny.config_of("llama")
    seen = []

    def change(config):
        seen.append((config.hidden_size, config.get_text_config()["hidden_size"]))
        assert getattr(config, "no_such_key", 7) == 7
        config.rms_norm_eps = 0.5
        config.update({"num_hidden_layers": config.num_hidden_layers - 1})

    changed = build_config(raw, hf_overrides=change)
    assert seen == [(raw["hidden_size"],) * 2]
    assert (changed.norm_eps, changed.n_layers) == (0.5, raw["num_hidden_layers"] - 1)
    assert raw == tiny.config_of("llama")
    returned = build_config(raw, hf_overrides=lambda config: {**config, "rms_norm_eps": 0.25})
    assert returned.norm_eps == 0.25
    with pytest.raises(ConfigError, match="'made_up' is no key"):
        build_config(raw, hf_overrides=lambda config: config.update(made_up=1))
    for removes in (
        lambda config: config.pop("head_dim") and None,
        lambda config: {k: v for k, v in config.items() if k != "head_dim"},
    ):
        with pytest.raises(ConfigError, match="takes away 'head_dim'; keys are changed"):
            build_config(raw, hf_overrides=removes)


def test_max_model_len_beyond_the_positions(caplog):
    """Rope scaling says how far it goes; beyond that only an override does."""
    raw = {**tiny.config_of("llama"), "max_position_embeddings": 512}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    for scaling, reach in (
        (None, 512),
        (yarn, 2048),
        ({"rope_type": "linear", "factor": 2.5}, 1280),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
    ):
        overrides = {"rope_scaling": scaling}
        assert build_config(raw, max_model_len=reach, hf_overrides=overrides).max_len == reach
        with pytest.raises(ConfigError, match=f"max_model_len={reach + 1}: .* {reach} positions"):
            build_config(raw, max_model_len=reach + 1, hf_overrides=overrides)
    further = {"max_position_embeddings": 4096}
    assert build_config(raw, max_model_len=4096, hf_overrides=further).max_len == 4096
    assert not caplog.records


def test_aliases_and_their_messages():
    raw = tiny.config_of("gpt2")
    common = {**raw, "hidden_size": raw["n_embd"], "num_hidden_layers": raw["n_layer"]}
    del common["n_embd"], common["n_layer"]
    assert not tiny.differing(build_config(raw), build_config(common))
    with pytest.raises(ConfigError, match="n_layer must be an integer"):
        build_config({**raw, "n_layer": "three"})
    assert build_config(raw, hf_overrides={"n_layer": 2}).n_layers == 2


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float32", math.sqrt(3072)), ("bfloat16", 55.5), ("float16", 55.4375)]
)
def test_gemma_embedding_scale_has_the_weights_precision(dtype, scale):
    for key in ("dtype", "torch_dtype"):
        raw = {"architectures": ["Gemma2ForCausalLM"], "hidden_size": 3072, key: dtype}
        assert build_config(raw).embed_scale == np.float32(scale)


def test_stop_ids():
    base = {"architectures": ["LlamaForCausalLM"], "vocab_size": 100}
    for given, expected in ((7, [7]), ([7, 8, 7], [7, 8]), (None, []), ([7, 100], [7])):
        assert build_config({**base, "eos_token_id": given}).eos_token_ids == expected
    assert build_config(base).eos_token_ids == [2]


# ---- bad configs ---------------------------------------------------------------------------------

BAD = [
    ({"hidden_size": None}, "hidden_size must be an integer, is null"),
    ({"hidden_size": "96"}, "hidden_size must be an integer, is '96'"),
    ({"hidden_size": 96.0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": -96}, "hidden_size must be in 1..1048576, is -96"),
    ({"hidden_size": 2**31}, "hidden_size"),
    ({"hidden_size": tiny.HUGE}, "hidden_size"),
    ({"hidden_size": 97, "head_dim": None}, "hidden_size 97 is no multiple"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_key_value_heads": 4}, "num_key_value_heads 4 does not divide num_attention_heads 6"),
    ({"num_key_value_heads": 12}, "num_key_value_heads"),
    ({"num_attention_heads": 65536, "num_key_value_heads": 1, "head_dim": 256}, "too many"),
    ({"head_dim": 19}, "partial_rotary_factor"),
    ({"head_dim": 0}, "head_dim"),
    ({"intermediate_size": None}, "intermediate_size"),
    ({"vocab_size": 2**40}, "vocab_size"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be in .*, is nan"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    ({"rms_norm_eps": tiny.HUGE}, "rms_norm_eps"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"hidden_act": 3}, "hidden_act must be a string"),
    ({"eos_token_id": -1}, "eos_token_id"),
    ({"eos_token_id": [2, "3"]}, "eos_token_id"),
    ({"eos_token_id": list(range(9999))}, "eos_token_id lists 9999 ids"),
    ({"bos_token_id": 1.5}, "bos_token_id"),
    ({"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
    ({"architectures": [3]}, "architectures must be a list"),
    ({"attention_bias": "no"}, "attention_bias"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"rope_theta": "big"}, "rope_theta"),
    ({"rope_scaling": [1]}, "rope_scaling must be a dict"),
    ({"rope_scaling": {"type": "linear"}}, "rope_parameters.factor is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor"),
    ({"rope_scaling": {"type": "dynamic", "factor": tiny.HUGE}}, "factor"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4,
                       "high_freq_factor": 4}}, "high_freq_factor"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": "x"}}, "beta_fast"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0,
                       "original_max_position_embeddings": 0}}, "original_max"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 10,
                       "long_factor": [1.0] * 9}}, "long_factor must be a list of 10 numbers"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 10,
                       "long_factor": [1.0] * 9 + [float("nan")]}}, r"long_factor\[9\]"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [0.0] * 10,
                       "long_factor": [1.0] * 10}}, r"short_factor\[0\]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda v: str(v)[:60])
def test_bad_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        build_config(tiny.config_of("llama", **change))


UNSUPPORTED = [
    ("llama", {"head_dim": 258}, "head size 258"),
    ("llama", {"hidden_act": "quick_gelu"}, "quick_gelu"),
    ("llama", {"rope_scaling": {"type": "mystery", "factor": 2.0}}, "mystery"),
    ("llama", {"rope_scaling": {"type": ["linear"], "factor": 2.0}}, "rope type"),
    ("llama", {"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope_section"),
    ("llama", {"rope_scaling": {"x" * 10**6: 1}}, "x{70,90} is not supported$"),
    ("phi3", {"lm_head_bias": True}, "lm_head_bias"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 10.0},
                                   "sliding_attention": {"rope_theta": 20.0}}}, "differ"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config = 'fp8'"),
    ("llama", {"num_local_experts": 8}, "num_local_experts"),
    ("llama", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ("llama", {"residual_multiplier": 0.5}, "residual_multiplier"),
    ("mistral", {"attention_bias": True}, "attention_bias"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("qwen3", {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3", {"rope_parameters": {"rope_theta": 5.0}}, "nested by layer type"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"num_key_value_heads": 1}, "num_key_value_heads"),
    ("gpt_neox", {"head_dim": 20}, "head_dim"),
    ("granite", {"num_experts": 4}, "num_experts"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "change", "message"), UNSUPPORTED, ids=lambda v: str(v)[:50])
def test_what_changes_the_arithmetic_is_refused(family, change, message):
    with pytest.raises(UnsupportedError, match=message):
        build_config(tiny.config_of(family, **change))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3"),
        ("qwen2", {"use_sliding_window": False,
                   "layer_types": ["sliding_attention"] * 3}, "sliding_window"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("gemma2", {"sliding_window": None}, "sliding_window"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping"),
        ("gpt_neox", {"rotary_pct": 0.0}, "partial_rotary_factor"),
        ("gpt_neox", {"rotary_pct": 1.5}, "partial_rotary_factor"),
        ("gpt_neox", {"use_parallel_residual": None}, "use_parallel_residual"),
        ("granite", {"logits_scaling": 0}, "logits_scaling"),
        ("phi3-longrope", {"original_max_position_embeddings": "4k"}, "original_max"),
    ],
)  # fmt: skip
def test_bad_values_of_other_families_are_named(family, change, message):
    with pytest.raises(ConfigError, match=message):
        build_config(tiny.config_of(family, **change))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_any_junk_is_one_of_our_errors(family, caplog):
    """Every key of every row with every kind of value: a config or an LLMAccelError."""
    base = tiny.config_of(family.name)
    rope = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "layer_types",
            "original_max_position_embeddings", "text_config", "architectures", "model_type",
            "dtype", *family.aliases.values(),
            *(family.rope.partial or () if family.rope else ()))  # fmt: skip
    refused = 0
    for key in {*base, *family.defaults, *map(str, rope)}:
        for value in tiny.JUNK:
            try:
                build_config({**base, key: copy.deepcopy(value)})
            except LLMAccelError as error:
                refused += 1
                assert len(str(error)) < 1000
    for key in ("factor", "short_factor", "original_max_position_embeddings", "rope_theta", "type"):
        for value in tiny.JUNK:
            for kind in ("linear", "dynamic", "llama3", "yarn", "longrope"):
                scaling = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0,
                           "high_freq_factor": 4.0, "short_factor": [1.0] * 10,
                           "long_factor": [1.0] * 10, key: copy.deepcopy(value)}  # fmt: skip
                try:
                    build_config({**base, "rope_scaling": scaling})
                except LLMAccelError:
                    refused += 1
    assert refused > 100


def test_unknown_architectures_are_named_with_the_known():
    for raw in ({"architectures": ["CohereForCausalLM"]}, {"model_type": "mamba"}, {},
                {"architectures": ["Gemma3ForConditionalGeneration"],
                 "text_config": {}}):  # fmt: skip
        with pytest.raises(UnsupportedError, match="known: LlamaForCausalLM, Mistral") as caught:
            build_config(raw)
        for name in raw.get("architectures", ()):
            assert name in str(caught.value)


@pytest.mark.parametrize("value", ["512", 0, -1, True, 2**31, 1.5])
def test_max_model_len_is_checked(value):
    with pytest.raises(ConfigError, match="max_model_len"):
        build_config(tiny.config_of("llama"), max_model_len=value)


def test_learned_positions_cannot_be_exceeded():
    assert build_config(tiny.config_of("gpt2"), max_model_len=100).max_len == 100
    with pytest.raises(ConfigError, match="160 learned positions"):
        build_config(tiny.config_of("gpt2"), max_model_len=161)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "expected a JSON object"), ("[" * 100000, "not valid JSON"),
     ('{"a": ' + "9" * 5000 + "}", "not valid JSON"), (b"\xff\xfe", "not valid JSON"),
     ("", "not valid JSON")],
)  # fmt: skip
def test_unreadable_config_files(text, message, tmp_path):
    with pytest.raises(LoadError, match="missing"):
        load_hf_config(tmp_path)
    for name, load in (("config", load_hf_config), ("generation_config", load_generation_config)):
        path = tmp_path / f"{name}.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(LoadError, match=message):
            load(tmp_path)


def test_nan_in_json_is_named(tmp_path):
    raw = tiny.config_of("llama", rms_norm_eps=math.nan)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="rms_norm_eps"):
        build_config(load_hf_config(tmp_path))


# ---- generation_config ---------------------------------------------------------------------------


def test_generation_config(tmp_path):
    assert load_generation_config(tmp_path) == GenerationConfig()
    (tmp_path / "generation_config.json").write_text(json.dumps({
        "eos_token_id": [5, 6], "bos_token_id": 1, "do_sample": True, "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20, "min_p": None, "repetition_penalty": 1.1, "max_new_tokens": 256,
        "transformers_version": "4.51.0"}))  # fmt: skip
    got = load_generation_config(tmp_path)
    assert got.eos_token_ids == (5, 6)
    assert (got.bos_token_id, got.do_sample) == (1, True)
    assert got.sampling == {"temperature": 0.6, "top_p": 0.9, "top_k": 20,
                            "repetition_penalty": 1.1,
                            "max_tokens": 256}  # fmt: skip
    assert parse_generation_config({"eos_token_id": 3}).eos_token_ids == (3,)


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -1), ("temperature", math.nan), ("top_p", 0.0), ("top_p", 1.5), ("top_k", 2.5),
     ("min_p", -0.1), ("repetition_penalty", 0), ("repetition_penalty", 9e-5),
     ("eos_token_id", "</s>"), ("do_sample", "yes"), ("max_new_tokens", 0)],
)  # fmt: skip
def test_bad_generation_config(key, value):
    with pytest.raises(ConfigError, match=f"generation_config.json: {key}"):
        parse_generation_config({key: value})
