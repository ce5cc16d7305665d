"""Routing and grouped products: against their formulas, and bit for bit against one expert at a
time.

`route` is held to reference.route on every instruction set, and to the routers of transformers on
what their own layers give them; both layouts of grouped products to `linear`, which test_gemm.py
holds to NumPy.
"""

from __future__ import annotations

import types

import numpy as np
import pytest
import reference
import tiny

from llmaccel import kernels
from llmaccel.errors import ConfigError

ISAS = kernels.isas()
RULES = [
    {"n_experts": 8, "n_experts_used": 2, "route_norm": True},
    {"n_experts": 60, "n_experts_used": 4},
    {"n_experts": 128, "n_experts_used": 8, "route_norm": True, "route_scale": 2.5},
    {"n_experts": 7, "n_experts_used": 7},
    {"n_experts": 1, "n_experts_used": 1, "route_score": "sigmoid"},
    {"n_experts": 16, "n_experts_used": 1, "route_score": "sigmoid"},
    # DeepSeek-V2: the largest of a group; DeepSeek-V3: the two largest
    {"n_experts": 160, "n_experts_used": 6, "route_groups": 8, "route_groups_used": 3,
     "route_scale": 16.0},
    {"n_experts": 256, "n_experts_used": 8, "route_score": "sigmoid", "route_norm": True,
     "route_scale": 2.5, "route_groups": 8, "route_groups_used": 4, "route_group_best": 2},
    {"n_experts": 12, "n_experts_used": 4, "route_groups": 6, "route_groups_used": 2},
]  # fmt: skip


def rule_of(**fields) -> types.SimpleNamespace:
    """The fields of ModelConfig that routing reads."""
    neutral = {"route_score": "softmax", "route_norm": False, "route_scale": 1.0,
               "route_groups": 1, "route_groups_used": 1, "route_group_best": 1}  # fmt: skip
    return types.SimpleNamespace(**{**neutral, **fields})


def route(logits, c, correction=None, isa="auto") -> tuple[np.ndarray, np.ndarray]:
    experts, weights = kernels.route(
        logits, c.n_experts_used, score=c.route_score, normalize=c.route_norm, scale=c.route_scale,
        correction=correction, groups=c.route_groups, groups_used=c.route_groups_used,
        group_best=c.route_group_best, isa=isa)  # fmt: skip
    return experts.numpy(), weights.numpy()


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("fields", RULES, ids=lambda f: f"{f['n_experts']}-{f['n_experts_used']}")
def test_route_is_the_formula(fields, corrected):
    c = rule_of(**fields)
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((300, c.n_experts)).astype(np.float32) * 2
    correction = rng.standard_normal(c.n_experts).astype(np.float32) if corrected else None
    experts, weights = route(logits, c, correction)
    wide = logits.astype(np.float64)
    ours, theirs = np.sort(experts, -1), np.sort(reference.route(wide, c, correction)[0], -1)
    # float32 and float64 may disagree where two are as good as equal
    assert (ours == theirs).all(-1).mean() > 0.99
    for t in np.flatnonzero((ours == theirs).all(-1)):
        want = dict(zip(*(v[t] for v in reference.route(wide, c, correction)), strict=True))
        got = dict(zip(experts[t], weights[t], strict=True))
        assert all(abs(got[e] - want[e]) <= 2e-6 * max(1, c.route_scale) for e in got), t
    for isa in ISAS:
        other = route(logits, c, correction, isa)
        assert np.array_equal(other[0], experts)
        assert other[1].tobytes() == weights.tobytes()
    alone = [route(row[None], c, correction) for row in logits[:20]]
    assert np.array_equal(np.concatenate([a[0] for a in alone]), experts[:20])
    assert np.concatenate([a[1] for a in alone]).tobytes() == weights[:20].tobytes()


