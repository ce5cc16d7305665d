"""Measures OpenVINO GenAI's continuous batching pipeline, its engine for paged attention.

    .../venvs/openvino/bin/python benchmarks/peers/drive_openvino.py FOLDER prefill

FOLDER comes from `optimum-cli export openvino --weight-format int8|int4` (convert.py).
"""

from __future__ import annotations

import json
import time

import numpy as np
import openvino
import openvino_genai
import protocol


def main() -> None:
    parser = protocol.arguments(__doc__.splitlines()[0])
    parser.add_argument("--properties", type=json.loads, default={}, help="more, a JSON object")
    args = parser.parse_args()

    def load() -> protocol.Run:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GiB
        scheduler.max_num_batched_tokens = 4096
        scheduler.max_num_seqs = protocol.SEQS
        scheduler.enable_prefix_caching = False
        device = {"INFERENCE_NUM_THREADS": protocol.THREADS, "PERFORMANCE_HINT": "LATENCY"}
        device |= args.properties
        pipeline = openvino_genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", device)

        def run(prompts: list[list[int]], n_new: int) -> float:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = n_new
            config.ignore_eos, config.do_sample = True, False
            rows = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
            start = time.perf_counter()
            found = pipeline.generate(rows, [config] * len(rows))
            seconds = time.perf_counter() - start
            assert all(len(out.m_generation_ids[0]) == n_new for out in found)
            return seconds

        return run

    protocol.serve(args, load, version=openvino_genai.__version__)


if __name__ == "__main__":
    main()
