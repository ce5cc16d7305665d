"""Every torch operator of llmaccel: torch's own check of its registration, and its numbers.

opcheck runs an operator for real and through its fake kernel, with fixed and with symbolic sizes,
and compares shapes, dtypes, strides, aliases and values. The numbers are those of llmaccel.kernels,
bit for bit, whose own tests hold them to float64.
"""

from __future__ import annotations

from typing import Any

import pytest

from llmaccel import kernels

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
wing = pytest.importorskip("llmaccel.torch")
ops = torch.ops.llmaccel


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*values: int) -> Any:
    return torch.tensor(values)


X, W = normal(5, 96), normal(40, 96, seed=1)
PACKED = {
    layout: torch.from_dlpack(kernels.pack(W, layout).data)
    for layout in ("F32", "F16", "BF16", "int8", "fp8", "w4g128", "w4g32", "w6g16")
}
EXPERTS = torch.stack([PACKED["w4g32"], torch.from_dlpack(kernels.pack(-W, "w4g32").data)])
CODES, SCALES = (torch.from_dlpack(t) for t in kernels.fp8_quantize(X))
CODES_W, SCALES_W = (torch.from_dlpack(t) for t in kernels.fp8_quantize(W, "block"))
BLOCKS = torch.randint(0, 60, (4, 3 * 18), dtype=torch.uint8, generator=torch.Generator())


def cache() -> Any:
    made = torch.zeros(kernels.kv_cache_shape(3, 2, 16), dtype=torch.uint8)
    for slots, seed in ((range(64), 1), (range(128, 140), 2)):
        k, v = normal(len(slots), 2, 16, seed=seed), normal(len(slots), 2, 16, seed=seed + 7)
        kernels.kv_store(made, list(slots), k, v)
    return made


ANGLES = torch.arange(5)[:, None] * torch.tensor([1.0, 0.1, 0.01])
ROPE = (normal(5, 2, 8), ANGLES.cos(), ANGLES.sin())
PAGED = (normal(3, 4, 16), cache(), torch.tensor([[0, 2], [2, 0]]), integers(0, 0, 1))

