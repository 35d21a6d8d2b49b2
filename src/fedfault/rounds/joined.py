"""Jobs of several runs done as one: their clients are rows of the same passes, on one frozen backbone.

What a client computes does not depend on the other rows of its pass but for rounding, and what its algorithm adds to its
steps depends on none of them (`terms.py`), so that a run gets the numbers that it gets alone. A device that a cohort of one
run leaves idle is as busy with that of several as with a large one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedfault.errors import let_go, read_first_line
from fedfault.rounds.integrity import EntryCheck
from fedfault.rounds.local import Passes
from fedfault.rounds.passes import Done, Job, train_job
from fedfault.rounds.terms import bind_terms
from fedfault.tasks.base import CohortTask
from fedfault.types.algorithm import PLAIN
from fedfault.types.delegating import DelegatingTrainable
from fedfault.types.task import Step


class _Shared(NamedTuple):
    """Tasks with one loss on one model, and a task with the clients of all, in this order."""

    members: list[CohortTask]
    task: CohortTask


class JoinedJobs:
    """Does the local training of runs that share a backbone; it keeps their data side by side from round to round."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared] = {}  # by what the loss of those has in common
        self._passes: dict[int, Passes] = {}  # batch size -> how many clients go at once, of all runs together

    def train(self, jobs: Sequence[Job]) -> list[Done | Exception]:
        """Do all jobs, those that can be joined as one; what a job raises stands in the place of its result."""
        out: dict[int, Done | Exception] = {}
        groups: dict[Hashable, list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault(_describe(job) or i, []).append(i)
        for places in groups.values():
            own = [jobs[i] for i in places]
            out |= zip(places, self._join(own) if len(own) > 1 else map(_train_alone, own), strict=True)
        return [out[i] for i in range(len(jobs))]

    def forget(self, task: object) -> None:
        """Forget a run that is over: the data of those that are left is put together anew."""
        self._shared = {key: own for key, own in self._shared.items() if all(task is not one for one in own.members)}

    def _join(self, jobs: Sequence[Job]) -> list[Done | Exception]:
        """Do jobs of one kind as one; if that fails, one after another, so that a fault stays with the run that has it."""
        try:
            return [*self._train_joined(jobs)]
        except Exception as e:
            for job in jobs:
                job.passes.events.append(f"runs that share passes were trained one by one: {read_first_line(e)}")
        return [_train_alone(job) for job in jobs]  # without the error, which holds the tensors of its pass

    def _train_joined(self, jobs: Sequence[Job]) -> list[Done]:
        tasks = [find_task(job) for job in jobs]
        shared, firsts = self._share([task for task in tasks if task is not None])
        batch = jobs[0].work.part_size
        passes = self._passes.setdefault(batch, Passes(shared.clients_per_pass(batch)))
        told, clock = len(passes.events), time.perf_counter()
        done = train_job(_join_jobs(jobs, _JoinedTask(shared, jobs, firsts), firsts, passes))
        seconds = time.perf_counter() - clock
        for job in jobs:
            job.passes.events.extend(passes.events[told:])
        return _split(done, jobs, seconds)

    def _share(self, tasks: Sequence[CohortTask]) -> tuple[CohortTask, list[int]]:
        """One task with the clients of all; also where those of each begin."""
        key = tasks[0].loss_key
        own = self._shared.get(key)
        if own is None or any(all(task is not one for one in own.members) for task in tasks):
            known = [] if own is None else own.members
            members = [one for one in known if all(one is not task for task in tasks)] + [*tasks]
            rows = [rows for task in members for rows in task.split_training_rows()]
            own = self._shared[key] = _Shared(members, members[0].make_like(rows))
        first, at = {}, 0
        for one in own.members:
            first[id(one)], at = at, at + len(one.counts)
        return own.task, [first[id(task)] for task in tasks]


class _JoinedTask(DelegatingTrainable):
    """The clients of several runs in one task; calls the entry checks of each run when its clients first come in."""

    def __init__(self, task: CohortTask, jobs: Sequence[Job], firsts: Sequence[int]) -> None:
        super().__init__(task)
        self._checks = {first: job.task for job, first in zip(jobs, firsts, strict=True)}

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Trainable`."""
        for first, check in self._checks.items():
            if isinstance(check, EntryCheck) and check.waiting:
                check.look([k - first for k in step.on_host.clients.tolist()], params)
        return super().grad(params, step)


def find_task(job: Job) -> CohortTask | None:
    """Find the task of a job below its checks; None if it is not one whose clients could be joined with others."""
    task = job.task.inner if isinstance(job.task, EntryCheck) else job.task
    return task if isinstance(task, CohortTask) and task.cache is None else None


def _describe(job: Job) -> Hashable:
    """Describe what jobs have to have in common to be done as one; None for one that has to be done alone."""
    task = find_task(job)
    if task is None or task.folded:
        return None
    work = replace(job.work, lr=0.0, epochs=None, steps=None, weighting="")  # what jobs may differ in
    contrasts = job.extra.loss is not None  # then rows are not grouped by length
    return task.loss_key, work, contrasts, job.record, job.start.device, job.start.dtype


def _train_alone(job: Job) -> Done | Exception:
    clock = time.perf_counter()
    try:
        done = train_job(job)
    except Exception as e:
        let_go(e)  # it waits for its run to take it, while others train
        return e
    return done._replace(seconds=time.perf_counter() - clock)


def _join_jobs(jobs: Sequence[Job], task: _JoinedTask, firsts: Sequence[int], passes: Passes) -> Job:
    plans = [plan for job in jobs for plan in job.plans]
    rates = torch.cat([_list_rates(job) for job in jobs])
    masks = [job.trainable for job in jobs]
    every = [
        torch.ones_like(job.start, dtype=torch.bool) if m is None else m for job, m in zip(jobs, masks, strict=True)
    ]
    return replace(
        jobs[0],
        task=task,
        lr=float(rates[0]) if len(rates.unique()) == 1 else rates,
        clients=torch.cat([job.clients + first for job, first in zip(jobs, firsts, strict=True)]),
        keys=torch.cat([job.keys for job in jobs]),
        plans=plans,
        order=sorted(range(len(plans)), key=lambda i: (-len(plans[i]), i)),
        start=torch.cat([job.start for job in jobs]),
        begun=None
        if all(job.begun is None for job in jobs)
        else torch.cat([job.start if job.begun is None else job.begun for job in jobs]),
        passes=passes,
        trainable=None if all(m is None for m in masks) else torch.cat([m.to(every[0].device) for m in every]),
        extra=PLAIN,
        penalty=None,
        mean_grad=any(job.mean_grad for job in jobs),
        bind=functools.partial(bind_terms, jobs),
    )


def _list_rates(job: Job) -> Tensor:
    """The learning rate of each client, (K,) float64: as exact as one for all."""
    return torch.as_tensor(job.lr, dtype=torch.float64).expand(len(job.clients))


def _split(done: Done, jobs: Sequence[Job], seconds: float) -> list[Done]:
    """The results of the jobs, each with its share of the seconds by the tokens that it trained on."""
    sizes = [len(job.clients) for job in jobs]
    tokens = np.array([float(own[1].sum()) for own in done.sums.split(sizes, dim=1)])
    shares = seconds * tokens / max(1.0, tokens.sum())
    every = [None] * len(jobs) if done.gradients is None else done.gradients.split(sizes)
    gradients = [g if job.mean_grad else None for g, job in zip(every, jobs, strict=True)]
    parts = zip(done.y.split(sizes), done.sums.split(sizes, dim=1), gradients, shares.tolist(), strict=True)
    return [Done(y.clone(), sums, g if g is None else g.clone(), s) for y, sums, g, s in parts]
