"""Small vocabularies in every file format, and texts, for the tokenizer tests.

Everything is made here from a few sentences, so these tests need no files from outside. Used by
test_tokenize.py and test_detokenize.py.
"""

from __future__ import annotations

import base64
import json
import random
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llmaccel.detokenize import byte_of_char
from llmaccel.tokenize import Tokenizer, load_tokenizer
from llmaccel.tokenize_patterns import GPT2

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "tokenizers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
CORPUS = [
    "the quick brown fox jumps over the lazy dog, again and again and again.",
    "Hello, y'all! I've 12345 apples; we'll see you at 10:30.",
    "été naïve façade, größer, ﬁn 数学 数学 🦙🦙 emoji",
    "    indented\n\n\ttabs  and   spaces\r\nnew lines   ",
    "def main():\n    return [i for i in range(10)]",
] * 4
TRICKY = [
    "",
    " ",
    "   ",
    "\n\n\n x",
    "a\u0301 vs \u00e1",
    "👩‍👩‍👧‍👦 family",
    "\u2581\u2581 metaspace",
    "<0x0A> not a byte",
    "mixed 中文 and ру́сский\t\t1234567 don't DON'T",
    "-" * 70 + " " * 70 + "a" * 70,
]


@cache
def loaded(name: str) -> Tokenizer:
    return load_tokenizer(DATA / name)


def random_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    ranges = [(32, 127), (32, 127), (9, 14), (0xA0, 0x2500), (0x3040, 0xA000), (0x1F300, 0x1FAFF)]

    def char() -> str:
        if rng.random() < 0.25:
            return rng.choice([" ", "  ", "\n", "\u2581", "\u3000", "the", "'s", "00"])
        return chr(rng.randrange(*rng.choice(ranges)))

    texts = ["".join(char() for _ in range(rng.randint(1, 40))) for _ in range(count // 2)]
    texts += [
        rng.choice(" \n\ta0.-é") * rng.randint(1, 40) + rng.choice(CORPUS)
        for _ in range(count // 2)
    ]
    return TRICKY + texts


def byte_level_backend():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def model_state(backend) -> dict:
    return json.loads(backend.to_str())["model"]


def write_json(file: Path, content) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


CONFIG = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
    "pad_token": None,
    "additional_special_tokens": ["<|tool|>"],
    "add_bos_token": True,
    "chat_template": (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    ),
    "added_tokens_decoder": {
        "400": {"content": "<s>", "special": True},
        "401": {"content": "</s>", "special": True},
        "403": {"content": "<think>", "special": False},
        "404": {"content": "<|tool|>", "special": True},
    },
}


def folder_of(tmp_path: Path, kind: str, config: dict | None) -> Path:
    """A folder with the small vocabulary as tokenizer.json, vocab.json + merges.txt, or ranks."""
    folder = tmp_path / kind
    folder.mkdir()
    backend = byte_level_backend()
    state = model_state(backend)
    if kind == "json":
        backend.save(str(folder / "tokenizer.json"))
    elif kind == "merges":
        write_json(folder / "vocab.json", state["vocab"])
        lines = ["#version: 0.2", *(" ".join(pair) for pair in state["merges"])]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        ranks = ranks_of(state)
        lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
        (folder / "r50k_base.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    return folder


def ranks_of(state: dict) -> dict[bytes, int]:
    table = byte_of_char()
    return {bytes(table[c] for c in token): rank for token, rank in state["vocab"].items()}


def gguf_metadata(pre: str = "gpt-2") -> dict:
    state = model_state(byte_level_backend())
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    tokens += ["<s>", "</s>", "<|im_end|>", "<tag>"]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * 400 + [3, 3, 3, 4], dtype=np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "tokenizer.ggml.bos_token_id": 400,
        "tokenizer.ggml.eos_token_id": np.uint32(401),
        "tokenizer.ggml.eom_token_id": 2**32 - 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}<|im_end|>",
    }


def spm_bytes(pieces, *, kind: int = 2, byte_fallback: bool = True, prefix: bool = True) -> bytes:
    """A SentencePiece model file: pieces of (text, score, type)."""

    def field(number: int, payload: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(payload)) + payload

    def varint(value: int) -> bytes:
        out = b""
        while value > 0x7F:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])

    data = b""
    for text, score, piece_kind in pieces:
        body = field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        data += field(1, body + b"\x18" + bytes([piece_kind]))
    trainer = b"\x18" + bytes([kind]) + varint(35 << 3) + bytes([byte_fallback])
    normalizer = b"\x18" + bytes([prefix]) + b"\x20\x00"
    return data + field(2, trainer) + field(3, normalizer)


def spm_pieces() -> list[tuple[str, float, int]]:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    words = ["▁t", "he", "▁the", "▁▁", "an", "▁an", "ou", "▁▁▁▁", "in", "▁y", "▁you", "aa", "aaa"]
    letters = sorted({c for word in words for c in word} | set("bcdfghjklmpqrsvwxz.,!é中"))
    pieces += [(word, -float(i), 1) for i, word in enumerate(words)]
    pieces += [(letter, -1000.0 - i, 1) for i, letter in enumerate(letters)]
    return [*pieces, ("<sep>", 0.0, 4)]


def spm_tokenizer(tmp_path: Path, **options) -> Tokenizer:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(spm_bytes(spm_pieces(), **options))
    return load_tokenizer(file)
