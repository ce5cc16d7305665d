"""Scripts as vLLM's users write them, run with the imports and the path of the model changed."""

from __future__ import annotations

import contextlib
import io
import json
import re

import letters
import pytest

PROMPTS = '["Hello, my name is", "The capital of France is", "The future of AI is"]'

BASIC = """
from vllm import LLM, SamplingParams

prompts = {PROMPTS}
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)


def main():
    llm = LLM(model="{MODEL}")
    outputs = llm.generate(prompts, sampling_params)
    for output in outputs:
        print(f"Prompt: {output.prompt!r} Output: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
"""

CHAT = """
from vllm import LLM

llm = LLM(model="{MODEL}", max_model_len=200)
sampling_params = llm.get_default_sampling_params()
sampling_params.max_tokens = 8
conversation = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
    {"role": "user", "content": "Write an essay about the importance of higher education."},
]
outputs = llm.chat(conversation, sampling_params, use_tqdm=False)
print("Prompt:", repr(outputs[0].prompt), "Output:", repr(outputs[0].outputs[0].text))
outputs = llm.chat([conversation for _ in range(10)], sampling_params, use_tqdm=True)
print(len(outputs))
"""

STREAM = """
import asyncio
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM


async def stream_response(engine, prompt, request_id):
    sampling_params = SamplingParams(
        max_tokens=30, temperature=0.8, top_p=0.95, seed=42, output_kind=RequestOutputKind.DELTA
    )
    async for output in engine.generate(
        request_id=request_id, prompt=prompt, sampling_params=sampling_params
    ):
        for completion in output.outputs:
            if completion.text:
                print(completion.text, end="", flush=True)
        if output.finished:
            print("[finished]")
            break


async def main():
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model="{MODEL}", enforce_eager=True))
    try:
        for i, prompt in enumerate({PROMPTS}, 1):
            await stream_response(engine, prompt, f"stream-example-{i}")
    finally:
        engine.shutdown()


asyncio.run(main())
"""

BEAM = """
from vllm import LLM
from vllm.sampling_params import BeamSearchParams

llm = LLM(model="{MODEL}")
params = BeamSearchParams(beam_width=3, max_tokens=10)
outputs = llm.beam_search([{"prompt": prompt} for prompt in {PROMPTS}], params)
for output in outputs:
    print(len(output.sequences), repr(output.sequences[0].text), output.sequences[0].cum_logprob)
"""

METRICS = """
from vllm import LLM, SamplingParams
from vllm.v1.metrics.reader import Counter, Gauge, Histogram, Vector

llm = LLM(model="{MODEL}", disable_log_stats=False)
llm.generate({PROMPTS}, SamplingParams(max_tokens=5))
for metric in llm.get_metrics():
    if isinstance(metric, Gauge):
        print(f"{metric.name} (gauge) = {metric.value}")
    elif isinstance(metric, Counter):
        print(f"{metric.name} (counter) = {metric.value}")
    elif isinstance(metric, Vector):
        print(f"{metric.name} (vector) = {metric.values}")
    elif isinstance(metric, Histogram):
        print(f"{metric.name} (histogram) = {metric.count} {metric.sum}")
        for bound, value in metric.buckets.items():
            print(f"    {bound} = {value}")
"""


ARGS = """
from vllm import LLM, EngineArgs
from vllm.utils import FlexibleArgumentParser


def create_parser():
    parser = FlexibleArgumentParser()
    EngineArgs.add_cli_args(parser)
    parser.set_defaults(model="{MODEL}")
    sampling = parser.add_argument_group("Sampling parameters")
    sampling.add_argument("--max-tokens", type=int)
    sampling.add_argument("--temperature", type=float)
    sampling.add_argument("--top-p", type=float)
    sampling.add_argument("--top-k", type=int)
    return parser


def main(args: dict):
    max_tokens = args.pop("max_tokens")
    temperature = args.pop("temperature")
    top_p = args.pop("top_p")
    top_k = args.pop("top_k")
    llm = LLM(**args)
    sampling_params = llm.get_default_sampling_params()
    if max_tokens is not None:
        sampling_params.max_tokens = max_tokens
    if temperature is not None:
        sampling_params.temperature = temperature
    if top_p is not None:
        sampling_params.top_p = top_p
    if top_k is not None:
        sampling_params.top_k = top_k
    for output in llm.generate({PROMPTS}, sampling_params):
        print(f"Prompt: {output.prompt!r}, tokens: {len(output.outputs[0].token_ids)}")


main(vars(create_parser().parse_args({ARGV})))
"""

