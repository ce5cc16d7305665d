"""What calling a tokenizer gives: padded, cut and as tensors, as transformers' tokenizers do it.

Owns `Encoding` and the part of `Tokenizer` that makes batches. Invariant: ids are those of encode;
the settings here (sides, the padding token, model_max_length) decide only what is cut and padded
when somebody asks for it. Tensors are NumPy's, or torch's, which is imported when they are asked
for and not before.

A base of Tokenizer (tokenize.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from llmaccel.errors import RequestError, UnsupportedError, shown
from llmaccel.prompts import cut_between, cut_pair
from llmaccel.whole import is_whole

NO_LENGTH = int(1e30)
"""model_max_length where no file gives one, as in transformers."""
_SIDES = ("left", "right")
_PADDINGS = {False: "", None: "", "do_not_pad": "", True: "longest", "longest": "longest"}
_CUTS = {None: False, False: False, "do_not_truncate": False, True: True}
_CUTS |= {"longest_first": True, "only_first": True}
# transformers' further arguments, and what asks for nothing.
_OFF = {
    "stride": 0,
    "is_split_into_words": False,
    "pad_to_multiple_of": None,
    "return_overflowing_tokens": False,
    "return_special_tokens_mask": False,
    "return_offsets_mapping": False,
    "return_token_type_ids": False,
    "return_length": False,
}


class Encoding(dict[str, Any]):
    """What calling a tokenizer gives: `input_ids` and `attention_mask`, as keys or attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any) -> Encoding:
        """Itself, its torch tensors on another device."""
        for key, value in self.items():
            if hasattr(value, "to"):
                self[key] = value.to(device)
        return self


