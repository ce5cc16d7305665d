"""stories260K, real weights of a small model, through LLM: golden text, logits and perplexity.

Once from the Hugging Face folder that tiny.stories260k_folder makes, once from a GGUF file of the
same weights.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny
import tiny_gguf

from llmaccel import LLM, SamplingParams

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden(shared_data):
    return shared_data / "models" / "stories260K"


@pytest.fixture(scope="module")
def prompts(golden):
    with (golden / "golden_prompts.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def folder(golden, shared_data, tmp_path_factory):
    return tiny.stories260k_folder(shared_data.parent, tmp_path_factory.mktemp("stories") / "hf")


@pytest.fixture(scope="module", params=["folder", "gguf"])
def llm(request, folder):
    path = folder
    if request.param == "gguf":
        path = tiny_gguf.make_gguf("llama", folder, folder.parent / "f32.gguf")
    with LLM(path, dtype="float32", tokenizer=folder) as llm:
        yield llm


# ---- the golden files ----------------------------------------------------------------------------


def test_logits(golden, llm):
    expected = np.load(golden / "golden_logits.npz")
    count = sum(name.startswith("ids_") for name in expected)
    assert count >= 5
    for i in range(count):
        ours = np.asarray(llm.logits(expected[f"ids_{i}"]))
        assert ours.shape == expected[f"logits_{i}"].shape
        assert np.abs(ours - expected[f"logits_{i}"]).max() <= TOLERANCE


def test_greedy(prompts, llm):
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    for out, expected in zip(
        llm.generate([p["prompt"] for p in prompts[1:]], params), prompts[1:], strict=True
    ):
        assert out.prompt_token_ids == expected["ids"]
        assert out.outputs[0].token_ids == expected["greedy_ids"]
        assert (expected["prompt"] + out.outputs[0].text).startswith(expected["greedy_text"])


def test_greedy_text_of_llama2c(golden, prompts, llm):
    """200 steps from BOS, the upstream test's own expectation."""
    text = (golden / "expected_greedy_200.txt").read_bytes().decode().rstrip("\n")
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    out = llm.generate({"prompt_token_ids": prompts[0]["ids"]}, params)[0].outputs[0]
    assert out.token_ids[:100] == prompts[0]["greedy_ids"]
    assert out.text.lstrip(" ").startswith(text)
    assert len(out.text) - len(text) < 20  # the upstream loop counts BOS as a step


def test_perplexity(golden, llm, shared_data):
    expected = json.loads((golden / "golden_nll.json").read_text())
    with (shared_data / "texts" / "tinystories.jsonl").open() as lines:
        texts = [json.loads(line) for line, _ in zip(lines, expected["stories"])]  # noqa: B905
    assert len(texts) == len(expected["stories"])
    tokenizer = llm.get_tokenizer()
    stories = []
    for text in texts:
        text = text if isinstance(text, str) else text["text"]
        stories.append(tokenizer.encode(text.strip())[:512])
    assert [len(ids) for ids in stories] == [s["tokens"] for s in expected["stories"]]
    scores = llm.loglikelihood([ids[:1] for ids in stories], [ids[1:] for ids in stories])
    for (score, _), story in zip(scores, expected["stories"], strict=True):
        assert -score == pytest.approx(story["sum_nll"], rel=1e-5)
    total = sum(len(ids) - 1 for ids in stories)
    perplexity = math.exp(-math.fsum(score for score, _ in scores) / total)
    assert perplexity == pytest.approx(expected["perplexity"], rel=1e-5)
