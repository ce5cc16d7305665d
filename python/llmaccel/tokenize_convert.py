"""Vocabulary files to `tokenizers` pipelines: merges, SentencePiece, rank files, GGUF.

Each builder returns `Parts`; tokenize.py wraps them. The conversions are exact where they are
offered: a rank file or SentencePiece BPE model merges the adjacent pair whose concatenation ranks
best, and whenever two neighbours have become (l, r), that is the one way to their concatenation, so
listing every split of every token as a merge in order of the token's rank gives `tokenizers` the
same choices in the same order. Invariant: files are untrusted. Lengths, ids and counts are checked
before use; what cannot be converted exactly raises UnsupportedError instead of coming out nearly
right. Called by tokenize.py.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .detokenize import char_of_byte
from .errors import LLMAccelError, LoadError, UnsupportedError
from .files import read_file
from .tokenize_patterns import (
    CLASS_RULES,
    GGUF_RULES,
    GPT2,
    RANK_CLASSES,
    RANK_COUNTS,
    RANK_NAMES,
    SplitRule,
)

METASPACE = "\u2581"
MAX_TOKEN_BYTES = 4096  # of byte-level vocabularies; characters of the others
# What listing the splits of a vocabulary may cost: the sum of its squared token lengths. That of
# a vocabulary of 128 thousand tokens is near 7 million.
MAX_SPLIT_COST = 1 << 28
MAX_ADDED_GAP = 1 << 16

# SentencePiece piece types; GGUF uses the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass
class Parts:
    """What a builder found.

    backend: the `tokenizers.Tokenizer`. special: named special tokens ("bos_token" -> "<s>").
    add_bos, add_eos: whether sequences get them; None leaves the backend's own post-processor in
    charge. prefix_space: a text that does not begin with an added token gets a leading space
    (SentencePiece's dummy prefix). split_special: special tokens written in a text are plain text
    by default. stop_ids: end-of-text, end-of-turn and end-of-message ids. templates: chat templates
    by name. extra_special: special tokens that a config lists without a name. segment_encoder:
    encodes text between special tokens in the backend's place, which then only knows the names.
    """

    backend: Any
    special: dict[str, str] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    prefix_space: bool = False
    split_special: bool = False
    stop_ids: list[int] = field(default_factory=list)
    templates: dict[str, str] = field(default_factory=dict)
    extra_special: list[str] = field(default_factory=list)
    segment_encoder: Callable[[str], list[int]] | None = None


@contextmanager
def guarded(where: str) -> Iterator[None]:
    """Turn what `tokenizers` raises into a LoadError that begins with `where`.

    It raises bare Exception, and PanicException (no Exception at all) for files it did not foresee.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, LLMAccelError):
        raise
    except BaseException as error:
        raise LoadError(f"{where}: {error}") from error


def tokenizer_class(config: Mapping[str, Any]) -> str:
    """The tokenizer class a config names, without the "Fast" of its Rust twin, or ""."""
    name = config.get("tokenizer_class") or ""
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def set_split(backend: Any, rule: SplitRule, add_prefix_space: bool = False) -> None:
    """Give a byte-level BPE backend its normalizer, pre-tokenizer and decoder.

    Raises UnsupportedError for a prefix space with other words than GPT-2's.
    """
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    if add_prefix_space:
        # ByteLevel prefixes a text before cutting it, which works with its own pattern only.
        if rule.patterns != (GPT2,):
            raise UnsupportedError("add_prefix_space=true for this tokenizer_class")
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    else:
        splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in rule.patterns]
        splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.decoder = decoders.ByteLevel()


def add_tokens(backend: Any, tokens: Iterable[tuple[int, Any]], where: str) -> None:
    """Register `AddedToken`s under given ids; gaps up to an id are filled with reserved names.

    Raises LoadError when an id is taken by another token, or when the gaps add up to too many.
    """
    from tokenizers import AddedToken

    batch, reserved = [], 0
    size = backend.get_vocab_size(with_added_tokens=True)
    for token_id, token in sorted(tokens, key=lambda pair: pair[0]):
        known = backend.token_to_id(token.content)
        reserved += max(token_id - size, 0) if known is None else 0
        if reserved > MAX_ADDED_GAP:
            raise LoadError(
                f"{where}: added token {token.content!r} has id {token_id}, vocabulary is {size}"
            )
        while known is None and size < token_id:
            batch.append(AddedToken(f"<|reserved_token_{size}|>", normalized=False, special=True))
            size += 1
        size += known is None
        batch.append(token)
        if known is not None and known != token_id:
            raise LoadError(
                f"{where}: added token {token.content!r} has id {known} and id {token_id}"
            )
        if known is None and size != token_id + 1:
            raise LoadError(
                f"{where}: added token {token.content!r} claims id {token_id}, which is taken"
            )
    with guarded(where):
        backend.add_tokens(batch)


