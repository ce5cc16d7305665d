"""The command line: llmaccel complete | chat | plan | doctor, and the commands of wings.

Owns argument parsing, what a terminal shows, and which turns of a conversation are dropped when the
context is full; everything else is LLM's. Invariant: answers go to stdout and nothing else does, so
output can be piped; speed and notices go to stderr; errors of llmaccel are one line there and exit
status 1. A wing's command is a line of _WINGS; the wing is imported when its command is the one
that was asked for, and is given what it needs of this file. `python -m llmaccel.cli` is the same
program.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmaccel.errors import LLMAccelError, RequestError, UnsupportedError

_CPU_FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx512_vbmi",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_PROBE_BYTES = 256 << 20  # beyond every cache
_COMPLETE_TOKENS = 256  # a base model would go on until the context is full
# Command of a wing -> (module, help). The module's configure(command, parser, add_model,
# open_model) adds arguments and sets `run`.
_WINGS = {
    "eval": ("llmaccel.eval.command", "perplexity, compression and quantization of a model"),
    "compress": ("llmaccel.eval.command", "a file in the bits that a model needs to predict it"),
    "decompress": ("llmaccel.eval.command", "what was compressed"),
}
_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args = _arguments(argv)
    try:
        return args.run(args)
    except LLMAccelError as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _print_error(error: LLMAccelError) -> None:
    print(f"llmaccel: {type(error).__name__}: {error}", file=sys.stderr)


# ---- arguments -----------------------------------------------------------------------------------


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    given = sys.argv[1:] if argv is None else argv
    parser = _parser(next((word for word in given if not word.startswith("-")), None))
    args, left = parser.parse_known_args(argv)
    # Of `complete MODEL --top-k 5 PROMPT` argparse leaves the prompt: it settled it after MODEL.
    if (
        len(left) == 1
        and not left[0].startswith("-")
        and getattr(args, "prompt", "") is None
        and args.run is _complete
    ):
        args.prompt = left.pop()
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return args


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """asked: the command, whose wing is imported if it is one's."""
    from importlib import import_module

    from llmaccel import __version__

    parser = argparse.ArgumentParser(prog="llmaccel", description="LLM inference.")
    parser.add_argument("--version", action="version", version=f"llmaccel {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    complete = commands.add_parser("complete", help="continue a text")
    _add_model(complete)
    _add_sampling(complete, _COMPLETE_TOKENS)
    complete.add_argument(
        "prompt", nargs="?", help="the text; read from stdin where it is not given"
    )
    complete.set_defaults(run=_complete)

    chat = commands.add_parser("chat", help="talk to a model")
    _add_model(chat)
    _add_sampling(chat, None)  # a chat model says itself when it is done
    chat.add_argument("-p", "--prompt", help="ask once and exit")
    chat.add_argument("--system", help="the system message")
    chat.set_defaults(run=_chat)

    plan = commands.add_parser("plan", help="the memory that a model needs; loads nothing")
    _add_model(plan)
    plan.set_defaults(run=_plan)

    doctor = commands.add_parser("doctor", help="what this machine offers and what will be used")
    doctor.add_argument("--threads", type=int, help="threads of the pool")
    doctor.add_argument("--isa", help="highest instruction set to use")
    doctor.set_defaults(run=_doctor)

    for name, (module, text) in _WINGS.items():
        command = commands.add_parser(name, help=text)
        if name == asked:
            import_module(module).configure(name, command, _add_model, _open)
    return parser


def _add_model(parser: argparse.ArgumentParser, **how: Any) -> None:
    """The model and the options of LLM. how: flag="--model" where it is no argument by place."""
    flag = {"required": True} if how else {}
    text = "folder, .gguf file, or name on the Hugging Face hub"
    parser.add_argument(how.get("flag", "model"), help=text, **flag)
    for name in (
        "tokenizer",
        "revision",
        "dtype",
        "quantization",
        "activation",
        "kv-cache-dtype",
        "backend",
        "isa",
        "load-format",
        "chat-template",
        "generation-config",
    ):
        parser.add_argument(
            f"--{name}", default=argparse.SUPPRESS, help=f"as {name.replace('-', '_')} of LLM"
        )
    for name in ("max-model-len", "max-num-seqs", "max-num-batched-tokens", "threads", "seed"):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=argparse.SUPPRESS,
            help=f"as {name.replace('-', '_')} of LLM",
        )
    parser.add_argument(
        "--kv-cache-memory",
        type=_size,
        metavar="SIZE",
        default=argparse.SUPPRESS,
        dest="kv_cache_memory_bytes",
        help="cap of the cache, such as 2G",
    )


def _add_sampling(parser: argparse.ArgumentParser, tokens: int | None) -> None:
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=_max_tokens,
        default=tokens,
        help=f"tokens to generate at most; -1: until the context is full; default {tokens or -1}",
    )
    for name in ("temperature", "top-p", "min-p", "repetition-penalty"):
        parser.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS)
    parser.add_argument("--top-k", type=int, default=argparse.SUPPRESS)
    parser.add_argument(
        "--stop",
        action="append",
        default=argparse.SUPPRESS,
        help="text that ends the answer; may be repeated",
    )


