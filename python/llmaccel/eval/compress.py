"""Compression by a model: `compress` and `decompress`, byte-exact.

Owns how bytes become chunks of tokens and who may read them back. Chunks are independent: each
starts with BOS, so many are decoded at once; some chunks in a row share one code (a stream), whose
end costs bytes. The encoder takes all logits of a chunk from one prefill, the decoder draws token
by token in a batch: that both see the same bits is the engine's contract of batch invariance, and
a decoded text with another checksum is an error. Text that tokens do not give back exactly is kept
as raw bytes beside them.

Called by command.py and by users.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from llmaccel import LLM, LoadError, RequestError, SamplingParams, __version__
from llmaccel.eval.coder import Decoder, Encoder, Shares
from llmaccel.eval.container import RAW, TOKENS, Container
from llmaccel.eval.measure import start_token

# A stream's end and length cost about 3 bytes: 0.2 % of this.
_STREAM_BYTES = 1536
_STREAMS_AT_ONCE = 256  # decoded together: each has a row of logits
_PROBE_TOKENS = 64
_SMALLEST_PIECE = 64  # characters; a shorter one that tokens do not give back stays raw

Progress = Callable[[int, int], None]


def fingerprint(llm: LLM) -> bytes:
    """16 bytes of what decides a model's logits and what its tokens mean.

    Hashed: the model's report, the vocabulary, and the logits of a fixed prompt, which change with
    any weight they depend on, the forms of weights, activations and cache, and the instruction set.
    """
    report = llm.report()["model"]
    n_vocab = report["n_vocab"]
    kept = {k: v for k, v in report.items() if k not in ("path", "max_model_len", "stop_token_ids")}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    vocabulary = sorted(llm.get_tokenizer().get_vocab().items())
    digest.update(json.dumps(vocabulary).encode())
    count = min(_PROBE_TOKENS, report["max_model_len"])
    probe = [(i * 2654435761 >> 7) % n_vocab for i in range(1, count + 1)]
    digest.update(np.asarray(llm.logits(probe)).tobytes())
    return digest.digest()[:16]


# ---- bytes and tokens ----------------------------------------------------------------------------


def _encode_exactly(tokenizer: Any, text: str) -> list[int] | None:
    """Tokens that decode to `text`, or None."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    except RequestError:  # no valid Unicode
        return None
    return ids if tokenizer.decode(ids) == text else None


