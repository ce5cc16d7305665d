"""Speed of single matrix kernels, as shares of what the machine does in the same run.

    python benchmarks/kernels.py gemv|gemm [--format bf16,i8,i8a16,i4g128,i4g32,i4g128a16,f8,q4k]
        [--shape 9728x896,2048x8192] [--m 1,2,4,8,16,32,128,512] [--isa auto] [--repeats 9]

gemv takes --m up to 8, gemm the rest; a16 means bf16 rows where int8 rows are the default, x2 rows
of two int8 lanes, whose operations count for each; q4k to q6k are packed Q4_K to Q6_K, q4f and q6f
the same with scales as fp32 products, q6b with codes in bytes. Prints a line per format, shape and
m and appends it to kernels.jsonl (see results.py).

Shares. Every repeat is a run of the kernel between two readings of the same memory and two runs of
the peak probe, by the same pinned threads; the share is that of the larger neighbour, and the
median counts. Weights of gemv, and of gemm up to 32 rows, rotate through 256 MiB; beyond, one
matrix stays.
"""

from __future__ import annotations

import argparse
import mmap
import os
import queue
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import results

from llmaccel import _core

WEIGHT_BYTES = 256 << 20
READ_BYTES = 256 << 20
# streams, bytes prefetched ahead (negative: past caches)
PATTERNS = ((1, 0), (1, 1024), (2, -1024), (2, 0), (4, 0))
F32, F16, F16_I8 = 0, 1, len(_core.DTYPES)  # the last: LA_F16_I8 of dtype.h

# name: pack, scale type, group, one scale per row, rows
FORMATS = {
    "f32": (0, F32, 0, 0, "f32"),
    "f16": (1, F32, 0, 0, "f32"),
    "bf16": (2, F32, 0, 0, "bf16"),
    "i8": (3, F32, 256, 1, "i8"),
    "i8g128": (3, F32, 128, 1, "i8"),
    "i8g64": (3, F32, 64, 1, "i8"),
    "i8x2": (3, F32, 256, 1, "i8x2"),
    "i8g128x2": (3, F32, 128, 1, "i8x2"),
    "i8a16": (3, F32, 256, 1, "bf16"),
    "i8g32": (3, F16, 32, 0, "i8"),
    "i4g128": (4, F16, 128, 0, "i8"),
    "i4g32": (4, F16, 32, 0, "i8"),
    "i4g128x2": (4, F16, 128, 0, "i8x2"),
    "i4g32x2": (4, F16, 32, 0, "i8x2"),
    "i4g128a16": (4, F16, 128, 0, "bf16"),
    "i4g32a16": (4, F16, 32, 0, "bf16"),
    "f8": (5, F32, 256, 1, "bf16"),
    "q4k": (4, F16_I8, 32, 0, "i8"),
    "q4kx2": (4, F16_I8, 32, 0, "i8x2"),
    "q4ka16": (4, F16_I8, 32, 0, "bf16"),
    "q4f": (4, F32, 32, 0, "i8"),
    "q5k": (6, F16_I8, 32, 0, "i8"),
    "q5kx2": (6, F16_I8, 32, 0, "i8x2"),
    "q5ka16": (6, F16_I8, 32, 0, "bf16"),
    "q5_0": (6, F16, 32, 0, "i8"),
    "q6k": (7, F16_I8, 16, 0, "i8"),
    "q6kx2": (7, F16_I8, 16, 0, "i8x2"),
    "q6ka16": (7, F16_I8, 16, 0, "bf16"),
    "q6f": (7, F32, 16, 0, "i8"),
    "q6fa16": (7, F32, 16, 0, "bf16"),
    "q6b": (3, F16_I8, 16, 0, "i8"),
    "q6ba16": (3, F16_I8, 16, 0, "bf16"),
}
OFFSETS = ("q4k", "q4kx2", "q4ka16", "q4f", "q5k", "q5kx2", "q5ka16")
STEPS = {3: (8, 256), 4: (8, 128), 5: (8, 256), 6: (16, 320), 7: (8, 192)}  # pack: k, bytes


