"""Builds GPU kernels for the host emulator (tests/cuda_emu) and calls what was built.

Owns the compiler's flags and the cache: an object or library is named by a hash of all that goes
into it and kept in build/emu, so that a test session compiles only what changed. Used by
test_cuda_*.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

EMULATOR = ROOT / "tests" / "cuda_emu"
KERNELS = ROOT / "csrc" / "kernels" / "cuda"
CACHE = ROOT / "build" / "emu"
CORE = ROOT / "csrc"
RUNTIME = [EMULATOR / "rt_host.cpp", EMULATOR / "rt_host_others.cpp"]
# No contraction: a product and a sum are rounded apart, as the wrappers say.
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-DLA_EMU", "-ffp-contract=off", "-Wall", "-Wextra"]
FLAGS += [f"-I{EMULATOR}", f"-I{KERNELS}", f"-I{ROOT / 'csrc'}"]
ERROR_BYTES = 4096


@cache
def compiler() -> str:
    """The C++ compiler; skips the test where there is none, or another processor."""
    if platform.machine() != "x86_64":
        pytest.skip("the emulator switches stacks of x86-64 only")
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@cache
def headers_hash() -> str:
    """Of every header that emulator and kernels may include, and of the compiler."""
    digest = hashlib.sha256()
    version = subprocess.run([compiler(), "--version"], capture_output=True, check=True)
    digest.update(version.stdout)
    for folder in (EMULATOR, KERNELS):
        for path in sorted(folder.glob("*.h")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def core_hash() -> bytes:
    """Of every header under csrc."""
    digest = hashlib.sha256()
    for path in sorted(CORE.glob("**/*.h")):
        digest.update(path.as_posix().encode() + path.read_bytes())
    return digest.digest()


def compile_object(source: Path, flags: list[str]) -> Path:
    text = source.read_bytes()
    if source.parent == CACHE:  # generated: it says itself what it includes
        text += b"".join(p.read_bytes() for p in sorted(source.with_suffix("").glob("*.h")))
    if source.suffix == ".cu":
        flags = [*flags, "-xc++"]
    if source.suffix == ".cu" or re.search(rb'#\s*include\s*"[^"\n]*/', text):
        text += core_hash()  # the backend itself is built from the core's structures
    key = hashlib.sha256(text + headers_hash().encode() + " ".join(flags).encode()).hexdigest()
    out = CACHE / f"{source.stem}-{key[:16]}.o"
    if not out.exists():
        part = out.with_suffix(f".{os.getpid()}.part")
        run([compiler(), *flags, "-c", str(source), "-o", str(part)])
        part.replace(out)
    return out


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, " ".join(command) + "\n" + done.stderr[-4000:]
    assert "warning:" not in done.stderr, done.stderr[:4000]


def library(name: str, sources: list[Path], extra: list[str] | None = None) -> ctypes.CDLL:
    """A shared library of these sources and the emulator."""
    CACHE.mkdir(parents=True, exist_ok=True)
    flags = FLAGS + (extra or [])
    jobs = [(path, FLAGS) for path in sorted(EMULATOR.glob("emu_*.cpp"))]
    jobs += [(path, flags) for path in sources]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        objects = list(threads.map(lambda job: compile_object(*job), jobs))
    key = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    out = CACHE / f"{name}-{key}.so"
    if not out.exists():
        part = out.with_suffix(f".{os.getpid()}.part")
        run([compiler(), "-shared", "-o", str(part), *map(str, objects)])
        part.replace(out)
    return ctypes.CDLL(str(out))


def backend() -> ctypes.CDLL:
    """The CUDA backend on the emulated runtime; its file is what LLMACCEL_CUDA_LIBRARY wants.

    LLMACCEL_DEVICE_KERNELS: a library of the same names for a GPU instead (benchmarks/h200.py).
    """
    if real := os.environ.get("LLMACCEL_DEVICE_KERNELS"):
        return ctypes.CDLL(real)
    # the other runtime, and what is no part of the backend
    apart = {"rt_cuda.cu", "rt_cuda_others.cu", "conformance.cu"}
    kernels = [p for p in sorted(KERNELS.glob("*.cu")) if p.name not in apart]
    return library("backend", [*kernels, *RUNTIME])


def cublas() -> Path:
    """fake_cublaslt.cpp as libcublasLt.so.13, in a folder as CUDA_HOME has it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra"]
    made = compile_object(EMULATOR / "fake_cublaslt.cpp", flags)
    out = CACHE / f"cublas-{made.stem[-16:]}" / "lib64" / "libcublasLt.so.13"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        run([compiler(), "-shared", f"-Wl,-soname,{out.name}", "-o", str(out), str(made)])
    return out


class Error:
    """A buffer that a call fills with the reason of its failure."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(ERROR_BYTES)

    def args(self) -> tuple[ctypes.Array[ctypes.c_char], ctypes.c_size_t]:
        return self.buffer, ctypes.c_size_t(ERROR_BYTES)

    def __str__(self) -> str:
        return self.buffer.value.decode(errors="replace")


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def aligned(shape: int | tuple[int, ...], dtype: np.dtype | type, fill: int = 0) -> np.ndarray:
    """An array whose bytes start at a multiple of 256, as device memory does."""
    bytes_ = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(bytes_ + 256, fill, dtype=np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + bytes_].view(dtype).reshape(shape)


def bf16(x: np.ndarray) -> np.ndarray:
    """Rounds floats to bf16 codes (uint16), ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint32) << 16).view(np.float32)
