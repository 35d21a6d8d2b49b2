"""Made-up cohorts and histories for rank schedulers: small, with ties, zeros and unequal bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from fedfault.scheduling import Memory, Report, Scheduler, Situation

CLIENTS = 12  # of the federation that cohorts are drawn from


def situation(seed: int, n: int | None = None, *, equal_bounds: bool = False, **changes: Any) -> Situation:
    """n of 12 clients in random order; times from a coarse grid (ties, zeros) or not, in units between ms and hours."""
    g = np.random.default_rng(seed)
    n = n or int(g.integers(1, 9))
    a, b = _times(g, n), _times(g, n)
    low = np.full(n, g.integers(1, 4)) if equal_bounds else g.integers(1, 4, size=n)
    high = low + (g.integers(0, 9) if equal_bounds else g.integers(0, 9, size=n))
    budget = int(g.integers(low.sum(), high.sum() + 1))
    drawn = g.permutation(CLIENTS)[:n]
    made = Situation(round=2, seed=seed, clients=drawn, low=low, high=high, budget=budget, a=a, b=b)
    return replace(made, **changes)


def _times(g: np.random.Generator, n: int) -> Any:
    grid, smooth = g.integers(0, 5, size=n).astype(float), g.uniform(0, 5, size=n)
    return (grid if g.random() < 0.5 else smooth) * 10.0 ** g.integers(-3, 4)


def permute(s: Situation, order: Any) -> Situation:
    """The same clients in another order."""
    return replace(s, **{name: getattr(s, name)[order] for name in ("clients", "low", "high", "a", "b")})


def history(seed: int, rounds: int = 4, *, seconds: float = 1.0, gain: float = 1.0) -> list[list[Report]]:
    """Reports of some rounds in given units; gains of both signs, some missing, some clients late, some never seen."""
    g = np.random.default_rng([seed, 1])
    told = []
    for _ in range(rounds):
        drawn = g.permutation(CLIENTS - 2)[: g.integers(1, 7)].tolist()
        told.append(
            [
                Report(
                    client=client,
                    rank=int(g.integers(1, 9)),
                    seconds=float(g.uniform(1, 100)) * seconds,
                    tokens=int(g.integers(100, 1000)),
                    exceeded=bool(g.random() < 0.2),
                    gain=None if g.random() < 0.2 else float(g.normal(0.1, 0.3)) * gain,
                )
                for client in drawn
            ]
        )
    return told


def remember(scheduler: Scheduler, reports: Iterable[list[Report]]) -> Memory:
    """The scheduler's memory after these rounds."""
    memory = scheduler.init(CLIENTS)
    for of_round in reports:
        memory = scheduler.observe(memory, of_round)
    return memory
