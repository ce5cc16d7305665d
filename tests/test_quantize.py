"""Quantize at load: codes and scales of each recipe, and the models made of them.

The packed unit is read by reference_kernels, which knows the layout but not the rounding; the
rounding is specified here in NumPy. A model must compute what the fp32 forward computes over the
values that the packer stored.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference_kernels as ref
import tiny
import tiny_gguf
from processes import RSS, measures_memory, run

from llmaccel import LLM, ConfigError, LoadError, UnsupportedError, _core, kernels
from llmaccel.options import LoadOptions

QUANT = {"int8": 1, "w4g128": 2, "w4g32": 3, "fp8": 4, "w6g16": 5}
HEADS = {"int8": "int8", "fp8": "int8", "w4g128": "int8", "w4g32": "w6g16", "w6g16": "w6g16"}
GROUPED = {"w4g128": (4, 128), "w4g32": (4, 32), "w6g16": (6, 16)}  # bits, group
TOP = {"int8": 127, "fp8": 448}
IDS = np.random.default_rng(3).integers(0, 199, 30).tolist()


def floats(dtype: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(as stored, the values that stands for)."""
    if dtype == ref.F32:
        return w, w
    if dtype == ref.F16:
        return w.astype(np.float16), w.astype(np.float16).astype(np.float32)
    return ref.bf16_round(w), ref.bf16_value(ref.bf16_round(w)).astype(np.float32)


def pack(parts, name: str, paired: bool = False):
    """(packed, format, values [units * 32, K])."""
    data, d = _core.pack(parts, ref.KEEP, paired, QUANT[name])
    f = ref.Format(d["pack"], d["K"], d["scale_type"], d["has_offset"], d["group"], d["row_scale"])
    rows = ref.unit_rows(f, data)
    back = [np.frombuffer(_core.unpack("scalar", data, d, i), np.float32) for i in range(rows)]
    return data, f, np.stack(back)


def weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Heavy tails, an outlier, rows of zeros and of tiny values."""
    rng = np.random.default_rng(seed + cols)
    w = (rng.standard_t(4, (rows, cols)) * 0.05).astype(np.float32)
    w[0, 0] = 3.0
    w[1] = 0.0
    w[2] *= np.float32(1e-3)
    return w


def row_scaled(w: np.ndarray, name: str) -> np.ndarray:
    """Symmetric, nearest even, one scale a row."""
    peak = np.abs(w).max(axis=1, keepdims=True)
    top = np.float32(TOP[name])
    inverse = np.divide(top, peak, out=np.zeros_like(peak), where=peak >= 2e-36)
    y = w * inverse
    if name == "int8":
        q = np.rint(y)
    else:
        table = ref.F8_VALUES[:127].astype(np.float32)  # ascending
        near = np.searchsorted((table[1:] + table[:-1]) / 2, np.abs(y))
        middle = np.isin(np.abs(y), (table[1:] + table[:-1]) / 2)
        near += middle & (near % 2 == 1)  # a tie goes to the even code
        q = np.copysign(table[near], y)
    return q * (peak / top)


def best_error(x: np.ndarray, bits: int) -> float:
    """Least squared error of a group over a fine grid of scales, codes -8 to 7 or -32 to 31."""
    extreme, half = x[np.abs(x).argmax()], 1 << bits >> 1
    if extreme == 0:
        return 0.0
    scale = (
        -extreme / (np.linspace(6.5, 13, 200) if bits == 4 else np.linspace(27, 34, 200))[:, None]
    )
    q = np.clip(np.rint(x / scale), -half, half - 1)
    scale = (x * q).sum(1, keepdims=True) / np.maximum((q * q).sum(1, keepdims=True), 1e-9)
    q = np.clip(np.rint(x / scale), -half, half - 1)
    return float(((q * scale - x) ** 2).sum(1).min())


# ---- codes and scales ----------------------------------------------------------------------------


@pytest.mark.parametrize("cols", [37, 256, 576])
@pytest.mark.parametrize("dtype", [ref.F32, ref.F16, ref.BF16])
@pytest.mark.parametrize("name", TOP)
def test_one_scale_a_row(name, dtype, cols):
    stored, w = floats(dtype, weights(45, cols))
    data, f, values = pack([(stored, dtype, 45, cols)], name)
    assert (f.row_scale, f.scale_type, f.group) == (1, ref.F32, 256)
    assert f.pack == (ref.PACK_I8 if name == "int8" else ref.PACK_F8)
    np.testing.assert_array_equal(values[:45], row_scaled(w, name))
    assert not values[45:].any(), "padded columns are not zero"
    np.testing.assert_allclose(ref.unit_values(f, data), values, rtol=2e-7)


@pytest.mark.parametrize("cols", [37, 96, 576])
@pytest.mark.parametrize("dtype", [ref.F32, ref.F16, ref.BF16])
@pytest.mark.parametrize("name", GROUPED)
def test_groups(name, dtype, cols):
    stored, w = floats(dtype, weights(45, cols))
    data, f, values = pack([(stored, dtype, 45, cols)], name)
    bits, group = GROUPED[name]
    form = (ref.PACK_I4, ref.F16) if bits == 4 else (ref.PACK_I6, ref.F16_I8)
    assert (f.pack, f.scale_type, f.has_offset) == (*form, 0)
    assert (f.row_scale, f.group) == (0, group)
    codes, scale, offset = (a[:45] for a in ref.read_codes(f, data))
    group = np.arange(cols) // f.group
    codes = codes.astype(np.float64) - f.zero
    spread, start = scale.astype(np.float64)[:, group], offset.astype(np.float64)[:, group]
    np.testing.assert_allclose(values[:45], spread * codes + start, rtol=2e-7, atol=1e-8)
    assert not values[45:].any(), "padded columns are not zero"
    # Each code is the nearest under its scale, a rounding of the quotient aside.
    exact = np.divide(w - start, spread, out=np.zeros(w.shape), where=spread != 0)
    lowest = -f.zero
    sure = spread != 0
    assert (np.abs(np.clip(exact, lowest, -lowest - 1) - codes)[sure] <= 0.5 + 1e-3).all()
    # The search over scales misses a fine grid by little.
    groups = [w[row, k0:k1].astype(np.float64) for row in range(45) for k0, k1 in f.spans()]
    error = ((values[:45].astype(np.float64) - w) ** 2).sum()
    assert error <= (1.02 if bits == 4 else 1.1) * sum(best_error(x, bits) for x in groups)


@pytest.mark.parametrize("name", QUANT)
def test_parts_and_pairs_are_their_rows(name):
    """Rows that follow one another and gate/up pairs hold what each matrix alone would."""
    first, second = weights(40, 96, 1), weights(40, 96, 2)
    parts = [(first, ref.F32, 40, 96), (second, ref.F32, 40, 96)]
    _, _, alone = pack([(np.vstack([first, second]), ref.F32, 80, 96)], name)
    _, _, joined = pack(parts, name)
    np.testing.assert_array_equal(joined[:80], alone[:80])
    _, _, paired = pack(parts, name, paired=True)
    for i in range(2):
        columns = [32 * (r // 16) + 16 * i + r % 16 for r in range(40)]
        np.testing.assert_array_equal(paired[columns], alone[40 * i : 40 * i + 40])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [ref.F32, ref.F16, ref.BF16])
@pytest.mark.parametrize("name", QUANT)
def test_what_is_not_finite_is_refused(name, dtype, bad):
    good, broken = weights(20, 300), weights(20, 300)
    broken[13, 299] = bad
    parts = [(floats(dtype, w)[0], dtype, 20, 300) for w in (good, broken)]
    with pytest.raises(ValueError, match="part 1 is not finite"):
        pack(parts, name)


@pytest.mark.parametrize("name", GROUPED)
def test_what_no_fp16_scale_holds_is_refused(name):
    part = (floats(ref.F32, weights(4, 128) * np.float32(1e9))[0], ref.F32, 4, 128)
    with pytest.raises(ValueError, match="part 0 is too large for fp16 scales"):
        pack([part], name)


@pytest.mark.parametrize("name", QUANT)
@pytest.mark.parametrize("size", [1.1e-36, 1.3e-36, 2.1e-36])
def test_tiny_rows_stay_finite(name, size):
    w = np.full((4, 128), size, np.float32)
    found = pack([(floats(ref.F32, w)[0], ref.F32, 4, 128)], name)[2]
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 2 * size


def test_grouped_sources_are_not_quantized_again():
    raw = np.random.default_rng(1).integers(0, 256, (8, 2 * 34), dtype=np.uint8)
    raw[:, [0, 34]], raw[:, [1, 35]] = 0, 0x2E  # fp16 scales of 0.1
    _, kept, _ = pack([(raw, ref.Q8_0, 8, 64)], "w4g128")
    assert (kept.pack, kept.group, kept.row_scale) == (ref.PACK_I8, 32, 0)


# ---- models --------------------------------------------------------------------------------------


def own_values(arrays: dict[str, np.ndarray], name: str, head: str) -> dict[str, np.ndarray]:
    """What the core stores for a checkpoint, the head in the form that goes with `name`."""
    out = {}
    for key, w in arrays.items():
        if w.ndim != 2 or (key == "model.embed_tokens.weight" and key != head):
            out[key] = w
        else:
            form = HEADS[name] if key == head else name
            out[key] = pack([(w, ref.F32, *w.shape)], form)[2][: w.shape[0]]
    return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", QUANT)
def test_a_model_computes_with_its_own_values(name, tied):
    """Logits with bf16 activations against fp32 over the stored values: bf16's error, no more."""
    config = tiny.config_of("llama", tie_word_embeddings=tied, hidden_size=160)
    arrays = tiny.arrays_of(config)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert ("lm_head.weight" in arrays) != tied
    with LLM.from_arrays(config, own_values(arrays, name, head), dtype="float32") as llm:
        expected = np.asarray(llm.logits(IDS))
    options = {"quantization": name, "activation": "bf16", "kv_cache_dtype": "float32"}
    with LLM.from_arrays(config, arrays, **options) as llm:
        ours = np.asarray(llm.logits(IDS))
        report, plan = llm.report(), llm.plan()
    assert np.std(ours - expected) <= 0.03 * np.std(expected)
    assert report["model"]["dtype"] == name
    assert report["model"]["head_dtype"] == HEADS[name]
    assert report["model"]["quantized"]
    assert report["memory"]["weight_bytes"] == plan.weights
    matrices = {k: w for k, w in arrays.items() if w.ndim == 2}
    least = sum(w.size for w in matrices.values()) // 2  # a tied head exists once
    most = sum(w.size for w in matrices.values()) * (1.3 if tied else 3.0)
    assert least < plan.weights < most


