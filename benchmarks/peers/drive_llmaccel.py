"""Measures llmaccel itself by the peers' protocol: folder or GGUF file, options of LLM as JSON.

python benchmarks/peers/drive_llmaccel.py MODEL decode --options '{"quantization": "int8"}'
"""

from __future__ import annotations

import json
import time

import protocol

from llmaccel import LLM, SamplingParams

LIMITS = {"max_model_len": protocol.PREFILL + 256, "max_num_seqs": protocol.SEQS}


def main() -> None:
    parser = protocol.arguments(__doc__.splitlines()[0])
    parser.add_argument("--options", type=json.loads, default={}, help="of LLM, a JSON object")
    args = parser.parse_args()
    started = time.perf_counter()
    llm = LLM(args.model, threads=protocol.THREADS, **LIMITS, **args.options)
    load_s = time.perf_counter() - started

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

    report = llm.report()
    about = {"token_bytes": report["memory"]["token_bytes"], "isa": report["backend"]["isa"]}
    protocol.serve(args, lambda: run, llm_load_s=round(load_s, 2), **about)
    llm.close()


if __name__ == "__main__":
    main()
