"""What scripts for vLLM name and touch beside generation: types, engines, views, odd arguments."""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import time

import letters
import numpy as np
import pytest
from letters import COMMON, GREEDY, only

import llmaccel
from llmaccel import (
    LLM,
    AsyncLLM,
    BeamSearchParams,
    EmbedsPrompt,
    LLMAccelError,
    LLMEngine,
    PoolingParams,
    RequestError,
    RequestOutputKind,
    SamplingParams,
    SamplingType,
    TextPrompt,
    TokensPrompt,
    UnsupportedCombination,
    UnsupportedError,
)

NAMES = """
LLM ModelRegistry PromptType TextPrompt TokensPrompt SamplingParams RequestOutput CompletionOutput
PoolingOutput PoolingRequestOutput EmbeddingOutput EmbeddingRequestOutput ClassificationOutput
ClassificationRequestOutput ScoringOutput ScoringRequestOutput LLMEngine EngineArgs AsyncLLMEngine
AsyncEngineArgs PoolingParams AsyncLLM BeamSearchParams RequestOutputKind EmbedsPrompt PoolerConfig
FlexibleArgumentParser Counter Gauge Histogram Vector Metric SamplingType
"""
ABSENT = {"ModelRegistry"}  # models are data here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"), max_position_embeddings=4096)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, max_num_seqs=4) as llm:
        yield llm


def test_names():
    for name in set(NAMES.split()) - ABSENT:
        assert name in llmaccel.__all__
        assert getattr(llmaccel, name) is not None
    assert not any(hasattr(llmaccel, name) for name in ABSENT)
    assert llmaccel.AsyncLLMEngine is AsyncLLM


def test_refusals_are_value_errors():
    assert issubclass(UnsupportedError, ValueError)
    assert issubclass(UnsupportedCombination, ValueError)


# ---- prompts and parameters ---------------------------------------------------------------------


def test_types_of_prompts(llm):
    tokens = llm.get_tokenizer().encode("abc")
    want = only(llm.generate("abc", GREEDY)).token_ids
    for prompt in (
        TextPrompt(prompt="abc"),
        TokensPrompt(prompt_token_ids=tokens),
        TokensPrompt(prompt_token_ids=tokens, prompt="abc", cache_salt="mine"),
    ):
        assert only(llm.generate(prompt, GREEDY)).token_ids == want
    assert "cache_salt" in llm.report()["no_effect"]
    with pytest.raises(UnsupportedError, match=r"prompts\[0\]: 'prompt_embeds'"):
        llm.generate(EmbedsPrompt(prompt_embeds=np.zeros((2, 8))), GREEDY)


def test_from_optional_and_sampling_type(caplog):
    made = SamplingParams.from_optional(
        n=None,
        temperature=None,
        top_p=0.5,
        stop=None,
        output_kind=None,
        logit_bias={3: 500, "4": 1},
    )
    assert made == SamplingParams(top_p=0.5, logit_bias={3: 100.0, 4: 1.0})
    assert SamplingParams(temperature=0).sampling_type is SamplingType.GREEDY
    assert SamplingParams(seed=3).sampling_type is SamplingType.RANDOM_SEED
    assert SamplingParams(seed=-1).sampling_type is SamplingType.RANDOM
    with caplog.at_level(logging.WARNING, logger="llmaccel"):
        params = SamplingParams(temperature=0.001)
    assert params.temperature == 0.01
    assert "temperature 0.001 becomes 0.01" in caplog.text
    caplog.clear()
    assert params.clone().temperature == 0.01
    assert not caplog.records


def test_fields_of_outputs(llm):
    (out,) = llm.generate("abc", GREEDY)
    assert out.multi_modal_placeholders is None
    (found,) = llm.beam_search([{"prompt": "abc"}], BeamSearchParams(beam_width=2, max_tokens=2))
    ids = llm.get_tokenizer().encode("abc")
    for sequence in found.sequences:
        assert sequence.orig_prompt == {"type": "token", "prompt_token_ids": ids, "prompt": "abc"}


# ---- arguments of calls -------------------------------------------------------------------------


