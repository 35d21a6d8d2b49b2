"""APFL on quadratics: what mixtures reach, what their shares do, and where it is FedAvg or training alone."""

from __future__ import annotations

import pytest
import torch

from fedfault.rounds.integrity import IntegrityError
from fedfault.testing.toys import LowRank, Quadratic, federation, run_rounds, run_to_end
from fedfault.types.algorithm import ExtraTerms

TASK = Quadratic(H=[[1.0], [3.0]], b=[[0.0], [4.0]], sizes=[4, 4])


def states(task=TASK, num_rounds=2, lr=0.1, steps=1, **options):
    fed = federation(task, ("apfl", options), work={"steps": steps, "lr": lr}, num_rounds=num_rounds)
    return fed.algorithm, [state for state, _ in run_rounds(fed)]


def test_two_rounds_of_one_step_by_hand():
    """x = v = 3 and a = 1/2: v = 3 - 0.1 * 1/2 * (3 - 0) and 3 - 0.1 * 1/2 * 3 (3 - 4); x = mean(3 - 0.3, 3 + 0.3) = 3.

    Then the mixtures are 2.925 and 3.075, v moves by a tenth of half their gradients 2.925 and 3 * -0.925, and a by a fifth
    of these times v - x = -0.15 and 0.15.
    """
    _, (_, one, two) = states(alpha=0.5, alpha_lr=0.2)
    torch.testing.assert_close(one.clients["v"].flat[:, 0].tolist(), [2.85, 3.15])
    torch.testing.assert_close(one.clients["alpha"].flat[:, 0].tolist(), [0.5, 0.5])
    torch.testing.assert_close(one.adapter.flat.tolist(), [3.0])
    torch.testing.assert_close(two.clients["v"].flat[:, 0].tolist(), [2.85 - 0.05 * 2.925, 3.15 + 0.05 * 2.775])
    alpha = [0.5 - 0.2 * 2.925 * -0.15, 0.5 - 0.2 * -2.775 * 0.15]
    torch.testing.assert_close(two.clients["alpha"].flat[:, 0].tolist(), alpha)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_mixtures_reach_every_client_s_own_minimum(alpha):
    """min_v F_k(a v + (1 - a) x) has a v + (1 - a) x = b_k for the x that was sent, wherever it is."""
    algorithm, found = states(alpha=alpha, alpha_lr=0.0, steps=200, num_rounds=8)
    torch.testing.assert_close(algorithm.personal(found[-1]).flat, TASK.bt, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_share_of_one_is_training_alone():
    alone = run_to_end(federation(LowRank(), ("ditto", {"lam": 0.0}), cohort_size=4))[0].clients["v"]
    algorithm = ("apfl", {"alpha": 1.0, "alpha_lr": 0.0})
    own = run_to_end(federation(LowRank(), algorithm, cohort_size=4))[0].clients["v"]
    torch.testing.assert_close(own.flat, alone.flat, rtol=1e-6, atol=1e-7)


def test_a_share_of_zero_uses_the_server_s_model():
    algorithm, found = states(alpha=0.0, alpha_lr=0.0)
    assert torch.equal(algorithm.personal(found[-1]).flat, found[-1].adapter.flat.expand(2, -1))


@pytest.mark.slow
def test_the_server_s_model_is_fedavg_s_to_the_bit():
    both = [run_to_end(federation(LowRank(), name, cohort_size=4))[0].adapter.flat for name in ("apfl", "fedavg")]
    assert torch.equal(*both)


def test_a_client_that_has_not_taken_part_uses_the_server_s_model():
    fed = federation(LowRank(), "apfl", cohort_size=2, num_rounds=1)
    state, _ = run_to_end(fed)
    own = fed.algorithm.personal(state).flat
    for k, stored in enumerate(state.stored):
        assert torch.equal(own[k], state.adapter.flat) == (not stored)


def test_shares_stay_within_zero_and_one():
    _, found = states(alpha=0.9, alpha_lr=100.0, num_rounds=4, steps=5)
    every = torch.stack([state.clients["alpha"].flat for state in found])
    assert every.min() >= 0
    assert every.max() <= 1
    assert len(every.unique()) > 1


def test_a_mixture_of_a_model_that_was_neither_sent_nor_kept_is_noticed():
    from dataclasses import replace

    fed = federation(LowRank(), "apfl", num_rounds=1)

    def wrong(got, memory, train):
        train(
            replace(memory["v"], flat=memory["v"].flat + 1), ExtraTerms(mixture=lambda y, rows: (y / 2, y[:, :1] * 0))
        )

    with pytest.raises(IntegrityError, match="client 0 does not start from what the server sent"):
        run_to_end(replace(fed, algorithm=replace(fed.algorithm, client=wrong)))
