"""The shortest round that a budget of ranks allows, exactly."""

from __future__ import annotations

import numpy as np

from fedfault.allocation.bounds import MeanRank, find_bounds, make_allocation
from fedfault.registry import register
from fedfault.scheduling import Allocation, Floats, Ints, Memory, Scheduler, Situation


@register("scheduler")
def exact(
    *,
    r_bar: MeanRank = 8.0,  # README of the Lite scheduler; half of its r_max
) -> Scheduler:
    """The exact min-max of the round time at a given budget, by a greedy that needs no solver.

    min_r max_i a_i + b_i r_i  subject to  l_i <= r_i <= u_i,  sum r_i = R,  r_i whole: from r = l on, the next unit goes to
    the client that would be done first with it, a_i + b_i (r_i + 1), until R is spent. Moving a unit from there to any other
    client makes no round shorter, so the result is optimal, for any times that do not fall with the rank. Clients whose time
    does not grow with the rank, b_i = 0, are given units before all others, since theirs cost nothing. So the second slowest
    client is as fast as it can be too, and so on. Clients that cannot meet the deadline are left out.

    Other ranks can be just as short: the slowest client sets the time, and within it the ranks of the others are open.
    Here they go to who is done first; `cvx` deals them as evenly as the time allows: one clock, other ranks, other losses.

    r_bar: the mean rank that may be spent on a client in a round
    """

    def assign(memory: Memory, s: Situation) -> Allocation:
        given = find_bounds(s, by_deadline=True)
        a, b, ids = s.a[given.part], s.b[given.part], s.clients[given.part]
        return make_allocation(s, given, share_out_units(a, b, given.low, given.high, given.budget, ids))

    return Scheduler(assign, r_bar=r_bar)


def share_out_units(a: Floats, b: Floats, low: Ints, high: Ints, budget: int, clients: Ints) -> Ints:
    """Find the ranks (m,) of the least max_i a_i + b_i r_i: they take the budget - sum l units that are done first.

    Times do not fall with the rank, so the units in the order of their time are the units in the order in which a heap gives
    them out: one sort of all of them, O(U log U) for U = sum(u - l). Units that take no time come before all others. Of ties
    the unit with the smaller b goes first, as who is left without one is done the earlier the larger b is; then that with
    the smaller rank, then that of the smaller id.

    >>> share_out_units(np.array([1.0, 0.0]), np.array([1.0, 3.0]), np.full(2, 1), np.full(2, 9), 6, np.arange(2)).tolist()
    [5, 1]
    """
    if not len(a):
        return low
    a, b = scale_times(a, b)
    client = np.repeat(np.arange(len(a)), high - low)
    first = np.repeat(np.cumsum(high - low) - (high - low), high - low)  # where the client's units begin
    rank = low[client] + 1 + np.arange(len(client)) - first
    # rounded, so that a change of unit does not break ties between clients another way
    done = np.where(b[client] > 0, np.round(a[client] + b[client] * rank, 9), -np.inf)
    order = np.lexsort((clients[client], rank, np.round(b[client], 9), done))[: budget - low.sum()]
    return low + np.bincount(client[order], minlength=len(a))


def scale_times(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Shift times so that the smallest a is 0, in units of the median positive b: the ranks depend on neither."""
    unit = float(np.median(b[b > 0])) if (b > 0).any() else 1.0
    return (a - a.min()) / unit, b / unit
