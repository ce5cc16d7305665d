"""Packing: every source type against the published formats, every target against its layout."""

from __future__ import annotations

import numpy as np
import pytest
import reference_kernels as ref

core = pytest.importorskip("llmaccel._core")
gguf = pytest.importorskip("gguf")

TYPES = {
    ref.Q4_0: "Q4_0", ref.Q4_1: "Q4_1", ref.Q5_0: "Q5_0", ref.Q5_1: "Q5_1", ref.Q8_0: "Q8_0",
    ref.Q2_K: "Q2_K", ref.Q3_K: "Q3_K", ref.Q4_K: "Q4_K", ref.Q5_K: "Q5_K", ref.Q6_K: "Q6_K",
    ref.IQ4_NL: "IQ4_NL", ref.IQ4_XS: "IQ4_XS", ref.MXFP4: "MXFP4",
}  # fmt: skip
# type -> pack, scale type, offset, group
FORMATS = {
    ref.Q4_0: (ref.PACK_I4, ref.F16, 0, 32),
    ref.Q4_1: (ref.PACK_I4, ref.F16, 1, 32),
    ref.Q5_0: (ref.PACK_I5, ref.F16, 0, 32),
    ref.Q5_1: (ref.PACK_I5, ref.F16, 1, 32),
    ref.Q8_0: (ref.PACK_I8, ref.F16, 0, 32),
    ref.Q2_K: (ref.PACK_I4, ref.F16_I8, 1, 16),
    ref.Q3_K: (ref.PACK_I4, ref.F16_I8, 0, 16),
    ref.Q4_K: (ref.PACK_I4, ref.F16_I8, 1, 32),
    ref.Q5_K: (ref.PACK_I5, ref.F16_I8, 1, 32),
    ref.Q6_K: (ref.PACK_I6, ref.F16_I8, 0, 16),
    ref.IQ4_NL: (ref.PACK_IQ4, ref.F16, 0, 32),
    ref.IQ4_XS: (ref.PACK_IQ4, ref.F16_I8, 0, 32),
    ref.MXFP4: (ref.PACK_E2M1, ref.E8M0, 0, 32),
}
# byte offsets of the fp16 fields of a block
HALVES = {
    ref.Q4_0: [0], ref.Q4_1: [0, 2], ref.Q5_0: [0], ref.Q5_1: [0, 2], ref.Q8_0: [0],
    ref.Q2_K: [80, 82], ref.Q3_K: [108], ref.Q4_K: [0, 2], ref.Q5_K: [0, 2], ref.Q6_K: [208],
    ref.IQ4_NL: [0], ref.IQ4_XS: [0], ref.MXFP4: [],
}  # fmt: skip


