"""Every field of SamplingParams does what its rule says, or is refused by name.

One entry of RULES a field: a function that is given the model and asserts what the field changes.
The tables must name exactly the fields of the dataclass, and with them every name that vLLM's
offline interface has. Exact draws against NumPy are in test_sampling.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import Any

import letters
import numpy as np
import pytest
import reference_sampling as ref
from letters import COMMON, LETTERS

from llmaccel import (
    LLM,
    RepetitionDetectionParams,
    RequestError,
    RequestOutputKind,
    SamplingParams,
    UnsupportedError,
    load_tokenizer,
)
from llmaccel.outputs import FlatLogprobs
from llmaccel.params import NO_EFFECT
from llmaccel.thinking import think_tags

A, B = 3 + ord("a"), 3 + ord("b")
OPEN, CLOSE = 259, 260  # <think> and </think>, behind the byte tokenizer's own
Check = Callable[[LLM], None]
RULES: dict[str, Check] = {}

# vLLM's fields, and what other engines sample by.
KNOWN = """
n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop
stop_token_ids bad_words ignore_eos max_tokens min_tokens logprobs prompt_logprobs detokenize
skip_special_tokens spaces_between_special_tokens include_stop_str_in_output output_kind
structured_outputs guided_decoding logit_bias allowed_token_ids logits_processors
truncate_prompt_tokens skip_reading_prefix_cache skip_clone extra_args thinking_token_budget
repetition_detection routed_experts_prompt_start trace_decode_token_ids logprob_token_ids
prompt_logprob_token_ids prompt_logprob_start flat_logprobs stream_interval best_of
no_repeat_ngram_size repeat_last_n typical_p top_n_sigma xtc_probability xtc_threshold
dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers
dynatemp_range dynatemp_exponent mirostat_mode mirostat_tau mirostat_eta
"""
REFUSED = {
    "structured_outputs": {"json": {}},
    "guided_decoding": {"json": {}},
    "routed_experts_prompt_start": 0,
    "use_beam_search": True,
    "response_format": {"type": "json_object"},
    "watermark": True,
    "return_hidden_states": True,
}


def rule(check: Check) -> Check:
    RULES[check.__name__.removeprefix("check_")] = check
    return check


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = letters.write_model(tmp_path_factory.mktemp("letters"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    for token, text in ((OPEN, "<think>"), (CLOSE, "</think>")):
        vocabulary["added_tokens"].append(
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": False,
            }
        )
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    with LLM(str(folder), max_num_seqs=6, max_num_batched_tokens=32) as llm:
        yield llm


def run(llm: LLM, prompt: Any = "abc", **params: Any) -> Any:
    """The RequestOutput of twelve letters, or what params say."""
    values = {"max_tokens": 12, "seed": 7, **COMMON, **params}
    return llm.generate(prompt, SamplingParams(**values))[0]


def ids(llm: LLM, prompt: Any = "abc", **params: Any) -> list[int]:
    return run(llm, prompt, **params).outputs[0].token_ids


def is_greedy(llm: LLM, adjust: Callable[[np.ndarray, list[int]], None], **params: Any) -> None:
    """Each token is the argmax of what `adjust` makes of the log probabilities so far."""
    out = run(llm, temperature=0, logprobs=-1, **params).outputs[0]
    plain = ids(llm, temperature=0)
    for i, (token, scores) in enumerate(zip(out.token_ids, out.logprobs, strict=True)):
        x = np.array([scores[t].logprob for t in LETTERS])
        adjust(x, [LETTERS.index(t) for t in out.token_ids[:i]])
        assert token == LETTERS[int(x.argmax())]
    assert out.token_ids != plain


@rule
def check_n(llm):
    outs = run(llm, n=3).outputs
    assert [o.index for o in outs] == [0, 1, 2]
    assert len({tuple(o.token_ids) for o in outs}) > 1


@rule
def check_best_of(llm):
    every = run(llm, n=5, logprobs=0).outputs
    best = run(llm, n=2, best_of=5).outputs
    order = sorted(every, key=lambda o: -o.cumulative_logprob)
    assert [o.token_ids for o in best] == [o.token_ids for o in order[:2]]
    assert [o.index for o in best] == [0, 1]
    assert best[0].logprobs is None
    params = SamplingParams(n=2, best_of=5, seed=7, max_tokens=12, **COMMON)
    (chunk,) = llm.generate("abc", params, stream=True)
    assert [o.token_ids for o in chunk.outputs] == [o.token_ids for o in best]


@rule
def check_presence_penalty(llm):
    def adjust(x, made):
        x[sorted(set(made))] -= 2

    is_greedy(llm, adjust, presence_penalty=2.0)


@rule
def check_frequency_penalty(llm):
    is_greedy(llm, lambda x, made: np.subtract.at(x, made, 2.0), frequency_penalty=2.0)


@rule
def check_repetition_penalty(llm):
    assert ids(llm, repetition_penalty=9.0, temperature=0) != ids(llm, temperature=0)


@rule
def check_repeat_last_n(llm):
    def adjust(x, made):
        np.subtract.at(x, made[-2:], 2.0)

    is_greedy(llm, adjust, frequency_penalty=2.0, repeat_last_n=2)
    base = ids(llm, temperature=0)
    assert ids(llm, temperature=0, repetition_penalty=9.0, repeat_last_n=0) == base
    whole = ids(llm, temperature=0, repetition_penalty=9.0)
    assert ids(llm, temperature=0, repetition_penalty=9.0, repeat_last_n=1000) == whole
    assert ids(llm, temperature=0, repetition_penalty=9.0, repeat_last_n=1) != whole


@rule
def check_temperature(llm):
    assert ids(llm, temperature=0, seed=1) == ids(llm, temperature=0, seed=2)
    assert ids(llm, temperature=5.0) != ids(llm, temperature=0.1)


@rule
def check_top_p(llm):
    assert ids(llm, top_p=1e-6) == ids(llm, temperature=0)


@rule
def check_top_k(llm):
    assert ids(llm, top_k=1) == ids(llm, temperature=0)
    assert ids(llm, top_k=-1) == ids(llm)


@rule
def check_min_p(llm):
    assert ids(llm, min_p=1.0) == ids(llm, temperature=0)


@rule
def check_seed(llm):
    assert ids(llm, seed=3) == ids(llm, seed=3) != ids(llm, seed=4)


@rule
def check_stop(llm):
    text = run(llm).outputs[0].text
    out = run(llm, stop=text[3:5]).outputs[0]
    assert (out.finish_reason, out.stop_reason) == ("stop", text[3:5])
    assert out.text == text[: text.index(text[3:5])]


@rule
def check_include_stop_str_in_output(llm):
    text = run(llm).outputs[0].text
    out = run(llm, stop=text[3:5], include_stop_str_in_output=True).outputs[0]
    assert out.text.endswith(text[3:5])


@rule
def check_stop_token_ids(llm):
    want = ids(llm)
    out = run(llm, stop_token_ids=[want[4]]).outputs[0]
    assert (out.finish_reason, out.stop_reason) == ("stop", want[4])
    assert out.token_ids == want[: want.index(want[4]) + 1]


@rule
def check_ignore_eos(llm):
    only_end = {"allowed_token_ids": [2, A], "logit_bias": {2: 100.0}}
    assert ids(llm, **only_end, ignore_eos=False) == [2]
    assert ids(llm, **only_end, ignore_eos=True) == [2] * 12


@rule
def check_min_tokens(llm):
    only_end = {"allowed_token_ids": [2, A], "logit_bias": {2: 100.0}, "ignore_eos": False}
    assert ids(llm, **only_end, min_tokens=5) == [A] * 5 + [2]


@rule
def check_max_tokens(llm):
    assert len(ids(llm, max_tokens=5)) == 5
    assert len(ids(llm, max_tokens=None)) == llm._config.max_len - 4


@rule
def check_bad_words(llm):
    text = run(llm, temperature=0).outputs[0].text
    assert text[2:4] not in run(llm, temperature=0, bad_words=[text[2:4]]).outputs[0].text


@rule
def check_no_repeat_ngram_size(llm):
    out = run(llm, max_tokens=25, temperature=0, no_repeat_ngram_size=2)
    made = out.prompt_token_ids + out.outputs[0].token_ids
    pairs = list(itertools.pairwise(made))
    assert len(set(pairs)) == len(pairs)
    plain = out.prompt_token_ids + ids(llm, max_tokens=25, temperature=0)
    assert len(set(itertools.pairwise(plain))) < len(pairs)
    with pytest.raises(RequestError, match="no token is left to draw"):
        run(llm, no_repeat_ngram_size=1)


@rule
def check_logprobs(llm):
    assert run(llm).outputs[0].logprobs is None
    for k, most in ((0, 1), (3, 4), (-1, letters.VOCAB)):
        counts = {len(one) for one in run(llm, logprobs=k).outputs[0].logprobs}
        assert max(counts) == most


@rule
def check_prompt_logprobs(llm):
    found = run(llm, prompt_logprobs=2).prompt_logprobs
    assert found[0] is None
    assert {len(one) for one in found[1:]} <= {2, 3}


@rule
def check_logprob_token_ids(llm):
    wanted = [A, 200, A, 0]
    every = run(llm, logprobs=-1).outputs[0].logprobs
    for k, more in ((None, {}), (2, {"logprobs": 2})):
        out = run(llm, logprob_token_ids=wanted, **more).outputs[0]
        assert out.cumulative_logprob is not None
        for token, one, whole in zip(out.token_ids, out.logprobs, every, strict=True):
            assert {token, *wanted} <= set(one)
            assert all(abs(v.logprob - whole[t].logprob) == 0 for t, v in one.items())
            best = [v.rank for t, v in one.items() if t != token and v.rank is not None]
            assert len(best) <= (k or 0)
    assert len(ids(llm, logprob_token_ids=range(letters.VOCAB))) == 12


@rule
def check_prompt_logprob_token_ids(llm):
    every = run(llm, prompt_logprobs=-1).prompt_logprobs
    found = run(llm, prompt_logprob_token_ids=[9, 10]).prompt_logprobs
    assert found[0] is None
    for one, whole in zip(found[1:], every[1:], strict=True):
        assert {9, 10} <= set(one)
        assert all(v.logprob == whole[t].logprob for t, v in one.items())


@rule
def check_prompt_logprob_start(llm):
    prompt = "abcdefgh" * 6
    every = run(llm, prompt, prompt_logprobs=1).prompt_logprobs
    for start in (0, 1, 2, 30, 48, 49, 1000):
        found = run(llm, prompt, prompt_logprobs=1, prompt_logprob_start=start).prompt_logprobs
        assert list(found) == [None if i < max(start, 1) else one for i, one in enumerate(every)]


@rule
def check_flat_logprobs(llm):
    params = {"logprobs": 2, "logprob_token_ids": [7], "prompt_logprobs": 1}
    plain, out = run(llm, **params), run(llm, **params, flat_logprobs=True)
    for lists, flat in (
        (plain.outputs[0].logprobs, out.outputs[0].logprobs),
        (plain.prompt_logprobs, out.prompt_logprobs),
    ):
        assert isinstance(flat, FlatLogprobs)
        assert flat == lists
        spans = list(zip(flat.start_indices, flat.end_indices, strict=True))
        assert len(spans) == len(lists)
        for (start, end), one in zip(spans, lists, strict=True):
            want = one or {}
            assert flat.token_ids[start:end].tolist() == list(want)
            np.testing.assert_array_equal(
                flat.logprobs[start:end], np.float32([v.logprob for v in want.values()])
            )
            assert flat.ranks[start:end].tolist() == [v.rank or 0 for v in want.values()]
            assert flat.decoded_tokens[start:end] == [v.decoded_token for v in want.values()]


@rule
def check_detokenize(llm):
    assert run(llm, detokenize=False).outputs[0].text == ""


@rule
def check_skip_special_tokens(llm):
    forced = {"trace_decode_token_ids": [A, 1, B]}
    assert run(llm, **forced).outputs[0].text == "ab"
    assert run(llm, **forced, skip_special_tokens=False).outputs[0].text == "a<s>b"


@rule
def check_spaces_between_special_tokens(llm):
    """Where the tokenizer's own decoder puts spaces between tokens; test_detokenize.py has one."""
    forced = {"trace_decode_token_ids": [1, 1, A], "skip_special_tokens": False}
    for spaces in (True, False):
        out = run(llm, **forced, spaces_between_special_tokens=spaces)
        assert out.outputs[0].text == "<s><s>a"


