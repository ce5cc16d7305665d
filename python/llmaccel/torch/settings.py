"""Settings: what a model's files say, under the names that transformers' configs have.

Owns the two objects that CausalLM shows as config and generation_config. Invariant: what an LLM was
loaded with wins over its files (a shorter max_model_len, say); names that no file gave are absent,
as attributes and as keys. Made by causal.py, read by users and by generation.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llmaccel import LLM, LoadError


class Settings(SimpleNamespace):
    """Values by attribute; to_dict() gives them all."""

    def to_dict(self) -> dict[str, Any]:
        """A copy of all values."""
        return dict(vars(self))

    def to_diff_dict(self) -> dict[str, Any]:
        """All values that say something."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Settings:
        """Itself: the model is its text part."""
        return self

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or the default where there is none."""
        return getattr(self, name, default)


def model_settings(llm: LLM) -> Settings:
    """config: that of the model's folder, or what a GGUF file or arrays tell of it."""
    known = llm.report()["model"]
    ends = known["stop_token_ids"]
    values = {
        "architectures": [known["architecture"]],
        "model_type": known["family"],
        "bos_token_id": _bos(llm),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": None,
        "is_encoder_decoder": False,
        **_file(known["path"], "config.json"),
        "use_cache": False,  # nothing is kept between calls of forward
        "vocab_size": known["n_vocab"],
        "hidden_size": known["d_model"],
        "num_hidden_layers": known["n_layers"],
        "max_position_embeddings": known["max_model_len"],
        "name_or_path": known["path"] or "",
    }
    return Settings(**values)


def sampling_settings(llm: LLM) -> Settings:
    """generation_config: that of the model's folder; the ends are those that the LLM knows."""
    known = llm.report()["model"]
    values = {
        "bos_token_id": _bos(llm),
        "pad_token_id": None,
        **_file(known["path"], "generation_config.json"),
        "eos_token_id": known["stop_token_ids"] or None,
    }
    return Settings(**values)


def _bos(llm: LLM) -> int | None:
    try:
        return llm.get_tokenizer().bos_token_id
    except LoadError:  # it has none
        return None


def _file(path: str | None, name: str) -> dict[str, Any]:
    """The contents of a JSON file of the model's folder, if there is one."""
    file = Path(path or "") / name
    if path is None or not file.is_file():
        return {}
    values = json.loads(file.read_text(encoding="utf-8"))
    return {str(key): value for key, value in values.items()}
