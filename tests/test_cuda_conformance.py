"""Every instruction that GPU kernels use, in the emulator, against NumPy and a real GPU's output.

The cases are in conformance_cases.py, the kernels in csrc/kernels/cuda/conformance.h. Golden
vectors are what a GPU gave for the same input; they are recorded where there is one.
"""

from __future__ import annotations

from functools import cache

import conformance_cases
import emulator
import numpy as np
import pytest
from conftest import ROOT

GOLDENS = ROOT / "tests" / "goldens" / "cuda" / "h200.npz"
SEEDS = [0, 1, 2]


@cache
def library():
    sources = [emulator.EMULATOR / "conformance_emulated.cpp"]
    return conformance_cases.load(emulator.library("conformance", sources, ["-O1"]))


@cache
def all_cases() -> dict[str, list[conformance_cases.Case]]:
    """By kernel."""
    by_kernel: dict[str, list[conformance_cases.Case]] = {}
    for case in conformance_cases.cases(conformance_cases.names(library())):
        by_kernel.setdefault(case.kernel.rpartition("_")[0] or case.kernel, []).append(case)
    return by_kernel


GROUPS = [
    *(f"wgmma_{f}" for f in ("bf16_ss", "bf16_rs", "e4m3_ss", "f16_ss", "f16_rs", "e4m3_rs")),
    *(f"wgmma_bf16_{f}" for f in ("ss_tb", "ss_ta", "ss_tatb", "rs_tb")),
]


@pytest.mark.parametrize("group", [*GROUPS, "others"])
def test_instructions(group: str) -> None:
    """Each case under every seed; no order of events changes a result."""
    groups = all_cases()
    assert set(GROUPS) <= set(groups)
    chosen = {group} if group in GROUPS else set(groups) - set(GROUPS)
    found = []
    for case in (case for name in sorted(chosen) for case in groups[name]):
        for seed in SEEDS:
            difference = case.check(conformance_cases.run(library(), case, seed))
            if difference:
                found.append(f"{difference} (seed {seed})")
    assert not found, "\n".join(found)


def test_a_wrong_output_is_seen() -> None:
    """The comparison itself, exact and with a tolerance."""
    for case in (all_cases()["warp"][0], all_cases()["wgmma_bf16_ss"][0]):
        got = case.expected.copy()
        assert not case.check(got)
        got.ravel()[3] += 1
        assert "1 of" in case.check(got)


def test_golden_vectors() -> None:
    """The emulator gives what the GPU gave: every bit, or within rounding where sums are."""
    if not GOLDENS.is_file():
        pytest.skip(f"{GOLDENS.relative_to(ROOT)} is not recorded yet: it needs a GPU")
    goldens = np.load(GOLDENS)
    found = []
    for case in (case for group in all_cases().values() for case in group):
        golden = goldens[case.name.replace("/", ":")]
        found.append(case.check(conformance_cases.run(library(), case, 1), golden))
    assert not any(found), "\n".join(filter(None, found))
