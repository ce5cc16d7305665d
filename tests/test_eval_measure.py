"""measure and `llmaccel eval ppl | compress`: against float64 sums, windows by hand, the table."""

from __future__ import annotations

import csv
import json
import math

import letters
import numpy as np
import pytest
import tiny

from llmaccel import LLM, RequestError, cli, read_arrays
from llmaccel.eval import measure, read_documents
from llmaccel.eval.measure import token_windows


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = letters.write_model(tmp_path_factory.mktemp("letters"), max_position_embeddings=64)
    with LLM(folder, dtype="float32") as llm:
        yield llm


def test_windows():
    ids = list(range(10, 20))
    assert list(token_windows(ids, 4, 4, 1)) == [
        ([1], [10, 11, 12, 13]),
        ([1], [14, 15, 16, 17]),
        ([1], [18, 19]),
    ]
    assert list(token_windows(ids, 4, 4, None)) == [
        ([10], [11, 12, 13]),
        ([14], [15, 16, 17]),
        ([18], [19]),
    ]
    assert list(token_windows(ids, 6, 2, 1)) == [
        ([1], [10, 11, 12, 13, 14, 15]),
        ([12, 13, 14, 15], [16, 17]),
        ([14, 15, 16, 17], [18, 19]),
    ]
    assert list(token_windows([5], 4, 4, None)) == []
    assert list(token_windows([], 4, 4, 1)) == []


def log_softmax(logits):
    wide = np.asarray(logits, np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_sums_over_documents(llm):
    documents = ["abc def äöü " * 9, "x", ""]
    found = measure(llm, documents, chunk=20)
    tokenizer, nll = llm.get_tokenizer(), 0.0
    for text in documents:
        ids = tokenizer.encode(text, add_special_tokens=False)
        for start in range(0, len(ids), 20):
            part = ids[start : start + 20]
            rows = log_softmax(llm.logits([1, *part[:-1]]))
            nll -= sum(row[token] for row, token in zip(rows, part, strict=True))
    size = len("".join(documents).encode())
    assert (found.n_documents, found.n_bytes) == (3, size)
    assert found.n_tokens == found.n_scored == size  # every byte is a token
    assert found.nll == pytest.approx(nll, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nll / math.log(2) / size, rel=1e-6)
    assert found.rate == pytest.approx(100 * found.bits_per_byte / 8)
    assert found.perplexity == pytest.approx(math.exp(nll / size), rel=1e-6)
    assert found.bits_per_char > found.bits_per_byte
    bare = measure(llm, documents, chunk=20, bos=False)
    assert bare.n_scored < bare.n_tokens


def test_a_window_may_fill_the_context(llm):
    """BOS and 64 tokens, of which the last is only predicted, in a context of 64."""
    text = "abcdefgh" * 8
    assert measure(llm, [text], chunk=64).n_scored == 64
    with pytest.raises(RequestError, match="max_model_len is 64"):
        llm.loglikelihood([[1, 1]], [[5] * 64])
    for given in ({"chunk": 65}, {"chunk": 1}, {"chunk": 8, "stride": 9}, {"stride": 0}):
        with pytest.raises(RequestError, match=r"chunk|stride"):
            measure(llm, [text], **given)


def test_float64_reference(shared_data, tmp_path):
    """Stories whose sums a float64 forward gave; those that fit one window."""
    golden = json.loads((shared_data / "models" / "stories260K" / "golden_nll.json").read_text())
    texts = read_documents([shared_data / "texts" / "tinystories.jsonl"], limit=40)
    pairs = [
        (text.strip(), story["sum_nll"])
        for text, story in zip(texts, golden["stories"], strict=True)
        if story["tokens"] < 512
    ]
    assert len(pairs) > 20
    folder = tiny.stories260k_folder(shared_data.parent, tmp_path / "hf")
    with LLM(folder, dtype="float32") as llm:
        found = measure(llm, [text for text, _ in pairs], chunk=512)
    nll = math.fsum(value for _, value in pairs)
    bits = nll / math.log(2) / sum(len(text.encode()) for text, _ in pairs)
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-5)


