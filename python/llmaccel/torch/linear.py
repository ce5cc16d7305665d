"""nn.Linear with a packed weight, and its exchange in a model that is already there.

Owns QuantizedLinear and quantize_linear_. Invariant: a layer's float weight is let go before the
next layer is packed, so a model never needs more memory than it had, plus one layer. Built on the
operators, so layers run in torch.compile and their bytes are saved in a state_dict like any tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from llmaccel import ConfigError, LLMAccelError, kernels

LAYOUTS = ("w4g128", "w4g32", "int8", "fp8", "w6g16", "BF16", "F16", "F32")
"""What a float weight may become."""
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class QuantizedLinear(nn.Module):
    """y = x W^T + b, as nn.Linear, with W packed as `layout`: for inference on the CPU.

    in_features, out_features: K and N. layout: "int8", "fp8", "w4g128", "w4g32", "w6g16"; or
    "BF16", "F16", "F32". bias: whether there is one. activation: how rows enter the product
    (kernels.linear); threads: 0 takes all processors where that pays. The weight is zero until a
    state_dict is loaded; `of` packs one.

    packed: the buffer uint8 [units, bytes of a unit]; bias: float32 [N] or None. forward takes
    [..., K] of float32, bfloat16 or float16 and returns its dtype. No gradient reaches x: backward
    through it is an error of torch.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        layout: str,
        bias: bool = True,
        *,
        activation: str = "auto",
        threads: int = 0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.layout, self.activation, self.threads = layout, activation, threads
        shape = kernels.packed_shape((out_features, in_features), layout)
        self.register_buffer("packed", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def of(
        cls, linear: nn.Linear, layout: str, *, activation: str = "auto", threads: int = 0
    ) -> QuantizedLinear:
        """A layer with the weight and the bias of another, which stays as it is.

        ConfigError: an unknown layout, an activation that it does not take, a weight that is not
        on the CPU, no float32, bfloat16 or float16, or holds what cannot be quantized.
        """
        _check(layout, activation)
        return cls._packed(linear, layout, activation, threads)

    @classmethod
    def _packed(
        cls, linear: nn.Linear, layout: str, activation: str, threads: int
    ) -> QuantizedLinear:
        """of, with what does not depend on the weight checked."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = linear.in_features, linear.out_features
        made.layout, made.activation, made.threads = layout, activation, threads
        weight = linear.weight.detach().contiguous()
        if weight.device.type != "cpu":
            raise ConfigError(f"weight: is on {weight.device}, expected the CPU")
        if weight.dtype not in _FLOATS:
            raise ConfigError(
                f"weight: expected float32, bfloat16 or float16, got {str(weight.dtype)[6:]}"
            )
        if not weight.numel():
            raise ConfigError(f"weight: {list(weight.shape)} is empty")
        packed = kernels.pack(weight, layout, threads=threads)
        made.register_buffer("packed", torch.from_dlpack(packed.data))
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        made.register_buffer("bias", bias)
        return made.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., K]; returns [..., N] in x's dtype."""
        if x.shape[-1] != self.in_features:  # rows are padded: fewer k may fit the bytes too
            raise ConfigError(f"x: expected [..., {self.in_features}], got {list(x.shape)}")
        y = torch.ops.llmaccel.linear(
            x,
            self.packed,
            self.out_features,
            self.layout,
            self.bias,
            activation=self.activation,
            threads=self.threads,
        )
        return y.to(x.dtype)

    def dequantize(self) -> Tensor:
        """The matrix that is multiplied with: float32 [N, K]."""
        shape = (self.out_features, self.in_features)
        return torch.ops.llmaccel.unpack(self.packed, *shape, self.layout)

    def extra_repr(self) -> str:
        """As nn.Linear's, with the layout."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, layout={self.layout!r}, activation={self.activation!r}"
        )

    # Bytes of one layout may be as many as those of another: the name goes with them.

    def get_extra_state(self) -> Tensor:
        """The layout's name as uint8, which any file of tensors can hold."""
        return torch.tensor(list(self.layout.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """ConfigError where a state_dict's bytes are of another layout."""
        stored = bytes(state.tolist()).decode("ascii", "replace")
        if stored != self.layout:
            raise ConfigError(f"state_dict: packed as {stored!r}, this layer is {self.layout!r}")


def quantize_linear_(
    module: nn.Module,
    layout: str,
    *,
    skip: str | Iterable[str] = (),
    activation: str = "auto",
    threads: int = 0,
) -> nn.Module:
    """Replaces every nn.Linear inside a module by a QuantizedLinear; returns the module.

    layout: "w4g128", "w4g32", "int8", "fp8", "w6g16", or "BF16", "F16", "F32". skip: names of
    layers that stay, dotted ones or single parts of them, with * and ? as in file names ("lm_head",
    "layers.0.*"). Subclasses of nn.Linear stay too: their owners may read the weight. Layers are
    packed one by one, and each float weight is freed as it is replaced, unless somebody else holds
    it (a tied embedding). activation, threads: as kernels.linear.

    ConfigError: an unknown layout, an activation that it does not take or a name in skip that no
    layer has, before anything is replaced; or a layer that cannot be packed (another device or
    dtype, values that are not finite), named, and those before it are replaced.
    """
    if type(module) is nn.Linear:
        raise ConfigError("module: is an nn.Linear itself; take QuantizedLinear.of(module, ...)")
    _check(layout, activation)
    patterns = [skip] if isinstance(skip, str) else list(skip)
    layers = _linears(module)
    for pattern in patterns:
        if not any(_is_named(places, pattern) for places in layers):
            raise ConfigError(f"skip: no nn.Linear is named {pattern!r}")
    for places in layers:
        if any(_is_named(places, pattern) for pattern in patterns):
            continue
        name, parent, key = places[0]
        try:
            made = QuantizedLinear._packed(getattr(parent, key), layout, activation, threads)
        except LLMAccelError as error:
            raise type(error)(f"{name}: {error}") from error
        for _, parent, key in places:
            setattr(parent, key, made)
    return module


def _check(layout: str, activation: str) -> None:
    """ConfigError for a layout that is none, or whose products do not take the activation."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: {layout!r:.80} is none of {', '.join(LAYOUTS)}")
    one = torch.zeros(1, 1)
    kernels.linear(one, kernels.pack(one, layout), activation=activation)


Place = tuple[str, nn.Module, str]  # dotted name, the module it is in, its name there


def _linears(module: nn.Module) -> list[list[Place]]:
    """All places of every nn.Linear in a module; no reference to the layers themselves."""
    found: dict[int, list[Place]] = {}
    for prefix, parent in module.named_modules(remove_duplicate=False):
        for key, child in parent._modules.items():
            if type(child) is nn.Linear:
                name = f"{prefix}.{key}" if prefix else key
                found.setdefault(id(child), []).append((name, parent, key))
    return list(found.values())


def _is_named(places: list[Place], pattern: str) -> bool:
    """Whether a pattern fits one of a layer's names, or a part of one."""
    return any(
        fnmatchcase(text, pattern) for name, _, _ in places for text in (name, *name.split("."))
    )
