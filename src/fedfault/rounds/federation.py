"""A run as functions and tensors: who is drawn, the learning rate with its warm-up, the clients' request and result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedfault.backbones.replay import Record
from fedfault.hardware.flight import Asynchrony
from fedfault.hardware.plan import Hardware
from fedfault.privacy.budget import Budget
from fedfault.rounds.exchange import Cohort, select_rows
from fedfault.rounds.local import LocalWork, Passes, weigh_clients
from fedfault.rounds.passes import TrainJob, train_job
from fedfault.saying import Say, say_nothing
from fedfault.scheduling import Candidates, Floats, Ints, Memory, Selection
from fedfault.seeds import rng
from fedfault.selection.uniform import uniform
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Aggregation, Algorithm, Message, Trained
from fedfault.types.attack import Hostile
from fedfault.types.task import Probe, Task

NO_REPORTS: Memory = {}


@dataclass(frozen=True)
class CohortRequest:
    """A request to the K clients of a round: everything that reaches them."""

    round: int
    cohort: Cohort
    weight: Tensor  # (K,) n_k
    received: Message  # what the server sent, cut to their ranks, with what they kept at home
    memory: Mapping[str, Adapter]  # what they remember, (K, P)
    effort: Sequence[float]  # (K,) share of its local steps that each gets done
    passes: Passes
    halves: bool = False  # whether probes need `CohortResult.halves`
    # What the frozen weights they train on hold beside their own
    base: Mapping[str, Tensor] = field(default_factory=dict)

    def select(self, rows: Sequence[int]) -> CohortRequest:
        """The request to some of the clients, given by their positions in the cohort, in that order."""
        some = torch.tensor(rows, dtype=torch.int64)
        return replace(
            self,
            cohort=self.cohort.select(rows),
            weight=self.weight[some],
            received=select_rows(self.received, some),
            memory={name: replace(a, flat=a.flat[some]) for name, a in self.memory.items()},
            effort=[self.effort[i] for i in rows],
            passes=Passes(min(self.passes.size, max(1, len(rows))), need=self.passes.need),
        )


@dataclass(frozen=True)
class CohortResult:
    """The answer of the clients of a round; rows are in the order of the cohort."""

    cohort: Cohort  # those that were asked, or the ones of them whose work arrived
    up: Message  # what they send
    home: Mapping[str, Adapter]  # what they keep
    start: Tensor  # (K, P) where they started
    trained: Trained
    events: tuple[str, ...] = ()
    halves: tuple[Tensor, Tensor] | None = None  # (K, P) each: see `FinishedRound.halves`
    probing: float = 0.0  # seconds that they took
    waited: float = 0.0  # seconds that other runs trained in
    clients_per_pass: int | None = None  # that memory is enough for, where it ran out
    unreached: frozenset[int] = frozenset()  # ids of the others to whom nothing could be sent


@dataclass(frozen=True)
class Federation:
    """A run as functions and tensors: task, algorithm, aggregation and settings; `Experiment` says it in plain values."""

    task: Task
    algorithm: Algorithm
    aggregation: Aggregation
    work: LocalWork
    total_clients: int
    cohort_size: int
    num_rounds: int
    seed: int = 0
    warmup_ratio: float = 0.0
    lr_schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    min_lr: float = 0.0  # of the last round, unless the schedule is constant
    evaluate_every: int = 1
    clients_per_pass: int | None = None  # None: the whole cohort
    need: str = ""  # what a pass of one client takes of the memory, for who runs out of it
    ranks: tuple[int, ...] = ()  # (N,) largest LoRA rank of each client; none: the full rank for all
    selection: Selection = field(default_factory=uniform)  # who is drawn for a round
    record: Record | None = None  # how steps of one shape are recorded to be replayed; None: they are not
    train_job: TrainJob = train_job  # does the local training of a cohort, here or beside that of other runs
    bad_updates: Literal["drop", "stop"] = "drop"  # what becomes of an update that is not finite
    budget: Budget | None = None  # what hides clients, or their examples; None: nothing is hidden
    attacks: Sequence[Hostile] = ()  # what hostile clients do to their updates
    probes: Mapping[str, Probe] = field(default_factory=dict)  # what is measured of every round, by name
    asynchronous: Asynchrony | None = None  # how updates are taken in as they come; None: rounds wait for their cohort
    hardware: Hardware | None = None  # None: everybody trains with its rank and is done in no time
    effort: Callable[[int, int], float] | None = None  # (round, client) -> share of its local steps that it gets done
    tell: Say = say_nothing  # is told in a few words what a round is doing, for whoever looks on
    # Does elsewhere what clients do; None: `train_clients` does it here
    remote: Callable[[Federation, CohortRequest], CohortResult] | None = None
    memory_elsewhere: bool = False  # what clients keep stays with them: `State.clients` is empty

    def cohort(
        self, round: int, reports: Memory = NO_REPORTS, seconds: Floats | None = None, now: float = 0.0
    ) -> list[int]:
        """Ids of the clients that are drawn for a round, sorted: a function of the seed, the round and what was reported.

        Of those that are available; fewer than asked for, if no more are. Where clients are hidden it follows from a secret.
        reports: see `dispatch.remember_losses`; seconds: (N,) that each is expected to take, if any time is simulated;
        now: seconds since the run began.
        """
        if self.budget is not None and self.budget.unit == "client":
            return self.budget.draw_clients(round)
        g = rng(self.seed, "cohort", round)
        there = self._permute_available(g, round, now)
        chosen = self.selection.choose(self.list_candidates(round, there, self.cohort_size, reports, seconds), g)
        return sorted(there[chosen].tolist())

    def list_candidates(
        self, round: int, clients: Ints, wanted: int, reports: Memory = NO_REPORTS, seconds: Floats | None = None
    ) -> Candidates:
        """What the selection may know of these clients (n,); what it does not need is not a number."""
        unknown, needs = np.full(len(clients), np.nan), self.selection.needs
        loss, last = _judge_reports(reports, self.total_clients)
        return Candidates(
            round=round,
            clients=clients,
            size=self._sizes[clients] if "size" in needs else unknown,
            loss=loss[clients],
            last=last[clients],
            seconds=unknown if seconds is None or "seconds" not in needs else seconds[clients],
            wanted=wanted,
        )

    def correct_weights(self, round: int, clients: Sequence[int], weight: Tensor, now: float = 0.0) -> Tensor:
        """The weights n_k / pi_k (K,) of clients that were drawn for a round, where the selection says its chances pi_k.

        Where it does not, their weights are n_k.
        """
        there = self._permute_available(rng(self.seed, "cohort", round), round, now)
        chances = self.selection.inclusion(self.list_candidates(round, there, self.cohort_size).size, self.cohort_size)
        if chances is None:
            return weight
        pi = dict(zip(there.tolist(), chances.tolist(), strict=True))
        return weight / torch.tensor([pi[k] for k in clients], dtype=weight.dtype, device=weight.device)

    def _permute_available(self, g: np.random.Generator, round: int, now: float) -> Ints:
        drawn: Ints = g.permutation(self.total_clients)
        return drawn if self.hardware is None else drawn[self.hardware.available(round, now)[drawn]]

    @cached_property
    def _sizes(self) -> np.ndarray:
        """n_k of every client, (N,)."""
        sizes: np.ndarray = weigh_clients(self.task, self.work.weighting, range(self.total_clients)).numpy()
        return sizes

    def lr(self, round: int) -> float:
        """Learning rate of a round, 1-based: rises linearly over the first warmup_ratio of all rounds, then by the schedule.

        A schedule falls from the full rate to `min_lr`, which the last round has. A function of the global round, never
        restarted inside one.
        """
        rising, full, least = self.warmup_ratio * self.num_rounds, self.work.lr, self.min_lr
        if round < rising:
            return full * round / rising
        start = max(1.0, rising)  # the round that has the full rate
        share = (round - start) / (self.num_rounds - start) if self.num_rounds > start else 0.0
        if self.lr_schedule == "linear":
            return full + (least - full) * share
        if self.lr_schedule == "cosine":
            return least + (full - least) * (1 + math.cos(math.pi * share)) / 2
        if self.lr_schedule == "exponential":
            return full * math.exp(share * math.log(least / full))
        return full


def _judge_reports(reports: Memory, N: int) -> tuple[Floats, Ints]:
    """Each client's loss and the round in which it was asked last, (N,) each, see `scheduling.Candidates`.

    Who was asked and did not report has the median loss of those who did. As unknown it would come first in every round,
    and by its last loss too, if that was high: once there are as many silent clients as places, nothing would ever arrive.
    """
    if not reports:
        return np.full(N, np.nan), np.zeros(N, dtype=np.int64)
    loss, last = np.array(reports["loss"]), np.array(reports["last"], dtype=np.int64)
    asked = np.array(reports.get("asked", reports["last"]), dtype=np.int64)
    answered = (asked > 0) & (last == asked)
    typical = float(np.median(loss[answered])) if answered.any() else 0.0
    return np.where(asked > 0, np.where(answered, loss, typical), np.nan), asked
