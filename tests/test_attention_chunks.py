"""Long contexts through the engine: chunks shared out among threads and joined give the same bits.

A sequence that decodes is cut into chunks of 256 tokens where there is room for their results; a
prompt's tiles walk all of theirs, and so do the sequences that find no room. Every level present
and every form of page; kernels alone are in test_attention.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny

from llmaccel import LLM, SamplingParams, _core

ISAS = _core.kernel_isas()
LONG = 600  # three chunks, the last one short
LENGTHS = [LONG, 3, 255, 257]
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=1, detokenize=False)


def open_tiny(kv: str, family: str, heads: tuple[int, int] = (6, 2), **options: Any) -> LLM:
    config = tiny.config_of(
        family,
        max_position_embeddings=LONG + 100,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
    )
    return LLM.from_arrays(config, tiny.arrays_of(config, 3), kv_cache_dtype=kv, **options)


def prompt(tokens: int) -> dict[str, Any]:
    return {"prompt_token_ids": np.random.default_rng(tokens).integers(3, 301, tokens).tolist()}


def sampled(forks: int, tokens: int) -> SamplingParams:
    return dataclasses.replace(GREEDY, temperature=1.0, seed=7, n=forks, max_tokens=tokens)


def bits_of(output: Any) -> tuple:
    return tuple(output.token_ids), output.logprob_array.tobytes()


def results_of(llm: LLM, lengths: list[int], params: SamplingParams = GREEDY) -> list[tuple]:
    """Token ids and logprob bits of requests that run at once."""
    futures = [llm.submit(prompt(n), params) for n in lengths]
    return [bits_of(f.result().outputs[0]) for f in futures]


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


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
@pytest.mark.parametrize("heads", [(6, 3), (8, 4), (6, 2), (4, 1)], ids=str)
def test_several_tokens_in_chunks(isa: str, kv: str, heads: tuple[int, int]) -> None:
    """Steps of 7 and 17 tokens: several rows per head in chunks of one kv head or two.

    By heads (query, kv) and tokens all heads' queries stay converted or are made again for every
    page; the step's other sequences walk, on the same thread.
    """
    params = dataclasses.replace(GREEDY, max_tokens=40)
    with open_tiny(kv, "llama", heads, isa=isa, threads=1, max_num_seqs=1) as llm:
        expected = results_of(llm, LENGTHS, params)
    for tokens, threads in ((7, 1), (17, 2)):
        options = {"isa": isa, "max_num_seqs": 4, "max_num_batched_tokens": tokens}
        with open_tiny(kv, "llama", heads, threads=threads, **options) as llm:
            assert results_of(llm, LENGTHS, params) == expected, tokens


@pytest.mark.parametrize("isa", ISAS)
def test_chunked_beside_walked(isa: str) -> None:
    """Sequences of one chunk walk between those that are cut, all decoding on one thread."""
    lengths, tokens = [LONG, 3, 300, 90, 257, 400], 20
    params = dataclasses.replace(GREEDY, max_tokens=tokens)
    heads = (8, 4)
    with open_tiny("bfloat16", "llama", heads, isa=isa, threads=1, max_num_seqs=1) as llm:
        expected = results_of(llm, lengths, params)
    options = {"isa": isa, "threads": 1, "max_num_batched_tokens": 2048}
    with open_tiny("bfloat16", "llama", heads, **options) as llm:
        assert results_of(llm, lengths, params) == expected
        assert llm.report()["stats"]["steps"] < 2 * tokens - 1, "they did not decode at once"


@pytest.mark.parametrize(
    "forks",
    [{LONG: 100}, {LONG: 60, 300: 45}],
    ids=["one", "two"],
)
def test_sequences_without_room_for_results(forks: dict[int, int]) -> None:
    """256 chunks find room: where more decode at once some are walked, to the same bits."""
    count, tokens = sum(forks.values()), 12

    def run(**options: Any) -> tuple[list[tuple], dict[str, Any]]:
        with open_tiny("bfloat16", "llama", **options) as llm:
            futures = [llm.submit(prompt(n), sampled(k, tokens)) for n, k in forks.items()]
            got = [bits_of(one) for f in futures for one in f.result().outputs]
            return got, llm.report()["stats"]

    expected, _ = run(max_num_seqs=1)
    assert len(set(expected)) > count // 2, "forks that say the same could not be told apart"
    got, stats = run(max_num_seqs=count, max_num_batched_tokens=128)
    assert got == expected
    assert stats["preemptions"] == 0
    assert stats["steps"] <= tokens + 12, "the prompts' forks did not decode at once"
    if len(forks) == 1:  # its forks end together, but for the one that went on in its place
        assert stats["last_step_tokens"] > 85
