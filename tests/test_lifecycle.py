"""The life of an LLM: options, sources of weights, memory, sharing, fork, and the end."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import weakref

import letters
import numpy as np
import pytest
import tiny
import tiny_gguf
from letters import COMMON, GREEDY, only

import llmaccel
from llmaccel import (
    LLM,
    ConfigError,
    LLMAccelError,
    LoadError,
    MemoryPlanError,
    SamplingParams,
    UnsupportedError,
    _core,
    config,
    memory,
)
from llmaccel.loading import load_weights, prepare
from llmaccel.models.mapping import build_config
from llmaccel.options import _COUNTS, LoadOptions
from llmaccel.params import REPETITION_PENALTIES

LONG = SamplingParams(max_tokens=10_000, **COMMON)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(str(folder), max_num_seqs=8, max_num_batched_tokens=64) as llm:
        yield llm


# ---- construction -------------------------------------------------------------------------------


def test_from_arrays_equals_the_files(folder, llm):
    arrays = tiny.arrays_of(tiny.config_of("llama", max_position_embeddings=1024), 3)
    config = tiny.config_of("llama", max_position_embeddings=1024)
    expected = np.asarray(llm.logits([1, 40, 50, 60]))
    with LLM.from_arrays(config, arrays, max_num_seqs=8, max_num_batched_tokens=64) as other:
        np.testing.assert_array_equal(np.asarray(other.logits([1, 40, 50, 60])), expected)
        with pytest.raises(LoadError, match="tokenizer"):
            other.generate("text", GREEDY)
        assert only(other.generate([1, 5], GREEDY)).text == ""
    with LLM.from_arrays(folder / "config.json", arrays, tokenizer=str(folder)) as other:
        assert only(other.generate("abc", GREEDY)).text == only(llm.generate("abc", GREEDY)).text
    arrays.pop("model.norm.weight")
    with pytest.raises(LoadError, match=r"model\.norm\.weight"):
        LLM.from_arrays(config, arrays)
    with pytest.raises(ConfigError, match=r"'x'"):
        LLM.from_arrays(config, {"x": [1, 2]})
    with pytest.raises(ConfigError, match="revision='main'"):
        LLM.from_arrays(config, arrays, revision="main")


def test_ranges_are_the_cores(folder, llm):
    """The largest counts pass the core's plan, one more does not; penalties of both ends run."""
    prepared = prepare(LoadOptions(folder))
    largest = {name: most for name, _, most, _ in _COUNTS}
    limits = {"max_seqs": 1, "max_len": 64, "kv_pages": 1, "max_batch_tokens": 1}
    names = {"max_seqs": "max_num_seqs", "max_batch_tokens": "max_num_batched_tokens"}
    for field, name in names.items():
        _core.plan(vars(prepared.config), {**limits, field: largest[name]}, 1)
        with pytest.raises(ConfigError, match=name):
            _core.plan(vars(prepared.config), {**limits, field: largest[name] + 1}, 1)
    for end in REPETITION_PENALTIES:
        params = SamplingParams(temperature=0, max_tokens=2, repetition_penalty=end, **COMMON)
        assert len(only(llm.generate("abc", params)).token_ids) == 2


@pytest.mark.torch
def test_from_torch_tensors():
    torch = pytest.importorskip("torch")
    config = tiny.config_of("llama")
    arrays = tiny.arrays_of(config, 3)
    there = {k: torch.from_numpy(v).to(torch.bfloat16).requires_grad_() for k, v in arrays.items()}
    rounded = {k: v.detach().float().numpy() for k, v in there.items()}
    with (
        LLM.from_arrays(config, there, dtype="float32") as a,
        LLM.from_arrays(config, rounded) as b,
    ):
        expected = np.asarray(b.logits([1, 2, 3]))
        np.testing.assert_array_equal(np.asarray(a.logits([1, 2, 3])), expected)
    with LLM.from_arrays(config, there) as c:
        assert c.report()["model"]["dtype"] == "bfloat16"
        assert torch.from_dlpack(c.logits([1, 2, 3])).shape == (3, letters.VOCAB)


