"""The clients' part of a round: here for a whole cohort, elsewhere for a part of it."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

from torch import Tensor

from fedfault.metrics.gradients import split_halves
from fedfault.privacy.examples import ExampleTask
from fedfault.rounds import integrity
from fedfault.rounds.exchange import OWN, Cohort
from fedfault.rounds.federation import CohortRequest, CohortResult, Federation
from fedfault.rounds.trainer import Trainer
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Trained
from fedfault.types.task import Trainable


def init_client_memory(fed: Federation, x: Adapter) -> dict[str, Adapter]:
    """Make what a client remembers before it first takes part, (P,) each; x is the adapter that the run starts from."""
    own = {} if fed.aggregation.private(x.layout) is None else {OWN: x}
    return {**fed.algorithm.init_client(x), **own}


def train_clients(fed: Federation, asked: CohortRequest) -> CohortResult:
    """Run the clients' lines of the algorithm under all integrity checks.

    A client's part does not depend on who else is in the cohort.
    """
    clock, halves = time.perf_counter(), _take_half_gradients(fed, asked) if asked.halves else None
    probing = time.perf_counter() - clock
    cohort, entry, base = asked.cohort, integrity.EntryCheck(fed.task), fed.task.checksums()
    train = _make_trainer(fed, entry, asked)
    watched = integrity.CheckedTrain(train, entry, asked.received, cohort.clients, asked.memory)
    up, home = fed.algorithm.client(asked.received, asked.memory, watched)
    integrity.check_sent(watched, up, home, asked.memory)
    integrity.check_base(fed.task, base, cohort.clients)
    local = _check_trained(train, cohort)
    if cohort.private is not None:
        home = {**home, OWN: local.adapter}
    events, narrowed = tuple(asked.passes.events), asked.passes.size if asked.passes.halved else None
    return CohortResult(cohort, up, home, train.start, local, events, halves, probing, train.waited, narrowed)


def _take_half_gradients(fed: Federation, asked: CohortRequest) -> tuple[Tensor, Tensor]:
    """The clients' gradients where they start, on two disjoint draws."""
    cohort, per_pass = asked.cohort, asked.passes.size
    start = asked.received["x"].flat.expand(len(cohort.clients), -1)
    around = {"seed": fed.seed, "round": asked.round, "per_pass": per_pass}
    return split_halves(fed.task, start, cohort.clients, cohort.trainable, **around)


def _make_trainer(fed: Federation, task: Trainable, asked: CohortRequest) -> Trainer:
    layout, penalty, cohort = fed.task.layout, fed.aggregation.penalty, asked.cohort
    hidden = fed.budget if fed.budget is not None and fed.budget.unit == "example" else None
    if hidden is not None:
        task = ExampleTask(task, hidden, fed.work.batch_size, cohort.trainable, cohort.rows)
    ranks = functools.cache(cohort.ranks.to)  # once to each device
    return Trainer(
        task,
        replace(fed.work, lr=fed.lr(asked.round)),
        seed=fed.seed if hidden is None else hidden.secret,
        round=asked.round,
        clients=cohort.clients,
        draw=None if hidden is None else functools.partial(hidden.draw_batches, fed.work.batch_size),
        passes=asked.passes,
        trainable=cohort.trainable,
        first=cohort.private if fed.aggregation.in_turn else None,
        penalty=None if penalty is None else (lambda y, x, rows: penalty(layout, y, ranks(y.device)[rows])),
        effort=asked.effort,
        record=fed.record,
        train_job=fed.train_job,
    )


def _check_trained(train: Trainer, cohort: Cohort) -> Trained:
    """Check that the clients' local training changed nothing but what is trained in this round."""
    local = train.trained
    if local is None:
        raise integrity.IntegrityError("the algorithm did not train its clients")
    layout, flat = local.adapter.layout, local.adapter.flat
    integrity.check_frozen(layout, train.start, flat, cohort.trainable, [f"client {k}" for k in cohort.clients])
    return local
