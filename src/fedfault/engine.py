"""The round loop: a generator that yields what outlives a round and what was measured in it. No callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedfault import integrity
from fedfault.exchange import (
    OWN,
    Cohort,
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
from fedfault.local import LocalWork, Passes, Trainer, weights
from fedfault.metrics.gradients import split_halves
from fedfault.metrics.updates import update_norms
from fedfault.records import ClientRecord, RoundRecord
from fedfault.seeds import rng
from fedfault.types import (
    Adapter,
    Aggregation,
    Algorithm,
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


@dataclass(frozen=True)
class Federation:
    """What a federated run needs, tensors and functions in hand: `Experiment` is its description in plain values."""

    task: Task
    algorithm: Algorithm
    aggregation: Aggregation
    work: LocalWork
    total_clients: int
    cohort_size: int
    num_rounds: int
    seed: int = 0
    warmup_ratio: float = 0.0
    evaluate_every: int = 1
    clients_per_pass: int | None = None  # None: the whole cohort
    ranks: tuple[int, ...] = ()  # (N,) LoRA rank of each client; none: the full rank for all
    bad_updates: Literal["drop", "stop"] = "drop"  # what becomes of an update that is not finite
    probes: Mapping[str, Probe] = field(default_factory=dict)  # what is measured of every round, by name
    effort: Callable[[int, int], float] | None = None  # (round, client) -> share of its local steps that it gets done
    remote: Callable[[Opened], Done] | None = None  # does the clients' part elsewhere, and what they keep stays there

    def cohort(self, round: int) -> list[int]:
        """Ids of the clients that train in a round, sorted; a function of the seed and the round alone."""
        drawn = rng(self.seed, "cohort", round).permutation(self.total_clients)[: self.cohort_size]
        return sorted(drawn.tolist())

    def lr(self, round: int) -> float:
        """Learning rate of a round, 1-based: rises linearly over the first warmup_ratio of all rounds, then constant.

        A function of the global round, never restarted inside one.
        """
        rising = self.warmup_ratio * self.num_rounds
        return self.work.lr * min(1.0, round / rising) if rising else self.work.lr


def begin(fed: Federation, x: Adapter | None = None) -> State:
    """The state before the first round; with x (P,), from there on."""
    x, N = fed.task.init(fed.seed) if x is None else x, fed.total_clients
    home = {} if fed.remote else newcomer(fed, x)
    return State(
        x,
        memory=fed.algorithm.init(x),
        clients={name: Adapter(a.layout, a.flat.expand(N, -1).clone()) for name, a in home.items()},
        weights=tuple(weights(fed.task, fed.work.weighting, range(N)).tolist()),
        ranks=fed.ranks or (full_rank(x.layout),) * N,
        seen=(0,) * N,
    )


def newcomer(fed: Federation, x: Adapter) -> dict[str, Adapter]:
    """What a client remembers before it first takes part, (P,) each; x is the adapter that the run starts from."""
    own = {} if fed.aggregation.private(x.layout) is None else {OWN: x}
    return {**fed.algorithm.init_client(x), **own}


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
    """A round up to local training: who trains, from what."""

    fed: Federation
    state: State
    round: int
    cohort: Cohort
    passes: Passes
    down: Message  # what the server sent
    received: Message  # what arrived: cut to the clients' ranks, with what they kept at home
    memory: Mapping[str, Adapter]  # what each client of the cohort remembers
    probes: Mapping[str, Probe]  # of this round
    evaluated: bool  # whether scores are taken in this round
    halves: tuple[Tensor, Tensor] | None
    seconds: float  # that they took


class Done(NamedTuple):
    """The clients' part of a round; rows are in the order of the cohort."""

    cohort: Cohort  # those that were asked, or the ones of them whose work arrived
    up: Message  # what they send
    home: Mapping[str, Adapter]  # what they keep, without what an aggregation leaves with them
    start: Tensor  # (K, P) where they started
    trained: Trained
    events: tuple[str, ...] = ()


