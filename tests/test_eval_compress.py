"""compress and decompress: exact whatever the batch and the threads, as short as the model's bound,
an error for whoever cannot read it. On stories260K; with SmolLM2, slowly, on every text."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys

import pytest
import tiny

from llmaccel import LLM, LoadError, RequestError, cli
from llmaccel.eval import compress, decompress, measure, read_documents
from llmaccel.eval.container import Container

OTHER = {"max_num_seqs": 3, "max_num_batched_tokens": 48, "threads": 1}


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    return tiny.stories260k_folder(shared_data.parent, tmp_path_factory.mktemp("stories") / "hf")


@pytest.fixture(scope="module")
def text(shared_data):
    documents = read_documents([shared_data / "texts" / "tinystories.jsonl"], limit=7)
    return "\n".join(documents)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def packed(llm, text):
    return compress(llm, text.encode())


def test_round_trip_with_another_batch(llm, folder, text, packed):
    data = text.encode()
    with LLM(folder, dtype="float32", **OTHER) as other:
        assert decompress(other, packed) == data
        assert compress(other, data) == packed
    bound = measure(llm, [text], chunk=511).bits / 8
    # It may be below the bound: no token costs more than some 30 bits, however unlikely.
    assert len(packed) <= 1.005 * bound + 64
    assert len(packed) < len(lzma.compress(data, preset=9))


def test_streams_are_decoded_some_at_a_time(llm, text, monkeypatch):
    data = text.encode()
    module = sys.modules[compress.__module__]  # its name is the function's too
    monkeypatch.setattr(module, "_STREAM_BYTES", 100)
    packed = compress(llm, data, chunk=100)
    assert len(Container.from_bytes(packed).streams) == 5
    told = []
    monkeypatch.setattr(module, "_STREAMS_AT_ONCE", 2)
    assert decompress(llm, packed, progress=lambda done, all: told.append((done, all))) == data
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


def test_any_bytes(llm, text):
    some = text[:300].encode()
    for data in (b"", b"a", b"\xff", some + b"\xc3\x28\x00" * 3 + some, bytes(range(256))):
        assert decompress(llm, compress(llm, data, chunk=64)) == data


def test_others_cannot_read_it(llm, folder, text):
    packed = compress(llm, text[:600].encode())
    with LLM(folder, dtype="bfloat16") as other, pytest.raises(LoadError, match="another model"):
        decompress(other, packed)
    with LLM(folder, dtype="float32", isa="avx2") as other:
        if other.report()["backend"]["isa"] != llm.report()["backend"]["isa"]:
            with pytest.raises(LoadError, match="isa='"):
                decompress(other, packed)
    container = Container.from_bytes(packed)
    for changes, match in (
        ({"version": "0.0.1"}, r"llmaccel 0\.0\.1"),
        ({"checksum": container.checksum ^ 1}, "checksum"),
    ):
        changed = Container(**{**vars(container), **changes})
        with pytest.raises(LoadError, match=match):
            decompress(llm, changed.to_bytes())
    broken = bytearray(packed)
    broken[-len(container.streams[-1]) // 2] ^= 4
    with pytest.raises(LoadError, match="checksum"):
        decompress(llm, bytes(broken))
    with pytest.raises(RequestError, match="chunk"):
        compress(llm, b"text", chunk=512)
    message = f"chunks of {container.chunk} tokens; max_model_len={container.chunk} "
    with (
        LLM(folder, dtype="float32", max_model_len=container.chunk) as short,
        pytest.raises(LoadError, match=message),
    ):
        decompress(short, packed)


def test_every_byte_of_the_head_is_checked(packed):
    streams = Container.from_bytes(packed).streams
    for at in range(len(packed) - sum(map(len, streams))):
        broken = bytearray(packed)
        broken[at] ^= 1
        with pytest.raises(LoadError):
            Container.from_bytes(bytes(broken))


def test_arguments_are_bytes(llm):
    with pytest.raises(RequestError, match="data: expected bytes, got str"):
        compress(llm, "text")
    with pytest.raises(RequestError, match="packed: expected bytes, got list"):
        decompress(llm, [1])


def test_command_line(folder, text, tmp_path, capsys):
    source, packed, back = (tmp_path / name for name in ("a.txt", "a.lz", "b.txt"))
    source.write_text(text[:2000], newline="")
    options = ["--model", str(folder), "--dtype", "float32"]
    assert cli.main(["compress", *options, str(source), "-o", str(packed)]) == 0
    assert "bits per byte" in capsys.readouterr().err
    assert cli.main(["decompress", *options, str(packed), "-o", str(back)]) == 0
    assert back.read_bytes() == source.read_bytes()
    piped = subprocess.run(
        [sys.executable, "-m", "llmaccel.cli", "compress", *options, "-", "-o", "-"],
        input=source.read_bytes(),
        capture_output=True,
        check=True,
    )
    assert piped.stdout == packed.read_bytes()
    assert cli.main(["decompress", *options, str(source), "-o", str(back)]) == 1
    assert "not a file of" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_smollm2_on_every_text(smollm2_path, shared_data):
    texts = sorted((shared_data / "texts").iterdir())
    assert texts
    data = {path.name: path.read_bytes()[:100_000] for path in texts}
    with LLM(smollm2_path, max_model_len=1025, threads=2) as llm:
        packed = {name: compress(llm, text, chunk=1024) for name, text in data.items()}
        bounds = {}
        for name, text in data.items():
            whole = text.decode("utf-8", "ignore")  # the cut may lie inside a character
            bounds[name] = measure(llm, [whole], chunk=1024).bits / 8
    options = {"max_num_seqs": 5, "max_num_batched_tokens": 256, "threads": 1}
    with LLM(smollm2_path, max_model_len=1025, **options) as llm:
        for name, text in data.items():
            assert decompress(llm, packed[name]) == text, name
            assert len(packed[name]) <= 1.005 * bounds[name] + 64, name


def test_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text('"one"\n\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_text("three\r\n", newline="")
    paths = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    assert read_documents(paths) == ["one", "two", "three\r\n"]
    assert read_documents(paths, limit=1) == ["one", "three\r\n"]
    (tmp_path / "c.jsonl").write_text(json.dumps({"body": "no"}))
    with pytest.raises(LoadError, match=r"c\.jsonl:1"):
        read_documents([tmp_path / "c.jsonl"])
