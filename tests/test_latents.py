"""Models whose attention reads latents (MLA), through the engine: cache, chunks, forms, refusals.

Kernels alone are in test_mla.py, families against transformers in test_models.py. Here sequences
are longer than a chunk, heads more than a tile's rows, and what happens around a request changes.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import tiny_gguf
import tiny_quantized

from llmaccel import LLM, SamplingParams, _core
from llmaccel.config import load_hf_config
from llmaccel.errors import ConfigError, LLMAccelError, UnsupportedError
from llmaccel.loading import arrays_checkpoint
from llmaccel.models.mapping import build_config
from llmaccel.models.plain import PlainForm

ISAS = _core.kernel_isas()
LONG = 600  # three chunks, the last one short
LENGTHS = [LONG, 3, 255, 257]
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=1, detokenize=False)


def open_tiny(family: str = "deepseek_v2", heads: int = 6, **options: Any) -> LLM:
    config = tiny.config_of(
        family,
        max_position_embeddings=LONG + 100,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    return LLM.from_arrays(config, tiny.arrays_of(config, 3), **options)


def prompt(tokens: int) -> dict[str, Any]:
    return {"prompt_token_ids": np.random.default_rng(tokens).integers(3, 301, tokens).tolist()}


def results_of(llm: LLM, params: SamplingParams = GREEDY) -> list[tuple]:
    """Token ids and logprob bits of requests that run at once."""
    futures = [llm.submit(prompt(n), params) for n in LENGTHS]
    outputs = [one for f in futures for one in f.result().outputs]
    return [(tuple(one.token_ids), one.logprob_array.tobytes()) for one in outputs]


# ---- bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("isa", ISAS)
def test_threads_chunks_and_company_change_nothing(isa: str, kv: str) -> None:
    options = {"isa": isa, "kv_cache_dtype": kv}
    with open_tiny(threads=1, max_num_seqs=1, **options) as llm:
        expected = results_of(llm)
    for tokens in (7, 512):
        more = {"threads": 2, "max_num_seqs": 4, "max_num_batched_tokens": tokens}
        with open_tiny(**more, **options) as llm:
            assert results_of(llm) == expected, tokens


@pytest.mark.parametrize("heads", [64, 96, 128])
def test_many_heads(heads: int) -> None:
    """One tile of heads, and several that read the same pages."""
    params = dataclasses.replace(GREEDY, temperature=0.8, seed=3, n=2, max_tokens=3)
    with open_tiny(heads=heads, threads=1, max_num_seqs=1, kv_cache_dtype="bfloat16") as llm:
        expected = results_of(llm, params)
    more = {"threads": 2, "max_num_seqs": 8, "max_num_batched_tokens": 33}
    with open_tiny(heads=heads, kv_cache_dtype="bfloat16", **more) as llm:
        assert results_of(llm, params) == expected


def test_preempted_sequences_come_back_to_the_same_bits() -> None:
    params = dataclasses.replace(GREEDY, max_tokens=40)
    with open_tiny("deepseek_v3") as llm:
        expected = results_of(llm, params)
    with open_tiny("deepseek_v3") as llm:
        futures = [llm.submit(prompt(n), params) for n in LENGTHS]
        for _ in range(50):  # a bounded number, or there might be no progress
            llm.engine.preempt(2)
            time.sleep(0.005)
        got = [f.result().outputs[0] for f in futures]
        assert [(tuple(o.token_ids), o.logprob_array.tobytes()) for o in got] == expected
        assert llm.report()["stats"]["preemptions"] > 0


@pytest.mark.parametrize("isa", ISAS)
def test_decoding_is_prefill(isa: str) -> None:
    """Logprobs of decoded tokens, in chunks, are those of the same tokens read as a prompt."""
    with open_tiny(isa=isa) as llm:
        ids = prompt(LONG)["prompt_token_ids"]
        out = llm.generate([{"prompt_token_ids": ids}], GREEDY)[0].outputs[0]
        rows = np.asarray(llm.logits(ids + list(out.token_ids)))[LONG - 1 : -1].astype(np.float64)
    peak = rows.max(axis=1, keepdims=True)
    lse = peak[:, 0] + np.log(np.exp(rows - peak).sum(axis=1))
    assert rows.argmax(axis=1).tolist() == list(out.token_ids)
    np.testing.assert_allclose(out.logprob_array, rows.max(axis=1) - lse, rtol=0, atol=2e-6)


# ---- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kv", "bound"), [("bfloat16", 0.03), ("fp8", 0.2)])
def test_cache_forms_are_near(kv: str, bound: float) -> None:
    ids = prompt(200)["prompt_token_ids"]
    with open_tiny(kv_cache_dtype="float32") as llm:
        exact = np.asarray(llm.logits(ids)).copy()
    with open_tiny(kv_cache_dtype=kv) as llm:
        off = np.asarray(llm.logits(ids)) - exact
    assert 0 < np.linalg.norm(off) <= bound * np.linalg.norm(exact)


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize(
    ("quantization", "bound"), [("int8", 0.15), ("fp8", 0.4), ("w4g128", 0.9), ("w4g32", 0.9)]
)
def test_quantized_at_load(family: str, quantization: str, bound: float) -> None:
    """Matrices of heads stay floats; the plan counts them as they are. Random weights of this
    size are all noise: the same forms move a tiny Llama's logits by 0.06, 0.2 and 0.6."""
    ids = prompt(70)["prompt_token_ids"]
    with open_tiny(family) as llm:
        exact = np.asarray(llm.logits(ids)).copy()
    seen = []
    for tokens in (512, 7):
        with open_tiny(family, quantization=quantization, max_num_batched_tokens=tokens) as llm:
            got = np.asarray(llm.logits(ids)).copy()
            assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights
            seen.append(got)
    assert seen[0].tobytes() == seen[1].tobytes()
    assert np.linalg.norm(seen[0] - exact) <= bound * np.linalg.norm(exact)


