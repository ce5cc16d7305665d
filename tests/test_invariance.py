"""The contract: a request's tokens and logprobs are the same bits whatever happens around it.

Alone, in any batch, in any order, in chunks of any size, on one thread or several, preempted and
recomputed. Runs on the real SmolLM2 file; the full grid is slow, a corner of it runs every time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
import pytest

from llmaccel import LLM, SamplingParams, _core

WORDS = (
    "The",
    "ocean",
    "is",
    "wide",
    "and",
    "a",
    "small",
    "boat",
    "sails",
    "under",
    "stars",
    "while",
    "people",
    "sing",
    "old",
    "songs",
    "about",
    "rivers",
    "mountains",
    "winter",
    "bread",
    "and",
    "light",
)


def mixed_prompts(count: int) -> list[str]:
    """Prompts of very different lengths, some longer than a page of 64 tokens."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(1, 150, count)
    return [" ".join(rng.choice(WORDS, n)) for n in lengths]


def params_for(index: int) -> SamplingParams:
    """Greedy, seeded and penalized requests side by side."""
    common = {"max_tokens": 12 + index % 9, "ignore_eos": True, "logprobs": 2}
    if index % 3 == 0:
        return SamplingParams(temperature=0, **common)
    if index % 3 == 1:
        return SamplingParams(temperature=0.9, top_p=0.9, seed=index, **common)
    return SamplingParams(
        temperature=1.1,
        top_k=40,
        seed=index,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        **common,
    )


def fingerprint(output) -> tuple:
    one = output.outputs[0]
    return tuple(one.token_ids), one.logprob_array.tobytes(), one.text


def exact_backend(isa: str | None, threads: int | None) -> _core.Backend:
    """As many threads as asked for, even when the machine has fewer processors."""
    return _core.Backend("cpu", isa, -(threads or 0))


@contextmanager
def threads_sit_out(backend: _core.Backend) -> Iterator[None]:
    """Every few steps run on another number of threads, one to all."""
    done = threading.Event()

    def keep_changing() -> None:
        rng, most = np.random.default_rng(5), backend.info["n_threads"]
        while not done.wait(0.002):
            backend.step_threads(int(rng.integers(1, most + 1)))

    thread = threading.Thread(target=keep_changing)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run(
    path,
    count: int,
    order: np.ndarray,
    *,
    batch: int,
    preempt: bool = False,
    sit_out: bool = False,
    **options,
) -> list:
    prompts = mixed_prompts(count)
    result: list = [None] * count
    with (
        patch("llmaccel.llm.open_backend", exact_backend),
        LLM(str(path), max_model_len=512, max_num_seqs=64, **options) as llm,
        threads_sit_out(llm._backend) if sit_out else nullcontext(),
    ):
        for start in range(0, count, batch):
            which = order[start : start + batch]
            futures = [llm.submit(prompts[i], params_for(int(i))) for i in which]
            # a bounded number: on a slow machine preempting for ever would leave no progress
            for _ in range(50 if preempt else 0):
                if all(future.done() for future in futures):
                    break
                llm.engine.preempt(len(which) // 4 + 1)
                time.sleep(0.2)
            for i, future in zip(which, futures, strict=True):
                result[i] = fingerprint(future.result())
        preemptions = llm.report()["stats"]["preemptions"]
        assert preemptions > 0 if preempt else preemptions == 0
    return result


CORNER = [
    {"batch": 12},
    {"batch": 5, "order": "reversed", "max_num_batched_tokens": 16},
    {"batch": 12, "threads": 1, "max_num_batched_tokens": 64},
    {"batch": 12, "threads": 5, "max_num_batched_tokens": 300},
    {"batch": 12, "threads": 3, "max_num_batched_tokens": 64, "sit_out": True},
    {"batch": 12, "preempt": True},
]
GRID = [
    {"batch": batch, "order": order, "max_num_batched_tokens": chunk, "threads": threads}
    for batch, order, chunk, threads in [
        (64, "given", 512, 2),
        (64, "reversed", 16, 2),
        (64, "shuffled", 64, 1),
        (7, "shuffled", 512, 2),
        (7, "given", 16, 1),
        (2, "reversed", 64, 2),
        (1, "given", 16, 2),
        (64, "shuffled", 512, 1),
    ]
] + [{"batch": 64, "preempt": True, "max_num_batched_tokens": 64}]


def check(path, count: int, cases: list[dict], activation: str) -> None:
    expected = run(path, count, np.arange(count), batch=1, activation=activation)
    for case in cases:
        case = dict(case)
        kind = case.pop("order", "given")
        order = np.arange(count)
        if kind == "reversed":
            order = order[::-1]
        elif kind == "shuffled":
            order = np.random.default_rng(3).permutation(count)
        assert run(path, count, order, activation=activation, **case) == expected, case


@pytest.mark.parametrize("activation", ["int8", "bf16"])
def test_same_bits(smollm2_path, activation):
    check(smollm2_path, 12, CORNER, activation)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["int8", "bf16", "float32"])
def test_same_bits_full_grid(smollm2_path, activation):
    check(smollm2_path, 64, GRID, activation)
