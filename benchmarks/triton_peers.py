"""Three kernels in Triton for the same work as ours, as peers on a GPU: written for this benchmark.

Paged decode attention (a program a sequence, kv head and run of pages; a second launch folds runs),
a product with 4-bit weights, and draws by top-k and top-p without a sort. Needs torch and triton;
h200_peers.py says so where they are absent. With TRITON_INTERPRET=1 they run on the CPU, which
tests/test_triton_peers.py does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PAGE, GROUP = 64, 128


# ---- attention -----------------------------------------------------------------------------------


@triton.jit
def _attend_runs(  # noqa: PLR0917 - numbers of a launch
    q,
    cache,
    table,
    lengths,
    sums,
    scale,
    pages,
    kv_heads,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    RUN: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """sums[sequence, kv head, run]: G rows of D values, then of a maximum and a sum."""
    seq, kv, run = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + seq)
    rows, cols, tokens = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, TOKENS)
    query = tl.load(
        q + ((seq * kv_heads + kv) * G + rows)[:, None] * D + cols[None, :],
        mask=rows[:, None] < G,
        other=0.0,
    )
    best = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, D], tl.float32)
    first = run * RUN
    last = tl.minimum(first + RUN, (length + TOKENS - 1) // TOKENS)
    for page in range(first, last):
        at = tl.load(table + seq * pages + page).to(tl.int64)
        block = cache + (at * kv_heads + kv) * 2 * TOKENS * D
        k = tl.load(block + tokens[:, None] * D + cols[None, :])
        v = tl.load(block + (TOKENS + tokens[:, None]) * D + cols[None, :])
        s = tl.dot(query, tl.trans(k)) * scale
        s = tl.where((page * TOKENS + tokens)[None, :] < length, s, float("-inf"))
        top = tl.maximum(best, tl.max(s, 1))
        p = tl.exp(s - top[:, None])
        keep = tl.exp(best - top)
        mass = mass * keep + tl.sum(p, 1)
        found = found * keep[:, None] + tl.dot(p.to(v.dtype), v)
        best = top
    out = sums + ((seq * kv_heads + kv) * tl.num_programs(2) + run) * G * (D + 2)
    tl.store(out + rows[:, None] * D + cols[None, :], found, mask=rows[:, None] < G)
    tl.store(out + G * D + rows, best, mask=rows < G)
    tl.store(out + G * D + G + rows, mass, mask=rows < G)


@triton.jit
def _fold_runs(sums, out, runs, G: tl.constexpr, D: tl.constexpr):
    head, g, cols = tl.program_id(0), tl.program_id(1), tl.arange(0, D)
    best = -float("inf")
    mass = 0.0
    found = tl.zeros([D], tl.float32)
    for run in range(runs):
        at = sums + (head * runs + run) * G * (D + 2)
        m, s = tl.load(at + G * D + g), tl.load(at + G * D + G + g)
        top = tl.maximum(best, m)
        old, new = tl.exp(best - top), tl.where(s > 0.0, tl.exp(m - top), 0.0)
        mass = mass * old + s * new
        found = found * old + tl.load(at + g * D + cols) * new
        best = top
    tl.store(out + (head * G + g) * D + cols, found / mass)


def attend(
    q: torch.Tensor, cache: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, run: int = 8
) -> torch.Tensor:
    """[B, H, d] of q, over pages [n, kv heads, K and V, 64, d] that table [B, pages] lists.

    lengths: [B] tokens of each sequence, from 1. run: pages that a program takes.
    """
    batch, heads, d = q.shape
    kv_heads, pages = cache.shape[1], table.shape[1]
    group, runs = heads // kv_heads, -(-pages // run)
    sums = torch.empty((batch, kv_heads, runs, group * (d + 2)), device=q.device)
    out = torch.empty((batch, heads, d), device=q.device)
    _attend_runs[(batch, kv_heads, runs)](
        *(q, cache, table, lengths, sums, d**-0.5, pages, kv_heads),
        G=group,
        ROWS=max(16, triton.next_power_of_2(group)),
        D=d,
        RUN=run,
        TOKENS=PAGE,
    )
    _fold_runs[(batch * kv_heads, group)](sums, out, runs, G=group, D=d)
    return out


# ---- 4-bit weights -------------------------------------------------------------------------------


@triton.jit
def _four_bits(  # noqa: PLR0917 - numbers of a launch
    x,
    words,
    scales,
    out,
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A step of K is a group: one scale a column."""
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros([BM, BN], tl.float32)
    for at in range(0, K, BK):
        a = tl.load(x + m[:, None] * K + at + k[None, :], mask=m[:, None] < M, other=0.0)
        word = tl.load(words + ((at + k) // 8)[:, None] * N + n[None, :])
        code = (word >> ((k % 8) * 4)[:, None]) & 15
        scale = tl.load(scales + (at // BK) * N + n).to(tl.float32)
        part = tl.dot(a, (code - 8).to(tl.float32).to(a.dtype))
        total += part * scale[None, :]
    at_out = out + m[:, None] * N + n[None, :]
    tl.store(at_out, total.to(out.dtype.element_ty), mask=m[:, None] < M)


def four_bits(
    x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [M, K] times weights [K, N] of scale * (code - 8): [M, N].

    words: int32 [K / 8, N], eight codes each, the lowest first. scales: [K / 128, N]. N a multiple
    of 64, K of 128.
    """
    (rows, depth), columns = x.shape, words.shape[1]
    if out is None:
        out = torch.empty((rows, columns), device=x.device, dtype=x.dtype)
    tile = min(64, max(16, triton.next_power_of_2(rows)))
    _four_bits[(columns // 64, -(-rows // tile))](
        *(x, words, scales, out, rows, columns, depth), BM=tile, BN=64, BK=GROUP
    )
    return out


# ---- draws ---------------------------------------------------------------------------------------


@triton.jit
def _draw(  # noqa: PLR0917 - numbers of a launch
    logits, out, V, temperature, top_k, top_p, seed, BLOCK: tl.constexpr, STEPS: tl.constexpr
):
    """A program a row: bounds of top-k and top-p are found by halving, the draw is the largest of
    log p plus Gumbel noise."""
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    x = logits + row.to(tl.int64) * V
    high, low = -float("inf"), float("inf")
    for at in range(0, V, BLOCK):
        v = tl.load(x + at + i, mask=at + i < V, other=-float("inf"))
        high = tl.maximum(high, tl.max(v, 0))
        v = tl.load(x + at + i, mask=at + i < V, other=float("inf"))
        low = tl.minimum(low, tl.min(v, 0))
    least, most = low, high  # of top-k: at least top_k are at `least` or above
    for _ in range(STEPS):
        middle = (least + most) / 2
        above = 0
        for at in range(0, V, BLOCK):
            v = tl.load(x + at + i, mask=at + i < V, other=-float("inf"))
            above += tl.sum((v >= middle).to(tl.int32), 0)
        enough = above >= top_k
        least = tl.where(enough, middle, least)
        most = tl.where(enough, most, middle)
    bound = least
    whole = 0.0
    for at in range(0, V, BLOCK):
        v = tl.load(x + at + i, mask=at + i < V, other=-float("inf"))
        whole += tl.sum(tl.where(v >= bound, tl.exp((v - high) / temperature), 0.0), 0)
    least, most = bound, high  # of top-p: they weigh at least top_p of the whole
    for _ in range(STEPS):
        middle = (least + most) / 2
        mass = 0.0
        for at in range(0, V, BLOCK):
            v = tl.load(x + at + i, mask=at + i < V, other=-float("inf"))
            mass += tl.sum(tl.where(v >= middle, tl.exp((v - high) / temperature), 0.0), 0)
        enough = mass >= top_p * whole
        least = tl.where(enough, middle, least)
        most = tl.where(enough, most, middle)
    best, token = -float("inf"), 0
    for at in range(0, V, BLOCK):
        v = tl.load(x + at + i, mask=at + i < V, other=-float("inf"))
        u = tl.maximum(tl.rand(seed, row * V + at + i), 1e-30)
        score = tl.where(v >= least, v / temperature - tl.log(-tl.log(u)), -float("inf"))
        top = tl.max(score, 0)
        token = tl.where(top > best, at + tl.argmax(score, 0), token)
        best = tl.maximum(best, top)
    tl.store(out + row, token)


def draw(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, seed: int
) -> torch.Tensor:
    """A token of each row of logits [B, V], among those of top-k and, of these, top-p."""
    out = torch.empty(logits.shape[0], device=logits.device, dtype=torch.int32)
    V = logits.shape[1]
    block = min(4096, triton.next_power_of_2(V))
    _draw[(logits.shape[0],)](
        *(logits, out, V, temperature, top_k, top_p, seed), BLOCK=block, STEPS=32
    )
    return out