@pytest.mark.parametrize("name", ["int8", "w4g128", "w4g32", "w6g16"])
def test_int8_activations_stay_close_and_invariant(name):
    config = tiny.config_of("llama", hidden_size=160)
    arrays = tiny.arrays_of(config)
    with LLM.from_arrays(config, arrays, quantization=name, activation="bf16") as llm:
        expected = np.asarray(llm.logits(IDS))
    seen = []
    for budget in (512, 7):
        with LLM.from_arrays(
            config, arrays, quantization=name, activation="int8", max_num_batched_tokens=budget
        ) as llm:
            assert llm.report()["model"]["activation"] == "int8"
            seen.append(np.asarray(llm.logits(IDS)))
    assert np.std(seen[0] - expected) <= 0.15 * np.std(expected)
    np.testing.assert_array_equal(seen[0], seen[1])


@pytest.mark.parametrize("isa", _core.kernel_isas())
def test_finer_activations_on_every_level(isa):
    """qkv and head: two lanes of int8, or bf16 on levels without the dot; the same bits in steps of
    7 tokens."""
    config = tiny.config_of("llama", hidden_size=160)
    arrays = tiny.arrays_of(config)
    with LLM.from_arrays(config, arrays, quantization="int8", activation="bf16", isa=isa) as llm:
        expected = np.asarray(llm.logits(IDS))
    seen = []
    for budget in (512, 7):
        options = {"quantization": "int8", "isa": isa, "max_num_batched_tokens": budget}
        with LLM.from_arrays(config, arrays, **options) as llm:
            assert llm.report()["model"]["wide_activations"] == ["qkv", "head"]
            seen.append(np.asarray(llm.logits(IDS)))
    assert np.std(seen[0] - expected) <= 0.05 * np.std(expected)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_every_source_gives_the_same_model(tmp_path):
    """A safetensors folder, arrays and a float GGUF file of one model, quantized."""
    folder = tiny.make_checkpoint("llama", tmp_path / "hf")
    path = tiny_gguf.make_gguf("llama", folder, tmp_path / "f32.gguf", "F32")
    config = tiny.config_of("llama")
    logits = []
    for open_model in (
        lambda **o: LLM(folder, **o),
        lambda **o: LLM(path, **o),
        lambda **o: LLM.from_arrays(config, tiny.arrays_of(config), **o),
    ):
        with open_model(quantization="int8", activation="bf16") as llm:
            logits.append(np.asarray(llm.logits(IDS)))
    np.testing.assert_array_equal(logits[0], logits[2])
    # GGUF turns rows of q and k another way; sums inside heads may differ in their order.
    assert np.abs(logits[1] - logits[0]).max() <= 0.02 * np.std(logits[0])


