"""The bf16 product of Hopper on the emulated device, and bugs planted in it that must be seen.

Shapes have tails in every dimension, outputs start as NaN, and each case runs under several seeds
of order and delay. The bugs are in cuda_mutants.py. tests/cuda_emu holds the emulator.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache

import emulator
import numpy as np
import pytest
from cuda_mutants import GEMM_BF16, NUMBERS, Mutant
from emulator import KERNELS, aligned, bf16, from_bf16, pointer

SEEDS = [0, 1, 2, 3]
SHAPES = [(130, 72, 200), (300, 264, 136), (1, 8, 8), (257, 320, 64)]
GEMM = KERNELS / "gemm_bf16_sm90.h"
BUILT = re.findall(r"la_gemm_bf16_sm90<(\d+), (\d+)>", GEMM.with_suffix(".cu").read_text())
TILES = [(int(columns), int(stages)) for columns, stages in BUILT]


def source(variants: list[tuple[str, int, int]]) -> str:
    """C++ with a namespace for each (kernel header, BN, stages) and a table of their harnesses."""
    lines = ['#include "la_emu.h"', '#include "la_ptx_sm90.h"']
    for i, (header, columns, stages) in enumerate(variants):
        lines += [
            f"namespace variant_{i} {{",
            "#undef LA_GEMM_BF16_SM90_H",
            "#undef HARNESS_BN",
            "#undef HARNESS_STAGES",
            f"#define HARNESS_BN {columns}",
            f"#define HARNESS_STAGES {stages}",
            f'#include "{header}"',
            '#include "gemm_bf16_harness.h"',
            "}",
        ]
    lines.append(
        "typedef int run_t(const void *, const void *, const float *, void *, const int *,"
    )
    lines.append("                  const int *, char *, size_t);")
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
    return build("gemm", [(GEMM.name, *tile) for tile in TILES], [])


@cache
def mutants() -> ctypes.CDLL:
    """All changed kernels in one library, in a namespace each."""
    text = GEMM.read_text()
    emulator.compiler()
    folder = emulator.CACHE / "mutants"
    folder.mkdir(parents=True, exist_ok=True)
    variants = []
    for i, mutant in enumerate(GEMM_BF16):
        path = folder / f"gemm_bf16_{i}.h"
        changed = text.replace(mutant.text, mutant.changed)
        if not path.exists() or path.read_text() != changed:
            path.write_text(changed)
        variants.append((f"{folder}/{path.name}", 128, 3))
    return build("mutants", variants, ["-O1", "-w"])


PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *[ctypes.c_void_p] * 6,
    ctypes.c_char_p,
    ctypes.c_size_t,
)


def run(lib: ctypes.CDLL, variant: int, mnk: tuple[int, int, int], seed: int) -> tuple[str, float]:
    """Runs one variant: the emulator's reason, or "" and the relative error of the output."""
    rows, columns, depth = mnk
    rng = np.random.default_rng(7)
    x, w = aligned((rows, depth), np.uint16), aligned((columns, depth), np.uint16)
    bias, out = aligned(columns, np.float32), aligned((rows, columns), np.uint16, fill=0xFF)
    x[:] = bf16(rng.standard_normal(x.shape))
    w[:] = bf16(rng.standard_normal(w.shape))
    bias[:] = rng.standard_normal(columns)
    sizes = np.array(mnk, dtype=np.int32)
    launch = np.array([3, seed], dtype=np.int32)
    error = ctypes.create_string_buffer(emulator.ERROR_BYTES)
    for array in (x, w, bias, out):
        lib.la_emu_register(pointer(array), ctypes.c_size_t(array.nbytes))
    try:
        call = PROTOTYPE(lib.variant(variant))
        arrays = [pointer(a) for a in (x, w, bias, out, sizes, launch)]
        status = call(*arrays, error, emulator.ERROR_BYTES)
    finally:
        for array in (x, w, bias, out):
            lib.la_emu_forget(pointer(array))
    if status:
        return error.value.decode(), 0.0
    expected = from_bf16(x).astype(np.float64) @ from_bf16(w).astype(np.float64).T + bias
    difference = np.linalg.norm(from_bf16(out) - expected) / np.linalg.norm(expected)
    return "", float(np.nan_to_num(difference, nan=np.inf))


@pytest.mark.parametrize("tile", range(len(TILES)), ids=[f"n{n}x{s}" for n, s in TILES])
@pytest.mark.parametrize("mnk", SHAPES, ids=str)
def test_gemm_bf16(tile: int, mnk: tuple[int, int, int]) -> None:
    assert len(TILES) == 3
    for seed in SEEDS:
        reason, error = run(gemm(), tile, mnk, seed)
        assert not reason
        assert error < 3e-3  # of the output's rounding


@pytest.mark.parametrize("mutant", GEMM_BF16, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    assert GEMM.read_text().count(mutant.text) == 1, "the kernel has changed: so must the mutant"
    lib, number = mutants(), GEMM_BF16.index(mutant)
    seen = []
    for seed in range(1, 9):
        reason, error = run(lib, number, (300, 264, 328), seed)
        if error > 1e-2:
            reason = f"{NUMBERS}: relative error {error:.1e}"
        if reason and mutant.reason in reason:
            return
        seen.append(reason or "nothing")
    pytest.fail("\n".join(["not caught, or not for the reason:", mutant.reason, *seen]))
