"""generate under transformers' names: GenerationConfig's fields become SamplingParams, or
BeamSearchParams where there is more than one beam.

Owns the meaning of every field that CausalLM.generate takes. Invariant: a field is used, or asks
for nothing, or is refused by name; defaults are transformers'. scores and logits are computed after
the tokens, by llm.logits over what came out, which gives the bits that they were chosen by.
Called by causal.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmaccel import BeamSearchParams, RequestError, SamplingParams, UnsupportedError
from llmaccel.torch.batches import integers, mask_of, span_of
from llmaccel.torch.outputs import GenerateOutput

NEW_TOKENS = 20  # where nothing says how many
TOP_K = 50  # where it samples and nothing says from how many

# Fields that are used below.
_USED = {
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "min_length",
    "max_time",
    "stop_strings",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "suppress_tokens",
    "num_return_sequences",
    "num_beams",
    "early_stopping",
    "length_penalty",
    "eos_token_id",
    "pad_token_id",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
}
# What changes no result, or says where a file came from.
_IDLE = {
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "disable_compile",
    "is_assistant",
    "max_matching_ngram_size",
    "remove_invalid_values",
    "renormalize_logits",
    "synced_gpus",
    "tokenizer",
    "transformers_version",
    "use_cache",
    "use_model_defaults",
}
# Of the rest, values that ask for nothing, beside None, False and empty ones.
_OFF = {
    "num_beam_groups": 1,
    "typical_p": 1.0,
    "top_h": 1.0,
    "guidance_scale": 1.0,
    "diversity_penalty": 0.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
}
# Asks for nothing where beams are searched; other values are refused there.
_OFF_IN_SEARCH = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "suppress_tokens": [],
    "stop_strings": [],
    "output_scores": False,
    "output_logits": False,
}
_ASSISTANTS = ("num_assistant", "assistant_", "target_lookbehind")  # of a model that is not there


# (prompt, new tokens) of each row, and its score where beams were searched
Made = tuple[list[tuple[list[int], list[int]]], list[float]]


@dataclass(frozen=True)
class Draw:
    """One call of generate, decided."""

    params: SamplingParams | BeamSearchParams
    ends: list[int]
    pad: int
    n: int
    as_dict: bool
    scores: bool
    logits: bool
    max_time: float | None

    @property
    def searches(self) -> bool:
        """Whether nothing is drawn: beams are searched."""
        return isinstance(self.params, BeamSearchParams)


def generate(model: Any, inputs: Any, generation_config: Any, given: dict[str, Any]) -> Any:
    """CausalLM.generate, of its model and arguments."""
    ids = given.pop("input_ids", None)
    if (inputs is None) == (ids is None):
        raise RequestError("input_ids: expected token ids [B, T], as inputs or as input_ids")
    table = integers(inputs if ids is None else ids, "input_ids")
    mask = mask_of(given.pop("attention_mask", None), table)
    fields = _fields(model.generation_config.to_dict(), generation_config, given)
    draw = _draw(model, fields, table.shape[1])
    prompts = []
    for i, row in enumerate(mask):
        begin, end = span_of(row, i)
        prompts.append(table[i, begin:end].tolist())
    made, sums = _search(model, prompts, draw) if draw.searches else _drawn(model, prompts, draw)
    sequences = _sequences(table, [new for _, new in made], draw)
    if not draw.as_dict:
        return sequences
    out = GenerateOutput(sequences=sequences)
    if draw.searches:
        out["sequences_scores"] = torch.tensor(sums, dtype=torch.float32)
    if draw.scores or draw.logits:
        raw = _raw_logits(model, made)
        if draw.scores:
            out["scores"] = _steps([_scores(*one, draw) for one in zip(raw, made, strict=True)])
        if draw.logits:
            out["logits"] = _steps(raw)
    return out


# ---- fields -------------------------------------------------------------------------------------


def _fields(own: dict[str, Any], config: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The model's, over them the config's, over them the arguments; None says nothing."""
    if config is None:
        config = {}
    elif not isinstance(config, Mapping):
        config = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    for name in given:
        if not (name in _USED | _IDLE | set(_OFF) or _is_known(name)):
            raise TypeError(f"CausalLM.generate() got an unexpected keyword argument {name!r}")
    merged: dict[str, Any] = {}
    for level in (own, config, given):
        if level.get("max_new_tokens") is not None:
            merged.pop("max_length", None)  # the nearer of the two limits counts
        for name, value in level.items():
            default = name == "max_length" and value == NEW_TOKENS and level is not given
            if value is not None and not default:  # older configs spell their default out
                merged[name] = value
    for name, value in merged.items():
        idle = name in _USED | _IDLE or name.startswith(("_", *_ASSISTANTS))
        if idle or value is False or (hasattr(value, "__len__") and not len(value)):
            continue
        if name not in _OFF or value != _OFF[name]:
            raise UnsupportedError(f"{name}: {value!r} is not supported by CausalLM.generate")
    return merged


