"""`lite` without its feedback loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.allocation.bounds import MeanRank, find_bounds, make_allocation
from fedfault.allocation.filling import fill_budget
from fedfault.allocation.signals import (
    divide_by_median,
    read_average,
    start_average,
    to_arrays,
    to_lists,
    update_average,
)
from fedfault.ranks.lite import Share, Weight
from fedfault.registry import register
from fedfault.scheduling import Allocation, Floats, Ints, Memory, Report, Scheduler, Situation
from fedfault.seeds import rng

FLOOR = 0.05  # of a typical score: nobody's score vanishes
RECENT = 3  # rounds of a client whose violations of the deadline count


@register("scheduler")
def lite_star(
    *,
    r_bar: MeanRank = 8.0,  # this and the next four: README of FedRankLite, as in `lite`
    ema_alpha: Share = 0.3,
    gain_weight: Weight = 0.6,
    throughput_weight: Weight = 0.4,
    deadline_penalty: Share = 0.5,
    keep: Share = 0.9,  # as the forgetting of the time estimates: half of what is known is gone after 7 rounds
    # one round in ten lets clients of low rank show what they can do
    explore: Annotated[float, Field(ge=0, le=1)] = 0.1,
) -> Scheduler:
    """`lite` without its feedback loops: speed does not depend on rank, deadlines are caps, old gains fade, it explores.

    s_i = max(gain_weight * rel(g_i) + throughput_weight * rel(1 / a_i), 0.05) * deadline_penalty^violations, where
    g_i         moving average of the gain without the bias of its start, clipped at 0, drawn to the cohort's median by
                keep^age, age in rounds since the gain was last observed; the median itself for clients never seen
    a_i         seconds of the client's round at rank 0: its speed does not fall when it is given more
    rel         over the cohort's median of positive values, between 1/4 and 4
    violations  of the deadline in the client's last three rounds, dropped or not
    u_i         also floor((D - a_i) / b_i) for the deadline D; a client with u_i < l_i is left out

    Ranks are s_i over their sum times the budget, by water-filling. Scores are equal before the first reports, and with
    probability `explore` in any round, so that a client with a low rank, hence a low gain, hence a low rank, gets out.

    r_bar: the mean rank that may be spent on a client in a round
    ema_alpha: the share of the newest round in the running means; 1 forgets all before
    gain_weight: the weight of a client's recent gain in its score
    throughput_weight: the weight of its speed in its score
    deadline_penalty: what the score of a client that missed the deadline is multiplied by
    keep: what is kept a round of the weight of a gain that was last seen then
    explore: the chance of a round in which all scores count as equal
    """

    def init(num_clients: int) -> Memory:
        zeros = [0.0] * num_clients
        return {**start_average("gain", num_clients), "age": zeros, "late": zeros, "reports": zeros}

    def observe(memory: Memory, reports: Sequence[Report]) -> Memory:
        m = to_arrays(memory)
        m["age"] += 1
        seen = update_average(m, "gain", ((r.client, r.gain) for r in reports if r.gain is not None), ema_alpha)
        m["age"][seen] = 0
        ids = [r.client for r in reports]
        m["reports"][ids] += 1
        m["late"][ids] = (2 * m["late"][ids] + [r.exceeded for r in reports]) % 2**RECENT  # one bit a round
        return to_lists(m)

    def assign(memory: Memory, s: Situation) -> Allocation:
        given = find_bounds(s, by_deadline=True)
        score, events = np.ones(len(given.part)), []
        if rng(s.seed, "explore", s.round).random() < explore:
            events.append("explores with equal scores")
        elif any(memory["reports"]):
            score = compute_scores(memory, s, given.part)
        ids = s.clients[given.part]
        return make_allocation(s, given, fill_budget(score, given.low, given.high, given.budget, ids), *events)

    def compute_scores(memory: Memory, s: Situation, part: Ints) -> Floats:
        ids = s.clients[part]
        gain = _fade_gain(read_average(memory, "gain", ids, ema_alpha).clip(0), np.array(memory["age"])[ids], keep)
        speed = 1 / np.maximum(s.a[part], 1e-9 * s.a[part].max(initial=0)) if s.a[part].any() else np.ones(len(ids))
        mixed = gain_weight * divide_by_median(gain) + throughput_weight * divide_by_median(speed)
        late = np.array(memory["late"], dtype=np.int64)[ids]
        violations = sum((late >> bit) & 1 for bit in range(RECENT))
        score: Floats = np.maximum(mixed, FLOOR) * deadline_penalty**violations
        return score

    return Scheduler(assign, init, observe, r_bar=r_bar, needs_gain=True)


def _fade_gain(gain: Floats, age: Floats, keep: float) -> Floats:
    """Draw gains to the median of the cohort, the older the more."""
    typical = np.median(gain) if len(gain) else 0.0
    faded: Floats = typical + keep**age * (gain - typical)
    return faded
