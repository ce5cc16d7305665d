"""The head of a sequence classifier: one row of the hidden state's width for every class.

It stays beside the core, as floats: a request has one product with it. Invariant: a row's sum is in
the order of its values, in float64, so that neither company nor threads can change a bit. Called by
llm.py (loading) and pooling.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmaccel.config import ModelConfig
from llmaccel.errors import ConfigError, LoadError
from llmaccel.models.checkpoint import RawTensor
from llmaccel.models.mapping import SCORE, class_tokens, head_name
from llmaccel.models.slots import TensorTable


def load_score(config: ModelConfig, checkpoint: TensorTable, tokenizer: Any) -> np.ndarray | None:
    """float32 [n_labels, D], or None where the model is no classifier. LoadError where the tensor
    is missing or has another shape, UnsupportedError where it is no floats."""
    if config.task != "classify":
        return None
    if class_tokens(config.raw):
        return _token_rows(config, checkpoint, tokenizer)
    want = (config.n_labels, config.d_model)
    if SCORE not in checkpoint:
        raise LoadError(f"tensor '{SCORE}' is missing; expected {list(want)}")
    return score_values(config, checkpoint[SCORE])


def _token_rows(config: ModelConfig, checkpoint: TensorTable, tokenizer: Any) -> np.ndarray:
    """Of a model that was trained to answer with a token: the rows of these tokens; of two, where
    it is an original reranker, what the second has more than the first: sigmoid makes of it the
    share that softmax of the two would give."""
    if tokenizer is None:
        raise ConfigError("classifier_from_token: the model brings no tokenizer; pass tokenizer=")
    head = checkpoint[head_name(config, checkpoint)]
    known, rows = tokenizer.get_vocab(), []
    for token in class_tokens(config.raw):
        number = known.get(token, -1)
        if not 0 <= number < head.shape[0]:
            raise ConfigError(f"classifier_from_token: {token!a:.80} is no token of this model")
        rows.append(head.rows(number, number + 1).float32()[0])
    if config.raw.get("is_original_qwen3_reranker"):
        return (rows[1] - rows[0])[None]
    return np.stack(rows)


def score_values(config: ModelConfig, tensor: RawTensor) -> np.ndarray:
    """The same from the tensor itself."""
    want = (config.n_labels, config.d_model)
    if tensor.shape != want:
        raise LoadError(f"{SCORE}: expected {list(want)}, got {list(tensor.shape)}")
    return tensor.float32()


def class_logits(score: np.ndarray, states: np.ndarray) -> np.ndarray:
    """float64 [T, n_labels] of hidden states [T, D]."""
    wide = score.astype(np.float64)
    return np.stack([(wide * row.astype(np.float64)).sum(axis=1) for row in states])
