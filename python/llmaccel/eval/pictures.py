"""Pictures of the tables: a bar a text, and perplexity over bits.

Owns all that needs matplotlib (extra `plot`). Called by command.py and by users.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmaccel import LoadError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from llmaccel.eval.quant import Cell

_MOST_NAME = 40  # characters of a text's name, from its end


def check_picture(path: str | Path) -> None:
    """Before the work: can a picture be made there?

    UnsupportedError without matplotlib, RequestError for a kind of file that it does not write,
    LoadError where the folder is not there.
    """
    path = Path(path)
    kinds = [kind for kind in _figure().canvas.get_supported_filetypes() if kind != "pgf"]  # TeX
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise RequestError(f"plot: {path}: expected a name that ends in .{', .'.join(kinds)}")
    if not path.parent.is_dir():
        raise LoadError(f"plot: {path}: the folder is not there")


def plot_bars(names: Sequence[str], values: Sequence[float], label: str, path: str | Path) -> None:
    """A bar with its value for each text; label: of the axis. Errors as check_picture."""
    check_picture(path)
    names = [name if len(name) <= _MOST_NAME else "…" + name[-_MOST_NAME:] for name in names]
    figure = _figure(height=1.2 + 0.35 * len(names))
    axes = figure.subplots()
    places = range(len(names))
    bars = axes.barh(places, values, height=0.6)
    axes.bar_label(bars, fmt="%.4g", padding=3)
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    _save(figure, path)


def plot_cells(cells: Sequence[Cell], path: str | Path) -> None:
    """Perplexity over bits of weights, a line for each pair of activations and cache; kernels as
    crosses. Errors as check_picture."""
    check_picture(path)
    figure = _figure(height=4.5)
    axes = figure.subplots()
    bits = sorted({cell.w for cell in cells}, reverse=True)
    for a, kv in sorted({(cell.a, cell.kv) for cell in cells}, reverse=True):
        line = [cell for cell in cells if (cell.a, cell.kv) == (a, kv)]
        places = [bits.index(cell.w) for cell in line]
        drawn = axes.plot(places, [c.perplexity for c in line], "o-", label=f"A{a} KV{kv}")
        real = [(at, c.kernels) for at, c in zip(places, line, strict=True) if c.kernels]
        if real:
            axes.plot(*zip(*real, strict=True), "x", color=drawn[0].get_color())
    axes.set_xticks(range(len(bits)), [f"W{b}" for b in bits])
    axes.set_ylabel("perplexity (crosses: kernels)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize="small")
    _save(figure, path)


def _figure(height: float = 1.0) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(f"plot: {error}; pip install 'llmaccel[plot]'") from None
    return Figure(figsize=(7, height), layout="constrained")


def _save(figure: Any, path: str | Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise LoadError(f"plot: {path}: {error}") from None
