"""PoolingParams, PoolerConfig and the outputs of pooling, under vLLM's names.

An output's numbers lie in a Tensor; lists of Python floats are made when somebody looks. Invariant:
parameters are checked when they are made. Made by users and by pooling.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from llmaccel.errors import ConfigError, RequestError, UnsupportedError, shown
from llmaccel.hints import hint
from llmaccel.whole import is_whole

SEQUENCE_POOLINGS = ("LAST", "MEAN", "CLS")
TOKEN_POOLINGS = ("ALL",)
TASKS = ("embed", "classify", "score", "token_embed", "token_classify")
_SWITCHES = ("normalize", "use_activation", "softmax", "activation")
# vLLM's fields for what is not here, and what asks for nothing.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "step_tag_id": (None,),
    "returned_token_ids": (None,),
    "requires_token_ids": (None, False),
    "skip_reading_prefix_cache": (None, False, True),
    "extra_kwargs": (None, {}),
}


@dataclass
class PoolerConfig:
    """How a model pools where PoolingParams leave it open, under vLLM's names. ConfigError names a
    bad value, UnsupportedError what this version has not.

    pooling_type, seq_pooling_type: "LAST", "MEAN" or "CLS" (the first token): what embed, classify
    and score make one state of; None: as the model's files say. pooling_type="ALL",
    tok_pooling_type: of every token, which token_embed and token_classify always do.
    use_activation, normalize: as in PoolingParams; softmax, activation: older names. dimensions: of
    embeddings. logit_mean, logit_sigma: (logit - mean) / sigma before a classifier's activation;
    logit_bias: an older name of the first.
    """

    task: str | None = None
    pooling_type: str | None = None
    seq_pooling_type: str | None = None
    tok_pooling_type: str | None = None
    use_activation: bool | None = None
    normalize: bool | None = None
    softmax: bool | None = None
    activation: bool | None = None
    dimensions: int | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    logit_bias: float | None = None
    enable_chunked_processing: bool = False
    enable_flash_late_interaction: bool = True
    max_embed_len: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every value; names of poolings become capitals."""
        for name in ("enable_chunked_processing", "max_embed_len", "step_tag_id"):
            if getattr(self, name) not in (None, False):
                raise UnsupportedError(f"pooler_config: {name}: not supported by this version")
        if self.returned_token_ids is not None:
            raise UnsupportedError(
                "pooler_config: returned_token_ids: not supported by this version; "
                "hf_overrides={'classifier_from_token': [...]} has classes of tokens"
            )
        poolings = {
            "pooling_type": (*SEQUENCE_POOLINGS, *TOKEN_POOLINGS),
            "seq_pooling_type": SEQUENCE_POOLINGS,
            "tok_pooling_type": TOKEN_POOLINGS,
        }
        for name, known in poolings.items():
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, value.upper())
            if value is not None and getattr(self, name) not in known:
                raise UnsupportedError(
                    f"pooler_config: {name}={shown(value)}: this version has {', '.join(known)}"
                )
        if self.pooling_type and (self.seq_pooling_type or self.tok_pooling_type):
            raise ConfigError("pooler_config: pooling_type stands for the other two; give one")
        for name in ("logit_mean", "logit_sigma", "logit_bias"):
            value = getattr(self, name)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (real and np.isfinite(value)):
                raise ConfigError(f"pooler_config: {name}: expected a number, got {shown(value)}")
        if self.logit_sigma == 0:
            raise ConfigError("pooler_config: logit_sigma: expected no 0, which divides")
        if self.logit_mean is not None and self.logit_bias is not None:
            raise ConfigError("pooler_config: logit_bias is logit_mean; give one")
        try:
            self.params()
        except RequestError as error:
            raise ConfigError(f"pooler_config: {error}") from error

    @property
    def sequence(self) -> str | None:
        """The pooling of a sequence, where it is given."""
        given = self.seq_pooling_type or self.pooling_type
        return given if given in SEQUENCE_POOLINGS else None

    def params(self) -> PoolingParams:
        """What it says of the fields of PoolingParams."""
        names = (*_SWITCHES, "dimensions", "task")
        return PoolingParams(**{name: getattr(self, name) for name in names})

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """A classifier's logits before its activation."""
        mean = self.logit_bias if self.logit_mean is None else self.logit_mean
        if mean is None and self.logit_sigma is None:
            return logits
        return (logits - (mean or 0.0)) / (1.0 if self.logit_sigma is None else self.logit_sigma)


