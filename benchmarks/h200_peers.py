"""The peers section of h200.py: other people's kernels, and three in Triton, for the work of ours.

torch's products and attention; cuBLASLt by our own calls of it, bf16 and FP8 with a scale for 128
numbers of a row and for 128 x 128 weights; Triton's paged attention, 4-bit product and draws
(triton_peers.py). Each part says so where what it needs is not there. Called by h200.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_size_t, c_void_p
from functools import partial
from typing import Any

import predict
from launches import LtProduct

FAST_CACHE = 200 << 20  # bytes of weights beyond which no cache holds a set
ROWS = (1, 8, 32, 128, 2048, 8192)
ROOM = 32 << 20


def sets_of(size: int) -> int:
    return max(2, min(20, -(-FAST_CACHE // size)))


def rows_of(name: str) -> list[int]:
    return [M for M in ROWS if name != "head" or M <= 128]


def open_cublas(gpu: Any) -> tuple[Any, str]:
    """(library, its name), or (None, why there is none)."""
    from llmaccel.cublas import candidates

    gpu.lib.la_cublas_open.restype = c_void_p
    gpu.lib.la_cublas_name.restype = ctypes.c_char_p
    reasons = []
    for file, loaded in candidates():
        why = ctypes.create_string_buffer(1024)
        made = gpu.lib.la_cublas_open(file.encode(), int(loaded), why, c_size_t(1024))
        if made:
            return c_void_p(made), gpu.lib.la_cublas_name(c_void_p(made)).decode()
        reasons.append(why.value.decode())
    return None, "; ".join(reasons)


def cublas(report: Any, gpu: Any, block: bytes, small: bool = False) -> None:
    """small: one little matrix, to try the section itself."""
    library, name = open_cublas(gpu)
    if library is None:
        report.add("no cuBLASLt", what="peers", said=name)
        return
    matrices = {"odd": (128, 256)} if small else predict.MATRICES
    report.add(what="cuBLASLt", library=name)
    room = gpu.alloc(4096 if small else ROOM)
    for matrix, (N, K) in matrices.items():
        rows = [5] if small else rows_of(matrix)
        x, out = gpu.put(block, max(rows) * K * 2), gpu.alloc(max(rows) * N * 4)
        ones = gpu.put(
            b"\0\0\x80\x3f" * 1024, 4 * max(max(rows) * (K // 128 + 1), N * (K // 128 + 4))
        )
        for kind, width in (("bf16", 2), ("fp8 blocks", 1)):
            weights = [gpu.put(block, N * K * width) for _ in range(1 if small else sets_of(N * K))]
            for M in rows:
                made = [
                    LtProduct(x, w, ones, ones, None, out, N, room, 4096 if small else ROOM)
                    for w in weights
                ]
                for p in made:
                    p.M, p.N, p.K, p.alpha = M, N, K, 1.0
                    p.type = 0 if width == 2 else 2
                line = {"peer": f"cublaslt {kind}", "matrix": matrix, "M": M, "N": N, "K": K}
                if gpu.lib.la_cublas_can(library, byref(made[0])) != 1:
                    report.add("not made", **line)
                    continue
                ask = partial(gpu.lib.la_cublas_ask, library, gpu.stream)
                seconds, spread = gpu.seconds([partial(ask, byref(p)) for p in made])
                rate = 2 * M * N * K / seconds
                report.add(**line, us=seconds * 1e6, spread=spread, flops_per_s=rate)
            gpu.free(*weights)
        gpu.free(x, out, ones)
    gpu.free(room)
    gpu.lib.la_cublas_close(library)


Timer = Callable[[Callable[[], object], int], float]


def of_torch(report: Any, seconds_of: Timer) -> None:
    """Products (cuBLASLt through torch) and attention (SDPA)."""
    import torch

    for name, (N, K) in predict.MATRICES.items():
        count = sets_of(N * K * 2)
        ws = [torch.randn(N, K, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
        for M in rows_of(name):
            x = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
            seconds = seconds_of(lambda x=x, ws=ws: [x @ w.t() for w in ws], 1) / count
            report.add(peer="torch.mm", matrix=name, M=M, N=N, K=K, us=seconds * 1e6)
        del ws
    H, K, d = predict.HEADS, predict.KV_HEADS, predict.HEAD
    sdpa = torch.nn.functional.scaled_dot_product_attention
    for batch, queries, context in ((32, 1, 4096), (1, 1, 131072), (1, 8192, 8192)):
        q = torch.randn(batch, H, queries, d, device="cuda", dtype=torch.bfloat16)
        k, v = (
            torch.randn(batch, K, context, d, device="cuda", dtype=torch.bfloat16) for _ in range(2)
        )
        seconds = seconds_of(
            lambda q=q, k=k, v=v: sdpa(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True), 4
        )
        shape = {"batch": batch, "queries": queries, "context": context}
        report.add(peer="torch sdpa", **shape, us=seconds * 1e6)


def of_triton(report: Any, seconds_of: Timer) -> None:
    try:
        import triton_peers
    except ImportError as error:
        report.add("no triton", what="peers", said=str(error))
        return
    for part in (triton_attention, triton_four_bits, triton_draws):
        part(report, triton_peers, seconds_of)


def triton_attention(report: Any, peers: Any, seconds_of: Timer) -> None:
    import torch

    H, K, d = predict.HEADS, predict.KV_HEADS, predict.HEAD
    for batch, context in ((1, 4096), (1, 131072), (32, 4096), (128, 1024)):
        pages = context // 64
        order = torch.randperm(batch * pages, device="cuda").to(torch.int32).reshape(batch, pages)
        cache = torch.randn(batch * pages, K, 2, 64, d, device="cuda", dtype=torch.bfloat16)
        q = torch.randn(batch, H, d, device="cuda", dtype=torch.bfloat16)
        lengths = torch.full((batch,), context, device="cuda", dtype=torch.int32)
        times = {
            run: seconds_of(
                lambda run=run, a=(q, cache, order, lengths): peers.attend(*a, run=run), 4
            )
            for run in (4, 16)
        }
        run, seconds = min(times.items(), key=lambda item: item[1])
        shape = {"batch": batch, "context": context, "run": run}
        size = batch * context * K * d * 4
        report.add(peer="triton attention", **shape, us=seconds * 1e6, bytes_per_s=size / seconds)
        del cache


def triton_four_bits(report: Any, peers: Any, seconds_of: Timer) -> None:
    import torch

    for name, (N, K) in predict.MATRICES.items():
        if N % 64 != 0 or K % peers.GROUP != 0:
            continue
        sets = [
            (
                torch.randint(-(2**31), 2**31 - 1, (K // 8, N), device="cuda", dtype=torch.int32),
                torch.rand(K // peers.GROUP, N, device="cuda", dtype=torch.float16),
            )
            for _ in range(sets_of(N * K // 2))
        ]
        for M in (1, 8, 32, 128):
            x = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
            out = torch.empty(M, N, device="cuda", dtype=torch.bfloat16)
            seconds = seconds_of(
                lambda x=x, sets=sets, out=out: [peers.four_bits(x, *s, out) for s in sets], 1
            ) / len(sets)
            line = {"peer": "triton w4", "matrix": name, "M": M, "N": N, "K": K}
            report.add(**line, us=seconds * 1e6, bytes_per_s=N * K * 0.515625 / seconds)
        del sets


def triton_draws(report: Any, peers: Any, seconds_of: Timer) -> None:
    import torch

    for batch in (1, 128):
        logits = torch.randn(batch, 131072, device="cuda") * 3
        seconds = seconds_of(lambda x=logits: peers.draw(x, 0.8, 50, 0.95, 1), 4)
        report.add(peer="triton draws", batch=batch, vocabulary=131072, us=seconds * 1e6)


def run(report: Any, gpu: Any, seconds_of: Timer) -> None:
    """All of them; cuBLASLt first, which needs no torch."""
    import numpy as np

    drawn = np.frombuffer(np.random.default_rng(1).bytes(1 << 25), np.uint8)
    cublas(report, gpu, (drawn & 0xBF).tobytes())  # as bf16 below 2, as E4M3 as well
    try:
        import torch  # noqa: F401
    except ImportError:
        report.add("no torch", what="peers")
        return
    of_torch(report, seconds_of)
    of_triton(report, seconds_of)
