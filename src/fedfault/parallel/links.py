"""Values between the processes of a job: tensors as they are, what is around them pickled. Nobody else can send any.

A tensor on a GPU goes over NCCL, or by way of memory where there is none as on Windows, and arrives on the other's GPU, one
in memory over gloo; a row that is repeated, as (P,) for K clients, goes once.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fedfault.processes import this_process

AT_WORK = datetime.timedelta(days=1)  # that another process may be busy; one that ends is noticed at once
# That a tensor may take once both sides are there, and all to come together
ON_ITS_WAY = datetime.timedelta(minutes=10)


class Lost(Exception):
    """The process at the other end has ended."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank


class Shape(NamedTuple):
    """The shape and type of a tensor, which the other side needs before it comes."""

    size: tuple[int, ...]
    dtype: torch.dtype
    cuda: bool
    repeated: bool  # all rows are the first one


@contextlib.contextmanager
def join_processes() -> Iterator[None]:
    """Within the block, all processes of the job are connected. Raises `Lost` when one does not come."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(this_process().local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda and dist.is_nccl_available() else "gloo"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store, rank, count = next(rendezvous("env://", timeout=ON_ITS_WAY))
        own = PrefixStore(attempt, store)  # the store of a job that torchrun restarts has the addresses of the dead
        dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=ON_ITS_WAY)
    except RuntimeError as e:
        raise Lost(0) from e
    try:
        yield
    finally:
        dist.destroy_process_group()


def send(value: Any, to: int) -> None:
    """Give a value to a process, which takes it with `receive`. Raises `Lost` when that has ended."""
    text = io.BytesIO()
    taken = _Pickler(text)
    taken.dump(value)
    head = pickle.dumps((taken.shapes, text.getvalue()))
    with _notice_loss(to):
        dist.isend(torch.tensor([len(head)]), to).wait(AT_WORK)  # type: ignore[union-attr]
        dist.send(torch.frombuffer(bytearray(head), dtype=torch.uint8), to)
        for tensor in taken.tensors:
            dist.send(tensor, to)


def receive(sender: int) -> Any:
    """Receive what a process sends. Raises `Lost` when that has ended."""
    length = torch.zeros(1, dtype=torch.int64)
    with _notice_loss(sender):
        dist.irecv(length, sender).wait(AT_WORK)  # type: ignore[union-attr]
        head = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(head, sender)
        shapes, text = pickle.loads(head.numpy().tobytes())
        tensors = [_receive_tensor(shape, sender) for shape in shapes]
    return _Unpickler(io.BytesIO(text), tensors).load()


@contextlib.contextmanager
def _notice_loss(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:
        raise Lost(rank) from e


def _receive_tensor(shape: Shape, sender: int) -> Tensor:
    size = (1, *shape.size[1:]) if shape.repeated else shape.size
    by_nccl = shape.cuda and dist.is_nccl_available()
    tensor = torch.empty(size, dtype=shape.dtype, device="cuda" if by_nccl else "cpu")
    if tensor.numel():
        dist.recv(tensor, sender)
    return (tensor.cuda() if shape.cuda and not by_nccl else tensor).expand(shape.size)


class _Pickler(pickle.Pickler):
    """Puts numbers in the place of tensors; a tensor that comes twice goes once."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.shapes: list[Shape] = []
        self.tensors: list[Tensor] = []  # those that have numbers
        self._places: dict[int, tuple[int, Tensor]] = {}  # by id, which holds while the tensor is kept

    def persistent_id(self, value: Any) -> int | None:
        """See `pickle`."""
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._places:
            self._places[id(value)] = len(self.shapes), value
            repeated = value.ndim > 1 and len(value) > 1 and value.stride(0) == 0
            self.shapes.append(Shape(tuple(value.shape), value.dtype, value.is_cuda, repeated))
            if value.numel():
                sent = (value[:1] if repeated else value).detach().contiguous()
                self.tensors.append(sent.cpu() if value.is_cuda and not dist.is_nccl_available() else sent)
        return self._places[id(value)][0]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, place: int) -> Tensor:
        """See `pickle`."""
        return self._tensors[place]
