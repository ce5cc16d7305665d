"""Products of Hopper and of 4-bit weights on the emulator, against NumPy; what changes no bit.

Launched through launch.h like the kernels of test_cuda_rows.py, whose arrays and seeds these tests
use. Hopper's loop itself is held by test_cuda_emu.py; here are its launches, types and finishes.
"""

from __future__ import annotations

import ctypes
from ctypes import c_void_p

import numpy as np
import pytest
import reference_rows as reference
from emulator import bf16, from_bf16
from launches import Enter, FinishSums, Form, Product
from test_cuda_rows import ACT, ADD, LOGITS, STORE, Device, device, halves, rows, values

__all__ = ["device"]
F4 = ["silu", "gelu", "gelu_tanh", "relu", "clip"]


class Case:
    """A product: rows a, weights w (both as floats), bias, the array it goes to and its finish."""

    def __init__(self, device: Device, M: int, N: int, K: int, *, kind: int, **more) -> None:
        self.device, self.shape, self.kind = device, (M, N, K), kind
        self.half, self.act = more.get("half", 0), more.get("act", 0)
        self.paired = more.get("paired", 0)
        self.units = (N + 31) // 32
        self.cols = N // 2 if self.paired else N
        codes = halves(rows(M, K, K, 15), self.half)
        self.a, self.at = values(codes, self.half), device.put(codes)
        self.bias = rows(1, self.units * 32, self.units * 32, 17)[0]
        self.start = rows(M, self.cols, self.cols + 7, 18, None if kind == ADD else np.nan)

    def run(self, kernel: str, w: int, *more) -> np.ndarray:
        """[M, cols] of what the kernel makes of the weights at `w`."""
        M, N, K = self.shape
        out = self.device.put(self.start)
        cap = 3.0 if self.kind == LOGITS else 0.0
        finish = (self.kind, self.act, self.paired, 0.25, cap)
        place = (self.at, w, self.device.put(self.bias), out, self.cols + 7)
        self.device.launch(kernel, Product(*place, M, N, K, *finish), *more)
        found = self.device.get(out)
        assert np.isnan(found[:, self.cols :]).all()
        return found[:, : self.cols]

    def want(self, w: np.ndarray) -> np.ndarray:
        """The same by float64; w [units * 32, K]."""
        y = self.a.astype(np.float64) @ w.astype(np.float64).T + self.bias
        if self.kind == ACT:
            pairs = y.reshape(len(y), -1, 2, 16).astype(np.float32)
            gate, up = (pairs[:, :, i].reshape(len(y), -1)[:, : self.cols] for i in (0, 1))
            name = F4[self.act]
            return np.stack([reference.act_mul(name, *p) for p in zip(gate, up, strict=True)])
        y = y[:, : self.cols]
        if self.kind == ADD:
            return self.start[:, : self.cols] + 0.25 * y
        return 3.0 * np.tanh(y * 0.25 / 3.0) if self.kind == LOGITS else y


KINDS = [(STORE, {}), (ADD, {}), (LOGITS, {}), (ACT, {"paired": 1, "act": 4})]


# ---- Hopper --------------------------------------------------------------------------------------


