"""What everything but the model costs: bookkeeping of a step, Python under many streams, idling.

    python benchmarks/overhead.py [--gguf SmolLM2.gguf] [--seconds 4]

`bookkeeping`: 256 sequences decode on a tiny model; all the time a step takes outside the model
(the scheduler, events, the driver's Python, waiting for its turn) over the number of sequences.
`python share`: 64 streams of SmolLM2, each taken by a thread of its own; processor time of those
threads and of the driver's thread outside Engine.step, over that of the process. `idle share`:
processor time of the process while the engine has nothing to do, over the time that passes.

Prints the three, and appends a JSON line for each to overhead.jsonl (results.py says where).
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

import numpy as np
import results

from llmaccel import LLM, SamplingParams
from llmaccel.models.mapping import build_config, tensor_specs

SEQUENCES = 256
STREAMS = 64
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
}


def tiny_model() -> LLM:
    rng = np.random.default_rng(0)
    specs = tensor_specs(build_config(TINY))
    arrays = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in specs}
    limits = {"max_num_seqs": SEQUENCES, "max_num_batched_tokens": 2 * SEQUENCES}
    return LLM.from_arrays(TINY, arrays, dtype="float32", max_model_len=4096, **limits)


class TimedEngine:
    """An engine whose step() notes the driver's processor time, inside and as a whole."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.inside = 0.0
        self.whole = 0.0

    def step(self) -> list[Any]:
        start = time.thread_time()
        events = self._engine.step()
        self.whole = time.thread_time()
        self.inside += self.whole - start
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def wait_for(llm: LLM, running: int) -> None:
    while llm.engine.stats()["running"] < running:
        time.sleep(0.01)


def bookkeeping(seconds: float) -> dict[str, Any]:
    """Microseconds per sequence and step outside the model."""
    with tiny_model() as llm:
        params = SamplingParams(max_tokens=4000, ignore_eos=True, temperature=0.8, top_k=20)
        futures = [llm.submit([1 + i % 200, 2, 3], params) for i in range(SEQUENCES)]
        wait_for(llm, SEQUENCES)
        found = []
        for _ in range(8):
            start, before = time.perf_counter(), llm.engine.stats()
            time.sleep(seconds / 8)
            wall, after = time.perf_counter() - start, llm.engine.stats()
            steps, forward = (after[k] - before[k] for k in ("steps", "forward_seconds"))
            found.append(1e6 * (wall - forward) / steps / SEQUENCES)
        assert llm.engine.stats()["running"] == SEQUENCES, "too short: some have ended"
        for future in futures:
            future.cancel()
    return {"what": "bookkeeping", "us_per_sequence_step": results.spread(found)}


def python_share(gguf: str, seconds: float) -> dict[str, Any]:
    """Processor time of consumers and of the driver outside step() over that of the process."""
    spent = [0.0] * STREAMS
    tokens = [0] * STREAMS
    stop = threading.Event()
    with LLM(gguf, max_model_len=2048, max_num_seqs=STREAMS) as llm:
        llm.engine._engine = engine = TimedEngine(llm.engine._engine)
        params = SamplingParams(max_tokens=1500, ignore_eos=True, temperature=0.8, top_p=0.95)

        def counters() -> np.ndarray:
            python = engine.whole - engine.inside + sum(spent)
            return np.array([time.perf_counter(), python, time.process_time(), sum(tokens)])

        def consume(i: int) -> None:
            for chunk in llm.generate(f"Story number {i}:", params, stream=True):
                tokens[i] += len(chunk.outputs[0].token_ids)
                spent[i] = time.thread_time()
                if stop.is_set():
                    break

        threads = [threading.Thread(target=consume, args=(i,)) for i in range(STREAMS)]
        for thread in threads:
            thread.start()
        wait_for(llm, STREAMS)
        shares, rates = [], []
        for _ in range(4):
            before = counters()
            time.sleep(seconds / 4)
            wall, python, process, made = counters() - before
            shares.append(python / process)
            rates.append(made / wall)
        stop.set()
        for thread in threads:
            thread.join()
    return {
        "what": "python share",
        "streams": STREAMS,
        "share_of_cpu": results.spread(shares),
        "tok_s": results.spread(rates),
    }


def idle_share(seconds: float) -> dict[str, Any]:
    """Processor time of an engine that has run and has nothing to do, over real time."""
    with tiny_model() as llm:
        llm.generate([1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True))
        time.sleep(0.1)
        found = []
        for _ in range(4):
            start, cpu = time.perf_counter(), time.process_time()
            time.sleep(seconds / 4)
            found.append((time.process_time() - cpu) / (time.perf_counter() - start))
    return {"what": "idle share", "share_of_cpu": results.spread(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    args = parser.parse_args()
    rows = [bookkeeping(args.seconds), idle_share(args.seconds)]
    if args.gguf is not None:
        rows.append(python_share(args.gguf, 2 * args.seconds))
    for row in rows:
        results.append("overhead", {"benchmark": "overhead", **row})
        values = "  ".join(
            f"{key}: {value['median']:.4g} ({value['min']:.4g} to {value['max']:.4g})"
            for key, value in row.items()
            if isinstance(value, dict)
        )
        print(f"{row['what']:13s}  {values}")


if __name__ == "__main__":
    main()
