"""backend="cuda" on the emulated device: whole models against the CPU backend, and what is refused.

The backend is the one that nvcc builds, compiled for the emulator (emulator.backend); its runtime
draws an order of everything from a seed. Tiny models with random weights, prompts as ids.
"""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import emulator
import numpy as np
import pytest
import test_sampling as sampling
import tiny
from conftest import ROOT
from emulator import bf16, from_bf16
from test_cuda_runtime import Counts

from llmaccel import LLM, SamplingParams, UnsupportedError, _core, cli, memory
from llmaccel.cli import _cuda
from llmaccel.environment import open_device
from llmaccel.errors import ConfigError, LLMAccelError, MemoryPlanError
from llmaccel.loading import load_weights, prepare
from llmaccel.options import LoadOptions

# A gap between the two best logprobs beyond which roundings of bf16 in other places decide nothing.
CLEAR = 0.1
FAMILIES = ["llama", "qwen3", "gemma3"]
MORE = ["llama-bias", "llama-yarn", "qwen2", "mistral", "phi3", "gemma2", "olmo2", "granite"]
MORE += ["gpt2", "gpt_neox", "gpt_neox-serial", "starcoder2"]


@pytest.fixture(scope="module", autouse=True)
def nothing_stays() -> Iterator[None]:
    """Closed devices got everything back, those that had failed as well."""
    before = emulator.backend().la_rt_host_left()
    yield
    gc.collect()
    assert emulator.backend().la_rt_host_left() == before


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> str:
    """The library's file, which backend="cuda" takes from here on."""
    gc.collect()  # an earlier test's device, which models would share
    path = emulator.backend()._name
    monkeypatch.setenv("LLMACCEL_CUDA_LIBRARY", path)
    monkeypatch.setenv("LLMACCEL_EMU_SEED", "5")
    monkeypatch.setenv("LLMACCEL_EMU_CC", "80")  # the generic products, which are emulated faster
    return path


def checkpoint(family: str, folder: Path, **more: int) -> Path:
    """Weights are bf16 numbers, so that dtype="float32" computes with the same ones."""
    from safetensors.numpy import load_file, save_file

    widths = {"n_embd": 96, "n_inner": 104} if family == "gpt2" else {"intermediate_size": 104}
    tiny.make_checkpoint(family, folder, seed=7, **{**widths, **more})
    arrays = load_file(folder / "model.safetensors")
    arrays = {name: from_bf16(bf16(values)) for name, values in arrays.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def open_on(folder: Path, backend: str, **options) -> LLM:
    options = {"dtype": "bfloat16", "max_model_len": 144, **options}
    return LLM(str(folder), backend=backend, **options)


def counts() -> Counts:
    """What the emulated runtime of the open backend has done."""
    made = Counts()
    emulator.backend().la_rt_host_count(ctypes.byref(made))
    return made


def prompts(n: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 300, rng.integers(1, longest)).tolist() for _ in range(n)]


def greedy(llm: LLM, asked: list[list[int]], tokens: int):
    """(ids, logprobs of the two best) of each request."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=2)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked], params, use_tqdm=False)
    made = []
    for output in outputs:
        best = [
            sorted((p.logprob for p in step.values()), reverse=True)[:2]
            for step in output.outputs[0].logprobs
        ]
        made.append((list(output.outputs[0].token_ids), np.array(best)))
    return made


def agree(ours, theirs) -> int:
    """Tokens that could be compared: up to one that the other backend was in two minds about."""
    compared = 0
    for (ids, best), (want, wanted) in zip(ours, theirs, strict=True):
        for i in range(len(want)):
            assert np.abs(best[i] - wanted[i]).max() < CLEAR
            if wanted[i][0] - wanted[i][1] < 2 * CLEAR and ids[i] != want[i]:
                break  # from here on their contexts differ
            assert ids[i] == want[i]
            compared += 1
    return compared


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_logits_are_as_near_as_the_cpus(family: str, tmp_path: Path, emulated: str) -> None:
    """Against the CPU's fp32 with the same weights; 70 tokens are more than a page."""
    folder, ids = checkpoint(family, tmp_path), prompts(1, 2, seed=5)[0] * 2 + list(range(3, 71))
    kinds = {"exact": ("cpu", "float32"), "cpu": ("cpu", "bfloat16"), "cuda": ("cuda", "bfloat16")}
    logits = {}
    for name, (backend, dtype) in kinds.items():
        with open_on(folder, backend, dtype=dtype) as llm:
            logits[name] = np.asarray(llm.logits(ids)).copy()
    size = np.linalg.norm(logits["exact"])
    error = {name: np.linalg.norm(made - logits["exact"]) / size for name, made in logits.items()}
    assert error["cuda"] <= 1.2 * error["cpu"]
    assert 0 < error["cuda"] < 0.05


