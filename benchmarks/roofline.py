"""What this machine can do at most: read bandwidth and dot peaks, per thread count.

    python benchmarks/roofline.py [--threads 1,2] [--rounds 5] [--check qwen2.5-0.5b]

Reads fresh memory by several access patterns (streams, prefetch distances, who takes which bytes)
in pages of 4 KiB and 2 MiB; the best of all counts. A probe that an engine beats is wrong: with
--check the packed bf16 weights of a shape of models.py are read as well, in turns with the probe,
and a line says whether the probe held. (Weights of SmolLM2's size would not do: a third of them
stays in a 32 MiB cache from one pass to the next.) Prints tables and appends one JSON line per
thread count to roofline.jsonl (results.py says where).

Bandwidth on shared hosts moves within seconds, so the other benchmarks call `bandwidth()` again
right before and after what they measure instead of trusting a number from here.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics

import models
import results

from llmaccel import LLM, UnsupportedError, _core

# Reading must leave every cache behind: 512 MiB is sixteen times a 32 MiB L3.
PROBE_BYTES = 512 << 20
PAGES = {"2M": True, "4K": False}
DOTS = ("f32", "bf16", "int8")


def bandwidth(backend: _core.Backend, probe_bytes: int = PROBE_BYTES) -> float:
    """Read bandwidth of all threads of `backend`, GB/s (1e9): best pattern and page size."""
    return max(patterns(backend, probe_bytes).values())


def patterns(backend: _core.Backend, probe_bytes: int) -> dict[tuple[str, str], float]:
    """Read bandwidth, GB/s, by page size and access pattern."""
    return {
        (size, name): rate
        for size, huge in PAGES.items()
        for name, rate in backend.probe_read(probe_bytes, huge).items()
    }


def peaks(backend: _core.Backend) -> dict[str, float]:
    """Peak of each dot instruction present, in 1e9 operations (2 per multiply-add) per second."""
    found = {}
    for what in DOTS:
        with contextlib.suppress(UnsupportedError):
            found[what] = backend.probe_peak(what)
    return found


def packed_model(llm: LLM) -> _core.Model:
    """The weights inside `llm`, to be read without computing; nobody but benchmarks wants that."""
    return llm.engine._model


def best_pattern(model: _core.Model, n_patterns: int, seconds: float = 0.08) -> int:
    """Index of the pattern that reads this model's weights fastest, each tried five times."""
    rates = [[model.read(p, seconds) for p in range(n_patterns)] for _ in range(5)]
    return max(range(n_patterns), key=lambda p: statistics.median(r[p] for r in rates))


def measure(threads: int, rounds: int) -> tuple[dict, dict[str, dict[str, list[float]]]]:
    """A row of results, and every reading by page size and pattern."""
    backend = _core.Backend("cpu", None, threads)
    reads: dict[str, dict[str, list[float]]] = {size: {} for size in PAGES}
    best = []
    for _ in range(rounds):
        rates = {size: backend.probe_read(PROBE_BYTES, huge) for size, huge in PAGES.items()}
        best.append(max(max(by.values()) for by in rates.values()))
        for size, by in rates.items():
            for name, rate in by.items():
                reads[size].setdefault(name, []).append(rate)
    dots = [peaks(backend) for _ in range(rounds)]
    row = {"benchmark": "roofline", "threads": threads, "isa": backend.info["isa"]}
    row["read_gb_s"] = results.spread(best)
    for what in dots[0]:
        row[f"{what}_gop_s"] = results.spread([d[what] for d in dots])
    return row, reads


def check_against_weights(name: str, rounds: int) -> dict:
    """Probe and reading of a model's weights in turns; the probe should be the faster."""
    with LLM(models.checkpoint(name), max_model_len=256) as llm:
        model, backend = packed_model(llm), llm._backend
        n = len(backend.probe_read(1 << 20))
        pattern = best_pattern(model, n)
        names = list(backend.probe_read(1 << 20))
        ratios = []
        for _ in range(rounds):
            before = bandwidth(backend)
            weights = model.read(pattern, 0.3)
            ratios.append(weights / max(before, bandwidth(backend)))
    return {"pattern": names[pattern], "weights_over_probe": results.spread(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cpus = _core.Backend("cpu", None, 1).info["n_cpus"]
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, cpus})))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", choices=list(models.SHAPES), metavar="SHAPE")
    args = parser.parse_args()
    for threads in (int(n) for n in args.threads.split(",")):
        row, reads = measure(threads, args.rounds)
        results.append("roofline", row)
        print(f"{threads} threads: read {row['read_gb_s']['median']:.1f} GB/s", end="")
        for what in (w for w in DOTS if f"{w}_gop_s" in row):
            print(f", {what} {row[f'{what}_gop_s']['median']:.0f} Gop/s", end="")
        print("\n  median GB/s by pattern" + "".join(f"{size:>8s}" for size in PAGES))
        for name in reads["2M"]:
            medians = (statistics.median(reads[size][name]) for size in PAGES)
            print(f"  {name:28s}" + "".join(f"{rate:8.1f}" for rate in medians))
    if args.check is not None:
        row = check_against_weights(args.check, args.rounds)
        results.append("roofline", {"benchmark": "roofline-check", "model": args.check, **row})
        share = row["weights_over_probe"]
        print(
            f"reading the packed weights ({row['pattern']}) reaches "
            f"{share['min']:.2f}/{share['median']:.2f}/{share['max']:.2f} of the probe: "
            + ("the probe holds" if share["median"] <= 1.02 else "THE PROBE IS TOO LOW")
        )


if __name__ == "__main__":
    main()
