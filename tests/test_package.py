"""The package as its users meet it: what an import gives, what it must not drag in, what pip sees.

Imports run in a fresh interpreter, because this one has already imported what pytest needs.
"""

from __future__ import annotations

import ast
import json
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


def test_console_script(installed: metadata.Distribution) -> None:
    scripts = installed.entry_points.select(group="console_scripts")
    assert [(s.name, s.value) for s in scripts] == [("llmaccel", "llmaccel.cli:main")]
    assert callable(scripts["llmaccel"].load())