def test_chat_as_scripts_call_it(llm):
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]
    lines = llm.chat(parts, GREEDY, False)[0].prompt
    assert lines == "[user]a\nb[assistant]"
    assert llm.chat(parts, GREEDY, chat_template_content_format="string")[0].prompt == lines
    template = "{% for m in messages %}{{ m.content | length }}{{ m.content[0].text }}{% endfor %}"
    for content, shown in (("ab", "1ab"), (parts[0]["content"], "2a")):
        (out,) = llm.chat(
            [{"role": "user", "content": content}],
            GREEDY,
            chat_template=template,
            chat_template_content_format="openai",
        )
        assert out.prompt == shown
    with pytest.raises(RequestError, match="chat_template_content_format: expected one of auto"):
        llm.chat(parts, GREEDY, chat_template_content_format="anthropic")
    with pytest.raises(UnsupportedError, match="lora_request"):
        llm.chat(parts, GREEDY, lora_request=object())
    assert len(llm.enqueue_chat([parts, parts], GREEDY, False)) == 2
    assert len(llm.wait_for_completion(use_tqdm=False)) == 2


def test_progress_bars_of_ones_own(llm):
    made = []

    class Bar:
        def __init__(self, **given):
            self.moved = 0
            made.append((self, given))

        def update(self):
            self.moved += 1

        def close(self):
            self.moved += 100

    llm.generate(["a", "b"], GREEDY, use_tqdm=functools.partial(Bar, colour="green"))
    llm.embed(["a"], use_tqdm=Bar)
    (first, given), (second, _) = made
    assert (first.moved, second.moved) == (102, 101)
    assert (given["total"], given["colour"]) == (2, "green")


@pytest.mark.parametrize(
    ("kwargs", "want"),
    [
        ({}, [1, 4, 5, 6, 7]),
        ({"truncation": True, "max_length": 3}, [1, 6, 7]),
        ({"truncation": True, "max_length": 3, "truncation_side": "right"}, [1, 4, 5]),
        ({"truncate_prompt_tokens": 2, "add_special_tokens": False}, [6, 7]),
        ({"truncation": True, "truncate_prompt_tokens": 3}, [1, 6, 7]),
        ({"truncation": True, "truncate_prompt_tokens": 2, "max_length": 3}, [1, 7]),
        ({"truncation": True, "truncate_prompt_tokens": 4, "max_length": 3}, [1, 6, 7]),
        ({"truncation": True, "truncate_prompt_tokens": -1}, [1, 4, 5, 6, 7]),
        ({"truncate_prompt_tokens": -1}, [1, 4, 5, 6, 7]),
        ({"truncation": False, "max_length": 9, "padding": False}, [1, 4, 5, 6, 7]),
    ],
)
def test_tokenization_kwargs(llm, kwargs, want):
    # ids of the byte tokenizer: 3 and the byte
    text = bytes(i - 3 for i in (4, 5, 6, 7)).decode()
    (out,) = llm.generate(text, GREEDY, tokenization_kwargs=kwargs)
    assert out.prompt_token_ids == want
    (out,) = llm.embed([text], tokenization_kwargs={"truncation_side": "left", **kwargs})
    if "truncation_side" not in kwargs:
        assert out.prompt_token_ids == want


def test_tokenization_kwargs_elsewhere(llm, folder):
    cut = {"truncation": True, "max_length": 3}
    assert llm.embed(["abcdef"], tokenization_kwargs=cut)[0].prompt_token_ids == [1, 100, 101]
    (out,) = llm.generate([[5, 6, 7, 8]], GREEDY, tokenization_kwargs=cut)
    assert out.prompt_token_ids == [6, 7, 8]
    (out,) = llm.chat([{"role": "user", "content": "abc"}], GREEDY, tokenization_kwargs=cut)
    assert llm.get_tokenizer().decode(out.prompt_token_ids) == "nt]"
    llm.enqueue("abcdef", GREEDY, tokenization_kwargs=cut)
    assert len(llm.wait_for_completion()[0].prompt_token_ids) == 3
    with LLM(folder, max_model_len=10) as short:
        for given in ({"truncation": True}, {"truncate_prompt_tokens": -1}):
            (out,) = short.generate("a" * 30, GREEDY, tokenization_kwargs=given)
            assert len(out.prompt_token_ids) == 9
    for bad, error, message in (
        ({"max_length": 3}, RequestError, r"prompts\[0\]: 7 tokens, but max_length"),
        ({"max_length": 0}, RequestError, "max_length: expected a number"),
        ({"truncation": "only_second"}, UnsupportedError, "truncation='only_second'"),
        ({"padding": True}, UnsupportedError, "'padding'=True"),
        ({"truncation_side": "up"}, RequestError, "truncation_side 'left' or 'right'"),
        ([1], RequestError, "tokenization_kwargs: expected a dict"),
    ):
        with pytest.raises(error, match=message):
            llm.generate("abcdef", GREEDY, tokenization_kwargs=bad)


