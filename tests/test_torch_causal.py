"""CausalLM where evaluation code has a transformers model: the same loss, tokens and scores.

Both sides compute the same tiny checkpoint in float32; what is compared is what scripts read.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
import tiny

from llmaccel import LLM, RequestError, UnsupportedError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
wing = pytest.importorskip("llmaccel.torch")

LOSS = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Any:
    return tiny.make_checkpoint("llama", tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def ours(folder: Any) -> Any:
    with LLM(str(folder), dtype="float32", max_num_seqs=4, max_num_batched_tokens=32) as llm:
        yield wing.CausalLM(llm)


@pytest.fixture(scope="module")
def theirs(folder: Any) -> Any:
    return tiny.hf_model(folder)


def ids(rows: int, columns: int, seed: int = 0) -> Any:
    return torch.randint(3, 301, (rows, columns), generator=torch.Generator().manual_seed(seed))


def padded(side: str) -> dict[str, Any]:
    """Rows of 11, 7 and 1 tokens; of the first token of a row no loss is asked."""
    batch, mask = ids(3, 11), torch.ones(3, 11, dtype=torch.int64)
    for i, length in enumerate((11, 7, 1)):
        mask[i, length:] = 0
    if side == "left":
        mask = mask.flip(1)
    labels = batch.masked_fill(mask == 0, -100)
    labels[0, 4] = -100
    first = mask.argmax(1)
    labels[torch.arange(3), first] = -100
    return {"input_ids": batch, "attention_mask": mask, "labels": labels}


def evaluate(model: Any, batches: list[dict[str, Any]]) -> float:
    """Perplexity, as scripts compute it; nothing in here knows whose model it is."""
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.no_grad():
            outputs = model(**batch)
        n = int((batch["labels"][:, 1:] != -100).sum())
        total += float(outputs.loss) * n
        count += n
        shift = outputs.logits[:, :-1].contiguous()
        again = torch.nn.functional.cross_entropy(
            shift.view(-1, model.config.vocab_size), batch["labels"][:, 1:].reshape(-1)
        )
        assert abs(float(again) - float(outputs["loss"])) < 1e-5
    return math.exp(total / count)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_loss_equal_transformers(side: str, ours: Any, theirs: Any) -> None:
    batch = padded(side)
    with torch.no_grad():
        got, want = ours(**batch), theirs(**batch)
    real = batch["attention_mask"].bool()
    assert got.logits.shape == want.logits.shape
    assert (got.logits - want.logits)[real].abs().max() < 2e-4
    assert not got.logits[~real].any()
    assert abs(float(got.loss) - float(want.loss)) < LOSS
    assert got[0] is got.loss
    assert got["logits"] is got[1] is got.to_tuple()[1]
    assert got.past_key_values is None


def test_an_evaluation_loop_runs_unchanged(ours: Any, theirs: Any) -> None:
    batches = [padded("right"), padded("left")]
    batches += [{"input_ids": ids(2, 40, s), "labels": ids(2, 40, s)} for s in (1, 2)]
    got, want = evaluate(ours, batches), evaluate(theirs, batches)
    assert abs(math.log(got) - math.log(want)) < LOSS
    assert abs(got - want) < 1e-3 * want


def test_perplexity_of_a_text_equals_transformers(shared_data: Any, tmp_path: Any) -> None:
    folder = tiny.stories260k_folder(shared_data.parent, tmp_path / "stories")
    text = (shared_data / "texts" / "tinystories.jsonl").read_text(encoding="utf-8").splitlines()
    stories = [json.loads(row)["text"] for row in text[:3]]
    with LLM(str(folder), dtype="float32") as llm:
        tokenizer = llm.get_tokenizer()
        tokens = [torch.tensor([tokenizer.encode(story)[:200]]) for story in stories]
        batches = [{"input_ids": row, "labels": row.clone()} for row in tokens]
        got, want = evaluate(wing.CausalLM(llm), batches), evaluate(tiny.hf_model(folder), batches)
    assert abs(math.log(got) - math.log(want)) < LOSS
    assert got < 10  # it is a model of such stories


def test_a_row_does_not_depend_on_its_batch(ours: Any) -> None:
    batch = padded("left")
    del batch["labels"]
    together = ours(**batch).logits
    alone = ours(batch["input_ids"][1:2, 4:]).logits
    assert torch.equal(together[1, 4:], alone[0])
    assert torch.equal(ours(ids(1, 11), logits_to_keep=2).logits, ours(ids(1, 11)).logits[:, -2:])
    some = torch.tensor([0, 7])
    assert torch.equal(
        ours(ids(1, 11), logits_to_keep=some).logits, ours(ids(1, 11)).logits[:, some]
    )
    positions = batch["attention_mask"].cumsum(1) - 1
    assert torch.equal(ours(**batch, position_ids=positions).logits, together)
    with torch.no_grad():
        loss, logits = ours(ids(1, 5), labels=ids(1, 5), return_dict=False, num_items_in_batch=2)
        assert math.isclose(float(loss) * 2, float(ours(ids(1, 5), labels=ids(1, 5)).loss) * 4)
    assert logits.shape == (1, 5, 301)


def test_labels_behind_padding_are_left_out_with_a_warning(ours: Any) -> None:
    batch = padded("right")
    asked = {**batch, "labels": batch["input_ids"].clone()}
    for i, n in enumerate((11, 7, 1)):
        batch["labels"][i, : n + 1] = batch["input_ids"][i, : n + 1]
    with pytest.warns(UserWarning, match="labels: 12 would be predicted from padding") as said:
        got = ours(**asked)
    assert [one.filename for one in said] == [__file__]
    assert float(got.loss) == float(ours(**batch).loss)


# ---- generate -----------------------------------------------------------------------------------

GREEDY: list[dict[str, Any]] = [
    {"max_new_tokens": 6},
    {"max_length": 15},
    {"max_new_tokens": 9, "repetition_penalty": 1.3},
    {"max_new_tokens": 5, "min_new_tokens": 5, "eos_token_id": list(range(3, 200))},
    {"max_new_tokens": 8, "eos_token_id": list(range(3, 100)), "pad_token_id": 0},
    {"max_new_tokens": 8, "min_length": 16, "eos_token_id": list(range(3, 290))},
    {"max_new_tokens": 4, "suppress_tokens": list(range(100, 301))},
    {"max_new_tokens": 12, "no_repeat_ngram_size": 1},
    {},
]
SOME_ENDS = list(range(3, 301, 7))
BEAMS: list[dict[str, Any]] = [
    {"num_beams": 4, "max_new_tokens": 6, "num_return_sequences": 2},
    *(
        {"num_beams": 3, "max_new_tokens": 8, "num_return_sequences": 3, "eos_token_id": SOME_ENDS}
        | {"early_stopping": early, "length_penalty": penalty}
        for early, penalty in (
            (False, 1.0),
            (False, 0.0),
            (True, 1.0),
            (True, 2.0),
            ("never", 1.0),
            ("never", 3.0),
            ("never", -1.0),
        )
    ),
]


@pytest.mark.parametrize("fields", GREEDY, ids="+".join)
def test_greedy_tokens_equal_transformers(fields: dict[str, Any], ours: Any, theirs: Any) -> None:
    batch = padded("left")
    del batch["labels"]
    # transformers' fall on what padding is written with, too
    if "repetition_penalty" in fields or "no_repeat_ngram_size" in fields:
        batch = {"input_ids": ids(3, 11)}
    keywords = {"pad_token_id": 2, **fields}
    want = theirs.generate(**batch, **keywords)
    got = ours.generate(**batch, **keywords)
    assert got.dtype == torch.int64
    assert torch.equal(got, want)


@pytest.mark.parametrize("fields", BEAMS, ids=lambda fields: str([*fields.values()][-2:]))
def test_beams_equal_those_of_transformers(fields: dict[str, Any], ours: Any, theirs: Any) -> None:
    batch = padded("left")
    del batch["labels"]
    keywords = {"pad_token_id": 2, "return_dict_in_generate": True, **fields}
    want = theirs.generate(**batch, **keywords, output_scores=True)
    got = ours.generate(**batch, **keywords)
    assert torch.equal(got.sequences, want.sequences)
    assert (got.sequences_scores - want.sequences_scores).abs().max() < LOSS
    assert got.scores is None


def test_hidden_states_equal_transformers(ours: Any, theirs: Any) -> None:
    batch = padded("left")
    with torch.no_grad():
        want = theirs(**batch, output_hidden_states=True)
    got = ours(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    assert len(got.hidden_states) == len(want.hidden_states)
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert a.shape == b.shape
        assert (a - b)[real].abs().max() < 2e-4
        assert not a[~real].any()
    assert ours(**batch).hidden_states is None


def test_scores_and_logits_equal_transformers(ours: Any, theirs: Any) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=5,
        min_new_tokens=5,
        repetition_penalty=1.2,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    prompt = ids(2, 6)
    want = theirs.generate(prompt, generation_config=config)
    got = ours.generate(prompt, generation_config=config)
    assert torch.equal(got.sequences, want.sequences)
    for name in ("scores", "logits"):
        assert len(got[name]) == 5
        for a, b in zip(getattr(got, name), getattr(want, name), strict=True):
            assert torch.equal(a == -torch.inf, b == -torch.inf)
            assert torch.nan_to_num(a - b, nan=0.0).abs().max() < 2e-4


def test_no_rows_give_no_steps(ours: Any) -> None:
    given = {"max_new_tokens": 3, "output_scores": True, "output_logits": True}
    none = torch.zeros((0, 4), dtype=torch.int64)
    out = ours.generate(none, return_dict_in_generate=True, **given)
    assert out.sequences.shape[0] == 0
    assert out.scores == out.logits == ()


def test_sampling_is_seeded_by_torch_and_stays_among_the_likely(ours: Any) -> None:
    def draw(**fields: Any) -> Any:
        torch.manual_seed(5)
        given = {"do_sample": True, "max_new_tokens": 6, "eos_token_id": -1, **fields}
        return ours.generate(ids(2, 4), return_dict_in_generate=True, output_scores=True, **given)

    first, second = draw(num_return_sequences=3), draw(num_return_sequences=3)
    assert torch.equal(first.sequences, second.sequences)
    assert first.sequences.shape == (6, 10)
    assert torch.equal(first.sequences[:3, :4], ids(2, 4)[:1].expand(3, 4))
    assert len({tuple(row) for row in first.sequences.tolist()}) > 2
    for fields, most in (({"top_k": 3}, 3), ({"top_k": 0, "top_p": 0.05}, 300), ({}, 50)):
        out = draw(**fields, temperature=1.5)
        for step, scores in enumerate(out.scores):
            chosen = scores.gather(1, out.sequences[:, 4 + step, None])
            assert chosen.isfinite().all()
            assert scores.isfinite().sum(1).max() <= most
    assert torch.equal(
        draw(top_k=1).sequences, ours.generate(ids(2, 4), max_new_tokens=6, eos_token_id=-1)
    )


def beams(model: Any, **fields: Any) -> Any:
    return model.generate(ids(1, 3), num_beams=3, **fields)


# ---- the module ---------------------------------------------------------------------------------


def test_it_is_asked_as_a_module(ours: Any, theirs: Any, folder: Any) -> None:
    assert ours.eval() is ours
    assert ours.to("cpu") is ours.to(torch.float32) is ours.float() is ours
    assert (ours.device.type, ours.dtype) == ("cpu", torch.float32)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "model_type", "eos_token_id"):
        assert getattr(ours.config, name) == getattr(theirs.config, name), name
    assert ours.config.max_position_embeddings == 160
    assert ours.config.to_dict()["architectures"] == ["LlamaForCausalLM"]
    assert ours.generation_config.eos_token_id == [2]
    assert "LLM(" in repr(ours)
    outer = torch.nn.Sequential(ours)
    assert outer.eval()[0] is ours
    with wing.CausalLM.from_pretrained(str(folder), torch_dtype=torch.float32).llm as llm:
        assert torch.equal(wing.CausalLM(llm)(ids(1, 4)).logits, ours(ids(1, 4)).logits)


def test_gradients_are_refused(ours: Any) -> None:
    loss = ours(ids(1, 5), labels=ids(1, 5)).loss
    with pytest.raises(UnsupportedError, match="backward: llmaccel computes no gradients"):
        loss.backward()
    with pytest.raises(UnsupportedError, match="train"):
        ours.train()
    with pytest.raises(UnsupportedError, match="requires_grad_"):
        ours.requires_grad_()
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m(), RequestError, "input_ids"),
        (lambda m: m(torch.rand(1, 3)), RequestError, "input_ids: expected integers"),
        (lambda m: m(ids(1, 3), torch.ones(1, 4)), RequestError, r"attention_mask: .*\[1, 3\]"),
        (lambda m: m(ids(1, 3), torch.tensor([[1, 0, 1]])), UnsupportedError, "row 0 has gaps"),
        (lambda m: m(ids(1, 3), labels=ids(1, 2)), RequestError, "labels: expected"),
        (lambda m: m(ids(1, 3), labels=ids(1, 3) + 300), RequestError, "labels: .* below 301"),
        (lambda m: m(torch.tensor([[1, 301]])), RequestError, "301"),
        (lambda m: m(ids(1, 3), output_attentions=True), UnsupportedError, "output_attentions"),
        (lambda m: m(ids(1, 3), use_cache=True), UnsupportedError, "use_cache"),
        (lambda m: m(ids(1, 3), colour=1), TypeError, "colour"),
        (lambda m: m(ids(1, 3), position_ids=ids(1, 3)), UnsupportedError, "position_ids"),
        (lambda m: m.half(), UnsupportedError, "to: torch.float16"),
        (lambda m: m.to("meta"), UnsupportedError, "to: .*meta"),
        (lambda m: m.generate(), RequestError, "input_ids"),
        (lambda m: beams(m, num_return_sequences=4), RequestError, "num_return_sequences: 4"),
        (lambda m: m.generate(ids(1, 3), num_beams=0), RequestError, "num_beams"),
        (lambda m: m.generate(ids(1, 3), num_beams=5), RequestError, "beam_width: 5"),
        (lambda m: beams(m, early_stopping="soon"), RequestError, "early_stopping"),
        (lambda m: beams(m, do_sample=True), UnsupportedError, "do_sample"),
        (lambda m: beams(m, repetition_penalty=1.1), UnsupportedError, "repetition_penalty"),
        (lambda m: beams(m, no_repeat_ngram_size=2), UnsupportedError, "no_repeat_ngram_size"),
        (lambda m: beams(m, suppress_tokens=[5]), UnsupportedError, "suppress_tokens"),
        (lambda m: beams(m, stop_strings=["a"]), UnsupportedError, "stop_strings"),
        (lambda m: beams(m, min_new_tokens=2), UnsupportedError, "min_new_tokens"),
        (lambda m: beams(m, output_scores=True), UnsupportedError, "output_scores"),
        (lambda m: m.generate(ids(1, 3), {"guidance_scale": 2.0}), UnsupportedError, "guidance"),
        (lambda m: m.generate(ids(1, 3), streamer=print), RequestError, "streamer"),
        (lambda m: m.generate(ids(1, 3), colour=1), TypeError, "colour"),
        (lambda m: m.generate(ids(1, 3), max_length=3), RequestError, "max_length"),
        (lambda m: m.generate(ids(1, 3), num_return_sequences=2), RequestError, "num_return"),
        (lambda m: m.generate(ids(1, 3), do_sample=True, temperature=0.0), RequestError, "temper"),
        (lambda m: m.generate(ids(1, 3), do_sample=True, top_p=2.0), RequestError, "top_p"),
    ],
)
def test_what_is_refused(call: Any, error: Any, match: str, ours: Any) -> None:
    with pytest.raises(error, match=match):
        call(ours)


def test_the_compiler_stays_out(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = padded("right")
    want = ours(**batch)
    frames = torch._dynamo.utils.counters["frames"]
    model = torch.compile(ours, backend="eager")
    whole = torch.compile(lambda ids: ours(input_ids=ids - 1).logits * 2, backend="eager")
    frames.clear()
    for _ in range(2):
        got = model(**batch)
        assert torch.equal(got.logits, want.logits)
        assert got.loss == want.loss
    for length in (3, 5, 9):
        text = ids(2, length, seed=length)
        assert torch.equal(whole(text), ours(input_ids=text - 1).logits * 2)
    assert 0 < frames["total"] < 15  # of the callers; forward alone has a hundred
    monkeypatch.delitem(sys.modules, "torch._dynamo")  # as where nobody compiles: it is not sought
    monkeypatch.setattr(torch.compiler, "disable", None)
    assert torch.equal(ours(**batch).logits, want.logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_parameters_are_counted_as_transformers_does(family: str, tmp_path: Any) -> None:
    folder = tiny.make_checkpoint(family, tmp_path)
    hf = tiny.hf_model(folder)
    with LLM(str(folder)) as llm:
        model = wing.CausalLM(llm)
        for without in (False, True):
            count = model.num_parameters(exclude_embeddings=without)
            assert count == hf.num_parameters(exclude_embeddings=without)
        assert model.num_parameters(only_trainable=True) == 0
