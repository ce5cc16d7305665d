"""AsyncLLM: vLLM's class for event loops, over the same LLM.

Owns nothing. Invariant: everything here is a method of LLM under another name, those that wait on a
thread of their own; new code takes `LLM.agenerate`.

Called by users.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from llmaccel.arguments import refuse_foreign
from llmaccel.calls import Prompt
from llmaccel.errors import LLMAccelError, RequestError, UnsupportedError, shown
from llmaccel.llm import LLM
from llmaccel.outputs import RequestOutput
from llmaccel.params import RequestOutputKind, SamplingParams
from llmaccel.pooling_params import PoolingParams, PoolingRequestOutput
from llmaccel.views import EngineConfigView, ModelView

_LOG = logging.getLogger("llmaccel")


class AsyncLLM:
    """A loaded model for an event loop; `llm` is the LLM behind it."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    @classmethod
    def from_engine_args(cls, engine_args: Any, **foreign: Any) -> AsyncLLM:
        """Load the model that the arguments name; errors are those of LLM. foreign: vLLM's
        start_engine_loop, usage_context and stat_loggers, which have no use here."""
        refuse_foreign("from_engine_args", foreign)
        return cls(LLM.from_engine_args(engine_args))

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None,
        request_id: str,
        *,
        priority: int = 0,
        timeout: float | None = None,
        output_logits: bool = False,
        output_hidden_states: Sequence[int] | None = None,
        **foreign: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Continue one prompt: chunks as LLM.agenerate gives them, under this request_id.

        Where output_kind is None each chunk holds everything so far, which is vLLM's default.
        RequestError where the id is in use.
        """
        if not isinstance(request_id, str):
            raise RequestError(f"request_id={shown(request_id)}: expected a string not in use")
        params = sampling_params
        if params is None:
            params = self.llm.get_default_sampling_params()
        if isinstance(params, SamplingParams) and params.output_kind is None:
            params = params.clone()
            params.output_kind = RequestOutputKind.CUMULATIVE
        options = {"priority": priority, "timeout": timeout, "request_id": request_id, **foreign}
        options |= {"output_logits": output_logits, "output_hidden_states": output_hidden_states}
        async with aclosing(self.llm.agenerate(prompt, params, **options)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def encode(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams,
        request_id: str,
        *,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **foreign: Any,
    ) -> AsyncIterator[PoolingRequestOutput]:
        """What pooling_params.task makes of one prompt: one output, as of LLM.encode, under this
        request_id; RequestError where the id is in use."""
        refuse_foreign("encode", foreign)
        self.llm._take_id(request_id)
        try:
            (output,) = await self._apart(
                self.llm.encode,
                [prompt],
                pooling_params,
                use_tqdm=False,
                tokenization_kwargs=tokenization_kwargs,
            )
        finally:
            self.llm._given_ids.discard(request_id)
        yield replace(output, request_id=request_id)

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """End requests within one step; their last chunk has finish_reason "abort"."""
        self.llm.abort(request_id)

    async def _apart(self, call: Callable[..., Any], *args: Any, **given: Any) -> Any:
        """A call that waits, on a thread of its own."""
        import asyncio  # here: as in llm.agenerate

        return await asyncio.to_thread(call, *args, **given)

    # ---- state ----------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether it takes requests."""
        try:
            self.llm.engine.check()
        except LLMAccelError:
            return False
        return True

    @property
    def is_stopped(self) -> bool:
        """Whether it was shut down."""
        return not self.is_running

    @property
    def errored(self) -> bool:
        """The same: a failed step fails its requests and not the engine."""
        return self.is_stopped

    @property
    def dead_error(self) -> BaseException:
        """What a request would be refused with."""
        try:
            self.llm.engine.check()
        except LLMAccelError as error:
            return error
        return LLMAccelError("this AsyncLLM is running")

    async def check_health(self) -> None:
        """LLMAccelError where it was shut down."""
        self.llm.engine.check()

    async def is_tracing_enabled(self) -> bool:
        """False: this version sends no traces."""
        return False

    async def is_paused(self) -> bool:
        """False: see pause_generation."""
        return False

    async def do_log_stats(self) -> None:
        """Log what runs and waits, at the level "info"."""
        stats = self.llm.engine.stats()
        _LOG.info(
            "%d requests run, %d wait; %d of %d cache pages used; %d tokens read, %d written",
            stats["running"],
            stats["waiting"],
            stats["pages_used"],
            stats["pages_cap"],
            stats["prompt_tokens"],
            stats["output_tokens"],
        )

    def get_num_unfinished_requests(self) -> int:
        """How many run or wait."""
        stats = self.llm.engine.stats()
        return stats["running"] + stats["waiting"]

    @property
    def model_config(self) -> ModelView:
        """That of the LLM."""
        return self.llm.model_config

    async def get_model_config(self) -> ModelView:
        """The same."""
        return self.llm.model_config

    @property
    def vllm_config(self) -> EngineConfigView:
        """That of the LLM."""
        return self.llm.vllm_config

    async def get_vllm_config(self) -> EngineConfigView:
        """The same."""
        return self.llm.vllm_config

    async def get_supported_tasks(self) -> tuple[str, ...]:
        """Those of the LLM."""
        return tuple(self.llm.supported_tasks)

    @property
    def tokenizer(self) -> Any:
        """That of the LLM."""
        return self.llm.get_tokenizer()

    def get_tokenizer(self) -> Any:
        """That of the LLM."""
        return self.llm.get_tokenizer()

    # ---- memory and measuring -------------------------------------------------------------------

    async def sleep(self, level: int = 1) -> None:
        """LLM.sleep."""
        await self._apart(self.llm.sleep, level)

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """LLM.wake_up."""
        await self._apart(self.llm.wake_up, tags)

    async def is_sleeping(self) -> bool:
        """LLM.is_sleeping."""
        return self.llm.is_sleeping()

    async def start_profile(self, *args: Any, **given: Any) -> None:
        """LLM.start_profile."""
        self.llm.start_profile(*args, **given)

    async def stop_profile(self) -> Path:
        """LLM.stop_profile."""
        return await self._apart(self.llm.stop_profile)

    def shutdown(self, timeout: float | None = None) -> None:
        """LLM.close, which cancels what runs; timeout: vLLM's, there is nothing to wait for."""
        self.llm.close()

    # ---- what is not here -----------------------------------------------------------------------

    async def reset_prefix_cache(self, *args: Any, **given: Any) -> NoReturn:
        """LLM.reset_prefix_cache, which says why not."""
        self.llm.reset_prefix_cache()

    async def collective_rpc(self, *args: Any, **given: Any) -> NoReturn:
        """LLM.collective_rpc, which says why not."""
        self.llm.collective_rpc()

    async def add_request(self, *args: Any, **given: Any) -> NoReturn:
        """Raises UnsupportedError: generate adds one and yields its outputs."""
        raise UnsupportedError(
            "add_request: generate() adds a request and yields what comes of it; LLMEngine has "
            "add_request and step"
        )

    async def pause_generation(self, *args: Any, **given: Any) -> NoReturn:
        """Raises UnsupportedError: update_weights and sleep wait for no pause."""
        raise UnsupportedError(
            "pause_generation: not supported by this version; LLM.update_weights holds new "
            "requests back by itself, abort() ends those under way"
        )

    async def resume_generation(self) -> NoReturn:
        """Raises UnsupportedError, as pause_generation."""
        raise UnsupportedError("resume_generation: not supported by this version")


AsyncLLMEngine = AsyncLLM
"""vLLM's older name."""
