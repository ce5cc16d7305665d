"""The emulated runtime (tests/cuda_emu/rt_host.cpp) keeps CUDA's rules and says who broke one.

What a stream is asked for happens in its order, at any time up to a wait; the seed draws when. So a
right program is right under every seed, and a wrong one is seen under some: both are tested.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import emulator
import numpy as np
import pytest

IN, OUT, WITHIN = 0, 1, 2
SEEDS = range(16)
MIB = 1 << 20


class Counts(ctypes.Structure):
    """la_rt_counts"""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "allocations",
            "alive",
            "waits",
            "launches",
            "replays",
            "copied_in",
            "copied_out",
            "graphs",
            "event_waits",
        )
    ]


class Runtime:
    """A device of the emulated runtime."""

    def __init__(self, library: ctypes.CDLL | None = None) -> None:
        self.lib = library or emulator.backend()
        for name in ("alloc", "reserve", "pin", "stream_open", "event_open", "graph_end", "error"):
            getattr(self.lib, f"la_rt_{name}").restype = ctypes.c_void_p
        self.rt = ctypes.c_void_p()
        why = ctypes.create_string_buffer(256)
        if self.lib.la_rt_open(0, ctypes.byref(self.rt), why, ctypes.c_size_t(256)) != 0:
            raise RuntimeError(why.value.decode())

    def __getattr__(self, name: str):
        call = getattr(self.lib, f"la_rt_{name}")

        def run(*args):
            pointers = [
                ctypes.c_void_p(a) if isinstance(a, int) and a > 1 << 20 else a for a in args
            ]
            return call(*pointers)

        return run

    def new(self, what: str, *args) -> int:
        return getattr(self, what)(self.rt, *map(ctypes.c_size_t, args))

    def copy(self, stream: int, dst: int, src: int, n: int, way: int) -> None:
        args = (ctypes.c_void_p(stream), ctypes.c_void_p(dst), ctypes.c_void_p(src))
        self.lib.la_rt_copy(*args, ctypes.c_size_t(n), way)

    def fill(self, stream: int, dst: int, byte: int, n: int) -> None:
        args = (ctypes.c_void_p(stream), ctypes.c_void_p(dst))
        self.lib.la_rt_fill(*args, byte, ctypes.c_size_t(n))

    @property
    def message(self) -> str:
        return ctypes.string_at(self.lib.la_rt_error(self.rt)).decode()

    @property
    def counts(self) -> Counts:
        counts = Counts()
        self.lib.la_rt_count(self.rt, ctypes.byref(counts))
        return counts


@contextmanager
def runtime(
    monkeypatch: pytest.MonkeyPatch, seed: int = 1, **environment: str
) -> Iterator[Runtime]:
    monkeypatch.setenv("LLMACCEL_EMU_SEED", str(seed))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = Runtime()
    yield made
    made.lib.la_rt_close(made.rt)


def view(address: int, n: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(address))


def through_two_streams(rt: Runtime, wait: bool) -> np.ndarray:
    """7 goes in on one stream and comes out on another, maybe after a wait for the first."""
    host, back, device = rt.new("pin", 64), rt.new("pin", 64), rt.new("alloc", 64)
    first, second = rt.new("stream_open"), rt.new("stream_open")
    view(host, 64)[:] = 7
    rt.copy(first, device, host, 64, IN)
    if wait:
        assert rt.stream_wait(first) == 0
    rt.copy(second, back, device, 64, OUT)
    assert rt.stream_wait(second) == 0
    found = view(back, 64).copy()
    for stream in (first, second):
        rt.stream_close(stream)
    for place in (host, back):
        rt.new("unpin", place)
    rt.new("free", device)
    assert rt.message == ""
    assert rt.counts.alive == 0
    return found


def test_a_wait_orders_two_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in SEEDS:
        with runtime(monkeypatch, seed) as rt:
            assert (through_two_streams(rt, wait=True) == 7).all()


def test_a_missing_wait_is_seen_under_some_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for seed in SEEDS:
        with runtime(monkeypatch, seed) as rt:
            found.add(int(through_two_streams(rt, wait=False)[0]))
    assert found == {7, 0xFF}  # 0xff: fresh memory


def test_pinned_memory_that_is_written_too_early_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for seed in SEEDS:
        with runtime(monkeypatch, seed) as rt:
            host, device, stream = rt.new("pin", 8), rt.new("alloc", 8), rt.new("stream_open")
            view(host, 8)[:] = 1
            rt.copy(stream, device, host, 8, IN)
            view(host, 8)[:] = 2  # before the wait
            assert rt.stream_wait(stream) == 0
            rt.copy(stream, host, device, 8, OUT)
            assert rt.stream_wait(stream) == 0
            found.add(int(view(host, 8)[0]))
            assert (rt.counts.copied_in, rt.counts.copied_out) == (8, 8)
            rt.new("unpin", host)
            rt.new("free", device)
            rt.stream_close(stream)
    assert found == {1, 2}


def test_an_event_is_reached_when_what_came_before_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes behind it may be done or not; a second record moves it."""
    later = set()
    for seed in SEEDS:
        with runtime(monkeypatch, seed) as rt:
            stream, device, event = rt.new("stream_open"), rt.new("alloc", 8), rt.new("event_open")
            back = [rt.new("pin", 8) for _ in range(2)]
            view(back[1], 8)[:] = 0
            assert rt.event_wait(event) == 0  # never recorded: reached
            rt.fill(stream, device, 7, 8)
            rt.copy(stream, back[0], device, 8, OUT)
            rt.event_record(event, stream)
            rt.copy(stream, back[1], device, 8, OUT)
            assert rt.event_wait(event) == 0
            assert view(back[0], 8)[0] == 7
            later.add(int(view(back[1], 8)[0]))
            rt.event_record(event, stream)
            assert rt.event_wait(event) == 0
            assert view(back[1], 8)[0] == 7
            assert (rt.counts.waits, rt.counts.event_waits) == (0, 3)
            for place in back:
                rt.new("unpin", place)
            rt.new("free", device)
            rt.event_close(event)
            rt.stream_close(stream)
            assert rt.counts.alive == 0
    assert later == {0, 7}