def test_dummy_weights_can_be_quantized(tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path)
    with LLM(folder, load_format="dummy", quantization="w4g32") as llm:
        assert llm.report()["model"]["dtype"] == "w4g32"
        assert np.isfinite(np.asarray(llm.logits(IDS))).all()


def test_a_tensor_that_is_not_finite_is_named():
    config = tiny.config_of("llama")
    arrays = tiny.arrays_of(config)
    name = "model.layers.1.mlp.down_proj.weight"
    arrays[name] = arrays[name].copy()
    arrays[name][3, 5] = np.nan
    with pytest.raises(LoadError, match=f"{name}.*not finite"):
        LLM.from_arrays(config, arrays, quantization="int8")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"quantization": "int3"}, UnsupportedError, "quantization='int3'.*w4g128"),
        ({"quantization": "int4"}, UnsupportedError, "did you mean w4g128"),
        ({"quantization": "w4g-32"}, UnsupportedError, "did you mean w4g32"),
        ({"quantization": "awq"}, ConfigError, "awq.*no quantization_config"),
        ({"quantization": "exl2"}, UnsupportedError, "quantized by$"),
        ({"quantization": "INT8", "dtype": "float32"}, ConfigError, "dtype='float32'"),
        ({"quantization": "int8", "dtype": "float32"}, ConfigError, "dtype='float32'"),
        ({"quantization": "w4g32", "activation": "float32"}, ConfigError, "activation='float32'"),
        ({"quantization": "fp8", "activation": "int8"}, ConfigError, "activation='int8'.*fp8"),
        ({"quantization": "gguf"}, ConfigError, "quantization='gguf'"),
    ],
)
def test_contradictions(options, error, words):
    config = tiny.config_of("llama")
    with pytest.raises(error, match=words):
        LLM.from_arrays(config, tiny.arrays_of(config), **options)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("bf16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("half", "float16"),
        ("fp16", "float16"),
        ("float", "float32"),
        ("fp32", "float32"),
        ("f32", "float32"),
        ("int8", "int8"),
        ("fp8_e4m3", "fp8"),
    ],
)
def test_every_option_takes_every_spelling(given, meant):
    for name in ("dtype", "activation", "kv_cache_dtype"):
        assert getattr(LoadOptions("x", **{name: given}), name) == meant
    if meant != "float16":  # which no page stores
        assert kernels.KVPages(1, 8, dtype=given).dtype == meant
    if meant in ("bfloat16", "int8"):
        config = tiny.config_of("llama")
        options = {"quantization": "int8", "activation": given, "kv_cache_dtype": given}
        with LLM.from_arrays(config, tiny.arrays_of(config), **options) as llm:
            model = llm.report()["model"]
            assert model["activation"] == model["kv_cache_dtype"] == meant
        weight = kernels.pack(np.ones((32, 32), np.float32), format="int8")
        kernels.linear(np.ones(32, np.float32), weight, activation=given)


