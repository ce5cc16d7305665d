"""The model configuration: `la_model_desc` in Python, and the checked reading of config files.

`ModelConfig` carries the numbers that the C core gets; models/families.py fills it from a Hugging
Face `config.json` or from GGUF metadata. Every value in those files is untrusted: a `Keys` reads it
with its type and range, and the error names the key. Floats are rounded to float32, as the C struct
holds them, so that one model gives one `ModelConfig` whatever file it came from.

Called by loading.py, by the mapping, families, rope and gguf_config of models/, and by the tests;
imports nothing slow.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmaccel.errors import ConfigError, LoadError
from llmaccel.files import read_json_object
from llmaccel.hints import SAMPLING_NAMES, hint
from llmaccel.params import REPETITION_PENALTIES

MAX_LAYERS = 4096  # LA_MAX_LAYERS of csrc/llmaccel.h
MAX_D_MODEL = 1 << 20
MAX_HEADS = 1 << 16
MAX_D_HEAD = 256
MAX_ROW = 1 << 22  # heads of a token side by side
MAX_D_FFN = 1 << 24
MAX_VOCAB = 1 << 24
MAX_EXPERTS = 1024  # LA_MAX_EXPERTS
MAX_EXPERTS_USED = 32  # LA_MAX_EXPERTS_USED
MAX_LABELS = 1 << 20
MAX_POSITIONS = 1 << 24  # LA_MAX_POSITIONS
_MAX_JSON_BYTES = 64 << 20
_MAX_STOP_IDS = 4096


class Layer(NamedTuple):
    """`la_layer_desc`. window: tokens that a token sees, itself included; 0: all.
    rope: index of the rope table; -1: no rotation. moe: whether it has experts."""

    window: int
    rope: int
    moe: bool = False


@dataclass(frozen=True, eq=False)
class ModelConfig:
    """The fields of `la_model_desc` (see csrc/llmaccel.h for their meaning), and what Python needs
    beside.

    layers: one Layer each. rope_inv_freq: float32 [d_rope/2] per table. raw: the
    Hugging Face style dict that this was mapped from, text_config merged, overrides applied. gguf:
    the tensors carry GGUF names and layouts.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ffn: int
    n_vocab: int
    max_len: int
    norm: str  # "rms", "layer"
    norm_eps: float
    act: str  # "silu", "gelu", "gelu_tanh", "relu", "clip"
    gated: bool
    parallel: bool
    qk_norm: str  # "none", "head", "row", "unit"
    d_rope: int
    rope_interleaved: bool
    attn_scale: float
    attn_softcap: float
    logit_softcap: float
    logit_scale: float
    embed_scale: float
    residual_scale: float
    layers: list[Layer]
    rope_inv_freq: list[np.ndarray]
    rope_scale: list[float]
    family: str
    architecture: str
    tie_embeddings: bool
    max_position_embeddings: int
    eos_token_ids: list[int]
    bos_token_id: int | None
    slots: tuple[str, ...] = ()  # the slots that the checkpoint fills
    attn_grow: float = 0.0
    attn_grow_every: int = 0
    fast_math: bool = False  # products by a library, which was found
    n_experts: int = 0
    n_experts_used: int = 0
    d_expert: int = 0
    d_shared: int = 0
    shared_gate: bool = False
    route_score: str = "softmax"  # "softmax", "sigmoid"
    route_norm: bool = False
    route_scale: float = 1.0
    route_groups: int = 1
    route_groups_used: int = 1
    route_group_best: int = 1
    route_input: bool = False
    gguf: bool = False
    attn: str = "heads"  # "heads", "latent"; the next are of "latent"
    kv_rank: int = 0
    q_rank: int = 0
    d_nope: int = 0
    d_v: int = 0
    latent_eps: float = 0.0
    activation: str = "f32"  # la_act_form: "f32", "f64", "bf16", "i8"; the loader replaces it
    kv_form: str = "f32"  # of the KV cache: "f32", "bf16", "i8", "f8"; the loader replaces it
    task: str = "generate"  # what it is for: "generate", "classify", "embed"
    n_labels: int = 0  # of "classify"
    raw: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class GenerationConfig:
    """What a `generation_config.json` says, under vLLM's names. Empty where there is no file.

    sampling: of temperature, top_p, top_k, min_p, repetition_penalty, max_tokens those that are
    set.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    do_sample: bool | None = None
    sampling: dict[str, float | int] = field(default_factory=dict)


def f32(value: float) -> float:
    """`value` rounded to float32, as a Python float."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