def unit_bytes(name: str, k: int) -> int:
    """Bytes of 32 output columns of a format, see csrc/kernels/kernels.h."""
    pack, scale_type, group, row_scale, _ = FORMATS[name]
    if not group:
        return k * 128 if pack == 0 else (k + 1) // 2 * 128
    sets = (1 if row_scale else -(-k // group)) * (1 + (name in OFFSETS))
    one = {F32: 128, F16: 64, F16_I8: 32 + 64 * group // 256}[scale_type]
    step, size = STEPS[pack]
    return sets * one + -(-k // step) * size


class Team:
    """Pinned threads that run a function of their number together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.jobs: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in range(size)]
        self.done: queue.SimpleQueue = queue.SimpleQueue()
        self.meet = threading.Barrier(size)
        for tid in range(size):
            threading.Thread(target=self.work, args=(tid,), daemon=True).start()

    def work(self, tid: int) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(threading.get_native_id(), {cpus[tid % len(cpus)]})
        while True:
            job = self.jobs[tid].get()
            self.meet.wait()
            try:
                self.done.put(job(tid))
            except Exception as error:
                self.done.put(error)

    def run(self, job: Callable[[int], tuple[float, float] | None]) -> float:
        """Seconds from the first thread's begin to the last one's end."""
        for q in self.jobs:
            q.put(job)
        spans = [self.done.get() for _ in range(self.size)]
        for span in spans:
            if isinstance(span, Exception):
                raise span
        return max(s[1] for s in spans) - min(s[0] for s in spans)


def clocked(call: Callable[[], object]) -> tuple[float, float]:
    begin = time.monotonic()
    call()
    return begin, time.monotonic()


class Machine:
    """The threads, the weights' memory and the probes over it."""

    def __init__(self, isa: str, threads: int) -> None:
        self.isa, self.team = isa, Team(threads)
        self.map = mmap.mmap(-1, WEIGHT_BYTES + (64 << 20))
        self.map.madvise(mmap.MADV_HUGEPAGE)
        self.memory = np.frombuffer(self.map, np.uint8)
        # finite in every format, as scales too: 0x3c00 is 1 in fp16 and small in bf16 and fp32
        noise = np.random.default_rng(1).integers(0, 1 << 16, 1 << 20, np.uint16)
        self.memory[:].view(np.uint16).reshape(-1, 1 << 20)[:] = 0x3C00 | noise & 0x80FF

    def read(self) -> float:
        """Read bandwidth over the weights' memory, GB/s, best of the patterns."""
        each = READ_BYTES // self.team.size
        best = 0.0
        for streams, ahead in PATTERNS:

            def job(tid: int, streams: int = streams, ahead: int = ahead) -> tuple[float, float]:
                part = self.memory[tid * each : (tid + 1) * each]
                return clocked(lambda: _core.probe_read(self.isa, part, streams, ahead))

            best = max(best, READ_BYTES / self.team.run(job) * 1e-9)
        return best

    def peak(self, what: str) -> float:
        """Peak of a dot instruction, 1e9 operations a second; 0 where there is none."""
        rounds = 4_000_000
        ops = _core.probe_peak(self.isa, what, 1)[1]
        time_ = self.team.run(lambda tid: clocked(lambda: _core.probe_peak(self.isa, what, rounds)))
        return ops * rounds * self.team.size / time_ * 1e-9


def dot_of(machine: Machine, act: str) -> str:
    """The peak that a product with such rows is held to."""
    for what in ({"i8": "int8", "i8x2": "int8", "bf16": "bf16"}.get(act, "f32"), "f32"):
        if _core.probe_peak(machine.isa, what, 1)[1]:
            return what
    raise SystemExit(f"isa {machine.isa} has no probe")


def measure(machine: Machine, name: str, shape: tuple[int, int, int], repeats: int) -> dict:
    n, k, m = shape
    pack, scale_type, group, row_scale, act = FORMATS[name]
    described = {"pack": pack, "scale_type": scale_type, "group": group}
    described["has_offset"] = int(name in OFFSETS)
    described |= {"row_scale": row_scale, "K": k}
    units, unit = -(-n // 32), unit_bytes(name, k)
    matrix = units * unit
    copies = max(1, WEIGHT_BYTES // matrix)
    if copies * matrix > len(machine.memory):
        raise SystemExit(f"{name} {n}x{k}: more than {len(machine.memory) >> 20} MiB")
    packed = machine.memory[: copies * matrix]
    x = np.random.default_rng(2).normal(0, 1, (m, k)).astype(np.float32)
    ops = 2.0 * n * k * m * (1 + (act == "i8x2"))
    count = copies if m <= 32 else 1

    def job(tid: int) -> tuple[float, float]:
        share = (units, 0, count, tid, machine.team.size)
        return _core.gemm_time(machine.isa, packed, described, x, act, share)

    what = dot_of(machine, act)
    times, reads, peaks = [], [machine.read()], [machine.peak(what)]
    machine.team.run(job)
    rounds = max(1, int(0.06 / machine.team.run(job)))
    for _ in range(repeats):
        times.append(sum(machine.team.run(job) for _ in range(rounds)) / rounds)
        reads.append(machine.read())
        peaks.append(machine.peak(what))
    gb = [count * matrix / t * 1e-9 for t in times]
    gop = [count * ops / t * 1e-9 for t in times]
    of_read = [g / max(reads[i], reads[i + 1]) for i, g in enumerate(gb)]
    of_peak = [g / max(peaks[i], peaks[i + 1]) for i, g in enumerate(gop)]
    return {
        "benchmark": "gemv" if m <= 8 else "gemm",
        "format": name,
        "n": n,
        "k": k,
        "m": m,
        "isa": machine.isa,
        "threads": machine.team.size,
        "gb_s": results.spread(gb),
        "read_gb_s": results.spread(reads),
        "share_of_read": results.spread(of_read),
        "gop_s": results.spread(gop),
        "peak": what,
        "peak_gop_s": results.spread(peaks),
        "share_of_peak": results.spread(of_peak),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("gemv", "gemm"))
    parser.add_argument("--format", default="bf16,i8,i4g128,i4g32,f8")
    parser.add_argument("--shape", default="9728x896,896x4864,2048x8192")
    parser.add_argument("--m", default="1,2,4,8,16,32,128,512")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    sys.setswitchinterval(1e-4)
    machine = Machine(_core.kernel_isas()[-1] if args.isa == "auto" else args.isa, args.threads)
    rows = [int(m) for m in args.m.split(",")]
    for name in args.format.split(","):
        for shape in args.shape.split(","):
            n, k = (int(v) for v in shape.split("x"))
            for m in (m for m in rows if (m <= 8) == (args.what == "gemv")):
                row = measure(machine, name, (n, k, m), args.repeats)
                results.append("kernels", row)
                median = {k: v["median"] for k, v in row.items() if isinstance(v, dict)}
                print(
                    f"{name:10s} {shape:>11s} m={m:<4d} {machine.isa} x{args.threads}: "
                    f"{median['gb_s']:6.1f} GB/s of {median['read_gb_s']:5.1f} "
                    f"({median['share_of_read']:.2f}), {median['gop_s']:6.0f} Gop/s of "
                    f"{median['peak_gop_s']:5.0f} {row['peak']} ({median['share_of_peak']:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