def pooler_config(given: Any) -> PoolerConfig:
    """LLM's pooler_config: None, a PoolerConfig, or a dict of its fields."""
    if given is None:
        return PoolerConfig()
    if isinstance(given, PoolerConfig):
        given.validate()
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"pooler_config: expected a PoolerConfig or a dict, got {shown(given)}")
    known = [field.name for field in fields(PoolerConfig)]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"pooler_config: {shown(name)} is no field of PoolerConfig{hint(str(name), known)}"
            )
    return PoolerConfig(**given)


@dataclass
class PoolingParams:
    """How hidden states become an embedding or scores. RequestError names a bad value,
    UnsupportedError a field of vLLM's that this version has not, TypeError what nobody has.

    truncate_prompt_tokens: keep the last k tokens of the prompt; -1: as many as the model takes.
    dimensions: of an embedding the first so many, where the model was made for that.
    normalize: embeddings have length 1. use_activation: scores become probabilities, embeddings
    have length 1; None: what the model's files say, else True. softmax, activation: older names.
    task: of encode: "embed", "classify", "score", "token_embed", "token_classify".
    """

    truncate_prompt_tokens: int | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    softmax: bool | None = None
    activation: bool | None = None
    task: str | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    requires_token_ids: bool = False
    skip_reading_prefix_cache: bool | None = None
    extra_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every value."""
        for name, nothing in _ABSENT.items():
            if getattr(self, name) not in nothing:
                raise UnsupportedError(f"{name}: not supported by this version")
        for name in _SWITCHES:
            value = getattr(self, name)
            if value is not None and not isinstance(value, (bool, np.bool_)):
                raise RequestError(f"{name}: expected True or False, got {shown(value)}")
        keep = self.truncate_prompt_tokens
        if keep is not None and (not is_whole(keep, -1) or keep == 0):
            raise RequestError(
                f"truncate_prompt_tokens: expected -1 or at least 1, got {shown(keep)}"
            )
        if self.dimensions is not None and not is_whole(self.dimensions, 1):
            raise RequestError(f"dimensions: expected at least 1, got {shown(self.dimensions)}")
        if self.task is not None and self.task not in TASKS:
            raise RequestError(f"task: expected one of {', '.join(TASKS)}, got {shown(self.task)}")

    def activates(self) -> bool | None:
        """use_activation under any of its names."""
        for name in ("use_activation", "softmax", "activation"):
            if getattr(self, name) is not None:
                return bool(getattr(self, name))
        return None

    def clone(self) -> PoolingParams:
        """A checked copy."""
        return PoolingParams(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(eq=False)
class PoolingOutput:
    """data: Tensor float32; which shape it has says the method that made it."""

    data: Any


@dataclass(eq=False)
class EmbeddingOutput(PoolingOutput):
    """data: Tensor float32 [dimensions]."""

    @cached_property
    def embedding(self) -> list[float]:
        """The same as a list."""
        return self.data.tolist()

    @property
    def hidden_size(self) -> int:
        """How many numbers."""
        return len(self.data)


@dataclass(eq=False)
class ClassificationOutput(PoolingOutput):
    """data: Tensor float32 [classes]."""

    @cached_property
    def probs(self) -> list[float]:
        """The same as a list: probabilities, or with use_activation=False logits."""
        return self.data.tolist()

    @property
    def num_classes(self) -> int:
        """How many."""
        return len(self.data)


@dataclass(eq=False)
class ScoringOutput(PoolingOutput):
    """data: Tensor float32 without axes."""

    @property
    def score(self) -> float:
        """The same as a float."""
        return float(self.data)


@dataclass(eq=False)
class PoolingRequestOutput:
    """What a prompt became. request_id: unique in its LLM. num_cached_tokens: always 0 in this
    version."""

    request_id: str
    outputs: Any
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class EmbeddingRequestOutput(PoolingRequestOutput):
    """outputs: an EmbeddingOutput."""


class ClassificationRequestOutput(PoolingRequestOutput):
    """outputs: a ClassificationOutput."""


class ScoringRequestOutput(PoolingRequestOutput):
    """outputs: a ScoringOutput; prompt_token_ids: both texts', or the pair's."""
