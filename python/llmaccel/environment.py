"""What the environment decides: the backend that models share, and the level of the log.

Owns the variables LLMACCEL_NUM_THREADS, LLMACCEL_ISA, LLMACCEL_TRACE, LLMACCEL_LOG and
LLMACCEL_CUDA_LIBRARY; an argument wins over its variable. Invariant: models with the same choice
share one backend while any of them lives, so that their engines take turns instead of fighting for
processors. Called by llm.py, memory.py and cli.py.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from typing import Any

from llmaccel import _core
from llmaccel.errors import ConfigError, LLMAccelError

_LOG = logging.getLogger("llmaccel")

MAX_THREADS = 1024  # of a pool, as in csrc/base/pool.h

_BACKENDS: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()
_BACKENDS_LOCK = threading.Lock()


def thread_count(given: int | None) -> int:
    """Threads asked for: the argument, else LLMACCEL_NUM_THREADS; 0: one per usable processor."""
    if given is not None:
        return given
    text = os.environ.get("LLMACCEL_NUM_THREADS", "0")
    if not text.strip().isdecimal() or len(text) > 9 or int(text) > MAX_THREADS:
        raise ConfigError(
            f"LLMACCEL_NUM_THREADS={text!r:.80}: expected a number from 0 to {MAX_THREADS}"
        )
    return int(text)


def _trace_op(op: str, layer: int, rows: int, cols: int, checksum: int) -> None:
    """LLMACCEL_TRACE=1: one line an op on standard error, to find where two runs part."""
    where = f"layer {layer}" if layer >= 0 else "model"
    print(f"llmaccel: {op} {where} [{rows}, {cols}] {checksum:016x}", file=sys.stderr)


def open_backend(isa: str | None, threads: int | None) -> Any:
    """A backend, shared with every model that uses the same. None: the environment's choice."""
    threads = thread_count(threads)
    given, isa = isa, isa or os.environ.get("LLMACCEL_ISA") or None
    trace = _trace_op if os.environ.get("LLMACCEL_TRACE", "0") not in ("", "0") else None
    key = (os.getpid(), isa, threads, trace)
    with _BACKENDS_LOCK:
        backend = _BACKENDS.get(key)
        if backend is None:
            try:
                backend = _core.Backend("cpu", isa, threads, trace)
            except LLMAccelError as error:
                if isa is None or given is not None:
                    raise
                raise type(error)(f"LLMACCEL_ISA: {error}") from error
            _BACKENDS[key] = backend
        return backend


def open_device(name: str) -> Any:
    """The backend of a device ("cuda"), shared by all models on it; UnsupportedError says why not.

    LLMACCEL_CUDA_LIBRARY: a shared object to take instead of the package's own.
    """
    library = os.environ.get("LLMACCEL_CUDA_LIBRARY") or None
    trace = _trace_op if os.environ.get("LLMACCEL_TRACE", "0") not in ("", "0") else None
    key = (os.getpid(), name, library, trace)
    with _BACKENDS_LOCK:
        backend = _BACKENDS.get(key)
        if backend is None:
            backend = _BACKENDS[key] = _core.Backend(name, trace=trace, library=library)
        return backend


def configure_log() -> None:
    """LLMACCEL_LOG=info (or debug, warning, ...) sets the level of the logger "llmaccel"."""
    name = os.environ.get("LLMACCEL_LOG")
    if name is None:
        return
    level = logging.getLevelName(name.upper())
    if not isinstance(level, int):
        raise ConfigError(f"LLMACCEL_LOG={name!r:.80}: expected debug, info, warning or error")
    _LOG.setLevel(level)
    if not _LOG.handlers and not logging.getLogger().handlers:
        _LOG.addHandler(logging.StreamHandler())
