"""The thread that runs an engine: steps while there is work, sleeps without using the CPU when not.

Owns the engine's life from here on: it closes engine and model when it is told to stop. Invariant:
`lock` guards the table of requests and is held while a request enters the engine, so no event can
arrive before its request is in the table; listeners run outside the lock. Nobody waits for a
backend's processors while holding it: a change of weights, which needs them, is a mark that others
wait for, and a logits processor, which has them, is refused instead. One request's failure is
its own, whatever its decoder or listener raises; a failing step fails the requests that are under
way and the engine goes on. The driver knows nothing of the LLM that made it, so dropping the LLM
ends both; a finalizer may do so on any thread, at any allocation, so the lock is reentrant and the
wake-ups are a SimpleQueue, whose put is.

Called by llm.py.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from llmaccel.errors import LLMAccelError, RequestError
from llmaccel.metrics import Recorder
from llmaccel.processors import calls_user, refuse_wait
from llmaccel.profile import Profile
from llmaccel.request import EVENT_FINISH, EVENT_TOKEN, REASONS, Request

_T = TypeVar("_T")

_LOG = logging.getLogger("llmaccel")

# Seconds before the next step after one that failed; doubled from failure to failure.
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 1.0

# Statistics that add up over the engines of one LLM, and those that are a moment's.
_TOTALS = (
    *("steps", "prompt_tokens", "output_tokens", "recomputed_tokens", "preemptions"),
    *("step_allocations", "forward_seconds"),
)
_NOW = (
    *("running", "waiting", "pages_cap", "pages_committed", "pages_used", "kv_bytes"),
    *("workspace_bytes", "last_step_tokens", "last_step_seconds"),
    *("last_plan_seconds", "last_forward_seconds"),
)


class Driver:
    """Runs `engine` on one background thread, started by the first request. recorder: counts what
    it does, read by `read`; None: nothing does."""

    def __init__(self, engine: Any, model: Any, recorder: Recorder | None = None) -> None:
        self._engine = engine
        self._model = model
        self.recorder = recorder
        self._profile: Profile | None = None
        # Reentrant: the collector may drop a stream or an LLM, which cancels or closes, on any
        # thread that makes objects while it holds the lock.
        self._lock = threading.RLock()
        # What is changed by exclusive(), and by which thread; told when there is nothing any more.
        self._change: tuple[str, int] | None = None
        self._settled = threading.Condition(self._lock)
        self._calls: set[object] = set()  # under way, of several requests each
        self._readers: dict[object, tuple[str, int]] = {}  # of weights: what for, which thread
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._looks: queue.SimpleQueue[tuple[Callable[[Any], Any], Future[Any]]]
        self._looks = queue.SimpleQueue()  # at the engine, between two steps
        self._requests: dict[int, Request] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
        self._stepping = False  # the thread is beyond its look at what there is to do
        self._pause = 0.0  # seconds after the last step, which failed
        self._past = dict.fromkeys(_TOTALS, 0)  # of engines before this one
        self._past_load: np.ndarray | int = 0
        self._pid = os.getpid()

    def check_process(self) -> None:
        """LLMAccelError in a forked child; takes no lock."""
        if os.getpid() != self._pid:
            raise LLMAccelError(
                f"this LLM was made in process {self._pid} and cannot be used after fork() in "
                f"process {os.getpid()}: its threads did not come along. Make a new LLM here."
            )

    def check(self) -> None:
        """The same, and LLMAccelError after close()."""
        self.check_process()
        if self._closing:
            raise LLMAccelError("this LLM is closed")

    def check_wait(self) -> None:
        """The same, and LLMAccelError where waiting would never end: on the engine's own thread, in
        a logits processor of any model."""
        self.check()
        if threading.current_thread() is self._thread:
            raise LLMAccelError(
                "a callback runs on the engine's thread and cannot wait for it; use submit() there"
            )
        refuse_wait()

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The lock, when no change is being made. LLMAccelError after close(), and for whoever
        cannot wait for a change: a logits processor, and the thread that makes it."""
        self.check()
        with self._lock:
            self.check()
            while self._change is not None:
                what, owner = self._change
                if calls_user():
                    raise LLMAccelError(
                        f"{what} of this LLM is under way, and a logits processor cannot wait for "
                        "it: the step that calls it has the processors that models share"
                    )
                if owner == threading.get_ident():
                    raise LLMAccelError(f"{what} of this LLM is under way, on this thread")
                self._settled.wait()
                self.check()
            yield

    def _check_awake(self, what: str = "") -> None:
        if self._engine is None:
            raise LLMAccelError(f"{what}this LLM sleeps; wake_up() comes first")

    @contextmanager
    def weights(self, what: str) -> Iterator[Any]:
        """The model, which is neither changed nor closed meanwhile, while steps go on: changes are
        refused, and close() waits. LLMAccelError where it sleeps."""
        reader = object()
        try:
            with self._ready():
                self._check_awake(f"{what}: ")
                self._readers[reader] = (what, threading.get_ident())
            yield self._model
        finally:
            with self._lock:
                self._readers.pop(reader, None)
                self._settled.notify_all()

    def _reads(self) -> bool:
        """Is it this thread that reads weights?"""
        return any(owner == threading.get_ident() for _, owner in self._readers.values())

    def between_steps(self, what: str, look: Callable[[Any], _T]) -> _T:
        """look(engine) where no step runs and none begins; what it returns or raises. LLMAccelError
        where the engine sleeps or is closed, or where this is its thread."""
        self.check_wait()
        done: Future[_T] = Future()
        with self._ready():
            self._check_awake(f"{what}: ")
            if self._thread is None:  # no request was ever made, and the lock keeps it so
                return look(self._engine)
            self._looks.put((look, done))
            self._wake.put(None)
        return done.result()

    def _serve_looks(self, engine: Any) -> None:
        """Those that are there by now: others must not keep steps from running. engine: None where
        there is none any more."""
        for _ in range(self._looks.qsize()):
            look, done = self._looks.get_nowait()
            try:
                if engine is None:
                    raise LLMAccelError("the LLM was closed or put to sleep meanwhile")
                done.set_result(look(engine))
            except BaseException as error:  # the caller's, who waits for it
                done.set_exception(error)

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """Around what submits several requests one after another: no change comes between them.

        LLMAccelError as submit() raises it."""
        call = object()
        try:
            with self._ready():
                self._check_awake()
                self._calls.add(call)
            yield
        finally:
            self._calls.discard(call)

    def submit(self, request: Request, fields: dict[str, Any], **options: Any) -> None:
        """Hand a request to the engine; options are those of Engine.add. RequestError if it is
        bad."""
        if request.processing is not None:
            options["process"] = (request.processing, request.processing.rows)
        with self._ready():
            self._check_awake()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="llmaccel", daemon=True)
                self._thread.start()
            try:
                request.engine_id = self._engine.add(
                    request.prompt_ids, fields, branches=len(request.branches), **options
                )
                self._requests[request.engine_id] = request
            finally:  # also where an interrupt came between the two: the engine has work then
                self._wake.put(None)

    def cancel(self, request: Request) -> bool:
        """End a request within one step. False if it has ended already."""
        self.check()
        with self._lock:
            if self._closing or request.engine_id not in self._requests or request.done:
                return False
            self._engine.cancel(request.engine_id)
            request.cancelled = True
            return True

    def find(self, request_ids: Collection[str]) -> list[Request]:
        """The requests under way with these ids."""
        self.check()
        with self._lock:
            return [one for one in self._requests.values() if one.request_id in request_ids]

    def stats(self) -> dict[str, Any]:
        """The engine's counters."""
        with self._ready():
            return self._stats()

    def read(self, look: Callable[[dict[str, Any]], _T]) -> _T:
        """look(stats()), while nothing is being recorded."""
        with self._ready():
            return look(self._stats())

    def start_profile(self, profile: Profile) -> None:
        """Have `profile` told of steps and requests; LLMAccelError where another one is."""
        with self._lock:
            if self._profile is not None:
                raise LLMAccelError(f"a profile runs already, for {self._profile.path}")
            self._profile = profile

    def stop_profile(self) -> Profile:
        """Tell it no more, and give it back; LLMAccelError where there is none."""
        self.check()
        with self._lock:
            profile, self._profile = self._profile, None
        if profile is None:
            raise LLMAccelError("no profile runs; start_profile() comes first")
        return profile

    def expert_load(self) -> bytes:
        """Tokens that every expert was given, int64 [n_layers, n_experts]."""
        with self._ready():
            return self._load().tobytes()

    def preempt(self, n: int) -> None:
        """Force the n youngest running sequences out of the cache; for tests."""
        with self._ready():
            if self._engine is not None:
                self._engine.preempt(n)

    # ---- while nothing is under way -------------------------------------------------------------

    @contextmanager
    def exclusive(self, what: str) -> Iterator[Any]:
        """The model (None while it is away), for a change that no request may see half of; whoever
        wants the engine waits meanwhile. LLMAccelError where requests are under way, or a call that
        is made of several; requests that are done for their caller or cancelled are waited for,
        since the engine is rid of them in a moment."""
        self.check_wait()
        mine = (what, threading.get_ident())
        try:
            while not self._begin_change(mine):
                time.sleep(0.0002)
            yield self._model
        finally:
            if self._change is mine:
                self._end_change()

    def _begin_change(self, change: tuple[str, int]) -> bool:
        """False where something that is done is about to leave the engine."""
        what = change[0]
        with self._ready():
            left = [one for one in self._requests.values() if not (one.done or one.cancelled)]
            if left:
                raise LLMAccelError(
                    f"{what}: {len(left)} requests are under way; wait for them or cancel them "
                    "first"
                )
            if self._calls:
                raise LLMAccelError(
                    f"{what}: a call that is made of several requests is under way; wait for it "
                    "first"
                )
            if self._readers:
                reader, _ = next(iter(self._readers.values()))
                raise LLMAccelError(
                    f"{what}: {reader} is under way, which copies; wait for it first"
                )
            busy = self._engine is not None and self._engine.has_work()
            if busy and self._pause >= _LONGEST_PAUSE:
                raise LLMAccelError(f"{what}: the engine has work and its steps keep failing")
            if not (self._requests or busy or self._stepping):
                self._change = change
                return True
        if not busy:
            self._wake.put(None)  # its last step has ended, and it will see so in a moment
        return False

    def _end_change(self) -> None:
        with self._lock:
            if not (self._closing and self._thread is None):
                self._settle()
                return
        self._release()  # close() left it to this thread, and no other change begins any more
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        self._change = None
        self._settled.notify_all()
        self._wake.put(None)

    def put_away(self, with_model: bool) -> None:
        """Free the engine, cache and workspace with it, and the model as well; within exclusive().
        Counters go on from where they are."""
        if self._engine is not None:
            self._past_load = self._load()
            stats = self._stats()
            self._past = {name: stats[name] for name in _TOTALS}
            self._engine.close()
            self._engine = None
        if with_model and self._model is not None:
            self._model.close()
            self._model = None

    def take_up(self, engine: Any, model: Any) -> None:
        """Go on with these; within exclusive()."""
        self._engine, self._model = engine, model

    def _stats(self) -> dict[str, Any]:
        if self._engine is None:
            return {**dict.fromkeys(_NOW, 0), **self._past}
        stats = self._engine.stats()
        return {**stats, **{name: stats[name] + self._past[name] for name in _TOTALS}}

    def _load(self) -> np.ndarray:
        if self._engine is None:
            return np.asarray(self._past_load)
        return np.frombuffer(self._engine.expert_load(), np.int64) + self._past_load

    def close(self) -> None:
        """Fail what is under way, stop the thread, free engine and model. May be called again.

        In a callback or a logits processor the thread ends in its own time, and so does a change
        that is being made.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            first = not self._closing
            self._closing = True
            thread, change = self._thread, self._change
            waits = not calls_user() and (change is None or change[1] != threading.get_ident())
            waits = waits and not self._reads()
            self._wake.put(None)
            while waits and self._change is not None:
                self._settled.wait()
        if thread is None:
            if first and change is None:
                self._release()
        elif waits and thread is not threading.current_thread():
            thread.join()

    def _release(self) -> None:
        with self._lock:
            left = list(self._requests.values())
            self._requests.clear()
        self._serve_looks(None)
        _fail(left, LLMAccelError("the LLM was closed while the request was running"))
        if self._engine is not None:
            self._engine.close()
        with self._lock:
            while self._readers and not self._reads():
                self._settled.wait()
        if self._model is not None:
            self._model.close()

    def _run(self) -> None:
        while True:
            while not self._wake.empty():  # before the look below, which no later put can escape
                self._wake.get_nowait()
            with self._lock:
                self._stepping = False
                changing = self._change is not None
                if self._closing and not changing:
                    break
                looking = not changing and not self._looks.empty()
                working = (
                    not changing
                    and self._engine is not None
                    and bool(self._requests or self._engine.has_work())
                )
                self._stepping = looking or working
            if looking:
                self._serve_looks(self._engine)
            elif not working:
                self._wake.get()
                self._pause = 0.0
            if not working:
                continue
            if self._step():
                self._pause = 0.0
            else:
                self._pause = min(max(2.0 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                self._rest(self._pause)
        self._release()

    def _rest(self, seconds: float) -> None:
        try:
            self._wake.get(timeout=seconds)
        except queue.Empty:
            return

    def _step(self) -> bool:
        """Run a step and tell of it; False if the engine failed."""
        start = time.monotonic()
        try:
            events = self._engine.step()
            stuck = not events and not self._engine.has_work()
        except Exception as error:
            _LOG.exception("the engine's step failed")
            self._give_up(error)
            return False
        now = time.monotonic()
        with self._lock:
            self._record_step(start, now)
            touched = self._dispatch(events, now)
            # Nothing to do and nothing said: no event will come for what is in the table.
            lost = list(self._requests.values()) if stuck and not self._engine.has_work() else []
            for request in lost:
                self._record_failed(request, "failed")
                self._forget(request.engine_id)
        _fail(lost, LLMAccelError("the engine has no work but the request has not ended"))
        for request in touched:
            _tell(request)
        return True

    def _record_step(self, start: float, now: float) -> None:
        if self.recorder is None and self._profile is None:
            return
        stats = self._engine.stats()
        if self.recorder is not None:
            self.recorder.on_step(stats["last_step_tokens"])
        if self._profile is not None:
            self._profile.on_step(start, now, stats)

    def _record_done(self, request: Request) -> None:
        if self.recorder is not None:
            self.recorder.on_done(request)
        if self._profile is not None:
            self._profile.on_done(request)

    def _record_failed(self, request: Request, reason: str) -> None:
        if self.recorder is not None and not request.done:
            self.recorder.on_failed(reason)

    def _dispatch(self, events: list[Any], now: float) -> list[Request]:
        """Give events to their requests; those that shall hear of it."""
        touched: dict[int, Request] = {}
        recorder = self.recorder
        for event in events:
            number = event[0]
            request = self._requests.get(number)
            if request is None:
                # Failed before, or its submit was interrupted: nobody waits for it.
                if event[2] != EVENT_FINISH:
                    self._stop(number)
                continue
            was_done = request.done
            try:
                branch = request.on_event(event, now)
            except BaseException as error:  # a decoder may raise anything, Rust's panics included
                empty = event[2] == EVENT_FINISH and REASONS[event[5]] == "empty"
                self._record_failed(request, "empty" if empty else "failed")
                request.error = _failure(request, error)
                self._stop(number)
                self._forget(number)
                touched[number] = request
                continue
            if recorder is not None and event[2] == EVENT_TOKEN and not was_done:
                recorder.on_token(request, now)
            if branch >= 0:
                self._stop(number, branch)
            ended_now = not was_done and request.done
            if ended_now:
                self._record_done(request)
            if request.streaming or ended_now:
                touched[number] = request
            if request.ended:
                self._forget(number)
        return list(touched.values())

    def _forget(self, number: int) -> None:
        """No event of this request will be taken any more."""
        del self._requests[number]
        if self.recorder is not None:
            self.recorder.on_gone(number)

    def _give_up(self, error: Exception) -> None:
        """After a failed step: every request ends, so that the next ones find a working engine."""
        with self._lock:
            failed = list(self._requests.values())
            for request in failed:
                self._record_failed(request, "failed")
                self._forget(request.engine_id)
                self._stop(request.engine_id)
        _fail(failed, error)

    def _stop(self, number: int, branch: int = -1) -> None:
        """Cancel on this thread, which must live on where even that fails."""
        try:
            self._engine.cancel(number, branch)
        except Exception:
            _LOG.exception("the engine cannot cancel request %d", number)


def _failure(request: Request, error: BaseException) -> LLMAccelError:
    """An exception that every waiter may be given, whatever kind `error` is."""
    if isinstance(error, RequestError):
        return error
    failure = LLMAccelError(f"request {request.request_id}: its text failed: {error!r:.200}")
    failure.__cause__ = error
    return failure


def _fail(requests: list[Request], error: BaseException) -> None:
    for request in requests:
        if not request.done:
            request.error = error
            _tell(request)


def _tell(request: Request) -> None:
    if request.listener is None:
        return
    try:
        request.listener(request)
    except BaseException:  # as in _dispatch: this thread serves the others too
        _LOG.exception("request %s: its listener failed", request.request_id)
