"""The command line: what goes to stdout, what a failure says, and that plan loads nothing."""

from __future__ import annotations

import io
import re

import letters
import pytest

import llmaccel
from llmaccel import LLM, SamplingParams, cli, loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(letters.write_model(tmp_path_factory.mktemp("letters")))


def greedy(folder, prompt, tokens):
    with LLM(folder) as llm:
        params = SamplingParams(temperature=0, max_tokens=tokens)
        return llm.generate(prompt, params)[0].outputs[0].text


def test_complete(folder, capsys, monkeypatch):
    expected = greedy(folder, "abc", 5) + "\n"
    arguments = ["complete", folder, "-n", "5", "--temperature", "0"]
    for where in (2, len(arguments)):
        assert cli.main([*arguments[:where], "abc", *arguments[where:]]) == 0
        out, err = capsys.readouterr()
        assert out == expected
        assert re.fullmatch(r"5 tokens, [\d.]+ tok/s, finish reason: length\n", err)
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n"))
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == expected


def test_tokens_where_none_are_asked_for(tmp_path, capsys):
    folder = str(letters.write_model(tmp_path, max_position_embeddings=400, eos_token_id=None))
    (tmp_path / "tokenizer_config.json").write_text("{}")  # and no end there
    arguments = ["complete", folder, "abc", "--temperature", "0"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == greedy(folder, "abc", 256) + "\n"
    assert cli.main([*arguments, "-n", "-1"]) == 0
    assert capsys.readouterr().out == greedy(folder, "abc", None) + "\n"
    assert cli.main([*arguments, "-n", "0"]) == 1
    assert "max_tokens" in capsys.readouterr().err


def test_chat_once_and_in_turns(folder, capsys, monkeypatch):
    arguments = ["chat", folder, "-n", "4", "--temperature", "0", "--system", "be kind"]
    assert cli.main([*arguments, "-p", "hi"]) == 0
    once, err = capsys.readouterr()
    assert "finish reason: length" in err
    assert once == greedy(folder, {"prompt_token_ids": chat_ids(folder, "hi")}, 4) + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nmore\n\n"))
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(once)
    assert captured.err.count("tok/s") == 2


def talk(folder, capsys, monkeypatch, messages):
    """(lines of stdout, lines of stderr) of a conversation in a context of 100 tokens."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(messages)))
    arguments = ["chat", folder, "--max-model-len", "100", "-n", "4", "--temperature", "0"]
    assert cli.main([*arguments, "--system", "be kind"]) == 0
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()[1:]


def test_a_chat_drops_its_oldest_turns(folder, capsys, monkeypatch):
    out, err = talk(folder, capsys, monkeypatch, ["a" * 55, "hi"])
    assert [line for line in err if "dropped" in line] == [err[1]]
    assert "max_model_len is 100" in err[1]
    assert "oldest 2 messages" in err[1]
    # The system message stays: the second answer is that to a conversation that starts there.
    assert out[-1:] == talk(folder, capsys, monkeypatch, ["hi"])[0]


def test_a_chat_survives_a_message_that_does_not_fit(folder, capsys, monkeypatch):
    out, err = talk(folder, capsys, monkeypatch, ["hi", "a" * 200, "ho"])
    assert [line for line in err if "RequestError" in line] == [err[1]]
    assert "dropped" not in "".join(err)
    assert out == talk(folder, capsys, monkeypatch, ["hi", "ho"])[0]


def test_version_and_a_bad_number(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"llmaccel {llmaccel.__version__}\n"
    with pytest.raises(SystemExit):
        cli.main(["complete", folder, "x", "-n", "abc"])
    err = capsys.readouterr().err
    assert "'abc' is no number of tokens" in err
    assert "_max_tokens" not in err


def chat_ids(folder, text):
    with LLM(folder) as llm:
        return llm.get_tokenizer().apply_chat_template(
            [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}],
            add_generation_prompt=True,
        )


def test_plan_loads_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_weights", None)
    assert cli.main(["plan", folder, "--max-model-len", "128", "--kv-cache-memory", "1M"]) == 0
    out = capsys.readouterr().out
    assert "LlamaForCausalLM" in out
    assert "KV cache" in out
    assert "128 positions" in out


def test_failures_are_one_line(folder, capsys):
    assert cli.main(["plan", "/nowhere/model"]) == 1
    assert cli.main(["complete", folder, "x", "--top-p", "7"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert "LoadError" in first
    assert "/nowhere/model" in first
    assert "top_p" in second
    for arguments in (
        [],
        ["fly"],
        ["plan", folder, "--kv-cache-memory", "much"],
        ["complete", folder, "-p", "x"],
        ["complete", folder, "x", "-n", "1", "y"],
        ["chat", folder, "-n", "1", "y"],
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("2k", 2048), ("1.5M", 3 << 19), ("2GiB", 2 << 30), ("1TB", 1 << 40)],
)
def test_sizes(text, size):
    assert cli._size(text) == size


def test_doctor(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_PROBE_BYTES", 1 << 20)
    assert cli.main(["doctor", "--isa", "scalar", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    for word in ("CPU", "features", "processors", "GB/s", "peak f32", "rms_norm", "scalar", "CUDA"):
        assert word in out


def test_the_terminal_shows_the_speed(folder, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_is_terminal", lambda: True)
    assert cli.main(["complete", folder, "abc", "-n", "40", "--temperature", "0"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n")
    assert "\x1b[K" in out
