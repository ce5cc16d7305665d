"""LLMACCEL_TRACE=1: one line an op, with a checksum that tells where two runs part."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tiny

from llmaccel import LLM, SamplingParams, _core, environment

LINE = re.compile(r"llmaccel: (\w+) (model|layer \d+) \[\d+, \d+\] [0-9a-f]{16}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_checkpoint("qwen2", tmp_path_factory.mktemp("trace") / "qwen2", seed=3)


def trace(folder, capfd, ids: list[int], more: int = 0, **options) -> list[str]:
    with LLM(str(folder), dtype="float32", **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, detokenize=False)
        llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        layers = llm.report()["model"]["n_layers"]
    lines = capfd.readouterr().err.splitlines()
    # two steps: embedding, five ops a layer and `more`, head
    assert len(lines) == 2 * (5 * layers + 2 + more)
    assert all(LINE.fullmatch(line) for line in lines)
    return lines


def test_trace_shows_where_runs_part(folder, capfd, monkeypatch):
    monkeypatch.setenv("LLMACCEL_TRACE", "1")
    first = trace(folder, capfd, [1, 2, 3])
    assert trace(folder, capfd, [1, 2, 3], threads=1) == first
    other = trace(folder, capfd, [1, 2, 4])
    assert other[0] != first[0]


def test_trace_of_parallel_blocks_waits_for_its_reader(tmp_path, capfd, monkeypatch):
    """There one op adds to what the trace of the op before it reads."""
    monkeypatch.setenv("LLMACCEL_TRACE", "1")
    # As many threads as asked for, even when the machine has fewer processors.
    monkeypatch.setattr(
        environment, "thread_count", lambda given: -given if given is not None else 0
    )
    folder = tiny.make_checkpoint("gpt_neox", tmp_path / "gpt_neox", seed=3)
    alone = trace(folder, capfd, [1, 2, 3], threads=1)
    for _ in range(20):
        assert trace(folder, capfd, [1, 2, 3], threads=3) == alone


def test_trace_of_experts_has_six_ops_a_layer(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("LLMACCEL_TRACE", "1")
    monkeypatch.setattr(
        environment, "thread_count", lambda given: -given if given is not None else 0
    )
    folder = tiny.make_checkpoint("qwen2_moe", tmp_path, seed=3)  # a dense layer between two
    for ids in ([1, 2, 3], list(range(30))):  # few rows take another way
        alone = trace(folder, capfd, ids, more=2, threads=1)
        assert [line.split()[1] for line in alone[1:7]] == [
            *("qkv", "attend", "o", "route", "moe_up", "moe_down")]  # fmt: skip
        for _ in range(5):
            assert trace(folder, capfd, ids, more=2, threads=3) == alone


def rows_of(line: str) -> tuple[str, str, int]:
    """Op, layer or "model", rows."""
    found = re.match(r"llmaccel: (\w+) (?:layer )?(\w+) \[(\d+),", line)
    return found[1], found[2], int(found[3])


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "qwen3_moe", "deepseek_v3"])
def test_the_last_layer_goes_on_with_wanted_rows(family, tmp_path, capfd, monkeypatch):
    """Steps of 8, 8 and 4 tokens; of the first two nothing is wanted once their keys are stored.
    With hidden states of the last layer all rows are, and what is drawn is the same."""
    folder = tiny.make_checkpoint(family, tmp_path, seed=3)
    ids = list(range(20))
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=5)
    with LLM(str(folder), dtype="float32", max_num_batched_tokens=8) as llm:
        whole = llm.logits(ids)
        last = str(llm.report()["model"]["n_layers"] - 1)
        shown = llm.submit({"prompt_token_ids": ids}, params, output_hidden_states=[-1]).result()
    with LLM(str(folder), dtype="float32", max_num_batched_tokens=64) as llm:
        asked = [llm.submit({"prompt_token_ids": ids}, params) for _ in range(2)]
        asked.append(llm.submit({"prompt_token_ids": ids}, params, output_hidden_states=[-1]))
        beside = [one.result().outputs[0].logprobs[0] for one in asked]
    monkeypatch.setenv("LLMACCEL_TRACE", "1")
    with LLM(str(folder), dtype="float32", max_num_batched_tokens=8) as llm:
        capfd.readouterr()
        out = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0]
        lines = [rows_of(line) for line in capfd.readouterr().err.splitlines()]
    own = [line for line in lines if line[1] == last]
    ends = [n for op, _, n in own if op in ("down", "moe_down")]
    assert ends == [1]
    assert [n for op, _, n in own if op == "attend"] == [4]
    assert [n for op, _, n in own if op in ("qkv", "q")][-1] == 4
    assert [n for op, layer, n in lines if op in ("down", "moe_down") and layer == "0"] == [8, 8, 4]
    first = out.outputs[0].logprobs[0]
    assert first == shown.outputs[0].logprobs[0]
    assert beside == [first] * 3
    row = np.asarray(whole)[-1].astype(np.float64)
    for token, entry in first.items():
        assert abs(entry.logprob - (row[token] - np.logaddexp.reduce(row))) < 1e-5


def test_trace_must_be_callable():
    with pytest.raises(TypeError, match="trace"):
        _core.Backend("cpu", None, 1, 7)
