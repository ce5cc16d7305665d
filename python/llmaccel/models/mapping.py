"""Applies a row of families.py: a config dict becomes a `ModelConfig`, a checkpoint a stream of
slots.

`build_config` maps a Hugging Face config or GGUF metadata, checking every value, because files are
untrusted; `iter_slots` yields the weights one slot at a time; `tensor_specs` names the tensors that
a checkpoint must have. Nothing here knows a family by name. Invariant: a key that changes the
arithmetic and that the row does not read is refused. Called by loading.py, which also hands
the slots to the planner, and by the tests.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from llmaccel.config import (
    MAX_D_FFN,
    MAX_D_HEAD,
    MAX_D_MODEL,
    MAX_HEADS,
    MAX_LABELS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_ROW,
    MAX_VOCAB,
    Keys,
    Layer,
    ModelConfig,
    apply_overrides,
    f32,
    flatten,
    override_dict,
)
from llmaccel.errors import ConfigError, UnsupportedError
from llmaccel.hints import hint
from llmaccel.models.checkpoint import RawTensor, quoted
from llmaccel.models.families import (
    FAMILIES,
    classifier_of,
    find_family,
    gguf_family,
    task_of,
)
from llmaccel.models.family import FULL, GGUF_TENSORS, SLIDING, Family
from llmaccel.models.gguf_config import hf_config_from_gguf
from llmaccel.models.latent import DIRECT_LACKS, latent_dtype, latent_sizes
from llmaccel.models.rope import RopeContext, rope_reach, rope_tables
from llmaccel.models.slots import (
    DENSE_SLOTS,
    LATENT_LAYOUTS,
    MOE_SLOTS,
    NameTable,
    PartTable,
    Source,
    TensorTable,
    fill,
    is_stacked,
    places,
    slot_shapes,
    stored_shapes,
    walk,
    weight_dtype,
)

_LOG = logging.getLogger("llmaccel")

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}

# Keys that change the arithmetic of some model. A row that does not read one accepts these values.
_OFF = (None, False, 0)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "clip_qkv",
            "attention_multiplier",
            "quantization_config",
            "attention_bias",
            "mlp_bias",
            "use_bidirectional_attention",
            "add_cross_attention",
            "is_encoder_decoder",
            "alibi",
            "use_alibi",
            "scale_attn_by_inverse_layer_idx",
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "kv_lora_rank",
            "q_lora_rank",
            "qk_layernorm",
            "use_qk_norm",
            "attn_temperature_tuning",
            "use_sliding_window",
            "mamba_d_state",
            "attention_sink",
            "no_rope_layers",
            "num_kv_shared_layers",
            "lm_head_bias",
            "use_mrope",
            "mup_base_width",
            "use_mup",
        ),
        _OFF,
    ),
    **dict.fromkeys(
        (
            "embedding_multiplier",
            "logits_scaling",
            "residual_multiplier",
            "logit_scale",
            "scale_attn_weights",
        ),
        (None, 1),
    ),
    "use_parallel_residual": _OFF,
}

# What any configuration of transformers may have beside the rows' own keys.
_HF_KEYS = frozenset(
    (
        "architectures",
        "model_type",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "_name_or_path",
        "auto_map",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "rope_interleaved",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rotary_pct",
        "rotary_emb_base",
        "sliding_window",
        "sliding_window_pattern",
        "max_window_layers",
        "layer_types",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "use_cache",
        "initializer_range",
        "pretraining_tp",
        "attention_dropout",
        "hidden_dropout",
        "embd_pdrop",
        "attn_pdrop",
        "resid_pdrop",
        "is_decoder",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "num_labels",
        "id2label",
        "label2id",
        "problem_type",
        "is_matryoshka",
        "matryoshka_dimensions",
        "classifier_from_token",
        "is_original_qwen3_reranker",
        "chunk_size_feed_forward",
    )
)

_MAX_PREDICTION_LAYERS = 16
# The head of a sequence classifier, which no slot of the core holds (models/score.py).
SCORE = "score.weight"
_GGUF_IGNORED = (
    r"rope_freqs\.weight",
    r"rope_factors_(long|short)\.weight",
    r"blk\.\d+\.attn_rot_embd\.weight",
    r"blk\.\d+\.rope_freqs\.weight",
)
_HF_IGNORED = (r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)", r"(.*\.)?mtp\..*")


def build_config(
    raw: Mapping[str, Any],
    *,
    max_model_len: int | None = None,
    hf_overrides: Mapping[str, Any] | None = None,
    gguf: bool = False,
    tensors: TensorTable | None = None,
    classify: bool = False,
) -> ModelConfig:
    """Map a Hugging Face config dict (or GGUF metadata with gguf=True) to a `ModelConfig`.

    max_model_len: positions to fix the rope tables for; None: the config's max_position_embeddings.
    hf_overrides: config keys to replace first. tensors: the checkpoint; needed for GGUF, whose
    biases, tied head and rope factors are told by the tensors. classify: take the model as the
    sequence classifier of its family. Raises ConfigError naming a bad key
    or argument, UnsupportedError for an architecture or feature that is not known.
    """
    spelled: Mapping[str, str] = {}
    if gguf:
        if tensors is None:
            raise ConfigError("build_config: a GGUF model needs its tensors")
        raw, spelled = hf_config_from_gguf(raw, tensors, gguf_family(raw))
    given = set(flatten(raw))
    hf_overrides = override_dict(flatten(raw), hf_overrides)
    raw = apply_overrides(flatten(raw), hf_overrides)
    family, architecture = find_family(raw)
    if classify:
        architecture = classifier_of(architecture)
    if hf_overrides is not None:
        _check_override_keys(set(flatten(hf_overrides)) - given, family)
    for common, own in family.aliases.items():
        if own in raw and common not in raw:
            raw[common] = raw[own]
            spelled = {**spelled, common: own}
    keys = Keys(raw, family.defaults, "GGUF metadata" if gguf else "config.json", spelled)
    _refuse_foreign(keys, family)
    sizes = _sizes(keys, family, max_model_len)
    fields = {
        "norm": family.norm,
        "norm_eps": keys.number(family.eps, 1e-12, 1.0),
        "act": _activation(keys, family.act),
        "gated": family.gated,
        "parallel": False,
        "qk_norm": family.qk_norm,
        "attn_scale": sizes["d_head"] ** -0.5,
        "attn_softcap": 0.0,
        "logit_softcap": 0.0,
        "logit_scale": 1.0,
        "embed_scale": 1.0,
        "residual_scale": 1.0,
        **family.extra(keys, sizes),
    }
    experts = family.experts(keys, sizes)
    moe = experts.pop("moe", [False] * sizes["n_layers"])
    fields = {k: f32(v) if isinstance(v, float) else v for k, v in {**fields, **experts}.items()}
    tie = keys.flag("tie_word_embeddings")
    task = task_of(architecture)
    absent = {"head"} if tie or task != "generate" else set()
    if not experts.get("d_shared"):
        absent |= {"shared_gate_up", "shared_down"}
    absent |= set() if not all(moe) else DENSE_SLOTS
    absent |= set() if any(moe) else MOE_SLOTS
    rotation = _rotation(keys, family, sizes, gguf)
    rotation["layers"] = [
        layer._replace(moe=has) for layer, has in zip(rotation["layers"], moe, strict=True)
    ]
    return ModelConfig(
        **{**sizes, **fields, **rotation},
        family=family.name,
        architecture=architecture,
        tie_embeddings=tie,
        # An id beyond the vocabulary can never be drawn; class defaults name some.
        eos_token_ids=[i for i in keys.ids("eos_token_id") if i < sizes["n_vocab"]],
        bos_token_id=keys.integer("bos_token_id", 0, 2**31 - 1, none=True),
        slots=_slots(keys, family, absent, tensors if gguf else None),
        gguf=gguf,
        task=task,
        n_labels=_labels(keys) if task == "classify" else 0,
        raw=raw,
    )


def _labels(keys: Keys) -> int:
    """Classes of a sequence classifier, as transformers counts them."""
    tokens = class_tokens(keys.raw)
    if tokens:
        return 1 if keys.raw.get("is_original_qwen3_reranker") else len(tokens)
    names = keys.raw.get("id2label")
    if names is None:
        count = keys.raw.get("num_labels", 2)
    elif isinstance(names, dict):
        count = len(names)
    else:
        raise keys.error("id2label", "must be a dict")
    return int(keys.check_integer("num_labels", count, 1, MAX_LABELS))


def class_tokens(raw: Mapping[str, Any]) -> list[str]:
    """The tokens whose logits are a classifier's, where it was made to predict tokens (vLLM's
    classifier_from_token); else none."""
    tokens = raw.get("classifier_from_token")
    if tokens is None:
        return []
    texts = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    if not texts or not tokens or (raw.get("is_original_qwen3_reranker") and len(tokens) != 2):
        raise ConfigError(
            f"config.json: classifier_from_token must be a list of tokens (two for a reranker's), "
            f"is {ascii(tokens)[:80]}"
        )
    return tokens


def head_name(config: ModelConfig, checkpoint: TensorTable) -> str:
    """The tensor whose rows give tokens their logits, whatever the model is loaded for."""
    slot = "embed" if config.raw.get("tie_word_embeddings", config.tie_embeddings) else "head"
    return _name_table(config, checkpoint).names(slot, 0)[0]


def _check_override_keys(names: set[str], family: Family) -> None:
    """ConfigError for an override that neither config.json nor the family's class has."""
    known = {*family.defaults, *family.inert, *family.aliases, *family.aliases.values()}
    known |= {*_NEUTRAL, *_HF_KEYS}
    for name in sorted(names - known):
        raise ConfigError(
            f"hf_overrides: {quoted(name)} is no key of config.json or of "
            f"{family.architectures[0]}'s configuration" + hint(name, known)
        )


