"""lm-evaluation-harness with the model types llmaccel and hf, on the same weights in fp32.

    python benchmarks/harness.py [--gguf SmolLM2.gguf] [--shared ../shared] [--questions 200]
                                 [--batch-sizes 1,2,4,8,16,32,64] [--threads 2]
    python benchmarks/harness.py --write FOLDER      # tasks and weights only, for the harness' CLI

Two multiple-choice tasks lie in local files: ARC-challenge, and the next sentence among four, which
has HellaSwag's shape. `hf` reads the GGUF file's weights dequantized into a safetensors folder. For
each task: the largest difference of a choice's log likelihood, accuracies, and seconds of the
harness' run, of hf at each batch size. Prints a table and appends JSON lines to harness.jsonl
(results.py). Needs the extra `eval`, torch, transformers, safetensors, and accelerate for hf.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import results

from llmaccel import load_tokenizer, read_arrays

TASKS = ("local_arc_challenge", "local_next_sentence")
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
_NEXT = """\
task: local_next_sentence
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


def write_tasks(shared: Path, folder: Path, count: int) -> None:
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
    following = [_next_sentence(stories, i) for i in range(count)]
    for name, rows, text in (("arc", arc, _ARC), ("next", following, _NEXT)):
        path = (folder / f"{name}.jsonl").resolve()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(text.format(data=path))


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


def evaluate(lm: Any, tasks: Path, name: str) -> tuple[float, float, list[list[float]]]:
    """(seconds, accuracy, log likelihoods by question and choice)."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    start = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    seconds = time.perf_counter() - start
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    scores = [[float(choice[0]) for choice in sample["filtered_resps"]] for sample in samples]
    return seconds, found["results"][name]["acc,none"], scores


def measure(gguf: str, folder: Path, batch_sizes: list[int], threads: int) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM

    from llmaccel.eval.harness import HarnessLM

    torch.set_num_threads(threads)
    ours = HarnessLM(gguf, dtype="float32", threads=threads)
    theirs = HFLM(str(folder / "weights"), dtype="float32", device="cpu", batch_size=1)
    for name in TASKS:
        seconds, accuracy, scores = evaluate(ours, folder / "tasks", name)
        again, _, _ = evaluate(ours, folder / "tasks", name)
        record = {"benchmark": "harness", "task": name, "questions": len(scores)}
        record |= {"threads": threads, "seconds": min(seconds, again), "acc": accuracy, "hf": {}}
        for size in batch_sizes:
            theirs.batch_size_per_gpu = size
            spent, other, expected = evaluate(theirs, folder / "tasks", name)
            worst = max(
                abs(a - b)
                for one, two in zip(scores, expected, strict=True)
                for a, b in zip(one, two, strict=True)
            )
            record["hf"][size] = {"seconds": spent, "acc": other, "worst": worst}
            print(
                f"{name}: batch {size:3d}  hf {spent:7.2f} s  llmaccel {record['seconds']:6.2f} s  "
                f"acc {other:.4f} {accuracy:.4f}  largest difference {worst:.2e}",
                flush=True,
            )
        best = min(entry["seconds"] for entry in record["hf"].values())
        record["ratio"] = best / record["seconds"]
        print(f"{name}: {record['ratio']:.2f} x hf at its best batch size")
        results.append("harness", record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"))
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared"
    )
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--batch-sizes", default="1,2,4,8,16,32,64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="write tasks and weights there, run nothing")
    args = parser.parse_args()
    if args.gguf is None:
        raise SystemExit("needs --gguf FILE or LLMACCEL_SMOLLM2")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.write or Path(scratch)
        write_tasks(args.shared, folder / "tasks", args.questions)
        write_folder(args.gguf, folder / "weights")
        if args.write is None:
            sizes = [int(size) for size in args.batch_sizes.split(",")]
            measure(args.gguf, folder, sizes, args.threads)


if __name__ == "__main__":
    main()