def added_token_flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    """The settings that an entry of `added_tokens_decoder` gives."""
    names = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return {name: bool(entry[name]) for name in names if name in entry}


def bpe_backend(
    vocab: Iterable[tuple[str, int]], merges: Iterable[Any], where: str, **options: Any
) -> Any:
    """A `tokenizers.Tokenizer` of a BPE model; merges are pairs of tokens, or both in one string.

    Handed over as JSON, some entries at a time, because a vocabulary as Python objects leaves the
    heap in shreds (see gguf.StringArray). A token that occurs twice counts once: look at the
    size. Raises LoadError, which begins with `where`, for merges of what is no token.
    """
    from tokenizers import Tokenizer

    model = json.dumps({"type": "BPE", **options})[:-1]
    pairs = _joined(vocab, lambda part: json.dumps(dict(part), ensure_ascii=False))
    listed = _joined(merges, lambda part: json.dumps(part, ensure_ascii=False))
    with guarded(where):
        return Tokenizer.from_str(
            f'{{"version": "1.0", "added_tokens": [], '
            f'"model": {model}, "vocab": {{{pairs}}}, "merges": [{listed}]}}}}'
        )


def _joined(items: Iterable[Any], dumps: Callable[[list[Any]], str]) -> str:
    """The JSON of all items without the outer brackets."""
    left = iter(items)
    return ",".join(dumps(part)[1:-1] for part in iter(lambda: list(islice(left, 512)), []))


def split_merges(
    pieces: Sequence[str], vocab: Mapping[str, Any], where: str
) -> Iterator[tuple[str, str]]:
    """Every split of every piece into two pieces of `vocab`, in the order of `pieces`.

    Raises LoadError, which begins with `where`, for pieces so long that this would take minutes.
    """
    cost = sum(len(piece) ** 2 for piece in pieces)
    if cost > MAX_SPLIT_COST:
        raise LoadError(
            f"{where}: the squared lengths of the tokens add up to {cost}, beyond the limit of "
            f"{MAX_SPLIT_COST}"
        )
    for piece in pieces:
        for cut in range(1, len(piece)):
            left = piece[:cut]
            if left in vocab:
                right = piece[cut:]
                if right in vocab:
                    yield left, right


# --------------------------------------------------------------------------------------------------
# vocab.json + merges.txt


def from_vocab_merges(vocab_file: Path, merges_file: Path, config: Mapping[str, Any]) -> Parts:
    """A byte-level BPE from its two files; the tokenizer class says how text is cut."""
    from tokenizers import Tokenizer, models

    name = tokenizer_class(config)
    rule = CLASS_RULES.get(name or "GPT2Tokenizer")
    if rule is None:
        known = ", ".join(sorted(CLASS_RULES))
        raise UnsupportedError(
            f"{vocab_file.parent}: tokenizer_class {name!r} with vocab.json and merges.txt is not "
            f"known (known: {known}); a tokenizer.json would carry its rules"
        )
    with guarded(f"{vocab_file}, {merges_file.name}"):
        backend = Tokenizer(models.BPE.from_file(str(vocab_file), str(merges_file)))
    set_split(backend, rule, bool(config.get("add_prefix_space", False)))
    special = {}
    if name in ("", "GPT2Tokenizer") and backend.token_to_id("<|endoftext|>") is not None:
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return Parts(backend, special, add_bos=False, add_eos=False)


# --------------------------------------------------------------------------------------------------
# Rank files (tiktoken)

_RANK_LINE = re.compile(rb"^[A-Za-z0-9+/]+=* \d+\s*$")


def looks_like_ranks(head: bytes) -> bool:
    """Whether a file that begins with `head` is a list of base64 tokens and ranks."""
    return bool(_RANK_LINE.match(head.split(b"\n", 1)[0]))


