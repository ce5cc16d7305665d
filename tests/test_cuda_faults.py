"""The emulator names the faults of kernels, and outlives them.

The kernels, one fault each, are in cuda_emu/faults.cpp; here are the words that the message must
hold, and the checks that a launch and a tensor map make before anything runs.
"""

from __future__ import annotations

import ctypes
from functools import cache

import emulator
import numpy as np
import pytest
from conformance_cases import Shape
from emulator import Error, aligned, pointer

# Caught whatever the order of events is.
ALWAYS = {
    "unwritten": "which nobody has written",
    "past_shared": "at offset 32768 of 32768 bytes",
    "misaligned": "is not aligned",
    "past_global": "is in no registered allocation",
    "unregistered": "is in no registered allocation",
    "misaligned_global": "is not aligned",
    "wild_pointer": "crashed",
    "deep_stack": "crashed",
    "lane_missing": "la_shfl",
    "lane_not_in_mask": "is not in the mask",
    "source_not_in_mask": "outside of the mask",
    "masks_differ": "others brought 0x",
    "collectives_differ": "while others of its warp",
    "barrier_in_branch": "dead lock",
    "barrier_counts_differ": "others came for",
    "write_unordered": "nothing orders the two",
    "poll_for_nothing": "poll for what never comes",
    "odd_registers": "a multiple of 8",
    "early_write": "before la_grid_wait",
    "early_load": "a load at",
    "early_cp_async": "which the launch before writes, before la_grid_wait",
    "early_run": "la_bulk_load at",
    "early_box": "a box of a tensor at",
    "over_arrival": "more arrivals at the barrier",
    "barrier_made_twice": "which is a barrier already",
    "barrier_overwritten": "which is a barrier",
    "phase_never_ends": "dead lock",
    "no_barrier": "no barrier was initialised",
    "remote_barrier_unfenced": "was not fenced for the cluster",
    "cp_async_uncommitted": "no committed group",
    "map_of_nothing": "was not written by the runtime",
    "too_few_coordinates": "with 1 coordinates of a tensor of rank 2",
    "box_misaligned": "aligned to 1024",
    "load_over_dirty_bytes": "without a proxy fence",
    "odd_run": "multiples of 16",
    "run_past_global": "runs over the end",
    "no_such_block": "block 2 of 2",
    "descriptors_differ": "differ inside the warpgroup",
    "accumulator_touched": "was written before la_wgmma_wait",
    "warp_missing": "wgmma",
    "matrix_row_misaligned": "is not aligned to 16 bytes",
}
# Caught when events come in some order, which one of a few seeds gives.
SOMETIMES = {
    "no_sync": "which nobody has written",
    "read_unordered": "wrote: nothing orders the two",
    "copy_read_unordered": "which a copy wrote: nothing orders the two",
    "cp_async_unwaited": "where a copy is in flight",
    "cp_async_of_others": "where a copy is in flight",
    "two_loads_into_one": "where a copy is in flight",
    "load_nobody_waits_for": "still in flight",
    "source_overwritten": "a store in flight still reads",
    "block_has_ended": "which has ended",
}

# Right ones: each stores to the first 128 words. What they must hold.
FAULTLESS = {
    "none": np.zeros(128, np.uint32),
    "halves_and_atomics": np.full(128, 0x70007 + 128, np.uint32),
    "early_load_of_others": np.zeros(128, np.uint32),  # 0xffffffff, and 1
    "store_outlives_block": np.arange(1, 129, dtype=np.uint32),
}


@cache
def library() -> ctypes.CDLL:
    lib = emulator.library("faults", [emulator.EMULATOR / "faults.cpp"], ["-O1", "-fno-inline"])
    lib.fault_name.restype = ctypes.c_char_p
    return lib


def names() -> list[str]:
    out: list[str] = []
    while (name := library().fault_name(len(out))) is not None:
        out.append(name.decode())
    return out


def run(name: str, seed: int, out: np.ndarray | None = None) -> str:
    """What the emulator says of a kernel; "" where it found nothing."""
    lib, error = library(), Error()
    memory = [aligned(4096, "u4"), aligned(4096, "u4") if out is None else out]
    for array in memory:
        lib.la_emu_register(pointer(array), ctypes.c_size_t(array.nbytes))
    try:
        number = names().index(name)
        status = lib.fault_run(number, *map(pointer, memory), ctypes.c_uint32(seed), *error.args())
    finally:
        for array in memory:
            lib.la_emu_forget(pointer(array))
    assert bool(status) == bool(str(error))
    return str(error)


def test_every_fault_is_expected() -> None:
    assert set(names()) == {*FAULTLESS, *ALWAYS, *SOMETIMES}


@pytest.mark.parametrize("name", ALWAYS)
def test_fault_is_named(name: str) -> None:
    for seed in range(4):
        message = run(name, seed)
        assert ALWAYS[name] in message, message or "nothing was found"
        assert message.startswith(f"{name}: ")


@pytest.mark.parametrize("name", SOMETIMES)
def test_race_is_found(name: str) -> None:
    messages = [run(name, seed) for seed in range(1, 17)]
    assert any(SOMETIMES[name] in message for message in messages), messages


@pytest.mark.parametrize("name", FAULTLESS)
def test_no_fault_is_no_fault(name: str) -> None:
    for seed in range(8):
        out = aligned(4096, "u4", fill=0xFF)
        assert run(name, seed, out) == ""
        np.testing.assert_array_equal(out[:128], FAULTLESS[name])


def test_the_emulator_goes_on() -> None:
    """A right kernel runs after each kind of end that a wrong one had."""
    for name in ("unwritten", "wild_pointer", "deep_stack", "phase_never_ends"):
        assert run(name, 1)
        assert run("none", 1) == ""


def test_message_says_who_and_where() -> None:
    assert run("lane_not_in_mask", 0).startswith("lane_not_in_mask: block (0, 0, 0), thread 8: ")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rank": 6}, "rank"),
        ({"element_bytes": 3}, "element_bytes"),
        ({"base": 8}, "base"),
        ({"box": [7, 8]}, "box[0]"),
        ({"box": [128, 8]}, "swizzle"),
        ({"box": [64, 257]}, "box"),
        ({"dims": [0, 64]}, "dims"),
        ({"stride": [120]}, "stride"),
    ],
)
def test_tensor_map_is_checked(changed: dict[str, object], words: str) -> None:
    shape = Shape(256, 2, 2)
    shape.swizzle = 3
    fields = {"dims": [64, 64], "stride": [128], "box": [64, 8], **changed}
    for name, value in fields.items():
        if isinstance(value, list):
            for i, x in enumerate(value):
                getattr(shape, name)[i] = x
        else:
            setattr(shape, name, value)
    error = Error()
    target = aligned(16, "u8")
    status = library().la_emu_tensor_map(pointer(target), ctypes.byref(shape), *error.args())
    assert status == -1
    assert f"tensor map: {words}" in str(error)