def test_dummy_weights(tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps(tiny.config_of("llama")))
    with pytest.raises(LoadError, match="safetensors"):
        LLM(str(tmp_path))
    seen = [
        np.asarray(LLM(str(tmp_path), load_format="dummy", seed=seed).logits([3, 4, 5]))
        for seed in (1, 1, 2)
    ]
    assert np.isfinite(seen[0]).all()
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.abs(seen[0] - seen[2]).max() > 0


def test_gguf(tmp_path, folder):
    pytest.importorskip("gguf")
    source = tiny.make_checkpoint("llama", tmp_path / "hf", seed=3)
    path = tmp_path / "model.gguf"
    tiny_gguf.make_gguf("llama", source, path)
    ids = [1, 40, 50, 60]
    with LLM(path) as a, LLM(tmp_path / "hf") as b, LLM(tmp_path, load_format="gguf") as c:
        np.testing.assert_allclose(np.asarray(a.logits(ids)), np.asarray(b.logits(ids)), atol=1e-4)
        assert c.report()["model"]["path"] == str(path)
    with LLM(path, tokenizer=folder) as a:
        assert a.get_tokenizer().vocab_size > 0
    with pytest.raises(ConfigError, match="dummy"):
        LLM(path, load_format="dummy")


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_file_cut_while_it_is_loaded(tmp_path, kind):
    """Reading beyond the end of a mapped file would end the process."""
    path = tiny.make_checkpoint("llama", tmp_path / "hf", seed=3)
    cut = path / "model.safetensors"
    if kind == "gguf":
        pytest.importorskip("gguf")
        cut = path = tiny_gguf.make_gguf("llama", path, tmp_path / "model.gguf")
    packed = []

    class Model:
        def set(self, slot, layer, parts, expert):
            packed.append(slot)
            if len(packed) == 3:
                os.truncate(cut, cut.stat().st_size // 2)

        def finish(self):
            pytest.fail("finished a model whose file is not whole")

    with pytest.raises(LoadError, match=r"tensor '\S+': the file has been cut from \d+ to \d+"):
        load_weights(Model(), prepare(LoadOptions(path)))
    assert len(packed) == 3


def test_generation_config(folder, tmp_path):
    import json
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(
        json.dumps({"temperature": 0.5, "top_k": 7, "max_new_tokens": 33, "eos_token_id": [2, 9]})
    )
    with LLM(copy) as llm:
        params = llm.get_default_sampling_params()
        assert (params.temperature, params.top_k, params.max_tokens) == (0.5, 7, 33)
        assert llm.report()["model"]["stop_token_ids"] == [2, 9]
        assert len(only(llm.generate("abc")).token_ids) <= 33
    with LLM(copy, generation_config="vllm") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()
    with LLM(copy, generation_config={"do_sample": False}) as llm:
        assert llm.get_default_sampling_params().temperature == 0.0
    with pytest.raises(LoadError, match="generation_config"):
        LLM(copy, generation_config=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"dtype": "float8"}, ConfigError, "dtype"),
        ({"dtype": None}, ConfigError, "dtype"),
        ({"quantization": "int3"}, UnsupportedError, "quantization='int3'.*int8, w4g128"),
        ({"quantization": ["int8"]}, ConfigError, "quantization="),
        ({"quantization": ""}, ConfigError, "quantization=''"),
        ({"quantization": np.array(["int8", "fp8"])}, ConfigError, "quantization="),
        ({"quantization": "fp8", "activation": "int8"}, ConfigError, "activation='int8'"),
        ({"quantization": "int8", "dtype": "float32"}, ConfigError, "dtype='float32'"),
        ({"quantization": "gguf"}, ConfigError, "quantization"),
        ({"activation": "int4"}, ConfigError, "activation"),
        ({"activation": "int8"}, ConfigError, "activation"),
        ({"activation": "bf16"}, ConfigError, "activation"),
        ({"kv_cache_dtype": "int4"}, UnsupportedError, "kv_cache_dtype='int4'.*fp8"),
        ({"kv_cache_dtype": "half"}, UnsupportedError, "kv_cache_dtype='float16'"),
        ({"kv_cache_dtype": "fp8_e5m2"}, UnsupportedError, "kv_cache_dtype='fp8_e5m2'"),
        ({"kv_cache_dtype": None}, ConfigError, "kv_cache_dtype=None"),
        ({"kv_cache_dtype": np.zeros(2)}, ConfigError, "kv_cache_dtype="),
        ({"kv_cache_memory_bytes": 1.5}, ConfigError, "kv_cache_memory_bytes"),
        ({"max_model_len": 0}, ConfigError, "max_model_len"),
        ({"max_model_len": "many"}, ConfigError, "max_model_len"),
        ({"max_num_seqs": 0}, ConfigError, "max_num_seqs"),
        ({"max_num_batched_tokens": -1}, ConfigError, "max_num_batched_tokens"),
        ({"max_num_seqs": 70_000}, ConfigError, "max_num_seqs=70000.*from 1 to 65536"),
        ({"max_model_len": "2.5K"}, ConfigError, "max_model_len='2.5K'"),
        ({"max_model_len": -2}, ConfigError, "max_model_len=-2"),
        ({"max_model_len": 1025}, ConfigError, "max_model_len=1025: .* made for 1024 pos"),
        ({"gpu_memory_utilization": 0}, ConfigError, "gpu_memory_utilization=0: .*above 0"),
        ({"gpu_memory_utilization": 1.5}, ConfigError, "gpu_memory_utilization=1.5"),
        ({"load_format": "gguf"}, LoadError, "load_format='gguf': .*no .gguf file"),
        ({"convert": "pool"}, ConfigError, "convert='pool'"),
        ({"convert": "classify"}, UnsupportedError, "convert='classify': .*score.weight"),
        ({"pooler_config": {"pooling": "LAST"}}, ConfigError, "pooler_config: 'pooling'"),
        ({"pooler_config": {"pooling_type": "STEP"}}, UnsupportedError, "pooling_type='STEP'"),
        ({"profiler_config": {"profiler": "cuda"}}, UnsupportedError, "profiler='cuda'"),
        ({"profiler_config": "torch"}, ConfigError, "profiler_config='torch'"),
        ({"override_generation_config": {"top": 1}}, ConfigError, "'top' is no key"),
        ({"override_generation_config": {"max_tokens": 1}}, ConfigError, "max_new_tokens"),
        ({"hf_overrides": lambda config: 3}, ConfigError, "hf_overrides: expected a dict from"),
        ({"max_model_len": 1 << 29}, ConfigError, "max_model_len=536870912.*from 1 to 16777216"),
        ({"threads": -1}, ConfigError, "threads"),
        ({"threads": True}, ConfigError, "threads"),
        ({"threads": 2**40}, ConfigError, "threads=.*from 1 to 1024"),
        ({"isa": 5}, ConfigError, "isa=5"),
        ({"isa": ""}, ConfigError, "isa=''"),
        ({"isa": "avx2\0"}, ConfigError, "isa="),
        ({"tokenizer": "9" * 5000}, LoadError, "tokenizer '999"),
        ({"chat_template": "9" * 5000}, ConfigError, "chat_template: '999"),
        ({"generation_config": "9" * 5000}, LoadError, "generation_config='999"),
        ({"max_num_seqs": 10**5000}, ConfigError, "max_num_seqs=a value of type int"),
        ({"max_num_seqs": np.int64(0)}, ConfigError, "max_num_seqs=0"),
        ({"block_size": np.array([64, 64])}, UnsupportedError, "block_size"),
        ({"generation_config": np.zeros(2)}, ConfigError, "generation_config"),
        ({"seed": 2**64}, ConfigError, "seed=.*from 0 to"),
        ({"isa": "sse9"}, LLMAccelError, "sse9"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"load_format": "pickle"}, ConfigError, "load_format"),
        ({"generation_config": 5}, ConfigError, "generation_config"),
        ({"hf_overrides": [1]}, ConfigError, "hf_overrides"),
        ({"hf_overrides": {"architectures": ["Nope"]}}, UnsupportedError, "Nope"),
        ({"fast_math": True}, UnsupportedError, "fast_math"),
        ({"revision": "main"}, ConfigError, "revision"),
        ({"tokenizer": 5}, ConfigError, "tokenizer"),
        ({"tokenizer": "/nowhere/at/all"}, LoadError, "nowhere"),
        ({"tensor_parallel_size": 2}, UnsupportedError, "tensor_parallel_size"),
        ({"enable_prefix_caching": True}, UnsupportedError, "enable_prefix_caching"),
        ({"device": "cuda"}, UnsupportedError, "device='cuda'.*'cpu'"),
        ({"enable_lora": True}, UnsupportedError, "enable_lora=True: not supported"),
        ({"max_loras": 2}, UnsupportedError, "max_loras=2: not supported"),
        ({"logits_processors": ["x"]}, UnsupportedError, "logits_processors=.*: not supported"),
        ({"tensor_parallel_size": []}, UnsupportedError, "tensor_parallel_size=.*: this version"),
        ({"speculative_config": {"model": "x"}}, UnsupportedError, "speculative_config="),
        ({"rope_theta": 1e6}, UnsupportedError, "rope_theta=.*hf_overrides"),
        ({"max_num_sequences": 3}, TypeError, "max_num_sequences'; did you mean max_num_seqs"),
        ({"n_ctx": 512}, TypeError, "'n_ctx'; did you mean max_model_len"),
        ({"n_threads": 2}, TypeError, "'n_threads'; did you mean threads"),
        ({"torch_dtype": "auto"}, TypeError, "'torch_dtype'; did you mean dtype"),
        ({"model_max_len": 9}, TypeError, "'model_max_len'; did you mean max_model_len"),
        ({"mlock": True}, TypeError, "'mlock'$"),
    ],
)
def test_a_bad_option_names_itself(folder, options, error, name):
    with pytest.raises(error, match=name):
        LLM(str(folder), **options)


