"""Decode and prefill speed of the whole engine, as shares of the roofline measured in the same run.

    python benchmarks/engine.py [--gguf SmolLM2.gguf] [--models smollm2,qwen2.5-0.5b] [--repeats 5]

Two models: SmolLM2-135M-Instruct from its GGUF file (as quantized there), and the shape of
Qwen2.5-0.5B in bf16 with random weights. For each, at batch 1 and 16: prefill of 512 tokens a
request to its first token, then decode of 64 tokens a request after a 128-token prompt.

Shares. Decode at batch 1 reads every weight once a token: (weight bytes a token x tok/s) over the
read bandwidth probed right before and after. Prefill is arithmetic: 2 operations per weight and
token over the bf16 dot peak probed in the same run (for int8 products too, whose own is higher).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import results
import roofline

from llmaccel import LLM, SamplingParams, _core

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
# Weights of one token's products, without the head: every layer's matrices.
MATRIX_WEIGHTS = {
    "smollm2": 30 * (576 * 960 + 576 * 576 + 3 * 576 * 1536),
    "qwen2.5-0.5b": 24 * (896 * 1152 + 896 * 896 + 3 * 896 * 4864),
}
VOCAB = {"smollm2": 49152, "qwen2.5-0.5b": 151936}


def open_model(name: str, gguf: str | None, threads: int | None = None) -> LLM:
    """The model `name`, ready to run on all processors or with `threads`."""
    limits = {"max_model_len": 1024, "max_num_seqs": 16, "threads": threads}
    if name == "smollm2":
        if gguf is None:
            raise SystemExit("smollm2 needs --gguf FILE or LLMACCEL_SMOLLM2")
        return LLM(gguf, **limits)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(QWEN))
        return LLM(folder, load_format="dummy", dtype="bfloat16", **limits)


def generate(llm: LLM, ids: np.ndarray, tokens: int) -> tuple[float, float]:
    """Seconds to the last first token, and from there to the end; ids [batch, T]."""
    params = SamplingParams(
        temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": row.tolist()} for row in ids]
    times = [out.timings for out in llm.generate(prompts, params, use_tqdm=False)]
    first = max(t.first_token for t in times)
    return first - min(t.arrival for t in times), max(t.finished for t in times) - first


def measure(name: str, llm: LLM, batch: int, repeats: int, backend: _core.Backend) -> dict:
    """One row of results: medians over `repeats`, probes taken around every repeat."""
    rng = np.random.default_rng(1)
    weights = MATRIX_WEIGHTS[name]
    token_bytes = llm.report()["memory"]["token_bytes"]
    decode, prefill, decode_share, prefill_share, reads = [], [], [], [], []
    for repeat in range(repeats + 1):
        before = roofline.bandwidth(backend)
        _, seconds = generate(llm, rng.integers(0, VOCAB[name], (batch, 128)), 65)
        after = roofline.bandwidth(backend)
        rate = batch * 64 / seconds
        first, _ = generate(llm, rng.integers(0, VOCAB[name], (batch, 512)), 1)
        peak = backend.probe_peak("bf16")
        if repeat == 0:  # warms caches and commits pages
            continue
        decode.append(rate)
        reads.append((before + after) / 2)
        decode_share.append(token_bytes * rate / batch * 1e-9 / reads[-1])
        prefill.append(batch * 512 / first)
        prefill_share.append(2 * weights * prefill[-1] * 1e-9 / peak)
    row = {
        "benchmark": "engine",
        "model": name,
        "batch": batch,
        "isa": backend.info["isa"],
        "threads": backend.info["n_threads"],
        "token_bytes": token_bytes,
        "decode_tok_s": results.spread(decode),
        "prefill_tok_s": results.spread(prefill),
        "read_gb_s": results.spread(reads),
        "prefill_share_of_bf16_peak": results.spread(prefill_share),
    }
    if batch == 1:
        row["decode_share_of_read"] = results.spread(decode_share)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument("--models", default="smollm2,qwen2.5-0.5b")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    backend = _core.Backend("cpu", None, 0)
    print("model          batch  decode tok/s  of read  read GB/s  prefill tok/s  of bf16 peak")
    for name in args.models.split(","):
        llm = open_model(name, args.gguf)
        for batch in (int(b) for b in args.batches.split(",")):
            row = measure(name, llm, batch, args.repeats, backend)
            results.append("engine", row)
            share = row.get("decode_share_of_read", {}).get("median")
            print(
                f"{name:14s} {batch:5d}  {row['decode_tok_s']['median']:12.1f}"
                f"  {'-' if share is None else format(share, '.2f'):>7s}"
                f"  {row['read_gb_s']['median']:9.1f}"
                f"  {row['prefill_tok_s']['median']:13.1f}"
                f"  {row['prefill_share_of_bf16_peak']['median']:12.2f}"
            )
        llm.close()


if __name__ == "__main__":
    main()
