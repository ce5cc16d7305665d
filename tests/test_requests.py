"""Bad input: each request its own exception that names the thing, and nobody else notices.

The table runs while good requests are under way; their tokens and logprobs must be those they
have alone. The random part mixes valid and invalid requests in all styles and then looks at the
counters.
"""

from __future__ import annotations

import functools
import random
import time

import letters
import numpy as np
import pytest
from letters import COMMON

from llmaccel import LLM, LLMAccelError, RequestError, SamplingParams, UnsupportedError
from llmaccel.errors import shown

GOOD = SamplingParams(seed=4, max_tokens=24, logprobs=2, **COMMON)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = letters.write_model(tmp_path_factory.mktemp("letters"))
    with LLM(str(folder), max_num_seqs=6, max_num_batched_tokens=32) as llm:
        yield llm


def changed(**values):
    """Parameters that were fine when they were made."""
    params = SamplingParams(max_tokens=4)
    for name, value in values.items():
        setattr(params, name, value)
    return params


# prompt, what the message names
BAD_PROMPTS = [
    (None, "NoneType"),
    (3, "int"),
    (2.5, "float"),
    (b"bytes", "bytes"),
    (["ok", 3], r"prompts\[1\]"),
    ([[1, 2], []], r"prompts\[1\]: empty"),
    ({"prompt_token_ids": []}, "prompt|empty"),
    ([1, -1], "-1"),
    ([1, letters.VOCAB], "vocabulary of 301"),
    ([[5], [2**40]], r"prompts\[1\]"),
    ([[1, 2.5]], "token id"),
    ([[1, "x"]], "token id"),
    ([[True, 2]], "token id"),
    ([[1, None]], "token id"),
    ([[[1], [2]]], "token id"),
    (np.zeros((1, 1, 1), np.int32), "ndarray"),
    ([np.array([0.5])], "ndarray"),
    ([7] * 160, "160"),
    ([7] * 100_000, "max_model_len"),
    ("x" * 200, "max_model_len"),
    ("\ud800", r"prompts\[0\]: .*surrogate"),
    (memoryview(b"ab"), "memoryview"),
    (np.array(3), "prompts: .*without axes"),
    ([10**5000], r"prompts\[0\]"),
    ({}, "prompt_token_ids"),
    ({"prompt": 5}, "int"),
]


@pytest.mark.parametrize(
    ("prompt", "names"), BAD_PROMPTS, ids=[shown(p)[:24] for p, _ in BAD_PROMPTS]
)
def test_bad_prompts(llm, prompt, names):
    with pytest.raises(RequestError, match=names):
        llm.generate(prompt, GOOD)


def test_unknown_prompt_keys(llm):
    with pytest.raises(UnsupportedError, match="multi_modal_data"):
        llm.generate({"prompt": "x", "multi_modal_data": {}}, GOOD)
    for bad, name in (
        ({"prompt": "x", "prompt_tokens": [1]}, "prompt_tokens"),
        ({"prompt": 5, "prompt_token_ids": [5]}, "'prompt' must be a string"),
        ({"prompt_token_ids": "abc"}, "'prompt_token_ids' must be a list"),
        ({"prompt": None}, "'prompt' or 'prompt_token_ids'"),
        ({}, "'prompt' or 'prompt_token_ids'"),
    ):
        with pytest.raises(RequestError, match=name):
            llm.generate(bad, GOOD)


class Foreign:
    """A tensor of another library, which NumPy can view, or not."""

    def __init__(self, ids, error=None):
        self.ids, self.error = ids, error

    def __array__(self, dtype=None, copy=None):
        if self.error is not None:
            raise self.error
        return np.asarray(self.ids, dtype)


def test_tensors_are_token_ids(llm):
    want = llm.generate([[5, 6], [7, 8]], GOOD)
    for got in (
        llm.generate([Foreign([5, 6]), {"prompt_token_ids": Foreign([7, 8])}], GOOD),
        llm.generate(Foreign([[5, 6], [7, 8]]), GOOD),
    ):
        assert [o.outputs[0].token_ids for o in got] == [o.outputs[0].token_ids for o in want]
    np.testing.assert_array_equal(np.asarray(llm.logits(Foreign([5, 6]))), llm.logits([5, 6]))
    for bad, message in (
        (Foreign([0.5]), "got ndarray"),
        (Foreign(5), "without axes"),
        (Foreign([5], TypeError("on a device")), "prompts: on a device"),
    ):
        with pytest.raises(RequestError, match=message):
            llm.generate(bad, GOOD)


