r"""The split rules of byte-level BPE vocabularies: facts that no vocabulary file carries.

A rank file, a vocab.json or a GGUF holds tokens and merges only; how text is cut into words before
merging is known by a name: the `tokenizer.ggml.pre` of a GGUF, the tokenizer class of a Hugging
Face folder, or the name or size of a rank file. Invariant: an unknown name is never guessed; the
caller reports it. Called by tokenize_convert.py. A pattern list is applied in order, each pattern
to every piece the earlier ones left; what lies between two matches is a piece of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_TAIL}"
QWEN35 = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}?"
    rf"|\p{{N}}{{1,3}}|{_TAIL_SLASH}"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}|{_TAIL_SLASH}"
)
_GPT2_DIGITS = (r"\p{N}", GPT2)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
# The cased letters outside mathematics, as code point ranges (several of them change under NFC, so
# no literals).
_CASED = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}"
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}"
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}"
    r"\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}"
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}"
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}"
    r"\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}"
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}"
    r"\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}"
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)


@dataclass(frozen=True)
class SplitRule:
    """How one vocabulary cuts text.

    patterns: see the module head. ignore_merges: a word that is a token is taken whole, whatever
    the merges say. nfc: text is normalized to NFC first. add_bos: sequences begin with BOS where
    the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False
    add_bos: bool = False


_LLAMA3_RULE = SplitRule((LLAMA3,), ignore_merges=True, add_bos=True)
_GPT2_RULE = SplitRule((GPT2,))
_DIGITS_RULE = SplitRule(_GPT2_DIGITS)
_QWEN2_RULE = SplitRule((QWEN2,), nfc=True)

# `tokenizer.ggml.pre` of GGUF files.
GGUF_RULES: dict[str, SplitRule] = {
    "default": SplitRule((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        _LLAMA3_RULE,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), SplitRule((LLAMA3,))),
    **dict.fromkeys(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
        ),
        _GPT2_RULE,
    ),
    **dict.fromkeys(("modern-bert", "jais", "trillion", "granite-docling", "exaone4"), _GPT2_RULE),
    **dict.fromkeys(("mpt", "olmo"), SplitRule((GPT2,), nfc=True)),
    **dict.fromkeys(
        ("starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
        _DIGITS_RULE,
    ),
    "command-r": SplitRule(_GPT2_DIGITS, nfc=True),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "hunyuan", "grok-2"), _QWEN2_RULE
    ),
    **dict.fromkeys(("stablelm2", "solar-open"), SplitRule((QWEN2,))),
    "qwen35": SplitRule((QWEN35,), nfc=True),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), SplitRule(_DEEPSEEK3)),
    "deepseek-llm": SplitRule(_DEEPSEEK_LLM),
    "deepseek-coder": SplitRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "falcon": SplitRule((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), SplitRule((_BLOOM,))),
    "viking": SplitRule((_BLOOM, r"\p{N}")),
    "tekken": SplitRule((TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), SplitRule((O200K,))),
    "seed-coder": SplitRule(
        (rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",)
    ),
}

# Tokenizer classes of folders with vocab.json and merges.txt; "Fast" is cut off the name first.
CLASS_RULES: dict[str, SplitRule] = {
    **dict.fromkeys(
        ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "PhiTokenizer"), _GPT2_RULE
    ),
    **dict.fromkeys(("PreTrainedTokenizer", "TokenizersBackend"), _GPT2_RULE),
    **dict.fromkeys(("Qwen2Tokenizer", "Qwen3Tokenizer"), _QWEN2_RULE),
    "Qwen3_5Tokenizer": SplitRule((QWEN35,), nfc=True),
    "CohereTokenizer": SplitRule(_GPT2_DIGITS, nfc=True),
}

_LLAMA4_RULE = SplitRule((O200K,), ignore_merges=True, add_bos=True)
_QWEN_RANKS = SplitRule((QWEN2,), ignore_merges=True, nfc=True)
# cl100k takes white space at the end of the text whole, newlines included.
_CL100K = SplitRule((LLAMA3.replace(r"|\s*[\r\n]+", r"|\s++\z|\s*[\r\n]+"),), ignore_merges=True)
_GPT2_RANKS = SplitRule((GPT2,), ignore_merges=True)
_O200K = SplitRule((O200K,), ignore_merges=True)

# Rank files by the name they are published under, and by their number of ranks (which identifies
# the encoding: each was trained once).
RANK_NAMES: dict[str, SplitRule] = {
    "cl100k_base": _CL100K,
    "o200k_base": _O200K,
    "o200k_harmony": _O200K,
    "gpt2": _GPT2_RANKS,
    "r50k_base": _GPT2_RANKS,
    "p50k_base": _GPT2_RANKS,
    "p50k_edit": _GPT2_RANKS,
    "qwen": _QWEN_RANKS,
}
RANK_COUNTS: dict[int, SplitRule] = {
    50256: _GPT2_RANKS,
    50280: _GPT2_RANKS,
    100256: _CL100K,
    128000: _LLAMA3_RULE,
    151643: _QWEN_RANKS,
    199998: _O200K,
    200000: _LLAMA4_RULE,
}
RANK_CLASSES: dict[str, SplitRule] = {
    **dict.fromkeys(("QWenTokenizer", "Qwen2Tokenizer", "Qwen3Tokenizer"), _QWEN_RANKS),
    "Llama4Tokenizer": _LLAMA4_RULE,
}
