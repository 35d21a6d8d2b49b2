"""FedAvg's closed forms on quadratics, through the real engine (McMahan et al. 2017; test case TC1: H=(1,4), b=(0,1))."""

from __future__ import annotations

import pytest
import torch

from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.local import LocalWork, plan_batches
from fedfault.seeds import rng
from fedfault.testing.toys import LowRank, Quadratic, count_bytes, federation


def limit(K: tuple[int, int], sizes: tuple[int, int] = (1, 1), lr: float = 0.1, num_rounds: int = 160) -> float:
    """Where FedAvg ends on TC1 with K_i local full-batch steps: epochs over one example make unequal lengths."""
    task = Quadratic([[1.0], [4.0]], [[0.0], [1.0]], list(sizes))
    fed = federation(
        task, num_rounds=num_rounds, work={"steps": K[0], "batch_size": 99, "lr": lr, "weighting": "samples"}
    )
    *_, (state, _) = rounds(fed, begin(fed))
    return state.adapter.flat.item()


@pytest.mark.slow
@pytest.mark.parametrize(("K", "expected"), [(1, 0.8), (5, 0.6925023465), (50, 0.5012917726)])
def test_fixed_point_drifts_from_the_optimum_with_local_steps(K, expected):
    assert limit((K, K), num_rounds=30 if K > 1 else 160) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_fixed_point_with_unequal_weights():
    assert limit((5, 5), sizes=(9, 1)) == pytest.approx(0.2001462728, abs=1e-9)
    assert limit((1, 1), sizes=(9, 1)) == pytest.approx(4 / 13, abs=1e-9)


@pytest.mark.slow
def test_objective_inconsistency_with_unequal_steps():
    """K = (1, 10): clients of 1 and 10 examples, batch 1, one epoch, uniform weights."""
    task = Quadratic([[1.0], [4.0]], [[0.0], [1.0]], [1, 10])
    work = {"steps": None, "epochs": 1, "batch_size": 1, "lr": 0.1, "weighting": "uniform"}
    fed = federation(task, num_rounds=100, work=work)
    *_, (state, _) = rounds(fed, begin(fed))
    assert state.adapter.flat.item() == pytest.approx(0.9085884265, abs=1e-9)


def test_one_full_batch_step_is_gradient_descent_on_the_weighted_objective():
    task = Quadratic([[1.0, 2.0], [4.0, 0.5]], [[0.0, -1.0], [1.0, 2.0]], [3, 1])
    fed = federation(task, num_rounds=1, work={"steps": 1, "batch_size": 9, "lr": 0.1, "weighting": "samples"})
    *_, (state, _) = rounds(fed, begin(fed))
    x = torch.tensor([3.0, 3.0], dtype=torch.float64)
    gradient = 0.75 * task.Ht[0] * (x - task.bt[0]) + 0.25 * task.Ht[1] * (x - task.bt[1])
    torch.testing.assert_close(state.adapter.flat, x - 0.1 * gradient, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_one_client_with_sgd_is_centralised_training_bit_for_bit():
    task = LowRank(clients=1)
    fed = federation(task, num_rounds=6, work={"steps": None, "epochs": 2, "batch_size": 4, "lr": 0.05})
    *_, (state, _) = rounds(fed, begin(fed))
    x = task.init(0).flat.clone().requires_grad_()
    sgd = torch.optim.SGD([x], lr=0.05)
    for t in range(1, 7):
        for rows in plan_batches(task.examples(0), LocalWork(epochs=2, batch_size=4), rng(0, "batches", t, 0)):
            real = rows[rows >= 0]
            x.grad = torch.autograd.grad(task._loss(x, task.X[0][real], task.Y[0][real]), x)[0]
            sgd.step()
    assert torch.equal(state.adapter.flat, x.detach())


def test_a_round_moves_one_adapter_each_way():
    assert {(up, down) for _, up, down in count_bytes("fedavg", cohort_size=2)[-1]} == {(65_536, 65_536)}
