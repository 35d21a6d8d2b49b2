"""The round loop: a generator that yields what outlives a round and what was measured in it. No callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedfault import integrity
from fedfault.dispatch import learned, planned, sent_to
from fedfault.exchange import (
    OWN,
    Cohort,
    addressed,
    average_of,
    bytes_down,
    bytes_up,
    folded,
    full_rank,
    personal,
    remembered,
    selected,
    with_mean_of_private,
)
from fedfault.federation import Federation
from fedfault.hardware import Plan, observed
from fedfault.local import Passes, Trainer, weights
from fedfault.metrics.gradients import split_halves
from fedfault.metrics.updates import update_norms
from fedfault.records import ClientRecord, RoundRecord
from fedfault.types import (
    Adapter,
    Message,
    Moment,
    Pooled,
    Probe,
    Readings,
    State,
    Task,
    Trained,
    Uploads,
)


def begin(fed: Federation, x: Adapter | None = None) -> State:
    """The state before the first round; with x (P,), from there on."""
    x, N = fed.task.init(fed.seed) if x is None else x, fed.total_clients
    home = {**fed.algorithm.init_client(x)}
    if fed.aggregation.private(x.layout) is not None:
        home[OWN] = x
    return State(
        x,
        memory=fed.algorithm.init(x),
        clients={name: Adapter(a.layout, a.flat.expand(N, -1).clone()) for name, a in home.items()},
        weights=tuple(weights(fed.task, fed.work.weighting, range(N)).tolist()),
        ranks=fed.ranks or (full_rank(x.layout),) * N,
        seen=(0,) * N,
        plans={} if fed.hardware is None else fed.hardware.begin(),
    )


def rounds(fed: Federation, state: State) -> Iterator[tuple[State, RoundRecord]]:
    """Yield (state, record) after every round from where `state` stands; first the untrained model, as round 0.

    The caller saves, detects, plots and stops. A state that was saved and loaded goes on to the same numbers.
    """
    fed.task.fold(state.base)
    if state.round == 0:
        started = time.perf_counter()
        scores = fed.task.evaluate(state.adapter)
        yield state, RoundRecord(0, scores=scores, seconds={"evaluate": time.perf_counter() - started})
    while state.round < fed.num_rounds:
        state, record = one_round(fed, state)
        yield state, record


@dataclass(frozen=True)
class Opened:
    """A round up to local training: who trains, from what, with which streams."""

    fed: Federation
    state: State
    round: int
    plan: Plan
    cohort: Cohort
    passes: Passes
    door: integrity.Door
    train: Trainer
    down: Message  # what the server sent
    received: Message  # what arrived: cut to the clients' ranks, with what they kept at home
    memory: Mapping[str, Adapter]  # what each client of the cohort remembers
    base: Mapping[str, int]  # checksums of the frozen weights
    probes: Mapping[str, Probe]  # of this round
    evaluated: bool  # whether scores are taken in this round
    halves: tuple[Tensor, Tensor] | None
    seconds: float  # that they took


def one_round(fed: Federation, state: State) -> tuple[State, RoundRecord]:
    """Broadcast, local training of the cohort, aggregation, evaluation, probes."""
    started = time.perf_counter()
    down = fed.algorithm.broadcast(state)
    made = planned(fed, state, down)
    if not made.training:
        return _idle(fed, state, made)
    r = _open(fed, state, down, made)
    watched = integrity.Watched(r.train, r.door, r.received, r.cohort.clients)
    up, home = fed.algorithm.client(r.received, r.memory, watched)
    integrity.check_sent(watched, up, home, r.memory)
    return _close(r, up, home, time.perf_counter() - started - r.seconds)


def _idle(fed: Federation, state: State, made: Plan) -> tuple[State, RoundRecord]:
    """A round from which nothing arrived."""
    clock, t = time.perf_counter(), state.round + 1
    after = replace(sent_to(state, made, t), round=t, last=state.adapter)
    if fed.hardware is not None:
        after = replace(after, plans=observed(fed.hardware, state.plans, made, {}))
    scores = fed.task.evaluate(after.adapter, _personal(fed, after)) if _evaluated(fed, t) else {}
    return after, RoundRecord(
        round=t,
        scores=scores,
        probes=made.readings,
        bytes_down=sum(turn.bytes_down for turn in made.turns),
        turns=made.turns,
        seconds={"evaluate": time.perf_counter() - clock},
        events=(*made.events, "no client's work arrived; the model stays as it is"),
    )


def _evaluated(fed: Federation, t: int) -> bool:
    return t % fed.evaluate_every == 0 or t == fed.num_rounds


def _open(fed: Federation, state: State, down: Message, made: Plan) -> Opened:
    t, places = state.round + 1, made.training
    assigned = dict(zip(made.clients[places].tolist(), made.ranks[places].tolist(), strict=True))
    cohort = Cohort.of(list(assigned), state, fed.aggregation, assigned)
    K = len(cohort.clients)
    passes = Passes(min(state.clients_per_pass or fed.clients_per_pass or K, K))
    door = integrity.Door(fed.task)
    down = addressed(down, cohort.rows)
    received = {**cohort.cut_all(down), **({"x": cohort.start(down["x"], state)} if "x" in down else {})}
    evaluated = _evaluated(fed, t)
    probes = {name: p for name, p in fed.probes.items() if evaluated or not p.sparse}
    clock, halves = time.perf_counter(), None  # of the probes alone
    if any(p.gradients for p in probes.values()) and "x" in received:
        start = received["x"].flat.expand(K, -1)
        around = {"seed": fed.seed, "round": t, "per_pass": passes.size}
        halves = split_halves(fed.task, start, cohort.clients, cohort.trainable, **around)
    seconds = time.perf_counter() - clock
    return Opened(
        fed=fed,
        state=state,
        round=t,
        plan=made,
        cohort=cohort,
        passes=passes,
        door=door,
        train=_trainer(fed, door, cohort, t, passes, made.effort[places].tolist()),
        down=down,
        received=received,
        memory={n: replace(a, flat=a.flat[cohort.rows]) for n, a in state.clients.items() if n != OWN},
        base=fed.task.checksums(),
        probes=probes,
        evaluated=evaluated,
        halves=halves,
        seconds=seconds,
    )


def _close(r: Opened, up: Message, home: Mapping[str, Adapter], trained: float) -> tuple[State, RoundRecord]:
    """What follows local training; `trained` are the seconds that it took."""
    fed, state, cohort, passes, clients = r.fed, r.state, r.cohort, r.passes, r.cohort.clients
    clock = time.perf_counter()
    integrity.check_base(fed.task, r.base, clients)
    local = _checked(r.train, cohort)
    senders = _pruned(fed, cohort, r.train.start, local)
    up = senders.cut_all(up)
    good, events = integrity.quarantine(up, home, clients, fed.bad_updates)
    before = state if senders is cohort else replace(state, ranks=_pruned_ranks(state, senders, good))
    averages: list[tuple[Uploads, Pooled]] = []
    after = _served(fed, before, senders, up, good, averages) if any(good) else before
    after = replace(_kept(after, senders, home, local, good), round=r.round, last=state.adapter)
    after = replace(after, clients_per_pass=passes.size if passes.events else state.clients_per_pass)
    after = replace(after, plans=learned(fed, state, r.plan, cohort, up, local, trained))
    after = sent_to(after, r.plan, r.round)
    integrity.check_state(fed.algorithm, after)
    fed.task.fold(after.base)
    aggregated = time.perf_counter()
    scores = fed.task.evaluate(after.adapter, _personal(fed, after)) if r.evaluated else {}
    seconds = {"train": trained, "aggregate": aggregated - clock, "evaluate": time.perf_counter() - aggregated}
    readings, spent = _measured(r, after, local, averages)
    moved = zip(bytes_up(senders, up), bytes_down(cohort, r.down, state, fed.aggregation), strict=True)
    records = _client_records(r, local, _shares(local, good, averages), readings, list(moved))
    return after, RoundRecord(
        round=r.round,
        clients=records,
        scores=scores,
        probes={**readings.probes, **r.plan.readings},
        matrices={name: tuple(map(tuple, rows)) for name, rows in readings.matrices.items()},
        bytes_up=sum(c.bytes_up for c in records),
        bytes_down=sum(c.bytes_down for c in records) + sum(t.bytes_down for t in r.plan.turns if t.fate == "dropped"),
        turns=r.plan.turns,
        seconds=seconds | spent,
        events=(*r.plan.events, *passes.events, *events),
    )


def _measured(
    r: Opened, after: State, local: Trained, averages: list[tuple[Uploads, Pooled]]
) -> tuple[Readings, dict[str, float]]:
    """What the probes say of the round, and the seconds that each took."""
    moment = Moment(
        round=r.round,
        seed=r.fed.seed,
        task=r.fed.task,
        before=r.state,
        after=after,
        clients=r.cohort.clients,
        start=r.train.start,
        trained=local,
        averages=averages,
        halves=r.halves,
        private=r.cohort.private is not None,
    )
    probes: dict[str, float] = {}
    clients: dict[str, Sequence[float]] = {}
    matrices: dict[str, Sequence[Sequence[float]]] = {}
    seconds: dict[str, float] = {}
    sharing = sum(p.gradients for p in r.probes.values())
    for name, probe in r.probes.items():
        clock = time.perf_counter()
        found = probe.take(moment)
        probes |= found.probes
        clients |= found.clients
        matrices |= found.matrices
        seconds[f"probe/{name}"] = time.perf_counter() - clock + (r.seconds / sharing if probe.gradients else 0.0)
    return Readings(probes, clients, matrices), seconds


def _trainer(fed: Federation, task: Task, cohort: Cohort, t: int, passes: Passes, effort: Sequence[float]) -> Trainer:
    layout, penalty = fed.task.layout, fed.aggregation.penalty
    if fed.effort is not None:
        effort = [min(share, fed.effort(t, k)) for share, k in zip(effort, cohort.clients, strict=True)]
    return Trainer(
        task,
        replace(fed.work, lr=fed.lr(t)),
        seed=fed.seed,
        round=t,
        clients=cohort.clients,
        passes=passes,
        trainable=cohort.trainable,
        penalty=None if penalty is None else (lambda y, x, rows: penalty(layout, y, cohort.ranks[rows])),
        effort=effort,
    )


def _checked(train: Trainer, cohort: Cohort) -> Trained:
    """What the clients' local training gave; nothing else than what is trained in this round."""
    local = train.trained
    if local is None:
        raise integrity.IntegrityError("the algorithm did not train its clients")
    layout, flat = local.adapter.layout, local.adapter.flat
    integrity.check_frozen(layout, train.start, flat, cohort.trainable, [f"client {k}" for k in cohort.clients])
    return local


