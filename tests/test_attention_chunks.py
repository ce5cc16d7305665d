"""Long contexts through the engine: chunks shared out among threads and joined give the same bits.

A sequence that decodes is cut into chunks of 256 tokens where there is room for their results; a
prompt's tiles walk all of theirs, and so do the sequences that find no room. Every level present
and every form of page; kernels alone are in test_attention.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny

from llmaccel import LLM, SamplingParams, _core

ISAS = _core.kernel_isas()
LONG = 600  # three chunks, the last one short
LENGTHS = [LONG, 3, 255, 257]
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=1, detokenize=False)


def open_tiny(kv: str, family: str, **options: Any) -> LLM:
    config = tiny.config_of(family, max_position_embeddings=LONG + 100)
    return LLM.from_arrays(config, tiny.arrays_of(config, 3), kv_cache_dtype=kv, **options)


def prompt(tokens: int) -> dict[str, Any]:
    return {"prompt_token_ids": np.random.default_rng(tokens).integers(3, 301, tokens).tolist()}


def results_of(llm: LLM, lengths: list[int]) -> list[tuple]:
    """Token ids and logprob bits of requests that run at once."""
    futures = [llm.submit(prompt(n), GREEDY) for n in lengths]
    outputs = [f.result().outputs[0] for f in futures]
    return [(tuple(o.token_ids), o.logprob_array.tobytes()) for o in outputs]


@pytest.mark.parametrize(
    ("kv", "family"),
    [("float32", "llama"), ("bfloat16", "mistral"), ("int8", "llama"), ("fp8", "mistral")],
)
@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_company_change_nothing(isa: str, kv: str, family: str) -> None:
    with open_tiny(kv, family, isa=isa, threads=1, max_num_seqs=1) as llm:
        expected = results_of(llm, LENGTHS)
    with open_tiny(kv, family, isa=isa, threads=2, max_num_seqs=4) as llm:
        assert results_of(llm, LENGTHS) == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
def test_decoding_is_prefill(isa: str, kv: str) -> None:
    """Logprobs of decoded tokens, in chunks, are those of the same tokens read as a prompt."""
    with open_tiny(kv, "llama", isa=isa) as llm:
        ids = prompt(LONG)["prompt_token_ids"]
        out = llm.generate([{"prompt_token_ids": ids}], GREEDY)[0].outputs[0]
        rows = np.asarray(llm.logits(ids + list(out.token_ids)))[LONG - 1 : -1].astype(np.float64)
    peak = rows.max(axis=1, keepdims=True)
    lse = peak[:, 0] + np.log(np.exp(rows - peak).sum(axis=1))
    assert rows.argmax(axis=1).tolist() == list(out.token_ids)
    np.testing.assert_allclose(out.logprob_array, rows.max(axis=1) - lse, rtol=0, atol=2e-6)


def test_sequences_without_room_for_results() -> None:
    """256 chunks find room: of 300 some are cut and some are walked, to the same bits."""
    many = [LONG] * 100
    with open_tiny("bfloat16", "llama", max_num_seqs=1) as llm:
        expected = results_of(llm, many[:1])
    with open_tiny("bfloat16", "llama", max_num_seqs=100, max_num_batched_tokens=128) as llm:
        assert set(results_of(llm, many)) == set(expected)
