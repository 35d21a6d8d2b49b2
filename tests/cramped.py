"""A device with little memory that is not there: what is alive of the tensors made, and running out of it."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made within the block: alive now, and most at a time.

    most: raises what CUDA raises when more than this would be alive.
    """

    def __init__(self, most: float = float("inf")) -> None:
        super().__init__()
        self.most, self.now, self.peak = most, 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (memory := x.untyped_storage())._cdata not in self.known | given:
                self._add(memory)
        return out

    def _add(self, memory: torch.UntypedStorage) -> None:
        key, size = memory._cdata, memory.nbytes()
        if self.now + size > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(memory, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
