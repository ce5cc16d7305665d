"""LLMEngine: vLLM's engine object, by which a script adds requests and takes what is new by steps.

Owns what was added and not yet given back. Invariant: the requests lie in the same queue as those
of all other calls and run whether anybody calls step(); a step waits until one of them has
something new. The state belongs to the LLM, so that every LLMEngine over it sees the same requests;
it knows nothing of the LLM, which therefore dies when nobody holds it.

Called by compatible.py (`LLM.llm_engine`) and users.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from llmaccel.arguments import refuse_foreign, seconds_of
from llmaccel.hints import hint
from llmaccel.metrics import Metric
from llmaccel.outputs import RequestOutput
from llmaccel.params import RequestOutputKind, SamplingParams
from llmaccel.pooling_params import PoolingParams, PoolingRequestOutput
from llmaccel.prompts import tokenization_of
from llmaccel.request import Request
from llmaccel.views import EngineConfigView, ModelView

if TYPE_CHECKING:
    from llmaccel.llm import LLM


@dataclass
class Steps:
    """What was added. news: told by a request that has something new. requests: those that run, by
    id. pooled: those that pool, which a step runs: prompt, parameters, tokenization_kwargs."""

    news: queue.SimpleQueue[Request] = field(default_factory=queue.SimpleQueue)
    requests: dict[str, Request] = field(default_factory=dict)
    pooled: dict[str, tuple[Any, PoolingParams, Any]] = field(default_factory=dict)


class LLMEngine:
    """vLLM's engine over an LLM; `llm` is that. add_request, then step() while
    has_unfinished_requests(), on one thread. What it has not, an AttributeError says."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._steps: Steps = llm._steps

    @classmethod
    def from_engine_args(cls, engine_args: Any, **foreign: Any) -> LLMEngine:
        """Load the model that an EngineArgs describes; errors are those of LLM. foreign: vLLM's
        usage_context, stat_loggers and enable_multiprocessing, which have no use here."""
        from llmaccel.llm import LLM  # which imports this module

        refuse_foreign("from_engine_args", foreign)
        return cls(LLM.from_engine_args(engine_args))

    def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams | PoolingParams,
        arrival_time: float | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **foreign: Any,
    ) -> str:
        """Start a prompt under an id, which is returned; arguments and errors are those of
        generate, with PoolingParams (whose task names what) those of encode. arrival_time: vLLM's;
        requests arrive when they are added. RequestError where the id is in use."""
        llm = self.llm
        llm.engine.check()
        refuse_foreign("add_request", foreign)
        llm._take_id(request_id)
        try:
            if isinstance(params, PoolingParams):
                llm._pooling_task(None, params)
                self._steps.pooled[request_id] = (prompt, params.clone(), tokenization_kwargs)
                return request_id
            how = tokenization_of(tokenization_kwargs, "left")
            text, ids = llm._encode(prompt, "prompt", how, llm._room())
            request, fields = llm._make_request(text, ids, params, 0, "prompt")
            request.request_id = request_id
            request.streaming, request.listener = True, self._steps.news.put
            options = {"priority": llm._priority(priority), "timeout": seconds_of(timeout)}
            self._steps.requests[request_id] = request
            llm.engine.submit(request, fields, **options)
        except BaseException:
            self._steps.requests.pop(request_id, None)
            llm._given_ids.discard(request_id)
            raise
        return request_id

    def step(self) -> list[RequestOutput | PoolingRequestOutput]:
        """What is new of the requests that were added, once there is something; [] where there are
        none. Outputs hold everything so far unless their output_kind says otherwise. Those that
        pool are run here, one a step. Raises the error of a request that failed, which is gone
        then; what others had to say meanwhile was given before or comes after."""
        self.llm.engine.check_wait()
        if self._steps.pooled:
            return self._pool()
        chunks: list[RequestOutput | PoolingRequestOutput] = []
        while self._steps.requests and not chunks:
            touched = [self._steps.news.get()]
            try:
                while not self._steps.news.empty():
                    touched.append(self._steps.news.get())
                touched = list(dict.fromkeys(touched))
                while touched:
                    chunks += self._news_of(touched.pop(0), bool(chunks))
            finally:
                for request in touched:  # of these nobody would be told again
                    self._steps.news.put(request)
        return chunks

    def _news_of(self, request: Request, later: bool) -> list[RequestOutput]:
        """What is new of one that runs. later: an error is left to the next step."""
        if self._steps.requests.get(request.request_id) is not request:
            return []
        kind = request.params.output_kind
        try:
            chunk = request.snapshot(RequestOutputKind.CUMULATIVE if kind is None else kind)
        except BaseException as error:
            if later and isinstance(error, Exception):
                self._steps.news.put(request)
                return []
            self._forget(request.request_id)
            raise
        if chunk is None:
            return []
        if chunk.finished:
            self._forget(request.request_id)
        return [chunk]

    def _pool(self) -> list[RequestOutput | PoolingRequestOutput]:
        name, (prompt, params, how) = next(iter(self._steps.pooled.items()))
        self._forget(name)
        (output,) = self.llm.encode([prompt], params, use_tqdm=False, tokenization_kwargs=how)
        return [replace(output, request_id=name)]

    def _forget(self, name: str) -> None:
        self._steps.requests.pop(name, None)
        self._steps.pooled.pop(name, None)
        self.llm._given_ids.discard(name)

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """End requests; nothing of them comes any more. Ids of others are passed over."""
        ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        self.llm.abort(ids & set(self._steps.requests))
        for name in ids:
            if name in self._steps.requests or name in self._steps.pooled:
                self._forget(name)

    def has_unfinished_requests(self) -> bool:
        """Whether a step would give something."""
        return bool(self._steps.requests or self._steps.pooled)

    def get_num_unfinished_requests(self) -> int:
        """How many."""
        return len(self._steps.requests) + len(self._steps.pooled)

    # ---- what LLM has too -----------------------------------------------------------------------

    @property
    def model_config(self) -> ModelView:
        """That of the LLM."""
        return self.llm.model_config

    @property
    def vllm_config(self) -> EngineConfigView:
        """The limits of the engine, as vLLM groups them."""
        return self.llm.vllm_config

    @property
    def tokenizer(self) -> Any:
        """That of the LLM."""
        return self.llm.get_tokenizer()

    def get_tokenizer(self) -> Any:
        """That of the LLM."""
        return self.llm.get_tokenizer()

    def get_supported_tasks(self) -> tuple[str, ...]:
        """Those of the LLM."""
        return tuple(self.llm.supported_tasks)

    def get_metrics(self) -> list[Metric]:
        """LLM.get_metrics."""
        return self.llm.get_metrics()

    def start_profile(self, *args: Any, **given: Any) -> None:
        """LLM.start_profile."""
        self.llm.start_profile(*args, **given)

    def stop_profile(self) -> Any:
        """LLM.stop_profile."""
        return self.llm.stop_profile()

    def sleep(self, level: int = 1) -> None:
        """LLM.sleep."""
        self.llm.sleep(level)

    def wake_up(self, tags: list[str] | None = None) -> None:
        """LLM.wake_up."""
        self.llm.wake_up(tags)

    def is_sleeping(self) -> bool:
        """LLM.is_sleeping."""
        return self.llm.is_sleeping()

    def reset_prefix_cache(self, *args: Any, **given: Any) -> NoReturn:
        """LLM.reset_prefix_cache, which says why not."""
        self.llm.reset_prefix_cache()

    def collective_rpc(self, *args: Any, **given: Any) -> NoReturn:
        """LLM.collective_rpc, which says why not."""
        self.llm.collective_rpc()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = [one for one in dir(type(self)) if not one.startswith("_")]
        raise AttributeError(
            f"LLMEngine has no {name!r} here{hint(name, known)}; it has {', '.join(known)}"
        )
