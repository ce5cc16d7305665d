"""llmaccel and its peers on the same shapes, in turns, and what the comparison has to show.

    python benchmarks/compare.py run [--peers llama.cpp,openvino] [--shapes qwen2.5-0.5b]
                                     [--metrics decode,prefill] [--limit SECONDS]
    python benchmarks/compare.py show [--commit NAME]
    python benchmarks/compare.py plot [--commit NAME]

`peers/setup.py` installs the peers, models.py makes the models. A cell is (table, shape, peer,
format, recipe, metric): table "a" runs the very GGUF file of the peer, table "b" the recipe of ours
that answers the peer's format (--recipe replaces it). Both engines are loaded at once and take
turns, llmaccel first in every other one; each turn is a line of results/compare.jsonl with the read
bandwidth and dot peaks probed before and after it, so that a run may be cut anywhere (--limit cuts
it by itself) and goes on where it stopped. Protocol and metrics: peers/protocol.py.

`show` prints each cell: medians, the ratio ours/peer paired turn by turn with its quartiles, and
its physical bound: for decode (read bandwidth / our bytes a token) / peer, for prefill (peak of our
dot / operations a token) / peer. Then the lines to be met; where one asks for more than 0.92 of a
decode bound, 0.92 of it is what is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import compare_report
import models
import results
import roofline
from peers.convert import converted
from peers.protocol import METRICS
from peers.setup import environment

from llmaccel import _core

# peer: formats. Bits of a format decide which recipes of ours answer it.
FORMATS = {
    "llama.cpp": ("bf16", "q8_0", "q4_0", "q4_k_m"),
    "openvino": ("int8", "int4"),
    "vllm": ("bf16",),
    "ctranslate2": ("int8",),
    "transformers": ("bf16",),
}
# Table b: our answer to a format, the fastest whose perplexity (quality.py) is no worse. "none"
# keeps the bf16 checkpoint; the others are LLM's quantization option. OpenVINO's int4 has groups
# of 128.
RECIPES = {
    ("llama.cpp", "q4_0"): "w4g32",
    ("llama.cpp", "q4_k_m"): "w4g32",
    ("openvino", "int4"): "w4g128",
    "bf16": "none",
    "q8_0": "int8",
    "int8": "int8",
}
DRIVERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Cell:
    """What is measured: one metric of one shape in one engine's format against our recipe."""

    table: str
    shape: str
    peer: str
    format: str
    recipe: str
    metric: str


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Every cell that the arguments ask for, those of one pair of engines side by side."""
    for shape in args.shapes.split(","):
        if shape == "smollm2":
            yield from (
                Cell("a", shape, "llama.cpp", "file", "gguf", metric)
                for metric in args.metrics.split(",")
                if args.gguf and "llama.cpp" in args.peers and "a" in args.tables
            )
            continue
        for peer in args.peers.split(","):
            for form in FORMATS[peer]:
                if args.formats and form not in args.formats.split(","):
                    continue
                recipe = args.recipe or RECIPES.get((peer, form)) or RECIPES[form]
                for table in args.tables.split(","):
                    if table == "a" and peer != "llama.cpp":
                        continue
                    ours = "gguf" if table == "a" else recipe
                    for metric in args.metrics.split(","):
                        yield Cell(table, shape, peer, form, ours, metric)


# ---- engines -------------------------------------------------------------------------------------


def gguf_file(cell: Cell, gguf: str) -> Path:
    """The GGUF file of a cell; SmolLM2's is the one that was given."""
    return Path(gguf) if cell.format == "file" else models.gguf_file(cell.shape, cell.format)


def our_command(cell: Cell, gguf: str) -> list[str]:
    """The driver of llmaccel for a cell."""
    options: dict[str, str] = {}
    model = gguf_file(cell, gguf) if cell.table == "a" else models.checkpoint(cell.shape)
    if cell.table == "b" and cell.recipe != "none":
        options["quantization"] = cell.recipe
    script = DRIVERS / "drive_llmaccel.py"
    command = [sys.executable, script, model, cell.metric, "--options", json.dumps(options)]
    return [str(part) for part in command]


def peer_command(cell: Cell, gguf: str) -> list[str]:
    """The driver of the peer for a cell."""
    script = DRIVERS / f"drive_{cell.peer.replace('.', '_')}.py"
    python: str | Path = environment(cell.peer)
    if not Path(python).exists():
        raise SystemExit(f"{cell.peer} is missing: python benchmarks/peers/setup.py {cell.peer}")
    if cell.peer == "llama.cpp":
        model = gguf_file(cell, gguf)
    elif cell.peer in ("openvino", "ctranslate2"):
        model = converted(f"{cell.peer}-{cell.format}", models.checkpoint(cell.shape))
    else:
        model = models.checkpoint(cell.shape)
    return [str(part) for part in (python, script, model, cell.metric)]


