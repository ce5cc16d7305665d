"""Outputs and the text of a request, without an engine: lazy logprobs, stop strings, chunks."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import struct
import threading

import numpy as np
import pytest

from llmaccel import Tensor
from llmaccel.outputs import (
    CompletionOutput,
    Logprob,
    LogprobList,
    RequestOutput,
    Scores,
    Timings,
)
from llmaccel.params import RequestOutputKind, SamplingParams
from llmaccel.request import EVENT_FINISH, EVENT_PROMPT, EVENT_TOKEN, Request, TextStream

STOP, LENGTH = 0, 1


class Pieces:
    """A decoder whose token i gives the i-th piece."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, ids):
        return "".join(self.pieces[i] for i in ids)

    def finish(self):
        return self.rest


def packed(ids, values):
    return (struct.pack(f"{len(ids)}i", *ids), struct.pack(f"{len(values)}f", *values))


def test_logprob_lists_travel():
    """Between processes, whatever the tokenizer behind them holds."""
    lock = threading.Lock()
    scores = Scores()
    scores.add(7, -2.0, 3, packed([5, 7], [-0.5, -2.0]))
    rows = LogprobList(scores, lambda token: f"<{token}>" if lock else "", leading=1)
    for twin in (pickle.loads(pickle.dumps(rows)), copy.deepcopy(rows)):
        assert len(twin) == 2
        assert twin[0] is None
        assert twin[1] == {7: Logprob(-2.0, 3, "<7>"), 5: Logprob(-0.5, 1, "<5>")}
    assert rows[1] == {7: Logprob(-2.0, 3, "<7>"), 5: Logprob(-0.5, 1, "<5>")}


def test_logprob_lists_are_made_when_looked_at():
    calls = []
    scores = Scores()
    scores.add(7, -2.0, 3, packed([5, 7], [-0.5, -2.0]))
    scores.add(9, -1.0, 0, None)
    rows = LogprobList(scores, lambda token: calls.append(token) or f"<{token}>")
    assert len(rows) == 2
    assert calls == []
    assert list(rows[0]) == [7, 5]  # the sampled one first
    assert rows[0][5] == Logprob(-0.5, 1, "<5>")
    assert rows[0][7] == Logprob(-2.0, 3, "<7>")
    assert rows[0] is rows[0]
    assert rows[-1] == {9: Logprob(-1.0, None, "<9>")}
    assert rows[0:1] == [rows[0]]
    assert list(rows) == [rows[0], rows[1]]
    with pytest.raises(IndexError):
        rows[2]
    shifted = LogprobList(scores, None, leading=1)
    assert len(shifted) == 3
    assert shifted[0] is None
    assert shifted[1][7].decoded_token is None


def test_completion_output_and_timings():
    out = CompletionOutput(0, "ab", np.array([1, 2], np.int32))
    assert out.token_ids == [1, 2]
    assert not out.finished()
    assert "ab" in repr(out)
    t = Timings(arrival=1.0, scheduled=1.125, first_token=1.5, finished=3.5, n_tokens=5)
    assert (t.queue, t.prefill) == (0.125, 0.375)
    assert (t.ttft, t.decode, t.total, t.per_token) == (0.5, 2.0, 2.5, 0.5)
    waiting = Timings(arrival=1.0)
    assert waiting.queue == waiting.prefill == waiting.ttft == waiting.per_token == 0.0


def test_outputs_become_dicts_and_json():
    ids = np.array([7, 9], np.int32)
    one = CompletionOutput(0, "ab", ids, finish_reason="length")
    assert [field.name for field in dataclasses.fields(one)][:3] == ["index", "text", "token_ids"]
    out = RequestOutput("0", "x", [1, 2], [one], True)
    found = json.loads(json.dumps(dataclasses.asdict(out)))
    assert found["outputs"][0]["token_ids"] == [7, 9]
    assert found["outputs"][0]["finish_reason"] == "length"
    assert found == out.to_dict()
    other = dataclasses.replace(one, text="abc")
    assert (other.text, other.token_ids, other.finish_reason) == ("abc", [7, 9], "length")
    one.token_ids = [3]
    assert (one.token_ids, one.token_ids_array.tolist()) == ([3], [3])
    assert other.token_ids == pickle.loads(pickle.dumps(other)).token_ids == [7, 9]


