"""QuantizedLinear and quantize_linear_: their numbers, what they keep and what they let go."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from llmaccel import ConfigError, kernels

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
wing = pytest.importorskip("llmaccel.torch")
nn = torch.nn

# Largest error of a product of noise, of its largest value, beside the float layer.
BOUNDS = {"int8": 0.02, "fp8": 0.06, "w4g128": 0.25, "w4g32": 0.2, "w6g16": 0.05, "BF16": 0.01}
LAYOUTS = (*BOUNDS, "F16", "F32")


def noise(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(n: int, k: int, bias: bool = True) -> Any:
    made = nn.Linear(k, n, bias=bias)
    with torch.no_grad():
        made.weight.copy_(noise(n, k, seed=n + k) * k**-0.5)
    return made


class Block(nn.Module):
    """A model with layers in a list, one of them twice, and a subclass of nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer(64, 96), layer(96, 64, bias=False)])
        self.again = self.layers[0]
        self.attention = nn.MultiheadAttention(96, 2)
        self.head = layer(50, 96)

    def forward(self, x: Any) -> Any:
        for one in self.layers:
            x = one(x).relu()
        return self.head(x)


@pytest.mark.parametrize("layout", BOUNDS)
def test_a_layer_is_within_its_formats_error(layout: str) -> None:
    linear, x = layer(70, 200), noise(2, 5, 200)
    ours = wing.QuantizedLinear.of(linear, layout)
    got, want = ours(x), linear(x)
    assert (got.shape, got.dtype) == (want.shape, torch.float32)
    assert (got - want).abs().max() <= BOUNDS[layout] * want.abs().max()
    exact = x.bfloat16().float() @ ours.dequantize().T + linear.bias
    assert (got - exact).abs().max() <= 1e-5 * want.abs().max()  # the rest is the weight's rounding
    assert not torch.equal(got, want)
    half = ours(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, ours(x.bfloat16().float()).bfloat16())
    assert f"layout='{layout}'" in repr(ours)
    assert ours.packed.shape == kernels.packed_shape((70, 200), layout)


def test_a_model_is_quantized_in_place_and_its_weights_go() -> None:
    model, x = Block().eval(), noise(3, 96)
    with torch.no_grad():  # or the graph would hold the weights
        want = model(x)
    gone = [weakref.ref(one.weight) for one in (*model.layers, model.head)]
    kept = model.attention.out_proj
    assert wing.quantize_linear_(model, "w4g32") is model
    gc.collect()
    assert all(ref() is None for ref in gone)
    assert model.again is model.layers[0]  # one layer in two places is still one
    assert model.attention.out_proj is kept
    assert all(type(one) is wing.QuantizedLinear for one in (*model.layers, model.head))
    got = model(x)
    assert 0 < (got - want).abs().max() < 0.3 * want.abs().max()
    assert not model.head.training


def test_skip_names_layers() -> None:
    def left(skip: Any) -> list[str]:
        model = wing.quantize_linear_(Block(), "int8", skip=skip)
        return sorted(name for name, one in model.named_modules() if type(one) is nn.Linear)

    assert left("head") == ["head"]
    assert left(("layers.1", "h?ad")) == ["head", "layers.1"]
    assert left("layers.*") == ["layers.0", "layers.1"]
    with pytest.raises(ConfigError, match=r"skip: no nn\.Linear is named 'lm_head'"):
        left("lm_head")


def test_a_state_dict_carries_the_packed_bytes(tmp_path: Any) -> None:
    one = wing.QuantizedLinear.of(layer(40, 64), "int8")
    state = one.state_dict()
    assert all(value.dtype in (torch.uint8, torch.float32) for value in state.values())
    from safetensors.torch import load_file, save_file

    save_file(state, tmp_path / "layer.safetensors")
    two = wing.QuantizedLinear(64, 40, "int8")
    assert not two(noise(1, 64)).any()
    two.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(one(noise(3, 64)), two(noise(3, 64)))
    with pytest.raises(ConfigError, match="packed as 'int8', this layer is 'fp8'"):
        wing.QuantizedLinear(64, 40, "fp8").load_state_dict(state)


def test_layers_run_in_compiled_graphs() -> None:
    model, x = wing.quantize_linear_(Block().eval(), "int8"), noise(4, 96)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
        assert torch.equal(compiled(noise(7, 96)), model(noise(7, 96)))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"module: is an nn\.Linear"):
        wing.quantize_linear_(layer(4, 8), "int8")
    with pytest.raises(ConfigError, match="layout: 'w3'"):
        wing.quantize_linear_(Block(), "w3")
    for wrong in ("w4", "INT8", "bf16", "Q4_0", "auto", None, 4):
        with pytest.raises(ConfigError, match="is none of") as caught:
            wing.quantize_linear_(Block(), wrong)
        said = str(caught.value).removeprefix(f"layout: {wrong!r} is none of ").split(", ")
        assert sorted(said) == sorted(LAYOUTS)
        with pytest.raises(ConfigError, match=r"^layout: .* is none of w4g128"):
            wing.QuantizedLinear.of(layer(4, 8), wrong)
    model = Block()
    for activation, said in (("int8", "fp8 weights take bfloat16"), ("f16", "'float16' is none")):
        with pytest.raises(ConfigError, match=f"^activation: {said}"):
            wing.quantize_linear_(model, "fp8", activation=activation)
        with pytest.raises(ConfigError, match=f"^activation: {said}"):
            wing.QuantizedLinear.of(layer(4, 8), "fp8", activation=activation)
    assert type(model.layers[0]) is nn.Linear
    empty = nn.Linear(8, 4)
    empty.weight = nn.Parameter(torch.empty(0, 8))
    for made, said in ((nn.Linear(8, 4).double(), "got float64"), (empty, "is empty")):
        with pytest.raises(ConfigError, match=f"^0: weight: .*{said}"):
            wing.quantize_linear_(nn.Sequential(made), "int8")
    with torch.no_grad():
        model.layers[1].weight[3, 3] = float("nan")
    with pytest.raises(ConfigError, match=r"layers\.1: .*not finite"):
        wing.quantize_linear_(model, "int8")
    assert type(model.layers[0]) is wing.QuantizedLinear
    assert type(model.layers[1]) is nn.Linear
    with pytest.raises(ConfigError, match=r"head: weight: .*meta"):
        wing.quantize_linear_(nn.ModuleDict({"head": nn.Linear(8, 4, device="meta")}), "int8")
    one, x = wing.QuantizedLinear.of(layer(40, 64), "int8"), noise(1, 64)
    with pytest.raises(ConfigError, match=r"x: expected \[\.\.\., 64\]"):
        one(noise(1, 63))
    y = one(x.requires_grad_())
    with pytest.raises(RuntimeError, match=r"llmaccel.+linear.*no autograd"):
        y.sum().backward()
