"""Estimates of a client's time: what is identified is found, what is not is the model's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given

from fedfault.hardware.timing import FORGET, RIDGE, estimate, init_sums, observe
from fedfault.scheduling import Report
from seeded import seeded, seeds

R_MAX = 16


def seen(rounds: list[list[tuple[int, int, float]]], num_clients: int = 2):
    """Memory after rounds of (client, rank, seconds)."""
    memory = init_sums(num_clients)
    for of_round in rounds:
        memory = observe(memory, [Report(client, rank, seconds, 1) for client, rank, seconds in of_round])
    return memory


def of_first(memory, a: float = 1.0, b: float = 1.0) -> tuple[float, float]:
    found = estimate(memory, np.full(2, a), np.full(2, b), R_MAX)
    return float(found[0][0]), float(found[1][0])


def test_without_observations_the_model_is_all_there_is():
    assert of_first(init_sums(2), a=3.0, b=0.25) == (3.0, 0.25)


def test_a_model_that_is_right_stays():
    memory = seen([[(0, rank, 3 + 0.25 * rank)] for rank in (2, 8, 8, 16)])
    np.testing.assert_allclose(of_first(memory, a=3.0, b=0.25), (3, 0.25), rtol=1e-12)


def test_two_ranks_are_enough_to_find_both():
    """The client is 10 + 2 r and the model says 1 + r."""
    a, b = of_first(seen([[(0, 4 if t % 2 else 12, 10 + 2 * (4 if t % 2 else 12))] for t in range(60)]))
    np.testing.assert_allclose((a, b), (10, 2), rtol=0.1)


def test_one_rank_identifies_only_the_time_at_that_rank():
    a, b = of_first(seen([[(0, 8, 26.0)]] * 60))
    assert abs(a + 8 * b - 26) < 0.5
    assert a > 1
    assert b > 1  # the surprise is shared between both


@pytest.mark.slow
@seeded
@given(seeds)
def test_it_is_weighted_least_squares_with_a_prior(seed):
    """Against numpy's solver on all observations at once, negative solutions on the border."""
    g = np.random.default_rng(seed)
    T = int(g.integers(1, 12))
    rounds = [[(0, int(g.integers(1, 17)), float(g.uniform(0, 20)))] if g.random() < 0.7 else [] for _ in range(T)]
    a0, b0 = g.uniform(0, 5, size=2)
    w = np.sqrt([FORGET ** (T - 1 - t) for t, of_round in enumerate(rounds) if of_round])
    r, seconds = (np.array([of_round[0][k] for of_round in rounds if of_round], dtype=float) for k in (1, 2))
    X = np.vstack([np.stack([w, w * r], axis=1).reshape(-1, 2), np.sqrt(RIDGE) * np.diag([1, R_MAX])])
    y = np.concatenate([w * seconds, np.sqrt(RIDGE) * np.array([a0, R_MAX * b0])])
    a, b = of_first(seen(rounds), a0, b0)
    free = np.linalg.lstsq(X, y)[0]
    assert min(a, b) >= 0
    if (free >= 0).all():
        np.testing.assert_allclose((a, b), free, rtol=1e-6, atol=1e-9)
    else:
        cost, no_worse = np.square(X @ [a, b] - y).sum(), np.square(X @ free.clip(0) - y).sum()
        assert min(a, b) == 0
        assert cost <= no_worse + 1e-9


def test_a_slope_is_never_negative():
    a, b = of_first(seen([[(0, 2, 9.0)], [(0, 16, 1.0)]] * 5))
    assert b == 0
    assert 1 < a < 9


def test_a_client_that_is_not_seen_goes_back_to_the_model():
    """One slow round must not shut a client out for ever."""
    slow = seen([[(0, 8, 500.0)]])
    assert sum(of_first(slow)) > 25
    later = seen([[(0, 8, 500.0)]] + [[]] * 200)
    np.testing.assert_allclose(of_first(later), (1, 1), atol=1e-3)


def test_clients_do_not_mix():
    memory = seen([[(0, 8, 500.0), (1, 8, 9.0)]])
    a, b = estimate(memory, np.ones(2), np.ones(2), R_MAX)
    np.testing.assert_allclose((a[1], b[1]), (1, 1), rtol=1e-12)
    assert a[0] > 10


def test_the_memory_is_plain_and_stays_as_it_was():
    memory = init_sums(2)
    after = observe(memory, [Report(1, 8, 9.0, 1)])
    assert json.loads(json.dumps(after)) == after
    assert memory == init_sums(2)
