"""The exact min-max of the round time: I-V1 to I-V8."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfault.ranks.exact import share_out_units
from fedfault.registry import build
from fedfault.scheduling import Situation
from fedfault.testing.cohorts import permute, situation
from seeded import seeded, seeds

EXACT = build("scheduler", "exact")


def ranks_of(s: Situation) -> np.ndarray:
    return np.array(EXACT.assign({}, s).ranks)


def by_hand() -> Situation:
    """Units are done at 3, 4, 5, 6, ... at client 0 and at 6, 9, ... at client 1: who waits is done at 5 or at 3."""
    two, ids = np.array([1.0, 3.0]), np.arange(2)
    return Situation(1, 0, ids, np.full(2, 1), np.full(2, 9), 6, a=np.array([1.0, 0.0]), b=two)


def test_units_go_to_the_client_that_is_done_first():
    assert ranks_of(by_hand()).tolist() == [5, 1]


def test_the_deadline_caps_ranks():
    """5 s: client 0 can hold (5 - 1) / 1 = 4 and client 1 only floor(5 / 3) = 1."""
    given = EXACT.assign({}, replace(by_hand(), deadline=5.0))
    assert given.ranks == (4, 1)
    assert any("budget of 6 does not fit" in event and "5 is used" in event for event in given.events)


def test_who_cannot_meet_the_deadline_is_left_out_and_the_others_share_the_budget():
    given = EXACT.assign({}, replace(by_hand(), deadline=2.5, budget=1))
    assert given.ranks == (1, 0)
    assert given.excluded == (1,)
    assert any("client 1 left out" in event and "3 s" in event and "2.5 s" in event for event in given.events)


@pytest.mark.slow
@seeded
@given(seeds, st.integers(1, 4))
def test_no_other_ranks_give_a_shorter_round(seed, n):
    """I-V2, against all ranks there are."""
    s = situation(seed, n)
    every = np.array(list(itertools.product(*(range(low, high + 1) for low, high in zip(s.low, s.high, strict=True)))))
    every = every[every.sum(axis=1) == s.budget]
    best = (s.a + s.b * every).max(axis=1).min()
    assert s.seconds(ranks_of(s)).max() <= best * (1 + 1e-9)


def heap_of_units(s: Situation) -> np.ndarray:
    """The same by its definition: one unit after the other."""
    r = s.low.copy()

    def next_unit(i: int) -> tuple[float, float, int, int, int]:
        return (s.a[i] + s.b[i] * (r[i] + 1) if s.b[i] else -np.inf, s.b[i], r[i] + 1, s.clients[i], i)

    heap = [next_unit(i) for i in range(len(r)) if r[i] < s.high[i]]
    heapq.heapify(heap)
    for _ in range(s.budget - int(r.sum())):
        *_, i = heapq.heappop(heap)
        r[i] += 1
        if r[i] < s.high[i]:
            heapq.heappush(heap, next_unit(i))
    return r


@pytest.mark.slow
@seeded
@given(seeds)
def test_one_sort_gives_the_units_in_the_order_of_a_heap(seed):
    s = situation(seed)
    s = replace(s, a=np.round(s.a * 64) / 64, b=np.round(s.b * 64) / 64)  # sums are exact, so ties are the same ties
    np.testing.assert_array_equal(ranks_of(s), heap_of_units(s))


@pytest.mark.slow
@seeded
@given(seeds, st.integers(2, 4), st.booleans())
def test_the_second_slowest_client_is_as_fast_as_it_can_be_too_and_so_on(seed, n, free):
    """Against all ranks there are, also where a client's time does not grow with its rank."""
    s = situation(seed, n)
    s = replace(s, b=np.where(np.arange(n) == 0, 0.0, s.b)) if free else s
    every = np.array(list(itertools.product(*(range(low, high + 1) for low, high in zip(s.low, s.high, strict=True)))))
    every = every[every.sum(axis=1) == s.budget]
    slowest_first = -np.sort(-(s.a + s.b * every), axis=1)
    best = slowest_first[np.lexsort(slowest_first.T[::-1])[0]]
    np.testing.assert_allclose(-np.sort(-s.seconds(ranks_of(s))), best, rtol=1e-9, atol=1e-12)


