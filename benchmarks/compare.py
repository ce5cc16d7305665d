"""llmaccel and its peers on the same shapes, in turns, and what the comparison has to show.

    python benchmarks/compare.py run [--peers llama.cpp,openvino] [--shapes qwen2.5-0.5b]
                                     [--metrics decode,prefill] [--limit SECONDS]
    python benchmarks/compare.py show [--commit NAME]
    python benchmarks/compare.py plot [--commit NAME]

`peers/setup.py` installs the peers, models.py makes the models. A cell is (table, shape, peer,
format, recipe, metric): table "a" runs the very GGUF file of the peer, table "b" the recipe of ours
that answers the peer's format (--recipe replaces it). A peer with one format and all that answers
it are loaded at once, for every metric, and take turns, the peer between our two and llmaccel first
in every other turn. Each turn is a line of compare.jsonl (see results.py) for each cell, with the
read bandwidth and dot peaks probed before and after it, so that a run may be cut anywhere (--limit
cuts it by itself) and goes on where it stopped. Engines that fail are named, and the run goes on.
Protocol and metrics: peers/protocol.py.

`show` prints each cell: medians, the ratio ours/peer paired turn by turn with its quartiles, and
its physical bound: for decode (read bandwidth / our bytes a token) / peer, for prefill and
throughput (peak of our dot / operations of the products for a token) / peer. Then the lines to be
met; where one asks for more than 0.92 of a decode bound, 0.92 of it is what is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import compare_report
import models
import results
import roofline
from peers.convert import converted
from peers.protocol import METRICS, NEW, PROMPT
from peers.setup import environment

from llmaccel import _core

# peer: formats. Bits of a format decide which recipes of ours answer it. "-dq" is OpenVINO with
# activations quantized in groups of 128 instead of its default 32: an option of its plugin that
# made its int8 prefill a third faster here, so both are shown.
FORMATS = {
    "llama.cpp": ("bf16", "q8_0", "q4_0", "q4_k_m"),
    "openvino": ("int8", "int4", "int8-dq", "int4-dq"),
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
    ("openvino", "int4-dq"): "w4g128",
    "bf16": "none",
    "q8_0": "int8",
    "int8": "int8",
    "int8-dq": "int8",
}
# Recipes whose products are bf16 dots; those of all others are int8 dots.
WIDE = ("none", "fp8")
DRIVERS = Path(__file__).parent / "peers"
PATIENCE = 900  # seconds for one answer; an engine that takes longer hangs
CLOSING = 30  # seconds for a driver to end


@dataclass(frozen=True)
class Cell:
    """What is measured: one metric of one shape in one engine's format against our recipe."""

    table: str
    shape: str
    peer: str
    format: str
    recipe: str
    metric: str


def pairs(args: argparse.Namespace) -> Iterator[list[Cell]]:
    """The cells that the arguments ask for, those of one peer and format together."""
    metrics, tables = args.metrics.split(","), args.tables.split(",")
    for shape in args.shapes.split(","):
        if shape == "smollm2":
            if args.gguf and "llama.cpp" in args.peers.split(",") and "a" in tables:
                yield [Cell("a", shape, "llama.cpp", "file", "gguf", m) for m in metrics]
            continue
        for peer in args.peers.split(","):
            for form in FORMATS[peer]:
                if args.formats and form not in args.formats.split(","):
                    continue
                recipe = args.recipe or RECIPES.get((peer, form)) or RECIPES[form]
                ours = {"a": "gguf", "b": recipe} if peer == "llama.cpp" else {"b": recipe}
                yield [
                    Cell(table, shape, peer, form, ours[table], metric)
                    for metric in metrics
                    for table in tables
                    if table in ours
                ]


# ---- engines -------------------------------------------------------------------------------------


def gguf_file(cell: Cell, gguf: str) -> Path:
    """The GGUF file of a cell; SmolLM2's is the one that was given."""
    return Path(gguf) if cell.format == "file" else models.gguf_file(cell.shape, cell.format)


def our_command(cell: Cell, gguf: str) -> tuple[str, ...]:
    """The driver of llmaccel for a cell.

    A bf16 GGUF file holds the checkpoint's very weights, so one engine serves both tables.
    """
    options: dict[str, str] = {}
    same = cell.peer == "llama.cpp" and cell.recipe == "none"
    model = gguf_file(cell, gguf) if cell.table == "a" or same else models.checkpoint(cell.shape)
    if cell.table == "b" and cell.recipe != "none":
        options["quantization"] = cell.recipe
    script = DRIVERS / "drive_llmaccel.py"
    command = [sys.executable, script, model, "--options", json.dumps(options)]
    return tuple(str(part) for part in command)