POOLING = """
from argparse import Namespace
from vllm import LLM, EngineArgs
from vllm.utils import FlexibleArgumentParser


def parse_args():
    parser = FlexibleArgumentParser()
    parser = EngineArgs.add_cli_args(parser)
    parser.set_defaults(model="{MODEL}", runner="pooling", enforce_eager=True)
    return parser.parse_args({ARGV})


def main(args: Namespace):
    llm = LLM(**vars(args))
    {BODY}


main(parse_args())
"""
EMBED = POOLING.replace(
    "{BODY}",
    """
    prompts = {PROMPTS}
    outputs = llm.embed(prompts)
    for prompt, output in zip(prompts, outputs):
        embeds = output.outputs.embedding
        print(f"Prompt: {prompt!r} Embeddings: {embeds[:4]} (size={len(embeds)})")
    """.strip(),
)
CLASSIFY = POOLING.replace(
    "{BODY}",
    """
    prompts = {PROMPTS}
    outputs = llm.classify(prompts)
    for prompt, output in zip(prompts, outputs):
        probs = output.outputs.probs
        print(f"Prompt: {prompt!r} Class Probabilities: {probs} (size={len(probs)})")
    """.strip(),
)
REWARD = POOLING.replace(
    "{BODY}",
    """
    prompts = {PROMPTS}
    outputs = llm.reward(prompts)
    for prompt, output in zip(prompts, outputs):
        rewards = output.outputs.data
        print(f"Prompt: {prompt!r} Reward: {rewards.shape} (size={len(rewards)})")
    """.strip(),
)
SCORE = POOLING.replace(
    "{BODY}",
    """
    text_1 = "What is the capital of France?"
    texts_2 = ["The capital of Brazil is Brasilia.", "The capital of France is Paris."]
    outputs = llm.score(text_1, texts_2)
    for text_2, output in zip(texts_2, outputs):
        print(f"Pair: {[text_1, text_2]!r} Score: {output.outputs.score}")
    """.strip(),
)

PROFILE = """
import time
from vllm import LLM, SamplingParams

sampling_params = SamplingParams(temperature=0.8, top_p=0.95)


def main():
    llm = LLM(
        model="{MODEL}",
        tensor_parallel_size=1,
        profiler_config={"profiler": "torch", "torch_profiler_dir": "{FOLDER}/vllm_profile"},
    )
    llm.start_profile()
    outputs = llm.generate({PROMPTS}, sampling_params)
    llm.stop_profile()
    print("-" * 50)
    for output in outputs:
        print(f"Prompt: {output.prompt!r}\\nGenerated text: {output.outputs[0].text!r}")
        print("-" * 50)
    time.sleep(0.01)


if __name__ == "__main__":
    main()
"""

