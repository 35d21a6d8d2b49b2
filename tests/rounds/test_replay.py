"""Steps that are recorded and replayed: a twin of CUDA graphs on the CPU holds a step to what a graph would repeat."""

from __future__ import annotations

import pytest
import torch

from fedfault.rounds import passes as trips
from fedfault.rounds import replay
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.replay import find_replay
from fedfault.rounds.trainer import Trainer
from steps import EXTRA, extra_terms, make_task
from twin import record_twin

STEPS = 9


@pytest.fixture(autouse=True)
def _few_steps_are_worth_it(monkeypatch):
    monkeypatch.setattr(trips, "WORTH", 2)


def train(task, extra, record, optimizer="adamw", events=None):
    """Clients with 5, 3 and 4 examples: two batches and one that is not full an epoch, or fewer."""
    work = LocalWork(epochs=None, steps=STEPS, batch_size=2, lr=0.01, optimizer=optimizer)
    passes = Passes(3, [] if events is None else events)
    trainer = Trainer(task, work, seed=0, round=1, clients=[0, 1, 2], passes=passes, effort=[1, 0.4, 1], record=record)
    return trainer(task.init(0), extra, mean_grad=True)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", EXTRA)
def test_a_recorded_pass_gives_what_its_steps_give(name, optimizer):
    """With dropout, short batches, and a client that ends early: then a second recording is made for the other two."""
    task, events, recorded = make_task(), [], []

    def record(step):
        recorded.append(step)
        return record_twin(step)

    plain = train(task, extra_terms(task)[name], None, optimizer)
    found = train(task, extra_terms(task)[name], record, optimizer, events)
    assert events == []
    assert len(recorded) == 2
    for one, other in zip(vars(found).values(), vars(plain).values(), strict=True):
        torch.testing.assert_close(getattr(one, "flat", one), getattr(other, "flat", other), rtol=1e-4, atol=1e-6)


def test_a_recording_does_not_change_where_training_stands():
    state = [torch.tensor([1.0, 2.0]), torch.tensor(5)]

    def step():
        state[0].mul_(2)
        state[1].add_(1)

    act = find_replay(record_twin, step, state, events := [])
    assert (state[0].tolist(), state[1].item(), events) == ([1.0, 2.0], 5, [])
    act()
    assert (state[0].tolist(), state[1].item()) == ([2.0, 4.0], 6)


def test_a_replay_that_gives_something_else_is_not_used_and_told_once():
    state, events = [torch.ones(3)], []
    step = lambda: state[0].add_(1)  # noqa: E731

    def stale(step):
        return lambda: state[0].add_(2)

    for _ in range(2):
        assert find_replay(stale, step, state, events) is step
    assert events == ["steps are not replayed: a replay does not give what the step gives"]
    assert state[0].tolist() == [1, 1, 1]


def test_what_cannot_be_recorded_is_taken_step_by_step_and_the_round_says_why():
    def fail(step):
        step()
        raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    task, events = make_task(), []
    plain = train(task, extra_terms(task)["plain"], None)
    found = train(task, extra_terms(task)["plain"], fail, events=events)
    torch.testing.assert_close(found.adapter.flat, plain.adapter.flat, rtol=1e-4, atol=1e-6)
    assert events == ["steps are not replayed: operation not permitted when stream is capturing"]


def test_memory_that_runs_out_while_recording_halves_the_pass():
    calls = []

    def tight(step):
        calls.append(step)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return record_twin(step)

    events = []
    train(make_task(), extra_terms(make_task())["plain"], tight, events=events)
    assert events == ["out of memory: 1 clients in a pass from now on"]


def test_the_twin_catches_a_step_that_a_graph_could_not_repeat():
    held = [torch.ones(2)]

    def step():
        held[0] = held[0] + 1  # elsewhere in memory every time

    again = record_twin(step)
    with pytest.raises(AssertionError):
        again()


@pytest.mark.cuda
@pytest.mark.parametrize("name", EXTRA)
def test_a_graph_gives_what_the_steps_give(name):
    task, events = make_task(device="cuda"), []
    plain = train(task, extra_terms(task)[name], None)
    found = train(task, extra_terms(task)[name], replay.record_graph, events=events)
    assert events == []
    torch.testing.assert_close(found.adapter.flat, plain.adapter.flat, rtol=1e-3, atol=1e-5)
    again = train(task, extra_terms(task)[name], replay.record_graph)
    assert torch.equal(again.adapter.flat, found.adapter.flat)
