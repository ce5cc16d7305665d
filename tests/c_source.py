"""C and CUDA sources taken apart for the rules of test_source.py: what stands at file scope.

A reader of our own style, not a compiler: comments, literals and the preprocessor are blanked, so
that lines keep their numbers, and braces must balance without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Item:
    """A declaration or definition at file scope, its comments and literals blanked."""

    line: int
    head: str  # up to `{` or `;`, initialisers and bodies left out
    body: str | None  # of a function
    body_line: int


def spaces(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


def blank(text: str) -> str:
    """Same text, same lines; comments, string and character literals become spaces."""
    pattern = r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    return re.sub(pattern, spaces, text, flags=re.S)


def without_preprocessor(text: str) -> str:
    """Blanks preprocessor lines, their continuations included."""
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", spaces, text, flags=re.M)


def items(text: str) -> Iterator[Item]:
    """The file-scope items of a C file. Wants balanced braces after the preprocessor is blanked."""
    code = without_preprocessor(blank(text))
    code = re.sub(r"__attribute__\s*\(\(.*?\)\)|_Alignas\s*\([^)]*\)", "", code, flags=re.S)
    code = re.sub(r"\bextern\s*\{", "", code)
    code = re.sub(r"\btemplate\s*<[^;{]*?>(?=\s+(?:struct|LA_\w+|static|void)\b)", spaces, code)
    code = re.sub(r"(?<=\bstruct )(\w+)<\w*>", r"\1", code)  # a specialisation
    head: list[str] = []
    depth, line, start, body_at, body_line = 0, 1, 1, 0, 1
    for at, char in enumerate(code):
        if char == "\n":
            line += 1
        if depth == 0 and char not in "{};":
            if not char.isspace() and not "".join(head).strip():
                start = line
            head.append(char)
        elif char == "{":
            depth += 1
            if depth == 1:
                body_at, body_line = at + 1, line
        elif char == "}":
            if depth == 0:  # of `extern "C" {`
                head = []
                continue
            depth -= 1
            if depth == 0 and is_function("".join(head)):
                yield Item(start, "".join(head), code[body_at:at], body_line)
                head = []
            elif depth == 0:
                head.append(" {} ")
        elif char == ";" and depth == 0:
            if "".join(head).strip():
                yield Item(start, "".join(head), None, line)
            head = []


def is_function(head: str) -> bool:
    """Whether what stands before a `{` is a function's declarator."""
    return "(" in head and "=" not in head and "{}" not in head and "typedef" not in head.split()


def function_name(head: str) -> str:
    kernel = re.search(r"\bLA_KERNEL\w*\s*\(\s*(\w+)", head)
    if kernel:
        return kernel.group(1)
    found = re.search(r"(\w+)\s*\(", re.sub(r"\bLA_[A-Z_]+\s*\([^)]*\)", "", head))
    return found.group(1) if found else ""
