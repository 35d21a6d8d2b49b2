"""Passes of local training, the one place that mutates tensors: gradients, clipping, steps of many clients side by side.

K clients are the rows of one (K, P) matrix under one optimiser. Rows are sorted by their number of steps,
longest first, so the clients still at work are always a prefix:

    step      0   1   2   3   4
    client 3  x   x   x   x   x
    client 0  x   x   x               leaf = y[:3], then y[:2], then y[:1]
    client 7  x
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fedfault.algebra import mask_factor, widest
from fedfault.backbones.replay import WORTH, Record, find_replay
from fedfault.errors import is_out_of_memory
from fedfault.rounds.local import LocalWork, Passes
from fedfault.types.algorithm import ExtraLoss, ExtraTerms, Pull
from fedfault.types.task import Groups, Step, Trainable

# (places in the cohort (k,) of the clients of a pass, on the CPU) -> what is added to their steps, and the penalty
Bind = Callable[[Tensor], tuple[ExtraTerms, Pull | None]]


@dataclass(frozen=True)
class Job:
    """The local training of K clients that is to be done, with all that it depends on."""

    task: Trainable
    work: LocalWork
    lr: float | Tensor  # of all clients, or (K,) of each
    clients: Tensor  # (K,) ids
    keys: Tensor  # (K,) int64 random streams of dropout
    plans: Sequence[np.ndarray]  # (S, B) of each client, see `plan_batches`
    order: Sequence[int]  # (K,) places in the cohort, the longest plan first
    start: Tensor  # (K, P)
    passes: Passes
    extra: ExtraTerms
    trainable: Tensor | None = None  # (K, P) bool; the other numbers never change
    penalty: Pull | None = None
    mean_grad: bool = False
    record: Record | None = None
    begun: Tensor | None = None  # (K, P) where clients stand that have trained before, and go on; None: at `start`
    bind: Bind | None = None  # makes `extra` and `penalty` of a pass, where they hang on who is in it


class Done(NamedTuple):
    """The result of a job; rows are in the order of its clients."""

    y: Tensor  # (K, P)
    sums: Tensor  # (4, K) float64, on the CPU: over the steps, of losses times tokens, tokens, norms and drifts
    gradients: Tensor | None  # (K, P) the sum of the clipped gradients
    seconds: float | None = None  # that it took, where others trained in that time too


TrainJob = Callable[[Job], Done]


def train_job(job: Job) -> Done:
    """Train all clients of a job, in passes of as many as fit; after running out of memory, in smaller ones."""
    K = len(job.clients)
    y = job.start.clone()
    sums = torch.zeros(4, K, dtype=torch.float64)
    gradients = torch.zeros_like(y) if job.mean_grad else None
    done = 0
    while done < K:
        rows = torch.tensor(job.order[done : done + job.passes.next(K - done)])
        try:
            sums[:, rows] = _train_pass(job, rows, _name_clients(done, len(rows), K), y, gradients)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            job.passes.halve(e)
            continue
        done += len(rows)
    return Done(y, sums, gradients)


def _train_pass(job: Job, rows: Tensor, who: str, y: Tensor, gradients: Tensor | None) -> Tensor:
    """Train one pass into y and gradients (K, P), and let go of all else that it took; returns its sums, see `Done`."""
    one = Pass(job, rows, who)
    y[one.rows] = one.run()
    if gradients is not None and one.gradients is not None:
        gradients[one.rows] = one.gradients
    return one.sums.cpu().double()


def _name_clients(done: int, number: int, of: int) -> str:
    """Name the clients of a pass by their place among those of the round.

    >>> _name_clients(0, 1, 3), _name_clients(4, 2, 6)
    ('client 1 of 3', 'clients 5 to 6 of 6')
    """
    return f"client {done + 1} of {of}" if number == 1 else f"clients {done + 1} to {done + number} of {of}"


def clip_gradients(gradient: Tensor, most: float | None) -> Tensor:
    """Clip each client's gradient (K, P) by its own norm, in place; returns the norms (K,) before."""
    norm: Tensor = gradient.norm(dim=1)
    if most is not None:
        gradient.mul_((most / (norm + 1e-6)).clamp(max=1)[:, None])  # as clip_grad_norm_ has it
    return norm


