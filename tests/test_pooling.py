"""Embeddings, classes and scores: against transformers, under vLLM's names, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import letters
import numpy as np
import pytest
import tiny

from llmaccel import (
    LLM,
    ConfigError,
    LoadError,
    PoolerConfig,
    PoolingParams,
    RequestError,
    UnsupportedCombination,
    UnsupportedError,
)
from llmaccel.pooling_params import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
)

RAW = PoolingParams(use_activation=False)
PROMPTS = [[5, 17, 200, 3, 88], [9, 150, 33, 2, 64, 290, 12, 7, 7, 31, 250], [3]]


def classifier(family: str, architecture: str, folder: Path, **overrides) -> Path:
    return tiny.make_checkpoint(family, folder, architectures=[architecture], **overrides)


def pooling_modules(folder: Path, mode: str, normalize: bool) -> Path:
    """What sentence-transformers writes beside a model."""
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalize]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    given = {"word_embedding_dimension": 96, "pooling_mode_cls_token": False, mode: True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(given))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, dtype="float32", runner="pooling") as model:
        yield model


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A classifier with one class."""
    folder = classifier(
        "llama", "LlamaForSequenceClassification", tmp_path_factory.mktemp("one"), num_labels=1
    )
    with LLM(folder, dtype="float32") as model:
        yield model


@pytest.mark.torch
def test_embeddings_are_those_of_transformers(folder, llm):
    import torch

    model = tiny.hf_model(folder)
    with torch.no_grad():
        states = [model.model(torch.tensor([p])).last_hidden_state[0].numpy() for p in PROMPTS]
    prompts = [{"prompt_token_ids": p} for p in PROMPTS]
    found = llm.embed(prompts)
    for out, want, ids in zip(found, states, PROMPTS, strict=True):
        assert isinstance(out, EmbeddingRequestOutput)
        assert out.prompt_token_ids == ids
        assert out.finished
        assert out.outputs.hidden_size == len(out.outputs.embedding) == 96
        last = want[-1] / np.linalg.norm(want[-1])
        np.testing.assert_allclose(out.outputs.embedding, last, atol=1e-4)
        assert torch.from_dlpack(out.outputs.data).data_ptr() == out.outputs.data.data_ptr()
    again = pickle.loads(pickle.dumps(found))
    assert [out.outputs.data.tolist() for out in again] == [out.outputs.embedding for out in found]
    plain = llm.embed(prompts, normalize=False)
    every = llm.encode(prompts, pooling_task="token_embed")
    for out, all_of_it, want in zip(plain, every, states, strict=True):
        np.testing.assert_allclose(out.outputs.embedding, want[-1], rtol=1e-4, atol=1e-4)
        unit = want / np.linalg.norm(want, axis=1, keepdims=True)
        assert isinstance(all_of_it, PoolingRequestOutput)
        np.testing.assert_allclose(all_of_it.outputs.data.numpy(), unit, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "normalize"),
    [
        ("pooling_mode_mean_tokens", False),
        ("pooling_mode_cls_token", True),
        ("pooling_mode_lasttoken", False),
    ],
)
def test_modules_json_decides(mode, normalize, tmp_path):
    folder = pooling_modules(tiny.make_checkpoint("llama", tmp_path), mode, normalize)
    with LLM(folder, dtype="float32", max_num_batched_tokens=4, max_num_seqs=2) as llm:
        for ids, out in zip(PROMPTS, llm.embed(PROMPTS), strict=True):
            states = llm.hidden_states(ids)[0].numpy().astype(np.float64)
            want = {"mean": states.mean(axis=0), "cls": states[0], "lasttoken": states[-1]}[
                mode.split("_")[2]
            ]
            want = want / np.linalg.norm(want) if normalize else want
            np.testing.assert_allclose(out.outputs.embedding, want, rtol=1e-6, atol=1e-6)