def test_ties_go_to_the_lower_index():
    logits = np.zeros((1, 9), np.float32)
    logits[0, [2, 5, 7]] = 1.0
    experts, weights = kernels.route(logits, 5)
    assert experts.numpy().tolist() == [[2, 5, 7, 0, 1]]
    assert weights.numpy()[0, 0] == weights.numpy()[0, 2] > weights.numpy()[0, 3]
    grouped, _ = kernels.route(logits, 2, groups=3, groups_used=2)
    assert grouped.numpy().tolist() == [[2, 5]]  # of three equally good groups the first two


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fields", RULES, ids=lambda f: f"{f['n_experts']}-{f['n_experts_used']}")
def test_hostile_logits_still_choose_different_experts(fields, isa):
    c = rule_of(**fields)
    for values in ([np.nan], [np.inf], [-np.inf], [np.nan, 1.0, np.inf], [3e38, -3e38]):
        logits = np.resize(np.float32(values), (2, c.n_experts))
        logits[1] = np.linspace(-1, 1, c.n_experts)
        for correction in (None,) if np.isnan(values).any() else (None, logits[0]):
            experts, weights = route(logits, c, correction, isa)
            for row in experts:
                assert len(set(row)) == c.n_experts_used
                assert 0 <= row.min() <= row.max() < c.n_experts
            if np.isnan(values).any():
                assert np.isnan(weights[0]).all()
            assert np.isfinite(weights[1]).all()


def test_route_refuses_what_does_not_fit():
    x = np.zeros((2, 8), np.float32)
    for kwargs, message in [
        ({"k": 9}, "k: 9 is not in 1..8"),
        ({"k": 0}, "k: 0"),
        ({"k": 2, "groups": 3}, "groups: 3 do not divide 8 experts"),
        ({"k": 4, "groups": 4, "groups_used": 1}, "groups_used: 1 groups of 2 experts offer no 4"),
        ({"k": 1, "groups": 8, "group_best": 2}, "group_best: 2 is not in 1..1"),
        ({"k": 2, "score": "relu"}, "score"),
        ({"k": 2, "scale": np.nan}, "scale"),
        ({"k": 2, "correction": np.zeros(7, np.float32)}, "correction: expected"),
        ({"k": 2, "correction": np.full(8, np.nan, np.float32)}, "correction: holds a NaN"),
    ]:
        with pytest.raises(ConfigError, match=message):
            kernels.route(x, **kwargs)
    with pytest.raises(ConfigError, match=r"logits: expected \[T, E\]"):
        kernels.route(x[0], 2)
    with pytest.raises(ConfigError, match=r"logits: 2000 is not in 1\.\.1024"):
        kernels.route(np.zeros((1, 2000), np.float32), 2)
    empty = kernels.route(x[:0], 3)
    assert [t.shape for t in empty] == [(0, 3), (0, 3)]


# family: the module that routes
ROUTERS = {
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe"), "mlp.gate"),
    **dict.fromkeys(("deepseek_v2-experts", "deepseek_v3-experts", "flex_olmo"), "mlp.gate"),
    **dict.fromkeys(("granitemoe", "granitemoeshared"), "block_sparse_moe.router"),
    "gpt_oss": "mlp.router",
    "llama4": "feed_forward.router",
}


# ---- against transformers ------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("family", ROUTERS)
def test_routing_equals_transformers(family, tmp_path):
    """10,000 tokens as the reference's own layers see them."""
    import torch

    from llmaccel.config import load_hf_config
    from llmaccel.models.mapping import build_config

    folder = tiny.make_checkpoint(family, tmp_path, seed=2)
    c = build_config(load_hf_config(folder))
    model, seen = tiny.hf_model(folder), []
    layer = next(i for i, desc in enumerate(c.layers) if desc.moe)
    gate = model.get_submodule(f"model.layers.{layer}.{ROUTERS[family]}")
    gate.register_forward_hook(lambda module, args, out: seen.append((args[0], *out)))
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, c.n_vocab, (70, 150)))
    with torch.no_grad():
        model(ids)
    if family == "llama4":  # it gives every expert's weight: 0 but for those that are chosen
        x, scores, logits = seen[0]
        seen[0] = (x, logits, *scores.topk(c.n_experts_used, -1))
    x, _, weights, experts = (v.reshape(-1, v.shape[-1]).numpy() for v in seen[0])
    assert len(x) >= 10_000
    correction = getattr(gate, "e_score_correction_bias", None)
    correction = None if correction is None else correction.numpy()
    bias = getattr(gate, "bias", None)
    bias = None if bias is None else bias.detach().numpy()
    logits = kernels.linear(x, kernels.pack(gate.weight.detach(), "F32"), bias)
    ours, shares = route(logits, c, correction)

    wide = x.astype(np.float64) @ gate.weight.detach().numpy().astype(np.float64).T
    wide = wide if bias is None else wide + bias
    clear = margin(wide, c, correction) > 1e-4
    assert clear.mean() > 0.6
    order, theirs = np.argsort(ours, -1), np.argsort(experts, -1)
    same = np.take_along_axis(ours, order, -1) == np.take_along_axis(experts, theirs, -1)
    assert same[clear].all()
    gap = np.take_along_axis(shares, order, -1) - np.take_along_axis(weights, theirs, -1)
    assert np.abs(gap[clear]).max() <= 1e-5 * c.route_scale