def test_dicts_hold_scores_and_tensors_as_lists():
    scores = Scores()
    scores.add(7, -2.0, 3, packed([5, 7], [-0.5, -2.0]))
    logits = Tensor(np.array([[0.5, 1.5]], np.float32))
    rows = LogprobList(scores, None, leading=1)
    values = np.array([-2.0], np.float32)
    one = CompletionOutput(
        0, "a", [7], -2.0, rows, logprob_array=values, logits=logits, hidden_states=[logits]
    )
    found = json.loads(json.dumps(RequestOutput("0", "x", [1], [one], True).to_dict()))
    part = found["outputs"][0]
    five, seven = (
        {"logprob": x, "rank": r, "decoded_token": None} for x, r in [(-0.5, 1), (-2, 3)]
    )
    assert part["logprobs"] == [None, {"7": seven, "5": five}]
    assert part["logprob_array"] == [-2.0]
    assert (part["logits"], part["hidden_states"]) == ([[0.5, 1.5]], [[[0.5, 1.5]]])
    assert found["timings"]["arrival"] == 0.0


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("cut", range(1, 6))
def test_stop_across_token_borders(cut, include):
    """The stop string is found however the tokens cut it, and never shown before that is known."""
    text = "hello STOP world"
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    params = SamplingParams(stop=["STOP"], include_stop_str_in_output=include)
    stream = TextStream(Pieces(pieces), params)
    shown = ""
    for i in range(len(pieces)):
        stream.push([i])
        if stream.stop is not None:
            break
        visible = stream.text[: max(0, len(stream.text) - stream.hold)]
        assert visible.startswith(shown)
        shown = visible
        assert include or "hello STOP".startswith(shown)
        assert include or not shown.endswith("STOP")
    assert stream.stop == "STOP"
    assert stream.text == ("hello STOP" if include else "hello ")
    assert stream.text.startswith(shown) or include


def test_the_earliest_stop_wins_and_a_flush_may_complete_one():
    stream = TextStream(Pieces(["abcabc"]), SamplingParams(stop=["c", "bc"]))
    stream.push([0])
    assert (stream.stop, stream.text) == ("bc", "a")
    stream = TextStream(Pieces(["ab"], rest="�"), SamplingParams(stop=["b�"]))
    stream.push([0])
    assert stream.stop is None
    stream.finish()
    assert (stream.stop, stream.text) == ("b�", "a")


def test_no_look_before_min_tokens():
    stream = TextStream(Pieces(["x", "y"]), SamplingParams(stop="x"))
    stream.push([0], look=False)
    stream.push([1])
    assert stream.stop is None
    assert stream.text == "xy"


def event(request, kind, token=-1, **given):
    f = {"branch": 0, "position": 0, "reason": 0, "logprob": float("nan"), "rank": 0, **given}
    fields = (1, f["branch"], kind, f["position"], token, f["reason"], f["logprob"], f["rank"])
    return request.on_event((*fields, None, None, 1.5), 2.0)


def request_of(pieces, **params):
    n = params.pop("n", 1)
    request = Request("r", "p", [1], SamplingParams(n=n, **params), n_branches=n)
    for branch in request.branches:
        branch.text = TextStream(Pieces(pieces), request.params)
    return request


