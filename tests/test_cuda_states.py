"""What a request shows on backend="cuda", what pools it, and weights that change or go, on the
emulated device; held to the CPU's results and to the same calls in other company.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import test_cuda_backend as cuda
import tiny
from safetensors.numpy import load_file
from test_cuda_backend import checkpoint, counts, open_on, prompts

from llmaccel import (
    LLM,
    LLMAccelError,
    PoolingParams,
    RequestError,
    SamplingParams,
    Tensor,
    UnsupportedError,
)

emulated, nothing_stays = cuda.emulated, cuda.nothing_stays
IDS = [*range(3, 71), 200, 41]
WIDTHS = {"intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2}  # multiples of 32
PARAMS = SamplingParams(max_tokens=4, temperature=0.8, seed=3, ignore_eos=True, n=2)
SHOW = {"output_logits": True, "output_hidden_states": [1, -1, 0, 1]}


def far(found: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_states_are_as_near_as_the_cpus(family: str, tmp_path: Path, emulated: str) -> None:
    """Of every layer, against fp32 with the same weights, from a prompt that is cut."""
    folder, found = checkpoint(family, tmp_path), {}
    for backend, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "bfloat16")):
        with open_on(folder, backend, dtype=dtype, max_num_batched_tokens=32) as llm:
            layers = list(range(llm.report()["model"]["n_layers"] + 1))
            states = llm.hidden_states(IDS, layers)
            found[backend, dtype] = [state.numpy().copy() for state in states]
    exact = found["cpu", "float32"]
    assert far(found["cuda", "bfloat16"][0], exact[0]) < 1e-6  # rows of the table, scaled
    made = zip(found["cpu", "bfloat16"], found["cuda", "bfloat16"], exact, strict=True)
    for cpu, device, want in made:
        assert far(device, want) <= max(1.2 * far(cpu, want), 1e-6)
        assert far(device, want) < 0.05


def shown(out) -> list[bytes]:
    found = [state.numpy().tobytes() for state in out.hidden_states]
    for one in out.outputs:
        found += [one.logits.numpy().tobytes(), one.token_ids_array.tobytes()]
        found += [state.numpy().tobytes() for state in one.hidden_states]
    return found


@pytest.mark.slow
def test_states_are_the_same_in_any_company(tmp_path: Path, emulated: str) -> None:
    """Alone, together, cut and preempted; and what is drawn from is what a prompt's rows are."""
    folder, asked = checkpoint("llama", tmp_path), prompts(3, 24, seed=3)
    with open_on(folder, "cuda") as llm:
        alone = [shown(llm.generate(ids, PARAMS, **SHOW)[0]) for ids in asked]
        assert [shown(out) for out in llm.generate(asked, PARAMS, **SHOW)] == alone
        (out,) = llm.generate(asked[0], PARAMS, **SHOW)
        one = out.outputs[1]
        ids = asked[0] + one.token_ids
        whole = [state.numpy() for state in llm.hidden_states(ids, [1, -1])]
        for mine, state in zip(one.hidden_states[:2], whole, strict=True):
            np.testing.assert_array_equal(mine.numpy(), state[len(asked[0]) - 1 : -1])
        logits = llm.logits(ids).numpy()[len(asked[0]) - 1 : -1]
        np.testing.assert_array_equal(one.logits.numpy(), logits)
    with open_on(folder, "cuda", max_num_batched_tokens=7, max_num_seqs=4) as llm:
        for i, _ in enumerate(llm.generate(asked, PARAMS, stream=True, **SHOW)):
            if i % 3 == 0:
                llm.engine.preempt(2)
        assert llm.report()["stats"]["preemptions"] > 0
        assert [shown(out) for out in llm.generate(asked, PARAMS, **SHOW)] == alone


def test_who_shows_nothing_waits_for_nothing(tmp_path: Path, emulated: str) -> None:
    """Graphs of steps without states stay, and go on without the host behind steps with some."""
    greedy = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    with open_on(checkpoint("llama", tmp_path), "cuda") as llm:
        plain = llm.generate([IDS[:9]], greedy, use_tqdm=False)[0].outputs[0].token_ids
        graphs, waits = counts().graphs, counts().waits
        (out,) = llm.generate([IDS[:9]], greedy, output_hidden_states=[0, 1, 2, -1])
        assert out.outputs[0].token_ids == plain
        assert counts().waits - waits == 6  # once a step, whatever the number of layers
        waits, replays = counts().waits, counts().replays
        assert llm.generate([IDS[:9]], greedy)[0].outputs[0].token_ids == plain
        after = counts()
        assert (after.graphs, after.waits, after.replays) == (graphs, waits, replays + 5)
        assert llm.report()["stats"]["step_allocations"] == 0