def test_an_unknown_architecture_comes_before_missing_weights(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny.config_of("llama")))
    with pytest.raises(LoadError, match=r"no \.safetensors file, only pickled weights \(\.bin\)"):
        LLM(tmp_path)
    with pytest.raises(UnsupportedError, match="architecture 'Nope' is not supported"):
        LLM(tmp_path, hf_overrides={"architectures": ["Nope"]})
    config.write_text(json.dumps({"architectures": ["Else"], "model_type": "else"}))
    with pytest.raises(UnsupportedError, match=f"{tmp_path}: architecture 'Else' is not supported"):
        LLM(tmp_path)


@pytest.mark.parametrize("model", ["/nowhere/model", "./nope.gguf", "", None, 7, "/model" * 999])
def test_a_missing_model_is_named(model):
    with pytest.raises((LoadError, ConfigError), match=r"nowhere|nope|model"):
        LLM(model)


@pytest.mark.parametrize("bad", [None, 3, "", b"x", ["x"], np.zeros(2)])
def test_what_is_no_path_is_named(bad):
    with pytest.raises(ConfigError, match="path: expected a path or a model name"):
        llmaccel.load_tokenizer(bad)
    with pytest.raises(ConfigError, match="config: expected a dict or a path"):
        LLM.from_arrays(bad, {})