def _refuse_foreign(keys: Keys, family: Family) -> None:
    """Refuse keys that would change the arithmetic of a row that does not read them."""
    for key, neutral in _NEUTRAL.items():
        read = key in family.defaults or key in family.inert
        if not read and keys.raw.get(key) not in neutral:
            detail = keys.raw[key]
            if isinstance(detail, dict):
                detail = detail.get("quant_method", "...")
            raise UnsupportedError(
                f"{keys.where}: {key} = {ascii(detail)[:80]} is not supported for "
                f"{family.architectures[0]}"
            )
    kinds = keys.raw.get("layer_types")
    if kinds is not None and "layer_types" not in family.defaults:
        uniform = (
            SLIDING if keys.has("sliding_window") and "sliding_window" in family.defaults else FULL
        )
        if not isinstance(kinds, list) or any(kind != uniform for kind in kinds):
            raise UnsupportedError(
                f"{keys.where}: layer_types other than {uniform} are not supported for "
                f"{family.architectures[0]}"
            )


def _sizes(keys: Keys, family: Family, max_model_len: int | None) -> dict[str, Any]:
    """The integer fields, each in range and consistent with the others."""
    d_model = keys.integer("hidden_size", 1, MAX_D_MODEL)
    n_heads = keys.integer("num_attention_heads", 1, MAX_HEADS)
    n_kv = n_heads
    if "num_key_value_heads" in family.defaults:
        n_kv = keys.integer("num_key_value_heads", 1, MAX_HEADS, none=True) or n_heads
    if n_heads % n_kv:
        raise keys.error(
            "num_key_value_heads", f"{n_kv} does not divide num_attention_heads {n_heads}"
        )
    latent = latent_sizes(keys, n_heads, n_kv) if family.latent else {"d_nope": 0}
    d_head = latent.get("d_head") or (
        keys.integer("head_dim", 1, 2**20, none=True) if "head_dim" in family.defaults else None
    )
    if d_head is None:
        if d_model % n_heads:
            raise keys.error(
                "hidden_size", f"{d_model} is no multiple of num_attention_heads {n_heads}"
            )
        d_head = d_model // n_heads
    if not family.latent:
        _require(keys, family, {"head_dim": d_head, "num_key_value_heads": n_kv})
    if d_head > MAX_D_HEAD:
        raise UnsupportedError(
            f"{keys.where}: head size {d_head} is not supported; the limit is {MAX_D_HEAD}"
        )
    if n_heads * d_head > MAX_ROW:
        raise keys.error("num_attention_heads", f"{n_heads} of size {d_head} are too many")
    optional_ffn = family.defaults["intermediate_size"] is None
    d_ffn = keys.integer("intermediate_size", 1, MAX_D_FFN, none=optional_ffn) or 4 * d_model
    positions = keys.integer("max_position_embeddings", 1, MAX_POSITIONS)
    return {
        "n_layers": keys.integer("num_hidden_layers", 1, MAX_LAYERS),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_kv,
        "d_head": d_head,
        "d_ffn": d_ffn,
        "n_vocab": keys.integer("vocab_size", 1, MAX_VOCAB),
        "max_position_embeddings": positions,
        "max_len": _max_len(keys, family, positions, max_model_len),
        **latent,
    }


