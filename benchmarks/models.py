"""Random checkpoints at the shapes of Qwen2.5-0.5B, Llama-3.2-1B and a small Qwen3-MoE.

    python benchmarks/models.py qwen2.5-0.5b llama-3.2-1b [--formats bf16,q8_0,q4_0,q4_k_m]

Speed does not depend on what a model knows, so the weights are seeded noise in bf16 and the
vocabulary is made up (byte-level BPE: the 256 bytes, then merges of two and three of them); every
benchmark gives token ids. Written to benchmarks/.cache/models/<name>: config.json,
model.safetensors, tokenizer.json, and the same weights as <name>-<format>.gguf: bf16 by the `gguf`
package, the quantized ones from it by llama.cpp's own llama-quantize (peers/setup.py llama.cpp).
What is already there is kept. Called by compare.py and engine.py through `checkpoint` and `gguf`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from peers.setup import CACHE, llama_tool

GGUF_FORMATS = ("bf16", "q8_0", "q4_0", "q4_k_m")
SHAPES = {
    "qwen2.5-0.5b": {
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
        "use_sliding_window": False,
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    },
    # Of no published size: 1.6e9 weights (1.7 GB at Q8_0), of which a token meets 3e8.
    "qwen3-moe-1.6b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "intermediate_size": 3072,  # of dense layers: there are none
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 384,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": 65536,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
}
# SmolLM2-135M-Instruct is not made here: its file is given to the scripts.
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
}
SHARED_KEYS = {
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 256,
    "eos_token_id": 256,
}
END = "<|endoftext|>"
SPREAD = 0.02  # standard deviation of the weights, as models are initialised


def config_of(name: str) -> dict:
    """The contents of config.json of a shape; of SmolLM2, what its sizes are."""
    return {**(SMOLLM2 if name == "smollm2" else SHAPES[name]), **SHARED_KEYS}


# ---- weights -------------------------------------------------------------------------------------


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Checkpoint names of the weights, in the order they are written."""
    D = config["hidden_size"]
    d = config.get("head_dim", D // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], D)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (D,)
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{at}self_attn.{part}_proj.weight"] = (rows, D)
            if config["model_type"] == "qwen2":
                shapes[f"{at}self_attn.{part}_proj.bias"] = (rows,)
            if config["model_type"] == "qwen3_moe" and part != "v":
                shapes[f"{at}self_attn.{part}_norm.weight"] = (d,)
        shapes[at + "self_attn.o_proj.weight"] = (D, q)
        shapes[at + "post_attention_layernorm.weight"] = (D,)
        shapes |= {at + "mlp." + rest: shape for rest, shape in feed_forward_shapes(config).items()}
    shapes["model.norm.weight"] = (D,)
    return shapes


def feed_forward_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The same of one layer's feed-forward block, without what comes before `mlp.`."""
    D, experts = config["hidden_size"], config.get("num_experts", 0)
    F = config["moe_intermediate_size" if experts else "intermediate_size"]
    one = {"gate_proj.weight": (F, D), "up_proj.weight": (F, D), "down_proj.weight": (D, F)}
    if not experts:
        return one
    many = {f"experts.{e}.{n}": shape for e in range(experts) for n, shape in one.items()}
    return {"gate.weight": (experts, D), **many}


def matrix_weights(config: dict) -> int:
    """Weights of one token's products, without the head: every layer's matrices, and of experts
    those that a token is sent to."""
    used = config.get("num_experts_per_tok", 0)
    return sum(
        int(np.prod(shape))
        for name, shape in tensor_shapes(config).items()
        if len(shape) == 2 and "layers" in name and expert_of(name) < max(used, 1)
    )


def expert_of(name: str) -> int:
    """The expert that a tensor belongs to, by its name; 0 if to none."""
    _, found, rest = name.partition(".experts.")
    return int(rest.split(".")[0]) if found else 0


def qkv_weights(config: dict) -> int:
    """Of them those that make the queries, keys and values of one layer."""
    H, K = config["num_attention_heads"], config["num_key_value_heads"]
    return config["hidden_size"] * (H + 2 * K) * config.get("head_dim", config["hidden_size"] // H)


def token_operations(name: str) -> int:
    """Operations (2 per multiply-add) of a token's products, without the head."""
    return 2 * matrix_weights(config_of(name))


def behind_operations(name: str) -> int:
    """Of them those behind the last attention, which run once a prompt, as the head does."""
    config = config_of(name)
    return 2 * (matrix_weights(config) // config["num_hidden_layers"] - qkv_weights(config))


def head_operations(name: str) -> int:
    """Operations of one row of logits."""
    config = config_of(name)
    return 2 * config["hidden_size"] * config["vocab_size"]


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight `name`: bf16 bit patterns in uint16, the same on every machine."""
    if name.endswith("norm.weight"):
        return np.full(shape, 0x3F80, np.uint16)  # 1.0
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    return bf16(rng.standard_normal(shape, np.float32) * np.float32(SPREAD))


def bf16(values: np.ndarray) -> np.ndarray:
    """fp32 values rounded to nearest even, as bit patterns in uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(
    path: Path, config: dict, weight: Callable[[str, tuple[int, ...]], np.ndarray] = noise
) -> None:
    """All weights of a shape, one tensor in memory at a time; weight(name, shape) gives bf16."""
    header: dict[str, dict] = {}
    at = 0
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 64)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(np.ascontiguousarray(weight(name, shape)).tobytes())


# ---- vocabulary ----------------------------------------------------------------------------------


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(others)) for b in range(256)]


