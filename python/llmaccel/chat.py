"""Chat templates: finding them beside a checkpoint and rendering them.

A template is rendered as Hugging Face does it (sandboxed Jinja with trim_blocks, lstrip_blocks,
loop controls, `tojson` without escapes, `raise_exception`, `strftime_now`, the `generation` tag),
so the text equals what the model was trained on. Invariant: a template is untrusted code. It sees
plain JSON data only, it may spend a bounded number of loop turns and characters, and whatever goes
wrong in it becomes a RequestError that names chat_template. Called by tokenize.py
(`Tokenizer.apply_chat_template`, `load_tokenizer`); Jinja is imported on first use.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import ConfigError, LoadError, RequestError
from .files import is_there, read_json_object, read_text

Templates = dict[str, str]

# vLLM's chat_template_content_format: what the template seems to take, strings, or lists of parts.
CONTENT_FORMATS = ("auto", "string", "openai")
MAX_TEMPLATE_CHARS = 1 << 20
_MAX_TEMPLATE_FILE = 4 * MAX_TEMPLATE_CHARS  # bytes
MAX_OUTPUT_CHARS = 1 << 24  # any string a template builds, its whole output included
MAX_LOOP_TURNS = 2_000_000
MAX_INTEGER_BITS = 4096

# Only this thread's render may be charged: compiled templates are shared between threads.
_budget = threading.local()


def _charge_turns(count: int) -> None:
    _budget.turns = getattr(_budget, "turns", MAX_LOOP_TURNS) - count
    if _budget.turns < 0:
        raise OverflowError(f"more than {MAX_LOOP_TURNS} loop turns")


def _check_chars(count: int) -> None:
    if count > MAX_OUTPUT_CHARS:
        raise OverflowError(f"a string or list longer than {MAX_OUTPUT_CHARS}")


# --------------------------------------------------------------------------------------------------
# Finding templates


def load_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> Templates:
    """Collect the chat templates of a checkpoint folder by name; {} when there is none.

    A file `chat_template.jinja` wins over `chat_template.json`, which wins over the `chat_template`
    of tokenizer_config.json (a string, or a list of {"name", "template"}). Files in
    `chat_templates/` and `additional_chat_templates/` add templates named after them. The unnamed
    template is "default". Raises LoadError when a template is no text or the list is malformed.
    """
    found = _templates_of_config(tokenizer_config.get("chat_template"), folder)
    as_json = folder / "chat_template.json"
    if as_json.is_file():
        content = read_json_object(as_json, _MAX_TEMPLATE_FILE)
        found.update(_templates_of_config(content.get("chat_template"), as_json))
    for directory in ("chat_templates", "additional_chat_templates"):
        for file in sorted((folder / directory).glob("*.jinja")):
            found[file.stem] = read_text(file, _MAX_TEMPLATE_FILE)
    as_jinja = folder / "chat_template.jinja"
    if as_jinja.is_file():
        found["default"] = read_text(as_jinja, _MAX_TEMPLATE_FILE)
    return found


def _templates_of_config(value: Any, where: Path) -> Templates:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        pairs = [(entry.get("name"), entry.get("template")) for entry in value]
    else:
        raise LoadError(f"{where}: chat_template must be a string or a list of named templates")
    for name, template in pairs:
        if not isinstance(name, str) or not isinstance(template, str):
            raise LoadError(f"{where}: each named chat_template needs a name and a template string")
    return dict(pairs)


def resolve_chat_template(value: str | Path) -> str:
    """Source of the `chat_template=` argument, which is Jinja source or a file's path."""
    if isinstance(value, Path) or (isinstance(value, str) and not set(value) & set("{\n")):
        file = Path(value)
        if not is_there(file) or not file.is_file():
            raise ConfigError(
                f"chat_template: {str(value)!r:.300} is neither a template nor a file"
            )
        return read_text(file, _MAX_TEMPLATE_FILE)
    if not isinstance(value, str):
        raise ConfigError(f"chat_template must be a string or a path, got {type(value).__name__}")
    return value


def select_chat_template(templates: Templates, wanted: str | None, has_tools: bool) -> str:
    """The template of one request: by name, literal, "tool_use" for tools, or the default."""
    if wanted is not None:
        named = templates.get(wanted) if isinstance(wanted, str) else None
        return named or resolve_chat_template(wanted)
    if has_tools and "tool_use" in templates:
        return templates["tool_use"]
    if "default" in templates:
        return templates["default"]
    if len(templates) == 1:
        return next(iter(templates.values()))
    if templates:
        names = ", ".join(sorted(templates))
        raise RequestError(f"chat_template: name one of the templates of this tokenizer: {names}")
    raise RequestError("this tokenizer has no chat_template; pass chat_template=")


