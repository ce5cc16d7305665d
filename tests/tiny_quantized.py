"""Tiny checkpoints in the packings that others publish, made by packers written from the layouts.

Each packer takes a weight [N, K] and gives the file's tensors and the weight that they stand for,
by the formula of the format's own documentation and nothing of llmaccel. `write` turns a float
folder of tiny.py into a quantized one; `SCHEMES` lists what is covered. Where a reference library
installs, tests/goldens/ holds layers that it has packed, which test_quantized.py reads as well.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import reference_kernels as ref

GPT_OSS_FLOATS = [
    "model.layers.*.self_attn",
    "model.layers.*.mlp.router",
    "model.embed_tokens",
    "lm_head",
]
# Nobody quantizes what chooses experts.
ROUTERS = (".mlp.gate.weight", ".block_sparse_moe.gate.weight", ".mlp.shared_expert_gate.weight")
Tensors = dict[str, tuple[str, np.ndarray]]
Packer = Callable[[np.ndarray, np.random.Generator], tuple[Tensors, np.ndarray]]
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "int8": "I8",
}


def stored(array: np.ndarray, dtype: str | None = None) -> tuple[str, np.ndarray]:
    """A tensor for `write_safetensors`."""
    return dtype or _NAMES[array.dtype.name], np.asarray(array, order="C")


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """The file format, from its description: any dtype, BF16 and F8 as their bits."""
    header, at = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(array.tobytes())


# ---- rounding ------------------------------------------------------------------------------------


def half(x: np.ndarray) -> np.ndarray:
    """Rounded to fp16."""
    return x.astype(np.float16)


def grouped(w: np.ndarray, group: int) -> np.ndarray:
    """[N, G, group]."""
    return w.reshape(len(w), -1, group)


def round_asymmetric(w: np.ndarray, group: int, bits: int):
    """(q, scale fp16 [N, G], zero [N, G], the weight they stand for); q and zero in 0..2^bits-1."""
    g, top = grouped(w, group), (1 << bits) - 1
    low, high = np.minimum(g.min(2), 0), np.maximum(g.max(2), 0)
    scale = half((high - low) / top)
    wide = scale.astype(np.float32)
    zero = np.clip(np.rint(-low / wide), 0, top)
    q = np.clip(np.rint(g / wide[..., None]) + zero[..., None], 0, top)
    value = (q - zero[..., None]) * wide[..., None]
    return q.reshape(w.shape).astype(np.int64), scale, zero.astype(np.int64), value.reshape(w.shape)


def round_symmetric(w: np.ndarray, group: int, bits: int):
    """The same about 2^(bits - 1)."""
    g, middle = grouped(w, group), 1 << (bits - 1)
    scale = half(np.abs(g).max(2) / (middle - 1))
    wide = scale.astype(np.float32)
    q = np.clip(np.rint(g / wide[..., None]), -middle, middle - 1)
    value = q * wide[..., None]
    zero = np.full(scale.shape, middle)
    return (q + middle).reshape(w.shape).astype(np.int64), scale, zero, value.reshape(w.shape)


def e4m3(x: np.ndarray) -> np.ndarray:
    """Codes of the nearest E4M3 values, ties to even, beyond 448 to 448."""
    table = ref.F8_VALUES[:127].astype(np.float64)
    a = np.minimum(np.abs(x.astype(np.float64)), 448)
    middle = (table[1:] + table[:-1]) / 2
    code = np.searchsorted(middle, a)
    code += np.isin(a, middle) & (code % 2 == 1)
    return (code | (np.signbit(x) * 128)).astype(np.uint8)


def bit_fields(q: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis as a stream of bits, low first, in int32 words."""
    ones = (q[..., None] >> np.arange(bits)) & 1
    flat = ones.reshape(*q.shape[:-1], -1).astype(np.uint8)
    return np.packbits(flat, axis=-1, bitorder="little").view("<i4")


# ---- packers -------------------------------------------------------------------------------------


