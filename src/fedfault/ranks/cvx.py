"""The shortest round that a budget of ranks allows, by a linear program and rounding."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from fedfault.allocation.bounds import Bounds, MeanRank, find_bounds, make_allocation
from fedfault.ranks.exact import scale_times, share_out_units
from fedfault.registry import register
from fedfault.scheduling import Allocation, Floats, Ints, Memory, Scheduler, Situation

SLACK = 1e-6  # of a rank, or of its time: an interior-point solver stops that close to a bound


@register("scheduler")
def cvx(
    *,
    r_bar: MeanRank = 8.0,  # README of the Lite scheduler; half of its r_max
) -> Scheduler:
    """The min-max of the round time at a given budget as a linear program (cvxpy, Clarabel), rounded.

    min T  subject to  a_i + b_i r_i <= T,  l_i <= r_i <= u_i,  sum r_i = R. Without the budget, every client would get its
    l_i. Clients that do not bind leave the optimum open: of all optimal r, the one of least sum r_i^2 is taken, where
    `exact` gives to who is done first: one clock, other ranks, other losses. Rounding cuts fractions off and gives the units
    that are left to the clients that are done first with them; the round takes at most max_i b_i longer than T. A client
    that gets slower never gets a larger r_i, but rounding may give it one unit more, which `exact` never does. Clients that
    cannot meet the deadline are left out.

    Without cvxpy, or where the solver finds no optimum, the `exact` greedy decides, and an event says so.

    r_bar: the mean rank that may be spent on a client in a round

    Reference: problem P1 of FAH-QLoRA (Gao et al., IEEE INFOCOM 2025, 10.1109/INFOCOM55648.2025.11044641).
    """

    def assign(memory: Memory, s: Situation) -> Allocation:
        given = find_bounds(s, by_deadline=True)
        a, b, ids = s.a[given.part], s.b[given.part], s.clients[given.part]
        if not len(a):
            return make_allocation(s, given, given.low)
        found = (
            solve_relaxed(*scale_times(a, b), given) if find_spec("cvxpy") else "cvxpy is not installed (fedfault[cvx])"
        )
        if isinstance(found, str):
            ranks = share_out_units(a, b, given.low, given.high, given.budget, ids)
            return make_allocation(s, given, ranks, f"{found}; the exact greedy set the ranks")
        return make_allocation(s, given, round_ranks(found, a, b, given, ids))

    return Scheduler(assign, r_bar=r_bar)


def solve_relaxed(a: Floats, b: Floats, given: Bounds) -> Floats | str:
    """Solve for fractional ranks (m,) of the shortest round, the most even of them; or say, as a string, why it failed."""
    import cvxpy as cp

    r, T = cp.Variable(len(a)), cp.Variable()
    bounds = [cp.sum(r) == given.budget, r >= given.low, r <= given.high]
    fastest = cp.Problem(cp.Minimize(T), [a + cp.multiply(b, r) <= T, *bounds])
    trouble = _try_to_solve(fastest)
    if trouble:
        return trouble
    shortest = float(T.value) + SLACK * max(1.0, abs(float(T.value)))
    evenest = cp.Problem(cp.Minimize(cp.sum_squares(r)), [a + cp.multiply(b, r) <= shortest, *bounds])
    trouble = _try_to_solve(evenest)
    return trouble or np.asarray(r.value)


def round_ranks(r: Floats, a: Floats, b: Floats, given: Bounds, clients: Ints) -> Ints:
    """Round ranks (m,) to whole ones with the same sum: floor(r), and the greedy shares out the units that are left."""
    whole = np.clip(np.floor(r + SLACK).astype(np.int64), given.low, given.high)
    return share_out_units(a, b, whole, given.high, given.budget, clients)


def _try_to_solve(problem: Any) -> str:
    """Solve with Clarabel and no other solver; returns what went wrong, or an empty string."""
    import cvxpy as cp

    try:
        problem.solve(solver=cp.CLARABEL)
    except cp.SolverError as error:
        return f"Clarabel failed ({error})"
    return "" if problem.status == cp.OPTIMAL else f"Clarabel found no optimum ({problem.status})"
