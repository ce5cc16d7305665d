"""llmaccel: LLM inference for Python with a core in C.

    from llmaccel import LLM, SamplingParams
    llm = LLM("model.gguf")
    print(llm.generate("Once upon a time", SamplingParams(max_tokens=50))[0].outputs[0].text)

Importing this package loads NumPy and no other dependency; names are loaded when they are first
used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmaccel.errors import (
    ConfigError,
    LLMAccelError,
    LoadError,
    MemoryPlanError,
    RequestError,
    UnsupportedCombination,
    UnsupportedError,
)

if TYPE_CHECKING:
    from llmaccel import kernels
    from llmaccel._core import Tensor
    from llmaccel.arrays import read_arrays
    from llmaccel.balance import balance_experts
    from llmaccel.beams import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
    from llmaccel.engines import AsyncEngineArgs, AsyncLLM
    from llmaccel.llm import LLM
    from llmaccel.outputs import CompletionOutput, Logprob, RequestOutput
    from llmaccel.params import RepetitionDetectionParams, RequestOutputKind, SamplingParams
    from llmaccel.pooling_params import (
        ClassificationRequestOutput,
        EmbeddingRequestOutput,
        PoolingParams,
        PoolingRequestOutput,
        ScoringRequestOutput,
    )
    from llmaccel.showing import ShownWeight
    from llmaccel.stored import StoredKV
    from llmaccel.tokenize import load_tokenizer
    from llmaccel.waiting import RequestFuture

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConfigError",
    "EmbeddingRequestOutput",
    "LLMAccelError",
    "LoadError",
    "Logprob",
    "MemoryPlanError",
    "PoolingParams",
    "PoolingRequestOutput",
    "RepetitionDetectionParams",
    "RequestError",
    "RequestFuture",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "ShownWeight",
    "StoredKV",
    "Tensor",
    "UnsupportedCombination",
    "UnsupportedError",
    "__version__",
    "balance_experts",
    "kernels",
    "load_tokenizer",
    "read_arrays",
]

_HOMES = {
    "LLM": "llm",
    "AsyncEngineArgs": "engines",
    "AsyncLLM": "engines",
    "BeamSearchOutput": "beams",
    "BeamSearchParams": "beams",
    "BeamSearchSequence": "beams",
    "RequestFuture": "waiting",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
    "RepetitionDetectionParams": "params",
    "RequestOutputKind": "params",
    "SamplingParams": "params",
    "PoolingParams": "pooling_params",
    "PoolingRequestOutput": "pooling_params",
    "EmbeddingRequestOutput": "pooling_params",
    "ClassificationRequestOutput": "pooling_params",
    "ScoringRequestOutput": "pooling_params",
    "ShownWeight": "showing",
    "StoredKV": "stored",
    "Tensor": "_core",
    "load_tokenizer": "tokenize",
    "balance_experts": "balance",
    "read_arrays": "arrays",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "kernels":
        return import_module(f"{__name__}.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
