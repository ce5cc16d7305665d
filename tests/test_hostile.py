"""Broken model files through LLM(...): each either loads and answers, or raises an LLMAccelError.

The parsers have their own fuzz tests (test_gguf.py, test_safetensors.py); here the mutated files go
all the way through configuration, memory plan, packing, tokenizer and a request, where sizes that
agree with the file may still disagree with each other. LLMACCEL_FUZZ sets the number of mutations
per kind of file.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import letters
import pytest
import tiny
import tiny_gguf
from fuzz_files import mutations

from llmaccel import LLM, LLMAccelError, SamplingParams
from llmaccel.models.gguf import open_gguf

COUNT = int(os.environ.get("LLMACCEL_FUZZ", "100"))
PARAMS = SamplingParams(temperature=0, max_tokens=3, logprobs=1)


def attempt(path: Path, **options) -> str:
    """The name of what opening and one request end with; anything but an LLMAccelError fails."""
    try:
        with LLM(path, max_num_seqs=2, **options) as llm:
            llm.generate({"prompt_token_ids": [3, 4, 5]}, PARAMS)
            if llm._tokenizer is not None:
                llm.generate("a b", PARAMS)
    except LLMAccelError as error:
        assert str(error), type(error)
        return type(error).__name__
    return "loaded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("hostile") / "hf", num_hidden_layers=1)


@pytest.fixture(scope="module", params=["F32", "Q4_0", "Q6_K"])
def gguf_file(request, folder, tmp_path_factory):
    """(bytes, how many of them are the header) of a file with vocabulary and chat template."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 32}
    source = tiny.make_checkpoint("llama", tmp_path_factory.mktemp("gguf"), **sizes)
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)

    def add_vocabulary(writer) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
        writer.add_token_merges([])
        writer.add_chat_template(letters.CHAT_TEMPLATE)

    path = tiny_gguf.make_gguf("llama", source, source / "m.gguf", request.param, add_vocabulary)
    data = path.read_bytes()
    file = open_gguf(path)
    return data, len(data) - sum(file[name].data.size for name in file)


def broken(valid: bytes, header: int, count: int, seed: int) -> Iterator[bytes]:
    """Half of the faults in the header alone, its data intact behind it."""
    yield from mutations(valid, count // 2, seed)
    for head in mutations(valid[:header], count - count // 2, seed + 1):
        yield head + valid[header:]


def check_ends(ends: Counter, refused: str) -> None:
    assert ends[refused] > 0, ends
    assert ends["loaded"] > 0, ends


def test_gguf(gguf_file, tmp_path):
    data, header = gguf_file
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert attempt(path) == "loaded"
    ends: Counter = Counter()
    for variant in broken(data, header, COUNT, 1):
        path.write_bytes(variant)
        ends[attempt(path)] += 1
    check_ends(ends, "LoadError")


def test_safetensors(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    ends: Counter = Counter()
    for variant in broken(data, header, COUNT, 2):
        path.write_bytes(variant)
        ends[attempt(path.parent)] += 1
    check_ends(ends, "LoadError")


JSON_FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_files(folder, tmp_path, name):
    """Bytes broken, and well-formed files with a value replaced, dropped or moved."""
    shutil.copytree(folder, tmp_path / "hf")
    path = tmp_path / "hf" / name
    if not path.exists():
        path.write_text(json.dumps({"eos_token_id": [2, 5], "temperature": 0.7, "top_k": 5}))
    data = path.read_bytes()
    assert attempt(path.parent) == "loaded"
    ends: Counter = Counter()
    source = random.Random(name)
    for variant in mutations(data, COUNT // 2, 3):
        path.write_bytes(variant)
        ends[attempt(path.parent)] += 1
    for _ in range(COUNT // 2):
        path.write_text(json.dumps(replaced(json.loads(data), source)))
        ends[attempt(path.parent)] += 1
    assert ends["loaded"] > 0
    assert sum(ends.values()) - ends["loaded"] > 0


def replaced(tree, source: random.Random):
    """`tree` with one to three values somewhere in it replaced, removed or swapped with junk."""
    for _ in range(source.choice((1, 1, 2, 3))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = source.choice(keys)
            if isinstance(node[key], dict | list) and source.random() < 0.8:
                node = node[key]
                continue
            if source.random() < 0.2:
                del node[key]
            else:
                node[key] = copy.deepcopy(source.choice(tiny.JUNK))
            break
    return tree


def test_a_loaded_model_survives_neighbours_that_fail(folder, tmp_path):
    """Loading fails halfway beside a running model on the same backend: nothing of it changes."""
    (tmp_path / "bad").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "bad" / name)
    data = (folder / "model.safetensors").read_bytes()
    params = SamplingParams(temperature=0, max_tokens=20, logprobs=0)
    with LLM(folder, max_num_seqs=2) as llm:
        expected = llm.generate("abc", params)[0].outputs[0].logprob_array.tobytes()
        for cut in range(8, len(data), len(data) // 15):
            (tmp_path / "bad" / "model.safetensors").write_bytes(data[:cut])
            with pytest.raises(LLMAccelError):
                LLM(tmp_path / "bad")
            again = llm.generate("abc", params)[0].outputs[0].logprob_array.tobytes()
            assert again == expected


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_not_a_regular_file(folder, tmp_path, name):
    """A FIFO or a folder in place of a file is refused, not waited for."""
    for i, make in enumerate((os.mkfifo, os.mkdir)):
        copy = tmp_path / str(i)
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        make(copy / name)
        with pytest.raises(LLMAccelError, match=name):
            LLM(copy)


@pytest.mark.parametrize("change", ["missing", "shape", "dtype"])
def test_a_bad_tensor_is_named_with_its_file(tmp_path, change):
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = letters.write_model(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors, name = load_file(file), "model.layers.1.mlp.down_proj.weight"
    whole = tensors.pop(name)
    if change != "missing":
        tensors[name] = whole[:-1].copy() if change == "shape" else whole.astype(np.int64)
    save_file(tensors, file)
    with pytest.raises(LLMAccelError) as caught:
        LLM(folder)
    assert name in str(caught.value)
    assert str(folder) in str(caught.value)
