"""The arithmetic coder and its file: exact, as short as the probabilities allow, never garbage."""

from __future__ import annotations

import math
import tracemalloc
import zlib
from itertools import pairwise

import numpy as np
import pytest

from llmaccel import LLMAccelError, LoadError, RequestError
from llmaccel.eval.coder import Decoder, Encoder, Shares
from llmaccel.eval.compress import _joined
from llmaccel.eval.container import RAW, TOKENS, Container


def rows_and_tokens(n: int, n_vocab: int, spread: float, seed: int):
    """(logits float32 [n, V], tokens drawn from them, their bits in float64)."""
    rng = np.random.default_rng(seed)
    rows = (spread * rng.standard_normal((n, n_vocab))).astype(np.float32)
    wide = rows.astype(np.float64)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    tokens = [int(rng.choice(n_vocab, p=row)) for row in p]
    return rows, tokens, -math.fsum(math.log2(row[t]) for row, t in zip(p, tokens, strict=True))


@pytest.mark.parametrize(("n_vocab", "spread"), [(2, 1.0), (300, 3.0), (20000, 6.0)])
def test_round_trip_in_the_bits_of_the_model(n_vocab, spread):
    rows, tokens, bits = rows_and_tokens(80, n_vocab, spread, seed=n_vocab)
    encoder, shares = Encoder(), Shares(n_vocab)
    for row, token in zip(rows, tokens, strict=True):
        encoder.put(shares.upper(row), token)
    data = encoder.finish()
    decoder, other = Decoder(data), Shares(n_vocab)
    assert [decoder.take(other.upper(row)) for row in rows] == tokens
    assert bits - 8 < 8 * len(data) < 1.0005 * bits + 16


def test_every_token_can_be_written():
    """The least likely, the first and the last token; bytes that nobody wrote are read as well."""
    row = np.array([-200.0, 30.0, -np.inf, 30.0, -3e38], np.float32)
    shares = Shares(5)
    tokens = [0, 2, 4, 1, 3, 4, 4, 0]
    encoder = Encoder()
    for token in tokens:
        encoder.put(shares.upper(row), token)
    decoder = Decoder(encoder.finish())
    assert [decoder.take(shares.upper(row)) for _ in tokens] == tokens
    decoder = Decoder(b"\xff" * 40)
    assert all(0 <= decoder.take(shares.upper(row)) < 5 for _ in range(100))
    for bad in (np.nan, np.inf):
        with pytest.raises(LLMAccelError, match="best logit"):
            shares.upper(np.array([0.0, bad], np.float32))


def test_shares_are_those_of_softmax():
    rng = np.random.default_rng(2)
    row = (4 * rng.standard_normal(1000)).astype(np.float32)
    upper = Shares(1000).upper(row)
    share = np.diff(upper, prepend=0)
    p = np.exp(row.astype(np.float64) - row.max())
    assert share.min() >= 1
    # A unit of 2^-30 below, the polynomial's 1.7e-7, and the unit that everyone gets.
    assert np.all(np.abs(share / 2**30 - p) <= 2e-7 * p + 2**-29)


def make_container(**changes) -> Container:
    values = {
        "model": bytes(range(16)),
        "isa": "avx2",
        "version": "0.1.0",
        "checksum": 1234567,
        "chunk": 300,
        "chunks_per_stream": 2,
        "pieces": [(TOKENS, 700), (RAW, 3), (TOKENS, 1)],
        "raw": b"\x00\xff\x00",
        "streams": [b"ab" * 100, b"c"],
    }
    return Container(**{**values, **changes})


def test_container_round_trip():
    container = make_container()
    assert list(container.stream_tokens()) == [600, 101]
    assert Container.from_bytes(container.to_bytes()) == container
    empty = make_container(pieces=[], raw=b"", streams=[])
    assert Container.from_bytes(empty.to_bytes()) == empty


def test_files_that_promise_too_much(monkeypatch):
    """What a small file says of its size takes no memory."""
    bomb = zlib.compress(bytes(50_000_000), 9)
    honest = make_container(pieces=[(RAW, 50_000_000)], raw=bytes(50_000_000), streams=[])
    assert Container.from_bytes(honest.to_bytes()).raw == honest.raw
    damaged = [
        ([(RAW, 3)], bomb, "raw pieces"),
        ([(RAW, 1 << 61)], bomb, "raw pieces"),
        ([(RAW, 3)], b"", "raw pieces"),
        ([(RAW, 3)], zlib.compress(b"abc")[:-1], "raw pieces"),
        ([(RAW, 3)], zlib.compress(b"abc") + b"x", "raw pieces"),
        ([(RAW, 3)], b"abc", "damaged: "),
    ]
    for pieces, packed, match in damaged:
        monkeypatch.setattr(zlib, "compress", lambda raw, level, packed=packed: packed)
        data = make_container(pieces=pieces, raw=b"raw", streams=[]).to_bytes()
        monkeypatch.undo()
        tracemalloc.start()
        with pytest.raises(LoadError, match=match):
            Container.from_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()
    with pytest.raises(LoadError, match="of a size that nothing writes"):
        Container.from_bytes(make_container(chunks_per_stream=1537).to_bytes())
    many = make_container(chunk=1, chunks_per_stream=1536, streams=[b""] * 50_000)
    many.pieces, many.raw = [(TOKENS, 1536 * 50_000)], b""
    tracemalloc.start()
    assert sum(Container.from_bytes(many.to_bytes()).stream_tokens()) == 1536 * 50_000
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_damaged_containers_are_refused():
    data = make_container().to_bytes()
    for end in range(len(data)):
        with pytest.raises(LoadError):
            Container.from_bytes(data[:end])
    with pytest.raises(LoadError, match="after the end"):
        Container.from_bytes(data + b"x")
    with pytest.raises(LoadError, match="not a file of"):
        Container.from_bytes(b"\x1f\x8b" + data)
    rng = np.random.default_rng(5)
    for _ in range(2000):  # whatever comes, it is read or refused by name
        broken = bytearray(data)
        for at in rng.integers(4, 60, 2):
            broken[at] = rng.integers(256)
        try:
            Container.from_bytes(bytes(broken))
        except LoadError as error:
            assert str(error)


class Halves:
    """A tokenizer of letters that gives back every text without an x."""

    @staticmethod
    def encode(text: str, **_) -> list[int]:
        if "\udcff" in text:
            raise RequestError("no valid Unicode")
        return [ord(c) for c in text]

    @staticmethod
    def decode(ids: list[int]) -> str:
        return "".join(map(chr, ids)).replace("x", "?")


def test_what_tokens_do_not_give_back_is_raw():
    plain = b"line of words\n" * 200
    data = plain + b"an x\n" + plain + b"\xff\xfe" + plain + b"y"
    pieces = list(_joined(Halves, data))
    parts = [p if k == RAW else "".join(map(chr, p)).encode() for k, p in pieces]
    assert b"".join(parts) == data
    raw = sum(len(p) for k, p in pieces if k == RAW)
    assert 3 <= raw <= 3 * 64
    assert all(a != b or a == TOKENS for (a, _), (b, _) in pairwise(pieces))
