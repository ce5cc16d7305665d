"""The rules of the house, read off the sources: doors between rooms, budgets, names, no globals.

Each rule is a function `rule(path, text) -> ["path:line: message", ...]` over one file, so that a
failing test names the line. RULES applies them to the tree; CASES feeds each a snippet that breaks
it, because a checker that cannot fail checks nothing. CONTRIBUTING.md says how to read a failure.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from c_source import blank, function_name, items, without_preprocessor
from conftest import ROOT

# ---- what is allowed ----------------------------------------------------------------------------

# Room -> the project headers its files may include, as patterns under csrc/; its own come besides.
# A file named here overrides its room. Order: first match wins.
KERNEL_DOORS = [
    "kernels/kernels.h",
    "kernels/act_rows.h",
    "kernels/attend_walk.h",
    "kernels/route.h",
]
PY_KERNEL_DOORS = ["base/base.h", "base/cpu.h", "base/pool.h", "model/pack.h", *KERNEL_DOORS]
PY_TEST_DOORS = ["base/base.h", "base/cpu.h", "engine/scheduler.h", "engine/kvcache.h"]
DOORS: list[tuple[str, list[str]]] = [
    ("llmaccel.h", ["base/dtype.h", "sampling.h"]),
    ("sampling.h", []),
    ("device.h", ["llmaccel.h"]),
    ("base/*", ["llmaccel.h", "base/*"]),
    ("model/backend_cpu*", ["llmaccel.h", "base/*", "model/*", *KERNEL_DOORS]),
    ("model/device*", ["llmaccel.h", "device.h", "base/*", "model/*", "!base/pool.h"]),
    ("model/*", ["llmaccel.h", "base/*", "model/*", "!base/pool.h"]),
    ("engine/*", ["llmaccel.h", "base/*", "engine/*", "model/*", "!model/backend*.h"]),
    ("kernels/kernels.h", ["base/dtype.h"]),
    ("kernels/act_rows.h", ["kernels/kernels.h"]),
    ("kernels/attend_walk.h", ["kernels/kernels.h"]),
    ("kernels/route.h", ["kernels/kernels.h"]),
    ("kernels/cpu/*", ["kernels/kernels.h", "base/dtype.h", "kernels/cpu/*"]),
    ("kernels/cuda/la_kernel.h", ["la_emu_ptx.h"]),  # of tests/cuda_emu, where kernels are emulated
    ("kernels/cuda/*", ["model/backend.h", "base/dtype.h", "kernels/cuda/*"]),
    (
        "python/py_tensor*",
        ["llmaccel.h", "device.h", "python/py_module.h", "python/py_tensor.h", "base/dlpack.h"],
    ),
    ("python/py_kernels*", ["llmaccel.h", "device.h", "python/*", *PY_KERNEL_DOORS]),
    ("python/py_testing.c", ["llmaccel.h", "python/py_module.h", *PY_TEST_DOORS]),
    ("python/*", ["llmaccel.h", "python/py_module.h"]),
]
# Kernels compute: of the system they know types, memory, mathematics and instructions.
KERNEL_SYSTEM_HEADERS = {
    "assert.h", "float.h", "immintrin.h", "limits.h", "math.h", "stdbool.h", "stddef.h",
    "stdint.h", "string.h",
}  # fmt: skip
CPYTHON_HEADERS = {"Python.h", "structmember.h", "datetime.h"}

WINGS = {"serve", "eval", "plan", "cluster", "bench", "torch"}
# Beside the standard library. sentencepiece and tiktoken are extras, imported where a file asks.
CORE_IMPORTS = {
    "llmaccel", "numpy", "tokenizers", "jinja2", "tqdm", "huggingface_hub", "sentencepiece",
    "tiktoken",
}  # fmt: skip
LAZY_IMPORTS = CORE_IMPORTS - {"llmaccel", "numpy"}

MAX_LINES = 700
MAX_PARAMETERS = 6
BUDGETS = {"csrc/llmaccel.h": 400, "csrc/kernels/kernels.h": 240, "csrc/model/forward.c": 400}

# What a kernel gets from the wrappers of la_ptx*.h, or the emulator would not see it.
DEVICE_WORDS = (
    r"asm|threadIdx|blockIdx|blockDim|gridDim|__shared__|__syncthreads|__syncwarp|__threadfence"
    r"|__\w+_sync|__ldg|__expf|__nanosleep|atomic[A-Z]\w*"
)
BANNED_CALLS = (
    "abort|exit|_exit|quick_exit|assert|printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|perror"
)
# Written apart so that this file does not break its own rule.
MARKERS = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"])
UNFINISHED = "NotImplemented" + "Error"  # in the product; a test may catch an oracle's

# Tables that CPython's interface wants writable; nothing writes them after the module is made.
CPYTHON_TABLES = (
    r"\b(PyMethodDef|PyMemberDef|PyGetSetDef|PyType_Slot|PyType_Spec|PyModuleDef_Slot"
    r"|PyStructSequence_Field|PyStructSequence_Desc|PyBufferProcs)\b"
    r"|^\s*char \*\w+\[\]\s*$"  # the names that PyArg_ParseTupleAndKeywords reads
)


def in_cpu_kernels(path: str) -> bool:
    return path.startswith("csrc/kernels/cpu/")


# ---- rules over C -------------------------------------------------------------------------------


def matches(name: str, patterns: list[str]) -> bool:
    def hit(pattern: str) -> bool:
        return PurePosixPath(name).match(pattern) and name.count("/") == pattern.count("/")

    if any(hit(p[1:]) for p in patterns if p.startswith("!")):
        return False
    return any(hit(p) for p in patterns if not p.startswith("!"))


def resolve(path: str, name: str) -> str:
    """The header under csrc/ that an #include means: beside the file first, then from csrc/."""
    parts: list[str] = []
    for part in [*PurePosixPath(path).parent.parts[1:], *PurePosixPath(name).parts]:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    beside = "/".join(parts)
    return beside if (ROOT / "csrc" / beside).is_file() else name


