"""The nouns of rank schedulers and of selection: who is drawn, and with which LoRA rank. Plain numbers: needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Memory of a scheduler between rounds: name -> (N,) a number for each client, or a few numbers of its own. JSON-able.
Memory = Mapping[str, list[float]]


@dataclass(frozen=True)
class Report:
    """Facts about one client that was asked to train in a round, whether or not its update arrived in time."""

    client: int
    rank: int
    seconds: float  # for all of its work, download and upload included, also if the deadline cut it short
    tokens: int  # target tokens of that work
    exceeded: bool = False  # it was not done by the deadline
    # nats a token on fixed held-out text: loss of the whole model received - loss after training
    gain: float | None = None
    gain_below: float | None = None  # the gain if the trained adapter is cut by one rank
    seconds_below: float | None = None  # the seconds that one rank less would have taken


@dataclass(frozen=True)
class Situation:
    """The facts that a scheduler decides on: the n clients drawn for a round, in any order, and their limits."""

    round: int
    seed: int
    clients: Ints  # (n,) ids, 0 <= id < N
    low: Ints  # (n,) smallest and
    high: Ints  # (n,) largest rank; below `low` if the client cannot train at all
    budget: int  # the sum that the ranks should have; 0 for a scheduler without a budget
    a: Floats  # (n,) seconds that a round takes with rank 0
    b: Floats  # (n,) seconds more for every rank: t_i(r) = a_i + b_i r, communication included
    deadline: float | None = None  # seconds

    def seconds(self, ranks: Sequence[int] | Ints) -> Floats:
        """Seconds that every client takes with these ranks, (n,): a + b r, and zero for a client that is left out."""
        r = np.asarray(ranks)
        return np.where(r > 0, self.a + self.b * r, 0.0)


@dataclass(frozen=True)
class Allocation:
    """The decision of a scheduler."""

    ranks: tuple[int, ...]  # (n,) in the order of `Situation.clients`; 0 for a client that is left out
    excluded: tuple[int, ...] = ()  # ids of those left out
    events: tuple[str, ...] = ()  # sentences for the reader, such as a budget that did not fit


def _start_empty(num_clients: int) -> Memory:
    return {}


def _ignore_reports(memory: Memory, reports: Sequence[Report]) -> Memory:
    return memory


@dataclass(frozen=True)
class Scheduler:
    """A scheduler as pure functions; the engine calls them and stores the memory between rounds.

    assign: (memory, situation) -> allocation
    init: (num_clients) -> memory before the first round
    observe: (memory, reports of a round) -> memory
    r_bar: the mean rank that the budget pays for; None: there is no budget, and each client gets the same rank every round
    asked: the mean rank that is asked for without a budget; None: the largest that each client can hold
    needs_gain: whether `observe` needs `Report.gain`, which costs two evaluations a client
    needs_gain_below: whether `observe` needs `Report.gain_below` and `Report.seconds_below` too
    """

    assign: Callable[[Memory, Situation], Allocation]
    init: Callable[[int], Memory] = _start_empty
    observe: Callable[[Memory, Sequence[Report]], Memory] = _ignore_reports
    r_bar: float | None = None
    asked: float | None = None
    needs_gain: bool = False
    needs_gain_below: bool = False

    def budget(self, n: int) -> int:
        """The sum that the ranks of n clients should have: r_bar * n, halves up; 0 without a budget.

        >>> Scheduler(assign=..., r_bar=2.5).budget(3)
        8
        """
        return math.floor((self.r_bar or 0) * n + 0.5)


@dataclass(frozen=True)
class Candidates:
    """The facts that a selection decides on: the n clients that could take part in a round, in a random order."""

    round: int
    clients: Ints  # (n,) ids
    size: Floats  # (n,) the weights that they have in averages, by federation.weighting
    # (n,) mean training loss when the client was last asked; the median of the others' if it did not answer; NaN if never
    loss: Floats
    last: Ints  # (n,) the round in which it was last asked, whether it answered or not; 0 if never
    seconds: Floats  # (n,) that its round is expected to take; NaN where no time is simulated
    wanted: int  # how many are to be drawn; all, where n is less


def _no_inclusion(size: Floats, wanted: int) -> Floats | None:
    return None


@dataclass(frozen=True)
class Selection:
    """A rule for who takes part in a round, as pure functions; what clients reported is kept by the engine.

    choose: (candidates, random stream) -> (min(wanted, n),) positions among the candidates, none twice
    inclusion: (size (n,), wanted) -> (n,) the probability with which each is drawn, which its weight in averages is divided
        by; None where averages are taken as they are
    needs: which of `size`, `loss` and `seconds` it decides by; the others are not numbers, and a run in which nobody reports
        what it needs is refused
    traits: keys of `types.algorithm.TRAITS`: what an algorithm may not stand of it
    """

    choose: Callable[[Candidates, np.random.Generator], Ints]
    inclusion: Callable[[Floats, int], Floats | None] = _no_inclusion
    needs: frozenset[str] = frozenset()
    traits: frozenset[str] = frozenset()
