"""What quantized weights do to speed: the findings of the Qllm-Eval study (arXiv 2402.18158) on
this engine.

    python benchmarks/quant_findings.py [--models smollm2,qwen2.5-0.5b,llama-3.2-1b] [--gguf FILE]
                                        [--rounds 3]

The study's findings about speed, of weights alone (rows stay 16-bit floats): they speed up decode;
they may slow down prefill; the gain shrinks with the batch and with the length; larger models gain
more. Measured for bf16 weights, for int8 and int4 ones with bf16 rows (a16: the study's case), and
for the same with int8 rows, which is what this engine does with them unless told otherwise.

All forms of a model are open at once and run in turns: a gain is bf16's time over the form's in the
same round, and the median of the rounds counts. Points are (requests, tokens of each prompt):
prefill is the time to the last first token, decode what the next 16 tokens of each request take.
Prints a table and the verdicts, and appends a JSON line a model to quant_findings.jsonl
(results.py). Needs about 8 GB for the largest of the models.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from pathlib import Path

import models
import numpy as np
import results
from engine import generate

from llmaccel import LLM

NAMES = ("smollm2", *(name for name in models.SHAPES if "moe" not in name))
FORMS = {
    "bf16": {},
    "int8-a16": {"quantization": "int8", "activation": "bfloat16"},
    "w4g128-a16": {"quantization": "w4g128", "activation": "bfloat16"},
    "int8": {"quantization": "int8"},
    "w4g128": {"quantization": "w4g128"},
}
WEIGHT_ONLY = ("int8-a16", "w4g128-a16")
# requests, prompt: one by one, batches, lengths
POINTS = ((1, 32), (4, 32), (16, 32), (1, 512), (1, 2048))
BATCHES, LENGTHS = POINTS[:3], (POINTS[0], POINTS[3], POINTS[4])
LONG = 2048  # prompts of which one round less is run
STEPS = 16

Times = dict[tuple[int, int], list[float]]  # seconds by point and round


def measure(name: str, gguf: str | None, rounds: int) -> dict:
    """One row of results: seconds and gains of every form at every point."""
    if name != "smollm2":
        path: str | Path = models.checkpoint(name)
    elif gguf is None:
        raise SystemExit("smollm2 needs --gguf FILE or LLMACCEL_SMOLLM2")
    else:
        path = models.unpacked_smollm2(gguf)
    limits = {"max_model_len": LONG + STEPS + 1, "max_num_seqs": max(batch for batch, _ in POINTS)}
    rng = np.random.default_rng(1)
    prefill: dict[str, Times] = {form: {point: [] for point in POINTS} for form in FORMS}
    decode: dict[str, Times] = {form: {point: [] for point in POINTS} for form in FORMS}
    with contextlib.ExitStack() as stack:
        llms = {form: stack.enter_context(LLM(path, **FORMS[form], **limits)) for form in FORMS}
        reports = {form: llm.report() for form, llm in llms.items()}
        vocab = reports["bf16"]["model"]["n_vocab"]
        for llm in llms.values():
            generate(llm, rng.integers(0, vocab, (2, 16)), 2)
        for turn in range(rounds):
            for point in POINTS:
                if turn == rounds - 1 > 0 and point[1] == LONG:
                    continue
                ids = rng.integers(0, vocab, point)
                for form, llm in llms.items():
                    first, rest = generate(llm, ids, STEPS + 1)
                    prefill[form][point].append(first)
                    decode[form][point].append(rest)
    gains = {form: (gains_of(prefill, form), gains_of(decode, form)) for form in FORMS}
    backend = reports["bf16"]["backend"]
    return {
        "benchmark": "quant_findings",
        "model": name,
        "isa": backend["isa"],
        "threads": backend["n_threads"],
        "steps": STEPS,
        "forms": {
            form: {
                "token_bytes": reports[form]["memory"]["token_bytes"],
                "points": [
                    {
                        "requests": point[0],
                        "prompt": point[1],
                        "prefill_seconds": prefill[form][point],
                        "decode_seconds": decode[form][point],
                        "prefill_gain": gains[form][0][point],
                        "decode_gain": gains[form][1][point],
                    }
                    for point in POINTS
                ],
            }
            for form in FORMS
        },
    }


def gains_of(seconds: dict[str, Times], form: str) -> dict[tuple[int, int], float]:
    """bf16's time over the form's, round by round, and of those the median."""
    return {
        point: statistics.median(
            base / mine for base, mine in zip(seconds["bf16"][point], times, strict=True)
        )
        for point, times in seconds[form].items()
    }


def gain(row: dict, form: str, kind: str, point: tuple[int, int]) -> float:
    """prefill's or decode's gain in a row of results."""
    points = row["forms"][form]["points"]
    return next(p for p in points if (p["requests"], p["prompt"]) == point)[f"{kind}_gain"]


def verdicts(rows: list[dict]) -> list[tuple[str, str, bool]]:
    """(finding, its gains, whether it holds) for each model and weight-only form; rows: models from
    the smallest."""
    found = []

    def add(text: str, values: list[float], holds: bool) -> None:
        found.append((text, " ".join(f"{value:.2f}" for value in values), holds))

    for form in WEIGHT_ONLY:
        for row in rows:
            label = f"{form} {row['model']}"
            by_batch = [gain(row, form, "decode", point) for point in BATCHES]
            by_length = [gain(row, form, "decode", point) for point in LENGTHS]
            prefill = [gain(row, form, "prefill", point) for point in POINTS]
            add(f"{label}: decode is faster", by_batch[:1], by_batch[0] > 1)
            add(f"{label}: prefill is slower somewhere", prefill, min(prefill) < 1)
            add(f"{label}: less gain with the batch", by_batch, by_batch[-1] < by_batch[0])
            add(f"{label}: less gain with the length", by_length, by_length[-1] < by_length[0])
        by_size = [gain(row, form, "decode", POINTS[0]) for row in rows]
        if len(by_size) > 1:
            add(f"{form}: larger models gain more", by_size, by_size == sorted(by_size))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default=",".join(NAMES), help="from the smallest")
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    head = "".join(f"{f'{batch} x {prompt}':>9}" for batch, prompt in POINTS)
    print(f"gains over bf16{'':14}{head}")
    rows = []
    for name in args.models.split(","):
        rows.append(measure(name, args.gguf, args.rounds))
        results.append("quant_findings", rows[-1])
        for form in list(FORMS)[1:]:
            for kind in ("decode", "prefill"):
                values = "".join(f"{gain(rows[-1], form, kind, point):9.2f}" for point in POINTS)
                print(f"{name:13}{form:11}{kind:8}{values}", flush=True)
    for text, values, holds in verdicts(rows):
        print(f"{text}: {values}: {'yes' if holds else 'NO'}")


if __name__ == "__main__":
    main()