@rule
def check_logit_bias(llm):
    assert ids(llm, logit_bias={A: 100.0}) == [A] * 12


@rule
def check_allowed_token_ids(llm):
    assert set(ids(llm, allowed_token_ids=[A, B])) <= {A, B}


@rule
def check_truncate_prompt_tokens(llm):
    assert run(llm, truncate_prompt_tokens=2).prompt_token_ids == [B, B + 1]


def chunks(llm: LLM, **params: Any) -> list[Any]:
    values = {"max_tokens": 12, "seed": 7, **COMMON, **params}
    return list(llm.generate("abc", SamplingParams(**values), stream=True))


@rule
def check_output_kind(llm):
    text = run(llm).outputs[0].text
    delta = chunks(llm, output_kind=RequestOutputKind.DELTA)
    assert "".join(c.outputs[0].text for c in delta) == text
    whole = chunks(llm, output_kind=RequestOutputKind.CUMULATIVE)
    assert whole[-1].outputs[0].text == text
    (final,) = chunks(llm, output_kind=RequestOutputKind.FINAL_ONLY)
    assert final.outputs[0].text == text


@rule
def check_stream_interval(llm):
    want = ids(llm)
    for interval in (1, 5, 100):
        parts = [c.outputs[0].token_ids for c in chunks(llm, stream_interval=interval)]
        assert [token for part in parts for token in part] == want
        assert all(len(part) >= interval for part in parts[1:-1])
        assert len(parts) <= 2 + 11 // interval


