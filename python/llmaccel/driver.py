"""The thread that runs an engine: steps while there is work, sleeps without using the CPU when not.

Owns the engine's life from here on: it closes engine and model when it is told to stop. Invariant:
`lock` guards the table of requests and is held while a request enters the engine, so no event can
arrive before its request is in the table; listeners run outside the lock. One request's failure is
its own; a failing step fails the requests that are under way and the engine goes on. The driver
knows nothing of the LLM that made it, so dropping the LLM ends both.

Called by llm.py.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from llmaccel.errors import LLMAccelError
from llmaccel.request import Request

_LOG = logging.getLogger("llmaccel")


class Driver:
    """Runs `engine` on one background thread, started by the first request."""

    def __init__(self, engine: Any, model: Any) -> None:
        self._engine = engine
        self._model = model
        # Reentrant: the collector may drop a stream or an LLM, which cancels or closes, on any
        # thread that makes objects while it holds the lock.
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._requests: dict[int, Request] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
        self._pid = os.getpid()

    def check(self) -> None:
        """LLMAccelError after close() and in a forked child; takes no lock."""
        if os.getpid() != self._pid:
            raise LLMAccelError(
                f"this LLM was made in process {self._pid} and cannot be used after fork() in "
                f"process {os.getpid()}: its threads did not come along. Make a new LLM here."
            )
        if self._closing:
            raise LLMAccelError("this LLM is closed")

    def check_wait(self) -> None:
        """The same, and LLMAccelError on the engine's own thread, where waiting would never end."""
        self.check()
        if threading.current_thread() is self._thread:
            raise LLMAccelError("a callback runs on the engine's thread and cannot wait for it; "
                                "use submit() there")

    def submit(self, request: Request, fields: dict[str, Any], **options: Any) -> None:
        """Hand a request to the engine; options are those of Engine.add. RequestError if it is
        bad."""
        self.check()
        with self._lock:
            self.check()
            request.engine_id = self._engine.add(
                request.prompt_ids, fields, branches=len(request.branches), **options
            )
            self._requests[request.engine_id] = request
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="llmaccel", daemon=True)
                self._thread.start()
            self._wake.notify()

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
            self._wake.notify()
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
        while True:
            with self._wake:
                while not self._closing and not self._requests:
                    self._wake.wait()
                if self._closing:
                    break
            self._step()
        self._release()

    def _step(self) -> None:
        try:
            events = self._engine.step()
            stuck = not events and not self._engine.has_work()
        except Exception as error:
            _LOG.exception("the engine's step failed")
            self._give_up(error)
            return
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

    def _dispatch(self, events: list[Any], now: float) -> list[Request]:
        """Give events to their requests; those that shall hear of it."""
        touched: dict[int, Request] = {}
        requests = self._requests
        for event in events:
            request = requests.get(event[0])
            if request is None:
                continue
            was_done = request.done
            branch = request.on_event(event, now)
            if branch >= 0:
                self._engine.cancel(event[0], branch)
            if request.streaming or (not was_done and request.done):
                touched[event[0]] = request
            if request.ended:
                del requests[event[0]]
        return list(touched.values())

    def _give_up(self, error: Exception) -> None:
        """After a failed step: every request ends, so that the next ones find a working engine."""
        with self._lock:
            failed = list(self._requests.values())
            self._requests.clear()
            for request in failed:
                self._engine.cancel(request.engine_id)
        _fail(failed, error)


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
    except Exception:
        _LOG.exception("request %s: its listener failed", request.request_id)