class Engine:
    """A driver in lockstep: loaded once, one reading whenever it is asked."""

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe would fill up
        self._process = subprocess.Popen(
            [*command, "--lockstep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.about = self._next()

    def _next(self) -> dict:
        for line in self._process.stdout:  # engines print other things as well
            if line.startswith("{") and ('"ready"' in line or '"metric"' in line):
                return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        raise RuntimeError(self._errors.read()[-1500:] or "the driver ended without a word")

    def reading(self) -> float:
        """One reading of the metric, tokens per second."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._next()["value"]

    def close(self) -> None:
        """Lets the driver end; it reads no more lines."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


# ---- a run ---------------------------------------------------------------------------------------


def probe(backend: _core.Backend) -> dict[str, float]:
    """Read bandwidth (GB/s) and dot peaks (1e9 operations/s) of this moment."""
    found = {"read": roofline.bandwidth(backend, 256 << 20), **roofline.peaks(backend)}
    return {name: round(value, 1) for name, value in found.items()}


def done_turns(commit: str) -> dict[Cell, list[dict]]:
    """Lines of results/compare.jsonl of a commit, by cell."""
    found: dict[Cell, list[dict]] = {}
    path = results.FOLDER / "compare.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        if row["commit"] == commit:
            cell = Cell(**{name: row[name] for name in Cell.__dataclass_fields__})
            found.setdefault(cell, []).append(row)
    return found


def measure(cell: Cell, first: int, args: argparse.Namespace, backend: _core.Backend) -> None:
    """Takes turns `first` .. repeats - 1 of a cell, as far as the time allows."""
    engines: dict[str, Engine] = {}
    try:
        engines["ours"] = Engine(our_command(cell, args.gguf))
        engines["theirs"] = Engine(peer_command(cell, args.gguf))
        about = engines["ours"].about
        before = probe(backend)
        for turn in range(first, args.repeats):
            order = ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours")
            values = {name: engines[name].reading() for name in order}
            after = probe(backend)
            row = {**asdict(cell), "turn": turn, **values, "before": before, "after": after}
            results.append("compare", {**row, "token_bytes": about["token_bytes"]})
            print(
                f"{cell.table} {cell.shape} {cell.peer} {cell.format} {cell.recipe} {cell.metric} "
                f"turn {turn}: ours {values['ours']:.1f}, theirs {values['theirs']:.1f}, "
                f"read {before['read']:.1f} and {after['read']:.1f} GB/s",
                flush=True,
            )
            before = after
            if time.monotonic() > args.end:
                break
    except RuntimeError as error:
        print(f"{cell}: not measured: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
    finally:
        for engine in engines.values():
            engine.close()


def run(args: argparse.Namespace) -> None:
    """Measures the cells that have fewer turns than asked, until the time is over."""
    args.end = time.monotonic() + args.limit
    backend = _core.Backend("cpu", None, 0)
    done = done_turns(results.commit())
    for cell in cells(args):
        have = len(done.get(cell, []))
        if have < args.repeats and time.monotonic() < args.end:
            measure(cell, have, args, backend)


# ---- what was found ------------------------------------------------------------------------------


def summary(cell: Cell, rows: list[dict]) -> dict:
    """Medians of a cell, its paired ratio and its bound."""
    ratios = [row["ours"] / row["theirs"] for row in rows]
    bounds = [bound(cell, row) for row in rows]
    low, high = min(ratios), max(ratios)
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        **asdict(cell),
        "n": len(rows),
        "ours": statistics.median(row["ours"] for row in rows),
        "theirs": statistics.median(row["theirs"] for row in rows),
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "read": statistics.median(row[at]["read"] for row in rows for at in ("before", "after")),
        "bound": None if bounds[0] is None else statistics.median(bounds),
    }


def bound(cell: Cell, row: dict) -> float | None:
    """Ratio that the machine allows in one turn; None where no simple bound exists."""
    probes = [row["before"], row["after"]]
    if cell.metric == "decode":
        read = max(p["read"] for p in probes)
        return read * 1e9 / row["token_bytes"] / row["theirs"]
    if cell.metric == "prefill":
        bits16 = cell.recipe == "none" or cell.format == "bf16"
        dot = "bf16" if bits16 else "int8"
        peak = max(p.get(dot, p["f32"]) for p in probes)
        return peak * 1e9 / models.token_operations(cell.shape) / row["theirs"]
    return None


def summaries(commit: str) -> list[dict]:
    """Every cell of a commit that has turns, in the order of the file."""
    return [summary(cell, rows) for cell, rows in done_turns(commit).items()]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "show", "plot"))
    parser.add_argument("--peers", default=",".join(FORMATS))
    parser.add_argument("--shapes", default=",".join((*models.SHAPES, "smollm2")))
    parser.add_argument("--gguf", default=os.environ.get("LLMACCEL_SMOLLM2"), help="of SmolLM2")
    parser.add_argument("--formats", default="", help="of the peers; none: all")
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--tables", default="a,b")
    parser.add_argument("--recipe", help="quantization of table b instead of the usual one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1e9, help="seconds; stops after a turn")
    parser.add_argument("--commit", default=results.commit(), help="whose turns count")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.command == "run":
        run(args)
        return
    found = summaries(args.commit)
    if not found:
        raise SystemExit(f"no turns of commit {args.commit} in results/compare.jsonl")
    if args.command == "show":
        compare_report.show(found)
    else:
        print(compare_report.plot(found, results.FOLDER / "compare.png"))


if __name__ == "__main__":
    main()
