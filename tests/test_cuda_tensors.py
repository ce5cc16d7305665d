"""Tensors on the emulated device: the way there and back, DLPack with streams, lifetimes, liars.

The runtime does what a stream is asked for as late as a wait allows, in an order that a seed draws
(tests/cuda_emu/rt_host.cpp), so an exchange that forgets to order two streams is seen under some
seed; the tests that play a careless party show that.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import threading
from collections.abc import Iterator

import emulator
import numpy as np
import pytest
from test_cuda_runtime import OUT, Counts, view
from test_dlpack import Handmade, PyCapsule_GetPointer, Versioned

from llmaccel import ConfigError, MemoryPlanError, Tensor, UnsupportedError
from llmaccel.errors import LLMAccelError

SEEDS = range(8)
N = 64
FULL = {"max_version": (1, 0)}


class Player:
    """Another library on the device: a stream of its own, and what it may do there."""

    def __init__(self) -> None:
        self.lib = emulator.backend()
        for name in ("host_newest", "host_stream", "stream_open", "pin", "event_open"):
            getattr(self.lib, f"la_rt_{name}").restype = ctypes.c_void_p
        self.lib.la_rt_host_holds.restype = ctypes.c_int64
        self.rt = ctypes.c_void_p(self.lib.la_rt_host_newest())
        self.stream = ctypes.c_void_p(self.lib.la_rt_stream_open(self.rt))
        self.host = ctypes.c_void_p(self.lib.la_rt_pin(self.rt, ctypes.c_size_t(N)))
        self.event = ctypes.c_void_p(self.lib.la_rt_event_open(self.rt))

    def fill(self, address: int, byte: int) -> None:
        self.lib.la_rt_fill(self.stream, ctypes.c_void_p(address), byte, ctypes.c_size_t(N))

    def read(self, address: int, stream: int | None = None) -> list[int]:
        """What a stream finds at an address; of number 1 or 2, else the own one."""
        number = ctypes.c_uint64(self.stream.value if stream is None else stream)
        s = ctypes.c_void_p(self.lib.la_rt_host_stream(self.rt, number))
        self.lib.la_rt_copy(s, self.host, ctypes.c_void_p(address), ctypes.c_size_t(N), OUT)
        assert self.lib.la_rt_stream_wait(s) == 0
        return view(self.host.value, N).tolist()

    def hold(self, number: int) -> None:
        """The stream of that number waits for all that the own one was asked for."""
        self.lib.la_rt_event_record(self.event, self.stream)
        assert self.lib.la_rt_event_hold(self.event, ctypes.c_uint64(number)) == 0

    def holds(self, number: int) -> int:
        return self.lib.la_rt_host_holds(self.rt, ctypes.c_uint64(number))

    def close(self) -> None:
        self.lib.la_rt_event_close(self.event)
        self.lib.la_rt_unpin(self.rt, self.host)
        self.lib.la_rt_stream_close(self.stream)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """backend="cuda" is the emulated one, opened anew; it gets everything back."""
    gc.collect()
    library = emulator.backend()
    before = library.la_rt_host_left()
    monkeypatch.setenv("LLMACCEL_CUDA_LIBRARY", library._name)
    yield
    gc.collect()
    assert library.la_rt_host_left() == before


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("LLMACCEL_EMU_SEED", str(request.param))
    return request.param


@pytest.fixture
def player() -> Iterator[Player]:
    base = Tensor.zeros((1,), "U8", "cuda")  # so that the device is open
    made = Player()
    yield made
    made.close()
    del base


def numbers(n: int = N) -> Tensor:
    return Tensor(np.arange(n, dtype=np.uint8)).to("cuda")


def counts() -> Counts:
    made = Counts()
    emulator.backend().la_rt_host_count(ctypes.byref(made))
    return made


class Wrapped:
    """A producer around a Tensor on the device; keeps what it was asked with."""

    def __init__(self, tensor: Tensor, **lies) -> None:
        self.tensor, self.asked, self.lies = tensor, [], lies

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.lies.get("device", (2, 0))

    def __dlpack__(self, **asked):
        self.asked.append(asked)
        return self.tensor.__dlpack__(stream=-1, max_version=asked.get("max_version"))


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "bool"])
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4), (1,)])
def test_there_and_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    there = Tensor(array).to("cuda")
    assert (there.device, there.shape, there.nbytes) == ("cuda:0", shape, array.nbytes)
    assert there.__dlpack_device__() == (2, 0)
    assert there.data_ptr() % 256 == 0
    assert there.to("cuda:0") is there
    back = there.to("cpu")
    assert back.device == "cpu"
    assert back.numpy().dtype == array.dtype
    np.testing.assert_array_equal(back.numpy(), array)
    assert back.to("cpu") is back


def test_more_than_an_upload_holds() -> None:
    array = np.arange((9 << 20) + 3, dtype=np.uint16)
    assert np.array_equal(Tensor(array).to("cuda").to("cpu").numpy(), array)


def test_new_ones_are_clear() -> None:
    made = Tensor.zeros((7, 3), "F32", "cuda")
    assert not made.to("cpu").numpy().any()
    assert repr(made) == "Tensor(shape=(7, 3), dtype=F32, device=cuda:0)"
    assert len(made) == 7
    assert not made.read_only


def test_what_needs_host_memory_says_so() -> None:
    there = numbers()
    for use in (there.numpy, lambda: there[0]):
        with pytest.raises(UnsupportedError, match=r"NumPy .* cuda:0; take .to\('cpu'\)"):
            use()
    for use in (lambda: np.asarray(there), lambda: np.array(there, copy=False)):
        with pytest.raises(UnsupportedError, match=r"^copy: NumPy"):
            use()
    for use in (there.tolist, lambda: bool(numbers(1)), lambda: float(numbers(1))):
        with pytest.raises(
            UnsupportedError, match=r"^reading elements .* cuda:0; take .to\('cpu'\)"
        ):
            use()
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(
            UnsupportedError, match=r"^a copy by value .* cuda:0; take .to\('cpu'\)"
        ):
            use(there)
    with pytest.raises(BufferError, match=r"cuda:0.*\.to\('cpu'\)"):
        memoryview(there)
    assert np.array(there, copy=True).tolist() == list(range(N))
    assert there.__array__(np.dtype(np.float32), copy=True).dtype == np.float32


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Tensor.zeros((2,), "F32")
    for bad in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda0", "CUDA", ""):
        with pytest.raises(ConfigError, match=r"^device: "):
            here.to(bad)
    with pytest.raises(UnsupportedError, match="cuda:1: only device 0"):
        here.to("cuda:1")
    with pytest.raises(UnsupportedError, match="cuda:3: only device 0"):
        Tensor.zeros((2,), "F32", "cuda:3")
    monkeypatch.setenv("LLMACCEL_EMU_MISSING", "no driver of the emulator's")
    with pytest.raises(UnsupportedError, match="no driver of the emulator's"):
        here.to("cuda")


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMACCEL_EMU_MEMORY", str(1 << 20))
    with pytest.raises(MemoryPlanError, match="no memory for 2097152 bytes on cuda:0"):
        Tensor.zeros((2 << 20,), "U8", "cuda")
    small = Tensor.zeros((1000,), "U8", "cuda")
    assert not small.to("cpu").numpy().any()


def test_a_device_that_failed_says_so(monkeypatch: pytest.MonkeyPatch, player: Player) -> None:
    there = numbers()
    bad = ctypes.c_void_p(8)
    player.lib.la_rt_copy(player.stream, bad, bad, ctypes.c_size_t(8), OUT)
    player.lib.la_rt_stream_wait(player.stream)
    for use in (lambda: there.to("cpu"), lambda: Tensor.zeros((2,), "F32", "cuda")):
        with pytest.raises(Exception, match="backend: cuda: copy: outside"):
            use()
    with pytest.raises(BufferError, match="copy: outside"):
        there.__dlpack__()


# ---- out -----------------------------------------------------------------------------------------


def test_a_consumer_waits_for_us(seed: int, player: Player) -> None:
    there = numbers()
    capsule = there.__dlpack__(stream=player.stream.value, copy=True, **FULL)
    held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
    t = held.tensor
    assert (t.device_type, t.device_id, t.ndim, t.shape[0], held.flags) == (2, 0, 1, N, 2)
    assert t.data != there.data_ptr()
    assert player.read(t.data) == list(range(N))
    assert player.holds(player.stream.value) == 1


@pytest.mark.parametrize(("asked", "number"), [(None, 1), (1, 1), (2, 2)])
def test_default_streams(seed: int, player: Player, asked: int | None, number: int) -> None:
    capsule = numbers().__dlpack__(stream=asked, copy=True, **FULL)
    held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
    assert player.holds(number) == 1
    assert player.holds(3 - number) == 0
    assert player.read(held.tensor.data, number) == list(range(N))


def test_minus_one_leaves_the_order_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for chosen in SEEDS:
        monkeypatch.setenv("LLMACCEL_EMU_SEED", str(chosen))
        there = numbers()
        player = Player()
        capsule = there.__dlpack__(stream=-1, copy=True, **FULL)
        held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
        found.append(player.read(held.tensor.data) == list(range(N)))
        assert player.holds(1) == player.holds(2) == 0
        player.close()
        del there, capsule, held
        gc.collect()
    assert not all(found)  # some order is wrong, which the waits above prevent


@pytest.mark.parametrize("bad", [0, -2, 3, 2**63, -(2**70)])
def test_streams_that_are_none(bad: int) -> None:
    there = numbers()
    with pytest.raises(BufferError, match=r"^stream: "):
        there.__dlpack__(stream=bad)
    assert there.to("cpu").numpy()[5] == 5  # and the device has not failed


def test_arguments_of_the_exchange() -> None:
    there = numbers()
    for bad in ("1", 1.0, True):
        with pytest.raises(TypeError, match=r"^stream: expected an integer"):
            there.__dlpack__(stream=bad)
    for bad in ((2, 1), (13, 0), (1, 1), (3, 0)):
        with pytest.raises(BufferError, match=r"^dl_device: "):
            there.__dlpack__(dl_device=bad)
    with pytest.raises(BufferError, match=r"^copy: "):
        there.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(BufferError, match=r"^stream: host memory"):
        there.__dlpack__(dl_device=(1, 0), stream=1)
    with pytest.raises(BufferError, match=r"^dl_device: "):
        Tensor.zeros((2,), "F32").__dlpack__(dl_device=(2, 0))
    capsule = there.__dlpack__(dl_device=(2, 0), copy=False, **FULL)
    held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
    assert (held.tensor.data, held.flags) == (there.data_ptr(), 0)
    assert '"dltensor"' in repr(there.__dlpack__())


def test_host_memory_on_request() -> None:
    there = numbers()
    capsule = there.__dlpack__(dl_device=(1, 0), **FULL)
    held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
    assert (held.tensor.device_type, held.flags) == (1, 2)
    assert np.from_dlpack(there, device="cpu").tolist() == list(range(N))
    with pytest.raises(BufferError, match="copy"):
        np.from_dlpack(there, device="cpu", copy=False)
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(there)  # a CUDA capsule, which NumPy leaves alone


# ---- in ------------------------------------------------------------------------------------------


class Producer(Wrapped):
    """Fills its memory on a stream of its own when it is asked, maybe minding who asks."""

    def __init__(self, tensor: Tensor, player: Player, minds: bool = True) -> None:
        super().__init__(tensor)
        self.player, self.minds = player, minds

    def __dlpack__(self, **asked):
        self.player.fill(self.tensor.data_ptr(), 7)
        if self.minds:
            self.player.hold(asked["stream"])
        return super().__dlpack__(**asked)


def test_we_wait_for_a_producer(seed: int, player: Player) -> None:
    producer = Producer(numbers(), player)
    there = Tensor(producer)
    assert (there.device, there.shape) == ("cuda:0", (N,))
    assert there.data_ptr() == producer.tensor.data_ptr()
    assert producer.asked == [{"max_version": (1, 1), "stream": producer.asked[0]["stream"]}]
    assert there.to("cpu").numpy().tolist() == [7] * N


def test_a_producer_that_does_not_mind_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for chosen in SEEDS:
        monkeypatch.setenv("LLMACCEL_EMU_SEED", str(chosen))
        base = numbers()
        player = Player()
        there = Tensor(Producer(base, player, minds=False))
        found.append(there.to("cpu").numpy().tolist() == [7] * N)
        player.close()
        del there, base
        gc.collect()
    assert not all(found)


def test_memory_goes_back_when_we_are_done(seed: int, player: Player) -> None:
    """What is asked of an imported Tensor has happened before its owner gets the memory back."""
    base = numbers()
    there = Tensor(Wrapped(base))
    capsule = there.__dlpack__(stream=-1, copy=True, **FULL)  # a copy that is still to be made
    held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
    del there
    ctypes.memset(base.data_ptr(), 9, N)
    player.lib.la_rt_stream_wait(player.stream)
    assert player.read(held.tensor.data) == list(range(N))


def test_an_old_producer_is_asked_with_its_stream() -> None:
    class Old(Wrapped):
        def __dlpack__(self, stream=None):
            self.asked.append(stream)
            return self.tensor.__dlpack__(stream=-1)

    old = Old(numbers())
    assert Tensor(old).to("cpu").numpy().tolist() == list(range(N))
    assert len(old.asked) == 1
    assert old.asked[0] > 2


def test_read_only_memory_stays_so() -> None:
    class Locked(Wrapped):
        def __dlpack__(self, **asked):
            capsule = super().__dlpack__(**asked)
            pointer = PyCapsule_GetPointer(capsule, b"dltensor_versioned")
            Versioned.from_address(pointer).flags = 1
            return capsule

    there = Tensor(Locked(numbers()))
    assert there.read_only
    with pytest.raises(BufferError, match="read-only"):
        there.__dlpack__()


class OnDevice(Handmade):
    """Handmade, on the device if its fields do not say otherwise."""

    said = (2, 0)

    def __init__(self, **fields) -> None:
        self.base = Tensor.zeros((12,), "F32", "cuda")
        super().__init__(**{"device_type": 2, "data": self.base.data_ptr(), **fields})

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.said

    def __dlpack__(self, *, stream=None, max_version=None):
        assert stream is None or stream > 2
        return super().__dlpack__(max_version=max_version)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"device_id": 3}, UnsupportedError, "CUDA device .* says otherwise"),
        ({"device_id": -1}, UnsupportedError, "says otherwise"),
        ({"device_type": 1}, UnsupportedError, "says otherwise"),
        ({"device_type": 13}, UnsupportedError, "CUDA managed"),
        ({"byte_offset": 2}, ConfigError, "address"),
        ({"byte_offset": 28}, ConfigError, "no memory of device cuda:0"),
        ({"byte_offset": 2**63}, ConfigError, "no memory of device cuda:0"),
        ({"shape": (2, -3)}, ConfigError, "extent -3"),
        ({"shape": (2**40, 2**40)}, ConfigError, "too large"),
        ({"shape": (1000, 1000)}, ConfigError, "4000000 bytes at .* are no memory of device"),
        ({"ndim": -1}, UnsupportedError, "-1 dimensions"),
        ({"strides": (1, 2)}, ConfigError, "row-major"),
        ({"strides": (0, 1)}, ConfigError, "row-major"),
        ({"strides": (-3, 1)}, ConfigError, "row-major"),
        ({"data": None}, ConfigError, "without data"),
        ({"data": 64}, ConfigError, "no memory of device cuda:0"),
        ({"bits": 24}, UnsupportedError, "24 bits"),
    ],
)
def test_capsules_are_not_believed(versioned: bool, fields, error, match: str) -> None:
    maker = OnDevice(versioned=versioned, **fields)
    with pytest.raises(error, match=f"^array: .*{match}"):
        Tensor(maker)
    gc.collect()
    assert maker.deleted == 1
    assert not maker.base.to("cpu").numpy().any()  # and the device has not failed


def test_host_memory_is_no_memory_of_the_device() -> None:
    maker = OnDevice()
    maker.held.tensor.data = maker.numbers.ctypes.data
    with pytest.raises(ConfigError, match="no memory of device"):
        Tensor(maker)


@pytest.mark.parametrize("said", [(2, 1), (2, -1), (2, 7)])
def test_other_devices_are_refused_before_they_are_asked(said: tuple[int, int]) -> None:
    base = numbers()
    producer = Wrapped(base, device=said)
    with pytest.raises(UnsupportedError, match=f"^array: .*cuda:{said[1]}: only device 0"):
        Tensor(producer)
    assert producer.asked == []


def test_a_capsule_that_is_more_than_was_said() -> None:
    class Host(OnDevice):
        said = (1, 0)

    maker = Host()
    with pytest.raises(UnsupportedError, match="says otherwise"):
        Tensor(maker)
    assert maker.deleted == 1


# ---- lifetimes -----------------------------------------------------------------------------------


def test_any_order_of_going() -> None:
    """Tensor, capsule, consumer and backend may go in any order; memory stays until the last."""
    first = numbers()
    start = counts().alive
    capsule = first.__dlpack__(stream=-1, **FULL)
    again = Tensor(Wrapped(first))
    at = first.data_ptr()
    unused = again.__dlpack__()
    del first
    gc.collect()
    assert counts().alive == start
    held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
    assert held.tensor.data == at
    assert again.to("cpu").numpy().tolist() == list(range(N))
    del capsule, held
    gc.collect()
    assert counts().alive == start
    del again
    gc.collect()
    assert counts().alive == start  # the capsule that nobody took holds it
    del unused
    gc.collect()
    assert counts().alive == 0  # and with it went the device


def test_a_deleter_of_ours_runs_on_any_thread() -> None:
    made = numbers()
    capsule = made.__dlpack__(stream=-1, **FULL)
    del made
    held = [Tensor(Wrapped(Tensor.zeros((3,), "F32", "cuda"))), capsule]
    del capsule
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert counts().alive == 0


def test_a_forked_child_leaves_the_device_alone() -> None:
    there = numbers()
    child = os.fork()
    if child == 0:
        refused = False
        try:
            there.to("cpu")
        except LLMAccelError as error:
            refused = "after fork" in str(error)
        del there
        gc.collect()
        os._exit(0 if refused else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert there.to("cpu").numpy()[7] == 7


def test_a_tensor_shares_the_device_with_models() -> None:
    from llmaccel.environment import open_device

    backend = open_device("cuda")
    there = numbers()
    used = counts().alive
    del backend
    gc.collect()
    assert counts().alive == used
    assert there.to("cpu").numpy()[3] == 3