def random_blocks(rng: np.random.Generator, dtype: int, rows: int, cols: int) -> np.ndarray:
    """Bytes [rows, row bytes]: every bit pattern of codes and scales, sensible fp16 fields."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[TYPES[dtype]]]
    raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
    for at in HALVES[dtype]:
        half = rng.normal(0, 0.1, (rows, cols // block, 1)).astype(np.float16)
        raw[:, :, at : at + 2] = half.view(np.uint8)
    if dtype == ref.MXFP4:  # exponents of sensible scales, and the smallest
        raw[:, :, 0] = rng.choice([0, 1, *range(110, 140)], (rows, cols // block))
    return raw.reshape(rows, -1)


def dequantized(dtype: int, raw: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[TYPES[dtype]])


def part(data: np.ndarray, dtype: int, rows: int, cols: int) -> tuple[bytes, int, int, int]:
    return data.tobytes(), dtype, rows, cols


def pack(parts, weights: int = ref.KEEP, paired: bool = False) -> tuple[bytes, ref.Format, int]:
    data, d = core.pack(parts, weights, paired)
    f = ref.Format(d["pack"], d["K"], d["scale_type"], d["has_offset"], d["group"])
    return data, f, d["N"]


def rows_of(data: bytes, f: ref.Format) -> np.ndarray:
    n = ref.unit_rows(f, data)
    got = [np.frombuffer(core.unpack("scalar", data, f.asdict(), i), np.float32) for i in range(n)]
    return np.stack(got)


def floats(dtype: int, w: np.ndarray) -> np.ndarray:
    if dtype == ref.F32:
        return w
    return w.astype(np.float16) if dtype == ref.F16 else ref.bf16_round(w)


def float_values(dtype: int, w: np.ndarray) -> np.ndarray:
    if dtype == ref.F32:
        return w
    stored = floats(dtype, w)
    return stored.astype(np.float32) if dtype == ref.F16 else ref.bf16_value(stored)


@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
@pytest.mark.parametrize(("rows", "cols"), [(1, 256), (33, 768), (64, 2048)])
def test_grouped_source_is_exact(dtype: int, rows: int, cols: int) -> None:
    raw = random_blocks(np.random.default_rng(rows + dtype), dtype, rows, cols)
    data, f, n = pack([part(raw, dtype, rows, cols)])
    assert (f.pack, f.scale_type, f.has_offset, f.group) == FORMATS[dtype]
    assert n == rows
    want = dequantized(dtype, raw)
    got = ref.unit_values(f, data)
    np.testing.assert_allclose(got[:rows], want, rtol=2e-7, atol=1e-7 * np.abs(want).max())
    assert not got[rows:].any(), "padded columns are not zero"
    np.testing.assert_array_equal(rows_of(data, f)[:rows], want)


def test_an_exponent_that_is_no_number_is_refused() -> None:
    raw = random_blocks(np.random.default_rng(0), ref.MXFP4, 40, 512)
    raw[33, 17 * 3] = 255
    with pytest.raises(ValueError, match="part 0 is not finite"):
        pack([part(raw, ref.MXFP4, 40, 512)])


def test_packed_bytes_of_k_quants() -> None:
    """Bytes a weight: codes, two bytes a column for 256 k and one a group, twice with offsets; a
    byte a group where scales are powers of two."""
    for dtype, want in [
        (ref.Q2_K, 0.5 + 4 / 256 + 2 / 16),
        (ref.Q3_K, 0.5 + 2 / 256 + 1 / 16),
        (ref.Q4_K, 0.5 + 4 / 256 + 2 / 32),
        (ref.Q5_K, 5 / 8 + 4 / 256 + 2 / 32),
        (ref.Q6_K, 6 / 8 + 2 / 256 + 1 / 16),
        (ref.MXFP4, 0.5 + 1 / 32),
    ]:
        raw = random_blocks(np.random.default_rng(1), dtype, 64, 512)
        data, _, _ = pack([part(raw, dtype, 64, 512)])
        assert len(data) == want * 64 * 512, TYPES[dtype]


@pytest.mark.parametrize("dtype", [ref.Q4_0, ref.Q4_1, ref.Q5_0, ref.Q5_1, ref.Q8_0])
def test_a_short_row(dtype: int) -> None:
    raw = random_blocks(np.random.default_rng(dtype), dtype, 40, 576)
    data, f, _ = pack([part(raw, dtype, 40, 576)])
    np.testing.assert_array_equal(rows_of(data, f)[:40], dequantized(dtype, raw))


@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_grouped_source_as_float32(dtype: int) -> None:
    raw = random_blocks(np.random.default_rng(dtype), dtype, 35, 512)
    data, f, _ = pack([part(raw, dtype, 35, 512)], ref.F32)
    assert f.pack == ref.PACK_F32
    np.testing.assert_array_equal(ref.unit_values(f, data)[:35], dequantized(dtype, raw))


@pytest.mark.parametrize("cols", [1, 2, 63, 172, 257, 600])
@pytest.mark.parametrize("source", [ref.F32, ref.F16, ref.BF16])
@pytest.mark.parametrize("weights", [ref.F32, ref.F16, ref.BF16, ref.KEEP])
def test_float_source(source: int, weights: int, cols: int) -> None:
    w = np.random.default_rng(cols).normal(0, 1, (45, cols)).astype(np.float32)
    data, f, _ = pack([part(floats(source, w), source, 45, cols)], weights)
    target = source if weights == ref.KEEP else weights
    assert f == ref.Format([ref.PACK_F32, ref.PACK_F16, ref.PACK_BF16][target], cols, 0)
    want = float_values(target, float_values(source, w))
    np.testing.assert_array_equal(ref.unit_values(f, data)[:45], want)
    assert data == ref.write_floats(f.pack, np.vstack([want, np.zeros((19, cols), np.float32)]))
    np.testing.assert_array_equal(rows_of(data, f)[:45], want)


@pytest.mark.parametrize("dtype", [ref.F16, ref.BF16])
def test_every_code_keeps_its_bits(dtype: int) -> None:
    codes = np.arange(65536, dtype=np.uint16).reshape(128, 512)
    data, f, _ = pack([part(codes, dtype, 128, 512)])
    stored = np.frombuffer(data, np.uint16).reshape(4, 256, 32, 2).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(stored.reshape(128, 512), codes)
    want = codes.view(np.float16).astype(np.float32) if dtype == ref.F16 else ref.bf16_value(codes)
    np.testing.assert_array_equal(rows_of(data, f), want)


def test_parts_follow_one_another() -> None:
    rng = np.random.default_rng(5)
    parts, want = [], []
    for rows in (40, 7, 20):
        raw = random_blocks(rng, ref.Q8_0, rows, 96)
        parts.append(part(raw, ref.Q8_0, rows, 96))
        want.append(dequantized(ref.Q8_0, raw))
    data, f, n = pack(parts)
    assert n == 67
    np.testing.assert_array_equal(rows_of(data, f)[:67], np.vstack(want))


@pytest.mark.parametrize("rows", [1, 16, 40])
@pytest.mark.parametrize("dtype", [ref.Q4_1, ref.F32])
def test_gate_and_up_share_units(dtype: int, rows: int) -> None:
    rng = np.random.default_rng(rows)
    sources, values = [], []
    for _ in range(2):
        if dtype == ref.F32:
            w = rng.normal(0, 1, (rows, 64)).astype(np.float32)
            sources.append(part(w, dtype, rows, 64))
            values.append(w)
        else:
            raw = random_blocks(rng, dtype, rows, 64)
            sources.append(part(raw, dtype, rows, 64))
            values.append(dequantized(dtype, raw))
    data, f, n = pack(sources, paired=True)
    assert n == 2 * rows
    got = rows_of(data, f)
    assert got.shape[0] == -(-rows // 16) * 32
    for i, want in enumerate(values):
        columns = [32 * (r // 16) + 16 * i + r % 16 for r in range(rows)]
        np.testing.assert_array_equal(got[columns], want)


@pytest.mark.parametrize(
    ("first", "second", "form"),
    [
        (ref.Q4_K, ref.Q6_K, (ref.PACK_I6, ref.F32, 1, 16)),
        (ref.Q5_0, ref.Q6_K, (ref.PACK_I6, ref.F32, 0, 16)),
        (ref.Q5_0, ref.Q5_1, (ref.PACK_I5, ref.F32, 1, 32)),
        (ref.Q5_0, ref.Q4_0, (ref.PACK_I5, ref.F16, 0, 32)),
        (ref.Q6_K, ref.Q8_0, (ref.PACK_I8, ref.F32, 0, 16)),
        (ref.Q4_0, ref.Q4_1, (ref.PACK_I4, ref.F32, 1, 32)),
        (ref.Q4_0, ref.Q8_0, (ref.PACK_I8, ref.F16, 0, 32)),
        (ref.Q3_K, ref.Q2_K, (ref.PACK_I4, ref.F32, 1, 16)),
        (ref.Q3_K, ref.Q4_K, (ref.PACK_I4, ref.F32, 1, 16)),
        (ref.Q5_1, ref.Q4_0, (ref.PACK_I5, ref.F32, 1, 32)),
        (ref.Q5_K, ref.Q3_K, (ref.PACK_I5, ref.F32, 1, 16)),
        (ref.Q4_K, ref.Q5_K, (ref.PACK_I5, ref.F32, 1, 32)),
        (ref.Q4_K, ref.Q4_K, (ref.PACK_I4, ref.F16_I8, 1, 32)),
        (ref.Q4_K, ref.Q4_1, (ref.PACK_I4, ref.F32, 1, 32)),
        (ref.Q4_1, ref.F16, (ref.PACK_F32, 0, 0, 0)),
        (ref.F16, ref.BF16, (ref.PACK_F32, 0, 0, 0)),
    ],
)
def test_mixed_parts_widen_exactly(first: int, second: int, form: tuple[int, ...]) -> None:
    rng = np.random.default_rng(first * 16 + second)
    parts, want = [], []
    for dtype in (first, second):
        if dtype in TYPES:
            raw = random_blocks(rng, dtype, 24, 512)
            want.append(dequantized(dtype, raw))
        else:
            w = rng.normal(0, 1, (24, 512)).astype(np.float32)
            raw = floats(dtype, w)
            want.append(float_values(dtype, w))
        parts.append(part(raw, dtype, 24, 512))
    data, f, _ = pack(parts)
    assert (f.pack, f.scale_type, f.has_offset, f.group) == form
    expected = np.vstack(want)
    error = np.abs(ref.unit_values(f, data)[:48] - expected)
    assert (error <= 2e-7 * np.abs(expected).max(axis=1, keepdims=True)).all()


def test_bad_parts_are_named() -> None:
    w = np.zeros((4, 64), np.float32)
    good = part(w, ref.F32, 4, 64)
    for parts, paired, message in [
        ([], False, "at least one part"),
        ([(b"", 99, 4, 64)], False, "unknown type 99"),
        ([(w.tobytes()[:-1], ref.F32, 4, 64)], False, "1023 bytes, expected 1024"),
        ([good, part(w[:, :32], ref.F32, 4, 32)], False, r"part 1 is \[4, 32\]"),
        ([good, part(w[:3], ref.F32, 3, 64)], True, r"part 1 is \[3, 64\]"),
        ([good], True, "two parts"),
        ([(b"x", ref.Q4_0, 1, 48)], False, "multiple of the type's block of 32"),
        ([(b"x", ref.F32, 0, 48)], False, "0 rows"),
        ([(b"x", ref.F32, 4, -1)], False, "-1 columns"),
        ([(b"x", ref.F32, 2**31 - 1, 2**31 - 1)], False, "bytes, expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            core.pack(parts, ref.KEEP, paired)
    with pytest.raises(ValueError, match="weights of type 5"):
        core.pack([good], ref.Q5_0, False)
