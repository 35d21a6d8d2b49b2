"""Centralised training on everybody's texts: what a federation gives up, on the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from fedfault.records import RoundRecord
from fedfault.registry import build
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork
from fedfault.tasks.base import CohortTask
from fedfault.tasks.delegating import DelegatingTask
from fedfault.types.task import Step


class Pooled(DelegatingTask):
    """The task of one client who holds the training rows of all; the evaluation sets stay those of the clients."""

    def __init__(self, task: CohortTask) -> None:
        super().__init__(task)
        self._task = task

    def examples(self, client: int) -> int:
        """All rows."""
        return sum(self._task.counts)

    def tokens(self, client: int) -> int:
        """Target tokens in them."""
        return sum(self._task.tokens(k) for k in range(len(self._task.counts)))

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.Task.grad`: rows are counted from those of client 0, behind which those of all others lie."""
        return self._task.grad(params, replace(step, clients=torch.zeros_like(step.clients)))


def central(fed: Federation, records: Sequence[RoundRecord]) -> Federation:
    """The federation `fed`, of which these are the records, as one client with all data and as many steps in all.

    The steps of all clients together are spread evenly over the rounds, rounded up; batches, learning rate and warm-up are
    the same, and the optimiser starts anew in every round as the clients' does. Scores are taken at the start and the end.
    """
    steps = -(-sum(c.steps for r in records for c in r.clients) // fed.num_rounds)
    work: LocalWork = replace(fed.work, epochs=None, steps=steps)
    return replace(
        fed,
        task=Pooled(cast(CohortTask, fed.task)),
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
