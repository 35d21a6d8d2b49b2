"""Split-half estimators against their definitions and known means, and what control variates make of them."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedfault.algebra import gram
from fedfault.measures.updates import SHOWN, update_metrics
from fedfault.metrics.gradients import DRAWN, gradients, split_halves
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, Quadratic, federation
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import State
from fedfault.types.task import FinishedRound, Measurements

PROBE = gradients()
K, P = 5, 4
G = torch.Generator().manual_seed(0)
MEANS = torch.randn(K, P, generator=G, dtype=torch.float64)  # gradients of the clients, both signs
CONTROLS = torch.randn(K, P, generator=G, dtype=torch.float64)


def taken(first, second, update=None, c=None, stored=None, round: int = 3) -> Measurements:
    """What the probe says of these halves (K, P); c (K, P) are control variates, `stored` the rounds that they are from."""
    k, layout = len(first), Layout.of([Site("x", "full", (first.shape[1],))])
    zero = torch.zeros_like(first)
    held = {} if c is None else {"c": Adapter(layout, c)}
    stored = tuple(stored or [1] * k)
    before = State(
        Adapter(layout, zero[0]), memory=held and {"c": Adapter(layout, zero[0])}, clients=held, stored=stored
    )
    finished = FinishedRound(
        round=round,
        seed=0,
        task=None,
        before=before,
        after=before,
        clients=range(k),
        start=zero,
        trained=SimpleNamespace(adapter=Adapter(layout, zero if update is None else update)),
        averages=[],
        halves=(first, second),
        private=False,
    )
    return PROBE.measure(finished)


def noisy(g, means=MEANS, sigma: float = 1.5):
    """Both halves of every client: its gradient and independent noise of standard deviation sigma in each number."""
    return (means + sigma * torch.randn(means.shape, generator=g, dtype=torch.float64) for _ in range(2))


@lru_cache
def simulated(sims: int, alike: bool) -> dict[str, tuple[float, float]]:
    """Mean of every number over the simulations, and its standard error; clients have MEANS, or all the first of them."""
    g = torch.Generator().manual_seed(1)
    means = MEANS[:1].expand(K, -1) if alike else MEANS
    every = [taken(*noisy(g, means), c=None if alike else CONTROLS).probes for _ in range(sims)]
    columns = {name: np.array([found[name] for found in every if name in found]) for name in every[0]}
    return {name: (float(v.mean()), float(v.std(ddof=1)) / math.sqrt(len(v))) for name, v in columns.items()}


def test_every_number_is_its_formula():
    u, v = (x.numpy() for x in noisy(torch.Generator().manual_seed(3)))
    v[0] = -u[0]  # noise can make the estimate of a squared norm negative
    found = taken(torch.from_numpy(u), torch.from_numpy(v))
    own = [u[i] @ v[i] for i in range(K)]
    cross = [u[i] @ v[j] for i in range(K) for j in range(K) if i != j]
    norms = [math.sqrt(max(x, 0)) for x in own]
    within = np.mean([((u[i] - v[i]) ** 2).sum() for i in range(K)]) / 2
    assert found.probes == pytest.approx(
        {
            "drift_between": np.mean(own) - np.mean(cross),
            "drift_within": within,
            "gradient_noise": within,
            "gradient_norm_mean": np.mean(norms),
            "gradient_norm_variance": np.var(norms, ddof=1),
            "gradient_norm_cv": np.std(norms, ddof=1) / np.mean(norms),
        }
    )
    assert found.clients["gradient_norm"] == pytest.approx(norms)
    assert np.array(found.matrices["halves"]) == pytest.approx(u @ v.T)


@pytest.mark.slow
def test_the_variance_between_clients_is_zero_on_average_where_they_are_the_same():
    found, se = simulated(2000, alike=True)["drift_between"]
    assert abs(found) < 4 * se


@pytest.mark.slow
def test_the_variance_between_clients_is_that_of_their_means_whatever_the_noise():
    found, se = simulated(1000, alike=False)["drift_between"]
    expected = float(((MEANS - MEANS.mean(0)) ** 2).sum()) / (K - 1)
    assert abs(found - expected) < 4 * se
    assert 10 * se < P * 1.5**2  # what noise adds where both factors come from the same half


@pytest.mark.slow
def test_the_variance_within_clients_is_that_of_the_noise():
    found, se = simulated(1000, alike=False)["drift_within"]
    assert abs(found - P * 1.5**2) < 4 * se


def test_errors_of_control_variates_are_unbiased():
    apart = MEANS - MEANS.mean(0)
    left = apart - (CONTROLS - CONTROLS.mean(0))
    for name, value in (("control_error", left.square().sum() / K), ("control_spread", apart.square().sum() / K)):
        found, se = simulated(1000, alike=False)[name]
        assert abs(found - float(value)) < 4 * se


def test_control_variates_that_are_the_gradients_have_no_error():
    found = taken(MEANS, MEANS, c=MEANS)
    assert found.probes["control_error"] == pytest.approx(0, abs=1e-12)
    assert found.probes["control_ratio"] == pytest.approx(1)
    shifted = taken(MEANS, MEANS, c=MEANS + 3)  # the server's c goes with them
    assert shifted.probes["control_error"] == pytest.approx(0, abs=1e-12)


def test_control_variates_that_are_all_the_same_are_no_better_than_none():
    found = taken(MEANS, MEANS, c=torch.ones(K, P, dtype=torch.float64)).probes
    assert found["control_error"] == pytest.approx(found["control_spread"])
    assert found["control_spread"] == pytest.approx(float(((MEANS - MEANS.mean(0)) ** 2).sum()) / K)


def test_control_variates_in_units_of_momentum_hurt():
    """Ten times the gradients: nine gradients too many, 81 times the error of none."""
    found = taken(MEANS, MEANS, c=10 * MEANS).probes
    assert found["control_error"] / found["control_spread"] == pytest.approx(81)
    assert found["control_ratio"] == pytest.approx(10)


def test_clients_without_a_control_variate_are_left_out():
    found = taken(MEANS, MEANS, c=MEANS, stored=[1, 0, 2, 0, 1], round=4)
    ages = found.clients["control_age"]
    assert [a for a in ages if math.isfinite(a)] == [3, 2, 3]
    assert [math.isnan(v) for v in found.clients["control_error"]] == [False, True, False, True, False]
    three = taken(MEANS[[0, 2, 4]], MEANS[[0, 2, 4]], c=MEANS[[0, 2, 4]])
    assert found.probes["control_spread"] == pytest.approx(three.probes["control_spread"])
    for alone in ([0, 0, 2, 0, 0], [0] * K):
        assert not any("control" in name for name in taken(MEANS, MEANS, c=MEANS, stored=alone).probes)


def test_alignment_is_the_cosine_with_the_descent_direction():
    g = torch.tensor([[3.0, 4.0], [3.0, 4.0]], dtype=torch.float64)
    for update, cosine in (([-6.0, -8.0], 1), ([3.0, 4.0], -1), ([-4.0, 3.0], 0), ([-1.0, 0.0], 0.6)):
        found = taken(g, g, update=torch.tensor([update, update], dtype=torch.float64))
        assert found.probes["gradient_alignment"] == pytest.approx(cosine)
    assert "gradient_alignment" not in taken(g, -g, update=-g).probes  # the estimate of |mean gradient|^2 is negative
    assert "gradient_alignment" not in taken(g, g).probes  # nothing moved


@pytest.mark.parametrize(
    ("noise", "known"), [(0.0, True), (1.0, True), (3.4, True), (3.6, False), (4.9, False), (6.0, False)]
)
def test_alignment_is_a_cosine_or_absent_where_the_gradient_is_below_its_own_noise(noise, known):
    """Halves (5, n) and (5, -n): their product is 25 - n^2 and the noise of their mean n^2, which are equal at 3.54."""
    first, second = (torch.tensor([[5.0, sign * noise]] * 2, dtype=torch.float64) for sign in (1, -1))
    for update in ([-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-3.0, 1.0]):
        found = taken(first, second, update=torch.tensor([update, update], dtype=torch.float64)).probes
        assert ("gradient_alignment" in found) == known
        assert abs(found.get("gradient_alignment", 0.0)) <= 1


def test_one_client_has_no_variance_between_clients():
    found = taken(MEANS[:1], MEANS[:1])
    assert set(found.probes) == {"gradient_norm_mean", "gradient_noise"}
    assert found.matrices == {}


def test_large_cohorts_have_no_matrix():
    for k in (SHOWN, SHOWN + 1):
        assert bool(taken(*torch.randn(2, k, 3, dtype=torch.float64)).matrices) == (k == SHOWN)


def test_clients_without_two_examples_are_left_out():
    first, second = MEANS.clone(), MEANS.clone()
    first[1], second[1] = math.nan, math.nan
    found, rest = taken(first, second), taken(MEANS[[0, 2, 3, 4]], MEANS[[0, 2, 3, 4]])
    assert found.probes == pytest.approx(rest.probes)
    assert [math.isnan(v) for v in found.clients["gradient_norm"]] == [False, True, False, False, False]
    assert found.matrices == {}
    nobody = taken(first[[1]], second[[1]])
    assert (nobody.probes, nobody.clients) == ({}, {})


def test_gradients_too_large_to_square_are_left_out():
    """Of a run that explodes; float64 ends at 1e308."""
    first = MEANS.clone()
    first[2] = 1e200
    found = taken(first, first, update=torch.full((K, P), 1e300, dtype=torch.float64))
    assert all(map(math.isfinite, found.probes.values()))
    assert math.isnan(found.clients["gradient_norm"][2])


class Seen(LowRank):
    """Remembers which examples it was asked for."""

    def __init__(self, sizes) -> None:
        super().__init__(len(sizes))
        self.X = [torch.randn(n, 4, generator=G) for n in sizes]
        self.Y = [torch.randn(n, 5, generator=G) for n in sizes]
        self.asked: list[tuple[int, list[int]]] = []

    def grad(self, params, step):
        for k, rows, real in zip(step.clients.tolist(), step.rows, step.real, strict=True):
            self.asked.append((k, rows[real].tolist()))
        return super().grad(params, step)


def halves(task, clients, round: int = 1, per_pass: int = 10, trainable=None, seed: int = 0):
    start = (task.init(0).flat + 0.1).expand(len(clients), -1)
    return split_halves(task, start, clients, trainable, seed=seed, round=round, per_pass=per_pass)


@pytest.mark.slow
def test_halves_are_of_different_examples():
    sizes = [2, 3, 2 * DRAWN - 1, 2 * DRAWN, 50]
    for round in range(1, 20):
        task = Seen(sizes)
        halves(task, range(5), round)
        for k, n in enumerate(sizes):
            one, other = (rows for client, rows in task.asked if client == k)
            assert len(one) == len(other) == min(DRAWN, n // 2)
            assert len({*one, *other}) == 2 * len(one)
            assert max(one + other) < n


def test_halves_are_gradients_at_the_start():
    task = Quadratic([[1.0, 2.0], [3.0, 1.0]], [[0.0, 1.0], [2.0, -1.0]], [6, 8])
    start = torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    first, second = split_halves(task, start, [0, 1], None, seed=0, round=1, per_pass=2)
    expected = torch.tensor([[1.0, 0.0], [-6.0, 3.0]], dtype=torch.float64)  # H (x - b), and no noise
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


def test_draws_are_a_client_s_own_whoever_else_takes_part_and_in_however_many_passes():
    task = Seen([20] * 6)
    whole = halves(task, [0, 2, 3, 5])
    alone = halves(task, [3])
    for half in range(2):
        torch.testing.assert_close(alone[half][0], whole[half][2])
        torch.testing.assert_close(halves(task, [0, 2, 3, 5], per_pass=1)[half], whole[half])
    for other in (halves(task, [3], round=2), halves(task, [3], seed=1)):
        assert not torch.allclose(other[0], alone[0])


@pytest.mark.parametrize(("per_pass", "passes"), [(8, [8]), (4, [4, 4]), (3, [3, 3, 2])])
def test_both_halves_of_all_clients_are_rows_of_as_few_passes_as_fit(per_pass, passes, monkeypatch):
    task, sizes = LowRank(), []
    grad = task.grad
    monkeypatch.setattr(task, "grad", lambda params, step: sizes.append(len(params)) or grad(params, step))
    halves(task, [0, 2, 3, 5], per_pass=per_pass)
    assert sizes == passes


def test_a_single_example_cannot_be_halved():
    first, second = halves(Seen([1, 8, 1]), range(3))
    assert [bool(row.isnan().all()) for row in first] == [True, False, True]
    assert bool(second[1].isfinite().all())
    assert bool(torch.isnan(torch.stack(halves(Seen([1]), [0]))).all())


def test_numbers_that_are_not_trained_have_no_gradient():
    trainable = torch.zeros(LowRank().layout.size, dtype=torch.bool)
    trainable[3:7] = True
    for half in halves(Seen([8, 8]), range(2), trainable=trainable):
        assert not bool(half[:, ~trainable].any())
        assert bool(half[:, trainable].any())


def test_rounds_of_the_engine_carry_them_and_what_a_lone_example_cannot_give_is_absent():
    task = Quadratic([[1.0]] * 3, [[0.0], [4.0], [8.0]], [1, 9, 9], noise=0.1)
    fed = federation(task, num_rounds=2, probes={"gradients": build("probe", "gradients")})
    _, first, second = (record for _, record in rounds(fed, begin(fed)))
    for record in (first, second):
        assert [c.client for c in record.clients if "gradient_norm" in c.probes] == [1, 2]
        assert record.probes["drift_between"] > 0
        assert "halves" not in record.matrices
    assert first.probes["drift_between"] == pytest.approx(8, rel=0.2)  # (4 - 6)^2 + (8 - 6)^2 over 2 - 1


def test_updates_obey_the_identities_of_their_diversity():
    """D = sum |D_i|^2 / |sum D_i|^2: mean |D_i|^2 / |mean D|^2 = N D, and the variance is |mean D|^2 (N D - 1)."""
    layout = Layout.of([Site("a", "lora", (2, 3, 5)), Site("norm", "full", (4,))], scaling=1.5)
    start = torch.randn(layout.size, generator=G, dtype=torch.float64)
    for N in (2, 7):
        cohort = start + 0.3 * torch.randn(N, layout.size, generator=G, dtype=torch.float64)
        dense = torch.stack([_dense(layout, y) - _dense(layout, start) for y in cohort])
        found = update_metrics(gram(layout, start, cohort))
        mean2, D = found["update_norm"] ** 2, found["gradient_diversity"]
        variance = float((dense - dense.mean(0)).square().sum(1).mean())
        assert float(dense.square().sum(1).mean()) / mean2 == pytest.approx(N * D, rel=1e-10)
        assert variance == pytest.approx(mean2 * (N * D - 1), rel=1e-10)


def _dense(layout: Layout, flat: torch.Tensor) -> torch.Tensor:
    a, norm = layout.sites
    return torch.cat([Adapter(layout, flat).delta(a).flatten(), layout.part(flat, norm)])
