"""The engine's thread with an engine that fails, stalls or lies: requests end, it goes on."""

from __future__ import annotations

import gc
import queue
import threading
import time

import letters
import pytest

from llmaccel import LLM, LLMAccelError, SamplingParams
from llmaccel.driver import Driver
from llmaccel.params import score_fields
from llmaccel.request import EVENT_FINISH, EVENT_TOKEN, Request, TextStream

LENGTH = 1
# reason, logprob, rank, top_ids, top_logprobs, scheduled
REST = (0, 0.0, 0, None, None, 0.0)


class Engine:
    """Gives every request one token and ends it, unless told to do otherwise."""

    def __init__(self) -> None:
        self.live: list[int] = []
        self.ids = 0
        self.fail = 0
        self.silent = False
        self.closed = False
        self.cancelled: list[int] = []
        self.interrupted = False
        self.tokens = 1

    def add(self, prompt, fields, branches=1, **options):
        self.ids += 1
        self.live.append(self.ids)
        if self.interrupted:
            raise KeyboardInterrupt
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
        return [
            e
            for id in live
            for e in (
                *((id, 0, EVENT_TOKEN, i, 7, *REST) for i in range(self.tokens)),
                (id, 0, EVENT_FINISH, self.tokens, -1, LENGTH, *REST[1:]),
            )
        ]

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


def comes(condition) -> bool:
    """Whether a condition holds soon."""
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def run(driver: Driver, request: Request | None = None) -> Request:
    """Submit a request and wait until it has told that it is done."""
    news: queue.SimpleQueue[Request] = queue.SimpleQueue()
    request = request or Request("r", None, [1], SamplingParams())
    request.listener = news.put
    driver.submit(request, score_fields())
    return news.get(timeout=30)


def test_a_failing_step_fails_its_requests_only(driver, engine):
    engine.fail = 1
    with pytest.raises(LLMAccelError, match="out of pages"):
        run(driver).output()
    assert set(engine.cancelled) == {1}
    assert run(driver).output().outputs[0].token_ids == [7]


def test_work_without_requests_is_stepped_off(driver, engine):
    """What a failed step or an interrupted submit leaves in the engine would hold its pages."""
    engine.fail = 3
    with pytest.raises(LLMAccelError, match="out of pages"):
        run(driver).output()
    assert comes(lambda: not engine.has_work())
    engine.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        run(driver)
    assert comes(lambda: not engine.has_work())
    assert set(engine.cancelled) == {1, 2}
    engine.interrupted = False
    assert run(driver).output().finished


def test_an_engine_that_keeps_failing_is_not_hammered(driver, engine):
    engine.fail = 10**9
    with pytest.raises(LLMAccelError, match="out of pages"):
        run(driver).output()
    time.sleep(0.5)
    assert 10**9 - engine.fail < 30
    engine.fail = 0
    assert run(driver).output().finished


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


class Decoder:
    """Gives "x" for a token; fails where it is told to."""

    def __init__(self, error: BaseException | None = None, seconds: float = 0.0) -> None:
        self.error = error
        self.seconds = seconds

    def push(self, ids):
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds)
        return "x" * len(ids)

    def finish(self):
        return ""


def with_text(decoder: Decoder, **options) -> Request:
    request = Request("r", None, [1], SamplingParams(**options))
    request.branches[0].text = TextStream(decoder, request.params)
    return request


@pytest.mark.parametrize("error", [ValueError("bad byte"), Panic("bad byte")])
def test_a_failing_decoder_fails_its_request_only(driver, engine, error):
    engine.tokens = 3
    bad = with_text(Decoder(error), stop=["q"])
    with pytest.raises(LLMAccelError, match="bad byte") as caught:
        run(driver, bad).output()
    assert caught.value.__cause__ is error
    assert set(engine.cancelled) == {1}
    assert run(driver, with_text(Decoder(), stop=["q"])).output().outputs[0].text == "xxx"


def test_many_threads_take_one_result(driver):
    request = run(driver, with_text(Decoder(seconds=0.2)))
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(request.output())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [output.outputs[0].text for output in found] == ["x"] * 4
    assert all(output is found[0] for output in found)


