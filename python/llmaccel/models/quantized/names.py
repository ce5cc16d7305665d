"""Which layers a configuration means: names, parts of names, patterns and regular expressions.

Owns the matching of names of tensors against lists that come with a file, both of them untrusted.
Invariant: one match takes a bounded time, and all matches of a list a bounded sum; what exceeds
it is a ConfigError, for a layer that is silently not found would be loaded wrongly.

Used by the schemes beside it.
"""

from __future__ import annotations

import fnmatch
import math
import re
import time
from collections.abc import Iterable

from llmaccel.errors import ConfigError, shown

_MAX_REGEX, _MAX_MODULE = 1000, 200
_MAX_STEPS = 1e8  # of one match, about a second
_MAX_SECONDS = 10.0  # of all matches of a list; honest files take milliseconds
# Repeated groups may take exponential time, and so may what refers back to one.
_REPEATED_GROUP = re.compile(r"\)[*+{]|\\[1-9]|\(\?P=|\(\?\(")


class Patterns:
    """Expressions of one list, each matched from the start of a name as re.match does.

    Names of more than 200 characters match nothing.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._spent = 0.0

    def match(self, pattern: re.Pattern[str], module: str) -> bool:
        """ConfigError where the list has taken too long by now."""
        if len(module) > _MAX_MODULE:
            return False
        start = time.perf_counter()
        found = pattern.match(module) is not None
        self._spent += time.perf_counter() - start
        if self._spent > _MAX_SECONDS:
            raise ConfigError(
                f"{self._where}: the expressions take more than {_MAX_SECONDS:g} s to match the "
                f"names of the file; the last was {shown(pattern.pattern)}"
            )
        return found


class ModuleNames:
    """The modules that a list means: `module in names`.

    An entry is a name or a part of one between dots, a pattern with *, or a regular expression
    behind "re:", matched from the start as the published libraries do. ConfigError for an
    expression that `regex` refuses.
    """

    def __init__(self, names: Iterable[str], where: str) -> None:
        plain: set[str] = set()
        self._patterns: list[re.Pattern[str]] = []
        for name in names:
            if name.startswith("re:"):
                self._patterns.append(regex(name, where))
            elif "*" in name:
                if len(name) > _MAX_REGEX:
                    raise ConfigError(f"{where}: {shown(name)}: pattern of {len(name)} characters")
                # fnmatch writes an expression that tries no place of a * twice
                self._patterns.append(re.compile(fnmatch.translate(name)))
            else:
                plain.add(name.strip("."))
        self._plain = plain - {""}
        self._clock = Patterns(where)

    def __contains__(self, module: str) -> bool:
        if self._plain:
            parts = module.split(".")
            ends = range(1, len(parts) + 1)
            if any(".".join(parts[i:j]) in self._plain for j in ends for i in range(j)):
                return True
        return any(self._clock.match(pattern, module) for pattern in self._patterns)


def regex(name: str, where: str) -> re.Pattern[str]:
    """The expression behind "re:"; ConfigError if it is none or may take long on a file's names."""
    if len(name) > _MAX_REGEX or _REPEATED_GROUP.search(name) or _steps(name) > _MAX_STEPS:
        raise ConfigError(f"{where}: {shown(name)}: expression of too many repetitions or choices")
    try:
        return re.compile(name.removeprefix("re:"))
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{where}: {shown(name)} is no regular expression: {error}") from error


def _steps(name: str) -> float:
    """More ways than there are to try an expression without repeated groups on a longest name:
    where each repetition ends, and which of its choices each group takes."""
    plain = re.sub(r"\\.", "", name)  # what is escaped stands for itself or a class
    repeats = len(re.findall(r"[*+{]", plain))
    optional = len(re.findall(r"(?<!\()\?", plain))
    groups = [part.count("|") + 1 for part in re.split(r"[()]", plain)]
    return math.comb(_MAX_MODULE + repeats, repeats) * 2.0**optional * math.prod(groups)