def gptq(bits: int, group: int, *, sym: bool, v1: bool, act_order: bool = False) -> Packer:
    """AutoGPTQ's and GPTQModel's layout."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        size = w.shape[1] if group == -1 else group
        # Activation order: a group is any `size` columns.
        order = rng.permutation(w.shape[1]) if act_order else np.arange(w.shape[1])
        q, scale, zero, value = (round_symmetric if sym else round_asymmetric)(
            w[:, order], size, bits
        )
        back = np.argsort(order)
        tensors = {
            "qweight": stored(bit_fields(q[:, back], bits).T),
            "qzeros": stored(bit_fields((zero.T - v1) & ((1 << bits) - 1), bits)),
            "scales": stored(scale.T),
            "g_idx": stored((np.arange(w.shape[1]) // size)[back].astype(np.int32)),
        }
        return tensors, value[:, back]

    return pack


def awq(group: int, version: str) -> Packer:
    """AutoAWQ's layouts."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        q, scale, zero, value = round_asymmetric(w, group, 4)
        if version == "gemm":

            def words(codes: np.ndarray) -> np.ndarray:
                nth = codes.reshape(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
                return bit_fields(nth.reshape(codes.shape), 4)

            return {
                "qweight": stored(words(q.T)),
                "qzeros": stored(words(zero.T)),
                "scales": stored(scale.T),
            }, value
        several = {32: 4, 64: 2}.get(group, 1)
        width = (zero.shape[1] + 8 * several - 1) // (8 * several) * 8 * several
        pad = ((0, 0), (0, width - zero.shape[1]))
        return {
            "qweight": stored(bit_fields(q, 4)),
            "qzeros": stored(bit_fields(np.pad(zero, pad), 4)),
            "scales": stored(np.pad(scale, pad)),
        }, value

    return pack


def compressed_packed(bits: int, group: int, *, sym: bool) -> Packer:
    """compressed-tensors, pack-quantized; group -1: one scale a row."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        size = w.shape[1] if group == -1 else group
        q, scale, zero, value = (round_symmetric if sym else round_asymmetric)(w, size, bits)
        tensors = {
            "weight_packed": stored(bit_fields(q, bits)),
            "weight_scale": stored(scale),
            "weight_shape": stored(np.array(w.shape)),
        }
        if not sym:
            tensors["weight_zero_point"] = stored(bit_fields(zero.T, bits).T)
        return tensors, value

    return pack


def compressed_int8(*, sym: bool = True) -> Packer:
    """compressed-tensors, int-quantized per channel."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        q, scale, zero, value = (round_symmetric if sym else round_asymmetric)(w, w.shape[1], 8)
        tensors = {"weight": stored((q - 128).astype(np.int8)), "weight_scale": stored(scale)}
        if not sym:
            tensors["weight_zero_point"] = stored((zero - 128).astype(np.int8))
        return tensors, value

    return pack


def fp8(
    layout: str, scale_name: str, *, static: bool = False, bf16: bool = False, power: bool = False
) -> Packer:
    """E4M3 with scales of a tensor, a row ("channel") or blocks of 128 x 128; power: of two."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        n, k = w.shape
        rows, cols = {"tensor": (n, k), "channel": (1, k), "block": (128, 128)}[layout]
        high, wide = -(-n // rows), -(-k // cols)
        padded = np.zeros((high * rows, wide * cols), np.float32)
        padded[:n, :k] = np.abs(w)
        scale = padded.reshape(high, rows, wide, cols).max((1, 3)) / np.float32(448)
        if bf16:
            scale = ref.bf16_value(ref.bf16_round(scale)).astype(np.float32)
        if power:
            scale = np.exp2(np.ceil(np.log2(scale)))
        full = np.repeat(np.repeat(scale, rows, 0)[:n], cols, 1)[:, :k]
        codes = e4m3(w / full)
        out = scale.reshape(-1)[0] if layout == "tensor" else scale
        out = stored(ref.bf16_round(out), "BF16") if bf16 else stored(out)
        tensors = {"weight": stored(codes, "F8_E4M3"), scale_name: out}
        if static:
            tensors["input_scale"] = stored(np.float32(rng.uniform(0.5, 2)))
        return tensors, ref.F8_VALUES[codes].astype(np.float32) * full

    return pack


def nearest(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Numbers of the values of `table` that are nearest."""
    return np.abs(x[..., None] - table).argmin(-1).astype(np.uint8)


def nibble_pairs(q: np.ndarray, first_high: bool) -> np.ndarray:
    """Two codes a byte along the last axis."""
    first, second = q[..., 0::2], q[..., 1::2]
    return first << 4 | second if first_high else first | second << 4


def bnb_four_bits(kind: str, block: int, *, double: bool) -> Packer:
    """bitsandbytes' Linear4bit; with double quantization absmax is codes of 256 values itself."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        table = ref.TABLES[ref.PACK_NF4 if kind == "nf4" else ref.PACK_FP4]
        table = (table / (192 if kind == "fp4" else 1)).astype(np.float32)
        g = w.reshape(-1, block)
        absmax = np.abs(g).max(1).astype(np.float32)
        state = {"quant_type": kind, "blocksize": block, "dtype": "float32", "shape": list(w.shape)}
        tensors = {"weight.quant_map": stored(table)}
        if double:
            offset = float(absmax.mean())
            centered = np.zeros(-(-absmax.size // 256) * 256, np.float32)
            centered[: absmax.size] = absmax - offset
            outer = np.abs(centered.reshape(-1, 256)).max(1)
            values = np.sort(rng.uniform(-1, 1, 256).astype(np.float32))
            codes = nearest(centered.reshape(-1, 256) / outer[:, None], values).reshape(-1)
            codes = codes[: absmax.size]
            absmax = values[codes] * np.repeat(outer, 256)[: absmax.size] + np.float32(offset)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
            tensors |= {
                "weight.absmax": stored(codes),
                "weight.nested_absmax": stored(outer),
                "weight.nested_quant_map": stored(values),
            }
        else:
            tensors["weight.absmax"] = stored(absmax)
        q = nearest(g / absmax[:, None], table)
        tensors["weight"] = stored(nibble_pairs(q.reshape(-1), True)[:, None])
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = stored(text)
        return tensors, (table[q] * absmax[:, None]).reshape(w.shape)

    return pack


def bnb_int8(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    """bitsandbytes' Linear8bitLt."""
    scb = np.abs(w).max(1).astype(np.float32)
    q = np.rint(w / scb[:, None] * 127).astype(np.int8)
    tensors = {"weight": stored(q), "SCB": stored(scb), "weight_format": stored(np.uint8(0))}
    return tensors, q * (scb / 127)[:, None]


def _e2m1(w: np.ndarray, scale: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes, values) under the scales of groups."""
    wide = np.repeat(scale, group, axis=1)
    q = nearest(w / wide, ref.TABLES[ref.PACK_E2M1])
    return q, ref.TABLES[ref.PACK_E2M1][q].astype(np.float32) * wide


def mxfp4(form: str) -> Packer:
    """Groups of 32 under a power of two: "compressed" (weight_packed) or "blocks"."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        exponent = np.floor(np.log2(np.abs(grouped(w, 32)).max(2))).astype(int) - 2
        q, value = _e2m1(w, np.ldexp(np.float32(1), exponent), 32)
        codes, scale = nibble_pairs(q, False), stored((exponent + 127).astype(np.uint8))
        if form == "blocks":
            blocks = codes.reshape(len(w), -1, 16)
            return {"weight_blocks": stored(blocks), "weight_scales": scale}, value
        return {"weight_packed": stored(codes), "weight_scale": scale}, value

    return pack


def nvfp4(form: str) -> Packer:
    """Groups of 16 under an E4M3 number and one of the tensor: "compressed" or "modelopt"."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        outer = np.float32(np.abs(w).max() / (448 * 6))
        inner = e4m3(np.abs(grouped(w, 16)).max(2) / 6 / outer)
        q, value = _e2m1(w, ref.F8_VALUES[inner].astype(np.float32) * outer, 16)
        codes = stored(nibble_pairs(q, False))
        scale = {"weight_scale": stored(inner, "F8_E4M3")}
        if form == "modelopt":
            more = {"weight_scale_2": stored(outer), "input_scale": stored(np.float32(0.01))}
            return {"weight": codes, **scale, **more}, value
        number = (np.float32(1) / outer).reshape(1)
        return {"weight_packed": codes, **scale, "weight_global_scale": stored(number)}, value

    return pack


def hqq(bits: int, group: int) -> Packer:
    """HQQ's packing along rows of groups, zero points no integers."""

    def pack(w: np.ndarray, rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
        g, top = w.reshape(-1, group), (1 << bits) - 1
        low, high = g.min(1, keepdims=True), g.max(1, keepdims=True)
        scale = half((high - low) / top)
        zero = half(-low / scale)
        q = np.clip(np.rint(g / scale + zero), 0, top).astype(np.uint8)
        parts = np.split(q, 8 // bits)
        words = np.zeros_like(parts[0])
        for part in parts:
            words = words << (bits % 8) | part
        tensors = {
            "W_q": stored(words),
            "scale": stored(scale),
            "zero": stored(zero),
            "shape": stored(np.array(w.shape)),
            "nbits": stored(np.array([bits])),
        }
        value = (q - zero.astype(np.float32)) * scale.astype(np.float32)
        return tensors, value.reshape(w.shape)

    return pack


# ---- checkpoints ---------------------------------------------------------------------------------


def gptq_config(bits: int, group: int, *, sym: bool, v1: bool, act_order: bool = False) -> dict:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": sym,
        "desc_act": act_order,
        "checkpoint_format": "gptq" if v1 else "gptq_v2",
        "damp_percent": 0.01,
        "true_sequential": True,
    }


def compressed_config(form: str, weights: dict, activations: dict | None = None) -> dict:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "kv_cache_scheme": None,
    }


def arguments(bits: int, strategy: str, kind: str = "int", sym: bool = True, **more: Any) -> dict:
    """Quantization arguments as compressed-tensors writes them."""
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": sym,
        "strategy": strategy,
        "group_size": None,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
        **more,
    }