class Counted(list):
    """A list that counts how often it is gone through."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_an_event_costs_the_same_whatever_the_number_of_branches(driver):
    request = Request("r", None, [1], SamplingParams(), n_branches=50)
    request.branches = Counted(request.branches)
    driver._requests[1] = request
    for branch in range(50):
        assert not request.done
        assert not request.ended
        driver._dispatch(
            [
                (1, branch, EVENT_TOKEN, 0, 7, *REST),
                (1, branch, EVENT_FINISH, 1, -1, LENGTH, *REST[1:]),
            ],
            1.0,
        )
    assert request.done
    assert request.ended
    assert request.branches.passes == 0
    assert not driver._requests


def test_a_finalizer_on_the_drivers_own_thread(engine):
    """The collector may drop the LLM, and so close the driver, while this thread holds the lock."""
    driver = Driver(engine, Engine())

    class Dropped:
        def __init__(self):
            self.itself = self

        def __del__(self):
            driver.close()

    class Collecting(Request):
        def on_event(self, event, now):
            Dropped()
            gc.collect()
            return super().on_event(event, now)

    request = run(driver, Collecting("r", None, [1], SamplingParams()))
    assert request.output().finished
    driver._thread.join(30)
    assert engine.closed


def test_a_silent_engine_does_not_hang_its_callers(driver, engine):
    engine.silent = True
    with pytest.raises(LLMAccelError, match="no work"):
        run(driver).output()
    engine.silent = False
    assert run(driver).output().finished


def test_a_failing_listener_is_its_own_problem(driver):
    def fail(request):
        raise Panic("mine")

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


def test_a_change_waits_for_what_the_engine_is_not_rid_of(driver, engine):
    """Requests that are done for their caller or cancelled; not those that somebody waits for."""
    gate = threading.Event()
    step, own = engine.step, engine.has_work

    def slow_step():
        live, events = list(engine.live), step()
        if not gate.is_set():
            engine.live = live  # the row ahead: it was told of, and is still there
            time.sleep(0.002)
        return [event for event in events if gate.is_set() or event[2] != EVENT_FINISH]

    engine.step = slow_step
    request = with_text(Decoder(), stop=["x"])
    assert run(driver, request).output().outputs[0].stop_reason == "x"
    waiting = Request("w", None, [1], SamplingParams())
    driver.submit(waiting, score_fields())
    with (
        pytest.raises(LLMAccelError, match="sleep: 1 requests are under way"),
        driver.exclusive("sleep"),
    ):
        pass
    assert driver.cancel(waiting)
    threading.Timer(0.1, gate.set).start()
    with driver.exclusive("sleep"):
        assert gate.is_set()
        assert not own()
        assert request.ended
        assert waiting.ended


def test_a_change_does_not_wait_for_an_engine_that_fails(driver, engine, monkeypatch):
    monkeypatch.setattr("llmaccel.driver._LONGEST_PAUSE", 0.02)
    engine.live.append(99)
    engine.fail = 10**9
    with pytest.raises(LLMAccelError, match="out of pages"):
        run(driver).output()
    with pytest.raises(LLMAccelError, match="steps keep failing"), driver.exclusive("sleep"):
        pass
    engine.fail = 0
    assert run(driver).output().finished


def test_sleep_right_after_the_answer(tmp_path):
    stops = SamplingParams(max_tokens=200, ignore_eos=True, stop=list("abcdefghij"), temperature=1)
    with LLM(str(letters.write_model(tmp_path))) as llm:
        for i in range(20):
            if i % 2:
                llm.generate("abc", stops)
            else:
                stream = llm.generate("abc", stops, stream=True)
                stream.close()
            llm.sleep()
            llm.wake_up()


def test_callbacks_may_submit_but_not_wait(tmp_path):
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    with LLM(str(letters.write_model(tmp_path))) as llm:
        found: dict[str, object] = {}
        heard = threading.Event()

        def on_done(future):
            for name, call in (
                ("generate", lambda: llm.generate("a", params)),
                ("logits", lambda: llm.logits("a")),
                ("result", lambda: llm.submit("a", params).result()),
            ):
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