@pytest.mark.torch
def test_torch_dtypes_are_names():
    torch = pytest.importorskip("torch")
    for name in ("float32", "bfloat16", "float16", "int8"):
        assert LoadOptions("x", dtype=getattr(torch, name)).dtype == name


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "int8", "int8, tied"])
def test_a_dtype_that_converts_nothing_is_reported(tmp_path, kind):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    options = {"dtype": "half"}
    if kind.startswith("int8"):
        config = tiny.config_of("llama", tie_word_embeddings=kind == "int8, tied", **sizes)
        llm = LLM.from_arrays(config, tiny.arrays_of(config), quantization="int8", **options)
    else:
        folder = tiny.make_checkpoint("llama", tmp_path / "hf", **sizes)
        llm = LLM(tiny_gguf.make_gguf("llama", folder, tmp_path / "x.gguf", kind), **options)
    with llm:
        report = llm.report()
    # An embedding that is not the head stays a matrix of floats.
    assert report["no_effect"] == (["dtype"] if kind in ("Q8_0", "int8, tied") else [])
    assert (report["model"]["dtype"] == "float16") == (kind == "F16")


def test_a_quantized_file_is_not_quantized_again(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    folder = tiny.make_checkpoint("llama", tmp_path / "hf", **sizes)
    path = tiny_gguf.make_gguf("llama", folder, tmp_path / "q8.gguf", "Q8_0")
    for scheme in ("gptq", "bitsandbytes"):
        with pytest.raises(ConfigError, match=f"quantization='{scheme}': the model is a GGUF file"):
            LLM(path, quantization=scheme)
    with pytest.raises(ConfigError, match=r"quantization='int8'.*Q8_0"):
        LLM(path, quantization="int8")


@measures_memory
def test_weights_exist_once(smollm2_path):
    """Anonymous memory of a load in fp32, where a second copy would be 540 MB."""
    added, planned = run(
        """
        from llmaccel import LLM, SamplingParams
        before = reading("RssAnon")
        llm = LLM(sys.argv[1], dtype="float32", max_model_len=512, max_num_seqs=4)
        llm.generate("The sea", SamplingParams(max_tokens=2, temperature=0))
        plan, stats = llm.plan(), llm.engine.stats()
        taken = plan.weights + plan.workspace + plan.rope + stats["kv_bytes"]
        print(json.dumps([reading("RssAnon") - before, taken]))
        """,
        smollm2_path,
        prelude=RSS,
    )
    assert planned > 500 << 20
    assert added <= planned + (150 << 20)


@measures_memory
def test_source_pages_are_dropped(tmp_path):
    """Mapped file pages do not pile up while a checkpoint is packed."""
    sizes = {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 4}
    folder = tiny.make_checkpoint("llama", tmp_path, **sizes)
    mapped, size = run(
        """
        import os
        from llmaccel import LLM
        before = reading("RssFile")
        llm = LLM(sys.argv[1], quantization="int8")
        size = os.path.getsize(sys.argv[1] + "/model.safetensors")
        print(json.dumps([reading("RssFile") - before, size]))
        """,
        folder,
        prelude=RSS,
    )
    assert size > 300 << 20
    assert mapped < 64 << 20


@measures_memory
def test_a_replaced_matrix_takes_the_room_of_the_last(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2}
    folder = tiny.make_checkpoint("llama", tmp_path, **sizes)
    grown, held = run(
        """
        from llmaccel import _core
        from llmaccel.loading import load_weights, prepare
        from llmaccel.options import LoadOptions
        prepared = prepare(LoadOptions(sys.argv[1]))
        backend = _core.Backend("cpu", None, 1)
        model = _core.Model(backend, vars(prepared.config), prepared.forms.weights)
        load_weights(model, prepared)
        before = reading("RssAnon")
        for _ in range(10):
            load_weights(model, prepared)
        print(json.dumps([reading("RssAnon") - before, model.bytes]))
        """,
        folder,
        prelude=RSS,
    )
    assert held > 24 << 20
    assert grown < held