def test_more_runs_than_are_on_their_way_at_once(tmp_path: Path, emulated: str) -> None:
    """12 prompts and 8 layers of each in a step: 96 runs of rows, where there is room for 64."""
    folder, layers = checkpoint("llama", tmp_path), [0, 1, 2, 3] * 2
    asked, one = prompts(12, 9, seed=4), SamplingParams(max_tokens=1, temperature=0)
    with open_on(folder, "cuda") as llm:
        want = [bits(llm.hidden_states(ids, layers)) for ids in asked]
        outs = llm.generate(asked, one, output_hidden_states=layers)
    assert [bits(out.hidden_states) for out in outs] == want


@pytest.mark.slow
def test_more_bytes_than_are_on_their_way_at_once(tmp_path: Path, emulated: str) -> None:
    """130 rows of 16 KiB, 8 times: more than 16 MiB. All of a layer are the same, wherever cut."""
    widths = {"hidden_size": 4096, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = checkpoint("llama", tmp_path, **widths, head_dim=16, intermediate_size=16)
    ids = [3 + i % 50 for i in range(130)]
    with open_on(folder, "cuda", max_num_batched_tokens=130) as llm:
        found = [state.numpy() for state in llm.hidden_states(ids, [0, 1, 2, 3] * 2)]
        last = llm.hidden_states(ids, [3])[0].numpy()
    for one, again in zip(found[:4], found[4:], strict=True):
        np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(found[3], last)
    assert np.abs(found[3]).max(axis=1).min() > 0


def test_a_processor_may_use_the_device(tmp_path: Path, emulated: str) -> None:
    """Its uploads go where states are on their way; they have arrived by then."""

    def upload(ids: list[int], logits: np.ndarray) -> None:
        there = Tensor(np.full(1 << 18, 7.0, np.float32)).to("cuda")
        assert there.to("cpu").numpy()[-1] == 7.0

    with open_on(checkpoint("llama", tmp_path), "cuda") as llm:
        found = []
        for one in (upload, lambda ids, logits: None):
            params = SamplingParams(max_tokens=3, temperature=0, logits_processors=[one])
            (out,) = llm.generate([IDS], params, output_hidden_states=[0, 2, -1])
            found.append(bits(out.hidden_states) + bits(out.outputs[0].hidden_states))
    assert found[0] == found[1]


def bits(states) -> list[bytes]:
    return [state.numpy().tobytes() for state in states]


# ---- pooling -------------------------------------------------------------------------------------


def test_pooling_is_the_cpus(tmp_path: Path, emulated: str) -> None:
    """embed, every token's, scores of pairs, by MEAN and by the last token."""
    folder, asked = checkpoint("qwen3", tmp_path), prompts(3, 40, seed=6)
    found = []
    for backend in ("cpu", "cuda"):
        with open_on(folder, backend, max_num_batched_tokens=24) as llm:
            vectors = [out.outputs.data.numpy() for out in llm.embed(asked)]
            tokens = llm.encode(asked, pooling_task="token_embed")
            vectors += [out.outputs.data.numpy() for out in tokens]
            scores = [out.outputs.score for out in llm.score(asked[:1], asked)]
            found.append((vectors, scores))
    for theirs, ours in zip(*(vectors for vectors, _ in found), strict=True):
        assert far(ours, theirs) < 0.05
    np.testing.assert_allclose(found[1][1], found[0][1], atol=0.02)


def test_classes_are_the_cpus(tmp_path: Path, emulated: str) -> None:
    folder = checkpoint(
        "llama", tmp_path, architectures=["LlamaForSequenceClassification"], num_labels=3
    )
    asked, raw = prompts(3, 40, seed=7), PoolingParams(use_activation=False)
    found = []
    for backend in ("cpu", "cuda"):
        with open_on(folder, backend) as llm:
            logits = [o.outputs.data.numpy() for o in llm.classify(asked, pooling_params=raw)]
            probs = [o.outputs.data.numpy() for o in llm.classify(asked)]
            every = [o.outputs.data.numpy() for o in llm.reward(asked)]
            assert all(np.array_equal(e[-1], p) for e, p in zip(every, probs, strict=True))
            found.append((np.stack(logits), np.stack(probs)))
    assert far(found[1][0], found[0][0]) < 0.05
    assert found[1][1].argmax(axis=1).tolist() == found[0][1].argmax(axis=1).tolist()
    assert np.allclose(found[1][1].sum(axis=1), 1.0, atol=1e-6)


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", [None, "w4g32"])
def test_updated_weights_are_as_if_loaded(
    quantization: str | None, tmp_path: Path, emulated: str
) -> None:
    """Graphs of the old weights are not run; the old ones' memory goes."""
    options = {} if quantization is None else {"quantization": quantization}
    old, new = checkpoint("llama", tmp_path / "old", **WIDTHS), tmp_path / "new"
    tiny.make_checkpoint("llama", new, seed=8, **WIDTHS)
    arrays = {at.name: load_file(at / "model.safetensors") for at in (old, new)}
    greedy = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    with open_on(new, "cuda", **options) as llm:
        want = llm.generate([IDS[:20]], greedy)[0].outputs[0].token_ids
        bits = llm.logits(IDS[:20]).numpy().tobytes()
    with open_on(old, "cuda", **options) as llm:
        first = llm.generate([IDS[:20]], greedy)[0].outputs[0].token_ids
        before = counts()
        llm.update_weights(arrays["new"])
        assert counts().replays == before.replays
        assert llm.generate([IDS[:20]], greedy)[0].outputs[0].token_ids == want
        assert llm.logits(IDS[:20]).numpy().tobytes() == bits
        alive = counts().alive
        for part in ("layers", ""):  # half of them, then the rest
            some = {k: v for k, v in arrays["old"].items() if ("layers" in k) == bool(part)}
            llm.update_weights(some)
        assert llm.generate([IDS[:20]], greedy)[0].outputs[0].token_ids == first
        assert first != want
        assert counts().alive <= alive
        busy = llm.submit(IDS, SamplingParams(max_tokens=60, ignore_eos=True))
        with pytest.raises(LLMAccelError, match="update_weights: 1 requests are under way"):
            llm.update_weights(arrays["new"])
        busy.cancel()


def test_sleep_gives_the_devices_memory_back(tmp_path: Path, emulated: str) -> None:
    greedy = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    with open_on(checkpoint("llama", tmp_path), "cuda") as llm:
        idle = free(llm)
        want = llm.generate([IDS[:20]], greedy)[0].outputs[0].token_ids
        memory = llm.report()["memory"]
        llm.sleep(level=1)
        light = free(llm)
        assert light - idle >= 0.9 * memory["workspace_bytes"]  # some of it is the host's
        llm.sleep(level=2)
        assert free(llm) - light >= memory["weight_bytes"]
        with pytest.raises(LLMAccelError, match=r"this LLM sleeps; wake_up\(\) comes first"):
            llm.embed([IDS[:20]])
        for level in (2, 1):
            llm.wake_up()
            assert llm.generate([IDS[:20]], greedy)[0].outputs[0].token_ids == want
            llm.sleep(level=level)
        llm.wake_up()
        assert abs(free(llm) - idle) < 1 << 20


def free(llm: LLM) -> int:
    """Bytes of the device that nobody has."""
    return llm._backend.info["memory_free"]


def test_weights_and_pages_are_not_shown(tmp_path: Path, emulated: str) -> None:
    """Names are, and the model goes on."""
    with open_on(checkpoint("llama", tmp_path), "cuda") as llm:
        name = llm.weight_names()[0]
        with pytest.raises(UnsupportedError, match="weight: not on backend='cuda'"):
            llm.weight(name)
        with pytest.raises(RequestError, match="name: 'lm' is no weight"):
            llm.weight("lm")
        future = llm.submit({"prompt_token_ids": IDS}, SamplingParams(max_tokens=12, n=1))
        with pytest.raises(UnsupportedError, match="kv_pages"):
            llm.kv_pages(future)
        assert len(future.result().outputs[0].token_ids) > 0
