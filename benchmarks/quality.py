"""What each number format costs in perplexity, on SmolLM2-135M-Instruct.

    python benchmarks/quality.py [--gguf SmolLM2.gguf] [--shared ../shared] [--windows 3] [--kept]

The float source is the file dequantized to fp32. Its weights lie on the 4-bit grids of the file's
own groups, which would flatter 4-bit formats, so the hidden dimensions are shuffled first (residual
stream, feed-forward width and the inside of value heads; the model computes the same): a group of
a new format then mixes values of many old ones. `--kept` leaves the order.

For each quantization, over windows of 512 tokens of WikiText-2 (the golden ids first):
    own          fp32 forward over the format's own dequantized weights
    weight_only  the format with bf16 activations; must be within 0.1 % of own
    int8         the format with int8 activations; at most 0.5 % over weight_only (fp8: none)
and for the file itself fp32, bf16 and int8 activations. `loss` is own over the float source.

Prints a table, and appends one JSON line per row to benchmarks/results/quality.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import results

from llmaccel import LLM, _core
from llmaccel.models.gguf import open_gguf

WINDOW = 512
FORMATS = ("int8", "w4g128", "w4g32", "fp8")
# What _core.pack, a door for tests, takes as numbers.
_TYPES = _core.DTYPES
_F32, _STORED = _TYPES.index("F32"), len(_TYPES)
# GGUF name -> checkpoint name, of one layer
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


# ---- the float source ----------------------------------------------------------------------------


def float_source(gguf: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(config.json, fp32 arrays by checkpoint name) of a llama GGUF file with tied embeddings."""
    file = open_gguf(Path(gguf))
    meta = {k.removeprefix("llama."): v for k, v in file.metadata.items() if "llama." in k}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": meta["embedding_length"],
        "intermediate_size": meta["feed_forward_length"],
        "num_hidden_layers": meta["block_count"],
        "num_attention_heads": meta["attention.head_count"],
        "num_key_value_heads": meta["attention.head_count_kv"],
        "rms_norm_eps": float(meta["attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(meta["rope.freq_base"]),
        "max_position_embeddings": meta["context_length"],
        "vocab_size": file["token_embd.weight"].shape[0],
        "tie_word_embeddings": True,
    }
    arrays = {}
    for name in file.names():
        tensor = file[name]
        w = _dequantized(tensor) if len(tensor.shape) == 2 else tensor.float32()
        if ".attn_q." in name or ".attn_k." in name:
            heads = "num_attention_heads" if ".attn_q." in name else "num_key_value_heads"
            w = _unrotated(w, config[heads])
        arrays[_checkpoint_name(name)] = w
    return config, arrays


def _checkpoint_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.weight"
    return f"{_MODEL[parts[0]]}.weight"


def _dequantized(tensor) -> np.ndarray:
    rows, cols = tensor.shape
    part = (tensor.data, _TYPES.index(tensor.dtype), rows, cols)
    packed, _ = _core.pack([part], _F32, False)
    units = np.frombuffer(packed, np.float32).reshape(-1, cols, 32)  # [units, K, 32 columns]
    return np.ascontiguousarray(units.transpose(0, 2, 1)).reshape(-1, cols)[:rows]


def _unrotated(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from GGUF's interleaved pairs to halves."""
    half = w.shape[0] // heads // 2
    return np.ascontiguousarray(w.reshape(heads, half, 2, -1).swapaxes(1, 2)).reshape(w.shape)


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
        for short in _LAYER.values():
            name = f"model.layers.{layer}.{short}.weight"
            w = arrays[name][..., columns.get(short, stream)]
            out[name] = w[rows[short]] if short in rows else w
    return {name: np.ascontiguousarray(w) for name, w in out.items()}


def own_values(arrays: dict[str, np.ndarray], quantization: str) -> dict[str, np.ndarray]:
    """fp32 arrays of what the core stores under `quantization`, the tied head being int8."""
    out = {}
    for name, w in arrays.items():
        form = "int8" if name == "model.embed_tokens.weight" else quantization
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


def token_windows(shared: Path, gguf: str, count: int) -> list[list[int]]:
    """The golden ids, and windows of what follows them in the text where more are asked for."""
    golden = json.loads((shared / "data/models/smollm2_135m/golden_nll.json").read_text())
    ids = list(golden["ids"])
    if count * WINDOW > len(ids):
        text = (shared / "data/texts/wikitext2_raw_test.txt").read_text()[: count * WINDOW * 8]
        with LLM(gguf, max_model_len=WINDOW, max_num_seqs=1) as llm:
            more = llm.get_tokenizer().encode(text, add_special_tokens=False)
        if more[: len(ids)] != ids:
            raise SystemExit("the tokenizer does not give the golden ids")
        ids = more
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(count)]


def perplexity(llm: LLM, windows: list[list[int]]) -> float:
    """exp of the mean of -ln p over positions 1..511 of each window."""
    scores = llm.loglikelihood([w[:1] for w in windows], [w[1:] for w in windows])
    return math.exp(-math.fsum(s for s, _ in scores) / sum(len(w) - 1 for w in windows))


def array_perplexity(config: dict, arrays: dict, windows: list[list[int]], **options) -> tuple:
    """(perplexity, bytes a token reads) of a model from arrays."""
    with LLM.from_arrays(config, arrays, max_model_len=WINDOW, **options) as llm:
        return perplexity(llm, windows), llm.report()["memory"]["token_bytes"]


def measure_format(
    config: dict, arrays: dict, windows: list[list[int]], quantization: str
) -> dict[str, float]:
    """The readings of one quantization, by the names of this file's head."""
    own, _ = array_perplexity(config, own_values(arrays, quantization), windows, dtype="float32")
    options = {"quantization": quantization, "kv_cache_dtype": "float32"}
    row = {"format": quantization, "own": own}
    row["weight_only"], row["token_bytes"] = array_perplexity(
        config, arrays, windows, activation="bf16", **options
    )
    if quantization != "fp8":
        row["int8"], _ = array_perplexity(config, arrays, windows, activation="int8", **options)
    return row


def measure_file(gguf: str, windows: list[list[int]]) -> dict[str, float]:
    """The same of the file as it is."""
    row: dict = {"format": "gguf"}
    for name, activation in (("own", "float32"), ("weight_only", "bf16"), ("int8", "int8")):
        options = {"activation": activation, "kv_cache_dtype": "float32"}
        with LLM(gguf, max_model_len=WINDOW, **options) as llm:
            row[name] = perplexity(llm, windows)
            row["token_bytes"] = llm.report()["memory"]["token_bytes"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared"
    )
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--kept", action="store_true", help="leave the order of dimensions")
    args = parser.parse_args()
    if args.gguf is None:
        raise SystemExit("needs --gguf FILE or LLMACCEL_SMOLLM2")
    windows = token_windows(args.shared, args.gguf, args.windows)
    config, arrays = float_source(args.gguf)
    source, _ = array_perplexity(config, arrays, windows, dtype="float32")
    arrays = arrays if args.kept else shuffled(config, arrays)
    print(f"float source: perplexity {source:.4f}")
    print(f"{'':8s} {'own':>8s} {'loss':>8s} {'weights':>8s} {'int8':>8s} {'MB a token':>10s}")
    for name in (*FORMATS, "gguf"):
        row = (
            measure_file(args.gguf, windows)
            if name == "gguf"
            else measure_format(config, arrays, windows, name)
        )
        row |= {"loss": row["own"] / source - 1, "source": source}
        row["weight_only_excess"] = row["weight_only"] / row["own"] - 1
        if "int8" in row:
            row["int8_excess"] = row["int8"] / row["weight_only"] - 1
        record = {"benchmark": "quality", "windows": args.windows, "shuffled": not args.kept}
        results.append("quality", record | row)
        int8 = f"{row['int8_excess']:+.3%}" if "int8" in row else "-"
        print(
            f"{name:8s} {row['own']:8.4f} {row['loss']:+8.2%} {row['weight_only_excess']:+8.3%} "
            f"{int8:>8s} {row['token_bytes'] / 1e6:10.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
