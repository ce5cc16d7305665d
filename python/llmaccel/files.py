"""Reading whole files that are small in every honest checkpoint: configurations and vocabularies.

Owns the limits on their size and the one way they are read. Invariant: the size is checked before
a byte is read, and whatever is wrong with a file (missing, too large, no text, no JSON) is a
LoadError that begins with its path. Weights are not read here but mapped (models/checkpoint.py).
Called by config.py, chat.py, loading.py, tokenize.py and tokenize_convert.py.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from .errors import LoadError

MAX_FILE_BYTES = 1 << 28  # a vocabulary; the largest in use are a tenth of it


def is_there(path: Path) -> bool:
    """Whether something exists at a path that a caller gave; LoadError where none can tell."""
    try:
        return path.exists()
    except ValueError:  # a NUL in it
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise LoadError(f"{path}: {error.strerror}") from error


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file of at most `limit` bytes; LoadError names it."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise LoadError(f"{path}: {size} bytes, larger than the limit of {limit}")
            return file.read(size)
    except OSError as error:
        raise LoadError(f"{path}: cannot read the file: {error}") from error


def read_text(path: Path, limit: int = MAX_FILE_BYTES) -> str:
    """The same as UTF-8 text."""
    try:
        return read_file(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(f"{path}: not UTF-8 text: {error}") from error


def _read_json(path: Path, limit: int) -> Any:
    try:
        return json.loads(read_file(path, limit))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: not valid JSON: {error}") from error


def read_json_list(path: Path, limit: int = MAX_FILE_BYTES) -> list[Any]:
    """The same as the JSON array that it holds."""
    value = _read_json(path, limit)
    if not isinstance(value, list):
        raise LoadError(f"{path}: expected a JSON array, got {type(value).__name__}")
    return value


def read_json_object(path: Path, limit: int = MAX_FILE_BYTES) -> dict[str, Any]:
    """The same as the JSON object that it holds."""
    value = _read_json(path, limit)
    if not isinstance(value, dict):
        raise LoadError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
