"""Submitting now, collecting or aborting later: vLLM's enqueue and wait_for_completion.

Owns the requests that were enqueued and not yet collected. Invariant: each is collected by one
call, in the order of submission; a call that is interrupted cancels what it was to collect.

A base of LLM (llm.py).
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from llmaccel.arguments import check_switches, refuse_foreign
from llmaccel.calls import Calls, Params, Prompt
from llmaccel.errors import RequestError, UnsupportedError, shown
from llmaccel.outputs import RequestOutput
from llmaccel.request import Request
from llmaccel.states import Wanted, wanted_of
from llmaccel.waiting import abandon, wait_all

# Requests of one call, and the queue that hears of their ends.
Batch = tuple[list[Request], "queue.SimpleQueue[Request]"]


class Queued(Calls):
    """The methods of LLM that submit and collect."""

    _enqueued: queue.SimpleQueue[Batch]

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        priority: int | Sequence[int] | None = 0,
        timeout: float | None = None,
        use_tqdm: bool | Callable[..., Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        output_logits: bool = False,
        output_hidden_states: Sequence[int] | None = None,
        **foreign: Any,
    ) -> list[str]:
        """Start prompts and return at once: the request ids, one per prompt, in order.

        Arguments and errors are those of generate; wait_for_completion gives the outputs. use_tqdm:
        nothing is waited for here; wait_for_completion has the bar.
        """
        self._driver.check()
        refuse_foreign("enqueue", foreign)
        check_switches(use_tqdm=use_tqdm)
        wanted = wanted_of(output_logits, output_hidden_states, self._config.n_layers)
        encoded = self._encode_prompts(prompts, tokenization_kwargs)
        return self._enqueue(encoded, sampling_params, priority, timeout, wanted)

    def enqueue_chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = None,
        use_tqdm: bool | Callable[..., Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        priority: int | Sequence[int] | None = 0,
        timeout: float | None = None,
        output_logits: bool = False,
        output_hidden_states: Sequence[int] | None = None,
        **foreign: Any,
    ) -> list[str]:
        """The same for a conversation or a list of them; arguments as in chat."""
        self._driver.check()
        refuse_foreign("enqueue_chat", foreign)
        check_switches(use_tqdm=use_tqdm)
        wanted = wanted_of(output_logits, output_hidden_states, self._config.n_layers)
        encoded = self._encode_chat(
            messages,
            tools=tools,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
            chat_template_content_format=chat_template_content_format,
            tokenization_kwargs=tokenization_kwargs,
        )
        return self._enqueue(encoded, sampling_params, priority, timeout, wanted)

    def wait_for_completion(
        self, output_type: Any = None, *, use_tqdm: bool | Callable[..., Any] | None = None
    ) -> list[RequestOutput]:
        """Outputs of all that was enqueued and not yet collected, in order of submission; [] where
        there is nothing. Raises the error of the first request that failed. output_type: vLLM's;
        RequestOutput is all that comes."""
        self._driver.check_wait()
        check_switches(use_tqdm=use_tqdm)
        if output_type not in (None, RequestOutput, (RequestOutput,)):
            raise UnsupportedError(f"output_type={shown(output_type)}: only RequestOutput comes")
        batches: list[Batch] = []
        try:
            with suppress(queue.Empty):  # which others may be taking from as well
                while True:
                    batches.append(self._enqueued.get_nowait())
            for started, news in batches:
                wait_all(started, news, use_tqdm)
        except BaseException:
            for started, _ in batches:
                abandon(self._driver, started)
            raise
        return [request.output() for started, _ in batches for request in started]

    def abort(self, request_ids: str | Iterable[str]) -> int:
        """End requests by their ids within one step; their outputs have finish_reason "abort".

        Returns how many were running; ids of others are passed over.
        """
        ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        return sum(self._driver.cancel(request) for request in self._driver.find(ids))

    def _take_id(self, request_id: Any) -> None:
        """Keep a caller's id from others; RequestError where a request under way has it."""
        if (
            not isinstance(request_id, str)
            or request_id in self._given_ids
            or any(not (one.done or one.cancelled) for one in self._driver.find({request_id}))
        ):
            raise RequestError(f"request_id={shown(request_id)}: expected a string not in use")
        self._given_ids.add(request_id)

    def _enqueue(
        self,
        encoded: list[tuple[str | None, list[int]]],
        params: Params,
        priority: int | Sequence[int] | None,
        timeout: float | None,
        wanted: Wanted | None,
    ) -> list[str]:
        news: queue.SimpleQueue[Request] = queue.SimpleQueue()
        started = self._start(
            encoded, params, news, priority=priority, timeout=timeout, wanted=wanted
        )
        self._enqueued.put((started, news))
        return [request.request_id for request in started]
