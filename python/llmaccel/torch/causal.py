"""CausalLM: an LLM where PyTorch code expects a transformers model of class AutoModelForCausalLM.

Owns the module and its forward. Invariant: what a batch gives does not depend on its padding or its
other rows; a row's logits are those of llm.logits, written by the engine where the caller reads
them. What has no meaning for an LLM of ours (gradients, caches passed around, other devices) is
refused by name. generate is in generation.py, config in settings.py.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmaccel import LLM, RequestError, UnsupportedError
from llmaccel.torch.batches import integers, mask_of, span_of
from llmaccel.torch.generation import generate
from llmaccel.torch.outputs import CausalLMOutput
from llmaccel.torch.pretrained import opened
from llmaccel.torch.settings import Settings, model_settings, sampling_settings
from llmaccel.torch.untraced import untraced

IGNORED = -100  # a label that counts for nothing, as in torch's cross_entropy


class CausalLM(nn.Module):
    """A loaded LLM as a module of PyTorch, called as transformers' causal models are.

        model = CausalLM(LLM("model.gguf"))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss

    forward and generate take CPU tensors. Weights stay the LLM's: there are no parameters to train,
    load or convert, moving to another device or dtype is refused, and so is train(). `llm` is the
    LLM, `config` and `generation_config` hold what its files say under transformers' names; dtype
    is float32, that of logits and loss, and device the CPU.
    """

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        if not isinstance(llm, LLM):
            raise TypeError(f"llm: expected an LLM, got {type(llm).__name__}")
        self.llm = llm
        self.config: Settings = model_settings(llm)
        self.no_effect: list[str] = []  # keywords of from_pretrained that meant nothing
        self.generation_config: Settings = sampling_settings(llm)
        # code that asks a model's first parameter for its device finds one, without values
        self.placement = nn.Parameter(torch.empty(0), requires_grad=False)
        self.training = False
        self._learned = llm.report()["model"]["learned_positions"]

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> CausalLM:
        """CausalLM(LLM(model, ...)), with the keywords of AutoModelForCausalLM.from_pretrained.

        dtype (or torch_dtype, its older name): LLM's, None is "auto". device_map: None, "cpu",
        "auto" or {"": "cpu"}. revision, token, cache_dir, local_files_only: of a hub name.
        low_cpu_mem_usage, use_safetensors, attn_implementation ("sdpa", "eager" or
        "flash_attention_2"): no effect, `no_effect` lists those that were given. load_in_8bit,
        load_in_4bit, quantization_config: off, else UnsupportedError says what LLM has instead.
        Others are options of LLM; TypeError for what is neither.
        """
        llm, idle = opened(model, options)
        made = cls(llm)
        made.no_effect = idle
        return made

    # ---- forward --------------------------------------------------------------------------------

    @untraced
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Any = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        **absent: Any,
    ) -> Any:
        """Logits of every position and, with labels, the loss: CausalLMOutput.

        input_ids: integers [B, T], or [T]. attention_mask: [B, T], 0 where a row is padded, on the
        left or on the right; None: nowhere. Logits of padding are 0. Positions count from a row's
        first token; position_ids, where given, must say the same. A model with learned positions
        wants them where a row is padded on the left: without them transformers counts padding.
        labels: [B, T], as input_ids: the token at t is predicted by the logits at t - 1, and the
        loss is the mean cross entropy of all that are not -100; those whose prediction would come
        from padding are left out too, with a warning (transformers counts them, from rows that
        attend to nothing: of a row padded on the left make the first token's label -100 and both
        say the same). num_items_in_batch: divides the sum instead. logits_to_keep: how many of the
        last positions, or which; 0: all. output_hidden_states: of the embeddings and of every
        layer, the last after the final norm, 0 in padding. return_dict=False: a tuple. use_cache:
        None or False: nothing is kept between calls. absent: transformers' other arguments, None
        or False, cache_position counting from 0, token_type_ids of 0, else UnsupportedError.
        """
        if input_ids is not None:
            _drop_harmless(absent, torch.as_tensor(input_ids).shape[-1:])
        _refuse(absent, use_cache)
        if input_ids is None:
            raise RequestError("input_ids: expected token ids [B, T]")
        ids = integers(input_ids, "input_ids")
        mask = mask_of(attention_mask, ids)
        spans = [span_of(row, i) for i, row in enumerate(mask)]
        if position_ids is not None:
            _check_positions(position_ids, mask)
        elif self._learned and any(begin for begin, end in spans):
            raise UnsupportedError(
                "position_ids: a model with learned positions counts padding on the left where "
                "none are given; pass position_ids=attention_mask.cumsum(1) - 1"
            )
        logits = torch.zeros(*ids.shape, self.config.vocab_size)
        rows = [(i, begin, end) for i, (begin, end) in enumerate(spans) if end > begin]
        if rows:
            prompts = [ids[i, begin:end].tolist() for i, begin, end in rows]
            self.llm.logits(prompts, out=[logits[i, begin:end] for i, begin, end in rows])
        out = CausalLMOutput()
        if labels is not None:
            out["loss"] = _loss(logits, integers(labels, "labels"), mask, num_items_in_batch)
        some = isinstance(logits_to_keep, Tensor)
        out["logits"] = logits[:, logits_to_keep if some else slice(-logits_to_keep, None)]
        if output_hidden_states:
            out["hidden_states"] = self._hidden_states(ids, spans)
        return out.to_tuple() if return_dict is False else out

    def _hidden_states(self, ids: Tensor, spans: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        """[B, T, D] of each layer, from the embeddings on."""
        layers = range(self.config.num_hidden_layers + 1)
        states = torch.zeros(len(layers), *ids.shape, self.config.hidden_size)
        for i, (begin, end) in enumerate(spans):
            if end > begin:
                found = self.llm.hidden_states(ids[i, begin:end].tolist(), layers)
                for layer, one in enumerate(found):
                    states[layer, i, begin:end] = torch.from_dlpack(one)
        return states.unbind()

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **given: Any):
        """Continues prompts: int64 [B * num_return_sequences, T + new], or a dict of results.

        inputs or input_ids: [B, T], padded on the left (or the right) where attention_mask is 0.
        generation_config: transformers' GenerationConfig or a dict; its fields may be arguments
        too, and win. Understood: max_new_tokens, max_length, min_new_tokens, min_length, do_sample,
        temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size,
        num_return_sequences, num_beams, length_penalty, early_stopping, eos_token_id, pad_token_id,
        suppress_tokens, begin_suppress_tokens, bad_words_ids, sequence_bias, typical_p,
        stop_strings, max_time, return_dict_in_generate, output_scores, renormalize_logits (scores
        are then log probabilities), output_logits, output_hidden_states; use_cache and what only
        concerns speed have no effect; the rest is refused if it asks for anything. Defaults are
        transformers': greedy, 20 new tokens, top_k 50 where it samples. Draws follow
        torch.manual_seed, each row by a seed of its own, but are not transformers' draws. Beams
        (num_beams above 1) are searched by transformers' rule; with do_sample, penalties, bans,
        functions, min_new_tokens, stop_strings, scores, logits or states they are refused.

        logits_processor and stopping_criteria: lists of functions of (ids int64 [1, T + made],
        scores float32 [1, V] or None), called for each row by itself on the engine's thread;
        prefix_allowed_tokens_fn: f(row, ids [T + made]). What one raises becomes a RequestError.
        streamer: put(ids) is called with the prompt and with each token of the one row, end() at
        the end, after an error too.

        Rows are filled up with pad_token_id (else the first end token). return_dict_in_generate:
        GenerateOutput with sequences, of beams sequences_scores and, if asked for, scores and
        logits, a tuple of float32 [B * num_return_sequences, V] for each new token, and
        hidden_states, for each new token a tuple of layers.
        """
        return generate(self, inputs, generation_config, given)

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: tuple[Tensor, ...],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """float32 [rows, new]: the score of each token that was generated, from generate's
        sequences and scores. normalize_logits: its log probability among the scores instead.
        UnsupportedError for beam_indices."""
        if beam_indices is not None:
            raise UnsupportedError("beam_indices: beams have no scores of tokens here")
        if not scores:
            return torch.zeros(len(sequences), 0)
        steps = torch.stack(scores, dim=1)  # [rows, new, V]
        if normalize_logits:
            steps = steps.log_softmax(-1)
        return steps.gather(2, sequences[:, -len(scores) :, None])[:, :, 0]

    # ---- what modules are asked for -------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The CPU, where tensors go in and come out."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """float32, of logits and loss, whatever weights are stored as."""
        return torch.float32

    main_input_name = "input_ids"
    input_modalities = "text"
    output_modalities = ("text",)

    @property
    def name_or_path(self) -> str:
        """Where the model came from; "" for arrays."""
        return self.config.name_or_path

    def can_generate(self) -> bool:
        """True."""
        return True

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Weights of the LLM, a tied one counted once, whatever each takes in memory; a router's
        correction, in transformers a buffer, counts too. only_trainable: 0, as nothing is.
        exclude_embeddings: without those of tokens and positions."""
        known = self.llm.report()["model"]
        without = known["n_embedding_parameters"] if exclude_embeddings else 0
        return 0 if only_trainable else known["n_parameters"] - without

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the LLM was loaded with its weights tied as its files say."""

    def get_input_embeddings(self) -> Any:
        """UnsupportedError: weights are packed and belong to the LLM."""
        raise UnsupportedError("get_input_embeddings: weights are packed in the LLM, not a module")

    def get_output_embeddings(self) -> Any:
        """UnsupportedError: weights are packed and belong to the LLM."""
        raise UnsupportedError("get_output_embeddings: weights are packed in the LLM, not a module")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a CausalLM cannot be pickled or copied: it holds a loaded LLM; make it anew with "
            "CausalLM.from_pretrained(path)"
        )

    def train(self, mode: bool = True) -> CausalLM:
        """UnsupportedError for True: there are no gradients."""
        if mode:
            raise UnsupportedError(
                "train: llmaccel computes no gradients; the model evaluates only"
            )
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> CausalLM:
        """UnsupportedError for True: there are no gradients."""
        if requires_grad:
            raise UnsupportedError("requires_grad_: llmaccel computes no gradients")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> CausalLM:
        """What to(), half(), cuda() and their like end in."""
        probe = fn(torch.empty(0))
        if probe.device != self.device:
            raise UnsupportedError(
                f"to: tensors of a CausalLM stay on the CPU, not {probe.device}; where the model "
                "computes is chosen by LLM(backend=)"
            )
        if probe.dtype != self.dtype:
            raise UnsupportedError(
                f"to: {probe.dtype}; what weights are stored as is chosen by LLM(dtype=, "
                "quantization=), and logits are float32"
            )
        return self

    def extra_repr(self) -> str:
        """The LLM's own."""
        return repr(self.llm)