def one_round(fed: Federation, state: State) -> tuple[State, RoundRecord]:
    """Broadcast, local training of the cohort, aggregation, evaluation, probes."""
    started = time.perf_counter()
    r = _open(fed, state)
    done = fed.remote(r) if fed.remote else at_clients(fed, r.round, r.cohort, r.received, r.memory, r.passes)
    trained = time.perf_counter() - started - r.seconds
    return _close(r, done, trained) if done.cohort.clients else _idle(r, done.events, trained)


def _open(fed: Federation, state: State) -> Opened:
    t = state.round + 1
    cohort = Cohort.of(fed.cohort(t), state, fed.aggregation)
    K = len(cohort.clients)
    down = fed.algorithm.broadcast(state)
    received = {**cohort.cut_all(down), **({"x": cohort.start(down["x"], state)} if "x" in down else {})}
    evaluated = t % fed.evaluate_every == 0 or t == fed.num_rounds
    probes = {name: p for name, p in fed.probes.items() if evaluated or not p.sparse}
    passes = Passes(min(state.clients_per_pass or fed.clients_per_pass or K, K))
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
        cohort=cohort,
        passes=passes,
        down=down,
        received=received,
        memory={n: replace(a, flat=a.flat[cohort.rows]) for n, a in state.clients.items() if n != OWN},
        probes=probes,
        evaluated=evaluated,
        halves=halves,
        seconds=seconds,
    )


def at_clients(
    fed: Federation, round: int, cohort: Cohort, received: Message, memory: Mapping[str, Adapter], passes: Passes
) -> Done:
    """What the clients of a round do with what arrived, here for all of a cohort, at a node for its one client."""
    door, base = integrity.Door(fed.task), fed.task.checksums()
    train = _trainer(fed, door, cohort, round, passes)
    watched = integrity.Watched(train, door, received, cohort.clients)
    up, home = fed.algorithm.client(received, memory, watched)
    integrity.check_sent(watched, up, home, memory)
    integrity.check_base(fed.task, base, cohort.clients)
    return Done(cohort, up, home, train.start, _checked(train, cohort), tuple(passes.events))


def _close(r: Opened, done: Done, trained: float) -> tuple[State, RoundRecord]:
    """What follows the clients' part; `trained` are the seconds that it took."""
    fed, state, passes, clients = r.fed, r.state, r.passes, done.cohort.clients
    clock = time.perf_counter()
    senders = _pruned(fed, done)
    up = senders.cut_all(done.up)
    good, events = integrity.quarantine(up, done.home, clients, fed.bad_updates)
    averages: list[tuple[Uploads, Pooled]] = []
    after = _served(fed, state, senders, up, good, averages) if any(good) else state
    after = replace(_kept(after, senders, done, good, fed), round=r.round, last=state.adapter)
    after = replace(after, clients_per_pass=passes.size if passes.events else state.clients_per_pass)
    if fed.remote is None:  # an invariant is about what clients keep, which no server has
        integrity.check_state(fed.algorithm, after)
    fed.task.fold(after.base)
    aggregated = time.perf_counter()
    scores = fed.task.evaluate(after.adapter, _personal(fed, after)) if r.evaluated else {}
    seconds = {"train": trained, "aggregate": aggregated - clock, "evaluate": time.perf_counter() - aggregated}
    readings, spent = _measured(r, after, done, averages)
    moved = zip(bytes_up(senders, up), bytes_down(done.cohort, r.down, state, fed.aggregation), strict=True)
    records = _client_records(fed, done, _shares(done.trained, good, averages), readings, list(moved))
    return after, RoundRecord(
        round=r.round,
        clients=records,
        scores=scores,
        probes=readings.probes,
        matrices={name: tuple(map(tuple, rows)) for name, rows in readings.matrices.items()},
        bytes_up=sum(c.bytes_up for c in records),
        bytes_down=sum(c.bytes_down for c in records),
        seconds=seconds | spent,
        events=(*done.events, *events),
    )


