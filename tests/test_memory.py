"""What memory is taken, refused and given back: the plan before the load, peaks, close().

Sizes are read off /proc in processes of their own. What the plan's table says and how cgroups are
read is in test_lifecycle.py.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter

import pytest
import tiny
from processes import RSS, measures_memory, run

from llmaccel import LLM, MemoryPlanError, _core, memory
from llmaccel.models.checkpoint import RawTensor

MIB = 1 << 20


def plans(monkeypatch, available: int) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: (available, "a test"))


# ---- refused before anything is read -------------------------------------------------------------


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """A folder whose weights file says 141 GB and is one hole."""
    folder = tmp_path_factory.mktemp("huge")
    config = tiny.config_of(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, head_dim=128,
        num_attention_heads=64, num_key_value_heads=8, vocab_size=128256, dtype="bfloat16",
        max_position_embeddings=131072,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    from llmaccel.models.mapping import build_config, tensor_specs

    header, at = {}, 0
    for name, shape in tensor_specs(build_config(config)):
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        try:
            file.truncate(8 + len(text) + at)
        except OSError as error:
            pytest.skip(f"no sparse file of {at} bytes here: {error}")
    return folder


def refuse_loading(monkeypatch) -> None:
    def forbidden(*_, **__):
        pytest.fail("a weight was touched")

    monkeypatch.setattr(_core, "Model", forbidden)
    monkeypatch.setattr(RawTensor, "numpy", forbidden)


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_refusal_reads_no_weights(huge, monkeypatch, load_format):
    refuse_loading(monkeypatch)
    plans(monkeypatch, 16 << 30)
    with pytest.raises(MemoryPlanError, match="does not fit") as caught:
        LLM(huge, load_format=load_format)
    message = str(caught.value)
    assert "weights 131.4 GiB" in message
    assert "16.0 GiB available (a test)" in message
    assert "320.0 KiB per token" in message  # 2 * 80 layers * 8 heads * 128 * 2 bytes
    assert "no max_model_len or max_num_seqs would fit" in message


def test_the_numbers_that_would_fit_do_fit(huge, monkeypatch):
    """And are the largest: one more does not."""
    refuse_loading(monkeypatch)
    plans(monkeypatch, 140 << 30)
    with pytest.raises(MemoryPlanError) as caught:
        LLM(huge, max_num_seqs=64)
    length = int(re.search(r"max_model_len=(\d+) \(with max_num_seqs=64\)", str(caught.value))[1])
    assert 8192 < length < 131072
    with pytest.raises(pytest.fail.Exception, match="touched"):  # the plan let it through
        LLM(huge, max_num_seqs=64, max_model_len=length)
    with pytest.raises(MemoryPlanError):
        LLM(huge, max_num_seqs=64, max_model_len=length + 64)


def test_fewer_sequences_may_fit(huge, monkeypatch):
    refuse_loading(monkeypatch)
    short = {"max_model_len": 256, "max_num_batched_tokens": 512}
    plans(monkeypatch, 1 << 60)
    few, many = (_plan(huge, max_num_seqs=n, **short).required for n in (1, 8192))
    assert few < many
    plans(monkeypatch, (few + many) // 2)
    with pytest.raises(MemoryPlanError) as caught:
        LLM(huge, max_num_seqs=8192, **short)
    seqs = int(re.search(r"max_num_seqs=(\d+) \(with max_model_len=256\)", str(caught.value))[1])
    assert 1 < seqs < 8192
    assert _plan(huge, max_num_seqs=seqs, **short).max_num_seqs == seqs
    with pytest.raises(MemoryPlanError):
        _plan(huge, max_num_seqs=seqs + 1, **short)


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_planning_does_little_for_each_expert(tmp_path, monkeypatch, load_format):
    """Qwen3-235B has 37,000 tensors, nearly all of them experts': however many there are, the same
    slots are sized, and headers are read a tensor at a time."""
    from llmaccel.models.checkpoint import Checkpoint
    from llmaccel.models.safetensors import _Scanner

    calls: Counter[str] = Counter()

    def count(owner, name, amount=lambda *_: 1):
        inner = getattr(owner, name)

        def counted(*args, **kwargs):
            calls[name] += amount(*args)
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(_core, "weight_bytes", lambda _desc, _recipe, slots: len(slots))
    count(_core, "plan")
    count(_Scanner, "peek")
    count(Checkpoint, "__getitem__")
    seen = []
    for experts in (8, 40):
        folder = tiny.make_checkpoint("qwen3_moe", tmp_path / f"{experts}", num_experts=experts)
        plans(monkeypatch, 1 << 40)
        needed = _plan(folder, load_format=load_format).weights
        calls.clear()
        plans(monkeypatch, 1 << 16)
        with pytest.raises(MemoryPlanError, match="no max_model_len"):
            _plan(folder, load_format=load_format)
        seen.append((needed, dict(calls)))
    (few, first), (many, second) = seen
    assert many > 2 * few
    assert first == second
    assert first["plan"] < 50


def _plan(folder, **options):
    from llmaccel.loading import prepare
    from llmaccel.options import LoadOptions

    return prepare(LoadOptions(folder, **options)).plan


# ---- measured ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A narrow model with the vocabulary of Qwen2, weights made up."""
    folder = tmp_path_factory.mktemp("wide")
    config = tiny.config_of(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=1, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, vocab_size=151936, dtype="bfloat16",
        max_position_embeddings=8200, tie_word_embeddings=True,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@measures_memory
def test_prompt_logprobs_of_a_long_prompt_at_a_large_vocabulary(wide):
    """All logits would be 4.98 GB; the issue allows 64 MB."""
    added, positions, best = run(
        """
        from llmaccel import LLM, SamplingParams
        with LLM(sys.argv[1], load_format="dummy", max_num_seqs=2) as llm:
            ids = [(i * 7919) % 151936 for i in range(8192)]
            prompt = {"prompt_token_ids": ids}
            llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0))
            reset_peak()
            llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0))
            without = peak()
            reset_peak()
            params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=5)
            out = llm.generate(prompt, params)[0]
            added = peak() - without
            entry = out.prompt_logprobs[8191]
            print(json.dumps([added, len(out.prompt_logprobs), len(entry)]))
        """,
        wide,
        prelude=RSS,
    )
    assert positions == 8192
    assert best in (5, 6)
    assert added < 64 * MIB


@measures_memory
def test_the_plan_is_what_is_taken(wide):
    """Weights and workspace as planned; close() gives all of it back."""
    before, loaded, after, planned = run(
        """
        import gc
        from llmaccel import LLM, SamplingParams
        def used(n):
            llm = LLM(sys.argv[1], load_format="dummy", max_num_seqs=8, hf_overrides={
                "hidden_size": 512, "vocab_size": n, "max_position_embeddings": 4096})
            ids = {"prompt_token_ids": [i % n for i in range(4000)]}
            llm.generate([ids] * 4, SamplingParams(max_tokens=1, temperature=0))
            plan, stats, now = llm.plan(), llm.engine.stats(), rss()
            llm.close()
            return now, plan.weights + plan.workspace + plan.rope + stats["kv_bytes"]
        used(1000)
        gc.collect()
        before = rss()
        loaded, planned = used(150_000)
        gc.collect()
        print(json.dumps([before, loaded, rss(), planned]))
        """,
        wide,
        prelude=RSS,
    )
    assert planned > 150 * MIB
    assert loaded - before < planned + 24 * MIB
    assert after - before < 16 * MIB


@measures_memory
def test_close_gives_a_real_model_back(smollm2_path):
    before, loaded, after = run(
        """
        from llmaccel import LLM, SamplingParams
        def cycle():
            llm = LLM(sys.argv[1], max_model_len=512)
            llm.generate("The sea", SamplingParams(max_tokens=2, temperature=0))
            loaded = rss()
            llm.close()
            return loaded
        cycle()
        before = rss()
        print(json.dumps([before, cycle(), rss()]))
        """,
        smollm2_path,
        prelude=RSS,
    )
    assert loaded - before > 64 * MIB
    assert after - before < 16 * MIB


@measures_memory
@pytest.mark.parametrize("length", [3000, 40])
def test_no_memory_for_the_cache(wide, length):
    """A commit is refused under the cap: who is under way fails, whoever comes next does not.

    Long prompts fail where they grow, the short one where its branches copy their last page.
    """
    failed, same = run(
        """
        import logging, resource
        from llmaccel import LLM, LLMAccelError, SamplingParams
        logging.getLogger("llmaccel").setLevel(logging.CRITICAL)
        override = {"num_hidden_layers": 4, "num_key_value_heads": 8, "num_attention_heads": 8,
                    "head_dim": 128, "vocab_size": 512}
        llm = LLM(sys.argv[1], load_format="dummy", max_num_seqs=64, hf_overrides=override,
                  kv_cache_memory_bytes=1 << 30)
        def fresh(n, branches=1):
            params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, n=branches)
            return llm.submit({"prompt_token_ids": [n] * int(sys.argv[2])}, params)
        small = {"prompt_token_ids": [5] * 20}, SamplingParams(temperature=0, max_tokens=9)
        expected = llm.generate(*small)[0].outputs[0].token_ids
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_DATA, (reading("VmData") + (40 << 20), unlimited))
        failed = 0
        for future in [fresh(n, branches=64) for n in range(1, 4)]:
            try:
                future.result(timeout=60)
            except MemoryError as error:
                failed += "cannot commit" in str(error) and isinstance(error, LLMAccelError)
        same = [llm.generate(*small)[0].outputs[0].token_ids == expected]
        resource.setrlimit(resource.RLIMIT_DATA, (unlimited, unlimited))
        same += [len(fresh(n, 64).result(timeout=60).outputs) == 64 for n in range(1, 3)]
        same += [llm.generate(*small)[0].outputs[0].token_ids == expected]
        print(json.dumps([failed, same]))
        """,
        wide,
        length,
        prelude=RSS,
    )
    assert failed > 0
    assert same == [True] * 4


@measures_memory
def test_the_cache_shrinks_when_idle(wide):
    """Pages come as tokens arrive and go when the last request has ended."""
    idle, busy, later, committed = run(
        """
        from llmaccel import LLM, SamplingParams
        override = {"num_hidden_layers": 4, "num_key_value_heads": 8, "num_attention_heads": 8,
                    "head_dim": 128, "vocab_size": 512}
        llm = LLM(sys.argv[1], load_format="dummy", max_num_seqs=8, hf_overrides=override,
                  kv_cache_memory_bytes=1 << 30)
        one = {"prompt_token_ids": [5] * 10}
        short = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        llm.generate(one, short)
        idle = rss()
        futures = [llm.submit({"prompt_token_ids": [i] * 1500}, SamplingParams(
            max_tokens=400, temperature=0, ignore_eos=True)) for i in range(8)]
        import time
        while llm.engine.stats()["pages_used"] < 8 * 23:
            time.sleep(0.005)
        busy, committed = rss(), llm.engine.stats()["kv_bytes"]
        for future in futures:
            future.cancel()
        for future in futures:
            future.result()
        llm.generate(one, short)
        while llm.engine.stats()["pages_used"]:
            time.sleep(0.005)
        print(json.dumps([idle, busy, rss(), committed]))
        """,
        wide,
        prelude=RSS,
    )
    assert committed >= 8 * 23 * 64 * 4 * 2 * 8 * 128 * 2
    assert busy - idle > 150 * MIB
    assert later - idle < 24 * MIB