def test_block_quantized_files(tmp_path) -> None:
    """GGUF blocks: matrices of heads are opened to bf16, or fp32 with activation="float32"."""
    sizes = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
    folder = tiny.make_checkpoint("deepseek_v2", tmp_path / "hf", seed=3, **sizes)
    ids = prompt(70)["prompt_token_ids"]
    with LLM(str(folder)) as llm:
        exact = np.asarray(llm.logits(ids)).copy()
    sizes = {}
    for layout in ("whole", "split"):
        path = tmp_path / f"{layout}.gguf"
        tiny_gguf.make_gguf("deepseek_v2", folder, path, "Q8_0", layout=layout)
        for activation in ("float32", "bfloat16", "int8"):
            with LLM(str(path), activation=activation) as llm:
                off = np.asarray(llm.logits(ids)) - exact
                sizes[layout, activation] = llm.report()["memory"]["weight_bytes"]
                assert sizes[layout, activation] == llm.plan().weights
            assert 0 < np.linalg.norm(off) <= 0.15 * np.linalg.norm(exact), (layout, activation)
    heads = 3 * 6 * (64 * 32 + 32 * 64)  # layers, heads, values of both matrices
    for layout in ("whole", "split"):
        assert sizes[layout, "bfloat16"] == sizes["whole", "int8"]
        assert sizes[layout, "float32"] >= sizes[layout, "bfloat16"] + 2 * heads


@pytest.mark.parametrize("scheme", ["fp8-block", "gptq-4-order", "ct-w4a16", "bnb-nf4"])
def test_checkpoints_that_others_quantized(scheme: str, tmp_path) -> None:
    """kv_b is opened whatever it is, columns in another order put back; the rest stays."""
    sizes = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4,
             "num_key_value_heads": 4, "kv_lora_rank": 128, "q_lora_rank": 128,
             "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}  # fmt: skip
    source = tiny.make_checkpoint("deepseek_v3", tmp_path / "hf", seed=3, **sizes)
    values = tiny_quantized.write(source, tmp_path / scheme, scheme)
    config, ids = build_config(load_hf_config(source)), prompt(70)["prompt_token_ids"]
    want = reference.forward(config, reference.load_weights(config, arrays_checkpoint(values)), ids)
    with LLM(str(tmp_path / scheme), activation="float32", kv_cache_dtype="float32") as llm:
        assert llm.report()["memory"]["weight_bytes"] == llm.plan().weights
        assert np.abs(np.asarray(llm.logits(ids)) - want).max() <= 1e-3


def test_bfloat16_weights() -> None:
    ids = prompt(70)["prompt_token_ids"]
    with open_tiny() as llm:
        exact = np.asarray(llm.logits(ids)).copy()
    with open_tiny(dtype="bfloat16") as llm:
        assert llm.report()["model"]["kv_cache_dtype"] == "bfloat16"
        off = np.asarray(llm.logits(ids)) - exact
    assert 0 < np.linalg.norm(off) <= 0.05 * np.linalg.norm(exact)


# ---- memory and refusals -------------------------------------------------------------------------

V2 = {"architectures": ["DeepseekV2ForCausalLM"], "first_k_dense_replace": 1,
      "num_experts_per_tok": 6}  # fmt: skip
DEEPSEEK = {"architectures": ["DeepseekV3ForCausalLM"], "first_k_dense_replace": 61}
LIMITS = {"max_seqs": 4, "max_batch_tokens": 64, "max_len": 4096, "kv_pages": 8}


