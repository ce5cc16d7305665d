"""The KV cache on the emulated device takes memory as it grows, stays where it is, and gives back.

A page of the model here is 512 KiB, so a slab of the cache is 16 pages; sequences of a token each
take one. The device maps memory, or (LLMACCEL_EMU_PLAIN) hands out whole allocations.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import test_sampling as sampling
from emulator import bf16, from_bf16
from test_cuda_backend import counts
from test_cuda_backend import emulated as emulated_backend

from llmaccel import _core
from llmaccel.environment import open_device
from llmaccel.loading import load_weights, prepare
from llmaccel.options import LoadOptions

emulated = emulated_backend
MIB = 1 << 20
SLAB, PAGE = 16, MIB // 2
LIMITS = {"max_seqs": 40, "max_batch_tokens": 40, "max_len": 400, "kv_pages": 40}


def model_on(name: str, backend: Any) -> Any:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 256}
    heads["max_position_embeddings"] = 512
    config, arrays = sampling.arrays_for(301, intermediate_size=104, **heads)
    arrays = {name: from_bf16(bf16(values)) for name, values in arrays.items()}
    prepared = prepare(LoadOptions(config, dtype="bfloat16", backend=name), arrays)
    model = _core.Model(backend, vars(prepared.config), prepared.forms.weights)
    load_weights(model, prepared)
    return model


def add(engine: Any, n: int, tokens: int, first: int = 0) -> None:
    for i in range(first, first + n):
        params = {**sampling.PARAMS, "max_tokens": tokens, "seed": i}
        engine.add([i % sampling.KNOWN], params)


def run(engine: Any) -> tuple[dict[int, list[int]], list[int]]:
    """(tokens of each request, pages committed after each step)."""
    tokens: dict[int, list[int]] = {}
    committed = []
    while engine.has_work():
        for number, _, kind, _, token, *_ in engine.step():
            if kind == sampling.TOKEN:
                tokens.setdefault(number, []).append(token)
        committed.append(engine.stats()["pages_committed"])
    return tokens, committed


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_it_grows_while_it_serves_and_shrinks_when_idle(
    plain: bool, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setenv("LLMACCEL_EMU_PLAIN", "1")
    found = []
    for name in ("cpu", "cuda"):
        backend = open_device("cuda") if name == "cuda" else _core.Backend("cpu", None, 1)
        engine = _core.Engine(model_on(name, backend), LIMITS)
        free = backend.info["memory_free"]
        add(engine, 3, 6)
        add(engine, 20, 4)
        add(engine, 17, 2)
        tokens, committed = run(engine)
        found.append(tokens)
        assert max(committed) == 40
        assert committed[-1] == SLAB
        if name == "cuda":
            assert backend.info["grows"] == (not plain)
            assert free - backend.info["memory_free"] == (0 if plain else SLAB * PAGE)
            add(engine, 40, 1)
            assert max(run(engine)[1]) == 40  # and again
    assert found[0] == found[1]
    assert engine.stats()["step_allocations"] == 0


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_memory_that_a_long_request_does_not_need_goes_back(name: str, emulated: str) -> None:
    """A burst beside it has ended long ago; what it keeps stays where it is."""
    backend = open_device("cuda") if name == "cuda" else _core.Backend("cpu", None, 1)
    alone = _core.Engine(model_on("cpu", _core.Backend("cpu", None, 1)), LIMITS)
    engine = _core.Engine(model_on(name, backend), LIMITS)
    add(engine, 1, 290)
    add(engine, 39, 3)
    add(alone, 1, 290)
    before = counts().waits if name == "cuda" else 0
    tokens, committed = run(engine)
    assert committed[2] == 40
    assert committed[200] == 40
    assert committed[270] == SLAB
    assert tokens[1] == run(alone)[0][1]
    assert len(tokens) == 40
    if name == "cuda":
        assert counts().waits - before == 1  # the trim's; at the end nothing is too much


@pytest.mark.slow
def test_pages_themselves_do_where_there_is_no_memory_for_a_slab(
    emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eleventh granule: the second slab's third; what was there before it is still there."""
    monkeypatch.setenv("LLMACCEL_EMU_GRANULE", "11")
    backend = open_device("cuda")
    engine = _core.Engine(model_on("cuda", backend), LIMITS)
    add(engine, 10, 4)
    add(engine, 10, 4, 10)
    tokens, committed = run(engine)
    assert max(committed) == 20
    free = _core.Engine(model_on("cpu", _core.Backend("cpu", None, 1)), LIMITS)
    add(free, 20, 4)
    assert run(free)[0] == tokens


def used(environment: pytest.MonkeyPatch) -> int:
    """Bytes of the device that model and engine take before a step."""
    device = open_device("cuda")
    engine = _core.Engine(model_on("cuda", device), LIMITS)
    info = device.info
    del engine, device
    gc.collect()
    return info["memory_total"] - info["memory_free"]


def test_no_memory_is_said_in_sizes_and_costs_only_who_wanted_it(
    emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMACCEL_EMU_MEMORY", str(used(monkeypatch) + SLAB * PAGE + MIB))
    device = open_device("cuda")
    engine = _core.Engine(model_on("cuda", device), LIMITS)
    add(engine, 4, 3)
    want, _ = run(engine)
    numbers = []
    for i in range(30):
        params = {**sampling.PARAMS, "max_tokens": 3, "seed": i}
        numbers.append(engine.add([i % sampling.KNOWN], params))
    message = (
        rf"^kv: cannot commit {7 * MIB} bytes for page 30 beside the {SLAB * PAGE} of {40 * PAGE} "
        rf"that are there: {MIB} bytes free on emulator; lower kv_cache_memory_bytes"
    )
    for _ in range(2):  # nothing came of it, so the same again
        with pytest.raises(MemoryError, match=message):
            engine.step()
        assert engine.stats()["pages_committed"] == SLAB
    for number in numbers:
        engine.cancel(number)
    run(engine)
    add(engine, 4, 3)
    again, committed = run(engine)
    assert list(again.values()) == list(want.values())
    assert max(committed) == SLAB
    assert device.info["memory_free"] == MIB


def test_a_reservation_that_is_plain_memory_is_refused_whole(
    emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMACCEL_EMU_MEMORY", str(used(monkeypatch) + 10 * MIB))
    monkeypatch.setenv("LLMACCEL_EMU_PLAIN", "1")
    with pytest.raises(MemoryError, match=f"kv_pages: cannot reserve {40 * PAGE} bytes"):
        _core.Engine(model_on("cuda", open_device("cuda")), LIMITS)
