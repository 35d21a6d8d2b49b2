"""Every pair of algorithm and aggregation that stands unequal ranks stands ranks that change in every round."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from allowed import allowed
from devices import hardware
from fedfault.hardware.clock import Tier
from fedfault.registry import build, load_builders
from fedfault.rounds.engine import begin, rounds
from fedfault.scheduling import Allocation, Scheduler
from fedfault.seeds import rng
from fedfault.testing.toys import LowRank, federation

pytestmark = pytest.mark.slow


def stands_it(algorithm: str, aggregation: str) -> bool:
    prunes = "prunes" in build("aggregation", aggregation).traits
    return not prunes and allowed(algorithm, aggregation, [1, 2])


PAIRS = [(a, b) for a in load_builders("algorithm") for b in load_builders("aggregation") if stands_it(a, b)]
EVERY_PAIR = pytest.mark.parametrize(  # `make test` has those with a plain half
    ("algorithm", "aggregation"),
    [
        pytest.param(a, b, marks=() if a == "fedavg" or b == "fedit" else pytest.mark.long, id=f"{a}-{b}")
        for a, b in PAIRS
    ],
)


def drawn(memory, s) -> Allocation:
    """Any ranks from 0, which leaves a client out, to 3."""
    ranks = [int(rng(s.seed, "ranks", s.round, k).integers(0, 4)) for k in s.clients.tolist()]
    return Allocation(tuple(ranks), tuple(k for k, r in zip(s.clients.tolist(), ranks, strict=True) if not r))


@cache
def whole(algorithm: str, aggregation: str) -> list:
    """State and record of every round."""
    fed = fed_of(algorithm, aggregation)
    return list(rounds(fed, begin(fed)))


def fed_of(algorithm: str, aggregation: str, **work):
    fed = federation(LowRank(r=3), algorithm, aggregation, num_rounds=6, work=work)
    hw = replace(hardware(Tier("all", 6)), scheduler=Scheduler(drawn, r_bar=1.0), r_max=3, steps=np.full(6, 5))
    return replace(fed, hardware=hw)


@EVERY_PAIR
def test_a_run_learns_and_no_slice_dies(algorithm, aggregation):
    """The engine's own checks are on: frozen numbers, memories, and the invariants of the algorithm."""
    pairs = whole(algorithm, aggregation)
    losses = [r.scores["validation"].loss for _, r in pairs]
    assert min(losses[1:]) < losses[0]
    assert len({c.rank for _, r in pairs for c in r.clients}) == 3
    for state, _ in pairs:
        assert bool(state.adapter.flat.isfinite().all())
        A, B = state.adapter.layout.pair(state.adapter.flat, state.adapter.layout.sites[0])
        assert bool((A.norm(dim=1) + B.norm(dim=0) > 0).all())


@EVERY_PAIR
def test_a_resumed_run_equals_an_uninterrupted_one(algorithm, aggregation):
    states = [state for state, _ in whole(algorithm, aggregation)]
    resumed = [state for state, _ in rounds(fed_of(algorithm, aggregation), states[4])]
    assert torch.equal(resumed[-1].adapter.flat, states[-1].adapter.flat)