def hqq_config(bits: int, group: int) -> dict:
    params = {"nbits": bits, "group_size": group, "axis": 1, "view_as_float": False}
    rule = {"weight_quant_params": params, "scale_quant_params": None, "zero_quant_params": None}
    return {"quant_method": "hqq", "quant_config": rule, "skip_modules": ["lm_head"]}


_BNB = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "_load_in_4bit": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": ["lm_head"],
}
_TOKEN = arguments(8, "token", dynamic=True)
_FP8_TOKEN = arguments(8, "token", "float", dynamic=True)
_AWQ = {"quant_method": "awq", "bits": 4, "zero_point": True, "modules_to_not_convert": ["lm_head"]}
_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "modules_to_not_convert": ["lm_head"]}


def _gptq(*args: Any, **options: Any) -> tuple[dict, Packer]:
    return gptq_config(*args, **options), gptq(*args, **options)


def _packed(bits: int, group: int, sym: bool) -> tuple[dict, Packer]:
    strategy = (
        {"strategy": "channel"} if group == -1 else {"strategy": "group", "group_size": group}
    )
    weights = arguments(bits, **{"sym": sym, **strategy})
    return compressed_config("pack-quantized", weights), compressed_packed(bits, group, sym=sym)


# name: (quantization_config, packer)
SCHEMES: dict[str, tuple[dict, Packer]] = {
    "gptq-4": _gptq(4, 128, sym=True, v1=True),
    "gptq-4-v2": _gptq(4, 32, sym=False, v1=False),
    "gptq-4-asym-v1": _gptq(4, 64, sym=False, v1=True),
    "gptq-4-row": _gptq(4, -1, sym=True, v1=True),
    "gptq-4-order": _gptq(4, 64, sym=True, v1=True, act_order=True),
    "gptq-4-order-asym": _gptq(4, 128, sym=False, v1=False, act_order=True),
    "gptq-8": _gptq(8, 128, sym=True, v1=True),
    "gptq-8-asym": _gptq(8, 32, sym=False, v1=False),
    "gptq-8-order": _gptq(8, -1, sym=True, v1=True),
    "gptq-3": _gptq(3, 128, sym=True, v1=True),
    "gptq-3-asym-order": _gptq(3, 64, sym=False, v1=True, act_order=True),
    "gptq-2": _gptq(2, 64, sym=False, v1=True),
    "awq-gemm": ({**_AWQ, "group_size": 128, "version": "gemm"}, awq(128, "gemm")),
    "awq-gemm-32": ({**_AWQ, "group_size": 32, "version": "GEMM"}, awq(32, "gemm")),
    "awq-gemv": ({**_AWQ, "group_size": 64, "version": "gemv"}, awq(64, "gemv")),
    "ct-w4a16": _packed(4, 128, True),
    "ct-w4a16-asym": _packed(4, 32, False),
    "ct-w4a16-channel": _packed(4, -1, True),
    "ct-w8a16": _packed(8, 128, True),
    "ct-w8a16-channel": _packed(8, -1, True),
    "ct-w8a8": (
        compressed_config("int-quantized", arguments(8, "channel"), _TOKEN),
        compressed_int8(),
    ),
    "ct-w8a8-asym": (
        compressed_config("int-quantized", arguments(8, "channel", sym=False), _TOKEN),
        compressed_int8(sym=False),
    ),
    "ct-fp8-dynamic": (
        compressed_config("float-quantized", arguments(8, "channel", "float"), _FP8_TOKEN),
        fp8("channel", "weight_scale", bf16=True),
    ),
    "ct-fp8-static": (
        compressed_config(
            "float-quantized", arguments(8, "tensor", "float"), arguments(8, "tensor", "float")
        ),
        fp8("tensor", "weight_scale", static=True),
    ),
    "ct-fp8-block": (
        compressed_config(
            "float-quantized",
            arguments(8, "block", "float", block_structure=[128, 128]),
            arguments(8, "group", "float", group_size=128, dynamic=True),
        ),
        fp8("block", "weight_scale"),
    ),
    "fp8-block": (
        {**_FP8, "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        fp8("block", "weight_scale_inv"),
    ),
    "fp8-block-power": (
        {
            **_FP8,
            "activation_scheme": "dynamic",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
        },
        fp8("block", "weight_scale_inv", power=True),
    ),
    "fp8-tensor": (
        {**_FP8, "activation_scheme": "static"},
        fp8("tensor", "weight_scale", static=True),
    ),
    "fbgemm": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": []},
        fp8("channel", "weight_scale"),
    ),
    "bnb-nf4": ({**_BNB, "bnb_4bit_quant_type": "nf4"}, bnb_four_bits("nf4", 64, double=False)),
    "bnb-nf4-double": (
        {**_BNB, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        bnb_four_bits("nf4", 64, double=True),
    ),
    "bnb-fp4": ({**_BNB, "bnb_4bit_quant_type": "fp4"}, bnb_four_bits("fp4", 128, double=False)),
    "bnb-int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0},
        bnb_int8,
    ),
    "ct-mxfp4": (
        compressed_config(
            "mxfp4-pack-quantized",
            arguments(4, "group", "float", group_size=32, scale_dtype="torch.uint8"),
        ),
        mxfp4("compressed"),
    ),
    "mxfp4-blocks": ({"quant_method": "mxfp4", "modules_to_not_convert": []}, mxfp4("blocks")),
    "ct-nvfp4": (
        compressed_config(
            "nvfp4-pack-quantized",
            arguments(4, "tensor_group", "float", group_size=16, scale_dtype="torch.float8_e4m3fn"),
            arguments(4, "tensor_group", "float", group_size=16, dynamic="local"),
        ),
        nvfp4("compressed"),
    ),
    "modelopt-nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"], "producer": {}},
        nvfp4("modelopt"),
    ),
    "modelopt-fp8": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["lm_head"]},
        fp8("tensor", "weight_scale", static=True),
    ),
    "hqq-4": (hqq_config(4, 64), hqq(4, 64)),
    "hqq-8": (hqq_config(8, 128), hqq(8, 128)),
    "hqq-2": (hqq_config(2, 16), hqq(2, 16)),
}
# Products of these have bf16 activations whatever is asked.
BF16_ONLY = tuple(
    name for name in SCHEMES if "fp8" in name or "fp4" in name or "nf4" in name or name == "fbgemm"
)


