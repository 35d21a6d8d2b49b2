"""The round loop: a generator that yields what outlives a round and what was measured in it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from fedfault.hardware.plan import RoundPlan, observe_round
from fedfault.metrics.updates import update_norms
from fedfault.privacy.published import publish
from fedfault.records import ClientRecord, RoundRecord, Score
from fedfault.rounds import integrity
from fedfault.rounds.arrivals import Arrivals, add_noise_alone, find_personal_models
from fedfault.rounds.asynchrony import find_starts, keep_flights, plan_update, take_in_stale
from fedfault.rounds.clients import init_client_memory, train_clients
from fedfault.rounds.dispatch import find_start, learn_from_round, plan_round, remember_losses
from fedfault.rounds.exchange import (
    OWN,
    Cohort,
    count_bytes_down,
    count_bytes_up,
    full_rank,
    mark_as_sent,
    select_rows,
)
from fedfault.rounds.federation import CohortRequest, CohortResult, Federation
from fedfault.rounds.forging import announce_attacks, forge_updates
from fedfault.rounds.local import Passes, weigh_clients
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Message, Pooled, State, Trained, Uploads
from fedfault.types.task import FinishedRound, Measurements, Probe


def begin(fed: Federation, x: Adapter | None = None) -> State:
    """The state before the first round; with x (P,), from there on."""
    x, N = fed.task.init(fed.seed) if x is None else x, fed.total_clients
    home = {} if fed.memory_elsewhere else init_client_memory(fed, x)
    return State(
        x,
        memory=fed.algorithm.init(x),
        clients={name: Adapter(a.layout, a.flat.expand(N, -1).clone()) for name, a in home.items()},
        weights=tuple(weigh_clients(fed.task, fed.work.weighting, range(N)).tolist()),
        ranks=fed.ranks or (full_rank(x.layout),) * N,
        seen=(0,) * N,
        stored=(0,) * N,
        plans={} if fed.hardware is None else fed.hardware.init_memory(),
        clients_per_pass=None if fed.task.room is None else fed.clients_per_pass,
        room=fed.task.room,
    )


def rounds(fed: Federation, state: State) -> Iterator[tuple[State, RoundRecord]]:
    """Yield (state, record) after every round from where `state` stands; first the untrained model, as round 0.

    The caller saves, detects, plots and stops. A state that was saved and loaded goes on to the same numbers.
    """
    prepare_task(fed, state)
    if state.round == 0:
        started = time.perf_counter()
        fed.tell("evaluating the base")
        scores = fed.task.evaluate(state.adapter)
        record = RoundRecord(0, scores=scores, seconds={"evaluate": time.perf_counter() - started})
        yield state, publish(record, state, fed.budget)
    while state.round < fed.num_rounds:
        state, record = run_round(fed, state)
        yield state, publish(record, state, fed.budget)


def prepare_task(fed: Federation, state: State) -> None:
    """Give the task the frozen weights and the passes that a state has, before the round after it."""
    fed.task.fold(state.base)
    fed.task.room = state.room or fed.task.room


@dataclass(frozen=True)
class RoundStart:
    """A round as it starts: the plan, the request to the clients, what was sent and what will be measured."""

    fed: Federation
    state: State
    plan: RoundPlan
    asked: CohortRequest
    down: Message  # what the server sent, a row for each client of what has rows
    probes: Mapping[str, Probe]  # of this round
    evaluated: bool  # whether scores are taken in this round


def run_round(fed: Federation, state: State) -> tuple[State, RoundRecord]:
    """Run one round: broadcast, local training of the cohort, aggregation, evaluation, probes."""
    down = fed.algorithm.broadcast(state)
    how = fed.asynchronous
    made = plan_round(fed, state, down) if how is None else plan_update(fed, how, state, down)
    made = replace(made, events=(*announce_attacks(fed.attacks, state.round + 1), *made.events))
    if not made.training:
        return _finish_without_updates(fed, state, made, sum(turn.bytes_down for turn in made.turns))
    r = _start_round(fed, state, down, made)
    started = time.perf_counter()
    done = (fed.remote or train_clients)(fed, r.asked)
    trained = time.perf_counter() - started - done.probing - done.waited
    if not done.cohort.clients:
        made = made.keep_arrived([], done.unreached)
        sent = _sum_bytes_sent(r, _count_bytes_sent(r, made))
        return _finish_without_updates(fed, state, made, sent, done.events, {"train": trained})
    return _finish_round(r, done, trained)


def _finish_without_updates(
    fed: Federation,
    state: State,
    made: RoundPlan,
    bytes_down: int,
    events: Sequence[str] = (),
    seconds: Mapping[str, float] = MappingProxyType({}),
) -> tuple[State, RoundRecord]:
    """Finish a round from which no update arrived: the model stays, the round counts."""
    clock, t = time.perf_counter(), state.round + 1
    after = replace(mark_as_sent(add_noise_alone(fed, state), made.sent), round=t, last=state.adapter)
    if fed.hardware is not None:
        after = replace(after, plans=observe_round(fed.hardware, state.plans, made, {}))
    after = replace(after, plans=remember_losses(fed, after.plans, t, made.clients, {}))
    if fed.asynchronous is not None:
        after = keep_flights(state, after, made)
    scores = fed.task.evaluate(after.adapter, find_personal_models(fed, after)) if _is_evaluated(fed, t) else {}
    after, said = _keep_room(fed, after)
    return after, RoundRecord(
        round=t,
        scores=scores,
        probes=made.readings,
        bytes_down=bytes_down,
        turns=made.turns,
        seconds={**seconds, "evaluate": time.perf_counter() - clock},
        events=(*made.events, *events, *said, "nothing was aggregated; the model stays as it is"),
    )


def _keep_room(fed: Federation, state: State) -> tuple[State, list[str]]:
    """The state with the passes that the task takes by now, and what there is to say of those without gradients."""
    room, events = fed.task.room, fed.task.take_events()
    if room is None or room == state.room:
        return state, events
    if state.room:
        events.append(f"out of memory: {room.evaluation:,} tokens in an evaluation pass from now on")
    return replace(state, room=room), events


def _count_bytes_sent(r: RoundStart, made: RoundPlan) -> dict[int, int]:
    """Count the bytes that each client was sent, by id, also if its work does not arrive."""
    cohort = r.asked.cohort
    sizes = zip(cohort.clients, count_bytes_down(cohort, r.down, r.state, r.fed.aggregation), strict=True)
    return {k: size for k, size in sizes if k in made.sent}


def _sum_bytes_sent(r: RoundStart, sent: Mapping[int, int]) -> int:
    """Sum the bytes to all clients of a round, those included who were known to be too late."""
    return sum(sent.values()) + sum(turn.bytes_down for turn in r.plan.turns if turn.fate == "dropped")


def _is_evaluated(fed: Federation, t: int) -> bool:
    return t % fed.evaluate_every == 0 or t == fed.num_rounds


def _start_round(fed: Federation, state: State, down: Message, made: RoundPlan) -> RoundStart:
    places, evaluated = made.training, _is_evaluated(fed, state.round + 1)
    ranks = made.ranks[places].clip(max=full_rank(state.adapter.layout))
    assigned = dict(zip(made.clients[places].tolist(), ranks.tolist(), strict=True))
    cohort = Cohort.of(list(assigned), state, fed.aggregation, assigned)
    down = select_rows(down, cohort.rows)
    if fed.asynchronous is not None:
        down = {**down, "x": find_starts(state, made.versions)}
    asked = _ask_clients(fed, state, cohort, down, made.effort[places].tolist())
    probes = {name: p for name, p in fed.probes.items() if evaluated or not p.sparse}
    asked = replace(asked, halves="x" in asked.received and any(p.gradients for p in probes.values()))
    return RoundStart(fed, state, made, asked, down, probes, evaluated)


def _ask_clients(fed: Federation, state: State, cohort: Cohort, down: Message, effort: list[float]) -> CohortRequest:
    t, K = state.round + 1, len(cohort.clients)
    if fed.effort is not None:
        effort = [min(share, fed.effort(t, k)) for share, k in zip(effort, cohort.clients, strict=True)]
    return CohortRequest(
        round=t,
        cohort=cohort,
        weight=torch.tensor([state.weights[k] for k in cohort.clients], dtype=torch.float64),
        received={**cohort.cut_message(down), **({"x": cohort.start(down["x"], state)} if "x" in down else {})},
        memory={n: replace(a, flat=a.flat[cohort.rows]) for n, a in state.clients.items() if n != OWN},
        effort=effort,
        passes=Passes(min(state.clients_per_pass or fed.clients_per_pass or K, K), need=fed.need, tell=fed.tell),
        base=state.base,
    )


def _finish_round(r: RoundStart, done: CohortResult, trained: float) -> tuple[State, RoundRecord]:
    """Finish a round after the clients' part, which took `trained` seconds: aggregate, evaluate, measure, record."""
    fed, state, cohort = r.fed, r.state, done.cohort
    done = forge_updates(fed.attacks, done, r.asked.round, fed.seed)
    done = _correct_weights(r, done)
    made = r.plan.keep_arrived(cohort.clients, done.unreached)
    if fed.asynchronous is not None:
        done = take_in_stale(fed.asynchronous, state, made, done)
    clock = time.perf_counter()
    senders = _prune_cohort(fed, done)
    up = senders.cut_message(done.up)
    good, events = integrity.find_bad_updates(up, done.home, cohort.clients, fed.bad_updates)
    if (many := sum(good)) < fed.aggregation.least:
        events = [*events, f"{many} updates are fewer than the {fed.aggregation.least} that the aggregation needs"]
    before = state if senders is cohort else replace(state, ranks=_prune_ranks(state, senders, good))
    arrived = Arrivals(fed, before, senders, up, done.home, good)
    after, averages = arrived.aggregate()
    after = replace(mark_as_sent(after, made.sent), round=r.asked.round, last=state.adapter)
    after = replace(after, clients_per_pass=done.clients_per_pass or state.clients_per_pass)
    plans = learn_from_round(fed, state, made, cohort, up, done.trained, trained)
    told = {k: loss for k, loss, ok in zip(cohort.clients, done.trained.loss.tolist(), good, strict=True) if ok}
    after = replace(after, plans=remember_losses(fed, plans, r.asked.round, made.clients, told))
    if fed.asynchronous is not None:
        after = keep_flights(state, after, made)
    # What hostile clients send is not what their memory says, so that invariants of both do not hold
    if not fed.memory_elsewhere and not any(a.attack.forge for a in fed.attacks):
        integrity.check_state(fed.algorithm, after)
    fed.task.fold(after.base)
    aggregated = time.perf_counter()
    fed.tell("evaluating")
    scores = fed.task.evaluate(after.adapter, find_personal_models(fed, after)) if r.evaluated else {}
    seconds = {"train": trained, "aggregate": aggregated - clock, "evaluate": time.perf_counter() - aggregated}
    readings, spent = _take_probes(r, after, done, averages, arrived, scores)
    after, said = _keep_room(fed, after)
    sent = _count_bytes_sent(r, made)
    moved = [(up, sent[k]) for k, up in zip(cohort.clients, count_bytes_up(senders, up), strict=True)]
    records = _record_clients(r, done, _weigh_clients(done.trained, good, averages), readings, moved)
    return after, RoundRecord(
        round=r.asked.round,
        clients=records,
        scores=scores,
        probes={**readings.probes, **made.readings},
        matrices={name: tuple(map(tuple, rows)) for name, rows in readings.matrices.items()},
        bytes_up=sum(c.bytes_up for c in records),
        bytes_down=_sum_bytes_sent(r, sent),
        turns=made.turns,
        seconds=seconds | spent,
        events=(*made.events, *done.events, *events, *said),
    )