def _idle(r: Opened, events: tuple[str, ...], trained: float) -> tuple[State, RoundRecord]:
    """A round to which no client contributed: it counts, and changes nothing."""
    after, clock = replace(r.state, round=r.round, last=r.state.adapter), time.perf_counter()
    scores = r.fed.task.evaluate(after.adapter, _personal(r.fed, after)) if r.evaluated else {}
    seconds = {"train": trained, "evaluate": time.perf_counter() - clock}
    return after, RoundRecord(round=r.round, scores=scores, seconds=seconds, events=events)


def _measured(
    r: Opened, after: State, done: Done, averages: list[tuple[Uploads, Pooled]]
) -> tuple[Readings, dict[str, float]]:
    """What the probes say of the round, and the seconds that each took."""
    moment = Moment(
        round=r.round,
        seed=r.fed.seed,
        task=r.fed.task,
        before=r.state,
        after=after,
        clients=done.cohort.clients,
        start=done.start,
        trained=done.trained,
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


def _trainer(fed: Federation, task: Task, cohort: Cohort, t: int, passes: Passes) -> Trainer:
    layout, penalty = fed.task.layout, fed.aggregation.penalty
    return Trainer(
        task,
        replace(fed.work, lr=fed.lr(t)),
        seed=fed.seed,
        round=t,
        clients=cohort.clients,
        passes=passes,
        trainable=cohort.trainable,
        penalty=None if penalty is None else (lambda y, x, rows: penalty(layout, y, cohort.ranks[rows])),
        effort=None if fed.effort is None else [fed.effort(t, k) for k in cohort.clients],
    )


def _checked(train: Trainer, cohort: Cohort) -> Trained:
    """What the clients' local training gave; nothing else than what is trained in this round."""
    local = train.trained
    if local is None:
        raise integrity.IntegrityError("the algorithm did not train its clients")
    layout, flat = local.adapter.layout, local.adapter.flat
    integrity.check_frozen(layout, train.start, flat, cohort.trainable, [f"client {k}" for k in cohort.clients])
    return local


def _pruned(fed: Federation, done: Done) -> Cohort:
    """The cohort with the ranks that its clients keep after training, and send."""
    prune, layout, cohort = fed.aggregation.new_ranks, fed.task.layout, done.cohort
    if prune is None:
        return cohort
    return cohort.pruned(layout, prune(layout, done.start, done.trained.adapter.flat, cohort.ranks))


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


def _kept(after: State, cohort: Cohort, done: Done, good: list[bool], fed: Federation) -> State:
    """What stays with the clients, their ranks included."""
    home = done.home
    if cohort.private is not None and fed.remote is None:
        home = {**home, OWN: done.trained.adapter}
    ranks = list(after.ranks)
    for k, r, ok in zip(cohort.clients, cohort.ranks.tolist(), good, strict=True):
        ranks[k] = r if ok else ranks[k]
    after = remembered(replace(after, ranks=tuple(ranks)), cohort, home, good)
    return after if fed.remote else with_mean_of_private(after, cohort.private)


def _shares(local: Trained, good: list[bool], averages: list[tuple[Uploads, Pooled]]) -> list[float]:
    """Each client's share in the average, by the aggregation's own weights where it has some; 0 for who is left out."""
    weight = local.weight.double() * torch.tensor(good)
    if averages and (own := averages[0][1].weight) is not None:
        weight = torch.zeros_like(weight).masked_scatter(torch.tensor(good), own.to(weight))
    share: list[float] = (weight / weight.sum().clamp(min=1e-300)).tolist()  # all are left out: 0
    return share


def _personal(fed: Federation, state: State) -> Adapter | None:
    if fed.remote is not None:
        return None
    found = fed.algorithm.personal(state)
    return found if found is not None else personal(state, fed.aggregation.private(state.adapter.layout))


def _client_records(
    fed: Federation,
    done: Done,
    share: Sequence[float],
    readings: Readings,
    moved: Sequence[tuple[int, int]],
) -> tuple[ClientRecord, ...]:
    local = done.trained
    norms = update_norms(fed.task.layout, done.start, local.adapter.flat)
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
            probes={name: values[i] for name, values in readings.clients.items() if math.isfinite(values[i])},
        )
        for i, k in enumerate(done.cohort.clients)
    )