@pytest.mark.parametrize(("form", "token"), [("bf16", 2 * 576), ("f32", 4 * 576), ("f8", 656)])
def test_the_plan_counts_the_cache_exactly(form: str, token: int) -> None:
    """DeepSeek-V3's shape: 61 layers, one latent and one key a token and layer."""
    config = dataclasses.replace(build_config(DEEPSEEK), kv_form=form)
    plan = _core.plan(vars(config), LIMITS, 2)
    assert plan["kv_page_bytes"] == 64 * 61 * token


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_form": "i8"}, "kv_form: latents are kept as f32, bf16 or f8"),
        ({"kv_rank": 510}, "kv_rank"),
        ({"kv_rank": 0}, "kv_rank: expected 4"),
        ({"d_nope": 100}, "d_nope"),
        ({"d_v": 0}, "d_v: expected 1"),
        ({"d_nope": 0, "d_head": 64}, "d_nope: expected 1"),
        ({"n_kv_heads": 2}, "n_kv_heads: expected 1 to 1"),
        ({"latent_eps": 0.0}, "latent_eps"),
        ({"qk_norm": "head"}, "qk_norm"),
        ({"attn": "heads"}, "kv_rank: expected 0 to 0"),
        ({"attn": "linear"}, "attn: unknown value"),
    ],
)
def test_the_core_refuses_by_name(changes: dict[str, Any], message: str) -> None:
    config = dataclasses.replace(build_config(DEEPSEEK), **changes)
    with pytest.raises((ConfigError, UnsupportedError), match=message):
        _core.plan(vars(config), LIMITS, 2)


def test_matrices_of_heads_take_plain_columns() -> None:
    """They cannot be in another order; the latents that meet them may be rounded."""
    config = build_config(tiny.config_of("deepseek_v2"))
    desc = {**vars(config), "activation": "f32"}
    rows, cols = config.n_heads * config.kv_rank, config.d_nope
    ordered = PlainForm("I8", 0, ordered=True)
    data = np.zeros(rows * ordered.row_bytes(cols), np.uint8)
    order = np.arange(cols, dtype=np.int32)[::-1].copy()
    floats = np.zeros((rows, cols), np.float32)
    with pytest.raises(UnsupportedError, match=r"mla_uk: .* in activation order"):
        _core.weight_bytes(desc, "auto", [("mla_uk", [(ordered.name, rows, cols)], 1)])
    model = _core.Model(_core.Backend("cpu", None, 1), desc)
    with pytest.raises(UnsupportedError, match=r"mla_uk: .* in activation order"):
        model.set("mla_uk", 0, [(data, ordered.name, rows, cols, order)])
    model.set("mla_uk", 0, [(floats, "F32", rows, cols, None, (1, 0, 0.0))])


@pytest.mark.parametrize(
    ("changes", "slot", "message"),
    [
        ({"n_heads": 2**30}, "mla_uk", "n_heads: expected 1 to"),
        ({"d_model": -1}, "mla_in", "d_model: expected 1 to"),
        ({}, "mla_uk", r"^mla_uk: expected \[\d+, \d+\], got \[5, 7\]"),
        ({}, "mla_in", "^mla_in: expected 2 tensors, got 1"),
        ({}, "qkv", "^qkv: this model's attention has another form"),
        ({}, "embed", r"^embed: expected \[\d+, \d+\], got \[5, 7\]"),
    ],
)
def test_sizes_are_of_checked_descriptions(
    changes: dict[str, Any], slot: str, message: str
) -> None:
    """A plan asks of no layer in particular."""
    desc = {**vars(build_config(tiny.config_of("deepseek_v2"))), **changes}
    with pytest.raises(LLMAccelError, match=message):
        _core.weight_bytes(desc, "auto", [(slot, [("F32", 5, 7)], 1)])


def test_int8_pages_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"kv_cache_dtype='int8': latents"):
        open_tiny(kv_cache_dtype="int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_k_dense_replace": 3, "scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        ({"first_k_dense_replace": 3, "topk_method": "greedy"}, "topk_method = 'greedy'"),
        ({"first_k_dense_replace": 3, "moe_layer_freq": 2}, "moe_layer_freq = 2"),
        ({"first_k_dense_replace": 3, "n_group": 7}, "n_group 7, of which 4 are used"),
        ({**V2, "norm_topk_prob": True}, "norm_topk_prob = True"),
        ({**V2, "mlp_bias": True}, "mlp_bias with experts"),
        ({**V2, "num_experts_per_tok": None}, "num_experts_per_tok must be"),
        ({"kv_lora_rank": 510}, "kv_lora_rank 510 is no multiple of 4"),
        ({"num_key_value_heads": 64}, "num_key_value_heads other than"),
        ({"q_lora_rank": None, "attention_bias": True}, "attention_bias without q_lora_rank"),
        ({"qk_rope_head_dim": 63}, "rope"),
        ({"q_lora_rank": 0}, "q_lora_rank must be in 1"),
    ],
)
def test_configs_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnsupportedError), match=message):
        build_config({**DEEPSEEK, **changes})


def test_the_report_counts_mtp_tensors() -> None:
    config = {**tiny.config_of("deepseek_v3"), "num_nextn_predict_layers": 1}
    arrays = tiny.arrays_of(config, 3)
    arrays["model.layers.3.enorm.weight"] = np.ones(96, np.float32)
    with LLM.from_arrays(config, arrays) as llm:
        assert llm.report()["model"]["mtp_tensors"] == 1
