"""How much of a device's memory is free, and how much of it a training pass takes: measured on one row of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedfault.backbones.quantised import named_tensors

MARGIN = 0.7  # share of the free memory that passes are planned with: the rest is fragments, workspaces, other users,
RECORDED = 0.1  # and as much as this for passes without gradients that are recorded: a graph keeps its memory
COPIES = (
    8  # of a client's numbers in a pass: start, leaf, two moments, gradient, its clipped sum, and what algorithms add
)
WORKING = 4  # tensors as large as the largest stored one that a backward pass holds at a time beside those stored
LOGITS = 12  # bytes a logit: in the model's type, in float32, and their gradient


class PassCost(NamedTuple):
    """What a training pass takes of the memory, in bytes."""

    fixed: int  # whatever is in the pass: the logits of a chunk of the head
    row: int  # a row of tokens of the greatest length
    client: int  # the numbers of a client
    largest: int = 0  # the largest tensor that a row leaves behind; a part of `row`

    def estimate(self, clients: int, batch: int) -> int:
        """Bytes of a pass of so many clients with so many rows each."""
        return self.fixed + clients * (self.client + batch * self.row)

    def count_clients(self, room: int, batch: int) -> int:
        """The most clients with so many rows each whose pass fits into `room` bytes.

        >>> PassCost(fixed=10, row=3, client=1).count_clients(room=50, batch=2)
        5
        """
        return max(0, (room - self.fixed) // (self.client + batch * self.row))


def find_free_bytes(device: torch.device) -> int | None:
    """Bytes that torch can still allocate on a CUDA device; None for others, whose passes have the size of a cache."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def count_stored_bytes(model: torch.nn.Module, run: Callable[[], object]) -> tuple[int, int]:
    """Bytes that `run` stores for its backward passes beside the model's weights: of all tensors, and of the largest."""
    weights = {t.untyped_storage().data_ptr() for _, t in named_tensors(model)}
    stored: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in weights:
            stored[memory.data_ptr()] = memory.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        run()
    return sum(stored.values()), max(stored.values(), default=0)
