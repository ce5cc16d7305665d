"""A tiny random model that reads and writes text: every byte is a token.

Owns the byte tokenizer (ids 0 to 2 are <unk>, <s>, </s>; id 3 + b is byte b) and the folder that
the tests of the public surface share. Needs no data from outside; with `allowed_token_ids=LETTERS`
the random model writes readable letters.
"""

from __future__ import annotations

import json
from pathlib import Path

import tiny

from llmaccel import SamplingParams

VOCAB = 301
LETTERS = [3 + ord(c) for c in "abcdefgh "]
COMMON = {"allowed_token_ids": LETTERS, "ignore_eos": True}
GREEDY = SamplingParams(temperature=0, max_tokens=20, **COMMON)
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if tools %}tools={{ tools|length }}{% endif %}"
    "{% if mood is defined %}mood={{ mood }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of the byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    from llmaccel.detokenize import char_of_byte

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab.update({char: 3 + byte for byte, char in enumerate(char_of_byte())})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], pair=["<s>", "$A", "$B:1"], special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )


def write_model(folder: Path, **overrides) -> Path:
    """A llama of 3 layers with the byte tokenizer."""
    tiny.make_checkpoint("llama", folder, seed=3, **overrides)
    write_tokenizer(folder)
    return folder


def only(outputs):
    """The one continuation of the one prompt."""
    assert len(outputs) == 1
    return outputs[0].outputs[0]
