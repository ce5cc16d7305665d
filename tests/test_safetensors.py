"""The safetensors reader: against the `safetensors` package, and on files that lie."""

import gc
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fuzz_files import FUZZ_COUNT, check_mutations, check_survives, mutations

from llmaccel.errors import LoadError, UnsupportedError
from llmaccel.models.checkpoint import BLOCKS, RawTensor
from llmaccel.models.safetensors import open_safetensors

NUMPY_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "BOOL": np.bool_,
    "C64": np.complex64,
}


def file_bytes(header: dict | str | bytes, data: bytes = b"") -> bytes:
    """A safetensors file from a header as it is given, right or wrong."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(folder: Path, data: bytes) -> str:
    """The message with which a file of `data` is refused."""
    path = folder / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(LoadError) as caught:
        open_safetensors(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def some_tensors(seed: int) -> dict[str, np.ndarray]:
    """One tensor of each dtype that NumPy has."""
    rng = np.random.default_rng(seed)
    return {
        f"layer.{dtype}": rng.integers(0, 2 if dtype == "BOOL" else 100, (5, 3, 2)).astype(kind)
        for dtype, kind in NUMPY_TYPES.items()
    }


def test_numpy_round_trip(tmp_path):
    oracle = pytest.importorskip("safetensors.numpy")
    tensors = some_tensors(1) | {"scalar": np.array(2.5, np.float32), "none": np.zeros((0, 4))}
    path = tmp_path / "model.safetensors"
    oracle.save_file(tensors, path, metadata={"format": "np"})
    opened = open_safetensors(path)
    assert sorted(opened.names()) == sorted(tensors)
    assert len(opened) == len(tensors)
    for name, expected in tensors.items():
        tensor = opened[name]
        assert tensor.shape == expected.shape
        assert NUMPY_TYPES[tensor.dtype] == expected.dtype
        assert tensor.data.tobytes() == expected.tobytes()
        np.testing.assert_array_equal(tensor.numpy(), expected)
        assert not tensor.data.flags.writeable
        assert not tensor.numpy().flags.writeable


def test_torch_round_trip(tmp_path):
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("safetensors.torch")
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)) * 3
    kinds = {
        "BF16": torch.bfloat16,
        "F16": torch.float16,
        "F32": torch.float32,
        "F64": torch.float64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    }
    tensors = {dtype: values.to(kind) for dtype, kind in kinds.items()}
    oracle.save_file(tensors, tmp_path / "model.safetensors")
    opened = open_safetensors(tmp_path)
    for dtype, expected in tensors.items():
        tensor = opened[dtype]
        assert tensor.dtype == dtype
        if dtype.startswith("F8"):
            np.testing.assert_array_equal(tensor.numpy(), expected.view(torch.uint8).numpy())
            with pytest.raises(UnsupportedError, match=f"'{dtype}': {dtype} has no direct"):
                tensor.float32()
        else:
            np.testing.assert_array_equal(tensor.float32(), expected.float().numpy())
    assert opened["BF16"].numpy().dtype == np.uint16


def test_package_reads_the_hand_built_files(tmp_path):
    """The builder of the hostile files below is itself right."""
    oracle = pytest.importorskip("safetensors.numpy")
    data = np.arange(6, dtype=np.float32)
    raw = file_bytes({"a": entry("F32", [2, 3], 0, 24)}, data.tobytes())
    np.testing.assert_array_equal(oracle.load(raw)["a"], data.reshape(2, 3))


def test_rows_are_views(tmp_path):
    data = np.arange(24, dtype="<i2")
    (tmp_path / "model.safetensors").write_bytes(
        file_bytes({"w": entry("I16", [6, 4], 0, 48)}, data.tobytes())
    )
    opened = open_safetensors(tmp_path)
    part = opened["w"].rows(2, 5)
    np.testing.assert_array_equal(part.numpy(), data.reshape(6, 4)[2:5])
    assert part.shape == (3, 4)
    assert np.shares_memory(part.data, opened["w"].data)
    assert opened["w"].rows(6, 6).shape == (0, 4)
    for start, stop in ((-1, 2), (3, 2), (0, 7)):
        with pytest.raises(LoadError, match=rf"'w': rows {start}:{stop} are outside .*\[6, 4\]"):
            opened["w"].rows(start, stop)


def test_rows_of_block_formats():
    for dtype, (elements, size) in BLOCKS.items():
        row = 2 * elements
        data = np.arange(5 * 2 * size, dtype=np.uint32).astype(np.uint8)
        part = RawTensor("w", dtype, (5, row), data).rows(1, 4)
        assert part.shape == (3, row)
        np.testing.assert_array_equal(part.data, data[2 * size : 8 * size])
    flat = RawTensor("flat", "Q4_0", (64,), np.zeros(36, np.uint8))
    with pytest.raises(LoadError, match="'flat': has no row slices"):
        flat.rows(0, 32)
    with pytest.raises(UnsupportedError, match="'flat': Q4_0 is a block format"):
        flat.numpy()
    with pytest.raises(UnsupportedError, match="'flat': Q4_0 has no direct conversion"):
        flat.float32()


def test_boolean_bytes_are_checked():
    with pytest.raises(LoadError, match="'mask': BOOL bytes other than 0 and 1"):
        RawTensor("mask", "BOOL", (2,), np.array([1, 2], np.uint8)).numpy()


def test_views_outlive_the_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes({"a": entry("U8", [4], 0, 4)}, b"\1\2\3\4"))
    opened = open_safetensors(path)
    values = opened["a"].numpy()
    del opened
    path.unlink()
    assert values.tolist() == [1, 2, 3, 4]


def test_missing_tensor_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes({}))
    opened = open_safetensors(path)
    assert "x.weight" not in opened
    with pytest.raises(LoadError, match=r"model\.safetensors: tensor 'x\.weight' is missing"):
        opened["x.weight"]


def write_shards(folder: Path) -> dict[str, np.ndarray]:
    tensors = {f"t{i}": np.full((3,), i, np.int32) for i in range(4)}
    for shard, names in (("a.safetensors", ("t0", "t1")), ("b.safetensors", ("t2", "t3"))):
        header = {name: entry("I32", [3], 12 * i, 12 * i + 12) for i, name in enumerate(names)}
        raw = b"".join(tensors[name].tobytes() for name in names)
        (folder / shard).write_bytes(file_bytes(header, raw))
    return tensors


def write_index(folder: Path, weight_map: object, **more: object) -> None:
    text = json.dumps(
        {"metadata": {"total_size": 48, "x": [1, {"y": None}]}, **more, "weight_map": weight_map}
    )
    (folder / "model.safetensors.index.json").write_text(text)


GOOD_MAP = {
    "t0": "a.safetensors",
    "t1": "a.safetensors",
    "t2": "b.safetensors",
    "t3": "b.safetensors",
}


def test_sharded_folder(tmp_path):
    tensors = write_shards(tmp_path)
    opened = open_safetensors(tmp_path)  # no index: all files together
    assert opened.names() == ["t0", "t1", "t2", "t3"]
    write_index(tmp_path, dict(list(GOOD_MAP.items())[:3]))
    opened = open_safetensors(tmp_path)
    assert opened.names() == ["t0", "t1", "t2"]  # the index decides
    for name in opened:
        np.testing.assert_array_equal(opened[name].numpy(), tensors[name])
    (tmp_path / "model.safetensors").write_bytes(file_bytes({}))
    assert len(open_safetensors(tmp_path)) == 0


def test_a_tensor_in_two_files_without_index(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(LoadError, match=r"c\.safetensors: tensor 't2' is in another file"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "../a.safetensors",
        "/etc/a.safetensors",
        "sub/a.safetensors",
        "a.safetensors\0",
        "..",
        "..\\a.safetensors",
        "",
        "a.bin",
    ],
)
def test_index_cannot_leave_its_folder(tmp_path, shard):
    write_shards(tmp_path)
    write_index(tmp_path, GOOD_MAP | {"t1": shard})
    with pytest.raises(LoadError, match=r"index\.json: tensor 't1' is said to be in .* no plain"):
        open_safetensors(tmp_path)


def test_wrong_indexes(tmp_path):
    write_shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"

    def message() -> str:
        with pytest.raises(LoadError) as caught:
            open_safetensors(tmp_path)
        return str(caught.value)

    write_index(tmp_path, GOOD_MAP | {"t9": "b.safetensors"})
    assert "b.safetensors: tensor 't9' is missing" in message()
    write_index(tmp_path, GOOD_MAP | {"t9": "nowhere.safetensors"})
    assert "nowhere.safetensors: the shard is missing" in message()
    write_index(tmp_path, {})
    assert "there is no weight_map" in message()
    write_index(tmp_path, ["a.safetensors"])
    assert "expected '{', found '['" in message()
    write_index(tmp_path, GOOD_MAP | {"t1": 3})
    assert "expected '\"', found '3'" in message()
    index.write_text('{"weight_map": {"t0": "a.safetensors", "t0": "b.safetensors"}}')
    assert "key 't0' is repeated" in message()
    index.write_text('{"x": ' + "[" * 100_000)
    assert "nested deeper than 8" in message()
    index.write_text('{"x": wrong}')
    assert "expected a value" in message()
    index.write_text("")
    assert "the file is empty" in message()


def test_paths_that_are_no_checkpoint(tmp_path):
    with pytest.raises(LoadError, match=r"nothing\.safetensors: cannot open"):
        open_safetensors(tmp_path / "nothing.safetensors")
    with pytest.raises(LoadError, match=r"holds no \.safetensors file"):
        open_safetensors(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(LoadError, match="not a regular file"):
        open_safetensors(tmp_path)
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(LoadError, match="not a regular file"):
        open_safetensors(pipe)


def test_wrong_lengths(tmp_path):
    good = file_bytes({"a": entry("U8", [4], 0, 4)}, b"1234")
    assert "the file is empty" in refused(tmp_path, b"")
    assert "7 bytes are too short" in refused(tmp_path, good[:7])
    assert "the file has 0 left" in refused(tmp_path, good[:8])
    assert "data_offsets [0, 4] are outside the 3 data bytes" in refused(tmp_path, good[:-1])
    assert "the tensors cover 4 of 5 data bytes" in refused(tmp_path, good + b"5")
    assert "says it has 18446744073709551615 bytes; the limit is 100000000" in refused(
        tmp_path, b"\xff" * 8 + good[8:]
    )
    assert "says it has 99999999 bytes, the file has" in refused(
        tmp_path, struct.pack("<Q", 99_999_999) + good[8:]
    )


A = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("", "does not start with '{'"),
        (" {" + A + "}", "does not start with '{'"),
        ("[]", "does not start with '{'"),
        ("{" + A, "found the end"),
        ("{" + A + "} x", "text after the closing brace"),
        ("{" + A + "," + A + "}", "key 'a' is repeated"),
        ("{" + A + ",}", "expected '\"', found '}'"),
        (
            '{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
            "'dtype' is repeated",
        ),
        ('{"a":{"dtype":"U8","shape":[4]}}', "tensor 'a': missing data_offsets"),
        ('{"a":{}}', "tensor 'a': missing dtype and shape and data_offsets"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}}', "unknown field 'x'"),
        ('{"a":{"dtype":"Q4_0","shape":[32],"data_offsets":[0,18]}}', "unknown dtype 'Q4_0'"),
        ('{"a":{"dtype":8,"shape":[4],"data_offsets":[0,4]}}', "expected '\"', found '8'"),
        ('{"a":{"dtype":"U8","shape":4,"data_offsets":[0,4]}}', "expected '[', found '4'"),
        (
            '{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}',
            "expected a non-negative integer",
        ),
        (
            '{"a":{"dtype":"U8","shape":[4e0],"data_offsets":[0,4]}}',
            "expected a non-negative integer",
        ),
        (
            '{"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}',
            "expected a non-negative integer",
        ),
        (
            '{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,4]}}',
            "expected a non-negative integer",
        ),
        ('{"a":{"dtype":"U8","shape":[04],"data_offsets":[0,4]}}', "expected ']', found '4'"),
        (
            '{"a":{"dtype":"U8","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}',
            "of 5000 digits",
        ),
        ('{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]}}', "more than 8"),
        ('{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,4]}}', "U8 [3] needs 3 bytes"),
        ('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}', "F32 [4] needs 16 bytes"),
        ('{"a":{"dtype":"F4","shape":[7],"data_offsets":[0,4]}}', "7 elements are no multiple"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0]}}', "[0] are not [begin, end]"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,2,4]}}', "a list of more than 2"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}', "[4, 0] are outside"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}', "[4, 8] are outside the 4"),
        (
            '{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}',
            "'a' leaves a hole: it starts at",
        ),
        ('{"__metadata__":{"a":1},' + A + "}", "expected '\"', found '1'"),
        ('{"__metadata__":null,' + A + "}", "expected '{', found 'n'"),
        ('{"\\ud800":{}}', "half of a surrogate pair"),
        ('{"a\n":{}}', "Invalid control character"),
        (
            "{" + A + ',"b":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}',
            "'b' overlaps the tensor",
        ),
        (b'{"\xff":1}', "header is not UTF-8 (byte 2)"),
    ],
)
def test_wrong_headers(tmp_path, header, problem):
    assert problem in refused(tmp_path, file_bytes(header, b"1234"))


@pytest.mark.parametrize(
    "shape",
    [
        [2**63],
        [2**32, 2**32],
        [0, 2**62, 2**62],
        [2**64 - 1] * 8,
        [2**61, 2],
        [18446744073709551617],
    ],
)
def test_shapes_that_overflow(tmp_path, shape):
    message = refused(tmp_path, file_bytes({"big": entry("F32", shape, 0, 0)}))
    assert f"tensor 'big': shape {shape} overflows" in message


def test_long_names_are_cut_in_messages(tmp_path):
    message = refused(tmp_path, file_bytes({"n" * 10_000: {}}))
    assert "(10000 characters)" in message
    assert len(message) < 400 + len(str(tmp_path))


def test_space_and_order_are_free(tmp_path):
    header = (
        '{ "b" : {"data_offsets" :[ 4 , 6 ] ,"shape":[ ],\n"dtype":"I16"},\t'
        '"__metadata__":{"caf\\u00e9":"\u00fc"}, "a":{"shape":[4,0],"dtype":"F32",'
        '"data_offsets":[4,4]}, '
        '"\\u0063":{"dtype":"U8","data_offsets":[0,4],"shape":[2,2]}}   '
    )
    (tmp_path / "model.safetensors").write_bytes(file_bytes(header, b"\1\2\3\4\5\0"))
    opened = open_safetensors(tmp_path)
    assert opened.names() == ["b", "a", "c"]
    assert opened["b"].numpy() == 5
    assert opened["a"].float32().shape == (4, 0)
    assert opened["c"].numpy().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "filler",
    [
        b"[],",
        b'"a":{},',
        b'{"',
        b'"a",',
        b"[",
        b"9",
        b" ",
        b'"\\u00e9',
    ],
)
def test_hostile_headers_cost_no_memory(tmp_path, filler):
    size = 2_000_000
    path = tmp_path / "bad.safetensors"
    path.write_bytes(file_bytes(b'{"a":{"shape":[' + filler * (size // len(filler))))
    tracemalloc.start()
    with pytest.raises(LoadError):
        open_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size


@pytest.mark.parametrize("end", ["]", "x"])
def test_blanks_in_a_header_are_passed_once(tmp_path, end):
    """A million, in an entry of a run: passed once, not once for each place where they may end."""
    first, offsets = json.dumps(entry("U8", [1], 0, 1)), '"data_offsets":[1,2]'
    blanks = " " * 1_000_000
    header = f'{{"a":{first},"b":{{"dtype":"U8","shape":[{blanks}{end},{offsets}}}}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes(header.encode(), b"12"))
    if end == "]":
        assert open_safetensors(path)["b"].shape == ()
    else:
        refused(tmp_path, path.read_bytes())


def test_mutated_files(tmp_path):
    names = ("embed.weight", "layers.0.attn.weight", "norm.bias", "mask")
    header, data = {"__metadata__": {"format": "pt"}}, b""
    kinds = (("F16", [6, 4]), ("BF16", [3, 5]), ("F64", [7]), ("BOOL", [2, 2]))
    for name, (dtype, shape) in zip(names, kinds, strict=True):
        size = int(np.prod(shape)) * BLOCKS[dtype][1]
        header[name] = entry(dtype, shape, len(data), len(data) + size)
        data += bytes(i % 2 for i in range(size))
    valid = file_bytes(header, data)
    check_mutations(open_safetensors, tmp_path / "fuzzed.safetensors", valid, seed=11)


def test_mutated_indexes(tmp_path):
    write_shards(tmp_path)
    write_index(tmp_path, GOOD_MAP)
    index = tmp_path / "model.safetensors.index.json"
    valid = index.read_bytes()
    for mutated in mutations(valid, FUZZ_COUNT, seed=12):
        check_survives(lambda path: open_safetensors(path.parent), index, mutated)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_nothing_stays_open(tmp_path):
    write_shards(tmp_path)
    write_index(tmp_path, GOOD_MAP)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(file_bytes({"a": entry("U8", [4], 0, 3)}, b"123"))

    def maps_and_files() -> tuple[int, int]:
        gc.collect()  # pytest's record of an exception and the frame that holds it are a cycle
        with open("/proc/self/maps") as maps:
            mapped = sum(".safetensors" in line for line in maps)
        return mapped, len(os.listdir("/proc/self/fd"))

    before = maps_and_files()
    opened = open_safetensors(tmp_path)
    assert maps_and_files()[0] == before[0] + 2  # both shards; the index is not kept
    del opened
    for _ in range(20):
        open_safetensors(tmp_path)
        refused(tmp_path, bad.read_bytes())
    assert maps_and_files() == before
