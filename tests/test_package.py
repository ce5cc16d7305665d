"""The package as its users meet it: what an import gives, what it must not drag in, what pip sees.

Imports run in a fresh interpreter, because this one has already imported what pytest needs.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

SLOW_MODULES = {
    "torch",
    "transformers",
    "tokenizers",
    "jinja2",
    "tqdm",
    "huggingface_hub",
    "sentencepiece",
}


def modules_after(statement: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter after the statement, less those NumPy brings."""
    program = (
        "import sys, json, numpy; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_import_leaves_slow_packages_alone() -> None:
    loaded = modules_after("import llmaccel")
    assert "llmaccel" in loaded
    assert not loaded & SLOW_MODULES


def test_the_public_names_leave_the_event_loop_alone() -> None:
    loaded = modules_after("from llmaccel import LLM, SamplingParams")
    assert "llmaccel.llm" in loaded
    assert not loaded & {*SLOW_MODULES, "asyncio", "ssl"}


def test_import_of_the_cli_leaves_torch_alone() -> None:
    assert not modules_after("import llmaccel.cli") & {"torch", "transformers"}


def test_the_torch_wing_says_which_extra_it_needs() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import llmaccel.torch\n"
        "except ImportError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'llmaccel[torch]'" in run.stdout, run.stderr


def test_the_probe_sees_an_import() -> None:
    """The two tests above can fail: the same probe finds a module that is imported."""
    assert "tqdm" in modules_after("import tqdm") & SLOW_MODULES


@pytest.fixture(scope="module")
def installed() -> metadata.Distribution:
    """The installed distribution; absent where a source tree is only put on PYTHONPATH."""
    try:
        return metadata.distribution("llmaccel")
    except metadata.PackageNotFoundError:
        pytest.skip("llmaccel is not installed (`make dev` installs it)")


@pytest.mark.parametrize("name", ["LLM", "SamplingParams", "load_tokenizer", "__version__"])
def test_public_names(name: str) -> None:
    import llmaccel

    assert getattr(llmaccel, name)


def test_version_has_one_place(installed: metadata.Distribution) -> None:
    """The installed metadata carries the literal of __init__.py, and nothing else spells it."""
    import llmaccel

    source = (ROOT / "python" / "llmaccel" / "__init__.py").read_text()
    values = [
        node.value.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and [getattr(target, "id", "") for target in node.targets] == ["__version__"]
    ]
    assert values == [llmaccel.__version__]
    assert installed.version == llmaccel.__version__


def test_typing_files_are_installed() -> None:
    import llmaccel

    package = Path(llmaccel.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def signature(text: str) -> list[tuple[str, str | None]] | None:
    """(name, default) of the parameters in `name(a, b=1) ...`, `*` as one of them."""
    match = re.match(r"\w+\(([^()]*(?:\([^()]*\)[^()]*)*)\)", text)
    if match is None:
        return None
    found = ast.parse(f"def f({match[1]}): ...").body[0]
    assert isinstance(found, ast.FunctionDef)
    return parameters(found)


def parameters(f: ast.FunctionDef) -> list[tuple[str, str | None]]:
    plain = [*f.args.posonlyargs, *f.args.args]
    defaults = [None] * (len(plain) - len(f.args.defaults)) + f.args.defaults
    pairs = [*zip(plain, defaults, strict=True)]
    named = [*zip(f.args.kwonlyargs, f.args.kw_defaults, strict=True)]
    found = [(a.arg, None if d is None else ast.unparse(d)) for a, d in pairs]
    found += [("*", None)] if named else []
    found += [(a.arg, None if d is None else ast.unparse(d)) for a, d in named]
    return [pair for pair in found if pair[0] not in ("self", "cls")]


def test_the_stub_matches_the_core() -> None:
    """Members of every class the stub lists, and signatures as the docstrings of the core give."""
    from llmaccel import _core

    stub = ast.parse((ROOT / "python" / "llmaccel" / "_core.pyi").read_text())
    compared = 0
    for node in stub.body:
        if isinstance(node, ast.FunctionDef) and node.name != "__getattr__":
            assert parameters(node) == signature(getattr(_core, node.name).__doc__), node.name
            compared += 1
        if not isinstance(node, ast.ClassDef):
            continue
        kind = getattr(_core, node.name)
        members = {f.name: f for f in node.body if isinstance(f, ast.FunctionDef)}
        assert parameters(members["__init__"]) == signature(kind.__doc__), node.name
        public = {name for name in vars(kind) if not name.startswith("_")}
        assert public == {name for name in members if not name.startswith("_")}, node.name
        for name in public:
            f, core = members[name], getattr(kind, name)
            is_property = any(getattr(d, "id", "") == "property" for d in f.decorator_list)
            assert is_property != callable(core), f"{node.name}.{name}"
            if not is_property:
                assert parameters(f) == signature(core.__doc__), f"{node.name}.{name}"
                compared += 1
    assert compared > 20


def test_console_script(installed: metadata.Distribution) -> None:
    scripts = installed.entry_points.select(group="console_scripts")
    assert [(s.name, s.value) for s in scripts] == [("llmaccel", "llmaccel.cli:main")]
    assert callable(scripts["llmaccel"].load())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switch", "code", "words"),
    [
        ("auto", 0, "llmaccel: without the CUDA backend: no nvcc (/absent/nvcc)"),
        ("0", 0, ""),
        ("1", 1, "LLMACCEL_CUDA=1: no nvcc (/absent/nvcc)"),
        ("yes", 1, "LLMACCEL_CUDA='yes'"),
    ],
)
def test_it_builds_without_nvcc(switch: str, code: int, words: str, tmp_path: Path) -> None:
    """The core alone; only where the device's part was asked for that is an error."""
    own = {**os.environ, "LLMACCEL_CUDA": switch, "LLMACCEL_NVCC": "/absent/nvcc"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    if code == 0:
        made = [path.name for path in tmp_path.rglob("*.so")]
        assert [name.partition(".")[0] for name in made] == ["_core"]
        assert done.stdout.strip() == words
