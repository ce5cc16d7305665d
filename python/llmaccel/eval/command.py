"""`llmaccel eval ppl | compress | quant | harness`, `llmaccel compress` and `decompress`.

Owns their arguments and what they print: tables to stdout, progress and notices to stderr.

Called by cli.py, which hands over what is its own: how a model is named on the command line
(add_model) and opened (open_model).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmaccel import LoadError, UnsupportedError
from llmaccel.eval.compress import compress, decompress
from llmaccel.eval.measure import Measured, measure, read_documents
from llmaccel.eval.pictures import check_picture, plot_bars, plot_cells

AddModel = Callable[..., None]
OpenModel = Callable[[argparse.Namespace], Any]

_COLUMNS: dict[str, dict[str, Callable[[Measured], float]]] = {
    "ppl": {
        "documents": lambda m: m.n_documents,
        "tokens": lambda m: m.n_tokens,
        "scored": lambda m: m.n_scored,
        "nll": lambda m: m.nll,
        "perplexity": lambda m: m.perplexity,
    },
    "compress": {
        "documents": lambda m: m.n_documents,
        "bytes": lambda m: m.n_bytes,
        "tokens": lambda m: m.n_tokens,
        "bits per byte": lambda m: m.bits_per_byte,
        "bits per char": lambda m: m.bits_per_char,
        "rate %": lambda m: m.rate,
    },
}
_DRAWN = {"ppl": "perplexity", "compress": "bits per byte"}


def configure(
    name: str, parser: argparse.ArgumentParser, add_model: AddModel, open_model: OpenModel
) -> None:
    """Add the arguments of command `name` to its parser, and `run`."""
    if name == "eval":
        kinds = parser.add_subparsers(required=True, metavar="WHAT")
        for what, text in (
            ("ppl", "perplexity of texts"),
            ("compress", "bits per byte of texts, as an ideal coder would need them"),
        ):
            _configure_measure(what, kinds.add_parser(what, help=text), add_model, open_model)
        _configure_quant(kinds.add_parser("quant", help="perplexity over numbers of bits"))
        harness = kinds.add_parser(
            "harness",
            help="lm-evaluation-harness with the model type llmaccel",
            add_help=False,
            prefix_chars="\0",  # options are the harness's own, --help too
        )
        harness.add_argument("rest", nargs=argparse.REMAINDER)
        harness.set_defaults(run=lambda args: _harness(args.rest))
        return
    add_model(parser, flag="--model")
    parser.add_argument("file", type=Path, metavar="FILE", help="- for standard input")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="- for standard output"
    )
    if name == "compress":
        parser.add_argument("--chunk", type=int, help="tokens predicted from each other")
    run = _compress if name == "compress" else _decompress
    parser.set_defaults(run=lambda args: run(args, open_model))


# ---- ppl and compress ----------------------------------------------------------------------------


def _configure_measure(
    what: str, parser: argparse.ArgumentParser, add_model: AddModel, open_model: OpenModel
) -> None:
    add_model(parser, flag="--model")
    parser.add_argument("files", nargs="+", metavar="FILE", help="text, or .jsonl of documents")
    parser.add_argument("--chunk", type=int, help="tokens of a window; default: 1024, or less")
    parser.add_argument("--stride", type=int, help="tokens between windows; default: chunk")
    parser.add_argument("--limit", type=int, help="documents of a file at most")
    parser.add_argument("--no-bos", action="store_true", help="start texts with their own token")
    _add_outputs(parser)
    parser.set_defaults(run=lambda args: _measure(args, open_model, what))


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", type=Path, metavar="OUT", help="write the table there too")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="picture; needs matplotlib")


def _check_outputs(args: argparse.Namespace) -> None:
    """Before the work."""
    if args.csv is not None and not args.csv.parent.is_dir():
        raise LoadError(f"csv: {args.csv}: the folder is not there")
    if args.plot is not None:
        check_picture(args.plot)


def _measure(args: argparse.Namespace, open_model: OpenModel, what: str) -> int:
    _check_outputs(args)
    columns = _COLUMNS[what]
    texts = [(name, read_documents([name], args.limit)) for name in args.files]
    rows = []
    with open_model(args) as llm:
        for name, documents in texts:
            found = measure(
                llm, documents, chunk=args.chunk, stride=args.stride, bos=not args.no_bos
            )
            rows.append([name, *(column(found) for column in columns.values())])
    print_table(["file", *columns], rows)
    if args.csv is not None:
        write_csv(args.csv, ["file", *columns], rows)
    if args.plot is not None:
        at = 1 + [*columns].index(_DRAWN[what])
        plot_bars([row[0] for row in rows], [row[at] for row in rows], _DRAWN[what], args.plot)
    return 0


def print_table(head: list[str], rows: list[list[Any]]) -> None:
    """Columns, the first to the left, numbers to the right."""
    cells = [head, *([_shown(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip())


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5f}" if isinstance(value, float) else str(value)


def write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    """The same with all digits; LoadError where the file cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])
    except OSError as error:
        raise LoadError(f"{path}: {error}") from None


