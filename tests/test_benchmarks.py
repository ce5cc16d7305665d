"""The benchmarks' own parts that can be wrong without anybody noticing: models, pairing, verdicts.

No speed is measured here.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from llmaccel import LLM, SamplingParams, UnsupportedError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@pytest.fixture
def models(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import models

    monkeypatch.delitem(models.SHAPES["llama-3.2-1b"], "head_dim")
    for name in list(models.SHAPES):
        few = EXPERTS if "num_experts" in models.SHAPES[name] else {}
        monkeypatch.setitem(models.SHAPES, name, {**models.SHAPES[name], **SMALL, **few})
    monkeypatch.setattr(models, "CACHE", tmp_path)
    monkeypatch.setattr(models, "SPREAD", 0.3)  # with small weights attention hardly counts
    return models


@pytest.fixture
def compare(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import compare
    import results

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "commit", lambda: "abc")
    return compare


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "llama-3.2-1b", "qwen3-moe-1.6b"])
def test_checkpoint_and_gguf_are_the_same_model(models, name):
    """Names, the order of rotated rows and the vocabulary: both files give the same scores."""
    pytest.importorskip("gguf")
    ids = np.random.default_rng(0).integers(0, 400, 40).tolist()
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, logprobs=0)
    scores, words = [], []
    for path in (models.checkpoint(name), models.gguf_file(name, "bf16")):
        with LLM(path, dtype="float32") as llm:
            words.append(llm.get_tokenizer().encode("a b, cd"))
            (out,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
            scores.append([out.prompt_logprobs[i][t].logprob for i, t in enumerate(ids) if i])
    # GGUF's llama rotates other pairs of the same head: the sums of q.k come in another order
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
    assert words[0] == words[1]


def test_smollm2_unpacked_is_the_same_model(models, smollm2_path):
    pytest.importorskip("gguf")
    ids = np.random.default_rng(0).integers(0, 49152, 40).tolist()
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    scores = []
    for path in (smollm2_path, models.unpacked_smollm2(str(smollm2_path))):
        with LLM(path, dtype="float32", max_model_len=128) as llm:
            (out,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
            scores.append([out.prompt_logprobs[i][t].logprob for i, t in enumerate(ids) if i])
    np.testing.assert_allclose(scores[1], scores[0], atol=0.2)  # weights were rounded to bf16
    assert np.mean(np.abs(np.subtract(*scores))) < 0.03


def test_vocabulary_has_the_size_that_is_asked(models):
    for size in (300, 151936):
        tokens, merges = models.vocabulary(size)
        assert len(tokens) == len(set(tokens)) == size
        assert len(merges) == size - 257
        known = set(tokens)
        assert all({a, b, a + b} <= known for a, b in merges)


def test_shares_count_every_matrix(models):
    config = models.config_of("llama-3.2-1b")
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    assert models.matrix_weights(config) == 2 * layer
    assert models.token_operations("llama-3.2-1b") == 4 * layer
    assert models.behind_operations("llama-3.2-1b") == 2 * (64 * 64 + 3 * 64 * 96)
    qkv, o = 64 * (4 + 2 * 2) * 64, 4 * 64 * 64  # heads of 64 here
    layer = qkv + o + 4 * 64 + 2 * 3 * 64 * 64  # the router, two of four experts
    assert models.matrix_weights(models.config_of("qwen3-moe-1.6b")) == 2 * layer


def test_peaks_leave_out_what_the_processor_lacks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import roofline

    class Machine:
        def probe_peak(self, what: str) -> float:
            if what == "bf16":
                raise UnsupportedError("none here")
            return 7.0

    assert roofline.peaks(Machine()) == {"f32": 7.0, "int8": 7.0}

    class Broken:
        def probe_peak(self, what: str) -> float:
            raise RuntimeError("it has no business here")

    with pytest.raises(RuntimeError):
        roofline.peaks(Broken())


def turn(cell, compare, number: int, ours: float, theirs: float) -> dict:
    probe = {"read": 40.0, "f32": 200.0, "bf16": 400.0, "int8": 800.0}
    row = {name: getattr(cell, name) for name in compare.Cell.__dataclass_fields__}
    row |= {"turn": number, "ours": ours, "theirs": theirs, "before": probe, "after": probe}
    return {**row, "token_bytes": 1e9, "commit": "abc"}


@pytest.mark.parametrize(("given", "folder"), [(None, ".cache/results"), ("1", "results")])
def test_a_run_changes_the_record_only_on_demand(monkeypatch, given, folder):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delenv("LLMACCEL_RECORD", raising=False)
    if given is not None:
        monkeypatch.setenv("LLMACCEL_RECORD", given)
    assert runpy.run_path(str(BENCHMARKS / "results.py"))["FOLDER"] == BENCHMARKS / folder


def test_quality_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import quality

    with pytest.raises(SystemExit, match=r"--shared .*golden_nll\.json.*does not come with"):
        quality.token_windows(tmp_path, "x.gguf", 3)


def quant_row(findings, model: str, gains: dict[tuple[int, int], tuple[float, float]]) -> dict:
    """A row of results: of every form the same gains (decode, prefill)."""
    points = [
        {"requests": r, "prompt": p, "decode_gain": gains[r, p][0], "prefill_gain": gains[r, p][1]}
        for r, p in findings.POINTS
    ]
    return {"model": model, "forms": {form: {"points": points} for form in findings.FORMS}}


def test_verdicts_on_quantized_weights(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import quant_findings as findings

    seconds = {"bf16": {(1, 32): [4.0, 9.0, 6.0]}, "int8": {(1, 32): [2.0, 3.0, 6.0]}}
    assert findings.gains_of(seconds, "int8") == {(1, 32): 2.0}  # of rounds, not of medians
    points = findings.POINTS
    like = dict(zip(points, [(2, 1.1), (1.8, 0.9), (1.5, 1), (1.9, 1), (1.2, 1)], strict=True))
    unlike = dict(zip(points, [(x, 1.1) for x in (0.9, 1.0, 1.1, 1.0, 1.3)], strict=True))
    for model, gains, holds in (("a", like, True), ("b", unlike, False)):
        said = findings.verdicts([quant_row(findings, model, gains)])
        assert len(said) == 4 * len(findings.WEIGHT_ONLY)
        assert [right for _, _, right in said] == [holds] * len(said)
    rows = [quant_row(findings, "a", unlike), quant_row(findings, "b", like)]
    for given, holds in ((rows, True), (rows[::-1], False)):
        by_size = [v for v in findings.verdicts(given) if "larger" in v[0]]
        assert [right for _, _, right in by_size] == [holds] * len(findings.WEIGHT_ONLY)


def test_harness_tasks_and_what_is_kept(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import harness

    lines = [line for q in range(2) for line in (f"context {q}", str(q), "a", "b", "c", "d")]
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(lines))
    wanted = [{"ctx": f"context {q}", "endings": list("abcd"), "label": q} for q in range(2)]
    assert harness._six_lines(path, 2) == wanted
    with pytest.raises(SystemExit, match="fewer than 3"):
        harness._six_lines(path, 3)
    assert harness.largest_difference([[1.0, 2.0], [3.0]], [[1.0, 2.5], [2.9]]) == 0.5
    made = []
    for _ in range(2):
        done = harness.kept(tmp_path / "runs" / "one.json", lambda: made.append(1) or {"x": 1.5})
        assert done == {"x": 1.5}
    assert made == [1]


def test_turns_are_paired_and_resumed(compare, tmp_path):
    cell = compare.Cell("b", "qwen2.5-0.5b", "llama.cpp", "q8_0", "int8", "decode")
    rows = [turn(cell, compare, i, 10.0 * 2**i, 5.0 * 2**i) for i in range(3)]
    other = {**turn(cell, compare, 3, 1.0, 9.0), "commit": "older"}
    (tmp_path / "compare.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, other]))
    assert compare.done_turns("abc") == {cell: rows}
    (found,) = compare.summaries("abc")
    assert (found["ratio"], found["low"], found["high"], found["n"]) == (2.0, 2.0, 2.0, 3)
    # 40 GB/s over 1 GB a token is 40 tokens a second, against the peer's 10
    assert found["bound"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("ratio", "bound", "said"),
    [
        (1.6, 4.0, "pass"),
        (1.4, 4.0, "MISS"),
        (1.4, 1.5, "pass"),  # 0.92 of the bound is 1.38
        (1.37, 1.5, "MISS"),
    ],
)
def test_a_line_asks_for_no_more_than_the_machine_gives(compare, ratio, bound, said):
    import compare_report

    (line,) = [
        line
        for line in compare_report.LINES
        if line.metric == "decode" and line.rivals == (("llama.cpp", "q8_0"),)
    ]
    cell = {"table": "b", "shape": "s", "peer": "llama.cpp", "format": "q8_0", "recipe": "int8"}
    cell |= {"metric": "decode", "ratio": ratio, "bound": bound}
    assert compare_report.verdict(line, "s", [cell]).strip().startswith(said)
    slower = {**cell, "recipe": "w8", "ratio": 0.5}
    assert compare_report.verdict(line, "s", [slower, cell]).strip().startswith(said)
    assert "not measured" in compare_report.verdict(line, "t", [cell])


def test_the_best_peer_is_the_one_to_beat(compare):
    import compare_report

    (line,) = [
        line for line in compare_report.LINES if line.metric == "prefill" and line.name == "bf16"
    ]
    cell = {"table": "b", "shape": "s", "peer": "llama.cpp", "format": "bf16", "recipe": "none"}
    cell |= {"metric": "prefill", "ratio": 2.0, "bound": None}
    text = compare_report.verdict(line, "s", [cell, {**cell, "peer": "vllm", "ratio": 1.05}])
    for part in ("MISS", "1.05", "not measured: transformers bf16"):
        assert part in text


DRIVER = """
import os
print('{"ready": 1, "pid": %d}' % os.getpid(), flush=True)
for line in iter(input, None):
    print('{"metric": "%s", "value": 2.5}' % line, flush=True)