def test_report_and_plan(folder):
    options = {"enforce_eager": True, "gpu_memory_utilization": 0.9, "enable_lora": False}
    options |= {"logits_processors": [], "limit_mm_per_prompt": {}, "rope_scaling": {}}
    options |= {"max_loras": 1, "max_lora_rank": 16, "guided_decoding_backend": "auto"}
    with LLM(str(folder), **options) as llm:
        report = llm.report()
        changed = ["enforce_eager", "gpu_memory_utilization", "logits_processors", "rope_scaling"]
        assert report["no_effect"] == changed  # the others say what vLLM's defaults say
        assert report["model"]["n_vocab"] == letters.VOCAB
        assert report["options"]["max_num_seqs"] == 64
        plan = llm.plan()
        assert report["memory"]["weight_bytes"] == plan.weights
        assert report["memory"]["rope_bytes"] == plan.rope > 0
        assert 0 < report["memory"]["token_bytes"] <= plan.weights
        assert plan.required <= plan.total <= plan.available
        assert "KV cache" in str(plan)
        only(llm.generate("abc", GREEDY))
        after = llm.report()["stats"]
        assert after["pages_committed"] < plan.kv_pages
        assert after["output_tokens"] == 20


def test_environment(folder, monkeypatch):
    monkeypatch.setenv("LLMACCEL_NUM_THREADS", "1")
    with LLM(str(folder)) as llm:
        assert llm.report()["backend"]["n_threads"] == 1
    with LLM(str(folder), threads=1000) as llm:
        info = llm.report()["backend"]
        assert info["n_asked"] == 1000
        assert info["n_threads"] == info["n_cpus"]
    for wrong in ("two", "1025", "9" * 5000):
        monkeypatch.setenv("LLMACCEL_NUM_THREADS", wrong)
        with pytest.raises(ConfigError, match=r"LLMACCEL_NUM_THREADS.*from 0 to 1024"):
            LLM(str(folder))
    monkeypatch.delenv("LLMACCEL_NUM_THREADS")
    monkeypatch.setenv("LLMACCEL_ISA", "scalar")
    with LLM(str(folder)) as llm:
        assert llm.report()["backend"]["isa"] == "scalar"
    monkeypatch.setenv("LLMACCEL_ISA", "sse9")
    with pytest.raises(ConfigError, match=r"LLMACCEL_ISA: .*'sse9'"):
        LLM(str(folder))
    monkeypatch.setenv("LLMACCEL_LOG", "loud")
    with pytest.raises(ConfigError, match="LLMACCEL_LOG"):
        LLM(str(folder))
    level = logging.getLogger("llmaccel").level
    assert level == logging.NOTSET


