"""What every GPU instruction that kernels use must do, computed in NumPy, and how to ask a library.

Owns the cases: input, parameters and the output that the PTX manual's layouts and formats give,
written apart from the emulator and from the wrappers. A library is the emulator's or, on a GPU,
conformance.cu's:

    nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -Xcompiler -fPIC -shared \
        -o conformance.so csrc/kernels/cuda/conformance.cu
    python tests/conformance_cases.py conformance.so tests/goldens/cuda/h200.npz

records that GPU's output and says where it is not what NumPy expects. Used by
test_cuda_conformance.py.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

SPANS = {0: 16, 1: 32, 2: 64, 3: 128}  # bytes of a swizzle, by la_tensor_swizzle


class Shape(ctypes.Structure):
    """la_tensor_shape"""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("element_bytes", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("dims", ctypes.c_uint64 * 5),
        ("stride", ctypes.c_uint64 * 4),
        ("box", ctypes.c_uint32 * 5),
        ("swizzle", ctypes.c_int),
    )


class Call(ctypes.Structure):
    """la_conform_call"""

    _fields_ = (
        ("input", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("in_bytes", ctypes.c_size_t),
        ("out_bytes", ctypes.c_size_t),
        ("shape", Shape),
        ("p", ctypes.c_int32 * 16),
        ("seed", ctypes.c_uint32),
    )


@dataclass
class Case:
    """One run of a kernel. `expected` has the output's type; None where nothing may be said."""

    name: str
    kernel: str
    input: np.ndarray
    expected: np.ndarray
    p: list[int] = field(default_factory=list)
    out: np.ndarray | None = None  # what is there before; None: zeros
    tensor: Tensor | None = None
    scale: np.ndarray | None = None  # of the error that is allowed; None: not a bit
    tolerance: float = 0.0

    def check(self, got: np.ndarray, against: np.ndarray | None = None) -> str:
        """ "" or what differs."""
        expected = self.expected if against is None else against
        if self.scale is None:
            wrong = got.view(np.uint8) != expected.view(np.uint8)
        else:
            with np.errstate(invalid="ignore"):
                off = np.abs(got.astype(np.float64) - expected)
            wrong = ~(off <= self.tolerance * self.scale) & ~(got == expected)
        if not wrong.any():
            return ""
        at = int(np.flatnonzero(wrong.ravel())[0])
        of = wrong.size // got.size
        pair = f"{got.ravel()[at // of]!r}, not {expected.ravel()[at // of]!r}"
        return f"{self.name}: {int(wrong.sum())} of {wrong.size} differ, first at {at}: {pair}"


