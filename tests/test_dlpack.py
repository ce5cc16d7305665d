"""Tensor: crossing to NumPy, torch and plain buffers without a copy, in both directions."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from llmaccel import ConfigError, UnsupportedError, _core

DTYPES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
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
    tensor = _core.Tensor(array)
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
    view = memoryview(_core.Tensor(array))
    assert (view.shape, view.format, view.strides, view.readonly) == ((2, 3), "f", (12, 4), False)
    assert np.frombuffer(view, np.float32).tolist() == array.ravel().tolist()
    array.flags.writeable = False
    locked = _core.Tensor(array)
    assert memoryview(locked).readonly
    assert not locked.numpy().flags.writeable
    assert not np.from_dlpack(locked).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        locked.__dlpack__()  # the old form has no way to say it


def test_zeros_and_empty_shapes():
    tensor = _core.Tensor.zeros((3, 5), "F32")
    assert tensor.data_ptr() % 64 == 0
    assert not tensor.numpy().any()
    tensor.numpy()[1, 2] = 7
    assert tensor[1, 2] == 7
    assert _core.Tensor.zeros((0, 4), "F32").numpy().shape == (0, 4)
    assert _core.Tensor.zeros((), "I32").numpy().shape == ()
    assert repr(tensor) == "Tensor(shape=(3, 5), dtype=F32)"
    for shape in ((2**40, 2**40), (-1,), (0, 2**62, 8)):
        with pytest.raises(ConfigError, match="shape"):
            _core.Tensor.zeros(shape, "F32")
    with pytest.raises(UnsupportedError, match="dimensions"):
        _core.Tensor.zeros((1,) * 9, "F32")
    with pytest.raises(UnsupportedError, match="F8"):
        _core.Tensor.zeros((1,), "F8")


def test_lifetimes():
    """Whoever looks keeps the memory; when the last one goes, so does the memory."""

    class Array(np.ndarray):
        pass

    array = np.arange(1000, dtype=np.float32).view(Array)
    gone = weakref.ref(array)
    tensor = _core.Tensor(array)
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
    tensor = _core.Tensor(Exporter(array))
    assert tensor.data_ptr() == address(array)
    del array
    gc.collect()
    assert tensor[9] == 9
    del tensor
    gc.collect()
    assert gone() is None


def test_old_exporters():
    array = np.arange(4, dtype=np.float32)
    assert _core.Tensor(Old(array)).data_ptr() == address(array)


def test_capsule_forms_and_arguments():
    tensor = _core.Tensor.zeros((2,), "F32")
    assert '"dltensor_versioned"' in repr(tensor.__dlpack__(max_version=(1, 2)))
    assert '"dltensor"' in repr(tensor.__dlpack__(max_version=(0, 8)))
    assert tensor.__dlpack_device__() == (1, 0)
    tensor.__dlpack__(dl_device=(1, 0), copy=False)
    for bad in ({"dl_device": (2, 0)}, {"copy": True}, {"stream": 1}):
        with pytest.raises(BufferError, match=next(iter(bad))):
            tensor.__dlpack__(**bad)
    with pytest.raises(TypeError, match="max_version"):
        tensor.__dlpack__(max_version=1)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="row-major"):
        _core.Tensor(np.arange(6).reshape(2, 3).T)
    with pytest.raises(ConfigError, match="byte order"):
        _core.Tensor(np.arange(3, dtype=">f4"))
    with pytest.raises(UnsupportedError, match="complex64"):
        _core.Tensor(np.zeros(3, np.complex64))
    with pytest.raises(UnsupportedError, match="object"):
        _core.Tensor(np.array([object()]))
    for bad in (None, [1, 2], "text", 3):
        with pytest.raises(TypeError, match="DLPack"):
            _core.Tensor(bad)

    class Liar:
        def __dlpack__(self, **kwargs):
            return "no capsule"

    with pytest.raises(TypeError, match="capsule"):
        _core.Tensor(Liar())
    capsule = np.arange(3.0).__dlpack__()

    class Once:
        def __dlpack__(self, **kwargs):
            return capsule

    assert _core.Tensor(Once()).shape == (3,)
    with pytest.raises(TypeError, match="capsule"):
        _core.Tensor(Once())  # taken already


def test_array_protocol_options():
    tensor = _core.Tensor(np.arange(3, dtype=np.float32))
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
    copied = np.array(tensor)
    assert address(copied) != tensor.data_ptr()
    np.testing.assert_array_equal(np.ones(3) + np.asarray(tensor), [1, 2, 3])
    with pytest.raises(TypeError, match="no length"):
        len(_core.Tensor.zeros((), "F32"))


@pytest.mark.torch
def test_torch_both_ways():
    torch = pytest.importorskip("torch")
    tensor = _core.Tensor.zeros((4, 8), "F32")
    there = torch.from_dlpack(tensor)
    assert there.data_ptr() == tensor.data_ptr()
    there[1, 2] = 5
    assert tensor[1, 2] == 5
    back = _core.Tensor(there)
    assert back.data_ptr() == tensor.data_ptr()
    del tensor, there
    assert back[1, 2] == 5


@pytest.mark.torch
def test_bfloat16_crosses_to_torch_alone():
    torch = pytest.importorskip("torch")
    values = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    tensor = _core.Tensor(values)
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
        _core.Tensor(values.T)
