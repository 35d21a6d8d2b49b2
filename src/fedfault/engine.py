"""The round loop: a generator that yields what outlives a round and what was measured in it. No callbacks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from fedfault.local import LocalWork, Passes, trainer
from fedfault.metrics.updates import update_metrics
from fedfault.seeds import rng
from fedfault.types import Adapter, Algorithm, ClientRecord, Message, RoundRecord, State, Task, Trained
from fedfault.wire import pack


@dataclass(frozen=True)
class Federation:
    """What a federated run needs, tensors and functions in hand: `Experiment` is its description in plain values."""

    task: Task
    algorithm: Algorithm
    work: LocalWork
    total_clients: int
    cohort_size: int
    num_rounds: int
    seed: int = 0
    warmup_ratio: float = 0.0
    evaluate_every: int = 1
    clients_per_pass: int | None = None  # None: the whole cohort

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
    x = fed.task.init(fed.seed)
    home = fed.algorithm.init_client(x)
    clients = {name: Adapter(a.layout, a.flat.expand(fed.total_clients, -1).clone()) for name, a in home.items()}
    return State(x, memory=fed.algorithm.init(x), clients=clients)


def rounds(fed: Federation, state: State) -> Iterator[tuple[State, RoundRecord]]:
    """Yield (state, record) after every round from where `state` stands; first the untrained model, as round 0.

    The caller saves, detects, plots and stops. A state that was saved and loaded goes on to the same numbers.
    """
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
    cohort = fed.cohort(t)
    passes = Passes(min(state.clients_per_pass or fed.clients_per_pass or len(cohort), len(cohort)))
    kept: list[Trained] = []
    train = trainer(fed.task, replace(fed.work, lr=fed.lr(t)), seed=fed.seed, round=t, clients=cohort, passes=passes)

    def observed(start: Adapter) -> Trained:
        kept.append(train(start))
        return kept[-1]

    down = fed.algorithm.broadcast(state)
    rows = torch.tensor(cohort)
    memory = {name: Adapter(a.layout, a.flat[rows]) for name, a in state.clients.items()}
    up, kept_home = fed.algorithm.client(down, memory, observed)
    trained = time.perf_counter()
    after = fed.algorithm.server(state, up)
    clients = {name: _with_rows(a, rows, kept_home[name]) for name, a in state.clients.items()}
    probes, norms = update_metrics(fed.task.layout, state.adapter.flat, kept[-1].adapter.flat)
    after = replace(
        after, round=t, clients=clients, clients_per_pass=passes.size if passes.events else state.clients_per_pass
    )
    aggregated = time.perf_counter()
    due = t % fed.evaluate_every == 0 or t == fed.num_rounds
    scores = fed.task.evaluate(after.adapter) if due else {}
    seconds = {
        "train": trained - started,
        "aggregate": aggregated - trained,
        "evaluate": time.perf_counter() - aggregated,
    }
    records = _client_records(cohort, kept[-1], norms, down, up)
    return after, RoundRecord(
        round=t,
        clients=records,
        scores=scores,
        probes=probes,
        bytes_up=sum(c.bytes_up for c in records),
        bytes_down=sum(c.bytes_down for c in records),
        seconds=seconds,
        events=(*passes.events, *_not_finite(cohort, kept[-1].adapter)),
    )


def _not_finite(cohort: Sequence[int], trained: Adapter) -> list[str]:
    bad = [k for k, ok in zip(cohort, trained.flat.isfinite().all(1).tolist(), strict=True) if not ok]
    return [f"parameters not finite after local training: client {', '.join(map(str, bad))}"] if bad else []


def _with_rows(all_clients: Adapter, rows: torch.Tensor, new: Adapter) -> Adapter:
    flat = all_clients.flat.clone()
    flat[rows] = new.flat
    return Adapter(all_clients.layout, flat)


def _client_records(
    cohort: Sequence[int], local: Trained, norms: Sequence[float], down: Message, up: Message
) -> tuple[ClientRecord, ...]:
    share = (local.weight / local.weight.sum()).tolist()
    bytes_down = len(pack(down))
    return tuple(
        ClientRecord(
            client=k,
            weight=share[i],
            steps=int(local.num_steps[i]),
            tokens=int(local.num_tokens[i]),
            loss=float(local.loss[i]),
            grad_norm=float(local.grad_norm[i]),
            update_norm=norms[i],
            bytes_up=len(pack(up, i)),
            bytes_down=bytes_down,
        )
        for i, k in enumerate(cohort)
    )