def _require(keys: Keys, family: Family, values: dict[str, int]) -> None:
    """Refuse sizes that the family's class derives itself and the config gives otherwise."""
    for key, value in values.items():
        if key not in family.defaults and keys.raw.get(key) not in (None, value):
            raise UnsupportedError(
                f"{keys.where}: {key} other than {value} is not supported for "
                f"{family.architectures[0]}"
            )


def _max_len(keys: Keys, family: Family, positions: int, max_model_len: int | None) -> int:
    if max_model_len is None:
        return positions
    if not isinstance(max_model_len, int) or isinstance(max_model_len, bool):
        raise ConfigError(f"max_model_len must be an integer, is {ascii(max_model_len)[:80]}")
    if not 1 <= max_model_len <= MAX_POSITIONS:
        raise ConfigError(f"max_model_len must be in 1..{MAX_POSITIONS}, is {max_model_len}")
    if max_model_len <= positions:
        return max_model_len
    if family.rope is None:
        raise ConfigError(
            f"max_model_len {max_model_len} is beyond the {positions} learned positions"
        )
    reach = rope_reach(keys, family.rope, positions)
    if max_model_len > reach:
        raise ConfigError(
            f"max_model_len={max_model_len}: the model was made for {reach} positions "
            f"({keys.spelled.get('max_position_embeddings', 'max_position_embeddings')}"
            f"{' and its rope scaling' if reach > positions else ''}); for more give hf_overrides "
            "another rope_scaling, or max_position_embeddings where you know that it goes on"
        )
    return max_model_len


