"""Water-filling: exact sums, fair rounding, and no paradoxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfault.allocation.filling import fill_budget, round_shares
from fedfault.testing.cohorts import situation
from seeded import seeded, seeds


def scores(seed: int, n: int) -> np.ndarray:
    """From a grid, which makes ties, or not; over three orders of magnitude."""
    g = np.random.default_rng([seed, 2])
    return g.integers(0, 4, size=n) * 1.0 if g.random() < 0.5 else 10.0 ** g.uniform(-2, 1, size=n)


def shared_out(s, score) -> np.ndarray:
    return fill_budget(score, s.low, s.high, s.budget, s.clients)


@pytest.mark.parametrize(
    ("score", "low", "high", "budget", "ranks"),
    [
        ([3.0, 1.0], 1, 9, 8, [6, 2]),  # plain proportions
        ([3.0, 1.0], 1, 5, 8, [5, 3]),  # what a full client cannot hold goes to the others in proportion
        ([9.0, 1.0, 1.0], 2, 9, 12, [8, 2, 2]),  # what a client must have comes from the others
        ([1.0, 1.0, 1.0], 1, 9, 8, [3, 3, 2]),  # thirds of 8: ties to the smaller id
        (
            [1.0, 1.0, 1.0, 1.0, 1.0],
            2,
            16,
            12,
            [3, 3, 2, 2, 2],
        ),  # FedRankLite gives all that is left to one: 4, 2, 2, 2, 2
        ([0.3, 0.1 + 0.2], 1, 9, 5, [3, 2]),  # the last bit of a sum is no difference
        ([0.0, 0.0], 1, 9, 6, [3, 3]),
        ([1.0, 0.0], 1, 9, 10, [9, 1]),
        ([1.0, 0.0], 1, 5, 8, [5, 3]),
        ([2.5, 1.5, 1.0], 0, 9, 5, [3, 1, 1]),  # remainders tie at a half: to the larger score
    ],
)
def test_units_go_where_they_should(score, low, high, budget, ranks):
    n = len(score)
    got = fill_budget(np.array(score), np.full(n, low), np.full(n, high), budget, np.arange(n))
    assert got.tolist() == ranks


@pytest.mark.slow
@seeded
@given(seeds)
def test_the_budget_is_met_within_bounds(seed):
    s = situation(seed)
    ranks = shared_out(s, scores(seed, len(s.clients)))
    assert ranks.sum() == s.budget
    assert ((s.low <= ranks) & (ranks <= s.high)).all()


@pytest.mark.slow
@seeded
@given(seeds)
def test_a_larger_score_never_gets_less_within_the_same_bounds(seed):
    """I-T3; equal scores differ by one unit at most, I-T5."""
    s = situation(seed, equal_bounds=True)
    score = scores(seed, len(s.clients))
    ranks = shared_out(s, score)
    for i in range(len(score)):
        for j in range(len(score)):
            if score[i] > score[j]:
                assert ranks[i] >= ranks[j]
            if score[i] == score[j]:
                assert abs(ranks[i] - ranks[j]) <= 1


@pytest.mark.slow
@seeded
@given(seeds, st.floats(0.01, 0.99))
def test_a_client_whose_score_falls_never_gets_more(seed, factor):
    """Rounding by largest remainders has paradoxes, but not this one."""
    s = situation(seed)
    score = scores(seed, len(s.clients))
    before = shared_out(s, score)
    for i in range(len(score)):
        lower = score.copy()
        lower[i] *= factor
        assert shared_out(s, lower)[i] <= before[i]


@pytest.mark.slow
@seeded
@given(seeds, st.sampled_from([1e-6, np.log2(np.e), 1000.0]))
def test_only_proportions_of_scores_count(seed, unit):
    s = situation(seed)
    score = scores(seed, len(s.clients))
    np.testing.assert_array_equal(shared_out(s, score), shared_out(s, score * unit))


@pytest.mark.slow
@seeded
@given(seeds)
def test_the_order_of_clients_does_not_matter(seed):
    s = situation(seed)
    score = scores(seed, len(s.clients))
    order = np.random.default_rng(seed).permutation(len(score))
    turned = fill_budget(score[order], s.low[order], s.high[order], s.budget, s.clients[order])
    np.testing.assert_array_equal(shared_out(s, score)[order], turned)


@pytest.mark.slow
@seeded
@given(seeds)
def test_nobody_is_further_than_a_unit_from_the_level(seed):
    """Some level gives every client its rank to within one unit: what is left is not dumped on one."""
    s = situation(seed)
    score = scores(seed, len(s.clients)) + 0.1
    ranks = shared_out(s, score)
    least = max(((ranks - 1)[ranks > s.low] / score[ranks > s.low]).tolist(), default=0.0)
    most = min(((ranks + 1)[ranks < s.high] / score[ranks < s.high]).tolist(), default=np.inf)
    assert least <= most * (1 + 1e-9)


def published(score, low: int, high: int, budget: int) -> list[int]:
    """clamp(round(score / total * budget), r_min, r_max), then a unit up at the largest score or down at the smallest."""
    ranks = [min(max(round(s / sum(score) * budget), low), high) for s in score]
    best_first = sorted(range(len(score)), key=lambda i: -score[i])
    while sum(ranks) < budget:
        ranks[next(i for i in best_first if ranks[i] < high)] += 1
    while sum(ranks) > budget:
        ranks[next(i for i in reversed(best_first) if ranks[i] > low)] -= 1
    return ranks


@pytest.mark.slow
@seeded
@given(seeds)
def test_round_shares_is_the_published_rule(seed):
    g = np.random.default_rng(seed)
    n = int(g.integers(1, 9))
    score, budget = g.exponential(size=n) ** 2, int(g.integers(2 * n, 16 * n + 1))
    found = round_shares(score, np.full(n, 2), np.full(n, 16), budget, np.arange(n))
    assert found.tolist() == published(score.tolist(), 2, 16, budget)


def test_where_a_bound_is_active_the_published_rule_gives_the_rest_to_the_largest_score():
    """10, 5 and 1 of 24 units within 2 to 10: shares 15, 7.5 and 1.5 are clamped to 10, 8 and 2, and 4 are left, which is 2
    more than the second can take; like water the level rises for both."""
    score, low, high = np.array([10.0, 5.0, 1.0]), np.full(3, 2), np.full(3, 10)
    assert round_shares(score, low, high, 24, np.arange(3)).tolist() == [10, 10, 4]
    assert fill_budget(np.array([10.0, 4.0, 2.0]), low, high, 20, np.arange(3)).tolist() == [10, 7, 3]
    assert round_shares(np.array([10.0, 4.0, 2.0]), low, high, 20, np.arange(3)).tolist() == [10, 8, 2]


def test_no_score_at_all_is_shared_out_evenly():
    assert round_shares(np.zeros(3), np.full(3, 1), np.full(3, 9), 10, np.arange(3)).tolist() == [4, 3, 3]
