"""The benchmark's Triton kernels compute what they are compared for; by Triton's interpreter.

Skipped where triton or torch is absent.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.torch
CASES = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import triton_peers as peers
torch.manual_seed(1)
if sys.argv[2] == "attend":
    lengths, H, K, d = torch.tensor([1, 64, 130, 700], dtype=torch.int32), 6, 2, 32
    pages = 12
    table = torch.randperm(4 * pages, dtype=torch.int32).reshape(4, pages)
    cache, q = torch.randn(4 * pages, K, 2, 64, d), torch.randn(4, H, d)
    made = peers.attend(q, cache, table, lengths, run=3)
    for i, n in enumerate(lengths.tolist()):
        kv = cache[table[i]].permute(1, 2, 0, 3, 4).reshape(K, 2, -1, d)[:, :, :n]
        k, v = (kv[:, j].repeat_interleave(H // K, 0) for j in (0, 1))
        p = torch.softmax(torch.einsum("hd,htd->ht", q[i], k) * d**-0.5, 1)
        torch.testing.assert_close(made[i], torch.einsum("ht,htd->hd", p, v), rtol=1e-4, atol=1e-5)
elif sys.argv[2] == "four_bits":
    for M in (1, 5, 70):
        N, K = 128, 384
        codes = torch.randint(0, 16, (K, N))
        words = sum(codes[j::8].long() << 4 * j for j in range(8)).to(torch.int32)
        x, scales = torch.randn(M, K), torch.rand(K // 128, N)
        w = (codes - 8) * scales.repeat_interleave(128, 0)
        torch.testing.assert_close(peers.four_bits(x, words, scales), x @ w, rtol=1e-4, atol=1e-3)
else:
    V, n = 300, 1500
    row = torch.randn(V) * 2
    made = peers.draw(row.expand(n, V).contiguous(), 0.8, 20, 0.9, 7).long()
    p = torch.softmax(row / 0.8, 0)
    best = p.argsort(descending=True)[:20]
    kept = p[best] / p[best].sum()
    best = best[: int((kept.cumsum(0) < 0.9).sum()) + 1]
    want = p[best] / p[best].sum() * n
    found = torch.bincount(made, minlength=V)
    assert found.sum() == found[best].sum() == n
    assert ((found[best] - want) ** 2 / want).sum() < 3 * len(best)
    assert (peers.draw(row[None], 0.8, 1, 1.0, 3) == row.argmax()).all()
print("agrees")
"""


@pytest.mark.parametrize("kernel", ["attend", "four_bits", "draw"])
def test_they_compute_what_they_are_compared_for(kernel: str) -> None:
    if not all(importlib.util.find_spec(name) for name in ("torch", "triton")):
        pytest.skip("needs torch and triton")
    own = {**os.environ, "TRITON_INTERPRET": "1"}
    words = [sys.executable, "-c", CASES, str(ROOT / "benchmarks"), kernel]
    done = subprocess.run(words, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["agrees"]
