"""Whole numbers: what counts as one where a caller gives a number.

Owns the rule: Python's and NumPy's integers do, True and False do not. Invariant: who checks a
range asks here first. Called by what checks arguments and options; configurations, which come from
JSON, have their own (config.py).
"""

from __future__ import annotations

import numbers
from typing import Any


def is_whole(value: Any, low: float = float("-inf"), high: float = float("inf")) -> bool:
    """Whether it is an integer in low..high."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and low <= int(value) <= high
