"""Pairs of features: each gives the tokens that one of the two gives alone, or is refused by name.

What is not in this version at all is refused where it is asked for, whatever it is paired with.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import letters
import pytest

from llmaccel import (
    LLM,
    BeamSearchParams,
    SamplingParams,
    UnsupportedCombination,
    UnsupportedError,
)

# features.md a.10. Options of the LLM:
MODEL = {
    "chunked prefill": {"max_num_batched_tokens": 5},
    "prefix cache": {"enable_prefix_caching": True},
    "LoRA": {"enable_lora": True},
    "n-gram speculation": {"speculative_config": {"method": "ngram"}},
    "Medusa": {"speculative_config": {"method": "medusa"}},
    "INT4 weights": {"quantization": "w4g32"},
    "INT8 KV": {"kv_cache_dtype": "int8"},
    "KV tier": {"kv_tiers": [("ram", "4GB")]},
}
# of a request:
REQUEST = {
    "n>1": {"n": 3},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "a"'}},
    "logprobs": {"logprobs": 2},
    "prompt_logprobs": {"prompt_logprobs": 2},
}
# of a request too, beside those of the list:
IDLE_PROCESSOR = {"logits_processors": [lambda output_ids, logits: None]}
MORE = {"processor": IDLE_PROCESSOR, "best_of": {"best_of": 3}}
# of the call:
CALL = ("beam", "streaming")
ABSENT = {"prefix cache", "LoRA", "grammar", "n-gram speculation", "Medusa", "KV tier"}
APART = [{"beam", "n>1"}, {"beam", "prompt_logprobs"}, {"beam", "streaming"}]
FEATURES = (*MODEL, *REQUEST, *CALL)
PAIRS = list(itertools.combinations(FEATURES, 2))
PROMPT = "once upon a time there was"
# What changes the numbers, so that the pair's reference has it too.
NUMBERS = ("INT4 weights", "INT8 KV")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="module")
def models(folder):
    """LLMs by their features, made when first asked for."""
    made: dict[frozenset[str], LLM] = {}

    def get(features: frozenset[str]) -> LLM:
        if features not in made:
            options: dict[str, Any] = {}
            for name in sorted(features):
                options.update(MODEL[name])
            made[features] = LLM(folder, threads=1, max_num_seqs=8, **options)
        return made[features]

    yield get
    for llm in made.values():
        llm.close()


def tokens(models: Any, features: set[str]) -> list[list[int]]:
    """Tokens of every continuation, with what the features ask for looked at."""
    llm = models(frozenset(features & set(MODEL)))
    asked: dict[str, Any] = {}
    for name, fields_ in (REQUEST | MORE).items():
        if name in features:
            asked.update(fields_)
    if "beam" in features:
        asked.pop("logprobs", None)  # a search gives those of its tokens
        params = BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True, **asked)
        out = llm.beam_search(PROMPT, params, stream="streaming" in features)[0]
        assert all(len(one.logprobs) == 6 for one in out.sequences)
        return [one.tokens[-6:] for one in out.sequences]
    sampling = SamplingParams(seed=4, max_tokens=12, **letters.COMMON, **asked)
    if "streaming" in features:
        found: dict[int, list[int]] = {}
        for chunk in llm.generate(PROMPT, sampling, stream=True):
            for part in chunk.outputs:
                found.setdefault(part.index, []).extend(part.token_ids)
                assert part.logprobs is None or len(part.logprobs) == len(part.token_ids)
        return [found[i] for i in sorted(found)]
    out = llm.generate(PROMPT, sampling)[0]
    if "logprobs" in features:
        assert all(len(one.logprobs) == 12 for one in out.outputs)
    if "prompt_logprobs" in features:
        assert len(out.prompt_logprobs) == len(out.prompt_token_ids)
    return [one.token_ids for one in out.outputs]


def test_there_are_91_pairs():
    assert (len(FEATURES), len(PAIRS)) == (14, 91)


@pytest.mark.parametrize(("one", "two"), PAIRS, ids=[" x ".join(pair) for pair in PAIRS])
def test_a_pair_gives_the_tokens_of_one(models, one, two):
    pair = {one, two}
    if pair & ABSENT:
        with pytest.raises(UnsupportedError):
            tokens(models, pair)
        return
    if pair in APART:
        with pytest.raises(UnsupportedCombination):
            tokens(models, pair)
        return
    got = tokens(models, pair)
    # Alone: what decides how many continuations there are, on what decides the numbers.
    alone = {name for name in pair if name in (*NUMBERS, "n>1", "beam")}
    assert got == tokens(models, alone)
    assert got[0] == tokens(models, alone - {"n>1"})[0]


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("other", [name for name in (*FEATURES, *MORE) if name not in ABSENT])
def test_more_of_a_request(models, more, other):
    if other == "beam":
        with pytest.raises(UnsupportedCombination):
            tokens(models, {more, other})
        return
    got = tokens(models, {more, other})
    if more == "best_of" and other == "n>1":  # all that were drawn, in another order
        assert sorted(got) == sorted(tokens(models, {other}))
        return
    decides = {name for name in (more, other) if name in (*NUMBERS, "n>1", "best_of")}
    assert got == tokens(models, decides)


def test_what_says_how_to_draw_does_not_go_with_beams():
    search = {one.name for one in dataclasses.fields(BeamSearchParams)}
    names = {one.name for one in dataclasses.fields(SamplingParams)} - search
    assert {"logits_processors", "n", "best_of", "seed", "min_tokens"} <= names
    for name in names:
        with pytest.raises(UnsupportedCombination, match=f"^{name}: not with beam search"):
            BeamSearchParams(2, 3, **{name: 1})