# --------------------------------------------------------------------------------------------------
# Rendering


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
) -> str:
    """Render one conversation to text.

    `messages` are dicts with a role; keys whose value is None are dropped. `variables` is all else
    the template sees: tools, documents (None when not given), bos_token, and the caller's own
    names. `continue_final_message` leaves the last message open: True for its content, or the name
    of a field. Raises RequestError, naming chat_template, for invalid messages and for anything the
    template does wrong.
    """
    if continue_final_message and add_generation_prompt:
        raise RequestError("continue_final_message and add_generation_prompt exclude each other")
    chat = _plain_messages(messages)
    values = {
        name: _plain(value, name) for name, value in variables.items() if name != "strftime_now"
    }
    for name in ("tools", "documents"):
        _check_dicts(values.setdefault(name, None), name)
    clock = variables.get("strftime_now")
    if callable(clock):
        values["strftime_now"] = clock
    values["add_generation_prompt"] = bool(add_generation_prompt)
    final = None
    if continue_final_message:
        field = continue_final_message if isinstance(continue_final_message, str) else "content"
        final = _open_final_message(chat, field)
    text = _run(template, {**values, "messages": chat})
    return text if final is None else _cut_after_final(text, final)


def _run(template: str, values: Mapping[str, Any]) -> str:
    import jinja2

    _budget.turns = MAX_LOOP_TURNS
    try:
        pieces: list[str] = []
        length = 0
        for piece in _compile(template).generate(values):
            length += len(piece)
            _check_chars(length)
            pieces.append(piece)
        return "".join(pieces)
    except jinja2.TemplateSyntaxError as error:
        raise RequestError(f"chat_template, line {error.lineno}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise RequestError(f"chat_template: {error}") from error
    except (OverflowError, MemoryError, RecursionError) as error:
        raise RequestError(
            f"chat_template does too much: {error or type(error).__name__}"
        ) from error
    except (
        Exception
    ) as error:  # a template may raise anything: KeyError, TypeError, ZeroDivisionError
        raise RequestError(f"chat_template failed with {type(error).__name__}: {error}") from error


def _plain(value: Any, name: str) -> Any:
    """Rebuild a value from plain JSON types: objects with methods never reach the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key, name): _plain(item, name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item(), name)
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump(), name)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise RequestError(
        f"chat_template: {name} holds a {type(value).__name__}; only JSON data can be rendered"
    )


def _plain_messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, (list, tuple)):
        raise RequestError(f"messages must be a list of dicts, got {type(messages).__name__}")
    if not messages:
        raise RequestError("messages is empty: a chat needs at least one message")
    chat = []
    for index, message in enumerate(messages):
        plain = _plain(message, f"messages[{index}]")
        if not isinstance(plain, dict):
            raise RequestError(f"messages[{index}] must be a dict, got {type(message).__name__}")
        if "role" not in plain:
            raise RequestError(f"messages[{index}] has no role")
        # Clients send `content: null` beside tool calls; templates expect the key to be absent.
        chat.append({key: value for key, value in plain.items() if value is not None})
    return chat


@lru_cache(maxsize=32)
def takes_tools(template: str) -> bool:
    """Whether a template reads the variable `tools` anywhere; one that cannot be parsed does, since
    rendering it tells why it cannot."""
    import jinja2
    from jinja2 import nodes

    try:
        names = list(_environment().parse(template).find_all(nodes.Name))
    except (jinja2.TemplateError, RecursionError):
        return True
    return any(name.name == "tools" and name.ctx == "load" for name in names)


@lru_cache(maxsize=32)
def takes_tool_calls(template: str) -> bool:
    """Whether a template reads `tool_calls` of a message, or writes messages whole; one that cannot
    be parsed does, as in takes_tools."""
    import jinja2
    from jinja2 import nodes

    try:
        tree = _environment().parse(template)
    except (jinja2.TemplateError, RecursionError):
        return True
    if any(node.attr == "tool_calls" for node in tree.find_all(nodes.Getattr)):
        return True
    if any(node.value == "tool_calls" for node in tree.find_all(nodes.Const)):
        return True
    whole = {"messages"}
    for loop in tree.find_all(nodes.For):
        over = [
            name.name
            for name in (loop.iter, *loop.iter.find_all(nodes.Name))
            if isinstance(name, nodes.Name)
        ]
        if any("messages" in name for name in over) and isinstance(loop.target, nodes.Name):
            whole.add(loop.target.name)
    written = [node.node for node in tree.find_all(nodes.Filter)]
    for output in tree.find_all(nodes.Output):
        written.extend(output.nodes)
    return any(isinstance(node, nodes.Name) and node.name in whole for node in written)


def check_tool_calls(messages: Any, template: str) -> None:
    """RequestError for the first message whose tool_calls the template would leave out."""
    for i, message in enumerate(messages if isinstance(messages, (list, tuple)) else ()):
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        if calls and not takes_tool_calls(template):
            raise RequestError(
                f"messages[{i}].tool_calls: the chat_template never reads them; pass "
                "chat_template= one that does, or write them into the content"
            )


@lru_cache(maxsize=32)
def takes_parts(template: str) -> bool:
    """Whether a template walks over the parts of a message's content, which it then gets as a list.

    Looked for is a loop over `message.content`, over a variable that was set from it, or over an
    argument of a macro. A template that cannot be parsed takes none; rendering it tells why.
    """
    import jinja2
    from jinja2 import nodes

    def is_content(node: Any) -> bool:
        while isinstance(node, nodes.Filter):
            node = node.node
        if isinstance(node, nodes.Getattr):
            return node.attr == "content"
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        return isinstance(node, nodes.Name) and node.name in named

    try:
        tree = _environment().parse(template)
    except (jinja2.TemplateError, RecursionError):
        return False
    named = {arg.name for macro in tree.find_all(nodes.Macro) for arg in macro.args}
    for node in tree.find_all(nodes.Assign):
        if isinstance(node.target, nodes.Name) and is_content(node.node):
            named.add(node.target.name)
    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))


def join_text_parts(messages: Any, as_list: bool, always: bool = False) -> Any:
    """OpenAI's lists of content parts as what a template takes: one string of lines, or (as_list)
    a list of {"type": "text", "text"}, which (always) strings become too. RequestError names a part
    that is no text. No content beside
    tool calls becomes an empty string, which most templates need."""
    if not isinstance(messages, (list, tuple)):
        return messages
    joined: list[Any] = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if always and isinstance(content, str):
            content = [content]
        if isinstance(content, (list, tuple)):
            texts = [
                _part_text(part, f"messages[{i}].content[{j}]") for j, part in enumerate(content)
            ]
            parts = [{"type": "text", "text": text} for text in texts]
            message = {**message, "content": parts if as_list else "\n".join(texts)}
        elif content is None and isinstance(message, Mapping):
            calls = message.get("tool_calls")
            if isinstance(calls, (list, tuple)) and calls:
                message = {**message, "content": ""}
        joined.append(message)
    return joined


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise RequestError(f"{where}: expected text or a dict, got {type(part).__name__}")
    kind = part.get("type", "text")
    if kind not in ("text", "input_text", "output_text"):
        raise RequestError(f"{where}: a part of type {kind!r:.80}; only text is supported")
    text = part.get("text")
    if not isinstance(text, str):
        raise RequestError(f"{where}: text must be a string, got {type(text).__name__}")
    return text


def _check_dicts(value: Any, name: str) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise RequestError(f"{name} must be a list of dicts")


# The tag ends in a space: if a template trims the message, the space goes and shows that it did.
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


def _open_final_message(chat: list[dict[str, Any]], field: str) -> str:
    content = chat[-1].get(field)
    if isinstance(content, str):
        chat[-1][field] = content + _CONTINUE_TAG
        return content
    if isinstance(content, list):
        for block in reversed(content):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text = block["text"]
                block["text"] = text + _CONTINUE_TAG
                return text
    raise RequestError(f"continue_final_message: the last message has no text in {field!r}")


def _cut_after_final(text: str, final: str) -> str:
    tag = _CONTINUE_TAG.strip()
    at = text.rfind(tag)
    if at < 0 or final.strip() not in text:
        raise RequestError(
            "continue_final_message: the chat_template drops the end of the final message"
        )
    kept = text[:at]
    return kept if text.startswith(_CONTINUE_TAG, at) else kept.rstrip()


# --------------------------------------------------------------------------------------------------
# The environment


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Generation(Extension):
        """`{% generation %}` marks assistant text for training; its body passes through."""

        tags = frozenset(("generation",))

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_binop(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            _charge_turns(1)
            _check_call(obj, args, kwargs)
            return super().call(context, obj, *args, **kwargs)

    class Namespace(jinja2.utils.Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace attribute may not be named {name!r}")
            super().__setitem__(name, value)

    env = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    for name in ("center", "indent", "replace", "format", "join", "wordwrap", "batch", "slice"):
        env.filters[name] = _bounded(env.filters[name])
    env.filters["tojson"] = _tojson
    env.filters["_metered"] = _metered
    env.filters["_concat"] = _concat
    env.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        range=_range,
        namespace=Namespace,
    )
    return env


@lru_cache(maxsize=32)
def _compile(template: str) -> Any:
    from jinja2 import nodes

    if len(template) > MAX_TEMPLATE_CHARS:
        raise OverflowError(f"its source is longer than {MAX_TEMPLATE_CHARS} characters")
    env = _environment()
    tree = env.parse(template)
    # Plain loops and `~` compile to bare Python, which no sandbox hook sees: route them through
    # filters.
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _through(nodes, loop.iter, "_metered")
    return env.from_string(_route_concat(nodes, tree))


def _through(nodes: Any, node: Any, name: str) -> Any:
    return nodes.Filter(
        node, name, [], [], None, None, lineno=node.lineno, environment=node.environment
    )


def _route_concat(nodes: Any, node: Any) -> Any:
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, field, _route_concat(nodes, value))
        elif isinstance(value, list):
            setattr(
                node,
                field,
                [_route_concat(nodes, v) if isinstance(v, nodes.Node) else v for v in value],
            )
    if isinstance(node, nodes.Concat):
        parts = nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
        return _through(nodes, parts, "_concat")
    return node


def _metered(iterable: Any) -> Any:
    if hasattr(iterable, "__len__"):
        _charge_turns(len(iterable))
        return iterable
    return _metered_iterator(iterable)


def _metered_iterator(iterable: Any) -> Any:
    for item in iterable:
        _charge_turns(1)
        yield item


def _concat(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _check_chars(sum(map(len, texts)))
    return "".join(texts)


def _range(*args: int) -> range:
    values = range(*args)
    _charge_turns(len(values))
    return values


def _check_binop(operator: str, left: Any, right: Any) -> None:
    if operator in "+*":
        sized = [len(side) for side in (left, right) if isinstance(side, (str, list, tuple))]
        counts = [side for side in (left, right) if isinstance(side, int)]
        if sized:
            _check_chars(sum(sized) if operator == "+" else max(sized) * max(counts, default=1))
        elif operator == "*" and len(counts) == 2:
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))
    elif operator == "%" and isinstance(left, str):
        _check_format(left)


def _check_bits(count: int) -> None:
    if count > MAX_INTEGER_BITS:
        raise OverflowError(f"an integer of more than {MAX_INTEGER_BITS} bits")


def _check_format(text: str) -> None:
    """Refuse a field width that would pad beyond the limit ("%999999999d", "{:>999999999}")."""
    digits = 0
    for char in text:
        digits = digits + 1 if char.isdigit() else 0
        if digits > 7:
            raise OverflowError("a number of more than 7 digits in a format string")


def _check_call(obj: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Bound what a string method or a padding filter may build, before it builds it."""
    given = [*args, *kwargs.values()]
    for value in given:
        if isinstance(value, int):
            _check_chars(abs(value))
    # The sandbox wraps str.format in a function of its own.
    owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
    if not isinstance(owner, str):
        return
    method = getattr(obj, "__name__", "")
    if method == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        _check_replace(owner, args[0], args[1])
    elif method == "join" and args and hasattr(args[0], "__len__"):
        _check_chars(len(owner) * len(args[0]) + sum(len(p) for p in args[0] if isinstance(p, str)))
    elif method in ("format", "format_map"):
        _check_format(owner)


def _check_replace(text: str, old: str, new: str) -> None:
    hits = text.count(old) if old else len(text) + 1
    _check_chars(len(text) + hits * len(new))


def _bounded(function: Any) -> Any:
    from functools import wraps

    @wraps(function)  # keeps the marks by which Jinja passes the context or the environment first
    def checked(*args: Any, **kwargs: Any) -> Any:
        texts = [arg for arg in args if isinstance(arg, str)]
        for value in [*args, *kwargs.values()]:
            if isinstance(value, int):
                _check_chars(abs(value))
        if function.__name__ == "do_replace" and len(texts) >= 3:
            _check_replace(*texts[:3])
        elif function.__name__ == "do_format" and texts:
            _check_format(texts[0])
        elif function.__name__ == "sync_do_join" and len(args) > 2 and hasattr(args[1], "__len__"):
            _check_chars(len(args[1]) * len(str(args[2])))
        elif function.__name__ == "do_indent" and texts:
            width = kwargs.get("width", args[1] if len(args) > 1 else 4)
            step = len(width) if isinstance(width, str) else int(width)
            _check_chars(len(texts[0]) + (texts[0].count("\n") + 1) * step)
        return function(*args, **kwargs)

    return checked


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int):
        _check_chars(indent * 1024)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