def test_prompt_with_text_and_ids(llm):
    """vLLM's TokensPrompt: the ids run, the text is reported."""
    out = llm.generate({"prompt": "label", "prompt_token_ids": [5, 6]}, GOOD)[0]
    assert (out.prompt, out.prompt_token_ids) == ("label", [5, 6])
    plain = llm.generate({"prompt": None, "prompt_token_ids": [5, 6]}, GOOD)[0]
    assert plain.prompt is None
    assert plain.prompt_token_ids == [5, 6]


BAD_PARAMS = [
    (changed(temperature=float("nan")), "temperature"),
    (changed(top_p=-1.0), "top_p"),
    (changed(max_tokens=-4), "max_tokens"),
    (changed(n=0), "n must"),
    (changed(stop_token_ids=[10**6]), "stop_token_ids"),
    (changed(stop_token_ids=["x"]), "stop_token"),
    (changed(allowed_token_ids=[letters.VOCAB]), "allowed_token_ids"),
    (changed(logit_bias={letters.VOCAB: 1.0}), "logit_bias"),
    (changed(logit_bias={1: float("inf")}), "logit_bias"),
    (changed(logprobs=-7), "logprobs"),
    (changed(seed=-9), "seed"),
    (changed(detokenize=False, stop=["x"]), "detokenize"),
    (changed(allowed_token_ids=[100], min_tokens=3, stop_token_ids=[100]), "allowed"),
    ({"temperature": 0}, "sampling_params"),
    (0, "sampling_params"),
    ("greedy", "sampling_params"),
    ([GOOD, GOOD], "sampling_params"),
    ([None, 3], "sampling_params"),
]


@pytest.mark.parametrize(
    ("params", "names"), BAD_PARAMS, ids=[f"{i}-{names}" for i, (_, names) in enumerate(BAD_PARAMS)]
)
def test_bad_parameters(llm, params, names):
    with pytest.raises(RequestError, match=names):
        llm.generate("abc", params)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": "1"},
        {"timeout": True},
        {"priority": 2**31},
        {"priority": 1.5},
        {"priority": [1, 2]},
        {"priority": "high"},
        {"priority": b"x"},
        {"priority": 10**5000},
        {"timeout": 1j},
    ],
)
def test_bad_options(llm, options):
    with pytest.raises(RequestError, match=next(iter(options))):
        llm.generate("abc", GOOD, **options)
    if not isinstance(options.get("priority"), list):
        with pytest.raises(RequestError, match=next(iter(options))):
            llm.submit("abc", GOOD, **options)


def test_bad_calls_of_other_methods(llm):
    for messages in ("text", [3], None, 5, [], [[3]]):
        with pytest.raises(RequestError, match="messages"):
            llm.chat(messages, GOOD)
    with pytest.raises(TypeError, match=r"LLM.generate\(\).*max_new_tokens"):
        llm.generate("abc", max_new_tokens=3)
    chat = functools.partial(llm.chat, [{"role": "user", "content": "x"}])
    generate = functools.partial(llm.generate, "abc")
    for method in (generate, chat, functools.partial(llm.submit, "abc")):
        with pytest.raises(UnsupportedError, match="lora_request: not supported"):
            method(lora_request=object())
        with pytest.raises(UnsupportedError, match="lora_request: not supported"):
            method(lora_request="auto")
        method(mm_processor_kwargs={})
    with pytest.raises(RequestError, match="chat_template_content_format"):
        chat(chat_template_content_format="no such")
    with pytest.raises(UnsupportedError, match=r"prompt_token_ids: .*as the prompts"):
        llm.generate([], prompt_token_ids=[[1, 2]])
    generate(GOOD, lora_request=None, tokenization_kwargs={})
    chat(GOOD, chat_template_content_format="auto", tokenization_kwargs={})
    with pytest.raises(TypeError, match="llmaccel plan MODEL"):
        LLM.plan("model")
    with pytest.raises(RequestError, match="empty"):
        llm.logits([])
    with pytest.raises(RequestError, match="161"):
        llm.logits([5] * 161)
    with pytest.raises(RequestError, match="vocabulary"):
        llm.logits([5, 400])
    with pytest.raises(RequestError, match="continuations"):
        llm.loglikelihood(["a"], [])
    with pytest.raises(RequestError, match=r"contexts\[0\]"):
        llm.loglikelihood(["a" * 300], ["b"])
    for pair, names in ((["\udfff"], ["b"]), "contexts"), ((["a"], ["\udfff"]), "continuations"):
        with pytest.raises(RequestError, match=rf"{names}\[0\]: .*surrogate"):
            llm.loglikelihood(*pair)
    with pytest.raises(RequestError, match=r"bad_words: .*surrogate"):
        llm.generate("a", changed(bad_words=["\udfff"]))


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


