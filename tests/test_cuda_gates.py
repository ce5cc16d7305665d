"""Every CUDA source compiles for its targets, without spills, stack or products one after another.

What a GPU would suffer silently is read off the compiler's report and the machine code, under the
flags that setup.py compiles with: registers that spill, wgmma that is serialized, instructions
that are not there. Skipped where nvcc is absent; machine code is read where a disassembler is
(nvdisasm, also in the wheel nvidia-cuda-nvdisasm of the tests' extra).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

KERNELS = ROOT / "csrc" / "kernels" / "cuda"
GENERIC = ["80", "89", "90a", "100"]
# Hopper's sources by the end of their names; conformance.cu holds instructions of sm_90a as well.
HOPPER = re.compile(r"(_sm90|^conformance)$")
# Instructions that must be in the machine code of a source for sm_90a.
WANTED = {
    "gemm_sm90": ["HGMMA", "UTMALDG", "USETMAXREG", "SYNCS"],
    "conformance": ["HGMMA", "QGMMA", "HMMA", "IMMA", "LDSM", "UTMALDG.5D", "UBLKCP", "LDGSTS"],
}
# Targets of the quick tests; the others, and conformance.cu, are for the slow ones.
QUICK = {"90a"}
CACHE = ROOT / "build" / "gates"


def targets(path: Path) -> list[str]:
    return ["90a"] if HOPPER.search(path.stem) else GENERIC


def sources(archs: set[str]) -> list[object]:
    """(source, target) of every CUDA source, for the targets among these."""
    return [
        pytest.param(
            path,
            arch,
            id=f"{path.stem}-{arch}",
            marks=[] if arch in QUICK and path.stem != "conformance" else [pytest.mark.slow],
        )
        for path in sorted(KERNELS.glob("*.cu"))
        for arch in targets(path)
        if arch in archs
    ]


@dataclass
class Kernel:
    """What ptxas says of a kernel."""

    name: str
    target: str
    registers: int = 0
    stack: int = 0
    spilled: int = 0
    shared: int = 0


def nvcc() -> str:
    for found in (
        os.environ.get("LLMACCEL_NVCC"),
        shutil.which("nvcc"),
        os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc"),
    ):
        if found and os.access(found, os.X_OK):
            return found
    pytest.skip("no nvcc")


def disassembler() -> str:
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    wheels = [str(p) for folder in folders for p in folder.glob("cu*/bin/nvdisasm")]
    found = shutil.which("nvdisasm") or next(iter(wheels), None)
    if found is None:
        pytest.skip("no nvdisasm, which is in nvidia-cuda-nvdisasm of the extra 'test'")
    return found


@cache
def headers_hash() -> str:
    digest = hashlib.sha256(run([nvcc(), "--version"]).stdout.encode())
    for path in sorted((ROOT / "csrc").rglob("*.h")):
        digest.update(path.as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def flags() -> list[str]:
    """What setup.py gives nvcc for the code that is shipped; relative to its folder."""
    return runpy.run_path(str(ROOT / "setup.py"))["NVCC_FLAGS"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A tool of the toolkit, without the sanitizer that this process may have been loaded with."""
    own = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(command, capture_output=True, text=True, env=own, cwd=ROOT)


def compile_for(source: Path, arch: str) -> tuple[str, Path]:
    """What the compiler says, and the cubin; kept for as long as sources and headers stay."""
    code = f"arch=compute_{arch},code=sm_{arch}"
    command = [nvcc(), *flags(), "-Xptxas", "-v", "-gencode", code, "-cubin"]
    parts = [source.read_text(), headers_hash(), *command]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    cubin = CACHE / f"{source.stem}-{arch}-{key}.cubin"
    said = cubin.with_suffix(".txt")
    if not said.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command += ["-o", str(cubin), str(source)]
        done = run(command)
        assert done.returncode == 0, done.stderr[-4000:]
        said.write_text(done.stderr)
    return said.read_text(), cubin