def test_a_graph_does_what_was_noted_each_time_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime(monkeypatch) as rt:
        stream, device, host = rt.new("stream_open"), rt.new("alloc", 32), rt.new("pin", 32)
        rt.fill(stream, device, 0, 32)
        assert rt.stream_wait(stream) == 0
        rt.graph_begin(stream)
        rt.copy(stream, device + 16, device, 16, WITHIN)
        rt.fill(stream, device, 9, 16)
        graph = rt.graph_end(stream)
        seen = []
        for _ in range(2):
            rt.copy(stream, host, device, 32, OUT)
            rt.graph_run(graph, stream)
            assert rt.stream_wait(stream) == 0
            seen.append((view(host, 32)[0], view(host, 32)[16]))
        rt.copy(stream, host, device, 32, OUT)
        assert rt.stream_wait(stream) == 0
        seen.append((view(host, 32)[0], view(host, 32)[16]))
        assert seen == [(0, 0), (9, 0), (9, 9)]
        assert rt.counts.replays == 2
        rt.graph_free(graph)
        rt.stream_close(stream)
        rt.new("free", device)
        rt.new("unpin", host)
        assert rt.counts.alive == 0


def test_a_graph_without_memory_is_no_failure_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with runtime(monkeypatch, LLMACCEL_EMU_GRAPH="1") as rt:
        stream, device = rt.new("stream_open"), rt.new("alloc", 8)
        made = []
        for _ in range(2):
            rt.graph_begin(stream)
            rt.fill(stream, device, 1, 8)
            made.append(rt.graph_end(stream))
        assert made[0] is None
        assert made[1] is not None
        assert rt.message == ""
        rt.graph_free(made[1])