@pytest.mark.parametrize("bad", [0, "yes", b"x", [], Unprintable(), 10**5000, np.zeros(2)],
                         ids=["0", "str", "bytes", "list", "repr", "long", "array"])  # fmt: skip
def test_switches_are_true_or_false(llm, bad):
    for name in ("stream", "use_tqdm"):
        with pytest.raises(RequestError, match=f"^{name}: expected True or False"):
            llm.generate("a", GOOD, **{name: bad})
    chat = [{"role": "user", "content": "x"}]
    names = ["stream", "use_tqdm", "add_generation_prompt", "chat_template_kwargs"]
    for name in (*names, *([] if isinstance(bad, str) else ["continue_final_message"])):
        with pytest.raises(RequestError, match=f"^{name}: expected"):
            llm.chat(chat, GOOD, **{name: bad})
    with pytest.raises(LLMAccelError, match="chat_template"):
        llm.chat(chat, GOOD, chat_template=bad)
    for name in ("tokenize", "tools", "conversation", "self"):
        with pytest.raises(RequestError, match=f"chat_template_kwargs: '{name}'"):
            llm.chat(chat, GOOD, chat_template_kwargs={name: bad})


def test_numpy_numbers_are_numbers(llm):
    params = SamplingParams(
        max_tokens=np.int32(3), temperature=np.float32(0.5), seed=np.uint64(2**64 - 1), **COMMON
    )
    outs = [
        llm.generate("abc", params, priority=np.int64(2), timeout=np.float32(100))[0],
        llm.generate(["abc"], params, priority=[np.int16(-1)], use_tqdm=np.False_)[0],
        llm.generate(
            "abc", SamplingParams(max_tokens=3, temperature=0.5, seed=-1 % 2**64, **COMMON)
        )[0],
    ]
    assert len({tuple(out.outputs[0].token_ids) for out in outs}) == 1


def signature(output):
    part = output.outputs[0]
    return part.token_ids, part.logprob_array.tobytes(), part.text, part.finish_reason


def test_neighbours_do_not_notice(llm):
    prompts = [f"neighbour {i}" for i in range(8)]
    expected = [signature(llm.generate(p, GOOD)[0]) for p in prompts]
    futures = [llm.submit(p, GOOD) for p in prompts]
    for prompt, _ in BAD_PROMPTS:
        with pytest.raises(RequestError):
            llm.generate(prompt, GOOD)
    for params, _ in BAD_PARAMS:
        with pytest.raises(RequestError):
            llm.generate("abc", params)
    assert [signature(f.result()) for f in futures] == expected


def random_prompt(rng: random.Random):
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(BAD_PROMPTS)[0]
    if kind == 1:
        return [rng.randrange(-1, letters.VOCAB + 1) for _ in range(rng.randrange(30))]
    if kind == 2:
        return "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(1, 20)))
    return "abc " * rng.randrange(1, 30)


def changes_nothing(output_ids, logits):
    """A logits processor that changes nothing."""


def take_some(output_ids, logits):
    """One that returns too few logits."""
    return logits[output_ids]