def _order_of(name: str, w: np.ndarray) -> np.random.Generator:
    """What sees one input has one order: q, k and v, gate and up; each expert its own."""
    expert = re.search(r"\.experts\.(\d+)\.", name)
    return np.random.default_rng([w.shape[1], int(expert[1]) + 1 if expert else 0])


def write(source: Path, folder: Path, scheme: str, *, head: bool = False) -> dict[str, np.ndarray]:
    """The checkpoint of `source` (float) in `scheme`; returns the float32 weights that it stands
    for, by name. Layers' matrices but routers are quantized, the embedding is not, the head where
    it is asked."""
    from llmaccel.models.safetensors import open_safetensors

    config, packer = SCHEMES[scheme]
    raw = json.loads((source / "config.json").read_text())
    rng = np.random.default_rng(5)
    tensors: Tensors = {}
    values: dict[str, np.ndarray] = {}
    checkpoint = open_safetensors(source)
    for name in checkpoint.names():
        w = checkpoint[name].float32()
        layers = ".layers." in name and not name.endswith(ROUTERS)
        if w.ndim == 2 and (layers or (head and name == "lm_head.weight")):
            packed, value = packer(w, _order_of(name, w) if "desc_act" in config else rng)
            values[name] = np.ascontiguousarray(value, np.float32)
            module = name.removesuffix(".weight")
            tensors |= {f"{module}.{part}": tensor for part, tensor in packed.items()}
        else:
            tensors[name] = stored(half(w))
            values[name] = half(w).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    write_safetensors(folder / "model.safetensors", tensors)
    return values


