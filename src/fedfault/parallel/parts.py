"""A cohort, and models with the rows that they are scored on, cut into parts for processes and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedfault.rounds.federation import CohortRequest, CohortResult
from fedfault.tasks.base import Pairs
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Trained


def split_by_cost(cost: Sequence[float] | np.ndarray, n: int) -> list[list[int]]:
    """Split the positions 0, 1, ... into n runs of about equal cost; each goes where the middle of its cost falls.

    >>> split_by_cost([1, 1, 1, 5], 2), split_by_cost([1], 3)
    ([[0, 1, 2], [3]], [[], [0], []])
    """
    ends = np.cumsum(cost)
    owner = np.floor(n * (ends - np.asarray(cost) / 2) / ends[-1])
    return [np.flatnonzero(owner == j).tolist() for j in range(n)]


def split_pairs(pairs: Pairs, n: int) -> list[list[tuple[Tensor, Tensor]]]:
    """Split models and the rows they are scored on into n parts of about as many rows, in order."""
    owner = torch.cat([torch.full((len(rows),), i) for i, (_, rows) in enumerate(pairs)]).tensor_split(n)
    rows = torch.cat([rows for _, rows in pairs]).tensor_split(n)
    parts = zip(owner, rows, strict=True)
    return [[(pairs[i][0], some[own == i]) for i in own.unique().tolist()] for own, some in parts]


def join_results(asked: CohortRequest, parts: Mapping[int, CohortResult]) -> CohortResult:
    """Join the results of the parts of a cohort, by process and in its order, to that of the whole cohort."""
    done, stacked = list(parts.values()), _Stacker()
    narrowest = [size for part in done if (size := part.clients_per_pass) is not None]
    return CohortResult(
        cohort=asked.cohort,
        up={name: stacked([part.up[name] for part in done]) for name in done[0].up},
        home={name: stacked([part.home[name] for part in done]) for name in done[0].home},
        start=stacked([part.start for part in done]),
        trained=Trained(**{f.name: stacked([getattr(part.trained, f.name) for part in done]) for f in fields(Trained)}),
        events=tuple(f"process {rank}: {event}" for rank, part in parts.items() for event in part.events),
        halves=stacked([part.halves for part in done]),
        probing=max(part.probing for part in done),
        clients_per_pass=min(narrowest, default=None),
    )


class _Stacker:
    """Values of the parts, one behind the other; values that are the same in every part are the same in the whole."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Any] = {}

    def __call__(self, values: Sequence[Any]) -> Any:
        key = tuple(map(id, values))
        if key not in self._known:
            self._known[key] = self._stack(values)
        return self._known[key]

    def _stack(self, values: Sequence[Any]) -> Any:
        first = values[0]
        if first is None or len(values) == 1:
            return first
        if isinstance(first, tuple):
            return tuple(map(self._stack, zip(*values, strict=True)))
        if isinstance(first, Adapter):
            return replace(first, flat=self([a.flat for a in values]))
        if all(v.ndim > 1 and v.stride(0) == 0 and torch.equal(v[0], first[0]) for v in values):
            return first[:1].expand(sum(map(len, values)), -1)  # one start for all
        return torch.cat(list(values))
