"""FedNova's server step by hand, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from fedfault.algebra import mean
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import TRAITS, State

LAYOUT = Layout.of([Site("x", "full", (1,))])


def stepped(x: float, y: list[float], n: list[float], a: list[float], **options) -> float:
    """The server after a round in which clients of weight n and |a|_1 = a came back with y."""
    state = State(Adapter(LAYOUT, torch.tensor([x], dtype=torch.float64)))
    sent = Adapter(LAYOUT, torch.tensor(y, dtype=torch.float64)[:, None])
    got = {"x": sent, "n": torch.tensor(n).double(), "a": torch.tensor(a).double()}
    return build("algorithm", "fednova", **options).server(state, got, mean).adapter.flat.item()


def test_changes_count_per_step():
    """p = (1/4, 3/4), tau_eff = 3.5: 10 - 3.5 (1/4 * 4/2 + 3/4 * 12/4) = 0.375; with equal a it is the mean, 0."""
    assert stepped(10, [6, -2], n=[1, 3], a=[2, 4]) == pytest.approx(0.375, abs=1e-12)
    assert stepped(10, [6, -2], n=[1, 3], a=[7, 7]) == pytest.approx(0.0, abs=1e-12)
    assert stepped(10, [6, -2], n=[3, 1], a=[2, 4]) == pytest.approx(10 - 2.5 * (1.5 + 0.75), abs=1e-12)


def test_no_change_is_scaled_up_more_than_the_cap():
    """p = 1/2, tau_eff = 20: 1/2 * 10 * 1 - 1/2 * 20/39 * 39 = -5; without a cap 1/2 * 20 - 10 = 0."""
    assert stepped(0, [1, -39], n=[1, 1], a=[1, 39]) == pytest.approx(-5.0, abs=1e-12)
    assert stepped(0, [1, -39], n=[1, 1], a=[1, 39], cap=20.0) == pytest.approx(0.0, abs=1e-12)


def test_it_says_why_it_refuses():
    refuses = build("algorithm", "fednova").refuses
    assert set(refuses) == {"refactors", "folds", "reweighs", "robust"} <= set(TRAITS)


@pytest.mark.parametrize("wrong", [{"mu": -1.0}, {"cap": 0.5}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=f"algorithm 'fednova': {next(iter(wrong))}="):
        build("algorithm", "fednova", **wrong)
