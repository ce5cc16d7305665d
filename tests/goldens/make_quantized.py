"""Writes tests/goldens/quantized: single layers as reference libraries pack and dequantize them.

Run by hand, where `compressed-tensors`, `bitsandbytes`, `hqq` and `gptqmodel` are installed (with
torch for the CPU); test_quantized.py reads what it wrote and needs none of them. A case is a file
of the tensors of the layer "layer" beside "expected", the library's own dequantization, and an
entry of configs.json. Versions of the last run stand there as well.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "quantized"
N, K = 32, 64
CONFIGS: dict[str, dict] = {}


def weight(seed: int, n: int = N, k: int = K) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.05


def save(case: str, config: dict, tensors: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    CONFIGS[case] = config
    named = {
        f"layer.{name}": t.detach().contiguous() for name, t in tensors.items() if t is not None
    }
    expected = expected.detach().float().contiguous()
    for small in (torch.float16, torch.bfloat16):  # where that is exact: the files are in git
        if expected.dtype == torch.float32 and torch.equal(expected.to(small).float(), expected):
            expected = expected.to(small)
    save_file({**named, "expected": expected}, FOLDER / f"{case}.safetensors")


# ---- compressed-tensors --------------------------------------------------------------------------


def compressed(case: str, form: str, **arguments) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    w = weight(len(case)).to(torch.bfloat16)
    strategy, size = args.strategy, args.group_size
    if strategy in ("group", "tensor_group"):
        parts = w.reshape(N, -1, size)
        low, high = parts.amin(-1), parts.amax(-1)
    elif strategy == "channel":
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    elif strategy == "block":
        low, high = w.amin().reshape(1, 1), w.amax().reshape(1, 1)
    else:
        low, high = w.amin().reshape(1), w.amax().reshape(1)
    whole = None
    if strategy == "tensor_group":
        whole = (448 * 6 / w.abs().max()).float().reshape(1)
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    state = {"weight": w, "weight_scale": scale, "weight_zero_point": zero}
    if whole is not None:
        state["weight_global_scale"] = whole
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(state, scheme)
    expected = compressor.decompress(dict(packed), scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}
        },
        "ignore": [],
    }
    save(case, config, packed, expected)


def rows() -> None:
    """Rows rounded as input_activations say: tests/goldens/quantized/rows.safetensors."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    x = torch.randn(1, 4, 256, generator=torch.Generator().manual_seed(5))
    x[0, 1] *= 40
    x[0, 2] += 1
    found = {"x": x[0]}
    token = {"num_bits": 8, "strategy": "token", "dynamic": True}
    rules = {
        "int8": token,
        "int8 offset": {**token, "symmetric": False},
        "e4m3": {**token, "type": "float"},
        "e4m3 128": {**token, "type": "float", "strategy": "group", "group_size": 128},
    }
    for name, rule in rules.items():
        args = QuantizationArgs(**rule)
        scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module())
        found[name] = fake_quantize(x, scale, zero, args)[0]
    for name, kind in (("int8 static", "int"), ("e4m3 static", "float")):
        args = QuantizationArgs(num_bits=8, type=kind, strategy="tensor")
        scale = torch.tensor([0.02])
        found[name] = fake_quantize(x, scale, torch.zeros(1), args)[0]
    save_file({name: t.contiguous() for name, t in found.items()}, FOLDER / "rows.safetensors")


def forwards() -> None:
    """Logits of models whose rows the library rounds as it runs them, from transformers in float32:
    tests/goldens/quantized/forwards.safetensors. Beside them how many prompts the float64
    specification sends elsewhere by more than 1e-4, "<case>.moved" [1]."""
    import tempfile

    from transformers import AutoModelForCausalLM

    sys.path.insert(0, str(FOLDER.parents[1]))
    import test_quantized
    import tiny
    import tiny_quantized

    found, prompts = {}, tiny_quantized.forward_prompts()
    for family, scheme in tiny_quantized.FORWARDS:
        sizes = tiny_quantized.FORWARD_SIZES[family]
        with tempfile.TemporaryDirectory() as path:
            source = tiny.make_checkpoint(family, Path(path) / "f", **sizes)
            values = tiny_quantized.write(source, Path(path) / "q", scheme)
            model = AutoModelForCausalLM.from_pretrained(
                Path(path) / "q", dtype=torch.float32, attn_implementation="eager"
            )
            rows_of_latents(model)
            with torch.no_grad():
                theirs = model(torch.from_numpy(prompts)).logits
            rule = test_quantized.RULES[test_quantized.ROUNDED[scheme]]
            exact = test_quantized.rounded_logits(source, values, prompts.tolist(), rule)
        moved = (torch.from_numpy(exact) - theirs).abs().amax((1, 2)) > 1e-4
        case = f"{family} {scheme}"
        found |= {case: theirs.contiguous(), f"{case}.moved": moved.sum().reshape(1)}
    save_file(found, FOLDER / "forwards.safetensors")


