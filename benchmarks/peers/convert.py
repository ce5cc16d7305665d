"""Turns a checkpoint folder into the form that OpenVINO or CTranslate2 wants, once.

Owns the calls of the peers' own converters; what they make lies beside the checkpoint. Called by
compare.py.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from peers.setup import environment


def command(kind: str, source: Path, target: Path) -> list[str | Path]:
    """The peer's own converter, as a command line."""
    peer, _, form = kind.partition("-")
    bin_folder = environment(peer).parent
    if peer == "openvino":
        task = ["--task", "text-generation-with-past", "--weight-format", form]
        return [bin_folder / "optimum-cli", "export", "openvino", "--model", source, *task, target]
    options = ["--model", source, "--output_dir", target, "--quantization", form]
    return [bin_folder / "ct2-transformers-converter", *options]


def converted(kind: str, source: Path) -> Path:
    """`source` in the form `kind` ("openvino-int8", "ctranslate2-int8"), beside it."""
    target = source.parent / f"{source.name}-{kind}"
    if target.exists():
        return target
    part = target.parent / f"{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    made = subprocess.run(command(kind, source, part), capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"conversion to {kind} failed:\n{made.stderr[-2000:]}")
    part.rename(target)
    return target
