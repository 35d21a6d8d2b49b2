"""Federations on simulated hardware whose ranks are given by round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedfault.hardware.clock import Tier
from fedfault.rounds.local import count_steps
from fedfault.scheduling import Allocation, Scheduler
from fedfault.testing.toys import LowRank, federation

SIX = Tier("all", 6)
HALVES = (Tier("fast", 3), Tier("slow", 3, compute_factor=0.1))


def scripted(*ranks: tuple[int, ...]) -> Scheduler:
    """These ranks in round 1, 2, ..., by client; 0 leaves it out."""

    def assign(memory, s):
        mine = ranks[(s.round - 1) % len(ranks)]
        return Allocation(tuple(mine[k] for k in s.clients), tuple(k for k in s.clients.tolist() if not mine[k]))

    return Scheduler(assign, r_bar=1.0)


def fed_of(hw, task=None, **changes):
    task = task or LowRank(r=3)
    fed = federation(task, **{"aggregation": "blockwise", "num_rounds": 3, **changes})
    steps = [count_steps(task.examples(k), fed.work)[0] for k in range(fed.total_clients)]
    return replace(fed, hardware=replace(hw, steps=np.array(steps), r_max=3))
