"""Ranks by what clients gained and how fast they were: the formula of the README of FedRankLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedfault.allocation.bounds import MeanRank, find_bounds, make_allocation
from fedfault.allocation.filling import fill_budget, round_shares
from fedfault.allocation.signals import (
    divide_by_median,
    read_average,
    start_average,
    to_arrays,
    to_lists,
    update_average,
)
from fedfault.registry import register
from fedfault.scheduling import Allocation, Memory, Report, Scheduler, Situation

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


@register("scheduler")
def lite(
    *,
    r_bar: MeanRank = 8.0,  # with all below: README of FedRankLite
    ema_alpha: Share = 0.3,
    gain_weight: Weight = 0.6,
    throughput_weight: Weight = 0.4,
    deadline_penalty: Share = 0.5,
    units: Literal["relative", "original"] = "relative",
) -> Scheduler:
    """Ranks in proportion to averaged gain and throughput, after FedRankLite: ours, or shared out as published (`units`).

    score_i = gain_weight * EMA(gain) + throughput_weight * EMA(throughput), multiplied by `deadline_penalty` if the client's
    last round exceeded the deadline, dropped or not. Ranks are score_i / sum of scores * budget within bounds. The gain must
    be measured against the loss of the whole model received, or clients of low rank look like large improvers.

    units=original shares out as published: nats and tokens a second are added as they are, so that throughput decides nearly
    alone; rank_i = clamp(round(score_i / sum * budget), l_i, u_i), and what misses the budget is corrected at the client of
    the largest score where units are left and at that of the smallest where there are too many. units=relative is ours:
    gain and throughput are taken over the cohort's median (of positive values), between 1/4 and 4, so that neither seconds
    nor nats decide what counts, and the budget is filled like water, so that clients at a bound leave the others in
    proportion.

    The signals are ours in both, where the published code (fedranklite-slm, src/schedulers/lite.py) does otherwise: averages
    are corrected for their start at zero (there they start at the first value), the gain is clipped after averaging (there
    before), a client never seen counts as the median (there its score is 1), throughput is tokens a second of all of a
    client's work (there samples a second of training), and ranks are not lowered afterwards by an estimate of the time. So
    throughput falls with the rank that was assigned, ranks may oscillate, and nothing keeps a slow client within the
    deadline: see `lite_star`.

    r_bar: the mean rank that may be spent on a client in a round
    ema_alpha: the share of the newest round in the running means; 1 forgets all before
    gain_weight: the weight of a client's recent gain in its score
    throughput_weight: the weight of its speed in its score
    deadline_penalty: what the score of a client that missed the deadline is multiplied by
    units: whether gain and speed are counted relative to the median of the clients, or added in nats and tokens a
      second as published
    """

    def init(num_clients: int) -> Memory:
        return {
            **start_average("gain", num_clients),
            **start_average("speed", num_clients),
            "late": [0.0] * num_clients,
        }

    def observe(memory: Memory, reports: Sequence[Report]) -> Memory:
        m = to_arrays(memory)
        update_average(m, "gain", ((r.client, r.gain) for r in reports if r.gain is not None), ema_alpha)
        update_average(m, "speed", ((r.client, r.tokens / r.seconds) for r in reports if r.seconds > 0), ema_alpha)
        m["late"][[r.client for r in reports]] = [float(r.exceeded) for r in reports]
        return to_lists(m)

    def assign(memory: Memory, s: Situation) -> Allocation:
        given = find_bounds(s, by_deadline=False)
        ids = s.clients[given.part]
        gain = read_average(memory, "gain", ids, ema_alpha).clip(0)
        speed = read_average(memory, "speed", ids, ema_alpha)
        if units == "relative":
            gain, speed = divide_by_median(gain), divide_by_median(speed)
        share_out = fill_budget if units == "relative" else round_shares
        late = np.array(memory["late"])[ids] > 0
        score = (gain_weight * gain + throughput_weight * speed) * np.where(late, deadline_penalty, 1.0)
        return make_allocation(s, given, share_out(score, given.low, given.high, given.budget, ids))

    return Scheduler(assign, init, observe, r_bar=r_bar, needs_gain=True)
