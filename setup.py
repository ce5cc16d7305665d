"""Builds llmaccel._core from every C file under csrc/ and, where nvcc is, llmaccel/_cuda.so.

One translation unit per instruction set: csrc/kernels/cpu/isa_<name>.c gets its flags from
ISA_FLAGS by its file name, every other file is compiled for the baseline machine. A file whose
flags the compiler or the target lacks is left out; LA_HAVE_ISA_<NAME>=1 is defined everywhere for
those that are in (never for scalar, which always is). Object files live in build/obj/<hash of the
compiler and the flags that decide the code>/ and are remade when a source or a header it includes
(the compiler's -MMD list) is newer, so a second build compiles only what changed.

_cuda.so is made of csrc/kernels/cuda/*.cu, but for a program of its own (APART), *_sm90.cu for
Hopper alone: the runtime linked in whole, one symbol exported, so it loads on machines without a
driver and says so. Its objects lie in the user's cache folder by the hash of all that decides them,
because they take long.

Environment: LLMACCEL_WERROR=1, LLMACCEL_SANITIZE=address|undefined|thread, LLMACCEL_CUDA=auto|0|1,
LLMACCEL_CUDA_ARCHS, LLMACCEL_NVCC, what nvcc reads itself (NVCC_CCBIN, ...), CC, CFLAGS, LDFLAGS.
Command beside the usual ones: `build_stress` links tests/c/stress.c with the core, without Python,
to build/stress. The package itself is in pyproject.toml.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, SetupError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
OBJECTS = ROOT / "build" / "obj"

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
VNNI = [*AVX512, "-mavx512vnni", "-mavx512vbmi"]
BF16 = [*VNNI, "-mavx512bf16"]
# File name -> flags and an assignment that compiler and assembler must take under them.
ISA_FLAGS: dict[str, tuple[list[str], str]] = {
    "scalar": ([], ""),
    "avx2": (AVX2, "AS(__m256) = _mm256_fmadd_ps(_mm256_cvtph_ps(AS(__m128i)), AS(__m256), X)"),
    "avx512": (AVX512, "AS(__m512i) = _mm512_maddubs_epi16(X, _mm512_cvtps_epi32(AS(__m512)))"),
    "vnni": (VNNI, "AS(__m512i) = _mm512_dpbusd_epi32(X, X, _mm512_permutexvar_epi8(X, X))"),
    "bf16": (BF16, "AS(__m512) = _mm512_dpbf16_ps(X, AS(__m512bh), AS(__m512bh))"),
}
PROBE = """
#include <immintrin.h>
#define AS(type) (*(type *)p)
#define X AS({operand})
void la_probe(void *p);
void la_probe(void *p) {{ {statement}; }}
"""

# -ffp-contract=off and no value-changing flags: a sum is added in the order it is written.
CODE_FLAGS = ["-std=c11", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden"]
CODE_FLAGS += ["-fPIC", "-pthread", "-D_GNU_SOURCE", "-DNPY_TARGET_VERSION=NPY_1_23_API_VERSION"]
RELEASE_FLAGS = ["-O3", "-DNDEBUG"]
SANITIZE_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]


def env_choice(name: str, known: Sequence[str]) -> str:
    """The value of an environment switch, "" when unset; anything unknown is an error."""
    value = os.environ.get(name, "")
    if value and value not in known:
        raise SetupError(f"{name}={value!r}: expected one of {', '.join(known)}")
    return value


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        raise CompileError(f"compiler {command[0]} not found: install one or set CC") from None


@dataclass
class Toolchain:
    """The compiler and the flags that decide the bits of an object file."""

    cc: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    link: list[str] = field(default_factory=list)
    isas: dict[str, list[str]] = field(default_factory=dict)
    werror: bool = False

    @classmethod
    def detect(cls) -> Toolchain:
        if not sys.platform.startswith("linux"):
            raise SetupError(f"this version builds on Linux only, not on {sys.platform}")
        found = (name for name in ("cc", "gcc", "clang") if shutil.which(name))
        tools = cls(cc=shlex.split(os.environ.get("CC") or next(found, "cc")))
        sanitizer = env_choice("LLMACCEL_SANITIZE", ["address", "undefined", "thread"])
        tools.werror = env_choice("LLMACCEL_WERROR", ["0", "1"]) == "1"
        tools.flags = [*CODE_FLAGS, "-Icsrc", *(SANITIZE_FLAGS if sanitizer else RELEASE_FLAGS)]
        tools.link = ["-pthread", *shlex.split(os.environ.get("LDFLAGS", ""))]
        if sanitizer:
            tools.flags.append(f"-fsanitize={sanitizer}")
            tools.link.append(f"-fsanitize={sanitizer}")
        tools.flags += shlex.split(os.environ.get("CFLAGS", ""))
        tools.probe_isas()
        return tools

    def probe_isas(self) -> None:
        """Keeps the ISA files that exist and that this compiler can translate."""
        target = run([*self.cc, "-dumpmachine"]).stdout.strip()
        for path in sorted((CSRC / "kernels" / "cpu").glob("isa_*.c")):
            name = path.stem.removeprefix("isa_")
            if name not in ISA_FLAGS:
                raise SetupError(f"{path.relative_to(ROOT)}: setup.py has no ISA_FLAGS[{name!r}]")
            flags, statement = ISA_FLAGS[name]
            if name != "scalar":
                if not target.startswith(("x86_64", "amd64")):
                    print(f"llmaccel: {path.name} left out: {target or 'the target'} is not x86-64")
                    continue
                if not self.accepts(flags, statement):
                    print(f"llmaccel: {path.name} left out: {self.cc[0]} rejects {' '.join(flags)}")
                    continue
                self.flags.append(f"-DLA_HAVE_ISA_{name.upper()}=1")
            self.isas[path.name] = flags

    def accepts(self, flags: list[str], statement: str) -> bool:
        """Whether compiler and assembler translate the statement under the flags."""
        operand = statement[len("AS(") : statement.index(")")]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text(PROBE.format(operand=operand, statement=statement))
            command = [*self.cc, *flags, "-c", str(source), "-o", f"{folder}/probe.o"]
            return run(command).returncode == 0

    def fingerprint(self, python_includes: list[str]) -> str:
        """Names the object folder: everything but the sources and the warnings."""
        version = run([*self.cc, "--version"]).stdout
        parts = [version, *self.cc, *self.flags, repr(self.isas), *python_includes]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def python_includes() -> list[str]:
    """-isystem flags for CPython and NumPy: their headers are not held to our warnings."""
    import numpy

    paths = [sysconfig.get_path("include"), sysconfig.get_path("platinclude"), numpy.get_include()]
    return [f"-isystem{path}" for path in dict.fromkeys(paths)]


def core_sources(room_filter: Sequence[str] = ()) -> list[Path]:
    """Every .c of the core, leaving out the rooms named; kernels first, as they take longest."""
    found = [p for p in CSRC.rglob("*.c") if p.relative_to(CSRC).parts[0] not in room_filter]
    found = [p for p in found if CSRC / "kernels" / "cuda" not in p.parents]
    return sorted(found, key=lambda p: (not p.name.startswith("isa_"), p.as_posix()))


def headers_of(depfile: Path) -> list[Path]:
    """The prerequisites of a -MMD file."""
    text = depfile.read_text().replace("\\\n", " ").partition(":")[2]
    return [Path(word.replace("\0", " ")) for word in text.replace("\\ ", "\0").split()]


def is_fresh(obj: Path, checked: bool) -> bool:
    """Whether an object is newer than its inputs, and passed the warnings if that is asked."""
    depfile = obj.with_suffix(".d")
    if not obj.exists() or not depfile.exists():
        return False
    if checked and not obj.with_suffix(".checked").exists():
        return False
    made = obj.stat().st_mtime_ns
    try:
        return all((ROOT / path).stat().st_mtime_ns <= made for path in headers_of(depfile))
    except FileNotFoundError:  # a header was removed or renamed
        return False


class Builder:
    """Compiles C files in parallel into the object cache."""

    def __init__(self, includes: list[str]) -> None:
        self.tools = Toolchain.detect()
        self.includes = includes
        self.folder = OBJECTS / self.tools.fingerprint(includes)

    def compile(self, sources: list[Path]) -> list[Path]:
        """Object files of the sources, in their order, compiling those that are out of date."""
        todo: list[tuple[Path, Path]] = []
        objects = []
        for source in sources:
            if source.name.startswith("isa_") and source.name not in self.tools.isas:
                continue
            obj = self.folder / source.relative_to(ROOT).with_suffix(".o")
            objects.append(obj)
            if not is_fresh(obj, self.tools.werror):
                todo.append((source, obj))
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with ThreadPoolExecutor(jobs) as pool:
            failed = [name for name in pool.map(lambda job: self.compile_one(*job), todo) if name]
        if failed:
            raise CompileError(f"{len(failed)} file(s) failed to compile: {', '.join(failed)}")
        return objects

    def compile_one(self, source: Path, obj: Path) -> str:
        """Compiles one file; returns its name when that failed, with the messages printed."""
        obj.parent.mkdir(parents=True, exist_ok=True)
        name = str(source.relative_to(ROOT))
        checked = obj.with_suffix(".checked")
        # The object exists only when it is whole: written beside, then renamed.
        part = obj.with_suffix(".part.o")
        command = [*self.tools.cc, *self.tools.flags, *self.tools.isas.get(source.name, [])]
        command += [*(WARNINGS if self.tools.werror else []), *self.includes]
        command += ["-MMD", "-MF", str(obj.with_suffix(".d")), "-c", name, "-o", str(part)]
        started = obj.with_suffix(".started")
        started.touch()
        result = run(command)
        if result.stderr or result.returncode:
            print(f"{' '.join(command)}\n{result.stderr}", file=sys.stderr, flush=True)
        if result.returncode:
            return name
        # Dated by the start: an edit made while the compiler ran makes it stale again.
        stamp = started.stat().st_mtime_ns
        os.utime(part, ns=(stamp, stamp))
        checked.unlink(missing_ok=True)
        part.replace(obj)
        if self.tools.werror:
            checked.touch()
        return ""

    def link(self, objects: list[Path], out: Path, extra: Sequence[str]) -> None:
        """Links; the result appears only when it is whole."""
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f"{out.name}.part")
        command = [*self.tools.cc, *extra, *map(str, objects), *self.tools.link, "-lm", "-ldl"]
        result = run([*command, "-o", str(part)])
        if result.returncode:
            raise LinkError(f"{' '.join(command)}\n{result.stderr}")
        part.replace(out)


# ---- the CUDA backend ----------------------------------------------------------------------------

CUDA = CSRC / "kernels" / "cuda"
# What sm_80 runs on any 8.x, sm_90a on Hopper alone; the PTX is for what comes after.
CUDA_ARCHS = "80;90a;ptx80"
OLDEST_NVCC = (13, 0)
# -fmad=false: a product is fused with a sum where the source says so, as on the CPU.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--compress-mode=size", "-Icsrc"]
NVCC_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti"]
NVCC_FLAGS += ["-Xptxas", "-warn-spills,-warn-lmem-usage"]
APART = {"conformance"}  # a program of its own
CUDA_EXPORTS = "{ global: la_backend_entry_open; local: *; };\n"


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llmaccel" / "nvcc"


def find_nvcc() -> tuple[str, str]:
    """(path, "") of the compiler, or ("", why there is none that will do)."""
    given, home = os.environ.get("LLMACCEL_NVCC"), os.environ.get("CUDA_HOME")
    places = [given] if given else [f"{home}/bin/nvcc"] if home else ["nvcc"]
    places += [] if given or home else ["/usr/local/cuda/bin/nvcc"]
    path = next((found for place in places if (found := shutil.which(place))), "")
    if not path:
        return "", f"no nvcc ({', '.join(places)})"
    text = run([path, "--version"]).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    version = tuple(map(int, found.groups())) if found else (0, 0)
    if version < OLDEST_NVCC:
        return "", f"{path} is of CUDA {version[0]}.{version[1]}, 13.0 is the first that will do"
    return path, ""


def gencode(archs: str) -> list[str]:
    """nvcc's flags for "80;90a;ptx80"."""
    flags = []
    for arch in archs.split(";"):
        if not re.fullmatch(r"(ptx)?\d+[af]?", arch):
            raise SetupError(f"LLMACCEL_CUDA_ARCHS: {arch!r} is none of 80, 90a, ptx80, ...")
        number = arch.removeprefix("ptx")
        code = f"compute_{number}" if arch.startswith("ptx") else f"sm_{number}"
        flags += ["-gencode", f"arch=compute_{number},code={code}"]
    return flags