def margin(logits: np.ndarray, c, correction) -> np.ndarray:
    """By how much the choice of each token is decided, experts and groups."""
    all_of_them = rule_of(**{**vars(c), "route_groups": 1, "route_norm": False, "route_scale": 1.0})
    score = np.empty_like(logits)
    all_of_them.n_experts_used = c.n_experts
    order, values = reference.route(logits, all_of_them)
    np.put_along_axis(score, order, values, -1)
    choice = score if correction is None else score + correction
    least = np.full(len(logits), np.inf)
    if c.route_groups > 1:
        groups = np.sort(choice.reshape(len(logits), c.route_groups, -1), -1)
        worth = np.sort(groups[..., -c.route_group_best :].sum(-1), -1)[:, ::-1]
        least = worth[:, c.route_groups_used - 1] - worth[:, c.route_groups_used]
        cut = worth[:, c.route_groups_used - 1 : c.route_groups_used]
        open_groups = groups[..., -c.route_group_best :].sum(-1) >= cut
        size = c.n_experts // c.route_groups
        choice = np.where(np.repeat(open_groups, size, -1), choice, -np.inf)
    best = np.sort(choice, -1)[:, ::-1]
    return np.minimum(least, best[:, c.n_experts_used - 1] - best[:, c.n_experts_used])


# ---- grouped products ----------------------------------------------------------------------------

FORMATS = [("F32", "auto"), ("F16", "auto"), ("BF16", "auto"), ("fp8", "auto"), ("int8", "int8"),
           ("int8", "bfloat16"), ("w4g128", "int8"), ("w4g32", "bfloat16")]  # fmt: skip
E, N, K = 5, 70, 72
COUNTS = [0, 1, 9, 300, 3]


@pytest.fixture(scope="module", params=FORMATS, ids="-".join)
def packed(request):
    """(experts, how rows enter)"""
    weight = np.random.default_rng(4).standard_normal((E, N, K)).astype(np.float32)
    return kernels.pack_experts(weight, request.param[0]), request.param[1]


