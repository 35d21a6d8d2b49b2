"""The round loop: a generator that yields what outlives a round and what was measured in it. No callbacks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

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
    with_mean_of_private,
)
from fedfault.local import LocalWork, Passes, Trainer, weights
from fedfault.metrics.updates import update_metrics
from fedfault.seeds import rng
from fedfault.types import (
    Adapter,
    Aggregation,
    Algorithm,
    ClientRecord,
    Layout,
    Message,
    Pair,
    RoundRecord,
    State,
    Task,
    Trained,
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


def begin(fed: Federation) -> State:
    """The state before the first round."""
    x, N = fed.task.init(fed.seed), fed.total_clients
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


def one_round(fed: Federation, state: State) -> tuple[State, RoundRecord]:
    """Broadcast, local training of the cohort, aggregation, evaluation."""
    t, started = state.round + 1, time.perf_counter()
    cohort = Cohort.of(fed.cohort(t), state, fed.aggregation)
    clients, base = cohort.clients, fed.task.checksum()
    passes = Passes(min(state.clients_per_pass or fed.clients_per_pass or len(clients), len(clients)))
    train = _trainer(fed, cohort, t, passes)
    down = fed.algorithm.broadcast(state)
    received = {name: cohort.cut(a) if isinstance(a, Adapter) else a for name, a in down.items()}
    received |= {"x": cohort.start(down["x"], state)} if "x" in down else {}
    memory = {n: replace(a, flat=a.flat[cohort.rows]) for n, a in state.clients.items() if n != OWN}
    up, home = fed.algorithm.client(received, memory, integrity.Watched(train, received, clients))
    local = _checked(train, cohort, up, state.adapter.layout)
    integrity.check_base(fed.task, base, clients)
    trained = time.perf_counter()
    good, events = integrity.finite_rows(up, clients, fed.bad_updates)
    after = _served(fed, state, cohort, up, good) if any(good) else state
    after = _kept(fed, after, cohort, home, train, good)
    after = replace(after, round=t, clients_per_pass=passes.size if passes.events else state.clients_per_pass)
    integrity.check_state(fed.algorithm, after)
    fed.task.fold(after.base)
    aggregated = time.perf_counter()
    due = t % fed.evaluate_every == 0 or t == fed.num_rounds
    scores = fed.task.evaluate(after.adapter, _personal(fed, after)) if due else {}
    probes, norms = update_metrics(fed.task.layout, train.start, local.adapter.flat)
    moved = zip(bytes_up(cohort, up), bytes_down(cohort, down, state, fed.aggregation), strict=True)
    records = _client_records(clients, local, norms, list(moved))
    seconds = {
        "train": trained - started,
        "aggregate": aggregated - trained,
        "evaluate": time.perf_counter() - aggregated,
    }
    return after, RoundRecord(
        round=t,
        clients=records,
        scores=scores,
        probes=probes,
        bytes_up=sum(c.bytes_up for c in records),
        bytes_down=sum(c.bytes_down for c in records),
        seconds=seconds,
        events=(*passes.events, *events),
    )


def _trainer(fed: Federation, cohort: Cohort, t: int, passes: Passes) -> Trainer:
    layout, penalty = fed.task.layout, fed.aggregation.penalty
    return Trainer(
        fed.task,
        replace(fed.work, lr=fed.lr(t)),
        seed=fed.seed,
        round=t,
        clients=cohort.clients,
        passes=passes,
        trainable=cohort.trainable,
        penalty=None if penalty is None else (lambda y, x, rows: penalty(layout, y, cohort.ranks[rows])),
    )


def _checked(train: Trainer, cohort: Cohort, up: Message, layout: Layout) -> Trained:
    """What the clients' local training gave, after the checks on it."""
    local = train.trained
    if local is None:
        raise integrity.IntegrityError("the algorithm did not train its clients")
    integrity.check_message(up, layout, len(cohort.clients))
    integrity.check_frozen(train.start, local.adapter, cohort.trainable, cohort.clients)
    return local


def _served(fed: Federation, state: State, cohort: Cohort, up: Message, good: list[bool]) -> State:
    """The server's step on what the good clients sent, and what it adds to the frozen weights."""
    folds: list[Mapping[str, Pair]] = []
    average = average_of(fed.aggregation, cohort, state, torch.tensor(good), fed.seed, folds)
    after = fed.algorithm.server(state, integrity.selected(up, good, len(good)), average)
    if "folds" in fed.aggregation.traits:
        after = folded(after, folds[-1])
    return after


def _kept(
    fed: Federation, after: State, cohort: Cohort, home: Mapping[str, Adapter], train: Trainer, good: list[bool]
) -> State:
    """What stays with the clients, their ranks included."""
    local = train.trained
    assert local is not None
    if cohort.private is not None:
        home = {**home, OWN: local.adapter}
    after = with_mean_of_private(remembered(after, cohort, home, good), cohort.private)
    prune = fed.aggregation.new_ranks
    if prune is None or not any(good):
        return after
    ranks = list(after.ranks)
    found = prune(after.adapter.layout, train.start, local.adapter.flat, cohort.ranks)
    for k, r, ok in zip(cohort.clients, found.tolist(), good, strict=True):
        ranks[k] = r if ok else ranks[k]
    return replace(after, ranks=tuple(ranks))


def _personal(fed: Federation, state: State) -> Adapter | None:
    found = fed.algorithm.personal(state)
    return found if found is not None else personal(state, fed.aggregation.private(state.adapter.layout))


def _client_records(
    clients: Sequence[int], local: Trained, norms: Sequence[float], moved: Sequence[tuple[int, int]]
) -> tuple[ClientRecord, ...]:
    share = (local.weight / local.weight.sum()).tolist()
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
        )
        for i, k in enumerate(clients)
    )