def rows_of_latents(model: torch.nn.Module) -> None:
    """Gives kv_b_proj rows [B, T, r], as transformers 4.57 does. 5.23 gives it [B, 1, T, r], and
    compressed-tensors takes a scale "token" over all but two axes: there one of a prompt."""
    for name, module in model.named_modules():
        if name.endswith("kv_b_proj"):
            module.register_forward_pre_hook(lambda _, given: (given[0].squeeze(1),))
            module.register_forward_hook(lambda _, given, out: out.unsqueeze(1))


def make_compressed() -> None:
    rows()
    forwards()
    four = {"num_bits": 4, "strategy": "group", "group_size": 32}
    compressed("ct-w4", "pack-quantized", **four)
    compressed("ct-w4-asym", "pack-quantized", **four, symmetric=False)
    compressed("ct-w4-channel", "pack-quantized", num_bits=4, strategy="channel")
    compressed("ct-w8", "pack-quantized", num_bits=8, strategy="group", group_size=16)
    compressed("ct-w2", "pack-quantized", num_bits=2, strategy="group", group_size=32)
    compressed("ct-w3", "pack-quantized", num_bits=3, strategy="group", group_size=32)
    compressed("ct-int8", "int-quantized", num_bits=8, strategy="channel")
    compressed("ct-int8-tensor", "int-quantized", num_bits=8, strategy="tensor")
    compressed("ct-int8-asym", "int-quantized", num_bits=8, strategy="channel", symmetric=False)
    compressed("ct-fp8", "float-quantized", num_bits=8, type="float", strategy="channel")
    compressed("ct-fp8-tensor", "float-quantized", num_bits=8, type="float", strategy="tensor")
    block = {"strategy": "block", "block_structure": [128, 128]}
    compressed("ct-fp8-block", "float-quantized", num_bits=8, type="float", **block)
    group = {"num_bits": 4, "type": "float"}
    compressed(
        "ct-nvfp4", "nvfp4-pack-quantized", **group, strategy="tensor_group", group_size=16,
        scale_dtype="torch.float8_e4m3fn",
    )  # fmt: skip
    compressed(
        "ct-mxfp4", "mxfp4-pack-quantized", **group, strategy="group", group_size=32,
        scale_dtype="torch.uint8",
    )  # fmt: skip


# ---- bitsandbytes --------------------------------------------------------------------------------


