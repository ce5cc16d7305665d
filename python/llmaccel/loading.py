"""From a model argument to weights in the core: files, configuration, number formats, tokenizer.

Owns what a model name or path means, and the choice of formats: which form weights, activations and
the KV cache take. Invariant: `prepare` reads headers and small files only, so that a plan that does
not fit is refused before any weight is touched; `load_weights` then packs one slot at a time, and
never holds a second copy of more than that. The options are those of options.py.

Called by llm.py and by `llmaccel plan`.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmaccel import hub
from llmaccel.config import (
    GenerationConfig,
    ModelConfig,
    apply_overrides,
    flatten,
    load_generation_config,
    load_hf_config,
    override_dict,
    override_generation,
    parse_generation_config,
)
from llmaccel.cublas import find_cublas
from llmaccel.environment import open_device
from llmaccel.errors import ConfigError, LoadError, MemoryPlanError, UnsupportedError, shown
from llmaccel.files import is_there
from llmaccel.memory import MemoryPlan, plan_memory
from llmaccel.models.checkpoint import (
    Checkpoint,
    RawTensor,
    drop_pages,
    is_coded,
    quoted,
    tensor_bytes,
)
from llmaccel.models.families import find_family
from llmaccel.models.mapping import (
    SCORE,
    build_config,
    class_tokens,
    iter_slots,
    later_tensors,
    layer_matrices,
    slot_forms,
    tensor_specs,
    tensor_uses,
    tower_tensors,
)
from llmaccel.models.module import ModuleTensors, raw_tensor
from llmaccel.models.quantized import (
    ForetoldTensors,
    open_blocks,
    open_quantized,
    quantization_beside,
)
from llmaccel.options import (
    ACTIVATION_FORMS,
    ACTIVATION_NAMES,
    AUTO_LENGTH,
    FILE_QUANTIZATIONS,
    KV_FORMS,
    WEIGHT_FORMS,
    LoadOptions,
)
from llmaccel.recipes import QUANTIZATIONS, check_quantization, make_recipe, number_format

_LOG = logging.getLogger("llmaccel")

_AUTO_ACTIVATION = "i8"  # of 4- to 8-bit weights
# Types of codes whose products have bf16 activations whatever is asked.
BF16_ONLY = ("QF8", "QNF4", "QFP4", "QE2M1", "QIQ4", "QMX4", "IQ4", "MXFP4")


@dataclass(frozen=True)
class Forms:
    """Number formats. weights: the recipe that the core packs by. dtype, head: of most weights and
    of the head, as reports name them. wide: slots whose activations are finer than int8 where the
    others have that.
    no_effect: options that change nothing with this file. rounded: rows as the file says.
    later: tensors of layers that predict further tokens (MTP), towers: of what sees beside the text
    model; both are left in the file. products: who makes those of floats.
    """

    weights: Mapping[str, Any]
    dtype: str
    head: str
    quantized: bool
    wide: tuple[str, ...] = ()
    no_effect: tuple[str, ...] = ()
    rounded: bool = False
    later: int = 0
    towers: int = 0
    products: str = "own kernels"

    def rows(self, activation: str, backend: str) -> str:
        """What rows are as products take them, by the config's `activation`."""
        if backend == "cuda" and not self.quantized:
            return self.dtype  # that of their weights
        return "checkpoint" if self.rounded else ACTIVATION_NAMES[activation]


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a weight is read.

    path: folder or file, None for arrays. slots: as `slot_forms` gives them.
    """

    path: Path | None
    config: ModelConfig
    checkpoint: Any
    generation: GenerationConfig
    forms: Forms
    slots: list[tuple[str, list[tuple[str, int, int]], int]]
    plan: MemoryPlan
    gguf_metadata: Mapping[str, Any] | None


def prepare(
    options: LoadOptions, arrays: Mapping[str, Any] | ModuleTensors | None = None
) -> Prepared:
    """Resolve, read the headers, plan. Raises before anything large is read. max_model_len="auto"
    is what the model was made for, or as much of that as fits."""
    options.check()
    if options.max_model_len != AUTO_LENGTH:
        return _prepare(options, arrays)
    try:
        return _prepare(replace(options, max_model_len=None), arrays)
    except MemoryPlanError as error:
        if not error.max_model_len:
            raise
        return _prepare(replace(options, max_model_len=error.max_model_len), arrays)


def _prepare(options: LoadOptions, arrays: Mapping[str, Any] | ModuleTensors | None) -> Prepared:
    path: Path | None = None
    metadata: Mapping[str, Any] | None = None
    checkpoint: Any = None
    if arrays is not None:
        if options.revision is not None:
            raise ConfigError(f"revision={options.revision!r:.80}: arrays have no revisions")
        raw = _config_dict(options.model)
        checkpoint = arrays if isinstance(arrays, ModuleTensors) else arrays_checkpoint(arrays)
    else:
        path = find_model(options)
        if path.is_file():
            from llmaccel.models.gguf import open_gguf

            file = open_gguf(path)
            raw = metadata = file.metadata
            with naming_file(path):
                checkpoint = open_blocks(file)
        else:
            raw = load_hf_config(path)
    stored = None
    if metadata is None:
        options = replace(options, hf_overrides=override_dict(flatten(raw), options.hf_overrides))
        raw = apply_overrides(flatten(raw), options.hf_overrides)
        stored = raw.pop("quantization_config", None)
        if stored is None and path is not None:
            stored = quantization_beside(path)
    options = _check_quantization(options, stored, metadata is not None)
    if options.load_format == "dummy" and metadata is not None:
        raise ConfigError(f"load_format='dummy': {path} is a GGUF file, not a config.json folder")
    if checkpoint is None and options.load_format != "dummy":
        from llmaccel.models.safetensors import open_safetensors

        with naming_file(path):  # before the files: that the model is none of ours says more
            find_family(apply_overrides(flatten(raw), options.hf_overrides))
        checkpoint = open_safetensors(path)
    with naming_file(path):
        if stored is not None and checkpoint is not None:
            checkpoint = open_quantized(stored, checkpoint)
        config = build_config(
            raw,
            max_model_len=options.max_model_len,
            hf_overrides=options.hf_overrides,
            gguf=metadata is not None,
            tensors=checkpoint,
            classify=options.convert in ("classify", "reward"),
        )
        _check_convert(options, config, checkpoint)
    with naming_file(path):
        if checkpoint is None:
            checkpoint = _dummies(config, options, stored)
        slots = list(slot_forms(config, checkpoint))
    config, forms = choose_forms(config, slots, options)
    if forms.rounded and not getattr(checkpoint, "rounds_rows", False):
        raise ConfigError(
            "activation='checkpoint': the model does not say how activations are rounded, or in "
            "a way that is not known here"
        )
    later, towers = later_tensors(config, checkpoint), tower_tensors(config, checkpoint)
    forms = replace(forms, later=len(later), towers=len(towers))
    if options.fast_math:
        config, forms = _with_library(config, forms, options.backend)
    plan = plan_memory(config, forms.weights, slots, options)
    if isinstance(checkpoint, DummyTensors):
        checkpoint.draw = True
    generation = _generation(options, path)
    return Prepared(path, config, checkpoint, generation, forms, slots, plan, metadata)


def _check_convert(options: LoadOptions, config: ModelConfig, checkpoint: Any) -> None:
    """UnsupportedError where there is nothing to make a classifier of."""
    wanted = options.convert in ("classify", "reward") and checkpoint is not None
    if wanted and SCORE not in checkpoint and not class_tokens(config.raw):
        raise UnsupportedError(
            f"convert={options.convert!r}: the model has no tensor {SCORE!r}; "
            "hf_overrides={'classifier_from_token': [...]} names tokens whose rows of the head are "
            "the classes"
        )


def _with_library(config: ModelConfig, forms: Forms, backend: str) -> tuple[ModelConfig, Forms]:
    """The same for fast_math: products by cuBLASLt where it is found."""
    library, why = find_cublas(open_device(backend))
    if library is None:
        _LOG.warning("fast_math: our own kernels multiply, as no cuBLASLt was found: %s", why)
        return config, replace(forms, products=f"own kernels: no cuBLASLt ({why})")
    return replace(config, fast_math=True), replace(forms, products=library)


@contextmanager
def naming_file(path: Path | None) -> Iterator[None]:
    """Put `path` before the message of a loading error that does not name it."""
    try:
        yield
    except (LoadError, ConfigError, UnsupportedError) as error:
        if path is None or str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def forget_metadata(prepared: Prepared) -> Prepared:
    """Let go of a GGUF file's vocabulary, which the tokenizer alone needs, before the weights come:
    what is freed later stays in holes of the heap."""
    if prepared.gguf_metadata is not None:
        file = prepared.checkpoint
        getattr(file, "table", file).metadata = {}
    return replace(prepared, gguf_metadata=None)


# ---- where a model is ----------------------------------------------------------------------------


def find_model(options: LoadOptions) -> Path:
    """A GGUF file or a folder. Downloads a hub name; LoadError says what was looked for."""
    if not isinstance(options.model, (str, Path)) or not str(options.model):
        raise ConfigError(f"model={shown(options.model)}: expected a path or a model name")
    path = Path(options.model).expanduser()
    if not is_there(path):
        path = hub.fetch_model(str(options.model), options.revision, options.load_format)
    elif options.revision is not None:
        raise ConfigError(f"revision={options.revision!r}: {path} is local and has no revisions")
    if path.is_dir() and options.load_format in ("auto", "gguf"):
        path = _gguf_in(path, wanted=options.load_format == "gguf")
    if path.is_file() and options.load_format == "safetensors":
        raise ConfigError(
            f"load_format='safetensors': {path} is a file; give the folder with config.json"
        )
    if path.is_file() and path.suffix != ".gguf":
        raise LoadError(f"{path}: expected a folder with config.json or a .gguf file")
    return path


def without_weights(options: LoadOptions) -> bool:
    """Whether the model is a local folder that has a config.json and no files of weights."""
    folder = Path(options.model).expanduser()
    if options.load_format != "auto" or not is_there(folder / "config.json"):
        return False
    return not any(any(folder.glob(f"*.{kind}*")) for kind in ("safetensors", "gguf", "bin"))


def _gguf_in(folder: Path, wanted: bool) -> Path:
    """The GGUF file of a folder that has no config.json, or the folder itself."""
    if (folder / "config.json").is_file() and not wanted:
        return folder
    # Of a split file any part stands for the whole.
    found = [
        f for f in sorted(folder.glob("*.gguf")) if "-of-" not in f.name or "-00001-of-" in f.name
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f.name for f in found[:8])
        raise LoadError(f"{folder}: several GGUF files ({names}); give the path of one")
    if wanted:
        raise LoadError(f"load_format='gguf': {folder}: no .gguf file")
    return folder


def _config_dict(config: Any) -> Mapping[str, Any]:
    """The configuration of LLM.from_arrays: a dict, a config.json, or the folder that holds one."""
    if isinstance(config, Mapping):
        return config
    if not isinstance(config, (str, Path)) or not str(config):
        raise ConfigError(f"config: expected a dict or a path, got {shown(config)}")
    path = Path(config)
    return load_hf_config(path if path.is_dir() else path.parent)


def _check_quantization(options: LoadOptions, stored: Any, gguf: bool) -> LoadOptions:
    """The options without what says the same as the file; ConfigError where they say otherwise.

    stored: the file's quantization_config, if it has one.
    """
    named = options.quantization
    overrides = options.hf_overrides
    if isinstance(overrides, Mapping) and "quantization_config" in overrides:
        rest = {k: v for k, v in overrides.items() if k != "quantization_config"}
        options = replace(options, hf_overrides=rest)
    if named is None:
        return options
    if gguf:
        if named in FILE_QUANTIZATIONS and named not in (*QUANTIZATIONS, "gguf"):
            raise ConfigError(f"quantization={named!r}: the model is a GGUF file")
        return options
    if named == "gguf":
        raise ConfigError("quantization='gguf': the model is no GGUF file")
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
        if named != method:
            raise ConfigError(
                f"quantization={named!r}: the model is quantized already (quant_method "
                f"{shown(method)}); leave quantization out"
            )
        return replace(options, quantization=None)
    if named not in QUANTIZATIONS:
        raise ConfigError(f"quantization={named!r}: the model has no quantization_config")
    return options


def _generation(options: LoadOptions, path: Path | None) -> GenerationConfig:
    return override_generation(_generation_file(options, path), options.override_generation_config)


def _generation_file(options: LoadOptions, path: Path | None) -> GenerationConfig:
    given = options.generation_config
    if isinstance(given, Mapping):
        return parse_generation_config(given)
    if not isinstance(given, (str, Path, type(None))):
        raise ConfigError(
            f"generation_config={shown(given)}: expected 'auto', 'vllm', a path or a dict"
        )
    if given == "auto":
        return (
            load_generation_config(path)
            if path is not None and path.is_dir()
            else GenerationConfig()
        )
    if given in (None, "vllm"):
        return GenerationConfig()
    folder = Path(given)
    folder = folder if is_there(folder) and folder.is_dir() else folder.parent
    if not is_there(folder / "generation_config.json"):
        raise LoadError(f"generation_config={shown(given)}: no generation_config.json there")
    return load_generation_config(folder)


# ---- formats -------------------------------------------------------------------------------------


def choose_forms(
    config: ModelConfig,
    slots: list[tuple[str, list[tuple[str, int, int]], int]],
    options: LoadOptions,
) -> tuple[ModelConfig, Forms]:
    """Weights, activations and KV cache as the options ask; ConfigError for a contradiction."""
    stored: dict[str, int] = {}
    for _, parts, count in slots:
        for dtype, rows, cols in parts:
            values = count * rows * cols if rows > 1 else 0
            stored[dtype] = stored.get(dtype, 0) + values
    weights = WEIGHT_FORMS[options.dtype]
    rounded = options.activation == "checkpoint"
    if rounded or options.activation == "float32":
        weights = "F32" if weights == "auto" else weights
    quantization = options.quantization if options.quantization in QUANTIZATIONS else None
    if quantization is not None:
        check_quantization(quantization, stored, vars(options))
    blocks = weights != "F32" and any(is_coded(dtype) for dtype in stored)
    quantized = blocks or quantization is not None
    floats = {dtype: n for dtype, n in stored.items() if not is_coded(dtype)}
    main = (
        weights if weights != "auto" else max(floats, key=lambda name: floats[name], default="F32")
    )
    codes = [dtype for dtype in stored if is_coded(dtype)]
    fp8 = quantization == "fp8" or (blocks and all(dtype.startswith(BF16_ONLY) for dtype in codes))
    activation = _activation(options, main, weights, quantized, fp8)
    kv = options.kv_cache_dtype
    if kv == "auto":
        exact = main == "F32" and not quantized and options.backend == "cpu"
        kv = "float32" if exact else "bfloat16"
    if kv == "int8" and config.attn == "latent":
        raise UnsupportedError(
            "kv_cache_dtype='int8': latents (MLA) are kept as float32, bfloat16 or fp8"
        )
    tied = all(slot != "head" for slot, *_ in slots)
    recipe = make_recipe(weights, quantization, tied, options.backend)
    dtype = head = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[main]
    if quantization is not None:
        dtype = quantization
        head = recipe["head"] if recipe["head"] != "keep" else head
    elif blocks:
        dtype = max((n for n in stored if is_coded(n)), key=lambda name: stored[name])
        forms = {slot: parts for slot, parts, _ in slots}
        form = forms["embed" if tied else "head"][0][0]
        head = form if is_coded(form) else head
    config = replace(config, activation=activation, kv_form=KV_FORMS[kv])
    wide = tuple(slot for slot in recipe["wide"] if slot != "embed" and activation == "i8")
    no_effect = () if _converts(options, slots, recipe) else ("dtype",)
    return config, Forms(recipe, dtype, head, quantized, wide, no_effect, rounded)


def _converts(
    options: LoadOptions,
    slots: list[tuple[str, list[tuple[str, int, int]], int]],
    recipe: Mapping[str, Any],
) -> bool:
    """Whether dtype, if given, decides anything: float32 opens codes, others need float matrices
    that stay floats."""
    if options.dtype in ("auto", "float32") or options.load_format == "dummy":
        return True
    kept = [
        parts
        for slot, parts, _ in slots
        if slot != "router"  # float32 always
        and (slot == "pos_embed" or recipe.get(slot, recipe["body"]) == "keep")
    ]
    return any(rows > 1 and not is_coded(dtype) for parts in kept for dtype, rows, _ in parts)


def _activation(options: LoadOptions, main: str, weights: str, quantized: bool, fp8: bool) -> str:
    """la_act_form of products with quantized weights; ConfigError for a contradiction. fp8: all of
    these are E4M3 or numbers of a table."""
    if options.activation == "int8" and fp8:
        raise ConfigError(
            "activation='int8': products of fp8 and fp4 weights take bf16 activations only"
        )
    if options.activation == "int8" and not quantized:
        raise ConfigError(f"activation='int8': needs 4- to 8-bit weights, these are {main}")
    if options.activation == "bfloat16" and not quantized and main != "BF16":
        raise ConfigError(f"activation='bfloat16': the weights are {main}; use dtype='bfloat16'")
    if options.activation in ("float32", "checkpoint") and weights != "F32":
        raise ConfigError(
            f"activation={options.activation!r}: dtype={options.dtype!r} has other activations"
        )
    if options.activation == "checkpoint":
        return "f64"
    if options.activation != "auto":
        return ACTIVATION_FORMS[options.activation]
    if quantized:
        return "bf16" if fp8 or options.backend != "cpu" else _AUTO_ACTIVATION
    return "bf16" if main == "BF16" else "f32"


# ---- weights -------------------------------------------------------------------------------------


def arrays_checkpoint(arrays: Mapping[str, Any], what: str = "from_arrays") -> Checkpoint:
    """A checkpoint over NumPy arrays, torch tensors or any DLPack exporter on the CPU; no copies.

    ConfigError names `what`, the caller's, and an entry that cannot be taken.
    """
    if not isinstance(arrays, Mapping):
        raise ConfigError(f"{what}: the weights must be a mapping of names to arrays")
    tensors = {}
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise ConfigError(f"{what}: {shown(name)}: names must be strings")
        try:
            tensors[name] = raw_tensor(name, array)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from error
    return Checkpoint(Path("<arrays>"), tensors)


class DummyTensors:
    """Seeded random weights, made when they are asked for; only headers until `draw` is set.

    Names are listed when one is asked that is not of a layer's first expert: a plan never does.
    """

    def __init__(self, config: ModelConfig, options: LoadOptions) -> None:
        self._config = config
        self._first = dict(tensor_specs(config, experts=1))
        self._seed = options.seed or 0
        self.draw = False
        self._blank = np.broadcast_to(np.uint8(0), (2**62,))
        named = options.dtype
        if named == "auto":
            named = config.raw.get("dtype", config.raw.get("torch_dtype", "bfloat16"))
        self.dtype = WEIGHT_FORMS.get(number_format(named), "auto")
        if self.dtype == "auto":
            raise ConfigError(f"config.json: dtype {shown(named)} is unknown")

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(tensor_specs(self._config))

    def names(self) -> list[str]:
        return list(self._shapes)

    def __contains__(self, name: str) -> bool:
        return name in self._first or name in self._shapes

    def dtypes_of(self, names: list[str]) -> list[str]:
        return [self.dtype] * len(names)

    def __getitem__(self, name: str) -> RawTensor:
        shape = self._shapes[name]
        n_bytes = tensor_bytes(self.dtype, shape)
        if not self.draw:
            return RawTensor(name, self.dtype, shape, self._blank[:n_bytes])
        rng = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        count = n_bytes // (4 if self.dtype == "F32" else 2)
        if len(shape) == 1 and name.endswith("weight"):
            bits = np.full(count, 0x3F80, np.uint16)  # a norm: 1.0
        else:
            # Random sign and mantissa, fixed exponent: 0.0156 <= |w| < 0.0313, as trained weights.
            bits = np.frombuffer(rng.bytes(2 * count), np.uint16) & np.uint16(0x807F)
            bits |= np.uint16((127 - 6) << 7)
        return RawTensor(name, self.dtype, shape, _from_bf16(bits, self.dtype).view(np.uint8))


def _dummies(config: ModelConfig, options: LoadOptions, stored: Any) -> Any:
    """Random weights; for a quantized model headers, which a plan is made of."""
    if stored is None:
        return DummyTensors(config, options)
    plain = DummyTensors(config, replace(options, dtype="auto"))
    return ForetoldTensors(stored, plain, plain.dtype, layer_matrices(config))


def _from_bf16(bits: np.ndarray, dtype: str) -> np.ndarray:
    """uint16 [n] of bfloat16 as the 1-D array of another float format."""
    if dtype == "BF16":
        return bits
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    return wide if dtype == "F32" else wide.astype(np.float16)


def _core_part(part: RawTensor, rounded: bool) -> tuple[Any, ...]:
    """What `_core.Model.set` takes of a tensor. rounded: with the file's rule for its rows."""
    core = (part.data, part.dtype, *((1, *part.shape)[-2:]))
    if rounded and part.rounding is not None:
        return (*core, part.order, part.rounding)
    return core if part.order is None else (*core, part.order)


