"""What every driver measures, and how it talks to compare.py.

A driver is a script `drive_<engine>.py MODEL [METRIC ...] [--repeats N] [--option ...]`. It loads
the model once, warms up, and prints JSON lines: one {"ready": true, "load_s": ...} and then
{"metric": ..., "value": tokens per second} for each reading. Without metrics it takes one reading
of the metric that each line of stdin names, so that engines can be measured in turns.

Metrics, all greedy, of random token ids, with exactly the asked number of new tokens:
  decode        one request after a prompt of 128: 128 / (time of 129 new tokens - time of 1)
  prefill       one prompt of 512: 512 / time to its first token
  throughput16, throughput32   so many requests at once, 128 in and 128 out: new tokens / time
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator

METRICS = ("decode", "prefill", "throughput16", "throughput32")
PROMPT, PREFILL, NEW = 128, 512, 128
SEQS = 32  # most requests at once
FIRST_ID, LAST_ID = 1000, 49000  # plain tokens of every vocabulary used, SmolLM2's included
THREADS = len(os.sched_getaffinity(0))

# run(prompts, n_new) -> seconds; every prompt gets exactly n_new new tokens
Run = Callable[[list[list[int]], int], float]


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """`count` prompts that no other seed gives, so that no cache of prefixes helps."""
    rng = random.Random(seed)
    return [[rng.randrange(FIRST_ID, LAST_ID) for _ in range(length)] for _ in range(count)]


def measure(metric: str, run: Run, seed: int) -> float:
    """One reading of a metric, tokens per second."""
    if metric == "decode":
        first = run(prompts(1, PROMPT, 2 * seed), 1)
        return NEW / (run(prompts(1, PROMPT, 2 * seed + 1), 1 + NEW) - first)
    if metric == "prefill":
        return PREFILL / run(prompts(1, PREFILL, seed), 1)
    count = int(metric.removeprefix("throughput"))
    return count * NEW / run(prompts(count, PROMPT, seed), NEW)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all drivers share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="file or folder of the model, in the engine's own form")
    parser.add_argument("metrics", nargs="*", help=f"of {', '.join(METRICS)}; none: from stdin")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def turns(args: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """A seed and a metric for each reading that is asked for."""
    asked = (metric for _ in range(args.repeats) for metric in args.metrics)
    lines = (line.strip() for line in sys.stdin)
    for seed, metric in enumerate(asked if args.metrics else lines, start=1):
        if metric not in METRICS:
            raise SystemExit(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
        yield seed, metric


def say(**fields: object) -> None:
    """One JSON line on stdout."""
    print(json.dumps(fields), flush=True)


def serve(args: argparse.Namespace, load: Callable[[], Run], **about: object) -> None:
    """Loads, warms up, then one line for each repeat. `about` goes into the first line."""
    started = time.perf_counter()
    run = load()
    load_s = time.perf_counter() - started
    run(prompts(1, PROMPT, 999_999), 8)
    run(prompts(1, PREFILL, 999_998), 1)
    run(prompts(SEQS, PROMPT // 8, 999_997), 4)  # whatever is set up once per size of a batch
    say(ready=True, load_s=round(load_s, 2), **about)
    for seed, metric in turns(args):
        say(metric=metric, value=round(measure(metric, run, seed), 3))