# ---- arguments ----------------------------------------------------------------------------------


def _drop_harmless(absent: dict[str, Any], width: Any) -> None:
    """Leaves out arguments that say what holds anyway."""
    counted, kinds = absent.get("cache_position"), absent.get("token_type_ids")
    if isinstance(counted, Tensor) and counted.tolist() == list(range(*width)):
        del absent["cache_position"]
    if isinstance(kinds, Tensor) and not kinds.any():
        del absent["token_type_ids"]


def _refuse(absent: dict[str, Any], use_cache: bool | None) -> None:
    known = (
        "past_key_values",
        "inputs_embeds",
        "output_attentions",
        "cache_position",
        "token_type_ids",
    )
    if use_cache:
        absent["use_cache"] = use_cache
    for name, value in absent.items():
        if name not in known and name != "use_cache":
            raise TypeError(f"CausalLM.forward() got an unexpected keyword argument {name!r}")
        if value is not None and value is not False:
            if name in ("use_cache", "past_key_values"):
                raise UnsupportedError(
                    f"{name}: forward keeps nothing between calls; give the whole text each time "
                    "with use_cache=False, or call generate(), which computes each token once"
                )
            raise UnsupportedError(f"{name}: not supported by CausalLM.forward")


def _check_positions(position_ids: Any, mask: Tensor) -> None:
    expected = mask.long().cumsum(1) - 1
    given = torch.as_tensor(position_ids).expand_as(expected)
    if not torch.equal(given[mask], expected[mask]):
        raise UnsupportedError("position_ids: rows are counted from their first token on, from 0")


