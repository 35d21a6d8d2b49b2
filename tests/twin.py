"""A twin of CUDA graphs on the CPU: it holds a step to what a graph would repeat."""

from __future__ import annotations

from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

ASKS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2", "equal")


class Tape(TorchDispatchMode):
    """Operations with the shapes of their results, and where the tensors lie that they were given from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple] = []
        self.made: dict[int, torch.Tensor] = {}  # kept, so that no address is used twice

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        assert not op.__name__.startswith(ASKS), f"{op} asks the device, which a stream that is captured cannot answer"
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        outside = tuple(x.data_ptr() for x in given if x.untyped_storage().data_ptr() not in self.made)
        out = op(*args, **(kwargs or {}))
        results = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        known = {x.untyped_storage().data_ptr() for x in given}
        self.made |= {p: x for x in results if (p := x.untyped_storage().data_ptr()) not in known}
        numbers = tuple(x for x in tree_leaves((args, kwargs)) if isinstance(x, int | float))
        self.lines.append((str(op), tuple(tuple(x.shape) for x in results), outside, numbers))
        return out


def list_recorded():
    """A list, and a way to record steps with the twin that puts them into it."""
    steps = []

    def record(step):
        steps.append(step)
        return record_twin(step)

    return steps, record


def record_twin(step):
    """Records a step as CUDA does, and lets every replay do the very same operations on the very same memory, or fail."""

    def take() -> list[tuple]:
        with Tape() as tape, mock.patch.object(masking_utils, "is_tracing", return_value=True):
            step()  # transformers looks at no mask while a stream is captured
        return tape.lines

    step()  # to warm up, as before a capture: masks are made when they are first needed
    first = take()

    def again() -> None:
        assert take() == first

    return again
