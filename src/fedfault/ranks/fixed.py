"""The scheduler of ranks that stay the same in every round."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.allocation.bounds import find_bounds, make_allocation, name_clients
from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.scheduling import Allocation, Memory, Scheduler, Situation

Rank = Annotated[int, Field(ge=1)]


@register("scheduler")
def fixed(
    *,
    rank: Rank | None = None,  # the README's is 8, of r_max 16; here the most that each client can hold
    ranks: list[Rank] | None = None,
) -> Scheduler:
    """The same ranks in every round: `rank` for all, or `ranks` of clients 0, 1, ..., from the start again when they end.

    Without either, the largest rank of each client. There is no budget: to compare with a scheduler that has one, set `rank`
    to its r_bar. A client that cannot hold its rank trains with the nearest one that it can, and an event says so.

    Raises `UserError` if both are given, or no rank in `ranks`.

    rank: the rank of all clients
    ranks: the rank of clients 0, 1, ...
    """
    if ranks is not None and (rank is not None or not ranks):
        raise UserError(f"scheduler fixed: rank={rank} and ranks={ranks}; give one of them, and at least one rank")
    cycle = np.array(ranks or [], dtype=np.int64) if rank is None else np.array([rank])

    def assign(memory: Memory, s: Situation) -> Allocation:
        given = find_bounds(s, by_deadline=False, r_bar=0.0)  # there is no budget that could not fit
        if not len(cycle):
            return make_allocation(s, given, given.high)
        clients = s.clients[given.part]
        asked = cycle[clients % len(cycle)]
        held = np.clip(asked, given.low, given.high)
        changed = clients[held != asked]
        if not len(changed):
            return make_allocation(s, given, held)
        return make_allocation(s, given, held, f"{name_clients(changed)} cannot hold the fixed rank; the nearest it is")

    return Scheduler(assign, asked=float(cycle.mean()) if len(cycle) else None)
