"""What is recorded and replayed gives what it gave: a twin of CUDA graphs on the CPU repeats what a graph would repeat."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.replay import KEPT, MET, Recordings, find_replay, record_pass
from twin import record_twin


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
        assert find_replay(stale, step, state, events) is None
    assert events == ["steps are not replayed: a replay does not give what the step gives"]
    assert state[0].tolist() == [1, 1, 1]


def test_the_twin_catches_a_step_that_a_graph_could_not_repeat():
    held = [torch.ones(2)]

    def step():
        held[0] = held[0] + 1  # elsewhere in memory every time

    again = record_twin(step)
    with pytest.raises(AssertionError):
        again()


def double(x):
    return x * 2


def met_often(recordings, given, compute=double, tokens=1):
    """A pass of this shape and numbers after as many as it takes to record one."""
    for _ in range(MET):
        recordings.run("double", compute, given, tokens)
    return recordings.run("double", compute, given, tokens)


def watch(record=record_twin):
    """Recordings, and the passes that were recorded."""
    recorded = []
    return Recordings(lambda step: (recorded.append(step), record(step))[1]), recorded


def test_a_shape_that_is_met_often_is_recorded_once_and_replayed_with_other_numbers():
    recordings, recorded = watch()
    for n in range(20):
        assert recordings.run("double", double, [torch.full((3,), n)], 1).tolist() == [2 * n] * 3
        assert len(recorded) == (n >= MET)
    first, second = (recordings.run("double", double, [torch.full((3,), n)], 1) for n in (7, 8))
    assert (first.tolist(), second.tolist()) == ([14] * 3, [16] * 3)  # the later one writes over nothing
    assert recordings.events == []


def test_other_shapes_and_other_passes_are_recorded_for_themselves():
    recordings, recorded = watch()
    met_often(recordings, [torch.ones(3)])
    recordings.run("double", double, [torch.ones(4)], 1)
    recordings.run("more", lambda x: x + 1, [torch.ones(3)], 1)
    assert len(recorded) == 1
    met_often(recordings, [torch.ones(4)])
    assert len(recorded) == 2


def test_without_a_way_to_record_passes_are_computed():
    assert met_often(Recordings(None), [torch.ones(2)]).tolist() == [2, 2]


def test_a_pass_with_too_many_tokens_is_not_recorded_nor_more_than_a_graph_memory_holds():
    recordings, recorded = watch()
    recordings.most = 9
    met_often(recordings, [torch.ones(2)], tokens=10)
    assert recorded == []
    for n in range(KEPT + 2):
        met_often(recordings, [torch.ones(n + 3)], tokens=9)
    assert len(recorded) == KEPT


def test_what_is_forgotten_has_to_be_met_anew():
    weight = [torch.tensor(2.0)]
    recordings, recorded = watch()
    given = [torch.ones(2)]
    assert met_often(recordings, given, lambda x: x * weight[0]).tolist() == [2, 2]
    weight[0] = torch.tensor(5.0)  # elsewhere in memory
    recordings.forget()
    assert met_often(recordings, given, lambda x: x * weight[0]).tolist() == [5, 5]
    assert len(recorded) == 2


def test_a_replay_that_is_a_bit_off_is_never_used_and_told_once():
    recordings = Recordings(lambda step: lambda: None)  # leaves zeros
    for _ in range(3):
        assert met_often(recordings, [torch.full((2,), 2.0**-99)]).tolist() == [2.0**-98] * 2
    assert recordings.events == ["evaluation passes are not replayed: a replay does not give what the step gives"]


def test_a_pass_of_a_model_that_diverged_is_replayed():
    recordings, recorded = watch()
    assert met_often(recordings, [torch.tensor([float("nan"), 1.0])]).nan_to_num(7).tolist() == [7, 2]
    assert recordings.run("double", double, [torch.tensor([3.0, 4.0])], 1).tolist() == [6, 8]
    assert (len(recorded), recordings.events) == (1, [])


def test_memory_that_runs_out_while_recording_leaves_passes_as_they_are_and_smaller_ones_are_recorded():
    def tight(step):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried")

    recordings = Recordings(tight)
    assert met_often(recordings, [torch.ones(2)], tokens=64).tolist() == [2, 2]
    assert recordings.events == ["evaluation passes of 64 tokens are not replayed: CUDA out of memory. Tried"]
    assert recordings.most == 63


@pytest.mark.cuda
def test_graphs_in_one_memory_give_the_bits_of_their_passes_in_any_order():
    recordings = Recordings(record_pass)
    one, two = (torch.randn(n, 64, device="cuda") for n in (5, 300))
    gram = lambda x: (x @ x.T).relu() @ x  # noqa: E731
    for x in (one, two):
        met_often(recordings, [x], gram)
    assert recordings.events == []
    for x in (two, one, two):
        assert torch.equal(recordings.run("double", gram, [x], 1), gram(x))
