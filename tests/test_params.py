"""SamplingParams: defaults, refusals that name the field, and its agreement with the C struct."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from llmaccel import (
    ConfigError,
    RequestError,
    RequestOutputKind,
    SamplingParams,
    UnsupportedCombination,
    UnsupportedError,
    _core,
    hints,
)
from llmaccel.engine_table import ARGUMENTS
from llmaccel.errors import shown
from llmaccel.options import LoadOptions
from llmaccel.params import NO_EFFECT, engine_fields, score_fields
from llmaccel.recipes import QUANTIZATIONS

HEADER = Path(__file__).resolve().parents[1] / "csrc" / "sampling.h"
# Names of la_sampling that are not the dataclass's: what they are made of.
RENAMED = {
    "stop_ids": "stop_token_ids",
    "bias_ids": "logit_bias",
    "bias": "logit_bias",
    "allowed": "allowed_token_ids",
    "bad": "bad_words",
    "score_ids": "logprob_token_ids",
    "prompt_scores": "prompt_logprob_token_ids",
    "trace": "trace_decode_token_ids",
    "pattern_count": "repetition_detection",
    "pattern_min": "repetition_detection",
    "pattern_max": "repetition_detection",
    "think_budget": "thinking_token_budget",
    "think_start": "thinking_token_budget",
    "think_end": "thinking_token_budget",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "dry_last_n": "dry_penalty_last_n",
    "dry_breakers": "dry_sequence_breakers",
    "mirostat": "mirostat_mode",
}
# Fields of the dataclass that never reach the engine.
TEXT_ONLY = {
    "n",
    "stop",
    "include_stop_str_in_output",
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
    "output_kind",
    "stream_interval",
    "best_of",
    "flat_logprobs",
    "logits_processors",
    *NO_EFFECT,
}

BAD = [
    ("n", 0),
    ("n", -1),
    ("n", 1.5),
    ("n", True),
    ("n", 10**6),
    ("presence_penalty", 2.5),
    ("presence_penalty", float("nan")),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", "1"),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 9e-5),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", float("inf")),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", None),
    ("temperature", [1.0]),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_p", float("nan")),
    ("top_k", -2),
    ("top_k", 2.0),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("seed", -2),
    ("seed", 2**64),
    ("seed", "x"),
    ("seed", 1.0),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", 3),
    ("stop", [3]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", "abc"),
    ("stop_token_ids", 5),
    ("stop_token_ids", [1.0]),
    ("bad_words", [""]),
    ("bad_words", [1]),
    ("include_stop_str_in_output", 1),
    ("ignore_eos", None),
    ("detokenize", "yes"),
    ("skip_special_tokens", 0),
    ("spaces_between_special_tokens", 2),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("max_tokens", 2.0),
    ("min_tokens", -1),
    ("min_tokens", None),
    ("logprobs", -2),
    ("logprobs", True),
    ("prompt_logprobs", -2),
    ("prompt_logprobs", 1.5),
    ("logit_bias", [1]),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: float("nan")}),
    ("logit_bias", {"x": 1.0}),
    ("logit_bias", {1: None}),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [-3]),
    ("truncate_prompt_tokens", 0),
    ("truncate_prompt_tokens", -2),
    ("stream_interval", 0),
    ("best_of", 0),
    ("logprob_token_ids", [-1]),
    ("prompt_logprob_token_ids", 7),
    ("prompt_logprob_start", 3),
    ("flat_logprobs", 1),
    ("logits_processors", [3]),
    ("logits_processors", "f"),
    ("no_repeat_ngram_size", -1),
    ("repeat_last_n", -2),
    ("repetition_detection", 3),
    ("repetition_detection", {"min_count": 2}),
    ("repetition_detection", {"max_pattern_size": 5000}),
    ("repetition_detection", {"max_pattern_size": 3, "min_pattern_size": 4}),
    ("repetition_detection", {"max_pattern_size": 3, "min_count": 1}),
    ("thinking_token_budget", -2),
    ("trace_decode_token_ids", []),
    ("extra_args", [1]),
    ("skip_clone", None),
    ("skip_reading_prefix_cache", 1),
    ("typical_p", 0.0),
    ("typical_p", 1.5),
    ("top_n_sigma", -2),
    ("xtc_probability", 1.1),
    ("xtc_threshold", -0.1),
    ("dry_multiplier", -1),
    ("dry_base", 0.5),
    ("dry_allowed_length", 0),
    ("dry_penalty_last_n", -2),
    ("dry_sequence_breakers", "\n"),
    ("dry_sequence_breakers", [""]),
    ("dry_sequence_breakers", [1.5]),
    ("dynatemp_range", -1),
    ("dynatemp_exponent", float("nan")),
    ("mirostat_mode", 3),
    ("mirostat_tau", -1),
    ("mirostat_eta", "x"),
    ("output_kind", 7),
    ("output_kind", True),
    ("n", 10**5000),
    ("temperature", 10**400),
    ("presence_penalty", -(10**400)),
    ("logit_bias", {1: 10**400}),
    ("logit_bias", {"9" * 5000: 1.0}),
    ("allowed_token_ids", np.array(1)),
    ("stop_token_ids", [10**5000]),
]


def test_defaults_are_vllms():
    p = SamplingParams()
    assert (p.n, p.temperature, p.top_p, p.top_k, p.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (p.max_tokens, p.min_tokens, p.repetition_penalty) == (16, 0, 1.0)
    assert p.detokenize
    assert p.skip_special_tokens
    assert p.seed is p.stop is p.logprobs is p.prompt_logprobs is None


@pytest.mark.parametrize(("field", "value"), BAD, ids=[f"{f}-{shown(v)[:24]}" for f, v in BAD])
def test_bad_value_names_its_field(field, value):
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_new_tokens", "max_tokens"),
        ("n_predict", "max_tokens"),
        ("repeat_penalty", "repetition_penalty"),
        ("temprature", "temperature"),
        ("Top_K", "top_k"),
        ("mirostat", "mirostat_mode"),
        ("zigzag", None),
    ],
)
def test_unknown_name_is_a_type_error(name, meant):
    with pytest.raises(TypeError, match=f"argument '{name}'") as caught:
        SamplingParams(**{name: 3})
    assert str(caught.value).partition("; ")[2] == (f"did you mean {meant}?" if meant else "")


def test_every_hint_is_a_name_that_is_there():
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert set(hints.SAMPLING_NAMES.values()) <= fields
    assert not set(hints.SAMPLING_NAMES) & fields
    options = {field.name for field in dataclasses.fields(LoadOptions)}
    assert set(hints.MODEL_NAMES.values()) <= options
    assert not set(hints.MODEL_NAMES) & {*options, *ARGUMENTS}
    assert set(hints.QUANTIZATION_NAMES.values()) <= set(QUANTIZATIONS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guided_json", {"type": "object"}),
        ("structured_outputs", object()),
        ("logits_processor", [print]),
        ("routed_experts_prompt_start", 0),
        ("guided_decoding", object()),
        ("do_sample", False),
        ("num_beams", np.array([1, 1])),
    ],
)
def test_what_is_not_here_is_refused_by_name(name, value):
    with pytest.raises(UnsupportedError, match=f"^{name}: not supported"):
        SamplingParams(**{name: value})


def test_what_asks_for_nothing_is_taken():
    idle = {"guided_json": None, "logits_processors": [], "num_beams": 1, "use_beam_search": False}
    assert SamplingParams(top_k=3, **idle) == SamplingParams(top_k=3)


def test_an_unknown_attribute_is_no_parameter():
    p = SamplingParams()
    with pytest.raises(AttributeError, match="max_token"):
        p.max_token = 3
    assert pickle.loads(pickle.dumps(p)) == p
    assert "max_tokens" in inspect.signature(SamplingParams).parameters


def test_contradictions():
    with pytest.raises(RequestError, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)
    with pytest.raises(RequestError, match="best_of"):
        SamplingParams(n=3, best_of=2)
    for other in ({"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"typical_p": 0.9}):
        with pytest.raises(UnsupportedCombination, match=f"mirostat_mode.*{next(iter(other))}"):
            SamplingParams(mirostat_mode=2, **other)


def test_numpy_scalars_and_strings_are_normalised():
    p = SamplingParams(
        temperature=np.float32(0.5),
        top_k=np.int64(4),
        stop="END",
        stop_token_ids=np.array([5, 6]),
        logit_bias={"7": 1},
    )
    assert (p.temperature, p.top_k, p.stop, p.stop_token_ids) == (0.5, 4, ["END"], [5, 6])
    assert type(p.top_k) is int
    assert p.logit_bias == {7: 1.0}
    assert SamplingParams(output_kind=1).output_kind is RequestOutputKind.DELTA


def test_a_clone_is_checked_and_independent():
    p = SamplingParams(stop=["a"])
    clone = p.clone()
    p.stop.append("b")
    assert clone.stop == ["a"]
    p.temperature = float("nan")
    with pytest.raises(RequestError, match="temperature"):
        p.clone()


def fields_of(params, **options):
    defaults = {"n_vocab": 100, "max_tokens": 16, "seed": 9, "stop_ids": (), "bad": []}
    return engine_fields(params, **{**defaults, **options})


def test_engine_fields():
    f = fields_of(
        SamplingParams(
            temperature=1e-5,
            top_k=-1,
            logprobs=-1,
            prompt_logprobs=500,
            stop_token_ids=[3],
            logit_bias={4: 2.0},
        ),
        stop_ids={1, 2},
    )
    assert f["temperature"] == pytest.approx(0.01)  # vLLM's floor
    assert (f["top_k"], f["logprobs"], f["prompt_logprobs"]) == (0, 100, 100)
    assert f["stop_ids"] == [1, 2, 3]
    assert (f["bias_ids"], f["bias"]) == ([4], [2.0])
    assert fields_of(SamplingParams())["logprobs"] == -1
    assert fields_of(SamplingParams())["seed"] == 9
    assert fields_of(SamplingParams(seed=-1))["seed"] == 9
    assert fields_of(SamplingParams(seed=2**64 - 1))["seed"] == 2**64 - 1
    assert score_fields()["max_tokens"] == 0


def struct_fields() -> dict[str, str]:
    """name: C type of the members of la_sampling, in order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    body = re.search(r"typedef struct la_sampling \{(.*?)\} la_sampling;", text, re.S).group(1)
    return {name: kind.strip() for kind, name in re.findall(r"([\w\s]+?[\s*]+)(\w+)\s*;", body)}


