"""The sections of h200.sh: what only a Hopper GPU can answer, each in a process of its own.

    python benchmarks/h200.py SECTION FOLDER

environment: card, driver, tools. build: the package for this Python, and the kernels as a library
whose launches can be called one by one. ceilings: a copy, products of torch, the gap between
launches. conformance: records what every instruction gives (FOLDER/h200.npz, to become
tests/goldens/cuda/h200.npz). operations: the emulator's tests of single kernels, on the card, and
whether products of other forms have the same bits. model: logits and tokens of whole models against
the CPU backend, three times over. sanitizer: compute-sanitizer over a tiny model. kernels: times
beside predict.py's. engine: an 8B shape with random weights. peers: times of torch, cuBLASLt and
Triton for the same work. table: prints what came.

A line of FOLDER/results.jsonl holds section, status ("ok", "no device", or what is missing), then
figures. Without a GPU every section ends at once. H200_DRY=LIBRARY runs `kernels`, `model` and
cuBLASLt of `peers` with few and small shapes on that library, the emulator's, to try them.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_int, c_size_t, c_void_p
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DRY = os.environ.get("H200_DRY")
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests"), str(ROOT / "benchmarks")]
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}


def devices() -> int:
    """GPUs that the driver knows; 0 where there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(byref(count)) != 0:
        return 0
    return count.value


class Report:
    """Appends lines to FOLDER/results.jsonl as they come."""

    def __init__(self, section: str, folder: Path) -> None:
        self.section, self.folder, self.start = section, folder, time.perf_counter()

    def add(self, status: str = "ok", **figures: object) -> None:
        line = {"section": self.section, "status": status, **figures}
        with (self.folder / "results.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")

    def seconds(self) -> float:
        return round(time.perf_counter() - self.start, 2)


def command(*words: str, **options) -> tuple[int, str]:
    """(status, what it printed)"""
    try:
        done = subprocess.run(words, capture_output=True, text=True, **options)
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


# ---- launches ------------------------------------------------------------------------------------


class Gpu:
    """Memory and launches of a library with la_rt_* and la_launch_*: of the card, or emulated."""

    def __init__(self, library: str) -> None:
        self.lib = ctypes.CDLL(library)
        for name in ("alloc", "pin", "stream_open", "graph_end", "error"):
            getattr(self.lib, f"la_rt_{name}").restype = c_void_p
        self.rt, why = c_void_p(), ctypes.create_string_buffer(256)
        if self.lib.la_rt_open(0, byref(self.rt), why, c_size_t(256)) != 0:
            raise RuntimeError(why.value.decode())
        self.stream = c_void_p(self.lib.la_rt_stream_open(self.rt))

    def alloc(self, size: int) -> int:
        at = self.lib.la_rt_alloc(self.rt, c_size_t(size))
        if not at:
            raise MemoryError(f"{size} bytes of the device")
        return at

    def free(self, *at: int) -> None:
        for p in at:
            self.lib.la_rt_free(self.rt, c_void_p(p))

    def put(self, data: bytes, size: int | None = None) -> int:
        """Device memory of `size` bytes that repeats the data."""
        size = size or len(data)
        at, host = self.alloc(size), self.lib.la_rt_pin(self.rt, c_size_t(len(data)))
        ctypes.memmove(host, data, len(data))
        for start in range(0, size, len(data)):
            n = min(len(data), size - start)
            self.lib.la_rt_copy(self.stream, c_void_p(at + start), c_void_p(host), c_size_t(n), 0)
        self.wait()
        self.lib.la_rt_unpin(self.rt, c_void_p(host))
        return at

    def copy(self, to: int, at: int, size: int) -> None:
        self.lib.la_rt_copy(self.stream, c_void_p(to), c_void_p(at), c_size_t(size), 2)

    def launch(self, name: str, args: ctypes.Structure, *more) -> None:
        getattr(self.lib, f"la_launch_{name}")(self.stream, byref(args), *more)

    def wait(self) -> None:
        if self.lib.la_rt_stream_wait(self.stream) != 0:
            raise RuntimeError(ctypes.string_at(self.lib.la_rt_error(self.rt)).decode())

    def seconds(self, calls: list[Callable[[], None]], repeats: int = 7) -> tuple[float, float]:
        """(median, spread) of a call's time, from replays of a graph of all of them."""
        self.lib.la_rt_graph_begin(self.stream)
        for call in calls:
            call()
        graph = c_void_p(self.lib.la_rt_graph_end(self.stream))
        if not graph:
            raise RuntimeError(ctypes.string_at(self.lib.la_rt_error(self.rt)).decode())
        times, replays = [], 1 if DRY else 3
        for _ in range(1 if DRY else repeats + 2):
            start = time.perf_counter()
            for _ in range(replays):
                self.lib.la_rt_graph_run(graph, self.stream)
            self.wait()
            times.append((time.perf_counter() - start) / replays / len(calls))
        self.lib.la_rt_graph_free(graph)
        times = times[2:] or times  # the first ones warm up
        return statistics.median(times), (max(times) - min(times)) / min(times)


