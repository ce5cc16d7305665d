"""Beam search: the engine's against one written from its definition, in any company and any room.

The reference keeps every beam, asks for all log probabilities of each by a request of its own, and
sorts. It never shares a page and never stops early.
"""

from __future__ import annotations

import random
from typing import Any

import letters
import numpy as np
import pytest
import tiny
from test_engine import (
    ABORT,
    LENGTH,
    PARAMS,
    STOP,
    TIMEOUT,
    VOCAB,
    Stepper,
    logprob,
    some_ids,
)

from llmaccel import LLM, BeamSearchParams, SamplingParams, _core
from llmaccel.errors import RequestError, UnsupportedCombination, UnsupportedError
from llmaccel.loading import load_weights, prepare
from llmaccel.options import LoadOptions

SEARCH = {"temperature": 0.0, "max_tokens": 8}
# ids, sum of log probabilities, whether a stop id ended it
Found = tuple[list[int], float, bool]


@pytest.fixture(scope="module")
def model():
    config = tiny.config_of("llama", max_position_embeddings=400)
    arrays = tiny.arrays_of(config, 3)
    prepared = prepare(LoadOptions(config, dtype="float32", threads=1), arrays)
    made = _core.Model(_core.Backend("cpu", None, 1), vars(prepared.config), prepared.forms.weights)
    load_weights(made, prepared)
    return made


class Table:
    """The log probabilities after a run of ids, best first; each asked for once."""

    def __init__(self, model: Any) -> None:
        self.engine = Stepper(model)
        self.known: dict[tuple[int, ...], tuple[list[int], list[float]]] = {}

    def after(self, ids: list[int]) -> tuple[list[int], list[float]]:
        if tuple(ids) not in self.known:
            request = self.engine.add(ids, temperature=0.0, max_tokens=1, logprobs=VOCAB)
            event = self.engine.run().events[request, 0][0]
            best = np.frombuffer(event[5], np.int32).tolist()
            self.known[tuple(ids)] = best, np.frombuffer(event[6], np.float32).tolist()
        return self.known[tuple(ids)]


def search(
    table: Table, prompt: list[int], width: int, max_tokens: int, *, stops=(), penalty=1.0
) -> list[Found]:
    """The best `width`, by the definition."""
    beams: list[Found] = [([], 0.0, False)]
    ended: list[Found] = []

    def score(found: Found) -> float:
        return found[1] / (len(prompt) + len(found[0]) - found[2]) ** penalty

    for _ in range(max_tokens):
        further = []
        for ids, total, _ in beams:
            best = zip(*table.after(prompt + ids), strict=True)
            for token, value in list(best)[: 2 * width]:
                stopped = token in stops
                (ended if stopped else further).append(([*ids, token], total + value, stopped))
        beams = sorted(further, key=lambda found: found[1], reverse=True)[:width]
    return sorted(ended + beams, key=score, reverse=True)[:width]


def search_first(
    table: Table, prompt: list[int], width: int, max_tokens: int, *, stops=(), penalty=1.0, early
) -> list[Found]:
    """The best `width`, by transformers' definition; early: its early_stopping."""
    beams: list[Found] = [([], 0.0, False)]
    ended: list[Found] = []

    def score(found: Found, length: int = 0) -> float:
        return found[1] / (length or len(found[0])) ** penalty

    for n in range(1, max_tokens + 1):
        further = []
        for ids, total, _ in beams:
            for token, value in zip(*table.after(prompt + ids), strict=True):
                further.append(([*ids, token], total + value, token in stops))
        further.sort(key=lambda found: found[1], reverse=True)
        ended += [one for one in further[:width] if one[2] or n == max_tokens]
        ended = sorted(ended, key=score, reverse=True)[:width]
        beams = [one for one in further if not one[2]][:width]
        longest = max_tokens if early == "never" and penalty > 0 else n
        full = len(ended) == width
        if not beams or (full and (early is True or score(beams[0], longest) <= score(ended[-1]))):
            break
    return ended


def found_by(engine: Stepper, request: int, width: int) -> list[Found]:
    results = []
    for b in range(width):
        events = engine.events[request, b]
        reason, token = engine.ends[request, b]
        assert reason in (STOP, LENGTH)
        assert [e[1] for e in events] == list(range(len(events)))
        assert token == (events[-1][2] if reason == STOP else -1)
        total = 0.0
        for event in events:
            total += logprob(event)
        results.append(([e[2] for e in events], total, reason == STOP))
    return [found for found in results if found[0]]


def stop_ids(seed: int, count: int = 40) -> list[int]:
    return sorted(set(some_ids(count, seed)))


