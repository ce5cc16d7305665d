"""Attention over latents (MLA): pages, one chunk, whole sequences; every level, against float64.

Slots of tokens that no row counts are NaN throughout, as the contract allows. The specification of
a layer is the expanded form (reference.latent_attention); here the absorbed one is held against it,
and bit for bit against itself whatever rows, chunks and threads. test_models.py runs the families.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import reference
import reference_rows as ref

from llmaccel import kernels
from llmaccel.errors import ConfigError, UnsupportedError

core = pytest.importorskip("llmaccel._core")

ISAS = core.kernel_isas()
FORMS = {"F32": "f32", "BF16": "bf16", "fp8": "f8"}
SIZES = [(512, 64), (4, 2), (36, 12), (132, 10), (256, 32), (20, 6)]
TOLERANCE = {"F32": 3e-6, "BF16": 6e-3, "fp8": 6e-3}  # of the largest value: rounded probabilities

each_isa = pytest.mark.parametrize("isa", ISAS)
each_form = pytest.mark.parametrize("form", FORMS)
each_size = pytest.mark.parametrize(("r", "p"), SIZES)


def normal(*shape: int, key: object = 0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(repr((shape, key)).encode()))
    return (rng.standard_normal(shape) * scale).astype(np.float32)


class Pages:
    """Pages of a chunk; what is not written is NaN."""

    def __init__(self, isa: str, form: str, latent: np.ndarray, key: np.ndarray) -> None:
        self.form, self.r, self.p = form, latent.shape[1], key.shape[1]
        self.n = -(-len(latent) // 64)
        self.data = np.full((self.n, core.mla_page_bytes(form, self.r, self.p)), 0xFF, np.uint8)
        for t in range(len(latent)):
            self.store(isa, latent[t], key[t], t)

    def store(self, isa: str, latent: np.ndarray, key: np.ndarray, t: int) -> None:
        page = self.data[t // 64]
        core.mla_store(isa, self.form, latent, key, self.r, self.p, t % 64, page)

    def attend(self, isa: str, q: np.ndarray, pos: np.ndarray, first: int = 0, scale: float = 0.1):
        n, d = q.shape
        m, mass = np.full((2, n), 9, np.float32)
        o = np.full((n, -(-d // 16) * 16), 9, np.float32)
        core.mla_attend(
            isa, self.form, q, pos, self.r, self.p, self.data, self.n, first, scale, m, mass, o
        )
        return m, mass, o[:, : self.r].copy()


def chunk(r: int, p: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    return normal(256, r, key="latent")[:tokens], normal(256, p, key="key", scale=3.0)[:tokens]


def rows(n: int, r: int, p: int, tokens: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    pos = first + np.random.default_rng(n).integers(0, tokens, n)
    pos[0] = first + tokens - 1
    return normal(n, r + p, key="q"), pos.astype(np.int32)


# ---- pages ---------------------------------------------------------------------------------------


def test_cache_bytes_are_exact() -> None:
    """DeepSeek's sizes: 576 values, or 512 codes, four scales and 64 bf16 values, once a token."""
    assert core.mla_page_bytes("F32", 512, 64) == 64 * 4 * (512 + 64)
    assert core.mla_page_bytes("BF16", 512, 64) == 64 * 2 * (512 + 64)
    assert core.mla_page_bytes("fp8", 512, 64) == 64 * 656
    assert kernels.LatentPages(512, 64, max_tokens=130, dtype="fp8").nbytes == 3 * 64 * 656


@each_isa
@each_form
@each_size
def test_pages_have_the_published_layout(isa: str, form: str, r: int, p: int) -> None:
    latent, key = normal(64, r), normal(64, p)
    want = getattr(ref, f"mla_store_{FORMS[form]}")(latent, key)
    assert Pages(isa, form, latent, key).data.tobytes() == want.tobytes()
    backwards = Pages(isa, form, latent[:1], key[:1])
    for t in range(63, -1, -1):  # slots are written in any order: nothing is cleared
        backwards.store(isa, latent[t], key[t], t)
    assert backwards.data.tobytes() == want.tobytes()


# ---- one chunk -----------------------------------------------------------------------------------


@each_isa
@each_form
@each_size
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 256])
def test_attend(isa: str, form: str, r: int, p: int, tokens: int) -> None:
    latent, key = chunk(r, p, tokens)
    q, pos = rows(7, r, p, tokens, first=512)
    scale = float(np.float32((r + p) ** -0.5))
    m, mass, o = Pages(isa, form, latent, key).attend(isa, q, pos, 512, scale)
    slot = getattr(ref, f"mla_attend_{FORMS[form]}")
    wm, wl, wo = slot(q, latent, key, pos, ref.View(first=512, scale=scale))
    np.testing.assert_allclose(m, wm, rtol=1e-5, atol=3e-5)
    out = o / mass[:, None]
    np.testing.assert_allclose(
        out, wo / wl[:, None], atol=TOLERANCE[form] * np.abs(latent).max(), rtol=0
    )