def with_headers(source: Path) -> list[Path]:
    """A file and the project's headers that it includes, directly or not."""
    seen: dict[Path, None] = {}
    todo = [source]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen[path] = None
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), flags=re.M):
            beside = ((path.parent / name).resolve(), CSRC / name)
            todo += [place for place in beside if place.is_file()][:1]
    return list(seen)


class CudaBuilder:
    """Compiles csrc/kernels/cuda into one shared object."""

    def __init__(self, nvcc: str, archs: str) -> None:
        self.nvcc = nvcc
        self.archs = archs
        # nvcc reads these itself, and compiles with a compiler of the host.
        given = [os.environ.get(f"NVCC_{name}", "") for name in ("PREPEND_FLAGS", "APPEND_FLAGS")]
        host = os.environ.get("NVCC_CCBIN") or "g++"
        host = f"{host}/g++" if Path(host).is_dir() else host
        version = run([host, "--version"]).stdout if shutil.which(host) else ""
        self.tools = [run([nvcc, "--version"]).stdout, *given, host, version]

    def compile_one(self, source: Path) -> tuple[Path, str]:
        """The object, from the cache where it is there; and what went wrong."""
        archs = "90a" if source.stem.endswith("_sm90") else self.archs
        flags = [*NVCC_FLAGS, *gencode(archs)]
        digest = hashlib.sha256("\0".join([*self.tools, *flags]).encode())
        for path in with_headers(source):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        obj = cache_folder() / f"{source.stem}-{digest.hexdigest()[:24]}.o"
        if obj.exists():
            return obj, ""
        obj.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=obj.parent) as folder:
            part = Path(folder) / obj.name
            result = run([self.nvcc, *flags, "-c", str(source), "-o", str(part)])
            if result.returncode:
                return obj, f"{source.name}: {result.stdout}{result.stderr}"
            if "warning" in result.stderr:
                print(result.stderr, file=sys.stderr)
            part.replace(obj)
        return obj, ""

    def build(self, out: Path) -> None:
        sources = sorted(p for p in CUDA.glob("*.cu") if p.stem not in APART)
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with ThreadPoolExecutor(jobs) as pool:
            made = list(pool.map(self.compile_one, sources))
        failed = [why for _, why in made if why]
        if failed:
            raise CompileError("\n".join(failed))
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            exports, part = Path(folder) / "exports", Path(folder) / out.name
            exports.write_text(CUDA_EXPORTS)
            command = [self.nvcc, "-shared", "-cudart", "static", "-Xlinker", "--as-needed"]
            command += ["-Xlinker", f"--version-script={exports}", "-Xlinker", "--strip-all"]
            result = run([*command, *(str(obj) for obj, _ in made), "-o", str(part)])
            if result.returncode:
                raise LinkError(result.stderr)
            part.replace(out)


