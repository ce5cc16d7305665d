"""Bugs to plant in GPU kernels, as changes of their text, and what the emulator says of each.

Owns the lists of Hopper's product, of attention and of the sampler: (name, text, changed text,
reason). A text that is no longer found in its file exactly once fails the tests, so the list
follows the kernels. The reason is part of the emulator's message, NUMBERS where only the output can
tell, or "" where it depends on the order of events. Used by test_cuda_emu.py and
test_cuda_planted.py, which has those of other kernels.
"""

from __future__ import annotations

from typing import NamedTuple

NUMBERS = "wrong numbers"


class Mutant(NamedTuple):
    """mnk: of the product that must show it."""

    name: str
    text: str
    changed: str
    reason: str
    mnk: tuple[int, int, int] = (300, 264, 328)


# 17 tiles of rows, of which 16 run side by side, and two of columns.
TALL = (2049, 136, 64)


GEMM_SM90 = [
    Mutant(
        "parity of a full stage",
        "FULL_AT + at.stage * 8, at.parity);",
        "FULL_AT + at.stage * 8, at.parity ^ 1);",
        "reads shared memory",
    ),
    Mutant(
        "parity of an empty stage",
        "EMPTY_AT + at.stage * 8, at.parity ^ 1);",
        "EMPTY_AT + at.stage * 8, at.parity);",
        "nothing orders the two",
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
    Mutant("parity never turns", "at->parity ^= 1;", "", ""),
    Mutant(
        "too few bytes expected",
        "la_mbar_expect(full, plan::X + plan::W)",
        "la_mbar_expect(full, plan::W)",
        "where a copy is in flight",
    ),
    Mutant(
        "too many bytes expected",
        "la_mbar_expect(full, plan::X + plan::W)",
        "la_mbar_expect(full, plan::X + plan::W + 128)",
        "dead lock",
    ),
    Mutant(
        "weights of a stage asked for twice",
        "if (!rows || n >= STAGES) {",
        "{",
        "",
    ),
    Mutant(
        "one stage too many without its weights",
        "if (!rows || n >= STAGES) {",
        "if (!rows || n > STAGES) {",
        "",
    ),
    Mutant(
        "rows before the wait for them",
        "                if (rows) {\n                    la_tma_load",
        "                {\n                    la_tma_load",
        "",
    ),
    Mutant(
        "stage given back before its products",
        "plan::EMPTY_AT + last * 8);\n                }\n                last",
        "plan::EMPTY_AT + at.stage * 8);\n                }\n                last",
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
        "la_wgmma_wait<0>();\n            la_wgmma_pin(d);",
        "la_wgmma_wait<1>();\n            la_wgmma_pin(d);",
        "nothing orders the two",
    ),
    Mutant("no wgmma fence", "                la_wgmma_fence();\n", "", "no la_wgmma_fence"),
    Mutant(
        "group of products not committed",
        "                la_wgmma_commit();\n",
        "",
        "not been waited for",
    ),
    Mutant(
        "last stage of a piece kept",
        "            if (la_lane() == 0) {\n                la_mbar_arrive",
        "            if (la_lane() == 32) {\n                la_mbar_arrive",
        "dead lock",
    ),
    Mutant(
        "too few arrivals expected",
        "la_mbar_init(smem + plan::EMPTY_AT + i * 8, 8)",
        "la_mbar_init(smem + plan::EMPTY_AT + i * 8, 4)",
        "nothing orders the two",
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
        "W_AT = STAGES * X;",
        "W_AT = STAGES * X + 512;",
        "must be aligned to 1024",
    ),
    Mutant("rows of the other group", "group * 8192);", "0);", NUMBERS),
    Mutant("sum continues from the last piece", "k - begin + step > 0);", "true);", NUMBERS),
    Mutant("sum restarts with every block of K", "k - begin + step > 0);", "step > 0);", NUMBERS),
    Mutant(
        "pieces do not add up",
        "sum[j] = piece == item.first ? d[j] : sum[j] + d[j];",
        "sum[j] = d[j];",
        NUMBERS,
    ),
    Mutant(
        "pieces of the last tile",
        "piece == item.first ? d[j]",
        "piece == 0 && i == 0 ? d[j]",
        NUMBERS,
    ),
    Mutant("a piece too few", "at.end = piece + 1;", "at.end = piece;", NUMBERS),
    Mutant(
        "all pieces by each block",
        "        at.first = piece;\n",
        "        at.first = 0;\n",
        NUMBERS,
    ),
    Mutant(
        "edges of pieces inside of a block",
        "blocks * piece / a.pieces) * 64;",
        "a.p.K * piece / a.pieces);",
        NUMBERS,
    ),
    Mutant(
        "tail of M left out",
        "const int tiles = ((a.p.M + BM - 1) / BM)",
        "const int tiles = (a.p.M / BM)",
        NUMBERS,
    ),
    Mutant(
        "tail of N left out",
        "* ((a.p.N + BN - 1) / BN);",
        "* (a.p.N / BN);",
        NUMBERS,
    ),
    Mutant(
        "tail of K left out",
        "const int blocks = (a.p.K + 63) / 64;",
        "const int blocks = a.p.K / 64;",
        NUMBERS,
    ),
    Mutant(
        "all tiles of rows in the first raster",
        "const int top = tile / (plan::TOGETHER * tiles_n) * plan::TOGETHER;",
        "const int top = 0;",
        NUMBERS,
        TALL,
    ),
    Mutant(
        "a last raster as high as the first",
        "tiles_m - top < plan::TOGETHER ? tiles_m - top :",
        "tiles_m < plan::TOGETHER ? tiles_m :",
        NUMBERS,
        TALL,
    ),
    Mutant("tiles of other columns", "in / high * BN, 0,", "in % high * BN, 0,", NUMBERS),
    Mutant("coordinates swapped", "full, k, item.m0);", "full, item.m0, k);", NUMBERS),
    Mutant(
        "partial sums of the other piece",
        "(int64_t)item.first * a.p.M + m0",
        "(int64_t)m0",
        NUMBERS,
    ),
    Mutant(
        "partial sums of rows that are not",
        "to != NULL && m0 + lane / 4 + i * 8 < a.p.M",
        "to != NULL",
        "",
    ),
    Mutant(
        "halves of rows swapped", "i * 8 * columns + u * 32", "(1 - i) * 8 * columns + u * 32", ""
    ),
    Mutant("partial sums of one unit", "columns + u * 32 + j * 8", "columns + j * 8", NUMBERS),
    Mutant("rows of another warp", "% 128 / 32 * 16);", "/ 128 * 16);", ""),
    Mutant(
        "one piece too few is merged",
        "piece < a.pieces; piece++) {\n        y",
        "piece < a.pieces - 1; piece++) {\n        y",
        NUMBERS,
    ),
    Mutant("another unit is merged", "m, unit * LA_UNIT, y)", "m, unit / 2 * LA_UNIT, y)", NUMBERS),
    Mutant("more registers than there are", "la_regs_grow<232>", "la_regs_grow<248>", "registers"),
    Mutant(
        "merges before the pieces are there",
        "    la_grid_wait();\n    la_grid_release();\n    const int unit",
        "    la_grid_release();\n    const int unit",
        "la_grid_wait",
    ),
]

ATTEND = [
    Mutant(
        "page read before it is there",
        "la_cp_async_wait<1>();",
        "la_cp_async_wait<2>();",
        "where a copy is in flight",
    ),
    Mutant(
        "what other threads copied",
        "        la_sync_block(); /* the page is there, of the first one queries too */\n",
        "",
        "la_ldmatrix reads",
    ),
    Mutant(
        "page refilled while it is read",
        "        la_sync_block(); /* the page has been read by all */\n",
        "",
        "nothing orders the two",
    ),
    Mutant("own token not counted", "t <= pos &&", "t < pos &&", NUMBERS),
    Mutant(
        "no mask where one is left out",
        "base + LA_PAGE - 1 > r.open",
        "base + LA_PAGE - 2 > r.open",
        NUMBERS,
    ),
    Mutant("window too wide", "pos - a.window + 1", "pos - a.window", NUMBERS),
    Mutant(
        "sums do not fade", "la_fma(r.sum[h], fade, sum)", "la_fma(r.sum[h], 1.0f, sum)", NUMBERS
    ),
    Mutant(
        "values do not fade", "r.o[j][2 * h + 1] *= fade;", "r.o[j][2 * h + 1] *= 1.0f;", NUMBERS
    ),
    Mutant("tail of a page is no zeros", "t <= last &&", "t <= last + LA_PAGE &&", NUMBERS),
    Mutant("row goes on in the next", "&& at < row ? PIECE", "? PIECE", NUMBERS),
    Mutant("halves of d swapped", "lane / 8 % 2 * 16", "(1 - lane / 8 % 2) * 16", NUMBERS),
    Mutant(
        "halves of the weights swapped",
        "p[j / 2][j % 2 * 2 + h]",
        "p[j / 2][j % 2 + 2 * h]",
        NUMBERS,
    ),
    Mutant("values of other tokens", "(step * 16) * c.pitch", "(step * 8) * c.pitch", NUMBERS),
    Mutant("largest of two lanes", "la_shfl_xor_f32(most, 2)", "la_shfl_xor_f32(most, 1)", NUMBERS),
    Mutant(
        "sum of two lanes",
        "part + la_shfl_xor_f32(part, 2)",
        "part + la_shfl_xor_f32(part, 1)",
        NUMBERS,
    ),
    Mutant(
        "columns of the first warp", "SLICES == 1 ? 0 : warp / GROUPS * COLS", "0 * SLICES", NUMBERS
    ),
    Mutant("pages of the first", "la_ldg(a.first + u.token)", "la_ldg(a.first)", ""),
    Mutant("tokens of the tile before", "(u.row + row) / u.group", "row / u.group", ""),
    Mutant("heads of the tile before", "(u.row + row) % u.group", "row % u.group", NUMBERS),
    Mutant("no sink", "sum + la_exp2(la_ldg", "sum + 0.0f * la_exp2(la_ldg", NUMBERS),
    Mutant("no cap", "a.softcap != 0.0f ? out", "a.softcap > 9.0f ? out", NUMBERS),
    Mutant("chunks not folded", "f.fresh, there * f.old", "f.fresh, there * 0.0f", NUMBERS),
    Mutant("chunk folded a page early", "% LA_CHUNK == 0", "% LA_CHUNK == 192", NUMBERS),
    Mutant(
        "items of the token before",
        "la_ldg(a.items + half) <= item",
        "la_ldg(a.items + half) < item",
        "",
    ),
    Mutant(
        "one chunk too few", "chunk < u.from / LA_CHUNK)", "chunk <= u.from / LA_CHUNK)", NUMBERS
    ),
    Mutant(
        "end of a chunk", "u.to < stop ? u.to : stop;", "u.to < stop ? u.to : stop - 1;", NUMBERS
    ),
    Mutant(
        "partial of another head",
        "a.n_heads + head_of_row(u, row + own)) * (a.d + 2)",
        "a.n_heads + head_of_row(u, row)) * (a.d + 2)",
        "",
    ),
]

ATTEND_MERGE = [
    Mutant(
        "merged from the first", "? chunk + j : last) * step", "? chunk : last) * step", NUMBERS
    ),
    Mutant("a chunk merged twice", "chunk += AT_ONCE)", "chunk += AT_ONCE - 1)", NUMBERS),
]

# Of sample.cu, by the check of test_cuda_planted.py that sees them.
SAMPLE = {
    "draws": [
        Mutant("banned whatever came", "|| after == newest", "|| after < 99", NUMBERS),
        Mutant("newest is not counted", "count + (id == newest)", "count", NUMBERS),
        Mutant("newest is forgotten", "&& la_lds(mark) == 0", "&& mark == 0", NUMBERS),
        Mutant("biased by another", "list + 2 * i + 1)));", "list + 1)));", NUMBERS),
        Mutant(
            "a tie's later id",
            "(uint32_t)((1 << ID_BITS) - 1 - id)",
            "(uint32_t)id",
            "is in no registered allocation",
        ),
        Mutant("no carry", "+ mantissa < mantissa", "== 7u", NUMBERS),
        Mutant("a level too few", "level < 5;", "level < 4;", "is in no registered allocation"),
        Mutant(
            "one lane too much", "mine.n += sum - n", "mine.n += sum", "which nobody has written"
        ),
        Mutant("min_p itself", "p >= floor", "p > floor", "which nobody has written"),
        Mutant("other numbers", "0xBB67AE85u", "0xBB67AE86u", NUMBERS),
        Mutant("equals in the rank", "v > value", "v >= value", NUMBERS),
        Mutant("sums of one thread", "sum += la_lane() == 0 ?", "sum += 1 ?", NUMBERS),
        Mutant("all of the set", "(double)top_p * total", "total", NUMBERS),
        Mutant("a slice too far", "sum + la_row_slice(s) > want", "sum > want", NUMBERS),
        Mutant(
            "beyond the row",
            "v[j] = first + j < V ?",
            "v[j] = first >= 0 ?",
            "is in no registered allocation",
        ),
        Mutant(
            "bins read early",
            "la_sync_block(); /* all is counted",
            "/* all is counted",
            "nothing orders the two",
        ),
    ],
    "long_lists": [
        Mutant(
            "mark set by one warp and cleared by another",
            "la_sts(mark, newest < 0);\n    }\n    la_sync_block();\n",
            "la_sts(mark, newest < 0);\n    }\n",
            "nothing orders the two",
        ),
        Mutant(
            "ids seen beyond the block",
            "i < n_seen; i += BLOCK",
            "i < n_seen && i < BLOCK; i += BLOCK",
            NUMBERS,
        ),
        Mutant(
            "bans beyond a warp",
            "i < n_ban; i += BLOCK",
            "i < n_ban && i < 32; i += BLOCK",
            NUMBERS,
        ),
        Mutant(
            "biases beyond the block",
            "i < n_bias; i += BLOCK",
            "i < n_bias && i < BLOCK; i += BLOCK",
            NUMBERS,
        ),
    ],
    "flat": [
        Mutant(
            "more members than there is room for", "members <= LISTED", "members <= 2 * LISTED", ""
        ),
    ],
}
