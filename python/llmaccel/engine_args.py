"""EngineArgs and FlexibleArgumentParser: how vLLM's scripts carry the arguments of an engine.

Owns nothing but the way from the table (engine_table.py) to dataclasses and options of a command
line. Invariant: what an EngineArgs holds was checked as LLM checks it, and `LLM(**vars(args))` is
the model that it describes.

Called by users; engines.py makes engines of the arguments.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any

from llmaccel.engine_table import ASYNC_ARGUMENTS, ENGINE_ARGUMENTS, Argument
from llmaccel.errors import ConfigError, shown
from llmaccel.hints import MODEL_NAMES, hint
from llmaccel.options import AUTO_LENGTH, options_of, whole_number

_MAX_CONFIG_BYTES = 1 << 20
# Ours, and vLLM's of earlier versions: as options they could be in the way of a script's own.
_NOT_ON_COMMAND_LINES = (
    *("activation", "backend", "chat_template", "fast_math", "isa", "kv_tiers", "slo", "threads"),
    *("weights_budget", "calculate_kv_scales", "device", "disable_log_requests", "task"),
    *("expert_parallel_size", "guided_decoding_backend", "max_long_partial_prefills"),
    *("max_num_partial_prefills", "max_seq_len_to_capture", "num_scheduler_steps"),
    *("num_speculative_tokens", "preemption_mode", "rope_scaling", "rope_theta", "swap_space"),
    *("speculative_model", "tool_call_parser", "use_v2_block_manager"),
)


class _Arguments:
    """What the dataclasses of this file do."""

    def __post_init__(self) -> None:
        options_of(vars(self)).check()

    @classmethod
    def add_cli_args(cls, parser: Any, async_args_only: bool = False) -> Any:
        """Give an argparse parser an option for every argument, --max-model-len for max_model_len,
        with vLLM's default; returns the parser. async_args_only: those of AsyncEngineArgs alone."""
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
        for rows in ({} if async_args_only else ENGINE_ARGUMENTS, ASYNC_ARGUMENTS):
            for name, row in rows.items():
                if name in known and name not in _NOT_ON_COMMAND_LINES:
                    parser.add_argument(f"--{name.replace('_', '-')}", **_option(name, row))
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Any:
        """The arguments that a parsed command line holds; other names of it are left alone."""
        names = [one.name for one in fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def _option(name: str, row: Argument) -> dict[str, Any]:
    """The keywords of add_argument."""
    how: dict[str, Any] = {"default": copy.copy(row.default), "dest": name, "help": row.instead}
    if row.kind == "switch":
        return {**how, "action": argparse.BooleanOptionalAction}
    if row.kind == "words":
        return {**how, "nargs": "+"}
    read = {"whole": _whole, "number": float, "json": _json, "text": str}[row.kind]
    if row.default is None and row.kind != "json":
        return {**how, "type": functools.partial(_unless_none, read)}
    return {**how, "type": read}


def _unless_none(read: Any, text: str) -> Any:
    return None if text == "None" else read(text)


def _whole(text: str) -> Any:
    value = whole_number(text.strip())
    if value == AUTO_LENGTH:
        return value
    try:
        return int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number such as 4096 or 4K"
        ) from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no JSON") from None


def _arguments(name: str, rows: dict[str, Argument], base: type, doc: str) -> Any:
    """A dataclass of the rows; its __init__ answers names that are no field."""
    made = make_dataclass(
        name,
        [
            (key, Any, field(default_factory=functools.partial(copy.copy, row.default)))
            for key, row in rows.items()
        ],
        bases=(base,),
        namespace={"__doc__": doc, "__module__": __name__},
    )
    init, known = made.__init__, tuple(one.name for one in fields(made))

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        for key in given:
            if key not in known:
                raise TypeError(
                    f"{name}() got an unexpected keyword argument {key!r}"
                    + hint(key, known, MODEL_NAMES)
                )
        init(self, *args, **given)

    made.__init__ = checked
    return made


EngineArgs = _arguments(
    "EngineArgs",
    dict(ENGINE_ARGUMENTS),
    _Arguments,
    """The arguments of an engine under vLLM's names and defaults (None for those that are
    configuration objects there), kept until one is made of them: LLM(**vars(args)),
    LLM.from_engine_args, LLMEngine.from_engine_args. Their meaning is LLM's.

    A dataclass; dataclasses.asdict, replace and fields work. Values are checked when it is made:
    ConfigError, UnsupportedError; TypeError for a name that nobody has.
    """,
)
AsyncEngineArgs = _arguments(
    "AsyncEngineArgs",
    dict(ASYNC_ARGUMENTS),
    EngineArgs,
    """EngineArgs for AsyncLLM.from_engine_args, with enable_log_requests.""",
)


