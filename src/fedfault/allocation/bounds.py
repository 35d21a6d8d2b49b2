"""Bounds of a scheduler's decision: which clients can take part, with which ranks, and a budget that fits.

Whatever is adapted, such as a budget that does not fit, is told as an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from fedfault.errors import join_names
from fedfault.scheduling import Allocation, Floats, Ints, Situation

NEARLY = 1e-9  # a division may miss the whole number that it should give: (1.2 - 0.3) / 0.3 < 3

MeanRank = Annotated[float, Field(gt=0)]


class Bounds(NamedTuple):
    """The m clients that take part, and the limits of their ranks."""

    part: Ints  # (m,) positions of these clients among the n of the situation
    low: Ints  # (m,) the smallest rank
    high: Ints  # (m,) the largest rank
    budget: int  # sum(low) <= budget <= sum(high)
    excluded: tuple[int, ...]  # ids of the other clients
    events: tuple[str, ...]  # sentences: who is left out and why, and a budget that did not fit


def find_bounds(s: Situation, *, by_deadline: bool, r_bar: float | None = None) -> Bounds:
    """Find the bounds of a situation; `by_deadline` lowers u_i to floor((D - a_i) / b_i) where there is a deadline D.

    A client with u_i < l_i is left out, and a budget outside [sum l, sum u] is clipped; events say so. With r_bar the budget
    is r_bar for each client that takes part, instead of the situation's: a scheduler's own goal, clipped without an event.
    """
    high = s.high
    if by_deadline and s.deadline is not None:
        high = np.minimum(high, largest_rank_within(s.a, s.b, s.deadline))
    part = np.flatnonzero(high >= s.low)
    low, high_of_part = s.low[part], high[part]
    wanted = s.budget if r_bar is None else int(np.floor(r_bar * len(part) + 0.5))
    budget = int(np.clip(wanted, low.sum(), high_of_part.sum()))
    events = [*_explain_exclusions(s, high)]
    if r_bar is None and budget != wanted and len(part):
        events.append(
            f"a rank budget of {wanted} does not fit, {_count_clients(len(part))} can be given {low.sum()} to "
            f"{high_of_part.sum()}; {budget} is used"
        )
    excluded = s.clients[np.setdiff1d(np.arange(len(high)), part)]
    return Bounds(part, low, high_of_part, budget, tuple(sorted(excluded.tolist())), tuple(events))


def largest_rank_within(a: Floats, b: Floats, seconds: float) -> Ints:
    """The largest rank with a + b r <= seconds, (n,); -1 where even rank 0 takes longer.

    >>> largest_rank_within(np.array([1.0, 0.3, 9.0]), np.array([0.5, 0.3, 0.0]), 1.2).tolist()
    [0, 3, -1]
    """
    left = seconds - a
    ranks = np.floor(left / np.where(b > 0, b, 1.0) + NEARLY)
    ranks = np.where(b > 0, ranks, np.iinfo(np.int32).max)
    most: Ints = np.where(left < 0, -1, np.minimum(ranks, np.iinfo(np.int32).max)).astype(np.int64)
    return most


def make_allocation(s: Situation, given: Bounds, ranks: Ints, *events: str) -> Allocation:
    """Make the decision for all n clients from the ranks (m,) of those who take part."""
    everyone = np.zeros(len(s.clients), dtype=np.int64)
    everyone[given.part] = ranks
    return Allocation(tuple(everyone.tolist()), given.excluded, (*given.events, *events))


def name_clients(clients: Ints) -> str:
    """Name clients by their ids, in order; of many only the first.

    >>> name_clients(np.array([5, 3]))
    'clients 3, 5'
    """
    ids = sorted(clients.tolist())
    return f"client{'s' * (len(ids) > 1)} {join_names(ids)}"


def _explain_exclusions(s: Situation, high: Ints) -> Sequence[str]:
    """Explain who is left out: clients whose largest rank is too small, and clients that the deadline leaves no rank."""
    never, late = s.high < s.low, (high < s.low) & (s.high >= s.low)
    events = []
    if never.any():
        events.append(
            f"{name_clients(s.clients[never])} left out: the largest rank that fits is below the smallest "
            f"allowed, {s.low[never].min()}"
        )
    if late.any():
        fastest = (s.a + s.b * s.low)[late].min()
        events.append(
            f"{name_clients(s.clients[late])} left out: even the smallest rank would take {fastest:.3g} s or "
            f"more, with a deadline of {s.deadline:g} s"
        )
    if len(high) and (high < s.low).all():
        events.append("nobody can take part")
    return events


def _count_clients(m: int) -> str:
    return f"{m} clients" if m > 1 else "1 client"
