"""The scheduler driven without a model: its plans are carried out on pages made of Python lists.

`Machine` plays the engine. Every fed token is written to the page and slot the plan names; every
sequence then has to read back, through its pages, exactly the tokens it should have seen. That
catches shared pages written by one owner, lost copies, double ownership and wrong positions,
whatever mix of forks, preemptions and cancellations led there.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaccel import _core

PAGE = 64


@dataclass
class Branch:
    """One sequence as the test knows it: its tokens are strings that name where they belong."""

    tokens: list[str]
    n_new: int
    n_drawn: int = 0
    scored: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass
class Job:
    n_prompt: int
    n_suffix: int
    n_new: int
    priority: int
    score: bool
    forced_cost: int
    sample_cost: int
    branches: list[Branch]
    beams: bool = False
    n_live: int = 1
    fed: set[int] = field(default_factory=set)

    @property
    def n_forced(self) -> int:
        return self.n_prompt + self.n_suffix


class Machine:
    """Engine, model and memory in one; `step` checks every invariant."""

    def __init__(self, n_pages: int, max_seqs: int, budget: int, max_entries: int = 1000) -> None:
        self.n_pages, self.max_seqs = n_pages, max_seqs
        self.budget, self.max_entries = budget, max_entries
        self.core = _core.StepScheduler(n_pages, max_seqs, budget, max_entries)
        self.jobs: list[Job] = []
        self.memory: list[list[str | None]] = [[None] * PAGE for _ in range(n_pages)]
        self.step_tokens: list[int] = []

    def add(
        self,
        n_prompt: int,
        *,
        n_branches: int = 1,
        n_suffix: int = 0,
        n_new: int = 1,
        priority: int = 0,
        score: bool = False,
        forced_cost: int = 0,
        sample_cost: int = 0,
        beams: bool = False,
    ) -> int:
        number = self.core.add(
            n_prompt,
            n_branches=n_branches,
            n_suffix=n_suffix,
            n_new=n_new,
            priority=priority,
            score=score,
            forced_cost=forced_cost,
            sample_cost=sample_cost,
            beams=beams,
        )
        assert number == len(self.jobs)
        prompt = [f"{number}:{i}" for i in range(n_prompt)]
        branches = [
            Branch(prompt + [f"{number}.{b}:{n_prompt + i}" for i in range(n_suffix)], n_new)
            for b in range(n_branches)
        ]
        self.jobs.append(
            Job(
                n_prompt,
                n_suffix,
                n_new,
                priority,
                score,
                forced_cost,
                sample_cost,
                branches,
                beams,
            )
        )
        return number

    def cancel(self, number: int, branch: int) -> None:
        if self.jobs[number].beams:  # they end together
            self.end_beams(number)
            return
        self.jobs[number].branches[branch].ended = True
        self.core.finish(number, branch)
        assert self.core.state(number, branch)["pages"] == []

    def live(self) -> list[tuple[int, int]]:
        return [
            (j, b)
            for j, job in enumerate(self.jobs)
            for b, branch in enumerate(job.branches)
            if not branch.ended
        ]

    def rank(self, number: int, branch: int) -> tuple[int, int, int]:
        return self.jobs[number].priority, number, branch

    def n_todo(self, number: int, branch: int) -> int:
        """Tokens to be fed: where nothing is drawn, the last only has its logprob taken."""
        job = self.jobs[number]
        return len(job.branches[branch].tokens) - (job.n_new == 0)

    def step(self) -> int:
        plan = self.core.plan()
        self.check_plan(plan)
        for src, dst in self.core.copies():
            self.memory[dst] = list(self.memory[src])
        for number, b, first, n, first_row, pages in plan:
            self.feed(number, b, range(first, first + n), pages)
            self.note_rows(number, b, range(max(first, first_row), first + n))
        for number, b, first, n, _, pages in plan:
            branch = self.jobs[number].branches[b]
            got = [self.memory[pages[i // PAGE]][i % PAGE] for i in range(first + n)]
            assert got == branch.tokens[: first + n]
        self.core.commit()
        for number, b, first, n, _, _ in plan:
            self.after(number, b, first + n)
        self.check_references()
        self.step_tokens.append(sum(item[3] for item in plan))
        return self.step_tokens[-1]

    def check_plan(self, plan: list[tuple]) -> None:
        assert len(plan) <= self.max_seqs
        assert sum(item[3] for item in plan) <= self.budget
        ranks = [self.rank(item[0], item[1]) for item in plan]
        assert ranks == sorted(ranks)
        entries = 0
        for number, b, first, n, first_row, pages in plan:
            job = self.jobs[number]
            assert not job.branches[b].ended
            assert n >= 1
            assert first + n <= self.n_todo(number, b)
            assert len(pages) * PAGE >= first + n
            rows = range(max(first, first_row), first + n)
            entries += sum(
                job.forced_cost if pos < job.n_forced - 1 else job.sample_cost for pos in rows
            )
        assert entries <= self.max_entries
        if self.live():
            assert plan, "somebody can always advance"

    def feed(self, number: int, b: int, positions: range, pages: list[int]) -> None:
        refs = self.core.refs()
        for pos in positions:
            page = pages[pos // PAGE]
            assert refs[page] == 1, "a page is written by its only owner"
            self.memory[page][pos % PAGE] = self.jobs[number].branches[b].tokens[pos]

    def note_rows(self, number: int, b: int, rows: range) -> None:
        job = self.jobs[number]
        scored = job.branches[b].scored
        scored.extend(pos + 1 for pos in rows if pos + 1 < job.n_forced)
        start = 1 if job.score and b == 0 else job.n_prompt
        assert scored == list(range(start, start + len(scored))), "in order, once"

    def after(self, number: int, b: int, fed: int) -> None:
        job = self.jobs[number]
        branch = job.branches[b]
        if fed < self.n_todo(number, b):
            return
        if job.beams:
            job.fed.add(b)
            if len(job.fed) == job.n_live:
                self.reform(number)
            return
        if branch.n_drawn < job.n_new:
            branch.tokens.append(f"{number}.{b}:{len(branch.tokens)}")
            branch.n_drawn += 1
        if branch.n_drawn == job.n_new:
            branch.ended = True
            assert (
                branch.scored[-1:] == [job.n_forced - 1]
                or job.n_suffix + job.score == 0
                or job.n_forced == 1
                or (b > 0 and job.n_suffix == 0)
            )
            self.core.finish(number, b)
        else:
            self.core.extend(number, b)

    def end_beams(self, number: int) -> None:
        for b, branch in enumerate(self.jobs[number].branches):
            branch.ended = True
            self.core.finish(number, b)

    def reform(self, number: int) -> None:
        """Every beam is fed: some go on from any of them, with a token of their own."""
        job = self.jobs[number]
        first = job.branches[0]
        first.n_drawn += 1
        if first.n_drawn == job.n_new:
            self.end_beams(number)
            return
        rng = random.Random(number * 1000 + first.n_drawn)
        parents = [rng.randrange(job.n_live) for _ in range(rng.randint(1, len(job.branches)))]
        was = [branch.tokens for branch in job.branches]
        for k, parent in enumerate(parents):
            job.branches[k].tokens = [*was[parent], f"{number}.{k}:{len(was[parent])}"]
        job.n_live = len(parents)
        job.fed = set()
        self.core.reform(number, parents)

    def check_references(self) -> None:
        counts: Counter[int] = Counter()
        states: Counter[str] = Counter()
        for number, job in enumerate(self.jobs):
            for b, branch in enumerate(job.branches):
                state = self.core.state(number, b)
                assert (state["state"] == "done") == branch.ended
                states[state["state"]] += 1
                if state["state"] != "running":
                    assert state["pages"] == []
                counts.update(state["pages"])
        for _, pages in self.core.held():
            counts.update(pages)
        assert self.core.refs() == [counts[p] for p in range(self.n_pages)]
        totals = self.core.counts()
        assert totals["used"] == len(counts)
        for name in ("running", "waiting", "parked"):
            assert totals[name] == states[name]
        assert totals["running"] <= self.max_seqs

    def run(self, most: int = 5000) -> None:
        for _ in range(most):
            if not self.live():
                assert self.core.plan() == []
                assert self.core.counts()["used"] == 0
                return
            self.step()
        pytest.fail(f"not done after {most} steps")


# ---- single properties ---------------------------------------------------------------------------


def test_budget_is_exact_while_prompts_wait() -> None:
    m = Machine(n_pages=500, max_seqs=32, budget=48)
    rng = random.Random(1)
    for _ in range(30):
        m.add(rng.randint(1, 300), n_new=rng.randint(1, 20))
    waiting = sum(job.n_prompt for job in m.jobs)
    fed_prompt = 0
    while fed_prompt < waiting:
        decoding = sum(1 for j, b in m.live() if m.jobs[j].branches[b].n_drawn > 0)
        assert m.step() == 48 or fed_prompt + 48 - decoding >= waiting
        fed_prompt += m.step_tokens[-1] - decoding
    m.run()


def test_decoding_goes_first_and_prompts_are_cut_at_the_room() -> None:
    m = Machine(n_pages=100, max_seqs=8, budget=10)
    for _ in range(3):
        m.add(2, n_new=50)
    m.step()
    m.add(25)
    for expect in (7, 7, 7, 4):
        plan = m.core.plan()
        assert [item[3] for item in plan] == [1, 1, 1, expect]
        m.step()


def test_lower_priority_value_runs_first_then_arrival() -> None:
    m = Machine(n_pages=100, max_seqs=1, budget=64)
    order = [m.add(30, priority=p, n_new=3) for p in (1, 0, 1, 0, -5)]
    ended: list[int] = []
    while m.live():
        m.step()
        ended += [j for j in order if m.jobs[j].branches[0].ended and j not in ended]
    assert ended == [4, 1, 3, 0, 2]


def test_a_more_important_prompt_overtakes_a_running_one() -> None:
    m = Machine(n_pages=100, max_seqs=4, budget=10)
    m.add(100, priority=1)
    m.step()
    late = m.add(15, priority=0)
    m.step()
    assert m.core.plan()[0][:2] == (late, 0)
    assert m.core.state(late, 0)["done"] == 10
    assert m.core.state(0, 0)["done"] == 10


def test_decoding_beyond_the_budget_serves_the_oldest() -> None:
    m = Machine(n_pages=100, max_seqs=8, budget=3)
    for _ in range(6):
        m.add(1, n_new=10)
    m.run()
    assert max(m.step_tokens) == 3
    assert m.core.counts()["preempted"] == 0


def test_preempted_work_is_done_again_and_completes() -> None:
    m = Machine(n_pages=6, max_seqs=4, budget=64)
    for _ in range(4):
        m.add(60, n_new=150)
    m.run()
    counts = m.core.counts()
    assert counts["preempted"] > 0
    assert counts["recomputed"] > 0
    ends = [len(job.branches[0].tokens) for job in m.jobs]
    assert ends == [210] * 4


def test_the_victim_is_the_last_in_order() -> None:
    m = Machine(n_pages=4, max_seqs=4, budget=256)
    old = m.add(64, n_new=100)
    low = m.add(60, n_new=100, priority=3)
    young = m.add(60, n_new=3)
    m.step()
    states = [m.core.state(j, 0)["state"] for j in (old, low, young)]
    assert states == ["running"] * 3
    while m.core.counts()["preempted"] == 0:
        m.step()
    assert m.core.state(low, 0)["state"] == "waiting"
    m.run()


def test_forced_preemption_takes_the_youngest() -> None:
    m = Machine(n_pages=50, max_seqs=8, budget=64)
    for _ in range(5):
        m.add(10, n_new=30)
    m.step()
    m.step()
    m.core.preempt(2)
    assert [m.core.state(j, 0)["state"] for j in range(5)] == ["running"] * 3 + ["waiting"] * 2
    assert m.core.counts()["used"] == 3
    m.run()
    assert m.core.counts()["preempted"] == 2
    assert m.core.counts()["recomputed"] == 2 * 11


def test_branches_share_the_prompt_and_compute_it_once() -> None:
    m = Machine(n_pages=60, max_seqs=8, budget=512)
    m.add(200, n_branches=5, n_new=10)
    fed = 0
    most = 0
    while m.live():
        fed += m.step()
        most = max(most, m.core.counts()["used"])
    # every branch feeds the prompt's last token itself, and its output less the last token
    assert fed == 199 + 5 * (1 + 9)
    assert most == 3 + 5  # three full pages are shared, the fourth is copied


def test_a_prompt_that_ends_on_a_page_needs_no_copy() -> None:
    m = Machine(n_pages=60, max_seqs=8, budget=512)
    m.add(129, n_branches=3, n_new=5)
    most = 0
    while m.live():
        m.step()
        most = max(most, m.core.counts()["used"])
    assert most == 2 + 3


def test_more_branches_than_places() -> None:
    m = Machine(n_pages=20, max_seqs=2, budget=32)
    m.add(70, n_branches=7, n_suffix=3, n_new=0)
    m.add(10)
    m.run()
    assert all(b.scored == [70, 71, 72] for b in m.jobs[0].branches)
    # the first branch feeds 70 + 2, each other one its last prompt token and two of the suffix
    assert sum(m.step_tokens) == 72 + 6 * 3 + 10


def test_result_entries_cut_scored_prompts() -> None:
    m = Machine(n_pages=20, max_seqs=4, budget=64, max_entries=100)
    m.add(50, score=True, forced_cost=30, sample_cost=100)
    sizes = []
    while m.live():
        sizes.append(m.step())
    assert sizes == [3] * 16 + [1, 1]
    assert m.jobs[0].branches[0].scored == list(range(1, 50))


def test_cancel_frees_pages_at_once_and_others_go_on() -> None:
    m = Machine(n_pages=40, max_seqs=6, budget=128)
    m.add(150, n_branches=4, n_new=20)
    m.add(100, n_new=20)
    m.step()  # the leader is in the middle of its prompt
    m.cancel(0, 0)
    m.step()
    m.step()
    for b in (1, 2, 3):
        m.cancel(0, b)
    assert m.core.held() == []
    used = sum(len(m.core.state(1, 0)["pages"]) for _ in range(1))
    assert m.core.counts()["used"] == used
    m.run()


def test_uncommitted_plan_is_planned_again() -> None:
    m = Machine(n_pages=8, max_seqs=4, budget=32)
    m.add(20, n_branches=2, n_new=4)
    m.add(40, n_new=4)
    while m.live():
        first = m.core.plan()
        assert m.core.plan() == first
        m.step()


def test_a_more_important_prompt_takes_pages_and_the_whole_step() -> None:
    m = Machine(n_pages=4, max_seqs=4, budget=100)
    low = [m.add(100, priority=1, n_new=20) for _ in range(2)]
    m.step()
    m.step()
    m.step()
    assert m.core.counts()["used"] == 4
    late = m.add(200, priority=0)
    assert m.step() == 100, "the tokens of those thrown out are handed on"
    assert m.core.state(late, 0)["done"] == 100
    assert [m.core.state(j, 0)["state"] for j in low] == ["waiting"] * 2
    m.run()


def test_nobody_is_thrown_out_in_vain() -> None:
    m = Machine(n_pages=6, max_seqs=4, budget=400)
    m.add(200, priority=-1, n_new=10)
    m.add(60, priority=1, n_new=4)
    m.step()
    m.add(192)  # three pages, of which the less important one could give only one
    m.run()
    assert m.core.counts()["preempted"] == 0


def test_a_sequence_held_up_behind_a_held_prefix_gives_way() -> None:
    m = Machine(n_pages=3, max_seqs=2, budget=256)
    m.add(65, n_branches=3)
    last = m.add(64, n_new=100)
    while not m.jobs[0].branches[2].ended:
        m.step()
    assert m.core.counts()["preempted"] == 1
    assert m.core.state(last, 0)["high"] == 128, "it ran as long as there were pages"
    m.run()


def test_exact_fit_of_every_page() -> None:
    m = Machine(n_pages=4, max_seqs=3, budget=100)
    m.add(100, n_branches=3, n_new=157)  # 256 positions are fed: all four pages
    m.add(256, n_new=1)
    m.run()
    assert all(b.n_drawn == 157 for b in m.jobs[0].branches)


def test_refuses_what_can_never_fit() -> None:
    core = _core.StepScheduler(2, 2, 16, 10)
    with pytest.raises(ValueError, match="never fit"):
        core.add(128, n_new=2)
    with pytest.raises(ValueError, match="out of range"):
        core.add(0)


def test_beams_share_what_they_have_in_common() -> None:
    m = Machine(n_pages=60, max_seqs=8, budget=512)
    m.add(200, n_branches=5, n_new=10, beams=True)
    most = 0
    while m.live():
        m.step()
        most = max(most, m.core.counts()["used"])
    assert m.core.counts()["recomputed"] == 0
    assert m.step_tokens[0] == 200
    assert max(m.step_tokens[1:]) <= 5
    assert most <= 3 + 2 * 5  # of the last page each may have one, and one of its parent's


def test_beams_that_find_no_place_start_from_the_prompt() -> None:
    m = Machine(n_pages=60, max_seqs=4, budget=512)
    m.add(10, n_new=12)
    m.add(10, n_new=12)
    m.add(200, n_branches=4, n_new=6, beams=True)
    m.run()
    assert m.core.counts()["preempted"] == 0
    assert sum(m.step_tokens) < 2 * 21 + 200 + 4 * 5 + 4 * 8


def test_beams_in_a_pool_for_one() -> None:
    m = Machine(n_pages=2, max_seqs=4, budget=64)
    m.add(100, n_branches=4, n_new=20, beams=True)
    m.run()
    assert m.core.counts()["recomputed"] > 0


# ---- everything at once --------------------------------------------------------------------------

requests = st.fixed_dictionaries(
    {
        "n_prompt": st.one_of(st.integers(1, 12), st.integers(60, 70), st.integers(1, 200)),
        "n_branches": st.sampled_from([1, 1, 1, 2, 3, 6]),
        "n_suffix": st.sampled_from([0, 0, 1, 2, 70]),
        "n_new": st.one_of(st.integers(0, 4), st.integers(50, 80)),
        "priority": st.integers(-1, 1),
        "score": st.booleans(),
        "forced_cost": st.sampled_from([0, 0, 1, 5]),
        "sample_cost": st.sampled_from([0, 0, 1, 5]),
        "beams": st.sampled_from([False, False, True]),
    }
)


machines = st.builds(
    Machine,
    n_pages=st.integers(1, 12),
    max_seqs=st.integers(1, 5),
    budget=st.sampled_from([1, 2, 7, 16, 64, 300]),
    max_entries=st.sampled_from([5, 17, 1000]),
)


@settings(max_examples=120, deadline=None)
@given(m=machines, jobs=st.lists(requests, min_size=1, max_size=8), seed=st.integers(0, 2**32))
def test_any_mix_completes(m: Machine, jobs: list[dict], seed: int) -> None:
    rng = random.Random(seed)
    pending = list(jobs)
    for _ in range(20000):
        if pending and (not m.live() or rng.random() < 0.3):
            job = pending.pop()
            if job["beams"]:
                job |= {"n_suffix": 0, "n_new": max(1, job["n_new"])}
            if job["n_new"] == 0 and job["n_suffix"] == 0:
                job["n_suffix"] = 1
            fed = job["n_prompt"] + job["n_suffix"] + job["n_new"] - 1
            if -(-fed // PAGE) > m.n_pages:
                with pytest.raises(ValueError, match="never fit"):
                    m.core.add(**job)
                continue
            m.add(**job)
        live = m.live()
        if not live and not pending:
            break
        if live and rng.random() < 0.02:
            m.cancel(*rng.choice(live))
        if rng.random() < 0.05:
            m.core.preempt(rng.randint(0, m.max_seqs))
        if m.live():
            m.step()
    assert not m.live()
    m.run()


def test_the_first_in_order_is_never_held_up() -> None:
    """While it runs, the oldest of the most important sequences advances in every step."""
    rng = random.Random(7)
    m = Machine(n_pages=7, max_seqs=4, budget=16)
    first = m.add(100, n_new=200, priority=-1)
    done = -1
    while not m.jobs[first].branches[0].ended:
        if rng.random() < 0.3:
            m.add(rng.randint(1, 150), n_new=rng.randint(1, 90))
        m.step()
        now = m.core.state(first, 0)["done"]
        assert now > done or m.jobs[first].branches[0].ended
        done = now
    m.run(20000)