# ---- loss ---------------------------------------------------------------------------------------


class _NoGradient(torch.autograd.Function):
    """Says what torch would not: that the loss has a model behind it, but no gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise UnsupportedError("backward: llmaccel computes no gradients; CausalLM evaluates only")


def _callers_level() -> int:
    """warnings' stacklevel of the first caller that is neither torch nor llmaccel."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in ("torch", "llmaccel"):
        level, frame = level + 1, frame.f_back
    return level


def _loss(logits: Tensor, labels: Tensor, mask: Tensor, n_items: Any) -> Tensor:
    """Mean cross entropy of every label but -100 under the logits before it."""
    if labels.shape != mask.shape:
        raise RequestError(
            f"labels: expected {list(mask.shape)}, as input_ids, got {list(labels.shape)}"
        )
    wanted = labels[:, 1:] != IGNORED
    blind = wanted & ~mask[:, :-1]
    if blind.any():
        warnings.warn(
            f"labels: {int(blind.sum())} would be predicted from padding and are left out; "
            "make them -100",
            stacklevel=_callers_level(),
        )
    keep = wanted & ~blind
    targets = labels[:, 1:][keep]
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[-1]:
        raise RequestError(f"labels: expected -100 or ids below {logits.shape[-1]}")
    # row by row: a selection of all logits would be as large again
    sums = [
        nn.functional.cross_entropy(
            logits[i, :-1][keep[i]], labels[i, 1:][keep[i]], reduction="sum"
        )
        for i in range(len(keep))
    ]
    count = len(targets) if n_items is None else n_items
    loss = torch.stack(sums).sum() / count
    if not torch.is_grad_enabled():
        return loss
    return _NoGradient.apply(torch.zeros((), requires_grad=True), loss)
