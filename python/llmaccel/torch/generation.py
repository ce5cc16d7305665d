"""generate under transformers' names: GenerationConfig's fields become SamplingParams, or
BeamSearchParams where there is more than one beam.

Owns the meaning of every field that CausalLM.generate takes. Invariant: a field is used, or asks
for nothing, or is refused by name; defaults are transformers'. scores and logits are computed after
the tokens, by llm.logits over what came out, which gives the bits that they were chosen by; where
rules of transformers' order are in Python (rules.py), scores are what those saw.
Called by causal.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llmaccel import BeamSearchParams, RequestError, SamplingParams, UnsupportedError
from llmaccel.torch.batches import integers, mask_of, span_of
from llmaccel.torch.outputs import GenerateOutput
from llmaccel.torch.rules import CUSTOM, Drawing, Rules, asks

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
    "typical_p",
    "renormalize_logits",
    *CUSTOM,
    "num_return_sequences",
    "num_beams",
    "early_stopping",
    "length_penalty",
    "eos_token_id",
    "pad_token_id",
    "output_scores",
    "output_logits",
    "output_hidden_states",
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
    "synced_gpus",
    "tokenizer",
    "transformers_version",
    "use_cache",
    "use_model_defaults",
}
# Of the rest, values that ask for nothing, beside None, False and empty ones.
_OFF = {
    "num_beam_groups": 1,
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
    **dict.fromkeys(CUSTOM),
    "typical_p": 1.0,
    "stop_strings": [],
    "output_scores": False,
    "output_logits": False,
    "output_hidden_states": False,
}
# Of a model that is not there; that one itself is refused.
_ASSISTANTS = ("num_assistant", "assistant_", "target_lookbehind")
_ASSISTED = {"assistant_model", "assistant_tokenizer"}


# (prompt, new tokens) of each row, and its score where beams were searched
Made = tuple[list[tuple[list[int], list[int]]], list[float]]


@dataclass(frozen=True)
class Draw:
    """One call of generate, decided. drawings: a row's chain of rules, where it runs in Python."""

    params: SamplingParams | BeamSearchParams
    rules: Rules
    ends: list[int]
    pad: int
    n: int
    shows: frozenset[str]  # what of scores, logits and hidden_states is returned, and "dict"
    normal: bool  # scores are log probabilities
    max_time: float | None
    drawings: tuple[Drawing, ...] = ()

    @property
    def searches(self) -> bool:
        """Whether nothing is drawn: beams are searched."""
        return isinstance(self.params, BeamSearchParams)


def generate(model: Any, inputs: Any, generation_config: Any, given: dict[str, Any]) -> Any:
    """CausalLM.generate, of its model and arguments."""
    streamer = given.pop("streamer", None)
    if streamer is None:
        return _generate(model, inputs, generation_config, given, None)
    if not callable(getattr(streamer, "put", None)) or not callable(getattr(streamer, "end", None)):
        raise RequestError(f"streamer: expected put() and end(), got {type(streamer).__name__}")
    try:
        return _generate(model, inputs, generation_config, given, streamer)
    finally:  # who reads it in another thread must not wait for ever, whatever went wrong
        streamer.end()


def _generate(
    model: Any, inputs: Any, config: Any, given: dict[str, Any], streamer: Any
) -> Tensor | GenerateOutput:
    ids = given.pop("input_ids", None)
    if (inputs is None) == (ids is None):
        raise RequestError("input_ids: expected token ids [B, T], as inputs or as input_ids")
    table = integers(inputs if ids is None else ids, "input_ids")
    mask = mask_of(given.pop("attention_mask", None), table)
    fields = _fields(model.generation_config.to_dict(), config, given)
    draw = _draw(model, fields, table)
    prompts = [table[i, slice(*span_of(row, i))].tolist() for i, row in enumerate(mask)]
    if streamer is not None and (len(prompts) != 1 or draw.n != 1 or draw.searches):
        raise RequestError("streamer: takes one row, without beams and num_return_sequences")
    if draw.rules.custom and not draw.searches:
        draw = _with_drawings(draw, prompts)
    if draw.searches:
        made, sums = _search(model, prompts, draw)
    elif streamer is None:
        made, sums = _drawn(model, prompts, draw)
    else:
        streamer.put(table)
        made, sums = _streamed(model, prompts[0], draw, streamer)
    sequences = _sequences(table, [new for _, new in made], draw)
    if "dict" not in draw.shows:
        return sequences
    out = GenerateOutput(sequences=sequences)
    if draw.searches:
        out["sequences_scores"] = torch.tensor(sums, dtype=torch.float32)
    _show(out, model, mask, made, draw)
    return out