def load_weights(model: Any, prepared: Prepared) -> None:
    """Pack every slot, and let go of the file's pages behind it. LoadError names a tensor that is
    missing, has another shape, or holds a value that is not finite where it is to be quantized."""
    checkpoint = prepared.checkpoint
    if isinstance(checkpoint, ModuleTensors):
        checkpoint.expect(tensor_uses(prepared.config, checkpoint))
    for slot, layer, expert, parts in iter_slots(prepared.config, checkpoint):
        set_slot(model, (slot, layer, expert), parts, prepared.forms.rounded)
        for part in parts:
            drop_pages(part.data)
        if isinstance(checkpoint, ModuleTensors):
            names = dict.fromkeys(part.name for part in parts)
            del part
            parts.clear()  # nothing of them may hold what is let go
            checkpoint.packed(names)
    model.finish()


def set_slot(
    model: Any, place: tuple[str, int, int], parts: list[RawTensor], rounded: bool
) -> None:
    """Pack one slot. LoadError names its tensors, UnsupportedError their formats too."""
    slot, layer, expert = place
    try:
        model.set(slot, layer, [_core_part(part, rounded) for part in parts], expert)
    except LoadError as error:
        names = ", ".join(quoted(part.name) for part in parts)
        raise LoadError(f"{names}: {error}") from error
    except UnsupportedError as error:
        names = ", ".join(f"{quoted(part.name)} ({part.dtype})" for part in parts)
        raise UnsupportedError(f"{names}: {error}") from error


