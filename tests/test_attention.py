"""Attention kernels: pages, one chunk of one kv head, joins; every level present, against float64.

K slots that hold no counted token are NaN throughout, V slots zero, as the contract allows. What
batch invariance rests on is checked bit for bit: a row's result does not depend on the rows beside
it, on its place in the tile, or on tokens after it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference_rows as ref

core = pytest.importorskip("llmaccel._core")

ISAS = core.kernel_isas()
KV = ["f32", "bf16", "i8", "f8"]
SIZES = [1, 3, 8, 16, 17, 20, 64, 72, 80, 96, 100, 128, 256]
# Of the largest value: all but f32 round probabilities to bf16. The reference has the same codes.
TOLERANCE = {"f32": 3e-6, "bf16": 6e-3, "i8": 6e-3, "f8": 6e-3}

each_isa = pytest.mark.parametrize("isa", ISAS)
each_kv = pytest.mark.parametrize("kv", KV)
each_d = pytest.mark.parametrize("d", SIZES)


def seeded(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


@dataclass
class Case:
    """Tokens of a chunk and the rows that look at them."""

    d: int
    tokens: int = 256
    first: int = 0
    window: int = 0
    softcap: float = 0.0
    loud: float = 3.0  # scores reach about this size

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        rng = seeded("kv", self.d)
        k = rng.normal(0, 1, (256, self.d)) * self.loud
        v = rng.normal(0, 1, (256, self.d))
        return k[: self.tokens].astype(np.float32), v[: self.tokens].astype(np.float32)

    def rows(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """q [n, d] and positions that never lie beyond the last token."""
        rng = seeded("q", self.d, n)
        pos = self.first + rng.integers(0, self.tokens, n)
        pos[0] = self.first + self.tokens - 1
        return rng.normal(0, 1, (n, self.d)).astype(np.float32), pos.astype(np.int32)

    @property
    def scale(self) -> float:
        return float(np.float32(self.d**-0.5))


class Pages:
    """Pages written by kv_store; K starts as NaN everywhere, V as rubbish that must be cleared."""

    def __init__(self, isa: str, kv: str, k: np.ndarray, v: np.ndarray) -> None:
        d = k.shape[1]
        self.kv, self.d, self.n = kv, d, -(-len(k) // 64)
        k_bytes, v_bytes = core.kv_page_bytes(kv, d)
        self.k = np.full((self.n, k_bytes), 0xFF, np.uint8)
        self.v = np.full((self.n, v_bytes), 0x7F, np.uint8)
        for t in range(len(k)):
            core.kv_store(isa, kv, k[t], v[t], t % 64, self.k[t // 64], self.v[t // 64])

    def attend(
        self, isa: str, case: Case, q: np.ndarray, pos: np.ndarray, pad: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r, d = q.shape
        wide = np.full((r, d + pad), np.nan, np.float32)
        wide[:, :d] = q
        m, mass = np.full(r, 9, np.float32), np.full(r, 9, np.float32)
        o = np.full((r, -(-d // 16) * 16 + pad), 9, np.float32)
        core.attend(
            isa, self.kv, wide, pos, d, self.k, self.v, self.n, case.first, case.window,
            case.scale, case.softcap, m, mass, o,
        )  # fmt: skip
        assert (o[:, -(-d // 16) * 16 :] == 9).all(), "wrote beyond its columns"
        assert (o[:, d : -(-d // 16) * 16] == 0).all(), "padding is not zero"
        return m, mass, o[:, :d].copy()


def expect(kv: str, case: Case, q: np.ndarray, pos: np.ndarray) -> tuple[np.ndarray, ...]:
    slot = getattr(ref, f"attend_{kv}")
    view = ref.View(case.first, case.window, case.scale, case.softcap)
    return slot(q, *case.keys(), pos, view)


def check(kv: str, case: Case, got: tuple[np.ndarray, ...], want: tuple[np.ndarray, ...]) -> None:
    (m, mass, o), (wm, wl, wo) = got, want
    tolerance = TOLERANCE[kv]
    none = wl == 0
    assert np.isneginf(m[none]).all()
    assert not mass[none].any()
    assert not o[none].any()
    np.testing.assert_allclose(m[~none], wm[~none], rtol=1e-5, atol=3e-5)
    lse, want_lse = m[~none] + np.log(mass[~none]), wm[~none] + np.log(wl[~none])
    np.testing.assert_allclose(lse, want_lse, atol=3e-5 if kv == "f32" else 4e-3)
    out, want_out = o[~none] / mass[~none, None], wo[~none] / wl[~none, None]
    largest = np.abs(case.keys()[1]).max()
    np.testing.assert_allclose(out, want_out, atol=tolerance * largest, rtol=0)


def run(isa: str, kv: str, case: Case, rows: int) -> None:
    q, pos = case.rows(rows)
    got = Pages(isa, kv, *case.keys()).attend(isa, case, q, pos, pad=rows % 3 * 16)
    check(kv, case, got, expect(kv, case, q, pos))


# ---- pages ---------------------------------------------------------------------------------------


@each_isa
@each_kv
@each_d
def test_kv_store_writes_the_published_layout(isa: str, kv: str, d: int) -> None:
    rng = seeded("store", d)
    k, v = rng.normal(0, 1, (2, 64, d)).astype(np.float32)
    pages = Pages(isa, kv, k, v)
    want = getattr(ref, f"kv_store_{kv}")(k, v)
    assert pages.k.tobytes() == want[0].tobytes()
    assert pages.v.tobytes() == want[1].tobytes()


@each_isa
@each_kv
def test_kv_store_clears_v_with_the_first_token_only(isa: str, kv: str) -> None:
    k, v = seeded("clear").normal(0, 1, (2, 3, 24)).astype(np.float32)
    pages = Pages(isa, kv, k, v)
    want = getattr(ref, f"kv_store_{kv}")(k, v)
    assert pages.v.tobytes() == want[1].tobytes()
    untouched = pages.k.copy()
    core.kv_store(isa, kv, k[0], v[0], 0, pages.k[0], pages.v[0])
    assert pages.k.tobytes() == untouched.tobytes()
    fresh = getattr(ref, f"kv_store_{kv}")(k[:1], v[:1])
    assert pages.v.tobytes() == fresh[1].tobytes()


@each_isa
@each_kv
def test_kv_store_of_one_half(isa: str, kv: str) -> None:
    k, v = seeded("half").normal(0, 1, (2, 2, 24)).astype(np.float32)
    pages = Pages(isa, kv, k, v)
    halves = Pages(isa, kv, k[:0], v[:0])
    halves.k, halves.v = np.full_like(pages.k, 0xFF), np.full_like(pages.v, 0x7F)
    for t in range(2):
        core.kv_store(isa, kv, k[t], None, t, halves.k, halves.v)
    assert halves.k.tobytes() == pages.k.tobytes()
    assert (halves.v == 0x7F).all()
    for t in range(2):
        core.kv_store(isa, kv, None, v[t], t, halves.k, halves.v)
    assert halves.v.tobytes() == pages.v.tobytes()
    with pytest.raises(ValueError, match="d: 0"):
        core.kv_store(isa, kv, None, None, 0, halves.k, halves.v)


# ---- one chunk -----------------------------------------------------------------------------------


@each_isa
@each_kv
@each_d
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 256])
def test_attend(isa: str, kv: str, d: int, tokens: int) -> None:
    run(isa, kv, Case(d, tokens), 7)


@each_isa
@each_kv
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 13, 64])
def test_attend_any_number_of_rows(isa: str, kv: str, rows: int) -> None:
    run(isa, kv, Case(64, 200, first=512), rows)


@each_isa
@each_kv
@pytest.mark.parametrize("window", [1, 5, 64, 65, 100, 1000])
def test_attend_window(isa: str, kv: str, window: int) -> None:
    run(isa, kv, Case(40, 250, first=256, window=window), 20)


@each_isa
@each_kv
@pytest.mark.parametrize("softcap", [2.0, 50.0])
def test_attend_softcap(isa: str, kv: str, softcap: float) -> None:
    run(isa, kv, Case(64, 130, softcap=softcap, window=90), 9)


@each_isa
@each_kv
def test_attend_scores_of_any_size(isa: str, kv: str) -> None:
    """Scores in the hundreds: most probabilities are exactly 0, and the maximum moves by pages."""
    case = Case(32, 256, loud=200.0)
    q, pos = case.rows(11)
    m, mass, o = Pages(isa, kv, *case.keys()).attend(isa, case, q, pos)
    wm, wl, wo = expect(kv, case, q, pos)
    np.testing.assert_allclose(m, wm, rtol=3e-6)
    np.testing.assert_allclose(o / mass[:, None], wo / wl[:, None], atol=2e-2)


@each_isa
@each_kv
def test_attend_rows_that_see_nothing(isa: str, kv: str) -> None:
    """Rows before the chunk and rows whose window has moved past it."""
    case = Case(48, 256, first=256, window=30)
    q, _ = case.rows(4)
    pos = np.int32([100, 600, 300, 256 + 255 + 30])
    m, mass, o = Pages(isa, kv, *case.keys()).attend(isa, case, q, pos)
    assert list(np.isneginf(m)) == [True, True, False, True]
    assert list(mass == 0) == [True, True, False, True]
    assert not o[[0, 1, 3]].any()
    check(kv, case, (m, mass, o), expect(kv, case, q, pos))


@each_isa
@each_kv
def test_attend_weights_sum_to_one(isa: str, kv: str) -> None:
    """With V all ones o equals mass: the sum is of the weights as they are multiplied.

    Pages of codes multiply the value's scale into a weight before it is rounded to bf16; their sum
    is of the weights before that.
    """
    case = Case(32, 230)
    k, v = case.keys()
    q, pos = case.rows(16)
    _, mass, o = Pages(isa, kv, k, np.ones_like(v)).attend(isa, case, q, pos)
    rounding = 2**-9 if kv in ("i8", "f8") else 2e-6
    np.testing.assert_allclose(o, np.repeat(mass[:, None], case.d, 1), rtol=rounding)


# ---- bit for bit ---------------------------------------------------------------------------------


@each_isa
@each_kv
@pytest.mark.parametrize("d", [8, 33, 64, 80, 96, 128, 256])
def test_a_row_does_not_depend_on_the_rows_beside_it(isa: str, kv: str, d: int) -> None:
    case = Case(d, 256, first=256, window=150)
    q, pos = case.rows(64)
    pages = Pages(isa, kv, *case.keys())
    m, mass, o = pages.attend(isa, case, q, pos)
    whole = np.concatenate([m[:, None], mass[:, None], o], axis=1)
    rng = seeded("subset", d)
    for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 25, 31, 48, 63, 64]:
        pick = rng.permutation(64)[:rows]
        m, mass, o = pages.attend(isa, case, q[pick], pos[pick])
        part = np.concatenate([m[:, None], mass[:, None], o], axis=1)
        assert part.tobytes() == whole[pick].tobytes(), f"{rows} rows"


@each_isa
@each_kv
@pytest.mark.parametrize("window", [0, 70])
def test_a_row_does_not_depend_on_later_tokens(isa: str, kv: str, window: int) -> None:
    """Prefill (later tokens are in the pages) and decode (they are not) give the same bits."""
    case = Case(64, 256, window=window)
    q, pos = case.rows(40)
    m, mass, o = Pages(isa, kv, *case.keys()).attend(isa, case, q, pos)
    for r in range(0, 40, 3):
        decode = replace(case, tokens=int(pos[r]) + 1)
        pages = Pages(isa, kv, *decode.keys())
        dm, dl, do = pages.attend(isa, decode, q[r : r + 1], pos[r : r + 1])
        assert (dm.tobytes(), dl.tobytes()) == (m[r : r + 1].tobytes(), mass[r : r + 1].tobytes())
        assert do.tobytes() == o[r : r + 1].tobytes(), f"position {pos[r]}"


@each_isa
@each_kv
@pytest.mark.parametrize("d", [20, 80, 256])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_pages_in_calls_of_their_own_and_any_set(isa: str, kv: str, d: int, rows: int) -> None:
    """Four pages in one call are four calls that go on, wherever the converted queries lie."""
    case = Case(d, 250, first=256, window=100, softcap=20.0)
    q, pos = case.rows(rows)
    pages = Pages(isa, kv, *case.keys())
    want = b"".join(x.tobytes() for x in pages.attend(isa, case, q, pos))
    wide = -(-d // 16) * 16
    for place in (0, 64 // rows - 1):
        m, mass = np.full((2, rows), 9, np.float32)
        o = np.full((rows, wide), 9, np.float32)
        for i in range(4):
            core.attend(
                isa, kv, q, pos, d, pages.k[i], pages.v[i], 1, case.first + 64 * i, case.window,
                case.scale, case.softcap, m, mass, o, more=i > 0, set=place,
            )  # fmt: skip
        assert m.tobytes() + mass.tobytes() + o[:, :d].tobytes() == want, place
        assert (o[:, d:] == 0).all()


@each_kv
@pytest.mark.parametrize("d", [17, 64, 128])
def test_levels_without_the_dot_agree_bit_for_bit(kv: str, d: int) -> None:
    case = Case(d, 190, softcap=20.0)
    q, pos = case.rows(9)
    results = [
        np.concatenate([x.ravel() for x in Pages(isa, kv, *case.keys()).attend(isa, case, q, pos)])
        for isa in ISAS
        if kv == "f32" or core.kernel_slots(isa)[f"attend_{kv}"] != "bf16"
    ]
    assert len(results) >= 1
    assert all(r.tobytes() == results[0].tobytes() for r in results)


@pytest.mark.parametrize("d", [1, 17, 20, 64, 80, 128, 256])
def test_integer_scores_agree_at_every_level(d: int) -> None:
    """Maximum and mass of int8 pages: exact sums, then the same fp32 operations."""
    case = Case(d, 190, softcap=20.0, window=100)
    q, pos = case.rows(9)
    results = [Pages(isa, "i8", *case.keys()).attend(isa, case, q, pos)[:2] for isa in ISAS]
    for m, mass in results:
        assert m.tobytes() == results[0][0].tobytes()
        assert mass.tobytes() == results[0][1].tobytes()


@each_isa
@pytest.mark.parametrize("kv", ["i8", "f8"])
def test_every_code_is_decoded(isa: str, kv: str) -> None:
    """Values that the codes hold exactly come back exactly: one token weighs 1 where it counts."""
    if kv == "i8":
        values = np.arange(-127, 128, dtype=np.float32)
    else:
        values = np.concatenate([ref.E4M3, -ref.E4M3]).astype(np.float32)
    values = np.append(values, np.full(-len(values) % 255 + 255, values.max(), np.float32))
    for part in values[: len(values) // 255 * 255].reshape(-1, 255):
        v = np.append(part, values.max())[None]  # the largest makes the scale 1
        k = np.zeros_like(v)
        case = Case(256, 1)
        for rows in (1, 9):
            q = np.zeros((rows, 256), np.float32)
            pos = np.zeros(rows, np.int32)
            _, mass, o = Pages(isa, kv, k, v).attend(isa, case, q, pos)
            assert (mass == 1).all()
            assert (o == v).all()


@each_isa
@pytest.mark.parametrize("kv", ["i8", "f8"])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1.0, 3e4, 1e30])
def test_scales_follow_the_token(isa: str, kv: str, size: float) -> None:
    """No value is clipped or lost, whatever the size of its token, beside tokens of other sizes."""
    d, case = 64, Case(64, 3)
    rng = seeded("sizes")
    v = (rng.normal(0, 1, (3, d)) * np.array([[1.0], [size], [1e-3]])).astype(np.float32)
    k = np.zeros((3, d), np.float32)
    k[1] = 60.0  # the row looks at the middle token alone
    q, pos = np.full((1, d), 1.0, np.float32), np.int32([2])
    _, mass, o = Pages(isa, kv, k, v).attend(isa, case, q, pos)
    bound = np.abs(v[1]).max() * (0.04 if kv == "f8" else 0.005) if size > 1e-36 else 1e-30
    np.testing.assert_allclose(o[0] / mass[0], v[1], atol=bound, rtol=0)


@each_isa
@pytest.mark.parametrize("kv", ["i8", "f8"])
def test_values_that_are_not_finite_show(isa: str, kv: str) -> None:
    v = np.ones((1, 32), np.float32)
    for bad in (np.nan, np.inf):
        v[0, 5] = bad
        case = Case(32, 1)
        q, pos = np.ones((1, 32), np.float32), np.int32([0])
        _, _, o = Pages(isa, kv, np.ones_like(v), v).attend(isa, case, q, pos)
        assert not np.isfinite(o[0, 5])


# ---- joins ---------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("d", [1, 15, 16, 80, 256])
@pytest.mark.parametrize("m2", [-3.0, 1.5, 40.0, -np.inf])
def test_attend_merge(isa: str, d: int, m2: float) -> None:
    rng = seeded("merge", d)
    o, o2 = rng.normal(0, 1, (2, d)).astype(np.float32)
    l2 = 0.0 if np.isinf(m2) else 2.5
    got, want = o.copy(), ref.attend_merge((1.5, 7.0, o), (m2, l2, o2))
    m, mass = core.attend_merge(isa, 1.5, 7.0, got, m2, l2, o2)
    assert m == want[0]
    np.testing.assert_allclose(mass, want[1], rtol=3e-7)
    np.testing.assert_allclose(got, want[2], rtol=1e-6, atol=1e-7)
    empty = np.zeros(d, np.float32)
    m, mass = core.attend_merge(isa, -np.inf, 0.0, empty, 1.5, 7.0, o)
    assert (m, mass) == (1.5, 7.0)
    assert empty.tobytes() == o.tobytes()
    none = np.zeros(d, np.float32)
    m, mass = core.attend_merge(isa, -np.inf, 0.0, none, -np.inf, 0.0, none.copy())
    assert (m, mass) == (-np.inf, 0.0)
    assert not none.any()


@each_isa
@pytest.mark.parametrize("d", [1, 15, 16, 80, 256])
def test_attend_finish(isa: str, d: int) -> None:
    o = seeded("finish", d).normal(0, 9, d).astype(np.float32)
    out = np.full(d, np.nan, np.float32)
    core.attend_finish(isa, o, 3.25, out)
    np.testing.assert_allclose(out, ref.attend_finish(o, 3.25), rtol=3e-7)
    core.attend_finish(isa, np.zeros(d, np.float32), 0.0, out)
    np.testing.assert_array_equal(out, 0)


@each_isa
@each_kv
def test_chunks_join_to_the_whole(isa: str, kv: str) -> None:
    """Three chunks of 256, merged in order and finished, are a softmax over all their tokens."""
    d, total = 64, 700
    rng = seeded("chunks")
    k, v = rng.normal(0, 2, (2, total, d)).astype(np.float32)
    q = rng.normal(0, 1, (5, d)).astype(np.float32)
    pos = np.int32([699, 10, 400, 256, 512])
    case = Case(d)
    m, mass = np.full(5, -np.inf), np.zeros(5)
    o = np.zeros((5, d), np.float32)
    for first in range(0, total, 256):
        part = slice(first, min(first + 256, total))
        pages = Pages(isa, kv, k[part], v[part])
        m2, l2, o2 = pages.attend(isa, replace(case, first=first), q, pos)
        for r in range(5):
            m[r], mass[r] = core.attend_merge(isa, m[r], mass[r], o[r], m2[r], l2[r], o2[r])
    out = np.empty_like(o)
    for r in range(5):
        core.attend_finish(isa, o[r], mass[r], out[r])
    slot = getattr(ref, f"attend_{kv}")
    _, wl, wo = slot(q, k, v, pos, ref.View(scale=case.scale))
    largest = np.abs(v).max()
    np.testing.assert_allclose(out, wo / wl[:, None], atol=TOLERANCE[kv] * largest, rtol=0)


# ---- arguments -----------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    isa = ISAS[0]
    case = Case(32, 64)
    q, pos = case.rows(3)
    pages = Pages(isa, "f32", *case.keys())
    m, mass, o = np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros((3, 32), np.float32)

    names = ["kv", "q", "pos", "d", "k", "v", "n", "first", "window"]
    good = ["f32", q, pos, 32, pages.k, pages.v, 1, 0, 0]

    def call(**changed: object) -> None:
        a = dict(zip(names, good, strict=True)) | {"m": m, "mass": mass, "o": o} | changed
        where = {"set": a.get("set", 0)}
        core.attend(isa, *(a[name] for name in names), 1.0, 0.0, a["m"], a["mass"], a["o"], **where)

    call()
    call(set=20)
    for changed, message in [
        ({"kv": "f16"}, "kv: f16 is none of f32, bf16, i8, f8"),
        ({"d": 0}, "d: 0"),
        ({"d": 257}, "d: 257"),
        ({"d": 33}, "q: 96 values"),
        ({"n": 5}, "n_pages: 5"),
        ({"n": 2}, "k_pages: 8192 bytes, expected 16384"),
        ({"first": -1}, "first: -1"),
        ({"window": -1}, "window: -1"),
        ({"v": pages.v[:, 1:].copy()}, "v_pages: 8191 bytes"),
        ({"pos": np.zeros(65, np.int32)}, "R: 65"),
        ({"set": 21}, "set: 21"),
        ({"set": -1}, "set: -1"),
        ({"pos": np.int32([1, -1, 1])}, "row_pos: -1"),
        ({"o": o[:, :31].copy()}, "o: 93 values"),
        ({"m": m[:2]}, "m: 2 values, expected 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**changed)
    with pytest.raises(TypeError, match="row_pos: expected contiguous int32"):
        call(pos=pos.astype(np.int64))
    with pytest.raises(ValueError, match="tok: 64"):
        core.kv_store(isa, "f32", q[0], q[0], 64, pages.k, pages.v)
    with pytest.raises(ValueError, match="k_page: 8192 bytes, expected 4096"):
        core.kv_store(isa, "bf16", q[0], q[0], 0, pages.k, pages.v)