class Keys:
    """Typed, range-checked reads from an untrusted dict.

    raw: the dict. defaults: values of absent keys; a key that is present and null is None, not the
    default. where: what the messages call the file. spelled: the file's own name of a key where it
    differs. Every method raises ConfigError naming the key.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        defaults: Mapping[str, Any],
        where: str = "config.json",
        spelled: Mapping[str, str] | None = None,
    ) -> None:
        self.raw = raw
        self.defaults = defaults
        self.where = where
        self.spelled = spelled or {}

    def error(self, key: str, problem: str) -> ConfigError:
        """A ConfigError about `key`; the caller raises it."""
        return ConfigError(f"{self.where}: {self.spelled.get(key, key)} {problem}")

    def has(self, key: str) -> bool:
        """Whether `key` is given and not null."""
        return self.raw.get(key) is not None

    def value(self, key: str) -> Any:
        """The raw value, or the default."""
        if key in self.raw:
            return self.raw[key]
        if key in self.defaults:
            return self.defaults[key]
        raise self.error(key, "is missing")

    def integer(self, key: str, lo: int, hi: int, none: bool = False) -> Any:
        """An int in lo..hi; None only where `none` allows it."""
        return self.check_integer(key, self.value(key), lo, hi, none)

    def check_integer(self, key: str, value: Any, lo: int, hi: int, none: bool = False) -> Any:
        """The same check on a value that the caller holds."""
        if value is None and none:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"must be an integer, is {_shown(value)}")
        if not lo <= value <= hi:
            raise self.error(key, f"must be in {lo}..{hi}, is {_shown(value)}")
        return value

    def number(self, key: str, lo: float, hi: float, none: bool = False) -> Any:
        """A finite float in lo..hi; None only where `none` allows it."""
        return self.check_number(key, self.value(key), lo, hi, none)

    def check_number(self, key: str, value: Any, lo: float, hi: float, none: bool = False) -> Any:
        """The same check on a value that the caller holds."""
        if value is None and none:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.error(key, f"must be a number, is {_shown(value)}")
        # Compared before the conversion: a huge int has no float.
        if not lo <= value <= hi:
            raise self.error(key, f"must be in {lo:g}..{hi:g}, is {_shown(value)}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or False."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {_shown(value)}")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, is {_shown(value)}")
        return value

    def numbers(self, key: str, length: int, lo: float, hi: float) -> list[float]:
        """A list of `length` finite floats in lo..hi."""
        value = self.value(key)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(key, f"must be a list of {length} numbers, is {_shown(value)}")
        return [self.check_number(f"{key}[{i}]", v, lo, hi) for i, v in enumerate(value)]

    def ids(self, key: str) -> list[int]:
        """Token ids given as an int, a list of ints, or null; without repetitions."""
        value = self.value(key)
        if value is None:
            return []
        items = value if isinstance(value, list) else [value]
        if len(items) > _MAX_STOP_IDS:
            raise self.error(key, f"lists {len(items)} ids, more than {_MAX_STOP_IDS}")
        return list(dict.fromkeys(self.check_integer(key, v, 0, 2**31 - 1) for v in items))


def _shown(value: Any) -> str:
    """`value` as it appears in a message: JSON-like and short."""
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'dict'} of {len(value)}"
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "an integer of more than 40 digits"
    text = ascii(value)
    return text if len(text) <= 80 else text[:80] + "..."


def load_hf_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face folder, as written. LoadError names what is wrong."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise LoadError(f"{path}: the file is missing")
    return read_json_object(path, _MAX_JSON_BYTES)


def load_generation_config(folder: str | Path) -> GenerationConfig:
    """The `generation_config.json` of a folder, or an empty one where there is no such file.

    Raises LoadError for a file that is no JSON object, ConfigError naming a key with a bad value.
    """
    path = Path(folder) / "generation_config.json"
    if not path.is_file():
        return GenerationConfig()
    return parse_generation_config(read_json_object(path, _MAX_JSON_BYTES))


_GENERATION_KEYS = (
    *("eos_token_id", "bos_token_id", "do_sample", "temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "max_new_tokens"),
)


def override_generation(found: GenerationConfig, overrides: Any) -> GenerationConfig:
    """`found` with the keys of override_generation_config in place of its own; ConfigError names
    one that decides nothing here."""
    name = "override_generation_config"
    if not overrides:
        return found
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"{name}: expected a dict, is {_shown(overrides)}")
    for key in overrides:
        if key not in _GENERATION_KEYS:
            known = dict.fromkeys(("max_tokens", "max_length"), "max_new_tokens")
            raise ConfigError(
                f"{name}: {_shown(key)} is no key of a generation config that is used here"
                + hint(str(key), _GENERATION_KEYS, known | SAMPLING_NAMES)
            )
    given = parse_generation_config(overrides, name)
    kept = {"sampling": {**found.sampling, **given.sampling}}
    fields = (("eos_token_id", "eos_token_ids"), ("bos_token_id",) * 2, ("do_sample",) * 2)
    kept |= {field: getattr(given, field) for key, field in fields if key in overrides}
    return replace(found, **kept)


def parse_generation_config(
    raw: Mapping[str, Any], where: str = "generation_config.json"
) -> GenerationConfig:
    """The same from a dict (an argument, or GGUF metadata)."""
    keys = Keys(raw, dict.fromkeys(_GENERATION_KEYS), where)
    sampling = {
        "temperature": keys.number("temperature", 0.0, 1e6, none=True),
        "top_p": keys.number("top_p", 0.0, 1.0, none=True),
        "top_k": keys.integer("top_k", -1, 2**31 - 1, none=True),
        "min_p": keys.number("min_p", 0.0, 1.0, none=True),
        "repetition_penalty": keys.number("repetition_penalty", *REPETITION_PENALTIES, none=True),
        "max_tokens": keys.integer("max_new_tokens", 1, 2**31 - 1, none=True),
    }
    if sampling["top_p"] == 0.0:
        raise keys.error("top_p", "must be above 0")
    return GenerationConfig(
        eos_token_ids=tuple(keys.ids("eos_token_id")),
        bos_token_id=keys.integer("bos_token_id", 0, 2**31 - 1, none=True),
        do_sample=keys.flag("do_sample") if keys.has("do_sample") else None,
        sampling={k: v for k, v in sampling.items() if v is not None},
    )


def flatten(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with the keys of a nested `text_config` brought up; the outer `architectures` stays."""
    nested = raw.get("text_config")
    if nested is None:
        return dict(raw)
    if not isinstance(nested, dict):
        raise ConfigError(f"config.json: text_config must be a dict, is {_shown(nested)}")
    flat = {k: v for k, v in raw.items() if k != "text_config"}
    flat.update(
        (k, v) for k, v in nested.items() if k != "architectures" or "architectures" not in raw
    )
    return flat


