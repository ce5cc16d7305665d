"""Bugs planted in the device's generic kernels: each must fail the test of its kernel.

A mutant is a kernel's source with one piece of text replaced, in a library of its own. What
sees it is a test of test_cuda_rows.py, by a wrong value or by a fault that the emulator names.
The slow tests plant one at a time; the quick one plants a bug in each source, all in one library.
Those of attention and of the sampler are in cuda_mutants.py, as are bugs of Hopper's product,
which test_cuda_emu.py sees.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import emulator
import pytest
import test_cuda_products as products
import test_cuda_rows as rows
import test_cuda_sample as sample
from cuda_mutants import ATTEND, ATTEND_MERGE, GEMM_SM90, NUMBERS, SAMPLE
from emulator import KERNELS, RUNTIME


@dataclass(frozen=True)
class Planted:
    """In `file`, `text` (there once) becomes `changed`; `seen` runs the test that must fail.

    reason: words of the failure, an emulator's fault or NUMBERS.
    """

    file: str
    name: str
    text: str
    changed: str
    seen: Callable[[rows.Device], None]
    reason: str = NUMBERS


def enter(device: rows.Device) -> None:
    rows.test_enter(device, 3, 264, rows.RMS, 0)
    rows.test_enter(device, 3, 264, rows.LAYER, 0)


def norm_rows(device: rows.Device) -> None:
    rows.test_norm_rows(device, rows.LAYER, 0)


def elements(device: rows.Device) -> None:
    rows.test_elements(device, 1027)


def embed(device: rows.Device) -> None:
    rows.test_embed(device, 3, 200, 0)


def add_norm(device: rows.Device) -> None:
    rows.test_add_norm(device, rows.RMS)
    rows.test_add_norm(device, rows.LAYER)


def finish(device: rows.Device) -> None:
    products.test_sums_of_a_library_are_finished(device)


def chunks(device: rows.Device) -> None:
    rows.test_chunks(device, 31)
    rows.test_chunks(device, 32)


def heads(device: rows.Device) -> None:
    for norm, turned in ((1, 1), (2, 1), (3, 0)):
        rows.test_heads(device, norm=norm, turned=turned, interleaved=0, d=16, d_rope=8)


def attend(device: rows.Device) -> None:
    windowed = {"H": 6, "K": 1, "d": 24, "window": 70, "softcap": 5.0}
    rows.check_attend(device, runs=[(63, 1), (258, 3)], **windowed)
    rows.check_attend(device, runs=[(67, 6)], H=12, K=1, d=16, sinks=1)


def many_chunks(device: rows.Device) -> None:
    rows.test_attend_more_chunks_than_are_read_at_once(device)


def product(device: rows.Device) -> None:
    rows.test_a_product_follows_what_makes_its_rows(device)
    rows.test_product(device, 5, 72, 456, 0)
    rows.test_products_gate(device, 40, "silu")
    rows.test_products_finish(device)


def four_bits(device: rows.Device) -> None:
    products.test_four_bits_follow_what_makes_their_rows(device)
    products.test_four_bits(device, 0, {}, group=128, has_offset=0, wide=0)
    products.test_four_bits(device, 0, {}, group=32, has_offset=1, wide=1)


def many_rows(device: rows.Device) -> None:
    products.test_four_bits_of_any_number_of_rows(device)


def draws(device: rows.Device) -> None:
    sample.check_draws(device, 301, sample.sampling.PLAIN_CASES)
    with pytest.MonkeyPatch.context() as patch:
        sample.check_newest(device, patch)
    sample.check_flat(device, 9001)
    sample.test_best_are_in_order(device)


def long_lists(device: rows.Device) -> None:
    with pytest.MonkeyPatch.context() as patch:
        sample.check_long(device, patch)


def flat(device: rows.Device) -> None:
    sample.check_flat(device, 3000)


def resume(device: rows.Device) -> None:
    sample.test_a_step_takes_over_what_the_one_before_drew(device)


SYNC = "la_sync_block();\n"
PLANTED = [
    Planted(
        *("rows.cu", "sum read before it is written"),
        "    la_sync_block();\n    float sum",
        "    float sum",
        enter,
        "which nobody has written",
    ),
    Planted("rows.cu", "half of the warps", "WARPS / 2; bits", "WARPS / 4; bits", enter),
    Planted("rows.cu", "mean kept", "la_ldg(x + i) - n.mean", "la_ldg(x + i)", enter),
    Planted("rows.cu", "eps outside the root", "(float)D + eps)", "(float)D) + eps", enter),
    Planted("rows.cu", "no bias", "n->b != NULL ?", "n->b == n->w ?", enter),
    Planted(
        *("rows.cu", "last value of a row"),
        "for (int i = la_thread(); i < a.D; i += BLOCK) {\n        la_stg(out + i, narrow",
        "for (int i = la_thread(); i < a.D - 1; i += BLOCK) {\n        la_stg(out + i, narrow",
        enter,
    ),
    Planted(
        *("rows.cu", "no wait for the predecessor"),
        "    la_grid_wait();\n    la_grid_release();\n    int i = la_block_x(), from",
        "    int i = la_block_x(), from",
        rows.test_gather,
        "writes global memory before la_grid_wait",
    ),
    Planted(
        *("rows.cu", "norm of a row of its own"),
        "la_stg(out + i, normed(&n, la_ldg(x + i), i));\n    }\n}\n\n/* ---- lookup",
        "la_stg(out + i, normed(&n, la_ldg(out + i), i));\n    }\n}\n\n/* ---- lookup",
        norm_rows,
    ),
    Planted("elements.cu", "values of the first row", "i / a.k * a.V + id", "id", rows.test_pick),
    Planted("elements.cu", "a block of them", "* BLOCK * EACH + la", "* BLOCK + la", elements),
    Planted(
        *("elements.cu", "beyond the end", "if (i < a.n) {", "if (i < a.n + 2) {"),
        elements,
        "is in no registered allocation",
    ),
    Planted(
        "elements.cu",
        "factor on the other",
        "la_fma(a.scale, operand(a, i), la_ldg(a.y + i))",
        "la_fma(a.scale, la_ldg(a.y + i), operand(a, i))",
        elements,
    ),
    Planted(
        *("elements.cu", "no wait for what makes them"),
        "    la_grid_wait();\n    la_grid_release();\n    int64_t first",
        "    int64_t first",
        elements,
        "writes global memory before la_grid_wait",
    ),
    Planted("rows.cu", "lookup that adds to nothing", "la_ldg(out + i) + x : x", "x : x", embed),
    Planted("rows.cu", "id of the first token", "la_ldg(a.ids + t)", "la_ldg(a.ids)", embed),
    Planted("rows.cu", "what was there is lost", "i), la_ldg(x + i)));", "i), 0.0f));", add_norm),
    Planted(
        "rows.cu", "scale of the norm", "la_fma(a.scale, normed", "la_fma(1.0f, normed", add_norm
    ),
    Planted("rows.cu", "norm of all keys", "k ? a.k_norm : a.q_norm", "a.q_norm", heads),
    Planted("rows.cu", "turned the other way", "x * c - y * s", "x * c + y * s", heads),
    Planted("rows.cu", "slot of a page", "pos % LA_PAGE", "pos / LA_PAGE", heads),
    Planted(
        *("rows.cu", "rows that fill up are kept"),
        "    if (page < 0) {\n        return;\n    }\n",
        "",
        heads,
        "is in no registered allocation",
    ),
    Planted("rows.cu", "v over k", "is_v ? a.pages.k_bytes : 0", "0", heads),
    Planted("rows.cu", "values turned", "a.cos != NULL && !is_v", "a.cos != NULL", heads),
    Planted("rows.cu", "growth of a turned layer", "0 && !a.turned", "0 && a.turned", heads),
    Planted(
        *("gemm_mma.cu", "rows before the wait for them"),
        "    la_grid_wait();\n",
        "    load_tile(la_smem(), a.a, m0, BM, a.M, a.K, 0);\n    la_grid_wait();\n",
        product,
        "which the launch before writes",
    ),
    Planted(
        "gemm_mma.cu",
        "a stage too early",
        "wait<STAGES - 2>",
        "wait<STAGES - 1>",
        product,
        "where a copy is in flight",
    ),
    Planted(
        "gemm_mma.cu",
        "others' copies not met",
        SYNC[:-1] + " /* the stage",
        "/* the stage",
        product,
        "la_ldmatrix reads",
    ),
    Planted(
        "gemm_mma.cu",
        "refill of what is read",
        "(next % STAGES)",
        "(step % STAGES)",
        product,
        "nothing orders the two",
    ),
    Planted(
        "gemm_mma.cu",
        "beyond K",
        "k < K;",
        "k < K + 8;",
        product,
        "is in no registered allocation",
    ),
    Planted(
        "gemm_mma.cu",
        "beyond the rows",
        "first + row < rows",
        "first + row <= rows",
        product,
        "is in no registered allocation",
    ),
    Planted(
        "gemm_mma.cu", "halves of k swapped", "k + lane / 8 % 2", "k + 1 - lane / 8 % 2", product
    ),
    Planted("attention.cu", "one item a token", "/ LA_CHUNK + 1) : 0u", "/ LA_CHUNK) : 0u", chunks),
    Planted("attention.cu", "sum of half a warp", "by = 1; by < 32;", "by = 1; by < 16;", chunks),
    Planted("attention.cu", "a lane too much", "t >= by ? before", "t > by ? before", chunks),
    Planted(
        "gemm_w4.cu",
        "rows before the wait for them",
        "    la_grid_wait();\n    la_grid_release();\n    for",
        "    for",
        four_bits,
        "la_grid_wait",
    ),
    Planted(
        "gemm_w4.cu",
        "zero of codes with offsets",
        "OFFSET ? 0xc300c300u",
        "OFFSET ? 0xc308c308u",
        four_bits,
    ),
    Planted("gemm_w4.cu", "zero of codes without", ": 0xc308c308u", ": 0xc300c300u", four_bits),
    Planted(
        "gemm_w4.cu",
        "pairs swapped",
        "codes_of<1, OFFSET>(w.x), codes_of<1, OFFSET>(w.y)},",
        "codes_of<2, OFFSET>(w.x), codes_of<1, OFFSET>(w.y)},",
        four_bits,
    ),
    Planted(
        "gemm_w4.cu",
        "rows of the other half",
        "la_mma_bf16(acc[h][i], hi[h], back)",
        "la_mma_bf16(acc[h][i], hi[1 - h], back)",
        four_bits,
    ),
    Planted(
        "gemm_w4.cu",
        "half of the sums of x",
        "            la_mma_bf16(acc[1 + OFFSET][i], ones, back);\n",
        "",
        four_bits,
    ),
    Planted(
        "gemm_w4.cu",
        "scale of the group before",
        "unit, b >> a.log, acc",
        "unit, b >> (a.log + 1), acc",
        four_bits,
    ),
    Planted(
        "gemm_w4.cu", "a group's sum kept", "                acc[h][i][e] = 0.0f;\n", "", four_bits
    ),
    Planted(
        "gemm_w4.cu",
        "sums of x kept",
        "                acc[1 + OFFSET][i][e] = 0.0f;\n",
        "",
        four_bits,
    ),
    Planted("gemm_w4.cu", "last group not folded", " || b + 1 == blocks", "", four_bits),
    Planted(
        "gemm_w4.cu",
        "beyond K",
        "b * 32 < a.p.K",
        "b * 32 <= a.p.K",
        four_bits,
        "is in no registered allocation",
    ),
    Planted(
        "gemm_w4.cu",
        "rows that are not",
        "m < a.p.M ? la_ldg",
        "m <= a.p.M ? la_ldg",
        four_bits,
        "is in no registered allocation",
    ),
    Planted(
        "gemm_w4.cu",
        "no meeting before sums are added",
        "    la_sync_block();\n    for (int token",
        "    for (int token",
        four_bits,
        "which nobody has written",
    ),
    Planted(
        "gemm_w4.cu",
        "sums of one warp too few",
        "i < WARPS; i++) {\n            y",
        "i < WARPS - 1; i++) {\n            y",
        many_rows,
    ),
    Planted(
        "gemm_w4.cu", "the next run twice", "run += WARPS) {", "run += WARPS / 2) {", many_rows
    ),
    Planted(
        "gemm_w4.cu",
        "token of another block",
        "m0 + token, la_block_x()",
        "token, la_block_x()",
        many_rows,
    ),
    Planted(
        "gemm_w4.cu",
        "scales of other rows",
        "la_lane() / 4 + 8 * j;\n        to",
        "la_lane() / 8 + 8 * j;\n        to",
        four_bits,
    ),
    Planted(
        "product_finish.h",
        "a row too many",
        "m >= a.M",
        "m > a.M",
        product,
        "a store of 4 bytes",
    ),
    Planted("product_finish.h", "a column too many", "n >= a.N", "n > a.N", product),
    Planted(
        "product_finish.h",
        "ups of the next unit",
        "h < a.N / 2",
        "h < a.N",
        product,
        "a store of 4 bytes",
    ),
    Planted("product_finish.h", "gate of the up", "y[j], y[j + 2]", "y[j + 2], y[j]", product),
    Planted("product_finish.h", "no scale", "la_fma(f.scale, y", "la_fma(1.0f, y", product),
    Planted(
        "step.cu",
        "the row behind",
        "-1 - token",
        "-token",
        resume,
        "is in no registered allocation",
    ),
    Planted(
        *("finish.cu", "no wait for the sums"),
        "    la_grid_wait();\n",
        "",
        finish,
        "writes global memory before la_grid_wait",
    ),
    Planted("finish.cu", "rows without their gap", "m * a.ldy", "m * a.p.N", finish),
    Planted("finish.cu", "the last units", "(units + FINISH_WARPS - 1) /", "units /", finish),
    Planted("finish.cu", "every unit the first", "+ la_thread() / 32,", "+ 0,", finish),
    Planted("step.cu", "a failed draw is fed", "drawn < 0 ? 0 : drawn", "drawn", resume),
    Planted("step.cu", "a block too few", "BLOCK - 1) / BLOCK", "0) / BLOCK", resume),
    Planted(
        "step.cu",
        "no wait for what is drawn",
        "    la_grid_wait();\n",
        "",
        resume,
        "before la_grid_wait",
    ),
]
PLANTED += [Planted("attention.cu", *one[:3], attend, one.reason) for one in ATTEND]
PLANTED += [Planted("attention.cu", *one[:3], many_chunks, one.reason) for one in ATTEND_MERGE]
PLANTED += [
    Planted("sample.cu", *bug[:3], check, bug.reason)
    for check in (draws, long_lists, flat)
    for bug in SAMPLE[check.__name__]
]


FILES = ["rows.cu", "elements.cu", "attention.cu", "gemm_mma.cu", "gemm_w4.cu", "sample.cu"]
FILES += ["step.cu", "finish.cu"]
# Of each of them one, by a fault and by numbers; where one check launches two, not in both.
FEW = [
    "no wait for the predecessor",
    "factor on the other",
    "chunks not folded",
    "refill of what is read",
    "scale of the group before",
    "a tie's later id",
    "the row behind",
    "no wait for the sums",
]


def changed_source(planted: Planted) -> str:
    """What takes the place of the source that holds the text, or includes the header that does."""
    text = (KERNELS / planted.file).read_text()
    assert text.count(planted.text) == 1, f"{planted.file} holds {planted.text!r} not once"
    changed = text.replace(planted.text, planted.changed)
    if planted.file.endswith(".h"):  # in front, so that the source's own include finds it there
        changed += (KERNELS / "gemm_mma.cu").read_text()
    return changed.replace('"../../model/', f'"{emulator.CORE}/model/')


def library_of(name: str, planted: list[Planted], flags: list[str]) -> ctypes.CDLL:
    """The kernels with these bugs, of each source one at most."""
    folder = emulator.CACHE / "planted"
    folder.mkdir(parents=True, exist_ok=True)
    sources = {file: KERNELS / file for file in FILES}
    for one in planted:
        path, changed = folder / f"{one.name.replace(' ', '_')}.cu", changed_source(one)
        if not path.exists() or path.read_text() != changed:
            path.write_text(changed)
        sources["gemm_mma.cu" if one.file.endswith(".h") else one.file] = path
    return emulator.library(name, [*sources.values(), *RUNTIME], flags)


@cache
def library(planted: Planted) -> ctypes.CDLL:
    return library_of(planted.name.replace(" ", "_"), [planted], [])


@cache
def few() -> ctypes.CDLL:
    return library_of("few", [p for p in PLANTED if p.name in FEW], ["-O1"])


@pytest.fixture(scope="module")
def compiled() -> None:
    emulator.backend()  # what all share, by one thread
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(library, PLANTED))


def said(error: AssertionError) -> str:
    """The emulator's fault, which a test of rows has as its message, or NUMBERS."""
    text = str(error)
    return text if text.startswith("kernel: ") else f"{NUMBERS}: {text}"


