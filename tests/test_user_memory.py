"""Kernels on memory that somebody else owns: packed weights over given bytes, caches of pages.

What is checked: nothing is copied, nobody's memory goes too early, the bits are those of the
objects that own their memory, and no number of a table leads out of it.
"""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from llmaccel import ConfigError, Tensor, UnsupportedError, kernels

LAYOUTS = ["F32", "F16", "BF16", "int8", "fp8", "w4g128", "w4g32", "w6g16"]
LENGTHS = (150, 70)  # of two sequences
TABLES = np.array([[5, 0, 3], [2, 4, -1]])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(0, 1, shape).astype(np.float32)


def aligned(like: Tensor) -> np.ndarray:
    """Fresh bytes of a shape at a multiple of 64."""
    room = np.zeros(like.nbytes + 64, np.uint8)
    at = -room.ctypes.data % 64
    return room[at : at + like.nbytes].reshape(like.shape)


# ---- packed weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_weight_moves_without_a_copy(layout: str) -> None:
    w, x = normal(70, 260), normal(3, 260)
    packed = kernels.pack(w, layout)
    assert packed.layout == layout
    assert packed.data.shape == kernels.packed_shape((70, 260), layout)
    assert packed.data.nbytes == packed.nbytes
    want = kernels.linear(x, packed).numpy()
    there = kernels.PackedWeight.over(packed.data, (70, 260), layout)
    assert there.data.data_ptr() == packed.data.data_ptr()
    assert (there.shape, there.format) == (packed.shape, packed.format)
    del packed
    gc.collect()
    np.testing.assert_array_equal(kernels.linear(x, there).numpy(), want)  # still there


def test_blocks_of_files_move_too() -> None:
    blocks = np.random.default_rng(0).integers(0, 60, 5 * 3 * 18, np.uint8)
    packed = kernels.pack(blocks, dtype="Q4_0", shape=(5, 96))
    assert packed.layout == "Q4_0"
    there = kernels.PackedWeight.over(packed.data, (5, 96), "Q4_0")
    np.testing.assert_array_equal(there.dequantize().numpy(), packed.dequantize().numpy())


def test_memory_lives_as_long_as_somebody_looks() -> None:
    class Bytes(np.ndarray):
        pass

    source = kernels.pack(normal(40, 32), "int8")
    mine = aligned(source.data).view(Bytes)
    mine[:] = source.data.numpy()
    gone = weakref.ref(mine.base if isinstance(mine.base, Bytes) else mine)
    there = kernels.PackedWeight.over(mine, (40, 32), "int8")
    data = there.data
    del mine
    gc.collect()
    assert gone() is not None
    del there
    gc.collect()
    assert gone() is not None  # the view of the weight's bytes holds the weight
    np.testing.assert_array_equal(data.numpy(), source.data.numpy())
    del data
    gc.collect()
    assert gone() is None


def test_float_units_are_strided_views_of_the_matrix() -> None:
    w = normal(64, 50)
    data = kernels.pack(w, "F32").data.numpy()
    view = data.view(np.float32).reshape(-1, 50, 32).transpose(0, 2, 1)
    assert np.shares_memory(view, data)
    np.testing.assert_array_equal(view.reshape(64, 50), w)
    view[1, 3, 7] = 9.0  # what is written there is the weight
    packed = kernels.PackedWeight.over(data, (64, 50), "F32")
    assert packed.dequantize()[35, 7] == 9.0


def test_bytes_that_do_not_fit_are_refused() -> None:
    data = kernels.pack(normal(40, 32), "int8").data
    over = kernels.PackedWeight.over
    with pytest.raises(ConfigError, match=r"data: expected \[3, "):
        over(data, (96, 32), "int8")
    with pytest.raises(ConfigError, match=r"data: expected \[2, "):
        over(data, (40, 33), "int8")
    with pytest.raises(ConfigError, match="layout: 'auto'") as caught:
        over(data, (40, 32), "auto")
    names = str(caught.value).removeprefix("layout: 'auto' is none of ").split(", ")
    assert len(names) == len(set(names)) > 8
    with pytest.raises(ConfigError, match="data: expected U8, got I8"):
        over(data.numpy().view(np.int8), (40, 32), "int8")
    room = aligned(Tensor.zeros((data.nbytes + 64,), "U8"))
    shifted = room[1 : 1 + data.nbytes].reshape(data.shape)
    with pytest.raises(ConfigError, match="multiple of 64"):
        over(shifted, (40, 32), "int8")
    with pytest.raises(ConfigError, match=r"shape: expected \[N, K\]"):
        kernels.packed_shape((3,), "int8")
    with pytest.raises(ConfigError, match="multiple of the type's block"):
        kernels.packed_shape((3, 33), "Q4_0")


# ---- caches -------------------------------------------------------------------------------------


def filled(dtype: str, heads: int, d: int) -> tuple[Tensor, list[kernels.KVPages]]:
    """A cache of two sequences, and each of them in pages of its own."""
    cache, alone = kernels.kv_cache(6, heads, d, dtype), []
    for s, n in enumerate(LENGTHS):
        k, v, at = normal(n, heads, d, seed=s), normal(n, heads, d, seed=s + 5), np.arange(n)
        kernels.kv_store(cache, TABLES[s][at // 64] * 64 + at % 64, k, v, dtype=dtype)
        alone.append(kernels.KVPages(heads, d, dtype=dtype))
        alone[s].store(k, v)
    return cache, alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "fp8"])