def test_silent_by_default(folder):
    code = f"from llmaccel import LLM; LLM({str(folder)!r}).generate('abc')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == ""
    assert done.stderr == ""


def test_progress_bar_on_demand(llm, capsys):
    llm.generate(["abc", "def"], GREEDY, use_tqdm=True)
    assert "Generating" in capsys.readouterr().err
    llm.generate(["abc", "def"], GREEDY)
    assert capsys.readouterr().err == ""


# ---- memory -------------------------------------------------------------------------------------


def test_plan_that_does_not_fit(folder, monkeypatch):
    long = {"hf_overrides": {"max_position_embeddings": 1 << 20}}
    for available in (40 << 20, 4 << 20, 1 << 20, 100_000):
        monkeypatch.setattr(memory, "available_memory", lambda n=available: (n, "a test"))
        with pytest.raises(MemoryPlanError, match="does not fit") as caught:
            LLM(str(folder), **long, max_model_len=1 << 20, max_num_seqs=512)
        message = str(caught.value)
        assert "a test" in message
        assert "weights" in message
        assert isinstance(caught.value, MemoryError)
        if "would fit: max_model_len=" in message:
            length = int(message.partition("would fit: max_model_len=")[2].split()[0])
            plan = LLM(str(folder), **long, max_model_len=length, max_num_seqs=512).plan()
            assert plan.required <= available
            with pytest.raises(MemoryPlanError):
                LLM(str(folder), **long, max_model_len=length + 64, max_num_seqs=512)
            with LLM(str(folder), **long, max_model_len="auto", max_num_seqs=512) as llm:
                assert llm.plan().max_model_len == length


