"""Measures Hugging Face transformers, eager, bf16, static batches.

.../venvs/transformers/bin/python benchmarks/peers/drive_transformers.py FOLDER prefill
"""

from __future__ import annotations

import os
import time

import protocol

os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("OMP_NUM_THREADS", str(protocol.THREADS))

import torch
import transformers


def main() -> None:
    args = protocol.arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(protocol.THREADS)

    def load() -> protocol.Run:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            args.model, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0

        @torch.inference_mode()
        def run(prompts: list[list[int]], n_new: int) -> float:
            ids = torch.tensor(prompts)
            start = time.perf_counter()
            found = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=n_new,
                min_new_tokens=n_new,
            )
            seconds = time.perf_counter() - start
            assert found.shape[1] == ids.shape[1] + n_new
            return seconds

        return run

    protocol.serve(args, load, version=transformers.__version__)


if __name__ == "__main__":
    main()
