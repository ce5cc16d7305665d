"""Scripts as vLLM's users write them, run with the imports and the path of the model changed."""

from __future__ import annotations

import contextlib
import io
import re

import letters
import pytest

MODEL = "facebook/opt-125m"
PROMPTS = '["Hello, my name is", "The capital of France is", "The future of AI is"]'

BASIC = f"""
from vllm import LLM, SamplingParams

prompts = {PROMPTS}
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)


def main():
    llm = LLM(model="{MODEL}")
    outputs = llm.generate(prompts, sampling_params)
    for output in outputs:
        print(f"Prompt: {{output.prompt!r}} Output: {{output.outputs[0].text!r}}")


if __name__ == "__main__":
    main()
"""

CHAT = f"""
from vllm import LLM

llm = LLM(model="{MODEL}", max_model_len=200)
sampling_params = llm.get_default_sampling_params()
sampling_params.max_tokens = 8
conversation = [
    {{"role": "system", "content": "You are a helpful assistant"}},
    {{"role": "user", "content": "Hello"}},
    {{"role": "assistant", "content": "Hello! How can I assist you today?"}},
    {{"role": "user", "content": "Write an essay about the importance of higher education."}},
]
outputs = llm.chat(conversation, sampling_params, use_tqdm=False)
print("Prompt:", repr(outputs[0].prompt), "Output:", repr(outputs[0].outputs[0].text))
outputs = llm.chat([conversation for _ in range(10)], sampling_params, use_tqdm=True)
print(len(outputs))
"""

STREAM = f"""
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
            await stream_response(engine, prompt, f"stream-example-{{i}}")
    finally:
        engine.shutdown()


asyncio.run(main())
"""

BEAM = f"""
from vllm import LLM
from vllm.sampling_params import BeamSearchParams

llm = LLM(model="{MODEL}")
params = BeamSearchParams(beam_width=3, max_tokens=10)
outputs = llm.beam_search([{{"prompt": prompt}} for prompt in {PROMPTS}], params)
for output in outputs:
    print(len(output.sequences), repr(output.sequences[0].text), output.sequences[0].cum_logprob)
"""

METRICS = f"""
from vllm import LLM, SamplingParams
from vllm.v1.metrics.reader import Counter, Gauge, Histogram, Vector

llm = LLM(model="{MODEL}", disable_log_stats=False)
llm.generate({PROMPTS}, SamplingParams(max_tokens=5))
for metric in llm.get_metrics():
    if isinstance(metric, Gauge):
        print(f"{{metric.name}} (gauge) = {{metric.value}}")
    elif isinstance(metric, Counter):
        print(f"{{metric.name}} (counter) = {{metric.value}}")
    elif isinstance(metric, Vector):
        print(f"{{metric.name}} (vector) = {{metric.values}}")
    elif isinstance(metric, Histogram):
        print(f"{{metric.name}} (histogram) = {{metric.count}} {{metric.sum}}")
        for bound, value in metric.buckets.items():
            print(f"    {{bound}} = {{value}}")
"""


EMBED = f"""
from vllm import LLM

prompts = {PROMPTS}
llm = LLM(model="{MODEL}", runner="pooling", enforce_eager=True)
outputs = llm.embed(prompts)
for prompt, output in zip(prompts, outputs):
    embeds = output.outputs.embedding
    print(f"Prompt: {{prompt!r}} Embeddings: {{embeds[:4]}} (size={{len(embeds)}})")
"""

SCORE = f"""
from vllm import LLM

llm = LLM(model="{MODEL}", runner="pooling", enforce_eager=True)
text_1 = "What is the capital of France?"
texts_2 = ["The capital of Brazil is Brasilia.", "The capital of France is Paris."]
outputs = llm.score(text_1, texts_2)
for text_2, output in zip(texts_2, outputs):
    print(f"Pair: {{[text_1, text_2]!r}} Score: {{output.outputs.score}}")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters.write_model(tmp_path_factory.mktemp("letters"), max_position_embeddings=256)


def run(script: str, folder) -> list[str]:
    """The lines that a script prints, run as the main program."""
    ours = re.sub(r"from vllm\.v1\.metrics\.reader import", "from llmaccel.metrics import", script)
    ours = re.sub(r"from vllm[\w.]* import", "from llmaccel import", ours)
    ours = ours.replace(MODEL, str(folder))
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


def test_score(folder):
    lines = run(SCORE, folder)
    assert [line.split(" Score: ")[0].count("France") for line in lines] == [1, 2]
    assert all(-1.0 <= float(line.split()[-1]) <= 1.0 for line in lines)


def test_metrics(folder):
    lines = run(METRICS, folder)
    assert "vllm:generation_tokens (counter) = 15" in lines
    assert "vllm:num_requests_running (gauge) = 0" in lines
