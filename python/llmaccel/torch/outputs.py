"""What CausalLM returns: dicts that are read by key, by attribute and by place.

Owns the two kinds of result. Invariant: they hold what there is and nothing else; another field of
transformers' outputs reads as None by attribute. Made by causal.py and generation.py.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class Output(OrderedDict[str, Any]):
    """A dict of results, read as transformers' are: out.logits, out["logits"], out[0]."""

    fields: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name in type(self).fields:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """What there is, in order."""
        return tuple(self[name] for name in self)


class CausalLMOutput(Output):
    """Of forward. loss: float32 [], where labels were given; logits: float32 [B, T, V];
    hidden_states: float32 [B, T, D] of the embeddings and of each layer, where asked for."""

    fields = ("loss", "logits", "past_key_values", "hidden_states", "attentions")


class GenerateOutput(Output):
    """Of generate. sequences: int64 [rows, T + new]; sequences_scores: float32 [rows], of beams;
    scores, logits: a float32 [rows, V] for each new token, where asked for."""

    fields = (
        "sequences",
        "sequences_scores",
        "scores",
        "logits",
        "past_key_values",
        "hidden_states",
        "attentions",
    )