ENGINE = """
import argparse
from vllm import EngineArgs, LLMEngine, RequestOutput, SamplingParams
from vllm.utils import FlexibleArgumentParser


def create_test_prompts():
    return [
        ("A robot may not injure a human being", SamplingParams(temperature=0.0, logprobs=1)),
        ("To be or not to be,", SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2)),
        ("What is the meaning of life?", SamplingParams(n=2, temperature=0.8, top_p=0.95)),
    ]


def process_requests(engine, test_prompts):
    request_id = 0
    while test_prompts or engine.has_unfinished_requests():
        if test_prompts:
            prompt, sampling_params = test_prompts.pop(0)
            engine.add_request(str(request_id), prompt, sampling_params)
            request_id += 1
        request_outputs: list[RequestOutput] = engine.step()
        for request_output in request_outputs:
            if request_output.finished:
                print(request_output.request_id, request_output.outputs[0].finish_reason)


parser = FlexibleArgumentParser(description="Demo on using the LLMEngine class directly")
parser = EngineArgs.add_cli_args(parser)
args = parser.parse_args(["--model", "{MODEL}"])
engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
process_requests(engine, create_test_prompts())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"), max_position_embeddings=256)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    architecture = ["LlamaForSequenceClassification"]
    return letters.write_model(folder, architectures=architecture, num_labels=2)


def run(script: str, folder, argv: tuple[str, ...] = (), place: str = "") -> list[str]:
    """The lines that a script prints, run as the main program. argv: what a command line gives."""
    ours = re.sub(r"from vllm[\w.]* import", "from llmaccel import", script)
    ours = ours.replace("{ARGV}", repr(list(argv))).replace("{PROMPTS}", PROMPTS)
    ours = ours.replace("{MODEL}", str(folder)).replace("{FOLDER}", place)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ours, "script", "exec"), {"__name__": "__main__"})
    return printed.getvalue().splitlines()


def test_basic(folder):
    lines = run(BASIC, folder)
    assert len(lines) == 3
    assert lines[1].startswith("Prompt: 'The capital of France is' Output: ")


def test_chat(folder):
    line, count = run(CHAT, folder)
    assert line.startswith("Prompt: '[system]You are a helpful assistant[user]Hello")
    assert count == "10"


def test_streaming(folder):
    assert sum(line.endswith("[finished]") for line in run(STREAM, folder)) == 3


def test_beam_search(folder):
    lines = run(BEAM, folder)
    assert len(lines) == 3
    for line, prompt in zip(lines, eval(PROMPTS), strict=True):
        assert line.startswith(f"3 '{prompt}")
        assert -100.0 < float(line.split()[-1]) < 0.0


def test_embed(folder):
    lines = run(EMBED, folder)
    assert len(lines) == 3
    for line, prompt in zip(lines, eval(PROMPTS), strict=True):
        assert line.startswith(f"Prompt: {prompt!r} Embeddings: [")
        assert line.endswith("(size=96)")


def test_arguments_of_a_command_line(folder):
    argv = ("--max_tokens", "3", "--max-model-len", "128", "--top_k", "5", "--enforce-eager")
    lines = run(ARGS, folder, argv)
    assert [line.rpartition(" ")[2] for line in lines] == ["3"] * 3


def test_classify_and_reward(classifier):
    lines = run(CLASSIFY, classifier, ("--max-num-seqs", "2"))
    assert len(lines) == 3
    assert all(line.endswith("(size=2)") for line in lines)
    lines = run(REWARD, classifier)
    lengths = [1 + len(prompt.encode()) for prompt in eval(PROMPTS)]
    for line, n in zip(lines, lengths, strict=True):
        assert line.endswith(f"Reward: ({n}, 2) (size={n})")


def test_profile(folder, tmp_path):
    lines = run(PROFILE, folder, place=str(tmp_path))
    assert sum(line.startswith("Generated text: ") for line in lines) == 3
    (trace,) = (tmp_path / "vllm_profile").iterdir()
    assert "traceEvents" in json.loads(trace.read_text())


def test_engine(folder):
    assert sorted(run(ENGINE, folder)) == [f"{i} length" for i in range(3)]


def test_score(folder):
    lines = run(SCORE, folder)
    assert [line.split(" Score: ")[0].count("France") for line in lines] == [1, 2]
    assert all(-1.0 <= float(line.split()[-1]) <= 1.0 for line in lines)


def test_metrics(folder):
    lines = run(METRICS, folder)
    assert "vllm:generation_tokens (counter) = 15" in lines
    assert "vllm:num_requests_running (gauge) = 0" in lines
