"""logprobs_mode: what is reported of each kind against NumPy, the same draws whatever is reported,
and raw values of prompts and of what scores."""

from __future__ import annotations

import struct
from typing import Any

import letters
import numpy as np
import pytest
import reference_sampling as ref
from conftest import SAMPLING
from letters import only
from test_sampling import CASES, KNOWN, logits_of, make_model, run

from llmaccel import LLM, SamplingParams, UnsupportedCombination, _core
from llmaccel.params import LOGPROBS_MODES

VOCAB = 301
RAW, RAW_LOGITS, DRAWN, DRAWN_LOGITS = range(4)
PARAMS = {**SAMPLING, "max_tokens": 12, "seed": 5 << 40 | 3}


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(VOCAB, 1)


@pytest.fixture(scope="module")
def logits(model) -> np.ndarray:
    return logits_of(model, VOCAB)


def rows_of(events: list[tuple]) -> list[tuple[int, float, int, np.ndarray]]:
    """(token, its value, its rank, the values of all tokens by id)."""
    found = []
    for token, value, rank, ids, tops in events:
        row = np.empty(VOCAB)
        row[np.frombuffer(ids, np.int32)] = np.frombuffer(tops, np.float32)
        assert (np.sort(row)[::-1] == np.frombuffer(tops, np.float32)).all()
        found.append((token, struct.unpack("f", value)[0], rank, row))
    return found


