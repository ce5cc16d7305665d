"""The device's generic kernels on the emulator, held to the NumPy references of the CPU's.

Outputs start as NaN, rows have gaps that must keep what they held, widths are ugly, and every case
runs under three seeds of order and delay, of which two are for the slow tests. Kernels are
asked for through launch.h, as the backend does.
"""

from __future__ import annotations

import ctypes
import re
from ctypes import c_void_p

import numpy as np
import pytest
import reference_rows as reference
from conftest import ROOT
from emulator import KERNELS, bf16, from_bf16
from launches import (
    AddNorm,
    Attend,
    AttendDevice,
    Chunks,
    Elements,
    Embed,
    Enter,
    Gather,
    Heads,
    NormRows,
    Pick,
    Product,
)
from test_cuda_runtime import Runtime

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 8))]
RMS, LAYER = 0, 1
STORE, ADD, ACT, LOGITS = range(4)
PAGE = 64


class Device:
    """Arrays on the emulated device, and launches there."""

    def __init__(self, library: ctypes.CDLL | None = None) -> None:
        self.rt = Runtime(library)
        self.stream = self.rt.new("stream_open")
        self.arrays: list[tuple[int, np.ndarray]] = []

    def put(self, array: np.ndarray) -> int:
        """The address of a copy, which comes back by `get`."""
        array = np.ascontiguousarray(array)
        at = self.rt.new("alloc", array.nbytes)
        self.move(at, array, 0)
        self.arrays.append((at, array))
        return at

    def get(self, at: int) -> np.ndarray:
        like = next(array for place, array in self.arrays if place == at)
        out = np.empty_like(like)
        self.move(at, out, 1)
        return out

    def move(self, at: int, array: np.ndarray, way: int) -> None:
        host = self.rt.new("pin", array.nbytes)
        if way == 0:
            ctypes.memmove(host, array.ctypes.data, array.nbytes)
        ends = (host, at) if way else (at, host)
        self.rt.copy(self.stream, *ends, array.nbytes, way)
        assert self.rt.stream_wait(self.stream) == 0, self.rt.message
        if way == 1:
            ctypes.memmove(array.ctypes.data, host, array.nbytes)
        self.rt.new("unpin", host)

    def launch(self, name: str, args: ctypes.Structure, *more: int) -> None:
        stream = c_void_p(self.stream)
        getattr(self.rt.lib, f"la_launch_{name}")(stream, ctypes.byref(args), *more)
        assert self.rt.stream_wait(self.stream) == 0, self.rt.message