def test_a_cap_of_the_cache(folder):
    with LLM(str(folder), max_model_len=640, kv_cache_memory_bytes=1 << 20) as llm:
        assert llm.plan().kv_bytes <= 1 << 20
        assert llm.engine.stats()["pages_cap"] == llm.plan().kv_pages
        params = SamplingParams(seed=2, max_tokens=30, **COMMON)
        texts = [o.outputs[0].text for o in llm.generate([f"p{i}" for i in range(20)], params)]
        assert len(texts) == 20
    with pytest.raises(MemoryPlanError, match="kv_cache_memory_bytes"):
        LLM(str(folder), max_model_len=640, kv_cache_memory_bytes=10_000)


def test_a_cap_beyond_what_there_is(folder, monkeypatch):
    with LLM(str(folder), max_model_len=640) as llm:
        plan = llm.plan()
    available = plan.required + 3 * plan.kv_page_bytes + 100
    monkeypatch.setattr(memory, "available_memory", lambda: (available, "a test"))
    cap = plan.kv_sequence_bytes + 50 * plan.kv_page_bytes
    with pytest.raises(MemoryPlanError, match=f"kv_cache_memory_bytes={cap}: .*a test") as caught:
        LLM(str(folder), max_model_len=640, kv_cache_memory_bytes=cap)
    fits = int(str(caught.value).rpartition("=")[2])
    assert plan.kv_sequence_bytes < fits < cap
    with LLM(str(folder), max_model_len=640, kv_cache_memory_bytes=fits) as llm:
        assert available - plan.kv_page_bytes < llm.plan().total <= available
    with LLM(str(folder), max_model_len=640) as llm:
        assert llm.plan().total <= available


def test_logits_that_do_not_fit(llm, monkeypatch):
    n_bytes = 100 * letters.VOCAB * 4
    monkeypatch.setattr(memory, "available_memory", lambda: (n_bytes, "a test"))
    assert llm.logits([5] * 100).nbytes == n_bytes
    before = llm.engine.stats()["prompt_tokens"]
    with pytest.raises(MemoryPlanError, match=f"101 positions and {letters.VOCAB} tokens.*a test"):
        llm.logits([5] * 101)
    assert llm.engine.stats()["prompt_tokens"] == before


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cgroup_limits(tmp_path):
    write(tmp_path / "proc/meminfo", "MemTotal: 999 kB\nMemAvailable:    8000 kB\n")
    assert memory.available_memory(tmp_path) == (8000 * 1024, "MemAvailable")
    # Version 2: the parent's limit counts too, file cache does not.
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path / "sys/fs/cgroup/a/b/memory.max", "max\n")
    write(tmp_path / "sys/fs/cgroup/a/memory.max", "5000000\n")
    write(tmp_path / "sys/fs/cgroup/a/memory.current", "4000000\n")
    write(tmp_path / "sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 1000000\nactive_file 5")
    assert memory.available_memory(tmp_path)[0] == 2_000_005
    assert "cgroup" in memory.available_memory(tmp_path)[1]
    # Version 1.
    write(tmp_path / "proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/docker/1\n")
    base = tmp_path / "sys/fs/cgroup/memory"
    write(base / "memory.limit_in_bytes", "3000000\n")
    write(base / "memory.usage_in_bytes", "1000000\n")
    assert memory.available_memory(tmp_path)[0] == 2_000_000