def rule_c_doors(path: str, text: str) -> list[str]:
    found = []
    inside = path.removeprefix("csrc/")
    allowed = next((doors for pattern, doors in DOORS if matches(inside, [pattern])), None)
    if allowed is None:
        return [f"{path}:1: no room of the table of doors holds this file"]
    for number, row in enumerate(text.splitlines(), 1):
        project = re.match(r'\s*#\s*include\s*"([^"]+)"', row)
        system = re.match(r"\s*#\s*include\s*<([^>]+)>", row)
        if project:
            header = resolve(path, project.group(1))
            if not matches(header, allowed):
                found.append(f"{path}:{number}: may not include {header}; see the table of doors")
        elif system:
            name = system.group(1)
            if in_cpu_kernels(path) and name not in KERNEL_SYSTEM_HEADERS:
                found.append(f"{path}:{number}: a kernel may not include <{name}>")
            if name in CPYTHON_HEADERS and not inside.startswith("python/"):
                found.append(f"{path}:{number}: <{name}> belongs to csrc/python alone")
            if name.startswith("numpy/") and inside != "python/py_tensor.c":
                found.append(f"{path}:{number}: NumPy's C interface belongs to py_tensor.c alone")
    return found


def rule_c_names(path: str, text: str) -> list[str]:
    """Non-static functions, and types that a header shows, carry the library's prefix."""
    found = []
    for hit in re.finditer(r"#\s*define\s+LA_INLINE\b(.*)", text):
        if "static" not in hit.group(1).split():
            line = text[: hit.start()].count("\n") + 1
            found.append(f"{path}:{line}: LA_INLINE should start with static inline")
    prefix = ("py_", "PyInit_") if path.startswith("csrc/python/") else ("la_", "LA_")
    for item in items(text):
        words = item.head.split()
        if item.body is not None and not {"static", "LA_INLINE"} & set(words):
            name = function_name(item.head)
            fills = name.startswith("la_kernels_fill_") or path.endswith("/table.c")
            if in_cpu_kernels(path) and not fills:
                found.append(f"{path}:{item.line}: {name}(): kernel functions are static")
            elif not name.startswith(prefix):
                found.append(f"{path}:{item.line}: {name}() should start with {prefix[0]}")
        if path.endswith(".h") and not in_cpu_kernels(path) and item.body is None:
            for name in type_names(item.head):
                if not name.startswith(prefix):
                    found.append(f"{path}:{item.line}: type {name} should start with {prefix[0]}")
        if path.startswith("csrc/python/") and path.endswith(".c") and item.body is None:
            for name in type_names(item.head):
                if name.startswith("la_"):
                    found.append(f"{path}:{item.line}: type {name}: la_ is the core's")
    return found


