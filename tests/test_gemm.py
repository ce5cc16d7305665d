"""Products, activation rows and probes: every slot, every level present, ugly shapes, every format.

The module fills row gaps, unit gaps and the space beside the results with NaN patterns and refuses
results that touch it, so reading or writing outside the contract shows here.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import reference_kernels as ref

core = pytest.importorskip("llmaccel._core")

ISAS = core.kernel_isas()
FLOATS = [slot for slot, (pack, _) in ref.PRODUCTS.items() if pack < ref.PACK_I8]
GROUPED = [slot for slot in ref.PRODUCTS if slot not in FLOATS]
INTEGER = [slot for slot in ref.PRODUCTS if ref.PRODUCTS[slot][1] == "i8"]


def seeded(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def table_format(pack: int, k: int, group: int) -> ref.Format:
    return ref.Format(pack, k, ref.F32 if group == 64 else ref.F16, 0, group)


def formats(slot: str, k: int) -> Iterator[ref.Format]:
    """Every format that the slot takes."""
    pack = ref.PRODUCTS[slot][0]
    if slot in FLOATS:
        yield ref.Format(pack, k)
        return
    heads = [(ref.F16, 0), (ref.F16, 1), (ref.F32, 0), (ref.F32, 1)]
    rows = [(256, ref.F32, 0), (256, ref.F16, 1), (64, ref.F32, 1)]
    if pack == ref.PACK_F8:
        heads, rows = [(ref.F32, 0)], [(256, ref.F32, 0), (64, ref.F32, 0)]
    if pack in ref.TABLES:
        yield from (table_format(pack, k, group) for pack in ref.TABLES for group in (16, 32, 64))
        heads, rows = [(ref.F16, 0), (ref.F32, 0)], [(256, ref.F32, 0)]
    for group in (16, 32, 64, 128, 256):
        for scale_type, has_offset in heads:
            yield ref.Format(pack, k, scale_type, has_offset, group)
    nests = k % 256 == 0 or k in (172, 576)  # whole ones, and a short last one
    for group in (16, 32, 64, 128) if nests and pack != ref.PACK_F8 else ():
        for has_offset in (0, 1) if pack not in ref.TABLES else (0,):
            yield ref.Format(pack, k, ref.F16_I8, has_offset, group)
        if pack in ref.TABLES:
            yield ref.Format(pack, k, ref.E8M0, 0, group)
    for group, scale_type, has_offset in rows:
        yield ref.Format(pack, k, scale_type, has_offset, group, row_scale=1)


@functools.lru_cache(64)
def make_weight(f: ref.Format, units: int) -> bytes:
    """Random units: normal values, or all codes with scales of both signs."""
    rng = seeded(f, units)
    n = units * ref.UNIT
    if not f.group:
        return ref.write_floats(f.pack, rng.normal(0, 1, (n, f.K)).astype(np.float32))
    groups = -(-f.K // f.group)
    codes = rng.integers(0, 1 << ref.BITS[f.pack], (n, f.K), dtype=np.uint8)
    if f.pack == ref.PACK_F8:
        codes[codes & 127 == 127] ^= 1  # NaN is refused by the writer
    scale = rng.normal(0, 0.02, (n, groups)).astype(np.float32)
    offset = rng.normal(0, 0.1, (n, groups)).astype(np.float32)
    return ref.write_codes(f, codes, scale, offset)


@functools.lru_cache(64)
def make_rows(m: int, k: int) -> np.ndarray:
    """Rows of different sizes; some groups are all zero."""
    rng = seeded("rows", m, k)
    x = rng.normal(0, 1, (m, k)) * rng.lognormal(0, 1, (m, 1))
    x[:, k // 3 : k // 2] = 0
    x = x.astype(np.float32)
    x.setflags(write=False)
    return x


def gemm(isa: str, f: ref.Format, data: bytes, x: np.ndarray, act: str, *g: int) -> np.ndarray:
    y = core.gemm(isa, data, f.asdict(), x, act, *g)
    return np.frombuffer(y, np.float32).reshape(x.shape[0], -1)


@functools.lru_cache(4)
def product(f: ref.Format, act: str, m: int, units: int) -> tuple[np.ndarray, np.ndarray]:
    return ref.gemm(f, make_weight(f, units), make_rows(m, f.K), act)


def nested(slot: str, k: int) -> list[ref.Format]:
    """Formats of the slot with scales apart from the codes."""
    return [f for f in formats(slot, k) if f.apart]


def check(slot: str, f: ref.Format, m: int, units: int, isas: list[str]) -> None:
    """Each level against the float64 product of the same converted values."""
    compare(ref.PRODUCTS[slot][1], f, (m, units), isas)


def compare(act: str, f: ref.Format, shape: tuple[int, int], isas: list[str]) -> None:
    """The same of any form of rows. shape: rows and units, of a product of 40 and 8."""
    m, units = shape
    data = make_weight(f, 8)[: units * len(make_weight(f, 8)) // 8]
    x = make_rows(40, f.K)[:m]
    want, scale = (y[:m, : units * ref.UNIT] for y in product(f, act, 40, 8))
    # one fp32 chain over K: the error grows with its length; of fp64 the last rounding is left
    limit = {"f32": 2e-6 + 2e-7 * np.sqrt(f.K), "f64": 4e-7}.get(act, 1e-5)
    for isa in isas:
        error = np.abs(gemm(isa, f, data, x, act) - want) / scale
        assert error.max() < limit, (isa, act, f, m, units, error.max())


def test_every_slot_has_a_reference() -> None:
    """Fails when a slot of kernels.h is specified by no reference table, or by two."""
    rows = pytest.importorskip("reference_rows")
    slots = list(core.kernel_slots("scalar"))
    assert sorted([*ref.GEMM_SLOTS, *rows.ROW_SLOTS]) == sorted(slots)


@pytest.mark.parametrize("slot", FLOATS)
@pytest.mark.parametrize("k", [1, 2, 3, 31, 63, 64, 172, 577, 896, 1537])
def test_float_product(slot: str, k: int) -> None:
    for f in formats(slot, k):
        for m, units in [(1, 1), (1, 8), (2, 3), (5, 2), (8, 5), (9, 1), (13, 3), (33, 4)]:
            check(slot, f, m, units, ISAS)


@pytest.mark.parametrize("slot", [s for s in GROUPED if s.endswith("_i8")])
@pytest.mark.parametrize("k", [16, 172, 896])
def test_activation_groups_shorter_than_the_weights(slot: str, k: int) -> None:
    """int8 rows in groups of their own: near the float64 product, the same bits at every level and
    for any M, and not those of rows in the weights' groups."""
    for f in formats(slot, k):
        data = make_weight(f, 8)
        x = make_rows(13, k)
        for fold in (16, 64):
            if fold >= f.group:
                continue
            want, scale = ref.gemm(f, data, x, "i8", fold)
            y = gemm("scalar", f, data, x, "i8", 8, fold)
            assert (np.abs(y - want) / scale).max() < 1e-5, (f, fold)
            for isa in ISAS:
                for m in (1, 2, 4, 13):
                    some = gemm(isa, f, data, x[:m], "i8", 2, fold)
                    np.testing.assert_array_equal(some, y[:m], str((isa, f, fold, m)))
            if k > fold:
                assert (gemm("scalar", f, data, x, "i8") != y).any()


