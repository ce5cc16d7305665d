"""Measures CTranslate2 on a model that its converter made.

.../venvs/ctranslate2/bin/python benchmarks/peers/drive_ctranslate2.py FOLDER decode
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import protocol

os.environ.setdefault("OMP_PROC_BIND", "true")  # read when the library is loaded

import ctranslate2


def main() -> None:
    parser = protocol.arguments(__doc__.splitlines()[0])
    parser.add_argument("--compute-type", default="int8")
    args = parser.parse_args()

    def load() -> protocol.Run:
        generator = ctranslate2.Generator(
            args.model,
            device="cpu",
            compute_type=args.compute_type,
            intra_threads=protocol.THREADS,
            inter_threads=1,
        )
        tokens = json.loads(Path(args.model, "vocabulary.json").read_text())

        def run(prompts: list[list[int]], n_new: int) -> float:
            rows = [[tokens[i] for i in ids] for ids in prompts]
            start = time.perf_counter()
            found = generator.generate_batch(
                rows,
                max_length=n_new,
                min_length=n_new,
                sampling_topk=1,
                include_prompt_in_result=False,
                max_batch_size=0,
            )
            seconds = time.perf_counter() - start
            assert all(len(out.sequences_ids[0]) == n_new for out in found)
            return seconds

        return run

    protocol.serve(args, load, version=ctranslate2.__version__)


if __name__ == "__main__":
    main()
