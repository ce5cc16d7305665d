"""Recipes: which form each matrix of a model takes, and which products run on int8 activations.

Owns the names of `quantization=` and what they mean for body, head and embedding, and the one
spelling of the number formats that other options name. Invariant: a recipe is decided from headers
alone and is the one that the core packs by and the memory plan counts by.

The head is wider than a 4-bit body: its error reaches the logits directly, and 4 bits cost more
than they save. Beside w4g32 it has 6 bits, which cannot be told from int8 in perplexity. A head
tied to the embedding is one matrix, stored once, in the head's form.

Called by loading.py; options.py and kernels/ take the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmaccel import _core
from llmaccel.errors import ConfigError
from llmaccel.models.checkpoint import is_coded

# The form of qkv, o, gate_up and down. One scale per output row where no group is named.
QUANTIZATIONS = tuple(name for name in _core.QUANTIZATIONS if name != "keep")
_HEAD = {"int8": "int8", "fp8": "int8", "w4g128": "int8", "w4g32": "w6g16", "w6g16": "w6g16"}
# Slots whose activations are finer than the others' int8 (two lanes of it, or bf16 where the
# processor has no dot of int8): of GGUF files (None) and of quantizations. DECISIONS.md has the
# figures.
_WIDE = {
    None: ("qkv", "o", "head"),
    "int8": ("qkv", "head"),
    "w4g128": ("qkv", "head"),
    "w4g32": ("o", "head"),
    "w6g16": ("head",),
    "fp8": (),
}

# Other ways to write a number format: vLLM's, llama.cpp's, and what people type.
_SPELLINGS = {
    "float": "float32",
    "fp32": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
    "half": "float16",
    "fp16": "float16",
    "f16": "float16",
    "fp8_e4m3": "fp8",
}


def number_format(value: Any) -> Any:
    """The one name of a number format, which may be a torch dtype too; the rest as it is."""
    if type(value).__module__ == "torch":
        value = str(value).removeprefix("torch.")
    return _SPELLINGS.get(value, value) if isinstance(value, str) else value


def make_recipe(
    floats: str, quantization: str | None, tied: bool, backend: str = "cpu"
) -> dict[str, Any]:
    """What `_core.Model` takes as weights. floats: the core's name of a float form, or "auto".
    tied: the embedding serves as the head. The CUDA backend leaves the head as it is stored."""
    body = quantization or "keep"
    head = _HEAD[quantization] if quantization and backend == "cpu" else "keep"
    wide = list(_WIDE[quantization])
    if tied and "head" in wide:
        wide.append("embed")
    return {
        "floats": floats,
        "body": body,
        "head": head,
        "embed": head if tied else "keep",
        "wide": wide,
    }


def check_quantization(name: str, stored: Iterable[str], options: Mapping[str, str]) -> None:
    """ConfigError where `quantization=name` contradicts the file's formats or another option.

    stored: dtypes of the checkpoint's matrices. options: dtype and activation.
    """
    blocks = sorted(dtype for dtype in stored if is_coded(dtype))
    if blocks:
        raise ConfigError(
            f"quantization={name!r}: the file's tensors are quantized already "
            f"({', '.join(blocks)}); leave quantization out, or give a float file"
        )
    if options["dtype"] == "float32":
        raise ConfigError(
            f"dtype={options['dtype']!r}: quantization={name!r} stores codes; leave dtype out"
        )
    if options["activation"] in ("float32", "checkpoint"):
        raise ConfigError(
            f"activation={options['activation']!r}: quantization={name!r} has bf16 or int8 "
            "activations"
        )
    if options["activation"] == "int8" and name == "fp8":
        raise ConfigError("activation='int8': quantization='fp8' has bf16 activations only")