def _activation(keys: Keys, key: str) -> str:
    name = keys.text(key)
    if name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"{keys.where}: {key} {ascii(name)[:80]} is not supported; known: "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _rotation(keys: Keys, family: Family, sizes: dict[str, Any], gguf: bool) -> dict[str, Any]:
    """The rope fields and the layers."""
    windows = family.window(keys, sizes["n_layers"])
    turned = family.rotates(keys, sizes["n_layers"])
    if family.rope is None:
        return {
            "d_rope": 0,
            "rope_interleaved": False,
            "rope_inv_freq": [],
            "rope_scale": [],
            "layers": [Layer(window, -1) for window in windows],
        }
    rotated = sizes["d_head"] - sizes["d_nope"]
    context = RopeContext(rotated, sizes["max_position_embeddings"], sizes["max_len"])
    tables, scales = rope_tables(keys, family.rope, context)
    return {
        "d_rope": 2 * len(tables[0]),
        "rope_interleaved": family.interleaved(keys) or (gguf and family.gguf_interleaved),
        "rope_inv_freq": tables,
        "rope_scale": scales,
        "layers": [
            Layer(window, (1 if len(tables) > 1 and window else 0) if turns else -1)
            for window, turns in zip(windows, turned, strict=True)
        ],
    }


def _slots(
    keys: Keys, family: Family, absent: set[str], gguf_tensors: TensorTable | None
) -> tuple[str, ...]:
    """The slots that a checkpoint of this model fills. gguf_tensors: where they tell what is there;
    None: the config does."""
    slots = []
    direct = family.latent and keys.value("q_lora_rank") is None
    absent = absent | set(DIRECT_LACKS if direct else ())
    for slot in family.tensors:
        if slot in absent:
            continue
        if slot in family.optional:
            if gguf_tensors is None:
                present = keys.flag(family.optional[slot])
            else:
                first = _names_of(family, True, direct)[slot].names[0].replace("{i}", "0")
                present = first in gguf_tensors
            if not present:
                continue
        slots.append(slot)
    return tuple(slots)


