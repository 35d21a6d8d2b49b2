"""The shortest round that a budget of ranks allows, by a linear program and rounding."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from fedfault.allocation.bounds import MeanRank, Room, allocation, room
from fedfault.ranks.exact import greedy, scaled
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
    l_i. Clients that do not bind leave the optimum open: of all optimal r, the one of least sum r_i^2 is taken. Rounding
    cuts fractions off and gives the units that are left to the clients that are done first with them; the round takes at
    most max_i b_i longer than T. Clients that cannot meet the deadline are left out.

    Without cvxpy, or where the solver finds no optimum, the `exact` greedy decides, and an event says so.

    Reference: problem P1 of FAH-QLoRA (Gao et al., IEEE INFOCOM 2025, 10.1109/INFOCOM55648.2025.11044641).
    """

    def assign(memory: Memory, s: Situation) -> Allocation:
        given = room(s, by_deadline=True)
        a, b, ids = s.a[given.part], s.b[given.part], s.clients[given.part]
        if not len(a):
            return allocation(s, given, given.low)
        found = relaxed(*scaled(a, b), given) if find_spec("cvxpy") else "cvxpy is not installed (fedfault[cvx])"
        if isinstance(found, str):
            ranks = greedy(a, b, given.low, given.high, given.budget, ids)
            return allocation(s, given, ranks, f"{found}; the exact greedy set the ranks")
        return allocation(s, given, rounded(found, a, b, given, ids))

    return Scheduler(assign, r_bar=r_bar)


def relaxed(a: Floats, b: Floats, given: Room) -> Floats | str:
    """Fractional ranks (m,) of the shortest round, those of least squares among them; or why there are none."""
    import cvxpy as cp

    r, T = cp.Variable(len(a)), cp.Variable()
    bounds = [cp.sum(r) == given.budget, r >= given.low, r <= given.high]
    fastest = cp.Problem(cp.Minimize(T), [a + cp.multiply(b, r) <= T, *bounds])
    trouble = _solved(fastest)
    if trouble:
        return trouble
    shortest = float(T.value) + SLACK * max(1.0, abs(float(T.value)))
    evenest = cp.Problem(cp.Minimize(cp.sum_squares(r)), [a + cp.multiply(b, r) <= shortest, *bounds])
    trouble = _solved(evenest)
    return trouble or np.asarray(r.value)


def rounded(r: Floats, a: Floats, b: Floats, given: Room, clients: Ints) -> Ints:
    """Whole ranks (m,) with the same sum: floor(r), then the greedy from there."""
    whole = np.clip(np.floor(r + SLACK).astype(np.int64), given.low, given.high)
    return greedy(a, b, whole, given.high, given.budget, clients)


def _solved(problem: Any) -> str:
    """Solve with Clarabel, and no other; what went wrong, or nothing."""
    import cvxpy as cp

    try:
        problem.solve(solver=cp.CLARABEL)
    except cp.SolverError as error:
        return f"Clarabel failed ({error})"
    return "" if problem.status == cp.OPTIMAL else f"Clarabel found no optimum ({problem.status})"
