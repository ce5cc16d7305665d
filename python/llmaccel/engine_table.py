"""vLLM's engine arguments and ours: one row each, with vLLM's default and what is taken here.

Owns the table that `EngineArgs`, the check of `LLM` and the command line of vLLM's scripts are made
of. Invariant: a row says either that the argument is used (it is a field of `LoadOptions`, which
checks it), or which values ask for nothing here; all others are refused by name. Names that vLLM
had in earlier versions stay, since scripts do.

Called by options.py and engine_args.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmaccel.errors import UnsupportedError, shown

_NOTHING = (None, False, 0, "")
_CONTAINERS = (dict, list, tuple, set, frozenset)


class Argument(NamedTuple):
    """default: vLLM's, of a configuration object None. rule: "used"; "any": no value changes
    anything here; "off": a part that is not here, of which None, False, 0 and what is empty ask for
    nothing; "only": the default and what is taken. taken: values beside these that ask for nothing.
    kind: how the command line reads it. instead: what to do."""

    default: Any
    rule: str
    taken: tuple[Any, ...] = ()
    kind: str = "text"  # "whole", "number", "switch", "json", "words"
    instead: str = ""

    def is_default(self, value: Any) -> bool:
        """Whether it says what leaving it out says."""
        return _equal(value, self.default)

    def asks_nothing(self, value: Any) -> bool:
        """Whether nothing here would be different without it."""
        if self.rule == "any" or any(_equal(value, one) for one in (self.default, *self.taken)):
            return True
        empty = isinstance(value, _CONTAINERS) and not value
        return self.rule == "off" and (empty or any(_equal(value, one) for one in _NOTHING))


def _equal(value: Any, other: Any) -> bool:
    plain = isinstance(value, (numbers.Real, str, type(None), *_CONTAINERS))
    return value is other or (plain and value == other)


def _kind(default: Any) -> str:
    for kind, types in (("switch", bool), ("whole", int), ("number", float), ("json", dict)):
        if isinstance(default, types):
            return kind
    return "words" if isinstance(default, (list, tuple)) else "text"


def _rows(rule: str, *taken: Any, kind: str | None = None, **given: Any) -> dict[str, Argument]:
    """Rows of one rule: names and defaults."""
    return {
        name: Argument(default, rule, taken, kind or _kind(default))
        for name, default in given.items()
    }


def _instead(rule: str, default: Any, instead: str, *taken: Any) -> Argument:
    return Argument(default, rule, taken, _kind(default), instead)


_USED = {
    **_rows("used", model="Qwen/Qwen3-0.6B", dtype="auto", kv_cache_dtype="auto"),
    **_rows("used", tokenizer=None, revision=None, tokenizer_revision=None, quantization=None),
    **_rows("used", load_format="auto", generation_config="auto", scheduling_policy="fcfs"),
    **_rows("used", logprobs_mode="raw_logprobs"),
    **_rows("used", convert="auto", skip_tokenizer_init=False, disable_log_stats=False),
    **_rows("used", kind="whole", max_model_len=None, max_num_seqs=None, seed=0, max_logprobs=20),
    **_rows("used", kind="whole", max_num_batched_tokens=None, kv_cache_memory_bytes=None),
    **_rows("used", hf_overrides={}, override_generation_config={}),
    **_rows("used", kind="json", pooler_config=None, profiler_config=None),
    # ours
    **_rows("used", backend="cpu", activation="auto", isa=None, chat_template=None),
    **_rows("used", fast_math=False),
    **_rows("used", kind="whole", threads=None),
}

_LOADING = {
    **_rows("any", trust_remote_code=False, use_tqdm_on_load=True),
    **_rows("any", allow_deprecated_quantization=False),
    **_rows("any", code_revision=None, served_model_name=None, safetensors_load_strategy=None),
    **_rows("any", safetensors_prefetch_num_threads=8, safetensors_prefetch_block_size=16777216),
    **_rows("any", ignore_patterns=["original/**/*"], pt_load_map_location="cpu"),
    **_rows("any", kind="whole", max_parallel_loading_workers=None),
    **_rows("off", model_weights="", hf_config_path=None),
    **_rows("off", model_class_overrides={}, model_loader_extra_config={}),
    **_rows("off", kind="json", quantization_config=None),
    **_rows("only", "hf", None, tokenizer_mode="auto"),
    **_rows("only", "hf", None, config_format="auto"),
    **_rows("only", "vllm", None, model_impl="auto"),
    **_rows("only", "generate", "pooling", None, runner="auto"),
    **_rows("only", "auto", "generate", "embed", "embedding", "classify", "score", "reward"),
    "task": Argument(
        None, "only", ("auto", "generate", "embed", "embedding", "classify", "score", "reward")
    ),
    "device": _instead("only", "auto", "", None, "cpu"),
    "download_dir": _instead("off", None, "set HF_HUB_CACHE"),
    "hf_token": _instead("off", None, "set HF_TOKEN"),
    "rope_scaling": _instead("off", None, "give it in hf_overrides"),
    "rope_theta": _instead("off", None, "give it in hf_overrides"),
}  # fmt: skip

_PARALLEL = {
    **_rows("any", kind="json", distributed_executor_backend=None, compilation_config=None),
    **_rows("any", kind="json", attention_config=None, kernel_config=None, mamba_config=None),
    **_rows("any", kind="json", ir_op_priority=None, eplb_config=None, fault_tolerance_config=None),
    **_rows("any", kind="words", cudagraph_capture_sizes=None),
    **_rows("any", kind="whole", max_cudagraph_capture_size=None, distributed_timeout_seconds=None),
    **_rows("any", kind="whole", cpu_distributed_timeout_seconds=None, max_seq_len_to_capture=None),
    **_rows("any", kind="switch", disable_cascade_attn=None, async_scheduling=None),
    **_rows("any", kind="switch", enable_flashinfer_autotune=None),
    **_rows("any", kind="switch", enable_batch_sharded_sampling=None),
    **_rows("any", kind="switch", disable_nccl_for_dp_synchronization=None, dcp_q_replicate=None),
    **_rows("any", attention_backend=None, moe_backend="auto", linear_backend="auto"),
    **_rows("any", sparse_indexer_topk_backend="auto", all2all_backend="allgather_reducescatter"),
    **_rows("any", data_parallel_backend="mp", dcp_comm_backend=None, performance_mode="balanced"),
    **_rows("any", gdn_prefill_backend=None, kda_prefill_backend=None, kda_decode_backend=None),
    **_rows("any", enforce_eager=False, disable_custom_all_reduce=False),
    **_rows("any", enable_shm_tensor_arena=False),
    **_rows("any", optimization_level=2, master_addr="127.0.0.1", master_port=29501),
    **_rows("any", ubatch_size=0, dbo_decode_token_threshold=32, dbo_prefill_token_threshold=512),
    **_rows("any", dp_sync_interval=16, num_scheduler_steps=1, use_v2_block_manager=True),
    **_rows("any", expert_placement_strategy="linear", enable_cumem_allocator=False),
    **_rows("only", tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1),
    **_rows("only", expert_parallel_size=1, prefill_context_parallel_size=1, nnodes=1, node_rank=0),
    **_rows("only", decode_context_parallel_size=1, dcp_kv_cache_interleave_size=1),
    **_rows("only", kind="whole", cp_kv_cache_interleave_size=None, elastic_ep_max_dp_size=None),
    **_rows("only", kind="whole", data_parallel_rank=None, data_parallel_start_rank=None),
    **_rows("only", kind="whole", data_parallel_size_local=None, data_parallel_rpc_port=None),
    **_rows("only", worker_cls="auto", data_parallel_address=None),
    **_rows("off", data_parallel_hybrid_lb=False, data_parallel_external_lb=False),
    **_rows("off", data_parallel_multi_port_external_lb=False, enable_hc_sp=False),
    **_rows("off", enable_expert_parallel=False, enable_ep_weight_filter=False, enable_eplb=False),
    **_rows("off", enable_elastic_ep=False, enable_dbo=False, enable_fault_tolerance=False),
    **_rows("off", numa_bind=False, ray_workers_use_nsight=False, enable_nccl_comm_suspend=False),
    **_rows("off", kind="words", numa_bind_nodes=None, numa_bind_cpus=None, device_ids=None),
    **_rows("off", kind="json", weight_transfer_config=None),
    **_rows("off", worker_extension_cls=""),
}  # fmt: skip

_CACHE = {
    **_rows("any", gpu_memory_utilization=0.92, swap_space=4.0, prefix_caching_hash_algo="sha256"),
    **_rows("any", offload_group_size=0, offload_num_in_group=1, offload_prefetch_step=1),
    **_rows("any", prefix_cache_retention_interval=0, calculate_kv_scales=False),
    **_rows("any", kv_offloading_backend="native", mamba_cache_dtype="auto"),
    **_rows("any", mamba_ssm_cache_dtype="auto", mamba_cache_mode="none", mamba_backend="triton"),
    **_rows("any", mamba_ssu_algorithm=None, mamba_cache_philox_rounds=0, replayssm_buffer_len=16),
    **_rows("any", use_replayssm=False, enable_mamba_cache_stochastic_rounding=False),
    **_rows("any", enable_mamba_shared_prefix_checkpoint=False, swa_bounded_replay=True),
    **_rows("any", kind="whole", mamba_block_size=None, prefix_match_unit=None),
    **_rows("any", kind="switch", disable_hybrid_kv_cache_manager=None),
    **_rows("any", enable_sleep_mode=False, sleep_mode_offload_cudagraph=False),
    **_rows("any", sleep_preserve_parameter_names=[]),
    **_rows("only", 64, kind="whole", block_size=None),
    **_rows("only", "recompute", preemption_mode=None),
    **_rows("off", "auto", "uva", offload_backend="auto"),
    **_rows("off", cpu_offload_gb=0.0, kv_sharing_fast_prefill=False, disable_sliding_window=False),
    **_rows("off", kind="words", cpu_offload_params=set(), offload_params=set()),
    **_rows("off", kv_cache_dtype_skip_layers=[]),
    **_rows("off", kind="switch", enable_prefix_caching=None),
    **_rows("off", kind="number", kv_offloading_size=None),
    **_rows("off", kind="whole", num_gpu_blocks_override=None),
    **_rows("off", kind="json", kv_transfer_config=None, kv_events_config=None, kv_tiers=None),
    **_rows("off", kind="json", ec_transfer_config=None, ec_manager_config=None),
    **_rows("off", kind="json", engram_config=None),
    **_rows("off", weights_budget=None),
}  # fmt: skip

_SCHEDULING = {
    **_rows("any", scheduler_reserve_full_isl=True, prefill_schedule_interval=1, watermark=0.0),
    **_rows("any", long_prefill_token_threshold_adaptive=False, shutdown_timeout=0),
    **_rows("only", True, kind="switch", enable_chunked_prefill=None),
    **_rows("only", None, long_prefill_token_threshold=0, max_num_partial_prefills=1),
    **_rows("only", None, max_long_partial_prefills=1),
    "stream_interval": _instead("only", 1, "SamplingParams has it"),
    **_rows("off", kind="whole", max_num_scheduled_tokens=None, max_num_active_seqs=None),
    **_rows("off", kind="whole", max_num_queued_reqs=None, max_num_queued_tokens=None),
    **_rows("off", scheduler_cls=None, use_fp64_gumbel=False, enable_trace_replay=False),
    "logits_processors": _instead("off", None, "SamplingParams takes functions"),
    **_rows("off", kind="json", slo=None, aux_output_config=None),
    "enable_return_routed_experts": _instead(
        "off", False, "LLM.expert_load() counts the tokens of every expert"
    ),
    **_rows("off", return_sampling_mask=False),
    **_rows("off", kind="json", speculative_config=None, diffusion_config=None),
    **_rows("off", spec_method=None, spec_model=None, speculative_model=None),
    **_rows("off", kind="whole", spec_tokens=None, num_speculative_tokens=None),
    **_rows("off", kind="json", watermark_config=None, reasoning_config=None),
    **_rows("off", kind="json", structured_outputs_config=None),
    **_rows("off", "auto", guided_decoding_backend="auto"),
    **_rows("off", reasoning_parser="", reasoning_parser_plugin=None, tool_call_parser=None),
    **_rows("off", tokens_only=False),
}

_LORA = {
    **_rows("off", 1, max_loras=1),
    **_rows("off", 16, max_lora_rank=16),
    **_rows("off", enable_lora=False, fully_sharded_loras=False),
    **_rows("off", enable_tower_connector_lora=False, specialize_active_lora=False),
    **_rows("off", enable_mixed_moe_lora_format=False, enable_moe_shared_loras=False),
    **_rows("off", "auto", lora_dtype="auto"),
    **_rows("off", kind="whole", max_cpu_loras=None, max_lora_cls_labels=None),
    **_rows("off", kind="json", default_mm_loras=None),
    **_rows("off", kind="words", lora_target_modules=None),
}

_MEDIA = {
    **_rows("any", mm_processor_cache_gb=4.0, mm_processor_cache_type="lru"),
    **_rows("any", mm_hasher_algorithm="blake3", mm_shm_cache_max_object_size_mb=128),
    **_rows("any", mm_encoder_tp_mode="weights", mm_tensor_ipc="direct_rpc"),
    **_rows("any", video_pruning_method="evs"),
    **_rows("any", mm_processor_device="auto", mm_ipc_gpu_memory_gb=0.0, renderer_num_workers=1),
    **_rows("any", mm_encoder_attn_backend=None, mm_encoder_attn_dtype=None),
    **_rows("any", mm_encoder_fp8_scale_save_margin=1.5, mm_device_do_normalize=True),
    **_rows("any", skip_mm_profiling=False, disable_chunked_mm_input=False),
    **_rows("any", language_model_only=False),
    **_rows("off", allowed_local_media_path="", io_processor_plugin=None),
    **_rows("off", kind="words", allowed_media_domains=None),
    **_rows("off", mm_encoder_fp8_scale_path=None, mm_encoder_fp8_scale_save_path=None),
    **_rows("off", limit_mm_per_prompt={}, media_io_kwargs={}),
    **_rows("off", kind="json", mm_processor_kwargs=None),
    **_rows("off", kind="number", video_pruning_rate=None),
    **_rows("off", enable_mm_embeds=False, interleave_mm_strings=False, mm_encoder_only=False),
    **_rows("off", enable_prompt_embeds=False),
}  # fmt: skip

_WATCHING = {
    **_rows("any", aggregate_engine_logging=False, log_level=None, enable_mm_processor_stats=False),
    **_rows("any", kv_cache_metrics=False, kv_cache_metrics_sample=0.01, cudagraph_metrics=False),
    **_rows("any", enable_layerwise_nvtx_tracing=False, enable_mfu_metrics=False),
    **_rows("any", enable_logging_iteration_details=False, jit_monitor_verbose=False),
    **_rows("any", jit_monitor_mode="warn", fail_on_environ_validation=False),
    **_rows("any", additional_config={}, disable_log_requests=True),
    **_rows("off", "none", per_request_spec_decode_metrics="none"),
    **_rows("off", show_hidden_metrics_for_version=None, otlp_traces_endpoint=None),
    **_rows("off", kind="words", collect_detailed_traces=None),
    **_rows("off", kind="json", custom_histogram_buckets=None, logging_config=None),
    **_rows("off", log_config_file=None),
}

ASYNC_ARGUMENTS = _rows("any", enable_log_requests=False)
"""Of AsyncEngineArgs alone."""
ENGINE_ARGUMENTS: Mapping[str, Argument] = {
    **_USED, **_LOADING, **_PARALLEL, **_CACHE, **_SCHEDULING, **_LORA, **_MEDIA, **_WATCHING
}  # fmt: skip
"""Of EngineArgs."""
ARGUMENTS: Mapping[str, Argument] = {**ENGINE_ARGUMENTS, **ASYNC_ARGUMENTS}


def check_unused(name: str, value: Any, backends: tuple[str, ...]) -> None:
    """UnsupportedError where an argument without a use here asks for something."""
    row = ARGUMENTS[name]
    if row.asks_nothing(value):
        return
    instead = f"; {row.instead}" if row.instead else ""
    if row.rule == "off":
        raise UnsupportedError(f"{name}={shown(value)}: not supported by this version{instead}")
    known = " or ".join(map(repr, dict.fromkeys((row.default, *row.taken))))
    if name == "device" and isinstance(value, str) and value in backends:
        instead = f"; give backend={value!r}"
    raise UnsupportedError(f"{name}={shown(value)}: this version has {known} only{instead}")