@pytest.fixture(params=SEEDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMACCEL_EMU_KERNELS", str(request.param))
    made = Device()
    yield made
    made.rt.lib.la_rt_close(made.rt.rt)


@pytest.fixture(params=[0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 8))])
def calm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The same, for cases whose order and delay a smaller one has seen."""
    monkeypatch.setenv("LLMACCEL_EMU_KERNELS", str(request.param))
    made = Device()
    yield made
    made.rt.lib.la_rt_close(made.rt.rt)


def rows(n: int, D: int, ld: int, seed: int, fill: float | None = None) -> np.ndarray:
    """[n, ld] of which D columns count; `fill` for them, NaN in the gap."""
    x = np.full((n, ld), np.nan, np.float32)
    drawn = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    x[:, :D] = drawn if fill is None else fill
    return x


def normed(x: np.ndarray, kind: int, w: np.ndarray, b: np.ndarray | None, eps: float) -> np.ndarray:
    rule = reference.rms_norm
    made = [rule(r, w, eps) if kind == RMS else reference.layer_norm(r, w, b, eps) for r in x]
    return np.stack(made)


def halves(x: np.ndarray, half: int) -> np.ndarray:
    return x.astype(np.float16).view(np.uint16) if half else bf16(x)


def values(codes: np.ndarray, half: int) -> np.ndarray:
    return codes.view(np.float16).astype(np.float32) if half else from_bf16(codes)


def test_every_launch_has_a_test() -> None:
    """That is, somebody launches it by name from the device's tests."""
    names = [
        name
        for path in sorted(KERNELS.glob("*.h"))
        for name in re.findall(r"^void la_launch_(\w+)\(", path.read_text(), flags=re.M)
    ]
    tests = "".join(path.read_text() for path in sorted((ROOT / "tests").glob("test_cuda_*.py")))
    assert len(names) >= 11
    assert not [name for name in names if f'"{name}"' not in tests]


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(("n", "D"), [(1, 8), (3, 200), (2, 1000)])
def test_embed(device: Device, n: int, D: int, half: int) -> None:
    table = halves(rows(11, D, D, 0), half)
    ids = np.array([7, 0, 10][:n], np.int32)
    out = device.put(rows(n, D, D + 5, 0, np.nan))
    args = Embed(device.put(table), device.put(ids), out, D + 5, n, D, half, 0, 1.5)
    device.launch("embed", args)
    assert np.array_equal(device.get(out)[:, :D], values(table, half)[ids] * np.float32(1.5))
    args.add, args.scale = 1, 1.0
    device.launch("embed", args)
    found = device.get(out)
    assert np.array_equal(found[:, :D], values(table, half)[ids] * np.float32(2.5))
    assert np.isnan(found[:, D:]).all()


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("kind", [-1, RMS, LAYER])
@pytest.mark.parametrize(("n", "D"), [(1, 8), (3, 264), (2, 1000)])
def test_enter(device: Device, n: int, D: int, kind: int, half: int) -> None:
    x, w, b = rows(n, D, D + 3, 1), rows(1, D, D, 2)[0], rows(1, D, D, 3)[0]
    x *= 0.01  # so that eps counts
    out = device.put(np.full((n, D), 0x7FFF, np.uint16))
    args = Enter(device.put(x), D + 3, device.put(w), device.put(b), out, n, D, half, kind, 1e-5)
    if kind == RMS:
        args.b = None
    device.launch("enter", args)
    want = x[:, :D] if kind < 0 else normed(x[:, :D], kind, w, b if kind == LAYER else None, 1e-5)
    found = values(device.get(out), half)
    # within half a step of 16 bits, and the few units in which sums of other orders differ
    assert np.abs(found - want).max() <= np.abs(want).max() * (2.0**-11 if half else 2.0**-8)
    if kind < 0:
        assert np.array_equal(found, values(halves(x[:, :D], half), half))


def test_rows_beyond_fp16_saturate(device: Device) -> None:
    x = np.array([[65504, 65519, 65520, 7e4, -7e4, 1e30, np.inf, -np.inf]], np.float32)
    x = np.concatenate([x, np.full((1, 8), np.nan, np.float32)])
    out = device.put(np.zeros((2, 8), np.uint16))
    device.launch("enter", Enter(device.put(x), 8, None, None, out, 2, 8, 1, -1, 0.0))
    found = values(device.get(out), 1)
    assert found[0].tolist() == (65504 * np.sign(x[0])).tolist()
    assert np.isnan(found[1]).all()


def test_a_row_does_not_know_its_company(device: Device) -> None:
    x, w = rows(5, 136, 136, 4), rows(1, 136, 136, 5)[0]
    made = []
    for part in (x, x[3:4]):
        out = device.put(np.zeros(part.shape, np.uint16))
        at = (device.put(part), 136, device.put(w), None, out)
        device.launch("enter", Enter(*at, len(part), 136, 0, RMS, 1e-6))
        made.append(device.get(out))
    assert np.array_equal(made[0][3], made[1][0])


@pytest.mark.parametrize("kind", [RMS, LAYER])
def test_add_norm(device: Device, kind: int) -> None:
    n, D = 3, 264
    y, x, w = rows(n, D, D + 8, 6), rows(n, D, D + 16, 7), rows(1, D, D, 8)[0]
    b = rows(1, D, D, 9)[0] if kind == LAYER else None
    at, bias = device.put(x), None if b is None else device.put(b)
    args = AddNorm(device.put(y), D + 8, device.put(w), bias, at, D + 16, n, D, kind, 1e-6, 0.5)
    device.launch("add_norm", args)
    want, found = x[:, :D] + 0.5 * normed(y[:, :D], kind, w, b, 1e-6), device.get(at)
    assert np.allclose(found[:, :D], want, rtol=1e-5, atol=1e-5)
    assert np.isnan(found[:, D:]).all()