@each_isa
def test_fp8_pages_are_near_what_was_stored(isa: str) -> None:
    """Within 2 % where tokens have something in common, as those of a text do.

    Latents of noise alone are the worst case, since nothing in a sum outgrows its errors: in the
    mean these are 2.6 % of what a code stands for, whatever its scale.
    """
    noise, key = chunk(512, 64, 256)
    common = normal(512, key="common")
    for shared, bound in ((1.0, 0.02), (0.0, 0.032)):
        latent = noise + np.float32(shared) * common
        for loud in (0.2, 1.0):
            q, pos = rows(16, 512, 64, 256)
            q *= np.float32(loud)
            _, mass, o = Pages(isa, "fp8", latent, key).attend(isa, q, pos, 0, 576**-0.5)
            _, wl, wo = ref.mla_attend_f32(q, latent, key, pos, ref.View(scale=576**-0.5))
            off, want = o / mass[:, None] - wo / wl[:, None], wo / wl[:, None]
            assert np.linalg.norm(off) <= bound * np.linalg.norm(want), (shared, loud)


@each_isa
@each_form
def test_weights_sum_to_one(isa: str, form: str) -> None:
    """With latents all 448 and keys alone looked at, what is found is 448."""
    _, key = chunk(512, 64, 230)
    q, pos = rows(16, 512, 64, 230)
    q[:, :512] = 0
    latent = np.full((230, 512), 448, np.float32)
    _, mass, o = Pages(isa, form, latent, key).attend(isa, q, pos)
    np.testing.assert_allclose(o / mass[:, None], 448, rtol=2e-6)


# ---- bit for bit ---------------------------------------------------------------------------------


@each_isa
@each_form
@pytest.mark.parametrize(("r", "p"), [(512, 64), (36, 12)])
def test_a_row_does_not_depend_on_the_rows_beside_it(isa: str, form: str, r: int, p: int) -> None:
    latent, key = chunk(r, p, 256)
    q, pos = rows(64, r, p, 256)
    pages = Pages(isa, form, latent, key)
    m, mass, o = pages.attend(isa, q, pos)
    whole = np.concatenate([m[:, None], mass[:, None], o], axis=1)
    rng = np.random.default_rng(4)
    for n in [1, 2, 3, 4, 5, 6, 7, 13, 31, 63]:
        pick = rng.permutation(64)[:n]
        m, mass, o = pages.attend(isa, q[pick], pos[pick])
        part = np.concatenate([m[:, None], mass[:, None], o], axis=1)
        assert part.tobytes() == whole[pick].tobytes(), f"{n} rows"


@each_isa
@each_form
def test_a_row_does_not_depend_on_later_tokens(isa: str, form: str) -> None:
    """Prefill, where later tokens are in the pages, and decode, where slots are NaN: same bits."""
    latent, key = chunk(132, 10, 256)
    q, pos = rows(40, 132, 10, 256)
    m, mass, o = Pages(isa, form, latent, key).attend(isa, q, pos)
    for i in range(0, 40, 3):
        seen = int(pos[i]) + 1
        alone = Pages(isa, form, latent[:seen], key[:seen])
        dm, dl, do = alone.attend(isa, q[i : i + 1], pos[i : i + 1])
        assert (dm.tobytes(), dl.tobytes()) == (m[i : i + 1].tobytes(), mass[i : i + 1].tobytes())
        assert do.tobytes() == o[i : i + 1].tobytes(), f"position {pos[i]}"


