"""Changes of weights beside calls of several requests, and beside logits processors."""

from __future__ import annotations

import threading
import time

import letters
import numpy as np
import pytest
import tiny
from letters import COMMON

from llmaccel import (
    LLM,
    BeamSearchParams,
    LLMAccelError,
    RequestError,
    SamplingParams,
    showing,
    weights,
)

IDS = [5, 17, 200, 3, 88, 41, 7, 9]
PROMPTS = [IDS[: 2 + i % 6] for i in range(7)]
GREEDY = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
BEAMS = BeamSearchParams(beam_width=2, max_tokens=2, ignore_eos=True)

CALLS = {
    "generate": lambda llm: [o.outputs[0].token_ids for o in llm.generate(PROMPTS, GREEDY)],
    "enqueue": lambda llm: (llm.enqueue(PROMPTS, GREEDY), llm.wait_for_completion())[0],
    "logits": lambda llm: [t.numpy().tobytes() for t in llm.logits(PROMPTS)],
    "loglikelihood": lambda llm: llm.loglikelihood(PROMPTS, [[5, 6]] * len(PROMPTS)),
    "perplexity": lambda llm: llm.perplexity(IDS * 12, stride=9),
    "embed": lambda llm: [o.outputs.embedding for o in llm.embed(PROMPTS)],
    "score": lambda llm: [o.outputs.score for o in llm.score(PROMPTS, PROMPTS)],
    "beam_search": lambda llm: [
        o.sequences[0].tokens for o in llm.beam_search(PROMPTS, BEAMS, concurrency_limit=1)
    ],
    "classify": lambda llm: [o.outputs.probs for o in llm.classify(PROMPTS)],
}


@pytest.mark.parametrize("name", CALLS)
def test_no_change_comes_between_the_parts_of_a_call(name, monkeypatch):
    """All that was submitted has ended when somebody wants to change weights: still the call is
    under way."""
    more = {"max_position_embeddings": 64}
    if name == "classify":
        more |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 3}
    config = tiny.config_of("llama", **more)
    new = tiny.arrays_of(config, 1)
    said = []
    with LLM.from_arrays(config, tiny.arrays_of(config, 0), max_num_seqs=2) as llm:
        want = CALLS[name](llm)
        driver, submit = llm.engine, llm.engine.submit

        def between(*args, **options):
            if driver.recorder is not None and len(said) < 6:
                while driver._requests:
                    time.sleep(0.0005)
                for change in (lambda: llm.update_weights(new), llm.sleep):
                    with pytest.raises(
                        LLMAccelError, match="made of several requests is under way"
                    ) as error:
                        change()
                    said.append(str(error.value))
            submit(*args, **options)

        monkeypatch.setattr(driver, "submit", between)
        got = CALLS[name](llm)
        monkeypatch.undo()
        assert len(said) >= 2
        assert name == "enqueue" or got == want
        llm.update_weights(new)  # and afterwards nothing is left of it
        llm.sleep()


def test_a_call_that_fails_leaves_nothing_under_way():
    config = tiny.config_of("llama")
    with LLM.from_arrays(config, tiny.arrays_of(config, 0)) as llm:
        for call in (
            lambda: llm.generate([[1, 2], [10**6]], GREEDY),
            lambda: llm.embed([[1, 2], [10**6]]),
            lambda: llm.beam_search([[1, 2], [10**6]], BEAMS),
        ):
            with pytest.raises(RequestError):
                call()
            llm.sleep()
            llm.wake_up()


def test_answers_of_many_calls_are_of_one_version():
    config = tiny.config_of("llama")
    old, new = tiny.arrays_of(config, 0), tiny.arrays_of(config, 1)
    with LLM.from_arrays(config, old, max_num_seqs=1) as llm:

        def embed():
            return [o.outputs.embedding for o in llm.embed(PROMPTS)]

        answers = [embed()]
        llm.update_weights(new)
        answers.append(embed())
        assert answers[0] != answers[1]
        got, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                got.append(embed())
                time.sleep(0.002)

        asker = threading.Thread(target=ask)
        asker.start()
        done = 0
        while done < 6:
            try:
                llm.update_weights((old, new)[done % 2])
                done += 1
            except LLMAccelError:
                time.sleep(0.0005)
        stop.set()
        asker.join()
        assert got
        assert all(one in answers for one in got)


# ---- logits processors ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"))