class ConfigView(dict[str, Any]):
    """A configuration as a function of hf_overrides gets it: keys, or attributes as transformers'
    configurations have them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the model's config.json has no {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def get_text_config(self) -> ConfigView:
        """Itself: what is nested was brought up."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """A plain copy."""
        return dict(self)


def override_dict(raw: Mapping[str, Any], overrides: Any) -> Any:
    """`overrides` as a dict: of a function what it changes of `raw` (flattened), a copy of which it
    is given as a ConfigView, to change or to return another whole one. ConfigError for what it may
    not do; to take a key away is one of that, None in its place is not."""
    if not callable(overrides) or isinstance(overrides, Mapping):
        return overrides
    view = ConfigView(copy.deepcopy(dict(raw)))
    found = overrides(view)
    found = view if found is None else found
    if not isinstance(found, Mapping):
        raise ConfigError(f"hf_overrides: expected a dict from the function, is {_shown(found)}")
    gone = [key for key in raw if key not in found]
    if gone:
        raise ConfigError(
            f"hf_overrides: the function takes away {', '.join(map(_shown, gone))}; keys are "
            "changed here, to None for example, and not removed"
        )
    return {key: value for key, value in found.items() if key not in raw or raw[key] != value}


def apply_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """`raw` (flattened) with `hf_overrides` on top; ConfigError if they are no dict."""
    if overrides is None:
        return dict(raw)
    if not isinstance(overrides, Mapping) or not all(isinstance(k, str) for k in overrides):
        raise ConfigError(f"hf_overrides must be a dict with string keys, is {_shown(overrides)}")
    merged = {**raw, **flatten(overrides)}
    # An overridden base must win over the copy that transformers 5 keeps inside rope_parameters.
    inner = merged.get("rope_parameters")
    if "rope_theta" in overrides and "rope_parameters" not in overrides and isinstance(inner, dict):
        merged["rope_parameters"] = {k: v for k, v in inner.items() if k != "rope_theta"}
    return merged