# ---- from a checkpoint to slots ------------------------------------------------------------------


def family_of(config: ModelConfig) -> Family:
    """The row that `config` was mapped by."""
    return next(family for family in FAMILIES if family.name == config.family)


def _names_of(family: Family, gguf: bool, direct: bool) -> Mapping[str, Source]:
    """direct: queries of MLA are made of x itself."""
    if gguf:
        return {**GGUF_TENSORS, **family.gguf_tensors}
    return {**family.tensors, **family.direct} if direct else family.tensors


def part_of_model(config: ModelConfig, checkpoint: TensorTable) -> PartTable:
    """The names of a model of which `checkpoint` holds some tensors, with what stands before the
    family's names where that finds more of them."""
    family = family_of(config)
    names = _names_of(family, config.gguf, config.q_rank == 0)
    prefixes = [""] if config.gguf else dict.fromkeys((family.prefix, ""))
    outers = [""] if config.gguf else dict.fromkeys(("", family.outer))
    tables = [PartTable(names, p, checkpoint, o) for o in outers for p in prefixes]
    return max(tables, key=lambda table: table.count(config))


def _name_table(config: ModelConfig, checkpoint: TensorTable | None) -> NameTable:
    family = family_of(config)
    return NameTable(
        _names_of(family, config.gguf, config.q_rank == 0),
        "" if config.gguf else family.prefix,
        checkpoint,
        "" if config.gguf else family.outer,
    )


def weight_table(config: ModelConfig, checkpoint: TensorTable) -> NameTable:
    """The names that `checkpoint` has for slots, for when it is gone: no tensor comes from it."""
    known: Any = frozenset(checkpoint.names())
    return _name_table(config, known)


def iter_slots(
    config: ModelConfig, checkpoint: TensorTable
) -> Iterator[tuple[str, int, int, list[RawTensor]]]:
    """Yield (slot, layer, expert, parts) for every slot of `config`, one at a time; layer 0 for the
    model's own, expert 0 for what is no expert's.

    Parts have `slot_shapes`; most are views of the mapped file. Tensors that no slot uses are named
    in a warning. Raises LoadError for a missing tensor or a wrong shape, UnsupportedError for a
    dtype.
    """
    table = _name_table(config, checkpoint)
    _warn_unused(config, checkpoint)
    for slot, layer, expert in walk(config):
        yield slot, layer, expert, fill(config, table, slot, layer, expert)


def slot_forms(
    config: ModelConfig, checkpoint: TensorTable
) -> Iterator[tuple[str, list[tuple[str, int, int]], int]]:
    """(slot, parts, count) of every slot with parts as (dtype, rows, cols), a vector being one row;
    count: neighbouring experts that have the same.

    What `iter_slots` will yield, from the headers alone: for memory plans, which are made of
    models with tens of thousands of tensors. Raises LoadError for a missing tensor,
    UnsupportedError for one whose type is no weight's.
    """
    table = _name_table(config, checkpoint)
    for slot, layer, count in places(config):
        apart = 1 if is_stacked(table.source(slot, layer), slot) else count
        found = map(checkpoint.dtypes_of, table.names_of_all(slot, layer, apart))
        first = 0
        for dtypes, equal in groupby(zip(*found, strict=True)):
            parts = _slot_form(config, table, (slot, layer, first), dtypes)
            run = len(list(equal))
            yield slot, parts, count // apart * run
            first += run


def _slot_form(
    config: ModelConfig, table: NameTable, place: tuple[str, int, int], found: tuple[str, ...]
) -> list[tuple[str, int, int]]:
    """Parts of a slot whose tensors have the dtypes `found`."""
    slot = place[0]
    shapes = slot_shapes(config, slot)
    names = table.names(*place)
    dtypes = [weight_dtype(name, dtype) for name, dtype in zip(names, found, strict=True)]
    if table.tensors[slot].layout in LATENT_LAYOUTS:
        dtypes = [latent_dtype(dtypes[0])]
    if len(dtypes) < len(shapes):
        dtypes = dtypes[:1] * len(shapes)
    if table.tensors[slot].layout == "minus_one":
        dtypes = ["F32"]
    return [(dtype, *((1, *shape)[-2:])) for dtype, shape in zip(dtypes, shapes, strict=True)]


