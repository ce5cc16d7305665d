"""The head of a sequence classifier: one row of the hidden state's width for every class.

It stays beside the core, as floats: a request has one product with it. Invariant: a row's sum is in
the order of its values, in float64, so that neither company nor threads can change a bit. Called by
llm.py (loading) and pooling.py.
"""

from __future__ import annotations

import numpy as np

from llmaccel.config import ModelConfig
from llmaccel.errors import LoadError
from llmaccel.models.checkpoint import RawTensor
from llmaccel.models.mapping import SCORE
from llmaccel.models.slots import TensorTable


def load_score(config: ModelConfig, checkpoint: TensorTable) -> np.ndarray | None:
    """float32 [n_labels, D], or None where the model is no classifier. LoadError where the tensor
    is missing or has another shape, UnsupportedError where it is no floats."""
    if config.task != "classify":
        return None
    want = (config.n_labels, config.d_model)
    if SCORE not in checkpoint:
        raise LoadError(f"tensor '{SCORE}' is missing; expected {list(want)}")
    return score_values(config, checkpoint[SCORE])


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
