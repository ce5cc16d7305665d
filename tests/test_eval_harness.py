"""lm-evaluation-harness on its model type `llmaccel`: against its own `hf` model on equal weights,
from Python and from its command line, with tasks in local files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import harness

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.torch]
QUESTIONS = 20


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf_home")))
        yield


@pytest.fixture(scope="module")
def tasks(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    harness.write_tasks(shared_data.parent, folder, QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    return tiny.stories260k_folder(shared_data.parent, tmp_path_factory.mktemp("stories") / "hf")


@pytest.fixture(scope="module")
def pair(folder):
    """(llmaccel, hf) on stories260K, whose context of 512 no question fills."""
    from lm_eval.models.huggingface import HFLM

    from llmaccel.eval.harness import HarnessLM

    ours = HarnessLM(str(folder), dtype="float32")
    yield ours, HFLM(str(folder), dtype="float32", device="cpu", batch_size=4)
    ours.llm.close()


@pytest.mark.parametrize("name", harness.TASKS)
def test_choices(pair, tasks, name):
    ours, theirs = (harness.evaluate(lm, tasks, name) for lm in pair)
    assert len(ours.scores) == QUESTIONS
    assert ours.acc == theirs.acc
    for one, two in zip(ours.scores, theirs.scores, strict=True):
        assert one == pytest.approx(two, abs=1e-3)


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


def test_requests_one_by_one(pair):
    """Empty contexts, contexts that are cut on the left, whole texts longer than the context."""
    ours, theirs = pair
    long = "Once upon a time there was a little dog. " * 60
    asked = instances("loglikelihood", ("", "Once"), (long, " The end."), ("Lily ", "smiled."))
    for one, two in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert one[0] == pytest.approx(two[0], abs=1e-3)
        assert one[1] == two[1]
    asked = instances("loglikelihood_rolling", ("One day.",), (long,), (long[:700],))
    got, expected = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked)
    assert got == pytest.approx(expected, rel=1e-5)
    settings = {"until": ["\n", "day"], "max_gen_toks": 20, "do_sample": False}
    asked = instances("generate_until", ("Once upon a time", settings), ("Lily ", {**settings}))
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_a_shared_context_is_computed_once(pair):
    ours, _ = pair
    context = "Once upon a time there was a little dog."
    before = ours.llm.report()["stats"]["prompt_tokens"]
    ours.loglikelihood(instances("loglikelihood", *((context, f" {w}.") for w in "abcdefgh")))
    fed = ours.llm.report()["stats"]["prompt_tokens"] - before
    assert fed < 2 * len(ours.tok_encode(context)) + 8 * 4


def test_from_python_by_name(folder, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    import llmaccel.eval.harness  # noqa: F401  # registers the name

    found = lm_eval.simple_evaluate(
        model="llmaccel",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=[harness.TASKS[0]],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        limit=4,
        bootstrap_iters=0,
    )
    assert 0 <= found["results"][harness.TASKS[0]]["acc,none"] <= 1


def test_command_line(folder, tasks, tmp_path):
    command = [sys.executable, "-m", "llmaccel.cli", "eval", "harness", "run"]
    command += ["--model", "llmaccel", "--model_args", f"pretrained={folder},dtype=float32"]
    command += ["--tasks", harness.TASKS[1], "--include_path", str(tasks), "--limit", "4"]
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "acc" in done.stdout
    (report,) = tmp_path.rglob("results_*.json")
    assert harness.TASKS[1] in json.loads(report.read_text())["results"]