def test_fp16_weights_take_fp16_rows(tmp_path: Path, emulated: str) -> None:
    """Eight times as fine as bf16; the cache stays bf16, and so does what attention multiplies."""
    folder, ids = checkpoint("qwen3", tmp_path), list(range(3, 71))
    logits = []
    for backend, dtype, kv in (("cpu", "float32", "float32"), ("cuda", "float16", "auto")):
        with open_on(folder, backend, dtype=dtype, kv_cache_dtype=kv) as llm:
            assert llm.report()["model"]["activation"] == dtype
            logits.append(np.asarray(llm.logits(ids)).copy())
    assert np.linalg.norm(logits[1] - logits[0]) < 0.006 * np.linalg.norm(logits[0])


def test_rows_beyond_fp16_stay_numbers(tmp_path: Path, emulated: str) -> None:
    """What a down projection multiplies grows beyond 65,504, the other rows do not."""
    from safetensors.numpy import load_file, save_file

    folder = checkpoint("llama", tmp_path)
    arrays = load_file(folder / "model.safetensors")
    for name in arrays:
        grow = 1e4 if "up_proj" in name else 1e3 if "gate_proj" in name else 1.0
        arrays[name] = arrays[name] * np.float32(grow)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    with open_on(folder, "cuda", dtype="float16") as llm:
        assert np.isfinite(np.asarray(llm.logits(list(range(3, 40))))).all()


