"""32 requests of every kind at once, through models with experts and latents: each as if alone.

DeepSeek-V3 (latents, a sigmoid router over groups), Qwen3-MoE and gpt-oss (sinks, biased experts,
windows), tiny and random. Pages are few, so sequences are preempted and recomputed; two requests
are cancelled on the way. In the quick suite, so that the sanitizers see it.
"""

from __future__ import annotations

from typing import Any

import letters
import numpy as np
import pytest
import tiny

from llmaccel import LLM, SamplingParams, _core

FAMILIES = ["deepseek_v3-experts", "qwen3_moe-all", "gpt_oss"]
COUNT = 32
CANCELLED = (7, 23)
PAGES = 6  # for 8 sequences of up to 3


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / request.param
    tiny.make_checkpoint(request.param, path, seed=3)
    letters.write_tokenizer(path)
    return path


def shifted(output_ids: list[int], logits: np.ndarray) -> None:
    """A logits processor."""
    logits += np.roll(logits, 1 + len(output_ids) % 7)


def kind_of(i: int) -> dict[str, Any]:
    """What is asked of request i beside the number of tokens."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": 3},
        {"temperature": 0.9, "top_p": 0.9, "seed": i, "logprobs": 0, "stop": ["never said"]},
        {"temperature": 0.7, "seed": i, "repetition_penalty": 1.3, "presence_penalty": 0.6},
        {"temperature": 1.2, "seed": i, "stop": ["ab", "e", " g"], "stop_token_ids": [3 + 104],
         "include_stop_str_in_output": True, "allowed_token_ids": letters.LETTERS},
        {"temperature": 1.0, "seed": i, "n": 3, "top_k": 40, "logprobs": 1},
        {"temperature": 0, "prompt_logprobs": 2, "logit_bias": {5: 2.0, 9: -100.0}},
        {"temperature": 0.8, "seed": i, "min_p": 0.05, "frequency_penalty": 0.5, "min_tokens": 5,
         "stop_token_ids": list(range(3, 90))},
        {"temperature": 0, "logprobs": 1, "bad_words": ["a", "b"]},
        {"temperature": 0.9, "seed": i, "mirostat_mode": 2, "mirostat_tau": 3.0, "logprobs": 0,
         "dry_multiplier": 0.8, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2,
         "repeat_last_n": 20},
        {"temperature": 1.1, "seed": i, "typical_p": 0.9, "xtc_probability": 0.5,
         "dynatemp_range": 0.3, "top_n_sigma": 2.0, "logprob_token_ids": [5, 9],
         "logits_processors": [shifted]},
    ]  # fmt: skip
    return kinds[i % len(kinds)]


def is_long(i: int) -> bool:
    """Whether it grows by two pages, one more than the scheduler sets aside for it."""
    return i % 4 == 1


def requests() -> list[tuple[dict[str, Any], SamplingParams]]:
    rng = np.random.default_rng(11)
    made = []
    for i in range(COUNT):
        length = int(rng.integers(40, 64) if is_long(i) else rng.choice([1, 2, 30, 64, 65, 100]))
        ids = rng.integers(3, letters.VOCAB, length).tolist()
        kind = {"ignore_eos": True, **kind_of(i)}
        tokens = 90 if is_long(i) else 45 if i in CANCELLED else int(rng.integers(8, 30))
        made.append(({"prompt_token_ids": ids}, SamplingParams(max_tokens=tokens, **kind)))
    return made


def told(output) -> list[tuple]:
    """Everything that a request was answered."""
    scored = None
    if output.prompt_logprobs is not None:
        scored = [None if at is None else {k: v.logprob for k, v in at.items()}
                  for at in output.prompt_logprobs]  # fmt: skip
    return [
        (tuple(o.token_ids), None if o.logprob_array is None else o.logprob_array.tobytes(),
         o.text, o.finish_reason, scored)
        for o in output.outputs
    ]  # fmt: skip


@pytest.mark.parametrize("isa", _core.kernel_isas())
def test_every_request_is_answered_as_if_alone(folder, isa):
    asked = requests()
    with LLM(str(folder), isa=isa, max_num_seqs=3, threads=1) as llm:
        page = llm.plan().kv_page_bytes
        alone = [told(llm.generate(prompt, params)[0]) for prompt, params in asked]
    assert {end for answer in alone for *_, end, _ in answer} == {"stop", "length"}
    options = {"max_num_seqs": 8, "max_num_batched_tokens": 48, "threads": 2}
    with LLM(str(folder), isa=isa, kv_cache_memory_bytes=PAGES * page, **options) as llm:
        assert llm.engine.stats()["pages_cap"] == PAGES
        futures = [llm.submit(prompt, params, priority=0 if is_long(i) else 1 + i % 2)
                   for i, (prompt, params) in enumerate(asked)]  # fmt: skip
        futures[CANCELLED[0]].cancel()
        for i in (0, 1):  # both are done when some others run
            futures[i].result(timeout=120)
        futures[CANCELLED[1]].cancel()
        together = [told(future.result(timeout=120)) for future in futures]
        stats = llm.engine.stats()
    for i in range(COUNT):
        if i in CANCELLED:  # as far as it came
            (ids, *_), (whole, *_) = together[i][0], alone[i][0]
            assert ids == whole[: len(ids)]
        else:
            assert together[i] == alone[i], i
    assert together[CANCELLED[0]][0][3] == "abort"
    assert stats["preemptions"] > 0
    assert (stats["running"], stats["pages_used"], stats["step_allocations"]) == (0, 0, 0)
