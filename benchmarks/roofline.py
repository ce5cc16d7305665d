"""What this machine can do at most: read bandwidth and dot peaks, per thread count.

    python benchmarks/roofline.py [--threads 1,2] [--rounds 5]

Prints a table and appends one JSON line per probe to benchmarks/results/roofline.jsonl.
Bandwidth on shared hosts moves within seconds, so the other benchmarks call `bandwidth()` again
right before and after what they measure instead of trusting a number from here.
"""

from __future__ import annotations

import argparse
import statistics

import results

from llmaccel import _core

# Reading must leave every cache behind: 512 MiB is sixteen times a 32 MiB L3.
PROBE_BYTES = 512 << 20


def bandwidth(backend: _core.Backend, probe_bytes: int = PROBE_BYTES) -> float:
    """Read bandwidth of all threads of `backend`, GB/s (1e9), best of several access patterns."""
    return backend.probe_read(probe_bytes)


def peaks(backend: _core.Backend) -> dict[str, float]:
    """Peak of each dot instruction present, in 1e9 operations (2 per multiply-add) per second."""
    found = {}
    for what in ("f32", "bf16", "int8"):
        try:
            found[what] = backend.probe_peak(what)
        except Exception as error:
            if "has no" not in str(error):
                raise
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cpus = _core.Backend("cpu", None, 1).info["n_cpus"]
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, cpus})))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for threads in (int(n) for n in args.threads.split(",")):
        backend = _core.Backend("cpu", None, threads)
        reads = [bandwidth(backend) for _ in range(args.rounds)]
        dots = [peaks(backend) for _ in range(args.rounds)]
        row = {"benchmark": "roofline", "threads": threads, "isa": backend.info["isa"]}
        row["read_gb_s"] = results.spread(reads)
        for what in dots[0]:
            row[f"{what}_gop_s"] = results.spread([d[what] for d in dots])
        results.append("roofline", row)
        print(f"{threads} threads: read {statistics.median(reads):.1f} GB/s", end="")
        for what in dots[0]:
            print(f", {what} {statistics.median(d[what] for d in dots):.0f} Gop/s", end="")
        print()


if __name__ == "__main__":
    main()
