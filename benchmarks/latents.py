"""Speed of attention over latents (MLA) in decode, as shares of the roofline of the same run.

    python benchmarks/latents.py [--heads 16,128] [--kv bfloat16,fp8] [--context 4096] [--rounds 9]

One sequence on a model of DeepSeek's head sizes (latents of 512, keys of 64) that is otherwise
narrow, of 256 heads in all its layers. 8 steps at the long context, 8 at a short one on a second
engine, whose time is taken off: the products of heads and the rest are in both. share = operations
of the difference (2 per head, token and each of 576 + 512 dimensions) over time and bf16 peak;
read_share = bytes of the cache over time and read bandwidth, both probed beside each reading.
"""

from __future__ import annotations

import argparse
from typing import Any

import attention
import results
import roofline

from llmaccel import _core

RANK, KEY = 512, 64
TOKEN = {"bfloat16": 2 * (RANK + KEY), "fp8": 656, "float32": 4 * (RANK + KEY)}
SHORT, STEPS, ALL_HEADS = 64, 8, 256


def shape(heads: int) -> dict[str, Any]:
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": heads,
        "kv_lora_rank": RANK,
        "qk_rope_head_dim": KEY,
        "q_lora_rank": 64,
        "first_k_dense_replace": ALL_HEADS,
        "vocab_size": 256,
        "torch_dtype": "bfloat16",
    }


def decode(heads: int, kv: str, context: int, rounds: int, backend: _core.Backend) -> dict:
    new, layers = (rounds + 1) * STEPS + 1, ALL_HEADS // heads
    model = attention.make_model(layers, kv, context + new, backend, shape(heads))
    long, short = attention.start(model, context, new), attention.start(model, SHORT, new)
    attention.steps(long, STEPS)
    attention.steps(short, STEPS)
    shares, reads, rates = [], [], []
    for _ in range(rounds):
        seconds = attention.steps(long, STEPS) - attention.steps(short, STEPS)
        tokens = (context - SHORT) * layers
        rates.append(2 * heads * (2 * RANK + KEY) * tokens / seconds * 1e-9)
        shares.append(rates[-1] / backend.probe_peak("bf16"))
        read = roofline.bandwidth(backend, attention.PROBE_BYTES)
        reads.append(tokens * TOKEN[kv] / seconds * 1e-9 / read)
    return {
        "phase": "decode",
        "heads": heads,
        "kv": kv,
        "context": context,
        "layers": layers,
        "gop_s": results.spread(rates),
        "share": results.spread(shares),
        "read_share": results.spread(reads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", default="16,128")
    parser.add_argument("--kv", default="bfloat16,fp8")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    backend = _core.Backend("cpu", None, args.threads)
    for kv in args.kv.split(","):
        for heads in map(int, args.heads.split(",")):
            row = decode(heads, kv, args.context, args.rounds, backend)
            info = {"isa": backend.info["isa"], "threads": backend.info["n_threads"]}
            results.append("latents", {"benchmark": "latents", **info, **row})
            share, read = row["share"], row["read_share"]
            print(
                f"{kv:9s} {heads:4d} heads: {row['gop_s']['median']:6.1f} Gop/s, share"
                f" {share['median']:.2f} ({share['min']:.2f} .. {share['max']:.2f}) of the dots,"
                f" {read['median']:.2f} of reading",
                flush=True,
            )


if __name__ == "__main__":
    main()
