"""What quantizing costs on SmolLM2, by benchmarks/quality.py: the promised bounds.

Products with bf16 activations are held to the fp32 forward over the format's own values, those with
int8 activations to the format with bf16 ones, on the golden ids (three windows) and on 12. The
standard error of three windows is 0.07 %: w4g128, which is 0.13 % away on them, is held to the
bound of bf16 activations on 24, where it measured -0.02 % with a standard error of 0.02 %. A
quantizer's own loss is a property of the format; its bound here only tells a working one from a
broken one.
"""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import quality

from llmaccel import read_arrays

pytestmark = pytest.mark.slow
WEIGHT_ONLY = 0.001
INT8 = 0.005
INT8_PAGES = 0.002
OWN_LOSS = {"int8": 0.02, "w4g128": 0.70, "w4g32": 0.30, "fp8": 0.04, "w6g16": 0.04}
GOLDEN, SOME, MANY = 3, 12, 24
SAMPLES = {"int8": SOME, "w4g128": MANY, "w4g32": SOME, "fp8": GOLDEN, "w6g16": SOME}


@pytest.fixture(scope="module")
def windows(smollm2_path, shared_data):
    return quality.token_windows(shared_data.parent, str(smollm2_path), MANY)


@pytest.fixture(scope="module")
def source(smollm2_path, windows):
    """(config, fp32 arrays, the same shuffled, losses of the fp32 forward)."""
    config, kept = read_arrays(smollm2_path)
    arrays = quality.shuffled(config, kept)
    base, _ = quality.array_losses(config, arrays, windows, dtype="float32")
    return config, kept, arrays, base


def test_the_source_is_the_golden_model(source):
    assert quality.perplexity(source[3][:GOLDEN]) == pytest.approx(28.636967, rel=1e-4)


@pytest.mark.parametrize("name", quality.FORMATS)
def test_bounds(source, windows, name):
    config, kept, arrays, base = source
    found, _ = quality.measure_format(config, arrays, kept, windows[: SAMPLES[name]], name)
    row = quality.summary(found, base[: SAMPLES[name]])
    held = slice(MANY if name == "w4g128" else GOLDEN)
    assert abs(quality.excess(found["weight_only"][held], found["own"][held])[0]) <= WEIGHT_ONLY
    if name != "fp8":
        assert quality.excess(found["int8"][:GOLDEN], found["kept"][:GOLDEN])[0] <= INT8
        assert row["int8_excess"] <= INT8
    assert row["loss"] <= OWN_LOSS[name]


def test_bounds_of_the_file(smollm2_path, windows):
    found, _ = quality.measure_file(str(smollm2_path), windows[:GOLDEN])
    row = quality.summary(found, found["own"])
    assert abs(row["weight_only_excess"]) <= WEIGHT_ONLY
    assert row["int8_excess"] <= INT8
    assert row["kv_int8_excess"] <= INT8_PAGES