def _pruned(fed: Federation, cohort: Cohort, start: Tensor, local: Trained) -> Cohort:
    """The cohort with the ranks that its clients keep after training, and send."""
    prune, layout = fed.aggregation.new_ranks, fed.task.layout
    return cohort if prune is None else cohort.pruned(layout, prune(layout, start, local.adapter.flat, cohort.ranks))


def _served(
    fed: Federation,
    state: State,
    cohort: Cohort,
    up: Message,
    good: list[bool],
    averages: list[tuple[Uploads, Pooled]],
) -> State:
    """The server's step on what the good clients sent, and what it adds to the frozen weights."""
    average = average_of(integrity.checked(fed.aggregation), cohort, state, torch.tensor(good), fed.seed, averages)
    after = fed.algorithm.server(state, selected(up, good), average)
    before, now = state.adapter, after.adapter.flat[None]
    integrity.check_frozen(before.layout, before.flat, now, cohort.trained, ["the server"])
    if "folds" in fed.aggregation.traits:
        after = folded(after, averages[-1][1].fold)
    return after


def _kept(after: State, cohort: Cohort, home: Mapping[str, Adapter], local: Trained, good: list[bool]) -> State:
    """What stays with the clients, their ranks included."""
    if cohort.private is not None:
        home = {**home, OWN: local.adapter}
    return with_mean_of_private(remembered(after, cohort, home, good), cohort.private)


