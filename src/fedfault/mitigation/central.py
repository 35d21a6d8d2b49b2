"""Centralised training on everybody's texts: what a federation gives up, on the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedfault.records import RoundRecord
from fedfault.registry import build
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork
from fedfault.tasks.base import CohortTask
from fedfault.types.algorithm import ExtraLoss
from fedfault.types.task import Batch


class Pooled:
    """A `Task` of one client who holds the training rows of all; the evaluation sets stay those of the clients."""

    def __init__(self, task: CohortTask) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def examples(self, client: int) -> int:
        """All rows."""
        return sum(self._task.counts)

    def tokens(self, client: int) -> int:
        """Target tokens in them."""
        return sum(self._task.tokens(k) for k in range(len(self._task.counts)))

    def grad(
        self, params: Tensor, clients: Tensor, batch: Batch, key: Tensor | None, extra_loss: ExtraLoss | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.Task.grad`: rows are counted from those of client 0, behind which those of all others lie."""
        return self._task.grad(params, torch.zeros_like(clients), batch, key, extra_loss)


def central(fed: Federation, records: Sequence[RoundRecord]) -> Federation:
    """The federation `fed`, of which these are the records, as one client with all data and as many steps in all.

    The steps of all clients together are spread evenly over the rounds, rounded up; batches, learning rate and warm-up are
    the same, and the optimiser starts anew in every round as the clients' does. Scores are taken at the start and the end.
    """
    steps = -(-sum(c.steps for r in records for c in r.clients) // fed.num_rounds)
    work: LocalWork = replace(fed.work, epochs=None, steps=steps)
    return replace(
        fed,
        task=Pooled(fed.task),  # type: ignore[arg-type]
        algorithm=build("algorithm", "fedavg"),
        aggregation=build("aggregation", "fedit"),
        work=work,
        total_clients=1,
        cohort_size=1,
        evaluate_every=fed.num_rounds,
        clients_per_pass=1,
        ranks=(),
        probes={},
    )
