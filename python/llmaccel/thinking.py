"""Thinking: the tokens around what a model thinks before it answers.

Owns the tags that models use. Invariant: a tag is one token of the vocabulary; text that only looks
like one may be split in ways that a draw could not be held to. Called by calls.py.
"""

from __future__ import annotations

from typing import Any

from llmaccel.errors import RequestError

TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
)


def think_tags(tokenizer: Any) -> tuple[list[int], list[int]]:
    """(ids that open a thought, ids that close it); RequestError where the tokenizer has none."""
    for tags in TAGS:
        found = [tokenizer.convert_tokens_to_ids(tag) for tag in tags]
        if None not in found and tokenizer.unk_token_id not in found:
            return found[:1], found[1:]
    raise RequestError(
        "thinking_token_budget: this model has no tokens around thoughts; known are "
        + ", ".join(f"{start} {end}" for start, end in TAGS)
    )