@each_isa
@each_form
@pytest.mark.parametrize("n", [1, 3, 9])
def test_pages_in_calls_of_their_own_and_any_set(isa: str, form: str, n: int) -> None:
    latent, key = chunk(36, 12, 250)
    q, pos = rows(n, 36, 12, 250)
    pages = Pages(isa, form, latent, key)
    want = b"".join(x.tobytes() for x in pages.attend(isa, q, pos))
    for place in (0, 64 // n - 1):
        m, mass = np.full((2, n), 9, np.float32)
        o = np.full((n, 48), 9, np.float32)
        for i in range(4):
            core.mla_attend(
                isa, form, q, pos, 36, 12, pages.data[i], 1, 64 * i, 0.1, m, mass, o,
                more=i > 0, set=place,
            )  # fmt: skip
        assert m.tobytes() + mass.tobytes() + o[:, :36].tobytes() == want, place


@each_form
def test_levels_without_the_dot_agree_bit_for_bit(form: str) -> None:
    latent, key = chunk(132, 10, 190)
    q, pos = rows(9, 132, 10, 190)
    results = [
        b"".join(x.tobytes() for x in Pages(isa, form, latent, key).attend(isa, q, pos))
        for isa in ISAS
        if core.kernel_slots(isa)[f"mla_attend_{FORMS[form]}"] != "bf16"
    ]
    assert len(results) >= 1
    assert len(set(results)) == 1


# ---- whole sequences -----------------------------------------------------------------------------


HEADS, R, P, NOPE, V = 4, 64, 16, 32, 24


def layer(tokens: int) -> tuple[np.ndarray, ...]:
    """q [T, H, nope + p], latent, key, W_UK [H, nope, r], W_UV [H, v, r]."""
    return (
        normal(tokens, HEADS, NOPE + P, key="q"),
        normal(tokens, R, key="latent"),
        normal(tokens, P, key="key"),
        normal(HEADS, NOPE, R, key="uk", scale=NOPE**-0.5),
        normal(HEADS, V, R, key="uv", scale=R**-0.5),
    )


def absorbed(q: np.ndarray, uk: np.ndarray) -> np.ndarray:
    wide = np.einsum("thn,hnr->thr", q[..., :NOPE].astype(np.float64), uk.astype(np.float64))
    return np.concatenate([wide.astype(np.float32), q[..., NOPE:]], axis=2)


@each_isa
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 256, 257, 4095, 8192])
def test_absorbed_equals_expanded(isa: str, tokens: int) -> None:
    """The last tokens of a sequence of each length, fp32 pages, within 1e-4."""
    q, latent, key, uk, uv = layer(tokens)
    scale, seen = (NOPE + P) ** -0.5, min(tokens, 5)
    pages = kernels.LatentPages(R, P, max_tokens=tokens, dtype="float32")
    pages.store(latent, key, isa=isa)
    found = np.asarray(pages.attend(absorbed(q[-seen:], uk), scale=scale, isa=isa, threads=1))
    got = np.einsum("thr,hvr->thv", found.astype(np.float64), uv)
    for i in range(seen):
        n = tokens - seen + i + 1
        want = expanded_last(q[n - 1], latent[:n], key[:n], (uk, uv), scale)
        np.testing.assert_allclose(got[i], want, atol=1e-4, rtol=0)


def expanded_last(q, latent, key, up, scale) -> np.ndarray:
    """reference.latent_attention of the last token alone [H, v]."""
    uk, uv = (w.astype(np.float64) for w in up)
    k = np.einsum("tr,hnr->thn", latent.astype(np.float64), uk)
    k = np.concatenate([k, np.repeat(key[:, None], len(q), axis=1)], axis=2)
    s = np.einsum("hd,thd->ht", q.astype(np.float64), k) * scale
    w = np.exp(s - s.max(axis=1, keepdims=True))
    values = np.einsum("tr,hvr->thv", latent.astype(np.float64), uv)
    return np.einsum("ht,thv->hv", w / w.sum(axis=1, keepdims=True), values)


def test_the_shortcut_is_the_specification() -> None:
    q, latent, key, uk, uv = (x.astype(np.float64) for x in layer(70))
    whole = reference.latent_attention(q, latent, key, (uk, uv), 0.3)
    np.testing.assert_allclose(
        expanded_last(q[-1], latent, key, (uk, uv), 0.3), whole[-1], atol=1e-12
    )


@each_isa
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("heads", [5, 16, 128])
def test_bits_do_not_depend_on_how_tokens_come(isa: str, dtype: str, heads: int) -> None:
    """A prompt whole, in sevens and token by token, on one thread and two."""
    tokens, r, p = 300 if heads < 100 else 70, 36, 12
    latent, key = normal(tokens, r), normal(tokens, p)
    q = normal(tokens, heads, r + p)
    whole = kernels.LatentPages(r, p, dtype=dtype)
    whole.store(latent, key, isa=isa)
    want = np.asarray(whole.attend(q, scale=0.2, isa=isa, threads=2)).copy()
    for step in (7, 1):
        pages = kernels.LatentPages(r, p, dtype=dtype)
        for t in range(0, tokens, step):
            part = slice(t, t + step)
            pages.store(latent[part], key[part], isa=isa)
            got = np.asarray(pages.attend(q[part], scale=0.2, isa=isa, threads=1))
            assert got.tobytes() == want[part].tobytes(), (step, t)


