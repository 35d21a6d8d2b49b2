"""Local training of a cohort, the one place that mutates tensors: batches, passes that fit into memory, clipping, steps.

K clients are the rows of one (K, P) matrix under one optimiser. Rows are sorted by their number of steps,
longest first, so the clients still at work are always a prefix:

    step      0   1   2   3   4
    client 3  x   x   x   x   x
    client 0  x   x   x               leaf = y[:3], then y[:2], then y[:1]
    client 7  x
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fedfault.algebra import widest
from fedfault.errors import UserError, is_out_of_memory, read_first_line
from fedfault.rounds.replay import WORTH, Record, find_replay
from fedfault.seeds import entropy, rng
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import PLAIN, ExtraLoss, ExtraTerms, Pull, Trained
from fedfault.types.task import Step, Trainable

PROBED = 64  # examples of a client that `Trainer.loss` looks at, at most


@dataclass(frozen=True)
class LocalWork:
    """The local work of a client in a round; its length is in epochs over its data or in optimiser steps."""

    epochs: int | None = 1
    steps: int | None = None
    batch_size: int = 8
    lr: float = 5e-4
    optimizer: str = "adamw"
    max_grad_norm: float | None = None
    weighting: str = "tokens"
    weight_decay: float = 0.0  # of AdamW, decoupled
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class Passes:
    """How many clients go through the model at once; halved when memory runs out, which is an event of the round."""

    size: int
    events: list[str] = field(default_factory=list)
    need: str = ""  # what a pass of one client takes, for the message when that is too much
    halved: bool = False

    def next(self, left: int) -> int:
        """Clients of the next pass when `left` remain: as few passes as fit, all about as large."""
        return -(-left // -(-left // self.size))

    def halve(self, error: Exception) -> None:
        """Half as many clients a pass; `UserError` when it is one already."""
        if self.size == 1:
            raise UserError(
                f"out of memory with one client in a pass{self.need and f', which {self.need}'}; lower training.batch_size, "
                f"model.max_length or model.lora.r_max ({read_first_line(error)})"
            ) from error
        self.size, self.halved = self.size // 2, True
        self.events.append(f"out of memory: {self.size} clients in a pass from now on")


def count_steps(n: int, work: LocalWork) -> tuple[int, float]:
    """Optimiser steps of a client with n examples in a round, and how many times it goes through them.

    >>> count_steps(10, LocalWork(epochs=2, batch_size=4)), count_steps(10, LocalWork(steps=9, batch_size=4))
    ((6, 2.0), (9, 3.0))
    """
    per_epoch = -(-n // work.batch_size)
    steps = work.steps or (work.epochs or 1) * per_epoch
    return steps, steps / per_epoch


def plan_batches(n: int, work: LocalWork, generator: np.random.Generator) -> np.ndarray:
    """A client's batches: (S, B) indices into its n examples, -1 where the last batch of an epoch is not full.

    Every epoch is a fresh permutation, cut into batches of B; nothing is dropped.
    """
    per_epoch, (steps, _) = -(-n // work.batch_size), count_steps(n, work)
    out = np.full((-(-steps // per_epoch), per_epoch * work.batch_size), -1)
    for epoch in out:
        epoch[:n] = generator.permutation(n)
    return out.reshape(-1, work.batch_size)[:steps]


def cut_batches(batches: np.ndarray, share: float) -> np.ndarray:
    """The first ceil(share * S) of a client's S batches (S, B), for a client that gets no further.

    Raises `UserError` for a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(
            f"effort {share} of a client; a share of its steps is above 0 and at most 1, and a client that gets nothing "
            "done is left out of the cohort"
        )
    return batches[: max(1, math.ceil(round(share * len(batches), 6)))]  # 11/20 of 100 is 55, not 56


def weigh_clients(task: Trainable, weighting: str, clients: Sequence[int]) -> Tensor:
    """n_k: the size of a client's data set by the one weighting rule of the run, (K,)."""
    if weighting == "uniform":
        return torch.ones(len(clients), dtype=torch.float64)
    size = task.tokens if weighting == "tokens" else task.examples
    return torch.tensor([float(size(k)) for k in clients], dtype=torch.float64)


