"""Hidden states and logits that a request shows: values, bits, memory, and what is refused."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import letters
import numpy as np
import pytest
import tiny

from llmaccel import (
    LLM,
    AsyncLLM,
    MemoryPlanError,
    RequestError,
    RequestOutputKind,
    SamplingParams,
    _core,
)

IDS = [5, 17, 200, 3, 88, 41, 7, 9, 150, 33, 2, 64, 290, 12]
DRAW = SamplingParams(max_tokens=6, temperature=0.8, seed=3, ignore_eos=True, n=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, dtype="float32", threads=2) as model:
        yield model


@pytest.mark.torch
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "qwen3_moe", "granite"])
def test_states_are_those_of_transformers(family, tmp_path):
    import torch

    folder = tiny.make_checkpoint(family, tmp_path)
    with torch.no_grad():
        theirs = tiny.hf_model(folder)(torch.tensor([IDS]), output_hidden_states=True)
    with LLM(folder, dtype="float32", max_num_batched_tokens=5) as llm:
        layers = list(range(len(theirs.hidden_states)))
        ours = llm.hidden_states(IDS, layers)
        assert len(ours) == llm.report()["model"]["n_layers"] + 1
        for layer in layers:
            want = theirs.hidden_states[layer][0].numpy()
            np.testing.assert_allclose(ours[layer].numpy(), want, rtol=1e-4, atol=1e-4)
        last = llm.hidden_states(IDS, [-1])[0]
        assert torch.from_dlpack(last).data_ptr() == last.data_ptr()
        assert last.numpy().tobytes() == ours[-1].numpy().tobytes()


def shown_bits(out) -> list[bytes]:
    found = [state.numpy().tobytes() for state in out.hidden_states]
    for one in out.outputs:
        assert one.logits.shape[0] == len(one.token_ids)
        found += [one.logits.numpy().tobytes(), one.token_ids_array.tobytes()]
        found += [state.numpy().tobytes() for state in one.hidden_states]
    return found


def test_generated_tokens_come_with_what_they_were_drawn_from(llm):
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=0)
    (out,) = llm.generate(
        {"prompt_token_ids": IDS}, params, output_logits=True, output_hidden_states=[0, -1]
    )
    one = out.outputs[0]
    assert shown_bits(pickle.loads(pickle.dumps(out))) == shown_bits(out)
    assert one.token_ids == one.logits.numpy().argmax(axis=1).tolist()
    whole = llm.logits(IDS + one.token_ids).numpy()
    np.testing.assert_array_equal(one.logits.numpy(), whole[len(IDS) - 1 : -1])
    states = llm.hidden_states(IDS + one.token_ids, [0, -1])
    for mine, drawn, all_of_it in zip(out.hidden_states, one.hidden_states, states, strict=True):
        np.testing.assert_array_equal(mine.numpy(), all_of_it.numpy()[: len(IDS)])
        np.testing.assert_array_equal(drawn.numpy(), all_of_it.numpy()[len(IDS) - 1 : -1])


def test_the_same_bits_in_any_company(llm, folder):
    asked = {"output_logits": True, "output_hidden_states": [1, -1, 0, 1]}
    prompts = [{"prompt_token_ids": IDS * (1 + i % 4)} for i in range(7)]
    alone = [shown_bits(llm.generate(p, DRAW, **asked)[0]) for p in prompts]
    assert [shown_bits(out) for out in llm.generate(prompts, DRAW, **asked)] == alone
    limits = {"max_num_batched_tokens": 3, "max_num_seqs": 2, "threads": 1}
    with LLM(folder, dtype="float32", **limits) as other:
        assert [shown_bits(out) for out in other.generate(prompts, DRAW, **asked)] == alone


def test_every_way_to_submit_shows_the_same(llm):
    asked = {"output_logits": True, "output_hidden_states": [0, -1]}
    params = DRAW.clone()
    params.output_kind = RequestOutputKind.FINAL_ONLY
    want = shown_bits(llm.generate([IDS], params, **asked)[0])

    async def last(chunks):
        async for chunk in chunks:
            out = chunk
        return out

    llm.enqueue([IDS, IDS], params, **asked)
    outs = [*llm.wait_for_completion(), llm.submit(IDS, params, **asked).result()]
    outs += llm.generate([IDS], params, stream=True, **asked)
    outs.append(asyncio.run(last(llm.agenerate(IDS, params, **asked))))
    outs.append(asyncio.run(last(AsyncLLM(llm).generate(IDS, params, "one", **asked))))
    assert [shown_bits(out) for out in outs] == [want] * 6
    plain = llm.submit(IDS, params).result()
    assert plain.hidden_states is None
    assert plain.outputs[0].logits is None
    for call in (llm.submit, llm.enqueue):
        with pytest.raises(RequestError, match="output_logits: expected True or False, got 1"):
            call(IDS, params, output_logits=1)
        with pytest.raises(RequestError, match="output_hidden_states: empty"):
            call(IDS, params, output_hidden_states=[])


def test_a_chat_shows_them_too(tmp_path):
    folder = letters.write_model(tmp_path)
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    talk = [{"role": "user", "content": "hi"}]
    asked = {"output_logits": True, "output_hidden_states": [-1]}
    with LLM(folder) as llm:
        llm.enqueue_chat(talk, params, **asked)
        (out,) = llm.wait_for_completion()
        (same,) = llm.chat(talk, params, **asked)
        assert shown_bits(out) == shown_bits(same)


def test_preemption_changes_no_bit(llm):
    asked = {"output_logits": True, "output_hidden_states": [1, -1]}
    params = SamplingParams(max_tokens=60, temperature=0.8, seed=3, ignore_eos=True, n=2)
    prompts = [{"prompt_token_ids": IDS * (1 + i)} for i in range(4)]
    calm = [shown_bits(out) for out in llm.generate(prompts, params, **asked)]
    before, last = llm.engine.stats()["preemptions"], {}
    for i, chunk in enumerate(llm.generate(prompts, params, stream=True, **asked)):
        if i % 7 == 0:
            llm.engine.preempt(2)
        last.setdefault(chunk.prompt_index, []).append(chunk)
    assert llm.engine.stats()["preemptions"] > before
    for index, chunks in last.items():
        pieces: dict[int, list[bytes]] = {}
        for one in (one for chunk in chunks for one in chunk.outputs):
            assert one.logits.shape[0] == len(one.token_ids)
            pieces.setdefault(one.index, []).append(one.logits.numpy().tobytes())
        for branch, found in pieces.items():
            assert b"".join(found) == calm[index][2 + 4 * branch]


def test_a_request_for_states_alone_draws_nothing(llm):
    before = llm.engine.stats()
    llm.hidden_states(IDS, [2])
    after = llm.engine.stats()
    assert after["output_tokens"] == before["output_tokens"]
    assert after["step_allocations"] == 0
    with pytest.raises(RequestError, match="layer from -4 to 3, got 4"):
        llm.hidden_states(IDS, [4])
    with pytest.raises(RequestError, match="output_hidden_states: expected a list"):
        llm.generate([IDS], output_hidden_states=True)
    with pytest.raises(RequestError, match="layers: empty"):
        llm.hidden_states(IDS, [])


def test_memory_is_asked_for_first(llm, monkeypatch):
    from llmaccel import memory

    monkeypatch.setattr(memory, "available_memory", lambda: (10_000, "a test"))
    with pytest.raises(MemoryPlanError, match="hidden states of 14 positions and 4 layers"):
        llm.hidden_states(IDS, [0, 1, 2, 3])
    with pytest.raises(MemoryPlanError, match="logits and hidden states of 1 prompts"):
        llm.generate([IDS], SamplingParams(max_tokens=16), output_logits=True)


def test_views_outlive_their_output_and_model(folder):
    with LLM(folder, dtype="float32") as llm:
        (out,) = llm.generate([IDS], SamplingParams(max_tokens=4), output_logits=True)
        logits = out.outputs[0].logits
        kept = logits.numpy().copy()
        del out
    np.testing.assert_array_equal(np.from_dlpack(logits), kept)


def test_the_engine_checks_what_it_is_handed(llm, folder):
    from conftest import SAMPLING

    backend = _core.Backend("cpu", None, 1)
    config, forms = llm._config, llm._forms
    model = _core.Model(backend, vars(config), forms.weights)
    from llmaccel.loading import load_weights, prepare

    load_weights(model, prepare(llm._options))
    engine = _core.Engine(model, llm.plan().limits)
    room = _core.Tensor.zeros((1, 4, config.d_model), "F32")
    good = {"states": room, "layers": [0], "state_from": 0, "state_to": 4}
    score = {**SAMPLING, "max_tokens": 0}
    assert engine.add([1, 2, 3, 4], score, **good) > 0
    for change, message in (
        ({"layers": [9]}, "state_layers: 9"),
        ({"layers": None}, "states: expected writable"),
        ({"state_to": 5}, "states: expected writable"),
        ({"state_from": 2, "state_to": 6}, "state_to: 6"),
        ({"drawn_states": room}, "drawn_states: expected writable"),
        ({"drawn_logits": room}, "drawn_logits: expected writable"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.add([1, 2, 3, 4], score, **{**good, **change})
    engine.close()
    model.close()
