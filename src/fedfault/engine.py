"""The round loop: a generator that yields what outlives a round and what was measured in it. No callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
from fedfault.metrics.aggregation import aggregation_error
from fedfault.metrics.updates import update_metrics
from fedfault.records import ClientRecord, RoundRecord
from fedfault.seeds import rng
from fedfault.types import Adapter, Aggregation, Algorithm, Message, Pooled, State, Task, Trained, Uploads


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
    effort: Callable[[int, int], float] | None = None  # (round, client) -> share of its local steps that it gets done

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
    clients, base = cohort.clients, fed.task.checksums()
    passes = Passes(min(state.clients_per_pass or fed.clients_per_pass or len(clients), len(clients)))
    door = integrity.Door(fed.task)
    train = _trainer(fed, door, cohort, t, passes)
    down = fed.algorithm.broadcast(state)
    received = {**cohort.cut_all(down), **({"x": cohort.start(down["x"], state)} if "x" in down else {})}
    memory = {n: replace(a, flat=a.flat[cohort.rows]) for n, a in state.clients.items() if n != OWN}
    watched = integrity.Watched(train, door, received, clients)
    up, home = fed.algorithm.client(received, memory, watched)
    integrity.check_sent(watched, up, home, memory)
    integrity.check_base(fed.task, base, clients)
    local = _checked(train, cohort)
    senders = _pruned(fed, cohort, train.start, local)
    up = senders.cut_all(up)
    trained = time.perf_counter()
    good, events = integrity.quarantine(up, home, clients, fed.bad_updates)
    averages: list[tuple[Uploads, Pooled]] = []
    after = _served(fed, state, senders, up, good, averages) if any(good) else state
    after = _kept(after, senders, home, local, good)
    after = replace(after, round=t, clients_per_pass=passes.size if passes.events else state.clients_per_pass)
    integrity.check_state(fed.algorithm, after)
    fed.task.fold(after.base)
    aggregated = time.perf_counter()
    due = t % fed.evaluate_every == 0 or t == fed.num_rounds
    scores = fed.task.evaluate(after.adapter, _personal(fed, after)) if due else {}
    probes, norms = update_metrics(fed.task.layout, train.start, local.adapter.flat)
    probes |= _exactness(fed, averages)
    moved = zip(bytes_up(senders, up), bytes_down(cohort, down, state, fed.aggregation), strict=True)
    records = _client_records(clients, local, _shares(local, good, averages), norms, list(moved))
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
    ranks = list(after.ranks)
    for k, r, ok in zip(cohort.clients, cohort.ranks.tolist(), good, strict=True):
        ranks[k] = r if ok else ranks[k]
    return with_mean_of_private(remembered(replace(after, ranks=tuple(ranks)), cohort, home, good), cohort.private)


def _exactness(fed: Federation, averages: list[tuple[Uploads, Pooled]]) -> dict[str, float]:
    """`aggregation_error`, where clients share one model and there is a product to average."""
    if len(averages) != 1 or "private" in fed.aggregation.traits:
        return {}
    got, pooled = averages[0]
    error, _ = aggregation_error(fed.task.layout, got.sent.flat, got.weight, pooled.adapter, pooled.fold)
    return {} if error is None else {"aggregation_error": error}


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
    clients: Sequence[int],
    local: Trained,
    share: Sequence[float],
    norms: Sequence[float],
    moved: Sequence[tuple[int, int]],
) -> tuple[ClientRecord, ...]:
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
