"""Speed of experts: grouped products beside a single one, and decode as a share of reading.

    python benchmarks/experts.py grouped [--format bf16,int8,w4g128,w4g32,fp8]
        [--shape 1536x2048,2048x768] [--experts 8] [--rows 64] [--rounds 15]
    python benchmarks/experts.py decode [--format ...] [--tokens 1,4,16] [--hidden 2048]
        [--width 768] [--rounds 15]

grouped: `kernels.grouped_linear_contiguous` on experts of N x K with so many rows each, and
`kernels.linear` with all these rows on one of them, in turns; ratio = its time over the grouped
one's. Of the experts one after the other only the first few lie in a cache: each call multiplies
by the next set of those that fill 256 MiB, while the single product keeps its matrix.

decode: a model whose layers have 64 experts, 8 of which a token meets, and else next to nothing;
so many layers that the experts of one token are four times a 32 MiB L3. 8 steps of it, 8 of the
same model with almost no feed-forward layers, whose time and bytes are taken off, the read probe
before and after; share = bytes of the experts that some token of the step met, and of the routers,
over time and bandwidth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import attention
import numpy as np
import results
import roofline

from llmaccel import Tensor, _core, kernels

# name: quantization of decode's model
FORMATS = {"bf16": None, "int8": "int8", "w4g128": "w4g128", "w4g32": "w4g32", "fp8": "fp8"}
SET_BYTES = 256 << 20
TOKEN_BYTES = 4 * attention.L3_BYTES
EXPERTS, USED, PROMPT, STEPS, MOST_TOKENS = 64, 8, 16, 8, 1024
SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "intermediate_size": 32,  # of the model without experts
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "num_experts": EXPERTS,
    "num_experts_per_tok": USED,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "vocab_size": 256,
    "torch_dtype": "bfloat16",
}


# ---- grouped products ----------------------------------------------------------------------------


def seconds(call: Callable[[], object], n: int) -> float:
    """Of one of n calls."""
    begin = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - begin) / n


def pack_sets(name: str, shape: tuple[int, int, int]) -> list[kernels.PackedExperts]:
    """Sets of experts [E, N, K] that no cache holds together."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    form = "BF16" if name == "bf16" else name
    first = kernels.pack_experts(values, form)
    more = range(max(1, SET_BYTES // first.nbytes) - 1)
    return [first, *(kernels.pack_experts(values, form) for _ in more)]


def grouped(name: str, shape: tuple[int, int, int], args: argparse.Namespace) -> dict:
    """One format and [E, N, K]."""
    experts, n, k = shape
    sets = pack_sets(name, shape)
    m = experts * args.rows
    x = np.random.default_rng(4).standard_normal((m, k), np.float32)
    index = np.repeat(np.arange(experts), args.rows)
    one, many = Tensor.zeros((m, n), "F32"), Tensor.zeros((m, n), "F32")
    what = "bf16" if name in ("bf16", "fp8") else "int8"
    how = {
        "threads": args.threads,
        "activation": {"bf16": "bfloat16", "int8": "int8"}[what],  # as the engine multiplies
    }
    turn = 0

    def all_experts() -> None:
        nonlocal turn
        turn += 1
        kernels.grouped_linear_contiguous(x, sets[turn % len(sets)], index, out=many, **how)

    def single() -> None:
        kernels.linear(x, sets[0][0], out=one, **how)

    backend = _core.Backend("cpu", None, args.threads)
    calls = max(1, int(0.05 / seconds(single, 2)))
    seconds(all_experts, len(sets))
    ratios, shares, rates = [], [], []
    for _ in range(args.rounds):
        alone = seconds(single, calls)
        together = seconds(all_experts, calls)
        alone = (alone + seconds(single, calls)) / 2
        ratios.append(alone / together)
        rates.append(2.0 * m * n * k / together * 1e-9)
        shares.append(rates[-1] / backend.probe_peak(what))
    return {
        "phase": "grouped",
        "format": name,
        "n": n,
        "k": k,
        "experts": experts,
        "rows": args.rows,
        "gop_s": results.spread(rates),
        "peak": what,
        "share_of_peak": results.spread(shares),
        "ratio": results.spread(ratios),
    }


# ---- decode --------------------------------------------------------------------------------------


def start(model: _core.Model, tokens: int, new: int) -> _core.Engine:
    """An engine that is decoding so many sequences, each with a prompt of its own length."""
    engine = attention.make_engine(model, tokens, PROMPT + tokens + new)
    for i in range(tokens):
        attention.add(engine, PROMPT + i, new)
    while not engine.step():
        pass
    return engine


def met(engine: _core.Engine, n: int) -> tuple[float, float]:
    """n steps: median seconds of one, mean number of (layer, expert) that it meets."""
    times, counts = [], []
    before = np.frombuffer(engine.expert_load(), np.int64)
    for _ in range(n):
        begin = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begin)
        after = np.frombuffer(engine.expert_load(), np.int64)
        counts.append(np.count_nonzero(after != before))
        before = after
    return statistics.median(times), float(np.mean(counts))


def models_of(name: str, args: argparse.Namespace, backend: _core.Backend) -> tuple[Any, Any, int]:
    """With experts, without, and how many layers."""
    bits = {"bf16": 16, "int8": 8, "fp8": 8, "w4g128": 4.125, "w4g32": 4.5}[name]
    expert = 3 * args.hidden * args.width * bits / 8
    layers = -(-TOKEN_BYTES // int(USED * expert))
    shape = {**SHAPE, "hidden_size": args.hidden, "moe_intermediate_size": args.width}
    made = [
        attention.make_model(
            layers,
            "bfloat16",
            MOST_TOKENS,
            backend,
            {**shape, "mlp_only_layers": dense},
            quantization=FORMATS[name],
        )
        for dense in ([], list(range(layers)))
    ]
    return made[0], made[1], layers


def decode(name: str, args: argparse.Namespace, backend: _core.Backend) -> list[dict]:
    """One format, for every number of tokens."""
    model, bare, layers = models_of(name, args, backend)
    first = model.token_bytes - bare.token_bytes
    expert = (model.bytes - bare.bytes - first) / (layers * (EXPERTS - USED))
    rows = []
    for tokens in (int(t) for t in args.tokens.split(",")):
        new = (args.rounds + 2) * STEPS
        full, rest = start(model, tokens, new), start(bare, tokens, new)
        met(full, STEPS)
        attention.steps(rest, STEPS)
        shares, rates, reads, counts = [], [], [], []
        before = roofline.bandwidth(backend, attention.PROBE_BYTES)
        for _ in range(args.rounds):
            taken, count = met(full, STEPS)
            taken -= attention.steps(rest, STEPS)
            after = roofline.bandwidth(backend, attention.PROBE_BYTES)
            touched = first + (count - USED * layers) * expert
            rates.append(touched / taken * 1e-9)
            reads.append((before + after) / 2)
            shares.append(rates[-1] / reads[-1])
            counts.append(count / layers)
            before = after
        rows.append(
            {
                "phase": "decode",
                "format": name,
                "tokens": tokens,
                "layers": layers,
                "expert_bytes": round(expert),
                "experts_met": results.spread(counts),
                "gb_s": results.spread(rates),
                "read_gb_s": results.spread(reads),
                "share": results.spread(shares),
            }
        )
    return rows


# ---- what is printed -----------------------------------------------------------------------------


def record(row: dict, backend: _core.Backend, line: str) -> None:
    info = {"isa": backend.info["isa"], "threads": backend.info["n_threads"]}
    results.append("experts", {"benchmark": "experts", **info, **row})
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("grouped", "decode"))
    parser.add_argument("--format", default=",".join(FORMATS))
    parser.add_argument("--shape", default="1536x2048,2048x768", help="of grouped: N x K")
    parser.add_argument("--experts", type=int, default=8, help="of grouped")
    parser.add_argument("--rows", type=int, default=64, help="of grouped, of each expert")
    parser.add_argument("--tokens", default="1,4,16", help="of decode")
    parser.add_argument("--hidden", type=int, default=2048, help="of decode")
    parser.add_argument("--width", type=int, default=768, help="of decode, of an expert")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    backend = _core.Backend("cpu", None, args.threads)
    for name in args.format.split(","):
        if args.what == "decode":
            for row in decode(name, args, backend):
                share = row["share"]
                record(row, backend, f"{name:7s} {row['tokens']:3d} tokens: "
                       f"{row['gb_s']['median']:5.1f} of {row['read_gb_s']['median']:5.1f} GB/s, "
                       f"share {share['median']:.2f} ({share['min']:.2f} .. {share['max']:.2f}), "
                       f"{row['experts_met']['median']:.1f} experts a layer")  # fmt: skip
            continue
        for shape in args.shape.split(","):
            n, k = (int(v) for v in shape.split("x"))
            row = grouped(name, (args.experts, n, k), args)
            ratio, share = row["ratio"], row["share_of_peak"]
            record(row, backend, f"{name:7s} {shape:>10s} {args.experts} x {args.rows} rows: "
                   f"{row['gop_s']['median']:6.0f} Gop/s ({share['median']:.2f} of {row['peak']}), "
                   f"{ratio['median']:.2f} ({ratio['min']:.2f} .. {ratio['max']:.2f}) of the "
                   "single product")  # fmt: skip


if __name__ == "__main__":
    main()
