"""LLM as its users see it, on a tiny random model that writes letters (tests/letters.py)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import time

import letters
import numpy as np
import pytest
from letters import COMMON, GREEDY, only

from llmaccel import LLM, RequestError, RequestOutputKind, SamplingParams
from llmaccel.request import EVENT_TOKEN, Request

LONG = SamplingParams(max_tokens=30_000, **COMMON)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"), max_position_embeddings=32768)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(str(folder), max_num_seqs=8, max_num_batched_tokens=64) as llm:
        yield llm


def idle(llm: LLM) -> bool:
    """Whether nothing runs and no page is held, waiting a moment for the last step."""
    for _ in range(500):
        stats = llm.engine.stats()
        if stats["running"] == stats["waiting"] == stats["pages_used"] == 0:
            return True
        time.sleep(0.01)
    return False


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


# ---- prompts ------------------------------------------------------------------------------------


def test_forms_of_a_prompt_agree(llm):
    ids = llm.get_tokenizer().encode("abc")
    assert ids[0] == 1
    forms = [
        "abc",
        ids,
        np.array(ids, np.int64),
        {"prompt": "abc"},
        {"prompt_token_ids": ids},
        {"prompt": "abc", "prompt_token_ids": ids},
    ]
    expected = only(llm.generate("abc", GREEDY))
    assert len(expected.token_ids) == 20
    assert expected.finish_reason == "length"
    assert set(expected.text) <= set("abcdefgh ")
    for form in forms:
        assert only(llm.generate(form, GREEDY)).token_ids == expected.token_ids
        assert only(llm.generate([form], GREEDY)).text == expected.text
    several = llm.generate(forms, GREEDY)
    assert [o.outputs[0].token_ids for o in several] == [expected.token_ids] * len(forms)
    assert [o.prompt_index for o in several] == list(range(len(forms)))
    assert several[0].prompt == "abc"
    assert several[0].prompt_token_ids == ids
    assert several[1].prompt is None
    assert len({o.request_id for o in several}) == len(forms)
    assert llm.generate([], GREEDY) == []


def test_one_params_object_each_or_for_all(llm):
    one, two = llm.generate(["a", "b"], [GREEDY, SamplingParams(max_tokens=3, **COMMON)])
    assert len(one.outputs[0].token_ids) == 20
    assert len(two.outputs[0].token_ids) == 3
    with pytest.raises(RequestError, match="sampling_params"):
        llm.generate(["a", "b"], [GREEDY])


def test_chat_renders_and_adds_no_second_bos(llm):
    messages = [{"role": "user", "content": "hi"}]
    out = llm.chat(
        messages, GREEDY, chat_template_kwargs={"mood": "good"}, tools=[{"type": "function"}]
    )[0]
    assert out.prompt == "[user]hitools=1mood=good[assistant]"
    assert 1 not in out.prompt_token_ids
    two = llm.chat([messages, messages], GREEDY)
    assert [o.prompt for o in two] == ["[user]hi[assistant]"] * 2
    started = [*messages, {"role": "assistant", "content": "so"}]
    out = llm.chat(started, GREEDY, continue_final_message=True)[0]
    assert out.prompt == "[user]hi[assistant]so"


def test_chat_with_tools(llm):
    tools = [{"type": "function", "function": {"name": "f"}}]
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    reading = letters.CHAT_TEMPLATE.replace(
        "m['content'] }}", "m['content'] }}{{ m.tool_calls | length }}"
    )
    out = llm.chat(messages, GREEDY, tools=tools, chat_template=reading)[0]
    assert out.prompt == "[user]hi0[assistant]1[tool]30tools=1[assistant]"
    with pytest.raises(RequestError, match=r"messages\[1\].tool_calls: the chat_template never"):
        llm.chat(messages, GREEDY, tools=tools)
    messages[1] = {"role": "assistant", "content": "f", "tool_calls": []}
    deaf = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(RequestError, match="tools: the chat_template never reads them"):
        llm.chat(messages, GREEDY, tools=tools, chat_template=deaf)
    for none in (None, []):
        assert llm.chat(messages, GREEDY, tools=none, chat_template=deaf)[0].prompt == "hif3"


def test_truncate_prompt_tokens(llm, folder):
    ids = list(range(3, 103))
    out = llm.generate(ids, SamplingParams(max_tokens=1, truncate_prompt_tokens=7))[0]
    assert out.prompt_token_ids == ids[-7:]
    cut = SamplingParams(max_tokens=5, truncate_prompt_tokens=-1, ignore_eos=True)
    with LLM(str(folder), max_model_len=1024) as short:
        out = short.generate([5] * 1500, cut)[0]
    assert len(out.prompt_token_ids) == 1023
    assert len(out.outputs[0].token_ids) == 1


# ---- sampling -----------------------------------------------------------------------------------


def test_greedy_is_the_argmax_of_the_logits(llm):
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=3)
    out = llm.generate("hello", params)[0]
    ids = out.prompt_token_ids + out.outputs[0].token_ids
    logits = np.asarray(llm.logits(ids))
    scores = log_softmax(logits)
    start = len(out.prompt_token_ids) - 1
    for i, token in enumerate(out.outputs[0].token_ids):
        row = scores[start + i]
        assert token == row.argmax()
        entry = out.outputs[0].logprobs[i]
        assert list(entry) == np.argsort(-row, kind="stable")[:3].tolist()
        for token_id, logprob in entry.items():
            assert logprob.logprob == pytest.approx(row[token_id], abs=1e-4)
        assert [logprob.rank for logprob in entry.values()] == [1, 2, 3]
        assert out.outputs[0].logprob_array[i] == pytest.approx(row[token], abs=1e-4)
    assert out.outputs[0].cumulative_logprob == pytest.approx(
        out.outputs[0].logprob_array.sum(), abs=1e-3
    )


def test_prompt_logprobs(llm):
    out = llm.generate("some text", SamplingParams(max_tokens=1, prompt_logprobs=2))[0]
    scores = log_softmax(np.asarray(llm.logits("some text")))
    assert len(out.prompt_logprobs) == len(out.prompt_token_ids)
    assert out.prompt_logprobs[0] is None
    for i in range(1, len(out.prompt_token_ids)):
        entry, token = out.prompt_logprobs[i], out.prompt_token_ids[i]
        assert next(iter(entry)) == token
        assert entry[token].logprob == pytest.approx(scores[i - 1][token], abs=1e-4)
        assert entry[token].rank == 1 + (scores[i - 1] > scores[i - 1][token]).sum()
        assert scores[i - 1].argmax() in entry


def test_n_continuations(llm):
    params = SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=12, logprobs=0, **COMMON)
    first, again = (llm.generate("abc", params)[0] for _ in range(2))
    assert [o.index for o in first.outputs] == [0, 1, 2]
    texts = [o.text for o in first.outputs]
    assert len(set(texts)) == 3
    assert texts == [o.text for o in again.outputs]
    assert all(len(o.logprobs) == 12 for o in first.outputs)
    alone = only(llm.generate("abc", SamplingParams(seed=5, max_tokens=12, **COMMON)))
    assert alone.text == texts[0]


def test_seeds(folder):
    params = SamplingParams(max_tokens=16, **COMMON)
    seen = []
    for seed in (1, 1, 2):
        with LLM(str(folder), seed=seed) as llm:
            two = llm.generate(["abc", "abc"], params)
            assert two[0].outputs[0].text != two[1].outputs[0].text
            seen.append([o.outputs[0].text for o in two])
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_stop_strings(llm):
    whole = only(llm.generate("abc", GREEDY)).text
    stop = whole[7:10]
    at = whole.index(stop)
    greedy = {"temperature": 0, "max_tokens": 20, **COMMON}
    out = only(llm.generate("abc", SamplingParams(stop=stop, **greedy)))
    assert (out.text, out.finish_reason, out.stop_reason) == (whole[:at], "stop", stop)
    assert len(out.token_ids) == at + 3
    kept = only(
        llm.generate(
            "abc", SamplingParams(stop=[stop, "zz"], include_stop_str_in_output=True, **greedy)
        )
    )
    assert kept.text == whole[: at + 3]
    later = only(llm.generate("abc", SamplingParams(min_tokens=20, stop=stop, **greedy)))
    assert later.text == whole
    assert later.finish_reason == "length"
    assert idle(llm)


def test_stop_ids(llm):
    whole = only(llm.generate("abc", GREEDY))
    token = whole.token_ids[5]
    at = whole.token_ids.index(token)
    out = only(
        llm.generate(
            "abc", SamplingParams(temperature=0, max_tokens=20, stop_token_ids=[token], **COMMON)
        )
    )
    assert out.token_ids == whole.token_ids[: at + 1]
    assert (out.text, out.finish_reason, out.stop_reason) == (whole.text[:at], "stop", token)
    # Biased so that the model's own end comes first.
    ends = {"temperature": 0, "max_tokens": 4, "logit_bias": {2: 100.0}}
    out = only(llm.generate("abc", SamplingParams(**ends)))
    assert (out.token_ids, out.text, out.finish_reason, out.stop_reason) == ([2], "", "stop", None)
    out = only(llm.generate("abc", SamplingParams(ignore_eos=True, **ends)))
    assert out.token_ids == [2] * 4
    assert out.finish_reason == "length"
    out = only(llm.generate("abc", SamplingParams(min_tokens=2, **ends)))
    assert len(out.token_ids) == 3
    assert out.token_ids[2] == 2


def test_bias_white_list_and_bad_words(llm):
    a, b = 3 + ord("a"), 3 + ord("b")
    out = only(llm.generate("x", SamplingParams(max_tokens=8, allowed_token_ids=[a, b])))
    assert set(out.token_ids) <= {a, b}
    out = only(llm.generate("x", SamplingParams(max_tokens=8, logit_bias={a: 1e6})))
    assert out.text == "a" * 8
    # "ab" may not be completed: with a and b alone, b never follows a.
    params = SamplingParams(max_tokens=60, allowed_token_ids=[a, b], bad_words=["ab"], seed=1)
    text = only(llm.generate("x", params)).text
    assert "ab" not in text
    assert "a" in text


def test_text_options(llm):
    params = SamplingParams(max_tokens=4, detokenize=False, logprobs=0, **COMMON)
    out = only(llm.generate("x", params))
    assert out.text == ""
    assert out.logprobs[0][out.token_ids[0]].decoded_token in "abcdefgh "
    ends = {"max_tokens": 3, "logit_bias": {2: 1e6}, "ignore_eos": True}
    assert only(llm.generate("x", SamplingParams(**ends))).text == ""
    shown = SamplingParams(skip_special_tokens=False, **ends)
    assert only(llm.generate("x", shown)).text == "</s>" * 3


def test_max_tokens_none_fills_the_context(folder):
    with LLM(str(folder), max_model_len=100) as llm:
        out = llm.generate("abc", SamplingParams(max_tokens=None, **COMMON))[0]
        assert len(out.prompt_token_ids) + len(out.outputs[0].token_ids) == 100


# ---- streams, futures, event loops --------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, ["d e", "zz"]])
def test_chunks_add_up_to_the_whole(llm, stop):
    params = SamplingParams(
        temperature=0.8, seed=3, n=2, max_tokens=40, stop=stop, logprobs=1, **COMMON
    )
    prompts = ["abc", "hello there", "x"]
    whole = llm.generate(prompts, params)
    texts, tokens, scores, reasons = {}, {}, {}, {}
    for chunk in llm.generate(prompts, params, stream=True):
        for part in chunk.outputs:
            key = chunk.prompt_index, part.index
            texts[key] = texts.get(key, "") + part.text
            tokens[key] = tokens.get(key, []) + part.token_ids
            scores[key] = scores.get(key, 0) + len(part.logprobs)
            reasons[key] = part.finish_reason
    for out in whole:
        for part in out.outputs:
            key = out.prompt_index, part.index
            assert texts[key] == part.text
            assert tokens[key] == part.token_ids
            assert scores[key] == len(part.token_ids)
            assert reasons[key] == part.finish_reason
    assert idle(llm)


def test_output_kinds_of_a_stream(llm):
    whole = only(llm.generate("abc", GREEDY)).text
    params = GREEDY.clone()
    params.output_kind = RequestOutputKind.CUMULATIVE
    texts = [c.outputs[0].text for c in llm.generate("abc", params, stream=True)]
    assert all(whole.startswith(text) for text in texts)
    assert texts[-1] == whole
    params.output_kind = RequestOutputKind.FINAL_ONLY
    chunks = list(llm.generate("abc", params, stream=True))
    assert [c.outputs[0].text for c in chunks] == [whole]


def test_streamed_text_is_whole_characters(llm):
    """The three bytes of a character arrive as three tokens and leave as one chunk."""
    euro = [3 + byte for byte in "€".encode()]
    request = Request("r", None, [1], SamplingParams())
    request.attach_text(llm.get_tokenizer())
    texts = []
    for i, token in enumerate(euro * 2):
        request.on_event((1, 0, EVENT_TOKEN, i, token, 0, 0.0, 0, None, None, 0.0), 1.0)
        texts.append(request.snapshot(RequestOutputKind.DELTA).outputs[0].text)
    assert texts == ["", "", "€"] * 2


def test_streamed_bytes_add_up_to_their_decoding(llm):
    """A model that draws bytes of "€" in any order: what it writes by chance is whole as well."""
    euro = [3 + byte for byte in "€".encode()]
    params = SamplingParams(seed=1, max_tokens=200, allowed_token_ids=euro, ignore_eos=True)
    chunks = [c.outputs[0] for c in llm.generate("x", params, stream=True)]
    ids = [token for chunk in chunks for token in chunk.token_ids]
    text = "".join(chunk.text for chunk in chunks)
    assert text == bytes(token - 3 for token in ids).decode(errors="replace")
    assert "€" in text


def test_leaving_a_stream_cancels(llm):
    stream = llm.generate(["abc", "def"], LONG, stream=True)
    next(stream)
    stream.close()
    assert idle(llm)
    assert list(stream) == []
    for _ in llm.generate("abc", LONG, stream=True):
        break
    gc.collect()
    assert idle(llm)
    before = llm.engine.stats()["output_tokens"]
    llm.generate(["abc", "def"], LONG, stream=True)  # dropped before its first chunk
    gc.collect()
    while llm.engine._requests:
        time.sleep(0.01)
    assert llm.engine.stats()["output_tokens"] - before < 30_000  # of 60,000


def test_a_refused_prompt_cancels_those_before_it(llm):
    before = llm.engine.stats()["output_tokens"]
    with pytest.raises(RequestError, match=r"prompts\[2\].*vocabulary"):
        llm.generate(["abc", "def", [1, letters.VOCAB]], LONG)
    while llm.engine._requests:
        time.sleep(0.01)
    assert llm.engine.stats()["output_tokens"] - before < 30_000  # of 60,000


def test_submit(llm):
    whole = only(llm.generate("abc", GREEDY))
    futures = [llm.submit("abc", GREEDY) for _ in range(5)]
    assert [f.result().outputs[0].text for f in futures] == [whole.text] * 5
    assert all(f.done() and not f.cancel() for f in futures)
    done = list(concurrent.futures.as_completed(futures, timeout=5))
    assert len(done) == 5
    heard = []
    futures[0].add_done_callback(heard.append)
    assert heard == [futures[0]]


def test_futures_can_be_awaited(llm):
    whole = only(llm.generate("abc", GREEDY))

    async def wait():
        futures = [llm.submit("abc", GREEDY) for _ in range(3)]
        first = await futures[0]
        rest = await asyncio.gather(*futures[1:])
        again = await futures[0]
        long = llm.submit("abc", LONG)
        task = asyncio.ensure_future(long)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(llm.submit("abc", LONG), 0.01)
        return [first, *rest, again], long

    outputs, long = asyncio.run(wait())
    assert [out.outputs[0].text for out in outputs] == [whole.text] * 4
    assert long.result(timeout=30).outputs[0].finish_reason == "abort"
    assert idle(llm)


def test_cancel(llm):
    future = llm.submit("abc", LONG)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.01)
    assert future.cancel()
    out = future.result(timeout=30).outputs[0]
    assert out.finish_reason == "abort"
    assert not future.cancel()
    assert idle(llm)


def test_timeout_returns_what_is_there(llm):
    out = llm.generate("abc", LONG, timeout=0.05)[0].outputs[0]
    assert out.finish_reason == "timeout"
    assert idle(llm)


def test_timings_split_waiting_from_computing(folder):
    """One place: the second request is fed when the first has ended, and not a moment before."""
    params = SamplingParams(temperature=0, max_tokens=5, **COMMON)
    with LLM(str(folder), max_num_seqs=1, max_num_batched_tokens=16) as llm:
        first, second = (out.timings for out in llm.generate(["abc" * 20, "def"], params))
        assert first.arrival <= first.scheduled < first.first_token < first.finished
        assert first.finished <= second.scheduled < second.first_token < second.finished
        for t in (first, second):
            assert t.queue + t.prefill + t.decode == pytest.approx(t.total)
            assert t.queue + t.prefill == pytest.approx(t.ttft)
        chunks = list(llm.generate("abc", params, stream=True))
        assert len({chunk.metrics.scheduled for chunk in chunks}) == 1
        blocker, waiting = llm.submit("abc", LONG), llm.submit("abc", LONG)
        waiting.cancel()
        never = waiting.result().timings
        blocker.cancel()
        assert (never.scheduled, never.queue, never.prefill) == (0.0, 0.0, 0.0)


def test_agenerate(llm):
    whole = only(llm.generate("abc", GREEDY)).text

    async def read(prompt):
        return "".join([c.outputs[0].text async for c in llm.agenerate(prompt, GREEDY)])

    async def leave():
        stream = llm.agenerate("abc", LONG)
        async for _ in stream:
            break
        await stream.aclose()

    async def main():
        texts = await asyncio.gather(*(read("abc") for _ in range(4)), leave())
        task = asyncio.create_task(anext_of(llm.agenerate("abc", LONG)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The blocking methods work under a running loop as well, as in a notebook.
        assert only(llm.generate("abc", GREEDY)).text == whole
        wrapped = asyncio.wrap_future(llm.submit("abc", GREEDY))
        assert (await wrapped).outputs[0].text == whole
        return texts[:4]

    async def anext_of(stream):
        async for _ in stream:
            pass

    assert asyncio.run(main()) == [whole] * 4
    assert idle(llm)


def test_a_loop_closed_with_its_stream_alive(llm, caplog):
    """Nobody will look again: the request is cancelled, once, without noise."""

    async def first(stream):
        await anext(stream)

    loop = asyncio.new_event_loop()
    stream = llm.agenerate("abc", LONG)
    loop.run_until_complete(first(stream))
    loop.close()
    assert idle(llm)
    assert only(llm.generate("abc", GREEDY)).finish_reason == "length"
    assert caplog.text == ""


def test_styles_mixed_on_one_engine_give_equal_text(llm):
    whole = only(llm.generate("abc", GREEDY)).text
    future = llm.submit("abc", GREEDY)
    stream = llm.generate("abc", GREEDY, stream=True)
    assert only(llm.generate("abc", GREEDY)).text == whole
    assert "".join(c.outputs[0].text for c in stream) == whole
    assert future.result().outputs[0].text == whole


def test_many_threads(llm):
    prompts = [f"prompt {i}" for i in range(24)]
    expected = [o.outputs[0].text for o in llm.generate(prompts, GREEDY)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: only(llm.generate(p, GREEDY)).text, prompts))
    assert found == expected


def test_priority_runs_first(folder):
    params = SamplingParams(temperature=0, max_tokens=30, **COMMON)
    with LLM(str(folder), max_num_seqs=1) as llm:
        order = []
        blocker = llm.submit("abc", LONG)
        futures = {}
        for name, priority in (("late", 5), ("soon", 1), ("middle", 3)):
            futures[name] = llm.submit("abc", params, priority=priority)
            futures[name].add_done_callback(lambda _, name=name: order.append(name))
        blocker.cancel()
        for future in futures.values():
            future.result()
        assert order == ["soon", "middle", "late"]


def test_preemption_changes_nothing(llm):
    prompts = [f"prompt number {i} " * (i + 1) for i in range(6)]
    params = SamplingParams(seed=1, max_tokens=40, logprobs=0, **COMMON)
    expected = llm.generate(prompts, params)
    before = llm.engine.stats()["preemptions"]
    futures = [llm.submit(p, params) for p in prompts]
    for _ in range(20):  # not for ever: recomputing is no progress
        llm.engine.preempt(3)
        time.sleep(0.002)
    for out, future in zip(expected, futures, strict=True):
        got = future.result().outputs[0]
        assert got.token_ids == out.outputs[0].token_ids
        assert got.logprob_array.tobytes() == out.outputs[0].logprob_array.tobytes()
    stats = llm.engine.stats()
    assert stats["preemptions"] > before
    assert stats["recomputed_tokens"] > 0
    assert stats["step_allocations"] == 0


# ---- scoring ------------------------------------------------------------------------------------


def test_logits_are_zero_copy(llm):
    tensor = llm.logits([1, 50, 60])
    assert tensor.shape == (3, letters.VOCAB)
    assert np.from_dlpack(tensor).__array_interface__["data"][0] == tensor.data_ptr()
    again = np.asarray(llm.logits(np.array([1, 50, 60])))
    assert again.tobytes() == np.asarray(tensor).tobytes()


def test_logits_of_many_prompts(llm):
    prompts = ["hello", [1, 50, 60], "a longer one"]
    many = llm.logits(prompts)
    for got, prompt in zip(many, prompts, strict=True):
        assert bytes(memoryview(got)) == bytes(memoryview(llm.logits(prompt)))
    assert [one.shape for one in llm.logits([[1, 50]])] == [(2, letters.VOCAB)]
    room = np.zeros((5, 3, letters.VOCAB), np.float32)
    given = llm.logits([[1, 50, 60], [7, 8, 9]], out=[room[1], room[3]])
    assert given[0].data_ptr() == room[1].__array_interface__["data"][0]
    assert room[1].tobytes() == bytes(memoryview(many[1]))
    assert not room[[0, 2, 4]].any()
    assert llm.logits([1, 50, 60], out=room[0]).data_ptr() == room.ctypes.data
    for prompt, out, match in (
        ([[1, 2, 3]], room, "out: expected a list of 1"),
        ([1, 2], room[0], r"out: expected a writable F32 \[2, 301\]"),
        ([[1, 2, 3], [4]], [room[0], room[1]], r"out\[1\]: expected"),
        ([1, 2, 3], room[0].astype(np.float64), "got F64"),
        ([[1, 2], []], None, r"prompts\[1\]: empty"),
        ([[1, 301]], None, "301"),
    ):
        with pytest.raises(RequestError, match=match):
            llm.logits(prompt, out=out)


def test_loglikelihood(llm):
    contexts = ["the same context", "the same context", "another one", "the same context", ""]
    continuations = [" ends", " goes on", "", " x", "start"]
    with pytest.raises(RequestError, match=r"continuations\[2\]"):
        llm.loglikelihood(contexts, continuations)
    continuations[2] = "!"
    before = llm.engine.stats()["prompt_tokens"]
    results = llm.loglikelihood(contexts, continuations)
    fed = llm.engine.stats()["prompt_tokens"] - before
    tokenizer = llm.get_tokenizer()
    total = 0
    pairs = zip(contexts, continuations, strict=True)
    for (context, continuation), (score, greedy) in zip(pairs, results, strict=True):
        head, ids = tokenizer.encode(context), tokenizer.encode(context + continuation)
        total += len(ids)
        rows = log_softmax(np.asarray(llm.logits(ids)))
        places = range(len(head), len(ids))
        assert score == pytest.approx(sum(rows[i - 1][ids[i]] for i in places), abs=1e-3)
        assert greedy == all(rows[i - 1].argmax() == ids[i] for i in places)
    assert fed < total  # the shared context was fed once
    alone = [llm.loglikelihood([c], [t])[0] for c, t in zip(contexts, continuations, strict=True)]
    assert results == alone  # the same bits
    best = llm.generate("abc", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))[0]
    pair = llm.loglikelihood([best.prompt_token_ids] * 2, [best.outputs[0].token_ids, [5, 5, 5]])
    assert pair[0][1]
    assert not pair[1][1]
    ids = best.outputs[0].token_ids
    other = (ids[0] + 1) % tokenizer.vocab_size
    pair = llm.loglikelihood([best.prompt_token_ids] * 3, [[other], ids[:1], [other, *ids[1:]]])
    assert [greedy for _, greedy in pair] == [False, True, False]


@pytest.mark.parametrize("more", [0.0, 2.0**-20])
def test_what_is_greedy_does_not_depend_on_the_order(tmp_path, more):
    """Of logits that are equal, or whose log probabilities are when rounded."""
    with LLM(letters.write_model(tmp_path), dtype="float32") as llm:
        head = np.array(llm.weight("lm_head.weight").numpy())
        context = [5, 17, 200]
        best = int(np.asarray(llm.logits(context))[-1].argmax())
        other = best + 1 if best + 1 < len(head) else best - 1
        head *= np.float32(0.001)  # far below the logarithm that is subtracted
        head[other] = head[best] * np.float32(1 + more)
        llm.update_weights({"lm_head.weight": head})
        row = np.asarray(llm.logits(context))[-1]
        want = int(row.argmax())
        pairs = [[best], [other], [9]]
        for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0], [2, 0, 1], [0], [1]):
            tails = [pairs[i] for i in order]
            found = llm.loglikelihood([context] * len(tails), tails)
            assert [greedy for _, greedy in found] == [tail == [want] for tail in tails]


def test_repr(tmp_path):
    folder = letters.write_model(tmp_path)
    with LLM(folder, max_model_len=64) as llm:
        assert repr(llm) == f"LLM({str(folder)!r}, dtype='float32', max_model_len=64)"
    assert "float32" in repr(llm)  # closed
    assert repr(LLM.__new__(LLM)) == "LLM(not loaded)"