def _max_tokens(text: str) -> int | None:
    """SamplingParams' max_tokens; -1, as in llama.cpp, is its None."""
    try:
        return None if text == "-1" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of tokens; write an integer, or -1 for a full context"
        ) from None


def _size(text: str) -> int:
    """2G, 512MiB, 1000000 as bytes."""
    digits = text.lower().removesuffix("ib").removesuffix("b")
    unit = _UNITS.get(digits[-1:], 1)
    try:
        value = float(digits[:-1] if unit > 1 else digits) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 2G or 512M") from None
    return int(value)


_MODEL_OPTIONS = (
    "tokenizer",
    "revision",
    "dtype",
    "quantization",
    "activation",
    "kv_cache_dtype",
    "backend",
    "isa",
    "load_format",
    "chat_template",
    "generation_config",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "threads",
    "seed",
    "kv_cache_memory_bytes",
)
_SAMPLING_OPTIONS = ("temperature", "top_p", "min_p", "repetition_penalty", "top_k", "stop")


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _open(args: argparse.Namespace) -> Any:
    from llmaccel import LLM

    return LLM(args.model, **_given(args, _MODEL_OPTIONS))


def _sampling(llm: Any, args: argparse.Namespace) -> Any:
    params = llm.get_default_sampling_params()
    return replace(params, max_tokens=args.max_tokens, **_given(args, _SAMPLING_OPTIONS))


# ---- complete and chat ---------------------------------------------------------------------------


class _Live:
    """Streamed text on stdout; on a terminal, the speed behind the cursor while it runs."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.finish_reason: str | None = None
        self._started = self._ended = 0.0
        self._column = 0
        self._terminal = _is_terminal()

    def show(self, chunks: Iterable[Any]) -> str:
        """Print chunks as they come; returns the whole text."""
        for chunk in chunks:
            part = chunk.outputs[0]
            now = time.monotonic()
            self._started = chunk.timings.first_token or now
            self._ended = chunk.timings.finished or now
            self.tokens += len(part.token_ids_array)
            self.text += part.text
            self.finish_reason = part.finish_reason
            self._write(part.text, now)
        self._write("\n", 0.0)
        return self.text

    def _write(self, text: str, now: float) -> None:
        if not self._terminal:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        last = text.rpartition("\n")[2]
        self._column = len(last) + (0 if "\n" in text else self._column)
        width = shutil.get_terminal_size().columns
        self._column %= max(width, 1)
        note = f"  {self.rate(now):.1f} tok/s" if now > self._started > 0.0 else ""
        # Cleared and written again with each chunk; never across the edge, where it would scroll.
        fits = note and self._column + len(note) < width
        tail = f"\x1b7\x1b[2m{note}\x1b[0m\x1b8" if fits else ""
        sys.stdout.write(f"\x1b[K{text}{tail}")
        sys.stdout.flush()

    def rate(self, now: float) -> float:
        """Tokens per second after the first."""
        return (self.tokens - 1) / (now - self._started) if now > self._started else 0.0

    def print_summary(self) -> None:
        """Tokens, speed and why it ended, on stderr."""
        rate = self.rate(self._ended)
        speed = f", {rate:.1f} tok/s" if rate > 0.0 else ""
        tokens = f"{self.tokens} token" + "s" * (self.tokens != 1)
        why = self.finish_reason or "interrupted"
        print(f"{tokens}{speed}, finish reason: {why}", file=sys.stderr)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _complete(args: argparse.Namespace) -> int:
    # what echo and editors end a text with is no part of it
    prompt = sys.stdin.read().removesuffix("\n") if args.prompt is None else args.prompt
    with _open(args) as llm:
        _show_once(llm.generate(prompt, _sampling(llm, args), stream=True))
    return 0


def _show_once(chunks: Iterable[Any]) -> None:
    live = _Live()
    live.show(chunks)
    live.print_summary()


def _chat(args: argparse.Namespace) -> int:
    with _open(args) as llm:
        params = _sampling(llm, args)
        messages = [{"role": "system", "content": args.system}] if args.system else []
        if args.prompt is not None:
            messages.append({"role": "user", "content": args.prompt})
            _show_once(llm.chat(messages, params, stream=True))
            return 0
        print(
            "Type a message; an empty line or Ctrl-D ends. Ctrl-C stops an answer.", file=sys.stderr
        )
        while True:
            try:
                asked = input("> " if sys.stdin.isatty() else "")
            except (EOFError, KeyboardInterrupt):
                return 0
            if not asked.strip():
                return 0
            try:
                messages = _answer(llm, [*messages, {"role": "user", "content": asked}], params)
            except RequestError as error:  # the conversation goes on as if nothing was asked
                _print_error(error)


def _answer(llm: Any, messages: list[dict[str, str]], params: Any) -> list[dict[str, str]]:
    """Show the answer; returns the conversation with it, less the turns that had to go."""
    kept, chunks = _start_answer(llm, messages, params)
    live = _Live()
    try:
        live.show(chunks)
    except KeyboardInterrupt:
        print()
    finally:
        chunks.close()
    live.print_summary()
    return [*kept, {"role": "assistant", "content": live.text}]


def _start_answer(llm: Any, messages: list[dict[str, str]], params: Any) -> tuple[Any, Any]:
    """(messages, chunks): the oldest turns are left out until the rest is taken. RequestError
    where the last message alone is not."""
    kept, refusal = messages, None
    while True:
        try:
            chunks = llm.chat(kept, params, stream=True)
            break
        except RequestError as error:
            refusal = refusal or error
            shorter = _drop_oldest_turn(kept)
            if shorter == kept:
                raise
            kept = shorter
    if refusal is not None:
        print(
            f"llmaccel: {refusal}; the oldest {len(messages) - len(kept)} messages were dropped",
            file=sys.stderr,
        )
    return kept, chunks


def _drop_oldest_turn(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without the first message of a user and its answer; a system message and the last stay."""
    first = 1 if messages[0]["role"] == "system" else 0
    return messages[:first] + messages[min(first + 2, len(messages) - 1) :]