@pytest.mark.parametrize("slot", GROUPED)
@pytest.mark.parametrize("k", [1, 7, 16, 64, 172, 576, 896])
def test_grouped_product(slot: str, k: int) -> None:
    for f in formats(slot, k):
        check(slot, f, 2, 2, ISAS)
        for m, units in [(1, 3), (7, 2), (11, 3)]:
            check(slot, f, m, units, ISAS[1:])
        check(slot, f, 3, 8, ISAS[-2:])


@pytest.mark.parametrize("slot", GROUPED)
@pytest.mark.parametrize("k", [37, 300, 778])
def test_grouped_shapes(slot: str, k: int) -> None:
    """Short last groups, K no multiple of 8; rows around the tiles' sizes, every granule."""
    for f in formats(slot, k):
        if (f.group, f.scale_type) not in [(32, ref.F16), (128, ref.F32), (256, ref.F32)]:
            continue
        for m in (*range(1, 10), 13, 16, 33):
            check(slot, f, m, 1 + m % 3, ISAS[1:])
        for units in range(1, 9):
            check(slot, f, 7, units, ISAS[1:])


@pytest.mark.parametrize("slot", GROUPED)
@pytest.mark.parametrize("k", [256, 512, 1536])
def test_nested_scales(slot: str, k: int) -> None:
    """Scales that are products: every granule, rows around the tiles' sizes."""
    for f in nested(slot, k):
        check(slot, f, 2, 2, ISAS)
        for m, units in [(1, 3), (4, 1), (5, 2), (8, 1), (9, 5), (13, 8), (33, 3)]:
            check(slot, f, m, units, ISAS[1:])


