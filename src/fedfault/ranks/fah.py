"""FAH-QLoRA: a mean rank that follows the rate of progress, shared out for the shortest round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.allocation.bounds import MeanRank, find_bounds, make_allocation
from fedfault.ranks.exact import share_out_units
from fedfault.registry import register
from fedfault.scheduling import Allocation, Floats, Memory, Report, Scheduler, Situation

Step = Annotated[float, Field(gt=0)]


@register("scheduler")
def fah(
    *,
    r_bar: MeanRank = 8.0,  # the mean rank of the first round; as the other schedulers, 16 in the public re-implementation
    step_down: Step = 1.0,  # lambda_1 of the public re-implementation
    step_up: Step = 1.0,  # lambda_2 of the public re-implementation
    confidence: Annotated[float, Field(ge=0)] = 2.0,  # standard errors; 0 is the published bare sign
) -> Scheduler:
    """The mean rank follows the loss decrease per second, and `exact` shares it out (after FAH-QLoRA).

    With the mean rank r of a round, T = max_i seconds, and hats for the same clients' adapters cut by one rank:

    R = mean gain / T,  R^ = mean gain^ / T^;   R^ > R: r <- r - step_down;   R^ < R: r <- r + step_up   (eqs. 10 and 11)

    r moves only if the mean of gain^_i / T^ - gain_i / T over the clients is `confidence` standard errors from 0: it is a
    paired difference of two noisy losses, and its bare sign is a coin. Without such reports r stays. Then the round time is
    minimised with sum r_i = r * n. The first mean rank is that of the budget; afterwards the budget is r's. Where bounds
    gave clients less or more than r already, r does not move further that way.

    r_bar: the mean rank that may be spent on a client in a round
    step_down: by how much the mean rank falls when a smaller one gains more a second
    step_up: by how much it rises when a smaller one gains less
    confidence: standard errors by which the gains must differ before a rank moves

    Reference: Gao et al., IEEE INFOCOM 2025, 10.1109/INFOCOM55648.2025.11044641, as described in public re-implementations.
    """

    def observe(memory: Memory, reports: Sequence[Report]) -> Memory:
        faster = _compare_gain_rates(reports)
        if not len(faster) or abs(faster.mean()) <= confidence * _standard_error(faster):
            return memory
        r = memory["mean_rank"][0] if memory else r_bar
        given = float(np.mean([report.rank for report in reports]))
        if abs(given - r) < 1 / len(reports):  # the nearest that whole ranks come to it
            given = r
        r = min(r, max(r, given) - step_down) if faster.mean() > 0 else max(r, min(r, given) + step_up)
        return {"mean_rank": [r]}

    def assign(memory: Memory, s: Situation) -> Allocation:
        given = find_bounds(s, by_deadline=True, r_bar=memory["mean_rank"][0] if memory else None)
        a, b, ids = s.a[given.part], s.b[given.part], s.clients[given.part]
        return make_allocation(s, given, share_out_units(a, b, given.low, given.high, given.budget, ids))

    return Scheduler(assign, observe=observe, r_bar=r_bar, needs_gain=True, needs_gain_below=True)


def _compare_gain_rates(reports: Sequence[Report]) -> Floats:
    """By how much each client's gain a second would have been larger with one rank less: gain^_i / T^ - gain_i / T."""
    both = [
        (r.gain, r.gain_below, r.seconds, r.seconds_below)
        for r in reports
        if r.gain is not None and r.gain_below is not None and r.seconds_below is not None
    ]
    if not both:
        return np.zeros(0)
    gain, gain_below, seconds, seconds_below = (np.array(column) for column in zip(*both, strict=True))
    if min(seconds.max(), seconds_below.max()) <= 0:
        return np.zeros(0)
    faster: Floats = gain_below / seconds_below.max() - gain / seconds.max()
    return faster


def _standard_error(x: Floats) -> float:
    """The standard error of the mean; zero for a single value, so that its sign decides."""
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
