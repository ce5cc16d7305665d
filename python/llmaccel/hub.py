"""Files from the Hugging Face hub: which of a repository's files a model or a tokenizer needs.

Owns the one table of file patterns, the form of a hub name (`owner/name`, or
`owner/name:file.gguf` for one GGUF file of several) and the choice where the name leaves it open.
Invariant: a GGUF repository is never downloaded whole, since it holds the same model many times; a
name that could be a path is not sent to the hub; every failure is a LoadError that says what was
looked for.

Called by loading.py and tokenize.py, for names that are no file or folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from llmaccel.errors import LoadError

_TOKENIZER = (
    "tokenizer*", "*.model", "*.tiktoken", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "chat_templates/*", "additional_chat_templates/*",
)
_CONFIG = ("*.json", *_TOKENIZER)
_WEIGHTS = ("*.safetensors",)
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def fetch_model(name: str, revision: str | None, load_format: str) -> Path:
    """The folder, or for GGUF the file, of a model; downloads what is not there yet."""
    repository, file = _split("model", name)
    if file is not None:
        return _gguf(repository, file, revision)
    weights = _WEIGHTS if load_format in ("auto", "safetensors") else ()
    folder = _snapshot("model", repository, revision, (*_CONFIG, *weights))
    if load_format in ("safetensors", "dummy") or any(folder.glob("*.safetensors")):
        return folder
    # Of a split file any part stands for the whole.
    found = [name for name in _gguf_names(folder, repository, revision)
             if _PART.search(name) is None or "-00001-of-" in name]
    if len(found) > 1:
        raise LoadError(
            f"model {repository!r}: several GGUF files ({', '.join(found)}); name one, such as "
            f"{f'{repository}:{found[0]}'!r}"
        )
    return _gguf(repository, found[0], revision) if found else folder


def fetch_tokenizer(name: str, revision: str | None) -> Path:
    """The folder of a tokenizer's files, or the GGUF file that the name gives."""
    repository, file = _split("tokenizer", name)
    if file is not None:
        return _gguf(repository, file, revision)
    return _snapshot("tokenizer", repository, revision, _TOKENIZER)


def repository_of(name: object) -> str:
    """A hub name without the file that it may choose."""
    return str(name).partition(":")[0]


def _split(kind: str, name: str) -> tuple[str, str | None]:
    repository, colon, file = name.partition(":")
    path_like = repository.startswith((".", "/", "~")) or repository.count("/") > 1
    if path_like or Path(repository).suffix in (".gguf", ".json", ".model", ".safetensors"):
        raise LoadError(f"{kind} {name!r:.300}: no such file or folder")
    if colon and (not file.endswith(".gguf") or ".." in file.split("/") or file.startswith("/")):
        raise LoadError(f"{kind} {name!r:.300}: expected a .gguf file of the repository after ':'")
    return repository, file if colon else None


def _gguf(repository: str, file: str, revision: str | None) -> Path:
    """One GGUF file, with its other parts where it is split."""
    pattern = _PART.sub(r"-*-of-\1.gguf", re.sub(r"([*?[])", r"[\1]", file))
    path = _snapshot("model", repository, revision, (pattern,)) / file
    if not path.is_file():
        raise LoadError(f"model {repository!r}: the repository has no file {file!r}")
    return path


def _gguf_names(folder: Path, repository: str, revision: str | None) -> list[str]:
    """The GGUF files of a repository; without a connection, those downloaded before, as
    snapshot_download does it."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:  # as in _snapshot
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
        if not names:
            raise LoadError(f"model {repository!r}: its files cannot be listed: {error}") from error
    return sorted(name for name in names if name.endswith(".gguf"))


def _snapshot(kind: str, name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's own errors, and whatever its transport raises
        raise LoadError(
            f"{kind} {name!r:.300}: no such file or folder, and not from the Hugging Face hub: "
            f"{error}"
        ) from error
