"""Every family row through the C core: against transformers, and bit for bit across chunk sizes.

The checkpoints are random and tiny, with ugly shapes on purpose (tests/tiny.py). The same rows run
through the NumPy specification in test_families.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from llmaccel import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, logprobs=0, detokenize=False)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def checkpoint(request, tmp_path_factory):
    """A folder with config.json and weights of one family."""
    folder = tmp_path_factory.mktemp("model") / request.param
    tiny.make_checkpoint(request.param, folder, seed=7)
    return folder


def prompt_ids(llm: LLM, length: int = 45) -> list[int]:
    vocab = llm.report()["model"]["n_vocab"]
    return np.random.default_rng(5).integers(0, vocab, length).tolist()


def open_llm(folder, **options) -> LLM:
    return LLM(str(folder), dtype="float32", max_num_seqs=4, **options)


@pytest.mark.torch
def test_logits_equal_transformers(checkpoint):
    with open_llm(checkpoint) as llm:
        ids = prompt_ids(llm)
        ours = np.asarray(llm.logits(ids))
    theirs = tiny.hf_logits(checkpoint, ids)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2e-4


@pytest.mark.torch
def test_greedy_tokens_equal_transformers(checkpoint):
    with open_llm(checkpoint) as llm:
        ids = prompt_ids(llm, 9)
        out = llm.generate({"prompt_token_ids": ids}, GREEDY)[0].outputs[0]
    assert out.token_ids == tiny.hf_greedy(checkpoint, ids, 64)


def test_chunks_give_the_same_bits(checkpoint):
    seen = []
    for budget in (512, 7, 1):
        with open_llm(checkpoint, max_num_batched_tokens=budget) as llm:
            ids = prompt_ids(llm, 75)  # more than one page
            out = llm.generate({"prompt_token_ids": ids}, GREEDY)[0].outputs[0]
            logits = np.asarray(llm.logits(ids))
            seen.append((out.token_ids, out.logprob_array.tobytes(), logits.tobytes()))
    assert seen[0] == seen[1]
    assert seen[0] == seen[2]


def test_isas_agree(checkpoint):
    """Bits differ between instruction sets, values do not."""
    from llmaccel import _core

    reference = None
    for isa in _core.kernel_isas():
        with open_llm(checkpoint, isa=isa) as llm:
            logits = np.asarray(llm.logits(prompt_ids(llm, 20))).copy()
        if reference is None:
            reference = logits
        assert np.abs(logits - reference).max() <= 1e-4


def test_plan_is_what_is_used(checkpoint):
    """The plan made from headers equals what the loaded model and its engine hold."""
    with open_llm(checkpoint) as llm:
        plan, report = llm.plan(), llm.report()
        assert report["memory"]["weight_bytes"] == plan.weights
        assert report["stats"]["workspace_bytes"] == plan.workspace
        assert report["memory"]["rope_bytes"] == plan.rope
