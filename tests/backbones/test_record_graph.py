"""How steps are captured on CUDA: which calls are made, in which order, with what stands in for its streams and graphs."""

from __future__ import annotations

import contextlib
import gc
import warnings

import pytest
import torch

from fedfault.backbones import replay
from fedfault.backbones.replay import find_replay, record_graph, record_pass, refuse_to_wait


class Stream:
    def wait_stream(self, other) -> None:
        pass


class Graph:
    made = 0

    def __init__(self) -> None:
        Graph.made += 1
        self.handle = Graph.made

    def pool(self) -> int:
        return self.handle

    def replay(self) -> None:
        pass


class Machine:
    """What a CUDA device would have been asked for."""

    def __init__(self) -> None:
        self.default, self.device, self.mode = Stream(), 0, 0
        self.now, self.capturing = self.default, False
        self.begun: list[tuple] = []  # of every capture: pool, stream, mode of errors
        self.fails = self.warned = False

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        self.begun.append((pool, stream, capture_error_mode))
        before, self.now, self.capturing = self.now, stream, True
        yield
        self.capturing = False
        if self.fails:  # as torch, which then leaves the stream of the capture in force
            raise RuntimeError("operation failed due to a previous error during capture")
        graph.handle, self.now = pool or graph.handle, before

    def set_stream(self, stream) -> None:
        self.now = stream

    def set_sync_debug_mode(self, mode) -> None:
        if not self.warned:  # once, as torch
            self.warned = True
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
        self.mode = {"default": 0, "error": 2}.get(mode, mode)

    def wait(self) -> None:
        """What a step does that looks at a number."""
        assert not self.capturing, "a capture that fails leaves the allocator waiting for its end"
        if self.mode == 2:
            raise RuntimeError("called a synchronizing CUDA operation")


@pytest.fixture
def machine(monkeypatch):
    found = Machine()
    for name in ("stream", "graph", "set_stream", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: found.now)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: found.device)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: found.mode)
    replay._find_stream.cache_clear()
    yield found
    replay._find_stream.cache_clear()


def test_a_step_that_waits_is_refused_before_anything_is_captured(machine):
    with pytest.raises(RuntimeError, match="synchronizing"):
        record_graph(machine.wait)
    assert (machine.begun, machine.mode) == ([], 0)


def test_the_stream_is_the_default_one_again_where_a_capture_fails(machine):
    machine.fails = True
    with pytest.raises(RuntimeError, match="during capture"):
        record_graph(lambda: None)
    assert machine.now is machine.default


def test_all_captures_of_a_device_are_on_one_stream_and_leave_other_threads_alone(machine):
    for _ in range(3):
        record_graph(lambda: None)
    machine.device = 1
    record_graph(lambda: None)
    streams = [stream for _, stream, _ in machine.begun]
    assert len({*map(id, streams)}) == 2
    assert streams[0] is streams[2]
    assert {mode for *_, mode in machine.begun} == {"thread_local"}


def test_passes_share_the_memory_of_those_that_are_alive_and_begin_anew_when_all_are_gone(machine):
    first = record_pass(lambda: None)
    second = record_pass(lambda: None)
    assert machine.begun[0][0] is None
    assert machine.begun[1][0] == first.__self__.pool()
    del first, second
    gc.collect()
    record_pass(lambda: None)
    assert machine.begun[2][0] is None


def test_nothing_takes_a_steps_memory_again_once_a_recording_holds_it():
    calls, state = [], [torch.ones(2)]

    def step():
        calls.append("step")
        state[0].add_(1)

    def record(step):
        calls.append("record")
        return lambda: (calls.append("replay"), state[0].add_(1))

    assert find_replay(record, step, state, []) is not None
    assert calls == ["step", "record", "replay"]


def test_who_waits_is_refused_without_a_warning_and_only_within_the_block(machine):
    with refuse_to_wait(), pytest.raises(RuntimeError, match="synchronizing"):
        machine.wait()
    machine.wait()
    assert (machine.mode, machine.warned) == (0, True)
