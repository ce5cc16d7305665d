"""Row kernels on user tensors: norms, activations, rotation. Sources: rows.h, act.h of csrc.

All compute in float32, in a fixed order per row: every instruction set gives the same bits. Tensors
on a device are computed there (device.py).
"""

from __future__ import annotations

from typing import Any

from llmaccel import _core
from llmaccel.errors import ConfigError
from llmaccel.kernels import arguments, device
from llmaccel.kernels.arguments import ANYWHERE, Tensor

KINDS = ("silu", "gelu", "gelu_tanh", "relu", "clip")


def rms_norm(
    x: Any, weight: Any, eps: float = 1e-6, *, out: Any = None, isa: str = "auto"
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, row by row.

    x: [..., D]; weight: [D]; eps >= 0. Returns F32 of x's shape. out may be x.
    """
    t = arguments.rows(x, "x", ANYWHERE)
    w = arguments.vector(weight, "weight", t.shape[-1], t.device)
    y = arguments.result(out, t.shape, w, same=t)
    level, least = arguments.level(isa), arguments.real(eps, "eps", 0.0)
    if arguments.on_device(t, isa):
        device.norm(t, w, None, y, kind=device.RMS, eps=least)
    elif t.nbytes:
        _core.rms_norm(level, t, w, least, y)
    return y


def layer_norm(
    x: Any,
    weight: Any,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    out: Any = None,
    isa: str = "auto",
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, row by row.

    x: [..., D]; weight: [D]; bias: [D] or None; eps >= 0. Returns F32 of x's shape. out may be x.
    """
    t = arguments.rows(x, "x", ANYWHERE)
    w = arguments.vector(weight, "weight", t.shape[-1], t.device)
    b = None if bias is None else arguments.vector(bias, "bias", t.shape[-1], t.device)
    y = arguments.result(out, t.shape, *(w,) if b is None else (w, b), same=t)
    level, least = arguments.level(isa), arguments.real(eps, "eps", 0.0)
    if arguments.on_device(t, isa):
        device.norm(t, w, b, y, kind=device.LAYER, eps=least)
    elif t.nbytes:
        _core.layer_norm(level, t, w, b, least, y)
    return y


def add(x: Any, y: Any, scale: float = 1.0, *, out: Any = None, isa: str = "auto") -> Tensor:
    """y + x * scale, element by element.

    x, y: of one shape; scale: any finite number. Returns F32 of that shape. out may be y (an
    accumulation in place).
    """
    a = arguments.floats(x, "x", ANYWHERE)
    b = arguments.floats(y, "y", a.device)
    arguments.expect(a, "x", b.shape)
    level, factor = arguments.level(isa), arguments.real(scale, "scale")
    z = arguments.result(out, b.shape, a, same=b)
    if arguments.on_device(b, isa):
        device.elements(device.ADD, a, b, z, scale=factor)
        return z
    arguments.copy_into(z, b)
    if b.nbytes and factor == 1.0:
        _core.add(level, a, z)
    elif b.nbytes:
        _core.add_scaled(level, a, factor, z)
    return z


def act(x: Any, kind: str = "silu", *, out: Any = None, isa: str = "auto") -> Tensor:
    """An activation, element by element.

    x: any shape; kind: silu, gelu (by erf), gelu_tanh, relu, or clip (gpt-oss: z sigmoid(1.702 z),
    z = min(x, 7)). Returns F32 of x's shape. out may be x.
    """
    t = arguments.floats(x, "x", ANYWHERE)
    y = arguments.result(out, t.shape, same=t)
    level, name = arguments.level(isa), arguments.choice(kind, "kind", KINDS)
    if arguments.on_device(t, isa):
        device.elements(device.ACT, t, None, y, kind=name)
    elif t.nbytes:
        _core.act(level, name, t, y)
    return y


def act_mul(
    gate: Any, up: Any, kind: str = "silu", *, out: Any = None, isa: str = "auto"
) -> Tensor:
    """act(gate) * up, element by element: the middle of a gated feed-forward layer.

    gate, up: of one shape; kind as in act; clip multiplies with 1 + min(max(up, -7), 7) instead.
    Returns F32 of that shape. out may be gate.
    """
    g = arguments.floats(gate, "gate", ANYWHERE)
    u = arguments.floats(up, "up", g.device)
    arguments.expect(u, "up", g.shape)
    y = arguments.result(out, g.shape, u, same=g)
    level, name = arguments.level(isa), arguments.choice(kind, "kind", KINDS)
    if arguments.on_device(g, isa):
        device.elements(device.ACT_MUL, g, u, y, kind=name)
    elif g.nbytes:
        _core.act_mul(level, name, g, u, y)
    return y


def rope(
    x: Any, cos: Any, sin: Any, *, interleaved: bool = False, out: Any = None, isa: str = "auto"
) -> Tensor:
    """Rotary embedding: rotates the first 2 * h values of every head, leaves the rest.

    x: [T, H, d]; cos, sin: [T, h] of each token's angles (position * frequency), h <= d / 2.
    interleaved pairs values (2i, 2i + 1) instead of (i, i + h). Returns F32 of x's shape. out may
    be x.
    """
    t = arguments.rows(x, "x", ANYWHERE)
    c, s = arguments.rows(cos, "cos", t.device), arguments.floats(sin, "sin", t.device)
    if len(t.shape) != 3:
        raise ConfigError(f"x: expected [T, H, d], got {list(t.shape)}")
    tokens, heads, d = t.shape
    if len(c.shape) != 2 or c.shape[0] != tokens or 2 * c.shape[1] > d:
        raise ConfigError(
            f"cos: expected [{tokens}, up to {d // 2}] for x of {list(t.shape)}, "
            f"got {list(c.shape)}"
        )
    arguments.expect(s, "sin", c.shape)
    y = arguments.result(out, t.shape, c, s, same=t)
    level, pairs = arguments.level(isa), arguments.switch(interleaved, "interleaved")
    if arguments.on_device(t, isa):
        device.rope(t, c, s, pairs, y)
        return y
    arguments.copy_into(y, t)
    if t.nbytes:
        _core.rope(level, y, c, s, heads, d, pairs)
    return y


def softcap(
    x: Any, cap: float, scale: float = 1.0, *, out: Any = None, isa: str = "auto"
) -> Tensor:
    """cap * tanh(x * scale / cap), element by element; cap 0: x * scale.

    x: any shape; cap >= 0, scale > 0. Returns F32 of x's shape. out may be x.
    """
    t = arguments.floats(x, "x", ANYWHERE)
    level, factor = arguments.level(isa), arguments.positive(scale, "scale")
    bound = arguments.real(cap, "cap", 0.0)
    y = arguments.result(out, t.shape, same=t)
    if arguments.on_device(t, isa):
        device.elements(device.SOFTCAP, t, None, y, scale=factor, cap=bound)
        return y
    arguments.copy_into(y, t)
    if t.nbytes:
        _core.softcap(level, y, factor, bound)
    return y
