"""Weights changed in place, taken from torch, put away and brought back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import SAMPLING

from llmaccel import (
    LLM,
    ConfigError,
    LLMAccelError,
    RequestError,
    SamplingParams,
    UnsupportedError,
    _core,
    loading,
    read_arrays,
)
from llmaccel.loading import load_weights, prepare

IDS = [5, 17, 200, 3, 88, 41, 7, 9]


def logit_bits(llm: LLM) -> bytes:
    return llm.logits(IDS).numpy().tobytes()


def pair(family: str, **overrides):
    """A configuration and two sets of weights for it."""
    config = tiny.config_of(family, **overrides)
    return config, tiny.arrays_of(config, 0), tiny.arrays_of(config, 1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "deepseek_v3", "gemma2"])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_updated_weights_are_as_if_loaded(family, quantization):
    config, old, new = pair(family)
    options = {} if quantization is None else {"quantization": quantization}
    with (
        LLM.from_arrays(config, new, **options) as want,
        LLM.from_arrays(config, old, **options) as llm,
    ):
        assert logit_bits(llm) != logit_bits(want)
        n_bytes = llm.report()["memory"]["weight_bytes"]
        llm.update_weights(new)
        assert logit_bits(llm) == logit_bits(want)
        assert llm.report()["memory"]["weight_bytes"] == n_bytes
        llm.update_weights(old)
        llm.update_weights({name: new[name] for name in new if "layers" in name or "h." in name})
        rest = {name: new[name] for name in new if "layers" not in name and "h." not in name}
        llm.update_weights(rest)
        assert logit_bits(llm) == logit_bits(want)


def test_other_widths_become_the_models_own():
    config, old, new = pair("llama", dtype="bfloat16")
    as_bf16 = {name: (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in new.items()}
    cut = {name: (a.astype(np.uint32) << 16).view(np.float32) for name, a in as_bf16.items()}
    with (
        LLM.from_arrays(config, old, dtype="bfloat16") as llm,
        LLM.from_arrays(config, cut, dtype="bfloat16") as want,
    ):
        llm.update_weights({name: a.astype(np.float64) for name, a in cut.items()})
        assert logit_bits(llm) == logit_bits(want)


@pytest.mark.torch
def test_bfloat16_models_take_float32():
    import torch

    config, old, new = pair("llama", dtype="bfloat16")
    narrow = {name: torch.from_numpy(a).bfloat16() for name, a in old.items()}
    want = {name: torch.from_numpy(a).bfloat16() for name, a in new.items()}
    with LLM.from_arrays(config, narrow) as llm, LLM.from_arrays(config, want) as other:
        llm.update_weights({name: torch.from_numpy(a) for name, a in new.items()})
        assert logit_bits(llm) == logit_bits(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda new: {"model.color.weight": new["model.norm.weight"]}, "is no weight of this"),
        (
            lambda new: {k: v for k, v in new.items() if "layers.1.self_attn.k_proj" not in k},
            "layers.1.self_attn.k_proj.weight' is missing",
        ),
        (
            lambda new: {**new, "model.layers.2.mlp.down_proj.weight": np.zeros((3, 4), "f4")},
            r"expected \[96, 100\], got \[3, 4\]",
        ),
        (
            lambda new: {**new, "lm_head.weight": np.full((301, 96), np.inf, "f4")},
            "lm_head.weight' holds a value that is not finite",
        ),
        (lambda new: {**new, "lm_head.weight": np.zeros((301, 96), "i8")}, "lm_head.weight"),
        (lambda new: {**new, "lm_head.weight": "x"}, "lm_head.weight"),
        (lambda new: [1], r"weights\[0\]: expected a pair"),
    ],
)
def test_nothing_changes_where_something_is_wrong(change, message):
    config, old, new = pair("llama")
    with LLM.from_arrays(config, old, quantization="int8") as llm:
        before = logit_bits(llm)
        with pytest.raises((RequestError, UnsupportedError), match=message):
            llm.update_weights(change(new))
        assert logit_bits(llm) == before


def test_requests_under_way_keep_their_weights():
    config, old, new = pair("llama")
    params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
    with LLM.from_arrays(config, old) as llm, LLM.from_arrays(config, new) as other:
        want = llm.generate([IDS], params)[0].outputs[0].token_ids
        stream = llm.generate([IDS], params, stream=True)
        next(stream)
        for call in (lambda: llm.update_weights(new), llm.sleep):
            with pytest.raises(LLMAccelError, match="1 requests are under way"):
                call()
        stream.close()
        assert llm.generate([IDS], params)[0].outputs[0].token_ids == want
        for weights, model in ((new, other), (old, None)) * 4:  # right after a request has ended
            llm.update_weights(weights)
            got = llm.generate([IDS], params)[0].outputs[0].token_ids
            asked = model.generate([IDS], params)[0].outputs[0] if model is not None else None
            assert got == (want if asked is None else asked.token_ids)


def test_threads_that_submit_and_one_that_updates():
    """Every answer is of one set of weights, whole."""
    config, old, new = pair("llama")
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    with LLM.from_arrays(config, old) as llm:
        answers = [llm.generate([IDS], params)[0].outputs[0].token_ids]
        llm.update_weights(new)
        answers.append(llm.generate([IDS], params)[0].outputs[0].token_ids)
        got, stop = [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                got.append(llm.generate([IDS], params)[0].outputs[0].token_ids)

        asker = threading.Thread(target=ask)
        asker.start()
        done = 0
        while done < 6:
            try:
                llm.update_weights((old, new)[done % 2])
                done += 1
            except LLMAccelError:
                continue
        stop.set()
        asker.join()
        assert got
        assert all(tokens in answers for tokens in got)


def test_the_core_sets_no_weight_while_a_step_reads_it():
    config, old, _ = pair("llama")
    said: list[str] = []

    def during_a_step(*op) -> None:
        try:
            model.set("final_norm", 0, [(np.ones(96, np.float32), "F32", 1, 96)])
        except LLMAccelError as error:
            said.append(str(error))

    with LLM.from_arrays(config, old) as llm:
        backend = _core.Backend("cpu", None, 1, trace=during_a_step)
        model = _core.Model(backend, vars(llm._config), llm._forms.weights)
        load_weights(model, prepare(llm._options, old))
        engine = _core.Engine(model, llm.plan().limits)
        engine.add(IDS, {**SAMPLING, "max_tokens": 1})
        while engine.has_work():
            engine.step()
        assert said
        assert set(said) == {"this Model is in use by another thread"}
        count = len(said)
        during_a_step()  # between steps it may
        assert len(said) == count
        engine.close()
        model.close()


def test_a_classifiers_head_is_updated_too():
    config = tiny.config_of("llama", architectures=["LlamaForSequenceClassification"], num_labels=3)
    old, new = tiny.arrays_of(config, 0), tiny.arrays_of(config, 1)
    with LLM.from_arrays(config, old) as llm, LLM.from_arrays(config, new) as want:
        llm.update_weights(new)
        assert llm.classify([IDS])[0].outputs.probs == want.classify([IDS])[0].outputs.probs


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (np.zeros((3, 4), np.float32), r"score.weight: expected \[3, 96\]"),
        (np.zeros((3, 96), np.int64), "score.weight"),
    ],
)
def test_a_head_that_does_not_fit(head, message):
    config = tiny.config_of("llama", architectures=["LlamaForSequenceClassification"], num_labels=3)
    arrays = tiny.arrays_of(config, 0)
    with LLM.from_arrays(config, arrays) as llm:
        before = llm.classify([IDS])[0].outputs.probs
        with pytest.raises(RequestError, match=f"update_weights: .*{message}"):
            llm.update_weights({**tiny.arrays_of(config, 1), "score.weight": head})
        assert llm.classify([IDS])[0].outputs.probs == before


def test_values_that_float16_has_not():
    config, old, new = pair("llama", dtype="float16")
    name = "model.layers.1.mlp.down_proj.weight"
    wide = new[name].copy()
    with LLM.from_arrays(config, {key: a.astype(np.float16) for key, a in old.items()}) as llm:
        before = logit_bits(llm)
        wide[3, 5] = 65520.0
        with pytest.raises(RequestError, match=f"{name}' holds a value beyond float16's 65504"):
            llm.update_weights({**new, name: wide})
        assert logit_bits(llm) == before
        wide[3, 5] = 65519.0
        llm.update_weights({name: wide})
        assert np.isfinite(llm.logits(IDS).numpy()).all()


def test_codes_of_a_file_stay(smollm2_path):
    with (
        LLM(smollm2_path, max_model_len=256, max_num_seqs=2) as llm,
        pytest.raises(
            UnsupportedError, match=r"blk.0.ffn_down.weight': the model keeps it as Q4_1"
        ),
    ):
        llm.update_weights({"blk.0.ffn_down.weight": np.zeros((576, 1536), np.float32)})


# ---- torch modules -------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_a_module_is_a_model(family, tmp_path):
    import torch

    folder = tiny.make_checkpoint(family, tmp_path)
    module = tiny.hf_model(folder)
    with LLM(folder, dtype="float32") as want, LLM.from_torch(module, dtype="float32") as llm:
        assert logit_bits(llm) == logit_bits(want)
    with torch.no_grad():
        assert torch.isfinite(module(torch.tensor([IDS])).logits).all()
    half = module.to(torch.bfloat16)
    config = {**module.config.to_dict(), "architectures": [type(module).__name__]}
    with LLM.from_torch(half) as llm, LLM.from_arrays(config, dict(half.state_dict())) as want:
        assert llm.report()["model"]["dtype"] == "bfloat16"
        assert logit_bits(llm) == logit_bits(want)


@pytest.mark.torch
def test_released_parameters_are_let_go(tmp_path, monkeypatch):
    folder = tiny.make_checkpoint("llama-llama3", tmp_path)  # tied
    module = tiny.hf_model(folder)
    left: list[int] = []

    def counting(*args) -> None:
        left.append(sum(p.numel() for p in module.parameters()))
        loading_set_slot(*args)

    loading_set_slot = loading.set_slot
    monkeypatch.setattr(loading, "set_slot", counting)
    with (
        LLM(folder, dtype="float32") as want,
        LLM.from_torch(module, release=True, dtype="float32") as llm,
    ):
        assert logit_bits(llm) == logit_bits(want)
        assert sum(p.numel() for p in module.parameters()) == 0
        assert left == sorted(left, reverse=True)  # one after another, not all at the end
        assert len(set(left)) > 8
    with pytest.raises(RequestError, match="release: expected True or False"):
        LLM.from_torch(module, release=1)
    with pytest.raises(LLMAccelError, match="expected a transformers module"):
        LLM.from_torch(3)


@pytest.mark.torch
def test_parameters_with_gaps_are_copied_one_by_one(tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path)
    module = tiny.hf_model(folder)
    for layer in module.model.layers:
        weight = layer.mlp.down_proj.weight
        weight.data = weight.data.t().contiguous().t()
        assert not weight.is_contiguous()
    with LLM(folder, dtype="float32") as want, LLM.from_torch(module, dtype="float32") as llm:
        assert logit_bits(llm) == logit_bits(want)


@pytest.mark.torch
def test_a_tokenizer_of_transformers_is_taken(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tiny.stories260k_folder(shared_data.parent, tmp_path / "stories")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = "{{ messages[0].content }}"
    module, text = tiny.hf_model(folder), "Once upon a time"
    options = {"temperature": 0, "max_tokens": 8}
    with (
        LLM(folder, dtype="float32") as want,
        LLM.from_torch(module, dtype="float32", tokenizer=theirs) as llm,
    ):
        tokenizer = llm.get_tokenizer()
        assert tokenizer.encode(text) == theirs(text)["input_ids"]
        assert tokenizer.bos_token_id == theirs.bos_token_id
        assert tokenizer.chat_template == theirs.chat_template
        params = SamplingParams(**options)
        a, b = (one.generate(text, params)[0].outputs[0] for one in (want, llm))
        assert (a.text, list(a.token_ids)) == (b.text, list(b.token_ids))
    with pytest.raises(ConfigError, match="expected a path, a Tokenizer, or a fast tokenizer"):
        LLM.from_torch(module, tokenizer=3)


def test_pairs_of_names_and_tensors(tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path)
    _, arrays = read_arrays(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    changed = (arrays[name] * 2).astype(np.float32)
    with LLM(folder, dtype="float32") as one, LLM(folder, dtype="float32") as other:
        one.update_weights({name: changed})
        other.update_weights(pair for pair in [(name, changed)])
        assert logit_bits(one) == logit_bits(other)
        near = r"is no weight of this model; near: 'model.layers.0.mlp.down_proj.weight'"
        with pytest.raises(RequestError, match=near):
            one.update_weights({"model.layers.0.mlp.down.weight": changed})
        with pytest.raises(RequestError, match=r"given twice"):
            one.update_weights([(name, changed), (name, changed)])
        with pytest.raises(RequestError, match=r"weights\[0\]: expected a pair"):
            one.update_weights([name])


# ---- sleep ---------------------------------------------------------------------------------------


def resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """About 40 MB of weights."""
    return tiny.make_checkpoint(
        "llama", tmp_path_factory.mktemp("large"), vocab_size=40000, hidden_size=128
    )


def test_sleep_gives_memory_back(large):
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    with LLM(large, dtype="float32") as llm:
        want = llm.generate([IDS], params)[0].outputs[0].token_ids
        awake, before = resident(), llm.report()
        llm.sleep(level=1)
        light = llm.report()
        assert llm.is_sleeping()
        assert light["memory"]["kv_bytes"] == light["memory"]["workspace_bytes"] == 0
        assert light["memory"]["weight_bytes"] == before["memory"]["weight_bytes"]
        assert light["stats"]["output_tokens"] == before["stats"]["output_tokens"] == 20
        assert resident() < awake - before["memory"]["kv_bytes"] // 2
        for call in (lambda: llm.generate([IDS], params), lambda: llm.embed([IDS])):
            with pytest.raises(LLMAccelError, match=r"this LLM sleeps; wake_up\(\) comes first"):
                call()
        llm.sleep(level=2)
        assert llm.report()["memory"]["weight_bytes"] == 0
        assert resident() < awake - before["memory"]["weight_bytes"] // 2
        with pytest.raises(LLMAccelError, match="sleeps"):
            llm.update_weights({})
        for _ in range(2):  # the second has nothing to do
            llm.wake_up()
            assert not llm.is_sleeping()
            assert llm.generate([IDS], params)[0].outputs[0].token_ids == want
        assert llm.report()["stats"]["output_tokens"] == 60
        assert llm.report()["memory"]["weight_bytes"] == before["memory"]["weight_bytes"]


def test_arrays_cannot_be_read_again():
    config, old, _ = pair("llama")
    with LLM.from_arrays(config, old) as llm:
        before = logit_bits(llm)
        with pytest.raises(UnsupportedError, match="level: 2 needs files"):
            llm.sleep(level=2)
        assert not llm.is_sleeping()
        llm.sleep()
        llm.wake_up(tags=["weights", "kv_cache"])
        assert logit_bits(llm) == before
        for level in (0, 3, True, "1"):
            with pytest.raises(RequestError, match="level: expected 1 or 2"):
                llm.sleep(level)
        for tags in (["cache"], "weights", 3):
            with pytest.raises(RequestError, match="tags: expected a list"):
                llm.wake_up(tags=tags)
        llm.sleep()
    with pytest.raises(LLMAccelError, match="closed"):
        llm.wake_up()


@pytest.mark.parametrize("order", [["weights", "kv_cache"], ["kv_cache", "weights"]])
def test_parts_wake_one_by_one(tmp_path, order):
    """Weights can be replaced before there is a cache again."""
    folder = tiny.make_checkpoint("llama", tmp_path)
    with LLM(folder) as llm:
        before = logit_bits(llm)
        norm = {"model.norm.weight": np.zeros(llm.report()["model"]["d_model"], np.float32)}
        for level in (1, 2, 1):
            llm.sleep(level)
            llm.wake_up(tags=order[:1])
            assert llm.is_sleeping() == (order[0] == "weights" or level == 2)
            assert llm.report()["memory"]["kv_bytes"] == 0
            if order[0] == "weights":
                llm.update_weights(norm)
                with pytest.raises(LLMAccelError, match="this LLM sleeps"):
                    llm.generate([IDS])
            llm.wake_up(tags=order[1:])
            assert not llm.is_sleeping()
            assert (logit_bits(llm) == before) == (order[0] != "weights")


def test_a_file_that_is_gone_leaves_it_asleep(tmp_path):
    folder = tiny.make_checkpoint("llama", tmp_path)
    with LLM(folder) as llm:
        before = logit_bits(llm)
        llm.sleep(2)
        (folder / "model.safetensors").rename(folder / "away")
        with pytest.raises(LLMAccelError):
            llm.wake_up()
        assert llm.is_sleeping()
        (folder / "away").rename(folder / "model.safetensors")
        llm.wake_up()
        assert logit_bits(llm) == before


def test_counters_of_experts_go_on(tmp_path):
    folder = tiny.make_checkpoint("qwen3_moe", tmp_path)
    with LLM(folder) as llm:
        llm.generate([IDS], SamplingParams(max_tokens=4))
        load = llm.expert_load()
        llm.sleep()
        np.testing.assert_array_equal(llm.expert_load(), load)
        llm.wake_up()
        llm.generate([IDS], SamplingParams(max_tokens=4))
        assert llm.expert_load().sum() == 2 * load.sum()