def test_a_list_of_pooling_params(llm):
    each = [PoolingParams(normalize=False), PoolingParams(normalize=True)]
    first, second = llm.embed(["abc", "abc"], pooling_params=each)
    vector = np.array(first.outputs.embedding)
    np.testing.assert_allclose(
        second.outputs.embedding, vector / np.linalg.norm(vector), rtol=1e-5, atol=1e-7
    )
    with pytest.raises(RequestError, match="pooling_params: expected 1, one for each prompt"):
        llm.embed(["abc"], pooling_params=each)


def test_arguments_that_ask_for_nothing(llm):
    for given in ({"priority": None}, {"lora_request": None}, {"mm_processor_kwargs": {}}):
        assert only(llm.generate("a", GREEDY, **given)).token_ids


# ---- engines ------------------------------------------------------------------------------------


def test_an_engine_by_steps(llm):
    engine = llm.llm_engine
    assert not engine.has_unfinished_requests()
    assert engine.step() == []
    prompts = ["abc", "de", "f"]
    for i, prompt in enumerate(prompts):
        assert engine.add_request(str(i), prompt, GREEDY) == str(i)
    with pytest.raises(RequestError, match="request_id='1': expected a string not in use"):
        engine.add_request("1", "x", GREEDY)
    with pytest.raises(RequestError, match="prompt: empty"):
        engine.add_request("bad", [], GREEDY)
    texts, last = {}, {}
    while llm.llm_engine.has_unfinished_requests():
        for out in engine.step():
            text = out.outputs[0].text
            assert text.startswith(last.get(out.request_id, ""))  # everything so far
            last[out.request_id] = text
            if out.finished:
                texts[out.request_id] = text
    assert texts == {str(i): only(llm.generate(p, GREEDY)).text for i, p in enumerate(prompts)}
    assert engine.get_num_unfinished_requests() == 0


def test_kinds_and_aborts_of_an_engine(llm):
    engine = LLMEngine(llm)
    long = SamplingParams(max_tokens=2000, output_kind=RequestOutputKind.FINAL_ONLY, **COMMON)
    engine.add_request("long", "abc", long)
    engine.add_request("short", "abc", SamplingParams(max_tokens=2, **COMMON))
    engine.add_request("pooled", "abc", PoolingParams(task="embed"))
    (pooled,) = engine.step()
    assert (pooled.request_id, len(pooled.outputs.data)) == ("pooled", 96)
    while engine.get_num_unfinished_requests() > 1:
        for out in engine.step():
            assert out.request_id == "short"
    engine.abort_request(["long", "unknown"])
    assert not engine.has_unfinished_requests()
    engine.add_request("long", "abc", GREEDY)  # the id is free again
    outs = []
    while engine.has_unfinished_requests():
        outs += engine.step()
    assert outs[-1].finished
    with pytest.raises(RequestError, match="pooling_task"):
        engine.add_request("x", "abc", PoolingParams())
    assert not engine.has_unfinished_requests()
    cut = {"truncate_prompt_tokens": 2}
    engine.add_request("x", "abc", PoolingParams(task="embed"), tokenization_kwargs=cut)
    (pooled,) = engine.step()
    assert len(pooled.prompt_token_ids) == 2


def test_a_failure_is_its_own_requests(llm):
    """Its step raises; whatever else is new at the same time is not lost."""

    def fail(output_ids, logits):
        raise ValueError("on purpose")

    engine = llm.llm_engine
    engine.add_request("good", "abc", GREEDY)
    engine.add_request("bad", "abc", SamplingParams(logits_processors=[fail]))
    engine.add_request("fine", "abc", GREEDY)
    finished, failures = [], 0
    while engine.has_unfinished_requests():
        try:
            finished += [out.request_id for out in engine.step() if out.finished]
        except LLMAccelError as error:
            failures += 1
            assert "on purpose" in str(error)
    assert (sorted(finished), failures) == (["fine", "good"], 1)