def test_a_gguf_file_decides_too(tmp_path):
    import gguf
    import tiny_gguf

    folder = tiny.make_checkpoint("llama", tmp_path / "folder")
    for kind, want in ((1, "MEAN"), (3, "LAST"), (None, "LAST")):
        file = tiny_gguf.make_gguf(
            "llama",
            folder,
            tmp_path / f"{kind}.gguf",
            extend=lambda writer, kind=kind: (
                kind and writer.add_pooling_type(gguf.PoolingType(kind))
            ),
        )
        with LLM(file, dtype="float32") as llm:
            states = llm.hidden_states(PROMPTS[1])[0].numpy().astype(np.float64)
            (out,) = llm.embed([PROMPTS[1]], normalize=False)
            pooled = states.mean(axis=0) if want == "MEAN" else states[-1]
            np.testing.assert_allclose(out.outputs.embedding, pooled, rtol=1e-6, atol=1e-6)
    file = tiny_gguf.make_gguf(
        "llama",
        folder,
        tmp_path / "rank.gguf",
        extend=lambda writer: writer.add_pooling_type(gguf.PoolingType.RANK),
    )
    with LLM(file) as llm, pytest.raises(UnsupportedError, match="pooling_type 4"):
        llm.embed([PROMPTS[1]])


def test_modules_that_are_not_here_are_refused(tmp_path):
    folder = pooling_modules(
        tiny.make_checkpoint("llama", tmp_path), "pooling_mode_max_tokens", False
    )
    with LLM(folder, dtype="float32") as llm:
        with pytest.raises(UnsupportedError, match="pooling_mode_max_tokens"):
            llm.embed(PROMPTS)
        modules = [{"type": "sentence_transformers.models.Dense", "path": "1_Dense"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(UnsupportedError, match="Dense"):
            llm.embed(PROMPTS)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("llama", "LlamaForSequenceClassification"),
        ("qwen2", "Qwen2ForSequenceClassification"),
        ("qwen3", "Qwen3ForSequenceClassification"),
        ("gpt2", "GPT2ForSequenceClassification"),
    ],
)
def test_classes_are_those_of_transformers(family, architecture, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    names = {str(i): f"class {i}" for i in range(5)}
    folder = classifier(family, architecture, tmp_path, id2label=names, pad_token_id=0)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"], info
    with torch.no_grad():
        logits = [model(torch.tensor([p])).logits[0].double() for p in PROMPTS]
    with LLM(folder, dtype="float32") as llm:
        raw = llm.classify(PROMPTS, pooling_params=PoolingParams(use_activation=False))
        for out, plain, want in zip(llm.classify(PROMPTS), raw, logits, strict=True):
            assert isinstance(out, ClassificationRequestOutput)
            assert out.outputs.num_classes == 5
            np.testing.assert_allclose(out.outputs.probs, want.softmax(0).numpy(), atol=1e-4)
            np.testing.assert_allclose(plain.outputs.probs, want.numpy(), rtol=1e-4, atol=1e-4)
        tokens = llm.reward(PROMPTS)
        for out, last in zip(tokens, llm.classify(PROMPTS), strict=True):
            assert out.outputs.data.shape == (len(out.prompt_token_ids), 5)
            np.testing.assert_array_equal(out.outputs.data.numpy()[-1], last.outputs.data.numpy())
        with pytest.raises(UnsupportedError, match="has 5 classes"):
            llm.score([[1, 2]], [[3]])
        with pytest.raises(UnsupportedError, match="no head that predicts tokens"):
            llm.generate([[1, 2]])


def test_kinds_of_problems(tmp_path):
    for i, (problem, rule) in enumerate(
        {
            "regression": lambda x: x,
            "multi_label_classification": lambda x: 1 / (1 + np.exp(-x)),
            "single_label_classification": lambda x: np.exp(x) / np.exp(x).sum(),
        }.items()
    ):
        folder = classifier(
            "llama",
            "LlamaForSequenceClassification",
            tmp_path / str(i),
            num_labels=3,
            problem_type=problem,
        )
        with LLM(folder, dtype="float32") as llm:
            (out,) = llm.classify(PROMPTS[0])
            (raw,) = llm.classify(PROMPTS[0], pooling_params=PoolingParams(use_activation=False))
            want = rule(np.array(raw.outputs.probs))
            np.testing.assert_allclose(out.outputs.probs, want, rtol=1e-5)


def test_a_bare_model_embeds_and_does_not_generate(folder, llm, tmp_path):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "model.safetensors")
    bare = {k.removeprefix("model."): v for k, v in arrays.items() if k != "lm_head.weight"}
    save_file(bare, tmp_path / "model.safetensors")
    config = tiny.config_of("qwen3", architectures=["Qwen3Model"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with LLM(tmp_path, dtype="float32") as model:
        for mine, whole in zip(model.embed(PROMPTS), llm.embed(PROMPTS), strict=True):
            np.testing.assert_array_equal(mine.outputs.data.numpy(), whole.outputs.data.numpy())
        for call in (
            lambda: model.generate([[1]]),
            lambda: model.logits([1]),
            lambda: model.loglikelihood([[1]], [[2]]),
        ):
            with pytest.raises(UnsupportedError, match="Qwen3Model has no head"):
                call()
        with pytest.raises(UnsupportedError, match="classify: Qwen3Model has no head for classes"):
            model.classify(PROMPTS)


def test_scores_of_pairs(llm, judge):
    one, many = [5, 6, 7], [[8, 9], [5, 6, 7], [200]]
    found = llm.score([one], many)
    assert [type(out) for out in found] == [ScoringRequestOutput] * 3
    a = llm.embed([one])[0].outputs.data.numpy()
    for out, other in zip(found, many, strict=True):
        b = llm.embed([other])[0].outputs.data.numpy()
        assert out.outputs.score == pytest.approx(float(a @ b), abs=1e-6)
        assert out.prompt_token_ids == one + other
    assert found[1].outputs.score == pytest.approx(1.0, abs=1e-6)
    judged = judge.score([one], many)
    for out, other in zip(judged, many, strict=True):
        (probs,) = judge.classify([one + other])[0].outputs.probs
        assert out.outputs.score == probs
        assert 0.0 < probs < 1.0
    with pytest.raises(RequestError, match="data_2: expected 2, one for each of data_1, got 3"):
        llm.score([one, one], many)


def test_one_text_is_embedded_once(llm, monkeypatch):
    """For all of its pairs, where their parameters agree."""
    ran, submit = [], llm._submit

    def counted(request, *args, **options):
        ran.append(request)
        return submit(request, *args, **options)

    monkeypatch.setattr(llm, "_submit", counted)
    one, many = [5, 6, 7], [[8, 9], [5, 6, 7], [200]]
    alike, first = [PoolingParams(truncate_prompt_tokens=2)] * 3, llm.score([one], many[:1])[0]
    apart = [PoolingParams(truncate_prompt_tokens=n) for n in (2, 3, 3)]
    for params, count in ((None, 4), (alike, 4), (apart, 6)):
        ran.clear()
        found = llm.score([one], many, pooling_params=params)
        assert len(ran) == count
        same = llm.score([one] * 3, many, pooling_params=params)
        assert [out.outputs.score for out in found] == [out.outputs.score for out in same]
        assert [out.prompt_token_ids for out in found] == [out.prompt_token_ids for out in same]
    assert first.outputs.score == llm.score([one], many)[0].outputs.score
    assert llm.score([one], []) == []


def test_a_pair_of_texts_is_encoded_as_the_tokenizer_says(shared_data, tmp_path):
    from llmaccel import load_tokenizer

    stories = tiny.stories260k_folder(shared_data.parent, tmp_path / "stories")
    tokenizer = load_tokenizer(stories)
    pair = tokenizer.encode_pair("Once upon", "a time")
    # as Llama's tokenizers of transformers do: a BOS before each
    assert pair == tokenizer.encode("Once upon") + tokenizer.encode("a time")
    assert pair.count(tokenizer.bos_token_id) == 2
    folder = classifier(
        "llama",
        "LlamaForSequenceClassification",
        tmp_path / "judge",
        num_labels=1,
        vocab_size=512,
    )
    with LLM(folder, dtype="float32", tokenizer=tokenizer) as judge:
        (out,) = judge.score("Once upon", "a time")
        assert out.prompt_token_ids == pair
        plain = {"add_special_tokens": False}
        (out,) = judge.score("Once upon", "a time", tokenization_kwargs=plain)
        assert out.prompt_token_ids == [i for i in pair if i != tokenizer.bos_token_id]
        cut = {"truncation": True, "max_length": 4}
        (out,) = judge.score("Once upon", "a time", tokenization_kwargs=cut)
        bos, first = tokenizer.bos_token_id, tokenizer.encode("Once upon", False)[0]
        assert out.prompt_token_ids == [bos, first, bos, tokenizer.encode("a time", False)[0]]


def test_a_reranker_that_answers_with_a_token(shared_data, tmp_path):
    from llmaccel import load_tokenizer

    tokenizer = load_tokenizer(tiny.stories260k_folder(shared_data.parent, tmp_path / "stories"))
    folder = tiny.make_checkpoint("qwen3", tmp_path / "reranker", vocab_size=512)
    no, yes = 403, 407
    tokens = tokenizer.convert_ids_to_tokens([no, yes])
    made = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": tokens,
        "is_original_qwen3_reranker": True,
    }
    common = {"dtype": "float32", "tokenizer": tokenizer}
    with LLM(folder, **common) as whole:
        logits = whole.logits(PROMPTS[0]).numpy()[-1].astype(np.float64)
    with LLM(folder, hf_overrides=made, **common) as judge:
        (out,) = judge.score([PROMPTS[0][:2]], [PROMPTS[0][2:]])
        want = np.exp(logits[yes]) / (np.exp(logits[yes]) + np.exp(logits[no]))
        assert out.outputs.score == pytest.approx(want, abs=1e-5)
    several = {**made, "is_original_qwen3_reranker": False}
    with LLM(folder, hf_overrides=several, **common) as judge:
        (out,) = judge.classify([PROMPTS[0]], pooling_params=PoolingParams(use_activation=False))
        np.testing.assert_allclose(out.outputs.probs, logits[[no, yes]], rtol=1e-4, atol=1e-5)
    for change, message in (
        ({"classifier_from_token": ["no such token", "x"]}, "'no such token' is no token"),
        ({"classifier_from_token": ["x"]}, "must be a list of tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            LLM(folder, hf_overrides={**made, **change}, **common)


def test_the_same_bits_in_any_company(llm, folder):
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, 300, n).tolist() for n in (70, 1, 33, 128, 9, 64, 65, 2)] * 3
    asked = {"pooling_task": "token_embed"}
    alone = [llm.encode([p], **asked)[0].outputs.data.numpy().tobytes() for p in prompts]
    limits = {"max_num_batched_tokens": 7, "max_num_seqs": 3, "threads": 1}
    with LLM(folder, dtype="float32", **limits) as other:
        for model in (llm, other):
            found = [out.outputs.data.numpy().tobytes() for out in model.encode(prompts, **asked)]
            assert found == alone


def test_dimensions(folder):
    with LLM(folder, dtype="float32", hf_overrides={"matryoshka_dimensions": [32, 64]}) as llm:
        (whole,) = llm.embed([PROMPTS[0]], normalize=False)
        (some,) = llm.embed([PROMPTS[0]], pooling_params=PoolingParams(dimensions=32))
        part = np.array(whole.outputs.embedding[:32])
        np.testing.assert_allclose(some.outputs.embedding, part / np.linalg.norm(part), rtol=1e-5)
        with pytest.raises(RequestError, match=r"dimensions: expected \[32, 64\], got 33"):
            llm.embed([PROMPTS[0]], pooling_params=PoolingParams(dimensions=33))


def test_truncation(llm):
    (out,) = llm.embed([PROMPTS[1]], truncate_prompt_tokens=4)
    assert out.prompt_token_ids == PROMPTS[1][-4:]
    with pytest.raises(RequestError, match=r"prompts\[1\]: 200 tokens, but max_model_len is 160"):
        llm.embed([[1], [7] * 200])
    (out,) = llm.embed([[7] * 200], pooling_params=PoolingParams(truncate_prompt_tokens=-1))
    assert len(out.prompt_token_ids) == 160


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode([[1]]), RequestError, "pooling_task: expected one of embed"),
        (lambda m: m.encode([[1]], pooling_task="score"), RequestError, "pooling_task"),
        (lambda m: m.reward([[1]]), UnsupportedError, "token_classify: Qwen3ForCausalLM has no"),
        (lambda m: m.embed([[1]], pooling_params=3), RequestError, "expected PoolingParams"),
        (
            lambda m: m.embed([[1]], pooling_params=PoolingParams(task="classify")),
            RequestError,
            "task is 'classify', this call's is 'embed'",
        ),
        (
            lambda m: m.embed([[1]], pooling_params=PoolingParams(dimensions=4)),
            RequestError,
            "is_matryoshka",
        ),
        (lambda m: m.embed([[1], [999]]), RequestError, r"prompts\[1\]: .* outside the vocab"),
        (lambda m: m.embed([[1], []]), RequestError, r"prompts\[1\]: empty"),
        (lambda m: m.embed([[1]], nothing=1), TypeError, "'nothing'"),
        (lambda m: m.embed([[1]], lora_request=1), UnsupportedError, "lora_request"),
        (lambda m: PoolingParams(normalize=1), RequestError, "normalize: expected True"),
        (lambda m: PoolingParams(step_tag_id=1), UnsupportedError, "step_tag_id"),
        (lambda m: PoolingParams(task="rank"), RequestError, "task: expected one of"),
        (lambda m: PoolingParams(dimensions=0), RequestError, "dimensions"),
        (lambda m: PoolingParams(truncate_prompt_tokens=0), RequestError, "truncate"),
        (lambda m: PoolingParams(color=1), TypeError, "color"),
    ],
)
def test_what_is_wrong_is_named(llm, call, error, message):
    with pytest.raises(error, match=message):
        call(llm)
    assert len(llm.embed([[1]])) == 1  # the engine is free of what was begun


