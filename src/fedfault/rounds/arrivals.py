"""The updates of a round as they lie at the server, and the model that it makes of all of them or of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedfault.rounds import integrity
from fedfault.rounds.exchange import (
    Cohort,
    add_fold,
    collect_personal_models,
    find_movable,
    make_average,
    replace_private_by_mean,
    select_good,
    store_client_memory,
)
from fedfault.rounds.federation import Federation
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Message, Pooled, State, Uploads
from fedfault.types.task import Ablation, Served


class Aggregated(NamedTuple):
    """The server's state after its step, before the round counts as done."""

    state: State
    averages: Sequence[tuple[Uploads, Pooled]]  # what the aggregation was given and made of it


@dataclass(frozen=True)
class Arrivals:
    """The updates of a round's K clients at the server."""

    fed: Federation
    state: State  # that the round started from, with the ranks that its clients keep
    cohort: Cohort  # with the ranks that they send
    up: Message
    home: Mapping[str, Adapter]  # what clients keep
    good: Sequence[bool]  # (K,) whose updates are finite

    def aggregate(self, taken: Sequence[bool] | None = None) -> Aggregated:
        """Take the server's step on the good updates, or on those of them that are `taken`, (K,) bool.

        Who is not taken is left out as one whose update is not finite: the others' weights make up for it, and the model
        stays where nobody is left. What clients keep at home does not depend on it.
        """
        averages: list[tuple[Uploads, Pooled]] = []
        rows = list(self.good) if taken is None else [a and b for a, b in zip(self.good, taken, strict=True)]
        after = self._take_step(rows, averages) if any(rows) else add_noise_alone(self.fed, self.state)
        after = store_client_memory(after, self.cohort, self.home, self.good, self.fed.algorithm.whole)
        return Aggregated(replace_private_by_mean(after, self.cohort.private), averages)

    def ablate(self, taken: Sequence[bool]) -> Ablation:
        """Return the model that the round would have made of some updates, as it is scored."""
        after = self.aggregate(taken).state
        return Ablation(Served(after.adapter, find_personal_models(self.fed, after)), after.base)

    def _take_step(self, rows: list[bool], averages: list[tuple[Uploads, Pooled]]) -> State:
        """The server's step on some updates, and what it adds to the frozen weights."""
        fed, state, cohort = self.fed, self.state, self.cohort
        rule = integrity.check_aggregation(fed.aggregation)
        average = make_average(rule, cohort, state, torch.tensor(rows), fed.seed, averages)
        after = fed.algorithm.server(state, select_good(self.up, rows), average)
        before, now = state.adapter, after.adapter.flat[None]
        moved = find_movable(fed.aggregation, cohort.trained)
        integrity.check_frozen(before.layout, before.flat, now, moved, ["the server"])
        after = replace(after, memory=_keep_frozen(after.memory, state.memory, moved))
        return add_fold(after, averages[-1][1].fold) if "folds" in fed.aggregation.traits else after


def _keep_frozen(
    now: Mapping[str, Adapter], before: Mapping[str, Adapter], moved: Tensor | None
) -> Mapping[str, Adapter]:
    """What the server remembers, of numbers that were frozen in the round as it was: no change of them was measured."""
    if moved is None:
        return now
    frozen = {name for name, a in now.items() if name in before and a.flat.shape[-1:] == moved.shape}
    return {
        name: replace(a, flat=a.flat.where(moved.to(a.flat.device), before[name].flat)) if name in frozen else a
        for name, a in now.items()
    }


def add_noise_alone(fed: Federation, state: State) -> State:
    """The state after the server's step without any update, where clients are hidden, and with them that there was none."""
    if fed.budget is None or fed.budget.unit != "client":
        return state
    x, nothing = state.adapter, torch.zeros(0, dtype=torch.float64)
    up = {"x": replace(x, flat=x.flat.new_zeros(0, len(x.flat))), "n": nothing}
    return fed.algorithm.server(state, up, lambda sent, weight: x)


def find_personal_models(fed: Federation, state: State) -> Adapter | None:
    """Find the model that every client uses, (N, P), as far as it is known here; None where all use the server's."""
    found = fed.algorithm.personal(state)
    return found if found is not None else collect_personal_models(state, fed.aggregation.private(state.adapter.layout))
