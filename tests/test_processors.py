"""Logits processors: whose logits they change, whose error a failure is, and nobody else's bits."""

from __future__ import annotations

import asyncio
import threading

import letters
import numpy as np
import pytest
from letters import COMMON, LETTERS, only

from llmaccel import LLM, RequestError, SamplingParams

VOCAB = letters.VOCAB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(str(folder), max_num_seqs=6, max_num_batched_tokens=32) as llm:
        yield llm


def params(*functions, **more):
    values = {"max_tokens": 20, "seed": 3, "logprobs": 2, **COMMON, **more}
    return SamplingParams(logits_processors=list(functions) or None, **values)


def shift(output_ids, logits):
    """Something that depends on every value and on what was generated."""
    logits += np.roll(logits, 1 + len(output_ids) % 7)


def bits(out):
    return [
        (o.token_ids, o.logprob_array.tobytes(), list(o.logprobs), o.finish_reason)
        for o in out.outputs
    ]


def test_company_and_threads_change_no_bit(folder, llm):
    alone = bits(llm.generate("abc", params(shift))[0])
    plain = bits(llm.generate("abc", params())[0])
    assert alone != plain
    greedy = bits(llm.generate("cab", params(shift, temperature=0))[0])
    mixed = [params(shift), params(), params(shift, temperature=0)] * 6
    prompts = ["abc", "abc", "cab"] * 6
    assert [bits(o) for o in llm.generate(prompts, mixed)] == [alone, plain, greedy] * 6
    with LLM(str(folder), max_num_seqs=40, max_num_batched_tokens=256, threads=2) as other:
        assert [bits(o) for o in other.generate(prompts, mixed)] == [alone, plain, greedy] * 6


def test_logprobs_are_of_the_model(llm):
    def never(output_ids, logits):
        logits[LETTERS[:-1]] = -np.inf

    out = only(llm.generate("abc", params(never, logprobs=-1)))
    assert set(out.token_ids) == {LETTERS[-1]}
    assert out.logprobs[0][LETTERS[0]].logprob > -np.inf


def test_branches_have_rows_of_their_own(llm):
    seen = {}

    def note(output_ids, logits):
        seen.setdefault(tuple(output_ids), []).append(logits.copy())

    out = llm.generate("abc", params(note, n=3))[0]
    assert bits(out) == bits(llm.generate("abc", params(n=3))[0])
    assert len(seen[()]) == 3
    for row in seen[()][1:]:
        np.testing.assert_array_equal(row, seen[()][0])
    for o in out.outputs:
        assert all(tuple(o.token_ids[:i]) in seen for i in range(len(o.token_ids)))


def test_what_is_given_and_returned(llm):
    def check(prompt_ids, output_ids, logits):
        assert isinstance(logits, np.ndarray)
        assert (logits.dtype, logits.shape) == (np.float32, (VOCAB,))
        assert logits.flags.writeable
        assert threading.current_thread().name == "llmaccel"
        prompt_ids.append(0)
        output_ids.append(0)
        return logits * 2

    class Callable:
        def __call__(self, *past_and_logits):
            assert len(past_and_logits) == 3

    doubled = params(check, Callable(), temperature=0)
    assert bits(llm.generate("abc", doubled)[0]) == bits(
        llm.generate("abc", params(temperature=0))[0]
    )


def raises(output_ids, logits):
    if len(output_ids) == 3:
        raise KeyError("mine")


def wrong_shape(output_ids, logits):
    return np.zeros(5, np.float32)


def nothing_left(output_ids, logits):
    logits[:] = -np.inf


def all_nan(output_ids, logits):
    logits[:] = np.nan


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises, r"logits_processors\[1\]: KeyError\('mine'\)"),
        (wrong_shape, r"logits_processors\[1\]: .*expected logits \[301\], got \[5\]"),
        (nothing_left, "no token is left to draw"),
        (all_nan, r"logits_processors\[1\]: .*it gave NaN"),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_failure_is_its_own_requests(llm, function, message, n):
    want = bits(llm.generate("abc", params())[0])
    good = [llm.submit("abc", params()) for _ in range(2)]
    bad = llm.submit("abc", params(shift, function, n=n))
    good += [llm.submit("abc", params()) for _ in range(2)]
    with pytest.raises(RequestError, match=message) as caught:
        bad.result(30)
    if function is raises:
        assert isinstance(caught.value.__cause__, KeyError)
    assert [bits(f.result(30)) for f in good] == [want] * 4
    stats = llm.engine.stats()
    assert (stats["running"], stats["waiting"]) == (0, 0)
    assert stats["step_allocations"] == 0


def test_functions_of_other_shapes_are_refused(llm):
    with pytest.raises(RequestError, match=r"logits_processors\[0\]: expected f\(output_ids"):
        llm.generate("abc", params(lambda logits: None))


def test_a_function_may_submit_and_must_not_wait(llm):
    later = []

    def ask(output_ids, logits):
        if not output_ids:
            later.append(llm.submit("cab", params(max_tokens=3)))
        else:
            llm.generate("cab")

    with pytest.raises(RequestError, match="cannot wait"):
        llm.generate("abc", params(ask))
    assert len(only([later[0].result(30)]).token_ids) == 3


def test_no_model_can_be_waited_for(folder, llm):
    """Models share a backend, whose processors the step holds while it calls."""
    again = params(max_tokens=3)
    with LLM(str(folder)) as other:
        stream = other.generate("cab", again, stream=True)
        waits = {
            "generate": lambda: other.generate("cab", again),
            "next": lambda: next(stream),
            "result": lambda: other.submit("cab", again).result(),
            "logits": lambda: other.logits([1, 5]),
            "sleep": other.sleep,
            "load": lambda: LLM(str(folder)),
            "loop": lambda: asyncio.run(anext(other.agenerate("cab", again))),
        }
        for wait in waits.values():
            running = llm.submit("abc", params(lambda *_, wait=wait: wait()))
            with pytest.raises(RequestError, match="a logits processor cannot wait for a model"):
                running.result(30)
        assert sum(len(only([chunk]).token_ids) for chunk in stream) == 3
        later = []
        ask = params(lambda ids, logits: later.append(other.submit("cab", again)), max_tokens=1)
        llm.submit("abc", ask).result(30)
        assert len(only([later[0].result(30)]).token_ids) == 3
        closing = params(lambda ids, logits: other.close(), max_tokens=1)
        assert only([llm.submit("abc", closing).result(30)]).finish_reason == "length"
    assert bits(llm.generate("abc", again)[0]) == bits(llm.generate("abc", again)[0])


def test_an_error_that_cannot_be_shown(llm):
    class Mute(Exception):
        def __repr__(self):
            raise ValueError("no words")

    def mute(output_ids, logits):
        raise Mute

    with pytest.raises(RequestError, match=r"logits_processors\[0\]: an exception of type Mute"):
        llm.submit("abc", params(mute)).result(30)


@pytest.mark.torch
def test_torch_changes_logits_without_a_copy(llm):
    torch = pytest.importorskip("torch")

    def with_torch(output_ids, logits):
        tensor = torch.from_dlpack(logits)
        assert tensor.data_ptr() == logits.ctypes.data
        tensor[:] = -torch.inf
        tensor[LETTERS[2]] = 1.0

    def gives_torch(output_ids, logits):
        return torch.from_dlpack(logits) + 0.0

    made = only(llm.generate("abc", params(with_torch, gives_torch))).token_ids
    assert made == [LETTERS[2]] * 20
