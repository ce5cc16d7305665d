"""Weights of a loaded model: changed in place, put away and brought back.

Owns update_weights, sleep, wake_up and is_sleeping. Invariant: all of them happen while no request
is under way, or not at all: no request sees two sets of weights, and no page holds keys of weights
that are gone. A base of LLM (llm.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.calls import Calls
from llmaccel.errors import (
    ConfigError,
    LLMAccelError,
    LoadError,
    RequestError,
    UnsupportedError,
    shown,
)
from llmaccel.loading import (
    arrays_checkpoint,
    forget_metadata,
    load_weights,
    naming_file,
    prepare,
    set_slot,
)
from llmaccel.memory import check_available
from llmaccel.models.checkpoint import FLOATS, RawTensor, is_coded, quoted
from llmaccel.models.mapping import SCORE, class_tokens, part_of_model, useless_tensors
from llmaccel.models.score import load_score, score_values
from llmaccel.models.slots import NameTable, fill, places, walk
from llmaccel.whole import is_whole

_F16_LARGEST, _F16_INFINITY = 65504.0, 65520.0  # and what rounds to infinity
# Slots that are floats whatever the rest is quantized to.
_FLOAT_SLOTS = ("pos_embed", "router", "mla_uk", "mla_uv")

_PARTS = frozenset({"weights", "kv_cache"})  # vLLM's tags of what sleeps

_Place = tuple[str, int, int]  # slot, layer, expert
_Stored = dict[tuple[str, int], list[list[str]]]  # by slot and layer: of each expert


def _named(weights: Any) -> Any:
    """A mapping, of pairs too; RequestError for pairs that are none and for a name given twice."""
    if isinstance(weights, Mapping) or not isinstance(weights, Iterable):
        return weights
    found: dict[str, Any] = {}
    for i, pair in enumerate(weights):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise RequestError(f"update_weights: weights[{i}]: expected a pair (name, tensor)")
        if pair[0] in found:
            raise RequestError(f"update_weights: {shown(pair[0])} is given twice")
        found[pair[0]] = pair[1]
    return found


class Weights(Calls):
    """The methods of LLM that change where its weights are and what they hold."""

    _awake: frozenset[str]  # parts that wake_up has woken while the rest sleeps

    def update_weights(self, weights: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Replace weights in place.

        weights: names as in the checkpoint to NumPy arrays, torch tensors or DLPack exporters on
        the CPU, or pairs of these; row-major, of the same shapes, floats of any width; packed as
        the model's own were (each expert's as that expert's), free to go afterwards. What lies in
        one matrix comes together: q, k and v of a layer, gate and up. Experts that a file has in
        one tensor may come
        one by one where the family's checkpoints know them so, any number of them. Rows go on being
        rounded as the model's file says (activation="checkpoint"). All names, shapes and values are
        checked before the first is replaced. LLMAccelError where requests or a call of several are
        under way; new ones wait meanwhile. RequestError names a tensor that does not fit,
        UnsupportedError one that the model keeps as codes of its file. LLMAccelError while views
        are alive that weight() gave.
        """
        self._driver.check()
        if class_tokens(self._config.raw):
            raise UnsupportedError("update_weights: not where classifier_from_token makes the head")
        try:
            given = arrays_checkpoint(_named(weights), "update_weights")
        except ConfigError as error:
            raise RequestError(str(error)) from error
        table = part_of_model(self._config, given)
        touched = self._touched(table)
        self._check_values(table, touched)
        score = self._score_of(given)
        stored = self._stored()
        with self._driver.exclusive("update_weights") as model:
            if model is None:
                raise LLMAccelError("update_weights: this LLM sleeps; wake_up() comes first")
            if model.views:
                raise LLMAccelError(
                    f"update_weights: {model.views} views of weights are alive, which would show "
                    "memory that is gone; drop what weight() gave, and arrays over it"
                )
            for place in touched:
                set_slot(model, place, self._parts(table, place, stored), False)
            if score is not None:
                self._score_head = score

    def _score_of(self, given: Any) -> np.ndarray | None:
        """The head of a classifier, where it is among the given; RequestError where it is none."""
        if self._config.task != "classify" or SCORE not in given:
            return None
        try:
            return score_values(self._config, given[SCORE])
        except (LoadError, UnsupportedError) as error:
            raise RequestError(f"update_weights: {error}") from error

    def _touched(self, table: NameTable) -> list[_Place]:
        """The slots that the given tensors make; RequestError for one that makes none or half."""
        given = table.checkpoint
        assert given is not None
        touched, used = [], {SCORE} if self._config.task == "classify" else set()
        known: list[str] = []
        for place in walk(self._config):
            names = table.names(*place)
            known += names
            there = [name for name in names if name in given]
            if not there:
                continue
            if len(there) < len(names):
                lacking = next(name for name in names if name not in given)
                raise RequestError(
                    f"update_weights: {quoted(lacking)} is missing: it lies in one matrix with "
                    f"{quoted(there[0])}, give both"
                )
            used.update(names)
            touched.append(place)
        useless = useless_tensors(self._config)
        for name in given.names():
            if name not in used and not useless.fullmatch(name):
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                meant = ", ".join(map(quoted, near or known[:3]))
                kind = "near" if near else "its names are of the kind of"
                raise RequestError(
                    f"update_weights: {quoted(name)} is no weight of this model; {kind}: {meant}"
                )
        return touched

    def _check_values(self, table: NameTable, touched: list[_Place]) -> None:
        """Shapes and types of all, and that what they become can hold their values."""
        recipe, stored = self._forms.weights, self._stored()
        for place in touched:
            kept = _of(stored, place)
            codes = [dtype for dtype in kept if is_coded(dtype)]
            if codes and recipe["floats"] != "F32":
                raise UnsupportedError(
                    f"update_weights: {quoted(table.names(*place)[0])}: the model keeps it as "
                    f"{codes[0]}, the codes of its file; load it with dtype='float32' to change it"
                )
            try:
                parts = fill(self._config, table, *place)
            except LoadError as error:
                raise RequestError(f"update_weights: {error}") from error
            for part, dtype in zip(parts, kept, strict=True):
                wrong = self._wrong_values(part, dtype, place[0])
                if wrong:
                    raise RequestError(f"update_weights: {quoted(part.name)}{wrong}")

    def _wrong_values(self, part: RawTensor, kept: str, slot: str) -> str:
        """What keeps a tensor from being packed in the model's form; "" where nothing does. kept:
        its dtype as the model was loaded."""
        recipe = self._forms.weights
        form = "keep" if slot in _FLOAT_SLOTS else recipe.get(slot, recipe["body"])
        matrix = len(part.shape) > 1
        if part.dtype not in FLOATS:
            return f": expected floats, got {part.dtype}"
        as_loaded = recipe["floats"] == "auto" and kept == "F16"
        as_asked = recipe["floats"] == "F16" and form == "keep" and matrix and slot != "router"
        if (as_loaded or as_asked) and _overflows(part):
            return " holds a value beyond float16's 65504, in which the model keeps it"
        if not matrix or form == "keep":
            return ""
        values = part.float32()
        if not np.isfinite(values).all():
            return " holds a value that is not finite"
        if np.abs(values).max() > _F16_LARGEST:  # where scales of float16 may not do
            try:
                _core.Packed(values, "F32", *values.shape, "auto", form, 0)
            except LLMAccelError:
                return " holds a value that is too large for fp16 scales"
        return ""

    def _stored(self) -> _Stored:
        """The dtypes of the parts of every slot, as the model was loaded."""
        found: _Stored = {}
        forms = iter(self._slots)
        for slot, layer, count in places(self._config):
            experts = found[slot, layer] = []
            while len(experts) < count:
                _, parts, some = next(forms)
                experts += [[dtype for dtype, _, _ in parts]] * some
        return found

    def _parts(self, table: NameTable, place: _Place, stored: _Stored) -> list[RawTensor]:
        """What the core packs: where each tensor keeps its own form, that which it had."""
        parts = fill(self._config, table, *place)
        if self._forms.weights["floats"] != "auto":
            return parts
        kept = _of(stored, place)
        return [_converted(part, dtype) for part, dtype in zip(parts, kept, strict=True)]

    # ---- sleep ----------------------------------------------------------------------------------

    def sleep(self, level: int = 1) -> None:
        """Give memory back until wake_up(): level 1 frees cache and workspace, 2 the weights too.

        Level 2 reads them from the model's files when it wakes, so what update_weights changed is
        lost; UnsupportedError for a model that has no files. LLMAccelError where requests are under
        way. A sleeping LLM refuses requests; stats() and report() go on. Weights of which weight()
        gave a view are freed when the last such view is.
        """
        self._driver.check()
        if not is_whole(level, 1, 2):
            raise RequestError(f"level: expected 1 or 2, got {shown(level)}")
        if level == 2 and self._path is None:
            raise UnsupportedError(
                "level: 2 needs files to read the weights from again, and these came from memory; "
                "level 1 keeps them"
            )
        with self._driver.exclusive("sleep") as model:
            self._driver.put_away(with_model=level == 2)
            self._sleeping = True
            self._awake = frozenset({"weights"} if level == 1 and model is not None else ())
            if level == 2:
                self._weight_bytes = 0

    def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Take up work again after sleep(); nothing to do for one that is awake. tags: of
        "weights" and "kv_cache" what wakes up, such that weights can be replaced before memory goes
        to a cache; None: both. It sleeps until both are awake.

        MemoryPlanError where there is no room any more: it goes on sleeping.
        """
        self._driver.check()
        known = tags is None or (isinstance(tags, (list, tuple, set)) and set(tags) <= _PARTS)
        if not known:
            raise RequestError(f"tags: expected a list of {sorted(_PARTS)}, got {shown(tags)}")
        parts = _PARTS if tags is None else frozenset(tags)
        with self._driver.exclusive("wake_up") as model:
            if not self._sleeping:
                return
            if "weights" in parts and model is None:
                model = self._reload()
                self._driver.take_up(None, model)
            if self._awake | parts == _PARTS:
                check_available("workspace", self._plan.workspace)
                self._driver.take_up(_core.Engine(model, self._plan.limits), model)
                self._sleeping = False
            self._awake |= parts

    def _reload(self) -> Any:
        """The model, read from its files again."""
        options = replace(self._options, model=self._path, revision=None)
        prepared = forget_metadata(prepare(options))
        model = _core.Model(self._backend, vars(prepared.config), prepared.forms.weights)
        try:
            with naming_file(prepared.path):
                load_weights(model, prepared)
                score = load_score(prepared.config, prepared.checkpoint, self._tokenizer)
        except BaseException:
            model.close()
            raise
        self._config, self._forms, self._plan = prepared.config, prepared.forms, prepared.plan
        self._slots, self._score_head = prepared.slots, score
        self._weight_bytes, self._token_bytes = model.bytes, model.token_bytes
        return model

    def is_sleeping(self) -> bool:
        """Whether sleep() was called, and wake_up() not since."""
        self._driver.check()
        return self._sleeping


def _of(stored: _Stored, place: _Place) -> list[str]:
    slot, layer, expert = place
    return stored[slot, layer][expert]


def _overflows(part: RawTensor) -> bool:
    """Whether a finite value would be none in float16."""
    if part.dtype == "F16":
        return False
    values = np.abs(part.float32())
    return bool((np.isfinite(values) & (values >= _F16_INFINITY)).any())


def _converted(part: RawTensor, dtype: str) -> RawTensor:
    """A float tensor in another float format, rounded to nearest."""
    if part.dtype == dtype:
        return part
    values = part.float32()
    if dtype == "F32":
        data = values
    elif dtype == "F16":
        data = values.astype(np.float16)
    else:
        bits = values.view(np.uint32)
        even = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        # a NaN keeps its upper half, made quiet: rounding could carry it into infinity
        data = np.where(np.isnan(values), bits >> 16 | 0x40, (bits + even) >> 16).astype(np.uint16)
    return RawTensor(
        part.name, dtype, part.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    )