@rule
def check_logits_processors(llm):
    seen = []

    def only_b(output_ids, logits):
        logits[:] = -np.inf
        logits[B] = 0

    def then_a(prompt_ids, output_ids, logits):
        seen.append((prompt_ids, output_ids))
        if len(output_ids) == 3:
            moved = np.full_like(logits, -np.inf)
            moved[A] = 1
            return moved
        return None

    made = ids(llm, logits_processors=[only_b, then_a])
    assert made == [B, B, B, A] + [B] * 8
    assert seen == [([1, A, B, B + 1], made[:i]) for i in range(12)]


@rule
def check_repetition_detection(llm):
    stuck = {"allowed_token_ids": [A], "max_tokens": 60}
    for detect in (
        {"max_pattern_size": 3, "min_pattern_size": 2, "min_count": 4},
        RepetitionDetectionParams(3, 2, 4),
    ):
        out = run(llm, **stuck, repetition_detection=detect).outputs[0]
        assert (out.finish_reason, out.token_ids) == ("repetition", [A] * 8)
    forced = [A, B, 5, 6, 7, 5, 6, 7, 5, 6, 7, A]
    for count, length in ((2, 8), (3, 11), (4, 12)):
        detect = RepetitionDetectionParams(5, 1, count)
        out = run(llm, trace_decode_token_ids=forced, repetition_detection=detect)
        assert len(out.outputs[0].token_ids) == length