def build_cuda(out: Path) -> None:
    """Makes `out` as LLMACCEL_CUDA says: 0 not, 1 or an error, auto where that can be done."""
    switch = env_choice("LLMACCEL_CUDA", ["auto", "0", "1"]) or "auto"
    archs = os.environ.get("LLMACCEL_CUDA_ARCHS") or CUDA_ARCHS
    nvcc, why = find_nvcc() if switch != "0" else ("", "LLMACCEL_CUDA=0")
    if not why and os.environ.get("LLMACCEL_SANITIZE"):
        why = "the build is instrumented"
    out.unlink(missing_ok=True)  # what an earlier build left may be of other sources
    if not why:
        try:
            CudaBuilder(nvcc, archs).build(out)
        except (CompileError, LinkError) as error:
            if switch == "1" or env_choice("LLMACCEL_WERROR", ["0", "1"]) == "1":
                raise
            why = str(error)
    elif switch == "1":
        raise SetupError(f"LLMACCEL_CUDA=1: {why}")
    if why and switch != "0":
        print(f"llmaccel: without the CUDA backend: {why}")


class BuildCore(build_ext):
    """build_ext with our own compile and link steps; setuptools only says where the result goes."""

    def build_extension(self, ext: Extension) -> None:
        sources = core_sources()
        if not sources:
            raise SetupError(f"no C sources under {CSRC}: the source tree is incomplete")
        builder = Builder(python_includes())
        objects = builder.compile(sources)
        out = ROOT / self.get_ext_fullpath(ext.name)
        builder.link(objects, out, ["-shared"])
        build_cuda(out.with_name("_cuda.so"))

    def copy_extensions_to_source(self) -> None:
        """--inplace: setuptools knows of the extension alone."""
        super().copy_extensions_to_source()
        made = ROOT / self.build_lib / "llmaccel" / "_cuda.so"
        beside = ROOT / "python" / "llmaccel" / made.name
        beside.unlink(missing_ok=True)
        if made.exists():
            shutil.copy2(made, beside)


class BuildStress(Command):
    """Links tests/c/stress.c with the core, without Python, into build/stress."""

    description = "build the C stress test"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        builder = Builder([])
        objects = builder.compile([ROOT / "tests/c/stress.c", *core_sources(["python"])])
        builder.link(objects, ROOT / "build" / "stress", [])


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("llmaccel._core", sources=[])],
        cmdclass={"build_ext": BuildCore, "build_stress": BuildStress},
    )
