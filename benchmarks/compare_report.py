"""Tables, lines to be met and the picture of a comparison, from the summaries of compare.py.

Owns the lines: what has to be how many times faster than what. Called by compare.py alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BOUND_SHARE = 0.92  # of a decode bound; no line asks for more
UNMEASURED = "not measured"
BF16_PEERS = (("llama.cpp", "bf16"), ("vllm", "bf16"), ("transformers", "bf16"))


@dataclass(frozen=True)
class Line:
    """Our recipe of table b must be `asked` times as fast as the best of `rivals`."""

    metric: str
    name: str
    asked: float
    rivals: tuple[tuple[str, str], ...]


def _lines() -> list[Line]:
    llama = {form: (("llama.cpp", form),) for form in ("bf16", "q8_0", "q4_0", "q4_k_m")}
    openvino = {form: (("openvino", form),) for form in ("int8", "int4")}
    found = [
        Line("decode", "bf16", 1.0, llama["bf16"]),
        Line("decode", "8-bit", 1.5, llama["q8_0"]),
        Line("decode", "4-bit", 1.15, llama["q4_0"]),
        Line("decode", "4-bit", 1.4, llama["q4_k_m"]),
        Line("prefill", "bf16", 1.1, BF16_PEERS),
        Line("prefill", "8-bit", 1.4, openvino["int8"]),
        Line("prefill", "4-bit", 1.4, openvino["int4"]),
    ]
    for metric in ("throughput16", "throughput32"):
        found.append(Line(metric, "bf16", 1.3, BF16_PEERS))
        found.append(Line(metric, "8-bit", 1.6, openvino["int8"]))
        found.append(Line(metric, "4-bit", 1.4, openvino["int4"]))
    for metric in ("prefill", "throughput16", "throughput32"):
        found.append(Line(metric, "8-bit", 2.5, llama["q8_0"]))
        found.append(Line(metric, "4-bit", 2.5, llama["q4_0"]))
        found.append(Line(metric, "4-bit", 2.5, llama["q4_k_m"]))
    return found


LINES = _lines()


def asked(least: float, cell: dict) -> float:
    """What is asked of a cell: 0.92 of a decode bound where `least` would be more."""
    if cell["metric"] != "decode" or cell["bound"] is None:
        return least
    return min(least, BOUND_SHARE * cell["bound"])


def judged(least: float, cell: dict) -> tuple[str, str]:
    """pass or MISS; the ratio with its bound, and what was asked where the bound decides."""
    wanted = asked(least, cell)
    limit = "" if cell["bound"] is None else f", bound {cell['bound']:.2f}"
    by_bound = f" (asked {wanted:.2f}: {BOUND_SHARE} of the bound)" if wanted < least else ""
    mark = "pass" if cell["ratio"] >= wanted else "MISS"
    return mark, f"{cell['ratio']:.2f} ({cell['recipe']}{limit}){by_bound}"


def verdict(line: Line, shape: str, found: list[dict]) -> str:
    """One line of the acceptance list: pass, miss, or what is not measured."""
    of = " / ".join(f"{peer} {form}" for peer, form in line.rivals)
    text = f"{shape:14s} {line.metric:13s} {line.name:6s} >= {line.asked:.2f}x {of}"
    rivals = [
        cell
        for cell in found
        if (cell["table"], cell["shape"], cell["metric"]) == ("b", shape, line.metric)
        and (cell["peer"], cell["format"]) in line.rivals
    ]
    if not rivals:
        return f"  --    {text}: {UNMEASURED}"
    best: dict[tuple[str, str], dict] = {}  # of several recipes the fastest
    for cell in rivals:
        key = (cell["peer"], cell["format"])
        if key not in best or cell["ratio"] > best[key]["ratio"]:
            best[key] = cell
    worst = min(best.values(), key=lambda cell: cell["ratio"])
    mark, said = judged(line.asked, worst)
    left_out = [f"{p} {f}" for p, f in line.rivals if (p, f) not in best]
    without = f" (not measured: {', '.join(left_out)})" if left_out else ""
    return f"  {mark}  {text}: {said}{without}"


def show(found: list[dict]) -> None:
    """Every cell, then the lines."""
    for table, title in (("a", "the same GGUF file in both engines"), ("b", "our recipe")):
        rows = [cell for cell in found if cell["table"] == table]
        if not rows:
            continue
        print(f"Table ({table}): {title}; tokens per second, medians; ratio with quartiles")
        head = f"{'shape':14s} {'metric':13s} {'peer':12s} {'format':7s} {'ours':7s}"
        print(f"{head} {'ours':>8s} {'theirs':>8s} {'ratio':>6s}  {'quartiles':11s} bound  read  n")
        for cell in sorted(rows, key=lambda c: (c["shape"], c["metric"], c["peer"], c["format"])):
            bound = "    -" if cell["bound"] is None else f"{cell['bound']:5.2f}"
            print(
                f"{cell['shape']:14s} {cell['metric']:13s} {cell['peer']:12s} "
                f"{cell['format']:7s} {cell['recipe']:7s} {cell['ours']:8.1f} "
                f"{cell['theirs']:8.1f} {cell['ratio']:6.2f}  "
                f"{cell['low']:.2f} - {cell['high']:.2f} {bound} {cell['read']:5.1f} "
                f"{cell['n']:2d}"
            )
        print()
    print("Lines (table b)")
    for shape in sorted({cell["shape"] for cell in found if cell["table"] == "b"}):
        said = [verdict(line, shape, found) for line in LINES]
        measured = [text for text in said if not text.endswith(UNMEASURED)]
        print("\n".join([*measured, f"  {len(said) - len(measured)} of {shape} {UNMEASURED}"]))
    print("Table (a): nothing below 1.0")
    for cell in (cell for cell in found if cell["table"] == "a"):
        mark, said = judged(1.0, cell)
        print(f"  {mark}  {cell['shape']} {cell['metric']} {cell['format']}: {said}")


def plot(found: list[dict], path: Path) -> Path:
    """Bars of the ratios with their quartiles, a panel for each shape and metric."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = sorted({cell["shape"] for cell in found})
    metrics = [
        metric
        for metric in ("decode", "prefill", "throughput16", "throughput32")
        if any(cell["metric"] == metric for cell in found)
    ]
    cells = {
        (shape, metric): [c for c in found if (c["shape"], c["metric"]) == (shape, metric)]
        for shape in shapes
        for metric in metrics
    }
    heights = [0.8 + 0.17 * max(len(cells[shape, m]) for m in metrics) for shape in shapes]
    figure, panels = plt.subplots(
        len(shapes),
        len(metrics),
        figsize=(3.6 * len(metrics), 0.4 + sum(heights)),
        height_ratios=heights,
        squeeze=False,
    )
    for row, shape in zip(panels, shapes, strict=True):
        for panel, metric in zip(row, metrics, strict=True):
            _panel(panel, cells[shape, metric])
            panel.set_title(f"{shape}, {metric}", fontsize=9)
    figure.suptitle("llmaccel / peer, tokens per second (quartiles of paired turns)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


def _panel(panel: object, cells: list[dict]) -> None:
    cells = sorted(cells, key=lambda c: (c["peer"], c["format"], c["table"]))
    names = [
        f"{c['peer']} {c['format']}: {'same file' if c['table'] == 'a' else c['recipe']}"
        for c in cells
    ]
    ratios = [c["ratio"] for c in cells]
    spread = [
        [c["ratio"] - c["low"] for c in cells],
        [c["high"] - c["ratio"] for c in cells],
    ]
    colors = ["#8aa9c8" if c["table"] == "a" else "#2c6da4" for c in cells]
    panel.barh(range(len(cells)), ratios, xerr=spread, color=colors, height=0.7, capsize=2)
    for at, cell in enumerate(cells):
        panel.text(0.04, at, f"{cell['ratio']:.2f}", va="center", fontsize=6, color="white")
    panel.set_yticks(range(len(cells)), names, fontsize=6)
    panel.axvline(1.0, color="black", linewidth=0.8)
    panel.tick_params(axis="x", labelsize=7)
    panel.set_ylim(max(len(cells), 1) - 0.5, -0.5)
