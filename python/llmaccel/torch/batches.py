"""Batches as PyTorch code has them: padded tables of token ids, with a mask.

Owns what they may look like. Used by causal.py and generation.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmaccel import RequestError, UnsupportedError


def integers(x: Any, name: str) -> Tensor:
    """int64 [B, T]; one row may come without its axis."""
    t = torch.as_tensor(x)
    if t.device.type != "cpu":
        raise UnsupportedError(f"{name}: is on {t.device}; CausalLM takes CPU tensors")
    if t.is_floating_point() or t.is_complex() or t.ndim not in (1, 2):
        raise RequestError(f"{name}: expected integers [B, T], got {t.dtype} {list(t.shape)}")
    return (t[None] if t.ndim == 1 else t).long()


def mask_of(mask: Any, ids: Tensor) -> Tensor:
    """bool [B, T]."""
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    t = torch.as_tensor(mask)
    t = t[None] if t.ndim == 1 else t
    if t.shape != ids.shape:
        raise RequestError(
            f"attention_mask: expected {list(ids.shape)}, as input_ids, got {list(t.shape)}"
        )
    return t.cpu() != 0


def span_of(mask: Tensor, i: int) -> tuple[int, int]:
    """Where a row's tokens begin and end."""
    at = mask.nonzero()[:, 0]
    if not len(at):
        return 0, 0
    begin, end = int(at[0]), int(at[-1]) + 1
    if end - begin != len(at):
        raise UnsupportedError(
            f"attention_mask: row {i} has gaps; padding may be on the left or on the right only"
        )
    return begin, end
