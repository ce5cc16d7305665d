"""How a caller waits for requests: all of them, chunk by chunk, or as a future.

Owns the ways to take results from the engine's thread. Invariant: whoever stops waiting (an
exception, a dropped stream, a cancelled future, a closed loop) cancels what still runs.

Called by llm.py and its bases that submit.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmaccel.driver import Driver
from llmaccel.errors import LLMAccelError
from llmaccel.outputs import RequestOutput
from llmaccel.params import RequestOutputKind
from llmaccel.processors import refuse_wait
from llmaccel.request import Request

if TYPE_CHECKING:
    from llmaccel.llm import LLM


def abandon(driver: Driver, requests: list[Request]) -> None:
    """Cancel what still runs of `requests`."""
    for request in requests:
        try:
            driver.cancel(request)
        except LLMAccelError:
            return  # closed or forked: nothing runs any more


def output_kind(request: Request) -> RequestOutputKind:
    """What a stream of this request yields: what its parameters say, else what is new."""
    kind = request.params.output_kind
    return RequestOutputKind.DELTA if kind is None else kind


@contextmanager
def progress(count: int, use_tqdm: Any, what: str) -> Iterator[Callable[[], Any]]:
    """A progress bar over `count` prompts, where one is wanted; what is given moves it on.
    use_tqdm: None: where somebody watches; or what makes the bar in place of tqdm."""
    bar = None
    if callable(use_tqdm):
        bar = use_tqdm(total=count, desc=what, unit="prompt")
    elif use_tqdm or (use_tqdm is None and count and wants_bar()):
        if importlib.util.find_spec("ipywidgets") is None:
            from tqdm import tqdm  # the notebook bar needs ipywidgets, and warns without
        else:
            from tqdm.auto import tqdm

        bar = tqdm(total=count, desc=what, unit="prompt", file=sys.stderr)
    try:
        yield (lambda: None) if bar is None else bar.update
    finally:
        if bar is not None:
            bar.close()


def wait_all(requests: list[Request], news: Any, use_tqdm: Any) -> None:
    """Until every request has told that it is done."""
    with progress(len(requests), use_tqdm, "Generating") as tick:
        for _ in requests:
            news.get()
            tick()


def waker(driver: Driver, loop: Any, news: Any) -> Callable[[Request], None]:
    """A listener that sets an event of an asyncio loop; cancels where the loop is closed."""

    def wake(request: Request) -> None:
        try:
            loop.call_soon_threadsafe(news.set)
        except RuntimeError:  # closed with its generators alive: nobody will ever look
            request.listener = None
            abandon(driver, [request])

    return wake


def wants_bar() -> bool:
    """Whether somebody watches: a notebook or a terminal."""
    shell = sys.modules.get("IPython")
    instance = shell.get_ipython() if shell is not None else None
    if instance is not None and hasattr(instance, "kernel"):
        return True
    return sys.stderr is not None and sys.stderr.isatty()


class Chunks(Iterator[RequestOutput]):
    """The chunks of streamed requests; closing or dropping it cancels what still runs, even where
    no chunk was ever taken, which a generator's finally would not see."""

    def __init__(self, llm: LLM, requests: list[Request], news: Any) -> None:
        self._llm = llm
        self._requests = requests
        self._news = news
        self._left = {request.request_id for request in requests}

    def __next__(self) -> RequestOutput:
        refuse_wait()
        try:
            while self._left:
                self._llm.engine.check_process()
                request = self._news.get()
                if request.request_id not in self._left:
                    continue
                chunk = request.snapshot(output_kind(request))
                if chunk is not None:
                    if chunk.finished:
                        self._left.remove(request.request_id)
                    return chunk
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """Cancel; nothing comes after it. May be called again."""
        if self._left:
            self._left.clear()
            abandon(self._llm.engine, self._requests)

    def __del__(self) -> None:
        self.close()


class RequestFuture(Future[RequestOutput]):
    """A request under way. result(timeout) gives its RequestOutput and raises its error; so does
    await on an asyncio loop, where cancelling the task that waits cancels the request."""

    def __init__(self, llm: LLM, request: Request) -> None:
        super().__init__()
        self._llm: LLM | None = llm
        self._request = request

    @property
    def request_id(self) -> str:
        """As in the RequestOutput."""
        return self._request.request_id

    def cancel(self) -> bool:
        """End the request within one step; its result then has finish_reason "abort".

        False if it has ended already.
        """
        llm = self._llm
        return llm is not None and llm.engine.cancel(self._request)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait; TimeoutError after `timeout` seconds, while the request goes on."""
        self._check_wait(timeout)
        super().result(timeout)
        return self._request.output()

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        import asyncio  # here: as in llm.agenerate

        self._check_wait(0.0)
        return asyncio.wrap_future(self).__await__()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as result does; the request's error, or None."""
        self._check_wait(timeout)
        return super().exception(timeout)

    def _check_wait(self, timeout: float | None) -> None:
        """LLMAccelError where nothing would end the wait: after fork(), on the engine's thread."""
        llm = self._llm
        if llm is None:
            return
        llm.engine.check_process()
        if timeout is None:
            llm.engine.check_wait()

    def _on_done(self, request: Request) -> None:
        self._llm = None
        if request.error is not None:
            self.set_exception(request.error)
        else:
            self.set_result(None)  # type: ignore[arg-type]  # made by whoever asks