def _is_known(name: str) -> bool:
    """Other arguments of transformers' generate, refused only if they ask for something."""
    return name in {
        "assistant_model",
        "bad_words_ids",
        "begin_suppress_tokens",
        "custom_generate",
        "decoder_start_token_id",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "logits_processor",
        "negative_prompt_ids",
        "output_attentions",
        "output_hidden_states",
        "past_key_values",
        "penalty_alpha",
        "position_ids",
        "prefix_allowed_tokens_fn",
        "prompt_lookup_num_tokens",
        "sequence_bias",
        "stopping_criteria",
        "streamer",
        "token_type_ids",
        "watermarking_config",
    } or name.startswith(_ASSISTANTS)


def _draw(model: Any, fields: dict[str, Any], width: int) -> Draw:
    """Sampling parameters and the like; width: columns of input_ids, padding included."""
    ends = _ids(fields.get("eos_token_id"), "eos_token_id")
    pad = fields.get("pad_token_id")
    n = fields.get("num_return_sequences", 1)
    sample = fields.get("do_sample", False)
    beams = fields.get("num_beams", 1)
    if beams == 1 and n != 1 and not sample:
        raise RequestError(f"num_return_sequences: {n} with do_sample=False would be one {n} times")
    new = fields.get("max_new_tokens")
    if new is None:
        new = fields["max_length"] - width if "max_length" in fields else NEW_TOKENS
        if new < 1:
            raise RequestError(f"max_length: {fields['max_length']}, but input_ids have {width}")
    least = fields.get("min_new_tokens")
    if least is None:
        least = max(0, fields.get("min_length", 0) - width)
    least = min(least, new)
    return Draw(
        _sampling(fields, ends, new, least) if beams == 1 else _beams(fields, ends, new, least),
        ends,
        int(pad) if pad is not None else ends[0] if ends else 0,
        n,
        bool(fields.get("return_dict_in_generate")),
        bool(fields.get("output_scores")),
        bool(fields.get("output_logits")),
        fields.get("max_time"),
    )


def _sampling(fields: dict[str, Any], ends: list[int], new: int, least: int) -> SamplingParams:
    values: dict[str, Any] = {
        "n": fields.get("num_return_sequences", 1),
        "temperature": 0.0,
        "max_tokens": new,
        "min_tokens": least,
        "repetition_penalty": fields.get("repetition_penalty", 1.0),
        "ignore_eos": True,  # the ends are those that the fields say
        "stop_token_ids": ends,
        "detokenize": False,
    }
    if fields.get("do_sample", False):
        temperature = fields.get("temperature", 1.0)
        if not temperature > 0:
            raise RequestError(f"temperature: {temperature} is not above 0; or do_sample=False")
        values |= {
            "temperature": temperature,
            "top_k": fields.get("top_k", TOP_K),
            "top_p": fields.get("top_p", 1.0),
            "min_p": fields.get("min_p", 0.0),
            "seed": int(torch.randint(2**62, ())),
        }
    if fields.get("no_repeat_ngram_size"):
        values["no_repeat_ngram_size"] = fields["no_repeat_ngram_size"]
    if fields.get("suppress_tokens"):
        values["logit_bias"] = dict.fromkeys(fields["suppress_tokens"], -1e30)
    if fields.get("stop_strings"):
        values |= {"stop": fields["stop_strings"], "detokenize": True}
    return SamplingParams(**values)


def _beams(fields: dict[str, Any], ends: list[int], new: int, least: int) -> BeamSearchParams:
    beams, n = fields["num_beams"], fields.get("num_return_sequences", 1)
    if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
        raise RequestError(f"num_beams: expected at least 1, got {beams!r}")
    if not 1 <= n <= beams:
        raise RequestError(f"num_return_sequences: {n} is not in [1, num_beams={beams}]")
    for name, off in _OFF_IN_SEARCH.items():
        value = fields.get(name)
        if value is not None and value != off:
            raise UnsupportedError(f"{name}: {value!r} is not supported with num_beams={beams}")
    if least:
        raise UnsupportedError(
            f"min_new_tokens: {least} (or min_length) is not supported with num_beams={beams}"
        )
    return BeamSearchParams(
        beams,
        new,
        ignore_eos=True,  # the ends are those that the fields say
        stop_token_ids=ends,
        length_penalty=fields.get("length_penalty", 1.0),
        early_stopping=fields.get("early_stopping", False),
    )


