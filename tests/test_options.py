"""Every engine argument of vLLM that scripts give, and ours: used, reported as without effect, or
refused by name."""

from __future__ import annotations

import dataclasses

import letters
import pytest
from letters import GREEDY, only

from llmaccel import (
    LLM,
    ConfigError,
    LoadError,
    RequestError,
    SamplingParams,
    UnsupportedError,
    load_tokenizer,
)
from llmaccel.options import COMPATIBLE, LoadOptions

USED = (
    *("model", "tokenizer", "skip_tokenizer_init", "revision", "tokenizer_revision", "dtype"),
    *("quantization", "load_format", "max_model_len", "max_num_seqs", "max_num_batched_tokens"),
    *("kv_cache_memory_bytes", "kv_cache_dtype", "scheduling_policy", "seed", "max_logprobs"),
    *("hf_overrides", "chat_template", "generation_config", "disable_log_stats", "isa", "threads"),
    *("activation", "backend", "fast_math", "logprobs_mode"),
)
# Name, a value that asks for nothing here, one that would ask for something (None: no value does).
REST = [
    ("tokenizer_mode", "auto", "slow"),
    ("trust_remote_code", True, None),
    ("gpu_memory_utilization", 0.9, None),
    ("block_size", 64, 16),
    ("enable_prefix_caching", False, True),
    ("prefix_caching_hash_algo", "sha256", None),
    ("enable_chunked_prefill", True, False),
    ("long_prefill_token_threshold", 0, 100),
    ("max_num_partial_prefills", 1, 2),
    ("max_long_partial_prefills", 1, 2),
    ("swap_space", 4, None),
    ("cpu_offload_gb", 0, 10),
    ("enforce_eager", True, None),
    ("compilation_config", {"level": 3}, None),
    ("speculative_config", None, {"method": "ngram"}),
    ("enable_lora", False, True),
    ("max_loras", 1, 4),
    ("max_lora_rank", 16, 64),
    ("tensor_parallel_size", 1, 2),
    ("pipeline_parallel_size", 1, 2),
    ("data_parallel_size", 1, 2),
    ("expert_parallel_size", 1, 2),
    ("enable_expert_parallel", False, True),
    ("tool_call_parser", None, "hermes"),
    ("reasoning_parser", "", "deepseek_r1"),
    ("kv_transfer_config", None, {"kv_connector": "x"}),
    ("weights_budget", None, "4GB"),
    ("kv_tiers", [], [("ram", "4GB")]),
    ("slo", None, {"ttft": 1.0}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"))


def test_the_table_knows_every_argument():
    fields = {field.name for field in dataclasses.fields(LoadOptions)} - {"compatible"}
    assert set(USED) == fields
    assert {name for name, _, _ in REST} <= set(COMPATIBLE)
    assert not fields & set(COMPATIBLE)


@pytest.mark.parametrize(("name", "idle", "asking"), REST, ids=[row[0] for row in REST])
def test_what_is_not_used(name, idle, asking):
    LoadOptions("m", compatible={name: idle}).check()
    if asking is None:
        assert COMPATIBLE[name] is None
        return
    with pytest.raises(UnsupportedError, match=f"^{name}="):
        LoadOptions("m", compatible={name: asking}).check()


def test_idle_arguments_are_reported(folder):
    idle = {name: value for name, value, _ in REST}
    with LLM(folder, **idle) as llm:
        assert llm.report()["no_effect"] == sorted(idle)
        used = llm.report()["options"]
        assert set(used) == set(USED) - {"model"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("skip_tokenizer_init", 1),
        ("tokenizer_revision", ""),
        ("max_logprobs", -2),
        ("max_logprobs", 1.5),
        ("scheduling_policy", "lifo"),
        ("disable_log_stats", "yes"),
        ("logprobs_mode", "cooked_logprobs"),
        ("logprobs_mode", None),
    ],
)
def test_bad_values_name_their_argument(name, value):
    with pytest.raises(ConfigError, match=f"^{name}="):
        LoadOptions("m", **{name: value}).check()


def test_skip_tokenizer_init(folder):
    with LLM(folder, skip_tokenizer_init=True) as llm:
        out = only(llm.generate([5, 6], GREEDY))
        assert out.text == ""
        assert len(out.token_ids) == 20
        with pytest.raises(LoadError, match="skip_tokenizer_init=True"):
            llm.generate("abc")
        llm.set_tokenizer(folder)
        again = only(llm.generate([5, 6], GREEDY))
        assert again.token_ids == out.token_ids
        assert again.text
        with pytest.raises(ConfigError, match="tokenizer=7"):
            llm.set_tokenizer(7)
        breaks = SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=["a"], max_tokens=1)
        llm.generate([5, 6], breaks)
        other = load_tokenizer(folder)
        other.token_bytes = lambda token: b""
        llm.set_tokenizer(other)
        with pytest.raises(RequestError, match="dry_sequence_breakers: no token contains 'a'"):
            llm.generate([5, 6], breaks)
    for name in ("tokenizer", "tokenizer_revision", "chat_template"):
        with pytest.raises(ConfigError, match=f"^{name}: skip_tokenizer_init"):
            LLM(folder, skip_tokenizer_init=True, **{name: "x"})


def test_tokenizer_revision(folder, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"^tokenizer_revision: the tokenizer is in no repository"
    ):
        LLM(folder, tokenizer_revision="main")
    asked = []

    def fetch(name, revision):
        asked.append((name, revision))
        return folder

    monkeypatch.setattr("llmaccel.hub.fetch_tokenizer", fetch)
    with LLM(folder, tokenizer="owner/name", tokenizer_revision="v2"):
        assert asked == [("owner/name", "v2")]


def test_max_logprobs(folder):
    with LLM(folder, max_logprobs=2) as llm:
        params = {"max_tokens": 1, "temperature": 0.0}
        assert len(only(llm.generate("a", SamplingParams(logprobs=2, **params))).logprobs[0]) == 2
        for name in ("logprobs", "prompt_logprobs"):
            for k in (3, -1):
                with pytest.raises(RequestError, match=f"^{name}={k}: max_logprobs=2"):
                    llm.generate("a", SamplingParams(**{name: k}, **params))


def test_scheduling_policy(folder):
    with LLM(folder, scheduling_policy="fcfs") as llm:
        llm.generate("a", GREEDY, priority=0)
        for call in (llm.generate, llm.submit):
            with pytest.raises(RequestError, match=r"^priority=1: scheduling_policy='fcfs'"):
                call("a", GREEDY, priority=1)
    with LLM(folder, scheduling_policy="priority") as llm:
        llm.generate("a", GREEDY, priority=1)


def test_disable_log_stats(folder):
    with LLM(folder, disable_log_stats=True) as llm:
        llm.generate("a", GREEDY)
        with pytest.raises(UnsupportedError, match="disable_log_stats=True"):
            llm.get_metrics()
