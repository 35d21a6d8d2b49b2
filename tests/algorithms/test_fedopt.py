"""Server optimisers by hand: two rounds of one number whose mean change Delta is given, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.algebra import mean
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import TRAITS, State

LAYOUT = Layout.of([Site("x", "full", (1,))])
FAMILY = ["fedavgm", "fedadagrad", "fedadam", "fedyogi"]


def path(name: str, deltas: list[float], begun: int = 0, **options) -> list[float]:
    """x after each round, from 10, when two clients of weights 3 and 1 move by Delta on average.

    begun: rounds in which nothing arrived before.
    """
    algorithm = build("algorithm", name, **options)
    x = Adapter(LAYOUT, torch.tensor([10.0], dtype=torch.float64))
    state, found = State(x, round=begun, memory=algorithm.init(x)), []
    for delta in deltas:
        y = state.adapter.flat + torch.tensor([[delta + 1], [delta - 3]], dtype=torch.float64)
        got = {"x": Adapter(LAYOUT, y), "n": torch.tensor([3.0, 1.0])}
        state = replace(algorithm.server(state, got, mean), round=state.round + 1)
        found.append(state.adapter.flat.item())
    return found


def test_fedavgm():
    """m = -4, then -2 + 3 = 1."""
    assert path("fedavgm", [-4, 3], beta=0.5, server_lr=2.0) == pytest.approx([2.0, 4.0], abs=1e-12)


def test_fedavgm_gains_one_over_one_minus_beta_where_rounds_agree():
    """The dampened variant, beta m + (1 - beta) Delta, would stay at a step of 1."""
    x = path("fedavgm", [1.0] * 300, server_lr=1.0)
    assert x[1] - x[0] == pytest.approx(1.9, abs=1e-12)
    assert x[-1] - x[-2] == pytest.approx(10.0, abs=1e-9)


def test_fedadagrad():
    """v = 9 + 16 = 25, then 25 + 144 = 169: steps -4 / (5 + 3) and 12 / (13 + 3)."""
    assert path("fedadagrad", [-4, 12], server_lr=1.0, tau=3.0) == pytest.approx([9.5, 10.25], abs=1e-12)


def test_fedadagrad_with_momentum():
    """m = -2, then -1 + 6 = 5."""
    x = path("fedadagrad", [-4, 12], server_lr=1.0, tau=3.0, beta1=0.5)
    assert x == pytest.approx([9.75, 9.75 + 5 / 16], abs=1e-12)


def test_fedadam():
    """m = -3.5, then -1.75 + 2.5 = 0.75; v = 0.5 + 24.5 = 25, then 12.5 + 12.5 = 25: squares of Delta, not of m."""
    x = path("fedadam", [-7, 5], server_lr=0.6, beta1=0.5, beta2=0.5, tau=1.0)
    assert x == pytest.approx([10 - 0.6 * 3.5 / 6, 10 - 0.35 + 0.6 * 0.75 / 6], abs=1e-12)


def test_fedadam_with_bias_correction():
    """Round 1 divides m and v, which starts at 0, by 1/2, round 2 by 3/4: m = 0.75, v = 24.5 / 2 + 12.5 = 24.75."""
    x = path("fedadam", [-7, 5], server_lr=0.6, beta1=0.5, beta2=0.5, tau=1.0, bias_correction=True)
    first = 10 - 0.6 * 7 / (7 + 1)
    assert x == pytest.approx([first, first + 0.6 * 1.0 / ((24.75 / 0.75) ** 0.5 + 1)], abs=1e-12)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_bias_correction_counts_the_steps_of_the_server_and_not_rounds_without_one(name):
    """After nine rounds in which nothing arrived the first step was 0.4 of what it is after none."""
    options = {"server_lr": 1.0, "beta1": 0.9, "tau": 1e-3, "bias_correction": True}
    assert path(name, [1e-3], **options) == pytest.approx([10 + 0.5], abs=1e-6)  # as Adam: Delta / (|Delta| + tau)
    assert path(name, [1e-3], begun=9, **options) == pytest.approx([10 + 0.5], abs=1e-6)


def test_fedyogi():
    """v = 1 + 8 = 9 as 1 < 16, then 9 - 2 = 7 as 9 > 4; m = -2, then -1 + 1 = 0, then 0.5 with v = 7 - 0.5 = 6.5."""
    x = path("fedyogi", [-4, 2, 1], server_lr=1.0, beta1=0.5, beta2=0.5, tau=1.0)
    assert x == pytest.approx([9.5, 9.5, 9.5 + 0.5 / (6.5**0.5 + 1)], abs=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_the_server_moves_towards_the_clients(name):
    """With the sign of Delta turned round, as for a gradient, it would run away from them."""
    assert path(name, [2.0])[0] > 10 > path(name, [-2.0])[0]


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_v_is_never_negative(name):
    """Changes from 1e-15 to 1e15 of both signs, in float32, in ten rounds."""
    algorithm, g = build("algorithm", name), torch.Generator().manual_seed(3)
    layout = Layout.of([Site("x", "full", (5000,))])
    x = Adapter(layout, torch.zeros(5000))
    state = State(x, memory=algorithm.init(x))
    for _ in range(10):
        change = torch.randn(5000, generator=g) * 10 ** (30 * torch.rand(5000, generator=g) - 15)
        sent = Adapter(layout, (state.adapter.flat + change)[None])
        state = algorithm.server(state, {"x": sent, "n": torch.ones(1)}, mean)
        assert (state.memory["v"].flat >= 0).all()
        assert state.adapter.flat.isfinite().all()


@pytest.mark.parametrize("name", FAMILY)
def test_only_a_momentum_moves_a_frozen_factor(name):
    option = "beta" if name == "fedavgm" else "beta1"
    with_momentum, without = (build("algorithm", name, **{option: beta}).refuses for beta in (0.5, 0.0))
    assert set(without) == {"refactors", "folds"}
    assert set(with_momentum) == {"refactors", "folds", "alternates"} <= set(TRAITS)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_bias_correction_needs_beta2_below_one(name):
    with pytest.raises(UserError, match="bias_correction=true with beta2=1 divides by"):
        build("algorithm", name, beta2=1.0, bias_correction=True)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("fedavgm", {"beta": 1.0}),
        ("fedavgm", {"server_lr": 0.0}),
        ("fedadagrad", {"beta1": -0.1}),
        ("fedadam", {"beta2": 1.1}),
        ("fedyogi", {"tau": 0.0}),
    ],
)
def test_impossible_options_are_refused(name, wrong):
    with pytest.raises(UserError, match=f"algorithm '{name}': {next(iter(wrong))}="):
        build("algorithm", name, **wrong)
