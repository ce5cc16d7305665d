"""llmaccel.kernels as its users call it: any array in, Tensor out, against float64 and torch.

The slots behind the functions are tested value by value in test_rows.py, test_gemm.py,
test_attention.py and test_sample_kernels.py; here every family is called on every instruction set,
and everything an argument can get wrong is.
"""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import reference
import reference_rows as ref
from reference_kernels import act_values

import llmaccel
from llmaccel import ConfigError, MemoryPlanError, Tensor, UnsupportedError, kernels

ISAS = kernels.isas()
BLOCKS = {"Q4_0": 32, "Q4_1": 32, "Q5_0": 32, "Q5_1": 32, "Q8_0": 32}
BLOCKS |= {"Q2_K": 256, "Q3_K": 256, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256}

each_isa = pytest.mark.parametrize("isa", ISAS)
# Of the largest value.
KV_TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2, "int8": 5e-2, "fp8": 2e-1}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(0, 1, shape).astype(np.float32)


def close(got: Tensor, want: np.ndarray, rtol: float) -> None:
    """Within rtol of the largest value."""
    assert got.shape == want.shape
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=rtol * np.abs(want).max())


def bits(x: Tensor) -> bytes:
    return bytes(memoryview(x))


# ---- the whole surface ---------------------------------------------------------------------------


def test_every_public_name_is_documented() -> None:
    for name in kernels.__all__:
        thing = getattr(kernels, name)
        assert thing.__doc__, name
        assert name in kernels.__doc__
        if inspect.isclass(thing):
            for key, member in vars(thing).items():
                if not key.startswith("_"):
                    assert (member.fget if isinstance(member, property) else member).__doc__, key


