"""Steps and passes of one shape, recorded once and replayed: on CUDA as a graph, whose kernels start without Python.

A small model's step on a GPU is thousands of short kernels, and waits for Python to start each. What is recorded reads and
writes the same memory in every replay, so that a step has to take its batch from a buffer and leave its results in place.
Steps of training are recorded anew in every pass of clients; passes without gradients are kept from round to round.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor

from fedfault.backbones.unpacked import without_looking_at_masks
from fedfault.errors import is_out_of_memory, read_first_line

Act = Callable[[], None]
Record = Callable[[Act], Act]  # runs a step a few times, and returns what does the same again

WORTH = 12  # steps of one shape from which recording pays: it costs about six of them
MET = 6  # passes of one shape without gradients before one is recorded, which costs about as many
KEPT = 32  # such recordings at most: a graph takes memory too
WARM_UPS = 3  # before a capture: libraries choose their kernels and workspaces
APART = 2e-2  # of the length of a step by which a replay may differ: rounding in bfloat16


def record_graph(step: Act, beside: WeakSet[Any] | None = None) -> Act:
    """Capture a step as a CUDA graph; it is run before, on a stream of its own, as captures require.

    beside: graphs whose memory it shares, and which it joins; they leave nothing there that is looked at later. Raises
    `RuntimeError` for a step that waits for the device: before the capture, for one that fails leaves torch's allocator
    waiting for its end, and nothing is captured from then on, nor is cached memory freed where it runs out.
    """
    before = torch.cuda.current_stream()
    side = _find_stream(torch.cuda.current_device())
    side.wait_stream(before)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS - 1):
            step()
        with refuse_to_wait(), without_looking_at_masks():  # nor does a capture look
            step()
    before.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Not a handle, which dies with the last graph that had it
    shared = next((one.pool() for one in beside or ()), None)
    try:
        # Other threads, such as NCCL's, may go on asking for their events
        with torch.cuda.graph(graph, pool=shared, stream=side, capture_error_mode="thread_local"):
            step()
    except BaseException:
        torch.cuda.set_stream(before)  # where the capture cannot begin or end, torch leaves its stream in force
        raise
    if beside is not None:
        beside.add(graph)
    replay: Act = graph.replay
    return replay


@functools.cache
def _find_stream(device: int) -> torch.cuda.Stream:
    """The one stream of captures: a library keeps a workspace for every stream that it has met, up to 32 MiB each."""
    return torch.cuda.Stream(device)


@contextmanager
def refuse_to_wait() -> Iterator[None]:
    """Within the block, what waits for a CUDA device raises `RuntimeError`.

    Torch warns at the first use, which is not the user's to mend, and would be an error in a test.
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def record_pass(compute: Act) -> Act:
    """Capture a pass without gradients as a CUDA graph, in memory that is that of all such passes."""
    return record_graph(compute, _PASSES_ALIVE)


_PASSES_ALIVE: WeakSet[Any] = WeakSet()  # graphs of passes that somebody may replay still
PASSES: dict[str, Record] = {"cuda": record_pass}  # type of device -> how a pass without gradients is recorded there


@functools.cache
def refuse_to_record(why: str) -> Record:
    """A `Record` for steps that cannot be recorded: where it would be worth it, the round's events say why they are not."""

    def record(step: Act) -> Act:
        raise RuntimeError(why)

    return record


def find_replay(
    record: Record, step: Act, state: Sequence[Tensor], events: list[str], *, what: str = "steps", apart: float = APART
) -> Act | None:
    """Record a step and return its replay, if that does what the step does; else None, and an event says why.

    state: all that the step changes; afterwards it is as before. what: is recorded, in the event's words; apart: how far a
    replay may be from the step, by the length of that; 0: not by a bit. Raises what `record` raises when memory runs out.
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
        with torch.cuda.device_of(before[0]):  # where a graph is captured, and not on the first of several devices
            expected = run(step)  # before the recording, which keeps all memory that the step takes
            run(lambda: found.append(record(step)))
            replayed = run(found[0])
        if _is_same(expected, replayed, before, apart):
            return found[0]
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise
        why = read_first_line(e)
        for x, old in zip(state, before, strict=True):
            x.copy_(old)
    event = f"{what} are not replayed: {why}"
    if event not in events:
        events.append(event)
    return None


def _is_same(expected: Sequence[Tensor], found: Sequence[Tensor], before: Sequence[Tensor], apart: float) -> bool:
    """Tell whether two steps from the same state ended in the same one, but for rounding."""
    if not apart:
        return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(expected, found, strict=True))
    near = [
        (a - b).double().norm() <= apart * (a - old).double().norm()
        for a, b, old in zip(expected, found, before, strict=True)
    ]
    return bool(torch.stack(near).all())


class _Recorded(NamedTuple):
    """A pass that was recorded: what it reads, where it writes, and what does it again."""

    given: tuple[Tensor, ...]
    out: Tensor
    replay: Act

    def run(self, given: Sequence[Tensor]) -> Tensor:
        for x, new in zip(self.given, given, strict=True):
            x.copy_(new)
        self.replay()
        return self.out.clone()


class Recordings:
    """The recorded passes without gradients of one model: a shape that is met often is recorded and replayed.

    A replay gives the very bits of the pass, or it is not used: a run that is resumed has met no shape yet, and has the same
    numbers. What is recorded reads the model where it lies in memory: who puts something else there has to `forget`.
    """

    def __init__(self, record: Record | None) -> None:
        """record: None where passes are computed as they come."""
        self.record = record
        self.most = sys.maxsize  # tokens of a pass that is recorded: what it needs in between stays allocated
        self.events: list[str] = []
        self._met: Counter[Hashable] = Counter()
        self._known: dict[Hashable, _Recorded | None] = {}  # None: it cannot be replayed

    def forget(self) -> None:
        """Forget all passes: they have to be met and recorded anew."""
        self._met.clear()
        self._known.clear()

    def run(self, name: Hashable, compute: Callable[..., Tensor], given: Sequence[Tensor], tokens: int) -> Tensor:
        """Return compute(*given), of so many tokens, which is a replay where that is possible.

        name: says together with the shapes of `given` all that the computation depends on beside their numbers.
        """
        if self.record is None:
            return compute(*given)
        with without_looking_at_masks():  # nor does a capture
            shape = (name, *(x.shape for x in given))
            if shape not in self._known:
                self._met[shape] += 1
                if self._met[shape] <= MET or tokens > self.most or len(self._known) >= KEPT:
                    return compute(*given)
                self._known[shape] = self._record(self.record, compute, given, tokens)
            found = self._known[shape]
            return compute(*given) if found is None else found.run(given)

    def _record(
        self, record: Record, compute: Callable[..., Tensor], given: Sequence[Tensor], tokens: int
    ) -> _Recorded | None:
        """Record a pass; None if it cannot be replayed, and an event says why."""
        own, out, what = tuple(x.clone() for x in given), torch.zeros_like(compute(*given)), "evaluation passes"

        def step() -> None:
            out.copy_(compute(*own))

        try:
            replay = find_replay(record, step, [out], self.events, what=what, apart=0.0)
        except (RuntimeError, MemoryError) as e:
            self.most = tokens - 1
            self.events.append(f"{what} of {tokens:,} tokens are not replayed: {read_first_line(e)}")
            return None
        return None if replay is None else _Recorded(own, out, replay)
