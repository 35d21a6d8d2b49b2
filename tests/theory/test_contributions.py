"""Shapley values: closed forms of games and of a federation, their axioms, and that estimates know their error."""

from __future__ import annotations

import numpy as np
import pytest

from fedfault.measures.contributions import find_shapley, plan_coalitions
from fedfault.metrics.contributions import contributions
from fedfault.records import Score
from fedfault.registry import build, load_builders
from fedfault.testing.toys import LowRank, Quadratic, federation, measure_round, run_rounds

WEIGHTS = np.array([0.5, -2.0, 3.0, 0.0, 1.25, 7.0, -0.5, 2.0])


def play(v, players, pairs, seed=0):
    design = plan_coalitions(players, pairs, np.random.default_rng(seed))
    phi, error = find_shapley(design, {c: np.array([v(c)]) for c in design.coalitions})
    return design, phi[:, 0], error[:, 0]


def mean_game(c):
    return float(np.mean([WEIGHTS[k] for k in c])) if c else 0.0


def solve_mean_game(a):
    """phi_k = (a_k + (a_k - mean of the others) (1/2 + ... + 1/K)) / K: by the size of what is there before k."""
    K = len(a)
    rest = (a.sum() - a) / (K - 1)
    return (a + (a - rest) * sum(1 / n for n in range(2, K + 1))) / K


@pytest.mark.parametrize("pairs", [3, 1000])
def test_in_an_additive_game_everybody_gets_what_it_adds_and_a_dummy_nothing(pairs):
    design, phi, error = play(lambda c: sum(WEIGHTS[list(c)]), 8, pairs)
    assert bool(design.orders) == (pairs == 3)
    assert phi == pytest.approx(WEIGHTS, abs=1e-12)
    assert error == pytest.approx(np.zeros(8), abs=1e-12)


def test_all_coalitions_give_the_closed_form_of_the_mean_game():
    _, phi, error = play(mean_game, 8, 1000)
    assert phi == pytest.approx(solve_mean_game(WEIGHTS), abs=1e-12)
    assert not error.any()


@pytest.mark.slow
def test_estimates_share_out_the_whole_and_are_off_by_what_they_say():
    off, said = [], []
    for seed in range(60):
        design, phi, error = play(mean_game, 8, 6, seed)
        assert len(design.orders) == 12
        assert phi.sum() == pytest.approx(mean_game(range(8)), abs=1e-12)  # efficiency, whatever was drawn
        off.append(phi - solve_mean_game(WEIGHTS))
        said.append(error**2)
    assert np.mean(np.square(off)) == pytest.approx(np.mean(said), rel=0.25)  # the squared error is unbiased
    assert np.mean(off, axis=0) == pytest.approx(np.zeros(8), abs=4 * float(np.sqrt(np.mean(said) / 60)))


def test_a_permutation_and_its_reverse_cancel_what_is_linear_in_the_order():
    def late(c):  # v(C) = |C|^2: the n-th to come adds 2 n - 1, and 2 K - 2 n + 1 the other way round
        return float(len(c) ** 2)

    _, phi, error = play(late, 8, 2)
    assert phi == pytest.approx([8.0] * 8)
    assert error == pytest.approx([0.0] * 8, abs=1e-12)


class Linear(Quadratic):
    """Clients with quadratics of their own, and a score that is linear in the model."""

    def evaluate(self, adapter, personal=None):
        return {"validation": Score(float(adapter.flat @ adapter.flat.new_tensor([2.0, -1.0])), 100)}


def test_a_federation_whose_score_is_linear_has_the_values_of_the_mean_game():
    task = Linear([[1.0, 2.0]] * 4, [[0.0, 1.0], [4.0, -2.0], [1.0, 1.0], [-3.0, 5.0]], [4, 4, 4, 4])
    record = measure_round(contributions(pairs=50), task, work={"steps": 3})
    # x after three steps of gradient descent from 3, less 3, times minus the slope of the score
    moved = [[(1 - 0.9**3) * (b[0] - 3), (1 - 0.8**3) * (b[1] - 3)] for b in task.b]
    gains = np.array([-2 * a + b for a, b in moved])
    rest = (gains.sum() - gains) / 3
    probes = [c.probes for c in record.clients]
    assert [p["shapley/validation"] for p in probes] == pytest.approx(solve_mean_game(gains).tolist())
    assert [p["contribution/validation"] for p in probes] == pytest.approx((gains.mean() - rest).tolist())
    assert [p["shapley_error/validation"] for p in probes] == [0.0] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in load_builders("aggregation") if "private" not in build("aggregation", name).traits]
)
def test_leaving_one_out_is_the_round_of_the_others(name):
    """Against an engine whose cohort lacks the client. What clients keep for themselves they trained all the same."""
    fed = federation(LowRank(), "fedavg", name, num_rounds=1, probes={"one": contributions()})
    (_, record) = run_rounds(fed)[1]
    known = {c.client: c.probes.get("contribution/validation") for c in record.clients}
    if fed.aggregation.least > 5:
        assert set(known.values()) == {None}
        return
    for k in (0, 3):
        others = _without(fed, k)
        (_, alone) = run_rounds(others)[1]
        gap = alone.scores["validation"].loss - record.scores["validation"].loss
        assert known[k] == pytest.approx(gap, abs=2e-6)


def _without(fed, k):
    """The same federation, of whose first round a client is not."""

    class Fewer(type(fed)):
        def cohort(self, round, *known):
            return [i for i in super().cohort(round, *known) if i != k]

    return Fewer(**{**vars(fed), "probes": {}})