def write_gpt_oss(source: Path, folder: Path) -> dict[str, np.ndarray]:
    """The gpt-oss checkpoint of `source` with MXFP4 experts, as the hub has them: [E, N, K / 32,
    16] beside [E, N, K / 32], rows of gate and up in turns. Returns the float32 weights, [E, K, N].
    """
    from llmaccel.models.safetensors import open_safetensors

    raw = json.loads((source / "config.json").read_text())
    packer, rng = mxfp4("blocks"), np.random.default_rng(5)
    tensors: Tensors = {}
    values: dict[str, np.ndarray] = {}
    checkpoint = open_safetensors(source)
    for name in checkpoint.names():
        w = checkpoint[name].float32()
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = stored(w)
            values[name] = w
            continue
        turned = w.swapaxes(1, 2)
        packed, value = packer(turned.reshape(-1, turned.shape[2]), rng)
        for part, (dtype, array) in packed.items():
            shaped = array.reshape(*turned.shape[:2], *array.shape[1:])
            tensors[f"{name}_{part.removeprefix('weight_')}"] = dtype, shaped
        whole = value.reshape(turned.shape).swapaxes(1, 2)
        values[name] = np.ascontiguousarray(whole, np.float32)
    config = {"quant_method": "mxfp4", "modules_to_not_convert": GPT_OSS_FLOATS}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    write_safetensors(folder / "model.safetensors", tensors)
    return values


# ---- forward passes of a reference library -------------------------------------------------------

# Cases of tests/goldens/quantized/forwards.safetensors, family and scheme, and the models that they
# are about: wide, so that sums over k have something to lose.
FORWARDS = (
    ("llama", "ct-fp8-block"),
    ("llama", "ct-fp8-dynamic"),
    ("llama", "ct-w8a8"),
    ("deepseek_v3", "ct-fp8-block"),
    ("deepseek_v3", "ct-fp8-dynamic"),
)
FORWARD_SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "seed": 7,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "head_dim": 64,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "vocab_size": 48,
    },
    "deepseek_v3": {
        "seed": 7,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 128,
        "q_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "num_hidden_layers": 1,
        "first_k_dense_replace": 1,
        "vocab_size": 48,
    },
}


def forward_prompts() -> np.ndarray:
    """int64 [64, 4]: short, since a value that falls to another code moves all that follows."""
    return np.random.default_rng(11).integers(3, 48, (64, 4))
