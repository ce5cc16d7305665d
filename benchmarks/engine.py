"""Decode and prefill of the whole engine, as shares of what the machine gives at that moment.

    python benchmarks/engine.py [--models smollm2,qwen2.5-0.5b,llama-3.2-1b]
                                [--formats bf16,int8,w4g128,w4g32,fp8,file] [--pairs 15] [--quick]
                                [--isa avx2] [--parts decode,prefill]

Models: SmolLM2-135M-Instruct (--gguf; unpacked to bf16 but for "file", which is the file itself),
and the shapes of models.py from their safetensors. Formats: bf16 as the checkpoint is, the others
by LLM's quantization option (those it has). --quick: one shape, three formats, fewer pairs, under
90 seconds.

Bandwidth share, batch 1: in one process 0.3 s of decode after a prompt of 128, then 0.3 s of pure
reading of the same packed weights by the same threads, again and again. A pair's share is the
decode's bytes a second (weight bytes a token x tok/s; the cache's are not counted) over the larger
of that reading and the probe of fresh memory right behind it (the access pattern and page size that
is best over all pairs); the median of the pairs counts. of_read is the share of the reading alone.

Compute share, prefill of 512: (operations of the linear layers / peak of the dot they use +
operations of attention / bf16 peak) / time to the first token; peaks probed before each reading.
What follows the last attention counts for rows of logits alone, as the engine computes it (in
lines of 28 November 2026 and before it ran, and counts, for every token).
Layers with two lanes of int8 rows (report()["model"]["wide_activations"]) count twice. On AVX2,
which has no dots, everything counts by the fp32 peak of its FMA.

Batch 16: 16 requests at once, prompts of 512 to the last first token (a compute share as above),
and 64 tokens each behind prompts of 128 (the share of the compute peak; at this size neither bound
is far away). --parts leaves out what is not named; batch 16 takes three quarters of the time.

Appends one JSON line per model and format to engine.jsonl (see results.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import models
import numpy as np
import results
import roofline

from llmaccel import LLM, SamplingParams, _core
from llmaccel.errors import ConfigError, UnsupportedError

FORMATS = ("bf16", "int8", "w4g128", "w4g32", "fp8")
FULL = {
    "models": ",".join(("smollm2", *models.SHAPES)),
    "formats": ",".join(("file", *FORMATS)),
    "pairs": 15,
    "repeats": 7,
}
QUICK = {"models": "qwen2.5-0.5b", "formats": "bf16,int8,w4g128", "pairs": 9, "repeats": 3}
# The dot that a format's products use; fp8 weights become bf16 in registers.
DOTS = {"bf16": "bf16", "fp8": "bf16"}
PROMPT, PREFILL = 128, 512
WINDOW = 0.3  # seconds of decode and of reading in a pair
BATCH = 16
PARTS = ("decode", "prefill", "decode_16", "prefill_16")


def open_model(name: str, form: str, gguf: str | None, **options: object) -> LLM | None:
    """The model with more `options` of LLM; None where this version lacks the format."""
    options |= {"max_model_len": 1024, "max_num_seqs": BATCH}
    if name != "smollm2":
        path: str | Path = models.checkpoint(name)
    elif gguf is None:
        raise SystemExit("smollm2 needs --gguf FILE or LLMACCEL_SMOLLM2")
    else:
        path = gguf if form == "file" else models.unpacked_smollm2(gguf)
    if form not in ("bf16", "file"):
        options["quantization"] = form
    try:
        return LLM(path, **options)
    except (ConfigError, UnsupportedError) as error:
        if "quantization" not in str(error):
            raise
        print(f"{name:14s} {form:7s} skipped: {error}")
        return None


def generate(llm: LLM, ids: np.ndarray, tokens: int) -> tuple[float, float]:
    """Seconds to the last first token, and from there to the last one; ids [T] or [batch, T]."""
    params = SamplingParams(
        temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": row.tolist()} for row in np.atleast_2d(ids)]
    times = [out.timings for out in llm.generate(prompts, params, use_tqdm=False)]
    first = max(t.first_token for t in times)
    return first - min(t.arrival for t in times), max(t.finished for t in times) - first


def decode_pairs(llm: LLM, pairs: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """Shares, tokens per second, and GB/s of reading and probe, of each pair."""
    model, backend = roofline.packed_model(llm), llm._backend
    vocab = llm.report()["model"]["n_vocab"]
    pattern = roofline.best_pattern(model, len(backend.probe_read(1 << 20)))
    _, seconds = generate(llm, rng.integers(0, vocab, PROMPT), 17)
    tokens = min(max(int(WINDOW * 16 / seconds), 8), 512)
    rates, reads, probes = [], [], []
    for _ in range(pairs):
        _, seconds = generate(llm, rng.integers(0, vocab, PROMPT), tokens + 1)
        rates.append(tokens / seconds)
        reads.append(model.read(pattern, WINDOW))
        probes.append(roofline.patterns(backend, 256 << 20))
    # One pattern for all pairs: the best of many short passes, taken pair by pair, would pick out
    # the host's good moments, which decode and reading had no part in.
    best = max(probes[0], key=lambda name: statistics.median(probe[name] for probe in probes))
    probe = [by[best] for by in probes]
    decoded = [model.token_bytes * rate * 1e-9 for rate in rates]
    return {
        "share": [d / max(r, p) for d, r, p in zip(decoded, reads, probe, strict=True)],
        "of_read": [d / r for d, r in zip(decoded, reads, strict=True)],
        "tok_s": rates,
        "read_gb_s": reads,
        "probe_gb_s": probe,
    }


class Ideal:
    """Least seconds for the arithmetic of a model, at peaks probed when asked."""

    def __init__(self, llm: LLM, config: dict, dot: str) -> None:
        self.backend, self.dot = llm._backend, dot
        H = config["num_attention_heads"]
        d = config.get("head_dim", config["hidden_size"] // H)
        L, D = config["num_hidden_layers"], config["hidden_size"]
        has_dot = self.backend.info["isa"] in ("vnni", "bf16")
        twice = llm.report()["model"]["wide_activations"] if has_dot else []
        head, qkv = D * config["vocab_size"], L * models.qkv_weights(config)
        again = qkv * ("qkv" in twice) + L * D * H * d * ("o" in twice)
        whole = models.matrix_weights(config) + again
        behind = (whole - qkv * (1 + ("qkv" in twice))) / L  # what follows one layer's attention
        self.linear, self.behind = 2.0 * (whole - behind), 2.0 * behind  # a token, a row
        self.head = 2.0 * head * (1 + ("head" in twice))  # a row of logits
        self.attention = 4.0 * H * d * L  # a pair of tokens

    def seconds(self, tokens: int, rows: int, pairs: int) -> float:
        """For so many tokens, rows of logits and pairs of tokens that attend."""
        peaks = roofline.peaks(self.backend)
        if self.backend.info["isa"] == "avx2":
            peaks = {"f32": peaks["f32"]}
        fallback = peaks["f32"]  # without a dot of its own, a format's products run in fp32
        work = [(self.dot, self.linear * tokens + (self.behind + self.head) * rows)]
        work.append(("bf16", self.attention * pairs))
        return sum(n / peaks.get(dot, fallback) for dot, n in work) * 1e-9


def prefill_shares(
    llm: LLM, ideal: Ideal, batch: int, repeats: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Compute shares and tokens per second of `batch` prompts of 512."""
    vocab = llm.report()["model"]["n_vocab"]
    found: dict[str, list[float]] = {"share": [], "tok_s": []}
    for repeat in range(repeats + 1):
        least = ideal.seconds(batch * PREFILL, batch, batch * PREFILL * (PREFILL + 1) // 2)
        seconds, _ = generate(llm, rng.integers(0, vocab, (batch, PREFILL)), 1)
        if repeat == 0:  # warms caches and commits pages
            continue
        found["share"].append(least / seconds)
        found["tok_s"].append(batch * PREFILL / seconds)
    return found


def batched_decode(
    llm: LLM, ideal: Ideal, repeats: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Compute shares and tokens per second of 16 requests behind prompts of 128."""
    vocab, tokens = llm.report()["model"]["n_vocab"], 64
    pairs = BATCH * sum(range(PROMPT + 1, PROMPT + tokens + 1))
    found: dict[str, list[float]] = {"share": [], "tok_s": []}
    for _ in range(repeats):
        least = ideal.seconds(BATCH * tokens, BATCH * tokens, pairs)
        _, seconds = generate(llm, rng.integers(0, vocab, (BATCH, PROMPT)), tokens + 1)
        found["share"].append(least / seconds)
        found["tok_s"].append(BATCH * tokens / seconds)
    return found


def quartiles(values: list[float]) -> dict[str, float]:
    """Lower quartile, median, upper quartile, and how many values there were."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": median, "high": high, "n": len(values)}


def measure(name: str, form: str, llm: LLM, args: argparse.Namespace) -> dict:
    """One row of results, with the parts that are asked for."""
    rng = np.random.default_rng(1)
    ideal = Ideal(llm, models.config_of(name), DOTS.get(form, "int8"))
    parts = {
        "decode": lambda: decode_pairs(llm, args.pairs, rng),
        "prefill": lambda: prefill_shares(llm, ideal, 1, args.repeats, rng),
        "decode_16": lambda: batched_decode(llm, ideal, max(args.repeats // 2, 2), rng),
        "prefill_16": lambda: prefill_shares(llm, ideal, BATCH, max(args.repeats // 3, 2), rng),
    }
    found = {part: parts[part]() for part in PARTS if part in args.parts.split(",")}
    report = llm.report()
    return {
        "benchmark": "engine",
        "model": name,
        "format": form,
        "isa": report["backend"]["isa"],
        "threads": report["backend"]["n_threads"],
        "token_bytes": report["memory"]["token_bytes"],
        **{part: {k: quartiles(v) for k, v in by.items()} for part, by in found.items()},
    }


def show(row: dict) -> None:
    """The row under the table's head, as far as its parts were measured."""
    text = f"{row['model']:14s} {row['format']:7s} {row['token_bytes'] / 1e6:6.0f}"
    if "decode" in row:
        decode = row["decode"]
        share = decode["share"]
        text += (
            f" {decode['tok_s']['median']:8.1f}"
            f"   {share['low']:.2f} {share['median']:.2f} {share['high']:.2f}"
            f" {decode['of_read']['median']:8.2f}"
            f" {decode['read_gb_s']['median']:7.1f} {decode['probe_gb_s']['median']:6.1f}"
        )
    for part in PARTS[1:]:
        if part in row:
            rate, share = row[part]["tok_s"]["median"], row[part]["share"]
            text += f"   {part} {rate:.1f}, of peak"
            text += f" {share['low']:.2f} {share['median']:.2f} {share['high']:.2f}"
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument("--models")
    parser.add_argument("--formats")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--repeats", type=int, help="prefills")
    parser.add_argument("--isa", help="highest instruction set to use; none: this machine's")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    usual = QUICK if args.quick else FULL
    names = (args.models or usual["models"]).split(",")
    forms = (args.formats or usual["formats"]).split(",")
    args.pairs, args.repeats = args.pairs or usual["pairs"], args.repeats or usual["repeats"]
    info = _core.Backend("cpu", args.isa, 0).info
    print(f"{info['n_threads']} threads, {info['isa']}; shares as quartiles")
    print("model          format  MB/tok    tok/s  of bandwidth    of read    read  probe")
    for name in names:
        for form in forms:
            if form == "file" and name != "smollm2":
                continue
            started = time.monotonic()
            llm = open_model(name, form, args.gguf, isa=args.isa)
            if llm is None:
                continue
            with llm:
                row = measure(name, form, llm, args)
            row["seconds"] = round(time.monotonic() - started, 1)
            results.append("engine", row)
            show(row)


if __name__ == "__main__":
    main()
