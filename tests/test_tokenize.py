"""Tokenizers: every vocabulary format against expected ids, decoding as a stream, damaged files."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import shutil
import unicodedata

import numpy as np
import pytest
from vocabularies import (
    CONFIG,
    CORPUS,
    DATA,
    byte_level_backend,
    folder_of,
    gguf_metadata,
    loaded,
    model_state,
    needs_data,
    random_texts,
    ranks_of,
    spm_bytes,
    spm_pieces,
    spm_tokenizer,
    write_json,
)

from llmaccel import tokenize_convert
from llmaccel.errors import LoadError, RequestError, UnsupportedError
from llmaccel.models.gguf import open_gguf
from llmaccel.tokenize import Tokenizer, load_tokenizer
from llmaccel.tokenize_patterns import GGUF_RULES, GPT2, LLAMA3

GGUF = DATA / "gguf_vocab"

# --------------------------------------------------------------------------------------------------
# Expected ids of real tokenizers

GOLDEN = {
    "llama2": "llama2/tokenizer.model",
    "llama2_hf": "llama2",
    "llama3": "llama3",
    "qwen2": "qwen2",
    "gpt2": "gpt2",
    "phi3": "phi3",
    "deepseek": "deepseek",
    "mistral_v3": "mistral/tokenizer.model.v3",
}


@needs_data
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids(name):
    tokenizer = loaded(GOLDEN[name])
    # Computed by sentencepiece and tiktoken, which know no special text, or from tokenizer.json.
    split = None if name in ("phi3", "deepseek", "llama2_hf") else True
    rows = [json.loads(line) for line in (DATA / "golden_ids.jsonl").open(encoding="utf-8")]
    wrong = []
    for row in rows:
        expected = row["ids"].get(name, row["ids"]["llama2"])
        ids = tokenizer.encode(row["text"], add_special_tokens=False, split_special_tokens=split)
        text = tokenizer.decode(expected)
        original = unicodedata.normalize("NFC", row["text"]) if name == "qwen2" else row["text"]
        if ids != expected or (text != original and not row["text"].startswith("<")):
            wrong.append(row["text"])
    assert len(rows) > 100
    assert wrong == []


@needs_data
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("llama-spm", "gguf_vocab/ggml-vocab-llama-spm.gguf"),
        ("phi-3", "gguf_vocab/ggml-vocab-phi-3.gguf"),
        ("gpt-2", "gguf_vocab/ggml-vocab-gpt-2.gguf"),
        ("deepseek-coder", "gguf_vocab/ggml-vocab-deepseek-coder.gguf"),
        ("llama-bpe", "llama3"),
        ("qwen2", "qwen2"),
    ],
)
def test_gguf_out_files(name, source):
    tokenizer = loaded(source)
    text = (GGUF / f"ggml-vocab-{name}.gguf.inp").read_text(encoding="utf-8")
    texts = text.split("\n__ggml_vocab_test__\n")[:-1]  # the separator ends each
    lines = (GGUF / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    expected = [[int(word) for word in line.split()] for line in lines]
    got = [tokenizer.encode(t, add_special_tokens=False) for t in texts]
    assert len(texts) == len(expected)
    assert got == expected


@needs_data
@pytest.mark.parametrize(
    ("file", "source"), [("gpt2_encoded_tokens", "gpt2"), ("llama_encoded", "llama2")]
)
def test_hf_encoded(file, source):
    expected = json.loads((DATA / "hf_expectations" / f"{file}.json").read_text(encoding="utf-8"))
    tokenizer = loaded(source)
    ids = tokenizer.encode(expected["text"])
    assert ids == expected["token_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[tokens[0] == "<s>" :] == expected["bpe_tokens"]
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.decode(ids) == expected["decoded_text"]


@needs_data
@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("distilgpt2", "gpt2"),
        ("coreml-projects/Llama-2-7b-chat-coreml", "llama2"),
        ("coreml-projects/Llama-2-7b-chat-coreml", "llama2/tokenizer.model"),
    ],
)
def test_hf_tokenizer_tests(model, source):
    cases = json.loads((DATA / "hf_expectations/tokenizer_tests.json").read_text(encoding="utf-8"))
    tokenizer = loaded(source)
    for case in cases[model]:
        ids = case["encoded"]["input_ids"]
        assert tokenizer(case["input"]) == case["encoded"]
        clean = model == "distilgpt2"  # these were decoded with the clean-up of that time
        with_special = tokenizer.decode(ids, clean_up_tokenization_spaces=clean)
        without = tokenizer.decode(ids, True, clean_up_tokenization_spaces=clean)
        assert with_special == case["decoded_with_special"]
        assert without == case["decoded_without_special"]


def test_smollm2(smollm2_path, shared_data):
    tokenizer = load_tokenizer(smollm2_path)
    assert tokenizer.stop_token_ids == [2]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert prompt[:2] == [1, 9690]
    file = shared_data / "models/smollm2_135m/golden_prompts.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert tokenizer.encode(row["prompt"]) == row["ids"]
        assert tokenizer.decode(row["greedy_ids"]).startswith(row["greedy_text"])


@needs_data
@pytest.mark.torch
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "deepseek", "llama3"])
def test_like_transformers(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    folder = DATA / name
    if name == "qwen3":  # its vocabulary is that of qwen2
        folder = tmp_path
        for file in ("qwen2/vocab.json", "qwen2/merges.txt", "qwen3/tokenizer_config.json"):
            shutil.copy(DATA / file, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    ours = load_tokenizer(folder)
    texts = [*random_texts(3, 200), "<think>a</think><|im_end|>\n<tool_call>", "<|eot_id|> x"]
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False)
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "vocab_size")
    assert [getattr(ours, n) for n in names] == [getattr(theirs, n) for n in names]
    assert len(ours) == len(theirs)
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    if ours.chat_template:
        chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "é"}]
        expected = theirs.apply_chat_template(chat, return_dict=False)
        assert ours.apply_chat_template(chat) == expected
        text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        got = ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert got == text


# --------------------------------------------------------------------------------------------------
# Conversions against the packages they replace


@needs_data
@pytest.mark.parametrize("name", ["llama2/tokenizer.model", "mistral/tokenizer.model.v3"])
def test_sentencepiece_conversion(name):
    library = pytest.importorskip("sentencepiece")
    theirs = library.SentencePieceProcessor(model_file=str(DATA / name))
    ours = loaded(name)
    for text in random_texts(1, 600):
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", "byte_fallback": True},
        {"model_type": "bpe", "add_dummy_prefix": False, "byte_fallback": True},
        {"model_type": "bpe", "user_defined_symbols": ["<u>", "▁▁", "aa", "aaa"]},
        {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"},
        {"model_type": "unigram", "byte_fallback": True},
        {"model_type": "char"},
    ],
    ids=str,
)
def test_sentencepiece_models(tmp_path, options):
    library = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS * 5), encoding="utf-8")
    defaults = {
        "vocab_size": 420 if options.get("byte_fallback") else 160,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": options.get("normalization_rule_name") == "nmt_nfkc",
        "hard_vocab_limit": False,
        "control_symbols": ["<c>"],
        "minloglevel": 2,
    }
    prefix = str(tmp_path / "m")
    library.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=prefix, **{**defaults, **options}
    )
    theirs = library.SentencePieceProcessor(model_file=prefix + ".model")
    ours = load_tokenizer(prefix + ".model")
    converted = options["model_type"] == "bpe" and len(options) < 3 and "norm" not in str(options)
    assert (ours._segment_encoder is None) == (converted or "add_dummy_prefix" in options)
    for text in [*random_texts(2, 300), "a<u>b<c>", "aaaa▁▁▁a"]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text), text
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)
    bos, control = theirs.bos_id(), theirs.piece_to_id("<c>")
    ids = ours.encode("a<c>b", split_special_tokens=False)
    assert ids == [
        bos,
        *theirs.encode("a"),
        control,
        *ours.encode("<c>b", False, split_special_tokens=False)[1:],
    ]


@needs_data
def test_rank_file_conversion(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    file = DATA / "llama3/tokenizer.model"
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    theirs = tiktoken.Encoding("x", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(file)
    for text in random_texts(4, 400):
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode_ordinary(text), text
        assert ours.decode(ids) == text


def test_rank_file_small(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = ranks_of(model_state(byte_level_backend()))
    theirs = tiktoken.Encoding("x", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(folder_of(tmp_path, "ranks", None))
    for text in random_texts(5, 300):
        assert ours.encode(text, False) == theirs.encode_ordinary(text), text


# --------------------------------------------------------------------------------------------------
# Behaviour, on small vocabularies


@pytest.mark.parametrize("kind", ["json", "merges", "ranks"])
def test_folder_kinds_agree(tmp_path, kind):
    reference = Tokenizer(tokenize_convert.Parts(byte_level_backend()))
    tokenizer = load_tokenizer(folder_of(tmp_path, kind, CONFIG))
    for text in random_texts(6, 100):
        ids = reference.encode(text)
        if kind == "ranks":  # a rank file takes a word that is a token whole
            ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.encode(text) == [400, *ids]
        assert tokenizer.decode([400, *ids], skip_special_tokens=True) == text
    assert len(tokenizer) == 405
    assert tokenizer.vocab_size == 400
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        400,
        401,
        None,
    )
    assert tokenizer.convert_ids_to_tokens([402, 403, 9999]) == [
        "<|reserved_token_402|>",
        "<think>",
        None,
    ]
    assert tokenizer.all_special_ids == [400, 401, 404]
    assert tokenizer.stop_token_ids == [401]
    assert tokenizer.get_added_vocab()["<think>"] == 403
    assert tokenizer.get_vocab()["<|tool|>"] == 404


def test_special_text(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path, "json", CONFIG))
    assert tokenizer.encode("<s>a<think>", False)[0] == 400
    assert tokenizer.encode("<s>a<think>", False)[-1] == 403
    plain = tokenizer.encode("<s>a<think>", False, split_special_tokens=True)
    assert 400 not in plain
    assert plain[-1] == 403  # added, but not special
    assert tokenizer.decode(plain) == "<s>a<think>"
    write_json(tmp_path / "json/tokenizer_config.json", {**CONFIG, "split_special_tokens": True})
    assert 400 not in load_tokenizer(tmp_path / "json").encode("<s>a", False)


def test_call_and_names(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path, "json", CONFIG))
    one = tokenizer("hello")
    assert one.input_ids == one["input_ids"] == tokenizer.encode("hello")
    assert one["attention_mask"] == [1] * len(one.input_ids)
    two = tokenizer(["hello", ""], add_special_tokens=False)
    assert two.input_ids == [tokenizer.encode("hello", False), []]
    assert tokenizer("hello there", truncation=True, max_length=2).input_ids == one.input_ids[:2]
    assert tokenizer.batch_decode(two.input_ids) == ["hello", ""]
    assert tokenizer.convert_tokens_to_ids(["<s>", "no such token"]) == [400, None]
    assert tokenizer.token_text(tokenizer.encode(" the", False)[0]).startswith(" ")
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("é🦙", False))) == "é🦙".encode()
    assert tokenizer.decode(400) == "<s>"
    assert tokenizer.decode(np.array([400, 401])) == "<s></s>"


def test_chat_adds_no_second_bos(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path, "json", CONFIG))
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s>[user]Hi"
    ids = tokenizer.apply_chat_template(messages)
    assert ids == [400, *tokenizer.encode("[user]Hi", False)]
    assert tokenizer.apply_chat_template(messages, return_dict=True).input_ids == ids
    assert tokenizer.apply_chat_template([messages, messages]) == [ids, ids]
    custom = tokenizer.apply_chat_template(messages, chat_template="{{ x }}", tokenize=False, x="é")
    assert custom == "é"
    other = load_tokenizer(tmp_path / "json", chat_template="{{ messages | length }}")
    assert other.apply_chat_template(messages, tokenize=False) == "1"
    assert tokenizer.chat_template == CONFIG["chat_template"]


def test_post_processor_flags(tmp_path):
    folder = folder_of(tmp_path, "json", {**CONFIG, "add_bos_token": False, "add_eos_token": True})
    ids = load_tokenizer(folder).encode("hi")
    assert 400 not in ids
    assert ids[-1] == 401
    state = {name: value for name, value in CONFIG.items() if name != "add_bos_token"}
    write_json(folder / "tokenizer_config.json", state)
    assert load_tokenizer(folder).encode("hi") == ids[:-1]


def test_older_config_files(tmp_path):
    folder = folder_of(tmp_path, "json", None)
    write_json(folder / "special_tokens_map.json", {"eos_token": "</s>"})
    write_json(folder / "added_tokens.json", {"</s>": 400, "<x>": 401})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id == 400
    assert tokenizer.special_id_set == {400}
    assert tokenizer.encode("<x></s>") == [401, 400]


def test_gguf_bpe():
    metadata = gguf_metadata()
    tokenizer = Tokenizer.from_gguf(metadata)
    reference = Tokenizer(tokenize_convert.Parts(byte_level_backend()))
    for text in random_texts(7, 100):
        assert tokenizer.encode(text) == [400, *reference.encode(text)]
    assert tokenizer.stop_token_ids == [401, 402]  # eos, and the turn end known by its name
    assert tokenizer.special_id_set == {400, 401, 402}
    assert tokenizer.encode("<tag>", False) == [403]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert ids == [400, *reference.encode("Hi"), 402]
    explicit = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.eot_token_id": 403})
    assert explicit.stop_token_ids == [401, 403]
    assert Tokenizer.from_gguf(metadata, chat_template="{{ 1 }}").chat_template == "{{ 1 }}"


@pytest.mark.parametrize("pre", sorted(GGUF_RULES))
def test_gguf_pre_rules_lose_nothing(pre):
    tokenizer = Tokenizer.from_gguf(gguf_metadata(pre))
    for text in random_texts(8, 30):
        expected = unicodedata.normalize("NFC", text) if GGUF_RULES[pre].nfc else text
        assert tokenizer.decode(tokenizer.encode(text, False)) == expected


def test_gguf_merges_without_token():
    metadata = gguf_metadata()
    merges = [*metadata["tokenizer.ggml.merges"], "qqq zzz"]
    tokenizer = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.merges": merges})
    assert tokenizer.encode("the") == Tokenizer.from_gguf(metadata).encode("the")


def test_gguf_spm(tmp_path):
    pieces = spm_pieces()
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _, _ in pieces],
        "tokenizer.ggml.scores": np.array([score for _, score, _ in pieces], dtype=np.float32),
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    file = spm_tokenizer(tmp_path)
    for text in random_texts(9, 100):
        assert tokenizer.encode(text, False) == file.encode(text, False)
        assert tokenizer.decode(tokenizer.encode(text), True) == text.replace("\u2581", " ")
    the = tokenizer.convert_tokens_to_ids("▁the")
    assert tokenizer.encode("the<sep>the") == [1, the, len(pieces) - 1, the]
    bare = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.add_space_prefix": False})
    assert bare.encode(" the", False) == [the]
    assert bare.decode([the]) == " the"
    phi3 = Tokenizer.from_gguf({**metadata, "general.architecture": "phi3"})
    assert phi3.encode("</s>\n\n", False) == [2]
    assert tokenizer.encode("</s>\n", False) != [2]


def test_sentencepiece_prefix_and_special(tmp_path):
    bare = spm_tokenizer(tmp_path)
    the, sep = bare.convert_tokens_to_ids(["▁the", "<sep>"])
    assert bare.encode("the") == [1, the]
    assert bare.encode("</s>", False) != [2]  # a bare model has no special text
    assert bare.encode("</s>", False, split_special_tokens=False) == [2]
    assert bare.encode("the<sep>", False) == [the, sep]
    assert bare.decode([1, the], skip_special_tokens=True) == "the"
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    write_json(tmp_path / "tokenizer_config.json", config)
    legacy = load_tokenizer(tmp_path)
    assert legacy.encode("the</s>the", False) == [the, 2, the]  # a prefix after each special token
    write_json(tmp_path / "tokenizer_config.json", {**config, "legacy": False})
    once = load_tokenizer(tmp_path)
    t, he = once.convert_tokens_to_ids(["t", "he"])
    assert once.encode("the</s>the", False) == [the, 2, t, he]
    assert once.encode("</s>the", False) == [2, t, he]
    no_prefix = {**config, "add_prefix_space": False, "add_bos_token": False, "legacy": False}
    write_json(tmp_path / "tokenizer_config.json", no_prefix)
    assert load_tokenizer(tmp_path).encode("the") == [t, he]


# --------------------------------------------------------------------------------------------------
# Bad input


def test_bad_requests(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path, "json", CONFIG))
    for text in (5, None, b"x", "\ud800"):
        with pytest.raises(RequestError, match="text to encode"):
            tokenizer.encode(text)
    for ids in ([-1], [1.5], ["a"]):
        with pytest.raises(RequestError, match="token id"):
            tokenizer.decode(ids)
    with pytest.raises(RequestError, match="max_length"):
        tokenizer("a", truncation=True)
    assert tokenizer.decode([10**12, 400]) == "<s>"


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LoadError, match="no tokenizer files"):
        load_tokenizer(tmp_path)
    with pytest.raises(LoadError, match="no such file or folder"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(LoadError, match="hub"):
        load_tokenizer("no-such-organisation/no-such-model")


@pytest.mark.parametrize(
    ("name", "content", "error", "what"),
    [
        ("tokenizer.json", b"{", LoadError, "tokenizer.json"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 5}}', LoadError, "tokenizer.json"),
        ("tokenizer.model", b"", LoadError, "no pieces"),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f", LoadError, "truncated"),
        ("tokenizer.model", b"\xff" * 11, LoadError, "10 bytes"),
        ("tokenizer.model", b"\x0a\x02\x0a\x05", LoadError, "truncated"),
        ("tokenizer.model", b"\x0a\x03\x0a\x01\xff", LoadError, "UTF-8"),
        ("tokenizer.model", b"\x08\x01", LoadError, "piece is not a message"),
        ("tokenizer.model", b"\x0b", LoadError, "wire type"),
        ("tokenizer.model", b"IQ== 0\nIQ== 1\n", LoadError, "line 2"),
        ("tokenizer.model", b"IQ== 0\nIg== x\n", LoadError, "line 2"),
        ("tokenizer.model", b"IQ== 0\nIg== 0\n", LoadError, "ranks repeat"),
        ("tokenizer.model", b"IQ== 0\nIg== 99999999\n", LoadError, "ranks"),
        ("x.tiktoken", b"IQ== 0\nIg== 1\n", UnsupportedError, "2 ranks"),
    ],
)
def test_damaged_files(tmp_path, name, content, error, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=what):
        load_tokenizer(tmp_path)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    """Long tokens cost the square of their length, so their number is limited; so are files."""
    spm = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["a" * n for n in range(2900, 3000)],
        "tokenizer.ggml.scores": [0.0] * 100,
    }
    with pytest.raises(LoadError, match="GGUF: the squared lengths of the tokens"):
        Tokenizer.from_gguf(spm)
    for model in ("llama", "gpt2"):
        long = {**spm, "tokenizer.ggml.tokens": ["a" * 4097], "tokenizer.ggml.scores": [0.0]}
        with pytest.raises(LoadError, match=r"tokenizer\.ggml\.tokens holds 'aa.* 4097 characters"):
            Tokenizer.from_gguf({**long, "tokenizer.ggml.model": model})
    ranks = [base64.b64encode(b"a" * n) + b" %d" % (n - 2900) for n in range(2900, 3000)]
    (tmp_path / "r50k_base.tiktoken").write_bytes(b"\n".join(ranks))
    with pytest.raises(LoadError, match=r"r50k_base\.tiktoken: the squared lengths"):
        load_tokenizer(tmp_path / "r50k_base.tiktoken")
    (tmp_path / "tokenizer.model").write_bytes(spm_bytes(spm_pieces()))
    for name in ("r50k_base.tiktoken", "tokenizer.model"):
        with (tmp_path / name).open("r+b") as file:
            file.truncate((1 << 28) + 1)  # a hole: no disk is filled
        with pytest.raises(LoadError, match=f"{name}: .* larger than the limit"):
            load_tokenizer(tmp_path / name)


def test_truncated_sentencepiece(tmp_path):
    data = spm_bytes(spm_pieces())
    file = tmp_path / "tokenizer.model"
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(data[: rng.randrange(len(data))])
        for _ in range(rng.randint(0, 3)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        with contextlib.suppress(LoadError, UnsupportedError):  # and nothing else
            load_tokenizer(file).encode("the 中")


def test_sentencepiece_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(UnsupportedError, match="sentencepiece package"):
        spm_tokenizer(tmp_path, kind=1)
    assert spm_tokenizer(tmp_path).encode("the")[0] == 1


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"tokenizer_class": "MysteryTokenizer"}, UnsupportedError, "MysteryTokenizer"),
        ({"added_tokens_decoder": {"5": {"content": "<new>"}}}, LoadError, "taken"),
        ({"added_tokens_decoder": {"99999999": {"content": "<new>"}}}, LoadError, "99999999"),
        (
            {"added_tokens_decoder": {str(60_000 * i): {"content": f"<{i}>"} for i in (1, 2, 3)}},
            LoadError,
            "id 120000",
        ),
        ({"added_tokens_decoder": {"x": {"content": "<new>"}}}, LoadError, "not an id"),
        ({"added_tokens_decoder": {"1" * 5000: {"content": "<new>"}}}, LoadError, "not an id"),
        ({"added_tokens_decoder": {"1" * 5000: 5}}, LoadError, "not a token"),
        ({"added_tokens_decoder": [1]}, LoadError, "not an object"),
        ({"eos_token": 5}, LoadError, "eos_token"),
    ],
)
def test_bad_config(tmp_path, change, error, what):
    folder = folder_of(tmp_path, "merges", {**CONFIG, **change})
    with pytest.raises(error, match=what):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(LoadError, match=r"tokenizer_config\.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"model": "bert"}, UnsupportedError, "'bert'"),
        ({"model": None}, LoadError, "tokenizer.ggml.model"),
        ({"pre": "mystery"}, UnsupportedError, "'mystery'"),
        ({"tokens": None}, LoadError, "tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, LoadError, "no string"),
        ({"tokens": ["a", "a"], "token_type": None}, LoadError, "twice"),
        ({"token_type": [1]}, LoadError, "token_type has 1"),
        ({"merges": ["ab"]}, LoadError, "merges"),
        ({"merges": "ab"}, LoadError, "not an array"),
        ({"bos_token_id": "x"}, LoadError, "bos_token_id"),
        ({"model": "llama"}, LoadError, "scores"),
    ],
)
def test_bad_gguf_metadata(change, error, what):
    metadata = gguf_metadata()
    for key, value in change.items():
        metadata[f"tokenizer.ggml.{key}"] = value
        if value is None:
            del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(error, match=what):
        Tokenizer.from_gguf(metadata)


@needs_data
def test_gguf_metadata_is_enough():
    metadata = open_gguf(GGUF / "ggml-vocab-gpt-2.gguf").metadata
    assert Tokenizer.from_gguf(metadata).encode("hello world") == [31373, 995]