def test_every_row_stands_for_its_bare_model_and_its_classifier():
    from llmaccel.models.families import FAMILIES, find_family, task_of

    for row in FAMILIES:
        for name in row.architectures:
            stem = name.replace("ForCausalLM", "").replace("LMHeadModel", "")
            for end, task in (("Model", "embed"), ("ForSequenceClassification", "classify")):
                assert find_family({"architectures": [stem + end]}) == (row, stem + end)
                assert task_of(stem + end) == task
            assert task_of(name) == "generate"
    for name in ("BertModel", "XLMRobertaForSequenceClassification", "Model", "T5ForCausalLM"):
        with pytest.raises(UnsupportedError, match=f"architecture '{name}' is not supported"):
            find_family({"architectures": [name]})


def test_a_head_that_does_not_fit_is_named(tmp_path):

    folder = classifier("llama", "LlamaForSequenceClassification", tmp_path, num_labels=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 4}))
    with pytest.raises(LoadError, match=r"score.weight: expected \[4, 96\], got \[2, 96\]"):
        LLM(folder, dtype="float32")


# ---- pooler_config and convert ------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"pooling_type": "mean"}, {"seq_pooling_type": "CLS"}])
def test_pooler_config_of_embeddings(llm, folder, given):
    (states,) = llm.encode([PROMPTS[0]], pooling_task="token_embed", pooling_params=RAW)
    rows = states.outputs.data.numpy().astype(np.float64)
    want = rows.mean(axis=0) if "pooling_type" in given else rows[0]
    unit = {"use_activation": False}
    for config in ({**given, **unit}, PoolerConfig(**given, **unit)):
        with LLM(folder, dtype="float32", pooler_config=config) as other:
            (out,) = other.embed([PROMPTS[0]])
            np.testing.assert_allclose(out.outputs.embedding, want, rtol=1e-5, atol=1e-6)
            (out,) = other.embed([PROMPTS[0]], normalize=True)
            np.testing.assert_allclose(np.linalg.norm(out.outputs.embedding), 1.0, rtol=1e-5)


