"""Local training of a cohort, as algorithms call it: who trains on which batches, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedfault.algebra import widest
from fedfault.backbones.replay import Record
from fedfault.errors import UserError
from fedfault.rounds.local import LocalWork, Passes, cut_batches, plan_batches, weigh_clients
from fedfault.rounds.passes import Done, Job, TrainJob, clip_gradients, train_job
from fedfault.seeds import entropy, rng
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import PLAIN, ExtraTerms, Pull, Trained
from fedfault.types.task import Step, Trainable

Draw = Callable[[int, int, np.random.Generator], np.ndarray]

PROBED = 64  # examples of a client that `Trainer.loss` looks at, at most


def _sort_longest_first(plans: Sequence[np.ndarray]) -> list[int]:
    """The places of clients, that of the one with the most steps first."""
    return sorted(range(len(plans)), key=lambda i: (-len(plans[i]), i))


def _check_halves(plans: Sequence[np.ndarray], clients: Sequence[int]) -> None:
    """Raise `UserError` for a client whose round is one step."""
    if short := [k for k, plan in zip(clients, plans, strict=True) if len(plan) < 2]:
        raise UserError(
            f"client {short[0]} takes one step in a round, and with in_turn=true private parts train in the first half of a "
            "client's steps and the others in the second; raise training.local_steps or local_epochs to two at least"
        )


class Trainer:
    """Implements `types.algorithm.Train` for one cohort and round.

    trainable: (K, P) or (P,) bool; the other numbers have no gradient, take no part in its norm, and never change.
    first: (P,) bool, what clients train in the first half of their steps, and the rest in the second; None: all at once.
    effort: (K,) the share of its local steps that each client gets done, see `cut_batches`; None for all of them.
    record: how many steps of one shape are recorded and replayed, for tasks whose steps allow it, see `replay.py`.
    train_job: who does the work, which may be done beside that of others.
    draw: (examples, steps, stream) -> the batches of a client, where they are not those of `plan_batches`, and
        each step is accounted for.
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
        first: Tensor | None = None,
        penalty: Pull | None = None,
        effort: Sequence[float] | None = None,
        record: Record | None = None,
        train_job: TrainJob = train_job,
        draw: Draw | None = None,
    ) -> None:
        self.task, self.work, self.passes, self.penalty, self.record = task, work, passes, penalty, record
        self.train_job = train_job
        self.clients = torch.tensor(clients)
        self.weight = weigh_clients(task, work.weighting, clients)
        streams = [(task.examples(k), rng(seed, "batches", round, k)) for k in clients]
        self.is_counted = draw is not None
        if draw is None:
            self.plans = [plan_batches(n, work, g) for n, g in streams]
        else:
            self.plans = [draw(n, work.steps or 1, g) for n, g in streams]
        self.first = first
        if first is not None:
            _check_halves(self.plans, clients)
        if effort is not None:
            self.plans = [cut_batches(p, share) for p, share in zip(self.plans, effort, strict=True)]
        self.keys = torch.tensor([entropy(seed, "dropout", round, k) % 2**62 for k in clients])
        self.longest_first = _sort_longest_first(self.plans)
        self.trainable = None if trainable is None else self._spread(trainable)
        self.start = torch.empty(0)  # (K, P) where the last training started
        self.waited = 0.0  # seconds that others trained in
        self.trained: Trained | None = None  # what it gave: the engine reports and checks both

    @property
    def lr(self) -> float:
        """See `types.algorithm.Train`. Raises `UserError` where LoRA's factors have rates of their own."""
        if self.work.lr_ratio != 1:
            raise UserError(
                f"training.lr_ratio={self.work.lr_ratio:g}: the algorithm reckons with one learning rate for all numbers; "
                "leave it out, or choose another federation.algorithm"
            )
        return self.work.lr

    def __call__(self, start: Adapter, extra: ExtraTerms = PLAIN, *, mean_grad: bool = False) -> Trained:
        """See `types.algorithm.Train`."""
        if self.is_counted and self.trained is not None:
            raise RuntimeError(
                "an algorithm trains its clients twice in a round, and their privacy is counted for once"
            )
        K, P = len(self.clients), start.flat.shape[-1]
        self.start = start.flat.expand(K, P)
        clock = time.perf_counter()
        job = self.make_job(extra, mean_grad=mean_grad)
        y, sums, gradients, seconds = (
            self.train_job(job) if self.first is None else self._train_in_turn(job, self.first)
        )
        self.waited += 0.0 if seconds is None else time.perf_counter() - clock - seconds
        (loss, tokens, norm, drift), steps = sums, torch.tensor([len(p) for p in self.plans])
        if gradients is not None:
            gradients /= steps[:, None].to(gradients)
        means = loss / tokens, norm / steps, gradients, drift / steps
        self.trained = Trained(Adapter(start.layout, y), self.weight, steps, tokens.long(), *means)
        return self.trained

    def make_job(self, extra: ExtraTerms, *, mean_grad: bool = False) -> Job:
        """Make the job of training from `start`, which has been set."""
        return Job(
            self.task,
            self.work,
            self.work.lr,
            self.clients,
            self.keys,
            self.plans,
            self.longest_first,
            self.start,
            self.passes,
            extra,
            self.trainable,
            self.penalty,
            mean_grad,
            self.record,
        )

    def _train_in_turn(self, job: Job, first: Tensor) -> Done:
        """Do the first half of every client's steps on the numbers `first` (P,) alone, and the rest on the others.

        The optimiser starts anew in between; what the algorithm adds sees where the round started in both halves.
        """
        halves = [-(-len(plan) // 2) for plan in self.plans]
        mine = torch.ones_like(first) if self.trainable is None else self.trainable
        one = self.train_job(
            replace(
                job,
                plans=[p[:n] for p, n in zip(self.plans, halves, strict=True)],
                trainable=self._spread(mine & first),
            )
        )
        later = [p[n:] for p, n in zip(self.plans, halves, strict=True)]
        if not any(map(len, later)):
            return one
        two = self.train_job(
            replace(
                job,
                keys=job.keys + torch.tensor(halves),
                plans=later,
                order=_sort_longest_first(later),
                trainable=self._spread(mine & ~first),
                begun=one.y,
            )
        )
        gradients = None if one.gradients is None or two.gradients is None else one.gradients + two.gradients
        seconds = None if one.seconds is None or two.seconds is None else one.seconds + two.seconds
        return Done(two.y, one.sums + two.sums, gradients, seconds)

    def _spread(self, mask: Tensor) -> Tensor:
        """A mask (P,) or (K, P) as one of every client, (K, P)."""
        return mask.expand(len(self.clients), -1)

    def gradient(self, at: Adapter) -> Adapter:
        """See `types.algorithm.Train`: the token-weighted mean over all examples, then clipped."""
        flat = at.flat.expand(len(self.clients), -1)
        total = torch.zeros(len(flat), dtype=widest(flat.device), device=flat.device)
        out = torch.zeros_like(flat, dtype=widest(flat.device), memory_format=torch.contiguous_format)
        for rows, step in self._iterate_examples():
            _, gradient, tokens = self.task.grad(flat[rows], step)
            out[rows] += gradient * tokens[:, None].to(gradient)
            total[rows] += tokens
        out = (out / total[:, None].to(out)).to(at.flat)
        if self.trainable is not None:
            out = out.masked_fill(~self.trainable.to(out.device), 0.0)
        clip_gradients(out, self.work.max_grad_norm)
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
            for at in range(0, int(counts[rows].max()), self.work.part_size):
                places = torch.arange(at, at + self.work.part_size).expand(len(rows), -1)
                real = places < counts[rows][:, None]
                k = int(real.any(1).sum())  # the longest are first
                width = int(real[:k].any(0).sum())
                real = real[:k, :width]
                out.append((rows[:k], Step(self.clients[rows[:k]], places[:k, :width].where(real, 0), real)))
            done += len(rows)
        return out
