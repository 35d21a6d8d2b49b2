"""Activations below the first trainable block: they never change, so they are computed once and stored.

A training block of tokens meets the same frozen layers in every epoch and round. When only upper layers are trained, its
activations at the first trainable block are stored, up to a memory cap; beyond the cap they are computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedfault.backbones.checks import BROKEN
from fedfault.backbones.sites import find_blocks
from fedfault.backbones.states import PLAIN
from fedfault.errors import is_out_of_memory


class _Reached(Exception):
    """Raised when the forward pass arrives at the first trainable block."""


class Prefix:
    """The frozen blocks below `first_block` of a backbone."""

    def __init__(self, model: Any, first_block: int) -> None:
        self.model, self.blocks, self.first = model, find_blocks(model)[1], first_block
        self.beside: int | None = None  # what a block returns beside its states, so many; None: states alone

    @torch.no_grad()
    def run(self, ids: Tensor, reads: Mapping[str, Any]) -> Tensor:
        """Compute the activations that enter the first trainable block, (n, T, d), from ids (n, T) and other inputs."""
        caught: list[Tensor] = []

        def stop(block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        def note(block: nn.Module, args: Any, found: Any) -> None:
            self.beside = len(found) - 1 if isinstance(found, tuple | list) else None

        below = self.blocks[self.first - 1].register_forward_hook(note)
        handle = self.blocks[self.first].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model.base_model(input_ids=ids, **reads)
        except _Reached:
            pass
        finally:
            handle.remove()
            below.remove()
        return caught[0]

    @torch.no_grad()
    def is_right(self, ids: Tensor, reads: Mapping[str, Any]) -> bool:
        """Whether the model gives the same states when its frozen blocks are skipped; some pass on more than states."""
        try:
            whole = self.model.base_model(input_ids=ids, **reads)[0]
            with self.skip_frozen_blocks(self.run(ids, reads)):
                skipped = self.model.base_model(input_ids=ids, **reads)[0]
        except BROKEN as e:
            if is_out_of_memory(e):
                raise
            return False
        return bool((skipped - whole).abs().max() <= 1e-3 * whole.abs().max())

    @contextmanager
    def skip_frozen_blocks(self, hidden: Tensor) -> Iterator[None]:
        """Within the block, the frozen blocks are skipped and `hidden` (n, T, d) enters the first trainable one."""
        frozen = list(self.blocks)[: self.first]
        passed = hidden if self.beside is None else (hidden, *[None] * self.beside)
        for block in frozen:
            block.forward = lambda *args, **kwargs: passed
        try:
            yield
        finally:
            for block in frozen:
                del block.forward  # the class's own forward again


Reads = Callable[[Tensor], Mapping[str, Any]]


def read_ids_only(rows: Tensor) -> Mapping[str, Any]:
    """The inputs of a language model besides ids."""
    return PLAIN


class ActivationCache:
    """Activations of the rows of one table of token blocks; each is computed when it is first asked for, and stored."""

    def __init__(self, prefix: Prefix, ids: Tensor, max_bytes: int, reads: Reads = read_ids_only) -> None:
        """ids: (N, T) all rows of tokens that may be asked for; reads: rows -> the model's inputs besides ids."""
        self.prefix, self.ids, self.reads = prefix, ids, reads
        self.max_bytes = max_bytes
        self.store: Tensor | None = None  # (capacity, T, d), allocated with the first row
        self.slot = torch.full((len(ids),), -1)
        self.used = 0

    def get(self, rows: Tensor) -> Tensor:
        """The activations (n, T, d) of rows (n,)."""
        missing = rows[self.slot[rows] < 0].unique()
        ids = self.ids[missing].to(self.prefix.model.device)
        fresh = self.prefix.run(ids, self.reads(missing)) if len(missing) else None
        if fresh is not None:
            self._store_rows(missing, fresh)
        if self.store is None or bool((self.slot[rows] < 0).any()):
            return self._combine_rows(rows, missing, fresh)
        return self.store[self.slot[rows].to(self.store.device)]

    @contextmanager
    def skip_frozen_blocks(self, rows: Tensor, width: int | None = None) -> Iterator[None]:
        """Within the block, the activations of rows (n,), or their first `width` tokens, stand for the frozen blocks."""
        with self.prefix.skip_frozen_blocks(self.get(rows)[:, :width]):
            yield

    def _store_rows(self, missing: Tensor, fresh: Tensor) -> None:
        if self.store is None:
            capacity = min(len(self.ids), self.max_bytes // (fresh[0].numel() * fresh.element_size()))
            self.store = fresh.new_empty(capacity, *fresh.shape[1:])
        fits = missing[: len(self.store) - self.used]
        self.store[self.used : self.used + len(fits)] = fresh[: len(fits)]
        self.slot[fits] = torch.arange(self.used, self.used + len(fits))
        self.used += len(fits)

    def _combine_rows(self, rows: Tensor, missing: Tensor, fresh: Tensor | None) -> Tensor:
        """Combine stored rows with those that were just computed and had no room in the store."""
        assert fresh is not None
        assert self.store is not None
        out = fresh.new_empty(len(rows), *fresh.shape[1:])
        stored = self.slot[rows] >= 0
        out[stored] = self.store[self.slot[rows[stored]]]
        out[~stored] = fresh[torch.searchsorted(missing, rows[~stored])]
        return out
