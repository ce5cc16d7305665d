"""The notebooks: valid, stored without outputs, and running from top to bottom.

Each runs in a real kernel, so in the running event loop and under the IPython that a reader has:
on the model that it makes itself, and on SmolLM2 where the file is there. A cell's asserts are the
test; the error names the cell.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

import llmaccel

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = ("01_path_of_a_token", "03_number_formats")
# What a notebook imports that an installation for tests may lack.
NEEDS = {
    "02_paged_attention": ("matplotlib",),
    "04_pytorch_evaluation": ("torch", "transformers", "matplotlib"),
    "05_lm_evaluation_harness": ("lm_eval", "safetensors"),
    "06_speed_ladder": ("matplotlib",),
}
TO_RUN = [
    path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in NOTEBOOKS
]

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


def stored_state(notebook: dict) -> list[str]:
    """What a run leaves behind and a diff should not show."""
    found = [
        f"metadata: {key}" for key in set(notebook["metadata"]) - {"kernelspec", "language_info"}
    ]
    for cell in notebook["cells"]:
        if cell["metadata"]:
            found.append(f"{cell['id']}: metadata")
        if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"] is not None):
            found.append(f"{cell['id']}: outputs")
    return found


def run(path: Path, folder: Path) -> None:
    """Execute every cell; CellExecutionError shows the one that failed."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    for name in NEEDS.get(path.stem, ()):
        pytest.importorskip(name, reason=f"{name} is not installed")
    notebook = nbformat.read(path, as_version=4)
    # How long it may take is pytest's to say.
    nbclient.NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            assert cell.execution_count is not None, f"{cell.id} did not run"


@pytest.fixture
def own_jupyter(tmp_path, monkeypatch) -> Path:
    """An empty folder to run in; kernels, settings and start-up files of the user are not seen."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    # The package under test, however this process found it: the kernel starts elsewhere.
    monkeypatch.setenv("PYTHONPATH", str(Path(llmaccel.__file__).resolve().parents[1]))
    work = tmp_path / "work"
    work.mkdir()
    return work


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_valid_and_stripped(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)  # validate() would make new ones
    nbformat.validate(notebook)
    assert stored_state(notebook) == []


@pytest.mark.parametrize("path", TO_RUN, ids=lambda path: path.stem)
def test_runs_on_its_own_model(path, own_jupyter, monkeypatch):
    monkeypatch.delenv("LLMACCEL_SMOLLM2", raising=False)
    run(path, own_jupyter)


@pytest.mark.parametrize("path", TO_RUN, ids=lambda path: path.stem)
def test_runs_on_smollm2(path, smollm2_path, own_jupyter, monkeypatch):
    monkeypatch.setenv("LLMACCEL_SMOLLM2", str(smollm2_path.resolve()))
    run(path, own_jupyter)


def test_what_a_run_leaves_is_found():
    cell = nbformat.v4.new_code_cell("1", id="one", execution_count=1)
    assert stored_state(nbformat.v4.new_notebook(cells=[cell])) == ["one: outputs"]
    cell = nbformat.v4.new_markdown_cell("text", id="two", metadata={"scrolled": True})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    assert stored_state(notebook) == ["metadata: widgets", "two: metadata"]


def test_a_failing_cell_fails_the_run(own_jupyter, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="1 \\+ 1 == 3"):
        run(tmp_path / "bad.ipynb", own_jupyter)