# ---- tokenizer -----------------------------------------------------------------------------------


def open_tokenizer(options: LoadOptions, prepared: Prepared) -> Any:
    """The tokenizer, or None where the model brings none and none was named."""
    from llmaccel.tokenize import Tokenizer, from_transformers, load_tokenizer

    given = options.tokenizer
    if options.skip_tokenizer_init:
        return None
    if options.tokenizer_revision is not None:
        name = options.model if given is None else given
        if not isinstance(name, str) or Path(name).exists():
            raise ConfigError("tokenizer_revision: the tokenizer is in no repository of the hub")
        return load_tokenizer(
            name, chat_template=options.chat_template, revision=options.tokenizer_revision
        )
    if isinstance(given, (str, Path)):
        # A revision names a state of the model's repository, not of another one.
        same = hub.repository_of(given) == hub.repository_of(options.model)
        return load_tokenizer(
            given, chat_template=options.chat_template, revision=options.revision if same else None
        )
    if given is not None:
        if hasattr(given, "backend_tokenizer"):
            return from_transformers(given, options.chat_template)
        if not isinstance(given, Tokenizer):
            raise ConfigError(
                f"tokenizer={shown(given)}: expected a path, a Tokenizer, or a fast tokenizer of "
                "transformers"
            )
        if options.chat_template is not None:
            raise ConfigError("chat_template: give it to load_tokenizer, which made the tokenizer")
        return given
    if prepared.gguf_metadata is not None:
        if "tokenizer.ggml.model" not in prepared.gguf_metadata:
            return None
        return Tokenizer.from_gguf(prepared.gguf_metadata, chat_template=options.chat_template)
    if prepared.path is None or not _has_tokenizer(prepared.path):
        if options.chat_template is not None:
            raise ConfigError("chat_template: the model brings no tokenizer to use it with")
        return None
    return load_tokenizer(prepared.path, chat_template=options.chat_template)


def _has_tokenizer(folder: Path) -> bool:
    patterns = ("tokenizer.json", "*.model", "tokenizer.model.*", "*.tiktoken", "vocab.json")
    return any(True for pattern in patterns for _ in folder.glob(pattern))
