"""Products by cuBLASLt: our calls of it, held to a library of the same functions on the host.

tests/cuda_emu/fake_cublaslt.cpp refuses what the real one would (layouts, transposes, alignments,
an algorithm of another shape) and computes the rest. Models with fast_math use it on the emulated
device; FP8 is asked for by benchmarks alone, as models cannot hold such weights on a device yet.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from ctypes import c_int, c_size_t, c_void_p
from pathlib import Path

import emulator
import numpy as np
import pytest
import test_cuda_rows as rows
from emulator import bf16, from_bf16
from launches import LtProduct
from test_cuda_backend import checkpoint, counts, greedy, open_on, prompts
from test_cuda_backend import emulated as emulated_backend

from llmaccel import UnsupportedError, _core
from llmaccel.cli import _cublas
from llmaccel.errors import ConfigError, LLMAccelError

emulated = emulated_backend
NAME = "libcublasLt.so.13"
BF16, F16, E4M3 = range(3)
ROOM = 4096  # the least that the library takes


class Fake:
    """What a test sets and sees of the library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lib = ctypes.CDLL(str(path))
        self.lib.fake_said.restype = ctypes.c_char_p
        self.set()

    def set(self, version: int = 130102, refuse_from: int = 0, fail: int = 0) -> None:
        self.lib.fake_set(c_size_t(version), refuse_from, fail)

    @property
    def said(self) -> str:
        return self.lib.fake_said().decode()

    @property
    def counts(self) -> tuple[int, ...]:
        """(descriptions alive, heuristics asked, products made, those with a bias, handles)"""
        out = (c_int * 5)()
        self.lib.fake_count(out)
        return tuple(out)


@pytest.fixture(scope="session")
def built() -> Path:
    return emulator.cublas()


