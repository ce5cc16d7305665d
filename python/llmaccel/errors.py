"""The exceptions of llmaccel.

Every error that llmaccel raises on purpose is an `LLMAccelError`. Each also derives from the
builtin exception that a caller would expect, so `except ValueError` keeps working.
`shown` writes what was given into a message; every other file uses both.
"""

from __future__ import annotations

from typing import Any


class LLMAccelError(Exception):
    """Base of all llmaccel exceptions."""


class ConfigError(LLMAccelError, ValueError):
    """A constructor argument or a model configuration value is wrong; the message names it."""


class LoadError(LLMAccelError):
    """A checkpoint or tokenizer file is missing, truncated, or contradicts itself."""


class MemoryPlanError(LLMAccelError, MemoryError):
    """The model, its cache and its workspace do not fit; the message gives what would.

    max_model_len: the largest that would, the other limits as they are; 0: none."""

    max_model_len = 0


class RequestError(LLMAccelError, ValueError):
    """One request is invalid; other requests are not affected."""


class UnsupportedError(LLMAccelError, ValueError):
    """A feature, option or model architecture that llmaccel knows it cannot serve."""


class UnsupportedCombination(UnsupportedError):
    """Two features that are here, but not together; the message names one of them."""


def shown(value: Any) -> str:
    """The start of repr(value), which must not fail and hide the message that it is for."""
    try:
        return repr(value)[:80]
    except Exception:  # integers of more than 4300 digits; anybody's own __repr__
        return f"a value of type {type(value).__name__}"
