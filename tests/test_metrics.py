"""Metrics and profiles: what they count is what happened."""

from __future__ import annotations

import json

import letters
import pytest
import tiny
from letters import COMMON, GREEDY

from llmaccel import LLM, BeamSearchParams, ConfigError, LLMAccelError, RequestError, SamplingParams
from llmaccel.metrics import Counter, Gauge, Histogram, Recorder, Tally, Vector
from llmaccel.request import EVENT_FINISH, EVENT_TOKEN, Request

# features.md a.7, as far as what they count is here
NAMES = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions"),
    *("prompt_tokens", "generation_tokens", "request_success", "request_prompt_tokens"),
    *("request_generation_tokens", "iteration_tokens_total", "request_params_n"),
    *("request_params_max_tokens", "time_to_first_token_seconds", "inter_token_latency_seconds"),
    *("request_time_per_output_token_seconds", "e2e_request_latency_seconds"),
    *("request_queue_time_seconds", "request_inference_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds", "cache_config_info"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"))


def table(llm: LLM) -> dict[str, object]:
    return {
        m.name.removeprefix("vllm:") + m.labels.get("finished_reason", ""): m
        for m in llm.get_metrics()
    }


def test_metrics_of_requests(folder):
    with LLM(folder) as llm:
        empty = table(llm)
        assert empty["time_to_first_token_seconds"].count == 0
        llm.generate(["abc", "d"], GREEDY)
        llm.generate("abc", SamplingParams(n=3, max_tokens=5, **COMMON))
        ends = SamplingParams(max_tokens=4, logit_bias={2: 100.0})
        llm.generate("abc", ends)
        found = llm.get_metrics()
        m = table(llm)
    assert {one.name.removeprefix("vllm:") for one in found if one.name.startswith("v")} == NAMES
    assert all(isinstance(one, (Counter, Gauge, Histogram, Vector)) for one in found)
    assert all(one.labels["model_name"] == str(folder) for one in found)
    assert m["prompt_tokens"].value == 4 + 2 + (3 + 3) + 4
    assert m["generation_tokens"].value == 40 + 15 + 1
    assert m["request_successlength"].value == 3
    assert m["request_successstop"].value == 1
    assert m["request_successabort"].value == 0
    assert (m["num_requests_running"].value, m["num_requests_waiting"].value) == (0, 0)
    assert m["kv_cache_usage_perc"].value == 0.0
    assert m["cache_config_info"].labels["block_size"] == "64"
    assert m["time_to_first_token_seconds"].count == 4
    assert m["inter_token_latency_seconds"].count == 2 * 19 + 5  # the leader draws a step early
    assert m["e2e_request_latency_seconds"].count == 4
    assert m["request_generation_tokens"].sum == 40 + 15 + 1
    assert m["request_params_n"].buckets == {
        "1.0": 3,
        "2.0": 3,
        "5.0": 4,
        "10.0": 4,
        "20.0": 4,
        "+Inf": 4,
    }
    assert m["iteration_tokens_total"].sum == m["prompt_tokens"].value + 56 - 6  # last not fed
    for name in ("queue", "prefill", "decode", "inference"):
        histogram = m[f"request_{name}_time_seconds"]
        assert histogram.count == histogram.buckets["+Inf"] == 4
        assert 0.0 <= histogram.sum <= m["e2e_request_latency_seconds"].sum


def test_metrics_of_a_sleeping_model(folder):
    with LLM(folder) as llm:
        llm.generate("abc", GREEDY)
        llm.sleep()
        m = table(llm)
        assert m["kv_cache_usage_perc"].value == 0.0
        assert m["generation_tokens"].value == 20


def test_what_draws_nothing_and_what_fails(folder):
    def fail(output_ids, logits):
        raise ValueError

    def nothing_left(output_ids, logits):
        logits[:] = -float("inf")

    with LLM(folder) as llm:
        llm.embed("abc")
        llm.loglikelihood(["ab", "ab"], ["c", "d"])
        m = table(llm)
        assert m["request_params_n"].count == m["request_params_max_tokens"].count == 0
        assert m["request_prompt_tokens"].count == 2
        llm.beam_search("abc", BeamSearchParams(beam_width=2, max_tokens=3, ignore_eos=True))
        m = table(llm)
        assert (m["request_params_n"].sum, m["request_params_max_tokens"].sum) == (2, 3)
        for params in (
            SamplingParams(max_tokens=3, logits_processors=[fail]),
            SamplingParams(max_tokens=3, logits_processors=[nothing_left]),
        ):
            with pytest.raises(RequestError):
                llm.generate("abc", params)
        m = table(llm)
        assert m["request_successfailed"].value == 1
        assert m["request_successempty"].value == 1
        assert m["num_requests_running"].value == 0


def test_a_tally_counts_up_to_its_bounds():
    tally = Tally((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        tally.add(value)
    metric = tally.metric("x", {})
    assert (metric.count, metric.sum) == (4, 6.0)
    assert metric.buckets == {"1.0": 2, "2.0": 3, "+Inf": 4}


def test_times_between_tokens_are_those_between_steps():
    recorder = Recorder(100)
    request = Request("r", None, [1], SamplingParams(n=2, max_tokens=3), n_branches=2)
    request.arrival, request.engine_id = 10.0, 7
    for i, now in enumerate((12.0, 13.0, 15.0)):
        for branch in range(2):
            request.on_event((7, branch, EVENT_TOKEN, i, 5, 0, 0.0, 0, None, None, 11.0), now)
            recorder.on_token(request, now)
    for branch in range(2):
        request.on_event((7, branch, EVENT_FINISH, 3, -1, 1, 0.0, 0, None, None, 11.0), 15.0)
    recorder.on_done(request)
    sums = {m.name.removeprefix("vllm:"): (m.count, m.sum) for m in recorder.histograms({})}
    assert sums["time_to_first_token_seconds"] == (1, 2.0)
    assert sums["inter_token_latency_seconds"] == (2, 3.0)
    assert sums["request_queue_time_seconds"] == (1, 1.0)
    assert sums["request_prefill_time_seconds"] == (1, 1.0)
    assert sums["request_decode_time_seconds"] == (1, 3.0)
    assert sums["request_inference_time_seconds"] == (1, 4.0)
    assert sums["e2e_request_latency_seconds"] == (1, 5.0)
    assert sums["request_time_per_output_token_seconds"] == (1, 3.0 / 5)


# ---- profiles ------------------------------------------------------------------------------------


def test_a_profile_is_a_chrome_trace_of_steps_and_requests(folder, tmp_path):
    with LLM(folder) as llm:
        llm.generate("abc", GREEDY)
        llm.start_profile(tmp_path / "run.json")
        with pytest.raises(LLMAccelError, match=r"a profile runs already, for .*run\.json"):
            llm.start_profile(tmp_path)
        llm.generate("abc", GREEDY)
        path = llm.stop_profile()
        llm.generate("abc", GREEDY)
        with pytest.raises(LLMAccelError, match="no profile runs"):
            llm.stop_profile()
        with pytest.raises(ConfigError, match=r"path='/nowhere/x.json': no such folder"):
            llm.start_profile("/nowhere/x.json")
        llm.start_profile(tmp_path)
        assert llm.stop_profile().parent == tmp_path
    assert path == tmp_path / "run.json"
    events = json.loads(path.read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    steps = [e for e in slices if e["name"] == "step" and e["args"]["tokens"] > 0]
    assert [e["args"]["tokens"] for e in steps] == [4] + [1] * 19
    forwards = [e for e in slices if e["name"] == "forward"]
    for step, forward in zip(steps, forwards, strict=True):
        assert step["ts"] <= forward["ts"]
        assert forward["ts"] + forward["dur"] <= step["ts"] + step["dur"] + 1.0
        assert forward["dur"] > 0.0
    phases = [e for e in slices if e["pid"] == 2]
    assert [e["name"] for e in phases] == ["queue", "prefill", "decode"]
    assert phases[0]["args"]["output_tokens"] == 20
    counts = [e["args"] for e in events if e["ph"] == "C"]
    assert max(count["pages_used"] for count in counts) == 1
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == {"engine", "requests"}


def test_a_profile_that_cannot_be_written_goes_on(folder, tmp_path):
    (tmp_path / "runs").mkdir()
    with LLM(folder) as llm:
        llm.start_profile(tmp_path / "runs" / "a.json")
        llm.generate("abc", GREEDY)
        (tmp_path / "runs").rename(tmp_path / "away")
        with pytest.raises(FileNotFoundError):
            llm.stop_profile()
        (tmp_path / "away").rename(tmp_path / "runs")
        events = json.loads(llm.stop_profile().read_text())["traceEvents"]
    assert [e["name"] for e in events if e.get("pid") == 2 and e["ph"] == "X"] == [
        "queue",
        "prefill",
        "decode",
    ]


def test_experts_are_counted_by_layer(tmp_path):
    folder = tiny.make_checkpoint("qwen3_moe", tmp_path)
    with LLM(folder) as llm:
        llm.generate([[5, 6, 7]], SamplingParams(max_tokens=4, ignore_eos=True))
        found = [one for one in llm.get_metrics() if isinstance(one, Vector)]
        load = llm.expert_load()
    assert {one.name for one in found} == {"llmaccel:expert_tokens"}
    routed = [i for i, counts in enumerate(load) if counts.any()]
    assert [one.labels["layer"] for one in found] == [str(i) for i in routed] != []
    for one in found:
        assert len(one.values) == 7
        assert sum(one.values) == (3 + 3) * 3  # tokens fed, experts of each
        assert one.values == load[int(one.labels["layer"])].tolist()
