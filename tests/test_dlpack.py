"""Tensor: crossing to NumPy, torch and plain buffers without a copy, in both directions.

Capsules that no library would make are built with ctypes: what they claim must be checked.
"""

from __future__ import annotations

import array as arrays
import copy
import ctypes
import gc
import itertools
import math
import pickle
import sys
import weakref

import numpy as np
import pytest

from llmaccel import ConfigError, Tensor, UnsupportedError

DTYPES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class Old:
    """An exporter from before DLPack 1.0: knows no max_version."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_both_ways(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    tensor = Tensor(array)
    assert tensor.shape == (2, 3, 4)
    assert tensor.nbytes == array.nbytes
    assert len(tensor) == 2
    assert tensor.data_ptr() == address(array)
    for view in (tensor.numpy(), np.asarray(tensor), np.from_dlpack(tensor)):
        assert address(view) == address(array)
        assert view.dtype == array.dtype
        np.testing.assert_array_equal(view, array)
    np.testing.assert_array_equal(tensor[1, :, 2], array[1, :, 2])


def test_the_buffer_protocol():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    view = memoryview(Tensor(array))
    assert (view.shape, view.format, view.strides, view.readonly) == ((2, 3), "f", (12, 4), False)
    assert np.frombuffer(view, np.float32).tolist() == array.ravel().tolist()
    array.flags.writeable = False
    locked = Tensor(array)
    assert memoryview(locked).readonly
    assert not locked.numpy().flags.writeable
    assert not np.from_dlpack(locked).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        locked.__dlpack__()  # the old form has no way to say it


def test_zeros_and_empty_shapes():
    tensor = Tensor.zeros((3, 5), "F32")
    assert tensor.data_ptr() % 64 == 0
    assert not tensor.numpy().any()
    tensor.numpy()[1, 2] = 7
    assert tensor[1, 2] == 7
    assert Tensor.zeros((0, 4), "F32").numpy().shape == (0, 4)
    assert Tensor.zeros((), "I32").numpy().shape == ()
    assert repr(tensor) == "Tensor(shape=(3, 5), dtype=F32)"
    for shape in ((2**40, 2**40), (-1,), (0, 2**62, 8)):
        with pytest.raises(ConfigError, match="shape"):
            Tensor.zeros(shape, "F32")
    with pytest.raises(UnsupportedError, match="dimensions"):
        Tensor.zeros((1,) * 9, "F32")
    with pytest.raises(UnsupportedError, match="dtype: unknown name F8"):
        Tensor.zeros((1,), "F8")


def test_lifetimes():
    """Whoever looks keeps the memory; when the last one goes, so does the memory."""

    class Array(np.ndarray):
        pass

    array = np.arange(1000, dtype=np.float32).view(Array)
    gone = weakref.ref(array)
    tensor = Tensor(array)
    view = np.from_dlpack(tensor)
    other = tensor.numpy()
    capsule = tensor.__dlpack__(max_version=(1, 0))
    unused = tensor.__dlpack__()
    del array, tensor
    gc.collect()
    assert view[999] == other[999] == 999
    del view, other
    gc.collect()
    assert gone() is not None  # the capsules hold it
    del capsule, unused
    gc.collect()
    assert gone() is None


def test_an_imported_tensor_keeps_its_owner():
    class Exporter:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

    class Array(np.ndarray):
        pass

    array = np.arange(10, dtype=np.int32).view(Array)
    gone = weakref.ref(array)
    tensor = Tensor(Exporter(array))
    assert tensor.data_ptr() == address(array)
    del array
    gc.collect()
    assert tensor[9] == 9
    del tensor
    gc.collect()
    assert gone() is None


def test_old_exporters():
    array = np.arange(4, dtype=np.float32)
    assert Tensor(Old(array)).data_ptr() == address(array)


def test_capsule_forms_and_arguments():
    tensor = Tensor.zeros((2,), "F32")
    assert '"dltensor_versioned"' in repr(tensor.__dlpack__(max_version=(1, 2)))
    assert '"dltensor"' in repr(tensor.__dlpack__(max_version=(0, 8)))
    assert tensor.__dlpack_device__() == (1, 0)
    tensor.__dlpack__(dl_device=(1, 0), copy=False)
    for bad in ({"dl_device": (2, 0)}, {"dl_device": (1, 1)}, {"stream": 1}):
        with pytest.raises(BufferError, match=next(iter(bad))):
            tensor.__dlpack__(**bad)
    with pytest.raises(TypeError, match="max_version"):
        tensor.__dlpack__(max_version=1)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="row-major"):
        Tensor(np.arange(6).reshape(2, 3).T)
    with pytest.raises(ConfigError, match="byte order"):
        Tensor(np.arange(3, dtype=">f4"))
    with pytest.raises(UnsupportedError, match="complex64"):
        Tensor(np.zeros(3, np.complex64))
    with pytest.raises(UnsupportedError, match="object"):
        Tensor(np.array([object()]))
    for bad in (None, [1, 2], "text", 3):
        with pytest.raises(TypeError, match="DLPack"):
            Tensor(bad)

    class Liar:
        def __dlpack__(self, **kwargs):
            return "no capsule"

    with pytest.raises(TypeError, match="capsule"):
        Tensor(Liar())
    capsule = np.arange(3.0).__dlpack__()

    class Once:
        def __dlpack__(self, **kwargs):
            return capsule

    assert Tensor(Once()).shape == (3,)
    with pytest.raises(TypeError, match="capsule"):
        Tensor(Once())  # taken already


def test_array_protocol_options():
    tensor = Tensor(np.arange(3, dtype=np.float32))
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
    assert address(np.asarray(tensor, dtype=np.float32)) == tensor.data_ptr()
    with pytest.raises(ValueError, match="copy"):
        tensor.__array__(np.float64, copy=False)
    copied = np.array(tensor)
    assert address(copied) != tensor.data_ptr()
    np.testing.assert_array_equal(np.ones(3) + np.asarray(tensor), [1, 2, 3])
    with pytest.raises(TypeError, match="no length"):
        len(Tensor.zeros((), "F32"))


@pytest.mark.torch
def test_torch_both_ways():
    torch = pytest.importorskip("torch")
    tensor = Tensor.zeros((4, 8), "F32")
    there = torch.from_dlpack(tensor)
    assert there.data_ptr() == tensor.data_ptr()
    there[1, 2] = 5
    assert tensor[1, 2] == 5
    back = Tensor(there)
    assert back.data_ptr() == tensor.data_ptr()
    del tensor, there
    assert back[1, 2] == 5


@pytest.mark.torch
def test_bfloat16_crosses_to_torch_alone():
    torch = pytest.importorskip("torch")
    values = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    tensor = Tensor(values)
    assert (tensor.dtype, tensor.shape) == ("BF16", (3, 4))
    assert tensor.data_ptr() == values.data_ptr()
    again = torch.from_dlpack(tensor)
    assert again.dtype == torch.bfloat16
    assert again.data_ptr() == values.data_ptr()
    bits = np.frombuffer(tensor, np.uint16)
    assert (bits.astype(np.uint32) << 16).view(np.float32).tolist() == list(map(float, range(12)))
    with pytest.raises(UnsupportedError, match="BF16"):
        tensor.numpy()
    with pytest.raises(ConfigError, match="row-major"):
        Tensor(values.T)


def test_it_is_public():
    import llmaccel

    assert llmaccel.Tensor is Tensor
    assert f"{Tensor.__module__}.{Tensor.__qualname__}" == "llmaccel.Tensor"
    assert "DLPack" in Tensor.__doc__
    assert "max_version" in Tensor.__dlpack__.__doc__


def test_the_name_is_in_messages():
    with pytest.raises(ConfigError, match=r"^weight: must be row-major"):
        Tensor(np.ones((3, 3)).T, name="weight")
    with pytest.raises(TypeError, match=r"^bias: expected a NumPy array"):
        Tensor(7, name="bias")


# ---- buffers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", "bBhHiIlLqQfd")
def test_any_buffer_is_taken(letter):
    source = arrays.array(letter, [1, 2, 3])
    tensor = Tensor(source)
    kind = "F" if letter in "fd" else "U" if letter.isupper() else "I"
    assert tensor.dtype == f"{kind}{8 * source.itemsize}"
    assert tensor.data_ptr() == source.buffer_info()[0]
    tensor.numpy()[1] = 9
    assert source[1] == 9
    with pytest.raises(BufferError):
        source.append(4)  # the Tensor holds the buffer
    del tensor
    source.append(4)


def test_buffers_keep_shape_and_readonly():
    tensor = Tensor(memoryview(bytearray(24)).cast("f", (2, 3)))
    assert (tensor.shape, tensor.dtype) == ((2, 3), "F32")
    locked = Tensor(b"abc")
    assert (locked.shape, locked.dtype) == ((3,), "U8")
    assert memoryview(locked).readonly
    assert Tensor(b"").nbytes == 0
    assert Tensor(memoryview(tensor)).data_ptr() == tensor.data_ptr()


def test_buffers_that_are_refused():
    with pytest.raises(ConfigError, match="row-major"):
        Tensor(memoryview(bytearray(8))[::2])
    with pytest.raises(ConfigError, match="address"):
        Tensor(memoryview(bytearray(9))[1:].cast("f"))
    with pytest.raises(ConfigError, match="address"):
        Tensor(np.frombuffer(bytearray(9), np.uint8)[1:].view(np.float32))
    with pytest.raises(UnsupportedError, match="format"):
        Tensor((ctypes.c_wchar * 2)())


# ---- capsules ------------------------------------------------------------------------------------


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", DLTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


PyCapsule_New = ctypes.pythonapi.PyCapsule_New
PyCapsule_New.restype = ctypes.py_object
PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
PyCapsule_GetPointer = ctypes.pythonapi.PyCapsule_GetPointer
PyCapsule_GetPointer.restype = ctypes.c_void_p
PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Handmade:
    """A producer whose every field can be wrong; counts the calls of its deleter."""

    def __init__(self, *, versioned=True, major=1, flags=0, shape=(2, 3), strides=None, **fields):
        self.numbers = np.arange(12, dtype=np.float32)
        self.deleted = 0
        dims = shape if shape is not None else ()
        self.shape = (ctypes.c_int64 * max(len(dims), 1))(*dims)
        self.strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        self.deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(self.delete)
        t = DLTensor(
            data=address(self.numbers), device_type=1, ndim=len(dims), code=2, bits=32, lanes=1
        )
        if shape is not None:
            t.shape = self.shape
        if self.strides is not None:
            t.strides = self.strides
        for name, value in fields.items():
            setattr(t, name, value)
        call = ctypes.cast(self.deleter, ctypes.c_void_p).value
        if versioned:
            self.name, self.held = b"dltensor_versioned", Versioned(major, 0, None, call, flags, t)
        else:
            self.name, self.held = b"dltensor", Managed(t, None, call)

    def delete(self, _pointer):
        self.deleted += 1

    def __dlpack__(self, *, max_version=None):
        return PyCapsule_New(ctypes.addressof(self.held), self.name, None)


@pytest.mark.parametrize("versioned", [True, False])
def test_a_deleter_runs_once(versioned):
    maker = Handmade(versioned=versioned)
    tensor = Tensor(maker)
    assert tensor.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    view = np.from_dlpack(tensor)
    del tensor
    gc.collect()
    assert maker.deleted == 0
    del view
    gc.collect()
    assert maker.deleted == 1


@pytest.mark.parametrize("versioned", [True, False])
def test_layouts_that_are_taken(versioned):
    assert Tensor(Handmade(versioned=versioned, byte_offset=8)).numpy()[0, 0] == 2
    assert Tensor(Handmade(versioned=versioned, strides=(3, 1))).shape == (2, 3)
    one = Tensor(Handmade(versioned=versioned, shape=(1, 3), strides=(77, 1)))
    assert one.numpy().tolist() == [[0, 1, 2]]  # the stride of a single row says nothing
    scalar = Tensor(Handmade(versioned=versioned, shape=()))
    assert (scalar.shape, float(scalar.numpy())) == ((), 0.0)
    empty = Tensor(Handmade(versioned=versioned, shape=(0, 3), strides=(5, 5), data=None))
    assert empty.numpy().shape == (0, 3)
    assert np.from_dlpack(empty).shape == (0, 3)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"device_type": 2}, UnsupportedError, "array: is on a CUDA device"),
        ({"device_type": 10}, UnsupportedError, "ROCm"),
        ({"device_type": 999}, UnsupportedError, "unknown device .DLPack type 999"),
        ({"device_type": -5}, UnsupportedError, "unknown"),
        ({"code": 5, "bits": 64}, UnsupportedError, "code 5, 64 bits"),
        ({"lanes": 4}, UnsupportedError, "4 lanes"),
        ({"bits": 24}, UnsupportedError, "24 bits"),
        ({"ndim": -1}, UnsupportedError, "-1 dimensions"),
        ({"ndim": 2**31 - 1}, UnsupportedError, "dimensions"),
        ({"shape": None, "ndim": 2}, ConfigError, "without a shape"),
        ({"shape": (2, -3)}, ConfigError, "extent -3"),
        ({"shape": (2**40, 2**40)}, ConfigError, "too large"),
        ({"data": None}, ConfigError, "without data"),
        ({"byte_offset": 2}, ConfigError, "address"),
        ({"strides": (1, 2)}, ConfigError, "row-major"),
        ({"strides": (0, 1)}, ConfigError, "row-major"),
        ({"strides": (-3, 1)}, ConfigError, "row-major"),
    ],
)
def test_capsules_are_not_believed(versioned, fields, error, match):
    maker = Handmade(versioned=versioned, **fields)
    with pytest.raises(error, match=match):
        Tensor(maker)
    gc.collect()
    assert maker.deleted == 1  # what was taken over is given back


def test_an_unknown_major_version_is_left_alone():
    maker = Handmade(major=2)
    with pytest.raises(UnsupportedError, match=r"version 2\.0"):
        Tensor(maker)
    assert maker.deleted == 0  # the structure's layout is unknown; the capsule still owns it


def test_the_read_only_flag_is_kept():
    tensor = Tensor(Handmade(flags=1))
    assert memoryview(tensor).readonly
    capsule = tensor.__dlpack__(max_version=(1, 0))
    held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
    assert held.flags == 1
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__()


def test_what_a_capsule_says():
    tensor = Tensor(np.zeros((3, 4), np.int16))
    for asked, given in (((1, 0), (1, 0)), ((1, 1), (1, 1)), ((1, 9), (1, 1)), ((7, 0), (1, 1))):
        capsule = tensor.__dlpack__(max_version=asked)
        held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
        assert (held.major, held.minor) == given
        t = held.tensor
        assert (t.device_type, t.ndim, t.code, t.bits, t.lanes) == (1, 2, 0, 16, 1)
        assert (t.shape[:2], t.strides[:2], t.byte_offset) == ([3, 4], [4, 1], 0)
        assert (t.data, held.flags) == (tensor.data_ptr(), 0)


def test_a_copy_is_made_when_asked_for():
    array = np.arange(6, dtype=np.float32)
    array.flags.writeable = False
    tensor = Tensor(array)
    capsule = tensor.__dlpack__(max_version=(1, 0), copy=True)
    held = Versioned.from_address(PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
    assert held.flags == 2
    assert held.tensor.data not in (None, tensor.data_ptr())
    copied = np.from_dlpack(tensor, copy=True)
    assert copied.flags.writeable
    assert address(copied) != address(array)
    np.testing.assert_array_equal(copied, array)
    assert '"dltensor"' in repr(tensor.__dlpack__(copy=True))  # a copy is nobody's read-only


def test_the_device_is_asked_first():
    class Elsewhere:
        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **kwargs):
            raise AssertionError("memory of a device was asked for")

    with pytest.raises(UnsupportedError, match="x: is on a CUDA device"):
        Tensor(Elsewhere(), name="x")

    class Odd(Elsewhere):
        def __dlpack_device__(self):
            return "cpu"

    with pytest.raises(TypeError, match="__dlpack_device__"):
        Tensor(Odd())


def test_an_exporters_own_error_comes_through():
    class Broken:
        def __dlpack_device__(self):
            return (1, 0)

        def __dlpack__(self, **kwargs):
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        Tensor(Broken())


def test_memory_of_many_is_given_back():
    base = np.zeros(4, np.float32)
    before = sys.getrefcount(base)
    for _ in range(100):
        tensor = Tensor(base)
        keep = [tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 1)), np.from_dlpack(tensor)]
        keep += [Tensor(tensor), memoryview(tensor), tensor.numpy(), Tensor(keep[2])]
        keep.reverse()
        del tensor, keep
    gc.collect()
    assert sys.getrefcount(base) == before


def test_any_order_of_deletion():
    """Every way to drop a Tensor and what was made of it: the memory goes with the last."""

    class Array(np.ndarray):
        pass

    for order in itertools.permutations(range(6)):
        array = np.arange(7, dtype=np.float32).view(Array)
        gone = weakref.ref(array)
        tensor = Tensor(array)
        held = [
            *(array, tensor, np.from_dlpack(tensor), tensor.numpy(), memoryview(tensor)),
            Tensor(tensor),
        ]
        del array, tensor
        for i in order:
            assert gone() is not None
            assert all(one is None or one[6] == 6 for one in held)
            held[i] = None
        assert gone() is None


@pytest.mark.torch
def test_read_only_memory_crosses_to_torch_where_it_lies():
    torch = pytest.importorskip("torch")
    tensor = Tensor(b"weights!")
    there = torch.from_dlpack(tensor)  # torch knows no read-only tensors
    assert there.data_ptr() == tensor.data_ptr()
    del tensor
    assert bytes(there.numpy()) == b"weights!"
    mine = torch.from_dlpack(Tensor(b"weights!"), copy=True)
    mine[0] = 0


@pytest.mark.torch
def test_eight_bit_floats_cross_to_torch():
    torch = pytest.importorskip("torch")
    names = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"}
    for name, dtype in names.items():
        values = torch.linspace(0.5, 2, 9).to(getattr(torch, name))
        tensor = Tensor(values)
        assert (tensor.dtype, tensor.data_ptr()) == (dtype, values.data_ptr())
        again = torch.from_dlpack(tensor)
        assert again.dtype == values.dtype
        assert again.data_ptr() == values.data_ptr()
        assert bytes(memoryview(tensor)) == values.view(torch.uint8).numpy().tobytes()
        with pytest.raises(UnsupportedError, match=dtype):
            tensor.numpy()


@pytest.mark.torch
def test_torch_errors_name_the_argument():
    torch = pytest.importorskip("torch")
    from llmaccel import kernels

    with pytest.raises(ConfigError, match=r"x: .*gradient"):
        kernels.act(torch.ones(3, requires_grad=True))
    with pytest.raises(ConfigError, match="x: must be row-major"):
        kernels.act(torch.ones(3, 4).T)


# ---- as torch.Tensor is asked -------------------------------------------------------------------


def test_elements_are_pythons_numbers():
    tensor = Tensor(np.arange(6, dtype=np.int16).reshape(2, 3))
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (tensor.ndim, tensor.size, len(tensor)) == (2, 6, 2)
    assert [row.sum() for row in tensor] == [3, 12]
    rows = list(tensor)
    rows[0][0] = 7  # a view
    assert tensor.tolist()[0][0] == 7
    one = Tensor(np.array([[2.5]], np.float32))
    assert (one.item(), float(one), int(one), bool(one)) == (2.5, 2.5, 2, True)
    assert not Tensor(np.zeros((), np.float32))
    for wrong in (tensor.item, lambda: bool(tensor), lambda: float(Tensor.zeros((0,), "F32"))):
        with pytest.raises(ValueError, match="elements is no single number"):
            wrong()
    with pytest.raises(TypeError, match="without dimensions"):
        iter(Tensor(np.zeros(())))


@pytest.mark.parametrize(
    ("dtype", "codes", "values"),
    [
        ("BF16", [0x3F80, 0xC040, 0x0001, 0x7F80], [1.0, -3.0, 2.0**-133, math.inf]),
        ("F8_E4M3", [0x38, 0xFE, 0x01, 0x00], [1.0, -448.0, 2.0**-9, 0.0]),
        ("F8_E5M2", [0x3C, 0xFB, 0x01, 0xFC], [1.0, -57344.0, 2.0**-16, -math.inf]),
        ("F8_E8M0", [127, 0, 254, 128], [1.0, 2.0**-127, 2.0**127, 2.0]),
    ],
)
def test_elements_that_numpy_lacks_are_exact(dtype, codes, values):
    bits = np.array(codes, np.uint16 if dtype == "BF16" else np.uint8)
    tensor = Tensor.from_bytes(bits.tobytes(), dtype, (2, 2))
    assert tensor.tolist() == [values[:2], values[2:]]
    nan = {"BF16": b"\xc0\x7f", "F8_E4M3": b"\x7f", "F8_E5M2": b"\x7e", "F8_E8M0": b"\xff"}[dtype]
    assert math.isnan(Tensor.from_bytes(nan, dtype, ()).item())


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL"])
def test_copies_are_by_value(dtype):
    tensor = Tensor.zeros((2, 3), dtype)
    view = memoryview(tensor).cast("B")
    view[0] = 1
    for again in (pickle.loads(pickle.dumps(tensor)), copy.copy(tensor), copy.deepcopy(tensor)):
        assert (again.dtype, again.shape) == (dtype, (2, 3))
        assert bytes(memoryview(again)) == bytes(view)
        assert again.data_ptr() != tensor.data_ptr()
    assert b"from_bytes" in pickle.dumps(tensor)  # a constructor of bytes, and no other code
    empty = pickle.loads(pickle.dumps(Tensor.zeros((0, 4), dtype)))
    assert (empty.dtype, empty.shape) == (dtype, (0, 4))
    with pytest.raises(ConfigError, match="data: expected 4 bytes of dtype F32, got 3"):
        Tensor.from_bytes(b"abc", "F32", (1,))


def test_elements_of_a_strided_view_follow_its_strides():
    words = Tensor.from_bytes(np.arange(12, dtype=np.uint16).tobytes(), "U16", (12,))
    view = words.strided("U16", 1, (2, 3), (5, 2))
    wanted = [[1, 3, 5], [6, 8, 10]]
    assert (view.tolist(), view.size, view.ndim) == (wanted, 6, 2)
    assert [row.tolist() for row in view] == wanted
    twin = pickle.loads(pickle.dumps(view))
    assert (twin.tolist(), twin.is_contiguous, twin.nbytes) == (wanted, True, 12)
    bits = Tensor(np.array([0x3F80, 0, 0x4000, 0, 0xC040, 0], np.uint16))  # 1, 2 and -3
    assert bits.strided("BF16", 0, (3,), (2,)).tolist() == [1.0, 2.0, -3.0]
    assert copy.copy(bits.strided("BF16", 0, (3, 1), (2, 1))).tolist() == [[1.0], [2.0], [-3.0]]
    assert float(bits.strided("BF16", 4, (1,), (2,))) == -3.0
    with pytest.raises(UnsupportedError, match=r"BF16; use torch.from_dlpack or tolist\(\)"):
        iter(bits.strided("BF16", 0, (3,), (2,)))
