"""FedProx's closed forms on quadratics and its limits, through the real engine (Li et al. 2020)."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, Quadratic, count_bytes, federation

H = [[1.0, 0.5, 2.0], [4.0, 3.0, 0.7], [0.3, 2.5, 1.0], [2.0, 1.0, 3.5], [1.5, 0.2, 0.9]]
B = [[0.0, -1.0, 2.0], [1.0, 3.0, -2.0], [-4.0, 0.5, 1.0], [2.0, -2.0, 0.0], [5.0, 1.0, -3.0]]
SIZES = [3, 1, 4, 2, 5]


def run(fed):
    *_, (state, record) = rounds(fed, begin(fed))
    return state.adapter.flat, record


def fixed_point(H, b, sizes, algorithm, **changes) -> torch.Tensor:
    """A round is an affine map on every coordinate of a quadratic: its values at 0 and 1 give the point that it keeps."""
    at = [run(federation(Quadratic(H, b, sizes, start=s), algorithm, num_rounds=1, **changes))[0] for s in (0.0, 1.0)]
    return at[0] / (1 - (at[1] - at[0]))


def towards_optimum(mu: float, lr: float, steps: torch.Tensor) -> torch.Tensor:
    """Q_i with y_i = x + Q_i (b_i - x) after K_i steps of gradient descent on the proximal problem: (N, P)."""
    h = torch.tensor(H, dtype=torch.float64)
    return (1 - (1 - lr * (h + mu)) ** steps[:, None]) * h / (h + mu)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mu", "expected"), [(0.0, 0.5), (1.0, 0.6153846154), (10.0, 0.7586206897), (100.0, 0.7952755906)]
)
def test_exact_local_solutions_end_between_the_mean_of_optima_and_the_optimum(mu, expected):
    """I-P5 on TC1, whose optimum is 0.8: still biased for finite mu."""
    work = {"steps": 150, "lr": 1 / (4 + mu)}
    found = fixed_point([[1.0], [4.0]], [[0.0], [1.0]], [1, 1], ("fedprox", {"mu": mu}), work=work)
    assert found.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("steps", "mu"), [(1, 3.0), (5, 0.5), (5, 3.0), (40, 0.5)])
def test_fixed_point_after_k_steps(steps, mu):
    """I-P5: H_i (H_i + mu)^-1 (1 - (1 - lr (H_i + mu))^K) takes the place of FedAvg's 1 - (1 - lr H_i)^K."""
    expected, total = 0.0, 0.0
    for h, b in ((1.0, 0.0), (4.0, 1.0)):
        pull = (1 - (1 - 0.1 * (h + mu)) ** steps) * h / (h + mu)
        expected, total = expected + pull * b, total + pull
    found = fixed_point([[1.0], [4.0]], [[0.0], [1.0]], [1, 1], ("fedprox", {"mu": mu}), work={"steps": steps})
    assert found.item() == pytest.approx(expected / total, abs=1e-10)


