"""How well a model predicts texts: perplexity, bits per byte, compression rate.

Owns what counts as a document and how its tokens are cut into windows. Invariant: every document
is scored alone, and every token at most once; what is counted is what the sums are divided by.

Called by command.py and by users.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llmaccel import LoadError, RequestError

# Windows that are handed to the model at once: what a progress report or Ctrl-C waits for.
_WINDOWS_PER_CALL = 64


@dataclass(frozen=True)
class Measured:
    """Sums over documents. nll is in nats; n_scored of n_tokens tokens had a context to be
    predicted from."""

    n_documents: int
    n_bytes: int
    n_chars: int
    n_tokens: int
    n_scored: int
    nll: float

    @property
    def perplexity(self) -> float:
        """exp of the mean nll per scored token."""
        return math.exp(self.nll / self.n_scored) if self.n_scored else math.nan

    @property
    def bits(self) -> float:
        """The nll in bits: what an ideal coder would need."""
        return self.nll / math.log(2.0)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8."""
        return self.bits / self.n_bytes if self.n_bytes else math.nan

    @property
    def bits_per_char(self) -> float:
        """Bits per Unicode character."""
        return self.bits / self.n_chars if self.n_chars else math.nan

    @property
    def rate(self) -> float:
        """Compressed size over size, in percent: UncheatableEval's figure."""
        return 100.0 * self.bits_per_byte / 8.0


def read_documents(paths: Iterable[str | Path], limit: int | None = None) -> list[str]:
    """Texts of files: a .jsonl file is one document a line (a string, or an object with "text"),
    any other file is one document.

    limit: documents of each file at most, 1 or more. LoadError for a file that cannot be read, is
    no UTF-8 or holds a line that is neither.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"limit: {limit}, expected at least 1")
    found: list[str] = []
    for path in map(Path, paths):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = _lines(path, file) if path.suffix == ".jsonl" else iter([file.read()])
                found += islice(lines, limit)
        except (OSError, UnicodeDecodeError) as error:
            raise LoadError(f"{path}: {error}") from None
    return found


def _lines(path: Path, file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise LoadError(f"{path}:{number}: {error}") from None
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise LoadError(f'{path}:{number}: expected a string or an object with "text"')
        yield text


def start_token(llm: Any) -> int:
    """What stands before a text: BOS, else EOS. RequestError where there is neither."""
    tokenizer = llm.get_tokenizer()
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise RequestError("the tokenizer has neither BOS nor EOS to start a text with")


def token_windows(
    ids: Sequence[int], chunk: int, stride: int, start: int | None
) -> Iterator[tuple[list[int], list[int]]]:
    """(context, tokens to score) of windows that together score every token once.

    Windows are of `chunk` tokens, each `stride` further; the first begins with `start` where there
    is one, as do all if they do not overlap. Without it a window's first token is context alone.
    """
    done = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + chunk, len(ids))
        given, first = list(ids[begin:done]), done
        if begin == done:  # nothing of the text goes before
            given = [start] if start is not None else list(ids[begin : begin + 1])
            first = begin if start is not None else begin + 1
        if first < end:
            yield given, list(ids[first:end])
        done = end
        if end == len(ids):
            return


def measure(
    llm: Any,
    documents: Iterable[str],
    *,
    chunk: int | None = None,
    stride: int | None = None,
    bos: bool = True,
) -> Measured:
    """Score documents by windows of `chunk` tokens.

    chunk: None: 1024, or what the model's context holds if that is less. stride: tokens between
    beginnings of windows; None: chunk, so that windows share nothing. bos: start a text with BOS
    (or EOS), which lets every token be scored; the token is not counted in chunk. Bits per byte
    with dtype="float32" equal those of a float64 computation to 1e-5.
    RequestError for a chunk that the context does not hold, and where there is nothing to score.
    """
    limit = llm.report()["model"]["max_model_len"]
    chunk = min(1024, limit) if chunk is None else chunk
    if not 1 < chunk <= limit:
        raise RequestError(f"chunk: {chunk} is not in [2, {limit}], what the model's context holds")
    stride = chunk if stride is None else stride
    if not 1 <= stride <= chunk:
        raise RequestError(f"stride: {stride} is not in [1, {chunk}], the chunk")
    start = start_token(llm) if bos else None
    tokenizer = llm.get_tokenizer()
    nll: list[float] = []
    work: list[tuple[list[int], list[int]]] = []
    counts = {"n_documents": 0, "n_bytes": 0, "n_chars": 0, "n_tokens": 0, "n_scored": 0}
    for text in documents:
        ids = tokenizer.encode(text, add_special_tokens=False)
        windows = list(token_windows(ids, chunk, stride, start))
        counts["n_documents"] += 1
        counts["n_bytes"] += len(text.encode("utf-8"))
        counts["n_chars"] += len(text)
        counts["n_tokens"] += len(ids)
        counts["n_scored"] += sum(len(tail) for _, tail in windows)
        work += windows
        while len(work) >= _WINDOWS_PER_CALL:
            nll += _nll(llm, work[:_WINDOWS_PER_CALL])
            del work[:_WINDOWS_PER_CALL]
    nll += _nll(llm, work)
    if not nll:
        raise RequestError("documents: there is no token to score")
    return Measured(**counts, nll=math.fsum(nll))


def _nll(llm: Any, windows: list[tuple[list[int], list[int]]]) -> list[float]:
    scores = llm.loglikelihood([head for head, _ in windows], [tail for _, tail in windows])
    return [-score for score, _ in scores]
