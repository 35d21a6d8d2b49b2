"""Made-up cohorts and histories for rank schedulers and selections: small, with ties, zeros and unequal bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedfault.scheduling import Candidates, Memory, Report, Scheduler, Selection, Situation

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


def candidates(
    clients: Sequence[int] | None = None,
    *,
    size: Sequence[float] | None = None,
    loss: Sequence[float | None] | None = None,
    seconds: Sequence[float] | None = None,
    wanted: int = 2,
    round: int = 5,
) -> Candidates:
    """Candidates in the order given; whose loss is None was never asked, the others were in the round before."""
    given = next(values for values in (clients, size, loss, seconds) if values is not None)
    n = len(given)
    known = [None] * n if loss is None else loss
    return Candidates(
        round=round,
        clients=np.arange(n) if clients is None else np.array(clients, dtype=np.int64),
        size=np.ones(n) if size is None else np.array(size, dtype=float),
        loss=np.array([np.nan if v is None else v for v in known], dtype=float),
        last=np.array([0 if v is None else round - 1 for v in known], dtype=np.int64),
        seconds=np.full(n, np.nan) if seconds is None else np.array(seconds, dtype=float),
        wanted=wanted,
    )


def choose(selection: Selection, c: Candidates, seed: int = 0) -> list[int]:
    """Ids of those that a selection chooses, in its order."""
    return [int(c.clients[i]) for i in selection.choose(c, np.random.default_rng(seed))]