def peer_command(cell: Cell, gguf: str) -> tuple[str, ...]:
    """The driver of the peer for a cell."""
    script = DRIVERS / f"drive_{cell.peer.replace('.', '_')}.py"
    python: str | Path = environment(cell.peer)
    if not Path(python).exists():
        raise RuntimeError(f"missing: python benchmarks/peers/setup.py {cell.peer}")
    if cell.peer == "llama.cpp":
        model = gguf_file(cell, gguf)
    elif cell.peer in ("openvino", "ctranslate2"):
        form = cell.format.removesuffix("-dq")
        model = converted(f"{cell.peer}-{form}", models.checkpoint(cell.shape))
    else:
        model = models.checkpoint(cell.shape)
    options = ["--properties", '{"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}']
    more = options if cell.format.endswith("-dq") else []
    return tuple(str(part) for part in (python, script, model, *more))


class Engine:
    """A driver in lockstep: loaded once, one reading whenever it is asked.

    Between readings all its processes are stopped, for some engines poll while they have nothing
    to do (vLLM's took a third of a processor).
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe would fill up
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # so that signals reach the processes of its own as well
        )
        try:
            self.about = self._next()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _ended(self, seconds: float) -> None:
        """Waits for the driver's end, but leaves it to be reaped: until it is, the number of its
        group, which signals go to, cannot become another's."""
        end = time.monotonic() + seconds
        seen = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while not os.waitid(os.P_PID, self._process.pid, seen) and time.monotonic() < end:
            time.sleep(0.02)

    def _next(self) -> dict:
        late = threading.Timer(PATIENCE, self._signal, [signal.SIGKILL])
        late.start()
        try:
            for line in self._process.stdout:  # engines print other things as well
                if line.startswith("{") and ('"ready"' in line or '"metric"' in line):
                    return json.loads(line)
        finally:
            late.cancel()
        self._ended(CLOSING)
        self._errors.seek(0)
        raise RuntimeError(self._errors.read()[-1500:] or "the driver ended without a word")

    def reading(self, metric: str) -> float:
        """One reading of a metric, tokens per second."""
        self._signal(signal.SIGCONT)
        self._process.stdin.write(metric + "\n")
        self._process.stdin.flush()
        value = self._next()["value"]
        self._signal(signal.SIGSTOP)
        return value

    def close(self) -> None:
        """Lets the driver end, as it does without more lines, and kills what it leaves."""
        self._signal(signal.SIGCONT)
        with suppress(OSError):
            self._process.stdin.close()
        self._ended(CLOSING)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._errors.close()


# ---- a run ---------------------------------------------------------------------------------------


def probe(backend: _core.Backend) -> dict[str, float]:
    """Read bandwidth (GB/s) and dot peaks (1e9 operations/s) of this moment."""
    found = {"read": roofline.bandwidth(backend, 256 << 20), **roofline.peaks(backend)}
    return {name: round(value, 1) for name, value in found.items()}


def done_turns(commit: str) -> dict[Cell, list[dict]]:
    """Lines of compare.jsonl (see results.py) of a commit, by cell."""
    found: dict[Cell, list[dict]] = {}
    path = results.FOLDER / "compare.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        if row["commit"] == commit:
            cell = Cell(**{name: row[name] for name in Cell.__dataclass_fields__})
            found.setdefault(cell, []).append(row)
    return found


