"""Measures llama.cpp by its own tools: llama-bench for one request, llama-batched-bench for many.

    python benchmarks/peers/drive_llama_cpp.py MODEL.gguf decode

Each repeat is a run of the tool, which loads the file anew and warms up by itself. Decode starts
after 128 tokens (depth), as everywhere. Threads are pinned: unpinned, llama.cpp loses up to 8x when
both land on one processor.
"""

from __future__ import annotations

import json
import os
import subprocess

import protocol

import setup

ENVIRONMENT = {**os.environ, "OMP_PROC_BIND": "true", "OMP_NUM_THREADS": str(protocol.THREADS)}


def tool(name: str, *options: object) -> list[dict]:
    """Runs a tool of llama.cpp on all processors; the JSON lines that it prints."""
    command = [setup.llama_tool(name), "-t", protocol.THREADS, *options]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=ENVIRONMENT
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def reading(model: str, metric: str) -> float:
    """One reading of a metric, tokens per second."""
    if metric.startswith("throughput"):
        count = int(metric.removeprefix("throughput"))
        shape = ["-npp", protocol.PROMPT, "-ntg", protocol.NEW, "-npl", count]
        room = count * (protocol.PROMPT + protocol.NEW)
        (row,) = tool(
            "llama-batched-bench", "-m", model, "-c", room, "--output-format", "jsonl", *shape
        )
        return count * protocol.NEW / row["t"]
    shape = ["-p", 0, "-n", protocol.NEW, "-d", protocol.PROMPT]
    if metric == "prefill":
        shape = ["-p", protocol.PREFILL, "-n", 0]
    (row,) = tool("llama-bench", "-m", model, "-r", 1, "-o", "jsonl", *shape)
    return row["avg_ts"]


def main() -> None:
    args = protocol.arguments(__doc__.splitlines()[0]).parse_args()
    protocol.say(ready=True)
    for _, metric in protocol.turns(args):
        protocol.say(metric=metric, value=round(reading(args.model, metric), 3))


if __name__ == "__main__":
    main()