def test_cgroup_processors(tmp_path):
    root, groups = str(tmp_path), tmp_path / "sys/fs/cgroup"
    assert _core.cgroup_cpus(root) == 0
    # Version 2: the smallest of the group and those above it; quotas are rounded down, never to 0.
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(groups / "a/b/cpu.max", "max 100000\n")
    assert _core.cgroup_cpus(root) == 0
    write(groups / "a/cpu.max", "350000 100000\n")
    assert _core.cgroup_cpus(root) == 3
    write(groups / "a/b/cpu.max", "5000000 1000000\n")
    assert _core.cgroup_cpus(root) == 3
    write(groups / "cpu.max", "10000 100000\n")
    assert _core.cgroup_cpus(root) == 1
    # A container that sees the host's path: only the mount is there.
    write(groups / "cpu.max", "200000 100000\n")
    write(tmp_path / "proc/self/cgroup", "0::/docker/1\n")
    assert _core.cgroup_cpus(root) == 2
    # Version 1, beside others; cpuset is another controller.
    lines = "5:cpuset:/none\n4:cpu,cpuacct:/x/y\n3:memory:/docker/1\n"
    write(tmp_path / "proc/self/cgroup", lines)
    write(groups / "cpu/cpu.cfs_quota_us", "-1\n")
    write(groups / "cpu/cpu.cfs_period_us", "100000\n")
    assert _core.cgroup_cpus(root) == 0
    write(groups / "cpu/x/y/cpu.cfs_quota_us", "400000\n")
    write(groups / "cpu/x/y/cpu.cfs_period_us", "50000\n")
    assert _core.cgroup_cpus(root) == 8
    write(tmp_path / "proc/self/cgroup", lines.replace("cpu,cpuacct", "cpuacct,cpu"))
    assert _core.cgroup_cpus(root) == 8
    write(tmp_path / "proc/self/cgroup", "no colon\n\n4:cpuset:/x/y\n")
    assert _core.cgroup_cpus(root) == 0


# ---- the end ------------------------------------------------------------------------------------


def test_close(folder):
    llm = LLM(str(folder))
    future = llm.submit("abc", LONG)
    llm.close()
    llm.close()
    with pytest.raises(LLMAccelError, match="closed"):
        future.result(timeout=30)
    calls = [
        lambda: llm.generate("a"),
        lambda: llm.chat([{"role": "user", "content": "x"}]),
        lambda: llm.submit("a"),
        lambda: llm.logits("a"),
        lambda: llm.loglikelihood(["a"], ["b"]),
        llm.plan,
        llm.report,
    ]
    for call in calls:
        with pytest.raises(LLMAccelError, match="closed"):
            call()


def test_dropping_it_ends_its_thread(folder):
    before = threading.active_count()
    llm = LLM(str(folder))
    llm.generate("abc", GREEDY)
    gone = weakref.ref(llm)
    assert threading.active_count() == before + 1
    del llm
    gc.collect()
    assert gone() is None
    assert threading.active_count() == before


def test_a_future_keeps_its_llm(folder):
    future = LLM(str(folder)).submit("abc", GREEDY)
    gc.collect()
    assert len(future.result(timeout=60).outputs[0].token_ids) == 20