class FlexibleArgumentParser(argparse.ArgumentParser):
    """An ArgumentParser that takes --max_model_len for --max-model-len and the other way round, and
    --config FILE: options by name in YAML or JSON, before which those of the command line go."""

    def __init__(self, *args: Any, **given: Any) -> None:
        given.setdefault("conflict_handler", "resolve")  # a script's own options may replace ours
        super().__init__(*args, **given)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As ArgumentParser's."""
        words = list(sys.argv[1:] if args is None else args)
        if "--config" not in self._option_string_actions:
            words = self._with_config(words)
        end = words.index("--") if "--" in words else len(words)
        spelled = [self._spelled(word) for word in words[:end]]
        return super().parse_known_args(spelled + words[end:], namespace)

    def _spelled(self, word: str) -> str:
        """An option in the spelling that it was added by."""
        if not word.startswith("--"):
            return word
        name, sign, value = word.partition("=")
        dashes = "--" + name[2:].replace("_", "-")
        for one in (name, dashes, "--" + name[2:].replace("-", "_")):
            if one in self._option_string_actions:
                return one + sign + value
        return dashes + sign + value

    def _with_config(self, words: list[str]) -> list[str]:
        """The words with what a --config FILE says in front of them."""
        for i, word in enumerate(words):
            if word == "--config" and i + 1 < len(words):
                return self._config_words(words[i + 1]) + words[:i] + words[i + 2 :]
            if word.startswith("--config="):
                return self._config_words(word[len("--config=") :]) + words[:i] + words[i + 1 :]
        return words

    def _config_words(self, path: str) -> list[str]:
        try:
            found = _read_config(Path(path))
        except ConfigError as error:
            self.error(f"--config: {error}")
        lists, words = [], []
        for key, value in found.items():
            flag = self._spelled(f"--{key}")
            if isinstance(value, bool):
                off = self._spelled(f"--no-{key}")
                words += [flag] if value else [off] if off in self._option_string_actions else []
            elif isinstance(value, list):
                lists += [flag, *map(str, value)]  # first: a word after them would be one more
            else:
                text = json.dumps(value) if isinstance(value, dict) else str(value)
                words.append(f"{flag}={text}")
        return lists + words


def _read_config(path: Path) -> dict[str, Any]:
    """A file of options; ConfigError where it is none."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_CONFIG_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid JSON: {error}") from error
    else:
        found = _lines(text, path)
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected names with values, got {shown(found)}")
    return found


def _lines(text: str, path: Path) -> dict[str, Any]:
    """The part of YAML that options are written in: `name: value` and lists of `- value`, where a
    value is a word or JSON. ConfigError names a line that is neither."""
    found: dict[str, Any] = {}
    name = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#") or line.rstrip() == "---":
            continue
        item = re.fullmatch(r"\s*-\s+(.+)", line)
        pair = re.fullmatch(r"([A-Za-z][\w-]*)\s*:(?:\s+(.*))?", line)
        try:
            if item and name and isinstance(found[name] or [], list):
                found[name] = [*(found[name] or []), _value(item[1])]
            elif pair:
                name = pair[1]
                found[name] = _value(pair[2] or "")
            else:
                raise ValueError("expected `name: value` or `- value`")
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    return {key: value for key, value in found.items() if value is not None}


def _value(text: str) -> Any:
    """true, a number, null, JSON, or the text, which may have quotes around it; without a comment
    behind it. ValueError where it is none of these."""
    text = text.strip()
    if text[:1] in ('"', "{", "["):
        value, end = json.JSONDecoder().raw_decode(text)
    elif text[:1] == "'":
        end = text.find("'", 1) + 1
        value = text[1 : end - 1]
    else:
        word = re.sub(r"(^|\s)#.*$", "", text).strip()
        try:
            return json.loads(word)
        except ValueError:
            return word or None
    rest = text[end:].strip()
    if not end or (rest and not rest.startswith("#")):
        raise ValueError(f"cannot read {text[:80]!r}")
    return value