class Session:
    """A peer in one format and the engines of ours that answer it, all loaded."""

    def __init__(self, cells: list[Cell], gguf: str) -> None:
        self.theirs: Engine | None = None
        self._ours: dict[tuple[str, ...], Engine] = {}
        self._commands: dict[Cell, tuple[str, ...]] = {}
        try:
            self._load(cells, gguf)
        except BaseException:  # a signal ends the run; nobody else has the engines yet
            self.close()
            raise

    def _load(self, cells: list[Cell], gguf: str) -> None:
        try:
            self.theirs = Engine(peer_command(cells[0], gguf))
        except (RuntimeError, OSError) as error:
            self._complain(cells, "the peer", error)
            return
        for table in dict.fromkeys(cell.table for cell in cells):
            mine = [cell for cell in cells if cell.table == table]
            try:
                command = our_command(mine[0], gguf)
                if command not in self._ours:
                    self._ours[command] = Engine(command)
                self._commands |= dict.fromkeys(mine, command)
            except (RuntimeError, OSError) as error:
                self._complain(mine, "llmaccel", error)

    @staticmethod
    def _complain(cells: list[Cell], who: str, error: BaseException) -> None:
        names = dict.fromkeys(f"{c.table} {c.shape} {c.peer} {c.format} {c.recipe}" for c in cells)
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        print(f"{', '.join(names)}: not measured, {who} failed: {reason}", file=sys.stderr)

    def turn(self, cells: list[Cell], turn: int) -> dict[Cell, dict]:
        """One reading of every engine that cells of one metric need, the peer in the middle."""
        cells = [cell for cell in cells if cell in self._commands]
        if not cells or self.theirs is None:
            return {}
        ours = [self._ours[c] for c in dict.fromkeys(self._commands[cell] for cell in cells)]
        order = [ours[0], self.theirs, *ours[1:]]
        values: dict[Engine, float] = {}
        for engine in order[:: -1 if turn % 2 else 1]:
            try:
                values[engine] = engine.reading(cells[0].metric)
            except (RuntimeError, OSError) as error:
                self._complain(cells, "the peer" if engine is self.theirs else "llmaccel", error)
                self._commands.clear()
                return {}
        engines = {cell: self._ours[self._commands[cell]] for cell in cells}
        return {
            cell: {
                "turn": turn,
                "isa": mine.about["isa"],
                "token_bytes": mine.about["token_bytes"],
                "ours": values[mine],
                "theirs": values[self.theirs],
            }
            for cell, mine in engines.items()
        }

    def alive(self) -> bool:
        """Whether any cell can still be measured."""
        return bool(self._commands)

    def close(self) -> None:
        """Ends all engines."""
        for engine in self._ours.values():
            engine.close()
        if self.theirs is not None:
            self.theirs.close()


def measure(left: dict[Cell, int], args: argparse.Namespace, backend: _core.Backend) -> None:
    """The turns that each cell of a pair has left, from its number of turns on."""
    session = Session(list(left), args.gguf)
    try:
        before = probe(backend)
        for turn in range(min(left.values()), args.repeats):
            for metric in dict.fromkeys(cell.metric for cell in left):
                if not session.alive() or time.monotonic() > args.end:
                    return
                cells = [c for c, have in left.items() if c.metric == metric and have <= turn]
                if not cells:
                    continue
                started = time.monotonic()
                found = session.turn(cells, turn)
                seconds = round(time.monotonic() - started, 1)
                after = probe(backend)
                for cell, row in found.items():
                    around = {"seconds": seconds, "before": before, "after": after}
                    results.append("compare", {**asdict(cell), **row, **around})
                    print(
                        f"{' '.join(asdict(cell).values())} turn {turn}: ours {row['ours']:.1f}, "
                        f"theirs {row['theirs']:.1f}, read {before['read']:.1f} and "
                        f"{after['read']:.1f} GB/s, {seconds} s",
                        flush=True,
                    )
                before = after
    finally:
        session.close()


def run(args: argparse.Namespace) -> None:
    """Measures the cells that have fewer turns than asked, until the time is over."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the stopped engines too
    args.end = time.monotonic() + args.limit
    backend = _core.Backend("cpu", None, 0)
    done = done_turns(results.commit())
    for cells in pairs(args):
        left = {c: n for c in cells if (n := len(done.get(c, []))) < args.repeats}
        if left and time.monotonic() < args.end:
            started = time.monotonic()
            measure(left, args, backend)
            taken = time.monotonic() - started
            print(f"{cells[0].shape} {cells[0].peer} {cells[0].format}: {taken:.0f} s", flush=True)


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
    if cell.shape not in models.SHAPES:
        return None
    token = models.token_operations(cell.shape)
    operations = token - models.behind_operations(cell.shape)  # of a prompt
    if cell.metric != "prefill":  # every new token: its share of the prompt, itself, its logits
        operations = operations * PROMPT / NEW + token + models.head_operations(cell.shape)
    dot = "bf16" if cell.recipe in WIDE or cell.format == "bf16" else "int8"
    peak = max(p.get(dot, p["f32"]) for p in probes)
    return peak * 1e9 / operations / row["theirs"]


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
        raise SystemExit(f"no turns of commit {args.commit} in {results.FOLDER / 'compare.jsonl'}")
    if args.command == "show":
        compare_report.show(found)
    else:
        print(compare_report.plot(found, results.FOLDER / "compare.png"))


if __name__ == "__main__":
    main()
