"""Pooling: what hidden states are made into beside tokens: embeddings, classes, scores of pairs.

Owns embed, classify, score, encode and reward, and what a model's files say about pooling. Hidden
states come from the engine, one request a prompt, behind the final norm; what is left is a mean or
a product of a few rows, in float64. Invariant: at most a window of prompts holds hidden states at
once, and memory for that is checked before the first is submitted; no prompt's numbers depend on
the others, and all are of one set of weights.

A base of LLM (llm.py).
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmaccel import _core
from llmaccel.arguments import check_switches, refuse_foreign, spread
from llmaccel.calls import Prompt
from llmaccel.errors import RequestError, UnsupportedCombination, UnsupportedError, shown
from llmaccel.files import read_json_list, read_json_object
from llmaccel.memory import check_available
from llmaccel.models.gguf_config import plain
from llmaccel.models.score import class_logits
from llmaccel.params import score_fields
from llmaccel.pooling_params import (
    TASKS,
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolerConfig,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    pooler_config,
)
from llmaccel.prompts import Tokenization, prompt_list, tokenization_of
from llmaccel.request import Request
from llmaccel.scoring import Scoring
from llmaccel.states import prompt_states, states_bytes
from llmaccel.waiting import abandon, progress

_MAX_JSON_BYTES = 1 << 20
# sentence-transformers' names of ways of pooling: ours, or None for one that is not here.
_MODES = {
    "pooling_mode_lasttoken": "LAST",
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_max_tokens": None,
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
}
# llama.cpp's; 0 stands for none, which leaves the choice to us.
_GGUF_TYPES = {None: "LAST", 0: "LAST", 1: "MEAN", 2: "CLS", 3: "LAST"}
_Encoded = tuple[str | None, list[int]]


@dataclass(frozen=True)
class PoolingRule:
    """How a prompt's states become one: "LAST", "MEAN" or "CLS" (the first), or "ALL" of them; and
    whether embeddings get length 1."""

    pooling: str = "LAST"
    normalize: bool = True

    def rows(self, n_prompt: int) -> tuple[int, int]:
        """The positions that are looked at."""
        if self.pooling == "LAST":
            return n_prompt - 1, n_prompt
        return (0, 1) if self.pooling == "CLS" else (0, n_prompt)

    def one(self, states: np.ndarray) -> np.ndarray:
        """[1, D] of the rows that are looked at; all of them where it says so."""
        if self.pooling != "MEAN":
            return states
        return states.mean(axis=0, keepdims=True, dtype=np.float64)


def read_rule(model: Path | None) -> PoolingRule:
    """What the modules.json of a sentence-transformers folder says, or a GGUF file's pooling_type;
    UnsupportedError names a module or a way of pooling that this version has not. Decoders without
    one take the last token."""
    if model is not None and model.is_file():
        return _gguf_rule(model)
    path = model / "modules.json" if model is not None else None
    if path is None or not path.is_file():
        return PoolingRule()
    pooling, normalize = "LAST", False
    for module in read_json_list(path, _MAX_JSON_BYTES):
        kind = module.get("type") if isinstance(module, dict) else None
        kind = kind.rpartition(".")[2] if isinstance(kind, str) else None
        if kind == "Pooling":
            pooling = _mode(path.parent, module)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedError(f"{path}: module {shown(module)} is not supported")
    return PoolingRule(pooling, normalize)


def _gguf_rule(file: Path) -> PoolingRule:
    from llmaccel.models.gguf import open_gguf

    metadata = open_gguf(file).metadata
    value = plain(metadata.get(f"{metadata.get('general.architecture')}.pooling_type"))
    if value not in _GGUF_TYPES:
        raise UnsupportedError(f"{file}: pooling_type {shown(value)} is not supported")
    return PoolingRule(_GGUF_TYPES[value])


def _mode(folder: Path, module: dict[str, Any]) -> str:
    """The way of pooling that a module's config.json turns on."""
    inside = module.get("path")
    if not isinstance(inside, str) or Path(inside).name != inside or not inside:
        raise UnsupportedError(f"{folder / 'modules.json'}: path {shown(inside)} is no folder here")
    path = folder / inside / "config.json"
    given = read_json_object(path, _MAX_JSON_BYTES)
    on = [
        name for name, value in given.items() if name.startswith("pooling_mode") and value is True
    ]
    mode = _MODES.get(on[0]) if len(on) == 1 else None
    if mode is None:
        raise UnsupportedError(
            f"{path}: {', '.join(on) or 'no way of pooling'}: supported is one of "
            f"{', '.join(name for name, own in _MODES.items() if own)}"
        )
    return mode


