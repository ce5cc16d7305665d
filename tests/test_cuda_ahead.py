"""Steps asked for before the last one's tokens are known, held to the CPU's, which are not.

The model is test_sampling's, whose rows of logits are the same bits on both, so every draw has to
be: whatever ends requests, whoever is preempted and for whatever reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_sampling as sampling
from emulator import bf16, from_bf16
from test_cuda_backend import emulated as emulated_backend

from llmaccel import _core
from llmaccel.environment import open_device
from llmaccel.loading import load_weights, prepare
from llmaccel.options import LoadOptions

emulated = emulated_backend
SIZES = {"max_seqs": 6, "max_batch_tokens": 40, "max_len": 130, "kv_pages": 7}
CANCELLED = 3


def model_on(name: str, backend: Any) -> Any:
    config, arrays = sampling.arrays_for(301, intermediate_size=104)
    arrays = {name: from_bf16(bf16(values)) for name, values in arrays.items()}
    prepared = prepare(LoadOptions(config, dtype="bfloat16", backend=name), arrays)
    model = _core.Model(backend, vars(prepared.config), prepared.forms.weights)
    load_weights(model, prepared)
    return model


def requests(seed: int) -> list[tuple[list[int], dict[str, Any], int]]:
    """(prompt, parameters, branches): any rule, many tokens that end a request, any length."""
    rng = np.random.default_rng(seed)
    names, made = list(sampling.CASES), []
    for i in range(10):
        params = {**sampling.PARAMS, "seed": i, **sampling.CASES[rng.choice(names)]}
        params |= {
            "max_tokens": int(rng.integers(1, 50)),
            "stop_ids": rng.integers(0, 301, 30).tolist(),
        }
        params["min_tokens"] = min(params["max_tokens"], int(rng.integers(0, 6)))
        prompt = rng.integers(0, 301, rng.integers(1, 70)).tolist()
        made.append((prompt, params, int(rng.integers(1, 4))))
    return made


def play(model: Any, asked: list[tuple[list[int], dict[str, Any], int]]):
    """Events of every branch, and the engine's numbers; one is cancelled, two are preempted."""
    engine = _core.Engine(model, SIZES)
    numbers = [engine.add(prompt, params, branches=n) for prompt, params, n in asked]
    found: dict[tuple[int, int], list[tuple]] = {}
    steps = 0
    while engine.has_work():
        steps += 1
        for number, branch, kind, _, token, reason, *_ in engine.step():
            found.setdefault((numbers.index(number), branch), []).append((kind, token, reason))
        if steps == 3:
            engine.preempt(2)
        if steps == 6:
            engine.cancel(numbers[CANCELLED])
    return found, engine.stats()


@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_events_are_the_cpus(emulated: str, seed: int) -> None:
    """Seven pages for six sequences and their branches: many wait, and some are recomputed."""
    asked = requests(seed)
    theirs, _ = play(model_on("cpu", _core.Backend("cpu", None, 1)), asked)
    ours, stats = play(model_on("cuda", open_device("cuda")), asked)
    assert stats["preemptions"] >= 2
    assert (stats["pages_used"], stats["step_allocations"]) == (0, 0)
    assert ours.keys() == theirs.keys()
    for (request, branch), events in ours.items():
        want = theirs[request, branch]
        if request == CANCELLED:  # a step is another time on the device: what both have
            n = min(len(events), len(want)) - 1
            events, want = events[:n], want[:n]
        assert events == want


def test_two_full_steps_are_told_of_at_once(emulated: str) -> None:
    """A step of a prompt's scores is under way when one comes that cannot be: all rows of both."""
    sizes = {"max_seqs": 4, "max_batch_tokens": 300, "max_len": 155, "kv_pages": 12}
    prompt = np.random.default_rng(5).integers(0, 301, 150).tolist()
    kinds = [{}, {}, {"typical_p": 0.5}, {"typical_p": 0.5}]
    scored = {**sampling.PARAMS, "prompt_logprobs": 0, "max_tokens": 2}
    found = []
    for name, backend in (("cpu", _core.Backend("cpu", None, 1)), ("cuda", open_device("cuda"))):
        engine = _core.Engine(model_on(name, backend), sizes)
        numbers = [engine.add(prompt, {**scored, **more}) for more in kinds]
        events: dict[int, list[tuple]] = {}
        steps = []
        while engine.has_work():
            told = engine.step()
            steps.append(len(told))
            for number, _, kind, position, token, *_ in told:
                events.setdefault(numbers.index(number), []).append((kind, position, token))
        found.append(events)
    assert found[0] == found[1]
    assert max(steps) > 570