def hopper(case: Case, n_sms: int, partial: np.ndarray | None = None):
    """(weights, result); one SM leaves all pieces to their blocks, more make them apart."""
    M, N, K = case.shape
    codes = halves(rows(case.units * 32, K, K, 16) * 0.3, case.half)
    if not case.paired:
        codes[N:] = 0
    pieces = case.device.rt.lib.la_product_pieces(N, K)
    room = np.full(pieces * M * ((N + 127) // 128 * 128), np.nan, np.float32)
    at, partial = case.device.put(codes), case.device.put(room)
    made = case.run("product_sm90", at, case.half, c_void_p(partial), n_sms)
    wrote = not np.isnan(case.device.get(partial)).all()
    assert wrote == (pieces > 1 and ((M + 127) // 128) * ((N + 127) // 128) * pieces <= 2 * n_sms)
    return values(codes, case.half), made


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_hopper(device: Device, kind: int, more: dict, half: int) -> None:
    case = Case(device, 17, 80, 200, kind=kind, half=half, **more)
    w, found = hopper(case, 4)
    assert np.allclose(found, case.want(w), rtol=1e-4, atol=1e-4)


def test_hopper_beyond_the_tiles_that_run_side_by_side(device: Device) -> None:
    """18 tiles of rows by two of columns, of which 16 run side by side: two begin anew."""
    case = Case(device, 2200, 160, 72, kind=STORE)
    w, found = hopper(case, 8)
    assert np.allclose(found, case.want(w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_pieces_of_k_add_up_alike(device: Device, kind: int, more: dict) -> None:
    """By a second launch or by their blocks, alone or in company: the same bits."""
    few = Case(device, 3, 80, 1032, kind=kind, **more)
    w, apart = hopper(few, 4)
    many = Case(device, 131, 80, 1032, kind=kind, **more)
    assert np.array_equal(many.a[:3], few.a)
    _, together = hopper(many, 1)
    assert np.allclose(apart, few.want(w), rtol=1e-4, atol=2e-4)
    if kind == ADD:  # rows that are added to differ: what was there is drawn for all of them
        apart, together = apart - few.start[:, :80], together - many.start[:, :80]
        assert np.allclose(apart, together[:3], rtol=1e-4, atol=1e-5)
    else:
        assert np.array_equal(apart, together[:3])


def test_pieces_are_those_of_n_and_k(device: Device) -> None:
    """The shapes of an 8B model fill five sixths of the waves of 132 multiprocessors."""
    pieces = device.rt.lib.la_product_pieces
    for N, K in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)):
        items = N // 128 * pieces(N, K)
        assert items / (-(-items // 132) * 132) > 5 / 6
    assert pieces(128, 512) == 1
    assert pieces(128, 1024) == 2
    device.rt.lib.la_product_room.restype = ctypes.c_size_t
    assert device.rt.lib.la_product_room(1) == 264 * 128 * 4
    assert device.rt.lib.la_product_room(1000) == 128 * 264 * 128 * 4


# ---- 4 bits --------------------------------------------------------------------------------------


def packed(q: np.ndarray, group: int, scale: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """Units as gemm_w4.cu draws them. q [rows, K] 0..15; scale, offset [rows, groups]."""
    n, K = q.shape
    out = []
    for u in range(0, n, 32):
        for g in range(scale.shape[1]):
            out.append(scale[u : u + 32, g].tobytes())
            if offset is not None:
                out.append(offset[u : u + 32, g].tobytes())
            for k in range(g * group, min(K, (g + 1) * group), 32):
                block = q[u : u + 32, k : k + 32].reshape(32, 4, 4, 2).astype(np.uint32)
                shift = np.arange(4, dtype=np.uint32) * 4
                words = (block[..., 0] << shift | block[..., 1] << (shift + 16)).sum(-1)
                lanes = words.reshape(4, 8, 4).transpose(1, 2, 0)  # [g, t, which row]
                out.append(lanes.astype(np.uint32).tobytes())
    return np.frombuffer(b"".join(out), np.uint8)


def four_bits(case: Case, group: int, has_offset: int, wide: int):
    """(weights, result)"""
    _, _, K = case.shape
    rng, n, groups = np.random.default_rng(19), case.units * 32, -(-K // group)
    kind = np.float32 if wide else np.float16
    q = rng.integers(0, 16, (n, K))
    scale = rng.uniform(0.01, 0.1, (n, groups)).astype(kind)
    offset = rng.normal(0, 0.3, (n, groups)).astype(kind) if has_offset else None
    data = packed(q, group, scale, offset)
    each = np.repeat(scale.astype(np.float64), group, 1)[:, :K]
    w = each * q if has_offset else each * (q - 8)
    if offset is not None:
        w += np.repeat(offset.astype(np.float64), group, 1)[:, :K]
    form = Form(group, has_offset, wide, data.size // case.units)
    return w, case.run("product_w4", case.device.put(data), ctypes.byref(form))


@pytest.mark.parametrize(("kind", "more"), KINDS)
@pytest.mark.parametrize(
    ("group", "has_offset", "wide"), [(128, 0, 0), (32, 1, 1), (64, 0, 1), (256, 1, 0)]
)
def test_four_bits(
    device: Device, kind: int, more: dict, *, group: int, has_offset: int, wide: int
) -> None:
    """Last groups shorter than the others, rows and columns that fill nothing."""
    case = Case(device, 11, 80, 672, kind=kind, **more)
    w, found = four_bits(case, group, has_offset, wide)
    want = case.want(w)
    assert np.linalg.norm(found - want) < 1e-5 * np.linalg.norm(want)


def test_four_bits_of_any_number_of_rows(device: Device) -> None:
    """8, 16 and 32 rows of a block: a row's bits are the same in all of them. 18 runs, 16 warps."""
    made = []
    for M in (1, 9, 37):
        case = Case(device, M, 48, 2304, kind=STORE)
        w, found = four_bits(case, 128, 0, 0)
        assert np.allclose(found, case.want(w), rtol=1e-4, atol=1e-3)
        made.append(found)
    assert np.array_equal(made[0], made[2][:1])
    assert np.array_equal(made[1], made[2][:9])


def test_four_bits_follow_what_makes_their_rows(device: Device) -> None:
    x = rows(5, 64, 64, 20)
    case = Case(device, 5, 32, 64, kind=STORE)
    at = device.put(np.zeros((5, 64), np.uint16))
    case.a, case.at = from_bf16(bf16(x)), at
    q, scale = np.full((32, 64), 9), np.full((32, 2), 0.5, np.float16)
    data = device.put(packed(q, 32, scale, None))
    out, form = device.put(rows(5, 32, 32, 0, np.nan)), Form(32, 0, 0, 32 * 2 * 2 + 1024)
    enter = Enter(device.put(x), 64, None, None, at, 5, 64, 0, -1, 0.0)
    device.launch("enter", enter)
    args = Product(at, data, None, out, 32, 5, 32, 64, STORE, 0, 0, 1.0, 0.0)
    device.launch("product_w4", args, ctypes.byref(form))
    want = np.repeat(case.a.sum(1, keepdims=True) * 0.5, 32, 1)
    assert np.allclose(device.get(out), want, rtol=1e-5, atol=1e-5)


def test_sums_of_a_library_are_finished(device: Device) -> None:
    """As behind our own products, from rows of whole units with a gap."""
    kinds = [{"kind": STORE}, {"kind": ADD}, {"kind": LOGITS}]
    kinds += [{"kind": ACT, "paired": 1, "act": act} for act in range(len(F4))]
    for N, kind in ((n, kind) for n in (80, 400) for kind in kinds):
        case = Case(device, 3, N, 8, **kind)
        w = rows(case.units * 32, 8, 8, 19)
        y = rows(3, case.units * 32, case.units * 32 + 5, 0, np.nan)
        y[:, : case.units * 32] = case.a @ w.T
        out = device.put(case.start)
        finish = (case.kind, case.act, case.paired, 0.25, 3.0 if case.kind == LOGITS else 0.0)
        place = (None, None, device.put(case.bias), out, case.cols + 7, 3, N, 0)
        device.launch("finish", FinishSums(*place, *finish, device.put(y), y.shape[1]))
        found = device.get(out)
        assert np.isnan(found[:, case.cols :]).all()
        assert np.allclose(found[:, : case.cols], case.want(w), rtol=1e-4, atol=1e-4)
