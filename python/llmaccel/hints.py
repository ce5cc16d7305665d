"""Hints: what somebody meant by a name that is not here, for the message that refuses it.

Owns the names that other engines have for what this one has too. Invariant: a hint names only what
is known at the place that asks. Called by options.py and params.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

# llama.cpp's, Hugging Face's and OpenAI's names.
MODEL_NAMES = {
    "ctx_size": "max_model_len",
    "context_length": "max_model_len",
    "max_seq_len": "max_model_len",
    "model_max_len": "max_model_len",
    "model_max_length": "max_model_len",
    "n_ctx": "max_model_len",
    "n_threads": "threads",
    "num_threads": "threads",
    "n_batch": "max_num_batched_tokens",
    "n_parallel": "max_num_seqs",
    "torch_dtype": "dtype",
    "type_k": "kv_cache_dtype",
    "type_v": "kv_cache_dtype",
    "cache_type_k": "kv_cache_dtype",
    "cache_type_v": "kv_cache_dtype",
    "model_path": "model",
    "model_id": "model",
    "pretrained_model_name_or_path": "model",
}
SAMPLING_NAMES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens",
    "min_new_tokens": "min_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "num_return_sequences": "n",
    "dry_range": "dry_penalty_last_n",
    "mirostat": "mirostat_mode",
    "penalty_last_n": "repeat_last_n",
    "random_seed": "seed",
    "stop_strings": "stop",
    "stop_strs": "stop",
    "stop_words": "stop",
    "eos_token_id": "stop_token_ids",
    "temp": "temperature",
    "typ_p": "typical_p",
    "typical": "typical_p",
    "top_logprobs": "logprobs",
}
QUANTIZATION_NAMES = {
    "4bit": "w4g128",
    "6bit": "w6g16",
    "8bit": "int8",
    "int4": "w4g128",
    "int6": "w6g16",
    "q6_k": "w6g16",
    "q8_0": "int8",
    "w4": "w4g128",
    "w4a16": "w4g128",
    "w8a8": "int8",
    "w8a16": "int8",
}


def hint(name: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """ "; did you mean X?", or nothing where no known name is near."""
    names = tuple(known)
    meant = (elsewhere or {}).get(name)
    if meant is None:
        lower = {one.lower(): one for one in names}
        near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7)
        meant = lower[near[0]] if near else None
    return f"; did you mean {meant}?" if meant in names else ""
