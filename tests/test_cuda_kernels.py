"""llmaccel.kernels on Tensors of the emulated device: the CPU's tests where both have the kernel.

Both places are held to the same references. What a device has no kernel for, and arguments of two
places, are refused by the argument's name.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import reference_rows as ref
from test_cuda_backend import checkpoint, open_on
from test_cuda_runtime import OUT
from test_cuda_tensors import Player, Wrapped, counts, emulated
from test_kernels_api import blocks, normal, wrong

from llmaccel import ConfigError, SamplingParams, Tensor, UnsupportedError, kernels
from llmaccel.errors import LLMAccelError

__all__ = ["emulated"]  # the fixture that every test here runs in

both = pytest.mark.parametrize("place", ["cpu", "cuda"])


@pytest.fixture(autouse=True)
def device(emulated: None, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Generic products, which are emulated faster; the device stays open through a test."""
    monkeypatch.setenv("LLMACCEL_EMU_CC", "80")
    monkeypatch.setenv("LLMACCEL_EMU_SEED", "5")
    return Tensor.zeros((1,), "F32", "cuda")


def put(x: np.ndarray, place: str = "cuda") -> Tensor:
    return Tensor(np.asarray(x, order="C")).to(place)


def get(t: Tensor) -> np.ndarray:
    return t.to("cpu").numpy()


def close(got: Tensor, want: np.ndarray, rtol: float, place: str = "cuda") -> None:
    """Within rtol of the largest value, and where the arguments are."""
    assert got.device == ("cpu" if place == "cpu" else "cuda:0")
    assert got.shape == want.shape
    np.testing.assert_allclose(get(got), want, rtol=0, atol=rtol * np.abs(want).max())


def bits(t: Tensor) -> bytes:
    return get(t).tobytes()


# ---- rows ----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("width", [1, 48, 300])
def test_rows_of_any_shape(place: str, width: int) -> None:
    x, w, b = normal(2, 3, width), normal(width, seed=1), normal(width, seed=2)
    there, weight = put(x, place), put(w, place)
    for bias in (None, b):
        want = np.apply_along_axis(ref.layer_norm, -1, x, w, bias, 1e-3)
        given = None if bias is None else put(bias, place)
        close(kernels.layer_norm(there, weight, given, 1e-3), want, 4e-6, place)
    got = kernels.rms_norm(there, weight, 1e-5)
    close(got, np.apply_along_axis(ref.rms_norm, -1, x, w, 1e-5), 1e-6, place)
    alone = kernels.rms_norm(put(x[1, 2], place), weight, 1e-5)
    assert bits(alone) == get(got)[1, 2].tobytes()  # a row is its own affair
    y = normal(*x.shape, seed=3)
    other = put(y, place)
    close(kernels.add(there, other), ref.add(x, y), 1e-6, place)
    close(kernels.add(there, other, 0.25), ref.add_scaled(x, 0.25, y), 1e-6, place)
    close(kernels.softcap(there, 2.0, 3.0), ref.softcap(x, 3.0, 2.0), 1e-6, place)
    close(kernels.softcap(there, 0.0, 3.0), x * 3, 1e-6, place)


@both
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu", "clip"])
def test_activations(place: str, kind: str) -> None:
    x, y = 3 * normal(5, 211), 9 * normal(5, 211, seed=1)
    close(kernels.act(put(x, place), kind), ref.act(kind, x), 2e-6, place)
    got = kernels.act_mul(put(x, place), put(y, place), kind)
    close(got, ref.act_mul(kind, x, y), 2e-6, place)


def test_activations_of_more_than_a_block() -> None:
    x = normal(3, 1500)
    close(kernels.act(put(x)), ref.act("silu", x), 2e-6)