@seeded
@given(seeds, st.integers(2, 4))
def test_the_second_slowest_is_as_fast_as_it_can_be_where_times_tie(seed, n):
    """Whole seconds: units of several clients are done at once, and who goes without one should be done early."""
    g = np.random.default_rng(seed)
    low = g.integers(0, 3, size=n)
    high = low + g.integers(0, 4, size=n)
    budget = int(g.integers(low.sum(), high.sum() + 1))
    a, b = g.integers(0, 6, size=n) * 1.0, g.integers(0, 4, size=n) * 1.0
    every = np.array(list(itertools.product(*(range(x, y + 1) for x, y in zip(low, high, strict=True)))))
    every = every[every.sum(axis=1) == budget]
    slowest_first = -np.sort(-(a + b * every), axis=1)
    best = slowest_first[np.lexsort(slowest_first.T[::-1])[0]]
    ranks = share_out_units(a, b, low, high, budget, np.arange(n))
    np.testing.assert_array_equal(-np.sort(-(a + b * ranks)), best)


def test_ranks_that_cost_nothing_are_spent_first():
    """Client 0 takes 10 s whatever its rank: five of the six units are its, and client 1 is done after 1 s, not 3."""
    s = Situation(1, 0, np.arange(2), np.full(2, 1), np.full(2, 5), 6, a=np.array([10.0, 0.0]), b=np.array([0.0, 1.0]))
    assert ranks_of(s).tolist() == [5, 1]


@pytest.mark.slow
@seeded
@given(seeds, st.sampled_from([1e-6, 0.1, 3.0, 3600.0]), st.sampled_from([0.0, 0.1, 1000.0]))
def test_neither_the_unit_of_time_nor_a_common_delay_matters(seed, unit, delay):
    """I-V4."""
    s = situation(seed)
    spread = float(s.b.max()) or 1.0
    other = replace(s, a=(s.a + delay * spread) * unit, b=s.b * unit)
    np.testing.assert_array_equal(ranks_of(other), ranks_of(s))


@pytest.mark.slow
@seeded
@given(seeds, st.sampled_from([0.1, 1 / 3]), st.sampled_from([0.0, 0.3]))
def test_ties_are_ties_in_any_unit(seed, unit, delay):
    """Whole seconds tie often; in tenths or thirds the sums differ in their last bit."""
    g = np.random.default_rng(seed)
    a, b, budget = g.integers(0, 6, size=6) * 1.0, g.integers(1, 4, size=6) * 1.0, int(g.integers(10, 50))
    s = Situation(1, 0, np.arange(6), np.full(6, 1), np.full(6, 9), budget, a, b)
    np.testing.assert_array_equal(ranks_of(replace(s, a=(a + delay) * unit, b=b * unit)), ranks_of(s))


@seeded
@given(seeds)
def test_equal_clients_differ_by_one_unit_at_most(seed):
    """I-V5, also where ranks cost nothing."""
    s = situation(seed, equal_bounds=True)
    s = replace(s, a=np.full_like(s.a, s.a[0]), b=np.full_like(s.b, s.b[0]))
    assert np.ptp(ranks_of(s)) <= 1


@pytest.mark.slow
@seeded
@given(seeds, st.floats(1.01, 100.0))
def test_a_client_that_gets_slower_never_gets_more(seed, factor):
    """I-V6."""
    s = situation(seed)
    before = ranks_of(s)
    for i in range(len(s.b)):
        slower = s.b.copy()
        slower[i] = slower[i] * factor + 0.01
        assert ranks_of(replace(s, b=slower))[i] <= before[i]


@pytest.mark.slow
@seeded
@given(seeds)
def test_the_order_of_clients_does_not_matter(seed):
    """I-V8; ties go by id, not by place."""
    s = situation(seed)
    order = np.random.default_rng(seed).permutation(len(s.clients))
    np.testing.assert_array_equal(ranks_of(s)[order], ranks_of(permute(s, order)))


@pytest.mark.slow
@seeded
@given(seeds)
def test_a_deadline_is_kept_by_all_who_take_part(seed):
    s = situation(seed)
    s = replace(s, deadline=float(np.median(s.a + s.b * s.high)) or 1.0)
    given = EXACT.assign({}, s)
    ranks = np.array(given.ranks)
    assert (s.seconds(ranks) <= s.deadline * (1 + 1e-9)).all()
    late = s.clients[s.a + s.b * s.low > s.deadline * (1 + 1e-9)]
    assert given.excluded == tuple(sorted(late.tolist()))
    assert bool(given.excluded) == any("left out" in event for event in given.events)


def test_without_clients_there_are_no_ranks():
    nothing = np.zeros(0, dtype=np.int64)
    assert share_out_units(nothing * 1.0, nothing * 1.0, nothing, nothing, 0, nothing).tolist() == []
