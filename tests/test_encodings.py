"""Calling a tokenizer as scripts call those of transformers: padding, truncation, settings."""

from __future__ import annotations

import copy
import json

import letters
import numpy as np
import pytest

from llmaccel import RequestError, UnsupportedError, load_tokenizer

TEXTS = ["abc", "a longer text", ""]
CALLS = [
    {},
    {"padding": True},
    {"padding": "max_length", "max_length": 9, "truncation": True},
    {"truncation": True, "max_length": 4},
    {"truncation": True, "max_length": 1},
    {"truncation": True, "max_length": 5, "add_special_tokens": False},
    {"truncation": True, "padding": True},
    {"padding": "longest", "add_special_tokens": False, "return_attention_mask": False},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    letters.write_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    more = {"model_max_length": 10, "padding_side": "left", "truncation_side": "left"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    return folder


@pytest.fixture
def tokenizer(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.torch
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", CALLS, ids=str)
def test_equal_to_transformers(folder, tokenizer, side, how):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for one in (theirs, tokenizer):
        one.pad_token = one.eos_token
        one.padding_side = one.truncation_side = side
    how = {"return_token_type_ids": False, **how}
    for text in (TEXTS, *TEXTS):
        assert dict(tokenizer(text, **how)) == dict(theirs(text, **how))
    if how.get("padding"):
        want = theirs(TEXTS, return_tensors="pt", **how).input_ids
        found = tokenizer(TEXTS, return_tensors="pt", **how).to("cpu")
        assert found.input_ids.dtype == want.dtype
        assert found["input_ids"].equal(want)
    pairs = (("abc", "de"), ("a", "longer"), ("longer", "b"), ("same", "size"), ("", "abcdef"))
    for pair in pairs:
        if how.get("max_length") != 1:  # which has no room for a pair's special tokens and a text
            assert dict(tokenizer(*pair, **how)) == dict(theirs(*pair, **how))
    names = ("model_max_length", "padding_side", "truncation_side", "is_fast", "pad_token_id")
    for name in (*names, "sep_token", "cls_token_id", "vocab"):
        assert getattr(tokenizer, name) == getattr(theirs, name)
    assert tokenizer.num_special_tokens_to_add() == theirs.num_special_tokens_to_add()
    ids = theirs(TEXTS[1], return_tensors="pt").input_ids
    assert tokenizer.batch_decode(ids) == theirs.batch_decode(ids)
    tokens = theirs.convert_ids_to_tokens(ids[0].tolist())
    assert tokenizer.convert_ids_to_tokens(ids[0]) == tokens
    assert tokenizer.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)


def test_arrays(tokenizer):
    found = tokenizer(["ab", "c"], padding=True, return_tensors="np")
    assert found.input_ids.tolist() == [[1, 100, 101], [2, 1, 102]]
    assert found.attention_mask.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert found.input_ids.dtype == np.int64
    assert tokenizer.encode("ab", return_tensors="np").tolist() == [[1, 100, 101]]
    assert tokenizer.encode("abcd", truncation=True, max_length=3) == [1, 102, 103]
    assert tokenizer.pad([{"input_ids": [5]}, {"input_ids": [6, 7]}]).input_ids == [[2, 5], [6, 7]]
    assert tokenizer.pad({"input_ids": [[5]]}, return_tensors="np").input_ids.shape == (1, 1)
    pair = tokenizer("a", "b")
    assert pair.input_ids == tokenizer.encode_pair("a", "b")
    assert tokenizer(["a"], ["b"], truncation=True, max_length=2).input_ids == [[1, 101]]
    assert tokenizer("a", "b", False).input_ids == [100, 101]
    assert tokenizer("<s>", "b").input_ids == [1, 1, 101]
    written = tokenizer.encode("<s>", False, split_special_tokens=True)
    found = tokenizer("<s>", "b", split_special_tokens=True).input_ids
    assert (found, len(written)) == ([1, *written, 101], 3)
    first = {"truncation": "only_first", "max_length": 4}
    assert tokenizer("abcde", "fg", **first).input_ids == [1, 104, 105, 106]
    with pytest.raises(RequestError, match="'only_first': the first of a pair of 1 and 5 tokens"):
        tokenizer("a", "bcdef", **first)
    for side in ("left", "right"):
        tokenizer.truncation_side = side
        assert tokenizer("a", "b", truncation=True, max_length=0).input_ids == []
    tokenizer.truncation_side = "left"
    with pytest.raises(RequestError, match="max_length: expected at least 0, got -1"):
        tokenizer.pad({"input_ids": [[5]]}, "max_length", max_length=-1)
    chat = [{"role": "user", "content": "a"}]
    found = tokenizer.apply_chat_template(chat, return_tensors="np", max_length=2, truncation=True)
    assert tokenizer.batch_decode(found) == ["]a"]


def test_settings(folder):
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.name_or_path, tokenizer.pad_token) == (str(folder), None)
    tokenizer.pad_token_id = 0
    assert (tokenizer.pad_token, tokenizer.special_tokens_map["pad_token"]) == ("<unk>", "<unk>")
    other = copy.deepcopy(tokenizer)
    other.pad_token, other.padding_side = None, "right"
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (0, "left")
    other.chat_template = "{{ messages[0].content }}"
    assert other.apply_chat_template([{"role": "a", "content": "x"}], tokenize=False) == "x"
    assert tokenizer.chat_template == letters.CHAT_TEMPLATE
    for name, value in (("pad_token", "no such token"), ("eos_token_id", 10**6)):
        with pytest.raises(RequestError, match=f"{name}: .* is no token of this vocabulary"):
            setattr(tokenizer, name, value)
    with pytest.raises(RequestError, match=r"no pad_token; tokenizer\.pad_token = "):
        other(["a", "bc"], padding=True)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"return_tensors": "np"}, RequestError, "different lengths; padding=True"),
        ({"return_tensors": "tf"}, UnsupportedError, "return_tensors='tf'"),
        ({"padding": "most"}, UnsupportedError, "padding='most'"),
        ({"padding": ["longest"]}, UnsupportedError, "padding="),
        ({"truncation": "only_second"}, UnsupportedError, "truncation='only_second'"),
        ({"max_length": -1}, RequestError, "max_length: expected at least 0"),
        ({"return_offsets_mapping": True}, UnsupportedError, "return_offsets_mapping"),
        ({"text_pair": ["a"]}, RequestError, "text_pair: expected 2"),
        ({"tensors": "pt"}, TypeError, "'tensors'"),
    ],
)
def test_bad_calls(tokenizer, how, error, message):
    with pytest.raises(error, match=message):
        tokenizer(["a", "bc"], **how)