@rule
def check_thinking_token_budget(llm):
    opened = [A, OPEN, B]  # one token is thought already
    for budget, close_at in ((0, 0), (1, 0), (2, 1), (5, 4)):
        made = ids(llm, opened, thinking_token_budget=budget)
        assert made.index(CLOSE) == close_at
        assert made.count(CLOSE) == 1
    for idle in (-1, None, 1000):
        assert ids(llm, opened, thinking_token_budget=idle) == ids(llm, opened)
    closed = [OPEN, A, CLOSE, B]
    assert ids(llm, closed, thinking_token_budget=0) == ids(llm, closed)
    begins = {"allowed_token_ids": [*LETTERS, OPEN], "logit_bias": {OPEN: 100.0}}
    made = ids(llm, **begins, thinking_token_budget=3)
    assert made == [OPEN] * 4 + [CLOSE] + [OPEN] * 4 + [CLOSE] + [OPEN] * 2


@rule
def check_trace_decode_token_ids(llm):
    forced = [9, A, 250, B]
    out = run(llm, trace_decode_token_ids=forced, logprobs=-1).outputs[0]
    assert (out.token_ids, out.finish_reason) == (forced, "length")
    scored = run(llm, [1, A, B, B + 1, *forced], prompt_logprobs=0).prompt_logprobs[4:]
    assert [o[t].logprob for o, t in zip(out.logprobs, forced, strict=True)] == [
        o[t].logprob for o, t in zip(scored, forced, strict=True)
    ]
    assert ids(llm, trace_decode_token_ids=forced, max_tokens=2) == forced[:2]


