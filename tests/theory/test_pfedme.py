"""pFedMe on quadratics, where own models and the end of rounds have closed forms."""

from __future__ import annotations

import pytest
import torch

from fedfault.testing.toys import LowRank, Quadratic, federation, run_rounds, run_to_end

TASK = Quadratic(H=[[1.0], [3.0]], b=[[0.0], [4.0]], sizes=[4, 12])
LONG = {"work": {"steps": 80, "lr": 0.1, "weighting": "samples"}, "num_rounds": 40}


@pytest.mark.slow
@pytest.mark.parametrize(("lam", "step"), [(0.5, 1.0), (2.0, 0.3)])
def test_own_models_are_proximal_points_and_the_server_s_is_where_their_pulls_cancel(lam, step):
    """theta = (H b + lam x) / (H + lam); sum p lam (x - theta) = 0 with p = (1/4, 3/4)."""
    *_, (before, _), (state, _) = run_rounds(federation(TASK, ("pfedme", {"lam": lam, "step": step}), **LONG))
    H, b, p = TASK.Ht, TASK.bt, torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    x = before.adapter.flat
    torch.testing.assert_close(state.clients["theta"].flat, (H * b + lam * x) / (H + lam), rtol=1e-5, atol=1e-6)
    pull = p * lam * H / (H + lam)
    torch.testing.assert_close(state.adapter.flat, (pull * b).sum(0) / pull.sum(0), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_server_s_model_is_fedprox_s_where_the_step_is_whole():
    both = [
        run_to_end(federation(LowRank(), algorithm, cohort_size=4))[0]
        for algorithm in (("pfedme", {"lam": 0.1}), ("fedprox", {"mu": 0.1}))
    ]
    assert torch.equal(both[0].adapter.flat, both[1].adapter.flat)


def test_a_step_of_a_third_goes_a_third_of_the_way():
    one, third = (
        run_to_end(federation(TASK, ("pfedme", {"step": step}), num_rounds=1))[0].adapter.flat - 3.0
        for step in (1.0, 1 / 3)
    )
    torch.testing.assert_close(third, one / 3)
