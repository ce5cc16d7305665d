"""The wing that measures models: perplexity, compression, quantization, lm-evaluation-harness.

    from llmaccel import LLM, eval
    with LLM("model.gguf", dtype="float32") as llm:
        print(eval.measure(llm, eval.read_documents(["text.txt"])).bits_per_byte)
        packed = eval.compress(llm, data)
        assert eval.decompress(llm, packed) == data

`llmaccel eval`, `compress` and `decompress` are the same on the command line (command.py). The
engine never imports this wing.
"""

from __future__ import annotations

from llmaccel.eval.compress import compress, decompress
from llmaccel.eval.measure import Measured, measure, read_documents

__all__ = ["Measured", "compress", "decompress", "measure", "read_documents"]
