"""Federations over toys whose clients or examples are hidden."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedfault.privacy.accounting import Release
from fedfault.privacy.budget import Budget
from fedfault.privacy.clients import hide_clients
from fedfault.rounds.federation import Federation
from fedfault.testing.toys import federation


def make_budget(
    unit: Any, rounds: int, noise: float = 1.0, drawn: int = 6, of: int = 6, sampling: Any = "poisson", **more: Any
) -> Budget:
    given = {"clip": 1.0, "delta": 1e-3, "secret": 7, "times": tuple(range(rounds + 1)), **more}
    return Budget(unit=unit, release=Release(noise, drawn, of, sampling), **given)


def hide_toy(task: Any, *parts: Any, budget: Budget, **changes: Any) -> Federation:
    rounds = len(budget.times) - 1
    fed = federation(task, *parts, num_rounds=rounds, **{"work": {"steps": 2}, **changes})
    wrapped = hide_clients(fed.algorithm, fed.aggregation, budget) if budget.unit == "client" else fed.algorithm
    return replace(fed, budget=budget, algorithm=wrapped)