def test_import_is_lazy_and_without_torch() -> None:
    program = (
        "import sys, llmaccel\n"
        "assert 'llmaccel.kernels' not in sys.modules\n"
        "llmaccel.kernels.isas()\n"
        "assert 'torch' not in sys.modules\n"
        "from llmaccel import kernels, Tensor\n"
        "assert 'kernels' in dir(llmaccel) and 'Tensor' in dir(llmaccel)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert {"Tensor", "kernels"} <= set(llmaccel.__all__)


# ---- rows ----------------------------------------------------------------------------------------


@each_isa
def test_rows_of_any_shape(isa: str) -> None:
    x, w, b = normal(2, 3, 5, 48), normal(48, seed=1), normal(48, seed=2)
    for bias in (None, b):
        want = np.apply_along_axis(ref.layer_norm, -1, x, w, bias, 1e-5)
        close(kernels.layer_norm(x, w, bias, isa=isa), want, 4e-6)
    got = kernels.rms_norm(x, w, 1e-5, isa=isa)
    close(got, np.apply_along_axis(ref.rms_norm, -1, x, w, 1e-5), 1e-6)
    alone = kernels.rms_norm(x[1, 2, 3], w, 1e-5, isa=isa)
    assert bits(alone) == got.numpy()[1, 2, 3].tobytes()  # a row is its own affair
    y = normal(*x.shape, seed=3)
    close(kernels.add(x, y, isa=isa), ref.add(x, y), 1e-6)
    close(kernels.add(x, y, 0.25, isa=isa), ref.add_scaled(x, 0.25, y), 1e-6)
    close(kernels.act(x, "gelu", isa=isa), ref.act("gelu", x), 1e-6)
    close(kernels.act_mul(x, y, isa=isa), ref.act_mul("silu", x, y), 1e-6)
    close(kernels.softcap(x, 2.0, 3.0, isa=isa), ref.softcap(x, 3.0, 2.0), 1e-6)


@each_isa
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_each_token_by_its_angles(isa: str, interleaved: bool) -> None:
    x, freq = normal(7, 3, 20), (10.0 ** -np.arange(8)).astype(np.float32)
    at = np.array([0, 1, 5, 6, 7, 100, 3])
    angle = at[:, None] * freq
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    got = kernels.rope(x, cos, sin, interleaved=interleaved, isa=isa)
    want = reference.rope(x.astype(np.float64), at, freq, 1.0, interleaved)
    close(got, want, 1e-6)
    np.testing.assert_array_equal(got.numpy()[..., 16:], x[..., 16:])


def test_out_and_in_place() -> None:
    x, w = normal(4, 32), np.ones(32, np.float32)
    fresh = kernels.rms_norm(x, w)
    assert fresh.data_ptr() % 64 == 0
    room = np.full((4, 32), np.nan, np.float32)
    got = kernels.rms_norm(x, w, out=room)
    assert got.data_ptr() == room.ctypes.data
    np.testing.assert_array_equal(room, fresh.numpy())
    kernels.rms_norm(x, w, out=x)
    np.testing.assert_array_equal(x, room)
    y = normal(4, 32, seed=5)
    want = ref.add_scaled(x, 2.0, y)
    np.testing.assert_allclose(kernels.add(x, y, 2.0, out=y).numpy(), want, rtol=1e-6)
    assert kernels.act(y, out=Tensor(y)).data_ptr() == y.ctypes.data


@pytest.mark.parametrize("shape", [(0, 32), (3, 0, 32), (0, 0, 32)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    x, w = np.zeros(shape, np.float32), np.ones(32, np.float32)
    for got in (
        *(kernels.rms_norm(x, w), kernels.layer_norm(x, w, w), kernels.act(x)),
        *(kernels.act_mul(x, x), kernels.add(x, x), kernels.softcap(x, 0.0)),
        *(kernels.softmax(x), kernels.round_bf16(x)),
    ):
        assert got.shape == shape
    weight = kernels.pack(normal(5, 32))
    assert kernels.linear(x, weight).shape == (*shape[:-1], 5)
    assert kernels.argmax(x).shape == shape[:-1]
    assert kernels.quantize_rows(x)[1].shape == (*shape[:-1], 1)
    values, places = kernels.top_k(x, 4)
    assert values.shape == places.shape == (*shape[:-1], 4)


def test_half_floats_are_widened(monkeypatch) -> None:
    x = normal(3, 16)
    want = kernels.act(x.astype(np.float16).astype(np.float32))
    assert bits(kernels.act(x.astype(np.float16))) == bits(want)
    rounded = kernels.round_bf16(x)
    assert (rounded.dtype, rounded.shape) == ("BF16", (3, 16))
    assert bits(kernels.act(rounded)) == bits(kernels.act(ref.bf16(x)))
    assert kernels.act(np.float16(1).reshape(())).shape == ()
    assert kernels.act(kernels.round_bf16(np.ones((), np.float32))).shape == ()
    monkeypatch.setattr(kernels.packed, "_ROUND_AT_ONCE", 5)  # as an array beyond int is taken
    assert bits(kernels.round_bf16(x)) == bits(rounded)


# ---- weights and products ------------------------------------------------------------------------


def blocks(dtype: str, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks of a GGUF type and their values by the gguf package."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[dtype]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(k)
    raw = rng.integers(0, 256, (n, k // block, size), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(dtype, (0, 2))
    for at in halves if dtype in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q2_K") else halves[:1]:
        scale = rng.uniform(0.001, 0.01, (n, k // block, 1)).astype(np.float16)
        raw[..., at : at + 2] = scale.view(np.uint8)
    raw = raw.reshape(n, -1)
    return raw, gguf.quants.dequantize(raw, kind).reshape(n, k)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_float_weight_keeps_its_values(dtype: str) -> None:
    w = normal(37, 50)
    source = {"F32": w, "F16": w.astype(np.float16), "BF16": kernels.round_bf16(w)}[dtype]
    want = {"F32": w, "F16": w.astype(np.float16).astype(np.float32), "BF16": ref.bf16(w)}[dtype]
    for packed in (kernels.pack(source), kernels.pack(w, dtype)):
        assert (packed.shape, packed.format["codes"]) == ((37, 50), dtype)
        assert packed.format["group"] == 0
        np.testing.assert_array_equal(packed.dequantize().numpy(), want)
        assert repr(packed) == f"PackedWeight(shape=(37, 50), {dtype})"
    assert kernels.pack(source).nbytes == 64 * 50 * (4 if dtype == "F32" else 2)


@pytest.mark.parametrize("dtype", BLOCKS)
def test_blocks_keep_their_values(dtype: str) -> None:
    raw, want = blocks(dtype, 35, 512)
    packed = kernels.pack(raw, dtype=dtype, shape=(35, 512), threads=2)
    f = packed.format
    assert f["codes"] == f"int{max(4, int(dtype[1]))}"
    assert f["group"] in (16, 32)
    assert f["offsets"] == (dtype in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))
    np.testing.assert_allclose(packed.dequantize().numpy(), want, rtol=2e-6, atol=1e-7)
    plain = kernels.pack(raw, "F32", dtype=dtype, shape=(35, 512))
    np.testing.assert_allclose(plain.dequantize().numpy(), want, rtol=2e-6, atol=1e-7)


@each_isa
@pytest.mark.parametrize("m", [1, 5, 9, 33])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_linear_of_floats(isa: str, m: int, dtype: str) -> None:
    """K 50 needs padded rows, K 64 is read where it lies."""
    for k in (50, 64):
        x, w, b = normal(m, k), normal(70, k, seed=1), normal(70, seed=2)
        packed = kernels.pack(w, dtype)
        rows = ref.bf16(x) if dtype == "BF16" else x
        want = rows.astype(np.float64) @ packed.dequantize().numpy().astype(np.float64).T + b
        close(kernels.linear(x, packed, b, isa=isa), want, 2e-6)


@each_isa
@pytest.mark.parametrize("activation", ["bf16", "int8", "int8x2"])
@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_K", "Q8_0", "Q6_K"])
def test_linear_of_blocks(isa: str, activation: str, dtype: str) -> None:
    raw, w = blocks(dtype, 70, 512)
    packed = kernels.pack(raw, dtype=dtype, shape=(70, 512))
    x = normal(3, 512)
    rows = ref.bf16(x)
    if activation == "int8x2":
        rows = act_values("i8x2", x, packed.format["group"])
    if activation == "int8":
        codes, scales = kernels.quantize_rows(x, packed.format["group"], isa=isa)
        rows = codes.numpy() * np.repeat(scales.numpy(), packed.format["group"], -1)
    got = kernels.linear(x, packed, activation=activation, isa=isa)
    close(got, rows.astype(np.float64) @ w.astype(np.float64).T, 3e-6)
    if activation != "bf16":
        first = kernels.linear(x, packed, activation=activation, isa=ISAS[0])
        assert bits(first) == bits(got)
    else:
        assert bits(kernels.linear(x, packed, isa=isa)) == bits(got)  # auto is bf16


QUANTIZED = {"int8": 0.009, "w4g128": 0.14, "w4g32": 0.11, "fp8": 0.04, "w6g16": 0.03}


@each_isa
@pytest.mark.parametrize("activation", ["bf16", "int8", "int8x2"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_linear_of_quantized_floats(isa: str, activation: str, name: str) -> None:
    """K 300: the last group is short. The share of the weights' norm that quantizing loses is
    bounded, and the product is that of the dequantized weights."""
    w, x = normal(70, 300), normal(3, 300, seed=1)
    packed = kernels.pack(w, name)
    near = packed.dequantize().numpy()
    assert 0 < np.linalg.norm(near - w) / np.linalg.norm(w) < QUANTIZED[name]
    assert packed.nbytes < 0.55 * kernels.pack(w, "BF16").nbytes
    if name == "fp8" and activation != "bf16":
        with pytest.raises(ConfigError, match="activation: fp8 weights take bfloat16"):
            kernels.linear(x, packed, activation=activation, isa=isa)
        return
    rows = ref.bf16(x)
    group = packed.format["group"]
    if activation == "int8x2":
        rows = act_values("i8x2", x, group)
    if activation == "int8":
        codes, scales = kernels.quantize_rows(x, group, isa=isa)
        rows = codes.numpy() * np.repeat(scales.numpy(), group, -1)[:, :300]
    got = kernels.linear(x, packed, activation=activation, isa=isa)
    close(got, rows.astype(np.float64) @ near.astype(np.float64).T, 3e-6)


def test_quantizing_is_refused_where_it_cannot_be() -> None:
    w = normal(70, 64)
    w[40, 3] = np.nan
    with pytest.raises(ConfigError, match="weight: a value is not finite"):
        kernels.pack(w, "int8")
    raw, _ = blocks("Q4_0", 32, 64)
    with pytest.raises(ConfigError, match="format: Q4_0 blocks are quantized already"):
        kernels.pack(raw, "int8", dtype="Q4_0", shape=(32, 64))


@pytest.mark.parametrize("threads", [0, 2, 3, 7])
@pytest.mark.parametrize(("format", "activation"), [("BF16", "auto"), ("int8", "int8x2")])
def test_bits_do_not_depend_on_company(threads: int, format: str, activation: str) -> None:
    """600 rows are more than one tile's."""
    x, packed = normal(600, 96), kernels.pack(normal(170, 96), format, threads=threads)
    options = {"activation": activation, "threads": threads}
    alone = [bits(kernels.linear(row, packed, activation=activation, threads=1)) for row in x]
    assert bits(kernels.linear(x, packed, **options)) == b"".join(alone)
    assert bits(kernels.linear(x.reshape(2, 300, 96), packed, **options)) == b"".join(alone)
    assert bits(kernels.linear(x[:3], packed, **options)) == b"".join(alone[:3])


def test_embedding_rows() -> None:
    table = normal(100, 24)
    packed = kernels.pack(table, "F16")
    ids = np.array([[3, 99, 0], [3, 3, 50]])
    got = packed.rows(ids)
    want = table.astype(np.float16).astype(np.float32)[ids]
    np.testing.assert_array_equal(got.numpy(), want)
    room = np.empty((2, 24), np.float32)
    assert packed.rows([7, 8], out=room).data_ptr() == room.ctypes.data
    np.testing.assert_array_equal(room, table.astype(np.float16)[[7, 8]])
    assert packed.rows([]).shape == (0, 24)
    assert packed.rows(5).shape == (24,)
    for isa in ISAS:
        assert bits(packed.rows(ids, isa=isa)) == want.tobytes()


def test_rows_as_int8() -> None:
    x = normal(2, 3, 70)
    codes, scales = kernels.quantize_rows(x, 16)
    assert (codes.dtype, codes.shape) == ("I8", x.shape)
    assert scales.shape == (2, 3, 5)
    spread = np.repeat(scales.numpy(), 16, -1)[..., :70]
    assert (np.abs(codes.numpy() * spread - x) <= spread * 0.5001).all()
    assert np.abs(codes.numpy()).max() == 127
    for isa in ISAS:
        again = kernels.quantize_rows(x, 16, isa=isa)
        assert [bits(part) for part in again] == [bits(codes), bits(scales)]


def test_a_weight_outlives_its_source_and_serves_threads() -> None:
    class Array(np.ndarray):
        pass

    w = normal(64, 64).view(Array)
    gone, want = weakref.ref(w), normal(8, 64, seed=1) @ w.view(np.ndarray).T
    packed = kernels.pack(w)
    del w
    gc.collect()
    assert gone() is None
    x, results = normal(8, 64, seed=1), [None] * 8

    def work(i: int) -> None:
        results[i] = bits(kernels.linear(x, packed, threads=1 + i % 3))

    team = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert len(set(results)) == 1
    np.testing.assert_allclose(np.frombuffer(results[0], np.float32), want.ravel(), 1e-4, 1e-4)


# ---- attention -----------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("dtype", KV_TOLERANCE)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 2, 64), {}),
        ((3, 3, 17), {"scale": 0.3}),
        ((4, 1, 80), {"window": 70}),
        ((4, 2, 128), {"softcap": 5.0}),
        ((2, 1, 1), {"window": 1}),
        ((8, 2, 64), {"window": 70, "sinks": True}),
        ((96, 1, 16), {"sinks": True}),
    ],
)
def test_attention(
    isa: str, dtype: str, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    heads, kv_heads, d = shape
    tokens = 300
    options = dict(options)
    if options.get("sinks"):
        options["sinks"] = normal(heads, seed=3)
    k, v = normal(tokens, kv_heads, d), normal(tokens, kv_heads, d, seed=1)
    q = normal(tokens, heads, d, seed=2)
    pages = kernels.KVPages(kv_heads, d, max_tokens=tokens, dtype=dtype)
    for start, stop in ((0, 1), (1, 65), (65, 300)):
        pages.store(k[start:stop], v[start:stop], isa=isa)
    assert len(pages) == tokens
    got = pages.attend(q, isa=isa, **options)
    same = [x if dtype == "float32" else ref.bf16(x) for x in (q, k, v)]
    want = reference.attention(
        *(x.astype(np.float64) for x in same),
        scale=options.get("scale", d**-0.5),
        cap=options.get("softcap", 0.0),
        window=int(options.get("window", 0)),
        sinks=options.get("sinks"),
    )
    close(got, want, KV_TOLERANCE[dtype])
    last = pages.attend(q[-1:], isa=isa, **options)  # decode: the same bits as in prefill
    assert bits(last) == got.numpy()[-1:].tobytes()
    at = np.array([299, 0, 64, 64, 255, 256])
    some = pages.attend(q[at], at, isa=isa, threads=2, **options)
    assert bits(some) == got.numpy()[at].tobytes()


@pytest.mark.parametrize("threads", [0, 2, 5])
def test_attention_does_not_depend_on_threads(threads: int) -> None:
    pages = kernels.KVPages(2, 32)
    pages.store(normal(90, 2, 32), normal(90, 2, 32, seed=1))
    q = normal(90, 6, 32, seed=2)
    assert bits(pages.attend(q, threads=threads)) == bits(pages.attend(q, threads=1))
    room = np.empty_like(q)
    assert pages.attend(q, out=room).data_ptr() == room.ctypes.data
    assert repr(pages) == "KVPages(90 of 4096 tokens, 2 heads of 32, bfloat16)"
    assert pages.nbytes == 64 * 2 * 2 * 64 * 32 * 2


# ---- sampling ------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("n", [1, 17, 4096, 4097, 50000])
def test_sampling(isa: str, n: int) -> None:
    x = normal(2, 3, n) * 4
    np.testing.assert_array_equal(kernels.argmax(x, isa=isa).numpy(), x.argmax(-1))
    wide = x.astype(np.float64)
    sums = np.log(np.exp(wide).sum(-1))
    np.testing.assert_allclose(kernels.logsumexp(x, isa=isa).numpy(), sums, atol=1e-6)
    for heat in (1.0, 0.5):
        p = np.exp(wide / heat - (wide / heat).max(-1, keepdims=True))
        got = kernels.softmax(x, heat, isa=isa)
        np.testing.assert_allclose(got.numpy(), p / p.sum(-1, keepdims=True), rtol=4e-6, atol=1e-37)
    for k in sorted({1, min(5, n), min(5000, n), n}):
        values, places = kernels.top_k(x, k, isa=isa)
        order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
        np.testing.assert_array_equal(places.numpy(), order)
        np.testing.assert_array_equal(values.numpy(), np.take_along_axis(x, order, -1))
    for threshold in (-100.0, 0.0, 9.0, np.inf):
        got = kernels.select_above(x[0, 0], threshold, isa=isa)
        np.testing.assert_array_equal(got.numpy(), np.flatnonzero(x[0, 0] > threshold))


def test_sampling_of_what_is_no_number() -> None:
    nan, inf = np.nan, np.inf
    x = np.array([[nan, 1, 3, 3], [-inf] * 4, [nan] * 4, [inf, 0, inf, nan]], np.float32)
    assert kernels.argmax(x).numpy().tolist() == [2, 0, 0, 0]
    assert kernels.top_k(x, 4)[1].numpy().tolist()[:2] == [[2, 3, 1, 0], [0, 1, 2, 3]]
    assert kernels.top_k(x, 2)[1].numpy().tolist()[3] == [0, 2]
    sums = kernels.logsumexp(np.delete(x, 0, 0)).numpy()
    assert sums[0] == -inf
    assert np.isnan(sums[1:]).all()
    assert np.isnan(kernels.softmax(x).numpy()[1:]).all()
    assert kernels.softmax(x[1:], out=x[1:]).data_ptr() == x[1:].ctypes.data
    many = np.full(9000, -inf, np.float32)
    many[8000] = 1
    assert kernels.top_k(many, 3)[1].numpy().tolist() == [8000, 0, 1]


# ---- what is refused -----------------------------------------------------------------------------


def wrong(match: str, call, *args: object, error: type = ConfigError, **options: object) -> None:
    with pytest.raises(error, match=match):
        call(*args, **options)


def test_wrong_tensors_are_named() -> None:
    x, w = normal(4, 32), np.ones(32, np.float32)
    wrong(r"x: expected \[\.\.\., n\]", kernels.rms_norm, np.float32(3).reshape(()), w)
    wrong(r"x: expected \[\.\.\., n\]", kernels.rms_norm, np.ones((3, 0), np.float32), w)
    wrong(r"weight: expected \[32\], got \[1, 32\]", kernels.rms_norm, x, w[None])
    wrong("weight: expected F32", kernels.rms_norm, x, np.ones(32, np.int32))
    wrong("x: expected a NumPy array", kernels.rms_norm, [1.0, 2.0], w)
    wrong("bias: expected a NumPy array", kernels.layer_norm, x, w, 3)
    wrong(r"up: expected \[4, 32\]", kernels.act_mul, x, x.T.copy())
    wrong(r"x: expected \[4, 32\]", kernels.add, w, x)
    wrong("x: .*byte order", kernels.act, x.astype(">f4"))
    wrong("x: must be row-major", kernels.act, x[:, ::2])
    wrong("y: .*complex64", kernels.add, x, x.astype(np.complex64), error=UnsupportedError)
    raw = np.frombuffer(bytearray(33), np.uint8)[1:].view(np.float32)
    wrong("x: its address", kernels.act, raw)
    wrong("x: 9 dimensions", kernels.act, np.ones((1,) * 9, np.float32), error=UnsupportedError)
    vast = np.lib.stride_tricks.as_strided(w, (2**31, 2), (0, 0))
    wrong("x: must be row-major", kernels.act, vast)


def test_wrong_outs_are_named() -> None:
    x = normal(4, 32)
    wrong(r"out: expected \[4, 32\]", kernels.act, x, out=np.empty((32, 4), np.float32))
    wrong("out: expected F32, got F64", kernels.act, x, out=np.empty((4, 32)))
    wrong("out: must be row-major", kernels.act, x, out=np.empty((32, 4), np.float32).T)
    wrong("out: expected a NumPy array", kernels.act, x, out=[1])
    locked = x.copy()
    locked.flags.writeable = False
    wrong("out: is read-only", kernels.softmax, x, out=locked)
    both = np.zeros(40, np.float32)
    wrong("out: overlaps", kernels.act, both[:32], out=both[8:])
    wrong("out: overlaps", kernels.add, both[:32], both[:32].copy(), out=both[:32])
    wrong("out: overlaps", kernels.rms_norm, x[:1], both[:32], out=both[None, 8:])
    square = kernels.pack(normal(32, 32))
    wrong("out: overlaps", kernels.linear, x, square, out=x)


def test_wrong_numbers_are_named() -> None:
    x, w = normal(4, 32), np.ones(32, np.float32)
    for bad in (-1.0, np.nan, np.inf, "small", None):
        wrong("eps: ", kernels.rms_norm, x, w, bad)
    wrong("scale: ", kernels.add, x, x, np.nan)
    wrong("cap: ", kernels.softcap, x, -1.0)
    wrong("temperature: 0.0", kernels.softmax, x, 0.0)
    wrong("temperature: ", kernels.softmax, x, -1.0)
    for bad in (0, 33, -1, 2.0, None, 2**70):
        wrong("k: ", kernels.top_k, x, bad)
    wrong(r"x: expected \[V\]", kernels.select_above, x, 1.0)
    wrong("threshold: ", kernels.select_above, w, "high")
    for bad in (0, 8, 33, 64.5, "all"):
        wrong("group: ", kernels.quantize_rows, x, bad)
    for bad in ("avx9", None, 3, np.zeros(2)):
        wrong("isa: ", kernels.argmax, x, isa=bad)
    for bad in ("1e-6", True, 1j, 10**400, b"1"):  # float() takes some of these
        wrong("eps: expected a number", kernels.rms_norm, x, w, bad)
    wrong("k: expected an integer", kernels.top_k, x, True)
    wrong("k: a value of type int is not in", kernels.top_k, x, 10**5000)
    wrong("group: expected an integer, got 32.0", kernels.quantize_rows, x, 32.0)
    wrong("group: ", kernels.quantize_rows, x, [32])
    wrong("kind: 3 is none of silu", kernels.act, x, 3)
    wrong("threshold: ", kernels.select_above, w, np.complex64(1))
    assert kernels.select_above(w, 10**400).shape == (0,)
    assert kernels.select_above(w, -(10**400)).shape == (32,)


def test_wrong_weights_are_named() -> None:
    x, w = normal(4, 32), normal(8, 32)
    packed, blocks8 = kernels.pack(w), kernels.pack(bytes(34 * 8), dtype="Q8_0", shape=(8, 32))
    wrong("shape: ", kernels.pack, w[0])
    wrong("shape: ", kernels.pack, w[None])
    wrong("shape: 0 is not", kernels.pack, w[:0])
    wrong("weight: expected F32", kernels.pack, w.astype(np.int8))
    wrong(r"format: 'w3'", kernels.pack, w, "w3")
    wrong("format: ", kernels.pack, w, None)
    wrong("shape: expected", kernels.pack, w, shape=32)
    wrong("dtype: expected a name", kernels.pack, w, dtype=3, shape=(8, 32))
    wrong("activation: ", kernels.linear, x, packed, activation=["f32"])
    wrong("shape: blocks", kernels.pack, bytes(34), dtype="Q8_0")
    wrong(
        r"weight: \[1, 32\] has 33 bytes, expected 34",
        kernels.pack,
        bytes(33),
        dtype="Q8_0",
        shape=(1, 32),
    )
    wrong(
        "weight: 33 columns are no multiple", kernels.pack, bytes(34), dtype="Q8_0", shape=(1, 33)
    )
    wrong(r"shape: the weight is \[8, 32\], not \(9, 32\)", kernels.pack, w, shape=(9, 32))
    wrong(r"shape: the weight is \[8, 32\], not \(4, 64\)", kernels.pack, w, shape=(4, 64))
    wrong("dtype: Q9_0", kernels.pack, w, dtype="Q9_0", shape=(8, 32), error=UnsupportedError)
    for shape in ((2**31, 1), (-1, 32), (1.5, 32), (2**31 - 32, 2**31 - 32)):
        wrong(
            r"shape|weight: .*(too large|bytes)", kernels.pack, bytes(34), dtype="Q8_0", shape=shape
        )
    for bad in (-1, 257, 1.5, "two"):
        wrong("threads: ", kernels.pack, w, threads=bad)
        wrong("threads: ", kernels.linear, x, packed, threads=bad)
    wrong("weight: expected a PackedWeight, got ndarray", kernels.linear, x, w)
    wrong(r"x: expected \[\.\.\., 32\]", kernels.linear, x[:, :31].copy(), packed)
    wrong(r"bias: expected \[8\]", kernels.linear, x, packed, x[0])
    wrong("activation: F32 weights take float32", kernels.linear, x, packed, activation="int8")
    wrong("activation: int8 weights take", kernels.linear, x, blocks8, activation="float32")
    wrong("activation: 'fp4'", kernels.linear, x, packed, activation="fp4")
    wrong("ids: 8..8", packed.rows, [8])
    wrong("ids: -1..0", packed.rows, [-1, 0])
    wrong("ids: ", packed.rows, [2**40])
    wrong("ids: expected integers", packed.rows, [0.5])


def test_wrong_pages_are_named() -> None:
    for name, bad in (("n_kv_heads", 0), ("d", 257), ("d", 0), ("max_tokens", 0), ("d", 1.5)):
        wrong(f"{name}: ", kernels.KVPages, **{"n_kv_heads": 2, "d": 8, name: bad})
    wrong("dtype: ", kernels.KVPages, 2, 8, dtype="F64", error=UnsupportedError)
    wrong("dtype: ", kernels.KVPages, 2, 8, dtype=None)
    wrong(
        "max_tokens: no memory",
        kernels.KVPages,
        65536,
        256,
        max_tokens=2**24,
        dtype="float32",
        error=MemoryPlanError,
    )
    pages = kernels.KVPages(2, 8, max_tokens=10)
    k = normal(4, 2, 8)
    wrong(r"k: expected \[T, 2, 8\]", pages.store, k[:, :1].copy(), k)
    wrong(r"v: expected \[4, 2, 8\]", pages.store, k, k[:3])
    wrong("k: 11 tokens, room for 10 of 10", pages.store, normal(11, 2, 8), normal(11, 2, 8))
    wrong("q: 1 tokens, but 0 are stored", pages.attend, k[:1])
    assert pages.attend(k[:0]).shape == (0, 2, 8)
    pages.store(k, k)
    wrong(r"q: expected \[T, H, 8\]", pages.attend, k[0])
    wrong("q: 3 heads are no multiple of 2", pages.attend, normal(4, 3, 8))
    wrong("q: 0 heads", pages.attend, normal(4, 0, 8))
    for bad in ([4], [-1], [2**40], [0.5], [0, 1], 0, "x"):
        wrong("positions: ", pages.attend, k[:1], bad)
    wrong("window: ", pages.attend, k, window=-1)
    wrong("softcap: ", pages.attend, k, softcap=-1.0)
    wrong(r"sinks: expected \[2\]", pages.attend, k, sinks=np.ones(3, np.float32))
    wrong("scale: ", pages.attend, k, scale=np.inf)
    wrong("out: overlaps", pages.attend, k, out=k)
    assert len(pages) == 4


def test_the_core_trusts_no_wrapper() -> None:
    """What kernels/ asks of the core is checked there once more."""
    from llmaccel import _core

    x = normal(2, 8)
    for args in (
        (x, "F32", 0, 8, "auto", "keep", 1),
        (x, "F32", 2, -8, "auto", "keep", 1),
        (x, "F32", 2, 9, "auto", "keep", 1),
        (x, "F32", 2, 8, "Q4_0", "keep", 1),
        (x, "F32", 2, 8, "auto", "w3", 1),
        (x, "F32", 2, 8, "auto", "keep", -1),
        (x, "F32", 2, 8, "auto", "keep", 999),
    ):
        with pytest.raises(ValueError, match=r"pack|tensor of|threads|quantization"):
            _core.Packed(*args)
    packed = _core.Packed(x, "F32", 2, 8, "auto", "keep", 1)
    y = np.empty((2, 2), np.float32)
    wrong(
        "x: 15 values", packed.linear, ISAS[0], "f32", x.ravel()[:15], y, None, 1, error=ValueError
    )
    wrong("y: expected 2", packed.linear, ISAS[0], "f32", x, y[0], None, 1, error=ValueError)
    wrong("bias: 8 values", packed.linear, ISAS[0], "f32", x, y, x[0], 1, error=ValueError)
    wrong("activation: ", packed.linear, ISAS[0], "i8", x, y, None, 1, error=ValueError)
    wrong("act: ", packed.linear, ISAS[0], "f8", x, y, None, 1, error=ValueError)
    wrong("ids: 2", packed.unpack, ISAS[0], np.int32([2]), x[0])
    wrong("out: ", packed.unpack, ISAS[0], np.int32([0, 1]), x[0], error=ValueError)
    pages = _core.Pages(2, 4, 10, "F32")
    wrong("k, v", pages.store, ISAS[0], x[0], x)
    wrong("k, v", pages.store, ISAS[0], x.ravel()[:12].copy(), x.ravel()[:12].copy())
    pages.store(ISAS[0], x, x)
    out, at = np.empty_like(x), np.int32([0, 1])
    for heads in (0, 3, -2, 2**31 - 1, 2**30):
        wrong("q", pages.attend, ISAS[0], x, at, out, None, heads, 1.0, 0.0, 0, 1)
    wrong("positions: 2", pages.attend, ISAS[0], x, np.int32([0, 2]), out, None, 2, 1.0, 0.0, 0, 1)
    wrong("window: ", pages.attend, ISAS[0], x, at, out, None, 2, 1.0, 0.0, -1, 1)
    wrong("sinks: 3", pages.attend, ISAS[0], x, at, out, np.ones(3, np.float32), 2, 1.0, 0.0, 0, 1)


@pytest.mark.parametrize(
    ("given", "codes"),
    [
        ("bf16", "BF16"),
        ("bfloat16", "BF16"),
        ("half", "F16"),
        ("float16", "F16"),
        ("fp32", "F32"),
        ("F32", "F32"),
        ("fp8_e4m3", "fp8"),
        ("int8", "int8"),
    ],
)
def test_pack_takes_the_spellings_of_llm(given: str, codes: str) -> None:
    assert kernels.pack(normal(32, 32), given).format["codes"] == codes


@pytest.mark.torch
def test_pack_takes_torch_dtypes() -> None:
    torch = pytest.importorskip("torch")
    assert kernels.pack(normal(32, 32), torch.bfloat16).format["codes"] == "BF16"


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.torch
def test_from_torch_to_torch() -> None:
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(normal(5, 64)), torch.from_numpy(normal(96, 64, seed=1))
    b = torch.from_numpy(normal(96, seed=2))
    got = torch.from_dlpack(kernels.linear(x, kernels.pack(w), b))
    torch.testing.assert_close(got, torch.nn.functional.linear(x, w, b), rtol=1e-5, atol=1e-5)
    room = torch.empty(5, 64)
    back = torch.from_dlpack(kernels.rms_norm(x, torch.ones(64), out=room))
    assert back.data_ptr() == room.data_ptr()
    torch.testing.assert_close(room, torch.nn.functional.rms_norm(x, (64,), eps=1e-6))
    half = torch.from_dlpack(kernels.round_bf16(x))
    assert torch.equal(half, x.bfloat16())
    assert bits(kernels.linear(half, kernels.pack(w, "BF16"))) == bits(
        kernels.linear(x, kernels.pack(w.bfloat16()))
    )


@pytest.mark.torch
def test_attention_as_torch_computes_it() -> None:
    torch = pytest.importorskip("torch")
    k, v = torch.from_numpy(normal(130, 2, 64)), torch.from_numpy(normal(130, 2, 64, seed=1))
    q = torch.from_numpy(normal(130, 6, 64, seed=2))
    pages = kernels.KVPages(2, 64, dtype="float32")
    pages.store(k, v)
    heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    got = torch.from_dlpack(pages.attend(q))
    torch.testing.assert_close(got, want[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