@pytest.fixture
def fake(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """On the search's path; what was made of it is given back."""
    monkeypatch.setenv("CUDA_HOME", str(built.parents[1]))
    gc.collect()
    made = Fake(built)
    yield made
    gc.collect()
    assert made.said == ""
    assert made.counts[0] == 0


# ---- single products -----------------------------------------------------------------------------


class Library:
    """la_cublas_* of the emulated backend."""

    def __init__(self, file: str, loaded: bool = False) -> None:
        self.device = rows.Device()
        self.lib = self.device.rt.lib
        for name in ("open", "name"):
            getattr(self.lib, f"la_cublas_{name}").restype = c_void_p
        why = emulator.Error()
        made = self.lib.la_cublas_open(file.encode(), int(loaded), *why.args())
        self.why, self.made = str(why), c_void_p(made)

    def can(self, product: LtProduct) -> bool:
        return self.lib.la_cublas_can(self.made, ctypes.byref(product)) == 1

    def ask(self, product: LtProduct) -> None:
        stream = c_void_p(self.device.stream)
        self.lib.la_cublas_ask(self.made, stream, ctypes.byref(product))

    def close(self) -> None:
        self.lib.la_cublas_close(self.made)
        self.lib.la_rt_close(self.device.rt.rt)


def eights(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E4M3 codes, their values) of numbers in between."""
    codes = np.arange(127, dtype=np.uint8)
    e, m = (codes >> 3).astype(int), (codes & 7).astype(float)
    values = np.where(e == 0, m * 2.0**-9, (8 + m) * 2.0 ** (e - 10))
    nearest = np.abs(np.abs(x)[..., None] - values).argmin(-1)
    return (codes[nearest] | ((x < 0) << 7)).astype(np.uint8), np.sign(x) * values[nearest]


def operands(kind: int, M: int, N: int, K: int) -> tuple[np.ndarray, ...]:
    """Codes and values of a and w."""
    rng = np.random.default_rng(M * N + K)
    made = []
    for shape in ((M, K), (N, K)):
        x = rng.normal(size=shape).astype(np.float32)
        if kind == E4M3:
            made += eights(x)
        elif kind == F16:
            made += [x.astype(np.float16), x.astype(np.float16).astype(np.float64)]
        else:
            made += [bf16(x), from_bf16(bf16(x)).astype(np.float64)]
    return tuple(made)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.5, 1.0)])
@pytest.mark.parametrize(
    ("kind", "M", "N", "K"),
    [(BF16, 1, 40, 24), (BF16, 7, 33, 64), (F16, 5, 64, 72), (E4M3, 3, 300, 272)],
)
def test_products(fake: Fake, kind: int, M: int, N: int, K: int, *, alpha, beta, biased) -> None:
    """Rows of out are further apart than they are long; what is between them stays."""
    library = Library(str(fake.path))
    device, rng = library.device, np.random.default_rng(4)
    a, exact_a, w, exact_w = operands(kind, M, N, K)
    blocks = -(-K // 128)
    a_scale = rng.uniform(0.5, 2, (blocks, M)).astype(np.float32)
    w_scale = rng.uniform(0.5, 2, (-(-N // 128), -(-blocks // 4) * 4)).astype(np.float32)
    bias = rng.normal(size=N).astype(np.float32)
    out = rng.normal(size=(M, N + 7)).astype(np.float32)
    at = device.put(out)
    product = LtProduct(device.put(a), device.put(w), None, None, None, at, N + 7)
    product.room, product.room_bytes = device.put(np.zeros(ROOM, np.uint8)), ROOM
    product.M, product.N, product.K, product.type = M, N, K, kind
    product.alpha, product.beta = alpha, beta
    if kind == E4M3:
        product.a_scale, product.w_scale = device.put(a_scale), device.put(w_scale)
        k = np.arange(K) // 128
        exact_a = exact_a * a_scale.T[:, k]
        exact_w = exact_w * w_scale[np.arange(N)[:, None] // 128, k]
    if biased:
        product.bias = device.put(bias)
    assert library.can(product)
    library.ask(product)
    found = device.get(at)
    want = alpha * (exact_a @ exact_w.T) + beta * out[:, :N] + (bias if biased else 0)
    np.testing.assert_allclose(found[:, :N], want, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found[:, N:], out[:, N:])
    assert fake.counts[1:4] == (1, 1, int(biased))
    assert library.can(product)  # the answer is kept
    handles = fake.counts[4]
    assert fake.counts[1] == 1
    library.close()
    assert fake.counts[4] == handles - 1


def test_answers_are_of_a_shape(fake: Fake) -> None:
    """4 rows have an algorithm, 5 have not; what lies elsewhere is asked about anew."""
    fake.set(refuse_from=5)
    library = Library(str(fake.path))
    product = LtProduct(a=1 << 12, w=1 << 13, out=1 << 14, ldo=8, room=1 << 15, room_bytes=ROOM)
    product.N, product.K, product.alpha = 8, 8, 1.0
    for product.M, can in ((4, True), (5, False), (4, True), (5, False)):
        assert library.can(product) == can
    assert fake.counts[1] == 2
    product.M, product.out = 4, (1 << 14) + 16  # of another alignment
    assert library.can(product)
    assert fake.counts[1] == 3
    for product.a, product.a_align in ((1 << 12, 16), ((1 << 12) + 32, 16), ((1 << 12) + 16, 0)):
        assert library.can(product)  # blocks of rows that promise no more than the least of them
    assert fake.counts[1] == 4
    library.close()


def test_a_product_that_fails_is_the_devices_failure(fake: Fake) -> None:
    library = Library(str(fake.path))
    device = library.device
    fill = np.zeros(4096, np.uint8)
    product = LtProduct(device.put(fill), device.put(fill), None, None, None, device.put(fill), 8)
    product.room, product.room_bytes = device.put(fill), ROOM
    product.M, product.N, product.K, product.alpha = 2, 8, 16, 1.0
    assert library.can(product)
    fake.set(fail=13)
    library.ask(product)
    assert device.rt.stream_wait(device.stream) == -1
    assert device.rt.message == "cublasLtMatmul of 2 x 8 x 16: status 13"
    library.close()
    fake.set()


# ---- the library itself --------------------------------------------------------------------------


def test_another_version_is_refused(fake: Fake) -> None:
    for version, text in ((120805, "version 12, not 13"), (140000, "version 14, not 13")):
        fake.set(version)
        library = Library(str(fake.path))
        assert library.made.value is None
        assert text in library.why
        library.close()
    fake.set()


def test_an_object_without_the_functions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int cublasLtCreate(void **h) { *h = 0; return 0; }")
    out = tmp_path / "a.so"
    emulator.run([emulator.compiler(), "-shared", "-fPIC", str(tmp_path / "a.c"), "-o", str(out)])
    for file, text in ((out, "a.so: no cublasLtGetVersion"), (tmp_path / "b.so", "cannot open")):
        library = Library(str(file))
        assert library.made.value is None
        assert text in library.why
        library.close()


SEARCH = """
import ctypes, sys
from llmaccel.cublas import candidates, find_cublas
from llmaccel.environment import open_device
if sys.argv[1] == "loaded":
    ctypes.CDLL(sys.argv[2])
print([at for at, _ in candidates()])
print(find_cublas(open_device("cuda")))
"""


@pytest.mark.parametrize("how", ["loaded", "home", "wheel", "nowhere"])
def test_the_search(
    how: str, built: Path, tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded already is taken as it is; then come the wheel's folder and CUDA_HOME."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    wheel = tmp_path / "nvidia" / "cu13" / "lib" / NAME
    if how == "home":
        monkeypatch.setenv("CUDA_HOME", str(built.parents[1]))
    if how == "wheel":
        wheel.parent.mkdir(parents=True)
        wheel.write_bytes(built.read_bytes())
    command = [sys.executable, "-c", SEARCH, how, str(built)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    if how == "nowhere":
        assert said[1].startswith("(None, 'libcublasLt.so.13: ")
        return
    at = wheel if how == "wheel" else built
    assert said[1] == str((f"cuBLASLt 13.1.2 ({at})", ""))


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama-bias", "qwen3", "gemma2", "gpt2"])
def test_models_multiply_by_it(family: str, tmp_path: Path, fake: Fake, emulated: str) -> None:
    """Biases, gates, softcaps, scales: as near to the CPU's fp32 as our own products."""
    folder, ids = checkpoint(family, tmp_path), list(range(3, 71))
    logits = {}
    kinds = {"exact": {"dtype": "float32"}, "own": {}, "fast": {"fast_math": True}}
    for name, options in kinds.items():
        with open_on(folder, "cpu" if name == "exact" else "cuda", **options) as llm:
            logits[name] = np.asarray(llm.logits(ids)).copy()
            report = llm.report()
        assert report["model"]["products"].startswith(
            "cuBLASLt 13.1.2" if name == "fast" else "own"
        )
    size = np.linalg.norm(logits["exact"])
    error = {name: np.linalg.norm(made - logits["exact"]) / size for name, made in logits.items()}
    assert 0 < error["fast"] <= 1.1 * error["own"]
    assert report["backend"]["library_products"] >= 9
    assert report["backend"]["library_refused"] == 0
    assert fake.counts[2] >= 9
    assert (fake.counts[3] > 0) == (family in ("llama-bias", "gpt2"))


def test_decoding_replays_what_it_asked(tmp_path: Path, fake: Fake, emulated: str) -> None:
    folder, asked = checkpoint("llama", tmp_path), prompts(3, 20, seed=6)
    with open_on(folder, "cuda", fast_math=True) as llm:
        first = greedy(llm, asked, 5)
        made, replays = fake.counts[2], counts().replays
        again = greedy(llm, asked, 5)
        steps = counts().replays - replays
        assert steps >= 4
        assert fake.counts[2] - made >= 13 * (1 + steps)  # of two layers and the head
    for (ids, best), (want, wanted) in zip(again, first, strict=True):
        assert ids == want
        assert np.array_equal(best, wanted)


def test_what_it_does_not_make_our_kernels_do_and_it_is_counted(
    tmp_path: Path, fake: Fake, emulated: str
) -> None:
    folder, ids = checkpoint("llama", tmp_path), list(range(3, 43))
    fake.set(refuse_from=33)  # a tile of logits has 32 rows
    made = []
    for fast in (False, True):
        with open_on(folder, "cuda", fast_math=fast) as llm:
            made.append(np.asarray(llm.logits(ids)).copy())
            info = llm.report()["backend"]
    assert (info["library_products"], info["library_refused"]) == (2, 12)
    np.testing.assert_allclose(made[0], made[1], rtol=1e-3, atol=1e-3)


def test_without_it_our_kernels_multiply_and_report_says_so(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr("llmaccel.cublas.candidates", lambda: [("/nowhere/" + NAME, False)])
    folder, ids = checkpoint("llama", tmp_path), list(range(3, 43))
    made = []
    for fast in (False, True):
        with open_on(folder, "cuda", fast_math=fast) as llm:
            made.append(np.asarray(llm.logits(ids)).copy())
            products = llm.report()["model"]["products"]
    assert np.array_equal(*made)
    assert products.startswith("own kernels: no cuBLASLt (/nowhere/libcublasLt.so.13: ")
    assert "our own kernels multiply" in caplog.text
    assert _cublas().startswith("not found, so fast_math takes our own kernels: /nowhere/")


def test_a_failing_library_ends_requests_with_its_reason(
    tmp_path: Path, fake: Fake, emulated: str
) -> None:
    with open_on(checkpoint("llama", tmp_path), "cuda", fast_math=True) as llm:
        fake.set(fail=14)
        with pytest.raises(LLMAccelError, match=r"cuda: cublasLtMatmul of .*: status 14"):
            greedy(llm, prompts(2, 10), 4)
        fake.set()


def test_who_may_ask_for_it(tmp_path: Path, fake: Fake, emulated: str) -> None:
    folder = checkpoint("llama", tmp_path)
    with pytest.raises(UnsupportedError, match="fast_math: backend='cpu' has exact kernels only"):
        open_on(folder, "cpu", fast_math=True)
    with pytest.raises(ConfigError, match="fast_math=2: expected True or False"):
        open_on(folder, "cuda", fast_math=2)
    assert _cublas().startswith(f"cuBLASLt 13.1.2 ({fake.path.parent}")
    with pytest.raises(UnsupportedError, match="library: backend 'cpu' uses none"):
        _core.Backend("cpu").load_library(NAME)