# ---- quant ---------------------------------------------------------------------------------------


def _configure_quant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="folder or .gguf file of a float model of the Llama kind"
    )
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="texts")
    for name, default, text in (
        ("w", "16,8,4,3,2", "bits of weights"),
        ("a", "16,8", "bits of what enters linear layers"),
        ("kv", "16,8,4", "bits of keys and values"),
    ):
        parser.add_argument(f"--{name}", type=_bits, default=_bits(default), help=text)
        parser.add_argument(f"--{name}-group", type=int, default=128, help=f"{text}: of a scale")
    parser.add_argument("--chunk", type=int, help="tokens of a window")
    parser.add_argument("--tokens", type=int, default=4096, help="of the texts at most")
    parser.add_argument("--no-kernels", action="store_true", help="leave out the real kernels")
    _add_outputs(parser)
    parser.set_defaults(run=_quant)


def _bits(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of bits such as 16,8,4") from None


def _quant(args: argparse.Namespace) -> int:
    from llmaccel.eval.quant import Grid, run_grid

    _check_outputs(args)
    grid = Grid(
        w_bits=args.w,
        a_bits=args.a,
        kv_bits=args.kv,
        w_group=args.w_group,
        a_group=args.a_group,
        kv_group=args.kv_group,
    )
    documents = read_documents(args.data)
    cells = run_grid(
        args.model,
        documents,
        grid,
        chunk=args.chunk,
        tokens=args.tokens,
        kernels=not args.no_kernels,
        progress=_progress("cells"),
    )
    columns = ("w", "a", "kv", "perplexity", "kernel_rule", "kernels", "difference")
    head = ["weights", "activations", *columns[2:6], "difference %"]
    rows = [[getattr(cell, name) for name in columns] for cell in cells]
    print_table(head, rows)
    if args.csv is not None:
        write_csv(args.csv, head, rows)
    if args.plot is not None:
        plot_cells(cells, args.plot)
    return 0


# ---- harness -------------------------------------------------------------------------------------


def _harness(rest: list[str]) -> int:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise UnsupportedError(f"eval harness: {error}; pip install 'llmaccel[eval]'") from None
    from llmaccel.eval import harness  # noqa: F401  # registers the model type

    sys.argv = ["llmaccel eval harness", *rest]  # where its parser looks
    cli_evaluate()
    return 0


# ---- compress and decompress ---------------------------------------------------------------------


def _compress(args: argparse.Namespace, open_model: OpenModel) -> int:
    data = _read(args.file)
    with open_model(args) as llm:
        packed = compress(llm, data, chunk=args.chunk, progress=_progress("tokens"))
    _write(args.output, packed)
    rate = f", {8 * len(packed) / len(data):.3f} bits per byte" if data else ""
    print(f"\r{len(data)} to {len(packed)} bytes{rate}", file=sys.stderr)
    return 0


def _decompress(args: argparse.Namespace, open_model: OpenModel) -> int:
    packed = _read(args.file)
    with open_model(args) as llm:
        data = decompress(llm, packed, progress=_progress("tokens"))
    _write(args.output, data)
    print(f"\r{len(packed)} to {len(data)} bytes", file=sys.stderr)
    return 0


def _progress(what: str) -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(f"\r{done} of {total} {what}", end="", file=sys.stderr)


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path}: {error}") from None


def _write(path: Path, data: bytes) -> None:
    try:
        if str(path) == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            path.write_bytes(data)
    except OSError as error:
        raise LoadError(f"{path}: {error}") from None
