"""Changes a checkpoint so that a federation with other settings can go on from it: what is kept, and what starts anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from fedfault.errors import UserError
from fedfault.rounds.engine import begin
from fedfault.rounds.exchange import OWN
from fedfault.rounds.federation import Federation
from fedfault.scheduling import Memory
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State

RESTARTS = {  # what memory was made with: sums of what clients sent, averaged and weighed in one way
    "federation.algorithm.name",
    "federation.aggregation.name",
    "federation.weighting",
}


def carry_over(fed: Federation, state: State, changed: Collection[str]) -> tuple[State, list[str]]:
    """Carry a checkpoint over to a federation with these changed settings; also notes on what that means.

    The adapter, what was added to the frozen weights, ranks and participation are kept. So is the memory of server and
    clients, unless it would mean something else now (`RESTARTS`) or has another shape: then it starts as in a new run.
    Factors that stay with clients start as the server's; where they no longer do, the server has their mean already.

    Raises `UserError` where the ranks that clients have by now do not fit.
    """
    _check_ranks(fed, state, changed)
    fresh = begin(fed, state.adapter)
    restarts = bool(RESTARTS & set(changed)) or _list_shapes(fresh) != _list_shapes(state)
    start = fresh if restarts else state
    clients = {name: a for name, a in start.clients.items() if name != OWN}
    if OWN in fresh.clients:
        clients[OWN] = state.clients.get(OWN, fresh.clients[OWN])
    t, notes = state.round, []
    if restarts and any(map(any, (*_list_shapes(fresh), *_list_shapes(state)))):
        notes.append(f"what the algorithm remembers starts anew after round {t}")
    if "federation.aggregation.name" in changed:
        notes.append("bytes to clients are counted as if the aggregation had been the new one from the start")
    if OWN in state.clients and OWN not in clients:
        notes.append("factors that clients kept are replaced by their mean; sending them is not counted in the bytes")
    resized = bool({"training.clients_per_pass", "training.batch_size"} & set(changed))
    passes = fresh.clients_per_pass if resized else state.clients_per_pass
    plans = _carry_plans(fed, fresh, state, changed)
    kept = replace(state, memory=start.memory, clients=clients, stored=start.stored, weights=fresh.weights, plans=plans)
    if "flight" not in plans:
        kept = replace(kept, versions=None)
        if state.versions is not None or state.plans.get("flight"):
            notes.append("clients that were at work when the checkpoint was written start anew")
    return replace(kept, clients_per_pass=passes), notes


def _carry_plans(fed: Federation, fresh: State, state: State, changed: Collection[str]) -> dict[str, Memory]:
    """Carry over what was learned of the hardware, if there is any and its clock is the same, and what clients reported."""
    clock = any(key.startswith("clock") for key in changed)
    told = {name: state.plans[name] for name in ("selection",) if name in state.plans}
    kept = fresh.plans if clock or not state.plans or not fresh.plans else state.plans
    return {**told, **{name: plan for name, plan in kept.items() if name != "flight" or fed.asynchronous is not None}}


def _list_shapes(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """List the shapes of what server and clients remember, by name."""

    def shapes(memory: Mapping[str, Adapter]) -> dict[str, Any]:
        return {name: a.flat.shape for name, a in memory.items() if name != OWN}

    return shapes(state.memory), shapes(state.clients)


def _check_ranks(fed: Federation, state: State, changed: Collection[str]) -> None:
    """Ranks may have become unequal since the configuration was checked."""
    if len(set(state.ranks)) == 1:
        return
    if why := fed.algorithm.refusal("unequal ranks"):
        raise UserError(
            f"clients have ranks {min(state.ranks)} to {max(state.ranks)} after round {state.round}, and the new algorithm "
            f"needs one rank for all, because {why}; choose another federation.algorithm"
        )
    if {"folds", "refactors"} <= fed.aggregation.traits and "federation.aggregation.name" in changed:
        raise UserError(
            f"clients have ranks {min(state.ranks)} to {max(state.ranks)} after round {state.round}: those of lower rank "
            "hold a part of the adapter, and stacking their factors would lose the rest; choose another "
            "federation.aggregation"
        )