def test_command_line(tmp_path, capsys):
    folder = str(letters.write_model(tmp_path))
    (tmp_path / "a.txt").write_text("abc abc")
    (tmp_path / "b.jsonl").write_text('"def"\n"gh"\n')
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    table = tmp_path / "out.csv"
    arguments = ["--model", folder, "--chunk", "16", "--csv", str(table)]
    assert cli.main(["eval", "compress", *arguments, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["file", "documents", "bytes", "tokens"]
    assert [line.split()[1:4] for line in lines[1:]] == [["1", "7", "7"], ["2", "5", "5"]]
    with table.open() as file:
        rows = list(csv.DictReader(file))
    with LLM(folder) as llm:
        found = measure(llm, ["abc abc"], chunk=16)
    assert float(rows[0]["bits per byte"]) == pytest.approx(found.bits_per_byte, rel=1e-12)
    assert cli.main(["eval", "ppl", *arguments[:4], files[0]]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert cli.main(["eval", "ppl", *arguments[:4], str(tmp_path / "none.txt")]) == 1
    assert "none.txt" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["ppl", "compress"])
def test_a_picture_is_made_or_refused_before_the_work(what, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder = str(letters.write_model(tmp_path))
    texts = [tmp_path / "a$b_$.txt", tmp_path / f"{'long' * 40}.txt"]
    for text in texts:
        text.write_text("abc abc")
    command = ["eval", what, "--model", folder, "--chunk", "16", *map(str, texts), "--plot"]
    picture = tmp_path / "out.svg"
    assert cli.main([*command, str(picture)]) == 0
    drawn = picture.read_text()
    assert drawn.lstrip().startswith("<?xml")
    head, first, _ = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    head, first = ([cell.strip() for cell in row if cell.strip()] for row in (head, first))
    value = first[head.index("perplexity" if what == "ppl" else "bits per byte")]
    assert f"<!-- {float(value):.4g} -->" in drawn  # the texts of an svg stand beside their paths
    assert "a$b_$.txt -->" in drawn
    for option, name, reason in (
        ("--plot", "out.what", "expected a name"),
        ("--plot", "none/out.png", "folder"),
        ("--csv", "none/out.csv", "folder"),
    ):
        assert cli.main([*command[:-1], option, str(tmp_path / name)]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert option[2:] in said.err
        assert reason in said.err


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_read_arrays_gives_the_same_model(family, tmp_path):
    folder = tiny.make_checkpoint(family, tmp_path / family, seed=4)
    ids = np.random.default_rng(1).integers(0, 100, 40)
    with LLM(folder, dtype="float32") as llm:
        expected = np.asarray(llm.logits(ids))
    config, arrays = read_arrays(folder)
    assert all(array.dtype == np.float32 for array in arrays.values())
    with LLM.from_arrays(config, arrays, dtype="float32") as llm:
        assert np.array_equal(np.asarray(llm.logits(ids)), expected)


def test_read_arrays_of_gguf(tmp_path):
    import tiny_gguf

    folder = tiny.make_checkpoint("llama", tmp_path / "hf", seed=4)
    path = tiny_gguf.make_gguf("llama", folder, tmp_path / "f32.gguf")
    arrays, expected = read_arrays(path)[1], read_arrays(folder)[1]
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected)


def test_nothing_to_score_is_an_error(tmp_path, capsys):
    folder = letters.write_model(tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert cli.main(["eval", "ppl", "--model", str(folder), str(empty)]) != 0
    assert "there is no token to score" in capsys.readouterr().err


def test_the_harness_has_its_own_help(monkeypatch):
    from llmaccel.eval import command

    seen = []
    monkeypatch.setattr(command, "_harness", lambda rest: seen.append(rest) or 0)
    for rest in (["--help"], ["run", "--tasks", "x", "-h"]):
        assert cli.main(["eval", "harness", *rest]) == 0
    assert seen == [["--help"], ["run", "--tasks", "x", "-h"]]