@pytest.mark.parametrize("in_place", [0, 1])
@pytest.mark.parametrize("kind", [RMS, LAYER])
def test_norm_rows(device: Device, kind: int, in_place: int) -> None:
    n, D, ldx = 3, 300, 310
    ldo = ldx if in_place else 305
    x, w, b = rows(n, D, ldx, 6), rows(1, D, D, 8)[0], rows(1, D, D, 3)[0]
    at = device.put(x)
    out = at if in_place else device.put(np.full((n, ldo), np.nan, np.float32))
    args = NormRows(at, ldx, device.put(w), device.put(b), out, ldo, n, D, kind, 1e-6)
    if kind == RMS:
        args.b = None
    device.launch("norm_rows", args)
    want = normed(x[:, :D], kind, w, b if kind == LAYER else None, 1e-6)
    found = device.get(out)
    assert np.allclose(found[:, :D], want, rtol=1e-5, atol=1e-5)
    assert np.isnan(found[:, D:]).all()


ADDED, GATED = 2, 4  # LA_ELEMENT_ADD, LA_ELEMENT_ACT_MUL


@pytest.mark.parametrize("n", [1, 255, 1027])
def test_elements(device: Device, n: int) -> None:
    x, y, out = rows(1, n, n, 1)[0], rows(1, n, n, 2)[0], np.full(n + 4, np.nan, np.float32)
    at, other, to = device.put(x), device.put(y), device.put(out)
    device.launch("elements", Elements(at, other, to, n, ADDED, 0, 0.5, 0.0))
    found = device.get(to)
    assert np.array_equal(found[:n], (0.5 * x + y).astype(np.float32))
    assert np.isnan(found[n:]).all()
    device.launch("elements", Elements(at, other, other, n, GATED, 0, 0.0, 0.0))
    want = reference.act_mul("silu", x, y)
    assert np.abs(device.get(other) - want).max() <= 2e-6 * np.abs(want).max()


def test_pick(device: Device) -> None:
    """Ids of 12-byte draws, or ids of 8-byte bests with the values that their rows have there."""
    n, V, k = 3, 40, 5
    x, best = rows(n, V, V, 4), np.random.default_rng(1).integers(0, V, (n, k))
    tops = np.zeros((n, k, 2), np.int32)
    tops[..., 0] = best
    ids, values = np.full((n, k), -1, np.int64), np.full((n, k), np.nan, np.float32)
    to, found = device.put(ids), device.put(values)
    at = device.put(x)
    device.launch("pick", Pick(at, None, device.put(tops), to, found, n, V, k))
    assert np.array_equal(device.get(to), best)
    assert np.array_equal(device.get(found), np.take_along_axis(x, best, 1))
    drawn = np.arange(900, dtype=np.int32).reshape(300, 3)
    to = device.put(np.full(300, -1, np.int64))
    device.launch("pick", Pick(at, device.put(drawn), None, to, None, 300, V, 1))
    assert np.array_equal(device.get(to), drawn[:, 0])


def test_gather(device: Device) -> None:
    x, out = rows(4, 72, 80, 9), device.put(rows(3, 72, 75, 0, np.nan))
    source, third = device.put(x), device.put(rows(3, 72, 90, 0, np.nan))
    picked = device.put(np.array([3, 3, 0], np.int32))
    device.launch("gather", Gather(source, 80, picked, out, 75, 3, 72))
    device.launch("gather", Gather(out, 75, None, third, 90, 3, 72))  # rows in their order
    for at in (out, third):
        found = device.get(at)
        assert np.array_equal(found[:, :72], x[[3, 3, 0], :72])
        assert np.isnan(found[:, 72:]).all()


# ---- heads and attention -------------------------------------------------------------------------


class Cache:
    """Pages of one layer of a model with two, in the device's layout."""

    def __init__(self, device: Device, n_pages: int, n_kv: int, d: int) -> None:
        self.shape = (n_pages, 2, n_kv, 2, PAGE, d)
        self.device = device
        self.at = device.put(np.full(self.shape, 0x7FC0, np.uint16))  # NaN
        one = PAGE * d * 2
        self.pages = (self.at + n_kv * 2 * one, 4 * n_kv * one, 2 * one, one)  # of layer 1

    def kv(self) -> np.ndarray:
        """[page, kv head, k or v, slot, d]; and the other layer is as it was."""
        codes = self.device.get(self.at)
        assert (codes[:, 0] == 0x7FC0).all()
        return from_bf16(codes[:, 1])


def rotated(x: np.ndarray, angle: np.ndarray, interleaved: int) -> np.ndarray:
    return reference.rope(x, np.cos(angle), np.sin(angle), bool(interleaved))


