"""One run by all processes that torchrun has started: the first one is the server, and each trains a part of the cohort.

    process 0     cohort 0 1 2 3 4 5 6 7 --cut by local steps--> 0 1 2 | 3 4 | 5 6 7      server, scores, run folder
    process 1                                                            3 4 : `train_clients`, as in process 0
    process 2                                                                  5 6 7
    process 0     what they send and keep, in the order of the cohort --> the rest of the round, as in one process

A client's part depends on what it is asked and on streams that bear its name, so that numbers do not depend on how many
processes there are, to the rounding of other shapes of products. What outlives a round is in process 0 alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import fedfault
from fedfault.config.loading import read_experiment
from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.parallel import links
from fedfault.parallel.parts import join_results, split_by_cost, split_pairs
from fedfault.processes import share_cores, this_process
from fedfault.registry import describe_plugins
from fedfault.rounds.clients import train_clients
from fedfault.rounds.federation import CohortRequest, CohortResult, Federation
from fedfault.rounds.local import count_steps
from fedfault.saying import Say
from fedfault.setup.experiment import Prepared, prepare
from fedfault.setup.federation import build_on_split
from fedfault.tasks.base import BackboneTask, Pairs
from fedfault.types.algorithm import Room

GOES_ON = "`fedfault resume RUN` goes on from the last finished round, under torchrun or not"


class Greeting(NamedTuple):
    """The message in which a process introduces itself."""

    host: str
    local_rank: int


class Order(NamedTuple):
    """An order to a process: a method of `Member` and what it takes. None: as it was told before."""

    what: str
    given: tuple[Any, ...]
    settings: str | None = None  # the experiment, as JSON
    base: Mapping[str, Tensor] | None = None  # what is added to the frozen weights
    room: Room | None = None  # how long passes are, where the memory of a device says it


class Failure(NamedTuple):
    """The answer of a process that cannot."""

    why: str


class Member:
    """A process other than the first: it does what it is told, with its own copy of model and data."""

    def __init__(self) -> None:
        self.prepared: Prepared | None = None

    def answer(self, order: Order) -> Any:
        """Carry out an order and return what comes of it."""
        try:
            if self.prepared is not None:
                self._catch_up(self.prepared, order)
            return getattr(self, order.what)(*order.given)
        except UserError as e:
            return Failure(str(e))

    def _catch_up(self, p: Prepared, order: Order) -> None:
        if order.settings is not None:
            exp = read_experiment(order.settings)
            self.prepared = replace(p, config=exp, federation=build_on_split(exp, p.task, p.split))
        if order.base is not None:
            p.task.fold(order.base)
        p.task.room = order.room or p.task.room

    def prepare(self, experiment: str) -> dict[str, str]:
        """Load model and data; what must be the same everywhere."""
        self.prepared = prepare(read_experiment(experiment))
        return describe_common(self.prepared)

    def train(self, asked: CohortRequest) -> CohortResult:
        """Some clients' part of a round."""
        assert self.prepared is not None
        done = train_clients(self.prepared.federation, asked)
        return replace(done, cohort=asked.cohort.select([]))  # who asks knows it

    def score(self, pairs: Pairs) -> Tensor:
        """Score some models on some rows."""
        assert self.prepared is not None
        return self.prepared.task.score(pairs)