def _pieces(tokenizer: Any, text: str) -> Iterator[tuple[int, list[int] | bytes]]:
    """(kind, tokens or bytes) that together give `text`, in as large pieces as work."""
    ids = _encode_exactly(tokenizer, text)
    if ids is not None:
        yield TOKENS, ids
    elif len(text) <= _SMALLEST_PIECE:
        yield RAW, text.encode("utf-8", "surrogateescape")
    else:
        half = len(text) // 2
        line = text.rfind("\n", half - half // 2, half + half // 2)
        cut = line + 1 if line >= 0 else half
        yield from _pieces(tokenizer, text[:cut])
        yield from _pieces(tokenizer, text[cut:])


def _joined(tokenizer: Any, data: bytes) -> Iterator[tuple[int, list[int] | bytes]]:
    """_pieces of bytes, raw neighbours as one."""
    raw = b""
    for kind, piece in _pieces(tokenizer, data.decode("utf-8", "surrogateescape")):
        if isinstance(piece, bytes):
            raw += piece
            continue
        if raw:
            yield RAW, raw
            raw = b""
        yield kind, piece
    if raw:
        yield RAW, raw


# ---- compress ------------------------------------------------------------------------------------


def compress(
    llm: LLM, data: bytes, *, chunk: int | None = None, progress: Progress | None = None
) -> bytes:
    """`data` in as few bits as the model needs to predict it; any bytes.

    chunk: tokens that are predicted from each other, at most one less than max_model_len; None:
    1024, or that limit. progress(done, all): called with counts of tokens. `decompress` needs the
    same model, options, instruction set and version; batch size and threads may differ.
    The size is within 0.5 % and 64 bytes of the model's own bound, and text that has to be kept
    raw costs what zlib makes of it. RequestError for a chunk that does not fit.
    """
    data = _bytes_of(data, "data")
    chunk = _checked_chunk(llm, chunk)
    tokenizer = llm.get_tokenizer()
    pieces = list(_joined(tokenizer, data)) if data else []
    ids = [token for kind, piece in pieces if kind == TOKENS for token in piece]
    container = _empty(llm, data, chunk)
    container.pieces = [(kind, len(piece)) for kind, piece in pieces]
    container.raw = b"".join(piece for _, piece in pieces if isinstance(piece, bytes))
    if not ids:
        return container.to_bytes()
    shares = Shares(llm.report()["model"]["n_vocab"])
    start = start_token(llm)
    encoder = Encoder()
    for begin in range(0, len(ids), chunk):
        part = ids[begin : begin + chunk]
        _put_chunk(encoder, shares, np.asarray(llm.logits([start, *part[:-1]])), part)
        done = begin // chunk + 1
        if begin == 0:
            container.chunks_per_stream = _chunks_per_stream(encoder.n_bytes, len(part), chunk)
        if done % container.chunks_per_stream == 0 or begin + chunk >= len(ids):
            container.streams.append(encoder.finish())
            encoder = Encoder()
        if progress is not None:
            progress(begin + len(part), len(ids))
    return container.to_bytes()


def _bytes_of(given: Any, name: str) -> bytes:
    if not isinstance(given, (bytes, bytearray, memoryview)):
        raise RequestError(f"{name}: expected bytes, got {type(given).__name__}")
    return bytes(given)


def _checked_chunk(llm: LLM, chunk: int | None) -> int:
    most = llm.report()["model"]["max_model_len"] - 1
    chunk = min(1024, most) if chunk is None else chunk
    if not 1 <= chunk <= most:
        raise RequestError(f"chunk: {chunk} is not in [1, {most}], one less than max_model_len")
    return chunk


def _empty(llm: LLM, data: bytes, chunk: int) -> Container:
    return Container(
        model=fingerprint(llm),
        isa=llm.report()["backend"]["isa"],
        version=__version__,
        checksum=zlib.crc32(data),
        chunk=chunk,
        chunks_per_stream=1,
    )


def _chunks_per_stream(n_bytes: int, n_tokens: int, chunk: int) -> int:
    """How many chunks such as the first give a stream of _STREAM_BYTES."""
    per_chunk = max(1, n_bytes * chunk // n_tokens)
    return max(1, -(-_STREAM_BYTES // per_chunk))


def _put_chunk(encoder: Encoder, shares: Shares, rows: np.ndarray, tokens: list[int]) -> None:
    for row, token in zip(rows, tokens, strict=True):
        encoder.put(shares.upper(row), token)


# ---- decompress ----------------------------------------------------------------------------------


def decompress(llm: LLM, packed: bytes, *, progress: Progress | None = None) -> bytes:
    """The bytes that `compress` was given.

    LoadError, which says what differs, where `packed` was made by another model, with other
    options, on another instruction set or by another version, or is damaged.
    """
    container = Container.from_bytes(_bytes_of(packed, "packed"))
    _check_reader(llm, container)
    ids = _decode_streams(llm, container, progress) if container.n_tokens else []
    data = _assemble(llm.get_tokenizer(), container, ids)
    if zlib.crc32(data) != container.checksum:
        raise LoadError("damaged: the text has another checksum than the one that was compressed")
    return data


def _check_reader(llm: LLM, container: Container) -> None:
    isa = llm.report()["backend"]["isa"]
    if container.version != __version__:
        raise LoadError(f"compressed by llmaccel {container.version}; this is {__version__}")
    if container.isa != isa:
        raise LoadError(
            f"compressed with kernels of {container.isa!r}, but {isa!r} are in use here; "
            f"isa={container.isa!r} takes those where the machine has them"
        )
    if container.model != fingerprint(llm):
        raise LoadError("compressed by another model, or by this one loaded with other options")
    most = llm.report()["model"]["max_model_len"] - 1
    if container.chunk > most:
        raise LoadError(
            f"compressed in chunks of {container.chunk} tokens; max_model_len={most + 1} has room "
            f"for {most}"
        )


class _Follower:
    """Draws, in place of the sampler, the tokens that a stream's code says."""

    def __init__(self, decoder: Decoder, shares: Shares) -> None:
        self._decoder = decoder
        self._shares = shares

    def __call__(self, token_ids: list[int], logits: Any) -> Any:
        row = np.asarray(logits)
        token = self._decoder.take(self._shares.upper(row))
        row.fill(-np.inf)
        row[token] = 0.0
        return logits


def _decode_streams(llm: LLM, container: Container, progress: Progress | None) -> list[int]:
    """Tokens in order. A file says how many there are: only what was drawn takes memory."""
    shares = Shares(llm.report()["model"]["n_vocab"])
    sizes, ids, total = container.stream_tokens(), [], container.n_tokens
    for begin in range(0, len(container.streams), _STREAMS_AT_ONCE):
        codes = container.streams[begin : begin + _STREAMS_AT_ONCE]
        followers = [_Follower(Decoder(code), shares) for code in codes]
        left = list(islice(sizes, len(codes)))
        texts: list[list[int]] = [[] for _ in codes]
        while any(left):
            _decode_chunks(llm, container.chunk, followers, left, texts)
            if progress is not None:
                progress(len(ids) + sum(map(len, texts)), total)
        ids += [token for text in texts for token in text]
    return ids


def _decode_chunks(
    llm: LLM, chunk: int, followers: list[_Follower], left: list[int], texts: list[list[int]]
) -> None:
    """The next chunk of every stream that has one, in one batch: a code is read in order."""
    having = [s for s, count in enumerate(left) if count > 0]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=min(chunk, left[s]),
            ignore_eos=True,
            detokenize=False,
            logits_processors=[followers[s]],
        )
        for s in having
    ]
    prompts = [{"prompt_token_ids": [start_token(llm)]}] * len(having)
    for s, out in zip(having, llm.generate(prompts, params, use_tqdm=False), strict=True):
        texts[s] += out.outputs[0].token_ids
        left[s] -= min(chunk, left[s])


def _assemble(tokenizer: Any, container: Container, ids: list[int]) -> bytes:
    out, at, raw_at = [], 0, 0
    for kind, count in container.pieces:
        if kind == RAW:
            out.append(container.raw[raw_at : raw_at + count])
            raw_at += count
        else:
            out.append(tokenizer.decode(ids[at : at + count]).encode("utf-8"))
            at += count
    return b"".join(out)
