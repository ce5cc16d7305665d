"""What a caller may give as a prompt, taken apart: one or many, text or ids, vLLM's dicts.

Invariant: whatever is wrong with a prompt is a RequestError (or, for what other engines have and
this one has not, an UnsupportedError) that names the prompt and its key, before anything is
submitted. Called by llm.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmaccel.errors import RequestError, UnsupportedError, shown
from llmaccel.whole import is_whole

# Keys of vLLM's prompt dicts that this version has no use for.
_VLLM_KEYS = (
    "multi_modal_data",
    "multi_modal_uuids",
    "mm_processor_kwargs",
    "prompt_embeds",
    "token_type_ids",
    "encoder_prompt",
    "decoder_prompt",
    "cache_salt",
)


# Sequences of integers that are no token ids.
BYTES = (bytes, bytearray, memoryview)


def prompt_list(prompts: Any) -> list[Any]:
    """One prompt or many, as a list of prompts."""
    return one_or_many(prompts)[1]


def one_or_many(prompts: Any) -> tuple[bool, list[Any]]:
    """Whether it is one prompt, and the list of prompts."""
    if isinstance(prompts, (str, Mapping)):
        return True, [prompts]
    prompts = _as_array(prompts, "prompts")
    if isinstance(prompts, np.ndarray):
        if prompts.ndim == 0:
            raise RequestError("prompts: expected token ids, got an array without axes")
        return prompts.ndim == 1, [prompts] if prompts.ndim == 1 else list(prompts)
    if not isinstance(prompts, Sequence) or isinstance(prompts, BYTES):
        kind = type(prompts).__name__
        raise RequestError(f"prompts: expected text, token ids or a list of these, got {kind}")
    if prompts and all(isinstance(item, numbers.Integral) for item in prompts):
        return True, [prompts]
    return False, list(prompts)


def parts_of(prompt: Mapping[str, Any], where: str) -> tuple[str | None, Any]:
    """(text or None, what to run) of a prompt dict."""
    for key in prompt:
        if key in _VLLM_KEYS:
            if prompt[key] is not None:
                raise UnsupportedError(f"{where}: {key!r} is not supported")
        elif key not in ("prompt", "prompt_token_ids"):
            raise RequestError(
                f"{where}: unknown key {shown(key)}; known: prompt, prompt_token_ids"
            )
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if text is None and ids is None:
        raise RequestError(
            f"{where}: expected text or token ids, in 'prompt' or 'prompt_token_ids'"
        )
    if text is not None and not isinstance(text, str):
        raise RequestError(f"{where}: 'prompt' must be a string, got {type(text).__name__}")
    if isinstance(ids, str):
        raise RequestError(f"{where}: 'prompt_token_ids' must be a list of token ids, got a string")
    return text, text if ids is None else ids


def _as_array(given: Any, where: str) -> Any:
    """A torch tensor or another thing that NumPy can view as its array; the rest as it is."""
    if isinstance(given, (np.ndarray, np.generic, Sequence)) or not hasattr(given, "__array__"):
        return given
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # on a device, or wants detach()
        raise RequestError(f"{where}: {error}") from error


def ids_of(given: Any, where: str) -> list[int]:
    """Token ids from a sequence, or from an array or tensor of one axis."""
    given = _as_array(given, where)
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "iu":
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, BYTES):
        raise RequestError(f"{where}: expected text or token ids, got {type(given).__name__}")
    return checked_ids(given, where)


def checked_ids(given: Sequence[Any], where: str) -> list[int]:
    """`given` as a list of ints; RequestError names the first that is no id."""
    for i, item in enumerate(given):
        if not is_whole(item, 0, 2**31 - 1):
            raise RequestError(f"{where}[{i}]: expected a token id, got {shown(item)}")
    return list(map(int, given))


def encode_text(tokenizer: Any, text: str, where: str, **options: Any) -> list[int]:
    """Token ids; RequestError names `where` for text that cannot be encoded."""
    try:
        return tokenizer.encode(text, **options)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


# What chat() itself gives to apply_chat_template.
_CHAT_ARGUMENTS = (
    "conversation",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
)


def template_variables(given: Any) -> Mapping[str, Any]:
    """chat_template_kwargs, of which none may be an argument of chat() itself."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise RequestError(f"chat_template_kwargs: expected a dict with names, got {shown(given)}")
    for key in given:
        if key in _CHAT_ARGUMENTS or key == "self":
            raise RequestError(f"chat_template_kwargs: {key!r} is no variable of a template")
    return given
