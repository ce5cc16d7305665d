"""EngineArgs, AsyncEngineArgs and FlexibleArgumentParser as vLLM's scripts use them."""

from __future__ import annotations

import argparse
import dataclasses
import json

import letters
import pytest
from letters import GREEDY, only

from llmaccel import (
    LLM,
    AsyncEngineArgs,
    AsyncLLM,
    ConfigError,
    EngineArgs,
    FlexibleArgumentParser,
    LLMEngine,
    PoolerConfig,
    UnsupportedError,
)
from llmaccel.engine_args import _NOT_ON_COMMAND_LINES
from llmaccel.engine_table import ASYNC_ARGUMENTS, ENGINE_ARGUMENTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"))


def test_fields_and_defaults_are_those_of_the_table():
    for kind, rows in (
        (EngineArgs, ENGINE_ARGUMENTS),
        (AsyncEngineArgs, {**ENGINE_ARGUMENTS, **ASYNC_ARGUMENTS}),
    ):
        made = kind()
        assert vars(made) == {name: row.default for name, row in rows.items()}
        assert {field.name for field in dataclasses.fields(made)} == set(rows)
    first, second = EngineArgs(), EngineArgs()
    first.hf_overrides["x"] = 1
    assert second.hf_overrides == {}
    assert isinstance(AsyncEngineArgs(), EngineArgs)
    assert EngineArgs("m").model == "m"


def test_values_are_checked_when_it_is_made():
    with pytest.raises(
        TypeError, match=r"EngineArgs\(\) .*'max_seq_len'; did you mean max_model_len"
    ):
        EngineArgs(model="m", max_seq_len=3)
    with pytest.raises(TypeError, match=r"AsyncEngineArgs\(\) .*'no_such_thing'"):
        AsyncEngineArgs(model="m", no_such_thing=3)
    with pytest.raises(TypeError, match="'enable_log_requests'"):
        EngineArgs(model="m", enable_log_requests=True)
    with pytest.raises(UnsupportedError, match="tensor_parallel_size=2"):
        EngineArgs(model="m", tensor_parallel_size=2)
    with pytest.raises(ValueError, match="max_num_seqs='x'"):  # as ConfigError is one
        EngineArgs(model="m", max_num_seqs="x")


@pytest.mark.parametrize("how", [vars, dataclasses.asdict])
def test_an_llm_of_the_arguments(folder, how):
    args = EngineArgs(
        model=str(folder), max_model_len="0.1k", enforce_eager=True, pooler_config=PoolerConfig()
    )
    with LLM(**how(args)) as llm:
        assert llm.plan().max_model_len == 100
        assert llm.report()["no_effect"] == ["enforce_eager"]
        want = only(llm.generate("abc", GREEDY)).token_ids
    with LLM.from_engine_args(dataclasses.replace(args, seed=5)) as llm:
        assert llm.report()["options"]["seed"] == 5
        assert only(llm.generate("abc", GREEDY)).token_ids == want


def test_engines_of_the_arguments(folder):
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(folder), max_num_seqs=3))
    assert engine.vllm_config.scheduler_config.max_num_seqs == 3
    engine.llm.close()
    given = AsyncEngineArgs(model=str(folder), enable_log_requests=True)
    engine = AsyncLLM.from_engine_args(given, start_engine_loop=True, usage_context="here")
    assert engine.llm.report()["no_effect"] == ["enable_log_requests"]
    engine.shutdown()
    with pytest.raises(UnsupportedError, match="stat_loggers"):
        AsyncLLM.from_engine_args(given, stat_loggers=[print])


def test_a_tokenizer_comes_along(folder):
    with LLM(folder) as llm:
        args = EngineArgs(model=str(folder), tokenizer=llm.get_tokenizer())
    with LLM(**dataclasses.asdict(args)) as llm:
        assert llm.get_tokenizer().encode("a") == [1, 100]


# ---- command lines ------------------------------------------------------------------------------


def parse(*words: str) -> argparse.Namespace:
    return EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(list(words))