class Encoder:
    """The methods of Tokenizer that make batches, and what they go by; the settings may be changed.

    padding_side, truncation_side: "left" or "right". model_max_length: where truncation=True cuts
    if there is no max_length. name_or_path: where it was loaded from.
    """

    padding_side = "right"
    truncation_side = "right"
    model_max_length = NO_LENGTH
    name_or_path = ""
    is_fast = True
    model_input_names = ("input_ids", "attention_mask")

    if TYPE_CHECKING:
        pad_token_id: int | None

        def encode(self, text: Any, add_special_tokens: bool = True, **how: Any) -> Any: ...
        def encode_pair(
            self, text: str, pair: str, add_special_tokens: bool = True, **how: Any
        ) -> list[int]: ...

    def configure(self, name: str, config: Mapping[str, Any]) -> None:
        """Take over what a tokenizer_config.json says; values that are none are left out."""
        self.name_or_path = name
        for side in ("padding_side", "truncation_side"):
            if config.get(side) in _SIDES:
                setattr(self, side, config[side])
        length = config.get("model_max_length")
        if isinstance(length, (int, float)) and not isinstance(length, bool) and length >= 1:
            self.model_max_length = int(min(length, NO_LENGTH))

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        *,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        split_special_tokens: bool | None = None,
        **foreign: Any,
    ) -> Encoding:
        """Encode one text or a list of texts, or pairs of them.

        padding: True or "longest", or "max_length"; truncation: True cuts each at max_length ids
        (model_max_length where None), special tokens around a text or pair kept where they fit, and
        of a pair the longer text first, or "only_first" that one. return_tensors: "np" or
        "pt", [texts, ids] int64; None: `input_ids` and `attention_mask` are lists of ints, or lists
        of such lists for a list of texts. foreign: transformers' other arguments, as long as they
        ask for nothing. RequestError for texts, and UnsupportedError for arguments, that do not do.
        """
        for name, value in foreign.items():
            if name not in _OFF:
                raise TypeError(f"a Tokenizer got an unexpected keyword argument {name!r}")
            if value is not None and value != _OFF[name]:
                raise UnsupportedError(f"{name}: not supported by this version")
        many = not isinstance(text, str)
        texts = list(text) if many else [text]
        pairs = (
            [None] * len(texts) if text_pair is None else list(text_pair) if many else [text_pair]
        )
        if len(pairs) != len(texts):
            raise RequestError(f"text_pair: expected {len(texts)}, one for each text")
        limit = self._limit(truncation, max_length)
        how = {"split_special_tokens": split_special_tokens}
        rows = []
        for one, other in zip(texts, pairs, strict=True):
            if other is None:
                ids = self.encode(one, add_special_tokens, **how)
                if limit is not None and len(ids) > limit:
                    bare = self.encode(one, False, **how) if add_special_tokens else ids
                    ids = cut_between(ids, bare, limit, self.truncation_side)
            else:
                ids = self.encode_pair(one, other, add_special_tokens, **how)
                if limit is not None and len(ids) > limit:
                    both = [self.encode(part, False, **how) for part in (one, other)]
                    first_only = truncation == "only_first"
                    ids = cut_pair(ids, both, limit, self.truncation_side, first_only=first_only)
            rows.append(ids)
        encoding = self._padded(rows, padding, max_length)
        if not return_attention_mask:
            del encoding["attention_mask"]
        if return_tensors is not None:
            return _as_tensors(encoding, return_tensors)
        return encoding if many else Encoding({key: value[0] for key, value in encoding.items()})

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Encoding:
        """Pad what was encoded: {"input_ids": lists}, or a list of {"input_ids": ids}. padding,
        max_length, return_tensors and errors are those of a call."""
        _check_length(max_length)
        if isinstance(encoded_inputs, Mapping):
            rows = encoded_inputs["input_ids"]
        else:
            rows = [one["input_ids"] for one in encoded_inputs]
        encoding = self._padded([[int(i) for i in row] for row in rows], padding, max_length)
        return encoding if return_tensors is None else _as_tensors(encoding, return_tensors)

    def _limit(self, truncation: Any, max_length: Any) -> int | None:
        """Ids at which texts are cut; None: they are not."""
        _check_length(max_length)
        if not isinstance(truncation, (bool, str, type(None))) or truncation not in _CUTS:
            raise UnsupportedError(f"truncation={shown(truncation)}: this version has True, False")
        if not _CUTS[truncation]:
            return None
        limit = self.model_max_length if max_length is None else int(max_length)
        if limit >= NO_LENGTH:
            raise RequestError("truncation needs a max_length: no file gives model_max_length")
        return limit

    def _padded(self, rows: list[list[int]], padding: Any, max_length: int | None) -> Encoding:
        if not isinstance(padding, (bool, str, type(None))) or (
            padding not in _PADDINGS and padding != "max_length"
        ):
            raise UnsupportedError(f"padding={shown(padding)}: expected True or 'max_length'")
        masks = [[1] * len(row) for row in rows]
        if padding == "max_length":
            width = self.model_max_length if max_length is None else max_length
            if width >= NO_LENGTH:
                raise RequestError("padding='max_length' needs a max_length")
        elif _PADDINGS[padding]:
            width = max(map(len, rows), default=0)
        else:
            return Encoding(input_ids=rows, attention_mask=masks)
        if self.pad_token_id is None and any(len(row) < width for row in rows):
            raise RequestError(
                "padding: this tokenizer has no pad_token; tokenizer.pad_token = "
                "tokenizer.eos_token gives it one"
            )
        if self.padding_side not in _SIDES:
            raise RequestError(f"padding_side: expected left or right, got {self.padding_side!r}")

        def fill(row: list[int], value: Any) -> list[int]:
            rest = [value] * (width - len(row))
            return [*rest, *row] if self.padding_side == "left" else [*row, *rest]

        return Encoding(
            input_ids=[fill(row, self.pad_token_id) for row in rows],
            attention_mask=[fill(mask, 0) for mask in masks],
        )

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens that encode puts around a text, or encode_pair around two."""
        return len(self.encode_pair("", "") if pair else self.encode(""))


def _check_length(max_length: Any) -> None:
    if max_length is not None and not is_whole(max_length, 0):
        raise RequestError(f"max_length: expected at least 0, got {shown(max_length)}")


def _as_tensors(encoding: Encoding, kind: str) -> Encoding:
    """Tables of int64."""
    if kind not in ("np", "pt"):
        raise UnsupportedError(f"return_tensors={shown(kind)}: this version has 'np' and 'pt'")
    rows = encoding["input_ids"]
    if len({len(row) for row in rows}) > 1:
        raise RequestError(
            "return_tensors: the texts have different lengths; padding=True fills up"
        )
    arrays = {key: np.array(value, np.int64) for key, value in encoding.items()}
    if kind == "np":
        return Encoding(arrays)
    torch: Any = import_module("torch")  # not by a statement: nothing here needs it otherwise
    return Encoding({key: torch.from_numpy(value) for key, value in arrays.items()})