def test_deltas_add_up_and_end_once():
    request = request_of(["a", "b", "c"])
    chunks = []
    for token in range(3):
        event(request, EVENT_TOKEN, token)
        chunks.append(request.snapshot(RequestOutputKind.DELTA))
        assert request.snapshot(RequestOutputKind.DELTA) is None
    event(request, EVENT_FINISH, reason=LENGTH)
    chunks.append(request.snapshot(RequestOutputKind.DELTA))
    assert [c.finished for c in chunks] == [False, False, False, True]
    assert "".join(c.outputs[0].text for c in chunks) == "abc"
    assert [token for c in chunks for token in c.outputs[0].token_ids] == [0, 1, 2]
    assert chunks[-1].outputs[0].finish_reason == "length"
    assert request.output().outputs[0].text == "abc"
    assert request.output() is request.output()


def test_cumulative_and_final_kinds():
    request = request_of(["a", "b"])
    event(request, EVENT_TOKEN, 0)
    assert request.snapshot(RequestOutputKind.FINAL_ONLY) is None
    assert request.snapshot(RequestOutputKind.CUMULATIVE).outputs[0].text == "a"
    event(request, EVENT_TOKEN, 1)
    event(request, EVENT_FINISH, reason=LENGTH)
    assert request.snapshot(RequestOutputKind.CUMULATIVE).outputs[0].text == "ab"
    assert request.snapshot(RequestOutputKind.FINAL_ONLY).outputs[0].text == "ab"


def test_a_stop_string_ends_the_branch_at_once():
    request = request_of(["a", "b", "c"], stop="b")
    assert event(request, EVENT_TOKEN, 0) == -1
    assert event(request, EVENT_TOKEN, 1) == 0  # the branch to stop
    assert request.done
    assert event(request, EVENT_TOKEN, 2) == -1  # what the engine still said
    event(request, EVENT_FINISH, reason=2)
    out = request.output().outputs[0]
    assert (out.text, out.finish_reason, out.stop_reason) == ("a", "stop", "b")
    assert out.token_ids == [0, 1]
    assert request.ended


def test_stop_tokens_give_no_text_unless_asked():
    for include, text in ((False, "a"), (True, "ab")):
        request = request_of(["a", "b"], include_stop_str_in_output=include, stop_token_ids=[1])
        event(request, EVENT_TOKEN, 0)
        event(request, EVENT_TOKEN, 1)
        event(request, EVENT_FINISH, token=1, reason=STOP)
        out = request.output().outputs[0]
        assert (out.text, out.token_ids, out.stop_reason) == (text, [0, 1], 1)
    request = request_of(["a", "b"])
    request.own_stop_ids = frozenset([1])
    event(request, EVENT_TOKEN, 1)
    event(request, EVENT_FINISH, token=1, reason=STOP)
    assert request.output().outputs[0].stop_reason is None


def test_branches_are_told_apart_and_errors_are_raised():
    request = request_of(["a", "b"], n=2, logprobs=0)
    event(request, EVENT_TOKEN, 0, branch=0, logprob=-1.0, rank=1)
    event(request, EVENT_TOKEN, 1, branch=1, logprob=-2.0, rank=2)
    event(request, EVENT_FINISH, branch=1, reason=LENGTH)
    chunk = request.snapshot(RequestOutputKind.DELTA)
    assert [(o.index, o.text, o.finish_reason) for o in chunk.outputs] == [
        (0, "a", None),
        (1, "b", "length"),
    ]
    assert not chunk.finished
    event(request, EVENT_FINISH, branch=0, reason=3)
    outputs = request.output().outputs
    assert outputs[0].finish_reason == "timeout"
    assert outputs[1].cumulative_logprob == -2.0
    failed = request_of(["a"])
    failed.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        failed.snapshot(RequestOutputKind.DELTA)


def test_prompt_events_go_to_prompt_logprobs():
    request = Request("r", None, [5, 6], SamplingParams(prompt_logprobs=0))
    event(request, EVENT_PROMPT, 6, position=1, logprob=-3.0, rank=4)
    event(request, EVENT_TOKEN, 0)
    event(request, EVENT_FINISH, reason=LENGTH)
    out = request.output()
    assert out.prompt_logprobs[0] is None
    assert out.prompt_logprobs[1] == {6: Logprob(-3.0, 4, None)}
    assert out.outputs[0].logprobs is None
