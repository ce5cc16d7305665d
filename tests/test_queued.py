"""Enqueue, wait, abort; AsyncLLM; and the names of vLLM's LLM that do little or raise."""

from __future__ import annotations

import asyncio
import math
import queue
from concurrent.futures import ThreadPoolExecutor

import letters
import pytest
from letters import COMMON, GREEDY, only

from llmaccel import (
    LLM,
    AsyncEngineArgs,
    AsyncLLM,
    RequestError,
    RequestOutputKind,
    SamplingParams,
    UnsupportedError,
)

LONG = SamplingParams(max_tokens=30_000, **COMMON)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"), max_position_embeddings=32768)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, max_num_seqs=8) as llm:
        yield llm


def test_enqueue_and_wait(llm):
    texts = [only(llm.generate(p, GREEDY)).text for p in ("abc", "de", "fg")]
    chat = only(llm.chat([{"role": "user", "content": "hi"}], GREEDY)).text
    assert llm.wait_for_completion() == []
    ids = llm.enqueue(["abc", "de"], GREEDY)
    ids += llm.enqueue("fg", GREEDY)
    ids += llm.enqueue_chat([{"role": "user", "content": "hi"}], GREEDY)
    assert len(set(ids)) == 4
    outputs = llm.wait_for_completion()
    assert [out.request_id for out in outputs] == ids
    assert [out.outputs[0].text for out in outputs] == [*texts, chat]
    assert llm.wait_for_completion() == []
    with pytest.raises(RequestError, match=r"prompts\[1\]"):
        llm.enqueue(["a", []], GREEDY)
    assert llm.wait_for_completion() == []


def test_two_threads_that_collect(llm):
    """What one of them saw, the other has taken."""

    class Contested(queue.SimpleQueue):
        def empty(self):
            return False

    own, llm._enqueued = llm._enqueued, Contested()
    try:
        ids = llm.enqueue("abc", GREEDY)
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(llm.wait_for_completion) for _ in range(2)]
            taken = [out.request_id for one in both for out in one.result(30)]
        assert taken == ids
    finally:
        llm._enqueued = own


def test_abort(llm):
    ids = llm.enqueue(["abc", "de", "fg"], [LONG, GREEDY, LONG])
    assert llm.abort("no such") == 0
    assert llm.abort([ids[0], ids[2]]) == 2
    reasons = [out.outputs[0].finish_reason for out in llm.wait_for_completion()]
    assert reasons == ["abort", "length", "abort"]
    assert llm.abort(ids) == 0


def test_async_llm(folder, llm):
    whole = only(llm.generate("abc", GREEDY)).text

    async def read(engine, request_id, params):
        return [chunk async for chunk in engine.generate("abc", params, request_id)]

    async def main():
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=folder, enforce_eager=True))
        delta = GREEDY.clone()
        delta.output_kind = RequestOutputKind.DELTA
        one, two = await asyncio.gather(read(engine, "1", delta), read(engine, "2", GREEDY))
        assert "".join(chunk.outputs[0].text for chunk in one) == whole
        assert all(whole.startswith(chunk.outputs[0].text) for chunk in two)
        assert two[-1].outputs[0].text == whole
        assert {chunk.request_id for chunk in one} == {"1"}
        task = asyncio.create_task(read(engine, "3", LONG))
        while not engine.llm.engine.find({"3"}):
            await asyncio.sleep(0.01)
        with pytest.raises(RequestError, match="request_id='3'"):
            await read(engine, "3", GREEDY)
        await engine.abort("3")
        assert (await task)[-1].outputs[0].finish_reason == "abort"
        assert len(engine.get_tokenizer()) == 259
        engine.shutdown()

    asyncio.run(main())


def test_ids_of_callers_are_no_others(llm):
    """abort takes ids of callers and those that the LLM gives: none stands for two requests."""

    async def main():
        first = int(llm.enqueue("abc", LONG)[0])
        free = str(first + 3)
        stream = llm.agenerate("de", LONG, request_id=free)
        await anext(stream)
        with pytest.raises(RequestError, match=f"request_id='{first}': expected a string not"):
            await anext(llm.agenerate("de", LONG, request_id=str(first)))
        with pytest.raises(RequestError, match="request_id=3: expected a string"):
            await anext(llm.agenerate("de", LONG, request_id=3))
        ids = [str(first), *llm.enqueue(["fg", "hi", "jk"], LONG)]
        assert len({*ids, free}) == 5
        assert llm.abort(free) == 1
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].outputs[0].finish_reason == "abort"
        again = llm.agenerate("de", GREEDY, request_id=free)  # free once more
        assert [chunk async for chunk in again][-1].request_id == free
        assert llm.abort(ids) == 4
        assert [out.request_id for out in llm.wait_for_completion()] == ids

    asyncio.run(main())


def test_names_of_vllm(llm, folder):
    config = llm.llm_engine.model_config
    assert (config.max_model_len, config.get_vocab_size()) == (32768, letters.VOCAB)
    assert (config.model, config.dtype) == (str(folder), "float32")
    for call, instead in (
        (lambda: llm.collective_rpc("f"), "collective_rpc: .* call methods of LLM"),
        (lambda: llm.apply_model(len), "apply_model: .* report"),
        (llm.reset_prefix_cache, "reset_prefix_cache: "),
    ):
        with pytest.raises(UnsupportedError, match=instead):
            call()


def test_perplexity(llm, folder):
    ids = llm.get_tokenizer().encode("some text that is scored")
    scores = llm.loglikelihood([ids[:1]], [ids[1:]])
    expected = math.exp(-scores[0][0] / (len(ids) - 1))
    assert llm.perplexity("some text that is scored") == pytest.approx(expected, rel=1e-12)
    with LLM(folder, max_model_len=10) as short:
        total, scored = 0.0, 1
        for end in (10, 13, 16, 19, 22, 25):
            end = min(end, len(ids))
            pair = llm.loglikelihood([ids[max(0, end - 10) : scored]], [ids[scored:end]])
            total += pair[0][0]
            scored = end
        assert scored == len(ids) == 25
        expected = math.exp(-total / 24)
        assert short.perplexity(ids, stride=3) == pytest.approx(expected, rel=1e-9)
        for stride in (0, 10, 2.0):
            with pytest.raises(RequestError, match="stride: expected 1 to 9"):
                short.perplexity(ids, stride=stride)
    with pytest.raises(RequestError, match="text: expected at least two"):
        llm.perplexity([5])
