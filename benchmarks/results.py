"""Where benchmark figures go: one JSON line each, with what is needed to judge them.

Called by every script of this folder. A line holds the commit, the processor and the time,
then what the script measured. Lines go to benchmarks/.cache/results, so that trying a script leaves
a checkout as it was; with LLMACCEL_RECORD=1 to benchmarks/results, the record that is in git and
that the README quotes.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

_HERE = Path(__file__).parent
FOLDER = _HERE / ("results" if os.environ.get("LLMACCEL_RECORD") == "1" else ".cache/results")


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum of repeated readings, and how many there were."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "n": len(values),
    }


def git(*command: str) -> str:
    """What git prints, run in the root of the checkout."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit() -> str:
    """The last commit that changed the library, with a + when its files differ from it.

    Scripts and results of benchmarks do not count. "unknown" outside a checkout.
    """
    library = ("csrc", "python", "setup.py")
    try:
        name = git("log", "-1", "--format=%h", "--", *library)
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", *library)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if dirty else "")


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def append(name: str, row: dict) -> None:
    """Appends `row`, with its circumstances, to <name>.jsonl in FOLDER."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    full = {
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": processor(),
        **row,
    }
    with open(FOLDER / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(full) + "\n")