def test_company_cuts_and_seeds_change_no_bit(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests together, one by one, with prompts cut, under another order of the device."""
    folder, asked = checkpoint("qwen3", tmp_path), prompts(3, 80, seed=1)
    with open_on(folder, "cuda") as llm:
        together = greedy(llm, asked, 4)
        alone = [greedy(llm, [ids], 4)[0] for ids in asked]
    monkeypatch.setenv("LLMACCEL_EMU_SEED", "11")
    with open_on(folder, "cuda", max_num_batched_tokens=7) as llm:
        cut = greedy(llm, asked, 4)
    for other in (alone, cut):
        for (ids, best), (want, wanted) in zip(other, together, strict=True):
            assert ids == want
            assert np.array_equal(best, wanted)


def test_preemption_recomputes_the_same_tokens(tmp_path: Path, emulated: str) -> None:
    folder, asked = checkpoint("llama", tmp_path), prompts(4, 60, seed=2)
    with open_on(folder, "cuda") as llm:
        free = greedy(llm, asked, 8)
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        futures = [llm.submit({"prompt_token_ids": ids}, params) for ids in asked]
        for _ in range(20):  # a bounded number, or nothing would ever end
            if all(future.done() for future in futures):
                break
            llm.engine.preempt(2)
            time.sleep(0.02)
        found = [list(future.result().outputs[0].token_ids) for future in futures]
        assert llm.report()["stats"]["preemptions"] > 0
    assert found == [want for want, _ in free]


def test_a_graph_without_memory_is_done_without(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step runs as it is, and so do others of as many tokens, until weights have changed."""
    folder, asked = checkpoint("llama", tmp_path), prompts(1, 20, seed=6)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    made, replays = [], []
    for number in ("0", "1"):
        monkeypatch.setenv("LLMACCEL_EMU_GRAPH", number)
        with open_on(folder, "cuda") as llm:
            for again in range(3):
                if again == 2:
                    open_on(folder, "cuda").close()
                made.append(llm.generate(asked, params, use_tqdm=False)[0].outputs[0].token_ids)
                replays.append(counts().replays)
        del llm
        gc.collect()  # the next device reads the variable
    assert made == made[:1] * 6
    assert replays == [8, 16, 24, 0, 0, 8]


def draws_of(asked: list[dict]) -> tuple[list, int]:
    """Events of the requests on the CPU and on the device, and waits of the host for the latter.

    The model is test_sampling's, whose rows of logits are the same on both.
    """
    config, arrays = sampling.arrays_for(301, intermediate_size=104)
    arrays = {name: from_bf16(bf16(values)) for name, values in arrays.items()}
    logits, events = [], []
    for name, backend in (("cpu", _core.Backend("cpu", None, 1)), ("cuda", open_device("cuda"))):
        prepared = prepare(LoadOptions(config, dtype="bfloat16", backend=name), arrays)
        model = _core.Model(backend, vars(prepared.config), prepared.forms.weights)
        load_weights(model, prepared)
        logits.append(sampling.logits_of(model, 301))
        before = counts().waits if name == "cuda" else 0
        made = sampling.run(model, asked)
        waits = counts().waits - before - 1 if name == "cuda" else 0  # one: the pages go back
        events.append([[(token, rank, tops) for token, _, rank, tops, _ in each] for each in made])
    np.testing.assert_allclose(*logits, rtol=1e-6)
    return events, waits


def test_draws_are_the_cpus_from_the_same_logits(emulated: str) -> None:
    """Every rule of sampling, without the host: it waits for no stream."""
    cases = [sampling.CASES[name] for name in sampling.PLAIN_CASES if name != "min_tokens"]
    asked = [{**case, "max_tokens": 12, "logprobs": 3, "seed": i} for i, case in enumerate(cases)]
    asked.append({"stop_ids": list(range(0, 301, 2)), "min_tokens": 9, "max_tokens": 12})
    (theirs, ours), waits = draws_of(asked)
    assert ours == theirs
    assert len({token for made in ours for token, _, _ in made}) > 50
    assert waits == 0


def test_what_is_too_much_for_the_device_is_drawn_on_the_host(emulated: str) -> None:
    """Beside rows that are not; the tokens are fed on the device all the same."""
    many, twice = {"logprobs": 40}, {"bias_ids": [9, 3, 3], "bias": [2.0, 3.0, 3.0]}
    hosted = [case for name, case in sampling.CASES.items() if name not in sampling.PLAIN_CASES]
    reports = [{"logprobs": 3, "report": kind, "top_k": 20} for kind in (1, 2, 3)]
    cases = [many, twice, {}, {}, *reports, *hosted]
    asked = [{**case, "max_tokens": 7, "seed": i} for i, case in enumerate(cases)]
    (theirs, ours), waits = draws_of(asked)
    assert ours == theirs
    assert waits > 0


def test_lists_that_do_not_fit_beside_each_other_go_up_in_turns(emulated: str) -> None:
    """8 rows of 300 biases, 250 bans and what was generated; conditions as the host knows them."""
    long = {"bias_ids": list(range(300)), "bias": [i % 7 / 4 for i in range(300)]}
    long |= {"stop_ids": list(range(50, 300)), "min_tokens": 9, "bad": [[17], [8, 9], [9, 8, 7]]}
    long |= {"presence_penalty": 1.5, "repetition_penalty": 1.2, "max_tokens": 9}
    (theirs, ours), waits = draws_of([{**long, "seed": i} for i in range(8)])
    assert ours == theirs
    assert waits > 0


def test_logits_of_a_prompt_come_with_draws_behind_it(emulated: str) -> None:
    """The first draw is the host's, as its logits are wanted there; the device feeds it next."""
    config, arrays = sampling.arrays_for(301, intermediate_size=104)
    prepared = prepare(LoadOptions(config, dtype="bfloat16", backend="cuda"), arrays)
    model = _core.Model(open_device("cuda"), vars(prepared.config), prepared.forms.weights)
    load_weights(model, prepared)
    params = {**sampling.PARAMS, "max_tokens": 6}
    (want,) = sampling.run(model, [{**params, "prompt": [5, 7]}])
    out, sizes = np.zeros((2, 301), np.float32), {"max_seqs": 8, "max_batch_tokens": 64}
    engine = _core.Engine(model, {**sizes, "max_len": 100, "kv_pages": 32})
    engine.add([5, 7], params, logits=out)
    found = []
    while engine.has_work():
        found += [event[4] for event in engine.step() if event[2] == sampling.TOKEN]
    assert found == [event[0] for event in want]
    np.testing.assert_array_equal(out, sampling.logits_of(model, 301)[[5, 7]])


def test_engines_take_turns_on_the_device(tmp_path: Path, emulated: str) -> None:
    """Two models share the backend; each engine steps on a thread of its own."""
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    folders = [checkpoint(family, tmp_path / family) for family in ("llama", "qwen3")]
    asked = prompts(3, 20, seed=4)
    with open_on(folders[0], "cuda") as one, open_on(folders[1], "cuda") as other:
        assert one._backend is other._backend
        alone = [llm.generate(asked, params, use_tqdm=False) for llm in (one, other)]
        futures = [[llm.submit(ids, params) for ids in asked] for llm in (one, other)]
        for llm_alone, llm_futures in zip(alone, futures, strict=True):
            for output, future in zip(llm_alone, llm_futures, strict=True):
                assert output.outputs[0].token_ids == future.result().outputs[0].token_ids


def test_a_failed_device_ends_requests_with_its_reason(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMACCEL_EMU_FAULT", "40")
    with open_on(checkpoint("llama", tmp_path), "cuda") as llm:
        for _ in range(2):  # the second finds the device as the first left it
            with pytest.raises(LLMAccelError, match="cuda: a fault that was asked for"):
                greedy(llm, prompts(2, 10), 4)


def test_nothing_is_left_on_the_device(tmp_path: Path, emulated: str) -> None:
    lib = emulator.backend()
    before = lib.la_rt_host_left()
    llm = open_on(checkpoint("llama", tmp_path), "cuda")
    greedy(llm, prompts(2, 10), 2)
    llm.close()
    del llm
    gc.collect()
    assert lib.la_rt_host_left() == before


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {"dtype": "float32"}, "no dtype='float32' yet, only 'bfloat16' and 'float16'"),
        ("llama", {"dtype": "float32", "kv_cache_dtype": "bf16"}, "no dtype='float32' yet"),
        ("llama", {"dtype": "auto"}, r"embed_tokens.weight' \(F32\): .*no .* float32 weights"),
        ("llama", {"kv_cache_dtype": "fp8"}, "no kv_cache_dtype='fp8' yet, only 'bfloat16';"),
        ("llama", {"kv_cache_dtype": "int8"}, "no kv_cache_dtype='int8' yet, only"),
        ("llama", {"kv_cache_dtype": "float32"}, "no kv_cache_dtype='float32' yet, only"),
        (
            "llama",
            {"quantization": "int8"},
            "no quantization='int8' yet, only 'w4g128' and 'w4g32'",
        ),
        ("mixtral", {}, "experts yet"),
        ("deepseek_v2", {}, "latents"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    family: str, options: dict, message: str, tmp_path: Path, emulated: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        open_on(checkpoint(family, tmp_path), "cuda", **options)


def test_odd_widths_are_refused(tmp_path: Path, emulated: str) -> None:
    folder = tiny.make_checkpoint("llama", tmp_path, intermediate_size=100)
    with pytest.raises(UnsupportedError, match="multiples of 8"):
        open_on(folder, "cuda")


def test_heads_of_an_odd_size_are_refused(tmp_path: Path, emulated: str) -> None:
    widths = {"intermediate_size": 104, "num_attention_heads": 8, "num_key_value_heads": 8}
    folder = tiny.make_checkpoint("gpt_neox", tmp_path, hidden_size=120, rotary_pct=0.3, **widths)
    with pytest.raises(UnsupportedError, match="heads of an odd size yet"):
        open_on(folder, "cuda")


def test_rows_wider_than_an_upload_are_refused(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMACCEL_EMU_MEMORY", str(1 << 40))
    config = tiny.make_checkpoint("llama", tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 9 << 20}))
    with pytest.raises(UnsupportedError, match="rows as wide yet"):
        open_on(tmp_path, "cuda", load_format="dummy")


def test_more_heads_than_a_grid_has_blocks_are_refused(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMACCEL_EMU_MEMORY", str(1 << 36))
    heads = {"num_attention_heads": 65536, "num_key_value_heads": 65536, "head_dim": 2}
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, **heads}
    folder = tiny.make_checkpoint("llama", tmp_path, **shape)
    with pytest.raises(UnsupportedError, match="as many heads yet"):
        open_on(folder, "cuda")


def test_a_model_that_does_not_fit_the_device_is_refused(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMACCEL_EMU_MEMORY", "100000")
    with pytest.raises(MemoryPlanError, match=r"free of 97\.7 KiB on emulator"):
        open_on(checkpoint("llama", tmp_path), "cuda")


def test_the_plan_counts_what_the_host_gives(
    tmp_path: Path, emulated: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Pinned arrays of steps and what draws on the host take, with as many threads as are asked
    for, or as there are processors."""
    folder = checkpoint("llama", tmp_path)
    monkeypatch.delenv("LLMACCEL_NUM_THREADS", raising=False)
    device = open_device("cuda")  # what it starts itself is not counted below

    def started(threads: int | None) -> tuple[int, int]:
        gc.collect()
        before = len(list(Path("/proc/self/task").iterdir()))
        with open_on(folder, "cuda", threads=threads) as llm:
            assert llm._backend is device
            report = llm.report()["memory"]
            assert report["host_bytes"] == llm.plan().host
            return len(list(Path("/proc/self/task").iterdir())) - before, llm.plan().host

    cpus = _core.Backend("cpu").info["n_cpus"]
    one, every = started(1), started(None)
    assert (one[0], every[0]) == (0, cpus - 1)
    assert one[1] > 0
    assert (every[1] > one[1]) == (cpus > 1)
    with open_on(folder, "cpu", threads=1) as llm:
        assert llm.plan().host == 0
    assert cli.main(["plan", str(folder), "--backend", "cuda", "--dtype", "bf16"]) == 0
    assert "memory of this machine" in capsys.readouterr().out
    monkeypatch.setattr(memory, "available_memory", lambda: (one[1] // 2, "of a test"))
    with pytest.raises(MemoryPlanError, match=r"draws beside the device: .* available \(of a test"):
        open_on(folder, "cuda", threads=1)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["--dtype", "bfloat16"], "bfloat16"),
        (["--dtype", "float16"], "float16"),  # float32 on the CPU
        (["--quantization", "w4g128"], "bfloat16"),  # int8 on the CPU
    ],
)
def test_a_plan_names_the_rows_of_the_device(
    options: list[str], rows: str, tmp_path: Path, emulated: str, capsys: pytest.CaptureFixture
) -> None:
    folder = str(checkpoint("llama", tmp_path))
    found = []
    for backend in ("cuda", "cpu"):
        given = [*options, *(["--dtype", "bfloat16"] if "--dtype" not in options else [])]
        assert cli.main(["plan", folder, "--backend", backend, *given]) == 0
        found.append(capsys.readouterr().out.partition("activations ")[2].partition(",")[0])
    assert found[0] == rows
    assert (found[1] == rows) == (options[-1] == "bfloat16")


def test_choices_of_the_cpu_are_refused(tmp_path: Path, emulated: str) -> None:
    folder = checkpoint("llama", tmp_path)
    with pytest.raises(ConfigError, match="backend='cuda' has no such choice"):
        open_on(folder, "cuda", isa="avx2")
    with pytest.raises(ConfigError, match="backend='tpu': expected one of cpu, cuda"):
        open_on(folder, "tpu")


def test_a_missing_driver_is_said(
    emulated: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("LLMACCEL_EMU_MISSING", "no driver of this kind")
    with pytest.raises(UnsupportedError, match=r"^backend: cuda: no driver of this kind$"):
        open_device("cuda")
    assert _cuda() == "not available: no driver of this kind"


def test_the_device_is_named(emulated: str) -> None:
    assert _cuda().startswith("emulator (sm_80), 1.0 GiB of 1.0 GiB free")
    with pytest.raises(UnsupportedError, match="probe: backend 'cuda' has none"):
        open_device("cuda").probe_peak("f32")
    with pytest.raises(UnsupportedError, match="trace: the rows of backend 'cuda'"):
        _core.Backend("cuda", library=emulated, trace=print)
    with pytest.raises(UnsupportedError, match="device 0 alone"):
        _core.Backend("cuda", library=emulated, device=1)


def test_an_object_that_is_none_is_said(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no object")
    with pytest.raises(UnsupportedError, match=r"text\.so: (file too short|invalid ELF header)"):
        _core.Backend("cuda", library=str(text))
    with pytest.raises(UnsupportedError, match=r"this build has no .*absent"):
        _core.Backend("cuda", library=str(tmp_path / "absent.so"))


OBJECTS = [
    ("int other(void) { return 0; }", "holds no backend"),
    ("int la_backend_entry_open(int abi) { return abi > 0 ? -7 : 0; }", "interface 7, here"),
]


@pytest.mark.parametrize(("source", "message"), OBJECTS)
def test_an_object_of_other_sources_is_said(tmp_path: Path, source: str, message: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "a.c").write_text(source)
    out = tmp_path / "a.so"
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "a.c", "-o", out], check=True)
    with pytest.raises(UnsupportedError, match=message):
        _core.Backend("cuda", library=str(out))


def test_the_object_that_nvcc_made_loads() -> None:
    """With a device it opens, without one it says why; it exports one symbol and is small."""
    built = ROOT / "python" / "llmaccel" / "_cuda.so"
    if not built.is_file():
        pytest.skip("no _cuda.so: nvcc was not there when the package was built")
    assert built.stat().st_size < 8_000_000
    names = subprocess.run(["nm", "-D", "--defined-only", built], capture_output=True, text=True)
    assert [line.split()[-1] for line in names.stdout.splitlines()] == ["la_backend_entry_open"]
    try:
        assert _core.Backend("cuda", library=str(built)).info["isa"].startswith("sm_")
    except UnsupportedError as error:
        assert "no NVIDIA driver" in str(error) or "sm_80 is the first" in str(error)