@both
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(place: str, interleaved: bool) -> None:
    x, freq = normal(7, 3, 20), (10.0 ** -np.arange(8)).astype(np.float32)
    at = np.array([0, 1, 5, 6, 7, 100, 3])
    angle = at[:, None] * freq
    cos, sin = (put(f(angle).astype(np.float32), place) for f in (np.cos, np.sin))
    got = kernels.rope(put(x, place), cos, sin, interleaved=interleaved)
    close(got, reference.rope(x.astype(np.float64), at, freq, 1.0, interleaved), 1e-6, place)
    np.testing.assert_array_equal(get(got)[..., 16:], x[..., 16:])
    longer = put(np.concatenate([x, x]), place)  # angles are of a token's own place in the arrays
    twice = [put(np.concatenate([get(a), get(a)]), place) for a in (cos, sin)]
    again = kernels.rope(longer, *twice, interleaved=interleaved)
    assert get(again)[7:].tobytes() == bits(got)


def test_out_and_in_place() -> None:
    x, w = normal(4, 32), np.ones(32, np.float32)
    there, weight = put(x), put(w)
    fresh = kernels.rms_norm(there, weight)
    room = Tensor.zeros((4, 32), "F32", "cuda")
    got = kernels.rms_norm(there, weight, out=room)
    assert got is room
    assert bits(room) == bits(fresh)
    kernels.rms_norm(there, weight, out=there)
    assert bits(there) == bits(fresh)
    y = put(normal(4, 32, seed=5))
    want = kernels.add(there, y, 2.0)
    assert bits(kernels.add(there, y, 2.0, out=y)) == bits(want)
    want = kernels.act(y)
    assert bits(kernels.act(y, out=y)) == bits(want)
    want = kernels.act_mul(y, there)
    assert bits(kernels.act_mul(y, there, out=y)) == bits(want)
    heads, cos, sin = put(normal(2, 3, 8)), put(normal(2, 4)), put(normal(2, 4, seed=1))
    want = kernels.rope(heads, cos, sin)
    assert bits(kernels.rope(heads, cos, sin, out=heads)) == bits(want)
    both = put(np.zeros(40, np.float32))
    wrong("out: overlaps", kernels.add, both, put(np.zeros(40)[:40].astype("f4")), out=both)


def test_results_in_memory_of_others_are_there_at_once() -> None:
    """Their owner looks at them without asking us, so nothing is left to be done."""
    x, base = normal(4, 32), Tensor.zeros((4, 32), "F32", "cuda")
    base.to("cpu")
    waits = counts().waits
    kernels.act(put(x), out=base)
    assert counts().waits == waits + 1  # of the upload alone
    got = kernels.act(put(x), out=Wrapped(base))
    found = np.ctypeslib.as_array((ctypes.c_float * 128).from_address(base.data_ptr()))
    np.testing.assert_allclose(found.reshape(4, 32), ref.act("silu", x), atol=1e-5)
    assert got.data_ptr() == base.data_ptr()


