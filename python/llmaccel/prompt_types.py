"""The types of prompts under vLLM's names, for annotations and as dicts by name.

Invariant: a dict of these is a prompt wherever prompts are taken; what is wrong with it, prompts.py
says. Called by users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict


class _Options(TypedDict, total=False):
    cache_salt: str


class TextPrompt(_Options):
    """A text."""

    prompt: str


class _Text(_Options, total=False):
    prompt: str


class TokensPrompt(_Text):
    """Token ids, and the text that is reported with them."""

    prompt_token_ids: list[int]


class EmbedsPrompt(_Text):
    """Embeddings, which this version does not take: UnsupportedError names them."""

    prompt_embeds: Any


PromptType = str | Sequence[int] | TextPrompt | TokensPrompt | EmbedsPrompt
"""All of them."""
