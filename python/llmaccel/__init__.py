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
    from llmaccel.engine_args import AsyncEngineArgs, EngineArgs, FlexibleArgumentParser
    from llmaccel.engines import AsyncLLM, AsyncLLMEngine
    from llmaccel.llm import LLM
    from llmaccel.metrics import Counter, Gauge, Histogram, Metric, Vector
    from llmaccel.outputs import CompletionOutput, Logprob, RequestOutput
    from llmaccel.params import (
        RepetitionDetectionParams,
        RequestOutputKind,
        SamplingParams,
        SamplingType,
    )
    from llmaccel.pooling_params import (
        ClassificationOutput,
        ClassificationRequestOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        PoolerConfig,
        PoolingOutput,
        PoolingParams,
        PoolingRequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from llmaccel.prompt_types import EmbedsPrompt, PromptType, TextPrompt, TokensPrompt
    from llmaccel.showing import ShownWeight
    from llmaccel.stepping import LLMEngine
    from llmaccel.stored import StoredKV
    from llmaccel.tokenize import load_tokenizer
    from llmaccel.waiting import RequestFuture

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncLLMEngine",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConfigError",
    "Counter",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EmbedsPrompt",
    "EngineArgs",
    "FlexibleArgumentParser",
    "Gauge",
    "Histogram",
    "LLMAccelError",
    "LLMEngine",
    "LoadError",
    "Logprob",
    "MemoryPlanError",
    "Metric",
    "PoolerConfig",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "PromptType",
    "RepetitionDetectionParams",
    "RequestError",
    "RequestFuture",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingType",
    "ScoringOutput",
    "ScoringRequestOutput",
    "ShownWeight",
    "StoredKV",
    "Tensor",
    "TextPrompt",
    "TokensPrompt",
    "UnsupportedCombination",
    "UnsupportedError",
    "Vector",
    "__version__",
    "balance_experts",
    "kernels",
    "load_tokenizer",
    "read_arrays",
]

_HOMES = {
    "Tensor": "_core",
    "read_arrays": "arrays",
    "balance_experts": "balance",
    "BeamSearchOutput": "beams",
    "BeamSearchParams": "beams",
    "BeamSearchSequence": "beams",
    "AsyncEngineArgs": "engine_args",
    "EngineArgs": "engine_args",
    "FlexibleArgumentParser": "engine_args",
    "AsyncLLM": "engines",
    "AsyncLLMEngine": "engines",
    "LLM": "llm",
    "Counter": "metrics",
    "Gauge": "metrics",
    "Histogram": "metrics",
    "Metric": "metrics",
    "Vector": "metrics",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
    "RepetitionDetectionParams": "params",
    "RequestOutputKind": "params",
    "SamplingParams": "params",
    "SamplingType": "params",
    "ClassificationOutput": "pooling_params",
    "ClassificationRequestOutput": "pooling_params",
    "EmbeddingOutput": "pooling_params",
    "EmbeddingRequestOutput": "pooling_params",
    "PoolerConfig": "pooling_params",
    "PoolingOutput": "pooling_params",
    "PoolingParams": "pooling_params",
    "PoolingRequestOutput": "pooling_params",
    "ScoringOutput": "pooling_params",
    "ScoringRequestOutput": "pooling_params",
    "ShownWeight": "showing",
    "StoredKV": "stored",
    "EmbedsPrompt": "prompt_types",
    "PromptType": "prompt_types",
    "TextPrompt": "prompt_types",
    "TokensPrompt": "prompt_types",
    "LLMEngine": "stepping",
    "load_tokenizer": "tokenize",
    "RequestFuture": "waiting",
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
