"""Metrics of an engine under vLLM's names: counters, gauges and histograms, kept as it runs.

Owns what is counted beyond the engine's own statistics. Invariant: a token costs a comparison and
a bisection, nothing is allocated for it; the driver's thread alone writes, under the driver's lock,
and `collect` reads under the same. Times are seconds.

Called by driver.py (events) and measuring.py (reading).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmaccel.request import REASONS, Request

# Bounds of vLLM's histograms, so that dashboards made for them fit.
_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP_TOKENS = tuple(float(n) for n in (1, *(2**i for i in range(3, 15))))
_BRANCHES = (1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """name: vLLM's, with its "vllm:"; ours begin with "llmaccel:". labels: names to values."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A number that only grows."""

    value: int


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A number of now."""

    value: float


@dataclass(frozen=True, slots=True)
class Vector(Metric):
    """Counters that belong together, by index."""

    values: list[int]


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """count values, their sum, and how many were at most each bound ("+Inf": all)."""

    count: int
    sum: float
    buckets: dict[str, int]


class Tally:
    """A histogram in the making."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def metric(self, name: str, labels: Mapping[str, str]) -> Histogram:
        """What was counted so far."""
        buckets, below = {}, 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            buckets[bound] = below
        return Histogram(name, labels, below, self.sum, buckets)


def _one_two_five(most: int) -> list[float]:
    """1, 2, 5, 10, 20, ... up to `most`."""
    steps = (m * 10**e for e in range(len(str(most))) for m in (1, 2, 5))
    return [float(step) for step in steps if step <= most]


class Recorder:
    """Histograms of requests and steps. max_len: tokens of a sequence."""

    def __init__(self, max_len: int) -> None:
        lengths = _one_two_five(max_len)
        self.finished = dict.fromkeys(REASONS, 0)
        self._last_token: dict[int, float] = {}
        self._first = Tally(_TTFT)
        self._between = Tally(_PER_TOKEN)
        self._mean_between = Tally(_PER_TOKEN)
        self._whole = Tally(_REQUEST)
        self._queue = Tally(_REQUEST)
        self._inference = Tally(_REQUEST)
        self._prefill = Tally(_REQUEST)
        self._decode = Tally(_REQUEST)
        self._prompt = Tally(lengths)
        self._output = Tally(lengths)
        self._step = Tally(_STEP_TOKENS)
        self._n = Tally(_BRANCHES)
        self._max_tokens = Tally(lengths)

    def on_step(self, n_tokens: int) -> None:
        """A step has run that fed n_tokens; 0: it only told of something."""
        if n_tokens > 0:
            self._step.add(n_tokens)

    def on_token(self, request: Request, now: float) -> None:
        """A token was drawn; those of one step count once."""
        last = self._last_token.get(request.engine_id)
        if last == now:
            return
        self._last_token[request.engine_id] = now
        if last is None:
            self._first.add(now - request.arrival)
        else:
            self._between.add(now - last)

    def on_done(self, request: Request) -> None:
        """Every continuation has ended."""
        self.on_gone(request.engine_id)
        self.finished[request.branches[0].finish_reason or "abort"] += 1
        n_output = sum(branch.n for branch in request.branches)
        self._prompt.add(len(request.prompt_ids))
        self._output.add(n_output)
        if request.draws:
            self._n.add(len(request.branches))
            if request.params.max_tokens is not None:
                self._max_tokens.add(request.params.max_tokens)
        self._whole.add(request.finished - request.arrival)
        if request.scheduled > 0.0:
            self._queue.add(max(0.0, request.scheduled - request.arrival))
            self._inference.add(request.finished - request.scheduled)
        if request.first_token > 0.0:
            decode = request.finished - request.first_token
            self._prefill.add(request.first_token - request.scheduled)
            self._decode.add(decode)
            if n_output > 1:
                self._mean_between.add(decode / (n_output - 1))

    def on_failed(self, reason: str) -> None:
        """A request ended by an error; reason: of REASONS."""
        self.finished[reason] += 1

    def on_gone(self, number: int) -> None:
        """Nothing more will be heard of the request with this engine_id."""
        self._last_token.pop(number, None)

    def histograms(self, labels: Mapping[str, str]) -> list[Metric]:
        """All of them, under vLLM's names."""
        tallies = {
            "request_prompt_tokens": self._prompt,
            "request_generation_tokens": self._output,
            "iteration_tokens_total": self._step,
            "request_params_n": self._n,
            "request_params_max_tokens": self._max_tokens,
            "time_to_first_token_seconds": self._first,
            "inter_token_latency_seconds": self._between,
            "request_time_per_output_token_seconds": self._mean_between,
            "e2e_request_latency_seconds": self._whole,
            "request_queue_time_seconds": self._queue,
            "request_inference_time_seconds": self._inference,
            "request_prefill_time_seconds": self._prefill,
            "request_decode_time_seconds": self._decode,
        }
        return [tally.metric(f"vllm:{name}", labels) for name, tally in tallies.items()]


def expert_tokens(load: Mapping[int, Any], labels: Mapping[str, str]) -> list[Metric]:
    """Tokens that every expert was given, a vector for each layer. load: of a layer, [E]."""
    return [
        Vector("llmaccel:expert_tokens", {**labels, "layer": str(layer)}, counts.tolist())
        for layer, counts in load.items()
    ]


def collect(
    recorder: Recorder,
    stats: Mapping[str, Any],
    labels: Mapping[str, str],
    cache: Mapping[str, str],
) -> list[Metric]:
    """Every metric of an engine with these statistics. cache: labels of cache_config_info."""
    used = stats["pages_used"] / (stats["pages_cap"] or 1)  # no page: it sleeps
    found: list[Metric] = [
        Gauge("vllm:num_requests_running", labels, stats["running"]),
        Gauge("vllm:num_requests_waiting", labels, stats["waiting"]),
        Gauge("vllm:kv_cache_usage_perc", labels, used),
        Counter("vllm:num_preemptions", labels, stats["preemptions"]),
        Counter("vllm:prompt_tokens", labels, stats["prompt_tokens"]),
        Counter("vllm:generation_tokens", labels, stats["output_tokens"]),
    ]
    for reason, count in recorder.finished.items():
        found.append(Counter("vllm:request_success", {**labels, "finished_reason": reason}, count))
    found += recorder.histograms(labels)
    found.append(Gauge("vllm:cache_config_info", {**labels, **cache}, 1.0))
    found.append(Counter("llmaccel:recomputed_tokens", labels, stats["recomputed_tokens"]))
    for name in ("kv_bytes", "workspace_bytes"):
        found.append(Gauge(f"llmaccel:{name}", labels, stats[name]))
    return found
