"""Hopper's product on the emulated device, and bugs planted in it that must be seen.

Shapes have tails in every dimension, outputs start as NaN, and each case runs under several seeds
of order and delay. The bugs are in cuda_mutants.py. tests/cuda_emu holds the emulator.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import emulator
import numpy as np
import pytest
from cuda_mutants import GEMM_SM90, NUMBERS, Mutant
from emulator import KERNELS, aligned, bf16, from_bf16, pointer
from launches import Product
from test_cuda_rows import STORE

SEEDS = [0, 1, 2]
SHAPES = [(130, 72, 200), (300, 264, 136), (1, 8, 8), (257, 320, 64)]
GEMM = KERNELS / "gemm_sm90.h"
TILE = (128, 6)  # columns and stages, as gemm_sm90.cu builds it


def source(variants: list[tuple[str, int, int]]) -> str:
    """C++ with a namespace for each (kernel header, BN, stages) and a table of their harnesses."""
    lines = ['#include "la_emu.h"', '#include "la_ptx_sm90.h"', '#include "product_finish.h"']
    for i, (header, columns, stages) in enumerate(variants):
        lines += [
            f"namespace variant_{i} {{",
            "#undef LA_GEMM_SM90_H",
            "#undef HARNESS_BN",
            "#undef HARNESS_STAGES",
            f"#define HARNESS_BN {columns}",
            f"#define HARNESS_STAGES {stages}",
            f'#include "{header}"',
            '#include "gemm_sm90_harness.h"',
            "}",
        ]
    lines.append(
        "typedef int run_t(const la_product_args *, float *, const int *, char *, size_t);"
    )
    names = ", ".join(f"variant_{i}::harness_run" for i in range(len(variants)))
    lines.append(f"static run_t *const table[] = {{{names}}};")
    lines.append('extern "C" run_t *variant(int i) { return table[i]; }')
    return "\n".join(lines) + "\n"


def build(name: str, variants: list[tuple[str, int, int]], extra: list[str]) -> ctypes.CDLL:
    emulator.compiler()
    emulator.CACHE.mkdir(parents=True, exist_ok=True)
    path = emulator.CACHE / f"{name}.cpp"
    path.write_text(source(variants))
    lib = emulator.library(name, [path], extra)
    lib.variant.restype = ctypes.c_void_p
    return lib


@cache
def gemm() -> ctypes.CDLL:
    return build("gemm", [(GEMM.name, *TILE)], [])


@cache
def mutants() -> ctypes.CDLL:
    """All changed kernels in one library, in a namespace each."""
    text = GEMM.read_text()
    emulator.compiler()
    folder = emulator.CACHE / "mutants"
    folder.mkdir(parents=True, exist_ok=True)
    variants = []
    for i, mutant in enumerate(GEMM_SM90):
        path = folder / f"gemm_sm90_{i}.h"
        changed = text.replace(mutant.text, mutant.changed)
        if not path.exists() or path.read_text() != changed:
            path.write_text(changed)
        variants.append((f"{folder}/{path.name}", 128, 3))
    return build("mutants", variants, ["-O1", "-w"])


PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *[ctypes.c_void_p] * 3,
    ctypes.c_char_p,
    ctypes.c_size_t,
)


@dataclass(frozen=True)
class Case:
    """rows, columns, depth; pieces of K, each made apart or all by one block; the seed."""

    mnk: tuple[int, int, int]
    pieces: int
    apart: bool
    seed: int


def run(lib: ctypes.CDLL, variant: int, case: Case) -> tuple[str, float, np.ndarray]:
    """Runs one variant: the emulator's reason, or "", the relative error, and the output."""
    (rows, columns, depth), units = case.mnk, (case.mnk[1] + 31) // 32 * 32
    rng = np.random.default_rng(7)
    x, w = aligned((rows, depth), np.uint16), aligned((units, depth), np.uint16)
    bias, out = aligned(units, np.float32), aligned((rows, columns), np.float32, fill=0xFF)
    room = (case.pieces, rows, (columns + TILE[0] - 1) // TILE[0] * TILE[0])
    partial = aligned(room if case.apart else 1, np.float32, fill=0xFF)
    x[:] = bf16(rng.standard_normal(x.shape))
    w[:columns] = bf16(rng.standard_normal((columns, depth)))
    bias[:] = rng.standard_normal(units)
    launch = np.array([3, case.seed, case.pieces], dtype=np.int32)
    error = ctypes.create_string_buffer(emulator.ERROR_BYTES)
    at = [array.ctypes.data for array in (x, w, bias, out)]
    args = Product(*at, columns, *case.mnk, STORE, 0, 0, 1.0, 0.0)
    for array in (x, w, bias, out, partial):
        lib.la_emu_register(pointer(array), ctypes.c_size_t(array.nbytes))
    try:
        call = PROTOTYPE(lib.variant(variant))
        room_at = pointer(partial if case.apart else None)
        status = call(ctypes.byref(args), room_at, pointer(launch), error, emulator.ERROR_BYTES)
    finally:
        for array in (x, w, bias, out, partial):
            lib.la_emu_forget(pointer(array))
    if status:
        return error.value.decode(), 0.0, out
    exact = from_bf16(x).astype(np.float64) @ from_bf16(w[:columns]).astype(np.float64).T
    exact += bias[:columns]
    difference = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    return "", float(np.nan_to_num(difference, nan=np.inf)), out


@pytest.mark.parametrize("mnk", SHAPES, ids=str)
def test_gemm_sm90(mnk: tuple[int, int, int]) -> None:
    """One piece, two added up by their block, two by a second launch: the last two are equal."""
    for seed in SEEDS:
        made = []
        for pieces, apart in ((1, False), (2, False), (2, True)):
            if pieces > (mnk[2] + 63) // 64:
                continue
            reason, error, out = run(gemm(), 0, Case(mnk, pieces, apart, seed))
            assert not reason
            assert error < 1e-6
            made.append(out)
        assert np.array_equal(*made[1:]) if made[1:] else mnk[2] <= 64


@pytest.mark.parametrize(
    "mutant",
    [  # one in four in the quick tests
        pytest.param(mutant, marks=[pytest.mark.slow] * (i % 4 > 0), id=mutant.name)
        for i, mutant in enumerate(GEMM_SM90)
    ],
)
def test_mutant_is_caught(mutant: Mutant) -> None:
    assert GEMM.read_text().count(mutant.text) == 1, "the kernel has changed: so must the mutant"
    lib, number = mutants(), GEMM_SM90.index(mutant)
    seen = []
    for seed in range(1, 9):
        pieces = min(2, (mutant.mnk[2] + 63) // 64)
        case = Case(mutant.mnk, pieces, seed % 2 == 0, seed)
        reason, error, _ = run(lib, number, case)
        if error > 1e-4:
            reason = f"{NUMBERS}: relative error {error:.1e}"
        if reason and mutant.reason in reason:
            return
        seen.append(reason or "nothing")
    pytest.fail("\n".join(["not caught, or not for the reason:", mutant.reason, *seen]))