@pytest.mark.parametrize("slot", GROUPED)
def test_nested_scales_of_long_rows(slot: str) -> None:
    """More groups than are multiplied out at once; the same bits for any M."""
    act = ref.PRODUCTS[slot][1]
    for f in nested(slot, 4864):
        for m, units in [(1, 2), (6, 3), (40, 3)]:
            check(slot, f, m, units, ISAS[1:])
        data, x = make_weight(f, 3), make_rows(40, f.K)
        for isa in ISAS[1:]:
            full = gemm(isa, f, data, x, act)
            for m in (1, 2, 5, 7, 8, 9, 24):
                got = gemm(isa, f, data, x[:m], act)
                np.testing.assert_array_equal(got, full[:m], err_msg=f"{isa} {f} {m}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("slot", GROUPED)
def test_nested_scales_are_their_products(isa: str, slot: str) -> None:
    """The same bits as with the products stored as fp32."""
    act, quick = ref.PRODUCTS[slot][1], isa == "scalar"
    for f in nested(slot, 512 if quick else 2304):
        data = make_weight(f, 2)
        plain = ref.Format(f.pack, f.K, ref.F32, f.has_offset, f.group)
        stored = ref.write_codes(plain, *ref.read_codes(f, data))
        for m in (1, 3) if quick else (1, 5, 8, 13):
            x = make_rows(m, f.K)
            want = gemm(isa, plain, stored, x, act)
            np.testing.assert_array_equal(gemm(isa, f, data, x, act), want, err_msg=f"{f} {m}")
        for row in (0, 33):
            assert core.unpack(isa, data, f.asdict(), row) == core.unpack(
                isa, stored, plain.asdict(), row
            )


@pytest.mark.parametrize("slot", ref.PRODUCTS)
def test_long_rows(slot: str) -> None:
    """K blocks: the weights of a unit no longer fit the first-level caches."""
    k = 4864 + 40
    groups = {32: ref.F16, 128: ref.F32, 256: ref.F32, 0: ref.F32}
    for f in formats(slot, k):
        if groups.get(f.group) == f.scale_type:
            for m, units in [(1, 2), (6, 3), (40, 3)]:
                check(slot, f, m, units, ISAS[1:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("slot", ref.PRODUCTS)
def test_bits_do_not_depend_on_the_batch(isa: str, slot: str) -> None:
    """Every M in 1..40, 64, 100 and 512, alone or in any granule, gives each row the same bits."""
    act = ref.PRODUCTS[slot][1]
    quick = isa == "scalar"
    for k in (172,) if quick else (172, 2080):
        for f in formats(slot, k):
            odd = (f.scale_type == ref.F16) == bool(f.has_offset)
            if f.group in (16, 64, 256) and odd and not f.row_scale:
                continue
            data, x = make_weight(f, 3), make_rows(40 if quick else 512, k)
            if (f.group not in (0, 32) and not f.row_scale) or k > 172:
                x = x[:40]
            alone = np.vstack([gemm(isa, f, data, x[i : i + 1], act) for i in range(40)])
            full = gemm(isa, f, data, x, act)
            np.testing.assert_array_equal(full[:40], alone, err_msg=str(f))
            for m in (*range(1, 41), 64, 100):
                if m <= len(x):
                    part = gemm(isa, f, data, x[:m], act, 1 + m % 3)
                    np.testing.assert_array_equal(part, full[:m], err_msg=f"{f} M={m}")


@pytest.mark.parametrize("act", ["i8", "i8x2"])
@pytest.mark.parametrize("slot", INTEGER)
@pytest.mark.parametrize("k", [1, 40, 172, 576, 1536])
def test_integer_products_agree_between_levels(slot: str, k: int, act: str) -> None:
    for f in formats(slot, k):
        data, x = make_weight(f, 2), make_rows(10, k)
        want = gemm("scalar", f, data, x, act)
        for isa in ISAS[1:]:
            got = gemm(isa, f, data, x, act)
            np.testing.assert_array_equal(got, want, err_msg=f"{isa} {f}")


@pytest.mark.parametrize("slot", INTEGER)
@pytest.mark.parametrize("k", [1, 172, 512])
def test_products_of_two_lanes(slot: str, k: int) -> None:
    """Against the sum of both lanes, and against the rows themselves: 15 bits of a group's largest
    value are left."""
    for f in formats(slot, k):
        compare("i8x2", f, (2, 2), ISAS[:1])
        for shape in [(1, 3), (4, 2), (5, 8), (33, 1)]:
            compare("i8x2", f, shape, ISAS[1:])
        data, x = make_weight(f, 2), make_rows(6, k)
        largest = np.zeros(x.shape)
        for k0, k1 in f.spans():
            largest[:, k0:k1] = np.abs(x[:, k0:k1]).max(axis=1, keepdims=True)
        exact = x @ ref.unit_values(f, data).T
        limit = 2.0**-15 * largest @ np.abs(ref.unit_values(f, data)).T
        _, scale = ref.gemm(f, data, x, "f32")
        error = np.abs(gemm(ISAS[-1], f, data, x, "i8x2") - exact)
        assert (error <= limit + 1e-5 * scale).all(), f


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("slot", INTEGER)
def test_bits_of_two_lanes_do_not_depend_on_the_batch(isa: str, slot: str) -> None:
    for f in formats(slot, 512):
        if f.group not in (32, 256):
            continue
        data, x = make_weight(f, 3), make_rows(20 if isa == "scalar" else 300, f.K)
        full = gemm(isa, f, data, x, "i8x2")
        for m in (1, 2, 3, 4, 5, 7, 8, 12, 20, 129):
            part = gemm(isa, f, data, x[:m], "i8x2", 1 + m % 3)
            np.testing.assert_array_equal(part, full[:m], err_msg=f"{f} M={m}")


@pytest.mark.parametrize("slot", INTEGER)
def test_integer_products_do_not_saturate(slot: str) -> None:
    """The largest codes of one sign everywhere: 16-bit partial sums must not clip."""
    for f in formats(slot, 256):
        for code in (0, (1 << ref.BITS[f.pack]) - 1):
            codes = np.full((64, f.K), code, np.uint8)
            scale = np.ones((64, -(-f.K // f.group)), np.float32)
            data = ref.write_codes(f, codes, scale, 0 * scale)
            x = np.full((7, f.K), -1.0, np.float32)
            x[1], x[2, ::2] = 1.0, 1.0
            want, _ = ref.gemm(f, data, x, "i8")
            for isa in ISAS:
                got = gemm(isa, f, data, x, "i8")
                np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=f"{isa} {f}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("slot", GROUPED)
def test_every_code(isa: str, slot: str) -> None:
    """One code at a time against a unit row: the decoding of each code is exact."""
    act = ref.PRODUCTS[slot][1]
    for f in formats(slot, 256):
        if f.group != 32 or f.scale_type != ref.F32:
            continue
        top = 1 << ref.BITS[f.pack]
        codes = ((np.arange(256)[None, :] + 8 * np.arange(32)[:, None]) % top).astype(np.uint8)
        scale = np.ones((32, 8), np.float32)
        if f.pack == ref.PACK_F8:
            codes[codes & 127 == 127] = 0
        data = ref.write_codes(f, codes, scale, scale)
        x = np.zeros((256, 256), np.float32)
        np.fill_diagonal(x, 127.0)
        got = gemm(isa, f, data, x, act)
        want = 127.0 * (f.values(codes).T + f.has_offset)
        np.testing.assert_array_equal(got, want, err_msg=str(f))


@pytest.mark.parametrize("isa", ISAS)
def test_special_values_pass_through(isa: str) -> None:
    """NaN and infinity in a row come out in that row, and in no other."""
    products = [(slot, act) for slot, (_, act) in ref.PRODUCTS.items()]
    for slot, act in [*products, *((slot, "i8x2") for slot in INTEGER)]:
        f = next(formats(slot, 96))
        data, x = make_weight(f, 2), make_rows(12, 96).copy()
        clean = gemm(isa, f, data, x, act)
        x[3, 5] = np.nan
        x[7, 95] = np.inf
        got = gemm(isa, f, data, x, act)
        assert np.isnan(got[3]).all(), slot
        assert not np.isfinite(got[7]).any(), slot
        others = [i for i in range(12) if i not in (3, 7)]
        np.testing.assert_array_equal(got[others], clean[others], err_msg=slot)


# ---- activation rows ---------------------------------------------------------------------------


def read_meta(meta: bytes, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    raw = np.frombuffer(meta, np.uint32).reshape(rows, -1, 4)
    scale, total = raw[:, :, 0].view(np.float32), raw[:, :, 1].view(np.float32)
    return scale, total, raw[:, :, 2].view(np.int32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 8, 15, 16, 31, 33, 64, 172, 576, 577])
def test_bf16_rows(isa: str, k: int) -> None:
    x = make_rows(6, k).copy()
    x[0, :1] = 1e-40  # subnormals are kept
    for group in (0, 16, 32, 64, 128, 256):
        data, pitch, meta = core.act_rows(isa, "bf16", x, k, group)
        rows = np.frombuffer(data, np.uint16).reshape(6, pitch // 2)
        np.testing.assert_array_equal(rows[:, :k], ref.bf16_round(x))
        padded = -(-k // 32) * 32
        assert not rows[:, k:padded].any()
        assert (rows[:, padded:] == 0xFFFF).all(), "wrote beyond the padding"
        if group:
            scale, total, isum = read_meta(meta, 6)
            assert (scale == 1).all()
            assert not isum.any()
            values = ref.act_values("bf16", x, group)
            want = ref.group_sums(values, group)
            limit = 1e-6 * ref.group_sums(np.abs(values), group)
            assert (np.abs(total - want) <= limit).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 8, 15, 16, 31, 33, 64, 172, 576, 577])
def test_int8_rows(isa: str, k: int) -> None:
    x = make_rows(6, k).copy()
    x[1] = 1e-39  # counts as zero
    for group in (16, 32, 64, 128, 256):
        data, pitch, meta = core.act_rows(isa, "i8", x, k, group)
        rows = np.frombuffer(data, np.int8).reshape(6, pitch)
        padded = -(-k // 64) * 64
        q, want_scale = ref.act_i8(x, group)
        natural = np.zeros((6, padded), np.int8)
        natural[:, :k] = q
        stored = natural.reshape(6, -1, 8)[:, :, ref.ORDER8].reshape(6, padded)
        np.testing.assert_array_equal(rows[:, :padded], stored)
        assert (rows[:, padded:] == -1).all(), "wrote beyond the padding"
        scale, total, isum = read_meta(meta, 6)
        np.testing.assert_array_equal(scale, want_scale)
        np.testing.assert_array_equal(isum, ref.group_sums(q.astype(np.int32), group))
        np.testing.assert_array_equal(total, scale * isum.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 8, 15, 16, 31, 33, 64, 172, 576, 577])
def test_rows_of_two_lanes(isa: str, k: int) -> None:
    """The first lane is the row of test_int8_rows, the second what it leaves."""
    x = make_rows(6, k).copy()
    x[1], x[2] = 1e-39, np.float32(1.2e-36)  # counts as zero; just does not
    for group in (16, 32, 64, 128, 256):
        data, pitch, meta = core.act_rows(isa, "i8x2", x, k, group)
        rows = np.frombuffer(data, np.int8).reshape(6, 2, pitch)
        padded = -(-k // 64) * 64
        q, want_scale = ref.act_lanes(x, group)
        natural = np.zeros((6, 2, padded), np.int8)
        natural[:, :, :k] = q.transpose(1, 0, 2)
        stored = natural.reshape(6, 2, -1, 8)[..., ref.ORDER8].reshape(6, 2, padded)
        np.testing.assert_array_equal(rows[:, :, :padded], stored)
        assert (rows[:, :, padded:] == -1).all(), "wrote beyond the padding"
        one, pitch, first = core.act_rows(isa, "i8", x, k, group)
        np.testing.assert_array_equal(rows[:, 0], np.frombuffer(one, np.int8).reshape(6, pitch))
        groups = -(-k // group)
        scale, total, isum = (part.reshape(6, 2, groups) for part in read_meta(meta, 12))
        for part, want in zip((scale, total, isum), read_meta(first, 6), strict=True):
            np.testing.assert_array_equal(part[:, 0], want)
        np.testing.assert_array_equal(scale, want_scale.transpose(1, 0, 2))
        sums = np.stack([ref.group_sums(lane.astype(np.int32), group) for lane in q], axis=1)
        np.testing.assert_array_equal(isum, sums)
        np.testing.assert_array_equal(total, scale * isum.astype(np.float32))


@pytest.mark.parametrize("act", ["bf16", "i8", "i8x2"])
def test_rows_agree_between_levels(act: str) -> None:
    for k in (5, 172, 1000):
        x = make_rows(9, k).copy()
        x[2, 0], x[3, k - 1] = np.nan, -np.inf
        for group in (16, 32, 64, 128, 256):
            want = core.act_rows("scalar", act, x, k, group)
            for isa in ISAS[1:]:
                assert core.act_rows(isa, act, x, k, group) == want, (isa, k, group)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("slot", ref.PRODUCTS)
def test_unpacked_rows(isa: str, slot: str) -> None:
    for k in (1, 172, 577):
        for f in formats(slot, k):
            data = make_weight(f, 2)
            want = ref.unit_values(f, data)
            for row in (0, 31, 45):
                got = np.frombuffer(core.unpack(isa, data, f.asdict(), row), np.float32)
                np.testing.assert_allclose(got, want[row], rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("isa", ISAS)
def test_e4m3_codes(isa: str) -> None:
    """Every code, NaN included, is unpacked to its value."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (32, 1))
    f = ref.Format(ref.PACK_F8, 256, ref.F32, 0, 256, row_scale=1)
    data = ref.write_codes(f, codes, np.ones((32, 1)), np.zeros((32, 1)))
    got = np.frombuffer(core.unpack(isa, data, f.asdict(), 7), np.float32)
    np.testing.assert_array_equal(got, ref.F8_VALUES)


@pytest.mark.parametrize("isa", ISAS)
def test_e4m3_rounding(isa: str) -> None:
    """Nearest code, ties to even, 448 beyond: around every value and every middle of two."""

    def encode(x: np.ndarray) -> np.ndarray:
        codes = np.empty(len(x), np.uint8)
        core.fp8_encode(isa, False, x, np.ones(1, np.float32), codes)
        return codes

    every = ref.F8_VALUES.astype(np.float32)
    assert encode(every).tolist() == list(range(256))
    values = every[:127]
    middles = (values[1:] + values[:-1]) / 2
    np.testing.assert_array_equal(encode(middles), np.arange(1, 127) & ~1)
    for side, least in ((-np.inf, 0), (np.inf, 1)):
        near = encode(np.nextafter(middles, np.float32(side)))
        np.testing.assert_array_equal(near, np.arange(126) + least)
    x = np.arange(0, 1 << 32, 1 << 12, dtype=np.uint32).view(np.float32)  # all sizes, both signs
    x = x[np.abs(x) <= 460]
    got = ref.F8_VALUES[encode(x)]
    at = np.searchsorted(middles, np.abs(x))
    np.testing.assert_allclose(np.abs(got), values[at], rtol=0.13, atol=2**-9)
    assert (np.signbit(got) == np.signbit(x)).all()
    ties = np.isin(np.abs(x), middles)
    np.testing.assert_array_equal(np.abs(got)[~ties], values[at][~ties])
    far = np.array([448, 464, 465, 1e9, np.inf, -1e9], np.float32)
    np.testing.assert_array_equal(ref.F8_VALUES[encode(far)], [448] * 5 + [-448])
    assert set(encode(np.array([np.nan, -np.nan], np.float32)).tolist()) <= {0x7F, 0xFF}


# ---- probes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("streams", [1, 2, 4, 8])
@pytest.mark.parametrize("ahead", [0, 1024, -1024])
def test_read_probe_reads_everything(isa: str, streams: int, ahead: int) -> None:
    """The result depends on every byte: one set byte anywhere makes it nonzero."""
    data = np.zeros(9000, np.uint8)
    assert core.probe_read(isa, data, streams, ahead) == 0
    for at in range(0, 9000, 61):
        data[at] = 1
        assert core.probe_read(isa, data, streams, ahead) != 0, at
        data[at] = 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("what", ref.PROBES.values())
def test_peak_probes_run(isa: str, what: str) -> None:
    sink, ops = core.probe_peak(isa, what, 100)
    assert np.isfinite(sink)
    has = {"f32": True, "bf16": isa == "bf16", "int8": isa in ("vnni", "bf16")}
    assert (ops > 0) == has[what]


def test_timed_products_check_their_share() -> None:
    """What benchmarks/kernels.py calls: shares of whole matrices, on aligned units only."""
    f = ref.Format(ref.PACK_I8, 64, ref.F32, 0, 256, row_scale=1)
    units = np.frombuffer(make_weight(f, 4), np.uint8)
    room = np.zeros(len(units) + 128, np.uint8)
    start = -room.ctypes.data % 64
    data = room[start : start + len(units)]
    data[:] = units
    x = make_rows(3, 64)
    for m, share in [(3, (2, 0, 2, 1, 2)), (1, (4, 0, 1, 0, 1)), (3, (4, 1, 1, 0, 1))]:
        begin, end = core.gemm_time(ISAS[-1], data, f.asdict(), x[:m], "i8", share)
        assert 0 < begin <= end
    for share in [(2, 0, 3, 0, 1), (0, 0, 1, 0, 1), (2, -1, 1, 0, 1), (2, 0, 1, 2, 2)]:
        with pytest.raises(ValueError, match="no such share"):
            core.gemm_time(ISAS[-1], data, f.asdict(), x, "i8", share)
    with pytest.raises(ValueError, match="not aligned"):
        core.gemm_time(
            ISAS[-1], room[start + 4 :][: len(data)], f.asdict(), x, "i8", (1, 0, 1, 0, 1)
        )


# ---- arguments ---------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    f = ref.Format(ref.PACK_I4, 64, ref.F16, 0, 32)
    data, x = make_weight(f, 1), make_rows(2, 64)
    good = f.asdict()
    for args, message in [
        (("mmx", data, good, x, "i8"), "isa: mmx"),
        (("scalar", data[:-1], good, x, "i8"), "no units"),
        (("scalar", b"", good, x, "i8"), "no units"),
        (("scalar", data, {**good, "group": 48}, x, "i8"), "not a packed weight"),
        (("scalar", data, {**good, "scale_type": ref.F16_I8}, x, "i8"), "are no units of"),
        (
            ("scalar", data, {**good, "scale_type": ref.E8M0, "has_offset": 1}, x, "i8"),
            "not a packed weight",
        ),
        (
            ("scalar", data, {**good, "scale_type": ref.F16_I8, "group": 256}, x, "i8"),
            "not a packed weight",
        ),
        (
            ("scalar", data, {**good, "pack": 0, "group": 0, "scale_type": ref.F16_I8}, x, "f32"),
            "not a",
        ),
        (("scalar", data, {**good, "pack": 99}, x, "i8"), "not a packed weight"),
        (("scalar", data, {**good, "K": 0}, x, "i8"), "not a packed weight"),
        (("scalar", data, {"pack": 4}, x, "i8"), "format: scale_type"),
        (("scalar", data, good, x[:, :63].copy(), "i8"), "no rows of 64"),
        (("scalar", data, good, x, "f32"), "in groups of 32 with f32 rows"),
        (("scalar", data, good, x, "int8"), "act: int8"),
        (("scalar", data, good, x, "i8", 9), "granules of 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            core.gemm(*args)
    for bad in (x.astype(np.float64), x[:, ::2]):
        with pytest.raises((TypeError, BufferError, ValueError)):
            core.gemm("scalar", data, good, bad, "i8")
    with pytest.raises(ValueError, match="row: 32"):
        core.unpack("scalar", data, good, 32)
    with pytest.raises(ValueError, match="groups of 8"):
        core.act_rows("scalar", "i8", x, 64, 8)
    with pytest.raises(ValueError, match="streams: 3"):
        core.probe_read("scalar", data, 3, 0)