class Trainer:
    """Implements `types.algorithm.Train` for one cohort and round.

    trainable: (K, P) or (P,) bool; the other numbers have no gradient, take no part in its norm, and never change.
    effort: (K,) the share of its local steps that each client gets done, see `cut_batches`; None for all of them.
    record: how many steps of one shape are recorded and replayed, for tasks whose steps allow it, see `replay.py`.
    """

    def __init__(
        self,
        task: Trainable,
        work: LocalWork,
        *,
        seed: int,
        round: int,
        clients: Sequence[int],
        passes: Passes,
        trainable: Tensor | None = None,
        penalty: Pull | None = None,
        effort: Sequence[float] | None = None,
        record: Record | None = None,
    ) -> None:
        self.task, self.work, self.passes, self.penalty, self.record = task, work, passes, penalty, record
        self.lr = work.lr
        self.clients = torch.tensor(clients)
        self.weight = weigh_clients(task, work.weighting, clients)
        self.plans = [plan_batches(task.examples(k), work, rng(seed, "batches", round, k)) for k in clients]
        if effort is not None:
            self.plans = [cut_batches(p, share) for p, share in zip(self.plans, effort, strict=True)]
        self.keys = torch.tensor([entropy(seed, "dropout", round, k) % 2**62 for k in clients])
        self.longest_first = sorted(range(len(clients)), key=lambda i: (-len(self.plans[i]), i))
        self.trainable = None if trainable is None else trainable.expand(len(clients), -1)
        self.start = torch.empty(0)  # (K, P) where the last training started
        self.trained: Trained | None = None  # what it gave: the engine reports and checks both

    def __call__(self, start: Adapter, extra: ExtraTerms = PLAIN, *, mean_grad: bool = False) -> Trained:
        """See `types.algorithm.Train`."""
        K, P = len(self.clients), start.flat.shape[-1]
        self.start = x = start.flat.expand(K, P)
        y = x.clone()
        sums = torch.zeros(4, K, dtype=torch.float64)  # of each client's losses, tokens, norms and drifts
        gradients = torch.zeros_like(y) if mean_grad else None
        done = 0
        while done < K:
            rows = torch.tensor(self.longest_first[done : done + self.passes.next(K - done)])
            one = _Pass(self, extra, rows, x, gradients is not None)
            try:
                y[one.rows] = one.run()
            except (RuntimeError, MemoryError) as e:
                if not is_out_of_memory(e):
                    raise
                self.passes.halve(e)
                continue
            sums[:, rows] = one.sums.cpu().double()
            if gradients is not None and one.gradients is not None:
                gradients[one.rows] = one.gradients
            done += len(rows)
        (loss, tokens, norm, drift), steps = sums, torch.tensor([len(p) for p in self.plans])
        if gradients is not None:
            gradients /= steps[:, None].to(gradients)
        adapter = Adapter(start.layout, y)
        means = loss / tokens, norm / steps, gradients, drift / steps
        self.trained = Trained(adapter, self.weight, steps, tokens.long(), *means)
        return self.trained

    def gradient(self, at: Adapter) -> Adapter:
        """See `types.algorithm.Train`: the token-weighted mean over all examples, then clipped."""
        flat = at.flat.expand(len(self.clients), -1)
        total = torch.zeros(len(flat), dtype=widest(flat.device), device=flat.device)
        out = torch.zeros_like(flat, dtype=torch.float64, memory_format=torch.contiguous_format)
        for rows, step in self._iterate_examples():
            _, gradient, tokens = self.task.grad(flat[rows], step)
            out[rows] += gradient * tokens[:, None].to(gradient)
            total[rows] += tokens
        out = (out / total[:, None].to(out)).to(at.flat)
        if self.trainable is not None:
            out = out.masked_fill(~self.trainable.to(out.device), 0.0)
        _clip_gradients(out, self.work.max_grad_norm)
        return Adapter(at.layout, out)

    @torch.no_grad()
    def loss(self, at: Adapter) -> Tensor:
        """See `types.algorithm.Train`: on the first 64 examples."""
        flat = at.flat.expand(len(self.clients), -1)
        loss, total = torch.zeros(2, len(flat), dtype=widest(flat.device), device=flat.device)
        for rows, step in self._iterate_examples(PROBED):
            each, _, tokens = self.task.grad(flat[rows], step)
            loss[rows] += each.to(loss) * tokens
            total[rows] += tokens
        mean: Tensor = (loss / total).cpu().double()
        return mean

    def _iterate_examples(self, most: int | None = None) -> list[tuple[Tensor, Step]]:
        """Passes over all examples in order, `most` of each client: rows of the cohort, and the step on them."""
        counts = torch.tensor([min(self.task.examples(k), most or 2**62) for k in self.clients.tolist()])
        out, done = [], 0
        order = torch.argsort(counts, descending=True, stable=True)
        while done < len(order):
            rows = order[done : done + self.passes.next(len(order) - done)]
            for at in range(0, int(counts[rows].max()), self.work.batch_size):
                places = torch.arange(at, at + self.work.batch_size).expand(len(rows), -1)
                real = places < counts[rows][:, None]
                k = int(real.any(1).sum())  # the longest are first
                width = int(real[:k].any(0).sum())
                real = real[:k, :width]
                out.append((rows[:k], Step(self.clients[rows[:k]], places[:k, :width].where(real, 0), real)))
            done += len(rows)
        return out


def _clip_gradients(gradient: Tensor, most: float | None) -> Tensor:
    """Clip each client's gradient (K, P) by its own norm, in place; returns the norms (K,) before."""
    norm: Tensor = gradient.norm(dim=1)
    if most is not None:
        gradient.mul_((most / (norm + 1e-6)).clamp(max=1)[:, None])  # as clip_grad_norm_ has it
    return norm


