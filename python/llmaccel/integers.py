"""What counts as an integer: Python's and NumPy's, of any width, but no boolean.

Owns the one question that every check of a number from a user or a file begins with. Called
wherever options, parameters, configurations and headers are checked.
"""

from __future__ import annotations

import numbers
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether it is an integer; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
