"""The engine's thread with an engine that fails, stalls or lies: requests end, it goes on."""

from __future__ import annotations

import queue
import threading

import letters
import pytest

from llmaccel import LLM, LLMAccelError, SamplingParams
from llmaccel.driver import Driver
from llmaccel.params import score_fields
from llmaccel.request import EVENT_FINISH, EVENT_TOKEN, Request

LENGTH = 1


class Engine:
    """Gives every request one token and ends it, unless told to do otherwise."""

    def __init__(self) -> None:
        self.live: list[int] = []
        self.ids = 0
        self.fail = 0
        self.silent = False
        self.closed = False
        self.cancelled: list[int] = []

    def add(self, prompt, fields, branches=1, **options):
        self.ids += 1
        self.live.append(self.ids)
        return self.ids

    def cancel(self, id, branch=-1):
        self.cancelled.append(id)

    def step(self):
        if self.fail:
            self.fail -= 1
            raise LLMAccelError("out of pages")
        live, self.live = self.live, []
        if self.silent:
            return []
        return [e for id in live for e in (
            (id, 0, EVENT_TOKEN, 0, 7, 0, 0.0, 0, None, None),
            (id, 0, EVENT_FINISH, 1, -1, LENGTH, 0.0, 0, None, None))]

    def has_work(self):
        return bool(self.live)

    def stats(self):
        return {}

    def close(self):
        self.closed = True


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def driver(engine):
    driver = Driver(engine, Engine())
    yield driver
    driver.close()
    assert engine.closed


def run(driver: Driver) -> Request:
    """Submit a request and wait until it has told that it is done."""
    news: queue.SimpleQueue[Request] = queue.SimpleQueue()
    request = Request("r", None, [1], SamplingParams())
    request.listener = news.put
    driver.submit(request, score_fields())
    return news.get(timeout=30)


def test_a_failing_step_fails_its_requests_only(driver, engine):
    engine.fail = 1
    with pytest.raises(LLMAccelError, match="out of pages"):
        run(driver).output()
    assert engine.cancelled == [1]
    assert run(driver).output().outputs[0].token_ids == [7]


def test_a_silent_engine_does_not_hang_its_callers(driver, engine):
    engine.silent = True
    with pytest.raises(LLMAccelError, match="no work"):
        run(driver).output()
    engine.silent = False
    assert run(driver).output().finished


def test_a_failing_listener_is_its_own_problem(driver):
    def fail(request):
        raise ValueError("mine")

    request = Request("r", None, [1], SamplingParams())
    request.listener = fail
    driver.submit(request, score_fields())
    assert run(driver).output().finished
    assert request.done


def test_events_of_unknown_requests_are_dropped(driver, engine):
    engine.live.append(99)
    assert run(driver).output().finished


def test_close_without_a_thread_and_twice(engine):
    driver = Driver(engine, Engine())
    driver.close()
    driver.close()
    assert engine.closed
    with pytest.raises(LLMAccelError, match="closed"):
        run(driver)


def test_callbacks_may_submit_but_not_wait(tmp_path):
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    with LLM(str(letters.write_model(tmp_path))) as llm:
        found: dict[str, object] = {}
        heard = threading.Event()

        def on_done(future):
            for name, call in (("generate", lambda: llm.generate("a", params)),
                               ("logits", lambda: llm.logits("a")),
                               ("result", lambda: llm.submit("a", params).result())):
                try:
                    call()
                except LLMAccelError as error:
                    found[name] = str(error)
            found["next"] = llm.submit("abc", params)
            heard.set()

        llm.submit("abc", params).add_done_callback(on_done)
        assert heard.wait(30)
        assert "submit()" in found["generate"]
        assert "submit()" in found["logits"]
        assert "submit()" in found["result"]
        assert found["next"].result(timeout=30).finished


def test_closing_from_a_callback_ends_the_thread(tmp_path):
    before = threading.active_count()
    llm = LLM(str(letters.write_model(tmp_path)))
    closed = threading.Event()

    def on_done(future):
        llm.close()
        closed.set()

    future = llm.submit("abc", SamplingParams(max_tokens=2))
    future.add_done_callback(on_done)
    assert closed.wait(30)
    llm._driver._thread.join(30)
    assert threading.active_count() == before
    assert future.result().finished
