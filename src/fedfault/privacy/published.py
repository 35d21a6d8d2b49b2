"""What a private run may write down of a round: the model's scores on public texts, and what privacy it has cost."""

from __future__ import annotations

from collections.abc import Mapping

from fedfault.privacy.audit import Canaries
from fedfault.privacy.budget import Budget
from fedfault.records import RoundRecord
from fedfault.types.algorithm import State


def publish(record: RoundRecord, state: State, budget: Budget | None) -> RoundRecord:
    """Leave out of a record what is exact about clients, and add what the rounds so far have cost; as it is without budget.

    Left out: losses, norms and bytes of clients, who trained, scores on their texts, seconds and events, which tell how many
    there were. What probes say is kept: a private run has only those that are `public`.
    """
    if budget is None:
        return record
    scores = {name: s for name, s in record.scores.items() if not name.startswith("client/") and name != "personal"}
    seconds = {name: s for name, s in record.seconds.items() if name == "evaluate"}
    probes = {**record.probes, **measure_cost(state, budget)}
    return RoundRecord(record.round, scores=scores, probes=probes, seconds=seconds)


def measure_cost(state: State, budget: Budget) -> Mapping[str, float]:
    """Measure epsilon so far, what the canaries say that it is at least, and the clip where it adapts, by name."""
    found = {"epsilon": budget.spend(state.round)}
    if "canaries" in state.memory and state.round:
        canaries = Canaries(budget)
        found["epsilon_audited"] = canaries.bound_epsilon(state, budget.delta)
        for delta in canaries.deltas[1:]:
            found["epsilon_small"] = budget.spend(state.round, delta)
            found["epsilon_small_audited"] = canaries.bound_epsilon(state, delta)
    if "clip" in state.memory:
        found["clip"] = float(state.memory["clip"].flat)
    return found