def make_bitsandbytes() -> None:
    import bitsandbytes as bnb

    for kind in ("nf4", "fp4"):
        for double in (False, True):
            q, state = bnb.functional.quantize_4bit(
                weight(7), blocksize=64, compress_statistics=double, quant_type=kind
            )
            tensors = {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
            expected = bnb.functional.dequantize_4bit(q, state)
            config = {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "bnb_4bit_quant_type": kind,
                "bnb_4bit_use_double_quant": double,
            }
            save(
                f"bnb-{kind}{'-double' if double else ''}",
                config,
                {"weight": q, **tensors},
                expected,
            )
    codes, scb, _ = bnb.functional.int8_vectorwise_quant(weight(8).to(torch.float16))
    expected = bnb.functional.int8_vectorwise_dequant(codes, scb)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    tensors = {"weight": codes, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    save("bnb-int8", config, tensors, expected)


# ---- HQQ -----------------------------------------------------------------------------------------


def make_hqq() -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits, group in ((4, 16), (8, 64), (2, 16)):
        linear = torch.nn.Linear(K, N, bias=False)
        linear.weight.data = weight(bits)
        rule = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
        layer = HQQLinear(linear, rule, compute_dtype=torch.float32, device="cpu")
        state = {k: v for k, v in layer.state_dict().items() if isinstance(v, torch.Tensor)}
        config = {"quant_method": "hqq", "quant_config": {**rule, "offload_meta": False}}
        save(f"hqq-{bits}", config, state, layer.dequantize())


# ---- GPTQ and AWQ --------------------------------------------------------------------------------


def rounded(w: torch.Tensor, group: int, bits: int, sym: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero) [N, G] of consecutive columns, fp16 values."""
    parts, top = w.reshape(len(w), -1, group), 2**bits - 1
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    if sym:
        high = torch.maximum(high, -low)
        low = -high
    scale = ((high - low) / top).half().float()
    zero = torch.full_like(scale, 2 ** (bits - 1)) if sym else torch.round(-low / scale)
    return scale, zero


def gptq(case: str, bits: int, group: int, *, sym: bool, v1: bool, order: bool = False) -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight.data = weight(bits + group)
    index = torch.arange(K, dtype=torch.int32) // group
    if order:
        index = index[torch.randperm(K, generator=torch.Generator().manual_seed(3))]
    columns = torch.argsort(index, stable=True)
    scale, zero = rounded(linear.weight.data[:, columns], group, bits, sym)
    layer = TorchLinear(
        bits=bits, group_size=group, sym=sym, desc_act=order, in_features=K, out_features=N
    )
    layer.pack(linear, scale, zero, index)
    layer.post_init()
    expected = layer.dequantize_weight().T
    if v1:
        settings = QuantizeConfig(bits=bits, group_size=group, sym=sym, desc_act=order)
        convert_gptq_v2_to_v1_format_module(layer, settings)
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": sym,
        "desc_act": order,
        "checkpoint_format": "gptq" if v1 else "gptq_v2",
    }
    tensors = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    save(case, config, tensors, expected)


def awq(case: str, version: str, group: int) -> None:
    from gptqmodel.nn_modules.qlinear.gemv_awq import AwqGEMVLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    n = 64 if version == "gemv" else N
    linear = torch.nn.Linear(128, n, bias=False)
    linear.weight.data = weight(group, n, 128)
    scale, zero = rounded(linear.weight.data, group, 4, False)
    sizes = {"bits": 4, "group_size": group, "sym": False, "desc_act": False}
    layer = AwqTorchLinear(**sizes, in_features=128, out_features=n)
    layer.pack(linear, scale.half(), zero)
    expected = dequantize_gemm(
        qweight=layer.qweight, qzeros=layer.qzeros, scales=layer.scales, bits=4, group_size=group
    ).T
    if version == "gemv":
        layer = AwqGEMVLinear(**sizes, in_features=128, out_features=n)
        layer.pack(linear, scale.half(), zero)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version}
    tensors = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
    save(case, config, tensors, expected)


def make_gptqmodel() -> None:
    gptq("gptq-4", 4, 32, sym=True, v1=True)
    gptq("gptq-4-asym", 4, 16, sym=False, v1=True)
    gptq("gptq-4-v2-order", 4, 32, sym=False, v1=False, order=True)
    gptq("gptq-2", 2, 32, sym=False, v1=True)
    gptq("gptq-3", 3, 32, sym=False, v1=True)
    gptq("gptq-3-order", 3, 32, sym=True, v1=True, order=True)
    gptq("gptq-8", 8, 64, sym=True, v1=True)
    gptq("gptq-8-v2", 8, 32, sym=False, v1=False)
    awq("awq-gemm", "gemm", 32)
    awq("awq-gemv", "gemv", 64)


def main() -> None:
    torch.manual_seed(1)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "configs.json"
    known = json.loads(path.read_text()) if path.exists() else {"versions": {}, "cases": {}}
    made = {
        "compressed-tensors": make_compressed,
        "bitsandbytes": make_bitsandbytes,
        "hqq": make_hqq,
        "gptqmodel": make_gptqmodel,
    }
    for package, make in made.items():
        if sys.argv[1:] and package not in sys.argv[1:]:
            continue
        make()
        known["versions"][package] = version(package)
    known["cases"] |= CONFIGS
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
