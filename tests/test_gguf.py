"""The GGUF reader: against the `gguf` package, on real files, and on files that lie."""

import os
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fuzz_files import FUZZ_COUNT, check_mutations, check_survives, mutations

from llmaccel.errors import LoadError
from llmaccel.models.checkpoint import BLOCKS
from llmaccel.models.gguf import open_gguf

VOCABULARIES = Path(__file__).parents[1].parent / "shared" / "data" / "tokenizers" / "gguf_vocab"

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {
    U8: "<B",
    I8: "<b",
    U16: "<H",
    I16: "<h",
    U32: "<I",
    I32: "<i",
    F32: "<f",
    BOOL: "<B",
    U64: "<Q",
    I64: "<q",
    F64: "<d",
}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: object) -> bytes:
    """A metadata entry; `value` is raw bytes for strings, arrays and anything wrong."""
    raw = value if isinstance(value, bytes) else struct.pack(FORMATS[kind], value)
    return string(key) + struct.pack("<I", kind) + raw


def array(kind: int, count: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + raw


def info(name: str | bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file_bytes(
    pairs: list[bytes] = (),
    infos: list[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file from its pieces, right or wrong. counts: (tensors, keys) if they are to lie."""
    tensors, keys = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join([*pairs, *infos])
    return head + bytes(-len(head) % alignment) + data


def refused(folder: Path, data: bytes) -> str:
    """The message with which a file of `data` is refused."""
    path = folder / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(LoadError) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def oracle_file(path: Path, tensors: dict[str, tuple[np.ndarray, str]], **options: int) -> None:
    """A file by the `gguf` package. tensors: name -> (bytes or numbers, type name)."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_string("general.name", "na\u00efve \u2603")
    for name, (values, dtype) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[dtype])
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_type_round_trips(tmp_path):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(3)
    tensors = {}
    for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name in ("Q8_1", "Q8_K"):  # formats of activations, never in files
            continue
        assert BLOCKS[kind.name] == (elements, size)
        values = rng.standard_normal((6, 2 * elements)).astype(np.float32)
        try:
            stored = gguf.quants.quantize(values, kind)
        except NotImplementedError:  # the package writes no K types, no I types
            stored = rng.integers(0, 256, (6, 2 * size), dtype=np.uint8)
        tensors[f"w.{kind.name}"] = (stored, kind.name)
    path = tmp_path / "all.gguf"
    oracle_file(path, tensors)
    opened = open_gguf(path)
    assert opened.names() == list(tensors)
    for name, (stored, dtype) in tensors.items():
        tensor = opened[name]
        assert tensor.dtype == dtype
        assert tensor.shape == (6, 2 * BLOCKS[dtype][0])
        assert tensor.data.tobytes() == stored.tobytes()
        assert tensor.rows(2, 5).data.tobytes() == stored[2:5].tobytes()
        assert not tensor.data.flags.writeable
    np.testing.assert_array_equal(opened["w.F32"].numpy(), tensors["w.F32"][0])
    np.testing.assert_array_equal(opened["w.F16"].float32(), tensors["w.F16"][0].astype("f4"))
    np.testing.assert_array_equal(
        opened["w.BF16"].float32(),
        gguf.quants.dequantize(tensors["w.BF16"][0], gguf.GGMLQuantizationType.BF16),
    )


def test_all_metadata_types_round_trip(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "keys.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    scalars = {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float32": 0.5,
        "float64": 0.1,
        "bool": True,
        "string": "gr\u00fc\u00df\n\0",
    }
    for kind, value in scalars.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.ints", [1, -2, 3])
    writer.add_array("x.floats", [0.5, -2.25])
    writer.add_array("x.bools", [True, False])
    writer.add_array("x.strings", ["", "a", "\u2603"])
    writer.add_array("x.nested", [[1, 2], [3, 4]])
    writer.add_tensor("t", np.arange(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_gguf(path)
    metadata = opened.metadata
    for kind, value in scalars.items():
        assert metadata[f"x.{kind}"] == value
        assert type(metadata[f"x.{kind}"]) is type(value)
    assert metadata["x.ints"].tolist() == [1, -2, 3]
    assert metadata["x.ints"].dtype == np.int32
    assert metadata["x.floats"].tolist() == [0.5, -2.25]
    assert metadata["x.floats"].dtype == np.float32
    assert metadata["x.bools"].tolist() == [True, False]
    assert metadata["x.bools"].dtype == np.bool_
    assert metadata["x.strings"] == ["", "a", "\u2603"]
    assert [part.tolist() for part in metadata["x.nested"]] == [[1, 2], [3, 4]]
    assert metadata["general.architecture"] == "llama"
    np.testing.assert_array_equal(opened["t"].numpy(), [0, 1, 2])


def test_package_reads_the_hand_built_files(tmp_path):
    """The builder of the hostile files below is itself right."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "hand.gguf"
    values = np.arange(6, dtype=np.float32)
    path.write_bytes(
        file_bytes(
            [pair("a.b", U16, 7), pair("a.s", ARRAY, array(STRING, 2, string("x") + string("yz")))],
            [info("t", [3, 2], 0, 0)],
            values.tobytes(),
        )
    )
    theirs = gguf.GGUFReader(path)
    np.testing.assert_array_equal(theirs.tensors[0].data, values.reshape(2, 3))
    assert theirs.fields["a.b"].contents() == 7
    ours = open_gguf(path)
    np.testing.assert_array_equal(ours["t"].numpy(), values.reshape(2, 3))
    assert ours.metadata == {"a.b": 7, "a.s": ["x", "yz"]}


def test_versions(tmp_path):
    (tmp_path / "v2.gguf").write_bytes(file_bytes([pair("a", U32, 1)], version=2))
    opened = open_gguf(tmp_path / "v2.gguf")
    assert (opened.metadata, len(opened)) == ({"a": 1}, 0)
    assert "GGUF version 1; supported are 2 and 3" in refused(tmp_path, file_bytes(version=1))
    assert "GGUF version 4; supported are 2 and 3" in refused(tmp_path, file_bytes(version=4))
    assert "GGUF version 0; supported" in refused(tmp_path, file_bytes(version=0))
    for version in (1, 2, 3):
        data = file_bytes(version=version << 24)
        assert "a big-endian GGUF file" in refused(tmp_path, data)


def test_big_endian_by_the_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    oracle_file(tmp_path / "big.gguf", {}, endianess=gguf.GGUFEndian.BIG)
    assert "a big-endian GGUF file" in refused(tmp_path, (tmp_path / "big.gguf").read_bytes())


def test_arrays_do_not_pin_the_file(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(file_bytes([pair("a", ARRAY, array(F32, 2, struct.pack("<2f", 1, 2)))]))
    assert open_gguf(path).metadata["a"].base is None


def test_scalars_and_short_dims(tmp_path):
    path = tmp_path / "s.gguf"
    data = struct.pack("<f28x2h", 2.5, 3, 4)
    path.write_bytes(
        file_bytes(
            [],
            [
                info("scalar", [], 0, 0),
                info("deep", [1, 2, 1, 1], 25, 32),
                info("none", [4, 0], 0, 32),
            ],
            data,
        )
    )
    opened = open_gguf(path)
    assert opened["scalar"].shape == ()
    assert opened["scalar"].numpy() == 2.5
    assert opened["deep"].shape == (1, 1, 2, 1)
    assert opened["deep"].numpy().ravel().tolist() == [3, 4]
    assert opened["none"].float32().shape == (0, 4)


# --- split files


def write_split(folder: Path) -> tuple[list[Path], dict[str, np.ndarray]]:
    tensors = {f"blk.{i}.w": np.full((2, 4), i, np.float32) for i in range(5)}
    oracle_file(
        folder / "m.gguf", {name: (w, "F32") for name, w in tensors.items()}, split_max_tensors=2
    )
    files = sorted(folder.glob("m-*.gguf"))
    assert [file.name for file in files] == [f"m-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    return files, tensors


def test_split_opens_from_any_part(tmp_path):
    files, tensors = write_split(tmp_path)
    for file in files:
        opened = open_gguf(file)
        assert opened.path == files[0]
        assert opened.metadata["general.name"] == "na\u00efve \u2603"
        assert opened.names() == list(tensors)
        for name, expected in tensors.items():
            np.testing.assert_array_equal(opened[name].numpy(), expected)


def test_wrong_splits(tmp_path):
    files, _ = write_split(tmp_path)
    good = [file.read_bytes() for file in files]

    def message(path: Path = files[0]) -> str:
        with pytest.raises(LoadError) as caught:
            open_gguf(path)
        for file, data in zip(files, good, strict=True):
            file.write_bytes(data)
        return str(caught.value)

    files[1].unlink()
    assert "m-00002-of-00003.gguf: the part is missing; m-00001-of-00003.gguf is one" in message()
    files[2].write_bytes(good[1])
    assert "m-00003-of-00003.gguf: split.no is 1, expected 2" in message()
    files[2].write_bytes(good[1].replace(pair("split.no", U16, 1), pair("split.no", U16, 2)))
    assert "m-00003-of-00003.gguf: tensor 'blk.2.w' is in an earlier part" in message()
    files[1].write_bytes(good[1].replace(pair("split.count", U16, 3), pair("split.count", U16, 4)))
    assert "m-00002-of-00003.gguf: split.count is 4, expected 3" in message()
    files[0].write_bytes(
        good[0].replace(pair("split.tensors.count", I32, 5), pair("split.tensors.count", I32, 6))
    )
    assert "split.tensors.count is 6, the parts hold 5 tensors" in message()
    files[1].write_bytes(good[1][:-32])
    assert "m-00002-of-00003.gguf: tensor 'blk.3.w': 32 bytes at offset" in message()
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(good[0])
    assert "alone.gguf: a part of 3 (split.count), but its name does not end in" in message(alone)
    other = tmp_path / "m-00001-of-00009.gguf"
    other.write_bytes(good[0])
    assert "the name says part 1 of 9, split.count is 3" in message(other)
    other.write_bytes(file_bytes())
    assert "the name says part 1 of 9, split.count is absent" in message(other)
    zero = tmp_path / "m-00000-of-00003.gguf"
    zero.write_bytes(good[0])
    assert "the name says part 0 of 3" in message(zero)


def test_a_merged_file_is_no_part(tmp_path):
    path = tmp_path / "merged.gguf"
    for count in (0, 1):
        split = pair("split.count", U16, count)
        path.write_bytes(file_bytes([split], [info("t", [1], 24, 0)], b"\1"))
        assert open_gguf(path).names() == ["t"]
    for kind, value, shown in (
        (I16, -1, "-1"),
        (F32, 1.0, "1.0"),
        (BOOL, 1, "True"),
        (STRING, string("2"), "of type str"),
    ):
        message = refused(tmp_path, file_bytes([pair("split.count", kind, value)]))
        assert f"split.count is {shown}, expected a non-negative integer" in message


# --- real files


@pytest.mark.skipif(not VOCABULARIES.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama-spm", 32000),
        ("gpt-2", 50257),
        ("phi-3", 32064),
        ("deepseek-coder", 32256),
    ],
)
def test_real_vocabularies(name, size):
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    opened = open_gguf(path)
    assert len(opened) == 0
    assert len(opened.metadata["tokenizer.ggml.tokens"]) == size
    check_against_package(path)


@pytest.mark.skipif(not os.environ.get("LLMACCEL_SMOLLM2"), reason="LLMACCEL_SMOLLM2 is not set")
def test_smollm2():
    path = Path(os.environ["LLMACCEL_SMOLLM2"])
    opened = open_gguf(path)
    assert opened.metadata["general.architecture"] == "llama"
    assert opened["token_embd.weight"].shape == (49152, 576)
    check_against_package(path)


def check_against_package(path: Path) -> None:
    """Every key and every tensor of a real file agrees with the `gguf` package's reader."""
    theirs = pytest.importorskip("gguf").GGUFReader(path)
    ours = open_gguf(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value, expected = ours.metadata[key], field.contents()
        if isinstance(value, np.ndarray):
            assert value.tolist() == expected
        else:
            assert value == expected
    assert ours.names() == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours[tensor.name]
        assert mine.dtype == tensor.tensor_type.name
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        np.testing.assert_array_equal(mine.data, tensor.data.reshape(-1).view(np.uint8))


# --- files that lie


def test_not_a_gguf_file(tmp_path):
    assert "the file is empty" in refused(tmp_path, b"")
    assert "not a GGUF file" in refused(tmp_path, b"GGU")
    assert "not a GGUF file" in refused(tmp_path, b"ggml" + bytes(100))
    assert "the version needs 4 bytes at offset 4, the file has 2 left" in refused(
        tmp_path, b"GGUF\3\0"
    )
    assert "metadata key 0, string 0, needs 8 bytes at offset 24, the file has 0 left" in refused(
        tmp_path, file_bytes(counts=(0, 1), alignment=1)
    )
    with pytest.raises(LoadError, match=r"nothing\.gguf: cannot open the file"):
        open_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(LoadError, match="not a regular file"):
        open_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(LoadError, match="not a regular file"):
        open_gguf(tmp_path / "pipe.gguf")


def test_every_truncation_is_refused(tmp_path):
    good = file_bytes(
        [pair("a.b", U16, 7), pair("a.s", ARRAY, array(STRING, 2, string("x") + string("yz")))],
        [info("t", [3, 2], 0, 0)],
        bytes(24),
    )
    for length in range(len(good)):
        refused(tmp_path, good[:length])


HUGE = (2**64 - 1, 2**63, 2**61 + 1, 2**40)
WRONG_METADATA = [
    (b"\1", (0, 1), r"metadata key 0, string 0, says it has 1 bytes; at most 0 are possible"),
    (b"", (0, 65537), r"65537 metadata keys; the limit is 65536"),
    (b"", (65537, 0), r"65537 tensors; the limit is 65536"),
    (b"", (2**64 - 1, 0), r"18446744073709551615 tensors; the limit"),
    (string(""), (0, 1), r"metadata key 0 is empty"),
    (string(b"\xff"), (0, 1), r"metadata key 0, string 0, is not UTF-8"),
    (string("k" * 65536), (0, 1), r"says it has 65536 bytes; at most 65535"),
    (pair("k", U8, 1) + pair("k", U8, 2), (0, 2), r"metadata 'k' is repeated"),
    (pair("k", 13, b"\0"), (0, 1), r"metadata 'k' has the unknown value type 13"),
    (pair("k", BOOL, 2), (0, 1), r"metadata 'k' holds booleans other than 0 and 1"),
    (pair("k", STRING, string(b"\xc3")), (0, 1), r"metadata 'k', string 0, is not UTF-8"),
    (pair("k", ARRAY, array(13, 0)), (0, 1), r"metadata 'k' has the unknown element type 13"),
    (pair("k", ARRAY, array(BOOL, 2, b"\1\2")), (0, 1), r"metadata 'k' holds booleans other"),
    (
        pair("k", ARRAY, array(STRING, 2, string("a") + string(b"\x80"))),
        (0, 1),
        r"metadata 'k', string 1, is not UTF-8",
    ),
    (pair("k", ARRAY, array(ARRAY, 1) * 5), (0, 1), r"metadata 'k' nests arrays deeper than 4"),
    (pair("k", ARRAY, array(ARRAY, 1) * 200_000), (0, 1), r"nests arrays deeper than 4"),
    (
        pair("k", ARRAY, array(ARRAY, 65537, array(U8, 0) * 65537)),
        (0, 1),
        r"metadata 'k': more than 65536 nested arrays",
    ),
    *[
        (pair("k", STRING, struct.pack("<Q", n)), (0, 1), rf"'k', string 0, says it has {n} bytes")
        for n in HUGE
    ],
    *[
        (pair("k", ARRAY, array(kind, n)), (0, 1), rf"metadata 'k' needs {n * size} bytes")
        for n in HUGE
        for kind, size in ((U8, 1), (F64, 8), (BOOL, 1), (STRING, 8), (ARRAY, 12))
    ],
    *[
        (pair("general.alignment", kind, value), (0, 1), r"general\.alignment is .* a power of two")
        for kind, value in (
            (U32, 0),
            (U32, 4),
            (U32, 24),
            (U32, 2**31),
            (I32, -32),
            (F32, 32.0),
            (BOOL, 1),
            (STRING, string("32")),
        )
    ],
]


@pytest.mark.parametrize(("body", "counts", "problem"), WRONG_METADATA)
def test_wrong_metadata(tmp_path, body, counts, problem):
    assert re.search(problem, refused(tmp_path, file_bytes([body], counts=counts)))


WRONG_TENSORS = [
    ([info("t", [4], 24, 0)] * 2, 8, "tensor 't' is repeated"),
    ([info("", [4], 24, 0)], 8, "tensor name 0 is empty"),
    ([info(b"\xff", [4], 24, 0)], 8, "tensor name 0, string 0, is not UTF-8"),
    ([info("t", [1] * 5, 24, 0)], 8, "tensor 't' has 5 dimensions, at most 4"),
    ([string("t") + struct.pack("<I", 2**32 - 1)], 8, "'t' has 4294967295 dimensions"),
    *[
        ([info("t", [32], kind, 0)], 64, f"tensor 't' has the unknown type {kind}")
        for kind in (4, 5, 9, 15, 31, 36, 42, 2**32 - 1)
    ],
    ([info("t", [2**63], 24, 0)], 8, "tensor 't': shape [9223372036854775808] overflows"),
    ([info("t", [2**32, 2**32], 24, 0)], 8, "tensor 't': shape [4294967296, 4294967296] overflows"),
    ([info("t", [2**62, 2**62, 0], 24, 0)], 8, "overflows"),
    ([info("t", [2**61], 0, 0)], 8, "tensor 't': shape [2305843009213693952] overflows"),
    ([info("t", [2**64 - 1] * 4, 24, 0)], 8, "overflows"),
    ([info("t", [33], 2, 0)], 64, "33 elements are no multiple of the 32 of a Q4_0 block"),
    ([info("t", [16, 2], 2, 0)], 64, "16 elements are no multiple of the 32 of a Q4_0 block"),
    ([info("t", [128, 2], 12, 0)], 999, "128 elements are no multiple of the 256 of a Q4_K block"),
    ([info("t", [], 2, 0)], 64, "1 elements are no multiple of the 32"),
    ([info("t", [4], 24, 1)], 64, "tensor 't': offset 1 is no multiple of the alignment 32"),
    ([info("t", [4], 24, 64)], 64, "'t': 4 bytes at offset 64 are outside the 64 data bytes"),
    ([info("t", [33], 24, 32)], 64, "33 bytes at offset 32 are outside the 64 data bytes"),
    ([info("t", [4], 24, 2**64 - 32)], 64, "at offset 18446744073709551584 are outside"),
    ([info("t", [0], 24, 96)], 64, "0 bytes at offset 96 are outside"),
    (
        [info("a", [33], 24, 0), info("b", [1], 24, 32)],
        64,
        "tensors 'a' and 'b' overlap: bytes 0 to 33, and from 32 on",
    ),
    ([info("a", [1], 24, 0), info("b", [1], 24, 0)], 64, "tensors 'a' and 'b' overlap"),
]


@pytest.mark.parametrize(("infos", "size", "problem"), WRONG_TENSORS)
def test_wrong_tensors(tmp_path, infos, size, problem):
    assert problem in refused(tmp_path, file_bytes([], infos, bytes(size)))


def test_alignment_moves_the_data(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(
        file_bytes(
            [pair("general.alignment", U32, 256)],
            [info("t", [2], 24, 256)],
            bytes(256) + b"\7\x08",
            alignment=256,
        )
    )
    assert open_gguf(path)["t"].numpy().tolist() == [7, 8]


@pytest.mark.parametrize(
    "body",
    [
        pair("k", ARRAY, array(STRING, 250_000, bytes(8) * 250_000)) + b"\xff",  # empty strings
        pair("k", ARRAY, array(STRING, 200_000, string("ab") * 199_999)),
        pair("k", ARRAY, array(U8, 2_000_000, bytes(2_000_000)))[:-1],
        b"".join(pair(f"k{i}", U8, 1) for i in range(60_000)),
    ],
    ids=["empty strings", "short strings", "bytes", "keys"],
)
def test_hostile_metadata_costs_no_memory(tmp_path, body):
    data = file_bytes([body], counts=(1, 60_000))
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(LoadError):
        open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * len(data)


def fuzz_seed() -> bytes:
    """A valid file with every kind of content."""
    pairs = [
        pair("general.architecture", STRING, string("llama")),
        pair("general.alignment", U32, 32),
        pair("llama.block_count", U64, 2),
        pair("x.half", F32, 0.5),
        pair("x.on", BOOL, 1),
        pair(
            "tokenizer.ggml.tokens",
            ARRAY,
            array(STRING, 30, b"".join(string(f"tok{i}") for i in range(30))),
        ),
        pair("tokenizer.ggml.scores", ARRAY, array(F32, 30, bytes(120))),
        pair("x.flags", ARRAY, array(BOOL, 4, b"\0\1\0\1")),
        pair("x.nested", ARRAY, array(ARRAY, 2, array(U16, 3, bytes(6)) * 2)),
    ]
    infos = [
        info("token_embd.weight", [32, 4], 2, 0),
        info("blk.0.attn.weight", [4, 5], 0, 96),
        info("output_norm.weight", [4], 30, 192),
        info("blk.1.k.weight", [256, 1], 12, 224),
    ]
    return file_bytes(pairs, infos, bytes(i % 256 for i in range(368)))


def test_mutated_files(tmp_path):
    valid = fuzz_seed()
    check_mutations(open_gguf, tmp_path / "fuzzed.gguf", valid, seed=21)


def test_mutated_parts(tmp_path):
    """A broken part of a split file."""
    files, _ = write_split(tmp_path)
    valid = files[1].read_bytes()
    for mutated in mutations(valid, FUZZ_COUNT, seed=22):
        check_survives(open_gguf, files[1], mutated)
