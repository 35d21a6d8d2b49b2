"""FedNova's closed forms on quadratics and its limits, through the real engine (Wang et al. 2020)."""

from __future__ import annotations

import pytest
import torch

from fedfault.algorithms.fednova import accumulate_decay
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, Quadratic, count_bytes, federation

H = [[1.0, 0.5, 2.0], [4.0, 3.0, 0.7], [0.3, 2.5, 1.0], [2.0, 1.0, 3.5], [1.5, 0.2, 0.9]]
B = [[0.0, -1.0, 2.0], [1.0, 3.0, -2.0], [-4.0, 0.5, 1.0], [2.0, -2.0, 0.0], [5.0, 1.0, -3.0]]
SIZES = [3, 1, 4, 2, 5]
h, b, tau = (torch.tensor(v, dtype=torch.float64) for v in (H, B, [[n] for n in SIZES]))  # (5, 3), (5, 3), (5, 1)
ONE_BY_ONE = {"steps": None, "epochs": 1, "batch_size": 1}  # as many steps as a client has examples


def run(fed):
    *_, (state, record) = rounds(fed, begin(fed))
    return state.adapter.flat, record


def fixed_point(H, b, sizes, algorithm, **work) -> torch.Tensor:
    """A round is an affine map on every coordinate of a quadratic: its values at 0 and 1 give the point that it keeps."""
    at = [
        run(federation(Quadratic(H, b, sizes, start=s), algorithm, num_rounds=1, work={**ONE_BY_ONE, **work}))[0]
        for s in (0.0, 1.0)
    ]
    return at[0] / (1 - (at[1] - at[0]))


def error(algorithm: str, lr: float) -> float:
    """Distance to the optimum 0.8 of TC1 with K = (1, 10)."""
    x = fixed_point([[1.0], [4.0]], [[0.0], [1.0]], [1, 10], algorithm, lr=lr, weighting="uniform")
    return abs(x.item() - 0.8)


def test_fixed_point_of_tc1():
    x = fixed_point([[1.0], [4.0]], [[0.0], [1.0]], [1, 10], "fednova", lr=0.1, weighting="uniform")
    assert x.item() == pytest.approx(0.4984837615, abs=1e-10)


@pytest.mark.parametrize(
    ("lr", "nova", "avg"), [(0.1, 0.3015, 0.1086), (0.01, 0.0298, 0.1710), (0.001, 0.00289, 0.1752)]
)
def test_it_removes_the_inconsistency_of_unequal_steps_but_not_the_drift(lr, nova, avg):
    """FedNova's error goes to zero with lr, FedAvg's does not; at lr 0.1 drift over 10 steps makes FedNova the worse one."""
    assert error("fednova", lr) == pytest.approx(nova, rel=5e-3)
    assert error("fedavg", lr) == pytest.approx(avg, rel=5e-3)


def test_small_learning_rates_end_at_the_optimum():
    """I-N3: 0.00164 of FedAvg's error at lr 1e-4."""
    ratio = error("fednova", 1e-4) / error("fedavg", 1e-4)
    assert ratio == pytest.approx(0.00164, rel=0.01)
    assert ratio < 0.005


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_fixed_point_with_unequal_weights_and_three_dimensions(mu):
    """(sum_i p_i Q_i / a_i)^-1 sum_i p_i Q_i b_i / a_i, where y_i = x + Q_i (b_i - x)."""
    found = fixed_point(H, B, SIZES, ("fednova", {"mu": mu}), lr=0.1, weighting="samples")
    Q = (1 - (1 - 0.1 * (h + mu)) ** tau) * h / (h + mu)
    a = (1 - (1 - 0.1 * mu) ** tau) / (0.1 * mu) if mu else tau
    weight = tau / 15 * Q / a  # sizes are weights
    torch.testing.assert_close(found, (weight * b).sum(0) / weight.sum(0), rtol=0, atol=1e-10)


