"""Text to ids and back: one Tokenizer over every vocabulary format.

Owns `load_tokenizer` (which files of a folder make a tokenizer) and `Tokenizer`, which carries the
names that transformers gave these methods and behaves as transformers does: added tokens match
inside a text, special ones may be left out of a decode, a rendered chat is encoded without adding
BOS again. Invariant: immutable after construction and safe to use from several threads. Encoding is
done by the `tokenizers` package; decoding by detokenize.py, so that streamed and one-shot text are
the same. What a call pads and cuts by may be changed (encodings.py). Called by loading.py (which
tokenizer), llm.py (prompts, chats, bad words) and request.py (StreamDecoder).
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import chat, hub
from . import tokenize_convert as convert
from .detokenize import StreamDecoder, check_id, is_one_id, read_decoder
from .encodings import Encoder, Encoding
from .errors import ConfigError, LoadError, RequestError, UnsupportedError, shown
from .files import is_there, read_json_object

__all__ = ["Encoding", "StreamDecoder", "Tokenizer", "load_tokenizer"]

_MAX_ID_DIGITS = 10  # Python refuses to convert thousands of them
_SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Tokenizer(Encoder):
    """A vocabulary, its special tokens and chat templates; see `load_tokenizer`, `from_gguf`."""

    def __init__(self, parts: convert.Parts) -> None:
        backend = parts.backend
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special = dict(parts.special)
        self._extra_special = tuple(parts.extra_special)
        self._templates = dict(parts.templates)
        self._split_special = parts.split_special
        self._prefix_space = parts.prefix_space
        self._affixes = self._set_post_processor(parts.add_bos, parts.add_eos)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._added_text = tuple(token.content for token in added.values())
        self._segment_encoder = parts.segment_encoder
        longest_first = sorted(
            (t.content for t in added.values() if t.special), key=len, reverse=True
        )
        self._special_pattern = (
            re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        )
        self._rules = read_decoder(backend)
        self._bytes: dict[int, bytes] = {}
        self._plain: Any = None  # a copy of the backend that takes special tokens as plain text
        self._plain_lock = threading.Lock()
        eos = self.eos_token_id
        self._stop_ids = tuple(parts.stop_ids or ([] if eos is None else [eos]))

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], *, chat_template: str | Path | None = None
    ) -> Tokenizer:
        """Build from GGUF metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`).

        Arrays may be lists or NumPy arrays.

        Raises LoadError for missing or contradicting keys, UnsupportedError (naming it) for an
        unknown `tokenizer.ggml.model` or `tokenizer.ggml.pre`.
        """
        parts = convert.from_gguf_metadata(metadata)
        _override_template(parts, chat_template)
        return cls(parts)

    def _set_post_processor(
        self, add_bos: bool | None, add_eos: bool | None
    ) -> tuple[list[int], list[int]]:
        """Make the backend add BOS/EOS as told; return the ids that go before and after a text."""
        if add_bos is None and add_eos is None:
            return [], []
        from tokenizers import processors

        before = [self.bos_token] if add_bos and self.bos_token is not None else []
        after = [self.eos_token] if add_eos and self.eos_token is not None else []
        ids = {token: self._backend.token_to_id(token) for token in (*before, *after)}
        single = [*before, "$A", *after]
        self._backend.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, *before, "$B:1", *after], special_tokens=list(ids.items())
        )
        return [ids[token] for token in before], [ids[token] for token in after]

    # -- encoding ----------------------------------------------------------------------------------

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        *,
        split_special_tokens: bool | None = None,
        **how: Any,
    ) -> Any:
        """Token ids of a text.

        `add_special_tokens` adds BOS/EOS where the tokenizer does so. `split_special_tokens=True`
        treats special tokens written in the text as plain text (default: what the tokenizer's
        config says). Raises RequestError when `text` is no string or holds a lone surrogate. how:
        truncation, max_length, padding and return_tensors ([1, T]), as in a call.
        """
        if how:
            split = {"split_special_tokens": split_special_tokens}
            return self(text, None, add_special_tokens, **split, **how).input_ids
        if not isinstance(text, str):
            raise RequestError(f"text to encode must be a string, got {type(text).__name__}")
        split = self._split_special if split_special_tokens is None else split_special_tokens
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                "text to encode is not valid Unicode (it holds a lone surrogate)"
            ) from error
        if self._segment_encoder is not None:
            return self._encode_segments(text, add_special_tokens, split)
        backend = self._plain_backend() if split else self._backend
        with convert.guarded("this tokenizer cannot encode the text"):
            text = self._prefixed(text, split)
            return backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_pair(
        self,
        text: str,
        pair: str,
        add_special_tokens: bool = True,
        *,
        split_special_tokens: bool | None = None,
    ) -> list[int]:
        """Token ids of two texts that belong together, with the special tokens that the tokenizer
        puts around a pair. Arguments and RequestError as encode's; UnsupportedError where it knows
        no pairs."""
        for one in (text, pair):
            self.encode(one)  # raises what is wrong with it
        if self._segment_encoder is not None:
            raise UnsupportedError("this tokenizer encodes no pairs of texts")
        split = self._split_special if split_special_tokens is None else split_special_tokens
        backend = self._plain_backend() if split else self._backend
        first, second = self._prefixed(text, split), self._prefixed(pair, split)
        with convert.guarded("this tokenizer cannot encode the pair"):
            return backend.encode(first, second, add_special_tokens=add_special_tokens).ids

    def _prefixed(self, text: str, split: bool) -> str:
        """With the space before it that this tokenizer adds."""
        spaced = self._prefix_space and text and (split or not text.startswith(self._added_text))
        return " " + text if spaced else text

    def _encode_segments(self, text: str, add_special_tokens: bool, split: bool) -> list[int]:
        """Encode by the segment encoder, between the special tokens that the text writes out."""
        assert self._segment_encoder is not None
        ids = [] if not add_special_tokens else list(self._affixes[0])
        parts = [text] if split or not self._special_pattern else self._special_pattern.split(text)
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._backend.token_to_id(part))
            elif part:
                ids += self._segment_encoder(part)
        return ids + (list(self._affixes[1]) if add_special_tokens else [])

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The token strings of a text."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens))

    def _plain_backend(self) -> Any:
        with self._plain_lock:
            if self._plain is None:
                self._plain = copy.deepcopy(self._backend)
                self._plain.encode_special_tokens = True
            return self._plain

    # -- decoding ----------------------------------------------------------------------------------

    def decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of a list of ids; ids beyond the vocabulary (a padded head has them) give none.

        `clean_up_tokenization_spaces` removes the space before punctuation and English
        contractions. Raises RequestError for a negative id or one that is no integer.
        """
        ids = [token_ids] if is_one_id(token_ids) else token_ids
        checked = [check_id(i) for i in ids]
        if self._rules is None:
            known = [i for i in checked if self.knows(i)]
            text = self._backend.decode(known, skip_special_tokens=skip_special_tokens)
        else:
            stream = StreamDecoder(self, skip_special_tokens=skip_special_tokens)
            text = stream.push(checked) + stream.finish()
        return _clean_up(text) if clean_up_tokenization_spaces else text

    def batch_decode(
        self,
        sequences: Iterable[Iterable[int]],
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """`decode` of each sequence."""
        return [
            self.decode(
                ids, skip_special_tokens, clean_up_tokenization_spaces=clean_up_tokenization_spaces
            )
            for ids in sequences
        ]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds inside a text; b"" for an id beyond the vocabulary."""
        found = self._bytes.get(token_id)
        if found is None:
            token = self._token(check_id(token_id))
            if token is None:
                return b""
            if self._rules is None:
                found = token.encode("utf-8", "replace")
            else:
                found = self._rules.token_bytes(token)
            self._bytes[int(token_id)] = found
        return found

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, U+FFFD for part of a character (`decoded_token` of logprobs)."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    # -- vocabulary --------------------------------------------------------------------------------

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """Token strings as the vocabulary spells them; None for an id beyond it."""
        if is_one_id(ids):
            return self._token(check_id(ids))
        kept = (
            i for i in map(check_id, ids) if not (skip_special_tokens and i in self._special_ids)
        )
        return [self._token(i) for i in kept]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int | None] | None:
        """Ids of token strings; the unknown token's id (or None) for a string that is no token."""
        if isinstance(tokens, str):
            token_id = self._backend.token_to_id(tokens)
            return self.unk_token_id if token_id is None else token_id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text of token strings; those that are none are left out."""
        ids = [self._backend.token_to_id(token) for token in tokens]
        return self.decode([i for i in ids if i is not None])

    @property
    def vocab(self) -> dict[str, int]:
        """get_vocab()."""
        return self.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Every token string with its id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        """The added tokens (special or not) with their ids."""
        return {token.content: i for i, token in self._backend.get_added_tokens_decoder().items()}

    @property
    def vocab_size(self) -> int:
        """Number of tokens without the added ones that lie outside the base vocabulary."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def knows(self, token_id: int) -> bool:
        """Whether an id names a token."""
        return self._token(token_id) is not None

    def _token(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None

    @property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer` underneath; not to be changed."""
        return self._backend

    @property
    def byte_rules(self) -> Any:
        """The decoder as bytes per token, None where it is something else (see detokenize.py)."""
        return self._rules

    # -- special tokens ----------------------------------------------------------------------------

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens that exist ("bos_token" -> "<s>", ...)."""
        return dict(self._special)

    @property
    def special_id_set(self) -> frozenset[int]:
        """The ids that `skip_special_tokens` leaves out: every token marked as special."""
        return self._special_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens that have a name or that the config lists."""
        return list(dict.fromkeys([*self._special.values(), *self._extra_special]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self._backend.token_to_id(token) for token in self.all_special_tokens]

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end a generation: EOS; of a GGUF also end of turn and end of message."""
        return list(self._stop_ids)

    def _named_id(self, name: str) -> int | None:
        token = self._special.get(name)
        return None if token is None else self._backend.token_to_id(token)

    def _token_named(name: str, title: str) -> tuple[property, property]:
        """The properties of a special token and of its id, both of which may be set: to a token of
        the vocabulary, or to None."""

        def set_token(self: Tokenizer, token: str | None) -> None:
            if token is not None and self._backend.token_to_id(token) is None:
                raise RequestError(f"{name}: {shown(token)} is no token of this vocabulary")
            rest = {key: value for key, value in self._special.items() if key != name}
            self._special = rest if token is None else {**rest, name: token}

        def set_id(self: Tokenizer, token_id: int | None) -> None:
            token = None if token_id is None else self._token(check_id(token_id))
            if token_id is not None and token is None:
                raise RequestError(f"{name}_id: {token_id} is no token of this vocabulary")
            set_token(self, token)

        return (
            property(lambda self: self._special.get(name), set_token, doc=f"{title} or None."),
            property(lambda self: self._named_id(name), set_id, doc=f"Id of {name} or None."),
        )

    bos_token, bos_token_id = _token_named("bos_token", "Begin-of-text token")
    eos_token, eos_token_id = _token_named("eos_token", "End-of-text token")
    pad_token, pad_token_id = _token_named("pad_token", "Padding token")
    unk_token, unk_token_id = _token_named("unk_token", "Unknown token")
    sep_token, sep_token_id = _token_named("sep_token", "Separating token")
    cls_token, cls_token_id = _token_named("cls_token", "Token before a text to classify")
    mask_token, mask_token_id = _token_named("mask_token", "Masking token")
    del _token_named

    def __deepcopy__(self, memo: Any) -> Tokenizer:
        """A copy with settings of its own over the same vocabulary."""
        return copy.copy(self)

    # -- chat --------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The chat template, the templates by name where there are several, or None."""
        if set(self._templates) == {"default"}:
            return self._templates["default"]
        return dict(self._templates) or None

    @chat_template.setter
    def chat_template(self, value: str | Path | None) -> None:
        self._templates = {} if value is None else {"default": chat.resolve_chat_template(value)}

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_dict: bool = False,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render messages ({"role", "content", ...} dicts) by the chat template and encode them.

        Returns ids; text when `tokenize=False`; an `Encoding` when `return_dict=True`. padding,
        truncation, max_length, return_tensors: as in a call. Further keyword arguments are
        variables of the template. A list of conversations gives a list of results. Raises
        RequestError, naming chat_template or the message, for whatever cannot be rendered.
        """
        template = chat.select_chat_template(self._templates, chat_template, tools is not None)
        variables = {**self._special, **kwargs, "tools": tools, "documents": documents}
        batched = isinstance(conversation, (list, tuple)) and any(
            isinstance(entry, (list, tuple)) for entry in conversation
        )
        texts = [
            chat.render_chat(
                template,
                messages,
                variables,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for messages in (conversation if batched else [conversation])
        ]
        text = texts if batched else texts[0]
        if not tokenize:
            return text
        # The template wrote its special tokens, BOS included.
        encoding = self(
            text,
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            split_special_tokens=False,
        )
        return encoding if return_dict else encoding.input_ids

    def prepare_chat(
        self, messages: Any, chat_template: str | None, tools: Any, content_format: str = "auto"
    ) -> Any:
        """OpenAI's messages as the chat template takes them, or as content_format says; see
        chat.join_text_parts. RequestError for tools and tool calls that the template would leave
        out."""
        template = chat.select_chat_template(self._templates, chat_template, tools is not None)
        if isinstance(tools, (list, tuple)) and tools and not chat.takes_tools(template):
            raise RequestError(
                "tools: the chat_template never reads them; pass chat_template= one that does, or "
                "write them into a message"
            )
        chat.check_tool_calls(messages, template)
        as_list = content_format == "openai"
        if content_format == "auto":
            as_list = chat.takes_parts(template)
        return chat.join_text_parts(messages, as_list, always=content_format == "openai")


def _clean_up(text: str) -> str:
    for old in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(old, old.strip())
    return text


# --------------------------------------------------------------------------------------------------
# Loading


def load_tokenizer(
    path: str | Path, *, chat_template: str | Path | None = None, revision: str | None = None
) -> Tokenizer:
    """Load a tokenizer from a folder, a single file, or a model name of the Hugging Face hub.

    A folder is searched for tokenizer.json, a SentencePiece or rank file (tokenizer.model, *.model,
    *.tiktoken), vocab.json with merges.txt, or one GGUF, in this order; tokenizer_config.json,
    special_tokens_map.json and added_tokens.json give special tokens and the chat template. A
    single file stands for itself: nothing beside it is read. `chat_template` (Jinja source or a
    file) replaces the templates found; `revision` applies to hub names, which may choose a GGUF
    file as "owner/name:file.gguf". Raises LoadError (files
    missing, damaged, contradicting) or UnsupportedError (a kind that cannot be converted exactly),
    naming the file.
    """
    if not isinstance(path, (str, Path)) or not str(path):
        raise ConfigError(f"path: expected a path or a model name, got {shown(path)}")
    found = Path(path)
    if not is_there(found):
        found = hub.fetch_tokenizer(str(path), revision)
    if found.is_file():
        parts, config = _from_file(found, {}, bare=True), {}
    else:
        parts, config = _from_folder(found)
    _override_template(parts, chat_template)
    tokenizer = Tokenizer(parts)
    tokenizer.configure(str(path), config)
    return tokenizer


def from_transformers(tokenizer: Any, chat_template: str | Path | None = None) -> Tokenizer:
    """A copy of a fast tokenizer of transformers: its pipeline, special tokens and chat template.

    ConfigError where it is a slow one, which has no pipeline.
    """
    from tokenizers import Tokenizer as Backend

    pipeline = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(pipeline, "to_str"):
        raise ConfigError(f"tokenizer: {type(tokenizer).__name__} is no fast tokenizer")
    with convert.guarded("tokenizer"):
        parts = convert.Parts(Backend.from_str(pipeline.to_str()))
    named = getattr(tokenizer, "special_tokens_map", None) or {}
    special = {name: value for name, value in named.items() if name in _SPECIAL_NAMES}
    extra = [str(one) for name, many in named.items() if isinstance(many, list) for one in many]
    config = {**special, "additional_special_tokens": extra}
    _apply_config(parts, config, Path("<tokenizer>"))
    template = getattr(tokenizer, "chat_template", None)
    parts.templates = {"default": template} if isinstance(template, str) else dict(template or {})
    _override_template(parts, chat_template)
    return Tokenizer(parts)


def _override_template(parts: convert.Parts, chat_template: str | Path | None) -> None:
    if chat_template is not None:
        parts.templates = {"default": chat.resolve_chat_template(chat_template)}


def _from_folder(folder: Path) -> tuple[convert.Parts, Mapping[str, Any]]:
    """What its files make, and its tokenizer_config.json."""
    config, configured = _read_configs(folder)
    parts = _from_file(_find_vocabulary(folder), config, bare=not configured)
    _apply_config(parts, config, folder)
    parts.templates = chat.load_chat_template(folder, config) or parts.templates
    return parts, config


def _find_vocabulary(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            return folder / name
    for pattern in ("tokenizer.model.*", "*.model", "*.tiktoken"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return folder / "vocab.json"
    found = sorted(folder.glob("*.gguf"))
    if found:
        return found[0]
    raise LoadError(
        f"{folder}: no tokenizer files (tokenizer.json, tokenizer.model, *.tiktoken, vocab.json "
        "with merges.txt, or a GGUF)"
    )


def _from_file(file: Path, config: Mapping[str, Any], bare: bool) -> convert.Parts:
    if file.name == "vocab.json":
        return convert.from_vocab_merges(file, file.with_name("merges.txt"), config)
    if file.suffix == ".json":
        return _from_tokenizer_json(file)
    try:
        with file.open("rb") as stream:
            head = stream.read(4 * convert.MAX_TOKEN_BYTES)
    except OSError as error:
        raise LoadError(f"{file}: {error}") from error
    if head.startswith(b"GGUF"):
        from .models.gguf import open_gguf

        return convert.from_gguf_metadata(open_gguf(file).metadata)
    if convert.looks_like_ranks(head):
        return convert.from_ranks(file, config)
    return convert.from_sentencepiece(file, config, bare)


def _from_tokenizer_json(file: Path) -> convert.Parts:
    from tokenizers import Tokenizer as Backend

    model = read_json_object(file).get("model")
    if not isinstance(model, dict):
        raise LoadError(f"{file}: no model")
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if isinstance(prefix, str) and prefix and isinstance(merges, list):
        # Cutting a prefix off a token without it aborts the process inside the package.
        rights = [m.partition(" ")[2] if isinstance(m, str) else m[-1] if m else "" for m in merges]
        if not all(isinstance(right, str) and right.startswith(prefix) for right in rights):
            raise LoadError(f"{file}: a merge lacks the continuing_subword_prefix {prefix!r}")
    with convert.guarded(str(file)):
        return convert.Parts(Backend.from_file(str(file)))


def _read_configs(folder: Path) -> tuple[dict[str, Any], bool]:
    """tokenizer_config.json, and the older special_tokens_map.json and added_tokens.json."""
    config: dict[str, Any] = {}
    read = 0
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config.update(read_json_object(folder / name))
            read += 1
    added = folder / "added_tokens.json"
    if added.is_file() and "added_tokens_decoder" not in config:
        config["added_tokens_decoder"] = {
            str(i): {"content": token} for token, i in read_json_object(added).items()
        }
    return config, read > 0


def _apply_config(parts: convert.Parts, config: Mapping[str, Any], folder: Path) -> None:
    """Put what tokenizer_config.json says onto what the vocabulary gave."""
    where = str(folder / "tokenizer_config.json")
    for name in _SPECIAL_NAMES:
        if name in config:
            token = _token_text(config[name], f"{where}: {name}")
            if token is None:
                parts.special.pop(name, None)
            else:
                parts.special[name] = token
    _register_added(parts, config.get("added_tokens_decoder"), where)
    extra: list[Any] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(name) or []
        if not isinstance(value, (Mapping, list)):
            raise LoadError(f"{where}: {name} is not a list")
        extra += value.values() if isinstance(value, Mapping) else value
    texts = [_token_text(value, f"{where}: special tokens") for value in extra]
    parts.extra_special = [text for text in texts if text]
    _register_special(parts.backend, [*parts.special.values(), *parts.extra_special])
    for name in ("add_bos", "add_eos"):
        flag = config.get(f"{name}_token")
        if flag is not None:
            setattr(parts, name, bool(flag))
    if config.get("split_special_tokens") is not None:
        parts.split_special = bool(config["split_special_tokens"])


def _token_text(value: Any, where: str) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value or None
    raise LoadError(f"{where} is not a token")


def _register_added(parts: convert.Parts, table: Any, where: str) -> None:
    if not table:
        return
    if not isinstance(table, Mapping):
        raise LoadError(f"{where}: added_tokens_decoder is not an object")
    from tokenizers import AddedToken

    present = {token.content for token in parts.backend.get_added_tokens_decoder().values()}
    named = set(parts.special.values())
    added = []
    for key, value in table.items():
        text = _token_text(value, f"{where}: added_tokens_decoder[{key!s:.80}]")
        if text is None or not str(key).isdecimal() or len(str(key)) > _MAX_ID_DIGITS:
            raise LoadError(f"{where}: added_tokens_decoder[{key!r:.80}] is not an id with a token")
        if text in present:
            continue
        flags = convert.added_token_flags(value) if isinstance(value, Mapping) else {}
        if text in named:
            flags["special"] = True
        added.append((int(key), AddedToken(text, **{"normalized": False, **flags})))
    convert.add_tokens(parts.backend, added, where)


def _register_special(backend: Any, wanted: list[str]) -> None:
    from tokenizers import AddedToken

    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    fresh = [text for text in dict.fromkeys(wanted) if text not in special]
    if fresh:
        backend.add_special_tokens(
            [AddedToken(text, normalized=False, special=True) for text in fresh]
        )
