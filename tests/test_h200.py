"""benchmarks/h200.sh and predict.py, as far as they can be tried without a GPU.

What a section does on a card is tried on the emulated device where that is cheap; that every
section says so where there is no card, and that the committed predictions are what the script
makes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import emulator
import pytest
import test_cuda_gates as gates
from conftest import ROOT
from emulator import KERNELS

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import h200  # noqa: E402
import predict  # noqa: E402


def lines(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]


def test_without_a_device_every_section_says_so(tmp_path: Path) -> None:
    if h200.devices():
        pytest.skip("there is a device")
    own = {**os.environ, "PYTHON": sys.executable}
    script = BENCHMARKS / "h200.sh"
    done = subprocess.run([script, tmp_path], env=own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = {line["section"]: line["status"] for line in lines(tmp_path)}
    sections = {function.__name__ for function in h200.SECTIONS} - {"tiny"}
    assert found == dict.fromkeys(sections, "no device")
    assert done.stdout.count("no device") == len(sections)


def test_a_section_that_fails_is_said(tmp_path: Path) -> None:
    """The others go on: no interpreter of this kind makes all of them fail."""
    own = {**os.environ, "PYTHON": "/bin/false"}
    subprocess.run([BENCHMARKS / "h200.sh", tmp_path], env=own, capture_output=True, timeout=60)
    assert all(line["status"].startswith("ended with 1") for line in lines(tmp_path))
    own["DEADLINE"] = "5"
    subprocess.run([BENCHMARKS / "h200.sh", tmp_path], env=own, capture_output=True, timeout=60)
    assert all(line["status"] == "no time left" for line in lines(tmp_path))


@pytest.mark.parametrize("section", ["kernels", "model", "peers"])
def test_sections_run_on_the_emulated_device(section: str, tmp_path: Path) -> None:
    library = emulator.backend()._name
    own = {**os.environ, "H200_DRY": library, "LLMACCEL_CUDA_LIBRARY": library}
    own |= {"LLMACCEL_EMU_CC": "80", "PYTHONPATH": str(ROOT / "python")}
    own["CUDA_HOME"] = str(emulator.cublas().parents[1])  # for the peers
    words = [sys.executable, str(BENCHMARKS / "h200.py"), section, str(tmp_path)]
    done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    found = lines(tmp_path)
    assert {line["status"] for line in found} == {"ok"}
    if section == "peers":
        assert [line.get("peer") for line in found] == [
            None,
            "cublaslt bf16",
            "cublaslt fp8 blocks",
        ]
    elif section == "kernels":
        names = ["attend", "product_sm90", "product_w4", "enter"]
        assert [line["kernel"] for line in found] == names
    else:
        assert [line["quantization"] for line in found] == [None, "w4g32"]
        assert all(line["repeats_alike"] for line in found)


def built() -> dict[str, predict.Built]:
    made: dict[str, predict.Built] = {}
    for name in predict.SOURCES:
        text, _ = gates.compile_for(predict.KERNELS / f"{name}.cu", "90a")
        made.update(predict.read_report(text))
    return made


def test_the_predictions_are_what_the_script_makes() -> None:
    """Registers are this source's, by the nvcc that is here."""
    recorded = BENCHMARKS / "results" / "h200_predicted.jsonl"
    assert recorded.read_text().splitlines() == predict.lines(built())


def test_predictions_keep_to_the_card() -> None:
    """No line is faster than its bytes or operations allow, or has more than fits an SM."""
    recorded = BENCHMARKS / "results" / "h200_predicted.jsonl"
    found = [json.loads(text) for text in recorded.read_text().splitlines()]
    for line in found:
        assert {"bytes", "flops", "occupancy", "us"} <= line.keys()
        assert line["us"] >= line["floor_us"]
        assert line["blocks_of_sm"] >= 1
        assert line["blocks_of_sm"] * line["threads"] * line["registers"] <= predict.REGISTERS
        assert line["blocks_of_sm"] * line["shared_bytes"] <= predict.SHARED


def test_bytes_and_flops_are_the_work() -> None:
    """Of products 2MNK and each operand once, whatever tiles, waves and pieces make of them."""
    found = [work for work in predict.works() if "K" in work.shape]
    assert {work.kernel for work in found} == {"product", "product_sm90", "product_w4"}
    assert {(16, 32), (16, 128)} <= {(w.shape["M"], w.shape.get("group")) for w in found}
    for work in found:
        M, N, K = (work.shape[name] for name in "MNK")
        assert work.flops == 2 * M * N * K
        group = work.shape.get("group")
        weights = N * K * 2 if group is None else N * (K // 2 + K // group * 2)
        sums = work.shape["pieces"] if work.shape.get("apart") else 1
        assert work.bytes == weights + M * K * 2 + sums * M * N * 4


def test_every_kernel_has_predictions() -> None:
    """Of the sources that launches come from; conformance.cu's are no part of a step."""
    names = {work.name for work in predict.works()}
    missing = [
        kernel
        for source in sorted({*KERNELS.glob("*.cu"), KERNELS / "gemm_sm90.h"})
        for kernel in re.findall(r"LA_KERNEL(?:_BOUNDS)?\((\w+),", source.read_text())
        if source.stem != "conformance" and not any(kernel in name for name in names)
    ]
    assert not missing


def test_predicted_pieces_are_the_librarys() -> None:
    pieces = emulator.backend().la_product_pieces
    for N, K in [*predict.MATRICES.values(), (128, 1024), (1024, 512), (5120, 27648)]:
        assert predict.pieces(N, K) == pieces(N, K)
