"""The model type `llmaccel` of lm-evaluation-harness.

    import llmaccel.eval.harness            # harness 0.4.13 and before look up no entry points
    lm_eval.simple_evaluate(model="llmaccel", model_args={"pretrained": "model.gguf"}, tasks=[...])

    llmaccel eval harness run --model llmaccel --model_args pretrained=model.gguf --tasks ...

Owns the translation of the harness' requests into calls of LLM. Scores go through
`LLM.loglikelihood` for all requests at once, so a context that several choices share is computed
once. Texts are split, truncated and windowed as the harness' own `hf` model does it, so scores can
be compared. Invariant: importing this file registers the type; a harness that finds it by its entry
point `lm_eval.models` gets the same class.

Called by lm_eval and by command.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llmaccel import LLM, RequestError, SamplingParams

_NAME = "llmaccel"
_MOST_TOKENS = 256  # of an answer, where a task does not say
_STEP_TOKENS = 2048  # all questions are there at once, and nobody waits for a first token
# Of the harness' command line; a batch is what the engine makes of all requests.
_NO_EFFECT = ("batch_size", "max_batch_size", "device")


class HarnessLM(TemplateLM):
    """LLM behind the harness' interface.

    pretrained: the model, as LLM takes it; model is another name for it. add_bos_token: None: as
    the tokenizer does. prefix_token_id: before an empty context; None: BOS, else EOS. max_length:
    tokens of a context; None: the model's. max_gen_toks: of an answer where a task does not say.
    options: those of LLM; max_num_batched_tokens is 2048 if not given. The harness' batch_size,
    max_batch_size and device have no effect.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = _MOST_TOKENS,
        **options: Any,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (model is None):
            raise RequestError("pretrained: name the model by one of pretrained= and model=")
        for name in _NO_EFFECT:
            options.pop(name, None)
        options.setdefault("max_num_batched_tokens", _STEP_TOKENS)
        self.llm = LLM(pretrained or model, max_model_len=max_length, **options)
        self.tokenizer = self.llm.get_tokenizer()
        self.max_length = self.llm.report()["model"]["max_model_len"]
        self.max_gen_toks = max_gen_toks
        self._add_bos = add_bos_token
        self._prefix = prefix_token_id

    # ---- tokens ----------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context."""
        if self._prefix is not None:
            return self._prefix
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; None adds what the tokenizer adds, but no second BOS."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None and bos and string.startswith(bos):
            add_special_tokens = False
        if add_special_tokens is None:
            add_special_tokens = self._add_bos
        if add_special_tokens is None:
            return self.tokenizer.encode(string)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    @property
    def tokenizer_name(self) -> str:
        """For the harness' cache of requests."""
        return str(self.llm.report()["model"]["path"]).replace(os.sep, "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # ---- requests --------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Scores of (cache key, context, continuation); contexts are cut on the left."""
        contexts, tails = [], []
        for _, context, tail in requests:
            room = self.max_length + 1 - len(tail)  # the last token is only predicted
            if room < 1:
                raise RequestError(f"a continuation of {len(tail)} tokens leaves no context")
            contexts.append(context[-room:])
            tails.append(tail)
        scores = self.llm.loglikelihood(contexts, tails)
        for (key, _, _), score in zip(requests, scores, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, score)
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Log probability of each whole text, in windows of max_length."""
        owners, work = [], []
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, tail in map(make_disjoint_window, windows):
                owners.append(i)
                work.append((None, context, tail))
        totals = [0.0] * len(requests)
        for i, (score, _) in zip(owners, self._loglikelihood_tokens(work), strict=True):
            totals[i] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Continuations up to a stop string; all requests run as one batch."""
        prompts, params, asked = [], [], []
        for request in requests:
            context, given = request.args
            chosen, stops, count = _sampling(dict(given), self.max_gen_toks)
            ids = self.tok_encode(context)[-max(1, self.max_length - count) :]
            prompts.append({"prompt_token_ids": ids})
            params.append(SamplingParams(max_tokens=count, stop=stops, **chosen))
            asked.append(stops)
        texts = []
        outs = self.llm.generate(prompts, params) if prompts else []
        for request, out, stops in zip(requests, outs, asked, strict=True):
            text = postprocess_generated_text(out.outputs[0].text, stops, None)
            self.cache_hook.add_partial("generate_until", request.args, text)
            texts.append(text)
        return texts


def _sampling(given: dict[str, Any], most: int) -> tuple[dict[str, Any], list[str], int]:
    """(parameters of SamplingParams, stop strings, tokens) of the harness' generation arguments."""
    kwargs: dict[str, Any] = {**normalize_gen_kwargs(given, most)}
    stops = [text for text in kwargs.pop("until") if text]
    count, drawn = kwargs.pop("max_gen_toks"), kwargs.pop("do_sample")
    temperature = kwargs.pop("temperature", 0.0)
    return {**kwargs, "temperature": temperature if drawn else 0.0}, stops, count


if _NAME not in model_registry:
    model_registry.register(_NAME, target=HarnessLM)
