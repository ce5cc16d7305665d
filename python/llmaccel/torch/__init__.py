"""llmaccel inside PyTorch code: kernels as torch operators, packed layers, a model as an nn.Module.

    import llmaccel.torch                                     # needs the extra: llmaccel[torch]
    y = torch.ops.llmaccel.rms_norm(x, weight, 1e-6)          # of CPU tensors, in torch.compile too
    llmaccel.torch.quantize_linear_(model, "w4g128")          # nn.Linear in place, 4 bits a weight
    model = llmaccel.torch.CausalLM(LLM("model.gguf"))        # where AutoModelForCausalLM was

Tensors are on the CPU and cross without a copy where they are row-major; nothing here has a
gradient. `operators` lists what is registered.
"""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as error:
    raise ImportError(
        "llmaccel.torch needs PyTorch, which is not installed: pip install 'llmaccel[torch]'"
    ) from error

from llmaccel.torch.causal import CausalLM
from llmaccel.torch.linear import QuantizedLinear, quantize_linear_
from llmaccel.torch.operators import OPERATORS as operators

__all__ = ["CausalLM", "QuantizedLinear", "operators", "quantize_linear_"]

del _torch