def numbers(n: int) -> bytes:
    """n bf16 of random sign and mantissa between 1/64 and 1/32: a product's powers are all used."""
    import numpy as np

    bits = np.frombuffer(np.random.default_rng(1).bytes(2 * n), np.uint16) & np.uint16(0x807F)
    return (bits | np.uint16(121 << 7)).tobytes()


def kernels_of(folder: Path) -> str:
    return DRY or str(folder / "kernels.so")


# ---- sections ------------------------------------------------------------------------------------


def environment(report: Report) -> None:
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    _, card = command("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    _, nvcc = command("nvcc", "--version")
    libraries = {}
    for name in ("libcublasLt.so.13", "libnccl.so.2"):
        try:
            ctypes.CDLL(name)
            libraries[name] = "loads"
        except OSError as error:
            libraries[name] = str(error)
    versions = {}
    for name in ("numpy", "torch", "triton", "pytest", "tokenizers", "safetensors"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = "absent"
    tools = {name: shutil.which(name) or "" for name in ("compute-sanitizer", "ncu", "cuobjdump")}
    cpus = os.cpu_count()
    report.add(
        card=card.strip(),
        nvcc=nvcc.strip().splitlines()[-1:],
        libraries=libraries,
        tools=tools,
        python=platform.python_version(),
        versions=versions,
        cpus=cpus,
    )


def build(report: Report) -> None:
    """kernels.so and conformance.so with nvcc, the package in place: at the same time."""
    folder = report.folder.resolve()
    kernels = ROOT / "csrc" / "kernels" / "cuda"
    flags = ["-O3", "-std=c++17", "-fmad=false", f"-I{ROOT / 'csrc'}", "-lineinfo"]
    flags += ["-Xcompiler", "-fPIC", "-gencode", "arch=compute_90a,code=sm_90a"]
    sources = sorted(p for p in kernels.glob("*.cu") if p.stem != "conformance")
    jobs = {p.stem: ["nvcc", *flags, "-c", str(p), "-o", f"{folder}/{p.stem}.o"] for p in sources}
    whole = [str(kernels / "conformance.cu"), "-shared", "-o", f"{folder}/conformance.so"]
    jobs["conformance"] = ["nvcc", *flags, *whole]
    setup = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    own = {**os.environ, "LLMACCEL_CUDA": "1", "LLMACCEL_CUDA_ARCHS": "90a"}

    def run(words: list[str]) -> tuple[int, str]:
        return command(*words, cwd=ROOT, env=own)

    with ThreadPoolExecutor(16) as pool:
        results = dict(zip(["package", *jobs], pool.map(run, [setup, *jobs.values()]), strict=True))
    objects = [f"{folder}/{p.stem}.o" for p in sources]
    link = ["nvcc", "-shared", "-cudart", "static", *objects, "-o", f"{folder}/kernels.so"]
    results["kernels.so"] = run(link)
    failed = {name: text[-500:] for name, (status, text) in results.items() if status}
    report.add("failed" if failed else "ok", seconds=report.seconds(), failed=failed)


def ceilings(report: Report) -> None:
    from launches import Gather

    gpu, size = Gpu(kernels_of(report.folder)), 4 << 30
    one, other = gpu.alloc(size), gpu.alloc(size)
    seconds, spread = gpu.seconds([lambda: gpu.copy(other, one, size)] * 2)
    report.add(what="copy", bytes_per_s=2 * size / seconds, spread=spread)
    x, ids = gpu.put(bytes(4096)), gpu.put(bytes(4))
    args = Gather(x, 64, ids, other, 64, 1, 64)
    seconds, spread = gpu.seconds([lambda: gpu.launch("gather", args)] * 500)
    report.add(what="launch in a graph, one behind the other", us=seconds * 1e6, spread=spread)
    start = time.perf_counter()
    for _ in range(500):
        gpu.launch("gather", args)
    gpu.wait()
    report.add(what="launch in a stream", us=(time.perf_counter() - start) / 500 * 1e6)
    gpu.free(one, other)
    try:
        import torch
    except ImportError:
        report.add("no torch", what="products of torch")
        return
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = torch_seconds(lambda: a @ b, 10)
    report.add(what="bf16 product of torch, 8192", flops_per_s=2 * n**3 / seconds)
    eights = [t.to(torch.float8_e4m3fn) for t in (a, b)]
    scale = torch.ones((), device="cuda")
    matmul = torch._scaled_mm
    seconds = torch_seconds(
        lambda: matmul(
            eights[0], eights[1].t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16
        ),
        10,
    )
    report.add(what="fp8 product of torch, 8192", flops_per_s=2 * n**3 / seconds)


def torch_seconds(call: Callable[[], object], launches: int = 20) -> float:
    """Median time of a call of torch, from replays of a graph."""
    import torch

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            call()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / launches)
    return statistics.median(times[2:])


def conformance(report: Report) -> None:
    folder = report.folder
    words = [sys.executable, str(ROOT / "tests" / "conformance_cases.py")]
    status, text = command(*words, f"{folder}/conformance.so", f"{folder}/h200.npz")
    found = text.strip().splitlines()
    report.add("ok" if status == 0 else "differs", said=found[-12:], seconds=report.seconds())


def operations(report: Report) -> None:
    library = kernels_of(report.folder)
    report.add(**forms_agree(Gpu(library)))
    tests = [str(ROOT / "tests" / f"test_cuda_{name}.py") for name in ("rows", "products")]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    words += ["-k", "not too_many_heads", "--timeout", "60"]
    own = {**os.environ, "LLMACCEL_DEVICE_KERNELS": library}
    status, text = command(*words, cwd=ROOT, env=own)
    if "No module named pytest" in text:
        report.add("no pytest", what="tests of single kernels")
        return
    said = text.strip().splitlines()[-15:]
    report.add("ok" if status == 0 else "failed", said=said, seconds=report.seconds())


def forms_agree(gpu: Gpu) -> dict[str, object]:
    """Of one product: are wgmma's bits those of mma.sync, and those of rows alone the same?"""
    import numpy as np
    from launches import Product

    M, N, K = 200, 256, 512  # K in one piece
    a, w, bias = (gpu.put(numbers(n)) for n in (M * K, N * K, 2 * N))
    made = {}
    for name, rows in (("wgmma", M), ("wgmma alone", 1), ("mma.sync", M), ("mma.sync alone", 1)):
        out = gpu.put(b"\xff" * (M * N * 4))
        args = Product(a, w, bias, out, N, rows, N, K, 0, 0, 0, 1.0, 0.0)
        more = [0, None, 132] if "wgmma" in name else [0]
        gpu.launch("product_sm90" if "wgmma" in name else "product", args, *more)
        host = gpu.lib.la_rt_pin(gpu.rt, c_size_t(rows * N * 4))
        size = c_size_t(rows * N * 4)
        gpu.lib.la_rt_copy(gpu.stream, c_void_p(host), c_void_p(out), size, 1)
        gpu.wait()
        made[name] = np.frombuffer(ctypes.string_at(host, rows * N * 4), np.uint32)
    whole, other = made["wgmma"], made["mma.sync"]
    return {
        "what": "bits of products",
        "wgmma_is_mma_sync": bool(np.array_equal(whole, other)),
        "share_equal": float((whole == other).mean()),
        "wgmma_alone": bool(np.array_equal(whole[:N], made["wgmma alone"])),
        "mma_sync_alone": bool(np.array_equal(other[:N], made["mma.sync alone"])),
    }


def folder_of(path: Path, **changes: object) -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**LLAMA_8B, **changes}))
    return str(path)


SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 4096}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}


def model(report: Report) -> None:
    """Random weights: logits of a long prompt, tokens of a batch, and the same three times over."""
    import numpy as np

    from llmaccel import LLM, SamplingParams

    path = folder_of(report.folder / "small", **(TINY if DRY else SMALL))
    length = 40 if DRY else 1500
    for quantization in (None, "w4g128"):
        if quantization and DRY:
            quantization = "w4g32"
        options = {"load_format": "dummy", "dtype": "bfloat16", "quantization": quantization}
        options |= {"max_model_len": 2048, "activation": "bfloat16"}
        rng = np.random.default_rng(3)
        top = (TINY if DRY else SMALL)["vocab_size"]
        ids = rng.integers(3, top, length).tolist()
        batch = [rng.integers(3, top, n).tolist() for n in range(3, length // 5, length // 40)]
        params = SamplingParams(temperature=0, max_tokens=2 if DRY else 24, ignore_eos=True)
        logits, tokens = {}, {}
        for backend in ("cpu", "cuda"):
            with LLM(path, backend=backend, **options) as llm:
                logits[backend] = np.asarray(llm.logits(ids)).copy()
                runs = []
                for _ in range(1 if backend == "cpu" else 3):
                    out = llm.generate(batch, params, use_tqdm=False)
                    runs.append([list(o.outputs[0].token_ids) for o in out])
                tokens[backend] = runs
                alone = [llm.generate([p], params, use_tqdm=False)[0] for p in batch[:2]]
                single = [list(o.outputs[0].token_ids) for o in alone]
        error = np.linalg.norm(logits["cuda"] - logits["cpu"]) / np.linalg.norm(logits["cpu"])
        same = [a == b for a, b in zip(tokens["cuda"][0], tokens["cpu"][0], strict=True)]
        report.add(
            "ok" if error < 0.03 and single == tokens["cuda"][0][:2] else "differs",
            quantization=quantization,
            logits_error=float(error),
            requests_with_the_cpus_tokens=f"{sum(same)} of {len(same)}",
            repeats_alike=all(run == tokens["cuda"][0] for run in tokens["cuda"]),
            alone_alike=single == tokens["cuda"][0][:2],
            seconds=report.seconds(),
        )


def tiny(report: Report) -> None:
    """What the sanitizer watches."""
    from llmaccel import LLM, SamplingParams

    path = folder_of(report.folder / "tiny", **{**TINY, "head_dim": 64})
    for quantization in (None, "w4g32"):
        options = {"load_format": "dummy", "dtype": "bfloat16", "quantization": quantization}
        with LLM(path, backend="cuda", max_model_len=600, **options) as llm:
            params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
            prompts = [list(range(3, 3 + n)) for n in (5, 70, 300)]
            llm.generate(prompts, params, use_tqdm=False)


def sanitizer(report: Report) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        report.add("no compute-sanitizer")
        return
    for check in ("memcheck", "synccheck"):
        words = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, __file__]
        status, text = command(*words, "tiny", str(report.folder))
        said = [line for line in text.splitlines() if "=====" in line][-6:]
        report.add("ok" if status == 0 else "failed", tool=check, said=said)


# ---- times of kernels ----------------------------------------------------------------------------


def product_cases(gpu: Gpu, block: bytes) -> Iterator[tuple[dict, list[Callable[[], None]], float]]:
    """(what it is, calls over sets of weights that pass the L2 cache, bytes) of each shape."""
    import predict
    from launches import Form, Product

    shapes = {"odd": (96, 256)} if DRY else predict.MATRICES
    for name, (N, K) in shapes.items():
        sets = 1 if DRY else max(2, min(20, -(-(200 << 20) // (N * K // 2))))
        rows = (5,) if DRY else (1, 8, 16, 32, 128, 2048, 8192)
        x, out = gpu.put(block, max(rows) * K * 2), gpu.alloc(max(rows) * N * 4)
        room = gpu.alloc(264 * 128 * 128 * 4)
        for kernel, size in (("product_sm90", N * K * 2), ("product_w4", N * (K // 2 + K // 64))):
            weights = [gpu.put(block, size + 64) for _ in range(sets)]
            form = Form(128, 0, 0, size * 32 // N)
            for M in rows:
                if (name == "head" and M > 128) or (kernel == "product_w4" and M > 2048):
                    continue
                more = [byref(form)] if kernel == "product_w4" else [0, c_void_p(room), 132]
                rest = (None, out, N, M, N, K, 0, 0, 0, 1.0, 0.0)
                calls = [partial(gpu.launch, kernel, Product(x, w, *rest), *more) for w in weights]
                what = {"kernel": kernel, "matrix": name, "M": M, "N": N, "K": K}
                what |= {"group": 128} if kernel == "product_w4" else {}
                yield what, calls, size + M * (K * 2 + N * 4)
            gpu.free(*weights)
        gpu.free(x, out, room)


def attend_cases(gpu: Gpu, block: bytes) -> Iterator[tuple[dict, list[Callable[[], None]], float]]:
    import numpy as np
    import predict
    from launches import Attend, AttendDevice, Chunks

    H, K, d = (2, 1, 16) if DRY else (predict.HEADS, predict.KV_HEADS, predict.HEAD)
    shapes = ((2, 300),) if DRY else ((1, 4096), (1, 131072), (32, 4096), (128, 1024))
    for batch, context in shapes:
        pages = -(-context // 64)
        page = 2 * 64 * d * 2
        q, out = gpu.put(block, batch * H * d * 4), gpu.alloc(batch * H * d * 4)
        cache = gpu.put(block, batch * pages * K * page)
        order = np.random.default_rng(2).permutation(batch * pages).astype(np.int32)
        table = gpu.put(order.tobytes())
        first = gpu.put((np.arange(batch, dtype=np.int32) * pages).tobytes())
        pos = gpu.put(np.full(batch, context - 1, np.int32).tobytes())
        items, chunks = gpu.alloc(1024), -(-context // 256)
        sums = gpu.alloc(batch * chunks * H * (d + 2) * 4)
        args = Attend(q, H * d, out, H * d, pos, table, first)
        args.base, args.page_bytes, args.head_bytes, args.k_bytes = cache, K * page, page, page // 2
        args.n, args.n_heads, args.n_kv_heads, args.d, args.scale = batch, H, K, d, d**-0.5
        if batch <= 32:
            gpu.launch("chunks", Chunks(pos, items, batch))
            args.items, args.partial = items, sums
        on = ctypes.byref(AttendDevice(132, 232448))
        calls = [partial(gpu.launch, "attend_paged", args, on)] * 4
        what = {"kernel": "attend", "batch": batch, "context": context, "dealt": batch <= 32}
        yield what, calls, batch * context * K * d * 4.0
        gpu.free(q, out, cache, table, first, pos, items, sums)


def row_cases(gpu: Gpu, block: bytes) -> Iterator[tuple[dict, list[Callable[[], None]], float]]:
    from launches import Enter

    M, D = (2, 64) if DRY else (2048, 4096)
    x, out = gpu.put(block, M * D * 4), gpu.alloc(M * D * 2)
    norm = gpu.put(block, D * 4)
    args = Enter(x, D, norm, None, out, M, D, 0, 0, 1e-5)
    calls = [lambda: gpu.launch("enter", args)] * 4
    yield {"kernel": "enter", "M": M}, calls, M * D * 6.0


def kernels(report: Report) -> None:
    """Every case twice: what differs between the two is noise."""
    gpu, block = Gpu(kernels_of(report.folder)), numbers(1 << (12 if DRY else 25))
    for cases in (attend_cases, product_cases, row_cases):
        for what, calls, size in cases(gpu, block):
            (seconds, spread), (again, _) = gpu.seconds(calls), gpu.seconds(calls)
            line = {**what, "us": seconds * 1e6, "us_again": again * 1e6, "spread": spread}
            line["bytes_per_s"] = size / seconds
            if what["kernel"] == "product_sm90":
                line["flops_per_s"] = 2 * what["M"] * what["N"] * what["K"] / seconds
            report.add(**line)


def peers(report: Report) -> None:
    """Others' kernels for the same work."""
    import h200_peers

    gpu = Gpu(kernels_of(report.folder))
    if DRY:
        h200_peers.cublas(report, gpu, numbers(1 << 12), small=True)
        return
    h200_peers.run(report, gpu, torch_seconds)


# ---- the engine ----------------------------------------------------------------------------------


def engine(report: Report) -> None:
    """Decoded tokens a second at three batch sizes, time to the first token, shares of the copy."""
    import numpy as np

    from llmaccel import LLM, SamplingParams

    copy = copy_of(report.folder)
    path = folder_of(report.folder / "8b")
    options = {"load_format": "dummy", "dtype": "bfloat16", "backend": "cuda"}
    with LLM(path, max_model_len=4096, max_num_seqs=128, **options) as llm:
        report.add(what="loaded", seconds=report.seconds(), report=llm.report()["backend"])
        rng = np.random.default_rng(4)

        def run(prompts: list[list[int]], tokens: int) -> float:
            params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
            start = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - start

        long = [rng.integers(3, 128000, 2048).tolist()]
        run(long, 1)
        other = [rng.integers(3, 128000, 2048).tolist()]
        report.add(what="first token of 2048", seconds=run(other, 1))
        weights = 2 * (LLAMA_8B["vocab_size"] * 4096 + 32 * (6144 + 4096 + 3 * 14336) * 4096)
        for batch in (1, 32, 128):
            prompts = [rng.integers(3, 128000, 64).tolist() for _ in range(batch)]
            run(prompts, 8)  # makes the graphs
            few, many = run(prompts, 8), run(prompts, 72)
            step = (many - few) / 64
            line = {"batch": batch, "tokens_per_s": batch / step, "step_ms": step * 1e3}
            line["floor_share"] = weights / copy / step if copy else None
            report.add(what="decode", **line)


def copy_of(folder: Path) -> float:
    """Bytes a second of this run's copy; 0.0 where it was not measured."""
    for line in read(folder):
        if line.get("what") == "copy":
            return float(line["bytes_per_s"])
    return 0.0


def read(folder: Path) -> list[dict]:
    path = folder / "results.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()]


def table(folder: Path) -> None:
    """One line a result, the predicted time beside the measured one."""
    path = ROOT / "benchmarks" / "results" / "h200_predicted.jsonl"
    keys = ("kernel", "matrix", "M", "group", "batch", "context")
    guessed = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        guessed[tuple(line.get(key) for key in keys)] = line
    for line in read(folder):
        rest = {k: v for k, v in line.items() if k not in ("section", "status")}
        if expected := guessed.get(tuple(line.get(key) for key in keys)):
            rest["predicted_us"] = expected["us"]
        print(f"{line['section']:12} {line['status']:10} {json.dumps(rest)[:300]}")


SECTIONS = (environment, build, ceilings, conformance, operations, model, tiny, sanitizer)
SECTIONS += (kernels, engine, peers)


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name == "table":
        table(folder)
        return
    section = {function.__name__: function for function in SECTIONS}[name]
    report = Report(name, folder)
    if DRY is None and devices() == 0:
        report.add("no device")
        return
    section(report)


if __name__ == "__main__":
    main()