def report(text: str) -> list[Kernel]:
    """The kernels of a ptxas report."""
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernels.append(Kernel(*found.groups()))
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            if kernels:
                kernels[-1].stack, kernels[-1].spilled = map(int, found.groups())
        elif found := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(found.group(1))
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[-1].shared = int(shared.group(1)) if shared else 0
    return kernels


def faults(kernels: list[Kernel], text: str) -> list[str]:
    found = [
        f"{k.name} for {k.target}: {k.stack} bytes of stack, {k.spilled} spilled"
        for k in kernels
        if k.stack or k.spilled
    ]
    found += [
        f"{k.name}: static shared memory; take it from la_smem()" for k in kernels if k.shared
    ]
    words = r"warning|serializ|ignored|C75\d\d"
    return found + [line for line in text.splitlines() if re.search(words, line, flags=re.I)]


@pytest.mark.parametrize(("source", "arch"), sources(set(GENERIC)))
def test_compiles_clean(source: Path, arch: str) -> None:
    text, _ = compile_for(source, arch)
    kernels = report(text)
    found = faults(kernels, text)
    assert not found, "\n".join(found)
    assert kernels or not HOPPER.search(source.stem), "no kernel came out"


@pytest.mark.parametrize(("source", "arch"), sources({"90a"}))
def test_machine_code(source: Path, arch: str) -> None:
    """Wanted instructions are there, and nothing goes through local memory."""
    tool = disassembler()
    _, cubin = compile_for(source, arch)
    done = run([tool, "-c", str(cubin)])
    assert done.returncode == 0, done.stderr[-2000:]
    missing = [word for word in WANTED.get(source.stem, []) if word not in done.stdout]
    assert not missing, f"not in the machine code: {missing}"
    local = re.findall(r"^.*\b(?:LDL|STL)\b.*$", done.stdout, flags=re.M)
    assert not local, "\n".join(local[:5])


@pytest.mark.slow
def test_checked_build_compiles(tmp_path: Path) -> None:
    """LA_CHECK, for runs that look for a hang."""
    source, out = KERNELS / "gemm_sm90.cu", tmp_path / "a.ptx"
    command = [nvcc(), *flags(), "-DLA_CHECK", "-arch=sm_90a", "-ptx", "-o", str(out), str(source)]
    done = run(command)
    assert done.returncode == 0, done.stderr[-4000:]
    text = out.read_text()
    assert "trap;" in text
    assert "try_wait" not in text


@pytest.mark.slow
def test_generic_sources_make_ptx(tmp_path: Path) -> None:
    """PTX for compute_80 runs on every later GPU: each source that is not Hopper's makes some."""
    for path in sorted(KERNELS.glob("*.cu")):
        if HOPPER.search(path.stem):
            continue
        out = tmp_path / f"{path.stem}.ptx"
        command = [nvcc(), *flags(), "-arch=compute_80", "-ptx", "-o", str(out), str(path)]
        done = run(command)
        assert done.returncode == 0, done.stderr[-4000:]


REPORT = """
ptxas info    : Compiling entry function '_Z1kv' for 'sm_90a'
ptxas info    : Function properties for _Z1kv
    {stack} bytes stack frame, {spill} bytes spill stores, 4 bytes spill loads
ptxas info    : Used 168 registers, used 3 barriers{shared}
{more}
"""


@pytest.mark.parametrize(
    ("stack", "spill", "shared", "more", "count"),
    [
        (0, 0, "", "", 0),
        (16, 0, "", "", 1),
        (0, 8, "", "", 1),
        (0, 0, ", 64 bytes smem", "", 1),
        (0, 0, "", "ptxas info : (C7510) Potential Performance Loss: wgmma are serialized", 1),
        (0, 0, "", "ptxas warning : setmaxnreg ignored to maintain minimum", 1),
    ],
)
def test_report_is_read(stack: int, spill: int, shared: str, more: str, count: int) -> None:
    text = REPORT.format(stack=stack, spill=spill, shared=shared, more=more)
    kernels = report(text)
    assert [(k.name, k.target, k.registers) for k in kernels] == [("_Z1kv", "sm_90a", 168)]
    assert len(faults(kernels, text)) == count
