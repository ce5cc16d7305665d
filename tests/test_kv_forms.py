"""The forms of the KV cache through the engine: same bits in any company, bytes, what they lose.

A tiny model (head size 20, three query heads per kv head, with and without a window) runs alone and
beside others: prompts cut into chunks of any size, sequences preempted and recomputed. The loss is
measured on SmolLM2's golden ids. Kernels alone are in test_attention.py.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
import tiny

from llmaccel import LLM, SamplingParams
from llmaccel.errors import UnsupportedError
from llmaccel.loading import prepare
from llmaccel.options import LoadOptions

FORMS = ["float32", "bfloat16", "int8", "fp8"]
CODES = ["int8", "fp8"]
WINDOW = 512
# Perplexity over that of a bf16 cache, relative: measured 1.0016 (int8) and 0.9986 (fp8).
LOSSES = {"int8": 1.002, "fp8": 1.01}

each_form = pytest.mark.parametrize("kv", FORMS)
each_code = pytest.mark.parametrize("kv", CODES)


def config_of(family: str = "llama", **more: Any) -> dict[str, Any]:
    return tiny.config_of(family, max_position_embeddings=400, **more)


def open_tiny(kv: str, config: dict[str, Any], **options: Any) -> LLM:
    return LLM.from_arrays(config, tiny.arrays_of(config, 3), kv_cache_dtype=kv, **options)


def prompts(n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(n)
    return [{"prompt_token_ids": rng.integers(3, 301, 5 + 37 * i).tolist()} for i in range(n)]


def tokens_of(llm: LLM, params: SamplingParams, preempt: bool = False) -> list[tuple]:
    """Token ids and logprob bits of six requests at once."""
    futures = [llm.submit(p, params) for p in prompts(6)]
    for _ in range(50 if preempt else 0):  # not for ever: a slow machine would only recompute
        llm.engine.preempt(2)
        time.sleep(0.01)
    outputs = [f.result().outputs[0] for f in futures]
    return [(tuple(o.token_ids), o.logprob_array.tobytes()) for o in outputs]


@each_code
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_same_bits_in_any_company(kv: str, family: str) -> None:
    config = config_of(family, **({"sliding_window": 70} if family == "mistral" else {}))
    params = SamplingParams(
        temperature=0, max_tokens=150, ignore_eos=True, logprobs=1, detokenize=False
    )
    with open_tiny(kv, config, max_num_seqs=1) as llm:
        expected = tokens_of(llm, params)
    for limits in (
        {"max_num_seqs": 8},
        {"max_num_seqs": 8, "max_num_batched_tokens": 13, "threads": 1},
    ):
        with open_tiny(kv, config, **limits) as llm:
            assert tokens_of(llm, params) == expected, limits
    with open_tiny(kv, config, max_num_batched_tokens=31) as llm:
        assert tokens_of(llm, params, preempt=True) == expected
        assert llm.report()["stats"]["preemptions"] > 0


@each_code
def test_logits_are_near_those_of_fp32_pages(kv: str) -> None:
    config = config_of()
    ids = prompts(6)[5]["prompt_token_ids"]
    with open_tiny("float32", config) as llm:
        exact = np.asarray(llm.logits(ids))
    with open_tiny(kv, config) as llm:
        assert llm.report()["model"]["kv_cache_dtype"] == kv
        ours = np.asarray(llm.logits(ids))
    error = np.sqrt(np.mean((ours - exact) ** 2)) / exact.std()
    # Random heads of 20 are hard on codes: int8 measured 0.055; a wrong scale gives 1 and more.
    assert 0 < error < {"int8": 0.1, "fp8": 0.3}[kv]


@each_form
@pytest.mark.parametrize("head_dim", [20, 64, 100])
def test_the_plan_counts_every_byte(kv: str, head_dim: int) -> None:
    config = config_of(head_dim=head_dim)
    plan = prepare(LoadOptions(config, kv_cache_dtype=kv), tiny.arrays_of(config, 3)).plan
    wide = -(-head_dim // 16) * 16
    per_token = {
        "float32": 4 * (head_dim + wide),
        "bfloat16": 2 * (head_dim + head_dim % 2 + wide),
        "int8": head_dim + -head_dim % 4 + wide + 8,
        "fp8": head_dim + -head_dim % 4 + wide + 8,
    }[kv]
    heads = config["num_key_value_heads"] * config["num_hidden_layers"]
    assert plan.kv_page_bytes == 64 * per_token * heads


def test_spellings() -> None:
    config = config_of()
    arrays = tiny.arrays_of(config, 3)

    def form(name: str) -> str:
        return prepare(LoadOptions(config, kv_cache_dtype=name), arrays).config.kv_form

    assert form("fp8") == form("fp8_e4m3") == "f8"
    assert form("auto") == "f32"
    with pytest.raises(UnsupportedError, match=r"fp8_e5m2.*'fp8'"):
        form("fp8_e5m2")


@pytest.mark.slow
def test_loss_on_golden_ids(shared_data, smollm2_path) -> None:
    folder = shared_data / "models" / "smollm2_135m"
    golden = json.loads((folder / "golden_nll.json").read_text())
    windows = np.reshape(golden["ids"], (-1, WINDOW)).tolist()

    def perplexity(kv: str) -> float:
        with LLM(smollm2_path, kv_cache_dtype=kv, max_model_len=WINDOW) as llm:
            scores = llm.loglikelihood([w[:1] for w in windows], [w[1:] for w in windows])
        return math.exp(-math.fsum(s for s, _ in scores) / (len(windows) * (WINDOW - 1)))

    base = perplexity("bfloat16")
    for kv, bound in LOSSES.items():
        assert perplexity(kv) / base <= bound, kv