@pytest.mark.parametrize(
    ("breach", "message"),
    [
        (lambda rt, s, d, h: rt.stream_wait(s), "stream wait: a graph is being noted"),
        (lambda rt, s, d, h: rt.event_wait(rt.new("event_open")), "event wait: a graph is"),
        (lambda rt, s, d, h: rt.new("alloc", 8), "alloc: a graph is being noted"),
        (lambda rt, s, d, h: rt.copy(s, d, h, 8, IN), "a graph takes"),
    ],
)
def test_what_a_graph_cannot_hold(monkeypatch: pytest.MonkeyPatch, breach, message: str) -> None:
    with runtime(monkeypatch) as rt:
        stream, device, host = rt.new("stream_open"), rt.new("alloc", 8), rt.new("pin", 8)
        rt.graph_begin(stream)
        breach(rt, stream, device, host)
        assert message in rt.message
        assert not rt.graph_end(stream)


@pytest.mark.parametrize("past", [0, 1])
def test_copies_stay_inside_an_allocation(monkeypatch: pytest.MonkeyPatch, past: int) -> None:
    with runtime(monkeypatch) as rt:
        stream, device, host = rt.new("stream_open"), rt.new("alloc", 8), rt.new("pin", 16)
        rt.copy(stream, device, host, 8 + past, IN)
        assert rt.stream_wait(stream) == -past
        assert ("copy: outside" in rt.message) == bool(past)


def test_host_memory_of_copies_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime(monkeypatch) as rt:
        stream, device, plain = rt.new("stream_open"), rt.new("alloc", 8), np.zeros(8, np.uint8)
        rt.copy(stream, device, plain.ctypes.data, 8, IN)
        assert rt.stream_wait(stream) == -1
        assert "not pinned" in rt.message
        assert rt.new("alloc", 8) is None  # a device that failed gives nothing any more


@pytest.mark.parametrize("plain", [False, True])
def test_reservations_come_and_go_by_granules(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    environment = {"LLMACCEL_EMU_PLAIN": "1"} if plain else {}
    with runtime(monkeypatch, **environment) as rt:
        stream, base = rt.new("stream_open"), rt.new("reserve", 8 * MIB)
        assert (
            rt.lib.la_rt_commit(rt.rt, ctypes.c_void_p(base + MIB), ctypes.c_size_t(2 * MIB)) == 0
        )
        rt.fill(stream, base + MIB, 1, 2 * MIB)
        assert rt.stream_wait(stream) == 0
        rt.lib.la_rt_decommit(rt.rt, ctypes.c_void_p(base + 2 * MIB), ctypes.c_size_t(MIB))
        rt.fill(stream, base + 2 * MIB, 1, MIB)
        assert rt.stream_wait(stream) == (0 if plain else -1)
        assert ("fill: outside" in rt.message) != plain
    with runtime(monkeypatch, **environment) as rt:
        base = rt.new("reserve", 8 * MIB)
        assert rt.lib.la_rt_commit(rt.rt, ctypes.c_void_p(base), ctypes.c_size_t(MIB)) == 0
        rt.lib.la_rt_release(rt.rt, ctypes.c_void_p(base))
        assert rt.counts.alive == 0


def test_too_little_memory_is_no_failure_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime(monkeypatch, LLMACCEL_EMU_MEMORY=str(4 * MIB)) as rt:
        assert rt.new("alloc", 5 * MIB) is None
        base = rt.new("reserve", 64 * MIB)  # addresses alone
        size = ctypes.c_size_t(5 * MIB)
        assert rt.lib.la_rt_commit(rt.rt, ctypes.c_void_p(base), size) == -1
        assert rt.message == ""
        assert rt.new("alloc", MIB) is not None


def test_what_is_left_at_the_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime(monkeypatch) as rt:
        lib = rt.lib
        before = lib.la_rt_host_left()
        rt.new("alloc", 8)
        rt.new("pin", 8)
        rt.new("stream_open")
        rt.new("reserve", MIB)  # goes with the device
    assert lib.la_rt_host_left() == before + 3
    counts = Counts(alive=1)
    lib.la_rt_host_count(ctypes.byref(counts))
    assert counts.alive == 0
