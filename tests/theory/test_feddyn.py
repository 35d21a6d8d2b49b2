"""FedDyn's invariants on quadratics with inner problems that are solved to the last digit (Acar et al. 2021)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.algorithms.feddyn import feddyn
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.integrity import IntegrityError
from fedfault.testing.toys import LowRank, Quadratic, count_bytes, federation

ALPHA = 1.0  # about the curvature: rounds contract fast
SIZES = [2, 4, 3, 2, 4]  # alpha_i from 0.75 to 1.5
SOLVED = {"steps": 25, "lr": 0.42, "batch_size": 9}  # 1.75 <= H_i + alpha_i <= 3: |1 - lr (H_i + alpha_i)|^25 < 1e-14


def case() -> Quadratic:
    """Five clients that differ in curvature, optimum and size."""
    g = torch.Generator().manual_seed(3)
    H = 1 + 0.5 * torch.rand(5, 2, generator=g, dtype=torch.float64)
    b = 3 * torch.randn(5, 2, generator=g, dtype=torch.float64)
    return Quadratic(H.tolist(), b.tolist(), SIZES)


def federated(weighting: str, **changes):
    work = {**SOLVED, "weighting": weighting}
    return federation(case(), ("feddyn", {"alpha": ALPHA}), work=work, evaluate_every=1000, **changes)


def states(fed) -> list:
    return [state for state, _ in rounds(fed, begin(fed))]


def shares(weighting: str) -> torch.Tensor:
    n = torch.tensor(SIZES if weighting == "samples" else [1] * 5, dtype=torch.float64)
    return n / n.sum()


WEIGHTINGS = pytest.mark.parametrize("weighting", ["uniform", "samples"])


@WEIGHTINGS
@pytest.mark.parametrize("cohort_size", [5, 2])
def test_h_is_the_weighted_mean_of_all_clients_gradients(weighting, cohort_size):
    """I-D1: h = (1/N) sum_i g_i, or sum_i p_i g_i with p_i = n_i / sum_j n_j."""
    for state in states(federated(weighting, cohort_size=cohort_size, num_rounds=5)):
        mean = shares(weighting) @ state.clients["g"].flat
        torch.testing.assert_close(state.memory["h"].flat, mean, rtol=0, atol=1e-10)


@WEIGHTINGS
def test_g_is_the_gradient_where_the_client_ended(weighting):
    """I-D2: g_i = grad f_i(y_i) for those that took part, and nothing changes for the others."""
    fed = federated(weighting, cohort_size=3, num_rounds=4)
    inner, seen = fed.algorithm.client, []

    def client(got, memory, train):
        up, home = inner(got, memory, train)
        seen.append(up["x"].flat)
        return up, home

    before, *later = states(replace(fed, algorithm=replace(fed.algorithm, client=client)))
    for t, after in enumerate(later, 1):
        present = fed.cohort(t)
        absent = sorted(set(range(5)) - set(present))
        expected = fed.task.Ht[present] * (seen[t - 1] - fed.task.bt[present])
        torch.testing.assert_close(after.clients["g"].flat[present], expected, rtol=0, atol=1e-10)
        assert torch.equal(after.clients["g"].flat[absent], before.clients["g"].flat[absent])
        before = after


@pytest.mark.slow
@WEIGHTINGS
@pytest.mark.parametrize(("cohort_size", "num_rounds"), [(5, 70), (3, 120)])
def test_rounds_end_at_the_optimum_of_the_weighted_mean(weighting, cohort_size, num_rounds):
    """I-D3: x -> x°, g_i -> grad f_i(x°). I-D4: h -> 0, so that the clients' mean x + h / alpha is the same model."""
    fed = federated(weighting, cohort_size=cohort_size, num_rounds=num_rounds)
    state, task, p = states(fed)[-1], fed.task, shares(weighting)[:, None]
    best = (p * task.Ht * task.bt).sum(0) / (p * task.Ht).sum(0)
    torch.testing.assert_close(state.adapter.flat, best, rtol=0, atol=1e-10)
    torch.testing.assert_close(state.clients["g"].flat, task.Ht * (best - task.bt), rtol=0, atol=1e-10)
    assert float(state.memory["h"].flat.abs().max()) < 1e-10


def test_one_round_by_hand():
    """Exact solutions from x = 3 with sizes 3 and 1: alpha_i = alpha 2 / n_i.

    f_1 = (y - 0)^2 / 2 with alpha_1 = 2/3: y = (2/3 3) / (5/3) = 1.2, g_1 = -2/3 (1.2 - 3) = 1.2.
    f_2 = 4 (y - 1)^2 / 2 with alpha_2 = 2: y = (4 + 6) / 6 = 5/3, g_2 = -2 (5/3 - 3) = 8/3.
    h = -(1/2) (-1.8 - 4/3) = 47/30, the mean of the models is 43/30, and x = 43/30 - 47/30.
    """
    task = Quadratic([[1.0], [4.0]], [[0.0], [1.0]], [3, 1])
    work = {"steps": 60, "lr": 0.26, "weighting": "samples"}
    _, state = states(federation(task, ("feddyn", {"alpha": 1.0}), num_rounds=1, work=work))
    assert state.clients["g"].flat.flatten().tolist() == pytest.approx([1.2, 8 / 3], abs=1e-10)
    assert state.memory["h"].flat.item() == pytest.approx(47 / 30, abs=1e-10)
    assert state.adapter.flat.item() == pytest.approx(-4 / 30, abs=1e-10)


def test_a_large_alpha_freezes_the_clients():
    """alpha -> infinity is not FedAvg: clients stay where they are."""
    task = Quadratic([[1.0], [4.0]], [[0.0], [1.0]], [1, 1])
    work = {"steps": 200, "lr": 1e-4, "batch_size": 9}
    _, state = states(federation(task, ("feddyn", {"alpha": 5e3}), num_rounds=1, work=work))
    assert abs(state.adapter.flat.item() - 3.0) < 5e-3


def test_a_server_that_forgets_absent_clients_is_stopped():
    """h divided by the cohort instead of N."""
    algorithm = feddyn()

    def server(state, got, average):
        alone = replace(state, weights=state.weights[: len(got["n"])])
        return replace(algorithm.server(alone, got, average), weights=state.weights)

    fed = federation(LowRank(), replace(algorithm, server=server), cohort_size=3, num_rounds=2)
    with pytest.raises(IntegrityError, match="the server's h is off the weighted mean of all clients' g"):
        states(fed)


def test_models_cross_the_network_and_gradients_do_not():
    fed = federation(LowRank(), "feddyn", cohort_size=3, num_rounds=2)
    *_, (_, record) = rounds(fed, begin(fed))
    assert {(c.bytes_up, c.bytes_down) for c in record.clients} == {(4 * 23, 4 * 23 + 8)}  # and the mean weight


def test_a_round_also_moves_the_mean_weight_down():
    assert {(up, down) for _, up, down in count_bytes("feddyn", cohort_size=2)[-1]} == {(65_536, 65_536 + 8)}