def _tensor(values: np.ndarray) -> Any:
    return _core.Tensor(np.array(values, np.float32, order="C"))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float64."""
    wide = rows.astype(np.float64)
    return wide / np.maximum(np.sqrt((wide * wide).sum(axis=-1, keepdims=True)), 1e-12)


class Pooling(Scoring):
    """The methods of LLM that pool hidden states."""

    _score_head: np.ndarray | None

    @cached_property
    def _rule(self) -> PoolingRule:
        """What embeddings are made by: pooler_config, or what the model's files say."""
        given = self._pooler.sequence
        rule = read_rule(self._path)
        return rule if given is None else replace(rule, pooling=given)

    @cached_property
    def _pooler(self) -> PoolerConfig:
        return pooler_config(self._options.pooler_config)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] | None = None,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        normalize: bool | None = None,
        **foreign: Any,
    ) -> list[EmbeddingRequestOutput]:
        """One embedding of D numbers for each prompt.

        Pools as modules.json and 1_Pooling/config.json beside the model say, else the last token's
        state; normalize: to length 1 (None: what pooling_params or those files say, else True).
        Raises RequestError naming the prompt or parameter, MemoryPlanError.
        """
        refuse_foreign("embed", foreign)
        check_switches(normalize=normalize)
        items = prompt_list(prompts)
        params = self._pooling_params(pooling_params, "embed", truncate_prompt_tokens, len(items))
        if normalize is not None:
            for one in params:
                one.normalize = normalize
        encoded = self._encode_all(items, params, "prompts", tokenization_kwargs)
        found = self._embed(encoded, params, use_tqdm)
        return [EmbeddingRequestOutput(i, EmbeddingOutput(t), ids) for i, ids, t in found]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] | None = None,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **foreign: Any,
    ) -> list[ClassificationRequestOutput]:
        """Probabilities of the classes of a ...ForSequenceClassification model, for each prompt.

        They are what softmax makes of the last token's logits (pooler_config may take another's),
        for a single class or problem_type "multi_label_classification" sigmoid, for "regression"
        the logits themselves, as are all with use_activation=False. UnsupportedError where the
        model has no such head.
        """
        refuse_foreign("classify", foreign)
        items = prompt_list(prompts)
        params = self._pooling_params(
            pooling_params, "classify", truncate_prompt_tokens, len(items)
        )
        self._check_score_head("classify")
        encoded = self._encode_all(items, params, "prompts", tokenization_kwargs)
        found = self._classify(encoded, params, self._class_rule(), use_tqdm)
        return [
            ClassificationRequestOutput(i, ClassificationOutput(_tensor(p[0])), ids)
            for i, ids, p in found
        ]

    def reward(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] | None = None,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **foreign: Any,
    ) -> list[PoolingRequestOutput]:
        """A classifier's scores of every token of each prompt; encode's "token_classify"."""
        return self.encode(
            prompts,
            pooling_params,
            truncate_prompt_tokens=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
            tokenization_kwargs=tokenization_kwargs,
            pooling_task="token_classify",
            **foreign,
        )

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        pooling_task: str | None = None,
        **foreign: Any,
    ) -> list[PoolingRequestOutput]:
        """What pooling_task (or pooling_params.task) names, as Tensors, for each prompt.

        "embed": [D]; "token_embed": [T, D], every token's state; "classify": [classes];
        "token_classify": [T, classes]. RequestError where no task is named.
        """
        refuse_foreign("encode", foreign)
        task = self._pooling_task(pooling_task, pooling_params)
        items = prompt_list(prompts)
        params = self._pooling_params(pooling_params, task, truncate_prompt_tokens, len(items))
        if task.endswith("classify"):
            self._check_score_head(task)
        encoded = self._encode_all(items, params, "prompts", tokenization_kwargs)
        return self._encode_task(task, encoded, params, use_tqdm)

    def score(
        self,
        data_1: Prompt | Sequence[Prompt],
        data_2: Prompt | Sequence[Prompt],
        /,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] | None = None,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        **foreign: Any,
    ) -> list[ScoringRequestOutput]:
        """How well pairs go together; one of data_1 for all of data_2, or as many of both.

        A classifier with one class reads both as one prompt (texts as the tokenizer joins a pair,
        ids one after the other, or as chat_template writes messages of the roles "query" and
        "document") and gives its probability; any other model embeds both and gives the cosine.
        UnsupportedError for a classifier with more classes.
        """
        refuse_foreign("score", foreign)
        if self._config.n_labels > 1:
            raise UnsupportedError(
                f"score: this classifier has {self._config.n_labels} classes; a pair's score needs "
                "one"
            )
        left, right = prompt_list(data_1), prompt_list(data_2)
        single = len(left) == 1
        if single:
            left = left * len(right)
        if len(left) != len(right):
            raise RequestError(
                f"data_2: expected {len(left)}, one for each of data_1, got {len(right)}"
            )
        params = self._pooling_params(pooling_params, "score", truncate_prompt_tokens, len(right))
        how = tokenization_of(tokenization_kwargs, "right")
        if self._score_head is None:
            if chat_template is not None:
                raise UnsupportedCombination(
                    "chat_template: this model embeds texts one by one; a classifier reads both"
                )
            once = single and all(one == params[0] for one in params)
            return self._cosines(left[:1] if once else left, right, params, how, use_tqdm)
        encoded = [
            self._encode_both(a, b, i, params[i], how=how, chat_template=chat_template)
            for i, (a, b) in enumerate(zip(left, right, strict=True))
        ]
        found = self._classify(encoded, params, self._class_rule(), use_tqdm)
        return [
            ScoringRequestOutput(i, ScoringOutput(_tensor(p[0, 0])), ids) for i, ids, p in found
        ]

    # ---- prompts and parameters -----------------------------------------------------------------

    def _pooling_task(self, task: Any, given: Any) -> str:
        """That of encode: the one it names, or that of its parameters, or of pooler_config."""
        first = given[0] if isinstance(given, list) and given else None
        for one in (given, first, self._pooler):
            if task is None and isinstance(one, (PoolingParams, PoolerConfig)):
                task = one.task
        if task not in TASKS or task == "score":
            known = ", ".join(name for name in TASKS if name != "score")
            raise RequestError(f"pooling_task: expected one of {known}, got {shown(task)}")
        return str(task)

    def _pooling_params(
        self, given: Any, task: str, truncate: int | None, count: int
    ) -> list[PoolingParams]:
        """Checked copies for `task`, one a prompt, with what pooler_config says of the rest."""
        self._driver.check()
        if not isinstance(given, (PoolingParams, Sequence, type(None))):
            raise RequestError(f"pooling_params: expected PoolingParams, got {shown(given)}")
        each = spread("pooling_params", given, count, PoolingParams)
        return [self._checked_params(one, task, truncate) for one in each]

    def _checked_params(self, given: Any, task: str, truncate: int | None) -> PoolingParams:
        if given is not None and not isinstance(given, PoolingParams):
            raise RequestError(f"pooling_params: expected PoolingParams, got {shown(given)}")
        params = PoolingParams() if given is None else given.clone()
        general = self._pooler.params()
        if params.activates() is None:
            params.use_activation = general.activates()
        if task.endswith("embed"):
            if params.normalize is None:
                params.normalize = general.normalize
            if params.dimensions is None:
                params.dimensions = general.dimensions
        if params.task not in (None, task):
            raise RequestError(f"pooling_params: task is {params.task!r}, this call's is {task!r}")
        if truncate is not None:
            params.truncate_prompt_tokens = truncate
            params.validate()
        if params.dimensions is not None:
            if not task.endswith("embed"):
                raise RequestError(f"dimensions: of embeddings, not of {task}")
            self._check_dimensions(params.dimensions)
        if params.normalize is not None and not task.endswith("embed"):
            raise RequestError(f"normalize: of embeddings, not of {task}")
        return params

    def _check_dimensions(self, wanted: int) -> None:
        raw = self._config.raw
        some = raw.get("matryoshka_dimensions")
        if not some and raw.get("is_matryoshka") is not True:
            raise RequestError(
                "dimensions: the model's config.json does not say that it was made for fewer "
                "(is_matryoshka); hf_overrides={'is_matryoshka': True} says so"
            )
        fits = wanted in some if isinstance(some, list) and some else wanted <= self._config.d_model
        if not fits:
            known = some or f"1 to {self._config.d_model}"
            raise RequestError(f"dimensions: expected {known}, got {wanted}")

    def _check_score_head(self, task: str) -> None:
        if self._score_head is None:
            raise UnsupportedError(
                f"{task}: {self._config.architecture} has no head for classes; "
                "...ForSequenceClassification has"
            )

    def _class_rule(self) -> PoolingRule:
        return PoolingRule(self._pooler.sequence or "LAST")

    def _encode_all(
        self, items: list[Any], params: list[PoolingParams], name: str, kwargs: Any
    ) -> list[_Encoded]:
        """kwargs: tokenization_kwargs, or what was made of them."""
        made = isinstance(kwargs, Tokenization)
        how, room = kwargs if made else tokenization_of(kwargs, "right"), self._config.max_len
        encoded = []
        for i, item in enumerate(items):
            where = f"{name}[{i}]"
            text, ids = self._encode(item, where, how, room)
            encoded.append(self._fitted(text, ids, where, params[i]))
        return encoded

    def _fitted(
        self, text: str | None, ids: list[int], where: str, params: PoolingParams
    ) -> _Encoded:
        keep = params.truncate_prompt_tokens
        if keep is not None:
            ids = ids[-(keep if keep > 0 else self._config.max_len) :]
        self._check_length(ids, 0, where)
        return text, ids

    def _encode_both(
        self,
        a: Any,
        b: Any,
        i: int,
        params: PoolingParams,
        *,
        how: Tokenization | None,
        chat_template: str | None,
    ) -> _Encoded:
        """A pair as one prompt."""
        texts = isinstance(a, str) and isinstance(b, str)
        if chat_template is not None and not texts:
            raise RequestError(f"pair {i}: chat_template writes texts; give no token ids")
        where, text = f"pair {i}", a if texts else None
        if texts:
            tokenizer = self.get_tokenizer()
            try:
                if chat_template is None:
                    ids = (
                        tokenizer.encode_pair(a, b)
                        if how is None
                        else how.ids_of_pair(tokenizer, (a, b), where, self._config.max_len)
                    )
                else:
                    text = tokenizer.apply_chat_template(
                        [{"role": "query", "content": a}, {"role": "document", "content": b}],
                        chat_template=chat_template,
                        tokenize=False,
                    )
                    ids = tokenizer.encode(text, add_special_tokens=False)
            except RequestError as error:
                raise RequestError(f"{where}: {error}") from error
        else:
            ids = self._encode(a, f"data_1[{i}]")[1] + self._encode(b, f"data_2[{i}]")[1]
        if how is not None:
            ids = how.cut(ids, where, self._config.max_len)
        return self._fitted(text, ids, where, params)

    # ---- from states to numbers -----------------------------------------------------------------

    def _embed(
        self,
        encoded: list[_Encoded],
        params: list[PoolingParams],
        use_tqdm: Any,
        all_of: bool = False,
    ) -> list[tuple[str, list[int], Any]]:
        """(request id, prompt ids, Tensor) of each; all_of: of every token."""
        rule = PoolingRule("ALL", self._rule.normalize) if all_of else self._rule

        def finish(i: int, states: np.ndarray) -> Any:
            one = params[i]
            unit = one.activates() if one.normalize is None else one.normalize
            states = rule.one(states)[:, : one.dimensions]
            states = _unit(states) if (rule.normalize if unit is None else unit) else states
            return _tensor(states if all_of else states[0])

        return self._pool(encoded, rule, finish, use_tqdm)

    def _classify(
        self,
        encoded: list[_Encoded],
        params: list[PoolingParams],
        rule: PoolingRule,
        use_tqdm: Any,
    ) -> list[tuple[str, list[int], Any]]:
        """(request id, prompt ids, float64 [rows, classes]) of each."""
        problem = self._config.raw.get("problem_type")
        several = problem == "multi_label_classification"

        def finish(i: int, states: np.ndarray) -> np.ndarray:
            head = self._score_head  # the one of this call, which no change comes into
            assert head is not None
            logits = self._pooler.calibrate(class_logits(head, rule.one(states)))
            if params[i].activates() is False or problem == "regression":
                return logits
            if several or len(head) == 1:
                with np.errstate(over="ignore"):  # exp of a large number: 1 / inf is right
                    return 1.0 / (1.0 + np.exp(-logits))
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            return powers / powers.sum(axis=1, keepdims=True)

        return self._pool(encoded, rule, finish, use_tqdm)

    def _encode_task(
        self, task: str, encoded: list[_Encoded], params: list[PoolingParams], use_tqdm: Any
    ) -> list[PoolingRequestOutput]:
        """encode, its arguments checked."""
        if task.endswith("embed"):
            found = self._embed(encoded, params, use_tqdm, all_of=task == "token_embed")
            return [PoolingRequestOutput(i, PoolingOutput(t), ids) for i, ids, t in found]
        rule = PoolingRule("ALL") if task == "token_classify" else self._class_rule()
        return [
            PoolingRequestOutput(
                i, PoolingOutput(_tensor(p if rule.pooling == "ALL" else p[0])), ids
            )
            for i, ids, p in self._classify(encoded, params, rule, use_tqdm)
        ]

    def _cosines(
        self,
        left: list[Any],
        right: list[Any],
        params: list[PoolingParams],
        how: Tokenization | None,
        use_tqdm: Any,
    ) -> list[ScoringRequestOutput]:
        """Of each of right with its own of left, or with the only one there."""
        first = self._encode_all(left, params, "data_1", how)
        second = self._encode_all(right, params, "data_2", how)
        for one in params:
            one.normalize = True
        every = [*params[: len(first)], *params]
        found = self._embed([*first, *second], every, use_tqdm)
        scored, pairs = [], found[: len(left)]
        if len(left) < len(right):
            pairs = pairs * len(right)
        for (i, ids, u), (j, more, v) in zip(pairs, found[len(left) :], strict=True):
            cosine = (u.numpy().astype(np.float64) * v.numpy()).sum()
            scored.append(
                ScoringRequestOutput(f"{i}_{j}", ScoringOutput(_tensor(cosine)), ids + more)
            )
        return scored

    def _pool(
        self,
        encoded: list[_Encoded],
        rule: PoolingRule,
        finish: Callable[[int, np.ndarray], Any],
        use_tqdm: Any,
    ) -> list[tuple[str, list[int], Any]]:
        """Run prompts through the model, a window at a time, and finish each as it comes."""
        self._driver.check_wait()
        check_switches(use_tqdm=use_tqdm)
        window = 2 * self._plan.max_num_seqs
        spans = [rule.rows(len(ids)) for _, ids in encoded]
        largest = sorted((end - first for first, end in spans), reverse=True)[:window]
        check_available(
            f"hidden states of {len(largest)} prompts", states_bytes(self._config, sum(largest), 1)
        )
        news: queue.SimpleQueue[Request] = queue.SimpleQueue()
        results: list[Any] = [None] * len(encoded)
        running: dict[str, tuple[int, Request, Any]] = {}
        rest = iter(range(len(encoded)))

        def start() -> None:
            i = next(rest, None)
            if i is None:
                return
            text, ids = encoded[i]
            request = self._score_request(text, ids, 1)
            room, options = prompt_states(
                self._config, len(ids), (self._config.n_layers,), spans[i]
            )
            request.prompt_index = i
            request.listener = news.put
            running[request.request_id] = (i, request, room)
            self._submit(request, score_fields(), len(encoded), **options)

        try:
            with (
                self._driver.one_call(),
                progress(len(encoded), use_tqdm, "Pooling") as tick,
            ):
                for _ in range(window):
                    start()
                while running:
                    request = news.get()
                    if request.error is not None:
                        raise request.error
                    i, _, room = running.pop(request.request_id)
                    states = room.prompt_states[0].numpy()
                    results[i] = (request.request_id, request.prompt_ids, finish(i, states))
                    tick()
                    start()
        except BaseException:
            abandon(self._driver, [request for _, request, _ in running.values()])
            raise
        return results