def from_ranks(file: Path, config: Mapping[str, Any]) -> Parts:
    """A byte-level BPE from a tiktoken rank file; special tokens come from the config."""
    ranks = _read_ranks(file)
    rule = (
        RANK_CLASSES.get(tokenizer_class(config))
        or RANK_NAMES.get(file.name.removesuffix(".tiktoken"))
        or RANK_COUNTS.get(len(ranks))
    )
    if rule is None:
        raise UnsupportedError(
            f"{file}: a rank file does not say how it splits text, and neither its name nor its "
            f"{len(ranks)} ranks are known; a tokenizer.json would carry the rule"
        )
    chars = char_of_byte()
    table = {byte: chars[byte] for byte in range(256)}
    vocab = {token.decode("latin-1").translate(table): rank for token, rank in ranks.items()}
    merges = split_merges(sorted(vocab, key=vocab.__getitem__), vocab, str(file))
    backend = bpe_backend(vocab.items(), merges, str(file), ignore_merges=rule.ignore_merges)
    set_split(backend, rule)
    return Parts(backend, add_bos=rule.add_bos, add_eos=False, split_special=not config)


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_file(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            ranks_before = len(ranks)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise LoadError(f"{file}, line {number}: not a base64 token and its rank") from error
        if not token or len(token) > MAX_TOKEN_BYTES or len(ranks) == ranks_before:
            raise LoadError(f"{file}, line {number}: an empty, oversized or repeated token")
    if len(set(ranks.values())) != len(ranks) or (
        ranks and max(ranks.values()) >= len(ranks) + MAX_ADDED_GAP
    ):
        raise LoadError(f"{file}: ranks repeat or are far larger than their number")
    return ranks


# --------------------------------------------------------------------------------------------------
# SentencePiece models


@dataclass
class Pieces:
    """The fields of a SentencePiece model (or of a GGUF made from one) that decide its output."""

    text: list[str]
    score: list[float]
    kind: list[int]
    unk_id: int
    byte_fallback: bool = False
    add_dummy_prefix: bool = True
    special: dict[str, str] = field(default_factory=dict)
    # Why `tokenizers` cannot give the same ids; "" when it can.
    inexact: str = ""
    # GGUF: user-defined tokens stand as they occur in a text (before spaces are escaped) and merge
    # like others.
    raw_symbols: bool = False
    # AddedToken settings of single tokens, over what their type implies.
    flags: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)