def random_params(rng: random.Random) -> SamplingParams:
    """Mostly in range; about a third somewhere outside."""
    nasty = [float("nan"), -1, None, 2**70, "x", float("inf"), [], {}]
    values = {
        "n": rng.choice([1, 1, 2, 3]),
        "temperature": rng.choice([0.0, 0.5, 1.0, 3.0]),
        "top_p": rng.choice([1.0, 0.5, 0.01]),
        "top_k": rng.choice([0, 1, 5, 1000]),
        "min_p": rng.choice([0.0, 0.5]),
        "seed": rng.choice([None, 1, 2**63]),
        "max_tokens": rng.choice([1, 3, 9, None]),
        "logprobs": rng.choice([None, 0, 3, -1]),
        "prompt_logprobs": rng.choice([None, None, 0, 2]),
        "repetition_penalty": rng.choice([1.0, 1.3]),
        "presence_penalty": rng.choice([0.0, 1.5]),
        "stop": rng.choice([None, None, "a", ["b c", "zzz"]]),
        "bad_words": rng.choice([None, ["ab"], ["c", "dd"]]),
        "logit_bias": rng.choice([None, {5: 3.0}, {2: -100.0}]),
        "allowed_token_ids": rng.choice([None, letters.LETTERS, [2]]),
        "stop_token_ids": rng.choice([None, [7], [letters.VOCAB + 5]]),
        "min_tokens": rng.choice([0, 0, 1]),
        "ignore_eos": rng.choice([True, False]),
        "best_of": rng.choice([None, None, 3]),
        "logprob_token_ids": rng.choice([None, [5], [letters.VOCAB]]),
        "prompt_logprob_token_ids": rng.choice([None, [5, 6]]),
        "flat_logprobs": rng.choice([True, False]),
        "logits_processors": rng.choice([None, None, None, [changes_nothing], [take_some]]),
        "no_repeat_ngram_size": rng.choice([0, 0, 1, 2]),
        "repeat_last_n": rng.choice([-1, 0, 5]),
        "repetition_detection": rng.choice([None, {"max_pattern_size": 3}]),
        "trace_decode_token_ids": rng.choice([None, None, [5, 6, 7]]),
        "stream_interval": rng.choice([1, 4]),
        "typical_p": rng.choice([1.0, 0.4]),
        "xtc_probability": rng.choice([0.0, 0.5]),
        "dry_multiplier": rng.choice([0.0, 2.0]),
        "dynatemp_range": rng.choice([0.0, 0.4]),
        "mirostat_mode": rng.choice([0, 0, 0, 1, 2]),
    }
    if rng.random() < 0.3:
        values[rng.choice(list(values))] = rng.choice(nasty)
    return SamplingParams(**values)


def one_request(llm: LLM, rng: random.Random, futures: list) -> int:
    """A request in a random style; 1 if it was refused."""
    try:
        prompt, params = random_prompt(rng), random_params(rng)
        style = rng.randrange(6)
        timeout = rng.choice([None, None, 0.001, -1.0])
        if style == 0:
            for chunk in llm.generate(prompt, params, stream=True, timeout=timeout):
                if rng.random() < 0.2:
                    break
                assert chunk.outputs
        elif style == 1:
            llm.generate([prompt, prompt], params, timeout=timeout)
        elif style == 2:
            future = llm.submit(prompt, params, priority=rng.randrange(-3, 3))
            future.cancel()
            futures.append(future)
        elif style == 3:
            llm.logits(prompt)
        else:
            futures.append(llm.submit(prompt, params, timeout=timeout))
    except (RequestError, UnsupportedError) as error:  # mirostat takes no other truncation
        assert 0 < len(str(error)) < 1000
        return 1
    return 0


def soak(llm: LLM, count: int, seed: int) -> None:
    rng = random.Random(seed)
    expected = signature(llm.generate("abc", GOOD)[0])
    futures: list = []
    refused = sum(one_request(llm, rng, futures) for _ in range(count))
    assert count / 6 < refused < count * 5 / 6
    for future in futures:
        try:
            assert future.result(timeout=60).finished
        except RequestError as error:  # nothing was left to draw from
            assert "logit" in str(error)
    assert signature(llm.generate("abc", GOOD)[0]) == expected
    for _ in range(200):
        stats = llm.engine.stats()
        if stats["pages_used"] == stats["running"] == stats["waiting"] == 0:
            break
        time.sleep(0.01)
    assert (stats["pages_used"], stats["running"], stats["waiting"]) == (0, 0, 0)
    assert stats["step_allocations"] == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_random_requests(llm, seed):
    soak(llm, 300, seed)


@pytest.mark.slow
def test_ten_thousand_random_requests(llm):
    soak(llm, 10_000, 3)


@pytest.mark.parametrize("given", ["abc", None, {"prompt": "abc"}])
def test_loglikelihood_wants_lists(llm, given):
    with pytest.raises(RequestError, match="contexts: expected a list of prompts"):
        llm.loglikelihood(given, ["abc"])
    with pytest.raises(RequestError, match="continuations: expected a list of prompts"):
        llm.loglikelihood(["abc"], given)