ASKED = {
    "submit": lambda llm: llm.submit("abc"),
    "stats": lambda llm: llm.report(),
    "metrics": lambda llm: llm.get_metrics(),
    "generate": lambda llm: llm.generate("abc"),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_processor_does_not_wait_for_weights_that_wait_for_it(name, folder, monkeypatch):
    """Packing takes the processors that models share, and the step that calls the processor has
    them: one of the two must not wait."""
    own = {"seed": 3, "max_tokens": 1, **COMMON}
    inside, calling, said = threading.Event(), threading.Event(), []
    set_slot = weights.set_slot

    def slow_set(*args):
        inside.set()
        assert calling.wait(30)
        set_slot(*args)

    def processor(ids, logits):
        calling.set()
        assert inside.wait(30)
        ASKED[name](other)

    monkeypatch.setattr(weights, "set_slot", slow_set)
    with LLM(str(folder)) as llm, LLM(str(folder)) as other:
        assert llm._backend is other._backend
        given = {"lm_head.weight": np.ones((letters.VOCAB, other._config.d_model), np.float32)}
        updater = threading.Thread(target=lambda: said.append(other.update_weights(given)))
        updater.start()
        running = llm.submit("abc", SamplingParams(logits_processors=[processor], **own))
        with pytest.raises(RequestError, match="logits processor cannot wait"):
            running.result(60)
        updater.join(60)
        assert said == [None]
        assert other.submit("abc", SamplingParams(**own)).result(30).outputs[0].token_ids


def test_others_wait_for_a_change(folder, monkeypatch):
    """A thread that may wait is served when the change is done; close() comes after it too."""
    inside, go = threading.Event(), threading.Event()
    set_slot = weights.set_slot

    def slow_set(*args):
        inside.set()
        assert go.wait(30)
        set_slot(*args)

    monkeypatch.setattr(weights, "set_slot", slow_set)
    with LLM(str(folder)) as llm:
        given = {"model.norm.weight": np.ones(llm._config.d_model, np.float32)}
        updater = threading.Thread(target=llm.update_weights, args=(given,))
        updater.start()
        assert inside.wait(30)
        done = []
        params = SamplingParams(seed=3, max_tokens=1, **COMMON)
        waiting = [
            threading.Thread(target=lambda: done.append(llm.report())),
            threading.Thread(target=lambda: done.append(llm.submit("abc", params).result(30))),
        ]
        for thread in waiting:
            thread.start()
        time.sleep(0.05)
        assert not done
        go.set()
        for thread in (*waiting, updater):
            thread.join(30)
        assert len(done) == 2
        inside.clear()
        go.clear()
        updater = threading.Thread(target=llm.update_weights, args=(given,))
        updater.start()
        assert inside.wait(30)
        closer = threading.Thread(target=llm.close)
        closer.start()
        time.sleep(0.05)
        assert closer.is_alive()
        go.set()
        updater.join(30)
        closer.join(30)
        assert not closer.is_alive()
        with pytest.raises(LLMAccelError, match="closed"):
            llm.report()


@pytest.mark.parametrize("steps", [True, False])
def test_copies_of_weights_stop_nobody(steps, folder, monkeypatch):
    """While one is made requests run, changes are refused and close() waits, with a thread that
    steps and without one."""
    inside, go, made = threading.Event(), threading.Event(), []
    copied = showing._copied

    def slow_copy(*args):
        inside.set()
        assert go.wait(30)
        return copied(*args)

    name = "model.layers.0.mlp.down_proj.weight"
    params = SamplingParams(seed=3, max_tokens=4, **COMMON)
    with LLM(str(folder), quantization="int8") as llm:
        want = llm.weight(name).numpy()
        given = {"model.norm.weight": np.ones(llm._config.d_model, np.float32)}
        monkeypatch.setattr(showing, "_copied", slow_copy)
        reader = threading.Thread(target=lambda: made.append(llm.weight(name).numpy()))
        reader.start()
        assert inside.wait(30)
        if steps:
            assert llm.submit("abc", params).result(30).outputs[0].token_ids
        for change in (lambda: llm.update_weights(given), llm.sleep):
            with pytest.raises(LLMAccelError, match=r": weight is under way, which copies; wait"):
                change()
        closer = threading.Thread(target=llm.close)
        closer.start()
        time.sleep(0.05)
        assert closer.is_alive()
        go.set()
        for thread in (reader, closer):
            thread.join(30)
            assert not thread.is_alive()
    np.testing.assert_array_equal(made, [want])