def _fields(data: memoryview, where: str) -> Iterator[tuple[int, Any]]:
    """The (number, value) pairs of a protobuf message; value is int, or a memoryview of bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at, where)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at, where)
        else:
            if wire == 2:
                size, at = _varint(data, at, where)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise LoadError(f"{where}: not a SentencePiece model (protobuf wire type {wire})")
            if size > end - at:
                raise LoadError(f"{where}: truncated, a field of {size} bytes has {end - at} left")
            value, at = data[at : at + size], at + size
        if number == 0:
            raise LoadError(f"{where}: not a SentencePiece model (field number 0)")
        yield number, value


def _varint(data: memoryview, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise LoadError(f"{where}: truncated inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise LoadError(f"{where}: not a SentencePiece model (a number of more than 10 bytes)")


def _text(value: Any, where: str) -> str:
    try:
        return bytes(value).decode("utf-8")
    except (TypeError, UnicodeDecodeError) as error:
        raise LoadError(f"{where}: a piece is not UTF-8 text") from error


def _piece(data: Any, where: str) -> tuple[str, float, int]:
    if not isinstance(data, memoryview):
        raise LoadError(f"{where}: a piece is not a message")
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data, where):
        if number == 1:
            text = _text(value, where)
        elif number == 2:
            if not isinstance(value, memoryview) or len(value) != 4:
                raise LoadError(f"{where}: a score is not a float")
            score = struct.unpack("<f", value)[0]
        elif number == 3:
            kind = value if isinstance(value, int) else 0
    if not text or len(text) > MAX_TOKEN_BYTES or math.isnan(score) or not NORMAL <= kind <= BYTE:
        raise LoadError(f"{where}: piece {text[:40]!r} has no valid text, score or type")
    return text, score, kind


# Fields of TrainerSpec and NormalizerSpec that change what a model encodes to.
_TRAINER = {
    3: "model_type",
    24: "suffix",
    35: "byte_fallback",
    40: "unk",
    41: "bos",
    42: "eos",
    43: "pad",
}
_NORMALIZER = {2: "charsmap", 3: "add_dummy_prefix", 4: "remove_extra", 5: "escape"}
_BPE = 2


def read_sentencepiece(data: bytes, where: str) -> Pieces:
    """Parse a SentencePiece `ModelProto`. Raises LoadError when it is damaged or no such model."""
    pieces: list[tuple[str, float, int]] = []
    spec: dict[str, Any] = {"model_type": 1, "unk": 0, "bos": 1, "eos": 2, "pad": -1}
    spec.update(add_dummy_prefix=1, remove_extra=1, escape=1)
    for number, value in _fields(memoryview(data), where):
        if number == 1:
            pieces.append(_piece(value, where))
        elif number in (2, 3) and isinstance(value, memoryview):
            names = _TRAINER if number == 2 else _NORMALIZER
            for key, setting in _fields(value, where):
                if key in names:
                    if isinstance(setting, int) == (names[key] == "charsmap"):
                        raise LoadError(f"{where}: {names[key]} has the wrong type")
                    spec[names[key]] = setting
    if not pieces:
        raise LoadError(f"{where}: not a SentencePiece model (no pieces)")
    ids = {
        name: spec[name] - (1 << 64 if spec[name] >> 63 else 0)
        for name in ("unk", "bos", "eos", "pad")
    }
    if not 0 <= ids["unk"] < len(pieces):
        raise LoadError(f"{where}: the unknown piece has id {ids['unk']} of {len(pieces)}")
    text, score, kind = map(list, zip(*pieces, strict=True))
    found = Pieces(
        text,
        score,
        kind,
        ids["unk"],
        byte_fallback=bool(spec.get("byte_fallback")),
        add_dummy_prefix=bool(spec["add_dummy_prefix"]),
        special={f"{name}_token": text[i] for name, i in ids.items() if 0 <= i < len(text)},
    )
    found.inexact = _why_inexact(found, spec)
    return found


def _why_inexact(pieces: Pieces, spec: Mapping[str, Any]) -> str:
    """What in a model `tokenizers` would encode differently from sentencepiece, or ""."""
    if spec["model_type"] != _BPE:
        return "is not of the BPE type"
    if len(spec.get("charsmap", b"")) or spec["remove_extra"]:
        return "normalizes its text"
    if spec.get("suffix") or not spec["escape"]:
        return "has white space as a suffix or unescaped"
    if UNUSED in pieces.kind:
        return "has unused pieces"
    merged = [i for i, kind in enumerate(pieces.kind) if kind == NORMAL and len(pieces.text[i]) > 1]
    if len({pieces.score[i] for i in merged}) != len(merged):
        return "has pieces of equal score"
    letters = {
        text
        for text, kind in zip(pieces.text, pieces.kind, strict=True)
        if kind == NORMAL and len(text) == 1
    }
    if not letters.issuperset("".join(pieces.text[i] for i in merged)):
        return "has pieces with characters that are no pieces"
    return ""


def from_sentencepiece(file: Path, config: Mapping[str, Any], bare: bool) -> Parts:
    """A SentencePiece model; `bare` when no tokenizer_config.json stands beside it.

    Models that `tokenizers` cannot follow exactly are encoded by the sentencepiece package;
    UnsupportedError says so where it is not installed.
    """
    data = read_file(file)
    pieces = read_sentencepiece(data, str(file))
    encoder = _library_encoder(file, data, pieces.inexact) if pieces.inexact else None
    if encoder is None and isinstance(config.get("add_prefix_space"), bool):
        pieces.add_dummy_prefix = config["add_prefix_space"]
    if isinstance(config.get("added_tokens_decoder"), Mapping):
        entries = [v for v in config["added_tokens_decoder"].values() if isinstance(v, Mapping)]
        pieces.flags = {str(entry.get("content")): added_token_flags(entry) for entry in entries}
    # Up to 2023 every segment between special tokens was prefixed; `legacy: false` marks those that
    # are not.
    each = pieces.add_dummy_prefix and not bare and config.get("legacy", True) is not False
    bos = pieces.special.get("bos_token")
    return Parts(
        build_sentencepiece(pieces, prefix_each=each, where=str(file)),
        pieces.special,
        add_bos=bos is not None and pieces.kind[pieces.text.index(bos)] == CONTROL,
        add_eos=False,
        prefix_space=pieces.add_dummy_prefix and not each,
        split_special=bare,
        segment_encoder=encoder,
    )


def _library_encoder(file: Path, data: bytes, reason: str) -> Callable[[str], list[int]]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise UnsupportedError(
            f"{file}: this SentencePiece model {reason}, so it needs the sentencepiece package "
            "(pip install llmaccel[sentencepiece])"
        ) from None
    try:
        return SentencePieceProcessor(model_proto=data).encode
    except Exception as error:  # the package raises RuntimeError and others
        raise LoadError(f"{file}: {error}") from error


def build_sentencepiece(pieces: Pieces, *, prefix_each: bool, where: str) -> Any:
    """Assemble the backend: model, normalizer, decoder, control pieces as special tokens."""
    from tokenizers import AddedToken, decoders, normalizers

    if len(set(pieces.text)) != len(pieces.text):
        raise LoadError(f"{where}: a token occurs twice in the vocabulary")
    backend = bpe_backend(
        ((text, token_id) for token_id, text in enumerate(pieces.text)),
        () if pieces.inexact else _sentencepiece_merges(pieces, where),
        where,
        unk_token=pieces.text[pieces.unk_id],
        fuse_unk=True,
        byte_fallback=pieces.byte_fallback,
    )
    prefix = [normalizers.Prepend(METASPACE)] if prefix_each else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", METASPACE)])
    tail = [decoders.Strip(" ", 1, 0)] if pieces.add_dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(METASPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    added = []
    for token_id, (text, kind) in enumerate(zip(pieces.text, pieces.kind, strict=True)):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            special = kind != USER_DEFINED
            # Symbols are matched after spaces became metaspaces, unless a prefix would be put
            # before them as well.
            normalized = not (special or prefix_each or pieces.raw_symbols)
            flags = {"normalized": normalized, "special": special, **pieces.flags.get(text, {})}
            added.append((token_id, AddedToken(text, **flags)))
    add_tokens(backend, added, where)
    return backend


def _sentencepiece_merges(pieces: Pieces, where: str) -> Iterator[tuple[str, str]]:
    merging = (NORMAL, USER_DEFINED) if pieces.raw_symbols else (NORMAL,)
    ranked = [i for i, kind in enumerate(pieces.kind) if kind in merging]
    mergeable = {pieces.text[i] for i in ranked}
    ranked.sort(key=lambda i: (-pieces.score[i], i))
    return split_merges([pieces.text[i] for i in ranked], mergeable, where)


# --------------------------------------------------------------------------------------------------
# GGUF metadata

# End-of-turn tokens by name, for files written before `tokenizer.ggml.eot_token_id` existed.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>")


def from_gguf_metadata(metadata: Mapping[str, Any]) -> Parts:
    """The tokenizer inside a GGUF, from its metadata alone."""
    get = _Gguf(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        parts = _gguf_bpe(get)
    elif kind == "llama":
        parts = _gguf_spm(get)
    elif kind is None:
        raise LoadError("GGUF: no tokenizer.ggml.model in the metadata")
    else:
        raise UnsupportedError(f"GGUF: tokenizer.ggml.model {kind!r} (known: gpt2, llama)")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = get.token_id(f"{key}_token_id")
        if token_id is not None:
            parts.special[f"{name}_token"] = get.token(token_id)
    for name in ("add_bos", "add_eos"):
        flag = metadata.get(f"tokenizer.ggml.{name}_token")
        if flag is not None:
            setattr(parts, name, bool(flag))
    stops = [get.token_id(f"{key}_token_id") for key in ("eos", "eot", "eom")]
    if stops[1] is None:
        named = (parts.backend.token_to_id(name) for name in _TURN_ENDS)
        stops[1] = next(
            (i for i in named if i is not None and get.kinds[i] in (CONTROL, USER_DEFINED)), None
        )
    parts.stop_ids = list(dict.fromkeys(i for i in stops if i is not None))
    parts.templates = _gguf_templates(metadata)
    return parts


def _gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    templates = {}
    for key, value in metadata.items():
        if key == prefix or key.startswith(prefix + "."):
            if not isinstance(value, str):
                raise LoadError(f"GGUF: {key} is not a string")
            templates[key[len(prefix) + 1 :] or "default"] = value
    return templates


class _Gguf:
    """Checked access to the `tokenizer.ggml.*` keys."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.names = self.array("tokens")
        if not self.names:
            raise LoadError("GGUF: tokenizer.ggml.tokens is missing or empty")
        for name in self.names:
            if not isinstance(name, str):
                raise LoadError("GGUF: tokenizer.ggml.tokens holds something that is no string")
            if len(name) > MAX_TOKEN_BYTES:
                raise LoadError(
                    f"GGUF: tokenizer.ggml.tokens holds {name[:40]!r}... of {len(name)} "
                    f"characters; the limit is {MAX_TOKEN_BYTES}"
                )
        self.kinds = self.array("token_type", len(self.names)) or [NORMAL] * len(self.names)

    def tokens(self) -> Iterator[str]:
        """The tokens; one without a name gets one."""
        return (name or f"[EMPTY_{index}]" for index, name in enumerate(self.names))

    def token(self, index: int) -> str:
        """One of them."""
        return self.names[index] or f"[EMPTY_{index}]"

    def array(self, key: str, length: int | None = None) -> Sequence[Any]:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return []
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise LoadError(f"GGUF: tokenizer.ggml.{key} is not an array")
        if length is not None and len(value) != length:
            raise LoadError(
                f"GGUF: tokenizer.ggml.{key} has {len(value)} entries for {length} tokens"
            )
        return value

    def token_id(self, key: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        try:
            token_id = value.__index__()
        except AttributeError:
            raise LoadError(f"GGUF: tokenizer.ggml.{key} is not an integer") from None
        # Converters write 2**32 - 1 for "none"; any id outside the vocabulary names no token.
        return token_id if 0 <= token_id < len(self.names) else None


def _gguf_bpe(get: _Gguf) -> Parts:
    from tokenizers import AddedToken

    pre = get.metadata.get("tokenizer.ggml.pre", "default")
    rule = GGUF_RULES.get(pre) if isinstance(pre, str) else None
    if rule is None:
        known = ", ".join(sorted(GGUF_RULES))
        raise UnsupportedError(f"GGUF: tokenizer.ggml.pre {pre!r} is not known (known: {known})")
    merges = get.array("merges")
    for line in merges:
        _merge_of(line)
    try:
        # Nearly every file: two tokens with one space between them.
        backend = bpe_backend(
            zip(get.tokens(), range(len(get.names)), strict=True), merges, "GGUF",
            ignore_merges=rule.ignore_merges,
        )  # fmt: skip
    except LoadError:
        # `tokenizers` refuses merges that make no token; they cannot occur in an output either.
        known = set(get.tokens())
        pairs = (_merge_of(line) for line in merges)
        backend = bpe_backend(
            zip(get.tokens(), range(len(get.names)), strict=True),
            (m for m in pairs if m[0] + m[1] in known and m[0] in known and m[1] in known),
            "GGUF", ignore_merges=rule.ignore_merges,
        )  # fmt: skip
    if backend.get_vocab_size() != len(get.names):
        raise LoadError("GGUF: a token occurs twice in tokenizer.ggml.tokens")
    set_split(backend, rule)
    added = []
    for token_id, kind in enumerate(get.kinds):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            token = AddedToken(get.token(token_id), normalized=False, special=kind != USER_DEFINED)
            added.append((token_id, token))
    add_tokens(backend, added, "GGUF")
    return Parts(backend, add_bos=rule.add_bos, add_eos=False)


def _merge_of(line: Any) -> tuple[str, str]:
    if not isinstance(line, str) or (cut := line.find(" ", 1)) < 0:
        raise LoadError(f"GGUF: tokenizer.ggml.merges holds {line!r}, not two tokens")
    return line[:cut], line[cut + 1 :]


def _gguf_spm(get: _Gguf) -> Parts:
    scores = get.array("scores", len(get.names))
    if not scores or not all(isinstance(score, (int, float)) for score in scores):
        raise LoadError(
            "GGUF: tokenizer.ggml.scores is missing or holds something that is no number"
        )
    prefix = bool(get.metadata.get("tokenizer.ggml.add_space_prefix", True))
    unk_id = get.token_id("unknown_token_id")
    known = range(NORMAL, BYTE + 1)
    tokens = list(get.tokens())
    pieces = Pieces(
        tokens,
        [float(score) for score in scores],
        [kind if kind in known and kind != UNUSED else NORMAL for kind in get.kinds],
        0 if unk_id is None else unk_id,
        byte_fallback="<0x00>" in tokens,
        add_dummy_prefix=prefix,
        raw_symbols=True,
    )
    if get.metadata.get("general.architecture") == "phi3":
        # Phi-3's chat tokens swallow white space, which GGUF has no field for.
        plain = ("<unk>", "<s>", "<|endoftext|>")
        pieces.flags = {text: {"rstrip": True} for text in tokens if text not in plain}
    return Parts(
        build_sentencepiece(pieces, prefix_each=prefix, where="GGUF"), add_bos=True, add_eos=False
    )