def takes(llm: LLM, choose: Callable[[np.ndarray], int], **params: Any) -> None:
    """Each token is the letter that `choose` takes by their probabilities; it is not greedy."""
    out = run(llm, logprobs=-1, **params).outputs[0]
    for token, scores in zip(out.token_ids, out.logprobs, strict=True):
        q = np.exp([scores[t].logprob for t in LETTERS])
        assert token == LETTERS[choose(q / q.sum())]
    assert out.token_ids != ids(llm, temperature=0)


@rule
def check_typical_p(llm):
    def nearest(q):
        return int(np.abs(-np.log(q) - ref.entropy(q)).argmin())

    takes(llm, nearest, typical_p=1e-6)


@rule
def check_top_n_sigma(llm):
    assert ids(llm, top_n_sigma=1e-6, temperature=5.0) == ids(llm, temperature=0)
    assert ids(llm, top_n_sigma=-1) == ids(llm)


@rule
def check_xtc_probability(llm):
    takes(llm, lambda q: int(q.argmin()), xtc_probability=1.0, xtc_threshold=0.0)
    never, some, always = (
        ids(llm, xtc_probability=p, xtc_threshold=0.0, max_tokens=60) for p in (0.0, 0.5, 1.0)
    )
    assert never == ids(llm, max_tokens=60)
    assert some not in (never, always)


@rule
def check_xtc_threshold(llm):
    assert ids(llm, xtc_probability=1.0, xtc_threshold=0.6) == ids(llm)
    assert ids(llm, xtc_probability=1.0, xtc_threshold=0.05) != ids(llm)


def is_dry(llm: LLM, **params: Any) -> list[int]:
    """Greedy tokens under DRY, each of which is the argmax after the reference's penalties."""
    rules = {"dry_multiplier": 4.0, "dry_base": 1.75, "dry_allowed_length": 2} | params
    p = {"dry_breakers": [3 + ord(c) for c in '\n:"*'], "dry_last_n": -1, **rules}
    if "dry_sequence_breakers" in params:
        breakers = params["dry_sequence_breakers"]
        p["dry_breakers"] = [t if isinstance(t, int) else 3 + ord(t) for t in breakers]
    p["dry_last_n"] = params.get("dry_penalty_last_n", -1)
    out = run(llm, temperature=0, logprobs=-1, max_tokens=40, **rules)
    tokens = list(out.prompt_token_ids)
    for token, scores in zip(out.outputs[0].token_ids, out.outputs[0].logprobs, strict=True):
        x = {t: scores[t].logprob for t in LETTERS}
        for t, length in ref.repetitions(tokens, p).items():
            if t in x:
                x[t] -= p["dry_multiplier"] * p["dry_base"] ** (length - p["dry_allowed_length"])
        assert x[token] > max(x.values()) - 1e-4
        tokens.append(token)
    return out.outputs[0].token_ids


@rule
def check_dry_multiplier(llm):
    assert is_dry(llm, dry_multiplier=0.0) == ids(llm, temperature=0, max_tokens=40)
    assert is_dry(llm) != is_dry(llm, dry_multiplier=0.0)


@rule
def check_dry_base(llm):
    params = {"dry_multiplier": 0.2}
    assert is_dry(llm, **params, dry_base=1.0) != is_dry(llm, **params, dry_base=9.0)


@rule
def check_dry_allowed_length(llm):
    assert is_dry(llm, dry_allowed_length=1) != is_dry(llm, dry_allowed_length=5)