def _pruned_ranks(state: State, cohort: Cohort, good: list[bool]) -> tuple[int, ...]:
    """The ranks of all clients after those of the cohort that sent something have pruned theirs."""
    ranks = list(state.ranks)
    for k, r, ok in zip(cohort.clients, cohort.ranks.tolist(), good, strict=True):
        ranks[k] = r if ok else ranks[k]
    return tuple(ranks)


def _shares(local: Trained, good: list[bool], averages: list[tuple[Uploads, Pooled]]) -> list[float]:
    """Each client's share in the average, by the aggregation's own weights where it has some; 0 for who is left out."""
    weight = local.weight.double() * torch.tensor(good)
    if averages and (own := averages[0][1].weight) is not None:
        weight = torch.zeros_like(weight).masked_scatter(torch.tensor(good), own.to(weight))
    share: list[float] = (weight / weight.sum().clamp(min=1e-300)).tolist()  # all are left out: 0
    return share


def _personal(fed: Federation, state: State) -> Adapter | None:
    found = fed.algorithm.personal(state)
    return found if found is not None else personal(state, fed.aggregation.private(state.adapter.layout))


def _client_records(
    r: Opened,
    local: Trained,
    share: Sequence[float],
    readings: Readings,
    moved: Sequence[tuple[int, int]],
) -> tuple[ClientRecord, ...]:
    norms = update_norms(r.fed.task.layout, r.train.start, local.adapter.flat)
    return tuple(
        ClientRecord(
            client=k,
            weight=share[i],
            steps=int(local.num_steps[i]),
            tokens=int(local.num_tokens[i]),
            loss=float(local.loss[i]),
            grad_norm=float(local.grad_norm[i]),
            update_norm=norms[i],
            bytes_up=moved[i][0],
            bytes_down=moved[i][1],
            rank=int(r.cohort.ranks[i]) or None,
            probes={name: values[i] for name, values in readings.clients.items() if math.isfinite(values[i])},
        )
        for i, k in enumerate(r.cohort.clients)
    )
