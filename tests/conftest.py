"""Fixtures that every test file may use: where the data and the demo model are.

Owns the rule for what is absent: a test asks for a fixture, and the fixture skips it with the
reason. Markers, the timeout and the options of pytest are in pyproject.toml.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What _core.Engine.add takes, with everything off: a plain draw.
SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_k": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "repeat_last_n": -1,
    "no_repeat_ngram": 0,
    "seed": 0,
    "min_tokens": 0,
    "max_tokens": 1,
    "logprobs": -1,
    "prompt_logprobs": -1,
    "prompt_logprob_start": 0,
    "report": 0,
    "score_ids": [],
    "prompt_scores": [],
    "stop_ids": [],
    "bias_ids": [],
    "bias": [],
    "allowed": [],
    "bad": [],
    "trace": [],
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_last_n": -1,
    "dry_breakers": [],
    "top_n_sigma": 0.0,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "typical_p": 1.0,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "pattern_count": 0,
    "pattern_min": 0,
    "pattern_max": 0,
    "think_budget": -1,
    "think_start": [],
    "think_end": [],
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of models, tokenizers and expected outputs beside the checkout."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("../shared/data is not there")
    return path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf, named by LLMACCEL_SMOLLM2 (the make targets set it)."""
    if os.environ.get("LLMACCEL_SANITIZE"):
        pytest.skip("too slow under a sanitizer, where tiny models run the same code")
    name = os.environ.get("LLMACCEL_SMOLLM2")
    if not name:
        pytest.skip("LLMACCEL_SMOLLM2 is not set; `make test` downloads the model and sets it")
    path = Path(name)
    if not path.is_file():
        pytest.fail(f"LLMACCEL_SMOLLM2={name}: no such file")
    return path