def test_no_words_are_the_defaults():
    assert vars(EngineArgs.from_cli_args(parse())) == vars(EngineArgs())
    plain = AsyncEngineArgs.add_cli_args(argparse.ArgumentParser())
    assert vars(AsyncEngineArgs.from_cli_args(plain.parse_args([]))) == vars(AsyncEngineArgs())
    parsed = vars(parse())
    assert set(parsed) == set(ENGINE_ARGUMENTS) - set(_NOT_ON_COMMAND_LINES)
    alone = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(), async_args_only=True)
    assert set(vars(alone.parse_args([]))) == set(ASYNC_ARGUMENTS)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--max-model-len 4K", "max_model_len", 4096),
        ("--max_model_len=auto", "max_model_len", "auto"),
        ("--max_model_len -1", "max_model_len", -1),
        ("--enforce-eager", "enforce_eager", True),
        ("--no-enforce_eager", "enforce_eager", False),
        ("--enable_prefix_caching", "enable_prefix_caching", True),
        ("--gpu-memory-utilization 0.5", "gpu_memory_utilization", 0.5),
        ('--hf-overrides {"a_b":1}', "hf_overrides", {"a_b": 1}),
        ("--compilation-config 3", "compilation_config", 3),
        ("--served_model_name x_y", "served_model_name", "x_y"),
        ("--served-model-name None", "served_model_name", None),
        ("--collect-detailed-traces model worker", "collect_detailed_traces", ["model", "worker"]),
        ("--quantization int8", "quantization", "int8"),
    ],
)
def test_options(words, name, value):
    assert getattr(parse(*words.split(" ")), name) == value


@pytest.mark.parametrize(
    "words", ["--max-model-len many", "--hf-overrides {", "--no-such-option 3", "--seed 1.5"]
)
def test_bad_options(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words.split(" "))
    assert words.split(" ")[0] in capsys.readouterr().err


def test_a_scripts_own_options():
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(description="mine"))
    parser.set_defaults(model="some/model")
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=16)
    group.add_argument("--top_k", type=int)
    group.add_argument("--seed", type=int, help="in place of ours")
    group.add_argument("--chat-template", "--task", "--device", "--threads", dest="own")
    args = parser.parse_args(["--max_tokens", "4", "--top-k", "5", "--threads", "9", "--seed=3"])
    assert (args.max_tokens, args.top_k, args.seed, args.own) == (4, 5, 3, "9")
    made = EngineArgs.from_cli_args(args)
    assert (made.model, made.seed, made.threads) == ("some/model", 3, None)


YAML = """---
# a comment
model: some/model   # and another
max-model-len: 2k
enforce_eager: true
enable-prefix-caching: false
hf-overrides: {"a": [1, 2]}
collect_detailed_traces:
  - model
  - 'worker'
served_model_name: "a # b"
revision:
"""


def test_a_file_of_options(tmp_path, capsys):
    file = tmp_path / "options.yaml"
    file.write_text(YAML)
    args = parse("--seed", "1", "--config", str(file), "--max-model-len", "3k")
    assert (args.model, args.max_model_len, args.seed) == ("some/model", 3000, 1)
    assert (args.enforce_eager, args.enable_prefix_caching) == (True, False)
    assert args.hf_overrides == {"a": [1, 2]}
    assert args.collect_detailed_traces == ["model", "worker"]
    assert args.revision is None
    (tmp_path / "options.json").write_text(json.dumps({"model": "x", "seed": 7}))
    args = parse(f"--config={tmp_path / 'options.json'}")
    assert (args.model, args.seed) == ("x", 7)
    for name, text in (("bad.yaml", "a:\n  b: 3"), ("bad.json", "[1]"), ("bad.json", "{")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SystemExit):
            parse("--config", str(tmp_path / name))
        assert name in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("--config", str(tmp_path / "nowhere"))
    own = FlexibleArgumentParser()
    own.add_argument("--config")
    assert own.parse_args(["--config", "mine"]).config == "mine"


def test_errors_are_llmaccels():
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=2\.0"):
        EngineArgs.from_cli_args(parse("--gpu-memory-utilization", "2"))