def log_softmax(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(ref.softmax(x))


def is_row(got: np.ndarray, wanted: list[np.ndarray]) -> bool:
    """Whether it is one of them: sums in float32 cannot tell where some filters end."""
    return any(np.allclose(got, one, rtol=1e-5, atol=2e-5) for one in wanted)


@pytest.mark.parametrize("case", CASES)
def test_each_kind_is_that_of_the_definition(model, logits, case):
    params = {**PARAMS, **CASES[case], "max_tokens": 12, "logprobs": VOCAB}
    params["min_tokens"] = min(params["min_tokens"], 12)
    kinds = [rows_of(run(model, [{**params, "report": kind}])[0]) for kind in range(4)]
    made, mu = [], 2 * params["mirostat_tau"]
    for raw, raw_logits, drawn, drawn_logits in zip(*kinds, strict=True):
        x = logits[[5, *made][-1] % KNOWN]
        ruled = ref.ruled(x, params, [5], made)
        u = ref.uniform(params["seed"], 0, 1 + len(made), lane=1)
        wanted = [ref.reported(ruled, params, u, mu, off) for off in (0.0, 1e-6, -1e-6)]
        assert is_row(raw[3], [log_softmax(x.astype(np.float64))])
        assert is_row(raw_logits[3], [x])
        assert is_row(drawn[3], [one[1] for one in wanted])
        assert is_row(drawn_logits[3], [one[0] for one in wanted])
        for token, value, rank, row in (raw, raw_logits, drawn, drawn_logits):
            assert token == raw[0]
            assert value == np.float32(row[token])
            assert rank == 1 + (row > row[token]).sum()
            assert value > -np.inf
        mu = ref.moved(ruled, params, raw[0], mu) if params["mirostat"] else mu
        made.append(raw[0])
    assert not np.isneginf(kinds[RAW][0][3]).any()


@pytest.mark.parametrize("case", ["greedy", "plain", "top_p with rules", "top_k, top_p", "XTC"])
def test_large_vocabularies(case):
    big = make_model(9001, 2)
    exact = logits_of(big, 9001)
    params = {**PARAMS, **CASES[case], "logprobs": 50}
    for kind in (DRAWN, DRAWN_LOGITS):
        made: list[int] = []
        for token, value, _, ids, tops in run(big, [{**params, "report": kind}])[0]:
            x = ref.ruled(exact[[5, *made][-1] % KNOWN], params, [5], made)
            u = ref.uniform(params["seed"], 0, 1 + len(made), lane=1)
            rows = [
                ref.reported(x, params, u, 0.0, off)[kind == DRAWN] for off in (0.0, 1e-6, -1e-6)
            ]
            best, values = np.frombuffer(ids, np.int32), np.frombuffer(tops, np.float32)
            assert any(np.allclose(values, row[best], rtol=1e-5, atol=2e-5) for row in rows)
            value = struct.unpack("f", value)[0]
            assert any(np.allclose(value, row[token], rtol=1e-5, atol=2e-5) for row in rows)
            made.append(token)


def test_traced_tokens_are_scored_by_what_would_be_drawn_from(model, logits):
    rules = {"top_k": 20, "temperature": 0.5, "bias_ids": [3], "bias": [2.0]}
    for case in (rules, {**rules, "top_k": 0, "top_p": 0.7}, {"mirostat": 2, "mirostat_tau": 3.0}):
        trace = [9, 3, 250, 14]
        params = {**PARAMS, **case, "logprobs": VOCAB, "trace": trace, "max_tokens": 4}
        made: list[int] = []
        for token, value, _, row in rows_of(run(model, [{**params, "report": DRAWN}])[0]):
            x = ref.ruled(logits[[5, *made][-1] % KNOWN], params, [5], made)
            mu = 2 * params["mirostat_tau"]
            wanted = [ref.reported(x, params, 1.0, mu, off)[1] for off in (0.0, 1e-6, -1e-6)]
            assert token == trace[len(made)]
            assert is_row(row, wanted)
            assert value == np.float32(row[token])
            made.append(token)


def test_a_traced_token_where_nothing_is_left(model):
    """What is allowed comes once: each value is -inf, and none is NaN."""
    params = {**PARAMS, "allowed": [7], "no_repeat_ngram": 1, "trace": [7, 9], "max_tokens": 2}
    for kind in (DRAWN, DRAWN_LOGITS):
        _, found = run(model, [{**params, "logprobs": VOCAB, "report": kind}])[0]
        token, value, rank, _, tops = found
        assert (token, struct.unpack("f", value)[0], rank) == (9, -np.inf, 1)
        assert np.isneginf(np.frombuffer(tops, np.float32)).all()


def test_prompts_are_raw_in_each_kind(model, logits):
    prompt = [5, 9, 17, 2]
    for kind in range(4):
        engine = _core.Engine(
            model, {"max_seqs": 2, "max_batch_tokens": 16, "max_len": 64, "kv_pages": 4}
        )
        params = {**PARAMS, "temperature": 0.3, "top_k": 2, "prompt_logprobs": 3, "report": kind}
        engine.add(prompt, {**params, "bias_ids": [7], "bias": [50.0]})
        events = []
        while engine.has_work():
            events += [e for e in engine.step() if e[2] == _core.EVENT_KINDS[1]]
        assert len(events) == 3
        for i, event in enumerate(events):
            x = logits[prompt[i] % KNOWN].astype(np.float64)
            row = x if kind in (RAW_LOGITS, DRAWN_LOGITS) else log_softmax(x)
            assert abs(event[6] - row[prompt[i + 1]]) < 1e-5
            ids, tops = np.frombuffer(event[8], np.int32), np.frombuffer(event[9], np.float32)
            np.testing.assert_allclose(tops, row[ids], atol=1e-5)


def test_the_option(tmp_path):
    folder = letters.write_model(tmp_path)
    given = {"temperature": 0.8, "seed": 3, "max_tokens": 8, "logprobs": 5, "prompt_logprobs": 2}
    params = SamplingParams(**given, top_k=4, top_p=0.95, ignore_eos=True, logit_bias={99: 1.5})
    outs = {}
    for mode in LOGPROBS_MODES:
        with LLM(folder, logprobs_mode=mode, dtype="float32") as llm:
            assert llm.report()["options"]["logprobs_mode"] == mode
            (out,) = llm.generate("abcd", params, output_logits=True)
            outs[mode] = out
            scores = llm.loglikelihood(["abc"], ["d"])
            assert scores == outs.setdefault("scores", scores)
            best = SamplingParams(n=1, best_of=2, **given)
            if mode.endswith("logits"):
                with pytest.raises(UnsupportedCombination, match=f"best_of: .*={mode!r}"):
                    llm.generate("abcd", best)
            else:
                llm.generate("abcd", best)
    one = {mode: outs[mode].outputs[0] for mode in LOGPROBS_MODES}
    tokens = only([outs["raw_logprobs"]]).token_ids
    for at, token in enumerate(tokens):
        x = one["raw_logits"].logits.numpy()[at].astype(np.float64)
        assert one["raw_logits"].logprobs[at][token].logprob == np.float32(x[token])
        assert abs(one["raw_logprobs"].logprobs[at][token].logprob - log_softmax(x)[token]) < 1e-5
        processed = one["processed_logprobs"].logprobs[at]
        finite = [entry.logprob for entry in processed.values() if entry.logprob > -np.inf]
        assert 1 <= len(finite) <= 4
        assert abs(np.exp(finite).sum() - 1) < 1e-5
        scaled = one["processed_logits"].logprobs[at][token].logprob
        assert abs(scaled - (x[token] + 1.5 * (token == 99)) / 0.8) < 1e-4
    for mode in LOGPROBS_MODES:
        assert one[mode].token_ids == tokens
        values = [entry[t].logprob for entry, t in zip(one[mode].logprobs, tokens, strict=True)]
        assert one[mode].cumulative_logprob == pytest.approx(sum(values))
        twin = LOGPROBS_MODES[LOGPROBS_MODES.index(mode) % 2]
        assert outs[mode].prompt_logprobs == outs[twin].prompt_logprobs
    assert outs["raw_logits"].prompt_logprobs != outs["raw_logprobs"].prompt_logprobs