def test_fixed_point_with_unequal_steps_weights_and_three_dimensions():
    """I-P5: batches of one example, one epoch, so that a client takes as many steps as it has examples."""
    work = {"steps": None, "epochs": 1, "batch_size": 1, "lr": 0.1, "weighting": "samples"}
    found = fixed_point(H, B, SIZES, ("fedprox", {"mu": 0.7}), work=work)
    p = torch.tensor(SIZES, dtype=torch.float64)[:, None] / 15
    pull = p * towards_optimum(0.7, 0.1, torch.tensor(SIZES))
    expected = (pull * torch.tensor(B)).sum(0) / pull.sum(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_partial_participation_averages_over_the_cohort():
    fed = federation(
        Quadratic(H, B, SIZES),
        ("fedprox", {"mu": 0.7}),
        cohort_size=2,
        num_rounds=1,
        work={"steps": 6, "weighting": "samples"},
    )
    S = fed.cohort(1)
    p = torch.tensor([SIZES[k] for k in S], dtype=torch.float64)[:, None]
    Q = towards_optimum(0.7, 0.1, torch.full((5,), 6))[S]
    y = 3 + Q * (torch.tensor(B, dtype=torch.float64)[S] - 3)
    torch.testing.assert_close(run(fed)[0], (p * y).sum(0) / p.sum(), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["grad", "decoupled"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_mu_zero_is_fedavg_bit_for_bit(mode, optimizer, clip):
    """I-P1, with unequal steps and sizes and three of six clients a round."""
    work = {"steps": None, "epochs": 1, "lr": 0.05, "optimizer": optimizer, "max_grad_norm": clip}
    plain, prox, pulled = (
        run(federation(LowRank(), algorithm, cohort_size=3, num_rounds=3, work=dict(work)))[0]
        for algorithm in (
            "fedavg",
            ("fedprox", {"mu": 0.0, "mode": mode}),
            ("fedprox", {"mu": 0.1, "mode": mode}),
        )
    )
    assert torch.equal(plain, prox)
    assert not torch.equal(plain, pulled)


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_the_first_step_does_not_feel_the_anchor(mu):
    """I-P2: the proximal gradient vanishes where the client started."""
    plain, prox = (
        run(federation(Quadratic(H, B, SIZES), algorithm, num_rounds=3, work={"steps": 1}))[0]
        for algorithm in ("fedavg", ("fedprox", {"mu": mu}))
    )
    torch.testing.assert_close(prox, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_decoupled_step_goes_less_far_by_lr_mu(optimizer):
    """I-P2: after one step y - x is (1 - lr mu) times FedAvg's."""
    work = {"steps": 1, "lr": 0.1, "optimizer": optimizer}
    plain, prox = (
        run(federation(Quadratic(H, B, SIZES), algorithm, num_rounds=1, work=dict(work)))[0]
        for algorithm in ("fedavg", ("fedprox", {"mu": 2.0, "mode": "decoupled"}))
    )
    torch.testing.assert_close(prox - 3, 0.8 * (plain - 3), rtol=0, atol=1e-10)


def test_the_second_step_feels_exactly_mu_times_the_first():
    """I-P3: y_2 is FedAvg's minus lr mu (y_1 - x). An anchor that follows the parameters makes the difference zero."""
    ends = {}
    for steps, mu in ((1, 0.0), (2, 0.0), (2, 1.5)):
        task = Quadratic(H[:1], B[:1], [4])
        ends[steps, mu] = run(federation(task, ("fedprox", {"mu": mu}), num_rounds=1, work={"steps": steps}))[0]
    felt = -0.1 * 1.5 * (ends[1, 0.0] - 3)
    assert (felt.abs() > 0.01).all()
    torch.testing.assert_close(ends[2, 1.5] - ends[2, 0.0], felt, rtol=0, atol=1e-10)


def test_clients_stay_closer_the_larger_mu():
    """I-P4: |y_i - x| does not grow with mu while lr (L + mu) < 1."""
    far = []
    for mu in (0.0, 0.01, 0.1, 1.0, 3.0, 5.9):
        fed = federation(Quadratic(H, B, SIZES), ("fedprox", {"mu": mu}), num_rounds=1, work={"steps": 7})
        far.append([c.update_norm for c in run(fed)[1].clients])
    assert all(b <= a for before, after in pairwise(far) for a, b in zip(before, after, strict=True))
    assert all(last < 0.7 * first for first, last in zip(far[0], far[-1], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["grad", "decoupled"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_mu_gives_other_weights(mode, optimizer):
    """I-P6."""
    work = {"lr": 0.05, "optimizer": optimizer}
    ends = [
        run(federation(LowRank(), ("fedprox", {"mu": mu, "mode": mode}), num_rounds=1, work=dict(work)))[0]
        for mu in (0.0, 0.001, 0.01, 0.1, 1.0)
    ]
    assert not any(torch.equal(a, b) for a, b in combinations(ends, 2))


@pytest.mark.parametrize("mode", ["grad", "decoupled"])
def test_clients_with_the_same_data_are_one_client(mode):
    """I-G7: the same changes, and their mean is any one of them."""
    algorithm = ("fedprox", {"mu": 0.5, "mode": mode})
    work = {"steps": 4, "optimizer": "adamw"}
    many, record = run(federation(Quadratic(H[:1] * 3, B[:1] * 3, [4, 4, 4]), algorithm, work=dict(work)))
    alone, _ = run(federation(Quadratic(H[:1], B[:1], [4]), algorithm, work=dict(work)))
    torch.testing.assert_close(many, alone, rtol=1e-5, atol=0)
    assert len({c.update_norm for c in record.clients}) == 1


@pytest.mark.parametrize("mode", ["grad", "decoupled"])
def test_nothing_to_learn_changes_nothing(mode):
    """I-G3: all clients have their optimum where they start."""
    task = Quadratic(H, [[3.0, 3.0, 3.0]] * 5, SIZES)
    x, _ = run(federation(task, ("fedprox", {"mu": 1.0, "mode": mode}), cohort_size=2, work={"steps": 3}))
    torch.testing.assert_close(x, torch.full((3,), 3.0, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_it_sends_what_fedavg_sends():
    plain, prox = (run(federation(LowRank(), name, num_rounds=2))[1] for name in ("fedavg", "fedprox"))
    assert (prox.bytes_up, prox.bytes_down) == (plain.bytes_up, plain.bytes_down)


def test_a_round_moves_what_fedavg_moves():
    assert {(up, down) for _, up, down in count_bytes("fedprox", cohort_size=2)[-1]} == {(65_536, 65_536)}