@dataclass
class Tensor:
    """A tensor of a map: memory with gaps between rows."""

    dims: tuple[int, ...]
    box: tuple[int, ...]
    element: int
    swizzle: int = 0
    output: bool = False

    @property
    def strides(self) -> list[int]:
        """Bytes from one index to the next, of every dimension."""
        out = [self.element]
        for size in self.dims[: len(self.dims) - 1]:
            out.append((out[-1] * size + 15) // 16 * 16 + 16)
        return out

    @property
    def memory_bytes(self) -> int:
        return (self.strides[-1] * self.dims[-1] + 15) // 16 * 16

    @property
    def box_bytes(self) -> int:
        return int(np.prod(self.box)) * self.element

    def shape(self) -> Shape:
        shape = Shape(1 if self.output else None, self.element, len(self.dims))
        shape.swizzle = self.swizzle
        for i, size in enumerate(self.dims):
            shape.dims[i], shape.box[i] = size, self.box[i]
            if i:
                shape.stride[i - 1] = self.strides[i]
        return shape

    def walk(self, at: tuple[int, ...]) -> Iterator[tuple[int, int | None]]:
        """(byte of the box in shared memory, byte of the tensor or None) of every element."""
        linear = 0
        for index in itertools.product(*[range(n) for n in reversed(self.box)]):
            place = [a + i for a, i in zip(at, reversed(index), strict=True)]
            live = all(0 <= x < n for x, n in zip(place, self.dims, strict=True))
            memory = sum(x * s for x, s in zip(place, self.strides, strict=True))
            yield int(swizzled(np.array(linear), self.swizzle)), memory if live else None
            linear += self.element


def swizzled(address: np.ndarray, mode: int) -> np.ndarray:
    """Bits 4.. of an address, exclusive-or bits 7.. of it."""
    return address ^ ((address >> 7 & (SPANS[mode] // 16 - 1)) << 4)


def load(lib: ctypes.CDLL) -> ctypes.CDLL:
    lib.la_conform_name.restype = ctypes.c_char_p
    return lib


def names(lib: ctypes.CDLL) -> list[str]:
    out: list[str] = []
    while (name := lib.la_conform_name(len(out))) is not None:
        out.append(name.decode())
    return out


def run(lib: ctypes.CDLL, case: Case, seed: int) -> np.ndarray:
    """The output of a case; raises with the reason of a failure."""
    before = np.zeros_like(case.expected) if case.out is None else case.out.copy()
    source = np.ascontiguousarray(case.input)
    call = Call(source.ctypes.data, before.ctypes.data, source.nbytes, before.nbytes)
    if case.tensor is not None:
        call.shape = case.tensor.shape()
    call.p = (ctypes.c_int32 * 16)(*case.p)
    call.seed = seed
    error = ctypes.create_string_buffer(4096)
    arguments = (case.kernel.encode(), ctypes.byref(call), error, ctypes.c_size_t(len(error)))
    if lib.la_conform_run(*arguments):
        raise RuntimeError(f"{case.name}: {error.value.decode()}")
    return before


# ---- number formats -----------------------------------------------------------------------------


def rounded(x: np.ndarray, digits: int, least: int) -> np.ndarray:
    """The nearest number with `digits` bits behind the point and exponents from `least`."""
    with np.errstate(invalid="ignore"):
        exponent = np.maximum(np.frexp(np.where(np.isfinite(x), x, 1.0))[1] - 1, least)
        return np.where(
            np.isfinite(x), np.ldexp(np.rint(np.ldexp(x, digits - exponent)), exponent - digits), x
        )


def bf16_codes(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = rounded(np.asarray(x, np.float64), 7, -126).astype(np.float32)
    return np.where(np.isnan(x), 0x7FFF, single.view(np.uint32) >> 16).astype(np.uint32)


def bf16_values(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def f16_codes(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = rounded(np.asarray(x, np.float64), 10, -14).astype(np.float16)
    return np.where(np.isnan(x), 0x7FFF, half.view(np.uint16)).astype(np.uint32)


def f16_values(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.uint16).view(np.float16).astype(np.float64)


def e4m3_table() -> np.ndarray:
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    size = np.where(exponent, (8 + fraction) * 2.0 ** (exponent - 10.0), fraction * 2.0**-9)
    size[(code & 127) == 127] = np.nan
    return np.where(code & 128, -size, size)


E4M3 = e4m3_table()


def e4m3_codes(x: np.ndarray) -> np.ndarray:
    """The nearest code, even ones at ties, by trying all."""
    size = np.where(np.isnan(x), 0.0, np.minimum(np.abs(x), 448.0))
    distance = np.abs(size[:, None] - E4M3[None, :127])
    ties = distance == distance.min(axis=1, keepdims=True)
    even = ties & (np.arange(127) % 2 == 0)
    best = np.where(even.any(axis=1), np.argmax(even, axis=1), np.argmax(ties, axis=1))
    return np.where(np.isnan(x), 127, best | np.where(np.signbit(x), 128, 0)).astype(np.uint32)


def values(kind: str, codes: np.ndarray) -> np.ndarray:
    if kind == "e4m3":
        return E4M3[codes]
    return bf16_values(codes) if kind == "bf16" else f16_values(codes)


def random_codes(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    if kind == "e4m3":
        return e4m3_codes(x.ravel() * 4).reshape(shape).astype(np.uint8)
    return (bf16_codes(x) if kind == "bf16" else f16_codes(x)).astype(np.uint16)


# ---- products -----------------------------------------------------------------------------------


def fragment_d(threads: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of d[i] of each thread, of 64 x N or 16 x 8."""
    t, i = np.meshgrid(np.arange(threads), np.arange(columns // 2), indexing="ij")
    lane = t % 32
    return t // 32 * 16 + lane // 4 + (i // 2 % 2) * 8, i // 4 * 8 + lane % 4 * 2 + i % 2


def fragment_a(threads: int, per_word: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and depth of the elements of the four words of A of each thread."""
    t, word, i = np.meshgrid(np.arange(threads), np.arange(4), np.arange(per_word), indexing="ij")
    lane = t % 32
    row = t // 32 * 16 + lane // 4 + word % 2 * 8
    return row, lane % 4 * per_word + i + word // 2 * 4 * per_word


@dataclass
class Layout:
    """Where an operand of wgmma lies: the addresses of [rows][depth] elements."""

    swizzle: int
    trans: bool
    rows: int
    element: int

    def distances(self) -> tuple[int, int]:
        """inner and outer of the descriptor, without gaps but for one."""
        span, depth = SPANS[self.swizzle], 32 // self.element
        if not self.trans:
            return (128, 256) if self.swizzle == 0 else (16, 8 * span)
        if self.swizzle == 0:
            return self.rows // 8 * 128, 128
        return depth // 8 * 8 * span + 1024, 8 * span

    def addresses(self, step: int) -> np.ndarray:
        row, k = np.meshgrid(np.arange(self.rows), np.arange(32 // self.element), indexing="ij")
        inner, outer = self.distances()
        span, run = SPANS[self.swizzle], SPANS[self.swizzle] // self.element
        if not self.trans:
            at = k * self.element + step * 32
            line = row // 8 * outer + row % 8 * span
            line = line + (at if self.swizzle else at // 16 * inner + at % 16)
        elif self.swizzle:
            line = row // run * inner + k // 8 * outer + k % 8 * span + row % run * self.element
        else:
            line = row // 8 * outer + k // 8 * inner + k % 8 * 16 + row % 8 * self.element
        return swizzled(line, self.swizzle)


def wgmma_case(kernel: str, swizzles: tuple[int, int], accumulate: int) -> Case:
    """A product whose operands lie under these swizzles; steps of depth vary with the columns."""
    kind, _, *trans, columns = kernel.split("_")[1:]
    n, element = int(columns), 1 if kind == "e4m3" else 2
    rng = np.random.default_rng([n, *swizzles, accumulate, len(kernel)])
    depth = 32 // element
    layouts = [
        Layout(swizzles[0], "ta" in "".join(trans), 64, element),
        Layout(swizzles[1], "tb" in "".join(trans), n, element),
    ]
    image = np.zeros(0, np.uint8)
    matrices, p = [], []
    for layout in layouts:
        steps = 1 if layout.trans or not layout.swizzle else SPANS[layout.swizzle] // 32
        step = (n // 8) % steps
        start = (image.size + 1023) // 1024 * 1024
        codes = random_codes(rng, kind, (layout.rows, depth))
        address = start + layout.addresses(step)
        size = (int(address.max()) + element + 1023) // 1024 * 1024
        image = np.concatenate([image, rng.integers(0, 256, size - image.size, dtype=np.uint8)])
        for byte in range(element):
            image[address + byte] = codes >> (8 * byte) & 255
        p += [start + (0 if layout.trans else step * 32), *layout.distances(), layout.swizzle]
        matrices.append(values(kind, codes))
        if len(matrices) == 1:
            row, k = fragment_a(128, 4 // element)
            registers = np.ascontiguousarray(codes[row, k]).view(np.uint8).ravel()
    before = rng.standard_normal((128, n // 2)).astype(np.float32)
    row, column = fragment_d(128, n)
    product = (matrices[0] @ matrices[1].T)[row, column]
    weight = (np.abs(matrices[0]) @ np.abs(matrices[1]).T)[row, column]
    return Case(
        name=f"{kernel}/{SPANS[swizzles[0]]},{SPANS[swizzles[1]]}/{accumulate}",
        kernel=kernel,
        input=np.concatenate([image, registers, before.view(np.uint8).ravel()]),
        expected=(product + accumulate * before).astype(np.float32),
        p=[*p, image.size, accumulate],
        scale=weight + np.abs(before),
        tolerance=1e-3 if kind == "e4m3" else 2e-6,  # GPUs keep fewer bits of sums of E4M3
    )


def wgmma_cases(kernels: list[str]) -> Iterator[Case]:
    for kernel in kernels:
        if not kernel.startswith("wgmma_"):
            continue
        n = int(kernel.rpartition("_")[2])
        if n in (64, 128, 256):
            for mode in range(4):
                yield wgmma_case(kernel, (mode, mode), mode % 2)
            yield wgmma_case(kernel, (3, 1), 1)
        else:
            yield wgmma_case(kernel, (n // 8 % 4, (n // 8 + 1) % 4), n // 8 % 2)


def mma_cases() -> Iterator[Case]:
    for kind in ("bf16", "f16", "e4m3", "s8"):
        rng = np.random.default_rng(len(kind))
        per_word = 4 if kind in ("e4m3", "s8") else 2
        depth = 8 * per_word
        if kind == "s8":
            a, b = (rng.integers(0, 256, s, dtype=np.uint8) for s in ((16, depth), (depth, 8)))
            a_values, b_values = (x.view(np.int8).astype(np.float64) for x in (a, b))
            d = rng.integers(-1000, 1000, (32, 4)).astype(np.int32)
        else:
            a, b = (random_codes(rng, kind, s) for s in ((16, depth), (depth, 8)))
            a_values, b_values = values(kind, a), values(kind, b)
            d = rng.standard_normal((32, 4)).astype(np.float32)
        lane, word, i = np.meshgrid(np.arange(32), np.arange(2), np.arange(per_word), indexing="ij")
        b_words = b[lane % 4 * per_word + i + word * 4 * per_word, lane // 4]
        row, k = fragment_a(32, per_word)
        words = [x.view(np.uint32).reshape(32, -1) for x in (a[row, k], b_words, d)]
        row, column = fragment_d(32, 8)
        weight = (np.abs(a_values) @ np.abs(b_values))[row, column] + np.abs(d)
        yield Case(
            name=f"mma_{kind}",
            kernel=f"mma_{kind}",
            input=np.concatenate(words, axis=1),
            expected=((a_values @ b_values)[row, column] + d).astype(d.dtype),
            scale=None if kind == "s8" else weight,
            tolerance=1e-3 if kind == "e4m3" else 2e-6,
        )


def matrix_cases() -> Iterator[Case]:
    """ldmatrix and stmatrix: rows of 16 bytes anywhere in 2048."""
    for count, trans in itertools.product((4, 2), (0, 1)):
        rng = np.random.default_rng(count * 2 + trans)
        image = rng.integers(0, 1 << 16, 1024, dtype=np.uint16)
        rows = rng.permutation(128)[:32]
        lane, m, half = np.meshgrid(np.arange(32), np.arange(count), np.arange(2), indexing="ij")
        line, column = lane // 4, lane % 4 * 2 + half
        if trans:
            line, column = column, line
        at = rows[m * 8 + line] * 8 + column
        suffix = f"x{count}" + "_trans" * trans
        offsets = (rows * 16).astype(np.uint32).view(np.uint16)
        yield Case(
            name=f"ldmatrix_{suffix}",
            kernel=f"ldmatrix_{suffix}",
            input=np.concatenate([image, offsets]),
            expected=image[at].view(np.uint32).reshape(32, count),
        )
        words = rng.integers(0, 1 << 16, (32, count, 2), dtype=np.uint16)
        after = image.copy()
        after[at] = words
        yield Case(
            name=f"stmatrix_{suffix}",
            kernel=f"stmatrix_{suffix}",
            input=np.concatenate([image, offsets, words.ravel()]),
            expected=after,
        )


# ---- copies -------------------------------------------------------------------------------------

TENSORS = [
    (Tensor((100,), (64,), 4), (80,)),
    (Tensor((40, 20), (64, 16), 2, 3), (0, 8)),
    (Tensor((200, 9), (64, 8), 2, 3), (-8, -3)),
    (Tensor((200, 9), (32, 16), 2, 2), (180, 0)),
    (Tensor((64, 50), (16, 40), 2, 1), (56, 30)),
    (Tensor((300, 6), (128, 8), 1, 3), (250, -1)),
    (Tensor((12, 30), (8, 16), 4, 1), (8, 20)),
    (Tensor((33, 17), (16, 8), 8, 3), (20, 12)),
    (Tensor((20, 6, 5), (8, 4, 3), 2), (16, 3, 3)),
    (Tensor((70, 5, 4), (64, 4, 2), 2, 3), (8, -2, 2)),
    (Tensor((24, 5, 4, 3), (16, 3, 2, 2), 2, 1), (16, 3, -1, 2)),
    (Tensor((10, 4, 3, 3, 2), (4, 2, 2, 2, 2), 4), (8, 3, 1, 2, 1)),
    (Tensor((40, 20), (64, 16), 2, 3), (64, 0)),
]


def copy_cases() -> Iterator[Case]:
    for number, (tensor, at) in enumerate(TENSORS):
        rng = np.random.default_rng(number)
        memory = rng.integers(1, 256, tensor.memory_bytes, dtype=np.uint8)
        box = rng.integers(1, 256, tensor.box_bytes, dtype=np.uint8)
        filled, written = np.zeros_like(box), memory.copy()
        for inside, outside in tensor.walk(at):
            if outside is not None:
                line = slice(inside, inside + tensor.element)
                filled[line] = memory[outside : outside + tensor.element]
                written[outside : outside + tensor.element] = box[line]
        p = [len(at), *at, *[0] * (5 - len(at)), tensor.box_bytes]
        for kernel in ("tma_load", "tma_load_hint"):
            yield Case(f"{kernel}/{number}", kernel, memory, filled, p, tensor=tensor)
        if len(at) == 2:
            twice = np.concatenate([filled, filled])
            yield Case(f"tma_multicast/{number}", "tma_multicast", memory, twice, p, tensor=tensor)
        target = Tensor(tensor.dims, tensor.box, tensor.element, tensor.swizzle, output=True)
        yield Case(f"tma_store/{number}", "tma_store", box, written, p, out=memory, tensor=target)
    rng = np.random.default_rng(99)
    data = rng.integers(0, 256, 4096, dtype=np.uint8)
    for kernel in ("bulk", "bulk_hint"):
        yield Case(kernel, kernel, data, data, [4096])
    for size in (16, 4):
        valid = rng.integers(0, size + 1, 32) if size == 16 else rng.integers(0, 2, 32) * 4
        lines = data[: 32 * size].reshape(32, size)
        expected = np.where(np.arange(size) < valid[:, None], lines, 0).astype(np.uint8)
        source = np.concatenate([lines.ravel(), valid.astype(np.int32).view(np.uint8)])
        kernel = f"cp_async_{size}"
        yield Case(kernel, kernel, source, expected.ravel(), [8 * size])
    yield Case("cp_async_barrier", "cp_async_barrier", data[:512], data[:512])


# ---- threads ------------------------------------------------------------------------------------


def thread_cases() -> Iterator[Case]:
    rng = np.random.default_rng(5)
    lane = np.arange(32)
    x = rng.integers(0, 50, 32).astype(np.uint32)
    low = lane < 16
    bits = np.uint32(1) << lane.astype(np.uint32)
    odd, second = (int(bits[(x & b) != 0].sum()) for b in (1, 2))
    half = np.where(low, second & 0xFFFF, second & 0xFFFF0000)
    smallest = np.where(low, x[:16].min(), x[16:].min())
    rows = [
        x[(lane * 7 + 3) % 32],
        x[lane ^ 5],
        x[np.where(lane + 3 < 32, lane + 3, lane)],
        x[np.where(lane >= 9, lane - 9, lane)],
        x[lane ^ 8],
        np.full(32, odd),
        half,
        np.full(32, int((x == 7).any()) * 2 + int((x != 7).all())),
        np.full(32, x.sum()),
        smallest,
        np.full(32, x.max()),
        np.full(32, 1),
        x[lane ^ 16],
        x[31 - lane],
        np.full(32, 5),
    ]
    yield Case("warp", "warp", x, np.concatenate(rows).astype(np.uint32))
    words = rng.integers(0, 1000, 128).astype(np.uint32)
    block = np.stack(
        [np.full(128, words.sum()), np.arange(128) * 1000 + 128, np.full(128, 211), np.zeros(128)],
        1,
    ).astype(np.uint32)
    both = np.concatenate([block.ravel(), block.ravel(), [2 * words.sum(), 0, 0, 0]])
    yield Case("block", "block", words, both.astype(np.uint32))
    data = rng.integers(0, 1 << 32, 64, dtype=np.uint32)
    phases = [1, 0, 0, 1, 0, 0, 1, int(data[63]), 11, 0, 0, 0]
    yield Case("mbar", "mbar", data, np.array(phases, np.uint32))
    yield cluster_case(rng)
    yield memory_case(rng)


def cluster_case(rng: np.random.Generator) -> Case:
    mine = rng.integers(0, 1 << 32, (2, 128), dtype=np.uint32)
    out = np.zeros((2, 512), np.uint32)
    lane = np.arange(32)
    for rank in range(2):
        other = mine[rank ^ 1]
        lines = other.reshape(32, 4)
        rows = [
            other[:32],
            lines[:, 0] ^ lines[:, 1] ^ lines[:, 2] ^ lines[:, 3],
            (rank ^ 1) * 1000 + lane,
            lane,
            lines[:, 3],
            np.full(32, 32 + rank),
        ]
        out[rank, :192] = np.concatenate(rows)
    return Case("cluster", "cluster", mine, out)


def memory_case(rng: np.random.Generator) -> Case:
    data = rng.integers(0, 256, 64, dtype=np.uint8)
    words = data.view(np.uint32)
    out = np.zeros(28, np.uint32)

    def folded(four: np.ndarray) -> int:
        a, b, c, d = (int(w) for w in four)
        return (a ^ (b << 1) ^ (c << 2) ^ (d << 3)) & 0xFFFFFFFF

    first = [data[3], int(data[6]) | int(data[7]) << 8, words[3], words[1]]
    first += [words[2] ^ words[3], folded(words[4:8]), folded(words[8:12]), words[5], words[3]]
    out[:9] = first
    after = data.copy()
    four = words[4:8].copy()
    after[0] = four[0] & 255
    after[2:4] = np.array([four[1] & 0xFFFF], np.uint16).view(np.uint8)
    after[4:8] = four[2:3].view(np.uint8)
    after[8:12] = four[3:4].view(np.uint8)
    after[16:24] = data[8:16]
    after[32:48] = data[32:48]
    out[12:28] = after.view(np.uint32)
    return Case("memory", "memory", data, out)


# ---- numbers ------------------------------------------------------------------------------------


def triples(rng: np.random.Generator) -> np.ndarray:
    """[n][3] words: floats of every size, edges of the formats, any bits."""
    spread = rng.standard_normal((512, 3)) * 2.0 ** rng.integers(-30, 30, (512, 3))
    small = np.concatenate([E4M3[:127], (E4M3[:126] + E4M3[1:127]) / 2, -E4M3[:127]])
    edges = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 65519.9, 448, 464, 480, 1e-40]
    )
    edges = np.concatenate([edges, small, small * (1 + 2.0**-12), 2.0 ** np.arange(-30, 20)])
    some = np.stack([edges, np.roll(edges, 7), np.roll(edges, 31)], axis=1)
    with np.errstate(over="ignore"):
        floats = np.concatenate([spread, some]).astype(np.float32)
    return floats.view(np.uint32)


def halves(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return words & 0xFFFF, words >> 16


def lop3(x: np.ndarray, y: np.ndarray, z: np.ndarray, table: int) -> np.ndarray:
    out = np.zeros_like(x)
    for bit in range(32):
        index = (x >> bit & 1) << 2 | (y >> bit & 1) << 1 | (z >> bit & 1)
        out |= (table >> index.astype(np.int64) & 1).astype(np.uint32) << bit
    return out.astype(np.uint32)


def prmt(x: np.ndarray, y: np.ndarray, pick: np.ndarray) -> np.ndarray:
    eight = np.stack([x, y], axis=1).view(np.uint8)  # [n][8], little end first
    lines = np.arange(len(x))
    out = np.zeros((len(x), 4), np.uint8)
    for i in range(4):
        nibble = pick >> (4 * i) & 15
        byte = eight[lines, nibble & 7]
        out[:, i] = np.where(nibble & 8, np.where(byte & 128, 255, 0), byte)
    return out.view(np.uint32).ravel()


def nibbles(words: np.ndarray, base: int) -> np.ndarray:
    """What the four pairs of la_i4_* give, shifted over each other as the kernel does."""
    out = np.zeros_like(words)
    for pair in range(4):
        low, high = words >> (4 * pair) & 15, words >> (4 * pair + 16) & 15
        out ^= ((low | base) | (high | base) << 16) << (4 * pair)
    return out


def number_cases() -> Iterator[Case]:
    rng = np.random.default_rng(11)
    floats = triples(rng)
    bits = rng.integers(0, 1 << 32, (1024, 3), dtype=np.uint32)
    x, y = (
        np.ascontiguousarray(floats[:, i]).view(np.float32).astype(np.float64) for i in range(2)
    )
    b = [np.ascontiguousarray(bits[:, i]) for i in range(3)]

    def case(name: str, source: np.ndarray, expected: np.ndarray) -> Case:
        return Case(name, name, source, expected.astype(np.uint32), [len(source)])

    for name, codes, shift in (
        ("bf16x2", bf16_codes, 16),
        ("f16x2", f16_codes, 16),
        ("e4m3x2", e4m3_codes, 8),
    ):
        yield case(name, floats, codes(x) | codes(y) << shift)
    yield case("lop3", bits, lop3(*b, table=0x6A))
    yield case("prmt", bits, prmt(*b))
    yield case("i4_bf16x2", bits, nibbles(b[0], 0x4300))
    yield case("i4_f16x2", bits, nibbles(b[0], 0x6400))
    two = E4M3[np.stack([b[0] & 255, b[0] >> 8 & 255])]
    yield case("e4m3x2_f16x2", bits, f16_codes(two[0]) | f16_codes(two[1]) << 16)
    yield case("bf16_lo", bits, b[0] << 16)
    yield case("bf16_hi", bits, b[0] & 0xFFFF0000)
    finite = bits.copy()  # a NaN of fp16 becomes any NaN of fp32
    finite[:, 0] &= 0xBFFFBFFF
    for name, half in zip(("f16_lo", "f16_hi"), halves(finite[:, 0]), strict=True):
        yield case(name, finite, f16_values(half).astype(np.float32).view(np.uint32))
    for name, codes, numbers in (
        ("fma_bf16x2", bf16_codes, bf16_values),
        ("fma_f16x2", f16_codes, f16_values),
    ):
        packed = codes(rng.standard_normal((1024, 3, 2)) * 2.0 ** rng.integers(-3, 4, (1024, 3, 2)))
        value = numbers(packed)
        word = codes(value[:, 0] * value[:, 1] + value[:, 2])
        source = (packed[..., 0] | packed[..., 1] << 16).astype(np.uint32)
        yield case(name, source, word[:, 0] | word[:, 1] << 16)
    yield from approximate_cases(rng)


def approximate_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Functions within some units of the last place; fma where double has the sum exactly."""
    x = (rng.standard_normal((1024, 3)) * 8).astype(np.float32)
    short = (rng.integers(-2048, 2048, (1024, 3)) / 64).astype(np.float32)
    exact = (short[:, 0].astype(np.float64) * short[:, 1] + short[:, 2]).astype(np.float32)
    yield Case("fma", "fma", short, exact, [1024])
    positive = np.abs(x) + np.float32(1e-3)
    first = positive[:, 0].astype(np.float64)
    for name, source, result in (
        ("exp2", x, np.exp2(x[:, 0].astype(np.float64))),
        ("log2", positive, np.log2(first)),
        ("rcp", positive, 1 / first),
        ("rsqrt", positive, 1 / np.sqrt(first)),
    ):
        scale = np.abs(result) + (1.0 if name == "log2" else 0.0)
        expected = result.astype(np.float32)
        yield Case(name, name, source, expected, [1024], scale=scale, tolerance=2.0**-21)


def cases(kernels: list[str]) -> list[Case]:
    """All cases; every kernel of the list has one."""
    made = [*wgmma_cases(kernels), *mma_cases(), *matrix_cases(), *copy_cases(), *thread_cases()]
    made += number_cases()
    missing = set(kernels) - {case.kernel for case in made}
    assert not missing, f"no case for {sorted(missing)}"
    return made


def record(library: str, target: str) -> int:
    """Writes what a GPU gives; returns how many cases are not what NumPy expects."""
    lib = load(ctypes.CDLL(library))
    outputs, wrong = {}, 0
    for case in cases(names(lib)):
        got = run(lib, case, 0)
        outputs[case.name.replace("/", ":")] = got
        if difference := case.check(got):
            wrong += 1
            print(difference)
    np.savez_compressed(target, **outputs)
    print(f"{len(outputs)} cases, {wrong} not as expected")
    return wrong


if __name__ == "__main__":
    sys.exit(record(sys.argv[1], sys.argv[2]) > 0)
