"""What each number format costs in perplexity, on SmolLM2-135M-Instruct.

    python benchmarks/quality.py [--gguf SmolLM2.gguf] [--shared ../shared] [--windows 24] [--kept]

The float source is the file dequantized to fp32. Its weights lie on the 4-bit grids of the file's
own groups, which would flatter 4-bit formats, so the hidden dimensions are shuffled first (residual
stream, feed-forward width and the inside of value heads; the model computes the same): a group of
a new format then mixes values of many old ones. `--kept` leaves the order.

For each quantization, over windows of 512 tokens of WikiText-2 (the golden ids first):
    own          fp32 forward over the format's own dequantized weights
    weight_only  the format with bf16 activations; must be within 0.1 % of own
    int8         the format with int8 activations over the same with bf16 ones, both in the model's
                 own order of dimensions; at most 0.5 % (fp8: none)
and for the file itself fp32, bf16 and int8 activations, and int8 and fp8 pages of the KV cache
over bf16 ones (int8: at most 0.2 %). `loss` is own over the float source.

Prints a table, each excess with its standard error over the windows (three windows cannot tell
differences of 0.1 %, 24 can), and appends a JSON line per row to quality.jsonl (results.py
says where). The golden ids and the text come from --shared, which is not part of the repository.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import results

from llmaccel import LLM, _core, read_arrays
from llmaccel.recipes import make_recipe

WINDOW = 512
FORMATS = ("int8", "w4g128", "w4g32", "w6g16", "fp8")
# What _core.pack, a door for tests, takes as numbers.
_TYPES = _core.DTYPES
_F32, _STORED = _TYPES.index("F32"), len(_TYPES)
# Weights of one layer
_LAYER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


# ---- the float source ----------------------------------------------------------------------------


def shuffled(config: dict, arrays: dict[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
    """The same model with hidden dimensions in another order."""
    rng = np.random.default_rng(seed)
    stream = rng.permutation(config["hidden_size"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    out = {}
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        out[name] = arrays[name][..., stream]
    for layer in range(config["num_hidden_layers"]):
        wide = rng.permutation(config["intermediate_size"])
        inside = [rng.permutation(size) for _ in range(kv_heads)]
        value = np.concatenate([size * h + order for h, order in enumerate(inside)])
        share = heads // kv_heads
        merged = np.concatenate([size * h + inside[h // share] for h in range(heads)])
        rows = {"self_attn.v_proj": value, "mlp.gate_proj": wide, "mlp.up_proj": wide}
        rows |= {"self_attn.o_proj": stream, "mlp.down_proj": stream}
        columns = {"self_attn.o_proj": merged, "mlp.down_proj": wide}
        for short in _LAYER:
            name = f"model.layers.{layer}.{short}.weight"
            w = arrays[name][..., columns.get(short, stream)]
            out[name] = w[rows[short]] if short in rows else w
    return {name: np.ascontiguousarray(w) for name, w in out.items()}


def own_values(arrays: dict[str, np.ndarray], quantization: str) -> dict[str, np.ndarray]:
    """fp32 arrays of what the core stores under `quantization`, the tied head in its own form."""
    head = make_recipe("auto", quantization, True)["head"]
    out = {}
    for name, w in arrays.items():
        form = head if name == "model.embed_tokens.weight" else quantization
        out[name] = quantized_values(w, form) if w.ndim == 2 else w
    return out


def quantized_values(w: np.ndarray, quantization: str) -> np.ndarray:
    """A matrix packed by the core and read back by its unpack_row."""
    rows, cols = w.shape
    form = _core.QUANTIZATIONS.index(quantization)
    packed, stored = _core.pack([(w, _F32, rows, cols)], _STORED, False, form)
    back = b"".join(_core.unpack("scalar", packed, stored, row) for row in range(rows))
    return np.frombuffer(back, np.float32).reshape(rows, cols)


# ---- perplexity ----------------------------------------------------------------------------------


def _text(shared: Path, name: str) -> str:
    try:
        return (shared / "data" / name).read_text()
    except OSError as error:
        raise SystemExit(
            f"--shared {shared}: {error}; the golden ids and the text that this measures on lie in "
            "data/ of a folder that does not come with the repository"
        ) from None


def token_windows(shared: Path, gguf: str, count: int) -> list[list[int]]:
    """The golden ids, and windows of what follows them in the text where more are asked for."""
    golden = json.loads(_text(shared, "models/smollm2_135m/golden_nll.json"))
    ids = list(golden["ids"])
    if count * WINDOW > len(ids):
        text = _text(shared, "texts/wikitext2_raw_test.txt")[: count * WINDOW * 8]
        with LLM(gguf, max_model_len=WINDOW, max_num_seqs=1) as llm:
            more = llm.get_tokenizer().encode(text, add_special_tokens=False)
        if more[: len(ids)] != ids:
            raise SystemExit("the tokenizer does not give the golden ids")
        ids = more
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(count)]


def losses(llm: LLM, windows: list[list[int]]) -> np.ndarray:
    """float64 [windows]: the mean of -ln p over positions 1..511 of each."""
    scores = llm.loglikelihood([w[:1] for w in windows], [w[1:] for w in windows])
    return np.array([-s / (len(w) - 1) for w, (s, _) in zip(windows, scores, strict=True)])


def perplexity(losses: np.ndarray) -> float:
    return math.exp(losses.mean())


def excess(losses: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """(relative excess of perplexity over `base`, its standard error over the windows)."""
    steps = losses - base
    error = steps.std(ddof=1) / math.sqrt(len(steps)) if len(steps) > 1 else math.nan
    return math.expm1(steps.mean()), float(error)


def array_losses(
    config: dict, arrays: dict, windows: list[list[int]], **options: str
) -> tuple[np.ndarray, int]:
    """(losses, bytes a token reads) of a model from arrays."""
    with LLM.from_arrays(config, arrays, max_model_len=WINDOW, **options) as llm:
        return losses(llm, windows), llm.report()["memory"]["token_bytes"]


def measure_format(
    config: dict, arrays: dict, kept: dict, windows: list[list[int]], quantization: str
) -> tuple[dict[str, np.ndarray], int]:
    """(losses of one quantization by the names of this file's head, bytes a token reads).

    kept: the arrays in their own order, in which int8 activations are measured: values of a size
    lie together there, so groups of a shuffled order would be another model's.
    """
    found = {}
    own = own_values(arrays, quantization)
    found["own"], _ = array_losses(config, own, windows, dtype="float32")
    options = {"quantization": quantization, "kv_cache_dtype": "float32"}
    found["weight_only"], token_bytes = array_losses(
        config, arrays, windows, activation="bfloat16", **options
    )
    if quantization != "fp8":
        for name, activation in (("kept", "bfloat16"), ("int8", "int8")):
            found[name], _ = array_losses(config, kept, windows, activation=activation, **options)
    return found, token_bytes


def measure_file(gguf: str, windows: list[list[int]]) -> tuple[dict[str, np.ndarray], int]:
    """The same of the file as it is, and with bf16 activations on pages of every form."""
    runs = {"own": ("float32", "float32"), "weight_only": ("bfloat16", "float32")}
    runs |= {"int8": ("int8", "float32"), "kv_bfloat16": ("bfloat16", "bfloat16")}
    runs |= {"kv_int8": ("bfloat16", "int8"), "kv_fp8": ("bfloat16", "fp8")}
    found, token_bytes = {}, 0
    for name, (activation, pages) in runs.items():
        options = {"activation": activation, "kv_cache_dtype": pages}
        with LLM(gguf, max_model_len=WINDOW, **options) as llm:
            found[name] = losses(llm, windows)
            token_bytes = llm.report()["memory"]["token_bytes"]
    return found, token_bytes


def summary(found: dict[str, np.ndarray], source: np.ndarray) -> dict[str, float]:
    """A row of results: perplexities, the format's loss, and excesses with their errors."""
    row: dict[str, float] = {name: perplexity(loss) for name, loss in found.items()}
    row["loss"], row["loss_error"] = excess(found["own"], source)
    pairs = {"weight_only": "own", "int8": "kept" if "kept" in found else "weight_only"}
    pairs |= {"kv_int8": "kv_bfloat16", "kv_fp8": "kv_bfloat16"}
    for name in pairs.keys() & found.keys():
        row[f"{name}_excess"], row[f"{name}_error"] = excess(found[name], found[pairs[name]])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared"
    )
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--formats", default=",".join((*FORMATS, "gguf")))
    parser.add_argument("--kept", action="store_true", help="leave the order of dimensions")
    args = parser.parse_args()
    if args.gguf is None:
        raise SystemExit("needs --gguf FILE or LLMACCEL_SMOLLM2")
    windows = token_windows(args.shared, args.gguf, args.windows)
    config, arrays = read_arrays(args.gguf)
    source, _ = array_losses(config, arrays, windows, dtype="float32")
    kept, arrays = arrays, arrays if args.kept else shuffled(config, arrays)
    print(f"float source: perplexity {perplexity(source):.4f}")
    print(
        f"{'':8s} {'own':>8s} {'loss':>8s} {'weights':>16s} {'int8':>16s} {'int8 pages':>16s} "
        f"{'fp8 pages':>16s} {'MB a token':>10s}"
    )
    for name in args.formats.split(","):
        found, token_bytes = (
            measure_file(args.gguf, windows)
            if name == "gguf"
            else measure_format(config, arrays, kept, windows, name)
        )
        row = summary(found, source)
        record = {"benchmark": "quality", "windows": args.windows, "shuffled": not args.kept}
        record |= {"format": name, "source": perplexity(source), "token_bytes": token_bytes}
        results.append("quality", record | row)
        shown = [
            f"{row[f'{kind}_excess']:+.3%}±{row[f'{kind}_error']:.3%}" if kind in found else "-"
            for kind in ("weight_only", "int8", "kv_int8", "kv_fp8")
        ]
        print(
            f"{name:8s} {row['own']:8.4f} {row['loss']:+8.2%} {shown[0]:>16s} {shown[1]:>16s} "
            f"{shown[2]:>16s} {shown[3]:>16s} {token_bytes / 1e6:10.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
