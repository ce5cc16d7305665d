"""The thread that runs an engine: steps while there is work, sleeps without using the CPU when not.

Owns the engine's life from here on: it closes engine and model when it is told to stop. Invariant:
`lock` guards the table of requests and is held while a request enters the engine, so no event can
arrive before its request is in the table; listeners run outside the lock. One request's failure is
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
from typing import Any

from llmaccel.errors import LLMAccelError, RequestError
from llmaccel.request import EVENT_FINISH, Request

_LOG = logging.getLogger("llmaccel")

# Seconds before the next step after one that failed; doubled from failure to failure.
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 1.0


class Driver:
    """Runs `engine` on one background thread, started by the first request."""

    def __init__(self, engine: Any, model: Any) -> None:
        self._engine = engine
        self._model = model
        # Reentrant: the collector may drop a stream or an LLM, which cancels or closes, on any
        # thread that makes objects while it holds the lock.
        self._lock = threading.RLock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._requests: dict[int, Request] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
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
        """The same, and LLMAccelError on the engine's own thread, where waiting would never end."""
        self.check()
        if threading.current_thread() is self._thread:
            raise LLMAccelError(
                "a callback runs on the engine's thread and cannot wait for it; use submit() there"
            )

    def submit(self, request: Request, fields: dict[str, Any], **options: Any) -> None:
        """Hand a request to the engine; options are those of Engine.add. RequestError if it is
        bad."""
        self.check()
        if request.processing is not None:
            options["process"] = (request.processing, request.processing.rows)
        with self._lock:
            self.check()
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
            return True

    def stats(self) -> dict[str, Any]:
        """The engine's counters."""
        self.check()
        with self._lock:
            self.check()
            return self._engine.stats()

    def expert_load(self) -> bytes:
        """Tokens that every expert was given, int64 [n_layers, n_experts]."""
        self.check()
        with self._lock:
            self.check()
            return self._engine.expert_load()

    def preempt(self, n: int) -> None:
        """Force the n youngest running sequences out of the cache; for tests."""
        self.check()
        self._engine.preempt(n)

    def close(self) -> None:
        """Fail what is under way, stop the thread, free engine and model. May be called again."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            first = not self._closing
            self._closing = True
            thread = self._thread
            self._wake.put(None)
        if thread is None:
            if first:
                self._release()
        elif thread is not threading.current_thread():
            thread.join()

    def _release(self) -> None:
        with self._lock:
            left = list(self._requests.values())
            self._requests.clear()
        _fail(left, LLMAccelError("the LLM was closed while the request was running"))
        self._engine.close()
        self._model.close()

    def _run(self) -> None:
        pause = 0.0
        while True:
            while not self._wake.empty():  # before the look below, which no later put can escape
                self._wake.get_nowait()
            with self._lock:
                if self._closing:
                    break
                idle = not self._requests and not self._engine.has_work()
            if idle:
                self._wake.get()
                pause = 0.0
            elif self._step():
                pause = 0.0
            else:
                pause = min(max(2.0 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                self._rest(pause)
        self._release()

    def _rest(self, seconds: float) -> None:
        try:
            self._wake.get(timeout=seconds)
        except queue.Empty:
            return

    def _step(self) -> bool:
        """Run a step and tell of it; False if the engine failed."""
        try:
            events = self._engine.step()
            stuck = not events and not self._engine.has_work()
        except Exception as error:
            _LOG.exception("the engine's step failed")
            self._give_up(error)
            return False
        now = time.monotonic()
        with self._lock:
            touched = self._dispatch(events, now)
            # Nothing to do and nothing said: no event will come for what is in the table.
            lost = list(self._requests.values()) if stuck and not self._engine.has_work() else []
            for request in lost:
                del self._requests[request.engine_id]
        _fail(lost, LLMAccelError("the engine has no work but the request has not ended"))
        for request in touched:
            _tell(request)
        return True

    def _dispatch(self, events: list[Any], now: float) -> list[Request]:
        """Give events to their requests; those that shall hear of it."""
        touched: dict[int, Request] = {}
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
                request.error = _failure(request, error)
                self._stop(number)
                del self._requests[number]
                touched[number] = request
                continue
            if branch >= 0:
                self._stop(number, branch)
            if request.streaming or (not was_done and request.done):
                touched[number] = request
            if request.ended:
                del self._requests[number]
        return list(touched.values())

    def _give_up(self, error: Exception) -> None:
        """After a failed step: every request ends, so that the next ones find a working engine."""
        with self._lock:
            failed = list(self._requests.values())
            self._requests.clear()
            for request in failed:
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
