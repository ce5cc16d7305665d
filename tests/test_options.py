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
from llmaccel.engine_table import ARGUMENTS
from llmaccel.options import LoadOptions, options_of

USED = (
    *("model", "tokenizer", "skip_tokenizer_init", "revision", "tokenizer_revision", "dtype"),
    *("quantization", "load_format", "max_model_len", "max_num_seqs", "max_num_batched_tokens"),
    *("kv_cache_memory_bytes", "kv_cache_dtype", "scheduling_policy", "seed", "max_logprobs"),
    *("hf_overrides", "chat_template", "generation_config", "disable_log_stats", "isa", "threads"),
    *("activation", "backend", "fast_math", "override_generation_config", "convert"),
    *("pooler_config", "profiler_config", "logprobs_mode"),
)
# Name, a value that asks for nothing here, one that would ask for something (None: no value does):
# arguments that scripts give, in the spellings that they give them.
REST = [
    ("tokenizer_mode", "auto", "slow"),
    ("trust_remote_code", True, None),
    ("gpu_memory_utilization", 0.9, None),
    ("block_size", 64, 16),
    ("enable_prefix_caching", False, True),
    ("prefix_caching_hash_algo", "xxhash", None),
    ("enable_chunked_prefill", True, False),
    ("long_prefill_token_threshold", 0, 100),
    ("max_num_partial_prefills", 1, 2),
    ("max_long_partial_prefills", 1, 2),
    ("swap_space", 8, None),
    ("cpu_offload_gb", 0, 10),
    ("enforce_eager", True, None),
    ("compilation_config", {"level": 3}, None),
    ("speculative_config", {}, {"method": "ngram"}),
    ("enable_lora", 0, True),
    ("max_loras", 1, 4),
    ("max_lora_rank", 16, 64),
    ("tensor_parallel_size", 1, 2),
    ("pipeline_parallel_size", 1, 2),
    ("data_parallel_size", 1, 2),
    ("expert_parallel_size", 1, 2),
    ("enable_expert_parallel", False, True),
    ("tool_call_parser", "", "hermes"),
    ("reasoning_parser", "", "deepseek_r1"),
    ("kv_transfer_config", {}, {"kv_connector": "x"}),
    ("weights_budget", None, "4GB"),
    ("kv_tiers", [], [("ram", "4GB")]),
    ("slo", None, {"ttft": 1.0}),
    ("attention_config", {"backend": "FLASH_ATTN"}, None),
    ("attention_backend", "FLASHINFER", None),
    ("kernel_config", {}, None),
    ("additional_config", {"x": 1}, None),
    ("model_impl", "vllm", "transformers"),
    ("stream_interval", 1, 8),
    ("use_tqdm_on_load", False, None),
    ("disable_sliding_window", False, True),
    ("enable_prompt_embeds", False, True),
    ("hf_config_path", "", "elsewhere"),
    ("worker_cls", "auto", "mine.Worker"),
    ("max_cpu_loras", 0, 4),
    ("calculate_kv_scales", True, None),
    ("otlp_traces_endpoint", "", "http://localhost:4317"),
    ("collect_detailed_traces", [], ["all"]),
    ("show_hidden_metrics_for_version", "", "0.7"),
    ("ignore_patterns", "*.bin", None),
    ("enable_return_routed_experts", False, True),
    ("numa_bind", False, True),
    ("mamba_ssm_cache_dtype", "float32", None),
    ("preemption_mode", "recompute", "swap"),
    ("num_scheduler_steps", 8, None),
    ("use_v2_block_manager", False, None),
    ("enable_log_requests", True, None),
    ("disable_log_requests", False, None),
    ("runner", "pooling", "draft"),
    ("task", "embed", "transcription"),
    ("device", "cpu", "cuda"),
    ("logits_processors", [], ["x"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"))


def test_the_table_knows_every_argument():
    fields = {field.name for field in dataclasses.fields(LoadOptions)} - {"compatible"}
    assert set(USED) == fields
    assert {name for name, row in ARGUMENTS.items() if row.rule == "used"} == fields
    assert {name for name, _, _ in REST} <= set(ARGUMENTS)


@pytest.mark.parametrize(("name", "idle", "asking"), REST, ids=[row[0] for row in REST])
def test_what_is_not_used(name, idle, asking):
    options = LoadOptions("m", compatible={name: idle})
    options.check()
    assert options.idle() == ([] if ARGUMENTS[name].is_default(idle) else [name])
    if asking is None:
        assert ARGUMENTS[name].rule == "any"
        return
    with pytest.raises(UnsupportedError, match=f"^{name}="):
        LoadOptions("m", compatible={name: asking}).check()


# Of each kind of value one that no row takes.
ASKING = {
    "switch": True,
    "whole": 7,
    "number": 7.5,
    "json": {"a": 1},
    "words": ["a"],
    "text": "x y",
}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_every_row(name):
    """vLLM's default is taken and says nothing; another value does what the row's rule says."""
    row = ARGUMENTS[name]
    assert row.kind in ASKING
    if row.rule == "used":
        options_of({"model": "m", name: row.default}).check()
        return
    default = LoadOptions("m", compatible={name: row.default})
    default.check()
    assert default.idle() == []
    other = ASKING[row.kind] if row.default is not True else False
    if name == "gpu_memory_utilization":
        other = 0.5
    changed = LoadOptions("m", compatible={name: other})
    if row.rule == "any" or other in row.taken:
        changed.check()
        assert changed.idle() == [name]
        return
    with pytest.raises(UnsupportedError, match=f"^{name}="):
        changed.check()


def test_idle_arguments_are_reported(folder):
    idle = {name: value for name, value, _ in REST}
    with LLM(folder, **idle) as llm:
        changed = [name for name, value in idle.items() if value != ARGUMENTS[name].default]
        assert llm.report()["no_effect"] == sorted(changed)
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


def test_override_generation_config(folder, tmp_path):
    file = {"temperature": 0.5, "top_k": 7, "eos_token_id": 9}
    over = {"temperature": 0.25, "max_new_tokens": 3, "repetition_penalty": 1.5}
    with LLM(folder, generation_config=file, override_generation_config=over) as llm:
        params = llm.get_default_sampling_params()
        assert (params.temperature, params.top_k, params.max_tokens) == (0.25, 7, 3)
        assert params.repetition_penalty == 1.5
        assert 9 in llm.report()["model"]["stop_token_ids"]
        assert len(only(llm.generate("a")).token_ids) <= 3
    with LLM(folder, generation_config="vllm", override_generation_config={"top_p": 0.5}) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(top_p=0.5)
    with pytest.raises(ConfigError, match=r"override_generation_config: top_p must be in 0\.\.1"):
        LLM(folder, override_generation_config={"top_p": 2.0})


def test_lengths_as_people_write_them(folder):
    for given, length in (("1k", 1000), ("1K", 1024), ("2.5k", 2500), ("512", 512)):
        assert LoadOptions("m", max_model_len=given).max_model_len == length
    for given in (-1, "auto", None):
        with LLM(folder, max_model_len=given) as llm:
            assert llm.plan().max_model_len == 160
    limits = {"max_num_seqs": None, "max_num_batched_tokens": None}
    with LLM(folder, max_model_len="0.1k", **limits) as llm:
        plan = llm.plan()
        assert (plan.max_model_len, plan.max_num_seqs) == (100, 64)
        assert plan.max_num_batched_tokens == 512


def test_profiler_config(folder, tmp_path):
    place = tmp_path / "made" / "here"
    with LLM(
        folder, profiler_config={"profiler": "torch", "torch_profiler_dir": str(place)}
    ) as llm:
        llm.start_profile(profile_prefix="mine")
        llm.generate("a", GREEDY)
        path = llm.stop_profile()
        assert path.parent == place
        assert path.name.startswith("mine-")
        assert "forward" in path.read_text()
        with pytest.raises(UnsupportedError, match="max_iterations"):
            llm.start_profile(max_iterations=3)
