"""AsyncLLM and its arguments: vLLM's class for event loops, over the same LLM.

Owns nothing. Invariant: everything here is a method of LLM under another name; new code takes
`LLM.agenerate`.

Called by users.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from llmaccel.calls import Prompt
from llmaccel.errors import RequestError, shown
from llmaccel.llm import LLM
from llmaccel.outputs import RequestOutput
from llmaccel.params import RequestOutputKind, SamplingParams


class AsyncEngineArgs:
    """The arguments of LLM, kept until an engine is made of them."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model = model
        self.options = options


class AsyncLLM:
    """A loaded model for an event loop; `llm` is the LLM behind it."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> AsyncLLM:
        """Load the model that the arguments name; errors are those of LLM."""
        return cls(LLM(engine_args.model, **engine_args.options))

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

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests within one step; their last chunk has finish_reason "abort"."""
        self.llm.abort(request_id)

    def get_tokenizer(self) -> Any:
        """That of the LLM."""
        return self.llm.get_tokenizer()

    def shutdown(self) -> None:
        """LLM.close."""
        self.llm.close()
