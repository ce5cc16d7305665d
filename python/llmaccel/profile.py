"""A profile of an engine: what its steps and requests did when, as a Chrome trace.

Owns the slices while a profile runs, and the file they become, for chrome://tracing and
ui.perfetto.dev. Invariant: the driver's thread alone adds; a driver without a profile pays one
comparison a step. Times are those of time.monotonic(), in the file microseconds from its start.

Called by driver.py (steps, requests) and measuring.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmaccel.request import Request

_ENGINE, _REQUESTS = 1, 2  # what the trace calls processes


class Profile:
    """Slices since it was made. path: the file that `write` makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = time.monotonic()
        self._events: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}}
            for pid, name in ((_ENGINE, "engine"), (_REQUESTS, "requests"))
        ]

    def on_step(self, start: float, end: float, stats: Mapping[str, Any]) -> None:
        """A step from `start` to `end`, and the engine's statistics after it."""
        n_tokens = stats["last_step_tokens"]
        counts = {name: stats[name] for name in ("running", "waiting", "pages_used")}
        self._slice("step", _ENGINE, 1, (start, end), {"tokens": n_tokens, **counts})
        if n_tokens > 0:
            forward = start + stats["last_plan_seconds"]
            after = forward + stats["last_forward_seconds"]
            self._slice("schedule", _ENGINE, 1, (start, forward), {})
            self._slice("forward", _ENGINE, 1, (forward, after), {"tokens": n_tokens})
            self._slice("collect", _ENGINE, 1, (after, start + stats["last_step_seconds"]), {})
        self._events.append(
            {
                "name": "sequences and pages",
                "ph": "C",
                "pid": _ENGINE,
                "ts": self._moment(end),
                "args": counts,
            }
        )

    def on_done(self, request: Request) -> None:
        """Every continuation of a request has ended."""
        marks = [
            ("queue", request.arrival),
            ("prefill", request.scheduled),
            ("decode", request.first_token),
            ("", request.finished),
        ]
        known = [(name, at) for name, at in marks if at > 0.0]
        args = {
            "request_id": request.request_id,
            "prompt_tokens": len(request.prompt_ids),
            "output_tokens": sum(branch.n for branch in request.branches),
        }
        for (name, start), (_, end) in pairwise(known):
            self._slice(name, _REQUESTS, request.engine_id, (start, end), args)

    def write(self) -> Path:
        """Make the file."""
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": self._events, "displayTimeUnit": "ms"}, file)
        return self.path

    def _moment(self, at: float) -> float:
        return round((at - self._start) * 1e6, 3)

    def _slice(
        self, name: str, pid: int, tid: int, span: tuple[float, float], args: dict[str, Any]
    ) -> None:
        start, end = span
        self._events.append(
            {
                "name": name,
                "ph": "X",
                "pid": pid,
                "tid": tid,
                "ts": self._moment(start),
                "dur": round(max(0.0, end - start) * 1e6, 3),
                "args": args,
            }
        )
