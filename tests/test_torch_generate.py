"""generate's functions and rules: tokens, scores and states as transformers gives them, streamers
that always end, and what AutoModel's keywords, pipelines and configs ask of a CausalLM."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import tiny

from llmaccel import LLM, RequestError, UnsupportedError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
wing = pytest.importorskip("llmaccel.torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Any:
    return tiny.make_checkpoint("llama", tmp_path_factory.mktemp("generate"))


@pytest.fixture(scope="module")
def ours(folder: Any) -> Any:
    with LLM(str(folder), dtype="float32", max_num_seqs=4, skip_tokenizer_init=True) as llm:
        yield wing.CausalLM(llm)


@pytest.fixture(scope="module")
def theirs(folder: Any) -> Any:
    return tiny.hf_model(folder)


def ids(rows: int, columns: int, seed: int = 0) -> Any:
    return torch.randint(3, 301, (rows, columns), generator=torch.Generator().manual_seed(seed))


def lean(token: int) -> Any:
    """A processor that looks at the past and bends the scores."""

    def bend(past: Any, scores: Any) -> Any:
        assert past.shape[0] == scores.shape[0]
        scores[torch.arange(len(past)), (past[:, -1] * 7 + token) % scores.shape[1]] += 2.5
        return scores

    return bend


def ends_on_even(past: Any, scores: Any, **_: Any) -> Any:
    return past[:, -1] % 2 == 0


def only_near(row: int, past: Any) -> list[int]:
    return [(int(past[-1]) + 3 * i + row) % 301 for i in range(40)]


RULES: list[dict[str, Any]] = [
    {"logits_processor": [lean(5)], "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"stopping_criteria": [ends_on_even]},
    {"stopping_criteria": [ends_on_even], "eos_token_id": [7, 9]},
    {"prefix_allowed_tokens_fn": only_near},
    {"sequence_bias": {(40,): 3.0, (40, 41): 9.0, (2, 5): -4.0}, "min_new_tokens": 4},
    {"bad_words_ids": [[i] for i in range(3, 150)] + [[200, 201]]},
    {"begin_suppress_tokens": list(range(3, 280)), "suppress_tokens": [281, 282]},
    {"renormalize_logits": True, "repetition_penalty": 1.3},
    {"renormalize_logits": True, "bad_words_ids": [[i] for i in range(3, 150)]},
]


@pytest.mark.parametrize("rules", RULES, ids="+".join)
def test_rules_give_the_tokens_and_scores_of_transformers(
    rules: dict[str, Any], ours: Any, theirs: Any
) -> None:
    lists = {
        "logits_processor": transformers.LogitsProcessorList,
        "stopping_criteria": transformers.StoppingCriteriaList,
    }
    given = {name: lists.get(name, lambda x: x)(value) for name, value in rules.items()}
    keywords = {"max_new_tokens": 7, "pad_token_id": 2, "output_scores": True, **given}
    keywords["return_dict_in_generate"] = True
    prompt = ids(2, 6)
    want, got = theirs.generate(prompt, **keywords), ours.generate(prompt, **keywords)
    assert torch.equal(got.sequences, want.sequences)
    for i, (a, b) in enumerate(zip(got.scores, want.scores, strict=True)):
        # a row that has ended has no scores here
        live = [r for r in range(2) if a[r].any()]
        assert live or i
        assert torch.equal(a[live] == -torch.inf, b[live] == -torch.inf)
        assert torch.nan_to_num(a[live] - b[live], nan=0.0).abs().max() < 2e-4


@pytest.mark.parametrize("rules", [{}, {"logits_processor": [lean(1)]}], ids=["engine", "python"])
def test_rows_are_drawn_apart_and_again_by_the_seed(rules: dict[str, Any], ours: Any) -> None:
    """Equal rows too, as who counts how many of them pass needs it."""
    alike = ids(1, 5).repeat(40, 1)
    keywords = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 3, **rules}
    torch.manual_seed(5)
    first = ours.generate(alike, **keywords)
    assert len({tuple(row) for row in first.tolist()}) > 20
    assert not torch.equal(ours.generate(alike, **keywords), first)
    torch.manual_seed(5)
    assert torch.equal(ours.generate(alike, **keywords), first)
    pairs = ours.generate(alike[:8], num_return_sequences=2, **keywords)
    assert len({tuple(row) for row in pairs.tolist()}) > 8


def test_scores_are_normal_behind_all_that_cuts(ours: Any) -> None:
    out = ours.generate(
        ids(2, 4), do_sample=True, top_k=5, temperature=1.5, renormalize_logits=True,
        max_new_tokens=3, eos_token_id=-1, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for scores in out.scores:
        assert scores.isfinite().sum(-1).tolist() == [5, 5]
        assert torch.allclose(scores.exp().sum(-1), torch.ones(2), atol=1e-5)


def test_an_assistant_is_refused(ours: Any) -> None:
    with pytest.raises(UnsupportedError, match="assistant_model"):
        ours.generate(ids(1, 4), assistant_model=ours)


def test_typical_p_leaves_what_transformers_leaves(ours: Any) -> None:
    torch.manual_seed(3)
    out = ours.generate(
        ids(2, 4), do_sample=True, typical_p=0.3, top_k=0, max_new_tokens=4, eos_token_id=-1,
        return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    theirs = transformers.TypicalLogitsWarper(mass=0.3)
    for i, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        assert torch.equal(scores.isfinite(), theirs(None, logits.clone()).isfinite())
        assert scores.gather(1, out.sequences[:, 4 + i, None]).isfinite().all()


def test_transition_scores_and_states_equal_transformers(ours: Any, theirs: Any) -> None:
    prompt, mask = ids(2, 6), torch.ones(2, 6, dtype=torch.int64)
    mask[1, :2] = 0
    keywords: dict[str, Any] = {
        "attention_mask": mask, "max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 2,
        "return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True,
    }  # fmt: skip
    want, got = theirs.generate(prompt, **keywords), ours.generate(prompt, **keywords)
    assert torch.equal(got.sequences, want.sequences)
    for normal in (False, True):
        a = ours.compute_transition_scores(got.sequences, got.scores, normalize_logits=normal)
        b = theirs.compute_transition_scores(want.sequences, want.scores, normalize_logits=normal)
        assert (a - b).abs().max() < 2e-4
    for mine, other in zip(got.hidden_states, want.hidden_states, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert a.shape == b.shape
            real = mask.bool() if a.shape[1] == 6 else torch.ones(2, 1, dtype=torch.bool)
            assert (a - b)[real].abs().max() < 2e-4


class Recorder:
    def __init__(self, fails: bool = False) -> None:
        self.put_ids: list[list[int]] = []
        self.ended, self.fails = 0, fails

    def put(self, value: Any) -> None:
        self.put_ids.append(value.reshape(-1).tolist())
        if self.fails and len(self.put_ids) > 1:
            raise OSError("the pipe is closed")

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_gets_every_token_and_always_an_end(ours: Any) -> None:
    prompt = ids(1, 5)
    for extra in ({}, {"stopping_criteria": [ends_on_even]}):
        streamer = Recorder()
        out = ours.generate(prompt, streamer=streamer, max_new_tokens=6, **extra)
        assert streamer.put_ids[0] == prompt[0].tolist()
        assert [i for one in streamer.put_ids for i in one] == out[0].tolist()
        assert streamer.ended == 1
    failing = Recorder(fails=True)
    with pytest.raises(OSError, match="pipe"):
        ours.generate(prompt, streamer=failing, max_new_tokens=6)
    assert failing.ended == 1
    refused = Recorder()
    with pytest.raises(RequestError, match="streamer: takes one row"):
        ours.generate(ids(2, 3), streamer=refused)
    assert refused.ended == 1


def test_a_reader_of_an_iterator_never_waits_for_ever(folder: Any, ours: Any) -> None:
    class Words:
        def decode(self, tokens: Any, **_: Any) -> str:
            return " ".join(map(str, tokens)) + " "

    def fail(past: Any, scores: Any) -> Any:
        raise KeyError("broken")

    streamer = transformers.TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
    errors: list[Exception] = []

    def run() -> None:
        try:
            ours.generate(ids(1, 3), streamer=streamer, logits_processor=[fail])
        except RequestError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert "".join(streamer) == ""
    thread.join()
    assert "broken" in str(errors[0])


def test_configs_are_read_by_transformers(ours: Any, theirs: Any) -> None:
    made = transformers.GenerationConfig.from_model_config(ours.config)
    assert made.eos_token_id == 2
    assert ours.config.get_text_config() is ours.config
    assert "pad_token_id" not in ours.config.to_diff_dict()
    assert ours.config.use_cache is False
    want = theirs.generate(ids(1, 4), max_new_tokens=5)
    assert torch.equal(ours.generate(ids(1, 4), generation_config=made, max_new_tokens=5), want)


def test_a_pipeline_gives_the_text_of_transformers(shared_data: Any, tmp_path: Any) -> None:
    folder = tiny.stories260k_folder(shared_data.parent, tmp_path / "stories")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with LLM(str(folder), dtype="float32") as llm:
        texts = [
            transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)(
                "Once upon a time", max_new_tokens=12, do_sample=False
            )[0]["generated_text"]
            for model in (wing.CausalLM(llm), tiny.hf_model(folder))
        ]
    assert texts[0] == texts[1]
    assert len(texts[0]) > len("Once upon a time")


def test_keywords_of_from_pretrained(folder: Any) -> None:
    load = wing.CausalLM.from_pretrained
    model = load(
        folder, dtype=torch.float32, low_cpu_mem_usage=True, attn_implementation="sdpa",
        device_map={"": "cpu"}, load_in_8bit=False, quantization_config=None, token=None,
        cache_dir=None, local_files_only=True, skip_tokenizer_init=True,
    )  # fmt: skip
    assert model.no_effect == ["low_cpu_mem_usage", "attn_implementation"]
    assert model.name_or_path == str(folder)
    model.tie_weights()
    with pytest.raises(UnsupportedError, match="get_input_embeddings"):
        model.get_input_embeddings()
    for broken in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            broken(model)
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            broken(model.llm)
    model.llm.close()
    for options, error, match in (
        ({"load_in_4bit": True}, UnsupportedError, "load_in_4bit: .*w4g128"),
        ({"attn_implementation": "flex"}, UnsupportedError, "attn_implementation"),
        ({"device_map": {"": 0}}, UnsupportedError, "device_map"),
        ({"max_memory": {}}, UnsupportedError, "max_memory: .*from_pretrained"),
        ({"colour": 1}, TypeError, r"CausalLM.from_pretrained\(\) got an unexpected .*'colour'"),
    ):
        with pytest.raises(error, match=match):
            load(folder, **options)


def test_arguments_of_forward_that_say_what_holds(ours: Any) -> None:
    prompt = ids(2, 5)
    want = ours(prompt).logits
    harmless = {"cache_position": torch.arange(5), "token_type_ids": torch.zeros(2, 5)}
    assert torch.equal(ours(prompt, **harmless, use_cache=False).logits, want)
    for broken, match in (
        ({"use_cache": True}, "use_cache: forward keeps nothing .* call generate"),
        ({"past_key_values": [1]}, "past_key_values: forward keeps nothing"),
        ({"cache_position": torch.arange(1, 6)}, "cache_position"),
        ({"token_type_ids": torch.ones(2, 5)}, "token_type_ids"),
    ):
        with pytest.raises(UnsupportedError, match=match):
            ours(prompt, **broken)


def test_learned_positions_want_position_ids_on_the_left(tmp_path: Any) -> None:
    folder = tiny.make_checkpoint("gpt2", tmp_path / "gpt2")
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    prompt, theirs = ids(2, 5) % 200, tiny.hf_model(folder)
    with LLM(str(folder), dtype="float32", skip_tokenizer_init=True) as llm:
        model = wing.CausalLM(llm)
        with pytest.raises(UnsupportedError, match="position_ids: a model with learned positions"):
            model(prompt, mask)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        got = model(prompt, mask, position_ids=positions).logits
        with torch.no_grad():
            want = theirs(prompt, attention_mask=mask, position_ids=positions).logits
        assert (got - want)[mask.bool()].abs().max() < 2e-4
        keywords = {"attention_mask": mask, "max_new_tokens": 4, "pad_token_id": 2}
        assert torch.equal(model.generate(prompt, **keywords), theirs.generate(prompt, **keywords))