def rule_c_parameters(path: str, text: str) -> list[str]:
    """Functions take at most six things; what is more belongs to a struct. Kernels are free, and
    so are wrappers of an instruction, which take its operands."""
    free = in_cpu_kernels(path) or path.startswith("csrc/kernels/cuda/la_ptx")
    found = []
    for item in items("" if free else text):
        name, depth, count = function_name(item.head), 0, 1
        if not name or "typedef" in item.head.split():
            continue
        for char in item.head[item.head.index(f"{name}(" if f"{name}(" in item.head else name) :]:
            depth += {"(": 1, ")": -1}.get(char, 0)
            count += char == "," and depth == 1
        if count > MAX_PARAMETERS:
            found.append(f"{path}:{item.line}: {name}() takes {count} parameters, not a struct")
    return found


def type_names(head: str) -> list[str]:
    """Tags given a body and the name of a typedef."""
    names = re.findall(r"\b(?:struct|union|enum)\s+(\w+)\s*\{\}", head)
    if "typedef" in head.split():
        pointer = re.search(r"\(\s*\*\s*(\w+)\s*\)\s*\(", head)
        plain = re.search(r"(\w+)\s*(?:\[[^\]]*\]\s*)*$", head.strip())
        last = pointer or plain
        names += [last.group(1)] if last else []
    return names


def is_constant(declaration: str) -> bool:
    """Whether the object itself (not only what it points to) is const or one per thread."""
    if re.search(r"\b(_Thread_local|__thread)\b", declaration):
        return True
    after_pointer = declaration.rpartition("*")[2]
    return re.search(r"\bconst\b", after_pointer) is not None


def rule_c_globals(path: str, text: str) -> list[str]:
    """No object that outlives a call and can change; const tables and thread-locals may stay."""
    if path == "csrc/python/py_module.c":
        return []
    found = []

    def judge(line: int, declaration: str) -> None:
        table = path.startswith("csrc/python/") and re.search(CPYTHON_TABLES, declaration)
        if not table and not is_constant(declaration):
            found.append(f"{path}:{line}: mutable global: {' '.join(declaration.split())}")

    for item in items(text):
        declaration = item.head.partition("=")[0]
        if item.body is not None:
            for hit in re.finditer(r"\bstatic\b([^;={]*)", item.body):
                line = item.body_line + item.body[: hit.start()].count("\n")
                if "(" not in hit.group(1):
                    judge(line, hit.group(1))
        elif not re.match(r"\s*(typedef|extern|_Static_assert)\b", declaration):
            bare = re.sub(r"\b(struct|union|enum)\s*\w*\s*\{\}", "type", declaration)
            words = re.sub(r"\[[^\]]*\]", "", bare).split()
            pointer_to_function = re.match(r"[^(]*\(\s*\*", bare)
            is_object = len(words) > 1 and words[0] not in {"struct", "union", "enum"}
            is_object = is_object or (len(words) > 2 and words[0] in {"struct", "union", "enum"})
            if is_object and ("(" not in bare or pointer_to_function):
                judge(item.line, bare.partition(")")[0] if pointer_to_function else bare)
    return found


def rule_c_calls(path: str, text: str) -> list[str]:
    """The library neither ends the process nor prints."""
    return [
        f"{path}:{number}: {hit.group(1)}() has no place in the library; return a la_status"
        for number, row in enumerate(without_preprocessor(blank(text)).splitlines(), 1)
        for hit in re.finditer(rf"(?<![\w.>])({BANNED_CALLS})\s*\(", row)
    ]


def rule_c_atomics(path: str, text: str) -> list[str]:
    """What threads share without a lock is the pool's business."""
    words = r"(?<!\w)(stdatomic|_Atomic|atomic_\w+|__atomic_\w+|__sync_\w+)"
    if path in {"csrc/base/pool.c", "csrc/model/backend_cpu_probe.c"}:  # a probe's sink
        return []
    return [
        f"{path}:{number}: {hit.group(1)}: atomics belong to base/pool.c; use it, or a mutex"
        for number, row in enumerate(blank(text).splitlines(), 1)
        for hit in re.finditer(words, row)
    ]


def rule_cuda_words(path: str, text: str) -> list[str]:
    """Kernels name instructions through wrappers, which have a body for the emulator as well."""
    if re.match(r"la_(ptx|kernel)", PurePosixPath(path).name):
        return []
    return [
        f"{path}:{number}: {hit.group()}: use, or write, a wrapper in la_ptx*.h"
        for number, row in enumerate(blank(text).splitlines(), 1)
        for hit in re.finditer(rf"(?<![\w.])({DEVICE_WORDS})\b", row)
    ]