@dataclass
class Team:
    """The other processes, as the first one sees them."""

    others: Mapping[int, Greeting]  # by rank
    settings: dict[int, str] = field(default_factory=dict)  # what each was told last
    bases: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    at_work: set[int] = field(default_factory=set)  # who has been told something, and has not answered

    def prepare(self, exp: Experiment, say: Say) -> Prepared:
        """Prepare as `experiment.prepare` does, here and in all other processes. Raises `UserError` where they differ.

        This process comes first and fills the caches, then one on each other machine.
        """
        if exp.privacy.unit is not None:
            raise UserError("privacy has not been checked across processes; leave it out, or run in one process")
        p, text = prepare(exp, say), exp.model_dump_json()
        say(f"model and data in {len(self.others)} further processes")
        firsts = {rank for rank, one in self.others.items() if one.local_rank == 0}
        for some in (firsts, set(self.others) - firsts):
            for rank in sorted(some):
                self._tell(rank, Order("prepare", (text,)))
            for rank, theirs in self._answers().items():
                self._check(rank, describe_common(p), theirs)
        self.settings = dict.fromkeys(self.others, text)
        return self.spread(p)

    def _check(self, rank: int, mine: Mapping[str, str], theirs: Mapping[str, str]) -> None:
        wrong = [f"{what} {theirs[what]}, not {own}" for what, own in mine.items() if theirs[what] != own]
        if wrong:
            raise UserError(
                f"{self._name(rank)} has another {', '.join(wrong)}; give all machines the same versions and files"
            )

    def _name(self, rank: int) -> str:
        return f"process {rank} of {len(self.others) + 1}, on {self.others[rank].host},"

    def spread(self, p: Prepared) -> Prepared:
        """An experiment whose cohorts train, and whose models are scored, in all processes: they have its data already."""
        remote = functools.partial(self.train, p.config.model_dump_json())
        p.task.use_scorer(functools.partial(self.score, p.task))
        return replace(p, federation=replace(p.federation, remote=remote), spread=self.spread)

    def train(self, settings: str, fed: Federation, asked: CohortRequest) -> CohortResult:
        """Let the clients of a round train, as `Federation.remote`."""
        cost = [count_steps(fed.task.examples(k), fed.work)[0] for k in asked.cohort.clients]
        parts = split_by_cost(np.multiply(cost, asked.effort), len(self.others) + 1)
        here, *theirs = (asked.select(rows) if rows else None for rows in parts)
        for rank, own in enumerate(theirs, 1):
            if own is not None:
                news = settings if self.settings[rank] != settings else None
                self.settings[rank] = settings
                base, room = self._change(rank, asked.base), fed.task.room
                self._tell(rank, Order("train", (replace(own, base={}),), news, base, room))
        done = {} if here is None else {0: train_clients(fed, here)}
        return join_results(asked, {**done, **self._answers()})

    def score(self, task: BackboneTask, pairs: Pairs) -> Tensor:
        """Score as `task.score` does, each process for some of the rows."""
        here, *theirs = split_pairs(pairs, len(self.others) + 1)
        for rank, own in enumerate(theirs, 1):
            if own:
                self._tell(rank, Order("score", (own,), base=self._change(rank, task.folded), room=task.room))
        return torch.cat([task.score(here), *self._answers().values()])

    def _change(self, rank: int, base: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Return what was added to the frozen weights, unless the process knows it."""
        known, self.bases[rank] = self.bases.get(rank), base
        return None if known is base else base

    def _tell(self, rank: int, order: Order) -> None:
        with self._notice_loss():
            links.send(order, rank)
        self.at_work.add(rank)

    def _answers(self) -> dict[int, Any]:
        """Collect the answers of all who are at work, by rank."""
        found = {}
        for rank in sorted(self.at_work):
            with self._notice_loss():
                found[rank] = links.receive(rank)
            self.at_work.discard(rank)
            if isinstance(found[rank], Failure):
                raise UserError(f"{self._name(rank)} says: {found[rank].why}")
        return found

    @contextlib.contextmanager
    def _notice_loss(self) -> Iterator[None]:
        try:
            yield
        except links.Lost as e:
            raise UserError(f"{self._name(e.rank)} has ended; {GOES_ON}") from e

    def dismiss(self) -> None:
        """Let all go who are not at work."""
        for rank in sorted(set(self.others) - self.at_work):
            with contextlib.suppress(links.Lost):
                links.send(None, rank)


@contextlib.contextmanager
def lead_team() -> Iterator[Team]:
    """Within the block the other processes do what this one, the first, tells them.

    Raises `UserError` where one of them has ended before.
    """
    _take_share_of_cores()
    try:
        with links.join_processes():
            made = Team({rank: links.receive(rank) for rank in range(1, this_process().count)})
            try:
                yield made
            finally:
                made.dismiss()
    except links.Lost as e:
        raise UserError(f"one of the {this_process().count} processes of the job has ended before the run began") from e


def serve_team() -> int:
    """What a process other than the first does, to the end of the job. Returns its exit status.

    Raises `UserError` in one of them when the first has ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the terminal sends it to all; the first process says how to go on
    _take_share_of_cores()
    member = Member()
    try:
        with links.join_processes():
            links.send(Greeting(platform.node(), this_process().local_rank), 0)
            while (order := links.receive(0)) is not None:
                links.send(member.answer(order), 0)
    except links.Lost as e:
        if this_process().rank == 1:  # one voice is enough
            raise UserError(f"the first process of the job has ended; {GOES_ON}") from e
        return 2
    return 0


def _take_share_of_cores() -> None:
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # as torchrun has it where the user says nothing
        share_cores(this_process().local_count)


def describe_common(p: Prepared) -> dict[str, str]:
    """Describe what all processes must have in common."""
    task, N = p.federation.task, p.federation.total_clients
    sizes = repr([(task.examples(k), task.tokens(k)) for k in range(N)])
    return {
        "fedfault": fedfault.__version__,
        "torch": metadata.version("torch"),
        "model": p.backbone.fingerprint,
        "layout": task.layout.fingerprint,
        "corpus": p.split.corpus.fingerprint,
        "plug-ins": describe_plugins(),
        "split": hashlib.sha256(sizes.encode()).hexdigest()[:16],
    }
