"""What every public kernel refuses by the name of the argument: numbers, shapes, dtypes.

Each function is called with arguments that are right, and then with each of them replaced by what
is wrong for one of its kind. A function or a parameter that is new has no kind here, and fails.
"""

from __future__ import annotations

import inspect
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from llmaccel import LLMAccelError, kernels

F = np.float32
X, ONES = np.linspace(-1, 1, 32, dtype=F).reshape(4, 8), np.ones(8, F)
CODES, SCALES = kernels.fp8_quantize(X)
HEADS = np.ones((4, 2, 8), F)
PACKED = kernels.pack(X)
EXPERTS = kernels.pack_experts(np.stack([X, X]))
CACHE = kernels.kv_cache(2, 2, 8)

BAD_NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e60, "1", None, True, 1j, [1.0]]
NOT_POSITIVE = [0, 0.0, -1.0, -1e-9, 1e-60, Fraction(-1, 3), np.float32(0)]
NOT_WHOLE = [1.5, 2.0, np.float64(1), "1", None, True, [1], float("nan")]

# Of each kind what is wrong, as functions of the right value.
WRONG = {
    "floats": lambda ok: [*(_like(ok, bad) for bad in ("int32", "float64", "bool")), "x", object()],
    "codes": lambda ok: [_like(ok, bad) for bad in ("int32", "float32", "int8")],
    "scales": lambda ok: [_with(ok, v) for v in (np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0)],
    "finite": lambda ok: [_with(ok, v) for v in (np.nan, np.inf)],
    "no_nan": lambda ok: [_with(ok, np.nan)],
    "ints": lambda ok: [
        np.asarray(ok, F), np.asarray(ok) + 0.5, np.full_like(ok, 2**30), np.full_like(ok, -7)
    ],
    "number": lambda ok: BAD_NUMBERS,
    "positive": lambda ok: [*BAD_NUMBERS, *NOT_POSITIVE],
    "not_negative": lambda ok: [*BAD_NUMBERS, -1.0, -1e-30],
    "no_nan_number": lambda ok: [np.nan, "1", None, True],
    "whole": lambda ok: [*NOT_WHOLE, -1, 2**70],
    "above_0": lambda ok: [*NOT_WHOLE, -1, 0, 2**70],
    "shape": lambda ok: [(4.0, 8), (4, 8.0), (4, "8"), (True, 8), (4, 0), (-4, 8), (4,), 4, "48"],
    "name": lambda ok: ["nothing", 3, b"f32", None, ("a",)],
    "switch": lambda ok: [0, 1, None, "yes", 1.0],
    "names": lambda ok: ["row", ("row",), ("row", "column"), (1, 2), 3],
    "object": lambda ok: [X, None, "x"],
}  # fmt: skip


def _like(ok, dtype):
    array = np.asarray(ok)
    return np.zeros(array.shape, dtype) if array.dtype != np.dtype(dtype) else "x"


def _with(ok, value):
    array = np.array(ok, F)
    array.reshape(-1)[-1] = value
    return array


def pages():
    made = kernels.KVPages(2, 8)
    made.store(HEADS, HEADS)
    return made


def latents():
    made = kernels.LatentPages(4, 4)
    made.store(np.ones((4, 4), F), np.ones((4, 4), F))
    return made