def rule_c_head(path: str, text: str) -> list[str]:
    """A comment of three lines or more opens the file: what it owns, its invariant, its callers.

    Of a `.c` and its header one may leave that to the other, opening with `see <its name>`.
    """
    stem = PurePosixPath(path).stem
    pairs = [(f"{stem}.c", f"{stem}.h"), (f"{stem}.h", f"{stem}.c")]
    if any(re.match(rf"/\* {own} - [^*]*\bsee {other}\b", text) for own, other in pairs):
        return []
    block = re.match(r"/\*.*?\*/", text, flags=re.S)
    lines = re.match(r"(?://[^\n]*\n)+", text)
    opening = (block or lines).group() if block or lines else ""
    if opening.strip().count("\n") < 2:
        return [f"{path}:1: the file should open with a comment of three lines or more"]
    return []


# ---- rules over Python --------------------------------------------------------------------------


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, absolute dotted name, when) of every import: "start", "call" or "types"."""
    package = list(PurePosixPath(path).parent.parts)
    package = package[package.index("llmaccel") :] if "llmaccel" in package else []
    when = {}
    for outer in ast.walk(tree):
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            when.update({id(inner): "call" for inner in ast.walk(outer)})
        elif isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test):
            when.update({id(inner): "types" for branch in outer.body for inner in ast.walk(branch)})
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, when.get(id(node), "start")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name]), when.get(id(node), "start")


def rule_py_doors(path: str, text: str) -> list[str]:
    """The core imports no wing, no torch, nothing undeclared; a wing imports public names only."""
    found = []
    inside = PurePosixPath(path).relative_to("python/llmaccel").parts
    wing = inside[0] if inside[0] in WINGS else None
    for line, name, when in imports(path, ast.parse(text)):
        parts = name.split(".")
        inner = parts[1] if parts[0] == "llmaccel" and len(parts) > 1 else ""
        if wing:
            private = any(part.startswith("_") and not part.startswith("__") for part in parts)
            if inner and inner != wing and (private or len(parts) > 2 or inner in WINGS):
                found.append(f"{path}:{line}: a wing imports public names of llmaccel, not {name}")
        elif inner in WINGS:
            found.append(f"{path}:{line}: the core may not import the wing {name}")
        elif when == "types":
            continue
        elif parts[0] not in CORE_IMPORTS and parts[0] not in sys.stdlib_module_names:
            found.append(f"{path}:{line}: the core may not import {parts[0]}")
        elif when == "start" and parts[0] in LAZY_IMPORTS:
            found.append(f"{path}:{line}: import {parts[0]} inside the function that needs it")
    return found


def rule_py_head(path: str, text: str) -> list[str]:
    if text.strip() and not ast.get_docstring(ast.parse(text)):
        return [f"{path}:1: the file should open with a docstring"]
    return []


# ---- rules over every file ----------------------------------------------------------------------


def rule_size(path: str, text: str) -> list[str]:
    count = len(text.splitlines())
    generated = re.search(r"\bgenerated by\b", "\n".join(text.splitlines()[:5]), flags=re.I)
    limit = BUDGETS.get(path, MAX_LINES)
    if count >= limit and not generated:
        return [f"{path}:{limit}: {count} lines; the budget is under {limit}"]
    return []


def rule_file_name(path: str, _text: str) -> list[str]:
    stem, _, ending = PurePosixPath(path).name.partition(".")
    if stem == "common" or re.search(r"(^|_)(utils?|helpers?|misc)($|_)", stem):
        return [f"{path}:1: name the file after what it owns, not {stem}"]
    if re.search(r"_(v\d+|new|old|opt)$", stem):
        return [f"{path}:1: no {stem}: history is git's job"]
    if not re.fullmatch(r"[a-z0-9_]+", stem) or ending not in {
        "c",
        "cpp",
        "h",
        "cu",
        "cuh",
        "py",
        "pyi",
    }:
        return [f"{path}:1: file names are lower case with underscores"]
    return []


def rule_markers(path: str, text: str) -> list[str]:
    words = MARKERS if path.startswith("tests/") else f"{MARKERS}|{UNFINISHED}"
    return [
        f"{path}:{number}: {hit.group()}: finish it or open an issue"
        for number, row in enumerate(text.splitlines(), 1)
        for hit in re.finditer(rf"\b({words})\b", row)
    ]


def rule_flags(path: str, text: str) -> list[str]:
    """No flag that ties the build to this machine or lets the compiler change values."""
    return [
        f"{path}:{number}: {hit.group()} is not for this project"
        for number, row in enumerate(text.splitlines(), 1)
        for hit in re.finditer(r"-m(?:arch|cpu)=\S*|-ffast-math|-Ofast|-ffp-contract=fast", row)
    ]


# ---- the tree -----------------------------------------------------------------------------------

Rule = Callable[[str, str], list[str]]
C_FILES = ["csrc/**/*.c", "csrc/**/*.h"]
CUDA_FILES = ["csrc/**/*.cu", "csrc/**/*.cuh"]
PY_FILES = ["python/llmaccel/**/*.py"]
ALL_FILES = [*C_FILES, *CUDA_FILES, *PY_FILES, "python/llmaccel/**/*.pyi"]
EMULATOR_FILES = ["tests/cuda_emu/*.h", "tests/cuda_emu/*.cpp"]
ALL_FILES += ["tests/**/*.py", "tests/**/*.c", *EMULATOR_FILES, "benchmarks/**/*.py", "setup.py"]

RULES: dict[Rule, list[str]] = {
    rule_c_doors: [*C_FILES, *CUDA_FILES],
    rule_c_names: C_FILES,
    rule_c_parameters: C_FILES,
    rule_c_globals: C_FILES,
    rule_c_calls: C_FILES,
    rule_c_atomics: C_FILES,
    rule_cuda_words: ["csrc/kernels/cuda/*"],
    rule_c_head: [*C_FILES, *CUDA_FILES, *EMULATOR_FILES],
    rule_py_doors: PY_FILES,
    rule_py_head: [*PY_FILES, "tests/**/*.py", "benchmarks/**/*.py", "setup.py"],
    rule_size: ALL_FILES,
    rule_file_name: ALL_FILES,
    rule_markers: [*ALL_FILES, "Makefile"],
    rule_flags: ["setup.py", "Makefile", "pyproject.toml"],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tree(rule: Rule) -> None:
    paths = sorted({path for pattern in RULES[rule] for path in ROOT.glob(pattern)})
    assert paths, f"no file for {RULES[rule]}"
    found = []
    for path in paths:
        if not {"__pycache__", ".cache"} & set(path.parts):
            found += rule(path.relative_to(ROOT).as_posix(), path.read_text())
    assert not found, "\n" + "\n".join(found)


SEVEN = "int a, int b, int c, int d, int e, int f, int g"

# (rule, path, text, what the message must hold; None: the text is fine)
CASES: list[tuple[Rule, str, str, str | None]] = [
    (rule_c_doors, "csrc/engine/a.c", '\n#include "model/backend.h"', "a.c:2: may not include"),
    (rule_c_doors, "csrc/engine/a.c", '#include "kernels/kernels.h"', "kernels/kernels.h"),
    (rule_c_doors, "csrc/engine/a.c", '#include "base/base.h"', None),
    (rule_c_doors, "csrc/engine/a.c", '#include "../base/base.h"', None),
    (rule_c_doors, "csrc/model/a.c", '#include "base/pool.h"', "base/pool.h"),
    (rule_c_doors, "csrc/model/a.c", '#include "engine/engine.h"', "engine/engine.h"),
    (rule_c_doors, "csrc/model/backend_cpu.c", '#include "base/pool.h"', None),
    (rule_c_doors, "csrc/model/backend_cpu_linear.c", '#include "kernels/kernels.h"', None),
    (rule_c_doors, "csrc/base/a.c", '#include "model/model.h"', "model/model.h"),
    (rule_c_doors, "csrc/base/a.c", "#include <Python.h>", "csrc/python alone"),
    (rule_c_doors, "csrc/python/py_a.c", "#include <numpy/arrayobject.h>", "py_tensor.c alone"),
    (rule_c_doors, "csrc/python/py_a.c", '#include "model/pack.h"', "model/pack.h"),
    (rule_c_doors, "csrc/python/py_kernels.c", '#include "model/pack.h"', None),
    (rule_c_doors, "csrc/kernels/cpu/a.h", '#include "base/base.h"', "base/base.h"),
    (rule_c_doors, "csrc/kernels/cpu/a.h", "#include <stdlib.h>", "<stdlib.h>"),
    (rule_c_doors, "csrc/kernels/cuda/a.cu", '#include "base/pool.h"', "base/pool.h"),
    (rule_c_doors, "csrc/llmaccel.h", '#include "model/model.h"', "model/model.h"),
    (rule_c_doors, "csrc/attic/a.c", "", "no room"),
    (rule_c_names, "csrc/base/a.c", "void add(void) {}", "a.c:1: add()"),
    (rule_c_names, "csrc/base/a.c", "/* c */\nint add(int a)\n{\n return a; }", "a.c:2: add()"),
    (rule_c_names, "csrc/base/a.c", "static int add(int a)\n{\n return a; }", None),
    (rule_c_names, "csrc/base/a.c", "int la_add(int a)\n{\n return a; }", None),
    (rule_c_names, "csrc/python/py_a.c", "int la_add(int a) { return a; }", "py_"),
    (rule_c_names, "csrc/kernels/cpu/a.h", "void la_dot(int a) { a++; }", "static"),
    (rule_c_names, "csrc/kernels/cpu/a.h", "LA_INLINE int dot(int a) { return a; }", None),
    (rule_c_names, "csrc/kernels/cuda/a.h", "template <int N> LA_KERNEL(go, la_a) { }", "go()"),
    (rule_c_names, "csrc/kernels/cuda/a.h", "template <int N> LA_KERNEL(la_go, la_a) { }", None),
    (rule_c_names, "csrc/kernels/cpu/vec.h", "#define LA_INLINE inline", "vec.h:1: LA_INLINE"),
    (rule_c_names, "csrc/kernels/cpu/vec.h", "#define LA_INLINE static inline", None),
    (rule_c_names, "csrc/kernels/cpu/isa_x.c", "void la_kernels_fill_x(int a) { a++; }", None),
    (rule_c_names, "csrc/python/py_a.c", "typedef struct la_b { int a; } *c;", "is the core's"),
    (rule_c_names, "csrc/python/py_a.c", "typedef struct box { int a; } box;", None),
    (rule_c_names, "csrc/base/a.h", "typedef struct box { int a; } la_box;", "type box"),
    (rule_c_names, "csrc/base/a.h", "typedef int (*visit)(int a);", "type visit"),
    (rule_c_names, "csrc/base/a.h", "typedef struct la_b { int a; } la_b;\nenum { A = 1 };", None),
    (rule_c_parameters, "csrc/base/a.c", f"\nstatic int f({SEVEN})\n{{\n}}", "a.c:2: f() takes 7"),
    (rule_c_parameters, "csrc/base/a.h", f"int la_f({SEVEN});", "a.h:1: la_f() takes 7"),
    (rule_c_parameters, "csrc/base/a.h", f"int la_f({SEVEN[7:]});", None),
    (rule_c_parameters, "csrc/base/a.c", "void f(void (*g)(int a, int b), int c) {}", None),
    (rule_c_parameters, "csrc/kernels/cpu/a.h", f"static int f({SEVEN}) {{}}", None),
    (rule_c_globals, "csrc/base/a.c", "\nstatic int count;", "a.c:2: mutable global"),
    (rule_c_globals, "csrc/base/a.c", "int *table[] = {0, 0};", "mutable global"),
    (rule_c_globals, "csrc/base/a.c", 'static const char *names[] = {"a"};', "mutable global"),
    (rule_c_globals, "csrc/base/a.c", 'static const char *const names[] = {"a"};', None),
    (rule_c_globals, "csrc/base/a.c", "static struct la_x state = {.a = 1};", "mutable global"),
    (rule_c_globals, "csrc/base/a.c", "static struct { int a; } state;", "mutable global"),
    (rule_c_globals, "csrc/base/a.c", "static int (*hook)(int);", "mutable global"),
    (rule_c_globals, "csrc/base/a.c", "static int (*const hook)(int) = f;", None),
    (rule_c_globals, "csrc/base/a.h", "void la_run(la_pool *p, void (*fn)(void *));", None),
    (rule_c_globals, "csrc/base/a.c", "static _Thread_local char message[256];", None),
    (rule_c_globals, "csrc/base/a.c", "void f(void)\n{\n static int n;\n}", "a.c:3: mutable"),
    (rule_c_globals, "csrc/base/a.c", "void f(void)\n{\n static const int n = 1;\n}", None),
    (rule_c_globals, "csrc/base/a.c", "struct la_x;\nstruct la_y { int a; };\nint g(int);", None),
    (rule_c_globals, "csrc/base/a.c", "enum { LA_A = 1 };\nextern const int la_t[3];", None),
    (rule_c_globals, "csrc/python/py_a.c", "static PyMethodDef methods[] = {{0}};", None),
    (rule_c_globals, "csrc/base/a.c", "static PyMethodDef methods[] = {{0}};", "mutable global"),
    (rule_c_globals, "csrc/python/py_a.c", "static PyObject *cache;", "mutable global"),
    (rule_c_globals, "csrc/python/py_a.c", "int f(void) { static char *k[] = {0}; }", None),
    (rule_c_globals, "csrc/python/py_a.c", "int f(void) { static char *k; }", "mutable global"),
    (rule_c_calls, "csrc/base/a.c", '\n  printf("x");', "a.c:2: printf()"),
    (rule_c_calls, "csrc/base/a.c", "if (!p) abort();", "abort()"),
    (rule_c_calls, "csrc/base/a.c", "assert(p);", "assert()"),
    (rule_c_calls, "csrc/base/a.c", '/* exit(1) */ snprintf(b, n, "exit(1)");', None),
    (rule_c_calls, "csrc/base/a.c", "_Static_assert(1, 2); on_exit_(3);", None),
    (rule_c_atomics, "csrc/engine/a.c", "\nstruct a { atomic_int b; };", "a.c:2: atomic_int"),
    (rule_c_atomics, "csrc/engine/a.c", "x = __atomic_load_n(&y, 0);", "__atomic_load_n"),
    (rule_c_atomics, "csrc/engine/a.c", "/* atomic_int */ int la_atomic_x(int a);", None),
    (rule_c_atomics, "csrc/base/pool.c", "static _Atomic int *a;", None),
    (rule_c_doors, "csrc/kernels/cuda/la_kernel.h", '#include "la_emu_ptx.h"', None),
    (rule_c_doors, "csrc/kernels/cuda/rows.h", '#include "la_emu_ptx.h"', "may not include"),
    (rule_cuda_words, "csrc/kernels/cuda/a.h", "\n__syncthreads();", "a.h:2: __syncthreads"),
    (rule_cuda_words, "csrc/kernels/cuda/a.cu", "int i = threadIdx.x;", "threadIdx"),
    (rule_cuda_words, "csrc/kernels/cuda/a.cu", "x = __shfl_xor_sync(m, x, 1);", "__shfl_xor_sync"),
    (rule_cuda_words, "csrc/kernels/cuda/a.cu", "la_sync_block(); /* not __syncthreads */", None),
    (rule_cuda_words, "csrc/kernels/cuda/la_ptx_thread.h", "__syncthreads();", None),
    (rule_c_head, "csrc/base/a.c", "/* short */\nint a;", "three lines"),
    (rule_c_head, "csrc/base/a.c", "int a;\n/* 1\n * 2\n * 3 */", "three lines"),
    (rule_c_head, "csrc/base/a.c", "/* 1\n * 2\n * 3 */\nint a;", None),
    (rule_c_head, "csrc/base/a.c", "/* a.c - see a.h. */", None),
    (rule_c_head, "csrc/base/a.h", "/* a.h - shapes of slots; see a.c. */", None),
    (rule_c_head, "csrc/base/a.c", "/* a.c - see b.h. */", "three lines"),
    (rule_py_doors, "python/llmaccel/llm.py", "\nfrom .serve import app", "llm.py:2: the core"),
    (rule_py_doors, "python/llmaccel/llm.py", "from . import plan", "llmaccel.plan"),
    (rule_py_doors, "python/llmaccel/models/a.py", "from ..eval import x", "llmaccel.eval"),
    (rule_py_doors, "python/llmaccel/llm.py", "def f():\n    import torch", "import torch"),
    (rule_py_doors, "python/llmaccel/llm.py", "import requests", "import requests"),
    (rule_py_doors, "python/llmaccel/llm.py", "if TYPE_CHECKING:\n    import torch", None),
    (rule_py_doors, "python/llmaccel/llm.py", "import tqdm", "inside the function"),
    (rule_py_doors, "python/llmaccel/llm.py", "def f():\n    import tqdm", None),
    (rule_py_doors, "python/llmaccel/llm.py", "import numpy as np\nfrom .chat import a", None),
    (rule_py_doors, "python/llmaccel/serve/a.py", "import fastapi\nfrom llmaccel import LLM", None),
    (rule_py_doors, "python/llmaccel/serve/a.py", "from llmaccel import _core", "public names"),
    (rule_py_doors, "python/llmaccel/serve/a.py", "from llmaccel.chat import x", "public names"),
    (rule_py_doors, "python/llmaccel/serve/a.py", "from .routes import x", None),
    (rule_py_head, "python/llmaccel/a.py", "import os", "a.py:1:"),
    (rule_py_head, "python/llmaccel/a.py", '"""What it owns."""', None),
    (rule_size, "csrc/base/a.c", "x\n" * 700, "700 lines"),
    (rule_size, "csrc/base/a.c", "x\n" * 699, None),
    (rule_size, "csrc/base/a.c", "/* generated by gen.py */\n" + "x\n" * 900, None),
    (rule_size, "csrc/llmaccel.h", "x\n" * 400, "budget is under 400"),
    (rule_file_name, "csrc/base/common.h", "", "common"),
    (rule_file_name, "python/llmaccel/io_utils.py", "", "io_utils"),
    (rule_file_name, "csrc/base/pool_v2.c", "", "pool_v2"),
    (rule_file_name, "csrc/base/Pool.c", "", "lower case"),
    (rule_file_name, "csrc/base/pool.c", "", None),
    (rule_markers, "csrc/base/a.c", "\n/* " + "TO" + "DO: later */", "a.c:2:"),
    (rule_markers, "python/llmaccel/a.py", f"raise {UNFINISHED}", UNFINISHED),
    (rule_markers, "tests/test_a.py", f"except {UNFINISHED}:", None),
    (rule_markers, "csrc/base/a.c", "/* todo is lower case in prose */", None),
    (rule_flags, "setup.py", "\nflags = ['-m" + "arch=native']", "setup.py:2:"),
    (rule_flags, "Makefile", "CFLAGS += -ffast" + "-math", "fast-math"),
]


@pytest.mark.parametrize(("rule", "path", "text", "expected"), CASES)
def test_rule_can_fail(rule: Rule, path: str, text: str, expected: str | None) -> None:
    found = rule(path, text)
    if expected is None:
        assert not found
    else:
        assert len(found) == 1
        assert expected in found[0]


def test_every_rule_has_a_failing_case() -> None:
    assert {rule for rule, _, _, expected in CASES if expected} == set(RULES)


# ---- the built module ---------------------------------------------------------------------------


def writable_objects(data: bytes) -> Iterator[tuple[str, str]]:
    """(source file, name) of the data objects in writable sections of a 64-bit ELF file.

    Relocated constants (.data.rel.ro) are written by the loader only; thread-locals are not objects
    of the process. The linker's and the C runtime's own symbols have size 0.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a little-endian 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]

    def text(section: int, at: int) -> str:
        start = sections[section][4] + at
        return data[start : data.index(b"\0", start)].decode()

    for kind, offset, length, link in ((s[1], s[4], s[5], s[6]) for s in sections):
        if kind != 2:  # SHT_SYMTAB
            continue
        source = ""
        for at in range(offset, offset + length, 24):
            name, info, _, index, _, bytes_ = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 == 4:  # STT_FILE opens the local symbols of a file
                source = text(link, name)
            elif info & 15 == 1 and bytes_ and index < count:  # STT_OBJECT
                section = sections[index]
                constant = text(names, section[0]).startswith(".data.rel.ro")
                if section[2] & 1 and not constant:  # SHF_WRITE
                    yield source, text(link, name)