def _correct_weights(r: RoundStart, done: CohortResult) -> CohortResult:
    """The result with weights that make up for the chances with which clients were drawn, where these are known."""
    fed, sent = r.fed, done.up.get("n")
    if sent is None or not done.cohort.clients:
        return done
    now = 0.0 if fed.hardware is None else find_start(fed.hardware, r.state)
    weight = fed.correct_weights(r.asked.round, done.cohort.clients, sent, now)
    if weight is sent:
        return done
    return replace(done, up={**done.up, "n": weight}, trained=replace(done.trained, weight=weight))


def _take_probes(
    r: RoundStart,
    after: State,
    done: CohortResult,
    averages: Sequence[tuple[Uploads, Pooled]],
    arrived: Arrivals,
    scores: Mapping[str, Score],
) -> tuple[Measurements, dict[str, float]]:
    """Take the probes of the round; also the seconds that each took."""
    finished = FinishedRound(
        round=r.asked.round,
        seed=r.fed.seed,
        task=r.fed.task,
        before=r.state,
        after=after,
        clients=done.cohort.clients,
        start=done.start,
        trained=done.trained,
        averages=averages,
        halves=done.halves,
        private=done.cohort.private is not None,
        good=arrived.good,
        scores=scores,
        ablate=arrived.ablate if r.fed.budget is None else None,
        least=r.fed.aggregation.least,
    )
    probes: dict[str, float] = {}
    clients: dict[str, Sequence[float]] = {}
    matrices: dict[str, Sequence[Sequence[float]]] = {}
    seconds: dict[str, float] = {}
    sharing = sum(p.gradients for p in r.probes.values())
    for name, probe in r.probes.items():
        clock = time.perf_counter()
        r.fed.tell(f"measuring {name.replace('_', ' ')}")
        found = probe.measure(finished)
        probes |= found.probes
        clients |= found.clients
        matrices |= found.matrices
        seconds[f"probe/{name}"] = time.perf_counter() - clock + (done.probing / sharing if probe.gradients else 0.0)
    return Measurements(probes, clients, matrices), seconds