def _ids(value: Any, name: str) -> list[int]:
    """A token id, several or none, as a list."""
    if value is None:
        return []
    found = torch.as_tensor(value).reshape(-1)
    if found.is_floating_point():
        raise RequestError(f"{name}: expected token ids, got {value!r}")
    return [int(i) for i in found if i >= 0]


# ---- tokens -------------------------------------------------------------------------------------


def _drawn(model: Any, prompts: list[list[int]], draw: Draw) -> Made:
    answers = model.llm.generate(prompts, draw.params, timeout=draw.max_time, use_tqdm=False)
    made = [
        (prompt, answer.token_ids)
        for prompt, output in zip(prompts, answers, strict=True)
        for answer in output.outputs
    ]
    return made, []


def _search(model: Any, prompts: list[list[int]], draw: Draw) -> Made:
    """The best n of each prompt; rows that max_time, or a small vocabulary, left none for are empty
    and score -inf."""
    found = model.llm.beam_search(prompts, draw.params, timeout=draw.max_time)
    made, sums = [], []
    for prompt, output in zip(prompts, found, strict=True):
        best = output.sequences[: draw.n]
        news = [one.tokens[len(prompt) :] for one in best]
        made += [(prompt, new) for new in news] + [(prompt, [])] * (draw.n - len(news))
        sums += [
            one.cum_logprob / len(new) ** draw.params.length_penalty
            for one, new in zip(best, news, strict=True)
        ]
        sums += [-math.inf] * (draw.n - len(news))
    return made, sums


# ---- results ------------------------------------------------------------------------------------


def _sequences(table: Tensor, made: list[list[int]], draw: Draw) -> Tensor:
    """[B * n, T + longest]: prompts as they came, what follows, and padding."""
    longest = max((len(new) for new in made), default=0)
    out = torch.full((len(made), table.shape[1] + longest), draw.pad, dtype=torch.int64)
    for i, new in enumerate(made):
        out[i, : table.shape[1]] = table[i // draw.n]
        out[i, table.shape[1] : table.shape[1] + len(new)] = torch.tensor(new, dtype=torch.int64)
    return out


def _raw_logits(model: Any, made: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    """[new, V] for each row: what each of its new tokens was chosen from."""
    tensors = model.llm.logits([prompt + new[:-1] for prompt, new in made]) if made else []
    return [
        torch.from_dlpack(one)[len(prompt) - 1 :]
        for one, (prompt, _) in zip(tensors, made, strict=True)
    ]


def _steps(rows: list[Tensor]) -> tuple[Tensor, ...]:
    """[rows, V] for each step; rows that have ended give zeros."""
    steps = []
    for i in range(max(map(len, rows), default=0)):
        steps.append(
            torch.stack([one[i] if i < len(one) else one.new_zeros(one.shape[1:]) for one in rows])
        )
    return tuple(steps)


def _scores(logits: Tensor, made: tuple[list[int], list[int]], draw: Draw) -> Tensor:
    """Logits as the draw changed them: [new, V], -inf for what it left out."""
    prompt, new = made
    p, scores = draw.params, logits.clone()
    for i, row in enumerate(scores):
        before = prompt + new[:i]
        if p.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(before)))
            kept = row[seen]
            row[seen] = torch.where(
                kept > 0, kept / p.repetition_penalty, kept * p.repetition_penalty
            )
        banned = list(p.logit_bias or ())
        banned += draw.ends if i < p.min_tokens else []
        banned += _ngram_ends(before, getattr(p, "no_repeat_ngram_size", 0))
        row[banned] = -torch.inf
    if p.temperature > 0:
        scores /= p.temperature
        _cut(scores, p)
    return scores


def _ngram_ends(before: list[int], n: int) -> list[int]:
    """Tokens that would complete a run of n for the second time."""
    if n < 1 or len(before) < n:
        return []
    tail = before[len(before) - n + 1 :]
    return [before[i + n - 1] for i in range(len(before) - n + 1) if before[i : i + n - 1] == tail]


def _cut(scores: Tensor, p: SamplingParams) -> None:
    """-inf for all but the likely, in place: min_p, top_k, top_p, as the sampler goes."""
    if p.min_p > 0:
        probabilities = scores.softmax(-1)
        least = p.min_p * probabilities.amax(-1, keepdim=True)
        scores.masked_fill_(probabilities < least, -torch.inf)
    if 0 < p.top_k < scores.shape[-1]:
        least = scores.topk(p.top_k).values[:, -1:]
        scores.masked_fill_(scores < least, -torch.inf)
    if p.top_p < 1:
        ordered, places = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= p.top_p)
        scores.masked_fill_(out, -torch.inf)
