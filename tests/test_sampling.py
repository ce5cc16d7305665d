"""Draws from known logits: every combination of parameters against NumPy, and the same bits always.

The model is a table: its blocks add nothing, an embedding picks a column of the head, so a token is
followed by a known row of logits (on a grid, so that many are equal). Two vocabularies: one slice
with a short unit at the end, and three slices.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import reference_sampling as ref
import tiny
from conftest import SAMPLING

from llmaccel import _core
from llmaccel.loading import load_weights, prepare
from llmaccel.options import LoadOptions

SIZES = [301, 9001]
WIDTH = 96
KNOWN = 24  # distinct rows of logits
TOKENS = 40
TOKEN = _core.EVENT_KINDS[0]
PARAMS = {**SAMPLING, "seed": 1, "max_tokens": TOKENS}
RULES: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": -0.3,
    "bias_ids": [3, 40, 300],
    "bias": [4.0, -6.0, 8.5],
    "bad": [[17], [300, 300]],
}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy with rules": {"temperature": 0.0, **RULES},
    "plain": {},
    "cold": {"temperature": 0.2},
    "hot": {"temperature": 5.0},
    "top_p": {"top_p": 0.8},
    "top_p nearly all": {"top_p": 0.9999},
    "top_p hot": {"top_p": 0.97, "temperature": 4.0},
    "top_p tiny": {"top_p": 1e-6},
    "min_p": {"min_p": 0.05},
    "min_p of all": {"min_p": 1.0},
    "min_p and top_p": {"min_p": 0.01, "top_p": 0.7, "temperature": 1.5},
    "top_k": {"top_k": 20},
    "top_k of one": {"top_k": 1},
    "top_k beyond the units": {"top_k": 290, "temperature": 3.0},
    "top_k beyond the vocabulary": {"top_k": 10**6},
    "top_k, top_p": {"top_k": 50, "top_p": 0.9, "temperature": 0.7},
    "all of them": {"top_k": 60, "top_p": 0.95, "min_p": 0.02, "temperature": 1.2},
    "plain with rules": dict(RULES),
    "top_p with rules": {"top_p": 0.9, **RULES},
    "top_k with rules": {"top_k": 9, "top_p": 0.9, **RULES},
    "allowed": {"allowed": [1, 5, 31, 32, 33, 64, 250, 299], **RULES},
    "allowed, top_k": {"allowed": list(range(0, 300, 3)), "top_k": 5},
    "no n-gram twice": {"temperature": 0.0, "no_repeat_ngram": 2},
    "no token twice": {"temperature": 0.3, "no_repeat_ngram": 1, **RULES},
    "no trigram twice": {"temperature": 0.0, "no_repeat_ngram": 3, "allowed": [*range(2, 9)]},
    "penalties of the last": {"temperature": 0.0, **RULES, "repeat_last_n": 3},
    "penalties of the last, drawn": {"temperature": 0.3, **RULES, "repeat_last_n": 7},
    "penalties of none": {"temperature": 0.0, **RULES, "repeat_last_n": 0},
    "penalties of more than all": {"temperature": 0.0, **RULES, "repeat_last_n": 999},
    "DRY": {"temperature": 0.0, "dry_multiplier": 0.5},
    "DRY drawn": {"temperature": 0.7, "dry_multiplier": 1.5, "allowed": [1, 2, 3], "top_k": 2},
    "DRY broken": {
        "temperature": 0.5,
        "dry_multiplier": 2.0,
        "dry_base": 1.2,
        "dry_allowed_length": 1,
        "dry_breakers": [3, 9],
        "allowed": [1, 2, 3, 5],
    },
    "DRY of the last": {
        "temperature": 0.5,
        "dry_multiplier": 3.0,
        "dry_last_n": 9,
        "allowed": [1, 2, 3, 5],
    },
    "typical_p": {"typical_p": 0.6},
    "typical_p cold, with rules": {"typical_p": 0.9, "temperature": 0.4, **RULES},
    "typical_p of the best": {"typical_p": 0.5, "top_k": 30, "min_p": 0.01, "top_p": 0.8},
    "top_n_sigma": {"top_n_sigma": 1.5},
    "top_n_sigma of allowed": {"top_n_sigma": 1.0, "allowed": list(range(0, 300, 3)), **RULES},
    "dynatemp": {"dynatemp_range": 0.7, "temperature": 0.9},
    "dynatemp from nothing": {
        "dynatemp_range": 2.0,
        "dynatemp_exponent": 2.5,
        "temperature": 0.5,
        "top_n_sigma": 2.0,
    },
    "XTC": {"xtc_probability": 0.5, "xtc_threshold": 0.02, "temperature": 0.5},
    "XTC after top_p": {"xtc_probability": 1.0, "xtc_threshold": 0.1, "top_p": 0.6},
    "mirostat 1": {"mirostat": 1, "mirostat_tau": 4.0, "mirostat_eta": 0.3},
    "mirostat 1 low": {"mirostat": 1, "mirostat_tau": 1.5, "temperature": 0.7, **RULES},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.2},
    "mirostat 2 hot": {"mirostat": 2, "temperature": 2.0, "dynatemp_range": 0.5},
    "mirostat 2 of nothing": {"mirostat": 2, "mirostat_tau": 0.0},
    "all filters": {
        "top_n_sigma": 3.0,
        "dynatemp_range": 0.3,
        "min_p": 0.001,
        "top_k": 80,
        "typical_p": 0.95,
        "top_p": 0.97,
        "xtc_probability": 0.7,
        "xtc_threshold": 0.05,
        "dry_multiplier": 0.8,
        "no_repeat_ngram": 2,
        **RULES,
    },
    "min_tokens": {"stop_ids": list(range(0, 301, 2)), "min_tokens": TOKENS},
}
# What a backend without a filter of its own has the host draw.
_HOSTED = (
    *("no_repeat_ngram", "repeat_last_n", "dry_multiplier", "typical_p", "top_n_sigma"),
    *("dynatemp_range", "xtc_probability", "mirostat"),
)
PLAIN_CASES = [name for name, case in CASES.items() if not any(k in case for k in _HOSTED)]


def table(n_vocab: int) -> np.ndarray:
    """Logits [KNOWN, V] on a grid of 1/16: flat rows and peaked ones."""
    rng = np.random.default_rng(n_vocab)
    spread = np.linspace(0.5, 4, KNOWN)[:, None]
    logits = rng.normal(0, 1, (KNOWN, n_vocab)) * spread
    logits[::3] += np.log(rng.zipf(1.6, (KNOWN, n_vocab)).clip(max=10**6))[::3]
    return (np.round(logits * 16) / 16).astype(np.float32)


def arrays_for(n_vocab: int, **more: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    sizes = {"vocab_size": n_vocab, "num_hidden_layers": 1, **more}
    config = tiny.config_of("llama", rms_norm_eps=1e-12, **sizes)
    arrays = tiny.arrays_of(config)
    for name in arrays:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            arrays[name] = np.zeros_like(arrays[name])
    which = np.zeros((n_vocab, WIDTH), np.float32)
    which[np.arange(n_vocab), np.arange(n_vocab) % KNOWN] = 1
    head = np.zeros((n_vocab, WIDTH), np.float32)
    head[:, :KNOWN] = table(n_vocab).T
    arrays["model.embed_tokens.weight"] = which
    arrays["model.norm.weight"] = np.full(WIDTH, WIDTH**-0.5, np.float32)
    arrays["lm_head.weight"] = head
    return config, arrays


def make_model(n_vocab: int, threads: int, isa: str | None = None) -> Any:
    config, arrays = arrays_for(n_vocab)
    prepared = prepare(LoadOptions(config, dtype="float32", threads=threads), arrays)
    backend = _core.Backend("cpu", isa, threads)
    model = _core.Model(backend, vars(prepared.config), prepared.forms.weights)
    load_weights(model, prepared)
    return model


@pytest.fixture(scope="module")
def models() -> dict[int, Any]:
    return {n: make_model(n, 1) for n in SIZES}


def run(model: Any, requests: list[dict[str, Any]], **limits: int) -> list[list[tuple]]:
    """Events of requests that run together: [(token, logprob, rank, top ids, logprobs)]."""
    sizes = {"max_seqs": 8, "max_batch_tokens": 64, "max_len": 100, "kv_pages": 32, **limits}
    engine = _core.Engine(model, sizes)
    places = {}
    for i, request in enumerate(requests):
        params = {**PARAMS, **request}
        places[engine.add(params.pop("prompt", [5]), params)] = i
    found: list[list[tuple]] = [[] for _ in requests]
    while engine.has_work():
        for number, _, kind, _, token, _, logprob, rank, ids, tops, _ in engine.step():
            if kind == TOKEN:
                found[places[number]].append((token, struct.pack("f", logprob), rank, ids, tops))
    assert engine.stats()["step_allocations"] == 0
    return found


def logits_of(model: Any, n_vocab: int) -> np.ndarray:
    """What the model really gives after each of the tokens 0..KNOWN-1."""
    out = np.zeros((KNOWN, n_vocab), np.float32)
    sizes = {"max_seqs": 1, "max_batch_tokens": 64, "max_len": 100, "kv_pages": 4}
    engine = _core.Engine(model, sizes)
    engine.add(list(range(KNOWN)), {**PARAMS, "max_tokens": 0}, logits=out)
    while engine.has_work():
        engine.step()
    return out


@pytest.mark.parametrize("n_vocab", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_draws_are_those_of_the_definition(models, case, n_vocab):
    model = models[n_vocab]
    logits = logits_of(model, n_vocab)
    np.testing.assert_allclose(logits, table(n_vocab), rtol=1e-5)
    several = 0
    for seed in range(2 if ref.is_filtered({**PARAMS, **CASES[case]}) else 4):
        params = {**PARAMS, **CASES[case], "seed": seed << 40 | 77}
        (events,) = run(model, [params])
        assert len(events) == TOKENS or events[-1][0] in params["stop_ids"]
        fed, made, mu = [5], [], 2 * params["mirostat_tau"]
        for event in events:
            row = logits[[*fed, *made][-1] % KNOWN]
            x = ref.ruled(row, params, fed, made)
            place = (params["seed"], 0, len(fed) + len(made))
            u = ref.uniform(*place), ref.uniform(*place, lane=1)
            allowed = ref.draws(x, params, u, mu)
            assert event[0] in allowed
            mu = ref.moved(x, params, event[0], mu) if params["mirostat"] else mu
            several += len(allowed) > 1
            made.append(event[0])
    assert several < 16


@pytest.mark.parametrize("n_vocab", SIZES)
@pytest.mark.parametrize("case", ["greedy", "plain", "hot", "top_p with rules", "allowed"])
@pytest.mark.parametrize("n_top", [0, 1, 7, 290, 301])
def test_scores_are_of_the_logits_before_the_rules(models, case, n_vocab, n_top):
    model = models[n_vocab]
    exact = logits_of(model, n_vocab).astype(np.float64)
    table = exact - np.log(np.exp(exact).sum(1, keepdims=True))
    (events,) = run(model, [{**CASES[case], "logprobs": n_top}])
    last = 5
    for token, logprob, rank, ids, tops in events:
        row = table[last % KNOWN]
        assert abs(struct.unpack("f", logprob)[0] - row[token]) < 1e-5
        assert rank == 1 + (row > row[token]).sum()
        if n_top:
            best = np.argsort(-row, kind="stable")[:n_top]
            np.testing.assert_array_equal(np.frombuffer(ids, np.int32), best)
            np.testing.assert_allclose(np.frombuffer(tops, np.float32), row[best], atol=1e-5)
        last = token


def test_thoughts_end_with_all_tokens_of_their_tag(models):
    tags = {"think_budget": 2, "think_start": [1, 2], "think_end": [7, 8, 9], "temperature": 0.0}
    for prompt, at in (([5, 1, 2, 6], 1), ([5, 1, 2], 2), ([5, 1, 2, 6, 6, 6], 0)):
        (events,) = run(models[301], [{**tags, "prompt": prompt}])
        made = [event[0] for event in events]
        assert made[at : at + 3] == [7, 8, 9]
        assert made[at + 3 : at + 6] != [7, 8, 9]
    (events,) = run(models[301], [{**tags, "prompt": [5, 1, 2, 6, 7]}])  # its first is there
    assert [event[0] for event in events][:2] == [8, 9]


def everything(n_vocab: int) -> list[dict[str, Any]]:
    """A request for each case, some with scores of all kinds, of different seeds."""
    return [
        {
            **case,
            "seed": i,
            "prompt": [i, 7, i + 1],
            "logprobs": [-1, 0, 5][i % 3],
            "report": i // 3 % 4,
        }
        for i, case in enumerate(CASES.values())
    ]


@pytest.mark.parametrize("n_vocab", SIZES)
def test_company_and_threads_do_not_change_a_bit(models, n_vocab):
    alone = [run(models[n_vocab], [request])[0] for request in everything(n_vocab)]
    for threads in (1, 2, 3):
        model = models[n_vocab] if threads == 1 else make_model(n_vocab, threads)
        assert run(model, everything(n_vocab)) == alone
        # more rows than a tile of logits holds
        assert run(model, everything(n_vocab) * 2, max_seqs=48, kv_pages=200) == alone * 2


@pytest.mark.parametrize("isa", _core.kernel_isas())
def test_levels_draw_alike(models, isa):
    """fp32 products differ between levels by rounding alone, which these draws do not notice."""
    tokens = [[e[0] for e in events] for events in run(models[9001], everything(9001))]
    model = make_model(9001, 2, isa)
    assert [[e[0] for e in events] for events in run(model, everything(9001))] == tokens
