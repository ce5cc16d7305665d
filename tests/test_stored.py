"""Stored keys and values: copies of pages as floats and as a cache, of requests under way alone."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import test_sampling as sampling
import tiny

from llmaccel import LLM, LLMAccelError, RequestError, SamplingParams, StoredKV, _core, kernels
from llmaccel.config import ModelConfig
from llmaccel.errors import ConfigError
from llmaccel.models.mapping import build_config

IDS = [5, 17, 200, 3, 88, 41, 7, 9] * 9  # more than a page
LONG = {"max_position_embeddings": 4096}
FORMS = ["float32", "bfloat16", "int8", "fp8"]


def slow(pause: float = 0.01, max_tokens: int = 2000):
    """Parameters of a request that is under way until it is cancelled."""

    def wait(made, logits):
        time.sleep(pause)

    return SamplingParams(
        max_tokens=max_tokens, temperature=0, ignore_eos=True, logits_processors=[wait], n=2
    )


def config_of(**sizes: int) -> ModelConfig:
    return build_config(tiny.config_of("llama", **sizes))


@pytest.mark.parametrize("d", [20, 32, 7 * 2])
@pytest.mark.parametrize("dtype", FORMS)
def test_pages_are_read_as_they_are_written(dtype, d):
    """Against what was stored: exact, or within half a step of the codes."""
    config = config_of(head_dim=d)
    rng = np.random.default_rng(d)
    k, v = (rng.normal(size=(100, 2, d)).astype(np.float32) for _ in range(2))
    k[7] = 0
    cache = kernels.kv_cache(2, 2, d, dtype)
    kernels.kv_store(cache, np.arange(100), k, v, dtype=dtype)
    kv = StoredKV(100, dtype, _layers(cache, config.n_layers), config)
    for got, want in ((kv.keys(1).numpy(), k), (kv.values(-2).numpy(), v)):
        assert got.shape == want.shape
        largest = np.abs(want).max(axis=-1, keepdims=True)
        if dtype == "float32":
            np.testing.assert_array_equal(got, want)
        elif dtype == "bfloat16":
            np.testing.assert_array_equal(got, kernels_rounded(want))
        elif dtype == "int8":
            assert (np.abs(got - want) <= largest / 127 * 0.51).all()
        else:
            assert (np.abs(got - want) <= np.maximum(np.abs(want) / 16, largest / 448 / 512)).all()
        again = kernels.kv_cache(2, 2, d, dtype)
        both = (got, v) if want is k else (k, got)
        kernels.kv_store(again, np.arange(100), *both, dtype=dtype)
        np.testing.assert_array_equal(again.numpy()[0], cache.numpy()[0])


def kernels_rounded(x: np.ndarray) -> np.ndarray:
    bits = np.asarray(memoryview(kernels.round_bf16(x)))
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(x.shape)


def _layers(cache, n_layers: int):
    from llmaccel import Tensor

    return Tensor(np.stack([cache.numpy()] * n_layers))


@pytest.mark.parametrize("dtype", FORMS)
def test_a_requests_pages_are_what_the_model_computes(dtype, tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path, **LONG)
    with LLM(folder, dtype="float32", kv_cache_dtype=dtype) as llm:
        future = llm.submit(IDS, slow())
        while (kv := llm.kv_pages(future, branch=1)).n_tokens < len(IDS) + 2:
            time.sleep(0.002)
        first = llm.kv_pages(future.request_id)
        assert first.n_tokens >= kv.n_tokens
        layers, heads, d = llm.report()["model"]["n_layers"], 2, 20
        assert kv.data.shape[:3] == (layers, -(-kv.n_tokens // 64), heads)
        assert not kv.is_view
        assert kv.dtype == dtype
        # values of the first layer, without the engine
        future.cancel()
        names = {one: llm.weight(f"model.{one}.weight").numpy() for one in _FIRST}
        out = future.result().outputs[1]
        tokens = [*IDS, *out.token_ids][: kv.n_tokens]
        x = names["embed_tokens"][tokens].astype(np.float64)
        x /= np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6)
        x *= names["layers.0.input_layernorm"]
        want = (x @ names["layers.0.self_attn.v_proj"].T).reshape(-1, heads, d)
        step = {"float32": 1e-5, "bfloat16": 2**-8, "int8": 0.01, "fp8": 0.07}[dtype]
        largest = np.abs(want).max()
        np.testing.assert_allclose(kv.values(0).numpy(), want, atol=step * largest)
        key = (x @ names["layers.0.self_attn.k_proj"].T).reshape(-1, heads, d)
        got = kv.keys(0).numpy()
        np.testing.assert_allclose(got[0], key[0], atol=step * np.abs(key).max())  # not rotated
        norms = [np.sqrt((one * one).sum(axis=-1)) for one in (got.astype(np.float64), key)]
        np.testing.assert_allclose(*norms, rtol=0.05 if dtype == "fp8" else 0.02)
        # of the common prompt both branches have the same bits
        for layer in range(layers):
            for a, b in zip(
                (kv.keys(layer), kv.values(layer)),
                (first.keys(layer), first.values(layer)),
                strict=True,
            ):
                np.testing.assert_array_equal(a.numpy()[: len(IDS)], b.numpy()[: len(IDS)])
        with pytest.raises(RequestError, match=r"^request: none under way has the id"):
            llm.kv_pages(future)


_FIRST = (
    "embed_tokens",
    "layers.0.input_layernorm",
    "layers.0.self_attn.v_proj",
    "layers.0.self_attn.k_proj",
)


def test_a_layer_is_a_cache_for_paged_attention(tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path, **LONG)
    with LLM(folder, dtype="float32", kv_cache_dtype="float32") as llm:
        future = llm.submit(IDS, slow())
        while (kv := llm.kv_pages(future)).n_tokens < len(IDS):
            time.sleep(0.002)
        future.cancel()
        n, at = kv.n_tokens, [kv.n_tokens - 1]
        q = np.random.default_rng(0).normal(size=(1, 6, 20)).astype(np.float32)
        table = [list(range(kv.data.shape[1]))]
        got = kernels.paged_attention(q, kv.layer(2), table, [0], at, dtype="float32").numpy()
        keys, values = (x.numpy().astype(np.float64) for x in (kv.keys(2), kv.values(2)))
        for head in range(6):
            s = keys[:, head // 3] @ q[0, head].astype(np.float64) * 20**-0.5
            p = np.exp(s - s.max())
            np.testing.assert_allclose(got[0, head], p @ values[:, head // 3] / p.sum(), atol=1e-5)
        assert n == keys.shape[0]
        assert kv.layer(2).data_ptr() == kv.data.data_ptr() + 2 * kv.data.nbytes // 3
        with pytest.raises(RequestError, match="layer: expected one from -3 to 2, got 3"):
            kv.keys(3)


def test_latents(tmp_path):
    folder = tiny.make_checkpoint("deepseek_v3", tmp_path, **LONG)
    with LLM(folder, dtype="float32", kv_cache_dtype="bfloat16") as llm:
        future = llm.submit(IDS, slow())
        while (kv := llm.kv_pages(future)).n_tokens < len(IDS):
            time.sleep(0.002)
        future.cancel()
        assert kv.keys(0).shape == (kv.n_tokens, 1, 36 + 12)
        assert np.abs(kv.keys(0).numpy()).max() > 0
        with pytest.raises(LLMAccelError, match="values: with latents"):
            kv.values(0)


def test_a_copy_stays_as_it_was_and_steps_go_on(tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path, **LONG)
    with LLM(folder, max_num_seqs=4, max_num_batched_tokens=16) as llm:
        futures = [llm.submit([i + 3] * (5 + 30 * i), slow(0.002, 60)) for i in range(4)]
        seen: dict[str, bytes] = {}
        while not all(one.done() for one in futures):
            for future in futures:
                try:
                    kv = llm.kv_pages(future)
                except RequestError:
                    continue
                if kv.n_tokens:
                    bits = kv.keys(1).numpy().tobytes()
                    before = seen.get(future.request_id, b"")
                    assert bits.startswith(before)  # it only grows
                    seen[future.request_id] = bits
        assert len(seen) == 4
        assert [len(one.result().outputs[0].token_ids) for one in futures] == [60] * 4
        assert llm.engine.stats()["step_allocations"] == 0


@pytest.mark.parametrize("dtype", FORMS)
def test_a_request_that_waits_has_none(dtype, tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path, **LONG)
    with LLM(folder, dtype="float32", kv_cache_dtype=dtype, max_num_seqs=2) as llm:
        first = llm.submit(IDS, slow())
        while not llm.kv_pages(first).n_tokens:
            time.sleep(0.002)
        kv = llm.kv_pages(llm.submit(IDS, slow()))
        assert kv.n_tokens == 0
        assert kv.keys(0).shape == kv.values(-1).shape == (0, 2, 20)
        with pytest.raises(RequestError, match="layer: expected one from"):
            kv.keys(3)


def test_what_is_refused(tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path, **LONG)
    with LLM(folder) as llm:
        for bad in (7, None, object()):
            with pytest.raises(RequestError, match="request: expected a request_id"):
                llm.kv_pages(bad)
        with pytest.raises(RequestError, match="request: none under way has the id 'x'"):
            llm.kv_pages("x")
        inside: list[BaseException] = []

        def asks(made, logits):
            time.sleep(0.01)
            try:
                llm.kv_pages(future)
            except LLMAccelError as error:
                inside.append(error)

        params = SamplingParams(max_tokens=3, temperature=0, logits_processors=[asks])
        future = llm.submit(IDS, params)
        future.result()
        assert inside
        future = llm.submit(IDS, slow())
        for branch in (2, -1, 0.5, True):
            with pytest.raises(RequestError, match="branch: expected one from 0 to 1"):
                llm.kv_pages(future, branch=branch)
        failed: list[BaseException] = []

        def look():
            try:
                while True:
                    llm.kv_pages(future)
            except LLMAccelError as error:
                failed.append(error)

        thread = threading.Thread(target=look)
        thread.start()
        time.sleep(0.05)
    thread.join(10)
    assert not thread.is_alive()
    assert failed


def test_the_core_checks_the_room():
    limits = {"max_seqs": 1, "max_batch_tokens": 8, "max_len": 64, "kv_pages": 2}
    engine = _core.Engine(sampling.make_model(301, 1), limits)
    number = engine.add([5, 6, 7], {**sampling.PARAMS, "max_tokens": 9})
    engine.step()
    tokens, size = engine.kv(number, 0)
    assert tokens == 3
    assert size > 0
    room = bytearray(size)
    assert engine.kv(number, 0, room) == (3, size)
    assert any(room)
    for wrong in (size - 1, size + 1, 0):
        with pytest.raises(ConfigError, match=f"out: expected {size} bytes, got {wrong}"):
            engine.kv(number, 0, bytearray(wrong))
