"""Asynchronous rounds: which clients arrive, what each started from, and how old updates are taken in.

All clients whose updates make a round are rows of one pass, although they started from different models of the server: a
stale client is a row with a start of its own. Its training is done here in the round in which it arrives.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedfault.hardware.flight import Asynchrony, Flight, gather, read_flights, write_flights
from fedfault.hardware.plan import RoundPlan, simulate_work
from fedfault.records import Turn
from fedfault.rounds.dispatch import limit_ranks, weigh_messages
from fedfault.rounds.federation import CohortResult, Federation
from fedfault.seeds import rng
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Message, State


def plan_update(fed: Federation, how: Asynchrony, state: State, down: Message) -> RoundPlan:
    """Plan the round after `state`: send out clients where there is room, and let the first ones arrive.

    down: what the server sends now. Raises `ValueError` for a federation without a simulated clock.
    """
    t, hw, everyone = state.round + 1, fed.hardware, np.arange(fed.total_clients)
    if hw is None:
        raise ValueError("asynchronous clients need simulated hardware")
    wire = weigh_messages(fed, hw, state, everyone.tolist(), down)
    ranks = np.minimum(hw.caps.clip(0), np.array(state.ranks))
    able = hw.list_able(limit_ranks(hw, state))
    work = simulate_work(hw, state.plans, t, everyone, ranks, wire)
    parts = list(zip(*(part.tolist() for part in work.spent), strict=True))  # (N,) of (down, compute, up)
    began, calls = hw.read_clock(state.plans), 0

    def send(now: float, places: int, busy: Collection[int]) -> list[Flight]:
        nonlocal calls
        g, calls = rng(fed.seed, "departures", t, calls), calls + 1
        there = everyone[able & hw.available(t, now) & ~np.isin(everyone, list(busy))]
        there = g.permutation(there)
        known = fed.list_candidates(t, there, places, state.plans.get("selection", {}), work.spent.total)
        chosen = there[fed.selection.choose(known, g)].tolist()
        return [
            Flight(k, state.round, down, compute, up, due=now + down + compute + up)
            for k, (down, compute, up) in ((k, parts[k]) for k in chosen)
        ]

    def wait(now: float) -> float:
        return hw.wait(now, able)

    got = gather(read_flights(state.plans.get("flight", {})), began, how.buffer, fed.cohort_size, send, wait)
    arrived = sorted(got.arrived, key=lambda one: one.client)
    clients = np.array([one.client for one in arrived], dtype=np.int64)
    stale = [state.round - one.version for one in arrived]
    turns = [
        Turn(
            client=one.client,
            tier=hw.fleet.tier[one.client],
            rank=int(ranks[one.client]),
            fate="done",
            down=one.down,
            compute=one.compute,
            up=one.up,
            needed=one.down + one.compute + one.up,
            share=1.0,
            bytes_down=int(np.rint(work.bytes_down[one.client])),
            memory_mb=float(work.memory_mb[one.client]),
        )
        for one in arrived
    ]
    readings = {"round_seconds": got.now - began, "compliance": 1.0}
    readings |= {"staleness": float(np.mean(stale))} if stale else {}
    return RoundPlan(
        clients=clients,
        ranks=ranks[clients],
        effort=np.ones(len(clients)),
        turns=tuple(turns),
        slope=np.zeros(len(clients)),
        readings=readings,
        versions=tuple(one.version for one in arrived),
        away=tuple(got.away),
    )


def find_starts(state: State, versions: Sequence[int]) -> Adapter:
    """The models of the server, (K, P), that clients of these versions were sent, which are rounds."""
    kept = dict(zip(_list_versions(state), () if state.versions is None else state.versions.flat, strict=True))
    rows = [state.adapter.flat if v == state.round else kept[v] for v in versions]
    return replace(state.adapter, flat=torch.stack(rows))


def keep_flights(before: State, after: State, made: RoundPlan) -> State:
    """The state after a round with the clients that are still at work, and the models that they started from."""
    plans = {**after.plans, "flight": write_flights(made.away)}
    needed = sorted({one.version for one in made.away})
    return replace(after, plans=plans, versions=find_starts(before, needed) if needed else None)


def _list_versions(state: State) -> list[int]:
    """The rounds whose models `State.versions` has, in its order."""
    return sorted({one.version for one in read_flights(state.plans.get("flight", {}))})


def take_in_stale(how: Asynchrony, state: State, made: RoundPlan, done: CohortResult) -> CohortResult:
    """The result of a round with each update as it counts for the server's model x of now, so that their mean is the step.

    FedBuff: x + rate s (y - start); FedAsync: x + rate s (y - x), s being the discount of its staleness. What clients keep,
    and what they are recorded to have trained, stays as it is.
    """
    version = dict(zip(made.clients.tolist(), made.versions, strict=True))
    x, sent = state.adapter.flat, done.up["x"]
    counts = [how.rate * how.discount(state.round - version[k]) for k in done.cohort.clients]
    scale = torch.tensor(counts, dtype=torch.float64)[:, None].to(sent.flat)
    start: Tensor = x if how.mixes else done.start
    return replace(done, up={**done.up, "x": replace(sent, flat=x + scale * (sent.flat - start))})