def vocabulary(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges: 256 bytes, the end of text, every pair of bytes, then triples."""
    letters = byte_letters()
    tokens, merges = [*letters, END], []
    pairs = [a + b for a in letters for b in letters]
    for left, right in _joins(letters, pairs):
        if len(tokens) == size:
            break
        merges.append((left, right))
        tokens.append(left + right)
    return tokens, merges


def _joins(letters: list[str], pairs: list[str]) -> Iterator[tuple[str, str]]:
    yield from ((a, b) for a in letters for b in letters)
    yield from ((pair, c) for pair in pairs for c in letters)


def write_tokenizer(folder: Path, size: int) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokens, merges = vocabulary(size)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end = {"id": 256, "content": END, "special": True, "normalized": False}
    end |= {"single_word": False, "lstrip": False, "rstrip": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False}
    model |= {"vocab": {t: i for i, t in enumerate(tokens) if t != END}}
    model |= {"merges": [" ".join(pair) for pair in merges]}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end]}
    tokenizer |= {"normalizer": None, "pre_tokenizer": {**byte_level, "use_regex": True}}
    tokenizer |= {"post_processor": None, "decoder": {**byte_level, "use_regex": True}}
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "model": model}))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


# ---- GGUF ----------------------------------------------------------------------------------------

GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a checkpoint tensor."""
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight"}.get(name, "output_norm.weight")
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{GGUF_NAMES[module]}.{kind}"


def interleaved(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp's llama rotates them: pairs side by side in each head."""
    n, k = rows.shape
    return rows.reshape(n_heads, 2, n // n_heads // 2, k).swapaxes(1, 2).reshape(n, k)


def write_gguf(path: Path, config: dict) -> None:
    """The checkpoint as bf16 GGUF; norms and biases in fp32, as llama.cpp wants them."""
    import gguf

    arch = config["model_type"].replace("_", "")
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if "head_dim" in config:
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tokens, merges = vocabulary(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    control = {256: gguf.TokenType.CONTROL}
    writer.add_token_types([control.get(i, gguf.TokenType.NORMAL) for i in range(len(tokens))])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(False)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    D, F, E = (config.get(k, 0) for k in ("hidden_size", "moe_intermediate_size", "num_experts"))
    for name, shape in tensor_shapes(config).items():
        if ".experts." in name:
            continue
        bits = noise(name, shape)
        if len(shape) == 1 or name.endswith("mlp.gate.weight"):
            writer.add_tensor(gguf_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
            continue
        module = name.split(".")[-2]
        if arch == "llama" and module in heads:
            bits = interleaved(bits, heads[module])
        raw = np.ascontiguousarray(bits).view(np.uint8)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    for layer in range(config["num_hidden_layers"] if "num_experts" in config else 0):
        for part, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            names = [f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight" for e in range(E)]
            raw = np.stack([noise(name, shape) for name in names]).view(np.uint8)
            name = f"blk.{layer}.ffn_{part}_exps.weight"
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- what the other scripts ask for --------------------------------------------------------------


def checkpoint(name: str) -> Path:
    """The folder of a shape's safetensors checkpoint, made where it is missing."""
    folder = CACHE / "models" / name
    weights = folder / "model.safetensors"
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config_of(name), indent=1))
        write_tokenizer(folder, SHAPES[name]["vocab_size"])
        part = weights.with_suffix(".part")
        write_safetensors(part, config_of(name))
        part.rename(weights)
    return folder


def gguf_file(name: str, form: str) -> Path:
    """A shape as GGUF in one of GGUF_FORMATS, made where it is missing."""
    path = CACHE / "models" / name / f"{name}-{form}.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    if form == "bf16":
        write_gguf(part, config_of(name))
    else:
        quantize = llama_tool("llama-quantize")
        if not quantize.exists():
            raise RuntimeError("missing: python benchmarks/peers/setup.py llama.cpp")
        command = [quantize, gguf_file(name, "bf16"), part, form.upper()]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise RuntimeError(f"llama-quantize failed:\n{made.stderr[-2000:]}")
    part.rename(path)
    return path


def unpacked_smollm2(gguf: str) -> Path:
    """SmolLM2's GGUF file as a bf16 checkpoint folder without tokenizer, to be quantized anew."""
    from gguf import GGUFReader, dequantize

    folder = CACHE / "models" / "smollm2"
    weights = folder / "model.safetensors"
    if weights.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of("smollm2")
    tensors = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = tensors[gguf_name(name)]
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        module = name.split(".")[-2]
        if module in heads:  # undoes interleaved()
            n, k = shape
            pairs = values.reshape(heads[module], n // heads[module] // 2, 2, k)
            values = pairs.swapaxes(1, 2).reshape(n, k)
        return bf16(np.ascontiguousarray(values))

    (folder / "config.json").write_text(json.dumps(config, indent=1))
    part = weights.with_suffix(".part")
    write_safetensors(part, config, weight)
    part.rename(weights)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHAPES)}; none: all")
    parser.add_argument("--formats", default=",".join(GGUF_FORMATS))
    args = parser.parse_args()
    for name in args.names or list(SHAPES):
        if name not in SHAPES:
            parser.error(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
        print(checkpoint(name), flush=True)
        for form in args.formats.split(","):
            path = gguf_file(name, form)
            print(f"{path}  {path.stat().st_size / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
