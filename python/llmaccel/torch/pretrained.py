"""Keywords of AutoModelForCausalLM.from_pretrained, as options of LLM.

Owns what each means here. Invariant: a keyword is used, or has no effect and is told, or is refused
by name. Used by causal.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmaccel import LLM, LoadError, UnsupportedError

# Keywords without an effect, and their values; None: any.
_IDLE: dict[str, tuple[Any, ...] | None] = {
    "low_cpu_mem_usage": (None, True, False),
    "use_safetensors": (None, True, False),
    "attn_implementation": (None, "sdpa", "eager", "flash_attention_2"),
}
_OFF = {
    "load_in_8bit": "quantization='int8'",
    "load_in_4bit": "quantization='w4g128'",
    "quantization_config": "quantization=",
}
_HUB = ("token", "cache_dir", "local_files_only")
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")
# Of transformers, without a meaning here: refused as such, not as arguments of LLM.
_ABSENT = (
    "config",
    "state_dict",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "subfolder",
)


def _translated(
    model: str | Path, options: dict[str, Any]
) -> tuple[str, dict[str, Any], list[str]]:
    """(model, options of LLM, names of those without an effect)."""
    kept = dict(options)
    idle = [name for name in _IDLE if kept.get(name) is not None]
    for name, allowed in _IDLE.items():
        value = kept.pop(name, None)
        if allowed is not None and value not in allowed:
            raise UnsupportedError(
                f"{name}: {value!r}; expected one of {allowed[1:]}, all the same"
            )
    for name, instead in _OFF.items():
        if kept.pop(name, None) not in (None, False):
            raise UnsupportedError(f"{name}: not read by CausalLM.from_pretrained; use {instead}")
    place = kept.pop("device_map", None)
    if isinstance(place, dict) and list(place) == [""]:
        place = place[""]
    if place not in (None, "cpu", "auto", torch.device("cpu")):
        raise UnsupportedError(f"device_map: {place!r}; tensors here are on the CPU")
    older, dtype = kept.pop("torch_dtype", None), kept.pop("dtype", None)
    wanted = older if dtype is None else dtype
    kept["dtype"] = "auto" if wanted is None else wanted
    for name in kept:
        if name in _ABSENT:
            raise UnsupportedError(f"{name}: not supported by CausalLM.from_pretrained")
    return _fetched(str(model), kept), kept, idle


def opened(model: str | Path, options: dict[str, Any]) -> tuple[LLM, list[str]]:
    """The LLM, and the keywords that had no effect."""
    name, kept, idle = _translated(model, options)
    try:
        return LLM(name, **kept), idle
    except TypeError as error:
        said = str(error).replace("LLM()", "CausalLM.from_pretrained()")
        raise TypeError(said) from None


def _fetched(model: str, kept: dict[str, Any]) -> str:
    """The folder of a hub name that is asked for with the hub's own arguments; else the name."""
    hub = {name: kept.pop(name) for name in _HUB if name in kept}
    if not any(value not in (None, False) for value in hub.values()) or Path(model).exists():
        return model
    from huggingface_hub import snapshot_download

    revision = kept.pop("revision", None)
    try:
        return snapshot_download(model, revision=revision, allow_patterns=list(_FILES), **hub)
    except Exception as error:  # the hub's own errors, and whatever its transport raises
        raise LoadError(f"model {model!r:.300}: not from the Hugging Face hub: {error}") from error