def _prune_cohort(fed: Federation, done: CohortResult) -> Cohort:
    """The cohort with the ranks that its clients keep after training, and send."""
    prune, layout, cohort = fed.aggregation.new_ranks, fed.task.layout, done.cohort
    if prune is None:
        return cohort
    return cohort.with_ranks(layout, prune(layout, done.start, done.trained.adapter.flat, cohort.ranks))


def _prune_ranks(state: State, cohort: Cohort, good: list[bool]) -> tuple[int, ...]:
    """The ranks of all clients after those of the cohort that sent something have pruned theirs."""
    ranks = list(state.ranks)
    for k, r, ok in zip(cohort.clients, cohort.ranks.tolist(), good, strict=True):
        ranks[k] = r if ok else ranks[k]
    return tuple(ranks)


def _weigh_clients(local: Trained, good: list[bool], averages: Sequence[tuple[Uploads, Pooled]]) -> list[float]:
    """Each client's share in the average, by the aggregation's own weights where it has some; 0 for who is left out."""
    weight = local.weight.double() * torch.tensor(good)
    if averages and (own := averages[0][1].weight) is not None:
        weight = torch.zeros_like(weight).masked_scatter(torch.tensor(good), own.to(weight))
    share: list[float] = (weight / weight.sum().clamp(min=1e-300)).tolist()  # all are left out: 0
    return share