@pytest.mark.parametrize("failing", [["bad"], ["bad", "worse"]])
def test_what_a_failure_comes_before_is_not_lost(llm, failing):
    """All have ended before the first step, and those that failed tell it first."""

    def fail(output_ids, logits):
        raise ValueError("on purpose")

    engine = llm.llm_engine
    for name in failing:
        engine.add_request(name, "abc", SamplingParams(logits_processors=[fail]))
    _wait_for_news(engine, len(failing))
    for name in ("good", "fine"):
        engine.add_request(name, "abc", SamplingParams(max_tokens=1, **COMMON))
    _wait_for_news(engine, len(failing) + 2)
    finished, failures = [], 0
    while engine.has_unfinished_requests():
        assert engine._steps.news.qsize() > 0, "the next step would wait for ever"
        try:
            finished += [out.request_id for out in engine.step() if out.finished]
        except LLMAccelError as error:
            failures += 1
            assert "on purpose" in str(error)
    assert (sorted(finished), failures) == (["fine", "good"], len(failing))


def _wait_for_news(engine, count):
    while engine._steps.news.qsize() < count or not all(
        one.done for one in engine._steps.requests.values()
    ):
        time.sleep(0.001)


def test_what_an_engine_shows(llm, folder):
    engine = llm.llm_engine
    assert engine.get_tokenizer() is engine.tokenizer is llm.get_tokenizer()
    config = engine.model_config
    assert (config.hf_config.hidden_size, config.get_hidden_size()) == (96, 96)
    assert config.hf_config.model_type == "llama"
    assert config.hf_config.to_dict()["architectures"] == ["LlamaForCausalLM"]
    assert llm.model_config == config
    scheduler = engine.vllm_config.scheduler_config
    assert (scheduler.max_num_seqs, scheduler.max_model_len) == (4, 4096)
    assert engine.vllm_config.cache_config.block_size == 64
    assert engine.vllm_config.parallel_config.world_size == llm.get_world_size() == 1
    assert llm.supported_tasks == ["generate", "embed", "token_embed", "score"]
    for call, message in (
        (lambda: engine.model_executor, "LLMEngine has no 'model_executor' here; it has "),
        (lambda: engine.add_requests, "did you mean add_request"),
        (lambda: config.max_model_length, "did you mean max_model_len.*report"),
        (lambda: config.hf_config.nothing, "config.json has no 'nothing'"),
    ):
        with pytest.raises(AttributeError, match=message):
            call()
    with pytest.raises(UnsupportedError, match="collective_rpc"):
        engine.collective_rpc("f")
    copy.copy(config)


def test_an_async_engine(folder, tmp_path, caplog):
    async def main():
        engine = AsyncLLM(LLM(folder, profiler_config={"torch_profiler_dir": str(tmp_path)}))
        await engine.check_health()
        assert (engine.is_running, engine.is_stopped, engine.errored) == (True, False, False)
        assert not await engine.is_tracing_enabled()
        assert (await engine.get_model_config()) == engine.model_config
        assert engine.vllm_config.model_config == engine.model_config
        assert engine.tokenizer is engine.get_tokenizer()
        await engine.start_profile()
        idle = {"lora_request": None, "trace_headers": None, "data_parallel_rank": None}
        chunks = [c async for c in engine.generate("abc", GREEDY, "a", priority=0, **idle)]
        assert (await engine.stop_profile()).parent == tmp_path
        assert chunks[-1].outputs[0].text == only(engine.llm.generate("abc", GREEDY)).text
        (out,) = [o async for o in engine.encode("abc", PoolingParams(task="embed"), "b")]
        assert out.request_id == "b"
        engine.llm._take_id("b")  # as a request under way does
        with pytest.raises(RequestError, match="request_id='b': expected a string not in use"):
            [o async for o in engine.encode("abc", PoolingParams(task="embed"), "b")]
        engine.llm._given_ids.discard("b")
        want = engine.llm.embed(["abc"])[0].outputs.embedding
        assert out.outputs.data.numpy().tolist() == want
        await engine.sleep(1)
        assert await engine.is_sleeping()
        await engine.wake_up(["kv_cache"])
        assert not await engine.is_sleeping()
        with caplog.at_level(logging.INFO, logger="llmaccel"):
            await engine.do_log_stats()
        assert "requests run" in caplog.text
        assert engine.get_num_unfinished_requests() == 0
        for name in ("reset_prefix_cache", "pause_generation", "resume_generation", "add_request"):
            with pytest.raises(UnsupportedError, match=name):
                await getattr(engine, name)()
        with pytest.raises(UnsupportedError, match="kv_hints"):
            [c async for c in engine.generate("abc", GREEDY, "c", kv_hints=object())]
        engine.shutdown()
        assert (engine.is_running, engine.errored) == (False, True)
        assert "closed" in str(engine.dead_error)
        with pytest.raises(LLMAccelError, match="closed"):
            await engine.check_health()

    asyncio.run(main())
