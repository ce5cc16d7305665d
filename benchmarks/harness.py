"""lm-evaluation-harness with the model types llmaccel and hf, on the same weights in fp32.

    python benchmarks/harness.py [--gguf SmolLM2.gguf] [--shared ../shared] [--questions 200]
                                 [--batch-sizes 1,2,4,8,16,32,64] [--probe 24] [--threads 2]
                                 [--hellaswag hellaswag_val_full.txt] [--tasks NAME,NAME]
    python benchmarks/harness.py --write FOLDER      # tasks and weights only, for the harness' CLI

Multiple-choice tasks in local files: ARC-challenge; the next sentence among four, which has
HellaSwag's form (contexts of 25 tokens, endings of 13); and, where a file of it is given, HellaSwag
itself (30 and 14 in its first 200 questions). Such a file has six lines a question: context, number
of the right ending, four endings. `hf` reads the GGUF file's weights dequantized into a safetensors
folder.

For each task hf runs the first --probe questions at every batch size, then all of them at the two
that were fastest, each between two runs of llmaccel: such a turn gives the largest difference of a
choice's log likelihood, both accuracies, and the seconds that the model takes to answer (texts to
scores; beside them those of the whole run, in which the harness also reads tasks and asks pip for
versions). hf's over the mean of its neighbours' is the turn's ratio; the smaller of two turns
counts. Probes and turns are kept in benchmarks/.cache/harness, by commit, and not measured again,
so a run that was cut short goes on. Prints a line each and appends a JSON line a task to
harness.jsonl (results.py). Needs the extra `eval`, torch, transformers, safetensors, and
accelerate for hf.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import results
from peers.setup import CACHE

from llmaccel import load_tokenizer, read_arrays

TASKS = ("local_arc_challenge", "local_next_sentence")
HELLASWAG = "local_hellaswag"
_ARC = """\
task: local_arc_challenge
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
doc_to_choice: "{{{{choices.text}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
_ENDINGS = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{ctx}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "endings"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


# ---- tasks and weights ---------------------------------------------------------------------------


def write_tasks(shared: Path, folder: Path, count: int, hellaswag: Path | None = None) -> None:
    """Task files and their data, `count` questions each."""
    folder.mkdir(parents=True, exist_ok=True)
    data = shared / "data"
    with (data / "evals" / "arc_challenge_test.jsonl").open() as file:
        arc = [json.loads(line) for line in itertools.islice(file, count)]
    with (data / "texts" / "tinystories.jsonl").open() as file:
        stories = [_sentences(json.loads(line)["text"]) for line in file]
    stories = [story for story in stories if len(story) >= 4][: count + 3]
    if min(len(arc), len(stories) - 3) < count:
        raise SystemExit(f"--questions {count}: the data holds fewer")
    tasks = [("arc", arc, _ARC, TASKS[0])]
    tasks.append(("next", [_next_sentence(stories, i) for i in range(count)], _ENDINGS, TASKS[1]))
    if hellaswag is not None:
        tasks.append(("hellaswag", _six_lines(hellaswag, count), _ENDINGS, HELLASWAG))
    for name, rows, text, task in tasks:
        path = (folder / f"{name}.jsonl").resolve()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(text.format(data=path, task=task))


def _six_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """Questions of six lines each: context, number of the right ending, four endings."""
    with path.open(encoding="utf-8") as file:
        lines = [line.strip() for line in itertools.islice(file, 6 * count)]
    if len(lines) < 6 * count:
        raise SystemExit(f"--hellaswag {path}: fewer than {count} questions of six lines")
    return [
        {"ctx": lines[i], "endings": lines[i + 2 : i + 6], "label": int(lines[i + 1])}
        for i in range(0, len(lines), 6)
    ]


def _sentences(text: str) -> list[str]:
    return re.findall(r"[^.!?]+[.!?]+\"?", " ".join(text.split()))


def _next_sentence(stories: list[list[str]], i: int) -> dict[str, Any]:
    """The beginning of story i, its next sentence and those of the three after it."""
    label = i % 4
    endings = [stories[i + k][2].strip() for k in (1, 2, 3)]
    endings.insert(label, stories[i][2].strip())
    return {"ctx": "".join(stories[i][:2]).strip(), "endings": endings, "label": label}


def write_folder(gguf: str | Path, folder: Path) -> Path:
    """The file's weights dequantized to fp32, as a folder that transformers reads."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config, arrays = read_arrays(gguf)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    tokenizer = load_tokenizer(gguf)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    names = {f"{kind}_token": getattr(tokenizer, f"{kind}_token") for kind in ("bos", "eos", "pad")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {name: token for name, token in names.items() if token is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


# ---- runs ----------------------------------------------------------------------------------------


class Run(NamedTuple):
    """seconds: of the harness' whole run; answering: of them those that the model took."""

    seconds: float
    answering: float
    acc: float
    scores: list[list[float]]  # log likelihoods by question and choice


