"""rt_cuda.cu's memory on a driver that a test can make fail (tests/cuda_emu/fake_driver.cpp).

The file that nvcc compiles for a GPU, compiled here for the host with the toolkit's headers: ranges
grow and shrink where they are, a commit that fails leaves all as it was, and a driver without
virtual memory is done without. Skipped where there are no headers of CUDA 13.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import emulator
import numpy as np
import pytest
from conftest import ROOT
from emulator import CACHE, EMULATOR, KERNELS
from test_cuda_runtime import Runtime, view

MIB = 1 << 20
GRANULE = 2 * MIB
OUT_OF_MEMORY, NOT_SUPPORTED, UNKNOWN = 2, 801, 999
CALLS = ["cuMemAddressReserve", "cuMemAddressFree", "cuMemCreate", "cuMemRelease", "cuMemMap"]
CALLS += ["cuMemUnmap", "cuMemSetAccess", "cuMemGetAllocationGranularity"]


class Info(ctypes.Structure):
    """la_rt_info"""

    _fields_ = [
        ("name", ctypes.c_char * 96),
        *((name, ctypes.c_int) for name in ("cc", "n_sms", "driver", "runtime", "maps")),
        *((name, ctypes.c_size_t) for name in ("granule", "smem", "l2", "free", "total")),
    ]


def headers() -> Path:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    homes += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    for home in homes:
        if home and (Path(home) / "include" / "cuda_runtime_api.h").is_file():
            return Path(home) / "include"
    pytest.skip("no headers of CUDA")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", f"-I{KERNELS}", f"-I{ROOT / 'csrc'}"]
    flags += ["-isystem", str(headers())]
    CACHE.mkdir(parents=True, exist_ok=True)
    sources = [KERNELS / "rt_cuda.cu", EMULATOR / "fake_driver.cpp"]
    objects = [emulator.compile_object(path, flags) for path in sources]
    out = CACHE / f"driver-{objects[0].stem[-16:]}{objects[1].stem[-16:]}.so"
    if not out.exists():
        emulator.run([emulator.compiler(), "-shared", "-o", str(out), *map(str, objects)])
    return ctypes.CDLL(str(out))


class Ranges(Runtime):
    """The runtime, with calls on ranges in granules."""

    def info(self) -> Info:
        info = Info()
        self.lib.la_rt_describe(self.rt, ctypes.byref(info))
        return info

    def commit(self, base: int, first: int, n: int) -> int:
        at = ctypes.c_void_p(base + first * GRANULE)
        return self.lib.la_rt_commit(self.rt, at, ctypes.c_size_t(n * GRANULE))

    def decommit(self, base: int, first: int, n: int) -> None:
        at = ctypes.c_void_p(base + first * GRANULE)
        self.lib.la_rt_decommit(self.rt, at, ctypes.c_size_t(n * GRANULE))

    def release(self, base: int) -> None:
        self.lib.la_rt_release(self.rt, ctypes.c_void_p(base))

    def fail(self, call: str, n: int, code: int) -> None:
        self.lib.fake_fail(call.encode(), n, code)

    def close(self) -> None:
        self.lib.la_rt_close(self.rt)


@pytest.fixture
def fresh(library: ctypes.CDLL) -> Iterator[ctypes.CDLL]:
    """Nothing is left behind by whoever had it, nor by this test."""
    assert library.fake_left() == 0
    yield library
    assert library.fake_left() == 0


def words(base: int, granule: int) -> np.ndarray:
    return view(base + granule * GRANULE, GRANULE).view(np.uint64)


def test_a_range_grows_and_shrinks_where_it_is(fresh: ctypes.CDLL) -> None:
    rt = Ranges(fresh)
    assert (rt.info().maps, rt.info().granule) == (1, GRANULE)
    base, free = rt.new("reserve", 40 * GRANULE), rt.info().free  # more than the card's 32
    assert rt.commit(base, 0, 3) == 0
    for i in range(3):
        words(base, i)[:] = i
    assert rt.commit(base, 2, 6) == 0  # the third is there already
    assert rt.info().free == free - 8 * GRANULE
    assert [int(words(base, i)[-1]) for i in range(3)] == [0, 1, 2]
    words(base, 7)[:] = 7
    rt.decommit(base, 1, 6)
    assert rt.info().free == free - 2 * GRANULE
    assert [int(words(base, i)[5]) for i in (0, 7)] == [0, 7]
    assert rt.commit(base, 1, 2) == 0
    assert rt.counts.alive == 1 + 4
    rt.release(base)
    assert (rt.counts.alive, rt.message) == (0, "")
    rt.close()


def test_what_a_library_asks_is_asked_at_once(fresh: ctypes.CDLL) -> None:
    """With the arguments as they are then; after a failure nobody is asked."""
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    )
    seen = []

    def call(stream: int, args: int, why: int, n: int) -> int:
        seen.append(ctypes.c_int.from_address(args).value)
        ctypes.memmove(why, b"it would not", 13)
        return -1 if seen[-1] == 2 else 0

    rt, asked = Ranges(fresh), kind(call)
    stream = rt.new("stream_open")
    for number in (1, 2, 3):
        value = ctypes.c_int(number)
        at = (ctypes.c_void_p(stream), asked, ctypes.byref(value), ctypes.c_size_t(4))
        rt.lib.la_rt_ask(*at)
    assert seen == [1, 2]
    assert rt.message == "it would not"
    rt.stream_close(stream)
    rt.close()


@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemMap", "cuMemSetAccess"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_commit_that_finds_no_memory_leaves_all_as_it_was(
    call: str, n: int, fresh: ctypes.CDLL
) -> None:
    rt = Ranges(fresh)
    base = rt.new("reserve", 16 * GRANULE)
    assert rt.commit(base, 0, 2) == 0
    words(base, 1)[:] = 5
    free, alive = rt.info().free, rt.counts.alive
    rt.fail(call, n, OUT_OF_MEMORY)
    assert rt.commit(base, 1, 5) == -1
    assert (rt.info().free, rt.counts.alive, rt.message) == (free, alive, "")
    assert words(base, 1)[9] == 5
    assert rt.commit(base, 1, 5) == 0  # memory came back
    assert words(base, 1)[9] == 5
    rt.close()


def test_memory_ends_at_the_cards(fresh: ctypes.CDLL) -> None:
    rt = Ranges(fresh)
    base = rt.new("reserve", 64 * GRANULE)
    assert rt.commit(base, 0, 30) == 0
    assert rt.commit(base, 30, 3) == -1
    assert rt.commit(base, 30, 2) == 0
    assert rt.message == ""
    rt.close()


@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap"])
def test_another_failure_is_the_devices_and_names_the_call(call: str, fresh: ctypes.CDLL) -> None:
    rt = Ranges(fresh)
    base = rt.new("reserve", 4 * GRANULE)
    rt.fail(call, 1, UNKNOWN)
    made = rt.commit(base, 0, 1)
    rt.decommit(base, 0, 1)
    assert made == (0 if call == "cuMemUnmap" else -1)
    assert "error 999 of the driver" in rt.message
    assert rt.commit(base, 0, 1) == -1
    rt.fail(call, 0, 0)
    if call == "cuMemUnmap":  # what the driver kept, nobody can give back
        assert fresh.fake_left() > 0
        fresh.fake_forget()
    rt.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_driver_that_maps_nothing_is_done_without(
    call: str, hidden: bool, fresh: ctypes.CDLL
) -> None:
    """The call is not there, or refuses: a reservation is plain memory, all of it at once."""
    if hidden:
        fresh.fake_hide(call.encode())
    else:
        fresh.fake_fail(call.encode(), 1, NOT_SUPPORTED)
    rt = Ranges(fresh)
    assert (rt.info().maps, rt.message) == (0, "")
    if not hidden and call in ("cuMemAddressFree", "cuMemRelease", "cuMemUnmap"):
        fresh.fake_forget()  # of the probe, which the driver would not take back
    before = rt.info().free
    base = rt.new("reserve", 4 * GRANULE)
    assert rt.info().free == before - 4 * GRANULE
    words(base, 3)[:] = 1
    assert rt.commit(base, 0, 4) == 0
    rt.decommit(base, 1, 3)
    assert words(base, 3)[0] == 1
    assert rt.new("reserve", 40 * GRANULE) is None  # more than the card has
    assert rt.message == ""
    rt.release(base)
    assert (rt.info().free, rt.counts.alive) == (before, 0)
    rt.close()
