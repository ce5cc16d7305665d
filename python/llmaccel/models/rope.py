"""Rotation frequencies from a model's config: what `la_model_desc` holds in rope_inv_freq and
rope_scale.

Owns the reading of `rope_theta` / `rope_scaling` (transformers 4) and `rope_parameters`
(transformers 5), flat or nested by layer type, and the arithmetic of each rope type. The
frequencies are fixed here, once, from the length that the model is loaded for, so a token's bits
never depend on how long its neighbours are. The steps are transformers' own, in float32; powers are
taken in float64 and rounded, which makes the result independent of NumPy's vector library. Called
by models/mapping.py; families.py names the keys (`RopeKeys`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmaccel.config import MAX_POSITIONS, Keys, f32
from llmaccel.errors import ConfigError, UnsupportedError

_F = np.float32
_FULL, _SLIDING = "full_attention", "sliding_attention"
_KNOWN_KEYS = frozenset(
    (
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
        "short_factor",
        "long_factor",
        "finetuned",
    )
)


@dataclass(frozen=True)
class RopeKeys:
    """How a family spells its rotation.

    theta: key and default of the base. partial: key and default of the rotated share of a head, or
    None where the family rotates whole heads. local_theta: key and default of a second table for
    sliding layers. aliases: old names of rope types. original: class default of
    original_max_position_embeddings where the class has that attribute. absent: parameters of a
    config that has none.
    """

    theta: tuple[str, float] = ("rope_theta", 10000.0)
    partial: tuple[str, float] | None = None
    local_theta: tuple[str, float] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    types: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    original: int | None = None
    absent: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RopeContext:
    """The sizes that a table depends on."""

    d_head: int
    max_position_embeddings: int
    max_len: int


def rope_tables(
    keys: Keys, spec: RopeKeys, context: RopeContext
) -> tuple[list[np.ndarray], list[float]]:
    """Frequencies (float32 [d_rope/2]) and cos/sin scale of each table; table 0 is full attention.

    Raises ConfigError naming the key, UnsupportedError for a rope type or parameter that is not
    known.
    """
    sets = _parameter_sets(keys, spec)
    tables, scales = [], []
    for params in sets:
        inv_freq, scale = _table(params, context)
        if not (np.isfinite(inv_freq).all() and (inv_freq > 0).all() and math.isfinite(f32(scale))):
            raise ConfigError(
                f"{keys.where}: the rope parameters give frequencies that are not finite"
            )
        tables.append(inv_freq)
        scales.append(f32(scale))
    return tables, scales


def rope_reach(keys: Keys, spec: RopeKeys, positions: int) -> int:
    """The positions that the rope scaling of full attention makes of the config's: factor times as
    many, or of yarn as the length it stretches; those themselves where it says no such thing."""
    params = _parameter_sets(keys, spec)[0]
    kind = params.text("rope_type")
    if kind not in ("linear", "dynamic", "yarn") or not params.has("factor"):
        return positions
    length = positions
    if kind == "yarn" and params.has("original_max_position_embeddings"):
        length = params.integer("original_max_position_embeddings", 2, MAX_POSITIONS)
    return max(positions, min(int(length * _factor(params)), MAX_POSITIONS))


def _dict_of(keys: Keys, key: str) -> dict[str, Any]:
    value = keys.raw.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise keys.error(key, f"must be a dict, is {ascii(value)[:80]}")
    return dict(value)


def _parameter_sets(keys: Keys, spec: RopeKeys) -> list[Keys]:
    """One checked, standardized parameter dict per table."""
    scaling, params = _dict_of(keys, "rope_scaling"), _dict_of(keys, "rope_parameters")
    if spec.absent is not None and not (scaling or params):
        params = dict(spec.absent)
    by_type = [name for name in (_FULL, _SLIDING) if name in params]
    if spec.local_theta is None:
        if by_type:
            nested = [_dict_of(Keys(params, {}, keys.where), name) for name in by_type]
            if len(params) != len(by_type) or any(one != nested[0] for one in nested):
                raise UnsupportedError(
                    f"{keys.where}: rope_parameters differ by layer type; "
                    "this family has one rotation"
                )
            params = nested[0]
        return [_standard(keys, {**params, **scaling}, spec, spec.theta)]
    if params and len(by_type) != len(params):
        raise UnsupportedError(
            f"{keys.where}: rope_parameters must be nested by layer type ({_FULL}, {_SLIDING})"
        )
    inner = Keys(params, {}, keys.where)
    full = {**_dict_of(inner, _FULL), **scaling}
    return [
        _standard(keys, full, spec, spec.theta),
        _standard(keys, _dict_of(inner, _SLIDING), spec, spec.local_theta),
    ]


def _standard(keys: Keys, params: dict[str, Any], spec: RopeKeys, theta: tuple[str, float]) -> Keys:
    """`params` with base, share, type and original length filled in from the outer keys."""
    unknown = sorted(str(k) for k in params if k not in _KNOWN_KEYS)
    if unknown:
        raise UnsupportedError(
            f"{keys.where}: rope parameter {ascii(unknown[0])[:80]} is not supported"
        )
    params = {k: v for k, v in params.items() if v is not None}
    if "rope_theta" not in params:
        outer = keys.raw.get(theta[0])
        params["rope_theta"] = theta[1] if outer is None else outer
    kind = params.get("rope_type", params.get("type", "default"))
    if not isinstance(kind, str) or spec.aliases.get(kind, kind) not in spec.types:
        raise UnsupportedError(
            f"{keys.where}: rope type {ascii(kind)[:80]} is not supported here; "
            f"known: {', '.join(spec.types)}"
        )
    params["rope_type"] = spec.aliases.get(kind, kind)
    outer_key, default = spec.partial or ("partial_rotary_factor", 1.0)
    if "partial_rotary_factor" not in params:
        outer = keys.raw.get(outer_key)
        params["partial_rotary_factor"] = default if outer is None else outer
    # A length beside the dict wins over the one inside: transformers keeps both for Phi-3.
    original = keys.raw.get("original_max_position_embeddings", spec.original)
    if original is not None:
        params["original_max_position_embeddings"] = original
    spelled = {k: keys.spelled.get(f"rope.{k}", f"rope_parameters.{k}") for k in _KNOWN_KEYS}
    standard = Keys(params, {}, keys.where, spelled)
    share = standard.number("partial_rotary_factor", 0.0, 1.0)
    if spec.partial is None and share != 1.0:
        raise UnsupportedError(
            f"{keys.where}: {spelled['partial_rotary_factor']} {share:g} is not "
            "supported; this family rotates whole heads"
        )
    return standard


def _table(params: Keys, context: RopeContext) -> tuple[np.ndarray, float]:
    theta = params.number("rope_theta", 1.0 + 1e-6, 1e30)
    share = params.number("partial_rotary_factor", 0.0, 1.0)
    dim = int(context.d_head * share)
    # An odd share is rotated up to the next pair, as transformers does.
    if dim < 1 or dim + dim % 2 > context.d_head:
        raise params.error(
            "partial_rotary_factor",
            f"rotates {dim} dimensions of a head of "
            f"{context.d_head}; an even number from 2 is needed",
        )
    kind = params.text("rope_type")
    if kind == "default":
        return _F(1) / _powers(theta, dim), 1.0
    if kind == "linear":
        return (_F(1) / _powers(theta, dim)) / _F(_factor(params)), 1.0
    if kind == "dynamic":
        return _dynamic(params, theta, dim, context), 1.0
    if kind == "llama3":
        return _llama3(params, theta, dim, context), 1.0
    if kind == "yarn":
        return _yarn(params, theta, dim, context)
    return _longrope(params, theta, dim, context)


def _powers(theta: float, dim: int) -> np.ndarray:
    """theta ** (2i / dim), float32 [ceil(dim / 2)]."""
    exponent = np.arange(0, dim, 2).astype(_F) / _F(dim)
    with np.errstate(over="ignore"):
        return (np.float64(_F(theta)) ** exponent.astype(np.float64)).astype(_F)


def _factor(params: Keys) -> float:
    return params.number("factor", 1e-6, 1e9)


def _original_length(params: Keys, context: RopeContext) -> int:
    if not params.has("original_max_position_embeddings"):
        return context.max_position_embeddings
    return params.integer("original_max_position_embeddings", 2, MAX_POSITIONS)


def _dynamic(params: Keys, theta: float, dim: int, context: RopeContext) -> np.ndarray:
    factor, trained = _factor(params), context.max_position_embeddings
    if dim <= 2:
        raise params.error("rope_type", f"dynamic needs more than {dim} rotated dimensions")
    length = max(context.max_len, trained)
    stretch = factor * length / trained - (factor - 1)
    if stretch <= 0:
        raise params.error("factor", f"of {factor:g} gives no frequencies at {length} positions")
    return _F(1) / _powers(theta * stretch ** (dim / (dim - 2)), dim)


def _llama3(params: Keys, theta: float, dim: int, context: RopeContext) -> np.ndarray:
    factor = _F(_factor(params))
    low = params.number("low_freq_factor", 1e-6, 1e9)
    high = params.number("high_freq_factor", 1e-6, 1e9)
    if high <= low:
        raise params.error("high_freq_factor", f"{high:g} must be above low_freq_factor {low:g}")
    length = _original_length(params, context)
    inv_freq = _F(1) / _powers(theta, dim)
    wavelength = _F(2 * math.pi) / inv_freq
    scaled = np.where(wavelength > _F(length / low), inv_freq / factor, inv_freq)
    smooth = (_F(length) / wavelength - _F(low)) / _F(high - low)
    blended = (_F(1) - smooth) * scaled / factor + smooth * scaled
    between = (wavelength >= _F(length / high)) & (wavelength <= _F(length / low))
    return np.where(between, blended, scaled)


def _yarn(params: Keys, theta: float, dim: int, context: RopeContext) -> tuple[np.ndarray, float]:
    length = _original_length(params, context)
    factor = _factor(params) if params.has("factor") else context.max_position_embeddings / length
    fast, slow = (
        (params.number(key, 0.0, 1e9) if params.has(key) else 0.0) or default
        for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )

    def boundary(rotations: float) -> float:
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = boundary(fast), boundary(slow)
    if params.flag("truncate") if params.has("truncate") else True:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    half = (dim + 1) // 2
    ramp = np.clip((np.arange(half, dtype=_F) - _F(first)) / _F(last - first), 0, 1)
    keep = _F(1) - ramp
    powers = _powers(theta, dim)
    inv_freq = _F(1) / (_F(factor) * powers) * (_F(1) - keep) + _F(1) / powers * keep
    return inv_freq, _yarn_scale(params, factor)


def _yarn_scale(params: Keys, factor: float) -> float:
    if params.has("attention_factor"):
        return params.number("attention_factor", 0.0, 1e9)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    each, all_dims = (
        params.number(key, 0.0, 1e9) if params.has(key) else 0.0
        for key in ("mscale", "mscale_all_dim")
    )
    return magnitude(each) / magnitude(all_dims) if each and all_dims else magnitude(1.0)


def softmax_factor(keys: Keys, spec: RopeKeys) -> float:
    """What DeepSeek's classes multiply the scale of scores by: the square of yarn's magnitude."""
    (params,) = _parameter_sets(keys, spec)
    if params.text("rope_type") == "default" or not params.has("mscale_all_dim"):
        return 1.0
    each = params.number("mscale_all_dim", 0.0, 1e9)
    factor = _factor(params)
    magnitude = 0.1 * each * math.log(factor) + 1.0 if each and factor > 1 else 1.0
    return magnitude * magnitude


def _longrope(
    params: Keys, theta: float, dim: int, context: RopeContext
) -> tuple[np.ndarray, float]:
    length = _original_length(params, context)
    half = (dim + 1) // 2
    # Both lists are checked, whichever is used: a file is right or wrong at any length.
    short = params.numbers("short_factor", half, 1e-6, 1e9)
    long = params.numbers("long_factor", half, 1e-6, 1e9)
    extent = np.array(long if context.max_len > length else short, dtype=_F)
    if params.has("attention_factor"):
        scale = params.number("attention_factor", 0.0, 1e9)
    else:
        factor = (
            _factor(params) if params.has("factor") else context.max_position_embeddings / length
        )
        scale = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    return _F(1) / (extent * _powers(theta, dim)), scale