def evaluate(lm: Any, tasks: Path, name: str, limit: int | None = None) -> Run:
    """The harness on one task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    answer, answering = lm.loglikelihood, []

    def timed(requests: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return answer(requests, **kwargs)
        finally:
            answering.append(time.perf_counter() - start)

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    lm.loglikelihood = timed
    start = time.perf_counter()
    try:
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=[name],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    finally:
        del lm.loglikelihood
    seconds = time.perf_counter() - start
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    scores = [[float(choice[0]) for choice in sample["filtered_resps"]] for sample in samples]
    return Run(seconds, sum(answering), found["results"][name]["acc,none"], scores)


def largest_difference(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Of any choice's log likelihood."""
    pairs = zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True)
    return max(abs(a - b) for a, b in pairs)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, or gave in an earlier run."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


class Pair:
    """Both model types on the same weights, and where their tasks lie."""

    def __init__(self, gguf: str, folder: Path, threads: int) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM

        from llmaccel.eval.harness import HarnessLM

        torch.set_num_threads(threads)
        self.ours = HarnessLM(gguf, dtype="float32", threads=threads)
        weights = str(folder / "weights")
        self.theirs = HFLM(weights, dtype="float32", device="cpu", batch_size=1)
        self.tasks = folder / "tasks"

    def probe(self, name: str, size: int, limit: int) -> dict[str, Any]:
        """hf alone on the first `limit` questions."""
        self.theirs.batch_size_per_gpu = size
        return {"answering": evaluate(self.theirs, self.tasks, name, limit).answering}

    def turn(self, name: str, size: int) -> dict[str, Any]:
        """hf on all questions, between two runs of llmaccel."""
        self.theirs.batch_size_per_gpu = size
        before = evaluate(self.ours, self.tasks, name)
        theirs = evaluate(self.theirs, self.tasks, name)
        after = evaluate(self.ours, self.tasks, name)
        if after.scores != before.scores:
            raise SystemExit(f"{name}: two runs of llmaccel differ")
        return {
            "batch": size,
            "answering": [before.answering, after.answering],
            "hf_answering": theirs.answering,
            "ratio": 2 * theirs.answering / (before.answering + after.answering),
            "seconds": [before.seconds, after.seconds],
            "hf_seconds": theirs.seconds,
            "acc": before.acc,
            "hf_acc": theirs.acc,
            "worst": largest_difference(before.scores, theirs.scores),
        }


def measure(pair: Pair, cache: Path, name: str, args: argparse.Namespace) -> None:
    """Probes and turns of one task, and its line of results."""
    for lm in (pair.ours, pair.theirs):  # reads data and modules
        evaluate(lm, pair.tasks, name, 2)
    probes = {}
    for size in (int(size) for size in args.batch_sizes.split(",")):
        path = cache / f"{name}-probe{args.probe}-batch{size}.json"
        done = kept(path, lambda size=size: pair.probe(name, size, args.probe))
        probes[size] = done["answering"]
        print(
            f"{name}: {args.probe} questions, batch {size:2d}: hf {probes[size]:.2f} s", flush=True
        )
    turns = []
    for size in sorted(probes, key=probes.__getitem__)[:2]:
        path = cache / f"{name}-{args.questions}-batch{size}.json"
        turn = kept(path, lambda size=size: pair.turn(name, size))
        turns.append(turn)
        print(
            f"{name}: {args.questions} questions, batch {size:2d}: "
            f"hf {turn['hf_answering']:.2f} s of {turn['hf_seconds']:.2f}, llmaccel "
            f"{turn['answering'][0]:.2f} of {turn['seconds'][0]:.2f} and "
            f"{turn['answering'][1]:.2f} of {turn['seconds'][1]:.2f}, "
            f"{turn['ratio']:.2f} times; acc {turn['hf_acc']:.4f} {turn['acc']:.4f}, "
            f"largest difference {turn['worst']:.2e}",
            flush=True,
        )
    record = {"benchmark": "harness", "task": name, "questions": args.questions}
    record |= {"threads": args.threads, "probe_questions": args.probe, "probe_hf_answering": probes}
    record |= {"turns": turns, "ratio": min(turn["ratio"] for turn in turns)}
    results.append("harness", record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared"
    )
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--probe", type=int, default=24)
    parser.add_argument("--batch-sizes", default="1,2,4,8,16,32,64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hellaswag", type=Path, help="HellaSwag's questions, six lines each")
    parser.add_argument("--tasks", help="those to run; all that there are, if not given")
    parser.add_argument("--write", type=Path, help="write tasks and weights there, run nothing")
    args = parser.parse_args()
    if args.gguf is None:
        raise SystemExit("needs --gguf FILE or LLMACCEL_SMOLLM2")
    args.tasks = args.tasks or ",".join((*TASKS, *([HELLASWAG] if args.hellaswag else [])))
    folder = args.write or CACHE / "harness" / Path(args.gguf).stem
    write_tasks(args.shared, folder / "tasks", args.questions, args.hellaswag)
    if args.write or not (folder / "weights" / "model.safetensors").exists():
        write_folder(args.gguf, folder / "weights")
    if args.write is None:
        pair = Pair(args.gguf, folder, args.threads)
        cache = folder / f"{results.commit()}-{args.threads}"
        for name in args.tasks.split(","):
            measure(pair, cache, name, args)


if __name__ == "__main__":
    main()