@pytest.mark.parametrize("isa", kernels.isas())
def test_pages_of_many_sequences_give_the_bits_of_each_alone(dtype: str, isa: str) -> None:
    cache, alone = filled(dtype, 2, 24)
    q = normal(6, 6, 24)
    owner, at = np.array([0, 0, 1, 1, 0, 0]), np.array([149, 3, 69, 0, 70, 71])
    more = {"sinks": normal(6), "window": 66, "softcap": 3.0, "scale": 0.3}
    for keywords in ({}, more):
        together = kernels.paged_attention(
            q, cache, TABLES, owner, at, dtype=dtype, isa=isa, **keywords
        ).numpy()
        for i in range(6):
            one = alone[owner[i]].attend(q[i : i + 1], at[i : i + 1], isa=isa, **keywords)
            np.testing.assert_array_equal(together[i], one.numpy()[0])
        threads = kernels.paged_attention(
            q, cache, TABLES, owner, at, dtype=dtype, isa=isa, threads=3, **keywords
        )
        np.testing.assert_array_equal(threads.numpy(), together)


def test_a_window_reads_no_older_page() -> None:
    cache, _ = filled("bfloat16", 2, 24)
    q = normal(1, 6, 24)
    cut = np.array([[-7, -7, -7, -7, 1]])  # positions 256..319
    kernels.kv_store(cache, 64 + np.arange(4), normal(4, 2, 24), normal(4, 2, 24))
    y = kernels.paged_attention(q, cache, cut, [0], [259], window=4)
    assert np.isfinite(y.numpy()).all()
    with pytest.raises(ConfigError, match=r"tables: \[0, 0\] is -7"):
        kernels.paged_attention(q, cache, cut, [0], [259], window=5)


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"tables": [[9, 0, 3]]}, ConfigError, r"tables: \[0, 0\] is 9, not in 0\.\.5"),
        ({"tables": [[5, -1, 3]]}, ConfigError, r"tables: \[0, 1\] is -1"),
        ({"tables": [5, 0, 3]}, ConfigError, "tables: expected integers of 2 axes"),
        ({"tables": [[5, 2**40, 3]]}, ConfigError, "tables: .* 32 bits"),
        ({"tables": np.empty((0, 3), np.int32)}, ConfigError, "sequences: 0 is not in"),
        ({"tables": np.empty((1, 0), np.int32)}, ConfigError, "width"),
        ({"sequences": [1]}, ConfigError, r"sequences: 1 is not in 0\.\.0"),
        ({"sequences": [-1]}, ConfigError, "sequences: -1"),
        ({"sequences": [0, 0]}, ConfigError, "sequences, positions: expected 1"),
        ({"positions": [192]}, ConfigError, r"positions: 192 is not in 0\.\.191"),
        ({"positions": [-1]}, ConfigError, "positions: -1"),
        ({"positions": [0.5]}, ConfigError, "positions: expected integers"),
        ({"q": np.zeros((1, 3, 24), np.float32)}, ConfigError, "3 heads are no multiple of 2"),
        ({"q": np.zeros((1, 6, 20), np.float32)}, ConfigError, "cache: expected"),
        ({"cache": np.zeros((6, 2, 9), np.uint8)}, ConfigError, "cache: expected"),
        ({"cache": np.zeros(9, np.uint8)}, ConfigError, r"cache: expected U8 \[pages"),
        ({"dtype": "int8"}, ConfigError, "cache: expected"),
        ({"dtype": "int4"}, UnsupportedError, "dtype: 'int4'"),
        ({"window": -1}, ConfigError, "window"),
    ],
)
def test_numbers_that_lead_out_of_the_cache_are_refused(changed, error, match) -> None:
    cache, _ = filled("bfloat16", 2, 24)
    good = {
        "q": normal(1, 6, 24),
        "cache": cache,
        "tables": TABLES[:1],
        "sequences": [0],
        "positions": [149],
    }
    kernels.paged_attention(**good)
    with pytest.raises(error, match=match):
        kernels.paged_attention(**{**good, **changed})


def test_tokens_go_where_slots_say() -> None:
    cache = kernels.kv_cache(2, 1, 16)
    k, v = normal(3, 1, 16), normal(3, 1, 16, seed=1)
    before = bytes(memoryview(cache))
    kernels.kv_store(cache, [-1, -1, -1], k, v)
    assert bytes(memoryview(cache)) == before
    kernels.kv_store(cache, [64, -1, 65], k, v)
    other = kernels.KVPages(1, 16)
    other.store(k[::2].copy(), v[::2].copy())
    q = normal(1, 2, 16)
    got = kernels.paged_attention(q, cache, [[1]], [0], [1])
    np.testing.assert_array_equal(got.numpy(), other.attend(q).numpy())
    for slots in ([128, 0, 1], [0, -2, 1]):
        with pytest.raises(ConfigError, match="slots"):
            kernels.kv_store(cache, slots, k, v)
    locked = aligned(cache)
    locked.flags.writeable = False
    with pytest.raises(ConfigError, match="cache: is read-only"):
        kernels.kv_store(locked, [0, 1, 2], k, v)
    kernels.kv_store(cache, [], k[:0], v[:0])


def test_threads_may_share_a_cache() -> None:
    cache, _ = filled("bfloat16", 2, 24)
    q = normal(2, 6, 24)
    want = kernels.paged_attention(q, cache, TABLES, [0, 1], [149, 69]).numpy()
    seen: list[np.ndarray] = []

    def attend() -> None:
        for _ in range(20):
            seen.append(kernels.paged_attention(q, cache, TABLES, [0, 1], [149, 69]).numpy())

    several = [threading.Thread(target=attend) for _ in range(3)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert len(seen) == 60
    assert all(np.array_equal(one, want) for one in seen)
