"""GGUF metadata as a Hugging Face style config dict, so that one set of rows serves both.

Owns the names of GGUF's hyper-parameters and what each says in `config.json` terms. Three things
are told by tensors and not by metadata: a tied head (no output.weight), Llama 3's frequency factors
(rope_freqs.weight) and Phi-3's long and short factors. Values are passed on unchecked where
mapping.py checks them; only what is computed with here is checked here. Metadata keys about
attention, rotation or experts that are not known are refused, because they change the arithmetic.
Called by mapping.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from llmaccel.config import MAX_D_HEAD, MAX_LAYERS, Keys
from llmaccel.errors import ConfigError, LoadError, UnsupportedError
from llmaccel.models.slots import TensorTable

if TYPE_CHECKING:
    from llmaccel.models.families import Family

_LOG = logging.getLogger("llmaccel")
_WHERE = "GGUF metadata"

_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
# Read here, or of no effect on the arithmetic.
_KNOWN = frozenset(
    (
        *_SIZES.values(),
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.layer_norm_epsilon",
        "vocab_size",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "tensor_data_layout",
        "nextn_predict_layers",
    )
)
_LATENT_KNOWN = (
    "attention.key_length_mla",
    "attention.value_length_mla",
    "rope.scaling.yarn_log_multiplier",
)
_ARITHMETIC = ("attention.", "rope.", "expert", "ssm.", "moe_", "shortconv.", "wkv.", "nextn_")
# The 27B models scale queries by hidden size over heads, the others by the head size.
_WIDE_SCALE = (("gemma2", 46), ("gemma3", 62))
_PREDICTION = "nextn_predict_layers"
_STOP_IDS = ("eos", "eot", "eom")


class _Metadata:
    """Metadata of one architecture, as plain Python values."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.arch = metadata["general.architecture"]

    def key(self, suffix: str) -> str:
        return f"{self.arch}.{suffix}"

    def get(self, suffix: str) -> Any:
        return plain(self.metadata.get(self.key(suffix)))

    def uniform(self, suffix: str) -> Any:
        """A value that may be given per layer; UnsupportedError where layers differ."""
        value = self.get(suffix)
        if not isinstance(value, list):
            return value
        if not value or any(item != value[0] for item in value):
            raise UnsupportedError(f"{_WHERE}: {self.key(suffix)} differs between layers")
        return value[0]