def bits(x) -> bytes:
    return np.ascontiguousarray(x).tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_contiguous_rows_are_those_of_each_expert(packed, isa):
    experts, activation = packed
    rng = np.random.default_rng(5)
    index = np.concatenate([np.full(c, e) for e, c in enumerate(COUNTS)] + [[-1] * 4, [2, 2]])
    x = rng.standard_normal((len(index), K)).astype(np.float32)
    x[index < 0] = np.nan
    out = np.full((len(index), N), 7.0, np.float32)
    how = {"activation": activation, "isa": isa}
    got = kernels.grouped_linear_contiguous(x, experts, index, out=out, threads=3, **how)
    assert np.shares_memory(got.numpy(), out)
    assert (out[index < 0] == 7.0).all()
    for e in range(E):
        if (index == e).any():
            want = kernels.linear(x[index == e], experts[e], **how)
            assert bits(out[index == e]) == bits(want.numpy()), e
    fresh = kernels.grouped_linear_contiguous(x, experts, index, threads=1, **how).numpy()
    assert bits(fresh[index >= 0]) == bits(out[index >= 0])
    assert (fresh[index < 0] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_masked_rows_are_those_of_each_expert(packed, isa):
    experts, activation = packed
    x = np.random.default_rng(6).standard_normal((E, max(COUNTS), K)).astype(np.float32)
    out = np.full((E, max(COUNTS), N), 7.0, np.float32)
    for e, count in enumerate(COUNTS):
        x[e, count:] = np.nan
    how = {"activation": activation, "isa": isa}
    kernels.grouped_linear_masked(x, experts, COUNTS, out=out, threads=2, **how)
    for e, count in enumerate(COUNTS):
        assert (out[e, count:] == 7.0).all()
        if count:
            assert bits(out[e, :count]) == bits(kernels.linear(x[e, :count], experts[e], **how))


def test_grouped_products_equal_numpy():
    """The difference that DeepGEMM's users state: 1 - 2<a, b> / (<a, a> + <b, b>)."""
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((E, N, K)).astype(np.float32)
    index = np.repeat(np.arange(E), 8)
    x = rng.standard_normal((len(index), K)).astype(np.float32)
    for format, activation in FORMATS:
        experts = kernels.pack_experts(weight, format)
        if activation == "int8":
            codes, scales = kernels.quantize_rows(x, experts.format["group"])
            entered = codes.numpy() * np.repeat(scales.numpy(), experts.format["group"], -1)[
                :, :K
            ].astype(np.float64)
        elif format in ("F32", "F16"):
            entered = x.astype(np.float64)
        else:
            rounded = np.asarray(kernels.round_bf16(x)).astype(np.uint32) << 16
            entered = rounded.view(np.float32).astype(np.float64)
        got = kernels.grouped_linear_contiguous(x, experts, index, activation=activation).numpy()
        values = np.stack([experts[e].dequantize().numpy() for e in range(E)]).astype(np.float64)
        want = np.einsum("mk,mnk->mn", entered, values[index])
        diff = 1 - 2 * (got * want).sum() / ((got * got).sum() + (want * want).sum())
        assert abs(diff) < 1e-6, format


def test_grouped_products_refuse_what_does_not_fit():
    experts = kernels.pack_experts(np.ones((2, 4, 8), np.float32))
    x = np.zeros((3, 8), np.float32)
    assert repr(experts) == "PackedExperts(2 x PackedWeight(shape=(4, 8), F32))"
    assert (experts.shape, len(experts)) == ((2, 4, 8), 2)
    assert experts.nbytes == 2 * experts[0].nbytes
    for call, message in [
        (lambda: kernels.grouped_linear_contiguous(x, experts, [0, 1]), "m_indices: expected"),
        (lambda: kernels.grouped_linear_contiguous(x, experts, [0, 1, 2]), "is not in -1..1"),
        (lambda: kernels.grouped_linear_contiguous(x, experts, [0, -2, 1]), "is not in -1..1"),
        (lambda: kernels.grouped_linear_contiguous(x, experts, [0.0] * 3), "expected integers"),
        (lambda: kernels.grouped_linear_contiguous(x.T.copy(), experts, [0] * 8), "x: expected"),
        (lambda: kernels.grouped_linear_contiguous(x, experts[0], [0] * 3), "PackedExperts"),
        (lambda: kernels.grouped_linear_masked(x[None], experts, [1, 1]), "x: expected"),
        (lambda: kernels.grouped_linear_masked([x, x], experts, [4, 1]), "x: "),
        (lambda: kernels.grouped_linear_masked(np.stack([x, x]), experts, [4, 1]), "not in 0..3"),
        (lambda: kernels.pack_experts(x), "weight: expected"),
        (lambda: kernels.PackedExperts([]), "at least one"),
        (lambda: kernels.PackedExperts(None), "weights: expected PackedWeights, got NoneType"),
        (lambda: kernels.PackedExperts([experts[0], kernels.pack(x)]), "weights: 1 is"),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()
    none = kernels.grouped_linear_contiguous(x, experts, [-1] * 3)
    assert (none.numpy() == 0).all()
    assert kernels.grouped_linear_contiguous(x[:0], experts, []).shape == (0, 4)


@pytest.mark.parametrize("isa", ISAS)
def test_a_call_keeps_its_experts_alive(isa):
    """Experts that nobody else holds, as a generator gives them, and ones dropped meanwhile."""
    core = pytest.importorskip("llmaccel._core")
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    w = np.random.default_rng(2).standard_normal((2, 4096, 64)).astype(np.float32)
    segments = np.int32([[0, 0, 1], [1, 1, 1]])
    y = np.empty((2, 4096), np.float32)

    def fresh():
        for e in range(2):
            yield core.Packed(w[e], "F32", 4096, 64, "auto", "keep", 1)

    for experts in (fresh(), list(fresh())):
        y[:] = np.nan
        core.grouped_linear(isa, "f32", experts, x, y, segments, 2, 2, 1)
        want = np.einsum("mk,mnk->mn", x.astype(np.float64), w.astype(np.float64))
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-4)


def test_the_core_trusts_no_wrapper():
    """Buffers, numbers and experts are checked beneath kernels/, each by its name."""
    core = pytest.importorskip("llmaccel._core")
    isa, rule = ISAS[0], (8, 2, False, True, 1.0, 4, 2, 1)
    x, chosen, counts = np.ones((3, 8), np.float32), np.zeros((3, 2), np.int32), np.zeros((3, 2))
    counts = counts.astype(np.float32)
    fixed = counts.copy()
    fixed.flags.writeable = False

    def route(logits=x, *, experts=chosen, weights=counts, tokens=3, bias=None, **change):
        names = ("E", "k", "sigmoid", "norm", "scale", "groups", "groups_used", "group_best")
        values = tuple(change.get(n, v) for n, v in zip(names, rule, strict=True))
        core.route(isa, logits, bias, experts, weights, tokens, values)

    odd = memoryview(bytearray(3 * 8 * 4 + 1))[1:].cast("f")
    packed = [
        core.Packed(np.ones((n, 8), np.float32), "F32", n, 8, "auto", "keep", 1) for n in (4, 5)
    ]
    y, segments = np.zeros((3, 4), np.float32), np.int32([[0, 0, 3]])

    def multiply(*, act="f32", experts=packed[:1], x=x, y=y, flat=segments, M=3, n=1, threads=1):
        core.grouped_linear(isa, act, experts, x, y, flat, M, n, threads)

    route()
    multiply()
    for call, error, message in [
        (lambda: route(E=0), ValueError, "E: 0"),
        (lambda: route(E=1 << 20), ValueError, "E: "),
        (lambda: route(k=9), ValueError, "k: 9 is not in 1..8"),
        (lambda: route(groups=3), ValueError, "groups: 3 do not divide 8"),
        (lambda: route(groups=0), ValueError, "groups: 0"),
        (lambda: route(groups_used=5), ValueError, "groups_used: 5"),
        (lambda: route(k=5), ValueError, "groups_used: 2 groups of 2 experts offer no 5"),
        (lambda: route(group_best=3), ValueError, "group_best: 3"),
        (lambda: route(tokens=-1), ValueError, "T: -1"),
        (lambda: route(tokens=2), ValueError, "logits: 24 values, expected 16"),
        (lambda: route(x.astype(np.float64)), TypeError, "logits: expected contiguous float32"),
        (lambda: route(odd), ValueError, "logits: its address"),
        (lambda: route(experts=counts), TypeError, "experts: expected contiguous int32"),
        (lambda: route(weights=fixed), ValueError, "weights: is read-only"),
        (lambda: route(bias=x), ValueError, "correction: 24 values, expected 8"),
        (lambda: multiply(experts=3), TypeError, "experts: expected a sequence of Packed"),
        (lambda: multiply(experts=[3]), TypeError, "experts: expected a Packed"),
        (lambda: multiply(experts=[]), ValueError, "experts: 0"),
        (lambda: multiply(experts=packed), ValueError, "experts: 1 has another shape"),
        (lambda: multiply(act="i8"), ValueError, "activation: no product of i8"),
        (lambda: multiply(M=0), ValueError, "M: 0"),
        (lambda: multiply(n=0), ValueError, "n: 0"),
        (lambda: multiply(n=2), ValueError, "segments: 3 values, expected 6"),
        (lambda: multiply(M=2), ValueError, "x: 24 values, expected 16"),
        (lambda: multiply(y=fixed), ValueError, "y: 6 values, expected 12"),
        (lambda: multiply(flat=segments - 1), ValueError, "segments: 0 is 2 rows from -1"),
        (lambda: multiply(flat=segments + 1), ValueError, "segments: 0 is 4 rows from 1"),
        (lambda: multiply(threads=999), ValueError, "threads"),
    ]:
        with pytest.raises(error, match=message):
            call()