@pytest.mark.parametrize("shape", [(0, 32), (3, 0, 32)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    x, w = put(np.zeros(shape, np.float32)), put(np.ones(32, np.float32))
    for got in (
        *(kernels.rms_norm(x, w), kernels.layer_norm(x, w, w), kernels.act(x)),
        *(kernels.act_mul(x, x), kernels.add(x, x), kernels.softcap(x, 0.0)),
    ):
        assert (got.shape, got.device) == (shape, "cuda:0")
    weight = kernels.pack(put(normal(5, 32)), "BF16")
    assert kernels.linear(x, weight).shape == (*shape[:-1], 5)
    assert kernels.argmax(x).shape == shape[:-1]
    values, places = kernels.top_k(x, 4)
    assert values.shape == places.shape == (*shape[:-1], 4)


def test_half_floats_are_widened_there() -> None:
    x = normal(3, 1100)
    half, rounded = put(x.astype(np.float16)), kernels.round_bf16(x).to("cuda")
    assert bits(kernels.softcap(half, 0.0)) == x.astype(np.float16).astype(np.float32).tobytes()
    assert bits(kernels.softcap(rounded, 0.0)) == ref.bf16(x).astype(np.float32).tobytes()
    assert kernels.act(put(np.float16(1).reshape(()))).shape == ()


def test_threads_take_turns() -> None:
    x, w = normal(5, 40), put(np.ones(40, np.float32))
    want = [np.apply_along_axis(ref.rms_norm, -1, i * x, np.ones(40), 1e-6) for i in range(1, 7)]
    found: list[Any] = [None] * 6

    def work(i: int) -> None:
        found[i] = get(kernels.rms_norm(put((i + 1) * x), w))

    team = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    np.testing.assert_allclose(found, want, atol=1e-5)


# ---- products ------------------------------------------------------------------------------------


def rows_of(codes: str, x: np.ndarray) -> np.ndarray:
    """As they enter a product."""
    return x.astype(np.float16) if codes == "F16" else ref.bf16(x)


@pytest.mark.parametrize("cc", ["80", "90"])
@pytest.mark.parametrize("m", [1, 5, 33])
@pytest.mark.parametrize("format", ["BF16", "F16", "w4g128", "w4g32"])
def test_linear(monkeypatch: pytest.MonkeyPatch, cc: str, m: int, format: str) -> None:
    """70 columns: the last unit is not full, and the bias ends in it."""
    from llmaccel.environment import _BACKENDS

    _BACKENDS.clear()
    monkeypatch.setenv("LLMACCEL_EMU_CC", cc)
    x, w, b = normal(m, 160), normal(70, 160, seed=1), normal(70, seed=2)
    here = kernels.pack(w, format)
    packed = kernels.pack(put(w), format)
    assert (packed.device, packed.shape, packed.format) == ("cuda:0", (70, 160), here.format)
    assert packed.nbytes == here.nbytes
    rows = rows_of(packed.format["codes"], x).astype(np.float64)
    want = rows @ get(here.dequantize()).astype(np.float64).T
    close(kernels.linear(put(x), packed), want, 3e-6)
    got = kernels.linear(put(x), packed, put(b))
    close(got, want + b, 3e-6)
    alone = kernels.linear(put(x[m - 1]), packed, put(b))
    assert bits(alone) == get(got)[m - 1].tobytes()
    room = Tensor.zeros((m, 70), "F32", "cuda")
    assert bits(kernels.linear(put(x), packed, put(b), out=room)) == bits(got)


def test_many_rows_go_in_blocks() -> None:
    """Of 32768: the rows behind the first block are what they are alone."""
    x, w = normal(32770, 8), kernels.pack(put(normal(3, 8, seed=1)), "BF16")
    bias = put(normal(3, seed=2))
    got = get(kernels.linear(put(x), w, bias))
    assert got[-3:].tobytes() == bits(kernels.linear(put(x[-3:]), w, bias))
    angle = normal(32770, 1, seed=3)
    turns = [f(angle).astype(np.float32) for f in (np.cos, np.sin)]
    heads = x.reshape(32770, 2, 4)
    turned = get(kernels.rope(put(heads), *map(put, turns)))
    ends = [put(each[-3:]) for each in (heads, *turns)]
    assert turned[-3:].tobytes() == bits(kernels.rope(*ends))


def test_packing_leaves_graphs_of_models_alone(tmp_path: Path) -> None:
    greedy = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    with open_on(checkpoint("llama", tmp_path), "cuda") as llm:
        first = llm.generate([[5, 6, 7]], greedy)[0].outputs[0].token_ids
        graphs = counts().graphs
        packed = kernels.pack(put(normal(8, 16)), "BF16")
        assert llm.generate([[5, 6, 7]], greedy)[0].outputs[0].token_ids == first
        assert counts().graphs == graphs > 0
    assert packed.device == "cuda:0"


def test_a_device_that_failed_is_the_reason() -> None:
    """Not that it has no memory for what the call needs beside its tensors."""
    x, w = put(normal(2, 16)), kernels.pack(put(normal(3, 16)), "BF16")
    player = Player()
    bad = ctypes.c_void_p(8)
    player.lib.la_rt_copy(player.stream, bad, bad, ctypes.c_size_t(8), OUT)
    player.lib.la_rt_stream_wait(player.stream)
    for use in (lambda: kernels.linear(x, w), lambda: kernels.argmax(x)):
        with pytest.raises(LLMAccelError, match="backend: cuda: copy: outside"):
            use()
    player.close()


@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1"])
def test_linear_of_blocks(dtype: str) -> None:
    raw, w = blocks(dtype, 35, 256)
    packed = kernels.pack(put(raw), dtype=dtype, shape=(35, 256))
    assert repr(packed) == "PackedWeight(shape=(35, 256), int4 in groups of 32, on cuda:0)"
    x = normal(2, 3, 256)
    want = ref.bf16(x).astype(np.float64) @ w.astype(np.float64).T
    close(kernels.linear(put(x), packed, activation="bfloat16"), want, 3e-6)


def test_weights_that_a_device_has_no_products_for() -> None:
    x, w = put(normal(4, 64)), normal(40, 64)
    has_no = {"auto": "float32 weights", "int8": "8-bit codes with float32 scales for rows of 64"}
    has_no |= {"fp8": "fp8 codes with float32 scales for rows of 64"}
    has_no |= {"w6g16": "6-bit codes with int8 times float16 scales for groups of 16"}
    for format, name in has_no.items():
        match = f"^weight: .*'cuda' has no products of {name} yet, only of bfloat16, "
        wrong(match, kernels.pack, put(w), format, error=UnsupportedError)
    match = "^weight: .*'cuda' multiplies bfloat16 where K is a multiple of 8, which 37 is not"
    wrong(match, kernels.pack, put(w[:, :37]), "BF16", error=UnsupportedError)
    packed = kernels.pack(put(w), "F16")
    for bad in ("float32", "bfloat16", "int8"):
        wrong("^activation: ", kernels.linear, x, packed, activation=bad, error=UnsupportedError)
    wrong("^ids: ", packed.rows, [1], error=UnsupportedError)
    wrong("^ids: ", packed.dequantize, error=UnsupportedError)
    with pytest.raises(UnsupportedError, match=r"^data: .* cuda:0"):
        _ = packed.data
    raw = Tensor.zeros(kernels.packed_shape((40, 64), "BF16"), "U8", "cuda")
    over = kernels.PackedWeight.over
    wrong("^data: is on cuda:0", over, raw, (40, 64), "BF16", error=UnsupportedError)
    bad = w.copy()
    bad[3, 3] = np.nan
    wrong("^weight: .*not finite", kernels.pack, put(bad), "w4g32")
    wrong("^weight: is packed on cpu", kernels.linear, x, kernels.pack(w, "BF16"))
    wrong("^weight: is packed on cuda:0", kernels.linear, normal(4, 64), packed)
    wrong("^threads: ", kernels.linear, x, packed, threads=2)


# ---- pages ---------------------------------------------------------------------------------------


def numbers(*values: Any) -> list[Tensor]:
    return [put(np.asarray(v, np.int32)) for v in values]


def filled(k: np.ndarray, v: np.ndarray, pages: list[int], n_pages: int, place: str) -> Tensor:
    """A cache with the tokens of one sequence in these pages."""
    tokens, heads, d = k.shape
    cache = kernels.kv_cache(n_pages, heads, d, device=place)
    slots = np.array([pages[t // 64] * 64 + t % 64 for t in range(tokens)], np.int64)
    kernels.kv_store(cache, put(slots, place), put(k, place), put(v, place))
    return cache


@both
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 2, 64), {}),
        ((3, 3, 18), {"scale": 0.3}),
        ((2, 1, 80), {"window": 70}),
        ((4, 2, 32), {"softcap": 5.0}),
        ((6, 2, 16), {"window": 70, "sinks": True}),
    ],
)
def test_attention(place: str, shape: tuple[int, int, int], options: dict[str, Any]) -> None:
    heads, kv_heads, d = shape
    tokens, pages = 150, [3, 0, 4]
    options = dict(options)
    k, v = normal(tokens, kv_heads, d), normal(tokens, kv_heads, d, seed=1)
    q, sinks = normal(tokens, heads, d, seed=2), normal(heads, seed=3)
    same = [ref.bf16(x).astype(np.float64) for x in (q, k, v)]
    wide = {name: options.get(name, off) for name, off in (("window", 0), ("scale", d**-0.5))}
    wide |= {"cap": options.get("softcap", 0.0), "sinks": sinks if "sinks" in options else None}
    want = reference.attention(*same, **wide)
    if "sinks" in options:
        options["sinks"] = put(sinks, place)
    cache = filled(k, v, pages, 5, place)
    table, owners, at = ([pages], np.zeros(tokens), np.arange(tokens))
    given = [put(np.asarray(n, np.int32), place) for n in (table, owners, at)]
    got = kernels.paged_attention(put(q, place), cache, *given, **options)
    close(got, want, 1e-2, place)
    last = [put(np.asarray(n, np.int32), place) for n in (table, [0], [tokens - 1])]
    alone = kernels.paged_attention(put(q[-1:], place), cache, *last, **options)
    assert bits(alone) == get(got)[-1:].tobytes()  # decode: the same bits as in prefill


def test_room_of_a_large_call_goes_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of 136 MB, twice on a device of 419 MB: 300 are free when they have gone."""
    from llmaccel.environment import _BACKENDS

    _BACKENDS.clear()
    monkeypatch.setenv("LLMACCEL_EMU_MEMORY", str(400 << 20))
    cache = kernels.kv_cache(1, 1, 8, device="cuda")
    q, (owner, at, small) = put(normal(1, 1, 8)), numbers([0], [0], [[0]])
    large = Tensor.zeros((2, 17_000_000), "I32", "cuda")
    got = bits(kernels.paged_attention(q, cache, large, owner, at))
    del large
    assert bits(kernels.paged_attention(q, cache, small, owner, at)) == got
    assert Tensor.zeros((300_000_000,), "U8", "cuda").nbytes == 300_000_000


def test_sequences_share_a_cache_and_do_not_meet() -> None:
    """Chunks of a long context are dealt out among blocks when tokens are few; no bit changes."""
    d, pages = 16, [[6, 1, 0, 5, 2], [3, 4]]
    lengths, cache = [300, 90], kernels.kv_cache(7, 1, 16, device="cuda")
    for s, n in enumerate(lengths):
        slots = [pages[s][t // 64] * 64 + t % 64 for t in range(n)]
        k, v = normal(n, 1, d, seed=s), normal(n, 1, d, seed=9 + s)
        kernels.kv_store(cache, put(np.array(slots)), put(k), put(v))
    table = np.array([pages[0], [*pages[1], -1, 99, -7]], np.int32)  # what no query reads
    q = normal(40, 2, d)
    owners = np.array([0, 1] * 20, np.int32)
    at = np.array([299, 89] + [5 * i + 7 for i in range(17) for _ in range(2)] + [0, 0, 256, 64])
    together = kernels.paged_attention(put(q), cache, *numbers(table, owners, at))
    for i in (0, 1, 5, 38):
        one = [put(np.asarray(x, np.int64)) for x in (table, owners[i : i + 1], at[i : i + 1])]
        alone = kernels.paged_attention(put(q[i : i + 1]), cache, *one)
        assert bits(alone) == get(together)[i : i + 1].tobytes()


def test_slots() -> None:
    """-1 is nowhere; of a slot that comes twice the last stays; other pages keep what they had."""
    k, v = normal(6, 2, 16), normal(6, 2, 16, seed=1)
    cache = kernels.kv_cache(3, 2, 16, device="cuda")
    slots = np.array([64, -1, 65, 64, 67, -1])
    kernels.kv_store(cache, put(slots), put(k), put(v))
    found = get(cache).view(np.uint16).reshape(3, 2, 2, 64, 16)
    assert not found[[0, 2]].any()
    for slot, token in ((0, 3), (1, 2), (3, 4)):
        for part, x in enumerate((k, v)):
            stored = (found[1, :, part, slot].astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_array_equal(stored, ref.bf16(x[token]))
    assert not found[1, :, :, 2].any()
    kernels.kv_store(cache, put(np.full(6, -1)), put(k), put(v))
    assert get(cache).tobytes() == found.tobytes()


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"tables": [[0, 3]]}, r"tables: \[0, 1\] is 3"),
        ({"tables": [[-1, 1]]}, r"tables: \[0, 0\] is -1"),
        ({"sequences": [1, 0]}, "sequences: 1 is not in 0..0"),
        ({"sequences": [0]}, "sequences, positions: expected 2"),
        ({"positions": [-1, 2]}, "positions: -1 is not"),
        ({"positions": [3, 128]}, "positions: 128 is not in 0..127"),
        ({"positions": [2**40, 2]}, "positions: .*not of 32 bits"),
        ({"positions": np.array([1.0, 2.0], np.float32)}, "positions: expected integers"),
        ({"window": -1}, "window: -1"),
        ({"dtype": "int8"}, "dtype: pages on cuda:0 are bfloat16"),
        ({"isa": "scalar"}, "isa: 'scalar'"),
        ({"threads": 1}, "threads: 1"),
    ],
)
def test_numbers_that_lead_out_of_the_cache(changed: dict[str, Any], match: str) -> None:
    cache = kernels.kv_cache(3, 1, 8, device="cuda")
    given: dict[str, Any] = {"tables": [[0, 2]], "sequences": [0, 0], "positions": [70, 100]}
    options = {name: changed.pop(name) for name in list(changed) if name not in given}
    given |= changed
    arrays = {n: put(np.asarray(v)) for n, v in given.items()}
    q = put(normal(2, 1, 8))
    with pytest.raises((ConfigError, UnsupportedError), match=match):
        kernels.paged_attention(q, cache, **arrays, **options)
    for bad in (-2, 192, 2**31 - 1):
        with pytest.raises(ConfigError, match=f"slots: {bad} is not in -1..191"):
            kernels.kv_store(cache, put(np.array([0, bad])), q, q)
    assert not get(cache).any()


# ---- sampling ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("n", [1, 17, 4097])
def test_sampling(place: str, n: int) -> None:
    x = normal(2, 3, n) * 4
    got = kernels.argmax(put(x, place))
    assert (got.dtype, got.shape) == ("I64", (2, 3))
    np.testing.assert_array_equal(get(got), x.argmax(-1))
    for k in sorted({1, min(5, n), min(32, n)}):
        values, places = kernels.top_k(put(x, place), k)
        order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
        np.testing.assert_array_equal(get(places), order)
        np.testing.assert_array_equal(get(values), np.take_along_axis(x, order, -1))


@both
def test_sampling_of_what_is_no_number(place: str) -> None:
    nan, inf = np.nan, np.inf
    x = np.array([[nan, 1, 3, 3], [-inf] * 4, [nan] * 4, [inf, 0, inf, nan]], np.float32)
    there = put(x, place)
    assert get(kernels.argmax(there)).tolist() == [2, 0, 0, 0]
    assert get(kernels.top_k(there, 4)[1]).tolist()[:2] == [[2, 3, 1, 0], [0, 1, 2, 3]]
    assert get(kernels.top_k(there, 2)[1]).tolist()[3] == [0, 2]


# ---- what is refused -----------------------------------------------------------------------------


def test_two_places_are_refused_by_name() -> None:
    x, w = normal(4, 32), np.ones(32, np.float32)
    there, weight = put(x), put(w)
    wrong("^weight: is on cpu, and other", kernels.rms_norm, there, w)
    wrong("^weight: is on cuda:0, and other", kernels.rms_norm, x, weight)
    wrong("^bias: is on cpu", kernels.layer_norm, there, weight, w)
    wrong("^y: is on cuda:0", kernels.add, x, there)
    wrong("^up: is on cpu", kernels.act_mul, there, x)
    wrong("^out: is on cpu", kernels.act, there, out=np.empty_like(x))
    wrong("^out: is on cuda:0", kernels.act, x, out=there)
    wrong("^sin: is on cpu", kernels.rope, put(normal(2, 3, 8)), put(normal(2, 4)), normal(2, 4))
    packed = kernels.pack(put(normal(8, 32)), "BF16")
    wrong("^bias: is on cpu", kernels.linear, there, packed, np.ones(8, np.float32))
    cache, q = kernels.kv_cache(1, 1, 8, device="cuda"), normal(2, 1, 8)
    table, owners, at = numbers([[0]], [0, 0], [0, 1])
    wrong("^cache: is on cpu", kernels.kv_store, kernels.kv_cache(1, 1, 8), at, put(q), put(q))
    wrong("^v: is on cpu", kernels.kv_store, cache, at, put(q), q)
    wrong("^slots: is on cpu", kernels.kv_store, cache, np.arange(2), put(q), put(q))
    here = kernels.kv_cache(1, 1, 8)
    wrong("^slots: is on a device", kernels.kv_store, here, at, q, q)
    attend = kernels.paged_attention
    wrong("^tables: is on cpu", attend, put(q), cache, np.zeros((1, 1), "i4"), owners, at)
    wrong("^sequences: is on cpu", attend, put(q), cache, table, np.zeros(2, "i4"), at)
    wrong("^positions: is on a device", attend, q, here, [[0]], [0, 0], at)
    wrong("^sinks: is on cpu", attend, put(q), cache, table, owners, at, sinks=w[:1])
    wrong("^slots: expected a NumPy array", kernels.kv_store, cache, [0, 1], put(q), put(q))


def test_functions_without_a_kernel_there_say_so() -> None:
    x, codes = put(normal(4, 32)), put(np.zeros((4, 32), np.uint8))
    one = put(np.ones((), np.float32))
    pages = kernels.KVPages(1, 32)
    for name, call, *args in (
        ("x", kernels.softmax, x),
        ("x", kernels.logsumexp, x),
        ("x", kernels.select_above, put(normal(8)), 0.0),
        ("x", kernels.quantize_rows, x),
        ("x", kernels.round_bf16, x),
        ("x", kernels.fp8_encode, x),
        ("codes", kernels.fp8_decode, codes),
        ("x", kernels.fp8_quantize, x),
        ("codes", kernels.fp8_dequantize, codes, one, "tensor"),
        ("x", kernels.fp8_linear, codes, one, codes, one),
        ("k", pages.store, put(normal(2, 1, 32)), normal(2, 1, 32)),
        ("q", pages.attend, put(normal(2, 1, 32))),
    ):
        wrong(f"^{name}: is on cuda:0, for which", call, *args, error=UnsupportedError)
    for name, call, *args in (
        ("isa: 'scalar'", kernels.act, x),
        ("isa: 'scalar'", kernels.argmax, x),
        ("isa: 'scalar'", kernels.rms_norm, x, put(np.ones(32, np.float32))),
    ):
        wrong(f"^{name}", call, *args, isa="scalar")
    wrong("^k: 33 is above 32", kernels.top_k, put(normal(2, 40)), 33, error=UnsupportedError)
    heads = (put(normal(1, 1, 600)), put(normal(1, 4)), put(normal(1, 4)))
    wrong("^x: heads of more than 256", kernels.rope, *heads, error=UnsupportedError)
    odd = kernels.kv_cache(1, 1, 7, device="cuda")
    wrong(
        "^cache: heads of an odd size",
        *(kernels.kv_store, odd, put(np.arange(1)), put(normal(1, 1, 7)), put(normal(1, 1, 7))),
        error=UnsupportedError,
    )


def test_experts_take_no_weight_of_a_device() -> None:
    packed = kernels.pack(put(normal(8, 32)), "BF16")
    wrong("^weights: 0 is packed on cuda", kernels.PackedExperts, [packed], error=UnsupportedError)
