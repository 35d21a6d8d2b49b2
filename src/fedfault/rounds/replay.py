"""Steps of one shape, recorded once and replayed: on CUDA as a graph, whose kernels start without Python.

A small model's step on a GPU is thousands of short kernels, and waits for Python to start each. What is recorded reads and
writes the same memory in every replay, so that a step has to take its batch from a buffer and leave its results in place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedfault.errors import is_out_of_memory, read_first_line

Act = Callable[[], None]
Record = Callable[[Act], Act]  # runs a step a few times, and returns what does the same again

WORTH = 12  # steps of one shape from which recording pays: it costs about six of them
WARM_UPS = 3  # before a capture: libraries choose their kernels and workspaces
APART = 2e-2  # of the length of a step by which a replay may differ: rounding in bfloat16


def record_graph(step: Act) -> Act:
    """Capture a step as a CUDA graph; it is run before, on a stream of its own, as captures require."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Act = graph.replay
    return replay


@functools.cache
def refuse_to_record(why: str) -> Record:
    """A `Record` for steps that cannot be recorded: where it would be worth it, the round's events say why they are not."""

    def record(step: Act) -> Act:
        raise RuntimeError(why)

    return record


def find_replay(record: Record, step: Act, state: Sequence[Tensor], events: list[str]) -> Act | None:
    """Record a step and return its replay, if that does what the step does; else None, and an event says why.

    state: all that the step changes; afterwards it is as before. Raises what `record` raises when memory runs out.
    """
    before = [x.clone() for x in state]

    def run(act: Act) -> list[Tensor]:
        act()
        found = [x.clone() for x in state]
        for x, old in zip(state, before, strict=True):
            x.copy_(old)
        return found

    why = "a replay does not give what the step gives"
    try:
        found: list[Act] = []
        run(lambda: found.append(record(step)))
        expected, replayed = run(step), run(found[0])
        if _is_same(expected, replayed, before):
            return found[0]
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise
        why = read_first_line(e)
        for x, old in zip(state, before, strict=True):
            x.copy_(old)
    event = f"steps are not replayed: {why}"
    if event not in events:
        events.append(event)
    return None


def _is_same(expected: Sequence[Tensor], found: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Tell whether two steps from the same state ended in the same one, but for rounding."""
    apart = [
        (a - b).double().norm() <= APART * (a - old).double().norm()
        for a, b, old in zip(expected, found, before, strict=True)
    ]
    return bool(torch.stack(apart).all())