PLAIN = {"isa": ("auto", "name")}
THREADS = {**PLAIN, "threads": (1, "whole")}
OUT = {"out": (None, "out")}
RULE = {
    "scale": (0.3, "positive"),
    "window": (0, "whole"),
    "softcap": (0.0, "not_negative"),
    "sinks": (np.ones(2, F), "floats"),
}
SIZES = {"n_kv_heads": (2, "above_0"), "d": (8, "above_0"), "dtype": ("bfloat16", "name")}
ACTIVATION = {"activation": ("auto", "name")}
LAYOUT = {"layout": ("row", "name"), "format": ("e4m3", "name")}
# name: (function, {parameter: (a right value, its kind)})
CASES = {
    "rms_norm": (kernels.rms_norm, {
        "x": (X, "floats"), "weight": (ONES, "floats"), "eps": (1e-6, "not_negative"), **OUT,
        **PLAIN}),
    "layer_norm": (kernels.layer_norm, {
        "x": (X, "floats"), "weight": (ONES, "floats"), "bias": (ONES, "floats"),
        "eps": (1e-6, "not_negative"), **OUT, **PLAIN}),
    "add": (kernels.add, {
        "x": (X, "floats"), "y": (X, "floats"), "scale": (0.5, "number"), **OUT, **PLAIN}),
    "act": (kernels.act, {"x": (X, "floats"), "kind": ("silu", "name"), **OUT, **PLAIN}),
    "act_mul": (kernels.act_mul, {
        "gate": (X, "floats"), "up": (X, "floats"), "kind": ("silu", "name"), **OUT, **PLAIN}),
    "rope": (kernels.rope, {
        "x": (HEADS, "floats"), "cos": (np.ones((4, 3), F), "floats"),
        "sin": (np.ones((4, 3), F), "floats"), "interleaved": (False, "switch"), **OUT, **PLAIN}),
    "softcap": (kernels.softcap, {
        "x": (X, "floats"), "cap": (3.0, "not_negative"), "scale": (0.5, "positive"), **OUT,
        **PLAIN}),
    "pack": (kernels.pack, {
        "weight": (X, "floats"), "format": ("int8", "name"), "dtype": ("F32", "name"),
        "shape": ((4, 8), "shape"), "threads": (1, "whole")}),
    "packed_shape": (kernels.packed_shape, {"shape": ((4, 8), "shape"), "layout": ("F32", "name")}),
    "linear": (kernels.linear, {
        "x": (X, "floats"), "weight": (PACKED, "object"), "bias": (np.ones(4, F), "floats"),
        **ACTIVATION, **OUT, **THREADS}),
    "quantize_rows": (kernels.quantize_rows, {"x": (X, "floats"), "group": (32, "above_0"),
                                              **PLAIN}),
    "round_bf16": (kernels.round_bf16, {"x": (X, "floats"), **PLAIN}),
    "PackedWeight.over": (kernels.PackedWeight.over, {
        "data": (PACKED.data, "codes"), "shape": ((4, 8), "shape"), "layout": ("F32", "name")}),
    "PackedWeight.rows": (PACKED.rows, {"ids": (np.array([0, 3]), "ints"), **OUT, **PLAIN}),
    "PackedWeight.dequantize": (PACKED.dequantize, {**OUT, **PLAIN}),
    "PackedExperts": (kernels.PackedExperts, {"weights": ([PACKED], "object")}),
    "pack_experts": (kernels.pack_experts, {
        "weight": (np.stack([X, X]), "floats"), "format": ("int8", "name"),
        "threads": (1, "whole")}),
    "route": (kernels.route, {
        "logits": (X, "floats"), "k": (2, "above_0"), "score": ("softmax", "name"),
        "normalize": (True, "switch"), "scale": (2.5, "positive"), "correction": (ONES, "no_nan"),
        "groups": (2, "above_0"), "groups_used": (2, "above_0"), "group_best": (1, "above_0"),
        **PLAIN}),
    "grouped_linear_contiguous": (kernels.grouped_linear_contiguous, {
        "x": (X, "floats"), "experts": (EXPERTS, "object"),
        "m_indices": (np.array([0, 0, 1, -1]), "ints"), **ACTIVATION, **OUT, **THREADS}),
    "grouped_linear_masked": (kernels.grouped_linear_masked, {
        "x": (np.stack([X, X]), "floats"), "experts": (EXPERTS, "object"),
        "masked_m": (np.array([1, 4]), "ints"), **ACTIVATION, **OUT, **THREADS}),
    "fp8_encode": (kernels.fp8_encode, {
        "x": (X, "floats"), "format": ("e4m3", "name"), "scale": (0.5, "positive"), **OUT,
        **PLAIN}),
    "fp8_decode": (kernels.fp8_decode, {
        "codes": (CODES, "codes"), "format": ("e4m3", "name"), "scale": (0.5, "positive"), **OUT,
        **PLAIN}),
    "fp8_quantize": (kernels.fp8_quantize, {"x": (X, "finite"), **LAYOUT, **PLAIN}),
    "fp8_dequantize": (kernels.fp8_dequantize, {
        "codes": (CODES, "codes"), "scales": (SCALES, "scales"), **LAYOUT, **PLAIN}),
    "fp8_linear": (kernels.fp8_linear, {
        "x": (CODES, "codes"), "x_scales": (SCALES, "scales"), "weight": (CODES, "codes"),
        "weight_scales": (SCALES, "scales"), "layouts": (("row", "row"), "names"),
        "format": ("e4m3", "name"), **THREADS}),
    "KVPages": (kernels.KVPages, {**SIZES, "max_tokens": (64, "above_0")}),
    "KVPages.store": (lambda **given: pages().store(**given), {
        "k": (HEADS, "floats"), "v": (HEADS, "floats"), **PLAIN}),
    "KVPages.attend": (lambda **given: pages().attend(**given), {
        "q": (HEADS, "floats"), "positions": (np.arange(4), "ints"), **RULE, **OUT, **THREADS}),
    "LatentPages": (kernels.LatentPages, {
        "kv_rank": (8, "above_0"), "d_rope": (4, "above_0"), "max_tokens": (64, "above_0"),
        "dtype": ("bfloat16", "name")}),
    "LatentPages.store": (lambda **given: latents().store(**given), {
        "latent": (np.ones((4, 4), F), "floats"), "key": (np.ones((4, 4), F), "floats"), **PLAIN}),
    "LatentPages.attend": (lambda **given: latents().attend(**given), {
        "q": (np.ones((4, 2, 8), F), "floats"), "positions": (np.arange(4), "ints"),
        "scale": (0.3, "positive"), **OUT, **THREADS}),
    "kv_cache": (kernels.kv_cache, {
        "n_pages": (2, "above_0"), "device": ("cpu", "name"), **SIZES}),
    "kv_cache_shape": (kernels.kv_cache_shape, {"n_pages": (2, "above_0"), **SIZES}),
    "kv_store": (kernels.kv_store, {
        "cache": (CACHE, "codes"), "slots": (np.arange(4), "ints"), "k": (HEADS, "floats"),
        "v": (HEADS, "floats"), "dtype": ("bfloat16", "name"), **PLAIN}),
    "paged_attention": (kernels.paged_attention, {
        "q": (HEADS, "floats"), "cache": (CACHE, "codes"), "tables": (np.array([[0, 1]]), "ints"),
        "sequences": (np.zeros(4, int), "ints"), "positions": (np.arange(4), "ints"),
        "dtype": ("bfloat16", "name"), **RULE, **OUT, **THREADS}),
    "argmax": (kernels.argmax, {"x": (X, "floats"), **PLAIN}),
    "logsumexp": (kernels.logsumexp, {"x": (X, "floats"), **PLAIN}),
    "softmax": (kernels.softmax, {
        "x": (X, "floats"), "temperature": (0.5, "positive"), **OUT, **PLAIN}),
    "select_above": (kernels.select_above, {
        "x": (X[0], "floats"), "threshold": (0.5, "no_nan_number"), **PLAIN}),
    "top_k": (kernels.top_k, {"x": (X, "floats"), "k": (2, "above_0"), **PLAIN}),
}  # fmt: skip


