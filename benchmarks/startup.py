"""From nothing to the first token, and to the refusal of a model that does not fit.

    python benchmarks/startup.py [--gguf SmolLM2.gguf] [--models smollm2,llama-3.2-1b]
                                 [--repeats 7]

Every reading is taken in a fresh interpreter, so that nothing is imported, mapped or compiled yet;
the files themselves are in the page cache after the first one, which is not counted. NumPy is
imported before the clock starts: `import` is what llmaccel costs beyond it, and `names` the
modules behind LLM and SamplingParams, which that import puts off. `load` is LLM() of the model
(SmolLM2-135M-Instruct as its file has it, a shape of models.py in bf16), `first token` one greedy
token after a short prompt, `total` the sum so far. `refusal` is LLM() of an 18 TB shape until its
MemoryPlanError, imports not included.

Prints medians, and appends one JSON line for each model to startup.jsonl (see results.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import models
import results

# A model of 128 layers whose matrices have 65536 rows: 18 TB in bf16.
HUGE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 65536,
    "intermediate_size": 262144,
    "num_hidden_layers": 128,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
# Both print one JSON object as their last line; argv[1] is the model.
FIRST_TOKEN = """
import json, sys, time
import numpy
start = time.perf_counter()
import llmaccel
imported = time.perf_counter()
from llmaccel import LLM, SamplingParams
named = time.perf_counter()
llm = LLM(sys.argv[1], max_model_len=1024)
loaded = time.perf_counter()
params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
(out,) = llm.generate("The capital of France is", params)
done = time.perf_counter()
assert len(out.outputs[0].token_ids) == 1
print(json.dumps({"import_s": imported - start, "names_s": named - imported,
                  "load_s": loaded - named, "first_token_s": done - loaded,
                  "total_s": done - start, "isa": llm.report()["backend"]["isa"]}))
"""
REFUSAL = """
import json, sys, time
from llmaccel import LLM, MemoryPlanError
start = time.perf_counter()
try:
    LLM(sys.argv[1], load_format="dummy")
except MemoryPlanError:
    print(json.dumps({"refusal_s": time.perf_counter() - start}))
"""


def reading(program: str, model: str) -> dict[str, float | str]:
    """Seconds by name, as `program` measures them in an interpreter of its own; its ISA."""
    # Modules compiled, as an installation leaves them: the reading that is not counted does it.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        [sys.executable, "-c", program, model], capture_output=True, text=True, check=False, env=env
    )
    lines = run.stdout.splitlines()
    if run.returncode or not lines:
        raise SystemExit(f"{model}: nothing was measured\n{run.stderr}")
    return json.loads(lines[-1])


def measure(model: str, repeats: int) -> dict[str, dict[str, float] | str]:
    """The spread of every figure over `repeats` readings, after one that warms the page cache."""
    readings = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(HUGE))
        for _ in range(repeats + 1):
            readings.append({**reading(FIRST_TOKEN, model), **reading(REFUSAL, folder)})
    isa = readings[0]["isa"]
    names = [name for name in readings[0] if name != "isa"]
    return {"isa": isa, **{n: results.spread([r[n] for r in readings[1:]]) for n in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument("--models", default="smollm2,llama-3.2-1b")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    names = args.models.split(",")
    if "smollm2" in names and args.gguf is None:
        raise SystemExit("smollm2 needs --gguf FILE or LLMACCEL_SMOLLM2")
    if args.repeats < 1:
        raise SystemExit("--repeats must be at least 1")
    for name in names:
        model = args.gguf if name == "smollm2" else str(models.checkpoint(name))
        about = {"model": name, "format": "file" if name == "smollm2" else "bf16"}
        found = measure(model, args.repeats)
        results.append("startup", {"benchmark": "startup", **about, **found})
        print(f"{name:12s}  {'median ms':>9s}  {'min':>8s}  {'max':>8s}")
        for part in (part for part in found if part != "isa"):
            label = part.removesuffix("_s").replace("_", " ")
            median, low, high = (1000 * found[part][k] for k in ("median", "min", "max"))
            print(f"{label:12s}  {median:9.1f}  {low:8.1f}  {high:8.1f}")


if __name__ == "__main__":
    main()