def test_partial_participation_normalises_within_the_cohort():
    """x - tau_eff sum_{i in S} p_i (x - y_i) / tau_i with p_i = n_i / sum_{j in S} n_j, two of five clients."""
    work = {**ONE_BY_ONE, "weighting": "samples"}
    fed = federation(Quadratic(H, B, SIZES), "fednova", cohort_size=2, num_rounds=1, work=work)
    S = fed.cohort(1)
    p = tau[S] / tau[S].sum()
    change = (1 - (1 - 0.1 * h[S]) ** tau[S]) * (b[S] - 3)
    expected = 3 + (p * tau[S]).sum() * (p * change / tau[S]).sum(0)
    torch.testing.assert_close(run(fed)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_equal_steps_are_fedavg(optimizer, mu):
    """I-N1: with unequal weights, three of six clients a round; with mu, FedProx."""
    work = {"steps": 4, "lr": 0.05, "optimizer": optimizer}
    nova, plain = (
        run(federation(LowRank(), algorithm, cohort_size=3, num_rounds=4, work=dict(work)))[0]
        for algorithm in (("fednova", {"mu": mu}), ("fedprox", {"mu": mu}))
    )
    torch.testing.assert_close(nova, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_unequal_steps_are_not_fedavg():
    nova, plain = (
        run(federation(LowRank(), name, num_rounds=1, work=dict(ONE_BY_ONE)))[0] for name in ("fednova", "fedavg")
    )
    assert float((nova - plain).norm()) > 0.01 * float(plain.norm())


def test_the_weight_of_all_steps_without_a_proximal_term_is_their_number():
    """I-N2: exactly for mu = 0, and in the limit mu -> 0."""
    tau = torch.tensor([1, 10, 3, 250])
    assert accumulate_decay(tau, 1.0).tolist() == [1, 10, 3, 250]
    torch.testing.assert_close(accumulate_decay(tau, 1 - 1e-14), tau.double(), rtol=1e-10, atol=0)


def test_the_weight_of_all_steps_with_a_proximal_term_is_a_geometric_sum():
    """(1 - (1 - lr mu)^tau) / (lr mu) at lr mu = 0.2: 1, 1.8, 2.44."""
    expected = torch.tensor([2.44, 1.0, 1.8], dtype=torch.float64)
    torch.testing.assert_close(accumulate_decay(torch.tensor([3, 1, 2]), 0.8), expected, rtol=0, atol=1e-12)


def test_a_vanishing_proximal_term_changes_nothing():
    """I-N2 through the engine."""
    with_none, with_little = (
        run(federation(Quadratic(H, B, SIZES), ("fednova", {"mu": mu}), work=dict(ONE_BY_ONE)))[0]
        for mu in (0.0, 1e-12)
    )
    torch.testing.assert_close(with_little, with_none, rtol=0, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_client_is_local_training(optimizer):
    """I-N4: the server takes what its only client has."""
    work = {"steps": None, "epochs": 2, "lr": 0.05, "optimizer": optimizer}
    nova, plain = (
        run(federation(LowRank(clients=1), name, num_rounds=2, work=dict(work)))[0] for name in ("fednova", "fedavg")
    )
    assert torch.equal(nova, plain)


def test_a_client_with_few_steps_is_scaled_up_by_no_more_than_the_cap():
    """K = (1, 99), tau_eff = 50: x + 0.5 (y_1 - x) 10 + 0.5 (y_2 - x) 50 / 99."""
    work = {**ONE_BY_ONE, "lr": 0.1, "weighting": "uniform"}
    y1, y2 = 3 - 0.1 * 3, 1 + 2 * 0.6**99
    for cap, scale in ((10.0, 10), (60.0, 50)):
        task = Quadratic([[1.0], [4.0]], [[0.0], [1.0]], [1, 99])
        x, _ = run(federation(task, ("fednova", {"cap": cap}), num_rounds=1, work=dict(work)))
        assert x.item() == pytest.approx(3 + 0.5 * (y1 - 3) * scale + 0.5 * (y2 - 3) * 50 / 99, abs=1e-10)


def test_clients_with_the_same_data_are_one_client():
    """I-G7: the same changes, and their mean is any one of them."""
    many, record = run(federation(Quadratic(H[:1] * 3, B[:1] * 3, [4, 4, 4]), "fednova"))
    alone, _ = run(federation(Quadratic(H[:1], B[:1], [4]), "fednova"))
    torch.testing.assert_close(many, alone, rtol=1e-5, atol=0)
    assert len({c.update_norm for c in record.clients}) == 1


def test_nothing_to_learn_changes_nothing():
    """I-G3: all clients have their optimum where they start, and take unequal steps; to the bit only in float32."""
    task = Quadratic(H, [[3.0, 3.0, 3.0]] * 5, SIZES)
    x, _ = run(federation(task, "fednova", cohort_size=3, work=dict(ONE_BY_ONE)))
    torch.testing.assert_close(x, torch.full((3,), 3.0, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_number_of_steps_costs_eight_bytes():
    """Up: P numbers and a scalar; down: P numbers."""
    _, record = run(federation(LowRank(), "fednova", cohort_size=2, num_rounds=1))
    P = LowRank().layout.size
    assert [(c.bytes_up, c.bytes_down) for c in record.clients] == [(4 * P + 8, 4 * P)] * 2


def test_a_round_also_moves_the_number_of_steps_up():
    assert {(up, down) for _, up, down in count_bytes("fednova", cohort_size=2)[-1]} == {(65_536 + 8, 65_536)}