def test_table_struct_and_dataclass_agree():
    struct = struct_fields()
    table = _core.sampling_fields()
    kinds = {
        "float": "float",
        "int": "int",
        "uint64": "uint64_t",
        "ids": "const int32_t *",
        "floats": "const float *",
        "id_lists": "const int32_t *",
    }
    for name, kind, _ in table:
        assert struct[name] == kinds[kind], name
    lengths = {name for name in struct if name.startswith("n_")}
    assert {name for name, _, _ in table} == set(struct) - lengths - {"bad_len"}
    offsets = [offset for _, _, offset in table]
    assert offsets == sorted(set(offsets))
    assert set(fields_of(SamplingParams())) == {name for name, _, _ in table}
    reached = {RENAMED.get(name, name) for name, _, _ in table}
    # what is reported is the LLM's choice, not a request's
    assert reached - {"report"} == {f.name for f in dataclasses.fields(SamplingParams)} - TEXT_ONLY


def test_the_core_refuses_other_mappings(tmp_path):
    import tiny

    from llmaccel import LLM

    with LLM(str(tiny.make_checkpoint("llama", tmp_path)), max_num_seqs=2) as llm:
        engine = llm.engine._engine
        fields = score_fields()
        with pytest.raises(RequestError, match="params"):
            engine.add([1, 2], {**fields, "extra": 1})
        missing = {k: v for k, v in fields.items() if k != "top_p"}
        with pytest.raises(RequestError, match="top_p"):
            engine.add([1, 2], missing)
        for bad in (
            {"temperature": "hot"},
            {"seed": -1},
            {"top_k": 2**40},
            {"stop_ids": ["x"]},
            {"bad": [[1], ["x"]]},
            {"bias": [1.0]},
        ):
            with pytest.raises(RequestError, match=next(iter(bad))):
                engine.add([1, 2], {**fields, **bad})
        with pytest.raises(ConfigError, match="max_seqs"):
            _core.plan(vars(llm._config), {})