CASES = [
    (1, 5, 1, (), 1.0),
    (70, 4, 9, (), 1.0),
    (64, 3, 70, (), 0.0),
    (5, 4, 12, stop_ids(1), 1.0),
    (5, 4, 12, stop_ids(2), 0.0),
    (63, 8, 6, stop_ids(3), 2.0),
    (5, 3, 12, stop_ids(4), -1.0),
    (5, 2, 10, tuple(range(VOCAB)), 1.0),
    (2, 200, 3, stop_ids(5), 1.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_search_finds_what_its_definition_finds(model, case):
    length, width, new, stops, penalty = case
    prompt = some_ids(length, seed=length)
    engine = Stepper(model, max_seqs=max(width, 8), kv_pages=1000)
    request = engine.core.add(
        prompt,
        {**PARAMS, **SEARCH, "max_tokens": new, "stop_ids": list(stops)},
        branches=width,
        length_penalty=penalty,
    )
    engine.run()
    wanted = search(Table(model), prompt, width, new, stops=stops, penalty=penalty)
    assert found_by(engine, request, width) == wanted
    stats = engine.core.stats()
    assert stats["prompt_tokens"] == length, "the prompt is fed once"
    assert stats["recomputed_tokens"] == stats["preemptions"] == 0


FIRST_CASES = [
    (early, length, width, new, stops, penalty)
    for early in (False, True, "never")
    for length, width, new, stops, penalty in (
        (70, 4, 9, (), 1.0),
        (5, 4, 12, stop_ids(1), 1.0),
        (5, 4, 12, stop_ids(2), 0.0),
        (63, 8, 6, stop_ids(3, 150), 2.0),
        (5, 3, 12, stop_ids(4), -1.0),
        (5, 2, 10, tuple(range(VOCAB)), 1.0),
    )
]


@pytest.mark.parametrize("case", FIRST_CASES, ids=str)
def test_the_other_rule_finds_what_its_definition_finds(model, case):
    early, length, width, new, stops, penalty = case
    prompt = some_ids(length, seed=length)
    engine = Stepper(model, max_seqs=max(width, 8), kv_pages=1000)
    request = engine.core.add(
        prompt,
        {**PARAMS, **SEARCH, "max_tokens": new, "stop_ids": list(stops)},
        branches=width,
        length_penalty=penalty,
        beam={False: 2, True: 3, "never": 4}[early],
    )
    engine.run()
    wanted = search_first(
        Table(model), prompt, width, new, stops=stops, penalty=penalty, early=early
    )
    assert found_by(engine, request, width) == wanted


# ---- company and room ----------------------------------------------------------------------------


def random_job(rng: random.Random) -> dict[str, Any]:
    """A search or a request that draws."""
    job: dict[str, Any] = {
        "prompt": some_ids(rng.choice([1, 2, 17, 63, 64, 65, 120]), rng.randrange(1000)),
        "priority": rng.randint(-1, 1),
    }
    if rng.random() < 0.4:
        params = {"max_tokens": rng.choice([3, 20]), "seed": rng.randrange(99), "logprobs": 2}
        return {**job, "params": params, "branches": rng.choice([1, 2])}
    stops = stop_ids(rng.randrange(99), rng.choice([0, 3, 40]))
    params = {**SEARCH, "max_tokens": rng.choice([1, 5, 70]), "stop_ids": stops}
    width, penalty = rng.choice([1, 2, 3]), rng.choice([0.0, 1.0, 2.0])
    job |= {"params": params, "branches": width, "length_penalty": penalty}
    return {**job, "beam": rng.choice([1, 2, 3, 4])}


def add(engine: Stepper, job: dict[str, Any]) -> int:
    options = {name: value for name, value in job.items() if name not in ("prompt", "params")}
    return engine.core.add(job["prompt"], {**PARAMS, **job["params"]}, **options)


def told(engine: Stepper, request: int, branches: int) -> list:
    return [(engine.events[request, b], engine.ends[request, b]) for b in range(branches)]


@pytest.mark.parametrize(
    "limits",
    [
        {"max_seqs": 3, "max_batch_tokens": 1},
        {"max_seqs": 3, "max_batch_tokens": 7, "kv_pages": 4},
        {"max_seqs": 4, "max_batch_tokens": 64, "kv_pages": 6},
        {"max_seqs": 8, "max_batch_tokens": 512},
    ],
    ids=str,
)
def test_company_does_not_change_a_search(model, limits):
    rng = random.Random(str(limits))
    engine = Stepper(model, **limits)
    jobs = [random_job(rng) for _ in range(12)]
    pending, ids, hits = list(jobs), [], 12
    while pending or engine.core.has_work():
        if pending and rng.random() < 0.4:
            ids.append(add(engine, pending.pop(0)))
        if hits and rng.random() < 0.2:
            engine.core.preempt(rng.randint(1, 3))
            hits -= 1
        engine.step()
    assert engine.run().core.stats()["preemptions"] > 0
    for job, request in zip(jobs, ids, strict=True):
        alone = Stepper(model)
        number = add(alone, job)
        alone.run()
        assert told(engine, request, job["branches"]) == told(alone, number, job["branches"])


def test_a_pool_for_one_beam_is_enough(model):
    job = {"prompt": some_ids(100), "params": {**SEARCH, "max_tokens": 40}, "branches": 4}
    found = []
    for pages in (3, 64):
        engine = Stepper(model, kv_pages=pages)
        request = add(engine, {**job, "length_penalty": 1.0})
        engine.run()
        found.append(told(engine, request, 4))
    assert found[0] == found[1]


def test_more_results_than_a_step_has_events(model):
    """A hundred results of 60 tokens leave over many steps."""
    engine = Stepper(model, max_seqs=100, kv_pages=1000)
    params = {**SEARCH, "max_tokens": 60}
    request = add(
        engine,
        {"prompt": [5], "params": params, "branches": 100, "length_penalty": 1.0},
    )
    engine.run()
    assert all(len(engine.tokens(request, b)) == 60 for b in range(100))


def test_beams_share_pages(model):
    engine = Stepper(model)
    params = {**SEARCH, "max_tokens": 3}
    add(engine, {"prompt": some_ids(256), "params": params, "branches": 8, "length_penalty": 1.0})
    for pages in (4, 4 + 8):
        engine.step()
        stats = engine.core.stats()
        assert stats["running"] == 8
        assert 4 <= stats["pages_used"] <= pages
    engine.run()


def test_a_search_ends_where_nothing_better_can_come(model):
    """Four have ended, and no sum of what goes on is above theirs: the result is the end's."""
    prompt, stops = some_ids(5), stop_ids(2)
    engine = Stepper(model)
    params = {**SEARCH, "max_tokens": 40, "stop_ids": stops}
    job = {"prompt": prompt, "params": params, "branches": 4, "length_penalty": 0.0}
    request = add(engine, job)
    engine.run()
    assert engine.core.stats()["steps"] < 20
    wanted = search(Table(model), prompt, 4, 40, stops=stops, penalty=0.0)
    assert found_by(engine, request, 4) == wanted


@pytest.mark.parametrize("reason", [ABORT, TIMEOUT])
def test_a_search_that_is_cut_short_gives_what_it_has(model, reason):
    engine = Stepper(model)
    job = {"prompt": some_ids(9), "params": {**SEARCH, "max_tokens": 300}, "branches": 4}
    options = {"timeout": 1e-9} if reason == TIMEOUT else {}
    request = add(engine, {**job, "length_penalty": 1.0, **options})
    for _ in range(5):
        engine.step()
    if reason == ABORT:
        engine.core.cancel(request, 2)  # one beam: a search ends whole
    engine.run()
    assert [engine.ends[request, b] for b in range(4)] == [(reason, -1)] * 4
    if reason == ABORT:
        whole = search(Table(model), job["prompt"], 4, 5)
        assert [engine.tokens(request, b) for b in range(4)] == [found[0] for found in whole]
    before = add(engine, {**job, "length_penalty": 1.0})
    engine.core.cancel(before)
    engine.run()
    assert [engine.tokens(before, b) for b in range(4)] == [[]] * 4


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("beam_width: 9, but max_num_seqs is 8", {"branches": 9}),
        ("length_penalty: nan", {"length_penalty": float("nan")}),
        ("length_penalty: 101", {"length_penalty": 101.0}),
        ("beam: 5 is not in", {"beam": 5}),
        ("max_tokens: 0", {"params": {**SEARCH, "max_tokens": 0}}),
        ("draws nothing", {"params": {"temperature": 1.0}}),
        ("draws nothing", {"params": {**SEARCH, "bias_ids": [1], "bias": [1.0]}}),
        ("neither suffixes", {"suffixes": [[1], [2]]}),
    ],
)
def test_bad_searches(model, message, change):
    engine = Stepper(model)
    job = {"prompt": [1, 2], "params": SEARCH, "branches": 2, "length_penalty": 1.0}
    with pytest.raises(RequestError, match=message):
        add(engine, {**job, **change})
    assert not engine.core.has_work()


