"""Speed of attention in decode and prefill, as shares of the roofline measured in the same run.

    python benchmarks/attention.py [--kv bfloat16,int8,fp8] [--contexts 4096,32768] [--rounds 15]

One sequence on a model that is nearly all attention: 32 query and 8 kv heads of 128, width 64, as
many layers as make the KV cache four times a 32 MiB L3, so every step reads it from memory. The
matrices' time is taken off by running the same steps with short contexts on a second engine.

Decode: 8 steps at the long context, 8 at the short one, the read probe before and after; share =
KV bytes of the difference over time and bandwidth. Prefill: a prompt of 4096 tokens against 64 of
64; share = causal operations (4 per query head, dimension and token pair) over time and bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
import roofline

from llmaccel import _core
from llmaccel.loading import load_weights, prepare
from llmaccel.options import LoadOptions

HEADS, KV_HEADS, D_HEAD = 32, 8, 128
L3_BYTES = 32 << 20
SHORT, STEPS, PREFILL, PREFILL_LAYERS = 64, 8, 4096, 2
PROBE_BYTES = 256 << 20
# Bytes of one value; the scales of int8 and fp8 come on top and are not counted as useful reads.
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "fp8": 1}
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": D_HEAD,
    "vocab_size": 256,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
}


def make_model(
    layers: int,
    kv: str,
    max_len: int,
    backend: _core.Backend,
    base: dict[str, Any] = SHAPE,
    *,
    quantization: str | None = None,
) -> _core.Model:
    """The nearly-all-attention model, or another shape, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        shape = {**base, "num_hidden_layers": layers, "max_position_embeddings": max_len}
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        options = LoadOptions(
            folder,
            load_format="dummy",
            dtype="bfloat16",
            quantization=quantization,
            kv_cache_dtype=kv,
            max_model_len=max_len,
        )
        prepared = prepare(options)
        model = _core.Model(backend, vars(prepared.config), prepared.forms.weights)
        load_weights(model, prepared)
    return model


def make_engine(model: _core.Model, seqs: int, max_len: int) -> _core.Engine:
    limits = {"max_seqs": seqs, "max_batch_tokens": 512, "max_len": max_len}
    return _core.Engine(model, {**limits, "kv_pages": seqs * (-(-max_len // 64))})


def add(engine: _core.Engine, tokens: int, new: int) -> None:
    """A greedy request of random ids that ends after `new` tokens."""
    numbers: dict[str, Any] = {name: 0 for name, _, _ in _core.sampling_fields()}
    numbers |= {"top_p": 1.0, "repetition_penalty": 1.0, "logprobs": -1, "prompt_logprobs": -1}
    numbers |= {"max_tokens": new, "min_tokens": new}
    lists = {name: [] for name in ("stop_ids", "bias_ids", "bias", "allowed", "bad")}
    ids = np.random.default_rng(tokens).integers(0, SHAPE["vocab_size"], tokens)
    engine.add(ids.tolist(), {**numbers, **lists})


def run(engine: _core.Engine) -> float:
    """Seconds until nothing is left to do."""
    begin = time.perf_counter()
    while engine.has_work():
        engine.step()
    return time.perf_counter() - begin


def steps(engine: _core.Engine, n: int) -> float:
    """Median seconds of n decode steps."""
    times = []
    for _ in range(n):
        begin = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def start(model: _core.Model, tokens: int, new: int) -> _core.Engine:
    """An engine whose one request has read its prompt and is decoding."""
    engine = make_engine(model, 1, tokens + new)
    add(engine, tokens, new)
    while not engine.step():
        pass
    return engine


def decode(kv: str, context: int, rounds: int, backend: _core.Backend) -> dict:
    token = 2 * KV_HEADS * D_HEAD * VALUE_BYTES[kv]
    layers = -(-4 * L3_BYTES // (context * token))
    new = (rounds + 1) * STEPS + 1
    model = make_model(layers, kv, context + new, backend)
    long, short = start(model, context, new), start(model, SHORT, new)
    steps(long, STEPS)
    steps(short, STEPS)
    shares, rates, reads = [], [], []
    before = roofline.bandwidth(backend, PROBE_BYTES)
    for _ in range(rounds):
        seconds = steps(long, STEPS) - steps(short, STEPS)
        after = roofline.bandwidth(backend, PROBE_BYTES)
        rates.append((context - SHORT) * layers * token / seconds * 1e-9)
        reads.append((before + after) / 2)
        shares.append(rates[-1] / reads[-1])
        before = after
    return {
        "phase": "decode",
        "kv": kv,
        "context": context,
        "layers": layers,
        "kv_gb_s": results.spread(rates),
        "read_gb_s": results.spread(reads),
        "share": results.spread(shares),
    }


def prefill(kv: str, rounds: int, backend: _core.Backend) -> dict:
    many = PREFILL // SHORT
    model = make_model(PREFILL_LAYERS, kv, PREFILL + 1, backend)
    one, others = make_engine(model, 1, PREFILL + 1), make_engine(model, many, SHORT + 1)
    pairs = PREFILL * (PREFILL + 1) // 2 - many * SHORT * (SHORT + 1) // 2
    operations = 4 * HEADS * D_HEAD * pairs * PREFILL_LAYERS
    shares, rates, peaks = [], [], []
    for i in range(rounds + 1):
        add(one, PREFILL, 1)
        for _ in range(many):
            add(others, SHORT, 1)
        seconds = run(one) - run(others)
        peak = backend.probe_peak("bf16")
        if i == 0:  # commits pages
            continue
        rates.append(operations / seconds * 1e-9)
        peaks.append(peak)
        shares.append(rates[-1] / peak)
    return {
        "phase": "prefill",
        "kv": kv,
        "context": PREFILL,
        "layers": PREFILL_LAYERS,
        "gop_s": results.spread(rates),
        "bf16_peak_gop_s": results.spread(peaks),
        "share": results.spread(shares),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kv", default="bfloat16,int8,fp8")
    parser.add_argument("--contexts", default="4096,32768", help="of decode; empty: none")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prefill-rounds", type=int, default=3, help="0: none")
    parser.add_argument("--isa", default=None)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    backend = _core.Backend("cpu", args.isa, args.threads)
    contexts = [int(c) for c in args.contexts.split(",") if c]
    for kv in args.kv.split(","):
        rows = [decode(kv, c, args.rounds, backend) for c in contexts]
        if args.prefill_rounds > 0:
            rows.append(prefill(kv, args.prefill_rounds, backend))
        for row in rows:
            row = {
                "benchmark": "attention",
                "isa": backend.info["isa"],
                "threads": backend.info["n_threads"],
                **row,
            }
            results.append("attention", row)
            rate = row.get("kv_gb_s") or row["gop_s"]
            limit = row.get("read_gb_s") or row["bf16_peak_gop_s"]
            share = row["share"]
            print(
                f"{row['phase']:8s} {kv:9s} {row['context']:6d} tokens: {rate['median']:6.1f} of"
                f" {limit['median']:6.1f} {'GB/s' if 'kv_gb_s' in row else 'Gop/s':5s} share"
                f" {share['median']:.2f} ({share['min']:.2f} .. {share['max']:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
