"""The engine stepped by hand on a tiny random model: the door, branches, scores, cancelling, bits.

Tests talk to `_core.Engine` itself, so that a step is a step. A request's events, run alone with
room to spare, are the reference for the same request in any company and under any limits.
"""

from __future__ import annotations

import math
import random
import struct
import threading
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import SAMPLING

from llmaccel import _core
from llmaccel.errors import ConfigError, RequestError
from llmaccel.loading import load_weights, prepare
from llmaccel.options import LoadOptions

MAX_LEN = 400
VOCAB = 301
TOKEN, PROMPT, FINISH = _core.EVENT_KINDS
STOP, LENGTH, ABORT, TIMEOUT = range(4)
ROOMY = {"max_seqs": 8, "max_batch_tokens": 512, "max_len": MAX_LEN, "kv_pages": 64}
TIGHT = {"max_seqs": 3, "max_batch_tokens": 13, "max_len": MAX_LEN, "kv_pages": 7}
PARAMS = {**SAMPLING, "max_tokens": 8}


@pytest.fixture(scope="module")
def model():
    config = tiny.config_of("llama", max_position_embeddings=MAX_LEN)
    prepared = prepare(LoadOptions(config, dtype="float32", threads=1), tiny.arrays_of(config, 3))
    made = _core.Model(_core.Backend("cpu", None, 1), vars(prepared.config), prepared.forms.weights)
    load_weights(made, prepared)
    return made


class Stepper:
    """An engine and what it has said: events by (request, branch), and how each branch ended."""

    def __init__(self, model: Any, **limits: int) -> None:
        self.core = _core.Engine(model, {**ROOMY, **limits})
        self.events: dict[tuple[int, int], list[tuple]] = defaultdict(list)
        self.ends: dict[tuple[int, int], tuple[int, int]] = {}

    def add(
        self,
        prompt: list[int],
        *,
        branches: int = 1,
        suffixes: Any = None,
        priority: int = 0,
        timeout: float = 0.0,
        logits: Any = None,
        **params: Any,
    ) -> int:
        return self.core.add(
            prompt,
            {**PARAMS, **params},
            branches=branches,
            suffixes=suffixes,
            priority=priority,
            timeout=timeout,
            logits=logits,
        )

    def step(self) -> None:
        for (
            request,
            branch,
            kind,
            position,
            token,
            reason,
            logprob,
            rank,
            ids,
            tops,
            _,
        ) in self.core.step():
            key = request, branch
            assert key not in self.ends, "an event after the end"
            if kind == FINISH:
                self.ends[key] = reason, token
            else:
                self.events[key].append(
                    (kind, position, token, struct.pack("f", logprob), rank, ids, tops)
                )

    def run(self) -> Stepper:
        while self.core.has_work():
            self.step()
        stats = self.core.stats()
        assert stats["pages_used"] == stats["running"] == stats["waiting"] == 0
        assert stats["step_allocations"] == 0
        return self

    def tokens(self, request: int, branch: int = 0) -> list[int]:
        return [e[2] for e in self.events[request, branch] if e[0] == TOKEN]


