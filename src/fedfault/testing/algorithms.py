"""The contract of algorithms. Each rule names what goes wrong in public code."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedfault.algebra import mean
from fedfault.registry import build, load_builders
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.exchange import select_rows
from fedfault.rounds.federation import Federation
from fedfault.runs.folder import RunFolder
from fedfault.testing.agreement import FixedTrain, expect_same_step, expect_whole_step
from fedfault.testing.rules import Subject, expect, expect_close, rule
from fedfault.testing.toys import LowRank, federation, run_to_end
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import TRAITS, Aggregation, Algorithm, State

KIND = "algorithm"


def _memory_of(state: State, rows: Tensor) -> Mapping[str, Adapter]:
    return {name: Adapter(a.layout, a.flat[rows]) for name, a in state.clients.items()}


def _plain(x: Adapter, weight: Tensor) -> Adapter:
    return mean(x, weight)


def _away_from_start(fed: Federation) -> State:
    """A state whose models are anywhere, both signs."""
    state, g = begin(fed), torch.Generator().manual_seed(5)
    x = Adapter(state.adapter.layout, torch.randn(state.adapter.flat.shape, generator=g))
    return replace(state, adapter=x, memory=fed.algorithm.init(x))


@rule(KIND, slow=True)
def it_learns(subject: Subject) -> None:
    """Fifteen rounds on a small regression bring the loss below 0.8 of what it was."""
    _, records = run_to_end(federation(LowRank(), subject.build(), num_rounds=15))
    first, last = (records[i].scores["validation"].loss for i in (0, -1))
    expect(last < 0.8 * first, f"the loss went from {first:.4g} to {last:.4g}")


@rule(KIND)
def an_idle_round_changes_nothing(subject: Subject) -> None:
    """Clients that have not moved leave the server's model as it is, to the bit, whatever their weights."""
    fed = federation(LowRank(), subject.build())
    state, rows = _away_from_start(fed), torch.tensor([0, 2, 5])
    train = FixedTrain(torch.tensor([3.0, 1.0, 7.0]))
    up, _ = fed.algorithm.client(select_rows(fed.algorithm.broadcast(state), rows), _memory_of(state, rows), train)
    after = fed.algorithm.server(state, up, _plain).adapter.flat
    moved = float((after - state.adapter.flat).abs().max())
    expect(torch.equal(after, state.adapter.flat), f"the server's model moved by up to {moved:.3g}")


@rule(KIND)
def the_order_of_clients_does_not_matter(subject: Subject) -> None:
    """The same clients in another order give the same model."""
    fed = federation(LowRank(), subject.build())
    state, g = _away_from_start(fed), torch.Generator().manual_seed(2)
    flat, weight = torch.randn(4, state.adapter.layout.size, generator=g), torch.tensor([3.0, 1.0, 7.0, 2.0])

    def after(order: list[int]) -> Tensor:
        rows = torch.tensor(order)
        sent = select_rows(fed.algorithm.broadcast(state), rows)
        up, _ = fed.algorithm.client(sent, _memory_of(state, rows), FixedTrain(weight[rows], flat[rows]))
        return fed.algorithm.server(state, up, _plain).adapter.flat

    expect_close(after([2, 0, 3, 1]), after([0, 1, 2, 3]), "the model of another order", rtol=1e-6, atol=1e-7)


@rule(KIND, slow=True)
def how_many_clients_train_at_once_does_not_matter(subject: Subject) -> None:
    """A cohort that is trained in passes of one or of four clients gives the same model as one pass."""
    whole, _ = run_to_end(federation(LowRank(), subject.build()))
    for size in (1, 4):
        parts, _ = run_to_end(federation(LowRank(), subject.build(), clients_per_pass=size))
        expect_close(parts.adapter.flat, whole.adapter.flat, f"passes of {size}", rtol=1e-5, atol=1e-7)


