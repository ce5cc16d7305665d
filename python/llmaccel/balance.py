"""Copies of busy experts and their placement on devices: the EPLB plan, from measured loads.

The algorithm is DeepSeek's published one, computed by csrc/model/balance.c: groups of experts are
packed on nodes, the experts of largest load per copy get more copies, copies are packed on devices.
`LLM.expert_load` measures loads. Called by users; nothing here touches a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.errors import ConfigError
from llmaccel.kernels.arguments import integer

MOST_SLOTS = 2**16  # as the core's


@dataclass(frozen=True, eq=False)
class ExpertPlan:
    """experts: int32 [n_layers, n_slots], the expert of each slot; the slots of a device lie
    together, and the devices of a node. copies: int32 [n_layers, n_experts], slots of each expert.
    devices: how many.
    """

    experts: np.ndarray
    copies: np.ndarray
    devices: int

    def device_load(self, load: Any) -> np.ndarray:
        """float64 [n_layers, devices]: what each gets where copies share their expert's load.

        load: [n_layers, n_experts] as the plan has, finite and not negative; else ConfigError.
        """
        share = _loads(load, np.float64, self.copies.shape) / self.copies
        of_slots = np.take_along_axis(share, self.experts, 1)
        return of_slots.reshape(len(share), self.devices, -1).sum(-1)

    def imbalance(self, load: Any) -> np.ndarray:
        """float64 [n_layers]: the busiest device's load over the mean; 1 for a layer without load,
        such as a dense one. load: as `device_load` takes it.
        """
        loads = self.device_load(load)
        mean = loads.mean(-1)
        return np.divide(loads.max(-1), mean, out=np.ones_like(mean), where=mean > 0)


def balance_experts(
    load: Any, slots: int, *, devices: int, nodes: int = 1, groups: int = 1
) -> ExpertPlan:
    """A plan for `slots` slots a layer on `devices` devices of `nodes` nodes.

    load: [n_layers, n_experts], not negative. groups: of neighbouring experts that should stay on
    one node (DeepSeek-V3 routes by them); where nodes do not divide them, all experts go anywhere.
    slots is a multiple of devices and at least n_experts, devices one of nodes. ConfigError names
    what does not fit.
    """
    loads = _loads(load, np.float32)
    given = {"slots": slots, "groups": groups, "nodes": nodes, "devices": devices}
    sizes = [integer(n, name, 1, MOST_SLOTS) for name, n in given.items()]
    experts, copies = _core.balance_experts(loads, *loads.shape, *sizes)
    return ExpertPlan(
        np.frombuffer(experts, np.int32).reshape(len(loads), -1),
        np.frombuffer(copies, np.int32).reshape(loads.shape),
        sizes[3],
    )


def _loads(load: Any, dtype: type, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """load [n_layers, n_experts] as an array. shape: that it must have; its values are then checked
    here, else by the core."""
    try:
        loads = np.ascontiguousarray(load, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"load: {error}") from error
    if loads.ndim != 2 or 0 in loads.shape or shape not in (None, loads.shape):
        wanted = "[n_layers, n_experts]" if shape is None else list(shape)
        raise ConfigError(f"load: expected {wanted}, got {list(loads.shape)}")
    if shape is not None and not (np.isfinite(loads) & (loads >= 0)).all():
        raise ConfigError("load: holds a value that is negative or not finite")
    return loads
