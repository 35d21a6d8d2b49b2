"""The server's step where clients agree: no aggregation may make another model of it than the plain average does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedfault.aggregations.fedit import fedit
from fedfault.rounds.exchange import Cohort, make_average, select_rows
from fedfault.testing.rules import expect, expect_close
from fedfault.testing.toys import LowRank, federation, run_rounds, run_to_end
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Aggregation, Algorithm, Pooled, State, Trained, Uploads

WEIGHTS = torch.tensor([3.0, 1.0, 7.0])


class FixedTrain:
    """A `Train` that ends where it is told to, at `ends`, (P,) for all or (K, P), or else where it starts."""

    lr = 0.1

    def __init__(self, weight: Tensor, ends: Tensor | None = None) -> None:
        self.weight, self.ends = weight, ends

    def __call__(self, start: Adapter, *extra: object, **options: object) -> Trained:
        """Two steps each, or none where nobody moves."""
        flat = self._expand(start.flat if self.ends is None else self.ends)
        zero = torch.zeros(len(self.weight))
        steps = zero + (0 if self.ends is None else 2)
        return Trained(Adapter(start.layout, flat), self.weight, steps, steps, zero, zero, torch.zeros_like(flat))

    def _expand(self, flat: Tensor) -> Tensor:
        return flat.expand(len(self.weight), -1).clone()

    def gradient(self, at: Adapter) -> Adapter:
        """Zero."""
        return Adapter(at.layout, torch.zeros_like(self._expand(at.flat)))

    def loss(self, at: Adapter) -> Tensor:
        """Zero."""
        return torch.zeros(len(self.weight))


def collect_weights(pooled: Pooled) -> dict[str, Tensor]:
    """Every weight's change by site, with what was added to the frozen one."""
    x, weights = pooled.adapter, {}
    for site in x.layout.sites:
        if site.kind == "full":
            weights[site.name] = x.layout.part(x.flat, site)
        else:
            fold = pooled.fold.get(site.name)
            weights[site.name] = x.delta(site) + (0 if fold is None else fold.B @ fold.A)
    return weights


def expect_same_step(algorithm: Algorithm, aggregation: Aggregation, name: str) -> None:
    """Compare the weights after one step, with what two and three rounds left in memory: an odd and an even round.

    What the aggregation does not train, or leaves with its clients, is not moved by them. Raises `RuleBroken` where the
    weights are not those that the algorithm reaches with the plain average, and where frozen numbers moved.
    """
    plain = replace(fedit(), trained=aggregation.trained, private=aggregation.private)
    fed = federation(LowRank(clients=3), algorithm, plain, num_rounds=3, work={"steps": 2})
    for state, _ in run_rounds(fed)[2:]:
        cohort = Cohort.of([0, 1, 2], state, aggregation)
        layout, moved = state.adapter.layout, torch.ones(state.adapter.layout.size, dtype=torch.bool)
        for some in (cohort.trained, None if cohort.private is None else ~cohort.private):
            moved = moved if some is None else moved & some
        change = 0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(state.round))
        end = state.adapter.flat + change * moved
        frozen = end[~moved]
        (got, after), (wanted, _) = (_step(algorithm, a, state, cohort, end) for a in (aggregation, plain))
        what = f"with {name}, in round {state.round + 1}, the weights after the step are not those with a plain average"
        expect_close(got, wanted, what, rtol=1e-3, atol=1e-4)
        kept = "refactors" in aggregation.traits or torch.equal(after.adapter.flat[~moved], frozen)
        expect(kept, f"with {name}, the server moved what nobody trained")


def expect_whole_step(algorithm: Algorithm, aggregation: Aggregation, name: str) -> None:
    """Compare the adapter after one step of clients that differ with the average that came with something folded in.

    What goes into the frozen weights completes that adapter to the mean of the clients' models: beside any other adapter it
    is wrong. Raises `RuleBroken` where the server ends somewhere else.
    """
    fed = federation(LowRank(clients=3), algorithm, aggregation, num_rounds=2)
    state, _ = run_to_end(fed)
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
    up, _ = algorithm.client(down, memory, FixedTrain(WEIGHTS, end))
    return algorithm.server(state, up, average)


def _step(
    algorithm: Algorithm, aggregation: Aggregation, state: State, cohort: Cohort, end: Tensor
) -> tuple[dict[str, Tensor], State]:
    """The weights after a step of three clients that end at `end`, by site, and the state."""
    averages: list[tuple[Uploads, Pooled]] = []
    after = _play(algorithm, aggregation, state, cohort, end, averages)
    return collect_weights(Pooled(after.adapter, averages[-1][1].fold)), after
