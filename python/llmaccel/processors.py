"""Logits processors: a user's functions between the forward pass and the draw.

Owns the rows that they change and the order in which they are called. Invariant: whatever a
function raises becomes the error of its own request; what the engine reads afterwards is its row.
A step has the processors of its backend while it calls, and models share a backend, so a function
that waited for any model could wait for ever: `refuse_wait` is for whoever waits.

Made by calls.py; called by the engine's step, on its thread; `refuse_wait` by driver.py, llm.py and
waiting.py.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmaccel.errors import LLMAccelError, RequestError
from llmaccel.memory import check_available

if TYPE_CHECKING:
    from llmaccel.request import Branch

Function = Callable[..., Any]

_HERE = threading.local()  # calling: this thread runs a user's function


def calls_user() -> bool:
    """Whether this thread is inside a logits processor."""
    return getattr(_HERE, "calling", False)


def refuse_wait() -> None:
    """LLMAccelError inside a logits processor."""
    if calls_user():
        raise LLMAccelError(
            "a logits processor cannot wait for a model, nor load one: the step that calls it has "
            "the processors that models share; use submit() there"
        )


class Processing:
    """The functions of one request, called with the number of a branch; True where one failed.

    rows: float32 [n_branches, V]; the engine writes a branch's logits there and draws from them.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        prompt_ids: list[int],
        branches: Sequence[Branch],
        n_vocab: int,
    ) -> None:
        what = f"logits_processors: {len(branches)} rows of {n_vocab} logits"
        check_available(what, 4 * len(branches) * n_vocab)
        self.rows = np.zeros((len(branches), n_vocab), np.float32)
        self.error: RequestError | None = None
        self._prompt_ids = prompt_ids
        self._branches = branches
        self._functions = [
            (function, _takes_prompt(function, f"logits_processors[{i}]"))
            for i, function in enumerate(functions)
        ]

    def __call__(self, branch: int) -> bool:
        _HERE.calling = True
        try:
            return self._fails(branch)
        finally:
            _HERE.calling = False

    def _fails(self, branch: int) -> bool:
        row, made = self.rows[branch], self._branches[branch].ids
        for i, (function, with_prompt) in enumerate(self._functions):
            try:
                # Lists of their own: a function that keeps or changes them changes nothing here.
                past = (self._prompt_ids.copy(), made.tolist()) if with_prompt else (made.tolist(),)
                _replace(row, function(*past, row))
                if np.isnan(row).any():
                    raise ValueError("it gave NaN")
            except BaseException as error:  # on the engine's thread, which serves others too
                self.error = RequestError(f"logits_processors[{i}]: {_said(error)}")
                self.error.__cause__ = error
                return True
        return False


def _said(error: BaseException) -> str:
    """The start of its repr, which may raise as well, whatever it likes."""
    try:
        return f"{error!r:.200}"
    except BaseException:
        return f"an exception of type {type(error).__name__}"


def _replace(row: np.ndarray, result: Any) -> None:
    """What a function returned, into the row it was given."""
    if result is None or result is row:
        return
    values = np.asarray(result)
    if values.shape != row.shape:
        raise ValueError(f"expected logits {list(row.shape)}, got {list(values.shape)}")
    np.copyto(row, values, casting="same_kind")


def _takes_prompt(function: Function, where: str) -> bool:
    """Whether it is f(prompt_ids, output_ids, logits) or f(output_ids, logits)."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in: the older form
        return False
    for n in (3, 2):
        try:
            signature.bind(*range(n))
        except TypeError:
            continue
        return n == 3
    raise RequestError(
        f"{where}: expected f(output_ids, logits) or f(prompt_ids, output_ids, logits), got "
        f"parameters {signature}"
    )
