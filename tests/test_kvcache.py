"""Page tables against a model in Python: random grow, write, fork and clear in any order.

The model gives every page of every table a value; the pool under test must keep each value readable
through its table for as long as the table lives, whoever else shares, writes or frees.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmaccel import _core

TABLES = 5
CAP = 6
pick = st.integers(0, TABLES - 1)


class PoolMachine(RuleBasedStateMachine):
    """`values[t][i]` is what table t must read in page i; `memory[p]` is what page p holds."""

    @initialize(n_pages=st.integers(1, 70), max_copies=st.integers(1, 3))
    def make(self, n_pages: int, max_copies: int) -> None:
        self.n_pages = n_pages
        self.max_copies = max_copies
        self.pool = _core.PagePool(n_pages, max_copies)
        self.tables = [self.pool.table(CAP) for _ in range(TABLES)]
        self.values: list[list[int]] = [[] for _ in range(TABLES)]
        self.memory: dict[int, int] = {}
        self.fresh = itertools.count(1)
        self.pending: list[int] = []  # pages that copies go to

    def free_pages(self) -> list[int]:
        return [p for p, refs in enumerate(self.pool.refs()) if refs == 0]

    def do_copies(self) -> None:
        for src, dst in self.pool.copies():
            self.memory[dst] = self.memory[src]
        self.pending = []

    @rule(t=pick)
    def grow(self, t: int) -> None:
        if len(self.values[t]) == CAP:
            with pytest.raises(ValueError, match="full"):
                self.pool.grow(self.tables[t])
            return
        free = self.free_pages()
        assert self.pool.grow(self.tables[t]) == bool(free)
        if free:
            self.do_copies()  # a page may be written only when earlier copies are made
            page = self.pool.pages(self.tables[t])[-1]
            assert page == free[0], "the lowest free page comes first"
            self.memory[page] = next(self.fresh)
            self.values[t].append(self.memory[page])

    @rule(t=pick, i=st.integers(0, CAP - 1), flush=st.booleans())
    def write(self, t: int, i: int, flush: bool) -> None:
        if i >= len(self.values[t]):
            with pytest.raises(IndexError):
                self.pool.own(self.tables[t], i)
            return
        page = self.pool.pages(self.tables[t])[i]
        shared = self.pool.refs()[page] > 1
        free = self.free_pages()
        possible = not shared or (bool(free) and len(self.pending) < self.max_copies)
        assert self.pool.own(self.tables[t], i) == possible
        if not possible:
            return
        mine = self.pool.pages(self.tables[t])[i]
        assert mine == (free[0] if shared else page)
        assert self.pool.refs()[mine] == 1
        self.pending += [mine] * shared
        if flush or not shared:
            self.do_copies()
            self.memory[mine] = next(self.fresh)
            self.values[t][i] = self.memory[mine]

    @rule(src=pick, dst=pick, n=st.integers(0, CAP))
    def fork(self, src: int, dst: int, n: int) -> None:
        if n > len(self.values[src]) or self.values[dst]:
            with pytest.raises(ValueError, match="fork"):
                self.pool.fork(self.tables[src], n, self.tables[dst])
            return
        self.pool.fork(self.tables[src], n, self.tables[dst])
        assert self.pool.pages(self.tables[dst]) == self.pool.pages(self.tables[src])[:n]
        self.values[dst] = self.values[src][:n]

    @rule(t=pick)
    def clear(self, t: int) -> None:
        self.pool.clear(self.tables[t])
        self.values[t] = []

    @precondition(lambda self: self.pending)
    @rule()
    def flush(self) -> None:
        self.do_copies()

    @rule()
    def settle(self) -> None:
        refs = self.pool.refs()
        used = [p for p, count in enumerate(refs) if count]
        assert self.pool.settle() == (used[-1] + 1 if used else 0)
        self.pending = [page for page in self.pending if refs[page]]
        assert self.pool.counts()["high"] == self.pool.settle()

    @invariant()
    def references_add_up(self) -> None:
        counts = [0] * self.n_pages
        for table in self.tables:
            for page in self.pool.pages(table):
                counts[page] += 1
        assert self.pool.refs() == counts
        used = [p for p, refs in enumerate(counts) if refs]
        assert self.pool.counts()["used"] == len(used)
        assert self.pool.counts()["high"] >= (used[-1] + 1 if used else 0)

    @invariant()
    def values_are_kept(self) -> None:
        if self.pending:
            return
        for t, table in enumerate(self.tables):
            assert [self.memory[p] for p in self.pool.pages(table)] == self.values[t]

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for table in self.tables:
            self.pool.clear(table)
        assert self.pool.counts()["used"] == 0
        assert self.pool.settle() == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_hands_out_low_pages_first() -> None:
    pool = _core.PagePool(200, 1)
    tables = [pool.table(1) for _ in range(200)]
    assert all(pool.grow(t) for t in tables)
    assert [pool.pages(t)[0] for t in tables] == list(range(200))
    assert not pool.grow(pool.table(1))
    for t in (150, 3, 77):
        pool.clear(tables[t])
    got = pool.table(3)
    assert all(pool.grow(got) for _ in range(3))
    assert pool.pages(got) == [3, 77, 150]


def test_last_owner_writes_in_place() -> None:
    pool = _core.PagePool(4, 4)
    a, b, c = (pool.table(2) for _ in range(3))
    assert pool.grow(a)
    pool.fork(a, 1, b)
    pool.fork(a, 1, c)
    assert pool.own(b, 0)
    assert pool.own(c, 0)
    assert pool.own(a, 0)
    assert pool.copies() == [(0, 1), (0, 2)]
    assert [pool.pages(t) for t in (a, b, c)] == [[0], [1], [2]]


@pytest.mark.parametrize("n_pages", [0, -1, 2**31])
def test_refuses_impossible_pools(n_pages: int) -> None:
    with pytest.raises(ValueError, match="kv_pages"):
        _core.PagePool(n_pages, 1)
