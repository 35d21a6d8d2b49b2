"""One suite for every algorithm, now and later. Each test names what goes wrong in public code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.algebra import mean
from fedfault.registry import builders
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.exchange import addressed
from fedfault.testing.toys import LowRank, federation
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Trained

pytestmark = pytest.mark.parametrize("algorithm", builders("algorithm"))


def run(fed, state=None):
    pairs = list(rounds(fed, state or begin(fed)))
    return pairs[-1][0], [record for _, record in pairs]


class Idle:
    """A `Train` whose clients have zero steps, or end where they are told to."""

    lr = 0.1

    def __init__(self, weight: torch.Tensor, ends: torch.Tensor | None = None) -> None:
        self.weight, self.ends = weight, ends

    def __call__(self, start: Adapter, *extra, **options) -> Trained:
        zero = torch.zeros(len(self.weight))
        flat = self._rows(start) if self.ends is None else self.ends
        return Trained(Adapter(start.layout, flat), self.weight, zero, zero, zero, zero, torch.zeros_like(flat))

    def _rows(self, at: Adapter) -> torch.Tensor:
        return at.flat.expand(len(self.weight), -1).clone()

    def gradient(self, at: Adapter) -> Adapter:
        return Adapter(at.layout, torch.zeros_like(self._rows(at)))

    def loss(self, at: Adapter) -> torch.Tensor:
        return torch.zeros(len(self.weight))


def memory_of(state, rows):
    return {name: Adapter(a.layout, a.flat[rows]) for name, a in state.clients.items()}


def plain(x, weight):
    return mean(x, weight)


def away_from_start(fed):
    """A state whose models are anywhere, both signs."""
    state, g = begin(fed), torch.Generator().manual_seed(5)
    x = Adapter(state.adapter.layout, torch.randn(state.adapter.flat.shape, generator=g))
    return replace(state, adapter=x, memory=fed.algorithm.init(x))


def test_learns(algorithm):
    fed = federation(LowRank(), algorithm, num_rounds=15)
    _, records = run(fed)
    assert records[-1].scores["validation"].loss < 0.8 * records[0].scores["validation"].loss


def test_an_idle_round_changes_nothing(algorithm):
    """A misspelt accumulator, a client counted twice or a padded average shrinks or scales the model here."""
    fed = federation(LowRank(), algorithm)
    state = away_from_start(fed)
    rows = torch.tensor([0, 2, 5])
    train = Idle(torch.tensor([3.0, 1.0, 7.0]))
    up, _ = fed.algorithm.client(addressed(fed.algorithm.broadcast(state), rows), memory_of(state, rows), train)
    assert torch.equal(fed.algorithm.server(state, up, plain).adapter.flat, state.adapter.flat)


def test_the_order_of_clients_does_not_matter(algorithm):
    fed = federation(LowRank(), algorithm)
    state = away_from_start(fed)
    g = torch.Generator().manual_seed(2)
    flat, weight = torch.randn(4, state.adapter.layout.size, generator=g), torch.tensor([3.0, 1.0, 7.0, 2.0])

    def after(order: list[int]) -> torch.Tensor:
        rows = torch.tensor(order)
        sent = addressed(fed.algorithm.broadcast(state), rows)
        up, _ = fed.algorithm.client(sent, memory_of(state, rows), Idle(weight[rows], flat[rows]))
        return fed.algorithm.server(state, up, plain).adapter.flat

    torch.testing.assert_close(after([0, 1, 2, 3]), after([2, 0, 3, 1]), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_clients_per_pass_cannot_change_the_result(algorithm):
    whole, _ = run(federation(LowRank(), algorithm))
    for size in (1, 4):
        parts, _ = run(federation(LowRank(), algorithm, clients_per_pass=size))
        torch.testing.assert_close(parts.adapter.flat, whole.adapter.flat, rtol=1e-5, atol=1e-7)


def test_functions_do_not_touch_their_inputs(algorithm):
    fed = federation(LowRank(), algorithm)
    state = begin(fed)
    before = state.adapter.flat.clone()
    memory = {name: a.flat.clone() for name, a in state.memory.items()}
    iterator = rounds(fed, state)
    next(iterator), next(iterator)
    assert torch.equal(state.adapter.flat, before)
    assert all(torch.equal(state.memory[name].flat, flat) for name, flat in memory.items())


def test_a_resumed_run_equals_an_uninterrupted_one(algorithm, tmp_path):
    """State outside `State`, such as a momentum in a closure, is lost here."""
    from fedfault.runs.folder import RunFolder

    fed = federation(LowRank(), algorithm, cohort_size=3, num_rounds=6)
    whole, records = run(fed)
    folder = RunFolder.create(tmp_path / "run")
    iterator = rounds(fed, begin(fed))
    for _ in range(4):
        state, _ = next(iterator)
    folder.save(state)
    again = federation(LowRank(), algorithm, cohort_size=3, num_rounds=6)
    loaded, _ = folder.load(again.task.layout, "cpu")
    resumed, later = run(again, loaded)
    assert torch.equal(resumed.adapter.flat, whole.adapter.flat)
    assert [r.scores for r in later] == [r.scores for r in records[4:]]


def test_the_seed_changes_the_cohorts_and_nothing_else_does(algorithm):
    cohorts = [federation(LowRank(), algorithm, cohort_size=3, seed=s).cohort(4) for s in (0, 0, 1, 2)]
    assert cohorts[0] == cohorts[1]
    assert len({tuple(c) for c in cohorts}) > 1


def test_two_runs_with_one_seed_are_identical(algorithm):
    (a, ra), (b, rb) = (run(federation(LowRank(), algorithm, cohort_size=4)) for _ in range(2))
    assert torch.equal(a.adapter.flat, b.adapter.flat)
    assert [r.clients for r in ra] == [r.clients for r in rb]


def test_bytes_are_those_of_what_is_sent(algorithm):
    fed = federation(LowRank(), algorithm, cohort_size=2, num_rounds=1)
    _, records = run(fed)
    P = fed.task.layout.size
    assert all(c.bytes_down >= 4 * P and c.bytes_up >= 4 * P for c in records[1].clients)
    assert records[1].bytes_up == sum(c.bytes_up for c in records[1].clients)
