"""Names on the hub, with a hub that is a folder: what is asked for and what is chosen."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import huggingface_hub
import letters
import pytest

from llmaccel import LoadError, hub, load_tokenizer
from llmaccel.loading import find_model, open_tokenizer, prepare
from llmaccel.options import LoadOptions


class Hub:
    """Repositories as lists of files; a snapshot holds those that match."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.online = True

    def snapshot_download(self, name, revision=None, allow_patterns=()):
        self.asked.append((name, revision))
        if name not in self.files:
            raise OSError("404")
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files[name]:
            if any(fnmatch.fnmatchcase(file, pattern) for pattern in allow_patterns):
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).touch()
        return str(folder)

    def list_repo_files(self, name, revision=None):
        if not self.online:
            raise ConnectionError("no network")
        return self.files[name]


@pytest.fixture
def stub(tmp_path, monkeypatch):
    stub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stub)
    return stub


def present(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_safetensors(stub):
    wanted = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_templates/tools.jinja",
        "additional_chat_templates/rag.jinja",
    }
    stub.files["a/b"] = [*wanted, "pytorch_model.bin", "model-Q4_0.gguf", "README.md"]
    assert present(find_model(LoadOptions("a/b", revision="v2"))) == wanted
    assert stub.asked == [("a/b", "v2")]
    folder = hub.fetch_tokenizer("a/b", None)
    assert folder == stub.root / "a/b"


def test_dummy_weights_need_no_weights(stub):
    stub.files["a/b"] = ["config.json", "model.safetensors", "tokenizer.json"]
    folder = find_model(LoadOptions("a/b", load_format="dummy"))
    assert present(folder) == {"config.json", "tokenizer.json"}


def test_a_tokenizer_is_its_files_alone(stub):
    stub.files["a/b"] = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_templates/x.jinja",
    ]
    folder = hub.fetch_tokenizer("a/b", None)
    assert present(folder) == {"tokenizer.json", "chat_templates/x.jinja"}


def test_the_only_gguf_file(stub):
    stub.files["a/gguf"] = ["README.md", "m-Q4_0.gguf"]
    assert find_model(LoadOptions("a/gguf")) == stub.root / "a/gguf/m-Q4_0.gguf"


def test_one_of_several_gguf_files(stub):
    stub.files["a/gguf"] = [
        "config.json",
        "m-Q4_0.gguf",
        "m-Q8_0.gguf",
        "big/m-F16-00001-of-00002.gguf",
        "big/m-F16-00002-of-00002.gguf",
    ]
    with pytest.raises(LoadError, match=r"m-Q4_0.gguf, m-Q8_0.gguf.*'a/gguf:big/m-F16-00001"):
        find_model(LoadOptions("a/gguf"))
    path = find_model(LoadOptions("a/gguf:m-Q8_0.gguf"))
    assert path == stub.root / "a/gguf/m-Q8_0.gguf"
    assert "m-Q4_0.gguf" not in present(path.parent)
    path = find_model(LoadOptions("a/gguf:big/m-F16-00002-of-00002.gguf"))
    assert present(path.parent) == {"m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"}
    assert hub.fetch_tokenizer("a/gguf:m-Q8_0.gguf", None).name == "m-Q8_0.gguf"
    with pytest.raises(LoadError, match=r"no file 'm-Q3\.gguf'"):
        find_model(LoadOptions("a/gguf:m-Q3.gguf"))


def test_without_a_connection_what_is_there_counts(stub):
    stub.files["a/gguf"] = ["m-Q4_0.gguf", "m-Q8_0.gguf"]
    stub.online = False
    with pytest.raises(LoadError, match="cannot be listed: no network"):
        find_model(LoadOptions("a/gguf"))
    path = find_model(LoadOptions("a/gguf:m-Q8_0.gguf"))
    assert find_model(LoadOptions("a/gguf")) == path


@pytest.mark.parametrize(
    "name",
    [
        "./a",
        "/a/b",
        "~/b",
        "a/b/c",
        "m.gguf",
        "a/m.gguf",
        "a/b:config.json",
        "a/b:../x.gguf",
        "a/b:/x.gguf",
        "a/b:",
    ],
)
def test_what_looks_like_a_path_is_not_asked_for(stub, name):
    for fetch in (
        lambda: hub.fetch_model(name, None, "auto"),
        lambda: hub.fetch_tokenizer(name, None),
    ):
        with pytest.raises(LoadError, match=r"no such file|expected a \.gguf file"):
            fetch()
    assert stub.asked == []


def test_unknown_names_say_so(stub):
    with pytest.raises(LoadError, match=r"model 'no/model'.*hub: 404"):
        find_model(LoadOptions("no/model"))
    with pytest.raises(LoadError, match=r"tokenizer 'no/model'.*hub: 404"):
        load_tokenizer("no/model")


def test_a_revision_is_of_the_models_repository(stub, tmp_path):
    """Another repository, named by tokenizer=, has other revisions."""
    stub.files = {name: [] for name in ("a/model", "b/words")}
    for name in stub.files:
        (stub.root / name).mkdir(parents=True)
        letters.write_model(stub.root / name)
    for tokenizer, revision in (("b/words", None), ("a/model", "v2")):
        options = LoadOptions("a/model", tokenizer=tokenizer, revision="v2")
        prepared = prepare(options)
        stub.asked.clear()
        open_tokenizer(options, prepared)
        assert stub.asked == [(tokenizer, revision)]
