"""Ids to text, for a whole sequence at once or as the ids arrive.

Owns the translation of a tokenizer's decoder into bytes per token: nearly every decoder of a
language model (byte-level, SentencePiece with byte fallback, Metaspace) is "concatenate the tokens'
bytes, then read them as UTF-8", and in that form a stream and a one-shot decode are the same
function. Invariant: the chunks of a StreamDecoder joined are `decode` of all its ids, every chunk
is whole UTF-8, and U+FFFD stands only where the bytes themselves are invalid. Called by tokenize.py
(`Tokenizer.decode`) and by the engine's output path (StreamDecoder).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING, Any

from .errors import RequestError

if TYPE_CHECKING:
    from .tokenize import Tokenizer


@lru_cache(maxsize=1)
def byte_of_char() -> dict[str, int]:
    """The byte behind each printable stand-in of byte-level BPE vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


@lru_cache(maxsize=1)
def char_of_byte() -> list[str]:
    """The printable stand-in of each byte, by byte."""
    chars = {byte: char for char, byte in byte_of_char().items()}
    return [chars[byte] for byte in range(256)]


def byte_token_value(token: str) -> int | None:
    """The byte of a SentencePiece byte token "<0xE4>", None for any other token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


class ByteRules:
    """How a token string becomes bytes, and what the start of a text loses.

    replace: substrings to exchange; byte_level: characters stand for bytes; byte_fallback: "<0xNN>"
    tokens are bytes; strip: up to this many leading spaces go; drop_first: a metaspace character
    that the first token loses ("" for none).
    """

    def __init__(self) -> None:
        self.replace: list[tuple[str, str]] = []
        self.byte_level = False
        self.byte_fallback = False
        self.strip = 0
        self.drop_first = ""

    def token_bytes(self, token: str) -> bytes:
        if self.byte_level:
            table = byte_of_char()
            try:
                return bytes([table[char] for char in token])
            except KeyError:
                return token.encode("utf-8", "replace")
        for old, new in self.replace:
            token = token.replace(old, new)
        if self.byte_fallback:
            value = byte_token_value(token)
            if value is not None:
                return bytes([value])
        return token.encode("utf-8", "replace")


def read_decoder(backend: Any) -> ByteRules | None:
    """Translate the decoder of a backend; None for one that is more than bytes per token."""
    if backend.decoder is None:
        return None
    state = json.loads(backend.decoder.__getstate__())
    steps = state["decoders"] if state.get("type") == "Sequence" else [state]
    rules = ByteRules()
    fused = False
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel" and len(steps) == 1:
            rules.byte_level = True
        elif (
            kind == "Replace"
            and not fused
            and not rules.byte_fallback
            and "String" in step["pattern"]
        ):
            rules.replace.append((step["pattern"]["String"], step["content"]))
        elif kind == "ByteFallback" and not fused:
            rules.byte_fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and step["content"] == " " and step["stop"] == 0:
            rules.strip += step["start"]
        elif kind == "Metaspace" and len(steps) == 1:
            rules.replace.append((step["replacement"], " "))
            rules.drop_first = "" if step.get("prepend_scheme") == "never" else step["replacement"]
        else:
            return None
    return rules


class StreamDecoder:
    """The incremental detokenizer of one sequence.

    `push(ids)` returns the text that became certain, always whole UTF-8 and possibly ""; `finish()`
    returns the rest, where an incomplete character at the end becomes U+FFFD. `prompt_ids` are the
    ids before the sequence: after a prompt with text in it, the first word keeps its leading space,
    as it would in a decode of prompt and sequence together. `skip_special_tokens` leaves special
    tokens out. `spaces_between_special_tokens=False` joins neighbouring special tokens where the
    tokenizer's own decoder puts spaces between tokens; most decoders put none. Raises RequestError
    for a negative id or one that is no integer; ids beyond the vocabulary give no text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        prompt_ids: Iterable[int] = (),
    ) -> None:
        special = tokenizer.special_id_set
        started = any(i not in special and tokenizer.token_bytes(i) for i in prompt_ids)
        skipped = special if skip_special_tokens else frozenset()
        rules = tokenizer.byte_rules
        if rules is not None:
            self._decoder: Any = _ByteStream(tokenizer, rules, skipped, started)
        else:
            self._decoder = _LibraryStream(tokenizer, skipped, spaces_between_special_tokens)

    def push(self, ids: Iterable[int]) -> str:
        """Add ids; return the text that is certain now and was not returned before."""
        return self._decoder.push(ids)

    def finish(self) -> str:
        """End the sequence; return what was held back."""
        return self._decoder.finish()


class _ByteStream:
    """A decoder that is bytes per token: the incremental UTF-8 reader holds what is incomplete."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        rules: ByteRules,
        skipped: frozenset[int] | set[int],
        started: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._strip = 0 if started else rules.strip
        self._drop_first = "" if started else rules.drop_first
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        pieces = []
        for token_id in ids:
            if token_id in self._skipped:
                continue
            piece = self._tokenizer.token_bytes(token_id)
            if self._drop_first and self._tokenizer.knows(token_id):
                token = self._tokenizer.convert_ids_to_tokens(token_id).replace(
                    self._drop_first, ""
                )
                piece = token.encode("utf-8", "replace")
                self._drop_first = ""
            pieces.append(piece)
        return self._strip_start(self._utf8.decode(b"".join(pieces)))

    def finish(self) -> str:
        return self._strip_start(self._utf8.decode(b"", final=True))

    def _strip_start(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
                break
            text = text[1:]
            self._strip -= 1
        return text


class _LibraryStream:
    """Any other decoder (WordPiece, none): `tokenizers` steps it; a full decode ends it."""

    def __init__(
        self, tokenizer: Tokenizer, skipped: frozenset[int] | set[int], spaces: bool
    ) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = tokenizer.backend
        self._known = tokenizer.knows
        self._special = tokenizer.special_id_set
        self._skipped = skipped
        self._spaces = spaces
        self._stream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._text = ""
        self._last_special = False

    def push(self, ids: Iterable[int]) -> str:
        pieces = []
        for token_id in ids:
            if not self._known(token_id) or token_id in self._skipped:
                continue
            piece = self._stream.step(self._backend, token_id) or ""
            special = token_id in self._special
            if special and self._last_special and not self._spaces:
                piece = piece.lstrip(" ")
            self._last_special = special
            self._ids.append(token_id)
            pieces.append(piece)
        text = "".join(pieces)
        self._text += text
        return text

    def finish(self) -> str:
        whole = self._backend.decode(self._ids, skip_special_tokens=False)
        return whole[len(self._text) :] if self._spaces and whole.startswith(self._text) else ""


def is_one_id(value: Any) -> bool:
    """Whether a value is a single id and no sequence of ids (arrays have `__index__` as well)."""
    return hasattr(value, "__index__") and getattr(value, "ndim", 0) == 0


def check_id(token_id: Any) -> int:
    """Accept any integer type; RequestError names what is no token id."""
    try:
        value = index(token_id)
    except TypeError:
        raise RequestError(
            f"a token id must be an integer, got {type(token_id).__name__}"
        ) from None
    if value < 0:
        raise RequestError(f"a token id must not be negative, got {value}")
    return value