def _show(out: GenerateOutput, model: Any, mask: Tensor, made: list[Any], draw: Draw) -> None:
    """Adds what is asked for beside the tokens."""
    if draw.shows & {"scores", "logits"}:
        raw = _raw_logits(model, made)
        if "scores" in draw.shows:
            rows = [_scores(one, made[i], i // draw.n, draw) for i, one in enumerate(raw)]
            out["scores"] = _steps(rows)
        if "logits" in draw.shows:
            out["logits"] = _steps(raw)
    if "hidden_states" in draw.shows:
        out["hidden_states"] = _hidden_states(model, mask, made, draw.n)


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
        if (idle and name not in _ASSISTED) or value is False or not asks(value):
            continue
        if name not in _OFF or value != _OFF[name]:
            raise UnsupportedError(f"{name}: {value!r} is not supported by CausalLM.generate")
    return merged


def _is_known(name: str) -> bool:
    """Other arguments of transformers' generate, refused only if they ask for something."""
    return name in {
        "custom_generate",
        "decoder_start_token_id",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "negative_prompt_ids",
        "output_attentions",
        "past_key_values",
        "penalty_alpha",
        "position_ids",
        "prompt_lookup_num_tokens",
        "token_type_ids",
        "watermarking_config",
    } or name.startswith(_ASSISTANTS)


def _draw(model: Any, fields: dict[str, Any], table: Tensor) -> Draw:
    """Sampling parameters and the like; table: input_ids, padding included."""
    width = table.shape[1]
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
    shows = {name for name in ("scores", "logits", "hidden_states") if fields.get(f"output_{name}")}
    return Draw(
        _sampling(fields, ends, new, least) if beams == 1 else _beams(fields, ends, new, least),
        Rules(fields, ends, least, table, model.config.vocab_size),
        ends,
        int(pad) if pad is not None else ends[0] if ends else 0,
        n,
        frozenset(shows | ({"dict"} if fields.get("return_dict_in_generate") else set())),
        bool(fields.get("renormalize_logits")),
        fields.get("max_time"),
    )


def _with_drawings(draw: Draw, prompts: list[list[int]]) -> Draw:
    """The same with every rule before the temperature in Python, as the order of all asks for."""
    assert isinstance(draw.params, SamplingParams)
    plain = replace(
        draw.params,
        min_tokens=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        logit_bias=None,
    )
    end = draw.ends[0] if draw.ends else 0
    drawings = tuple(
        Drawing(draw.rules, i, prompt, end, "scores" in draw.shows)
        for i, prompt in enumerate(prompts)
    )
    return replace(draw, params=plain, drawings=drawings)


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
            "typical_p": fields.get("typical_p", 1.0),
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
        if asks(value) and value != off:
            raise UnsupportedError(f"{name}: {value!r:.80} is not supported with num_beams={beams}")
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


def _params(draw: Draw, rows: int) -> list[SamplingParams]:
    """Of each row, which draws by a seed of its own from torch's generator."""
    assert isinstance(draw.params, SamplingParams)
    found = [draw.params] * rows
    if draw.params.temperature > 0:
        seeds = torch.randint(2**62, (rows,)).tolist()
        found = [replace(one, seed=seed) for one, seed in zip(found, seeds, strict=True)]
    if draw.drawings:
        pairs = zip(found, draw.drawings, strict=True)
        found = [replace(one, logits_processors=[drawing]) for one, drawing in pairs]
    return found


def _drawn(model: Any, prompts: list[list[int]], draw: Draw) -> Made:
    answers = model.llm.generate(
        prompts, _params(draw, len(prompts)), timeout=draw.max_time, use_tqdm=False
    )
    made = [
        (prompts[i], _ended(one.token_ids, i, draw))
        for i, output in enumerate(answers)
        for one in output.outputs
    ]
    return made, []


def _ended(new: Any, row: int, draw: Draw) -> list[int]:
    """Tokens up to where a stopping criterion ended them."""
    return draw.drawings[row].cut(list(new)) if draw.drawings else list(new)


def _streamed(model: Any, prompt: list[int], draw: Draw, streamer: Any) -> Made:
    """One row, each token handed to the streamer as it comes."""
    new: list[int] = []
    chunks = model.llm.generate(
        [prompt], _params(draw, 1), timeout=draw.max_time, stream=True, use_tqdm=False
    )
    for chunk in chunks:
        before = len(new)
        new = _ended(new + list(chunk.outputs[0].token_ids), 0, draw)
        for token in new[before:]:
            streamer.put(torch.tensor([token]))
    return [(prompt, new)], []


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


def _scores(logits: Tensor, made: tuple[list[int], list[int]], row: int, draw: Draw) -> Tensor:
    """Logits as the draw changed them: [new, V], -inf for what it left out. row: of input_ids."""
    prompt, new = made
    if draw.drawings:
        rows = draw.drawings[row].kept(new)
    else:
        rows = [draw.rules.changed(row, prompt, new[:i], one) for i, one in enumerate(logits)]
    scores = torch.stack(rows) if rows else logits.clone()
    if draw.params.temperature > 0:
        scores /= draw.params.temperature
        _cut(scores, draw.params)
    return scores.log_softmax(-1) if draw.normal else scores


def _hidden_states(
    model: Any, mask: Tensor, made: list[tuple[list[int], list[int]]], n: int
) -> tuple[tuple[Tensor, ...], ...]:
    """A tuple of layers for each new token: [rows, T, D] of the prompts with the first, [rows, 1,
    D] after; 0 in padding and behind a row's end."""
    longest = max((len(new) for _, new in made), default=0)
    width = mask.shape[1]
    layers = range(model.config.num_hidden_layers + 1)
    places = (len(layers), len(made), max(width + longest - 1, 0), model.config.hidden_size)
    states = torch.zeros(places)
    for i, (prompt, new) in enumerate(made):
        begin, end = span_of(mask[i // n], i // n)
        if not new:
            continue
        for layer, one in enumerate(model.llm.hidden_states(prompt + new[:-1], layers)):
            found = torch.from_dlpack(one)
            states[layer, i, begin:end] = found[: len(prompt)]
            states[layer, i, width : width + len(new) - 1] = found[len(prompt) :]
    return tuple(
        tuple(states[:, :, max(width + i - 1, 0) if i else 0 : width + i].unbind())
        for i in range(longest)
    )


def _cut(scores: Tensor, p: SamplingParams) -> None:
    """-inf for all but the likely, in place: min_p, top_k, typical_p, top_p, in that order."""
    if p.min_p > 0:
        probabilities = scores.softmax(-1)
        least = p.min_p * probabilities.amax(-1, keepdim=True)
        scores.masked_fill_(probabilities < least, -torch.inf)
    if 0 < p.top_k < scores.shape[-1]:
        least = scores.topk(p.top_k).values[:, -1:]
        scores.masked_fill_(scores < least, -torch.inf)
    if p.typical_p < 1:
        logprobs = scores.log_softmax(-1)
        entropy = -torch.nan_to_num(logprobs.exp() * logprobs, nan=0.0).sum(-1, keepdim=True)
        places = (-logprobs - entropy).abs().argsort()
        before = logprobs.gather(-1, places).exp().cumsum(-1) - logprobs.gather(-1, places).exp()
        out = torch.zeros_like(before, dtype=torch.bool)
        scores.masked_fill_(out.scatter(-1, places, before >= p.typical_p), -torch.inf)
    if p.top_p < 1:
        ordered, places = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= p.top_p)
        scores.masked_fill_(out, -torch.inf)