def check_seen(planted: Planted, lib: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one of two seeds, for the reason that is expected."""
    seen = []
    for seed in (0, 3):
        monkeypatch.setenv("LLMACCEL_EMU_KERNELS", str(seed))
        device = rows.Device(lib)
        try:
            planted.seen(device)
        except AssertionError as error:
            seen.append(said(error))
        finally:
            device.rt.lib.la_rt_close(device.rt.rt)
        if any(planted.reason in reason for reason in seen):
            return
    pytest.fail(f"not seen, or not for the reason: {seen}")


def test_bugs_are_planted_in_every_source() -> None:
    """Three at least in each that has kernels, and all their texts are there."""
    kernels = {
        path.name
        for path in [*KERNELS.glob("*.cu"), KERNELS / "gemm_sm90.h"]
        if re.search(r"LA_KERNEL(_BOUNDS)?\(", path.read_text())
    } - {"conformance.cu"}
    planted = Counter(one.file for one in PLANTED) + Counter({"gemm_sm90.h": len(GEMM_SM90)})
    assert kernels == {file for file in planted if file != "product_finish.h"}
    assert min(planted.values()) >= 3
    assert planted.total() >= 30
    assert {one.file for one in PLANTED if one.name in FEW} == set(FILES)
    for one in PLANTED:
        changed_source(one)


@pytest.mark.parametrize(
    "planted", [p for p in PLANTED if p.name in FEW], ids=lambda planted: planted.name
)
def test_one_of_each_source_is_seen(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    check_seen(planted, few(), monkeypatch)


@pytest.mark.slow  # a compilation each
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_it_is_seen(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    check_seen(planted, library(planted), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        finish,
        embed,
        enter,
        norm_rows,
        elements,
        add_norm,
        chunks,
        heads,
        attend,
        product,
        four_bits,
        many_rows,
        draws,
        long_lists,
        flat,
        resume,
    ],
    ids=lambda check: check.__name__,
)
def test_what_sees_them_passes_without(check: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 3):
        monkeypatch.setenv("LLMACCEL_EMU_KERNELS", str(seed))
        device = rows.Device()
        check(device)
        device.rt.lib.la_rt_close(device.rt.rt)
