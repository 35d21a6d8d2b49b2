"""The server's step where clients agree: no aggregation may make another model of it than the plain average does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedfault.aggregations.fedit import fedit
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.exchange import Cohort, make_average, select_rows
from fedfault.testing.rules import expect, expect_close
from fedfault.testing.toys import LowRank, federation
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Aggregation, Algorithm, Pooled, State, Trained, Uploads

WEIGHTS = torch.tensor([3.0, 1.0, 7.0])


class Agreed:
    """A `Train` after which clients have given models, all the same one or each its own."""

    lr, weight = 0.1, WEIGHTS

    def __init__(self, end: Tensor) -> None:
        self.end = end  # (P,) or (3, P)

    def __call__(self, start: Adapter, *extra: object, **options: object) -> Trained:
        """Three clients, two steps each."""
        flat, zero, two = self.end.expand(3, -1).clone(), torch.zeros(3), torch.full((3,), 2.0)
        return Trained(Adapter(start.layout, flat), WEIGHTS, two, two, zero, zero, torch.zeros_like(flat))

    def gradient(self, at: Adapter) -> Adapter:
        """Zero."""
        return Adapter(at.layout, torch.zeros(3, at.layout.size, dtype=at.flat.dtype))

    def loss(self, at: Adapter) -> Tensor:
        """Zero."""
        return torch.zeros(3)


def expect_same_step(algorithm: Algorithm, aggregation: Aggregation, name: str) -> None:
    """Compare the weights after one step, with a memory that two rounds made, in an odd and in an even round.

    What the aggregation does not train, or leaves with its clients, is not moved by them. Raises `RuleBroken` where the
    weights are not those that the algorithm reaches with the plain average, and where frozen numbers moved.
    """
    plain = replace(fedit(), trained=aggregation.trained, private=aggregation.private)
    for played in (2, 3):
        fed = federation(LowRank(clients=3), algorithm, plain, num_rounds=played)
        *_, (state, _) = rounds(fed, begin(fed))
        cohort = Cohort.of([0, 1, 2], state, aggregation)
        layout, moved = state.adapter.layout, torch.ones(state.adapter.layout.size, dtype=torch.bool)
        for some in (cohort.trained, None if cohort.private is None else ~cohort.private):
            moved = moved if some is None else moved & some
        change = 0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(played))
        end = state.adapter.flat + change * moved
        frozen = end[~moved]
        (got, after), (wanted, _) = (_step(algorithm, a, state, cohort, end) for a in (aggregation, plain))
        what = f"with {name}, in round {played + 1}, the weights after the step are not those with a plain average"
        expect_close(got, wanted, what, rtol=1e-3, atol=1e-4)
        expect(torch.equal(after.adapter.flat[~moved], frozen), f"with {name}, the server moved what nobody trained")


def expect_whole_step(algorithm: Algorithm, aggregation: Aggregation, name: str) -> None:
    """Compare the adapter after one step of clients that differ with the average that came with something folded in.

    What goes into the frozen weights completes that adapter to the mean of the clients' models: beside any other adapter it
    is wrong. Raises `RuleBroken` where the server ends somewhere else.
    """
    fed = federation(LowRank(clients=3), algorithm, aggregation, num_rounds=2)
    *_, (state, _) = rounds(fed, begin(fed))
    cohort = Cohort.of([0, 1, 2], state, aggregation)
    apart = 0.3 * torch.randn(3, state.adapter.layout.size, generator=torch.Generator().manual_seed(5))
    averages: list[tuple[Uploads, Pooled]] = []
    after = _play(algorithm, aggregation, state, cohort, state.adapter.flat + apart, averages)
    what = f"with {name}, the server ends beside the average that the fold belongs to"
    expect_close(after.adapter.flat, averages[-1][1].adapter.flat, what, rtol=1e-4, atol=1e-5)


def _play(
    algorithm: Algorithm,
    aggregation: Aggregation,
    state: State,
    cohort: Cohort,
    end: Tensor,
    averages: list[tuple[Uploads, Pooled]],
) -> State:
    """The state after a step of three clients that end at `end`, (P,) or (3, P); averages are appended."""
    average = make_average(aggregation, cohort, state, torch.ones(3, dtype=torch.bool), 0, averages)
    down = select_rows(algorithm.broadcast(state), cohort.rows)
    memory = {name: replace(a, flat=a.flat[cohort.rows]) for name, a in state.clients.items()}
    up, _ = algorithm.client(down, memory, Agreed(end))
    return algorithm.server(state, up, average)


def _step(
    algorithm: Algorithm, aggregation: Aggregation, state: State, cohort: Cohort, end: Tensor
) -> tuple[Mapping[str, Tensor], State]:
    """The weights' change by site, with what was added to the frozen ones, and the state."""
    averages: list[tuple[Uploads, Pooled]] = []
    after = _play(algorithm, aggregation, state, cohort, end, averages)
    x, fold = after.adapter, averages[-1][1].fold
    out = {}
    for site in x.layout.sites:
        if site.kind == "full":
            out[site.name] = x.layout.part(x.flat, site)
        else:
            folded = fold[site.name].B @ fold[site.name].A if site.name in fold else 0
            out[site.name] = x.delta(site) + folded
    return out, after