def plain(value: Any) -> Any:
    """NumPy arrays and scalars of a metadata value as lists and Python numbers."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def hf_config_from_gguf(
    metadata: Mapping[str, Any], tensors: TensorTable, family: Family
) -> tuple[dict[str, Any], dict[str, str]]:
    """The config dict, and the metadata key that each of its keys was read from.

    Raises ConfigError for a missing or ill-typed key, UnsupportedError for a feature that is not
    known.
    """
    meta = _Metadata(metadata)
    spelled = {key: meta.key(suffix) for key, suffix in {**_SIZES, **family.gguf_keys}.items()}
    _check_known(meta, family)
    raw: dict[str, Any] = {
        "architectures": [family.architectures[0]],
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": _vocab_size(meta, tensors),
    }
    for key, suffix in _SIZES.items():
        raw[key] = meta.uniform(suffix)
        if raw[key] is None:
            raise ConfigError(f"{_WHERE}: {meta.key(suffix)} is missing")
    raw.update(family.gguf_values)
    for key, suffix in family.gguf_keys.items():
        if meta.get(suffix) is not None:
            raw[key] = meta.get(suffix)
    if "use_qk_norm" in family.defaults:
        raw["use_qk_norm"] = "blk.0.attn_q_norm.weight" in tensors
    _prediction_layers(meta, raw, spelled)
    eps = (
        "attention.layer_norm_rms_epsilon"
        if family.norm == "rms"
        else "attention.layer_norm_epsilon"
    )
    raw[family.eps], spelled[family.eps] = meta.get(eps), meta.key(eps)
    raw["num_key_value_heads"] = meta.uniform("attention.head_count_kv")
    spelled["num_key_value_heads"] = meta.key("attention.head_count_kv")
    if family.latent:
        _latents(meta, raw, spelled)
    else:
        _heads(meta, raw, spelled)
    _windows(meta, raw, spelled)
    if family.rope is not None:
        _rope(meta, tensors, family, raw, spelled)
    stops = [plain(metadata.get(f"tokenizer.ggml.{name}_token_id")) for name in _STOP_IDS]
    raw["eos_token_id"] = [token for token in stops if token is not None]
    raw["bos_token_id"] = plain(metadata.get("tokenizer.ggml.bos_token_id"))
    if "query_pre_attn_scalar" in family.defaults:
        raw["query_pre_attn_scalar"] = _gemma_scalar(
            meta, family, Keys(raw, family.defaults, _WHERE, spelled)
        )
    return raw, spelled


def _prediction_layers(meta: _Metadata, raw: dict[str, Any], spelled: dict[str, str]) -> None:
    """Layers that predict further tokens are counted with the others and come last."""
    if meta.get(_PREDICTION) is None:
        return
    keys = Keys({"n": meta.get(_PREDICTION)}, {}, _WHERE, {"n": meta.key(_PREDICTION)})
    layers = Keys(raw, {}, _WHERE, spelled).integer("num_hidden_layers", 1, MAX_LAYERS)
    raw["num_nextn_predict_layers"] = keys.integer("n", 0, layers - 1)
    raw["num_hidden_layers"] = layers - raw["num_nextn_predict_layers"]


def _check_known(meta: _Metadata, family: Family) -> None:
    known = {*_KNOWN, *family.gguf_keys.values(), *(_LATENT_KNOWN if family.latent else ())}
    if "sliding_window_pattern" in family.defaults:
        known.update(("attention.sliding_window_pattern", "attention.scale"))
    for key in meta.metadata:
        suffix = key.removeprefix(meta.arch + ".")
        if suffix == key or suffix in known:
            continue
        value = meta.get(suffix)
        neutral: tuple[Any, ...] = (None, 0, False, [], "")
        if suffix == "attention.causal":
            neutral = (True,)
        elif suffix == "expert_gating_func":  # 1: softmax, 2: sigmoid
            neutral = (None, 0, 2 if "router_correction" in family.tensors else 1)
        elif suffix.endswith("_swa"):  # a size of the sliding layers that is no other than the rest
            neutral = (*neutral, meta.get(suffix.removesuffix("_swa")))
        if suffix.startswith(_ARITHMETIC) and value not in neutral:
            raise UnsupportedError(f"{_WHERE}: {key[:120]} is not supported")
        _LOG.debug("GGUF metadata %s is not used", key[:120])


def _vocab_size(meta: _Metadata, tensors: TensorTable) -> int:
    # Files disagree about the key and pad the token list; the embedding is what counts.
    if "token_embd.weight" not in tensors:
        raise LoadError("tensor 'token_embd.weight' is missing")
    shape = tensors["token_embd.weight"].shape
    if len(shape) != 2:
        raise LoadError(f"token_embd.weight: expected two dimensions, got {list(shape)}")
    return shape[0]


def _heads(meta: _Metadata, raw: dict[str, Any], spelled: dict[str, str]) -> None:
    size = meta.get("attention.key_length")
    spelled["head_dim"] = meta.key("attention.key_length")
    if meta.get("attention.value_length") not in (None, size):
        raise UnsupportedError(
            f"{_WHERE}: {meta.key('attention.value_length')} differs from "
            f"{meta.key('attention.key_length')}"
        )
    raw["head_dim"] = size


def _latents(meta: _Metadata, raw: dict[str, Any], spelled: dict[str, str]) -> None:
    """Sizes of MLA. Newer files say those of a latent under the plain names, as there is one key
    and value head, and those of expanded heads under names of their own."""
    own = "_mla" if meta.get("attention.key_length_mla") is not None else ""
    names = {
        "key": f"attention.key_length{own}",
        "v_head_dim": f"attention.value_length{own}",
        "qk_rope_head_dim": "rope.dimension_count",
    }
    spelled.update({key: meta.key(suffix) for key, suffix in names.items()})
    keys = Keys({key: meta.get(suffix) for key, suffix in names.items()}, {}, _WHERE, spelled)
    turned = keys.integer("qk_rope_head_dim", 2, MAX_D_HEAD)
    raw["qk_nope_head_dim"] = keys.integer("key", turned + 1, MAX_D_HEAD) - turned
    raw["qk_rope_head_dim"] = raw["head_dim"] = turned
    raw["v_head_dim"] = keys.value("v_head_dim")
    raw.setdefault("q_lora_rank", None)
    raw["num_key_value_heads"] = raw["num_attention_heads"]


def _latent_scaling(meta: _Metadata, params: dict[str, Any], spelled: dict[str, str]) -> None:
    """Yarn of MLA: files say a tenth of mscale_all_dim, and rotate by plain cos and sin."""
    if params["rope_type"] != "yarn":
        return
    spelled["log"] = meta.key("rope.scaling.yarn_log_multiplier")
    keys = Keys({"log": meta.get("rope.scaling.yarn_log_multiplier")}, {}, _WHERE, spelled)
    log = keys.number("log", 0.0, 1e9, none=True)
    params["attention_factor"] = 1.0
    # The float32 of a decimal: config.json's is the decimal.
    params["mscale_all_dim"] = float(f"{10 * log:.6g}") if log else None


def _windows(meta: _Metadata, raw: dict[str, Any], spelled: dict[str, str]) -> None:
    if raw.get("sliding_window") == 0:
        raw["sliding_window"] = None
    pattern = meta.get("attention.sliding_window_pattern")
    key = "layer_types" if isinstance(pattern, list) else "sliding_window_pattern"
    if isinstance(pattern, list):
        pattern = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    if pattern is not None:
        raw[key], spelled[key] = pattern, meta.key("attention.sliding_window_pattern")


def _gemma_scalar(meta: _Metadata, family: Family, keys: Keys) -> float:
    """query_pre_attn_scalar: files do not say it."""
    if meta.get("attention.scale") is not None:
        scale = Keys(
            {"scale": meta.get("attention.scale")},
            {},
            _WHERE,
            {"scale": meta.key("attention.scale")},
        )
        return scale.number("scale", 1e-4, 1e3) ** -2
    layers = keys.integer("num_hidden_layers", 1, MAX_LAYERS)
    if (family.gguf_arch, layers) in _WIDE_SCALE:
        return keys.integer("hidden_size", 1, 2**20) / keys.integer("num_attention_heads", 1, 2**16)
    return keys.integer("head_dim", 1, MAX_D_HEAD)


def _rope(
    meta: _Metadata,
    tensors: TensorTable,
    family: Family,
    raw: dict[str, Any],
    spelled: dict[str, str],
) -> None:
    """Base, rotated share and scaling, in transformers 5 terms."""
    spelled.update(
        {
            f"rope.{k}": meta.key(v)
            for k, v in (
                ("rope_theta", "rope.freq_base"),
                ("factor", "rope.scaling.factor"),
                ("original_max_position_embeddings", "rope.scaling.original_context_length"),
                ("attention_factor", "rope.scaling.attn_factor"),
                ("rope_type", "rope.scaling.type"),
                ("beta_fast", "rope.scaling.yarn_beta_fast"),
                ("beta_slow", "rope.scaling.yarn_beta_slow"),
                ("partial_rotary_factor", "rope.dimension_count"),
            )
        }
    )
    params = _scaling(meta, tensors)
    usual = family.rope.absent if family.rope is not None else None
    if usual is not None and "truncate" in usual and params["rope_type"] == "yarn":
        params["truncate"] = usual["truncate"]  # files do not say it
    if family.latent:
        _latent_scaling(meta, params, spelled)
    if meta.get("rope.freq_base") is not None:
        params["rope_theta"] = meta.get("rope.freq_base")
    rotated, size = meta.get("rope.dimension_count"), _head_size(raw, spelled)
    if rotated is not None and rotated != size:
        share = Keys({"n": rotated}, {}, _WHERE, {"n": meta.key("rope.dimension_count")})
        # Half a dimension more than the share, because the product is cut to an integer.
        params["partial_rotary_factor"] = (share.integer("n", 1, max(size - 1, 1)) + 0.5) / size
    elif rotated is not None:
        params["partial_rotary_factor"] = 1.0
    if family.rope is not None and family.rope.original is not None:
        original = meta.get("rope.scaling.original_context_length")
        raw["original_max_position_embeddings"] = (
            raw["max_position_embeddings"] if original is None else original
        )
    if family.rope is not None and family.rope.local_theta is not None:
        local: dict[str, Any] = {"rope_type": "default"}
        if meta.get("rope.freq_base_swa") is not None:
            local["rope_theta"] = meta.get("rope.freq_base_swa")
        raw["rope_parameters"] = {"full_attention": params, "sliding_attention": local}
    else:
        raw["rope_parameters"] = params


def _head_size(raw: dict[str, Any], spelled: dict[str, str]) -> int:
    keys = Keys(raw, {}, _WHERE, spelled)
    size = keys.integer("head_dim", 1, 2**20, none=True)
    heads = keys.integer("num_attention_heads", 1, 2**16)
    return size or max(keys.integer("hidden_size", 1, 2**20) // heads, 1)


def _scaling(meta: _Metadata, tensors: TensorTable) -> dict[str, Any]:
    kind, factor = meta.get("rope.scaling.type"), meta.get("rope.scaling.factor")
    if factor is None:
        factor = meta.get("rope.scale_linear")
    if kind is None:  # a factor alone means linear, as in the first files
        kind = "none" if factor in (None, 0, 1) else "linear"
    if "rope_factors_long.weight" in tensors:
        return _long_factors(meta, tensors)
    if "rope_freqs.weight" in tensors:
        if kind not in ("none", "linear") or factor not in (None, 0, 1):
            raise UnsupportedError(
                f"{_WHERE}: rope_freqs.weight and {meta.key('rope.scaling.type')} "
                f"{ascii(kind)[:40]} together are not supported"
            )
        factors = _vector(tensors, "rope_freqs.weight")
        return {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
        }
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return {"rope_type": "default"}
    params = {"rope_type": kind, "factor": factor}
    for key, suffix in (
        ("original_max_position_embeddings", "rope.scaling.original_context_length"),
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
    ):
        if meta.get(suffix) is not None:
            params[key] = meta.get(suffix)
    if meta.get("rope.scaling.attn_factor") not in (None, 1):
        # It multiplies the scale that the other numbers give; transformers' key replaces it.
        raise UnsupportedError(
            f"{_WHERE}: {meta.key('rope.scaling.attn_factor')} with rope scaling "
            f"{ascii(kind)[:40]} is not supported"
        )
    return params


def _long_factors(meta: _Metadata, tensors: TensorTable) -> dict[str, Any]:
    params = {
        "rope_type": "longrope",
        "short_factor": _vector(tensors, "rope_factors_short.weight"),
        "long_factor": _vector(tensors, "rope_factors_long.weight"),
    }
    for key, suffix in (
        ("attention_factor", "rope.scaling.attn_factor"),
        ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ):
        if meta.get(suffix) is not None:
            params[key] = meta.get(suffix)
    return params


def _vector(tensors: TensorTable, name: str) -> list[float]:
    if name not in tensors:
        raise LoadError(f"tensor {name!r} is missing")
    tensor = tensors[name]
    if len(tensor.shape) != 1 or tensor.dtype != "F32" or tensor.shape[0] > MAX_D_HEAD:
        raise LoadError(
            f"{name}: expected a vector of F32, got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor.float32().tolist()