# ---- through LLM ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"), max_position_embeddings=400)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, max_num_seqs=8, threads=1) as llm:
        yield llm


def test_outputs(llm):
    tokenizer = llm.get_tokenizer()
    prompts = ["abc", {"prompt_token_ids": [1, 50, 60]}]
    params = BeamSearchParams(beam_width=3, max_tokens=5, ignore_eos=True)
    outputs = llm.beam_search(prompts, params)
    assert [len(out.sequences) for out in outputs] == [3, 3]
    for out, ids in zip(outputs, (tokenizer.encode("abc"), [1, 50, 60]), strict=True):
        for found in out.sequences:
            assert found.tokens[: len(ids)] == ids
            assert len(found.tokens) == len(ids) + 5 == len(ids) + len(found.logprobs)
            assert found.text == tokenizer.decode(found.tokens, skip_special_tokens=True)
            assert (found.finish_reason, found.stop_reason) == ("length", None)
            new = zip(found.tokens[len(ids) :], found.logprobs, strict=True)
            assert found.cum_logprob == sum(entry[token].logprob for token, entry in new)
            again = llm.loglikelihood([ids], [found.tokens[len(ids) :]])[0][0]
            assert found.cum_logprob == pytest.approx(again, abs=1e-9)
        sums = [found.cum_logprob for found in out.sequences]
        assert sums == sorted(sums, reverse=True)
    one = llm.beam_search(prompts, params, concurrency_limit=1)
    assert [[s.tokens for s in out.sequences] for out in one] == [
        [s.tokens for s in out.sequences] for out in outputs
    ]
    greedy = llm.generate("abc", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    alone = llm.beam_search("abc", BeamSearchParams(1, 5, ignore_eos=True))[0].sequences[0]
    assert alone.tokens[-5:] == greedy[0].outputs[0].token_ids


def test_stop_ids_end_a_sequence(folder):
    ends = {"eos_token_id": [3 + byte for byte in range(0, 256, 8)]}
    with LLM(folder, generation_config=ends) as llm:
        params = BeamSearchParams(beam_width=4, max_tokens=12, length_penalty=0.0)
        stopped = llm.beam_search("abc", params)[0].sequences
        shown = BeamSearchParams(4, 12, length_penalty=0.0, include_stop_str_in_output=True)
        whole = llm.beam_search("abc", shown)[0].sequences
        tokenizer = llm.get_tokenizer()
    assert any(found.finish_reason == "stop" for found in stopped)
    for found, full in zip(stopped, whole, strict=True):
        assert found.tokens == full.tokens
        assert full.text == tokenizer.decode(full.tokens, skip_special_tokens=True)
        if found.finish_reason == "stop":
            assert found.stop_reason == found.tokens[-1]
            assert found.text == tokenizer.decode(found.tokens[:-1], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (RequestError, "beam_width", {"beam_width": 0}),
        (RequestError, "max_tokens", {"max_tokens": None}),
        (RequestError, "length_penalty", {"length_penalty": 101}),
        (RequestError, "ignore_eos", {"ignore_eos": 1}),
        (RequestError, "early_stopping", {"early_stopping": 1}),
        (RequestError, r"stop_token_ids\[0\]", {"stop_token_ids": [-1]}),
        (UnsupportedError, "^temperature=0.5", {"temperature": 0.5}),
        (UnsupportedError, "^structured_outputs", {"structured_outputs": {"json": {}}}),
        (UnsupportedCombination, "^n: not with beam search", {"n": 2}),
        (UnsupportedCombination, "^logit_bias: not with", {"logit_bias": {1: 2.0}}),
        (TypeError, "did you mean max_tokens", {"max_new_tokens": 2}),
    ],
)
def test_bad_params(error, message, given):
    with pytest.raises(error, match=message):
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 3, **given})


