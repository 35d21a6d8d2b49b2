"""Which LoRA rank each client trains with: the nouns of rank schedulers, in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# What a scheduler remembers between rounds, by name: (N,) a number for each client, or a few numbers of its own. JSON-able.
Memory = Mapping[str, list[float]]


@dataclass(frozen=True)
class Report:
    """What is known of one client that was asked to train in a round, whether or not its update arrived in time."""

    client: int
    rank: int
    seconds: float  # for all of its work, download and upload included, also if the deadline cut it short
    tokens: int  # target tokens of that work
    exceeded: bool = False  # it was not done by the deadline
    gain: float | None = (
        None  # nats a token on fixed held-out text: loss of the whole model received - loss after training
    )
    gain_below: float | None = None  # the same with the trained adapter cut by one rank
    seconds_below: float | None = None  # what one rank less would have taken


@dataclass(frozen=True)
class Situation:
    """What a scheduler decides on: the n clients drawn for a round, in any order."""

    round: int
    seed: int
    clients: Ints  # (n,) ids, 0 <= id < N
    low: Ints  # (n,) smallest and
    high: Ints  # (n,) largest rank; below `low` if the client cannot train at all
    budget: int  # what the ranks should sum to
    a: Floats  # (n,) seconds that a round takes with rank 0 and
    b: Floats  # (n,) with every further rank: t_i(r) = a_i + b_i r, communication included
    deadline: float | None = None  # seconds

    def seconds(self, ranks: Sequence[int] | Ints) -> Floats:
        """Time of every client with these ranks, (n,): a + b r, zero for those left out."""
        r = np.asarray(ranks)
        return np.where(r > 0, self.a + self.b * r, 0.0)


@dataclass(frozen=True)
class Allocation:
    """What a scheduler decided."""

    ranks: tuple[int, ...]  # (n,) in the order of `Situation.clients`; 0 for a client that is left out
    excluded: tuple[int, ...] = ()  # ids of those left out
    events: tuple[str, ...] = ()  # what a reader should know, in sentences


def _nothing(num_clients: int) -> Memory:
    return {}


def _learns_nothing(memory: Memory, reports: Sequence[Report]) -> Memory:
    return memory


@dataclass(frozen=True)
class Scheduler:
    """Pure functions; the engine owns the loop and keeps the memory.

    assign: (memory, situation) -> allocation
    init: (num_clients) -> memory before the first round
    observe: (memory, reports of a round) -> memory
    r_bar: the mean rank that the budget pays for; None: the scheduler has no budget, and gives each client always the same
    gains: whether it needs `Report.gain`
    below: whether it needs `Report.gain_below` and `Report.seconds_below` too
    """

    assign: Callable[[Memory, Situation], Allocation]
    init: Callable[[int], Memory] = _nothing
    observe: Callable[[Memory, Sequence[Report]], Memory] = _learns_nothing
    r_bar: float | None = None
    gains: bool = False
    below: bool = False

    def budget(self, n: int) -> int:
        """What the ranks of n clients should sum to: r_bar * n, halves up; 0 without a budget.

        >>> Scheduler(assign=..., r_bar=2.5).budget(3)
        8
        """
        return math.floor((self.r_bar or 0) * n + 0.5)
