"""AWQ: 4 bits, scales and zero points per group, in the orders of its two kernels.

version "gemm": qweight int32 [K, N / 8], qzeros int32 [G, N / 8], scales [G, N]; a word holds eight
neighbouring n, nibble i that of 0, 2, 4, 6, 1, 3, 5, 7. version "gemv": qweight int32 [N, K / 8],
qzeros int32 [N, W], scales [N, 8 W], nibbles in order along k, W words wide enough for the groups
and padded. A weight is scale * (q - zero). Layout as published by AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmaccel.errors import LoadError
from llmaccel.models.plain import PlainForm
from llmaccel.models.quantized.linear import (
    FLOATS,
    Codes,
    Foretold,
    Linear,
    Settings,
    fields,
    header,
    make_form,
    matrix,
    taken,
)
from llmaccel.models.quantized.names import ModuleNames
from llmaccel.models.slots import TensorTable

# Of the eight n of a word, the nibble that holds each.
_NIBBLE = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_WORDS = ("I32", "U32")


def _layers(config: Settings) -> tuple[int, bool, ModuleNames]:
    """(group, gemv order, layers that stay floats)."""
    config.choice("bits" if "bits" in config.raw else "w_bit", (4,))
    group = config.group("group_size" if "group_size" in config.raw else "q_group_size", 128)
    version = config.get("version", "gemm")
    if not isinstance(version, str) or version.lower() not in ("gemm", "gemv"):
        raise config.unsupported("version", "known: gemm, gemv")
    if not config.flag("zero_point", True):
        raise config.unsupported("zero_point", "known: true")
    config.choice("backend", ("autoawq", "llm-awq", "auto", None))
    skips = ModuleNames(config.names("modules_to_not_convert"), config.where)
    config.done(
        "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "dataset", "lm_head"
    )
    return group, version.lower() == "gemv", skips


def find_linears(table: TensorTable, config: Settings) -> list[Linear]:
    """Every layer with a qweight."""
    group, gemv, skips = _layers(config)
    found = []
    for name in table.names():
        module = name.removesuffix(".qweight")
        if module == name:
            continue
        if module in skips:
            raise LoadError(f"{name}: {config.where} says that this layer is not quantized")
        found.append((_gemv if gemv else _gemm)(table, module, group))
    return found


def foretell(config: Settings, half: bool) -> Foretold:
    """Of layers but the head, which the library leaves."""
    group, _, skips = _layers(config)

    def form(module: str, k: int) -> PlainForm | None:
        if module in skips or module.endswith("lm_head"):
            return None
        return _form(module, group if 0 < group < k else k, k)

    return form


def _form(name: str, group: int, k: int) -> PlainForm:
    return make_form(name, "I4", group, k, offset=True)


def _columns(words: np.ndarray) -> np.ndarray:
    """uint8 [rows, N] of words [rows, N / 8] in the gemm order."""
    nibbles = fields(words, 4).reshape(len(words), -1, 8)
    return nibbles[:, :, _NIBBLE].reshape(len(words), -1)


def _gemm(table: TensorTable, module: str, group: int) -> Linear:
    qweight = matrix(table, f"{module}.qweight", _WORDS)
    k, n = qweight.shape[0], qweight.shape[1] * 8
    group = group if 0 < group < k else k
    groups = -(-k // group)
    header(table, f"{module}.qzeros", _WORDS, (groups, n // 8))
    scales = header(table, f"{module}.scales", FLOATS, (groups, n))

    def read() -> Codes:
        zero = _columns(taken(table[f"{module}.qzeros"])).T.astype(np.float32)
        scale = np.ascontiguousarray(taken(table[scales.name]).T)
        return Codes(_columns(taken(table[qweight.name])).T, scale, zero)

    return _made(module, (n, k), group, read)


def _gemv(table: TensorTable, module: str, group: int) -> Linear:
    qweight = matrix(table, f"{module}.qweight", _WORDS)
    n, k = qweight.shape[0], qweight.shape[1] * 8
    group = group if 0 < group < k else k
    groups = -(-k // group)
    qzeros = matrix(table, f"{module}.qzeros", _WORDS)
    width = qzeros.shape[1]
    if qzeros.shape[0] != n or not groups <= 8 * width:
        raise LoadError(
            f"{qzeros.name}: expected [{n}, at least {-(-groups // 8)}], got {list(qzeros.shape)}"
        )
    scales = header(table, f"{module}.scales", FLOATS, (n, 8 * width))

    def read() -> Codes:
        zero = fields(taken(table[qzeros.name]), 4)[:, :groups].astype(np.float32)
        scale = np.ascontiguousarray(taken(table[scales.name])[:, :groups])
        return Codes(fields(taken(table[qweight.name]), 4), scale, zero)

    return _made(module, (n, k), group, read)


def _made(module: str, shape: tuple[int, int], group: int, read: Callable[[], Codes]) -> Linear:
    name = f"{module}.weight"
    form = _form(name, group, shape[1])
    sources = tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    return Linear(name, shape, form, 4, group, sources, read)