def tensor_specs(
    config: ModelConfig, *, experts: int | None = None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor that a checkpoint must have; for plans and dummy weights.
    experts: of those with tensors of their own only so many of every layer."""
    table = _name_table(config, None)
    for slot, layer, count in places(config):
        src = table.tensors[slot]
        shapes = stored_shapes(config, src, slot_shapes(config, slot))
        if is_stacked(src, slot):
            shapes, count = [(count, *shape) for shape in shapes], 1
        for expert in range(count if experts is None else min(count, experts)):
            yield from zip(table.names(slot, layer, expert), shapes, strict=True)
    if config.task == "classify" and not class_tokens(config.raw):
        yield SCORE, (config.n_labels, config.d_model)


def layer_matrices(config: ModelConfig) -> Iterator[tuple[str, int, bool]]:
    """(name, K, whether it stacks all experts) of the matrices that schemes of quantization touch:
    those of layers but routers, of each layer's first expert, and the head."""
    table = _name_table(config, None)
    for slot, layer, _ in places(config):
        shape = slot_shapes(config, slot)[0]
        if len(shape) == 2 and slot not in ("embed", "pos_embed", "router"):
            k = config.kv_rank if table.tensors[slot].layout in LATENT_LAYOUTS else shape[1]
            for name in table.names(slot, layer):
                yield name, k, is_stacked(table.tensors[slot], slot)


def unused_tensors(config: ModelConfig, checkpoint: TensorTable) -> list[str]:
    """Names in `checkpoint` that no slot uses and no row knows as useless."""
    used = set(tensor_uses(config, checkpoint))
    if config.task == "classify":
        used.add(SCORE)
    used.update(later_tensors(config, checkpoint))
    useless = useless_tensors(config)
    return [name for name in checkpoint.names() if name not in used and not useless.fullmatch(name)]


def tensor_uses(config: ModelConfig, checkpoint: TensorTable) -> Counter[str]:
    """How many slots (experts counted one by one) are made of each tensor of `checkpoint`."""
    table = _name_table(config, checkpoint)
    return Counter(name for place in walk(config) for name in table.names(*place))


def useless_tensors(config: ModelConfig) -> re.Pattern[str]:
    """Names that checkpoints of this model may have and nobody needs."""
    family = family_of(config)
    patterns = [*(_GGUF_IGNORED if config.gguf else _HF_IGNORED), *family.ignored, *family.towers]
    if config.tie_embeddings or config.task != "generate":
        patterns.append(r"lm_head\.weight|embed_out\.weight")
    return re.compile("|".join(f"(?:{p})" for p in patterns))


def later_tensors(config: ModelConfig, checkpoint: TensorTable) -> list[str]:
    """Names of layers that predict further tokens (MTP), which this version does not run. They
    follow the others."""
    count = config.raw.get("num_nextn_predict_layers")
    if not isinstance(count, int) or isinstance(count, bool):
        return []
    end = config.n_layers + min(max(count, 0), _MAX_PREDICTION_LAYERS)
    layer = re.compile(r"(?:.*\.)?(?:layers|blk)\.(\d{1,9})\..*")
    found = ((name, layer.fullmatch(name)) for name in checkpoint.names())
    return [name for name, at in found if at and config.n_layers <= int(at[1]) < end]


def tower_tensors(config: ModelConfig, checkpoint: TensorTable) -> list[str]:
    """Names of what a class that sees as well has beside its text model; they stay in the file."""
    towers = family_of(config).towers
    if config.gguf or not towers:
        return []
    tower = re.compile("|".join(towers))
    return [name for name in checkpoint.names() if tower.fullmatch(name)]


def _warn_unused(config: ModelConfig, checkpoint: TensorTable) -> None:
    names = unused_tensors(config, checkpoint)
    if names:
        shown = ", ".join(quoted(name) for name in names[:8])
        _LOG.warning(
            "%d tensors of the checkpoint are not used: %s%s",
            len(names),
            shown,
            ", ..." if len(names) > 8 else "",
        )