@rule
def check_dry_penalty_last_n(llm):
    plain = ids(llm, temperature=0, max_tokens=40)
    assert is_dry(llm, dry_penalty_last_n=0) == plain
    assert is_dry(llm, dry_penalty_last_n=9) != plain


@rule
def check_dry_sequence_breakers(llm):
    every = [chr(t - 3) for t in LETTERS]
    assert is_dry(llm, dry_sequence_breakers=every) == ids(llm, temperature=0, max_tokens=40)
    made = is_dry(llm)
    assert is_dry(llm, dry_sequence_breakers=[made[3], chr(made[5] - 3)]) != made
    with pytest.raises(RequestError, match="no token contains 'xyz'"):
        run(llm, dry_multiplier=1.0, dry_sequence_breakers=["xyz"])
    with pytest.raises(RequestError, match="dry_sequence_breakers: id 301"):
        run(llm, dry_multiplier=1.0, dry_sequence_breakers=[letters.VOCAB])


@rule
def check_dynatemp_range(llm):
    never = {"temperature": 1.0, "dynatemp_range": 1.0, "dynatemp_exponent": 1e6}
    assert ids(llm, **never) == ids(llm, temperature=0.01)


@rule
def check_dynatemp_exponent(llm):
    always = {"temperature": 1.0, "dynatemp_range": 0.5, "dynatemp_exponent": 0.0}
    assert ids(llm, **always) == ids(llm, temperature=1.5)


@rule
def check_mirostat_mode(llm):
    plain = ids(llm, max_tokens=60)
    one, two = (ids(llm, max_tokens=60, mirostat_mode=m, mirostat_tau=1.5) for m in (1, 2))
    assert len({tuple(plain), tuple(one), tuple(two)}) == 3


@rule
def check_mirostat_tau(llm):
    assert ids(llm, mirostat_mode=2, mirostat_tau=0) == ids(llm, temperature=0)
    assert ids(llm, mirostat_mode=2, mirostat_tau=1000.0) == ids(llm)


@rule
def check_mirostat_eta(llm):
    surprised = {"mirostat_mode": 2, "mirostat_tau": 0.5, "temperature": 3.0, "max_tokens": 60}
    assert ids(llm, **surprised, mirostat_eta=0.0) != ids(llm, **surprised, mirostat_eta=1.0)


@pytest.mark.parametrize("name", RULES)
def test_field(llm, name):
    RULES[name](llm)


@pytest.mark.parametrize("name", NO_EFFECT)
def test_field_without_effect_is_reported(llm, name):
    before = llm.report()["no_effect"]
    assert name not in before
    value = {} if name == "extra_args" else True
    assert ids(llm, **{name: value}) == ids(llm)
    assert name in llm.report()["no_effect"]


@pytest.mark.parametrize("name", REFUSED)
def test_field_that_is_not_here_is_refused(name):
    with pytest.raises(UnsupportedError, match=f"^{name}: not supported"):
        SamplingParams(**{name: REFUSED[name]})


def test_the_tables_name_every_field():
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert fields == {*RULES, *NO_EFFECT}
    assert not fields & set(REFUSED)
    assert set(KNOWN.split()) <= {*RULES, *NO_EFFECT, *REFUSED}


def test_a_model_without_tags_has_no_budget(tmp_path):
    letters.write_tokenizer(tmp_path)
    with pytest.raises(RequestError, match="thinking_token_budget: this model has no tokens"):
        think_tags(load_tokenizer(tmp_path))


def test_names_of_others():
    assert SamplingParams.from_names(
        max_new_tokens=5, random_seed=3, stop_words=["x"], repeat_penalty=1.5, do_sample=False
    ) == SamplingParams(max_tokens=5, seed=3, stop="x", repetition_penalty=1.5, temperature=0)
    assert SamplingParams.from_names(do_sample=True, top_k=3) == SamplingParams(top_k=3)
    with pytest.raises(RequestError, match="max_new_tokens: max_tokens was given"):
        SamplingParams.from_names(max_tokens=5, max_new_tokens=5)
    with pytest.raises(UnsupportedError, match="ebnf"):
        SamplingParams.from_names(ebnf="root ::= x")
    with pytest.raises(TypeError, match="nonsense"):
        SamplingParams.from_names(nonsense=5)
