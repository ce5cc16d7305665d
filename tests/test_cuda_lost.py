"""A device that fails: every request ends by it, pages go, and nothing new is taken.

Failures are injected into the emulated runtime: the launch of a number does not come to its end,
whichever kernel it is. The model and the requests are test_cuda_ahead's.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import test_cuda_ahead as ahead
import test_cuda_backend as cuda
import test_sampling as sampling
from test_cuda_backend import checkpoint, open_on, prompts

from llmaccel import LLMAccelError, SamplingParams, _core
from llmaccel.environment import open_device
from llmaccel.request import EVENT_FINISH, REASONS

emulated, nothing_stays = cuda.emulated, cuda.nothing_stays
WHY = "backend: cuda: a fault that was asked for"
REFUSED = f"^engine: its device has failed: {WHY}$"
BEAMS = {**sampling.PARAMS, "temperature": 0.0, "max_tokens": 20}


def submit(engine: Any) -> list[tuple[int, int]]:
    """(number, branches) of requests of every kind: more than may run, one with a deadline."""
    made = []
    for i, (prompt, params, n) in enumerate(ahead.requests(4)):
        options = {"timeout": 3600.0} if i == 1 else {}
        params = {**params, "stop_ids": [], "min_tokens": 0, "max_tokens": 40}
        made.append((engine.add(prompt, params, branches=n, **options), n))
    made.append((engine.add([5, 6, 7], BEAMS, branches=3, beam=1), 3))
    return made


@pytest.mark.parametrize("fault", [1, 30, 400])
def test_all_requests_end_and_nothing_is_taken(
    fault: int, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step, among prompts, in graphs: whoever ran, waited or had just come."""
    monkeypatch.setenv("LLMACCEL_EMU_FAULT", str(fault))
    model = ahead.model_on("cuda", open_device("cuda"))
    engine = _core.Engine(model, ahead.SIZES)
    asked, steps = submit(engine), 0
    open_ = {(number, branch) for number, n in asked for branch in range(n)}
    while True:
        try:
            events = engine.step()
        except LLMAccelError as error:
            assert str(error) == WHY
            break
        steps += 1
        open_ -= {(e[0], e[1]) for e in events if e[2] == EVENT_FINISH}
        assert steps < 500
    assert (cuda.counts().replays > 0) == (fault == 400)
    stats = engine.stats()
    assert (stats["pages_used"], stats["running"], stats["waiting"]) == (0, 0, 0)
    assert engine.has_work()
    with pytest.raises(LLMAccelError, match=REFUSED):
        engine.add([1, 2], sampling.PARAMS)
    engine.cancel(asked[0][0])  # it has ended: nothing happens
    told = []
    while engine.has_work():
        told += engine.step()
    assert {(e[0], e[1]) for e in told} == open_
    assert len(told) == len(open_) >= 10
    assert {(e[2], REASONS[e[5]]) for e in told} == {(EVENT_FINISH, "lost")}
    assert engine.step() == []
    assert engine.stats()["step_allocations"] == 0
    with pytest.raises(LLMAccelError, match=f"^{WHY}$"):
        _core.Engine(model, ahead.SIZES)


def test_an_engine_beside_the_one_that_failed_finds_out(
    emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs pages that the device will not give: the reason is the device's, not that."""
    monkeypatch.setenv("LLMACCEL_EMU_FAULT", "3")
    model = ahead.model_on("cuda", open_device("cuda"))
    first, second = (_core.Engine(model, ahead.SIZES) for _ in range(2))
    numbers = [engine.add([1, 2, 3], sampling.PARAMS) for engine in (first, second)]
    for engine, number in zip((first, second), numbers, strict=True):
        with pytest.raises(LLMAccelError, match=f"^{WHY}$"):  # found where results are asked for
            [engine.step() for _ in range(9)]
        assert [(e[0], REASONS[e[5]]) for e in engine.step()] == [(number, "lost")]
        assert not engine.has_work()


def test_requests_that_come_while_it_fails_end_too(
    emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Added by another thread all the while: each is refused, or ends; none is left."""
    monkeypatch.setenv("LLMACCEL_EMU_FAULT", "150")
    engine = _core.Engine(ahead.model_on("cuda", open_device("cuda")), ahead.SIZES)
    added, refused = [], []

    def add() -> None:
        while not refused:
            time.sleep(0.001)
            try:
                added.append(engine.add([1, 2, 3], {**sampling.PARAMS, "max_tokens": 9}))
            except LLMAccelError as error:
                refused.append(str(error))

    thread, ended, failures = threading.Thread(target=add), set(), []
    thread.start()
    while thread.is_alive() or engine.has_work():
        try:
            ended |= {e[0] for e in engine.step() if e[2] == EVENT_FINISH}
        except LLMAccelError as error:
            failures.append(str(error))
    thread.join()
    assert failures == [WHY]
    assert ended == set(added)
    assert refused == [f"engine: its device has failed: {WHY}"]


def test_an_llm_says_what_happened(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running and waiting ones get the device's reason; later calls are refused by it."""
    monkeypatch.setenv("LLMACCEL_EMU_FAULT", "300")
    folder = checkpoint("llama", tmp_path)
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    with open_on(folder, "cuda", max_num_seqs=2) as llm:
        futures = [llm.submit(ids, params) for ids in prompts(5, 20)]
        for future in futures:
            with pytest.raises(LLMAccelError, match=f"^{WHY}$"):
                future.result()
        for call in (
            lambda: llm.generate([[1, 2]], params),
            lambda: llm.submit([1, 2], params),
            lambda: llm.embed([[1, 2]]),
            lambda: llm.logits([1, 2]),
        ):
            with pytest.raises(LLMAccelError, match=REFUSED):
                call()
        with pytest.raises(LLMAccelError, match=f"^{WHY}$"):
            open_on(folder, "cuda")  # on the same device
        stats = llm.report()["stats"]
        assert (stats["running"], stats["waiting"], stats["pages_used"]) == (0, 0, 0)
        llm.sleep()
        with pytest.raises(LLMAccelError, match=f"^{WHY}$"):
            llm.wake_up()