# ---- plan and doctor -----------------------------------------------------------------------------


def _plan(args: argparse.Namespace) -> int:
    from llmaccel.loading import prepare, without_weights
    from llmaccel.options import KV_NAMES, LoadOptions

    options = LoadOptions(args.model, **_given(args, _MODEL_OPTIONS))
    if without_weights(options):
        options = replace(options, load_format="dummy")
        print("no files of weights: planned from config.json alone")
    prepared = prepare(options)
    config, forms = prepared.config, prepared.forms
    print(
        f"{prepared.path}: {config.architecture}, {config.n_layers} layers, "
        f"weights {forms.dtype}, head {forms.head}, "
        f"activations {forms.rows(config.activation, options.backend)}, "
        f"KV cache {KV_NAMES[config.kv_form]}"
    )
    print(prepared.plan)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from llmaccel import __version__
    from llmaccel.environment import open_backend
    from llmaccel.memory import available_memory, format_bytes

    backend = open_backend(args.isa, args.threads)
    info = backend.info
    print(
        f"llmaccel {__version__}, Python {platform.python_version()}, {platform.machine()} "
        f"{platform.system()} {platform.release()}"
    )
    print(f"CPU          {_cpu_name()}")
    print(f"features     {' '.join(_cpu_flags()) or 'none that matter'}")
    print(
        f"processors   {os.cpu_count()} in the machine, {info['n_cpus']} usable by this process "
        f"(affinity and cgroup quota), {info['n_threads']} threads in the pool"
    )
    n_bytes, source = available_memory()
    print(f"memory       {format_bytes(n_bytes)} available ({source})")
    _roofline(args, info["n_threads"], min(_PROBE_BYTES, n_bytes // 4))
    print(f"kernels      {info['isa']}")
    for slot, isa in info["slots"].items():
        print(f"  {slot:20s} {isa}")
    print(f"CUDA         {_cuda()}")
    print(f"cuBLASLt     {_cublas()}")
    return 0


def _roofline(args: argparse.Namespace, n_threads: int, n_bytes: int) -> None:
    """Read bandwidth and dot peaks, of one thread and of all."""
    from llmaccel.environment import open_backend

    for threads in sorted({1, n_threads}):
        backend = open_backend(args.isa, threads)
        label = f"{threads} thread" + "s" * (threads > 1)
        for size, huge in (("2 MiB", True), ("4 KiB", False)):
            rates = backend.probe_read(n_bytes, huge)
            best = max(rates, key=lambda name: rates[name])
            print(f"bandwidth    {rates[best]:.1f} GB/s read, {label}, {size} pages ({best})")
        for what in ("f32", "bf16", "int8"):
            try:
                print(f"peak {what:7s} {backend.probe_peak(what):.0f} Gop/s, {label}")
            except UnsupportedError as error:
                print(f"peak {what:7s} not available: {error}")


def _cpu_name() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor() or "unknown")


def _cpu_flags() -> list[str]:
    found = set(" ".join(_cpuinfo("flags")).split())
    return [flag for flag in _CPU_FLAGS if flag in found]


def _cpuinfo(key: str) -> list[str]:
    """The first processor's value of a key of /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    values = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in values if name.strip() == key][:1]


def _cuda() -> str:
    """One line: the device, or why there is none."""
    from llmaccel.environment import open_device
    from llmaccel.memory import format_bytes

    try:
        info = open_device("cuda").info
    except UnsupportedError as error:
        return f"not available: {str(error).removeprefix('backend: ').removeprefix('cuda: ')}"
    free, total = (format_bytes(info[name]) for name in ("memory_free", "memory_total"))
    return f"{info['device']} ({info['isa']}), {free} of {total} free; taken with --backend cuda"


def _cublas() -> str:
    """One line: the library that models with fast_math would take, or why there is none."""
    from llmaccel.cublas import find_cublas
    from llmaccel.environment import open_device

    try:
        library, why = find_cublas(open_device("cuda"))
    except UnsupportedError:
        return "not looked for, as there is no device"
    return library or f"not found, so fast_math takes our own kernels: {why}"


if __name__ == "__main__":
    sys.exit(main())