def test_pooler_config_of_classes(tmp_path):
    folder = classifier("qwen3", "Qwen3ForSequenceClassification", tmp_path, num_labels=3)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen3ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    common = {"dtype": "float32", "convert": "classify"}
    with LLM(folder, **common) as llm:
        assert llm.report()["model"]["architecture"] == "Qwen3ForSequenceClassification"
        (each,) = llm.encode([PROMPTS[0]], pooling_task="token_classify", pooling_params=RAW)
        logits = each.outputs.data.numpy().astype(np.float64)
        (out,) = llm.classify([PROMPTS[0]], pooling_params=RAW)
        np.testing.assert_allclose(out.outputs.probs, logits[-1], rtol=1e-5)
        assert (
            llm.reward([PROMPTS[0]], pooling_params=RAW)[0].outputs.data.numpy() == logits
        ).all()
    how = {"pooling_type": "CLS", "logit_mean": 0.5, "logit_sigma": 2.0, "use_activation": False}
    with LLM(folder, pooler_config=how, **{**common, "convert": "reward"}) as llm:
        (out,) = llm.classify([PROMPTS[0]])
        np.testing.assert_allclose(out.outputs.probs, (logits[0] - 0.5) / 2.0, rtol=1e-5)
        task = PoolerConfig(task="token_classify").params()
        (out,) = llm.encode([PROMPTS[0]], task)
        assert out.outputs.data.shape == (len(PROMPTS[0]), 3)
    with pytest.raises(UnsupportedError, match=r"convert='classify': .*'score\.weight'"):
        LLM(tiny.make_checkpoint("qwen3", tmp_path / "plain"), convert="classify")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pooling_type": "MAX"}, UnsupportedError, "pooling_type='MAX'"),
        ({"seq_pooling_type": "ALL"}, UnsupportedError, "seq_pooling_type='ALL'"),
        ({"pooling_type": "LAST", "seq_pooling_type": "CLS"}, ConfigError, "stands for"),
        ({"logit_sigma": 0}, ConfigError, "logit_sigma"),
        ({"logit_mean": "x"}, ConfigError, "logit_mean: expected a number"),
        ({"logit_mean": 1, "logit_bias": 1}, ConfigError, "logit_bias is logit_mean"),
        ({"normalize": 3}, ConfigError, "pooler_config: normalize"),
        ({"step_tag_id": 3}, UnsupportedError, "step_tag_id"),
        ({"returned_token_ids": [3]}, UnsupportedError, "classifier_from_token"),
    ],
)
def test_bad_pooler_configs(given, error, message):
    with pytest.raises(error, match=message):
        PoolerConfig(**given)


def test_a_template_for_pairs(tmp_path):
    folder = letters.write_model(tmp_path)
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    score = {"classifier_from_token": ["a"]}
    with LLM(folder, hf_overrides=score, convert="classify") as judge:
        asked = {"chat_template": template}
        (out,) = judge.score("abc", "de", **asked)
        text = "[query]abc[document]de"
        assert judge.get_tokenizer().decode(out.prompt_token_ids) == text
        cut = {"truncation": True, "max_length": 5}
        (out,) = judge.score("abc", "de", tokenization_kwargs=cut, **asked)
        assert judge.get_tokenizer().decode(out.prompt_token_ids) == text[:5]
        with pytest.raises(RequestError, match="pair 0: chat_template"):
            judge.score([[1, 2]], [[3]], **asked)
    with LLM(folder) as llm, pytest.raises(UnsupportedCombination, match="chat_template"):
        llm.score("abc", "de", **asked)
