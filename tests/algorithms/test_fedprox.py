"""FedProx by hand: one client with f(y) = y^2 / 2, from x = 3, two steps."""

from __future__ import annotations

import pytest

from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import Quadratic, federation


def end(mode: str, **work) -> float:
    task = Quadratic([[1.0]], [[0.0]], [4])
    fed = federation(task, ("fedprox", {"mu": 0.4, "mode": mode}), num_rounds=1, work={"steps": 2, "lr": 0.5, **work})
    *_, (state, _) = rounds(fed, begin(fed))
    return state.adapter.flat.item()


def test_two_steps_with_the_gradient():
    """y = 3 - 0.5 * 3 = 1.5; then 1.5 - 0.5 * (1.5 + 0.4 * (1.5 - 3)) = 1.05."""
    assert end("grad") == pytest.approx(1.05, abs=1e-12)


def test_the_proximal_gradient_is_not_clipped():
    """y = 3 - 0.5 * 1 = 2.5; then 2.5 - 0.5 * (1 + 0.4 * (2.5 - 3)) = 2.1."""
    assert end("grad", max_grad_norm=1.0) == pytest.approx(2.1, abs=2e-6)


def test_two_decoupled_steps():
    """y = 3 - 1.5 = 1.5, back by 0.5 * 0.4 * 1.5 to 1.8; then 1.8 - 0.9 = 0.9, back by 0.2 * 2.1 to 1.32."""
    assert end("decoupled") == pytest.approx(1.32, abs=1e-12)


def test_decoupled_pulls_by_mu_whatever_adamw_divides_gradients_by():
    """AdamW's first step is lr: 3 - 0.5 = 2.5, back by 0.2 * 0.5 to 2.6. In the gradient, mu could not be told from that."""
    assert end("decoupled", steps=1, optimizer="adamw") == pytest.approx(2.6, abs=1e-7)
    assert end("grad", steps=1, optimizer="adamw") == pytest.approx(2.5, abs=1e-7)


@pytest.mark.parametrize("wrong", [{"mu": -0.1}, {"mode": "loss"}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=f"algorithm 'fedprox': {next(iter(wrong))}="):
        build("algorithm", "fedprox", **wrong)
