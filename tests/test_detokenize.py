"""Detokenizing: a stream gives the text of a one-shot decode, whole characters at a time."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import (
    gguf_metadata,
    loaded,
    needs_data,
    random_texts,
    spm_tokenizer,
)

from llmaccel import tokenize_convert
from llmaccel.tokenize import StreamDecoder, Tokenizer

STREAMED = [
    "llama2",
    "llama2/tokenizer.model",
    "llama3",
    "mistral/tokenizer.model.v3",
    "phi3",
    "qwen2",
    "gpt2",
    "deepseek",
    "gguf_vocab/ggml-vocab-llama-spm.gguf",
    "gguf_vocab/ggml-vocab-deepseek-coder.gguf",
]


def check_stream(tokenizer: Tokenizer, ids: list[int], rng: random.Random, skip: bool) -> None:
    stream = StreamDecoder(tokenizer, skip_special_tokens=skip)
    chunks, at = [], 0
    while at < len(ids):
        step = rng.randint(1, 3)
        chunks.append(stream.push(ids[at : at + step]))
        at += step
    # Whole characters only: an incomplete one is held back, so no chunk may be cut inside one.
    kept = [i for i in ids if not (skip and i in tokenizer.special_id_set)]
    raw = b"".join(map(tokenizer.token_bytes, kept))
    expected = raw.decode("utf-8", "replace")
    text = "".join(chunks) + stream.finish()
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert text == expected or (text == expected[1:] and expected[0] == " ")
    if b"\xef\xbf\xbd" not in raw:
        assert (text.count("\ufffd") == 0) == is_utf8(raw)


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@needs_data
@pytest.mark.parametrize("name", STREAMED)
def test_stream_equals_decode(name):
    tokenizer = loaded(name)
    rng = random.Random(name)
    hot = [i for i in range(min(len(tokenizer), 1000)) if not is_utf8(tokenizer.token_bytes(i))]
    for _ in range(1000):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(0, 12))]
        ids += [rng.choice(hot) for _ in range(rng.randint(0, 6))]
        rng.shuffle(ids)
        check_stream(tokenizer, ids, rng, skip=rng.random() < 0.5)
    for text in random_texts(10, 100):
        check_stream(tokenizer, tokenizer.encode(text), rng, skip=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 408), max_size=30), st.booleans(), st.randoms())
def test_stream_small_vocabulary(ids, skip, rng):
    check_stream(small_gguf(), ids, rng, skip)


@cache
def small_gguf() -> Tokenizer:
    return Tokenizer.from_gguf(gguf_metadata())


def test_stream_holds_incomplete_characters(tmp_path):
    tokenizer = spm_tokenizer(tmp_path)
    ids = tokenizer.encode("🦙", False)[1:]
    assert len(ids) == 4
    stream = StreamDecoder(tokenizer)
    assert [stream.push([i]) for i in ids] == ["", "", "", "🦙"]
    stream = StreamDecoder(tokenizer)
    assert stream.push(ids[:2]) == ""
    assert stream.finish() == "\ufffd"
    the = tokenizer.convert_tokens_to_ids("▁the")
    valid_then_not = [*ids, tokenizer.convert_tokens_to_ids("<0xFF>"), the]
    assert tokenizer.decode(valid_then_not) == "🦙\ufffd the"


def test_stream_after_a_prompt(tmp_path):
    tokenizer = spm_tokenizer(tmp_path)
    the = tokenizer.convert_tokens_to_ids("▁the")
    assert StreamDecoder(tokenizer).push([the]) == "the"
    assert StreamDecoder(tokenizer, prompt_ids=[1]).push([the]) == "the"
    assert StreamDecoder(tokenizer, prompt_ids=[1, the]).push([the, 2]) == " the"
    keep = StreamDecoder(tokenizer, skip_special_tokens=False, prompt_ids=[1, the])
    assert keep.push([the, 2]) == " the</s>"


def test_stream_of_other_decoders():
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    words = ["[UNK]", "[SEP]", "hello", "world", "##ing", "!"]
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.add_special_tokens(["[SEP]"])
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = Tokenizer(tokenize_convert.Parts(backend))
    ids = [2, 4, 3, 1, 1, 5]
    stream = StreamDecoder(tokenizer, skip_special_tokens=False)
    text = "".join(stream.push([i]) for i in ids) + stream.finish()
    assert text == tokenizer.decode(ids) == "helloing world [SEP] [SEP] !"
    stream = StreamDecoder(
        tokenizer, skip_special_tokens=False, spaces_between_special_tokens=False
    )
    assert stream.push(ids) + stream.finish() == "helloing world [SEP][SEP] !"
    stream = StreamDecoder(tokenizer)
    assert stream.push(ids) + stream.finish() == "helloing world !"