def parameters(name):
    owner, _, method = name.partition(".")
    function = getattr(kernels, owner)
    function = getattr(function, method) if method else function
    found = inspect.signature(function).parameters
    return {key: found[key].default for key in found if key != "self"}


def test_every_kernel_and_every_parameter_is_here():
    public = {name for name in kernels.__all__ if name != "isas"}
    for owner in ("KVPages", "LatentPages", "PackedWeight", "PackedExperts"):
        for name, member in vars(getattr(kernels, owner)).items():
            if not name.startswith("_") and not isinstance(member, property):
                public.add(f"{owner}.{name}")
    assert public - set(CASES) == {"PackedWeight"}  # which pack and over make
    for name, (_, given) in CASES.items():
        assert sorted(given) == sorted(parameters(name)), name


def outs(result):
    """What is wrong for a result of this one's shape and dtype."""
    want = np.asarray(result)
    other = np.zeros(want.shape, "int64" if want.dtype != np.int64 else "int32")
    readonly = np.zeros(want.shape, want.dtype)
    readonly.flags.writeable = False
    return [other, np.zeros((*want.shape, 1), want.dtype), readonly, "x"]


def refusal(function, given):
    try:
        function(**given)
    except LLMAccelError as error:
        return str(error)
    return "it was taken"


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_refused_by_name(name):
    function, given = CASES[name]
    right, defaults = {key: value for key, (value, _) in given.items()}, parameters(name)
    result = function(**right)
    tried = 0
    for key, (value, kind) in given.items():
        for bad in outs(result) if kind == "out" else WRONG[kind](value):
            if bad is None and defaults[key] is None:
                continue  # it was left out
            text = refusal(function, {**right, key: bad})
            named = [word.strip() for word in text.partition(":")[0].split(",")]
            assert key in named, f"{name}({key}={bad!r}): {text}"
            tried += 1
    assert tried > 2


def test_operations_of_a_device_are_numbered_as_in_c():
    from llmaccel.kernels import arguments, device

    header = Path(__file__).parent.parent / "csrc" / "device.h"
    names = re.findall(r"^    LA_ELEMENT_(\w+)", header.read_text(), re.MULTILINE)
    ours = arguments.WIDENINGS | {
        name: getattr(device, name) for name in ("ADD", "ACT", "ACT_MUL", "SOFTCAP")
    }
    assert ours == {name: i for i, name in enumerate(names) if name != "COUNT"}
