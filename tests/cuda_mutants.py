"""Bugs to plant in GPU kernels, as changes of their text, and what the emulator says of each.

Owns the list for every kernel: (name, text, changed text, reason). A text that is no longer found
in its file exactly once fails the tests, so the list follows the kernels. The reason is part of the
emulator's message, NUMBERS where only the output can tell, or "" where it depends on the order of
events. Used by test_cuda_emu.py.
"""

from __future__ import annotations

from typing import NamedTuple

NUMBERS = "wrong numbers"


class Mutant(NamedTuple):
    name: str
    text: str
    changed: str
    reason: str


GEMM_BF16 = [
    Mutant(
        "parity of a full stage",
        "FULL_AT + at.stage * 8, at.parity);",
        "FULL_AT + at.stage * 8, at.parity ^ 1);",
        "reads shared memory",
    ),
    Mutant(
        "parity of an empty stage",
        "at.parity ^ 1);\n            la_mbar_expect",
        "at.parity);\n            la_mbar_expect",
        "dead lock",
    ),
    Mutant(
        "no wait for an empty stage",
        "la_mbar_wait(smem + plan::EMPTY_AT + at.stage * 8, at.parity ^ 1);\n",
        "",
        "",
    ),
    Mutant(
        "no wait for a full stage",
        "la_mbar_wait(smem + plan::FULL_AT + at.stage * 8, at.parity);\n",
        "",
        "reads shared memory",
    ),
    Mutant(
        "parity never turns",
        "at->parity ^= 1;",
        "",
        "more arrivals at the barrier",
    ),
    Mutant(
        "too few bytes expected",
        "la_mbar_expect(full, plan::X + plan::W)",
        "la_mbar_expect(full, plan::X)",
        "where a copy is in flight",
    ),
    Mutant(
        "too many bytes expected",
        "la_mbar_expect(full, plan::X + plan::W)",
        "la_mbar_expect(full, plan::X + plan::W + 128)",
        "dead lock",
    ),
    Mutant(
        "stage given back before its products",
        "plan::EMPTY_AT + last * 8);\n            }\n            last",
        "plan::EMPTY_AT + at.stage * 8);\n            }\n            last",
        "dead lock",
    ),
    Mutant(
        "products overlap by one more than stages",
        "la_wgmma_wait<1>();",
        "la_wgmma_wait<2>();",
        "nothing orders the two",
    ),
    Mutant(
        "accumulators read before their wait",
        "la_wgmma_wait<0>();\n        la_wgmma_pin(d);",
        "la_wgmma_wait<1>();\n        la_wgmma_pin(d);",
        "nothing orders the two",
    ),
    Mutant("no wgmma fence", "            la_wgmma_fence();\n", "", "no la_wgmma_fence"),
    Mutant(
        "group of products not committed",
        "            la_wgmma_commit();\n",
        "",
        "not been waited for",
    ),
    Mutant("no proxy fence", "    la_fence_async();\n", "", "without a proxy fence"),
    Mutant(
        "proxy fence behind the barrier",
        "    la_fence_async();\n    la_bar_sync(1 + group, 128);\n",
        "    la_bar_sync(1 + group, 128);\n    la_fence_async();\n",
        "without a proxy fence",
    ),
    Mutant(
        "no meeting before the output is stored",
        "    la_fence_async();\n    la_bar_sync(1 + group, 128);\n",
        "    la_fence_async();\n",
        "la_tma_store reads shared memory",
    ),
    Mutant(
        "no meeting before the output buffer is reused",
        "    la_bar_sync(1 + group, 128);\n    LA_UNROLL\n    for (int j = 0; j < BN / 8",
        "    LA_UNROLL\n    for (int j = 0; j < BN / 8",
        "which a store in flight still reads",
    ),
    Mutant(
        "output buffer reused unread",
        "        la_bulk_wait_read<0>(); /* the last tile has left the buffer */\n",
        "",
        "which a store in flight still reads",
    ),
    Mutant(
        "block ends under its stores",
        "        la_bulk_wait<0>();\n",
        "",
        "copy in flight that it has not waited for",
    ),
    Mutant("stores not committed", "        la_bulk_commit();\n", "", "no committed group"),
    Mutant(
        "two groups at one barrier",
        "la_bar_sync(1 + group, 128);\n    if (thread == 0) {\n        LA_UNROLL",
        "la_bar_sync(1, 128);\n    if (thread == 0) {\n        LA_UNROLL",
        "",
    ),
    Mutant(
        "barrier for too many threads",
        "la_bar_sync(1 + group, 128);\n    if (thread == 0) {\n        LA_UNROLL",
        "la_bar_sync(1 + group, 256);\n    if (thread == 0) {\n        LA_UNROLL",
        "dead lock",
    ),
    Mutant(
        "too few arrivals expected",
        "la_mbar_init(smem + plan::EMPTY_AT + i * 8, 8)",
        "la_mbar_init(smem + plan::EMPTY_AT + i * 8, 4)",
        "where a copy is in flight",
    ),
    Mutant(
        "too many arrivals expected",
        "la_mbar_init(smem + plan::EMPTY_AT + i * 8, 8)",
        "la_mbar_init(smem + plan::EMPTY_AT + i * 8, 9)",
        "dead lock",
    ),
    Mutant(
        "barriers not fenced",
        "        la_fence_mbar_init();\n",
        "",
        "was not fenced",
    ),
    Mutant(
        "no meeting behind the barriers' start",
        "    la_sync_block();\n",
        "",
        "no barrier was initialised",
    ),
    Mutant("descriptor of x steps too far", "x + step * 2,", "x + step * 4,", ""),
    Mutant("descriptor of w steps too short", "w + step * 2,", "w + step,", NUMBERS),
    Mutant(
        "misaligned stages",
        "W_AT = STAGES * X,",
        "W_AT = STAGES * X + 512,",
        "must be aligned to 1024",
    ),
    Mutant("rows of the other group", "group * 8192);", "0);", NUMBERS),
    Mutant(
        "sum continues from the last tile",
        "k + step > 0);",
        "true);",
        NUMBERS,
    ),
    Mutant("sum restarts with every block of K", "k + step > 0);", "step > 0);", NUMBERS),
    Mutant(
        "tail of M left out",
        "const int tiles = ((a.M + plan::BM - 1) / plan::BM)",
        "const int tiles = (a.M / plan::BM)",
        NUMBERS,
    ),
    Mutant(
        "tail of N left out",
        "* ((a.N + BN - 1) / BN);",
        "* (a.N / BN);",
        NUMBERS,
    ),
    Mutant(
        "tail of K left out",
        "k < a.K; k += plan::BK) {\n            la_mbar_wait",
        "k + plan::BK <= a.K; k += plan::BK) {\n            la_mbar_wait",
        "still in flight",
    ),
    Mutant(
        "bias read past its end",
        "if (a.bias && column < a.N)",
        "if (a.bias)",
        "of global memory",
    ),
    Mutant("bias of the wrong lane", "+ lane % 4 * 2;", "+ lane / 4 * 2;", NUMBERS),
    Mutant("output not swizzled", "^ (uint32_t)(row % 8);", ";", NUMBERS),
    Mutant("output halves swapped", "la_bf16x2(lo, hi)", "la_bf16x2(hi, lo)", NUMBERS),
    Mutant(
        "output rows folded", "16 + (lane & 15);", "16 + (lane & 7);", "which nobody has written"
    ),
    Mutant("output box of the wrong columns", "n0 + j * 64, m0);", "n0, m0);", NUMBERS),
    Mutant("coordinates swapped", "full, k, m0);", "full, m0, k);", NUMBERS),
    Mutant("more registers than there are", "la_regs_grow<232>", "la_regs_grow<248>", "registers"),
    Mutant(
        "writes before the predecessor has ended",
        "    la_grid_wait();\n",
        "",
        "before la_grid_wait",
    ),
]