def test_after_fork(folder):
    """Every method of the child raises; the parent goes on; both end."""
    code = textwrap.dedent(f"""
        import os, sys, warnings
        warnings.simplefilter("ignore")
        from llmaccel import LLM, LLMAccelError, SamplingParams
        llm = LLM({str(folder)!r})
        params = SamplingParams(max_tokens=3, ignore_eos=True)
        llm.generate("abc", params)
        lock = llm.engine._lock
        lock.acquire()  # the driver can tell of nothing: both are under way when it forks
        stream = llm.generate("abc", params, stream=True)
        future = llm.submit("abc", params)
        child = os.fork()
        if child == 0:
            raised = 0
            calls = [lambda: llm.generate("abc", params), lambda: llm.submit("abc"),
                     lambda: llm.logits("abc"), lambda: llm.report(), lambda: llm.plan(),
                     lambda: llm.loglikelihood(["a"], ["b"]), lambda: llm.engine._engine.step(),
                     lambda: llm.chat([{{"role": "user", "content": "x"}}]),
                     lambda: future.result(timeout=60), lambda: future.exception(60),
                     lambda: future.result(), future.exception, future.cancel,
                     lambda: next(stream)]
            for call in calls:
                try:
                    call()
                except LLMAccelError as error:
                    raised += "fork" in str(error)
            llm.close()
            again = LLM({str(folder)!r})
            works = len(again.generate("abc", params)[0].outputs[0].token_ids) > 0
            sys.exit(0 if raised == len(calls) and works else 1)
        _, status = os.waitpid(child, 0)
        lock.release()
        tokens = sum(len(chunk.outputs[0].token_ids) for chunk in stream)
        print(os.waitstatus_to_exitcode(status), tokens, len(future.result().outputs))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["0", "3", "1"], done.stderr


def test_works_at_module_level_without_a_guard(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"from llmaccel import LLM\nllm = LLM({str(folder)!r})\n"
        "print(len(llm.generate(['a', 'b'])))\nfuture = llm.submit('abc')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "2\n"


def test_engines_share_a_backend_and_take_turns(folder):
    with LLM(str(folder)) as a, LLM(str(folder)) as b:
        assert a._backend is b._backend
        expected = only(a.generate("abc", GREEDY)).text
        futures = list(
            itertools.chain.from_iterable(
                (a.submit("abc", GREEDY), b.submit("abc", GREEDY)) for _ in range(6)
            )
        )
        assert {f.result().outputs[0].text for f in futures} == {expected}


@pytest.mark.parametrize(
    ("field", "limit"), [("n_layers", config.MAX_LAYERS), ("max_len", config.MAX_POSITIONS)]
)
def test_limits_are_the_cores(field, limit):
    """What config.py lets pass the core takes, and no more."""
    given = vars(build_config(tiny.config_of("llama")))
    limits = {"max_seqs": 1, "max_len": 1, "kv_pages": 1, "max_batch_tokens": 1}
    layers = [tuple(given["layers"][0])]
    for value in (limit, limit + 1):
        count = value if field == "n_layers" else 1
        desc = {**given, "n_layers": count, "layers": layers * count, field: value}
        if value == limit:
            assert _core.plan(desc, limits, 1)["kv_page_bytes"] > 0
        else:
            with pytest.raises(ConfigError, match=f"{field}: expected 1 to {limit}, got {value}"):
                _core.plan(desc, limits, 1)


def test_the_core_guards_itself(folder):
    with LLM(str(folder)) as llm:
        model, engine = llm.engine._model, llm.engine._engine
        with pytest.raises(LLMAccelError, match="in use"):
            model.close()
        with pytest.raises(TypeError, match="Backend"):
            _core.Model(None, {})
        with pytest.raises(ConfigError, match="missing"):
            _core.Model(llm._backend, {})
        with pytest.raises(TypeError, match="Model"):
            _core.Engine(llm._backend, llm.plan().limits)
        with pytest.raises(ConfigError, match="slot"):
            model.set("nope", 0, [])
        with pytest.raises(LoadError, match="head: expected"):
            model.set("head", 0, [(b"", "F32", 1, 1)])
        fresh = _core.Model(llm._backend, vars(llm._config))
        with pytest.raises(UnsupportedError, match="F8"):
            fresh.set("head", 0, [(b"", "F8", 1, 1)])
    with pytest.raises(LLMAccelError, match="closed"):
        engine.step()
    with pytest.raises(LLMAccelError, match="closed"):
        model.finish()


def test_weights_and_memory_can_be_read_for_their_speed(folder):
    with LLM(str(folder)) as llm:
        model = llm.engine._model
        names = list(llm._backend.probe_read(1 << 20))
        assert list(llm._backend.probe_read(1 << 20, False)) == names
        for pattern in range(len(names)):
            assert model.read(pattern, 0.0) > 0.0
        for pattern in (-1, len(names)):
            with pytest.raises(ConfigError, match=f"pattern: expected 0 to .*got {pattern}"):
                model.read(pattern, 0.0)
        for seconds in (-0.1, 61.0, float("nan")):
            with pytest.raises(ConfigError, match="seconds: expected 0 to 60"):
                model.read(0, seconds)
        with pytest.raises(ConfigError, match="too few"):
            llm._backend.probe_read(1000)
        fresh = _core.Model(llm._backend, vars(llm._config))
        with pytest.raises(LLMAccelError, match="not finished"):
            fresh.read(0, 0.0)


def test_public_names():
    for name in llmaccel.__all__:
        assert getattr(llmaccel, name) is not None
    assert set(llmaccel.__all__) <= set(dir(llmaccel))
    with pytest.raises(AttributeError, match="nothing_here"):
        getattr(llmaccel, "nothing_here")  # noqa: B009
