"""Sixteen mixed requests on backend="cuda" are told what the CPU tells, whatever else happens.

Prompts are cut, sequences preempted, one request is cancelled, others are drawn beside them; the
device is the emulated one. Rounding in other places may turn a choice between two tokens that are
nearly equal, so the requests are those in which the CPU had no such choice: every token has to be
the same. Counters of the runtime say what the loop over steps did meanwhile.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import reference_sampling as reference
import test_cuda_backend as cuda
from conftest import SAMPLING
from test_cuda_backend import CLEAR, FAMILIES, checkpoint, counts, open_on, prompts

from llmaccel import LLM, SamplingParams

emulated, nothing_stays = cuda.emulated, cuda.nothing_stays
OPTIONS = {"max_num_seqs": 16, "max_num_batched_tokens": 24}
# What a request asks for beside its lengths; as the engine names it, for the reference.
KINDS = [
    {},
    {"stop_token_ids": True},
    {"repetition_penalty": 1.3, "logit_bias": {7: 2.0, 3: -1.0}},
    {"stop_token_ids": True, "min_tokens": 3, "allowed_token_ids": [*range(9, 250)]},
]


def request(i: int, stop: int | None) -> SamplingParams:
    kind = dict(KINDS[i % 4])
    if kind.pop("stop_token_ids", False) and stop is not None:
        kind["stop_token_ids"] = [stop]
    more = {"logprobs": 2} if i % 3 else {}
    return SamplingParams(temperature=0, max_tokens=3 + i % 5 * 2, ignore_eos=True, **kind, **more)


def margin(logits: np.ndarray, params: SamplingParams, given: list[int], made: list[int]) -> float:
    """By how much the best logit after the rules leads, at the closest of the tokens."""
    bias = params.logit_bias or {}
    rules = {"repetition_penalty": params.repetition_penalty, "min_tokens": params.min_tokens}
    rules |= {"stop_ids": params.stop_token_ids or [], "allowed": params.allowed_token_ids or []}
    rules |= {"bias_ids": list(bias), "bias": list(bias.values())}
    least = np.inf
    for n, row in enumerate(logits):
        best = np.sort(reference.ruled(row, {**SAMPLING, **rules}, given, made[:n]))[-2:]
        least = min(least, float(best[1] - best[0]))
    return least


def clear_requests(cpu: LLM) -> list[tuple[list[int], SamplingParams]]:
    """16 requests, of each kind the four of 24 in which the CPU was most sure of itself."""
    asked = prompts(96, 28, seed=8)
    free = cpu.generate(asked, [request(i, None) for i in range(96)], use_tqdm=False)
    params = [request(i, out.outputs[0].token_ids[2]) for i, out in enumerate(free)]
    outs = cpu.generate(asked, params, use_tqdm=False, output_logits=True)
    leads = []
    for ids, each, out in zip(asked, params, outs, strict=True):
        one = out.outputs[0]
        logits = one.logits.numpy()
        leads.append(margin(logits, each, ids, one.token_ids) / logits.std())
    chosen = [sorted(range(kind, 96, 4), key=lambda i: -leads[i])[:4] for kind in range(4)]
    order = [i for four in zip(*chosen, strict=True) for i in four]
    assert min(leads[i] for i in order) > 0.05  # some five times what roundings move a logit by
    return [(asked[i], params[i]) for i in order]


def told(output) -> tuple:
    """All that a request was told."""
    one = output.outputs[0]
    scores = [] if one.logprobs is None else one.logprobs
    best = [[(t, p.logprob, p.rank) for t, p in step.items()] for step in scores]
    return list(one.token_ids), one.finish_reason, one.stop_reason, best


def drawn(i: int) -> SamplingParams:
    more = [{"top_p": 0.9, "frequency_penalty": 0.4, "logprobs": 1}, {"top_k": 20, "min_p": 0.01}]
    return SamplingParams(
        temperature=0.8 + 0.4 * (i % 2), seed=i, max_tokens=6, ignore_eos=True, **more[i % 2]
    )


@pytest.mark.parametrize(
    ("family", "cc"),
    [*((family, "80") for family in FAMILIES), pytest.param("qwen3", "90", marks=pytest.mark.slow)],
)
def test_sixteen_mixed_requests_are_told_what_the_cpu_tells(
    family: str, cc: str, tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the generic products, and by Hopper's."""
    monkeypatch.setenv("LLMACCEL_EMU_CC", cc)
    folder = checkpoint(family, tmp_path)
    with open_on(folder, "cpu", **OPTIONS) as cpu:
        asked = clear_requests(cpu)
        theirs = [told(cpu.generate([ids], p, use_tqdm=False)[0]) for ids, p in asked]
    beside = list(zip(prompts(3, 28, seed=9), map(drawn, range(3)), strict=True))
    with open_on(folder, "cuda", **OPTIONS) as llm:
        llm.generate([asked[0][0]], SamplingParams(max_tokens=2), use_tqdm=False)  # pages are there
        before = counts()
        futures = [llm.submit(ids, params) for ids, params in asked + beside]
        dropped = llm.submit(asked[0][0], SamplingParams(max_tokens=90, ignore_eos=True))
        for i in range(6):
            llm.engine.preempt(1)
            time.sleep(0.05)
            if i == 3:
                dropped.cancel()
        together = [told(future.result()) for future in futures]
        after, stats = counts(), llm.report()["stats"]
        alone = [told(llm.generate([ids], p, use_tqdm=False)[0]) for ids, p in beside]
    assert len(theirs) == 16
    for (ids, reason, stop, best), want in zip(together, theirs, strict=False):
        assert (ids, reason, stop) == want[:3]
        for mine, other in zip(best, want[3], strict=True):
            assert abs(mine[0][1] - other[0][1]) < CLEAR
    assert together[16:] == alone
    assert {one[1] for one in together} == {"stop", "length"}
    assert len({tuple(one[0]) for one in together}) > 12
    assert stats["preemptions"] > 0
    assert stats["step_allocations"] == 0
    assert after.replays > before.replays
    assert after.waits == before.waits  # nobody waited for the device to have nothing to do
    assert after.allocations == before.allocations
    assert after.alive - before.alive == after.graphs - before.graphs


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "llama")) for name in FAMILIES],
)
def test_decoding_replays_graphs_and_allocates_nothing(
    family: str, tmp_path: Path, emulated: str
) -> None:
    folder, asked = checkpoint(family, tmp_path), prompts(3, 20, seed=6)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    with open_on(folder, "cuda") as llm:
        for n in (1, 2, 3):  # the graphs of as many tokens
            first = llm.generate(asked[:n], params, use_tqdm=False)
        before, steps = counts(), llm.report()["stats"]["steps"]
        again = llm.generate(asked, params, use_tqdm=False)
        after, steps = counts(), llm.report()["stats"]["steps"] - steps
    assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in first]
    assert after.allocations == before.allocations
    assert after.alive == before.alive
    assert after.replays - before.replays >= 8  # first tokens come with the prompts
    assert after.waits == before.waits  # nobody waits for the device to have nothing to do
    assert after.event_waits - before.event_waits == steps
    assert after.graphs == before.graphs
    assert after.copied_out - before.copied_out == 12 * 3 * 9  # id, logprob, rank
