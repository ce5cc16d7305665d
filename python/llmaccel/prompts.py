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

from llmaccel.errors import RequestError, UnsupportedError

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


def prompt_list(prompts: Any) -> list[Any]:
    """One prompt or many, as a list of prompts."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if isinstance(prompts, np.ndarray):
        return [prompts] if prompts.ndim == 1 else list(prompts)
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        kind = type(prompts).__name__
        raise RequestError(f"prompts: expected text, token ids or a list of these, got {kind}")
    if prompts and all(isinstance(item, numbers.Integral) for item in prompts):
        return [prompts]
    return list(prompts)


def parts_of(prompt: Mapping[str, Any], where: str) -> tuple[str | None, Any]:
    """(text or None, what to run) of a prompt dict."""
    for key in prompt:
        if key in _VLLM_KEYS:
            if prompt[key] is not None:
                raise UnsupportedError(f"{where}: {key!r} is not supported")
        elif key not in ("prompt", "prompt_token_ids"):
            raise RequestError(f"{where}: unknown key {key!r:.80}; known: prompt, prompt_token_ids")
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


def checked_ids(given: Sequence[Any], where: str) -> list[int]:
    """`given` as a list of ints; RequestError names the first that is no id."""
    for i, item in enumerate(given):
        if not isinstance(item, numbers.Integral) or isinstance(item, bool) or item < 0:
            raise RequestError(f"{where}[{i}]: expected a token id, got {item!r:.80}")
    return list(map(int, given))