# operator: calls of it, as (arguments, keywords, the same by llmaccel.kernels or None)
CASES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = {
    "rms_norm": [((X, W[0]), {}, lambda: kernels.rms_norm(X, W[0]))],
    "layer_norm": [
        ((X, W[0], None, 0.1), {}, lambda: kernels.layer_norm(X, W[0], None, 0.1)),
        ((X, W[0], W[1]), {}, lambda: kernels.layer_norm(X, W[0], W[1])),
    ],
    "add": [((X, X + 1, 0.5), {}, lambda: kernels.add(X, X + 1, 0.5))],
    "act": [((X, "gelu"), {}, lambda: kernels.act(X, "gelu"))],
    "act_mul": [((X, -X), {}, lambda: kernels.act_mul(X, -X))],
    "rope": [
        (ROPE, {}, lambda: kernels.rope(*ROPE)),
        ((*ROPE, True), {}, lambda: kernels.rope(*ROPE, interleaved=True)),
    ],
    "softcap": [((X, 2.0, 3.0), {}, lambda: kernels.softcap(X, 2.0, 3.0))],
    "pack": [((W, layout), {}, lambda p=p: p) for layout, p in PACKED.items()],
    "pack_blocks": [
        (
            (BLOCKS, 4, 96, "Q4_0"),
            {},
            lambda: kernels.pack(BLOCKS, dtype="Q4_0", shape=(4, 96)).data,
        )
    ],
    "unpack": [
        ((p, 40, 96, layout), {}, lambda p=layout: kernels.pack(W, p).dequantize())
        for layout, p in PACKED.items()
    ],
    "embedding": [
        (
            (PACKED["int8"], torch.tensor([[3, 1], [39, 3]]), 40, 96, "int8"),
            {},
            lambda: kernels.pack(W, "int8").rows([[3, 1], [39, 3]]),
        )
    ],
    "linear": [
        (
            (normal(2, 3, 96), PACKED["w4g32"], 40, "w4g32", normal(40)),
            {"activation": "int8", "threads": 1},
            lambda: kernels.linear(
                normal(2, 3, 96), kernels.pack(W, "w4g32"), normal(40), activation="int8"
            ),
        ),
        *(
            ((X, p, 40, layout), {}, lambda p=layout: kernels.linear(X, kernels.pack(W, p)))
            for layout, p in PACKED.items()
        ),
    ],
    "quantize_rows": [((X, 64), {}, lambda: kernels.quantize_rows(X, 64))],
    "round_bf16": [((X,), {}, lambda: kernels.round_bf16(X))],
    "route": [
        ((normal(6, 8), 2), {}, lambda: kernels.route(normal(6, 8), 2)),
        (
            (normal(6, 8), 2, normal(8)),
            {"score": "sigmoid", "normalize": True, "groups": 2},
            lambda: kernels.route(
                normal(6, 8), 2, score="sigmoid", normalize=True, correction=normal(8), groups=2
            ),
        ),
    ],
    "grouped_linear_contiguous": [
        (
            (X, EXPERTS, integers(0, 0, 1, -1, 1), 40, "w4g32"),
            {},
            lambda: kernels.grouped_linear_contiguous(
                X, experts(), [0, 0, 1, -1, 1], activation="bfloat16"
            ),
        )
    ],
    "grouped_linear_masked": [
        (
            (normal(2, 3, 96), EXPERTS, integers(1, 3), 40, "w4g32"),
            {"activation": "int8"},
            lambda: kernels.grouped_linear_masked(
                normal(2, 3, 96), experts(), [1, 3], activation="int8"
            ),
        )
    ],
    "fp8_encode": [((X, "e5m2"), {"scale": 0.5}, lambda: kernels.fp8_encode(X, "e5m2", scale=0.5))],
    "fp8_decode": [((CODES,), {"scale": 2.0}, lambda: kernels.fp8_decode(CODES, scale=2.0))],
    "fp8_quantize": [
        ((W, layout), {}, lambda p=layout: kernels.fp8_quantize(W, p))
        for layout in ("tensor", "row", "group", "block")
    ],
    "fp8_dequantize": [((CODES, SCALES), {}, lambda: kernels.fp8_dequantize(CODES, SCALES))],
    "fp8_linear": [
        (
            (CODES, SCALES, CODES_W, SCALES_W),
            {"weight_layout": "block"},
            lambda: kernels.fp8_linear(CODES, SCALES, CODES_W, SCALES_W, layouts=("row", "block")),
        )
    ],
    "kv_store": [((cache(), integers(140, -1), normal(2, 2, 16), normal(2, 2, 16)), {}, None)],
    "paged_attention": [
        (
            (*PAGED, integers(70, 3, 5), normal(4)),
            {"window": 66},
            lambda: kernels.paged_attention(*PAGED, integers(70, 3, 5), window=66, sinks=normal(4)),
        )
    ],
    "argmax": [((X,), {}, lambda: kernels.argmax(X))],
    "logsumexp": [((X,), {}, lambda: kernels.logsumexp(X))],
    "softmax": [((X, 0.5), {}, lambda: kernels.softmax(X, 0.5))],
    "select_above": [((X[0].clone(), 0.5), {}, lambda: kernels.select_above(X[0], 0.5))],
    "top_k": [((X, 7), {}, lambda: kernels.top_k(X, 7))],
}


def experts() -> Any:
    return kernels.PackedExperts([kernels.pack(W, "w4g32"), kernels.pack(-W, "w4g32")])


def each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_every_operator_has_a_case() -> None:
    assert sorted(wing.operators) == sorted(f"llmaccel::{name}" for name in CASES)
    served = {name for name in kernels.__all__ if not name[0].isupper()}
    others = {"isas", "pack_experts", "packed_shape", "kv_cache", "kv_cache_shape"}
    assert served - others <= set(CASES)  # what kernels has is here too


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str) -> None:
    # layouts differ in numbers alone: every third will do
    for args, keywords, _ in CASES[name][:: 3 if len(CASES[name]) > 4 else 1]:
        torch.library.opcheck(getattr(ops, name).default, args, keywords)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_kernels(name: str) -> None:
    for args, keywords, same in CASES[name]:
        if same is None:
            continue
        got = each(getattr(ops, name)(*args, **keywords))
        want = each(same())
        assert len(got) == len(want)
        for ours, theirs in zip(got, want, strict=True):
            assert torch.equal(ours, torch.from_dlpack(theirs))
