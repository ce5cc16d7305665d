"""The device's draws on the emulator, held to the NumPy definition of sampling, and to themselves.

Every case of test_sampling is a row of one launch, under several seeds of order and delay; scratch
starts as NaN. That whole requests draw the CPU's tokens is in test_cuda_backend.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_sampling as ref
import test_sampling as sampling
from launches import struct
from test_cuda_rows import Device, device

__all__ = ["device"]

FIELDS = ["seed", "stream", "counter"], "temperature top_p min_p presence frequency repetition"
INTS = "top_k target n_top top_at allowed_at ban_at n_ban bias_at n_bias seen_at n_seen newest"
RULE = np.dtype(
    [(name, "u8") for name in FIELDS[0]]
    + [(name, "f4") for name in FIELDS[1].split()]
    + [(name, "i4") for name in INTS.split()],
    align=True,
)
DRAWN = np.dtype([("id", "i4"), ("logprob", "f4"), ("rank", "i4")])
TOP = np.dtype([("id", "i4"), ("logprob", "f4")])
Sample = struct("Sample", "logits:p ldl:l ruled:p ldr:l rules:p words:p drawn:p tops:p n:i V:i")
Resume = struct("Resume", "tokens:p rules:p drawn:p n_tokens:i n_rules:i")
MOST_TOPS = 32
GIVEN, MADE = [5, 9], [17, 300, 17]


def case(**params: Any) -> dict[str, Any]:
    """ahead: 1 where the lists do not know the last of MADE yet."""
    return {**sampling.PARAMS, "n_top": -1, "target": -1, "ahead": 0, **params}


def bans(p: dict[str, Any]) -> list[tuple[int, int]]:
    """(id, the newest token after which it is banned; -1: any)"""
    found = [(token, -1) for token in p["stop_ids"] if len(MADE) < p["min_tokens"]]
    made = MADE[: len(MADE) - p["ahead"]]
    for word in p["bad"]:
        known, after = word[:-1], -1
        if p["ahead"] and known:
            *known, after = known
        if made[len(made) - len(known) :] == known:
            found.append((word[-1], after))
    return found


def seen(p: dict[str, Any]) -> dict[int, int]:
    """Times generated, of each id that a penalty is to know."""
    if p["repetition_penalty"] == 1 and not p["presence_penalty"] and not p["frequency_penalty"]:
        return {}
    given = GIVEN if p["repetition_penalty"] != 1 else []
    made = MADE[: len(MADE) - p["ahead"]]
    return {token: made.count(token) for token in [*given, *made]}


def rule(p: dict[str, Any], V: int, words: list[int], top_at: int) -> tuple:
    """A row's wishes; its lists are appended to the words."""
    places = []
    mask = np.zeros((V + 31) // 32, np.uint32)
    for token in p["allowed"]:
        mask[token // 32] |= np.uint32(1 << token % 32)
    places += [len(words) if p["allowed"] else -1]
    words += mask.tolist() if p["allowed"] else []
    pairs = sorted(zip(p["bias_ids"], p["bias"], strict=True))
    biases = [word for i, b in pairs for word in (i, int(np.float32(b).view(np.uint32)))]
    counts = [word for pair in seen(p).items() for word in pair]
    banned = [word & 0xFFFFFFFF for pair in bans(p) for word in pair]
    for each in (banned, biases, counts):
        places += [len(words), len(each) // 2]
        words += each
    numbers = [p[n] for n in ("temperature", "top_p", "min_p", "presence_penalty")]
    numbers += [p["frequency_penalty"], p["repetition_penalty"], p["top_k"], p["target"]]
    position = len(GIVEN) + len(MADE)
    newest = MADE[-1] if p["ahead"] else -1
    return (p["seed"], 0, position, *numbers, p["n_top"], top_at, *places, newest)


def draw(device: Device, logits: np.ndarray, cases: list[dict[str, Any]]):
    """(drawn, tops [n, MOST_TOPS]) of a launch with a row a case."""
    return launch(device, logits, cases)[:2]


def launch(device: Device, logits: np.ndarray, cases: list[dict[str, Any]]):
    """draw's, and what is left of the rows after rules [n, V]: probabilities, if they were drawn
    from; what rules made of them, if the best was taken."""
    n, V = logits.shape
    ld = (V + 15) // 16 * 16
    x = np.full((n, ld), np.nan, np.float32)
    x[:, :V] = logits
    words: list[int] = [0]
    rules = np.array([rule(p, V, words, MOST_TOPS * i) for i, p in enumerate(cases)], RULE)
    at, drawn = device.put(x), device.put(np.full(n, -7, "i4").repeat(3).view(DRAWN))
    tops = device.put(np.full((n, MOST_TOPS, 2), -7, np.int32).view(TOP)[..., 0])
    scratch = device.put(np.full((n, ld), np.nan, np.float32))
    lists = device.put(np.array(words, np.uint32))
    device.launch(
        "sample", Sample(at, ld, scratch, ld, device.put(rules), lists, drawn, tops, n, V)
    )
    assert np.array_equal(device.get(at), x, equal_nan=True)  # raw logits stay
    return device.get(drawn), device.get(tops), device.get(scratch)[:, :V]


def check_draws(device: Device, V: int, names: list[str], *, seed: int = 0, ahead: int = 0) -> None:
    """The cases' draws, each from a row of its own; some report logprobs."""
    cases = [
        case(**sampling.CASES[name], seed=seed << 40 | i, n_top=[-1, 0, 5][i % 3], ahead=ahead)
        for i, name in enumerate(names)
    ]
    logits = sampling.table(V)[np.arange(len(cases)) % sampling.KNOWN]
    drawn, tops = draw(device, logits, cases)
    for i, p in enumerate(cases):
        x = ref.ruled(logits[i], p, GIVEN, MADE)
        u = ref.uniform(p["seed"], 0, len(GIVEN) + len(MADE))
        assert drawn["id"][i] in ref.draws(x, p, (u, 0.0), 0.0), names[i]
        if p["n_top"] >= 0:
            check_scores(logits[i], p["n_top"], drawn[i], tops[i])
        else:
            assert drawn["rank"][i] == -7  # nothing is written that was not asked for


def check_scores(row: np.ndarray, n: int, drawn: np.ndarray, tops: np.ndarray) -> None:
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    assert abs(drawn["logprob"] - exact[drawn["id"]]) < 1e-5
    assert drawn["rank"] == 1 + (row > row[drawn["id"]]).sum()
    best = np.argsort(-row, kind="stable")[:n]
    assert tops["id"][:n].tolist() == best.tolist()
    assert np.allclose(tops["logprob"][:n], exact[best], atol=1e-5)
    assert (tops["id"][n:] == -7).all()


def test_draws_are_those_of_the_definition(device: Device) -> None:
    check_draws(device, 301, sampling.PLAIN_CASES)


def test_the_newest_token_counts_before_the_host_knows_it(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in the lists already (17, two of three) or not (9 by penalties of output, 4)."""
    names = ["greedy with rules", "plain with rules", "top_p with rules", "allowed", "min_tokens"]
    for made in (MADE, [17, 300, 4], [300, 300], [300]):
        monkeypatch.setattr("test_cuda_sample.MADE", made)
        check_draws(device, 301, names, seed=len(made), ahead=1)


def check_newest(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy rows of two candidates, 17 before 4, where the newest token decides."""
    row = np.zeros((1, 40), np.float32)
    row[0, [17, 4]] = 2.0, 1.0
    for made, params, want in [
        ([17, 17], {"frequency_penalty": 0.6}, 4),  # 17 is in the list once already
        ([3, 17], {"frequency_penalty": 0.6}, 17),
        ([3, 17], {"presence_penalty": 1.5}, 4),
        ([17, 3], {"presence_penalty": 0.5}, 17),
        ([17], {"repetition_penalty": 2.5}, 4),  # in no list; the prompt's tokens are
        ([8], {"bad": [[8, 17]]}, 4),
        ([9], {"bad": [[8, 17]]}, 17),
        ([5, 8], {"bad": [[5, 8, 17]]}, 4),
        ([8], {"bad": [[17]], "frequency_penalty": 0.1}, 4),
    ]:
        monkeypatch.setattr("test_cuda_sample.MADE", made)
        drawn, _ = draw(device, row, [case(temperature=0.0, ahead=1, **params)])
        assert drawn["id"][0] == want, (made, params)


def test_the_newest_token_decides(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    check_newest(device, monkeypatch)


def check_long(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists longer than a warp and than the block: every logit after the rules, to the bit."""
    V, rng = 1500, np.random.default_rng(23)
    logits = rng.normal(size=V).astype(np.float32)
    monkeypatch.setattr("test_cuda_sample.GIVEN", rng.permutation(V)[:40].tolist())
    for n, at in ((140, 50), (140, 139), (700, 50), (700, 600)):  # at: of the newest
        seen = rng.permutation(V)[:n].tolist()
        monkeypatch.setattr("test_cuda_sample.MADE", [*seen, seen[at]])
        banned, biased = rng.permutation(V)[: 2 * n].reshape(2, n)
        both = banned[: n // 2].tolist()  # some are banned and biased, and stay banned
        params = {"stop_ids": banned.tolist(), "min_tokens": 10**4}
        params |= {"bias_ids": both + biased[: n - len(both)].tolist()}
        params |= {"bias": rng.normal(size=n).astype(np.float32).tolist()}
        params |= {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.25}
        case_of = case(temperature=0.0, ahead=1, **params)
        drawn, _, left = launch(device, logits[None], [case_of])
        want = ref.ruled(logits, case_of, GIVEN, MADE)
        differ = np.flatnonzero(left[0] != want)
        assert differ.size == 0, (n, at, differ)
        assert drawn["id"][0] == int(want.argmax())


def test_long_lists_of_rules(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    check_long(device, monkeypatch)


def test_draws_from_several_slices(device: Device) -> None:
    names = ["plain", "top_p hot", "min_p", "top_k beyond the units", "all of them", "greedy"]
    check_draws(device, 9001, names)


FLAT = {
    "plain": {},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 4001},
    "both": {"top_k": 4001, "top_p": 0.5},
    "min_p": {"min_p": 1.0, "top_p": 0.25},
}


def check_flat(device: Device, V: int) -> None:
    """Equal logits: sets end among ties, in the order of ids, where no list of members has room."""
    cases = [case(**params, seed=i) for i, params in enumerate(FLAT.values())]
    drawn, _ = draw(device, np.full((len(cases), V), 0.75, np.float32), cases)
    for i, p in enumerate(cases):
        few = min(p["top_k"] or V, V)
        few = int(np.ceil(p["top_p"] * few)) if p["top_p"] < 1 else few
        u = ref.uniform(p["seed"], 0, len(GIVEN) + len(MADE))
        assert drawn["id"][i] == int(u * few), list(FLAT)[i]


@pytest.mark.parametrize("V", [2049, 3000, 9001])
def test_equal_logits_are_drawn_in_order(device: Device, V: int) -> None:
    """Members of one bin: just more than are listed, less than twice as many, and many."""
    check_flat(device, V)


def check_odd(device: Device) -> None:
    """Lowest ids of ties, NaN, infinities, and rows that leave nothing to choose."""
    V = 1031
    x = np.random.default_rng(19).normal(size=(7, V)).astype(np.float32)
    x[0, [V // 3, V // 2, V - 1]] = 9.0  # ties, maybe in different warps
    x[1, ::2], x[2], x[3] = np.nan, np.nan, -np.inf
    x[4, 700] = np.inf
    x[5, [3, 900]] = 0.0, -0.0  # equal, whatever their bits
    x[6, 40:] = -np.inf
    cases = [case(temperature=0.0) for _ in range(4)]
    cases += [case(temperature=0.3), case(target=900, n_top=2), case(top_p=0.999, n_top=3)]
    drawn, tops = draw(device, x, cases)
    want = [0 if np.isnan(row).all() else int(np.nanargmax(row)) for row in x[:5]]
    assert drawn["id"][:5].tolist() == want
    assert drawn["id"][5] == 900
    check_scores(x[5], 2, drawn[5], tops[5])
    assert drawn["id"][6] < 40


def test_odd_rows(device: Device) -> None:
    check_odd(device)


def test_best_are_in_order(device: Device) -> None:
    """Ties by the lower id, across the border of those that are wanted; as many as there may be."""
    x = np.round(np.random.default_rng(4).normal(size=(3, 700)) * 2).astype(np.float32) / 2
    x[2, 1:] = x[2, 0]
    drawn, tops = draw(device, x, [case(target=i, n_top=n) for i, n in enumerate((1, 19, 32))])
    for i, n in enumerate((1, 19, 32)):
        check_scores(x[i], n, drawn[i], tops[i])


@pytest.mark.parametrize("V", [1, 31])
def test_small_vocabularies(device: Device, V: int) -> None:
    kinds = [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}, {"temperature": 0.0}]
    cases = [case(**kind, n_top=1) for kind in kinds]
    row = np.linspace(0, 3, V).astype(np.float32)
    drawn, tops = draw(device, np.tile(row, (len(cases), 1)), cases)
    for i, p in enumerate(cases):
        u = ref.uniform(p["seed"], 0, len(GIVEN) + len(MADE))
        assert drawn["id"][i] in ref.draws(row, p, (u, 0.0), 0.0)
        check_scores(row, 1, drawn[i], tops[i])


def test_a_row_does_not_know_its_company(device: Device) -> None:
    names = ["top_p with rules", "plain", "all of them", "top_p hot"]
    cases = [case(**sampling.CASES[name], n_top=4) for name in names]
    logits = sampling.table(301)[:4]
    together = draw(device, logits, cases)
    for i in range(4):
        alone = draw(device, logits[i : i + 1], cases[i : i + 1])
        assert alone[0][0] == together[0][i]
        assert (alone[1][0, :4] == together[1][i, :4]).all()


def test_a_row_that_is_not_the_devices_is_left(device: Device) -> None:
    drawn, _ = draw(device, sampling.table(301)[:2], [case(target=-2), case(temperature=0.0)])
    assert (drawn["id"][0], drawn["rank"][0]) == (-7, -7)
    assert drawn["id"][1] == int(sampling.table(301)[1].argmax())


def test_a_step_takes_over_what_the_one_before_drew(device: Device) -> None:
    """Tokens and rules of 300 rows, more than a block's threads; what is known stays. For a draw
    that failed or left nothing a token stands in, of which nobody asks for more."""
    drawn = np.zeros(40, DRAWN)
    drawn["id"] = np.arange(40) + 1000
    drawn["id"][[8, 9]] = -1, -2
    tokens = np.arange(300, dtype=np.int32)
    tokens[[0, 7, 280, 281, 299]] = -1, -40, -3, -9, -10
    rules = np.zeros(290, RULE)
    rules["newest"], rules["target"] = -1, -2
    rules["newest"][[5, 6, 289]] = -2, -41, 17
    at, where = device.put(tokens), device.put(rules)
    device.launch("resume", Resume(at, where, device.put(drawn), 300, 290))
    tokens[[0, 7, 280, 281, 299]] = 1000, 1039, 1002, 0, 0
    rules["newest"][[5, 6]] = 1000, 1039
    assert np.array_equal(device.get(at), tokens)
    assert np.array_equal(device.get(where), rules)
