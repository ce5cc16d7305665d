"""Graphs of decode steps: their sizes, and that rows which only fill one up change nothing.

The model of most tests is test_sampling's, whose rows of logits are the same bits on both backends,
so every draw has to be the CPU's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_sampling as sampling
from test_cuda_ahead import model_on
from test_cuda_backend import checkpoint, greedy, open_on, prompts
from test_cuda_backend import emulated as emulated_backend

from llmaccel import _core
from llmaccel.environment import open_device

emulated = emulated_backend
SIZES = [1, 2, 4, *range(8, 257, 8)]


def size_of(n: int, most: int) -> int:
    """Tokens of the graph that a step of n takes; 0: none."""
    size = next((size for size in SIZES if size >= n), 0)
    return min(size, most)


def play(model: Any, asked: list[dict[str, Any]], most: int) -> tuple[list[list], list[int]]:
    """(ids and ranks of each request, tokens of each step); prompts are of one token."""
    limits = {"max_seqs": most, "max_batch_tokens": most, "max_len": 70, "kv_pages": most}
    engine = _core.Engine(model, limits)
    places = {}
    for i, params in enumerate(asked):
        places[engine.add([i % sampling.KNOWN], {**sampling.PARAMS, **params})] = i
    found: list[list] = [[] for _ in asked]
    steps = []
    while engine.has_work():
        for number, _, kind, _, token, _, _, rank, ids, *_ in engine.step():
            if kind == sampling.TOKEN:
                found[places[number]].append((token, rank, ids))
        stats = engine.stats()
        steps += [stats["last_step_tokens"]] if stats["last_step_tokens"] else []
    assert engine.stats()["step_allocations"] == 0
    return found, steps


def compare(asked: list[dict[str, Any]], most: int) -> tuple[list[int], int, int]:
    """(tokens of the device's steps, graphs made, graphs run); the CPU's draws are the device's."""
    theirs, _ = play(model_on("cpu", _core.Backend("cpu", None, 1)), asked, most)
    device = open_device("cuda")
    before = device.info
    ours, steps = play(model_on("cuda", device), asked, most)
    assert ours == theirs
    after = device.info
    made, run = (after[name] - before[name] for name in ("graphs", "graph_replays"))
    return steps, made, run


def test_every_rule_of_sampling_in_steps_of_any_size(emulated: str) -> None:
    """46 sequences that end one after another; the workspace's 46 tokens are its last size."""
    names = [name for name in sampling.PLAIN_CASES if name != "min_tokens"]
    asked = [
        {**sampling.CASES[names[i % len(names)]], "max_tokens": 1 + i % 6 * 2, "seed": i}
        for i in range(46)
    ]
    for i in range(0, 46, 3):
        asked[i]["logprobs"] = 2
    steps, made, run = compare(asked, 46)
    sizes = [size_of(n, 46) for n in steps]
    assert max(steps) == 46
    assert sizes[0] == 46
    assert len(set(sizes)) >= 4
    assert (made, run) == (len(set(sizes)), len(steps))


@pytest.mark.slow
def test_the_largest_graph_has_256_tokens(emulated: str) -> None:
    asked = [{"max_tokens": 3, "seed": i} for i in range(256)]
    steps, made, run = compare([*asked, {"max_tokens": 1}], 300)
    assert steps == [257, 256, 256]
    assert (made, run) == (1, 2)


@pytest.mark.parametrize(("n", "graphs"), [(33, False), (31, True)])
def test_rows_that_the_host_draws_want_all_logits_at_hand(
    n: int, graphs: bool, emulated: str
) -> None:
    """A tile of logits is 32 rows: of a larger step only the last ones are left when it ends."""
    asked = [{"max_tokens": 3, "seed": i, "logprobs": 40 if i == 20 else 1} for i in range(n)]
    steps, made, run = compare(asked, 40)
    assert set(steps) == {n}
    assert (made, run) == ((1, len(steps)) if graphs else (0, 0))


def test_company_in_a_filled_graph_changes_no_bit(tmp_path: Path, emulated: str) -> None:
    """41 sequences of other lengths in a graph of 48, some of more than a page."""
    folder = checkpoint("qwen3", tmp_path, num_hidden_layers=1)
    asked = prompts(39, 9, seed=3) + prompts(2, 80, seed=4)
    with open_on(folder, "cuda", max_num_seqs=64) as llm:
        before = llm.report()["backend"]["graph_replays"]
        together = greedy(llm, asked, 4)
        assert llm.report()["backend"]["graph_replays"] >= before + 3
        alone = [greedy(llm, [ids], 4)[0] for ids in asked[::10]]
    for (ids, best), (want, wanted) in zip(alone, together[::10], strict=True):
        assert ids == want
        assert np.array_equal(best, wanted)
