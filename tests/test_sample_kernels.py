"""Sampling kernels: every slot, every level present, ugly sizes, against float64; NaN and ties."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import reference_rows as ref

core = pytest.importorskip("llmaccel._core")

ISAS = core.kernel_isas()
SIZES = [1, 3, 15, 16, 17, 31, 33, 100, 255, 256, 257, 4095, 4096, 4097, 49152]

each_isa = pytest.mark.parametrize("isa", ISAS)
each_size = pytest.mark.parametrize("n", SIZES)


def logits(n: int, *key: object) -> np.ndarray:
    """Unaligned, between guards that are larger than any value, so a stray read shows."""
    rng = np.random.default_rng(zlib.crc32(repr((n, *key)).encode()))
    whole = np.full(n + 74, 1e30, np.float32)
    whole[37 : 37 + n] = rng.normal(0, 4, n)
    return whole[37 : 37 + n]


@each_isa
@each_size
def test_argmax(isa: str, n: int) -> None:
    x = logits(n)
    assert core.argmax(isa, x) == ref.argmax(x)
    for at in sorted({0, n // 3, n - 1}):
        x[at] = 50
        assert core.argmax(isa, x) == (at, 50.0)
        x[at] = 0


@each_isa
@each_size
def test_argmax_takes_the_lowest_of_equals(isa: str, n: int) -> None:
    x = logits(n)
    for at in sorted({n // 5, n // 2, n - 1}):
        x[at] = 50
    assert core.argmax(isa, x) == (n // 5, 50.0)
    x[:] = -np.inf
    assert core.argmax(isa, x) == (0, -np.inf)


@each_isa
@each_size
def test_argmax_never_takes_nan(isa: str, n: int) -> None:
    x = logits(n)
    x[::2] = np.nan
    at, value = core.argmax(isa, x)
    if n > 1:
        assert (at, value) == ref.argmax(x)
    x[:] = np.nan
    at, value = core.argmax(isa, x)
    assert at == 0
    assert np.isnan(value)
    x[n - 1] = -np.inf
    assert core.argmax(isa, x) == (n - 1, -np.inf)
    x[n // 2] = -5
    assert core.argmax(isa, x) == (n // 2, -5.0)


@each_isa
@each_size
def test_sum_exp(isa: str, n: int) -> None:
    x = logits(n)
    for scale in (1.0, 0.3, 2.5):
        top = float(np.float32(x.max()) * np.float32(scale))
        want = ref.sum_exp(x, scale, top)
        np.testing.assert_allclose(core.sum_exp(isa, x, scale, top), want, rtol=1e-6)
    x[n // 2] = -np.inf
    want = ref.sum_exp(x, 2.5, top)
    np.testing.assert_allclose(core.sum_exp(isa, x, 2.5, top), want, rtol=1e-6)


@each_isa
@each_size
def test_exp_sub(isa: str, n: int) -> None:
    x = logits(n)
    whole = np.full(n + 40, 7, np.float32)
    y = whole[19 : 19 + n]
    for scale in (1.0, 0.7):
        core.exp_sub(isa, x, scale, 3.5, y)
        np.testing.assert_allclose(y, ref.exp_sub(x, scale, 3.5), rtol=2.4e-7)
        assert (whole[:19] == 7).all()
        assert (whole[19 + n :] == 7).all()
    core.exp_sub(isa, x, 0.7, 3.5, x)
    assert x.tobytes() == y.tobytes()


@each_isa
def test_exp_is_within_two_ulp(isa: str) -> None:
    x = np.linspace(-87.3, 88.3, 400_001).astype(np.float32)
    x = np.concatenate([x, np.logspace(-40, 0, 20_001), -np.logspace(-40, 0, 20_001)])
    x = x.astype(np.float32)
    y = np.empty_like(x)
    core.exp_sub(isa, x, 1.0, 0.0, y)
    want = np.exp(x.astype(np.float64))
    ulp = np.spacing(want.astype(np.float32)).astype(np.float64)
    assert (np.abs(y - want) / ulp).max() <= 1.2


@each_isa
def test_exp_at_the_ends(isa: str) -> None:
    x = np.float32([0, -0.0, -88, -104, -1e30, -np.inf, np.inf, 89, 1e30, np.nan])
    y = np.empty_like(x)
    core.exp_sub(isa, x, 1.0, 0.0, y)
    np.testing.assert_array_equal(y, np.float32([1, 1, 0, 0, 0, 0, *[np.inf] * 3, np.nan]))


@each_isa
@each_size
def test_select_above(isa: str, n: int) -> None:
    x = logits(n)
    x[n // 2] = np.nan
    for threshold in (-np.inf, -100.0, 0.0, 6.0, float(x[0]), 100.0, np.nan):
        want = ref.select_above(x, threshold)
        for cap in sorted({1, max(len(want) // 2, 1), max(len(want), 1), n + 3}):
            out = np.full(cap + 5, -1, np.int32)
            assert core.select_above(isa, x, threshold, out[:cap]) == len(want)
            kept = min(cap, len(want))
            np.testing.assert_array_equal(out[:kept], want[:kept])
            assert (out[cap:] == -1).all()


@each_isa
@each_size
def test_block_max(isa: str, n: int) -> None:
    x = logits(n)
    out = np.full(-(-n // 32) + 5, 7, np.float32)
    for value in (3.0, np.nan, -np.inf):
        x[:: 1 + n // 9] = value
        core.block_max(isa, x, out[:-5])
        np.testing.assert_array_equal(out[:-5], ref.block_max(x))
    x[:] = np.nan
    core.block_max(isa, x, out[:-5])
    assert (out[:-5] == -np.inf).all()
    assert (out[-5:] == 7).all()


@each_isa
@each_size
def test_mask(isa: str, n: int) -> None:
    x = logits(n)
    bits = np.random.default_rng(n).integers(-(2**31), 2**31, -(-n // 32)).astype(np.int32)
    whole = np.full(n + 40, 7, np.float32)
    y = whole[19 : 19 + n]
    core.mask(isa, bits, x, y)
    np.testing.assert_array_equal(y, ref.mask(bits, x))
    assert (whole[:19] == 7).all()
    assert (whole[19 + n :] == 7).all()
    core.mask(isa, bits, x, x)
    assert x.tobytes() == y.tobytes()


@each_size
def test_levels_agree_bit_for_bit(n: int) -> None:
    x = logits(n)
    top = float(x.max())
    sums = {core.sum_exp(isa, x, 0.8, top) for isa in ISAS}
    assert len(sums) == 1
    rows = []
    for isa in ISAS:
        rows.append(np.empty_like(x))
        core.exp_sub(isa, x, 0.8, top, rows[-1])
    assert len({row.tobytes() for row in rows}) == 1


def test_bad_arguments_are_named() -> None:
    x = np.ones(8, np.float32)
    with pytest.raises(TypeError, match="out: expected contiguous int32"):
        core.select_above(ISAS[0], x, 0.0, x)
    with pytest.raises(ValueError, match="y: 7 values, expected 8"):
        core.exp_sub(ISAS[0], x, 1.0, 0.0, np.ones(7, np.float32))
    with pytest.raises(ValueError, match="x: 0 values"):
        core.argmax(ISAS[0], x[:0])
