"""Copies of busy experts: the published example, its ratios, and the properties of any plan."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llmaccel import balance_experts
from llmaccel.errors import ConfigError

# The example of DeepSeek's repository: 2 layers of 12 experts, 16 slots, 8 devices on 2 nodes.
LOAD = np.array([
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]])  # fmt: skip
PUBLISHED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]  # fmt: skip


def per_device(experts, devices: int) -> list[list[int]]:
    return [sorted(part) for part in np.reshape(experts, (devices, -1)).tolist()]


def test_the_published_example():
    plan = balance_experts(LOAD, 16, devices=8, nodes=2, groups=4)
    for layer in range(2):
        assert per_device(plan.experts[layer], 8) == per_device(PUBLISHED[layer], 8)
    assert np.round(plan.imbalance(LOAD), 3).tolist() == [1.208, 1.242]
    assert plan.imbalance(np.zeros_like(LOAD)).tolist() == [1, 1]  # of layers without experts
    anywhere = balance_experts(LOAD, 16, devices=8)
    assert np.round(anywhere.imbalance(LOAD), 3).tolist() == [1.073, 1.19]
    # 3 nodes do not divide 4 groups: the same as without
    assert (balance_experts(LOAD, 24, devices=6, nodes=3, groups=4).experts
            == balance_experts(LOAD, 24, devices=6).experts).all()  # fmt: skip


def test_zipf_loads_of_256_experts():
    loads = [rank**-0.6 for rank in range(1, 257)]
    random.Random(0).shuffle(loads)
    load = np.array([loads])
    contiguous = load.reshape(32, 8).sum(-1)
    assert round(contiguous.max() / contiguous.mean(), 3) == 2.123
    anywhere = balance_experts(load, 288, devices=32)
    assert round(float(anywhere.imbalance(load)[0]), 3) == 1.001
    by_node = balance_experts(load, 288, devices=32, nodes=4, groups=8)
    assert round(float(by_node.imbalance(load)[0]), 3) == 1.043


@pytest.mark.parametrize("seed", range(30))
def test_any_plan_is_a_plan(seed):
    rng = np.random.default_rng(seed)
    nodes, per_node, groups = (int(v) for v in rng.integers(1, 5, 3))
    groups *= nodes if rng.random() < 0.5 else 1
    experts = groups * int(rng.integers(1, 9))
    devices = nodes * per_node
    slots = devices * -(-experts // devices) + devices * int(rng.integers(0, 3))
    load = rng.integers(0, 50, (3, experts)) * (rng.random((3, experts)) < 0.8)
    plan = balance_experts(load, slots, devices=devices, nodes=nodes, groups=groups)
    for layer in range(3):
        counts = np.bincount(plan.experts[layer], minlength=experts)
        assert np.array_equal(counts, plan.copies[layer])
        assert counts.min() >= 1
        assert counts.sum() == slots
        if groups % nodes == 0:  # groups stay on one node
            size, homes = experts // groups, plan.experts[layer].reshape(nodes, -1)
            of = [set((home // size).tolist()) for home in homes]
            assert sum(len(found) for found in of) == groups
    assert np.allclose(plan.device_load(load).sum(-1), load.sum(-1))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"slots": 8}, "^slots: expected 12 to 65536, got 8"),
        ({"slots": 18}, "^slots: 18 is no multiple of 8 devices"),
        ({"slots": 2**31 - 1}, "^slots: 2147483647 is not in"),
        ({"slots": 16.9}, "^slots: expected an integer, got 16.9"),
        ({"slots": "16"}, "^slots: expected an integer, got '16'"),
        ({"slots": True}, "^slots: expected an integer, got True"),
        ({"nodes": 3}, "^devices: 8 is no multiple of 3 nodes"),
        ({"nodes": 9}, "^nodes: expected 1 to 8, got 9"),
        ({"groups": 5}, "^groups: 5 do not divide 12 experts"),
        ({"groups": 13}, "^groups: expected 1 to 12, got 13"),
        ({"devices": 0}, "^devices: 0 is not in"),
        ({"devices": 17}, "^devices: expected 1 to 16, got 17"),
        ({"load": LOAD[0]}, r"^load: expected \[n_layers, n_experts\]"),
        ({"load": LOAD[:0]}, r"^load: expected \[n_layers, n_experts\], got \[0, 12\]"),
        ({"load": -LOAD}, "^load: of expert 0 in layer 0 is -90"),
        ({"load": LOAD * np.nan}, "^load: of expert 0"),
        ({"load": [["a"]]}, "^load: "),
        ({"load": np.ones((5000, 12))}, "^load: layers: expected 1 to 4096, got 5000"),
    ],
)
def test_what_does_not_divide_is_refused(args, message):
    given = {"load": LOAD, "slots": 16, "devices": 8, **args}
    with pytest.raises(ConfigError, match=message):
        balance_experts(given.pop("load"), given.pop("slots"), **given)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (LOAD[:1], r"^load: expected \[2, 12\], got \[1, 12\]"),
        (LOAD[:, :1], r"^load: expected \[2, 12\], got \[2, 1\]"),
        (-LOAD, "^load: holds a value that is negative"),
        (LOAD * np.inf, "^load: holds a value"),
        ("load", "^load: "),
    ],
)
def test_a_plan_takes_loads_of_its_own_experts(load, message):
    plan = balance_experts(LOAD, 16, devices=8)
    for method in (plan.imbalance, plan.device_load):
        with pytest.raises(ConfigError, match=message):
            method(load)


def plan_by_looking_at_all(load, slots, devices):
    """The published rule without heaps, of one layer whose experts may go anywhere."""
    experts, copies = list(range(len(load))), np.ones(len(load), int)
    while len(experts) < slots:
        experts.append(int(np.argmax(load / copies.astype(np.float32))))
        copies[experts[-1]] += 1
    weight = (load / copies.astype(np.float32))[experts]
    packs, room = [[] for _ in range(devices)], np.zeros(devices, np.float32)
    for item in np.argsort(-weight, kind="stable"):
        best = int(np.argmin(np.where([len(p) * devices < slots for p in packs], room, np.inf)))
        packs[best].append(experts[item])
        room[best] += weight[item]
    return [expert for pack in packs for expert in pack]


@pytest.mark.parametrize("top", [1, 5, 1000])  # many equal loads, and few
def test_heaps_choose_as_a_look_at_all_does(top):
    load = np.random.default_rng(top).integers(0, top + 1, 96).astype(np.float32)
    plan = balance_experts(load[None], 144, devices=24)
    assert plan.experts[0].tolist() == plan_by_looking_at_all(load, 144, 24)


def test_as_many_slots_as_there_may_be():
    load = np.random.default_rng(0).zipf(1.3, (1, 20000)) % 1000
    plan = balance_experts(load, 65536, devices=16384)
    assert plan.imbalance(load)[0] < 1.2


def test_the_core_checks_before_it_allocates():
    core = pytest.importorskip("llmaccel._core")
    load, top = np.ones((2, 4), np.float32), 2**31 - 1
    for sizes, message in [
        ((2, 4, top, 1, 1, 1), "slots: expected 4 to 65536, got 2147483647"),
        ((top, 4, 4, 1, 1, 1), "load: layers"),
        ((2, top, top, 1, 1, 1), "load: experts"),
        ((2, 4, 4, 1, 1, 0), "devices: expected 1 to 4, got 0"),
        ((2, 4, 4, 0, 1, 1), "groups: expected 1 to 4, got 0"),
        ((2, 4, 4, 1, -1, 1), "nodes: expected 1 to 1, got -1"),
        ((3, 4, 4, 1, 1, 1), r"load: 32 bytes are not float32 \[3, 4\]"),
    ]:
        with pytest.raises(ConfigError, match=message):
            core.balance_experts(load, *sizes)
