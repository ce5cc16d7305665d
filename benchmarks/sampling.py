"""What a draw costs beyond the product of the LM head, at a vocabulary of 151,936.

    python benchmarks/sampling.py [--vocab 151936] [--rows 1,32] [--repeats 15]

The model is a table: one empty block 16 wide and a head whose first column is the logits wanted,
so a step is little more than the product and the draw. Two shapes of logits: `zipf`, as language
models give them (the best tokens hold most of the probability), and `flat`, normal noise as an
untrained model gives it, where a nucleus has tens of thousands of members. Steps of every way to
draw are interleaved. A figure is the median step less the median greedy step, plus what greedy
itself costs (the largest value of every 32 logits, taken where the product leaves them, and the
best of those, both timed as kernels), in microseconds a row.

Prints a table, and appends one JSON line per row of it to sampling.jsonl (results.py).
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import results

from llmaccel import _core
from llmaccel.loading import load_weights, prepare
from llmaccel.models.mapping import build_config, tensor_specs
from llmaccel.options import LoadOptions
from llmaccel.params import SamplingParams, engine_fields

WIDTH = 16
TOKENS = 24
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}
PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, logprobs": {"temperature": 0.0, "logprobs": 5},
    "temperature": {"temperature": 0.8},
    "temperature, logprobs": {"temperature": 0.8, "logprobs": 5},
    "top_k, top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
    "top_k, top_p, penalties": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, **PENALTIES},
    "top_p, penalties": {"temperature": 0.8, "top_p": 0.95, **PENALTIES},
}


def logits_of(shape: str, n_vocab: int) -> np.ndarray:
    """float32 [V]."""
    rng = np.random.default_rng(1)
    if shape == "flat":
        return rng.normal(0, 1, n_vocab).astype(np.float32)
    rank = rng.permutation(n_vocab) + 1.0
    return (14 - 1.5 * np.log(rank) + rng.normal(0, 0.3, n_vocab)).astype(np.float32)


def make_model(logits: np.ndarray) -> Any:
    """A model that gives these logits after every token."""
    config = {**CONFIG, "vocab_size": len(logits)}
    arrays = {}
    for name, shape in tensor_specs(build_config(config)):
        arrays[name] = np.zeros(shape, np.float32) if len(shape) > 1 else np.ones(shape, np.float32)
    arrays["model.embed_tokens.weight"][:] = 1
    arrays["model.norm.weight"][1:] = 0
    arrays["lm_head.weight"][:, 0] = logits
    prepared = prepare(LoadOptions(config, dtype="float32"), arrays)
    model = _core.Model(_core.Backend("cpu", None, 0), vars(prepared.config), "F32")
    load_weights(model, prepared)
    return model


def median_step(engine: Any, n_vocab: int, rows: int, way: dict[str, Any]) -> float:
    """Seconds of a step that draws for `rows` requests."""
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, detokenize=False, **way)
    for row in range(rows):
        fields = engine_fields(
            params, n_vocab=n_vocab, max_tokens=TOKENS, seed=row, stop_ids=(), bad=[]
        )
        engine.add([row], fields)
    times = []
    while engine.has_work():
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def greedy_cost(isa: str, threads: int, logits: np.ndarray) -> float:
    """Seconds a row of block_max over V, shared by the threads, and argmax over what it leaves."""
    best = np.empty(-(-len(logits) // 32), np.float32)

    def median(call: Any) -> float:
        times = []
        for _ in range(50):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    empty = median(lambda: _core.argmax(isa, best[:32]))  # choosing the level costs most of it
    largest = median(lambda: _core.block_max(isa, logits, best)) - empty
    return largest / threads + median(lambda: _core.argmax(isa, best)) - empty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--rows", default="1,32")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    print(f"{'logits':7s} {'rows':>4s}  {'way':26s} {'us a row':>9s} {'min':>7s} {'max':>7s}")
    for shape in ("zipf", "flat"):
        logits = logits_of(shape, args.vocab)
        model = make_model(logits)
        info = _core.Backend("cpu", None, 0).info
        for rows in (int(n) for n in args.rows.split(",")):
            limits = {"max_seqs": rows, "max_batch_tokens": rows, "max_len": 64, "kv_pages": rows}
            engine = _core.Engine(model, limits)
            own = greedy_cost(info["isa"], info["n_threads"], logits)
            found: dict[str, list[float]] = {name: [] for name in WAYS}
            for repeat in range(args.repeats + 1):
                base = median_step(engine, args.vocab, rows, WAYS["greedy"])
                for name, way in WAYS.items():
                    step = base if name == "greedy" else median_step(engine, args.vocab, rows, way)
                    if repeat:  # the first warms caches
                        found[name].append(1e6 * ((step - base) / rows + own))
            for name, values in found.items():
                row = {
                    "benchmark": "sampling",
                    "logits": shape,
                    "vocab": args.vocab,
                    "rows": rows,
                    "way": name,
                    "isa": info["isa"],
                    "threads": info["n_threads"],
                    "us_per_row": results.spread(values),
                }
                results.append("sampling", row)
                middle, low, high = (row["us_per_row"][k] for k in ("median", "min", "max"))
                print(f"{shape:7s} {rows:4d}  {name:26s} {middle:9.1f} {low:7.1f} {high:7.1f}")
            engine.close()


if __name__ == "__main__":
    main()
