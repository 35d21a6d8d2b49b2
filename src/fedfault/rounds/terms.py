"""What the algorithms of several runs add to the steps of a pass that their clients share: each to the rows of its own.

    pass     run a  run b  run a  run b       longest plan first
    run a    mu (y - x)      .                the terms see the rows of their run, by their places in its cohort
    run b           c - c_i         .

Which rows those are is found on the CPU, once for a pass: within a step nothing asks the device.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedfault.rounds.passes import Job
from fedfault.types.algorithm import Contrast, ExtraTerms, Mixture, Pull, See


class _Share(NamedTuple):
    """The clients of one job in a pass that several jobs share."""

    job: Job
    places: list[int]  # their rows of the pass, ascending
    at: Tensor  # (n,) the same on the device
    own: Tensor  # (n,) their places in the cohort of the job

    def select(self, k: int) -> tuple[Tensor, Tensor]:
        """Select those among the first k rows: `at` and `own` of them."""
        n = bisect_left(self.places, k)
        return self.at[:n], self.own[:n]


def bind_terms(jobs: Sequence[Job], rows: Tensor) -> tuple[ExtraTerms, Pull | None]:
    """What every job adds to the steps of its own clients; rows: (k,) the clients of a pass, by their place among all."""
    shares, first = [], 0
    for job in jobs:
        K, device = len(job.clients), job.start.device
        places = ((rows >= first) & (rows < first + K)).nonzero()[:, 0]
        shares.append(_Share(job, places.tolist(), places.to(device), (rows[places] - first).to(device)))
        first += K
    gradient = _join_pulls([(share, share.job.extra.gradient) for share in shares])
    step = _join_pulls([(share, share.job.extra.step) for share in shares])
    loss = None if jobs[0].extra.loss is None else _join_contrasts(shares)
    mixture = _join_mixtures([(share, share.job.extra.mixture) for share in shares])
    return ExtraTerms(gradient, step, loss, mixture), _join_pulls([(share, share.job.penalty) for share in shares])


def _join_pulls(each: Sequence[tuple[_Share, Pull | None]]) -> Pull | None:
    """Each pull on the rows of its own job, nothing elsewhere."""
    pulls = [(share, pull) for share, pull in each if pull is not None and share.places]
    if not pulls:
        return None

    def joined(y: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        out = torch.zeros_like(y)
        for share, pull in pulls:
            at, own = share.select(len(y))
            if len(at):
                out.index_copy_(0, at, pull(y[at], x[at], own).to(out))
        return out

    return joined


def _join_mixtures(each: Sequence[tuple[_Share, Mixture | None]]) -> Mixture | None:
    """Each mixture on the rows of its own job; elsewhere gradients are taken at y."""
    mixtures = [(share, mixture) for share, mixture in each if mixture is not None and share.places]
    if not mixtures:
        return None

    def joined(y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        point, shares = y.clone(), y.new_ones(len(y), 1)
        for share, mixture in mixtures:
            at, own = share.select(len(y))
            if len(at):
                there, part = mixture(y[at], own)
                point.index_copy_(0, at, there.to(point))
                shares.index_copy_(0, at, part.to(shares))
        return point, shares

    return joined


def _join_contrasts(shares: Sequence[_Share]) -> Contrast:
    """The contrast of each job on the rows of its own; all have one."""

    def joined(z: Tensor, see: See, rows: Tensor) -> Tensor:
        out = z.new_zeros(len(z))
        for share in shares:
            at, own = share.select(len(z))
            if share.job.extra.loss is not None and len(at):
                out = out.index_copy(0, at, share.job.extra.loss(z[at], functools.partial(_see_among, see, at), own))
        return out

    return joined


def _see_among(see: See, at: Tensor, params: Tensor) -> Tensor:
    """`see` of the rows `at` of a pass, for a contrast that knows of no others."""
    return see(params, at)
