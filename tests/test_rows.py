"""Row kernels: every slot, every level present, ugly sizes, against float64.

Arrays lie unaligned between NaN guards: a read outside them poisons the result and a write outside
them is seen. Levels must agree bit for bit, since all run the same operations in the same order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import reference_rows as ref

from llmaccel import ConfigError, UnsupportedError, kernels
from llmaccel import _core as core

ISAS = core.kernel_isas()
SIZES = [1, 3, 15, 16, 17, 31, 33, 100, 257, 4097, 49152]
ACTS = ["silu", "gelu", "gelu_tanh", "relu", "clip"]
GUARD = 37  # odd: what lies between is not aligned

each_isa = pytest.mark.parametrize("isa", ISAS)
each_size = pytest.mark.parametrize("n", SIZES)


def seeded(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


class Guarded:
    """A copy of x between NaN guards; `check` fails where the guards were written."""

    def __init__(self, x: np.ndarray) -> None:
        self.all = np.full(len(x) + 2 * GUARD, np.nan, np.float32)
        self.x = self.all[GUARD : GUARD + len(x)]
        self.x[:] = x
        self.before = self.all.copy()

    def check(self) -> np.ndarray:
        for part in (slice(0, GUARD), slice(GUARD + len(self.x), None)):
            same = self.all[part].view(np.uint32) == self.before[part].view(np.uint32)
            assert same.all(), "wrote outside its array"
        return self.x


def normal(n: int, *key: object, scale: float = 1.0) -> np.ndarray:
    return (seeded(n, *key).normal(0, 1, n) * scale).astype(np.float32)


def guarded(n: int, *key: object, scale: float = 1.0) -> Guarded:
    return Guarded(normal(n, *key, scale=scale))


def assert_close(got: np.ndarray, want: np.ndarray, rtol: float, atol: float = 0.0) -> None:
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=rtol, atol=atol)


def same_bits(run: Callable[[str], np.ndarray]) -> None:
    first = run(ISAS[0])
    for isa in ISAS[1:]:
        assert run(isa).tobytes() == first.tobytes(), f"{isa} differs from {ISAS[0]}"


@each_isa
@each_size
def test_rms_norm(isa: str, n: int) -> None:
    x, w, y = guarded(n, "x", scale=3), guarded(n, "w"), guarded(n, "y")
    kernels.rms_norm(x.x, w.x, 1e-5, out=y.x, isa=isa)
    assert_close(y.check(), ref.rms_norm(x.x, w.x, 1e-5), 1e-6)
    kernels.rms_norm(x.x, w.x, 1e-5, out=x.x, isa=isa)
    np.testing.assert_array_equal(x.check(), y.x)


@each_isa
def test_rms_norm_of_zeros_is_zero(isa: str) -> None:
    y = np.full(40, 7, np.float32)
    kernels.rms_norm(np.zeros(40, np.float32), np.ones(40, np.float32), 1e-6, out=y, isa=isa)
    np.testing.assert_array_equal(y, 0)


@each_isa
@each_size
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(isa: str, n: int, bias: bool) -> None:
    x, w, b, y = (guarded(n, key) for key in "xwby")
    x.x += 5  # a mean that a one-pass variance would lose digits to
    kernels.layer_norm(x.x, w.x, b.x if bias else None, 1e-5, out=y.x, isa=isa)
    want = ref.layer_norm(x.x, w.x, b.x if bias else None, 1e-5)
    assert_close(y.check(), want, 4e-6, 8e-6)


@each_isa
@each_size
def test_add_scaled_and_add(isa: str, n: int) -> None:
    x, y = guarded(n, "x"), guarded(n, "y")
    want = ref.add_scaled(x.x, 0.3, y.x)
    kernels.add(x.x, y.x, 0.3, out=y.x, isa=isa)
    assert_close(y.check(), want, 1e-6, 1e-7)
    want = ref.add(x.x, y.x)
    kernels.add(x.x, y.x, out=y.x, isa=isa)
    assert_close(y.check(), want, 1e-6, 1e-7)
    want = ref.add_scaled(x.x, -0.5, x.x)
    core.add_scaled(isa, x.x, -0.5, x.x)
    assert_close(x.check(), want, 1e-6)


@each_isa
@each_size
@pytest.mark.parametrize("act", ACTS)
def test_act(isa: str, n: int, act: str) -> None:
    x, up, y = guarded(n, "x", scale=3), guarded(n, "up"), guarded(n, "y")
    kernels.act(x.x, act, out=y.x, isa=isa)
    assert_close(y.check(), ref.act(act, x.x), 1e-6, 1e-9)
    kernels.act_mul(x.x, up.x, act, out=y.x, isa=isa)
    assert_close(y.check(), ref.act_mul(act, x.x, up.x), 1e-6, 1e-9)
    kernels.act_mul(x.x, up.x, act, out=x.x, isa=isa)
    np.testing.assert_array_equal(x.check(), y.x)


@each_isa
@pytest.mark.parametrize("act", ACTS)
def test_act_over_the_whole_range(isa: str, act: str) -> None:
    """Relative 1e-6 where a model can notice; below -3 the argument of exp is itself rounded."""
    x = np.linspace(-90, 90, 200_003).astype(np.float32)
    x = np.concatenate([x, np.float32([0, -0.0, 1e-30, -1e-30, 3e4, -3e4, 1e30, -1e30])])
    y = np.empty_like(x)
    kernels.act(x, act, out=y, isa=isa)
    want = ref.act(act, x)
    assert_close(y[x > -3], want[x > -3], 1e-6)
    assert_close(y[x <= -3], want[x <= -3], 2e-5, 1e-36)


@each_isa
def test_act_keeps_nan(isa: str) -> None:
    x = np.full(20, np.nan, np.float32)
    for act in ACTS:
        y = np.zeros_like(x)
        kernels.act(x, act, out=y, isa=isa)
        assert np.isnan(y).all(), act


@each_isa
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [1, 2, 7, 8, 9, 16, 20, 32, 33, 64, 128])
@pytest.mark.parametrize("rest", [0, 1, 16])
def test_rope(isa: str, half: int, rest: int, interleaved: bool) -> None:
    angle = seeded(half).uniform(-9, 9, half)
    x = guarded(2 * half + rest, "rope")
    cos, sin = Guarded(np.cos(angle)), Guarded(np.sin(angle))
    want = ref.rope(x.x, cos.x, sin.x, interleaved)
    head = x.x.reshape(1, 1, -1)
    kernels.rope(head, cos.x[None], sin.x[None], interleaved=interleaved, out=head, isa=isa)
    assert_close(x.check(), want, 1e-6, 3e-7)
    np.testing.assert_array_equal(x.x[2 * half :], want[2 * half :])


@each_isa
@each_size
@pytest.mark.parametrize("cap", [0.0, 30.0, 50.0])
def test_softcap(isa: str, n: int, cap: float) -> None:
    x = guarded(n, "x", scale=40)
    want = ref.softcap(x.x, 0.7, cap)
    kernels.softcap(x.x, cap, 0.7, out=x.x, isa=isa)
    assert_close(x.check(), want, 1e-6)


@each_isa
def test_softcap_is_accurate_near_zero_and_saturates(isa: str) -> None:
    x = np.concatenate([np.logspace(-30, 2, 20_001), -np.logspace(-30, 2, 20_001)])
    x = np.concatenate([x.astype(np.float32), np.float32([0, np.inf, -np.inf, 1e30, -1e30])])
    y = x.copy()
    kernels.softcap(y, 2.0, out=y, isa=isa)
    assert_close(y, 2 * np.tanh(x.astype(np.float64) / 2), 6e-7)


@each_size
def test_levels_agree_bit_for_bit(n: int) -> None:
    x, w, b = normal(n, "x", scale=4), normal(n, "w"), normal(n, "b")
    half = max(n // 2 % 129, 1)
    angle = normal(half, "angle")

    def run(isa: str) -> np.ndarray:
        out = []
        for call in (
            lambda y: kernels.rms_norm(x, w, 1e-6, out=y, isa=isa),
            lambda y: kernels.layer_norm(x, w, b, 1e-6, out=y, isa=isa),
            lambda y: kernels.add(x, y, 0.1, out=y, isa=isa),
            lambda y: kernels.add(x, y, out=y, isa=isa),
            lambda y: kernels.softcap(y, 5.0, 3.0, out=y, isa=isa),
            lambda y: kernels.softcap(y, 0.0, 3.0, out=y, isa=isa),
            *(lambda y, act=act: kernels.act(x, act, out=y, isa=isa) for act in ACTS),
            *(lambda y, act=act: kernels.act_mul(x, b, act, out=y, isa=isa) for act in ACTS),
        ):
            out.append(w.copy())
            call(out[-1])
        turn = np.cos(angle)[None], np.sin(angle)[None]
        for interleaved in (False, True):
            head = normal(2 * half, "r").reshape(1, 1, -1)
            out.append(np.asarray(kernels.rope(head, *turn, interleaved=interleaved, isa=isa)))
            out[-1] = out[-1].reshape(-1)
        return np.concatenate(out)

    same_bits(run)


@each_isa
def test_an_element_does_not_depend_on_its_lane(isa: str) -> None:
    x = normal(100, "x", scale=5)
    for act in ACTS:
        whole = np.empty_like(x)
        kernels.act(x, act, out=whole, isa=isa)
        for start, stop in ((1, 2), (3, 20), (17, 100), (50, 53)):
            part = np.empty(stop - start, np.float32)
            kernels.act(x[start:stop], act, out=part, isa=isa)
            assert part.tobytes() == whole[start:stop].tobytes()


def test_every_slot_has_its_reference() -> None:
    slots = core.kernel_slots(ISAS[0])
    for slot in ref.ROW_SLOTS:
        assert slot in slots
        assert callable(getattr(ref, slot))


def test_bad_arguments_are_named() -> None:
    x = np.ones(8, np.float32)
    fixed = x.copy()
    fixed.flags.writeable = False
    with pytest.raises(ConfigError, match="isa: 'sse9'"):
        kernels.add(x, x, isa="sse9")
    with pytest.raises(ConfigError, match=r"weight: expected \[8\], got \[7\]"):
        kernels.rms_norm(x, x[:7])
    with pytest.raises(ConfigError, match="out: is read-only"):
        kernels.act(x, out=fixed)
    with pytest.raises(ConfigError, match="y: expected F32, F16 or BF16, got F64"):
        kernels.add(x, x.astype(np.float64))
    with pytest.raises(ConfigError, match="x: must be row-major"):
        kernels.act(np.ones((8, 2), np.float32)[:, 0])
    with pytest.raises(ConfigError, match="kind: 'swish'"):
        kernels.act(x, "swish")
    with pytest.raises(ConfigError, match=r"cos: expected \[1, up to 4\]"):
        kernels.rope(x.reshape(1, 1, 8), x[None, :5], x[None, :5])
    with pytest.raises(UnsupportedError, match="x: dtype complex64"):
        kernels.act(x.astype(np.complex64))


def test_the_core_checks_what_it_is_given() -> None:
    """The functions behind the wrappers take nothing on trust either."""
    x, isa = np.ones(8, np.float32), ISAS[0]
    fixed = x.copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="isa: sse9"):
        core.add("sse9", x, x)
    with pytest.raises(ValueError, match=r"x: 8 values are no rows of 7"):
        core.rms_norm(isa, x, x[:7], 1e-5, x)
    with pytest.raises(ValueError, match="y: is read-only"):
        core.add(isa, x, fixed)
    with pytest.raises(TypeError, match="b: expected contiguous float32"):
        core.add(isa, x.astype(np.float64), x)
    with pytest.raises((BufferError, ValueError), match="contiguous"):
        core.add(isa, np.ones((8, 2), np.float32)[:, 0], x)
    with pytest.raises(ValueError, match="act: swish"):
        core.act(isa, "swish", x, x)
    with pytest.raises(ValueError, match="cos: 5 values for 1 tokens of 8"):
        core.rope(isa, x, x[:5], x[:5], 1, 8, False)
    for heads, d in ((0, 8), (1, 0), (2**30, 2**30), (3, 3), (-1, -8)):
        with pytest.raises(ValueError, match=r"heads|d:|x:"):
            core.rope(isa, x, x[:4], x[:4], heads, d, False)
    with pytest.raises(ValueError, match="b: 0 values"):
        core.add(isa, x[:0], x[:0])