def some_ids(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def logprob(event: tuple) -> float:
    return struct.unpack("f", event[3])[0]


# ---- the door ------------------------------------------------------------------------------------

BAD = [
    ("prompt: empty", {"prompt": []}),
    (r"prompt\[1\]: id 301 is outside the vocabulary of 301", {"prompt": [1, VOCAB]}),
    (r"prompt\[0\]: id -1 ", {"prompt": [-1]}),
    ("401 tokens leave no room in a context of 400", {"prompt": [1] * 401, "max_tokens": 0}),
    ("400 tokens leave no room in a context of 400 to generate", {"prompt": [1] * 400}),
    ("the longest suffix leave no room", {"prompt": [1] * 398, "suffixes": [[1, 2, 3]]}),
    ("n_branches: 0", {"branches": 0}),
    ("n_branches: 16385", {"branches": 16385}),
    (r"suffix_len\[1\]: 0", {"branches": 2, "suffixes": [[1], []]}),
    (r"suffix\[1\]: id 999", {"branches": 2, "suffixes": [[1], [999]]}),
    ("temperature: nan", {"temperature": math.nan}),
    ("temperature: -1", {"temperature": -1.0}),
    ("temperature: inf", {"temperature": math.inf}),
    ("top_p: 0 ", {"top_p": 0.0}),
    ("top_p: 1.5", {"top_p": 1.5}),
    ("min_p: -0.1", {"min_p": -0.1}),
    ("top_k: -2", {"top_k": -2}),
    ("presence_penalty: 3", {"presence_penalty": 3.0}),
    ("frequency_penalty: nan", {"frequency_penalty": math.nan}),
    ("repetition_penalty: 0", {"repetition_penalty": 0.0}),
    ("max_tokens: -1", {"max_tokens": -1}),
    ("min_tokens: 9", {"min_tokens": 9}),
    ("logprobs: 302", {"logprobs": 302}),
    ("logprobs: -2", {"logprobs": -2}),
    ("report: 4", {"report": 4}),
    ("prompt_logprobs: 302", {"prompt_logprobs": 302}),
    (r"stop_ids\[0\]: id 301", {"stop_ids": [301]}),
    (r"allowed\[2\]: id -5", {"allowed": [1, 2, -5]}),
    (r"bias_ids\[0\]: id 400", {"bias_ids": [400], "bias": [1.0]}),
    (r"bias\[1\]: inf", {"bias_ids": [1, 2], "bias": [1.0, math.inf]}),
    (r"bad_len\[1\]: 0", {"bad": [[1], []]}),
    (r"bad\[2\]: id 777", {"bad": [[1], [2, 777]]}),
    ("leave no token to draw", {"allowed": [4, 5], "bad": [[4], [9, 5]]}),
    ("leave no token to draw", {"allowed": [4], "stop_ids": [4], "min_tokens": 1}),
    ("timeout: not a number", {"timeout": math.nan}),
]


@pytest.mark.parametrize(("message", "request_"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_requests_name_the_field_and_harm_nobody(model, message, request_):
    engine = Stepper(model)
    good = engine.add(some_ids(5))
    engine.step()
    with pytest.raises(RequestError, match=message):
        engine.add(**{"prompt": [1, 2], **request_})
    engine.run()
    assert engine.events[good, 0] == reference(model, {})


def test_a_request_beyond_the_pages_is_refused(model):
    engine = Stepper(model, kv_pages=2)
    with pytest.raises(RequestError, match="need 3 KV pages, the cache has 2"):
        engine.add([1] * 100, max_tokens=30)
    fits = engine.add([1] * 100, max_tokens=29)
    engine.run()
    assert len(engine.tokens(fits)) == 29


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_seqs": 0}, "max_num_seqs"),
        ({"max_batch_tokens": 0}, "max_num_batched_tokens"),
        ({"max_len": MAX_LEN + 1}, "max_model_len"),
        ({"max_len": 0}, "max_model_len"),
        ({"kv_pages": 0}, "kv_pages"),
    ],
)
def test_bad_limits(model, limits, message):
    with pytest.raises(ConfigError, match=message):
        Stepper(model, **limits)


def test_cancelling_what_never_was(model):
    engine = Stepper(model)
    with pytest.raises(ConfigError, match="no request was given the id 1"):
        engine.core.cancel(1)
    one = engine.add([1])
    with pytest.raises(ConfigError, match="branch: 1"):
        engine.core.cancel(one, 1)
    engine.run()
    engine.core.cancel(one)  # has ended: nothing to do


# ---- ends and masks ------------------------------------------------------------------------------


def reference(model, params: dict, prompt: list[int] | None = None) -> list[tuple]:
    """Events of branch 0 of a request that runs alone."""
    engine = Stepper(model)
    request = engine.add(prompt or some_ids(5), **params)
    return engine.run().events[request, 0]


def test_ends(model):
    engine = Stepper(model)
    free = [e[2] for e in reference(model, {"max_tokens": 30, "temperature": 0.0})]
    stop = free[6]
    first = free.index(stop)
    a = engine.add(some_ids(5), max_tokens=30, temperature=0.0, stop_ids=[stop])
    b = engine.add(some_ids(5), max_tokens=10**6, temperature=0.0)
    c = engine.add(some_ids(5), max_tokens=30, temperature=0.0, stop_ids=[stop], min_tokens=12)
    d = engine.add(some_ids(5), max_tokens=0)
    engine.run()
    assert engine.tokens(a) == free[: first + 1]
    assert engine.ends[a, 0] == (STOP, stop)
    assert len(engine.tokens(b)) == MAX_LEN - 5
    assert engine.ends[b, 0] == (LENGTH, -1)
    assert stop not in engine.tokens(c)[:12]
    assert engine.tokens(d) == []
    assert engine.ends[d, 0] == (LENGTH, -1)


def test_allowed_and_bad_words(model):
    engine = Stepper(model)
    a = engine.add([1], max_tokens=60, allowed=[7, 8, 9], bad=[[7, 8], [9, 9, 9]], seed=1)
    b = engine.add([1], max_tokens=60, bad=[[i] for i in range(3, VOCAB)])
    engine.run()
    tokens = engine.tokens(a)
    assert set(tokens) == {7, 8, 9}
    pairs = list(pairwise(tokens))
    assert (7, 8) not in pairs
    assert (8, 8) in pairs
    assert not any(tokens[i : i + 3] == [9, 9, 9] for i in range(58))
    assert set(engine.tokens(b)) <= {0, 1, 2}


def test_timeout_and_cancel_end_within_a_step(model):
    engine = Stepper(model, max_seqs=2)
    slow = engine.add(some_ids(5), max_tokens=300, timeout=1e-9)
    long = engine.add(some_ids(200), max_tokens=100, branches=3)
    wait = engine.add(some_ids(5))
    engine.step()
    assert engine.ends[slow, 0] == (TIMEOUT, -1)
    engine.step()
    assert engine.core.stats()["pages_used"] > 0
    engine.core.cancel(long, 1)
    engine.core.cancel(long)
    engine.core.cancel(wait)
    engine.step()
    assert [engine.ends[long, b][0] for b in range(3)] == [ABORT] * 3
    assert engine.ends[wait, 0][0] == ABORT
    assert engine.core.stats()["pages_used"] == 0
    engine.run()


# ---- branches and scores -------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_branches(model, limits, length):
    engine = Stepper(model, **limits)
    prompt = some_ids(length)
    params = {"seed": 9, "logprobs": 3, "max_tokens": 20, "repetition_penalty": 1.1}
    many = engine.add(prompt, branches=4, **params)
    engine.run()
    assert engine.events[many, 0] == reference(model, params, prompt)
    assert len({tuple(engine.tokens(many, b)) for b in range(4)}) == 4
    if limits is ROOMY:
        stats = engine.core.stats()
        assert stats["prompt_tokens"] == length - 1 + 4, "the prompt is computed once"
        assert stats["preemptions"] == 0


@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_suffixes_score_as_one_prompt_would(model, limits):
    engine = Stepper(model, **limits)
    prompt = some_ids(70)
    suffixes = [some_ids(n, seed=n) for n in (1, 2, 60, 7)]
    scored = engine.add(prompt, branches=4, suffixes=suffixes, max_tokens=0)
    going_on = engine.add(prompt, branches=4, suffixes=suffixes, max_tokens=5, temperature=0.0)
    engine.run()
    for b, suffix in enumerate(suffixes):
        whole = reference(
            model, {"prompt_logprobs": 0, "max_tokens": 5, "temperature": 0.0}, prompt + suffix
        )
        wanted = [e for e in whole if e[0] == PROMPT and e[1] >= 70]
        assert [e[2] for e in wanted] == suffix
        assert engine.events[scored, b] == wanted
        assert engine.events[going_on, b] == wanted + [e for e in whole if e[0] == TOKEN]
        assert engine.ends[scored, b] == (LENGTH, -1)


@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_logits_and_prompt_logprobs(model, limits):
    engine = Stepper(model, **limits)
    prompt = some_ids(130)
    logits = np.full((130, VOCAB), np.nan, np.float32)
    only = np.full((130, VOCAB), np.nan, np.float32)
    request = engine.add(
        prompt, logits=logits, prompt_logprobs=2, logprobs=VOCAB, max_tokens=1, temperature=0.0
    )
    engine.add(prompt, logits=only, max_tokens=0)
    engine.run()
    assert logits.tobytes() == only.tobytes()
    exact = logits.astype(np.float64)
    table = exact - np.log(np.exp(exact).sum(1, keepdims=True))
    *events, drawn = engine.events[request, 0]
    assert [e[1] for e in events] == list(range(1, 130))
    for event in events:
        row = table[event[1] - 1]
        assert event[2] == prompt[event[1]]
        assert abs(logprob(event) - row[event[2]]) < 1e-5
        assert event[4] == 1 + (row > row[event[2]]).sum()
        best = np.argsort(-row, kind="stable")[:2]
        assert np.frombuffer(event[5], np.int32).tolist() == best.tolist()
    assert drawn[2] == logits[-1].argmax()
    assert np.frombuffer(drawn[5], np.int32)[0] == drawn[2]
    assert np.abs(np.frombuffer(drawn[6], np.float32) - np.sort(table[-1])[::-1]).max() < 1e-5


def test_logits_buffer_is_kept_until_the_last_branch_ends(model):
    engine = Stepper(model, max_batch_tokens=16)
    view = memoryview(bytearray(100 * VOCAB * 4)).cast("f")
    request = engine.add(some_ids(100), logits=view, branches=2, max_tokens=3)
    engine.core.cancel(request, 1)
    engine.step()
    assert engine.ends[request, 1][0] == ABORT
    with pytest.raises(BufferError):
        view.release()
    engine.run()
    view.release()


# ---- company -------------------------------------------------------------------------------------


def random_request(rng: random.Random) -> dict[str, Any]:
    request: dict[str, Any] = {
        "prompt": some_ids(rng.choice([1, 2, 17, 63, 64, 65, 120]), rng.randrange(1000)),
        "max_tokens": rng.choice([0, 1, 5, 25]),
        "seed": rng.randrange(2**63),
        "branches": rng.choice([1, 1, 1, 2, 3]),
        "temperature": rng.choice([0.0, 0.8, 1.2]),
        "logprobs": rng.choice([-1, 0, 3, VOCAB]),
        "priority": rng.randint(-1, 1),
        "prompt_logprobs": rng.choice([-1, -1, 0, 2, VOCAB]),
    }
    if rng.random() < 0.3:
        request |= {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
    if rng.random() < 0.3:
        request |= {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "bias_ids": [3, 4], "bias": [5, -9]}
    if rng.random() < 0.3:
        request |= {
            "stop_ids": some_ids(12, rng.randrange(99)),
            "min_tokens": min(2, request["max_tokens"]),
            "bad": [[5], [6, 7]],
        }
    if rng.random() < 0.2:
        lengths = rng.choices([1, 3, 66], k=request["branches"])
        request["suffixes"] = [some_ids(n, b) for b, n in enumerate(lengths)]
    request["report"] = rng.randrange(4)
    return request


@pytest.mark.parametrize(
    "limits",
    [
        {"max_seqs": 1, "max_batch_tokens": 1},
        {"max_seqs": 3, "max_batch_tokens": 7, "kv_pages": 6},
        {"max_seqs": 8, "max_batch_tokens": 64, "kv_pages": 6},
        {"max_seqs": 8, "max_batch_tokens": 512},
    ],
    ids=str,
)
def test_company_does_not_change_a_bit(model, limits):
    rng = random.Random(str(limits))
    engine = Stepper(model, **limits)
    wanted = {}
    pending = [random_request(rng) for _ in range(14)]
    hits = 15  # a prompt that is always thrown out would never end
    while pending or engine.core.has_work():
        if pending and rng.random() < 0.4:
            request = pending.pop()
            alone = Stepper(model)
            number = alone.add(**request)
            alone.run()
            mine = engine.add(**request)
            for b in range(request["branches"]):
                wanted[mine, b] = alone.events[number, b], alone.ends[number, b]
        if hits and rng.random() < 0.1:
            engine.core.preempt(rng.randint(1, 3))
            hits -= 1
        engine.step()
    engine.run()
    assert engine.core.stats()["preemptions"] > 0
    for key, (events, end) in wanted.items():
        assert engine.events[key] == events
        assert engine.ends[key] == end


def test_many_random_requests_leave_nothing_behind(model):
    """From three threads, a third of them invalid, some cancelled, while a fourth thread steps."""
    engine = Stepper(model, max_seqs=6, max_batch_tokens=64, kv_pages=8)
    accepted: list[tuple[int, int]] = []
    refused = []
    adding = [True] * 3

    def add(which: int) -> None:
        rng = random.Random(which)
        for _ in range(60):
            request = random_request(rng)
            bad = rng.random() < 0.33
            if bad:
                request |= dict(rng.choice(BAD)[1])
            try:
                number = engine.add(**request)
            except RequestError as error:
                refused.append(error)
                continue
            accepted.append((number, request["branches"]))
            if rng.random() < 0.2:
                engine.core.cancel(number, rng.randrange(request["branches"]))
        adding[which] = False

    threads = [threading.Thread(target=add, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    while any(adding) or engine.core.has_work():
        engine.step()
    for thread in threads:
        thread.join()
    engine.run()
    assert len(refused) > 20
    assert set(engine.ends) == {(n, b) for n, branches in accepted for b in range(branches)}