def core_path() -> Path:
    core = pytest.importorskip("llmaccel._core", reason="llmaccel._core is not built")
    return Path(core.__file__)


def test_the_built_core_has_no_mutable_globals() -> None:
    """What the linker sees, macros expanded; csrc/python is held to the rule on its source."""
    if sys.platform != "linux" or "LLMACCEL_SANITIZE" in os.environ:
        pytest.skip("needs a plain ELF build")
    objects = list(writable_objects(core_path().read_bytes()))
    assert objects, "the symbol table is stripped"
    found = [
        f"{source or 'csrc'}: {name} is writable"
        for source, name in objects
        if not source.startswith("py_") and source != "crtstuff.c"
    ]
    assert not found, "\n" + "\n".join(found)


PROBE = """
int la_shared = 1;
static int la_count;
static const int la_table[2] = {1, 2};
static const char *const la_names[] = {"n"};
_Thread_local int la_mine;
int la_f(int i)
{
    static int la_calls;
    la_mine += i;
    return la_count++ + la_table[i] + la_shared + la_calls++ + la_names[0][i];
}
"""


def test_writable_objects_are_seen(tmp_path: Path) -> None:
    """The reader finds what it should in a module compiled here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    (tmp_path / "a.c").write_text(PROBE)
    out = tmp_path / "a.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O0", "a.c", "-o", out], cwd=tmp_path, check=True
    )
    names = {name.partition(".")[0] for _, name in writable_objects(out.read_bytes())}
    assert {"la_shared", "la_count", "la_calls"} <= names
    assert not names & {"la_table", "la_names", "la_mine"}
