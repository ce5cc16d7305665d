"""Measures vLLM on the CPU by its offline API, bf16, without compilation.

    .../venvs/vllm/bin/python benchmarks/peers/drive_vllm.py FOLDER throughput16

torch.compile was no faster here (19.7 against 19.5 tok/s) and takes a minute more to start. Intel's
OpenMP comes with the package and is loaded first, as vLLM asks for when it starts without it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import protocol

CPUS = sorted(os.sched_getaffinity(0))
for key, value in {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(cpu) for cpu in CPUS),
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(key, value)
OPENMP = Path(sys.prefix, "lib", "libiomp5.so")


def main() -> None:
    if OPENMP.exists() and "LD_PRELOAD" not in os.environ:  # read only when a process starts
        os.environ["LD_PRELOAD"] = str(OPENMP)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    from vllm import LLM, SamplingParams, __version__

    args = protocol.arguments(__doc__.splitlines()[0]).parse_args()

    def load() -> protocol.Run:
        llm = LLM(
            model=args.model,
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=2048,
            max_num_seqs=protocol.SEQS,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

        def run(prompts: list[list[int]], n_new: int) -> float:
            params = SamplingParams(
                temperature=0, max_tokens=n_new, min_tokens=n_new, ignore_eos=True, detokenize=False
            )
            asked = [{"prompt_token_ids": ids} for ids in prompts]
            start = time.perf_counter()
            found = llm.generate(asked, params, use_tqdm=False)
            seconds = time.perf_counter() - start
            assert all(len(out.outputs[0].token_ids) == n_new for out in found)
            return seconds

        return run

    protocol.serve(args, load, version=__version__)


if __name__ == "__main__":
    main()
