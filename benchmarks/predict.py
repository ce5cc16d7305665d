"""What an H200 should make of the CUDA kernels, before one is at hand: a line for each shape.

    python benchmarks/predict.py > benchmarks/results/h200_predicted.jsonl

Every line has the bytes that a launch must move and the operations of what it makes (2MNK of a
product), its blocks, and the time of the slowest of what a block waits for: memory (bytes over what
is in flight, at most the measured copy rate), the matrix units, instructions (the loop's, of the
busiest unit), or its launch. What is read or multiplied beyond those is in the time alone.
Registers and shared memory, from which the blocks of a multiprocessor follow, are what nvcc says of
this source under setup.py's flags (`-Xptxas -v`, sm_90a). Shapes are those of an 8B model of Llama
3. It needs nvcc and no GPU; h200.py prints its measurements beside these lines. Called by nobody
else but its test.

Of the rates that are wanted of a card (DECISIONS.md 71) these lines miss some: the sampler takes
more than 80 us for 128 rows unless they are greedy, with top_p nearly twice that, as it passes over
the row five times; products of 4 bits read less than 2.6 TB/s up to 16 rows where matrices are
small (the blocks of qkv fill a wave and a half, half of o's time is its launch); the 16-bit product
has 0.8 of the matrix units where 0.9 of cuBLASLt's rate is wanted.
"""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "kernels" / "cuda"
SOURCES = ("attention", "elements", "finish", "gemm_mma", "gemm_sm90", "gemm_w4", "rows", "sample")
SOURCES += ("step",)

# The card: measured on one, or of its datasheet (SMS, registers, shared memory, clock).
SMS, CLOCK_HZ = 132, 1.755e9
COPY_BYTES = 4.3e12  # a second, read and written
BF16_FLOPS = 780e12  # of a large product on random data
LATENCY_S = 0.9e-6  # from a request to its bytes, under load
LAUNCH_S = 2.0e-6  # one after another in a graph
L2 = 50e6
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 233472, 2048, 32  # of a multiprocessor

# An 8B model of Llama 3: [N, K] of its matrices, heads.
MATRICES = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}
WIDTH = 4096
HEADS, KV_HEADS, HEAD = 32, 8, 128
PAGE, CHUNK = 64, 256
VOCABULARY = MATRICES["head"][0]