@pytest.mark.parametrize(
    ("norm", "turned", "interleaved", "d", "d_rope"),
    [(0, 1, 0, 16, 16), (1, 1, 1, 24, 8), (2, 1, 0, 40, 40), (3, 1, 0, 16, 8), (3, 0, 0, 16, 8)],
)
def test_heads(
    device: Device, *, norm: int, turned: int, interleaved: int, d: int, d_rope: int
) -> None:
    n, H, K, eps = 4, 6, 2, 1e-5
    row = norm == 2
    y = rows(n, (H + 2 * K) * d, (H + 2 * K) * d + 8, 10)
    # the last one's keys and values are kept nowhere
    pos, page = np.array([5, 64, 130, 0], np.int32), np.array([2, 0, 1, -1], np.int32)
    angle = np.outer(np.arange(140), 0.3 ** np.arange(d_rope // 2)).astype(np.float32)
    q_norm, k_norm = rows(1, H * d if row else d, H * d, 11)[0], rows(1, K * d, K * d, 12)[0]
    cache, q = Cache(device, 3, K, d), device.put(rows(n, H * d, H * d + 4, 0, np.nan))
    tables = [device.put(f(angle)) if turned else None for f in (np.cos, np.sin)]
    norms = [device.put(q_norm), device.put(k_norm)] if norm in (1, 2) else [None, None]
    args = Heads(
        *(device.put(y), y.shape[1], q, H * d + 4, device.put(pos), device.put(page)),
        *(*norms, *tables, *cache.pages, n, H, K, d, d_rope, interleaved, norm, turned),
        *(eps, 0.5, 0 if turned else 50),
    )
    device.launch("heads", args)
    kv, found = cache.kv(), device.get(q)
    assert np.isnan(found[:, H * d :]).all()
    ones = np.ones(d, np.float32)
    for t in range(n):
        heads = y[t, : (H + 2 * K) * d].copy()
        if row:
            heads[: H * d] = reference.rms_norm(heads[: H * d], q_norm, eps)
            heads[H * d : (H + K) * d] = reference.rms_norm(heads[H * d : (H + K) * d], k_norm, eps)
        heads = heads.reshape(-1, d)
        for h in range(H + K):
            if norm == 1 or (norm == 3 and turned):
                w = ones if norm == 3 else (q_norm if h < H else k_norm)[:d]
                heads[h] = reference.rms_norm(heads[h], w, eps)
            if turned:
                heads[h] = rotated(heads[h], angle[pos[t]], interleaved)
        grow = 1.0 if turned else 1.0 + 0.5 * np.log1p((pos[t] + 1) // 50)
        assert np.allclose(found[t, : H * d], heads[:H].ravel() * grow, rtol=1e-5, atol=1e-5)
        for part, want in enumerate((heads[H : H + K], heads[H + K :]) if page[t] >= 0 else ()):
            stored = kv[page[t], :, part, pos[t] % PAGE]
            assert np.allclose(stored, want, rtol=2.0**-8, atol=1e-6)
    assert np.isfinite(kv).all(axis=(1, 2, 4)).sum() == n - 1  # no other slot was written


@pytest.mark.parametrize("n", [1, 31, 32])
def test_chunks(device: Device, n: int) -> None:
    """Positions at both sides of a chunk's end."""
    pos = np.resize(np.array([0, 255, 256, 511, 70000], np.int32), n)
    items = device.put(np.full(34, -7, np.int32))
    device.launch("chunks", Chunks(device.put(pos), items, n))
    found = device.get(items)
    assert found[: n + 1].tolist() == [0, *np.cumsum(pos // 256 + 1).tolist()]
    assert (found[n + 1 :] == -7).all()


def test_a_grid_of_too_many_heads_is_a_fault(device: Device) -> None:
    args = Heads(n=1, n_heads=4 * 65535 + 1)
    with pytest.raises(AssertionError, match="more than 65535 blocks along y or z"):
        device.launch("heads", args)


CHUNK = 256


def exact(q, k, v, *, window, softcap, sink, scale=0.3):
    """One head's token: q [d], k and v [tokens, d], the last being its own."""
    s = (k @ q).astype(np.float64) * scale
    s = softcap * np.tanh(s / softcap) if softcap else s
    if window:
        s, v = s[-window:], v[-window:]
    e = np.exp(s - s.max())
    mass = e.sum() + (np.exp(sink - s.max()) if sink is not None else 0.0)
    return e @ v / mass


def rounded(q, k, v, *, window, softcap, sink, scale=0.3):
    """The same with q rounded, and weights under the largest score so far of their chunk."""
    s = k.astype(np.float64) @ from_bf16(bf16(q)).astype(np.float64) * scale
    s = softcap * np.tanh(s / softcap) if softcap else s
    s[: -window if window else 0] = -np.inf
    all_o, all_sum, all_top = np.zeros(len(q)), 0.0, -np.inf
    for start in range(0, len(k), CHUNK):
        o, mass, top = np.zeros(len(q)), 0.0, -np.inf
        for at in range(start, min(start + CHUNK, len(k)), PAGE):
            page = slice(at, min(at + PAGE, start + CHUNK))
            old, top = top, max(top, s[page].max())
            if top == -np.inf:
                continue
            p = from_bf16(bf16(np.exp(s[page] - top).astype(np.float32))).astype(np.float64)
            fade = np.exp(old - top)
            o, mass = o * fade + p @ v[page], mass * fade + p.sum()
        old, all_top = all_top, max(all_top, top)
        if all_top > -np.inf:
            a, b = np.exp(old - all_top), np.exp(top - all_top)
            all_o, all_sum = all_o * a + o * b, all_sum * a + mass * b
    return all_o / (all_sum + (np.exp(sink - all_top) if sink is not None else 0.0))


class Scene:
    """Queries of the last tokens of some sequences, whose pages lie in no order among NaN.

    runs: (tokens of the sequence, of those with queries). What no query counts is NaN, and pages
    that none reads are not in the tables.
    """

    def __init__(self, device: Device, runs: list[tuple[int, int]], H: int, K: int, d: int) -> None:
        self.device, self.runs, self.H, self.K, self.d = device, runs, H, K, d
        self.n = sum(n for _, n in runs)
        self.rng = np.random.default_rng(13)
        self.q = rows(self.n, H * d, H * d + 4, 14)
        self.at = device.put(self.q)

    def fill(self, window: int) -> None:
        """Pages and tables."""
        needs = [-(-length // PAGE) for length, _ in self.runs]
        order = self.rng.permutation(sum(needs) + 3)
        codes = np.full((len(order), 2, self.K, 2, PAGE, self.d), 0x7FC0, np.uint16)
        tables, self.first, self.pos, self.kv = [], [], [], []
        for (length, n), pages in zip(self.runs, needs, strict=True):
            start = sum(map(len, tables))
            begin = max(0, length - n - window + 1) if window else 0
            kv = from_bf16(bf16(self.rng.normal(size=(length, self.K, 2, self.d))))
            table = order[start : start + pages].copy()
            for t in range(begin, length):
                codes[table[t // PAGE], 1, :, :, t % PAGE] = bf16(kv[t])
            table[: begin // PAGE] = -1
            tables.append(table)
            self.kv.append(kv)
            self.first += [start] * n
            self.pos += range(length - n, length)
        one = PAGE * self.d * 2
        base = self.device.put(codes) + self.K * 2 * one
        self.pages = (base, 4 * self.K * one, 2 * one, one)
        numbers = (self.pos, np.concatenate(tables), self.first)
        self.numbers = [self.device.put(np.array(x, np.int32)) for x in numbers]

    def tiles(self) -> np.ndarray:
        """As backend_attend.cu makes them, of 64 rows."""
        made, token, group = [], 0, self.H // self.K
        for _, n in self.runs:
            made += [(token, n, row) for row in range(0, n * group, 64)][::-1]
            token += n
        return np.array(made, np.int32)

    def run(
        self, form: str, sink: int | None = None, *, smem: int = 232448, **options
    ) -> np.ndarray:
        """[n, H, d]. form: blocks of "tokens", of "tiles" of several, or chunks "dealt" out."""
        device, H, K, d = self.device, self.H, self.K, self.d
        out = device.put(rows(self.n, H * d, H * d + 3, 0, np.nan))
        args = Attend(
            *(self.at, H * d + 4, out, H * d + 3, *self.numbers, sink, None, None, None),
            *(*self.pages, self.n, H, K, d, 0, options["window"], 0.3, options["softcap"]),
        )
        if form == "tiles":
            tiles = self.tiles()
            args.tiles, args.n_tiles = device.put(tiles), len(tiles)
        if form == "dealt":
            items, chunks = (
                device.put(np.full(self.n + 1, -1, np.int32)),
                np.array(self.pos) // CHUNK,
            )
            device.launch("chunks", Chunks(self.numbers[0], items, self.n))
            assert device.get(items)[-1] == (chunks + 1).sum()
            room = np.full(((chunks + 1).sum(), H, d + 2), np.nan, np.float32)
            args.items, args.partial = items, device.put(room)
        device.launch("attend_paged", args, ctypes.byref(AttendDevice(2, smem)))
        found = device.get(out)
        assert np.isnan(found[:, H * d :]).all()
        return found[:, : H * d].reshape(self.n, H, d)


def check_attend(device: Device, *, runs, H, K, d, window=0, softcap=0.0, sinks=0) -> None:
    """Near both references, and the same bits in every form."""
    scene = Scene(device, runs, H, K, d)
    scene.fill(window)
    sink = scene.rng.normal(size=H).astype(np.float32)
    at, options = device.put(sink) if sinks else None, {"window": window, "softcap": softcap}
    found = scene.run("tiles", at, **options)
    for form in ["tokens", "dealt"] if scene.n <= 32 else ["tokens"]:
        assert np.array_equal(scene.run(form, at, **options), found), form
    # 99 KiB: one stage for heads above 128, where a page is loaded once the one before is read
    for form in ["tiles", "tokens", "dealt"] if d > 128 and scene.n <= 32 else ["tiles"]:
        assert np.array_equal(scene.run(form, at, smem=101376, **options), found), form
    want, near, t = np.empty(found.shape), np.empty(found.shape), 0
    for kv, (length, n) in zip(scene.kv, runs, strict=True):
        for pos in range(length - n, length):
            for h in range(H):
                k, v = kv[: pos + 1, h * K // H].swapaxes(0, 1)
                given = {**options, "sink": sink[h] if sinks else None}
                q = scene.q[t, h * d : (h + 1) * d]
                want[t, h], near[t, h] = exact(q, k, v, **given), rounded(q, k, v, **given)
            t += 1
    size = np.linalg.norm(want, axis=2, keepdims=True)
    assert (np.abs(found - near) <= 1e-3 * size).all()
    assert np.linalg.norm(found - near) <= 1e-4 * np.linalg.norm(want)
    assert np.linalg.norm(found - want) <= 1e-2 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("H", "K", "d", "window", "softcap", "sinks"),
    [(4, 2, 16, 0, 0.0, 0), (6, 1, 24, 70, 5.0, 0), (2, 2, 64, 3, 0.0, 1), (4, 2, 8, 300, 0.0, 1)],
)
def test_attend(device: Device, *, H, K, d, window, softcap, sinks) -> None:
    """Tokens of one chunk and of two, and some that follow each other over a chunk's end."""
    runs = [(1, 1), (65, 1), (258, 3)]
    options = {"window": window, "softcap": softcap, "sinks": sinks}
    check_attend(device, runs=runs, H=H, K=K, d=d, **options)


@pytest.mark.parametrize(
    ("H", "K", "d"),
    [(7, 1, 96), (2, 1, 128), (5, 1, 256), (2, 2, 18), (2, 1, 80), (20, 1, 16), (70, 1, 8)],
)
def test_attend_heads(calm: Device, H: int, K: int, d: int) -> None:
    """Head sizes with and without a tail, groups that tiles cut and such as are more than one."""
    check_attend(calm, runs=[(130, 12), (66, 1)], H=H, K=K, d=d)


def test_attend_more_chunks_than_are_read_at_once(calm: Device) -> None:
    check_attend(calm, runs=[(9 * CHUNK + 1, 2), (17 * CHUNK, 1)], H=2, K=1, d=16)


@pytest.mark.parametrize("window", [1, 63, 64, 65, 256, 257])
def test_attend_at_a_windows_edge(calm: Device, window: int) -> None:
    """The first token that goes, and those about it."""
    check_attend(calm, runs=[(window + 3, 4), (window, 1)], H=3, K=1, d=32, window=window)


def test_attend_company_changes_nothing(calm: Device) -> None:
    """A token alone has the bits that it has at the end of 40, which several tiles share."""
    scene = Scene(calm, [(300, 40)], 4, 2, 40)
    scene.fill(0)
    together = scene.run("tiles", window=0, softcap=0.0)
    kept, shape = scene.numbers, (scene.n, scene.at)
    for t in (0, 20, 39):
        scene.n, scene.runs, scene.pos = 1, [(scene.pos[t] + 1, 1)], scene.pos
        own = [np.array([x], np.int32) for x in (261 + t - 1, 0)]
        scene.numbers = [calm.put(own[0]), kept[1], calm.put(own[1])]
        scene.at = shape[1] + t * (4 * 40 + 4) * 4
        for form in ("tokens", "tiles"):
            alone = scene.run(form, window=0, softcap=0.0)
            assert np.array_equal(alone[0], together[t])


# ---- products ------------------------------------------------------------------------------------


def product(device: Device, M: int, N: int, K: int, *, half, kind, paired=0, act=0):
    """(a, w, bias, what the kernel made of them); column N and beyond must keep what they held."""
    a, units = halves(rows(M, K, K, 15), half), (N + 31) // 32 * 32
    w = halves(rows(units, K, K, 16) * 0.3, half)
    if not paired:  # else a short last unit has its ups behind the place of all its gates
        w[N:] = 0
    bias = rows(1, units, units, 17)[0]
    cols = N // 2 if paired else N
    start = rows(M, cols, cols + 7, 18, None if kind == ADD else np.nan)
    out = device.put(start)
    finish = (kind, act, paired, 0.25, 3.0 if kind == LOGITS else 0.0)
    args = (device.put(a), device.put(w), device.put(bias), out, cols + 7, M, N, K)
    device.launch("product", Product(*args, *finish), half)
    found = device.get(out)
    assert np.isnan(found[:, cols:]).all()
    y = values(a, half).astype(np.float64) @ values(w, half).astype(np.float64).T + bias
    return y if paired else y[:, :N], start[:, :cols], found[:, :cols]


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 32, 8), (17, 72, 200), (5, 200, 136), (70, 33, 64)])
def test_product(device: Device, M: int, N: int, K: int, half: int) -> None:
    want, _, found = product(device, M, N, K, half=half, kind=STORE)
    assert np.linalg.norm(found - want) <= 1e-5 * np.linalg.norm(want)


def test_products_finish(device: Device) -> None:
    want, start, found = product(device, 3, 72, 64, half=0, kind=ADD)
    assert np.allclose(found, start + 0.25 * want, rtol=1e-4, atol=1e-4)
    want, _, found = product(device, 3, 72, 64, half=0, kind=LOGITS)
    assert np.allclose(found, 3.0 * np.tanh(want * 0.25 / 3.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh", "relu", "clip"])
@pytest.mark.parametrize("F", [16, 40])
def test_products_gate(device: Device, F: int, act: str) -> None:
    """Gates and ups in turns of 16 columns; the last unit may hold fewer pairs."""
    kind = ["silu", "gelu", "gelu_tanh", "relu", "clip"].index(act)
    want, _, found = product(device, 5, 2 * F, 64, half=0, kind=ACT, paired=1, act=kind)
    gates = want.reshape(5, -1, 2, 16).astype(np.float32)
    gate, up = gates[:, :, 0].reshape(5, -1)[:, :F], gates[:, :, 1].reshape(5, -1)[:, :F]
    made = np.stack([reference.act_mul(act, g, u) for g, u in zip(gate, up, strict=True)])
    assert np.allclose(found, made, rtol=1e-4, atol=1e-4)


def test_a_product_follows_what_makes_its_rows(device: Device) -> None:
    """Nothing but launches in between, so that the second may start beside the first."""
    x, w = rows(5, 72, 72, 20), halves(rows(64, 72, 72, 21), 0)
    a, out = device.put(np.zeros((5, 72), np.uint16)), device.put(rows(5, 64, 64, 0, np.nan))
    enter = Enter(device.put(x), 72, None, None, a, 5, 72, 0, -1, 0.0)
    args = Product(a, device.put(w), None, out, 64, 5, 64, 72, STORE, 0, 0, 1.0, 0.0)
    device.launch("enter", enter)
    device.launch("product", args, 0)
    want = values(halves(x, 0), 0) @ values(w, 0).T
    assert np.allclose(device.get(out), want, rtol=1e-5, atol=1e-4)


def test_rows_of_a_product_do_not_depend_on_how_many_there_are(device: Device) -> None:
    few, many = (product(device, M, 64, 136, half=0, kind=STORE) for M in (3, 70))
    assert np.array_equal(few[0], many[0][:3])
    assert np.array_equal(few[2], many[2][:3])
