"""The arguments of a call beside its prompts, checked: switches, seconds, priorities, one or many.

Owns what is done with vLLM's arguments that this version has not: refused by name, unless they ask
for nothing. Invariant: whatever is wrong is an error that names the argument, before anything is
submitted. Called by llm.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmaccel.errors import RequestError, UnsupportedError, shown
from llmaccel.prompts import BYTES
from llmaccel.whole import is_whole

# Arguments of vLLM's generate and chat, and what to do instead where there is something.
_FOREIGN = {
    "lora_request": "",
    "prompt_adapter_request": "",
    "guided_options_request": "",
    "mm_processor_kwargs": "",
    "prompt_token_ids": "; give token ids as the prompts",
    "delay_iterations": "",
    "stat_loggers": "",
    "enable_multiprocessing": "",
    "start_engine_loop": "",
    "max_iterations": "",
    "trace_headers": "",
    "data_parallel_rank": "",
    "session_id": "",
    "kv_hints": "",
    "reasoning_ended": "",
    "reasoning_parser_kwargs": "",
    "prompt_text": "; a prompt's dict may have both, 'prompt' and 'prompt_token_ids'",
}
# What asks for nothing, beside None.
_NOTHING: dict[str, Any] = {
    "mm_processor_kwargs": {},
    "delay_iterations": 0,
    "enable_multiprocessing": False,
    "start_engine_loop": True,
    "max_iterations": 0,
}


def refuse_foreign(method: str, given: Mapping[str, Any]) -> None:
    """UnsupportedError for an argument of vLLM's that asks for something, TypeError for one that
    nobody has."""
    for name, value in given.items():
        if name == "usage_context":  # who asks, for vLLM's telemetry
            continue
        if name not in _FOREIGN:
            raise TypeError(f"LLM.{method}() got an unexpected keyword argument {name!r}")
        nothing = _NOTHING.get(name)
        if value is not None and not (isinstance(value, type(nothing)) and value == nothing):
            raise UnsupportedError(f"{name}: not supported by this version{_FOREIGN[name]}")


def check_switches(**given: Any) -> None:
    """RequestError names the first that is neither True nor False; what is None was left out.
    use_tqdm may be a class like tqdm, or a function that makes one."""
    for name, value in given.items():
        if name == "use_tqdm" and callable(value):
            continue
        if value is not None and not isinstance(value, (bool, np.bool_)):
            raise RequestError(f"{name}: expected True or False, got {shown(value)}")


def spread(name: str, value: Any, count: int, kind: type) -> list[Any]:
    """One value for all, or a list of one per prompt."""
    if value is None or isinstance(value, kind):
        return [value] * count
    if not isinstance(value, Sequence) or isinstance(value, (str, *BYTES)):
        raise RequestError(
            f"{name}: expected one for all or a list with one for each prompt, got {shown(value)}"
        )
    if len(value) != count:
        raise RequestError(f"{name}: expected {count}, one for each prompt, got {len(value)}")
    return list(value)


def seconds_of(timeout: float | None) -> float:
    """The core's 0.0 for None."""
    if timeout is None:
        return 0.0
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real) or not timeout > 0.0:
        raise RequestError(f"timeout: expected a number of seconds above 0, got {shown(timeout)}")
    return float(min(timeout, 1e9))


def priority_of(value: Any) -> int:
    if not is_whole(value, -(2**31), 2**31 - 1):
        raise RequestError(f"priority: expected an integer of 32 bits, got {shown(value)}")
    return int(value)