def test_bad_arguments_are_named() -> None:
    pages = kernels.LatentPages(8, 4, max_tokens=3)
    assert repr(pages) == "LatentPages(0 of 3 tokens, 8 + 4, bfloat16)"
    for name, sizes in (("kv_rank", (6, 4)), ("kv_rank", (0, 4)), ("d_rope", (8, 3))):
        with pytest.raises(ConfigError, match=name):
            kernels.LatentPages(*sizes)
    with pytest.raises(UnsupportedError, match="'int8' is none of float32, bfloat16, fp8"):
        kernels.LatentPages(8, 4, dtype="int8")
    x, k = np.ones((2, 8), np.float32), np.ones((2, 4), np.float32)
    with pytest.raises(ConfigError, match=r"latent: expected \[T, 8\], got \[2, 4\]"):
        pages.store(k, k)
    with pytest.raises(ConfigError, match=r"key: expected \[2, 4\]"):
        pages.store(x, x)
    pages.store(x, k)
    with pytest.raises(ConfigError, match="latent: 2 tokens, room for 1 of 3"):
        pages.store(x, k)
    with pytest.raises(ConfigError, match=r"q: expected \[T, H, 12\], got \[1, 2, 8\]"):
        pages.attend(np.ones((1, 2, 8), np.float32), scale=1.0)
    with pytest.raises(ConfigError, match="q: 3 tokens, but 2 are stored"):
        pages.attend(np.ones((3, 2, 12), np.float32), scale=1.0)
    with pytest.raises(ConfigError, match=r"positions: 2\.\.2 is not in 0\.\.1"):
        pages.attend(np.ones((1, 2, 12), np.float32), [2], scale=1.0)


def test_the_core_trusts_no_wrapper() -> None:
    """What a slot takes for granted is checked before it runs, and named."""
    isa, top = ISAS[0], 2**31 - 1
    x, k, page = np.ones(8, np.float32), np.ones(4, np.float32), np.zeros(2**16, np.uint8)
    page = page[: core.mla_page_bytes("F32", 8, 4)]
    fixed = page.copy()
    fixed.flags.writeable = False

    def store(latent=x, key=k, tok=0, page=page):
        core.mla_store(isa, "F32", latent, key, 8, 4, tok, page)

    q, m, o = np.ones((2, 12), np.float32), np.zeros(2, np.float32), np.zeros((2, 16), np.float32)
    at = np.int32([0, 0])
    odd = memoryview(bytearray(2 * 12 * 4 + 1))[1:].cast("f")

    def attend(q=q, *, at=at, n=1, first=0, m=m, o=o, set=0):
        core.mla_attend(
            isa, "F32", q, at, 8, 4, page, n, first, 0.1, m, np.zeros(2, np.float32), o, set=set
        )

    store()
    attend()
    for call, error, message in [
        (lambda: store(tok=64), ValueError, "tok: 64 is not in 0..63"),
        (lambda: store(x.astype(np.float64)), TypeError, "latent: expected contiguous float32"),
        (lambda: store(key=x), ValueError, "key: 8 values, expected 4"),
        (lambda: store(page=page[1:]), ValueError, "page: "),
        (lambda: store(page=fixed), ValueError, "page: is read-only"),
        (lambda: attend(q.astype(np.float64)), TypeError, "q: expected contiguous float32"),
        (lambda: attend(q.view(np.int32)), TypeError, "q: expected contiguous float32"),
        (lambda: attend(odd), ValueError, "q: its address"),
        (lambda: attend(at=at.astype(np.float32)), TypeError, "row_pos: expected contiguous int32"),
        (lambda: attend(at=np.int32([0, -1])), ValueError, "row_pos: -1"),
        (lambda: attend(at=np.int32([0, top])), ValueError, "row_pos: "),
        (lambda: attend(at=np.zeros(65, np.int32)), ValueError, "R: 65"),
        (lambda: attend(at=at[:0]), ValueError, "row_pos: 0 values"),
        (lambda: attend(n=0), ValueError, "n_pages: 0 is not in 1..4"),
        (lambda: attend(n=2), ValueError, "pages: "),
        (lambda: attend(first=-1), ValueError, "first: -1"),
        (lambda: attend(first=top - 5), ValueError, "first: "),
        (lambda: attend(set=32), ValueError, "set: 32 is not in 0..31"),
        (lambda: attend(set=top), ValueError, "set: "),
        (lambda: attend(o=q), ValueError, "o: 24 values, expected 32"),
        (lambda: attend(m=q), ValueError, "m: 24 values, expected 2"),
    ]:
        with pytest.raises(error, match=message):
            call()