def test_bad_calls(llm):
    params = BeamSearchParams(2, 3)
    with pytest.raises(RequestError, match="params: expected BeamSearchParams"):
        llm.beam_search("a", SamplingParams())
    with pytest.raises(RequestError, match=r"prompts\[0\]: beam_width: 9, but max_num_seqs is 8"):
        llm.beam_search(["a", "b"], BeamSearchParams(9, 3))
    with pytest.raises(RequestError, match=r"prompts\[0\]: 400 tokens"):
        llm.beam_search([[5] * 400], params)
    with pytest.raises(RequestError, match="concurrency_limit"):
        llm.beam_search("a", params, concurrency_limit=0)
    with pytest.raises(UnsupportedCombination, match="stream"):
        llm.beam_search("a", params, stream=True)
    with pytest.raises(UnsupportedError, match="lora_request"):
        llm.beam_search("a", params, lora_request=object())
    assert llm.beam_search([], params) == []


@pytest.mark.torch
def test_sequences_equal_those_of_transformers(folder, llm):
    """Where nothing ends early and scores are sums the two rules are the same."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    for prompt in ("abc", "some more text than that"):
        ids = llm.get_tokenizer().encode(prompt)
        with torch.no_grad():
            found = theirs.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                num_beams=4,
                num_return_sequences=4,
                length_penalty=0.0,
                max_new_tokens=24,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
        params = BeamSearchParams(4, 24, ignore_eos=True, length_penalty=0.0)
        ours = llm.beam_search(prompt, params)[0].sequences
        assert [one.tokens for one in ours] == found.sequences.tolist()
        sums = [one.cum_logprob for one in ours]
        assert sums == pytest.approx(found.sequences_scores.tolist(), abs=1e-3)