def _record_clients(
    r: RoundStart, done: CohortResult, share: Sequence[float], readings: Measurements, moved: Sequence[tuple[int, int]]
) -> tuple[ClientRecord, ...]:
    local, norms = done.trained, update_norms(r.fed.task.layout, done.start, done.trained.adapter.flat)
    (
        steps,
        tokens,
        loss,
        grad_norm,
        ranks,
    ) = (  # all at once: one by one they would cost more than a round of small clients
        values.tolist()
        for values in (local.num_steps, local.num_tokens, local.loss, local.grad_norm, done.cohort.ranks)
    )
    versions = zip(r.plan.clients.tolist(), r.plan.versions, strict=False)
    stale = {k: {"staleness": float(r.state.round - version)} for k, version in versions}
    return tuple(
        ClientRecord(
            client=k,
            weight=share[i],
            steps=steps[i],
            tokens=tokens[i],
            loss=loss[i],
            grad_norm=grad_norm[i],
            update_norm=norms[i],
            bytes_up=moved[i][0],
            bytes_down=moved[i][1],
            rank=ranks[i] or None,
            probes={name: values[i] for name, values in readings.clients.items() if math.isfinite(values[i])}
            | stale.get(k, {}),
        )
        for i, k in enumerate(done.cohort.clients)
    )
