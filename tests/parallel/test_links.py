"""What goes from process to process arrives as it was, and nothing goes twice."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from fedfault.parallel import links
from fedfault.types.adapter import Adapter, Layout, Site


class Wire:
    """In the place of torch.distributed: what is sent is what is received."""

    def __init__(self) -> None:
        self.sent: deque[torch.Tensor] = deque()
        self.sizes: list[int] = []

    def send(self, tensor, to):
        assert tensor.is_contiguous()
        assert tensor.numel()
        self.sent.append(tensor)
        self.sizes.append(tensor.numel())

    def recv(self, tensor, sender):
        tensor.copy_(self.sent.popleft())

    def isend(self, tensor, to):
        self.send(tensor, to)
        return self

    def irecv(self, tensor, sender):
        self.recv(tensor, sender)
        return self

    def wait(self, patience):
        assert patience == links.AT_WORK


@pytest.fixture
def wire(monkeypatch) -> Wire:
    made = Wire()
    monkeypatch.setattr(links, "dist", made)
    return made


def there_and_back(value):
    links.send(value, 1)
    return links.receive(0)


def test_a_value_arrives_as_it_was(wire):
    layout = Layout.of([Site("w", "lora", (2, 3, 5))], scaling=2.0)
    flat = torch.arange(32.0).reshape(2, 16)[:, ::2]  # not contiguous
    value = {"x": Adapter(layout, flat), "n": torch.tensor([1.0, 2.0], dtype=torch.float64), "none": None, "say": "ü"}
    value |= {"bits": torch.tensor([[True], [False]]), "empty": torch.zeros(0, 7), "scalar": torch.tensor(3)}
    got = there_and_back(value)
    assert got.keys() == value.keys()
    assert got["x"].layout == layout
    assert torch.equal(got["x"].flat, flat)
    for name in ("n", "bits", "empty", "scalar"):
        assert torch.equal(got[name], value[name])
        assert (got[name].dtype, got[name].shape) == (value[name].dtype, value[name].shape)
    assert (got["none"], got["say"]) == (None, "ü")
    assert not wire.sent


def test_what_comes_twice_goes_once_and_a_repeated_row_once(wire):
    one, x = torch.ones(1000), torch.arange(500.0)
    first, second, rows = there_and_back([one, one, x.expand(40, -1)])
    assert first is second
    assert torch.equal(rows, x.expand(40, -1))
    assert rows.stride(0) == 0
    assert sorted(wire.sizes)[-2:] == [500, 1000]
    assert sum(wire.sizes) < 2000  # with the head


def test_an_end_that_is_gone_is_named(wire, monkeypatch):
    def broken(*args):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(wire, "isend", broken)
    with pytest.raises(links.Lost) as lost:
        links.send(1, 7)
    assert lost.value.rank == 7


@pytest.mark.parametrize(("nccl", "expected"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_gpus_without_nccl_are_joined_over_gloo(nccl, expected, monkeypatch):
    """Torch for Windows has no NCCL, and a job on its CPU needs none."""
    begun = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(links, "rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 0, 1)]))
    monkeypatch.setattr(links.dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(links.dist, "init_process_group", lambda backend, **_: begun.append(backend))
    monkeypatch.setattr(links.dist, "destroy_process_group", lambda: None)
    with links.join_processes():
        assert begun == [expected]


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = True


def test_a_tensor_of_a_gpu_goes_through_memory_without_nccl_and_arrives_on_the_gpu(wire, monkeypatch):
    arrived = []
    monkeypatch.setattr(wire, "is_nccl_available", lambda: False, raising=False)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: (arrived.append(self), self)[1])
    got = there_and_back(torch.arange(4.0).as_subclass(OnGpu))
    assert got.tolist() == arrived[0].tolist() == [0, 1, 2, 3]
