"""What a busy neighbour costs: prefill and decode beside a PyTorch loop on one processor.

    python benchmarks/neighbour.py [--gguf SmolLM2.gguf] [--models smollm2,qwen2.5-0.5b]
                                   [--isa avx2]

The neighbour multiplies matrices without end, one PyTorch thread pinned to one processor, first as
another process, then as a thread of this one. Quiet and busy rounds alternate; a round is prefills
of 512 tokens and decodes of one stream for a second each. "of quiet" is the busy median over the
quiet one. Last: threads=8 on however few processors there are, beside as many as there are; and
what an idle engine uses of a processor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import engine
import numpy as np
import results

from llmaccel import LLM

LOOP = """
import os, sys, torch
torch.set_num_threads(1)
os.sched_setaffinity(0, {int(sys.argv[1])})
a = torch.randn(512, 512)
print("ready", flush=True)
while True:
    a @ a
"""


@contextmanager
def nobody(cpu: int) -> Iterator[None]:
    yield


@contextmanager
def process(cpu: int) -> Iterator[None]:
    """The loop in a process of its own."""
    loop = subprocess.Popen([sys.executable, "-c", LOOP, str(cpu)], stdout=subprocess.PIPE)
    try:
        assert loop.stdout is not None
        loop.stdout.readline()
        yield
    finally:
        loop.kill()
        loop.wait()


@contextmanager
def thread(cpu: int) -> Iterator[None]:
    """The loop on a thread of this process; it gives the interpreter up while it multiplies."""
    import torch

    torch.set_num_threads(1)
    stop = threading.Event()

    def loop() -> None:
        os.sched_setaffinity(0, {cpu})
        a = torch.randn(512, 512)
        while not stop.is_set():
            a @ a

    worker = threading.Thread(target=loop)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


NEIGHBOURS = {"nobody": nobody, "process": process, "thread": thread}


def open_model(name: str, gguf: str | None, **options: object) -> LLM:
    """SmolLM2 as its file has it, the other shapes in bf16."""
    return engine.open_model(name, "file" if name == "smollm2" else "bf16", gguf, **options)


def about(name: str, llm: LLM) -> dict[str, str]:
    """What a line of results says of the model."""
    form = "file" if name == "smollm2" else "bf16"
    return {"model": name, "format": form, "isa": llm.report()["backend"]["isa"]}


def rates(llm: LLM, seconds: float) -> dict[str, list[float]]:
    """Tokens a second of prefills and decodes, each for `seconds`."""
    vocab = llm.report()["model"]["n_vocab"]
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {"prefill": [], "decode": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        first, _ = engine.generate(llm, rng.integers(0, vocab, 512), 1)
        found["prefill"].append(512 / first)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        _, rest = engine.generate(llm, rng.integers(0, vocab, 16), 17)
        found["decode"].append(16 / rest)
    return found


def beside(name: str, llm: LLM, kinds: list[str], rounds: int, seconds: float) -> list[dict]:
    """A row for each neighbour: medians, and their share of the quiet ones."""
    cpu = max(os.sched_getaffinity(0))
    found: dict[str, dict[str, list[float]]] = {k: {"prefill": [], "decode": []} for k in kinds}
    rates(llm, seconds / 4)  # warms caches and commits pages
    for _ in range(rounds):
        for kind in kinds:
            with NEIGHBOURS[kind](cpu):
                for what, values in rates(llm, seconds).items():
                    found[kind][what] += values
    rows = []
    for kind in kinds:
        row = {"benchmark": "neighbour", **about(name, llm), "neighbour": kind}
        for what in ("prefill", "decode"):
            row[f"{what}_tok_s"] = results.spread(found[kind][what])
            quiet = results.spread(found["nobody"][what])["median"]
            row[f"{what}_of_quiet"] = row[f"{what}_tok_s"]["median"] / quiet
        rows.append(row)
    return rows


def crowded(name: str, args: argparse.Namespace) -> dict:
    """threads=8 beside the default, interleaved."""
    asked = {"default": None, "eight": 8}
    models = {k: open_model(name, args.gguf, isa=args.isa, threads=n) for k, n in asked.items()}
    found: dict[str, dict[str, list[float]]] = {k: {"prefill": [], "decode": []} for k in models}
    for _ in range(args.rounds):
        for kind, llm in models.items():
            for what, values in rates(llm, args.seconds).items():
                found[kind][what] += values
    row = {"benchmark": "crowded", **about(name, models["default"])}
    row["threads"] = {k: m.report()["backend"]["n_threads"] for k, m in models.items()}
    for what in ("prefill", "decode"):
        row[what] = {kind: results.spread(found[kind][what]) for kind in models}
    for llm in models.values():
        llm.close()
    return row


def idle_share(seconds: float) -> float:
    """Processor time of this process while nothing is asked of it, over the time that passes."""
    time.sleep(0.1)
    before, start = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    return (time.process_time() - before) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument("--models", default="smollm2,qwen2.5-0.5b")
    parser.add_argument("--isa", help="highest instruction set to use; none: this machine's")
    parser.add_argument("--neighbours", default="nobody,process,thread")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    names = args.models.split(",")
    print("model          neighbour  prefill tok/s  of quiet  decode tok/s  of quiet")
    for name in names:
        llm = open_model(name, args.gguf, isa=args.isa)
        for row in beside(name, llm, args.neighbours.split(","), args.rounds, args.seconds):
            results.append("neighbour", row)
            print(
                f"{name:14s} {row['neighbour']:9s}  {row['prefill_tok_s']['median']:13.1f}"
                f"  {row['prefill_of_quiet']:8.2f}  {row['decode_tok_s']['median']:12.1f}"
                f"  {row['decode_of_quiet']:8.2f}"
            )
        idle = {"benchmark": "idle", **about(name, llm), "cpu_share": idle_share(2.0)}
        results.append("neighbour", idle)
        print(f"{name:14s} idle: {100 * idle['cpu_share']:.2f} % of a processor")
        llm.close()
    row = crowded(names[0], args)
    results.append("neighbour", row)
    for kind, threads in row["threads"].items():
        print(
            f"{names[0]:14s} threads {kind}: {threads} run, prefill"
            f" {row['prefill'][kind]['median']:.1f}, decode {row['decode'][kind]['median']:.1f}"
        )


if __name__ == "__main__":
    main()