@rule(KIND)
def its_functions_do_not_touch_their_inputs(subject: Subject) -> None:
    """A round returns new values: the state that it started from is as it was."""
    fed = federation(LowRank(), subject.build())
    state = begin(fed)
    before, memory = state.adapter.flat.clone(), {name: a.flat.clone() for name, a in state.memory.items()}
    iterator = rounds(fed, state)
    next(iterator), next(iterator)
    expect(torch.equal(state.adapter.flat, before), "the state's adapter was changed in place")
    for name, flat in memory.items():
        expect(torch.equal(state.memory[name].flat, flat), f"the state's memory {name!r} was changed in place")


@rule(KIND, slow=True)
def a_resumed_run_equals_an_uninterrupted_one(subject: Subject) -> None:
    """All that outlives a round is in `State`: a run that goes on from its checkpoint is the whole run, to the bit."""
    whole, records = run_to_end(federation(LowRank(), subject.build(), cohort_size=3, num_rounds=6))
    fed = federation(LowRank(), subject.build(), cohort_size=3, num_rounds=6)
    with tempfile.TemporaryDirectory() as scratch:
        folder, iterator = RunFolder.create(Path(scratch) / "run"), rounds(fed, begin(fed))
        for _ in range(4):
            state, _ = next(iterator)
        folder.save(state)
        again = federation(LowRank(), subject.build(), cohort_size=3, num_rounds=6)
        loaded, _ = folder.load(again.task.layout, "cpu")
        resumed, later = run_to_end(again, loaded)
    expect(torch.equal(resumed.adapter.flat, whole.adapter.flat), "the models differ: is something kept elsewhere?")
    expect([r.scores for r in later] == [r.scores for r in records[4:]], "the scores differ")


@rule(KIND, slow=True)
def two_runs_with_one_seed_are_identical(subject: Subject) -> None:
    """Nothing is random but what the seed draws."""
    (a, ra), (b, rb) = (run_to_end(federation(LowRank(), subject.build(), cohort_size=4)) for _ in range(2))
    expect(torch.equal(a.adapter.flat, b.adapter.flat), "the models differ")
    expect([r.clients for r in ra] == [r.clients for r in rb], "the records differ")


@rule(KIND)
def bytes_are_those_of_what_is_sent(subject: Subject) -> None:
    """A client receives and sends at least an adapter, and its bytes say so."""
    fed = federation(LowRank(), subject.build(), cohort_size=2, num_rounds=1)
    _, records = run_to_end(fed)
    whole = 4 * fed.task.layout.size
    for c in records[1].clients:
        expect(min(c.bytes_down, c.bytes_up) >= whole, f"{c.bytes_up} bytes up, {c.bytes_down} down, adapter {whole}")


@rule(KIND, slow=True)
def what_it_stands_leaves_its_step_as_it_is(subject: Subject) -> None:
    """Where clients agree, all aggregations that the server stands give the same weights: the step with a plain average."""
    algorithm: Algorithm = subject.build()
    for name in load_builders("aggregation"):
        aggregation: Aggregation = build("aggregation", name)
        if not any(algorithm.refusal(trait) for trait in aggregation.traits):
            expect_same_step(algorithm, aggregation, name)


@rule(KIND)
def what_stands_folds_takes_the_whole_step(subject: Subject) -> None:
    """Where clients differ, a server that stands `folds` ends at the average that came with what was folded in."""
    algorithm: Algorithm = subject.build()
    for name in load_builders("aggregation"):
        aggregation: Aggregation = build("aggregation", name)
        if "folds" in aggregation.traits and not any(algorithm.refusal(trait) for trait in aggregation.traits):
            expect_whole_step(algorithm, aggregation, name)


@rule(KIND)
def what_it_refuses_is_a_trait(subject: Subject) -> None:
    """Reasons for refusals are about traits that exist."""
    unknown = set(subject.build().refuses) - set(TRAITS)
    expect(not unknown, f"no trait {', '.join(sorted(unknown))}; the traits are {', '.join(TRAITS)}")