@dataclass(frozen=True)
class Built:
    """A kernel as nvcc made it."""

    registers: int

    def blocks(self, threads: int, shared: int) -> int:
        """Blocks of a multiprocessor at a time."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        by_shared = SHARED // (shared + 1024)
        return min(by_registers, by_shared, THREADS // threads, BLOCKS)


@dataclass(frozen=True)
class Work:
    """A launch. bytes: what it is given and leaves, each byte once; flops: of the numbers that it
    makes. in_flight: bytes that a block has asked for and not got, at a time. cycles: of the
    busiest unit of a multiprocessor beside memory and matrix units, for one block. moved,
    multiplied: bytes and operations with all that costs time and is no work (what is read again,
    rows that fill a tile, a wave that is not full), where they are more."""

    kernel: str
    name: str  # part of the mangled one
    shape: dict[str, object]
    blocks: int
    threads: int
    shared: int
    bytes: float
    flops: float
    in_flight: float
    cycles: float = 0.0
    rate: float = 1.0  # of the matrix units at this instruction; 0: the work is not theirs
    moved: float = 0.0
    multiplied: float = 0.0


def line(work: Work, built: dict[str, Built]) -> dict[str, object]:
    """What is expected of a launch."""
    made = next(b for name, b in built.items() if work.name in name)
    each = made.blocks(work.threads, work.shared)
    resident = min(work.blocks, each * SMS)
    waves = work.blocks / (each * SMS)
    busy = min(1.0, work.blocks / SMS)  # share of the multiprocessors that have a block
    full = waves / math.ceil(waves) if waves > 1 else 1.0
    rate = min(COPY_BYTES, resident * work.in_flight / LATENCY_S)
    moved, multiplied = max(work.bytes, work.moved), max(work.flops, work.multiplied)
    times = {
        "memory": moved / rate / full,
        "matrix units": work.rate and multiplied / (BF16_FLOPS * work.rate * busy * full),
        "instructions": work.cycles * math.ceil(work.blocks / SMS) / CLOCK_HZ,
        "launch": LAUNCH_S,
    }
    ceiling = max(times, key=lambda name: times[name])
    seconds = LAUNCH_S + max(v for name, v in times.items() if name != "launch")
    floor = max(work.bytes / COPY_BYTES, work.flops / BF16_FLOPS)
    return {
        "kernel": work.kernel,
        **work.shape,
        "bytes": round(work.bytes),
        "flops": round(work.flops),
        "blocks": work.blocks,
        "threads": work.threads,
        "registers": made.registers,
        "shared_bytes": work.shared,
        "blocks_of_sm": each,
        "occupancy": round(each * work.threads / THREADS, 3),
        "waves": round(waves, 2),
        "us": round(seconds * 1e6, 2),
        "floor_us": round(floor * 1e6, 2),
        "ceiling": ceiling,
    }


# ---- the kernels ---------------------------------------------------------------------------------


def pieces(N: int, K: int) -> int:
    """la_product_pieces"""
    tiles, blocks, best, most = -(-N // 128), -(-K // 64), 1, 0.0
    for n in range(1, 9):
        if n > 1 and blocks // n < 8:
            break
        items = tiles * n
        full = items / (-(-items // SMS) * SMS)
        if full > most:
            most, best = full, n
        if most > 5 / 6:
            break
    return best


def hopper(name: str, M: int, N: int, K: int) -> Iterator[Work]:
    """gemm_sm90.cu: the product, and what adds up its pieces."""
    tiles, n = -(-M // 128) * -(-N // 128), pieces(N, K)
    apart = n > 1 and tiles * n <= 2 * SMS
    items = tiles * n if apart else tiles
    blocks = min(items, SMS)
    sums = n * M * N * 4 if apart else 0
    loaded = N * K * 2 + M * K * 2 + (sums or M * N * 4)
    full = items / (-(-items // blocks) * blocks)
    # rows that are not there are multiplied too; a tile of n128 reads more than it can at full rate
    multiplied = 2 * tiles * 128 * 128 * K
    yield Work(
        "product_sm90",
        "la_gemm_sm90IL13la_wgmma_type0E",
        {"matrix": name, "M": M, "N": N, "K": K, "pieces": n, "apart": apart},
        blocks,
        384,
        6 * 32768 + 96,
        loaded,
        2 * M * N * K,
        6 * min(M, 128) * 128 + 6 * 16384,
        rate=0.8,
        moved=loaded / full,
        multiplied=multiplied / full,
    )
    if apart:
        yield Work(
            "product_sm90_merge",
            "la_gemm_merge",
            {"matrix": name, "M": M, "N": N, "pieces": n},
            -(-N // 256) * M,
            256,
            0,
            sums + M * N * 4,
            0,
            256 * 4 * 4,
        )


def again(weights: float, tiles: int) -> float:
    """Bytes of weights that every tile of rows reads: once, where they stay in L2."""
    return weights if weights < L2 else weights * tiles


def any_gpu(name: str, M: int, N: int, K: int) -> Work:
    """gemm_mma.cu, which Hopper does without."""
    rows = 16 if M <= 16 else 64
    blocks = -(-N // 64) * -(-M // rows)
    stage = (rows + 64) * 128
    return Work(
        "product",
        f"la_productILi{rows}ELi0E",
        {"matrix": name, "M": M, "N": N, "K": K},
        blocks,
        64,
        4 * stage,
        N * K * 2 + M * K * 2 + M * N * 4,
        2 * M * N * K,
        3 * stage,
        rate=0.35,
        moved=again(N * K * 2, -(-M // rows)) + M * K * 2 + M * N * 4,
        multiplied=2 * -(-M // rows) * rows * N * K,
    )


def four_bits(name: str, M: int, N: int, K: int, group: int) -> Work:
    """gemm_w4.cu, fp16 scales."""
    tokens = 8 if M <= 8 else 16 if M <= 16 else 32
    tiles = -(-M // tokens)
    weights = N * K // 2 + N * K // group * 2
    runs = -(-K // 128) / 16
    # of a warp and 128 k: codes to bf16 (11 instructions of 8 weights), a product of 16 x 8 every
    # 32 cycles, and for each group scales and two instructions of a sum
    codes, products = 4 * 32 * 32 / 32 / 8 * 11, 4 * 4 * tokens / 8 * 32 / 4
    cycles = 16 / 4 * runs * (codes + products + 128 / group * (8 + 2 * tokens))
    return Work(
        "product_w4",
        f"la_w4ILi{tokens // 8}ELi0ELi0E",
        {"matrix": name, "M": M, "N": N, "K": K, "group": group},
        N // 32 * tiles,
        512,
        16 * tokens * 36 * 4,
        weights + M * K * 2 + M * N * 4,
        2 * M * N * K,
        16 * 2 * 4 * 512,
        cycles=cycles,
        rate=0.55,
        moved=again(weights, tiles) + M * K * 2 + M * N * 4,
        multiplied=2 * tiles * tokens * N * K,
    )


def attend(batch: int, context: int, prefill: bool) -> Iterator[Work]:
    """attention.cu. prefill: `batch` tokens that follow each other, the last at `context`."""
    group = HEADS // KV_HEADS
    dealt = not prefill and batch <= 32 and context > CHUNK
    rows, threads, slices = (64, 128, 1) if prefill else (16, 128, 4)
    pitch = 2 * HEAD + 16
    shared = rows * pitch + 2 * 2 * PAGE * pitch
    chunks, tiles = -(-context // CHUNK), -(-batch * group // rows) if prefill else batch
    # pages that a tile of rows meets: those up to its last token
    pages = (context - batch / 2) / PAGE + 0.5 if prefill else context / PAGE
    each = min(SHARED // (shared + 1024), 3)
    items = tiles * KV_HEADS * (chunks if dealt else 1)
    blocks = min(items, each * SMS // KV_HEADS * KV_HEADS) if dealt else items
    read = tiles * KV_HEADS * pages * PAGE * HEAD * 2 * 2
    # tiles of a head run side by side, so that a page comes from memory once and then from L2
    moved = KV_HEADS * context * HEAD * 2 * 2 if prefill else read
    partial = batch * chunks * HEADS * (HEAD + 2) * 4 if dealt else 0
    # of a warp and a page: instructions of a score (8, and an exponential, for which its unit takes
    # 8 cycles, half of them under other instructions), of a sum of values one in 16, ldmatrix,
    # copies; a quarter of the warps' each cycle
    scores = 16 * PAGE / 32 * (8 + 4)
    operands = (HEAD / 16) * (1 + PAGE / 16) * 2 + (PAGE / 16) * (HEAD / slices / 16) * 2
    page = scores + operands + 16 * HEAD / slices / 32 + PAGE * HEAD * 4 / 16 / threads * 4
    counted = batch * (context - (batch - 1) / 2) if prefill else batch * context
    # those of few rows make the same scores in four warps, at 16 rows of which `group` count
    multiplied = 2 * rows * PAGE * HEAD * (slices + 1)
    yield Work(
        "attend",
        f"la_attend_pagedILi{HEAD // slices}ELi{slices}ELi{rows // 16}E",
        {"prefill": prefill, "batch": batch, "context": context, "dealt": dealt},
        blocks,
        threads,
        shared,
        moved + partial + batch * HEADS * HEAD * 8,
        4 * HEADS * HEAD * counted,
        PAGE * pitch * 2,  # a page of two is under way all of the time
        cycles=page * tiles * KV_HEADS * pages / blocks,
        rate=0.5,
        multiplied=multiplied * tiles * KV_HEADS * pages,
    )
    if dealt:
        yield Work(
            "attend_merge",
            "la_attend_merge",
            {"batch": batch, "context": context},
            batch * HEADS * HEAD // 128,
            128,
            0,
            partial + batch * HEADS * HEAD * 4,
            0,
            128 * 8 * 12,
        )


def row_wise(M: int) -> Iterator[Work]:
    """rows.cu and elements.cu: 4 bytes a thread and access, few in flight."""
    width = MATRICES["down"][1]
    sizes = {
        "enter": ("la_enter", WIDTH * (4 + 2), 256, M),
        "norm_rows": ("la_norm_rows", WIDTH * 8, 256, M),
        "elements": ("la_elements", width * 12, 256, M * width // 1024),
        "pick": ("la_pick", 32 * 24, 256, -(-M * 32 // 256)),
        "heads": ("la_heads", (HEADS + 2 * KV_HEADS) * HEAD * (4 + 3), 128, M * 12),
        "embed": ("la_embed", WIDTH * (2 + 4), 256, M),
        "gather": ("la_gather", WIDTH * 8, 256, M),
        "add_norm": ("la_add_norm", WIDTH * 12, 256, M),  # of families that norm a block's result
        "heads_rows": ("la_heads_rows", (HEADS + KV_HEADS) * HEAD * 8, 256, 2 * M),  # or whole rows
    }
    N, F = (
        MATRICES["gate_up"][0],
        MATRICES["gate_up"][0] // 2,
    )  # sums of a library, and what is kept
    sizes["finish"] = ("la_finish_sums", (N + F) * 4, 256, M * -(-N // 256))
    for kernel, (name, row, threads, blocks) in sizes.items():
        shared = 2048 * 2 if kernel == "heads" else 64
        name = f"{len(name)}{name}"
        yield Work(kernel, name, {"M": M}, blocks, threads, shared, M * row, 0, threads * 4 * 4)


def bookkeeping(M: int) -> Iterator[Work]:
    """step.cu: a token and a rule a thread; of attention.cu, a warp for the chunks of a step."""
    resume = (-(-M // 256), 256, 0, M * (8 + 2 * 32), 0, 256 * 8)  # a sector of each rule
    yield Work("resume", "9la_resume", {"M": M}, *resume)
    if M <= 32:
        yield Work("chunks", "9la_chunks", {"M": M}, 1, 32, 0, M * 8, 0, M * 4)


def draws(M: int) -> Iterator[Work]:
    """sample.cu, a block a row: how often it passes over the row, and what a value costs then."""
    passes = {  # reads, writes, instructions of a value in all of them
        "greedy": (1, 0, 6),
        "greedy, logprobs": (3, 0, 6 + 6 + 24 + 4),  # the largest twice, sums of exp, the rank
        "temperature": (2, 1, 6 + 28),
        "top_p": (4, 1, 6 + 44 + 2 * 14),  # two walks, each a pass that lists a bin's members
    }
    for kind, (reads, writes, instructions) in passes.items():
        yield Work(
            "sample",
            "9la_sample",
            {"kind": kind, "M": M, "V": VOCABULARY},
            M,
            512,
            65696,
            M * VOCABULARY * 4,
            0,
            512 * 8 * 4,
            cycles=VOCABULARY / 32 * instructions / 4,
            moved=M * VOCABULARY * 4 * (reads + writes),
        )


def works() -> Iterator[Work]:
    for M in (1, 8, 32, 128, 2048, 8192):
        for name, (N, K) in MATRICES.items():
            if name == "head" and M > 256:
                continue
            yield from hopper(name, M, N, K)
            yield any_gpu(name, M, N, K)
            if name != "head":
                yield from (four_bits(name, M, N, K, group) for group in (128, 32))
        yield from row_wise(M)
        yield from bookkeeping(M)
        if M <= 128:
            yield from draws(M)
    for name, (N, K) in MATRICES.items():  # as many as reading is to bound
        if name != "head":
            yield from (four_bits(name, 16, N, K, group) for group in (128, 32))
    for batch, context in ((1, 1024), (1, 4096), (1, 131072), (32, 4096), (128, 1024)):
        yield from attend(batch, context, prefill=False)
    for batch, context in ((2048, 2048), (8192, 8192)):
        yield from attend(batch, context, prefill=True)


def lines(built: dict[str, Built]) -> list[str]:
    """built: by mangled name, of every kernel of SOURCES."""
    return [json.dumps(line(work, built)) for work in works()]


# ---- nvcc ----------------------------------------------------------------------------------------


def read_report(text: str) -> dict[str, Built]:
    """The kernels of a report of ptxas."""
    names = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", text, re.S)
    return {name: Built(int(registers)) for name, registers in names}


def compile_all() -> dict[str, Built]:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = os.environ.get("LLMACCEL_NVCC") or shutil.which("nvcc") or f"{home}/bin/nvcc"
    flags = runpy.run_path(str(ROOT / "setup.py"))["NVCC_FLAGS"]  # those of what is shipped
    flags = [*flags, "-Xptxas", "-v", "-gencode", "arch=compute_90a,code=sm_90a", "-cubin"]
    built: dict[str, Built] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SOURCES:
            command = [nvcc, *flags, "-o", f"{folder}/{name}", str(KERNELS / f"{name}.cu")]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                sys.exit(done.stderr)
            built.update(read_report(done.stderr))
    return built


if __name__ == "__main__":
    print("\n".join(lines(compile_all())))