"""


def test_a_signal_while_engines_load_ends_them_and_the_run(compare, monkeypatch):
    """It is no failure of an engine, and what is loaded by then is stopped: nobody else ends it."""
    loaded = []

    def ours(cell, gguf):
        (engine,) = loaded
        assert engine.reading("decode") == 2.5
        sys.exit(1)  # as the handler of SIGTERM does

    class Engine(compare.Engine):
        def __init__(self, command):
            super().__init__(command)
            loaded.append(self)

    monkeypatch.setattr(compare, "Engine", Engine)
    monkeypatch.setattr(compare, "peer_command", lambda *_: (sys.executable, "-c", DRIVER))
    monkeypatch.setattr(compare, "our_command", ours)
    cell = compare.Cell("b", "qwen2.5-0.5b", "llama.cpp", "q8_0", "int8", "decode")
    with pytest.raises(SystemExit):
        compare.Session([cell], "")
    (engine,) = loaded
    with pytest.raises(ProcessLookupError):
        os.kill(engine.about["pid"], 0)


def test_signals_come_before_the_driver_is_reaped(compare, monkeypatch):
    """Afterwards the number of its group may be another's."""
    seen = []
    send = os.killpg

    def killpg(group, number):
        seen.append((group, os.waitid(os.P_PID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)))
        send(group, number)

    monkeypatch.setattr(compare.os, "killpg", killpg)
    engine = compare.Engine((sys.executable, "-c", DRIVER))
    engine.close()
    assert {group for group, _ in seen} == {engine.about["pid"]}
    assert [ended is not None for _, ended in seen] == [False, False, True]
    with pytest.raises(RuntimeError, match="no such model"):
        compare.Engine((sys.executable, "-c", "raise SystemExit('no such model')"))