class _Pass:
    """One trip of k clients, longest plan first, through all their steps.

    All that a step needs is on the device of the parameters before the first one, and what is summed up over the steps stays
    there until the last: nothing in between waits for the device.
    """

    def __init__(self, trainer: Trainer, extra: ExtraTerms, rows: Tensor, start: Tensor, mean_grad: bool) -> None:
        self.task, self.work, device = trainer.task, trainer.work, start.device
        self.extra, self.penalty = extra, trainer.penalty
        self.rows = rows.to(device)  # (k,) places in the cohort
        self.x = x = start[self.rows]  # (k, P) where they start
        self.host = trainer.clients[rows], trainer.keys[rows]  # (k,) ids and random streams
        self.clients, self.keys = (each.to(device) for each in self.host)
        self.frozen = None if trainer.trainable is None else ~trainer.trainable[rows].to(device)  # (k, P)
        plans = [trainer.plans[i] for i in rows]
        self.lengths = [len(p) for p in plans]
        self.planned = torch.full((len(plans), max(self.lengths), plans[0].shape[1]), -1)  # (k, S, B)
        for own, plan in zip(self.planned, plans, strict=True):
            own[: len(plan)] = torch.from_numpy(plan)
        self.widths = (self.planned >= 0).sum(2).amax(0).tolist()  # by step: columns that somebody uses
        self.examples = self.planned.to(device)
        self.sums = torch.zeros(4, len(plans), dtype=widest(device), device=device)
        self.loss, self.tokens, self.norm, self.drift = self.sums
        self.gradients = torch.zeros_like(x) if mean_grad else None
        self.y = torch.empty_like(x)
        self.optimizer = _Optimizer(self.work, self.y)
        self.record, self.events = trainer.record, trainer.passes.events

    def run(self) -> Tensor:
        """(k, P): every client's parameters after its last step."""
        self.y.copy_(self.x)
        at_work = [sum(n > s for n in self.lengths) for s in range(max(self.lengths))]  # clients in step s
        for k, steps in groupby(range(len(at_work)), key=at_work.__getitem__):
            first, *more = steps
            self._move(k, self._plan_step(k, first))
            if self.record is not None and len(more) >= WORTH:
                self._replay(self.record, k, more)
                continue
            for step in more:
                self._move(k, self._plan_step(k, step))
        return self.y

    def _replay(self, record: Record, k: int, numbers: Sequence[int]) -> None:
        """Take these steps of the first k clients by one recording; a column that a batch does not fill has no weight."""
        width = max(self.widths[n] for n in numbers)
        batch = self.examples[:k, numbers[0], :width].clone()
        number = torch.zeros((), dtype=torch.int64, device=self.y.device)
        contrast = self._contrast(k)

        def step() -> None:
            keys = self.keys[:k] + number
            self._move(k, Step(self.clients[:k], batch.clamp(min=0), batch >= 0, keys, contrast))

        state = [self.y, self.sums, *self.optimizer.state, *([] if self.gradients is None else [self.gradients])]
        replay = find_replay(record, step, state, self.events)
        for n in numbers:
            batch.copy_(self.examples[:k, n, :width])
            number.fill_(n)
            replay()

    def _move(self, k: int, step: Step) -> None:
        """One step of the first k clients."""
        leaf = self.y[:k]  # a view: the optimiser writes into y
        gradient = self._gradient(leaf, step)
        if self.work.weight_decay:  # not the optimiser's own, which would move what is frozen too
            leaf.sub_(self._only_trainable(leaf), alpha=self.work.lr * self.work.weight_decay)
        self.optimizer.step(leaf, gradient)
        if self.extra.step is not None:
            direction = self._only_trainable(self.extra.step(leaf, self.x[:k], self.rows[:k]))
            leaf.sub_(direction, alpha=self.work.lr)
        self.drift[:k] += (leaf - self.x[:k]).square().sum(1)

    def _gradient(self, leaf: Tensor, step: Step) -> Tensor:
        """Gradient (k, P) of a step, each client clipped by its own norm, then what is added to it."""
        k = len(leaf)
        loss, gradient, tokens = self.task.grad(leaf, step)
        self.loss[:k] += loss * tokens
        self.tokens[:k] += tokens
        gradient = self._only_trainable(gradient)
        self.norm[:k] += _clip_gradients(gradient, self.work.max_grad_norm)
        if self.gradients is not None:
            self.gradients[:k] += gradient
        for extra in (self.extra.gradient, self.penalty):
            if extra is not None:
                gradient = gradient + self._only_trainable(extra(leaf, self.x[:k], self.rows[:k]))
        return gradient

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


class _Optimizer:
    """torch.optim's SGD or AdamW on the rows still at work, the first k of (K, P).

    By its functional form: the class would import a compiler first, which takes as long as some rounds.
    """

    def __init__(self, work: LocalWork, y: Tensor) -> None:
        self.work = work
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
            y.sub_(gradient, alpha=self.work.lr)
            return
        k, fused = len(y), y.device.type in ("cpu", "cuda")
        beta1, beta2 = self.work.betas
        adamw(
            [y], [gradient], [self.mean[:k]], [self.square[:k]], [], [self.steps], foreach=False, fused=fused,
            amsgrad=False, beta1=beta1, beta2=beta2, lr=self.work.lr, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