class Pass:
    """One trip of k clients, longest plan first, through all their steps.

    All that a step needs is on the device of the parameters before the first one, and what is summed up over the steps stays
    there until the last: nothing in between waits for the device.
    """

    def __init__(self, job: Job, rows: Tensor, who: str = "") -> None:
        """rows: the places of its clients in the cohort; who: these, in words for whoever looks on."""
        self.who, self.tell = who, job.passes.tell
        self.task, self.work, device = job.task, job.work, job.start.device
        self.extra, self.penalty = (job.extra, job.penalty) if job.bind is None else job.bind(rows)
        self.rows = rows.to(device)  # (k,) places in the cohort
        self.x = x = job.start[self.rows]  # (k, P) where they started
        self.begun = None if job.begun is None else job.begun[self.rows]  # (k, P) where they stand, if not there
        self.host = job.clients[rows], job.keys[rows]  # (k,) ids and random streams
        self.clients, self.keys = (each.to(device) for each in self.host)
        self.lr = _spread_rates(job, rows)
        self.frozen = None if job.trainable is None else ~job.trainable[rows].to(device)  # (k, P)
        plans = [job.plans[i] for i in rows]
        self.lengths = [len(p) for p in plans]
        self.steps = max(self.lengths)
        self.planned = torch.full((len(plans), self.steps, max(p.shape[1] for p in plans)), -1)  # (k, S, B)
        for own, plan in zip(self.planned, plans, strict=True):
            own[: len(plan), : plan.shape[1]] = torch.from_numpy(plan)
        # By step: columns that somebody uses, of which there is one where all draws are empty
        self.widths = (self.planned >= 0).sum(2).amax(0).clamp(min=1).tolist()
        self.examples = self.planned.to(device)
        self.sums = torch.zeros(4, len(plans), dtype=widest(device), device=device)
        self.loss, self.tokens, self.norm, self.drift = self.sums
        self.gradients = torch.zeros_like(x) if job.mean_grad else None
        self.y = torch.empty_like(x)
        self.optimizer = _Optimizer(self.work, self.lr, self.y)
        self.record, self.events = job.record, job.passes.events

    def run(self) -> Tensor:
        """(k, P): every client's parameters after its last step."""
        self.y.copy_(self.x if self.begun is None else self.begun)
        at_work = [sum(n > s for n in self.lengths) for s in range(self.steps)]  # clients in step s
        for k, steps in groupby(range(len(at_work)), key=at_work.__getitem__):
            first, *more = steps
            self._tell_step(first)
            self._move(k, self._plan_step(k, first))
            if self.record is not None and len(more) >= WORTH and self._replay(self.record, k, more):
                continue
            for step in more:
                self._tell_step(step)
                self._move(k, self._plan_step(k, step))
        return self.y

    def _tell_step(self, number: int) -> None:
        self.tell(f"{self.who}, step {number + 1} of {self.steps}")

    def _replay(self, record: Record, k: int, numbers: Sequence[int]) -> bool:
        """Take these steps of the first k clients by one recording; a column that a batch does not fill has no weight.

        Rows of different lengths are grouped as the longest of all steps ask for. False: no step was taken.
        """
        width = max(self.widths[n] for n in numbers)
        batch = self.examples[:k, numbers[0], :width].clone()
        number = torch.zeros((), dtype=torch.int64, device=self.y.device)
        contrast = self._contrast(k)
        groups = self._plan_groups(k, numbers, width)

        def step() -> None:
            keys = self.keys[:k] + number
            self._move(k, Step(self.clients[:k], batch.clamp(min=0), batch >= 0, keys, contrast, groups=groups))

        state = [self.y, self.sums, *self.optimizer.state, *([] if self.gradients is None else [self.gradients])]
        replay = find_replay(record, step, state, self.events)
        if replay is None:
            return False
        for n in numbers:
            batch.copy_(self.examples[:k, n, :width])
            number.fill_(n)
            self._tell_step(n)
            replay()
        return True

    def _plan_groups(self, k: int, numbers: Sequence[int], width: int) -> tuple[Groups, ...]:
        """Groups into which the rows of all these steps fit, of each part that a step is taken in; none without lengths."""
        clients, found = self.host[0][:k], []
        for columns in self.work.cut_columns(width):
            rows = [self.planned[:k, n, columns] for n in numbers]
            steps = [Step(clients, r.clamp(min=0), r >= 0, extra_loss=self._contrast(k)) for r in rows]
            found.append(self.task.plan_groups(steps))
        return tuple(found) if all(found) else ()

    def _move(self, k: int, step: Step) -> None:
        """One step of the first k clients."""
        leaf = self.y[:k]  # a view: the optimiser writes into y
        gradient = self._gradient(leaf, step)
        if self.work.weight_decay:  # not the optimiser's own, which would move what is frozen too
            _go_down(leaf, self._only_trainable(leaf), self.lr * self.work.weight_decay)
        self.optimizer.step(leaf, gradient)
        if self.extra.step is not None:
            direction = self._only_trainable(self.extra.step(leaf, self.x[:k], self.rows[:k]))
            _go_down(leaf, direction, self.lr)
        self.drift[:k] += (leaf - self.x[:k]).square().sum(1)

    def _gradient(self, leaf: Tensor, step: Step) -> Tensor:
        """Gradient (k, P) of a step, each client clipped by its own norm, then what is added to it."""
        k, mixture = len(leaf), self.extra.mixture
        point, share = (leaf, None) if mixture is None else mixture(leaf, self.rows[:k])
        loss, gradient, tokens = self._differentiate(point, step)
        self.loss[:k] += loss * tokens
        self.tokens[:k] += tokens
        gradient = self._only_trainable(gradient)
        self.norm[:k] += clip_gradients(gradient, self.work.max_grad_norm)
        if self.gradients is not None:
            self.gradients[:k] += gradient
        if share is not None:
            gradient = share * gradient
        for extra in (self.extra.gradient, self.penalty):
            if extra is not None:
                gradient = gradient + self._only_trainable(extra(leaf, self.x[:k], self.rows[:k]))
        return gradient

    def _differentiate(self, leaf: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """What `Trainable.grad` gives for a step, taken in parts where the work has several: a mean over all targets."""
        if self.work.parts == 1:
            return self.task.grad(leaf, step)
        columns = self.work.cut_columns(step.rows.shape[1])
        parts = [self.task.grad(leaf, step.cut(part, number)) for number, part in enumerate(columns)]
        tokens = torch.stack([n for *_, n in parts])  # (parts, k)
        share = tokens / tokens.sum(0).clamp(min=1)
        loss, gradient = torch.zeros_like(parts[0][0]), torch.zeros_like(leaf)
        for (own, change, _), p in zip(
            parts, share, strict=True
        ):  # a client without targets in a part has no mean there
            loss += torch.where(p > 0, own * p.to(own), 0)
            gradient += torch.where(p[:, None] > 0, change * p.to(change)[:, None], 0)
        return loss, gradient, tokens.sum(0)

    def _plan_step(self, k: int, number: int) -> Step:
        """The step of the first k clients by its number, on the device and as it was planned."""
        planned, contrast, width = self.planned[:k, number], self._contrast(k), self.widths[number]

        def plan(clients: Tensor, keys: Tensor, examples: Tensor, host: Step | None = None) -> Step:
            places = examples[:, :width]
            return Step(clients[:k], places.clamp(min=0), places >= 0, keys[:k] + number, contrast, host)

        here = plan(*self.host, planned)
        return here if self.examples is self.planned else plan(self.clients, self.keys, self.examples[:k, number], here)

    def _only_trainable(self, direction: Tensor) -> Tensor:
        return direction if self.frozen is None else direction.masked_fill(self.frozen[: len(direction)], 0.0)

    def _contrast(self, k: int) -> ExtraLoss | None:
        further = self.extra.loss
        return None if further is None else (lambda z, see: further(z, see, self.rows[:k]))


def _spread_rates(job: Job, rows: Tensor) -> float | Tensor:
    """The learning rates of some clients: one for all, (k, 1) of each, or (k, P) where LoRA's B has its own."""
    start = job.start
    each = job.lr if isinstance(job.lr, float) else job.lr[rows].to(start)[:, None]
    if job.work.lr_ratio == 1:
        return each
    ratio = torch.where(mask_factor(job.task.layout, "B"), job.work.lr_ratio, 1.0).to(start)
    return each * ratio.expand(len(rows), -1)


def _go_down(y: Tensor, direction: Tensor, lr: float | Tensor) -> None:
    """y <- y - lr * direction, of the first rows of lr where each client has its own."""
    if isinstance(lr, float):
        y.sub_(direction, alpha=lr)
    else:
        y.addcmul_(direction, lr[: len(y)], value=-1)


class _Optimizer:
    """torch.optim's SGD or AdamW on the rows still at work, the first k of (K, P).

    By its functional form: the class would import a compiler first, which takes as long as some rounds. lr: one for all, or
    (K, 1) of each or (K, P), which torch's AdamW does not know: then it takes a step of rate 1 from zero, which is scaled.
    """

    def __init__(self, work: LocalWork, lr: float | Tensor, y: Tensor) -> None:
        self.work, self.lr = work, lr
        rows = len(y) if work.optimizer == "adamw" else 0  # SGD keeps nothing
        self.mean, self.square = y.new_zeros(2, rows, y.shape[1])
        self.steps = torch.zeros((), device=y.device)

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes beside the rows that it moves."""
        return [self.mean, self.square, self.steps]

    def step(self, y: Tensor, gradient: Tensor) -> None:
        """Move the rows y (k, P), in place."""
        if self.work.optimizer == "sgd":
            _go_down(y, gradient, self.lr)
        elif isinstance(self.lr, float):
            self._adamw(y, gradient, self.lr)
        else:
            move = torch.zeros_like(y)
            self._adamw(move, gradient, 1.0)
            y.addcmul_(move, self.lr[: len(y)])

    def _adamw(self, y: Tensor, gradient: Tensor, lr: float) -> None:
        k, fused = len(y), y.device.type in ("cpu", "cuda")
        beta1, beta2 = self.work.betas
        adamw(
            [y], [gradient], [self.mean[:k]], [self.square[:k]], [], [self.steps], foreach=False, fused=fused,
            amsgrad=False, beta1=beta1, beta2=beta2, lr=lr, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
