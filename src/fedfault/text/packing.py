"""Packs the tokens of documents into blocks of one length, `model.max_length`.

    documents   [5 6 7] [8 9]         separator 0, length 4
    stream      0 5 6 7 0 8 9 0
    block 0     0 5 6 7 0             inputs 0 5 6 7   targets 5 6 7 0
    block 1             0 8 9 0 .     inputs 0 8 9 0   targets 8 9 0 .      3 real targets, then padding

Windows overlap by one token, so that every token of the stream but the first is predicted exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedfault.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """N blocks of T input tokens; inputs are `ids[:, :-1]`, targets `ids[:, 1:]` where `mask` is true."""

    ids: Tensor  # (N, T + 1) int64
    targets: Tensor  # (N,) int64, how many of the block's targets are real: the first ones, never none

    @classmethod
    def concatenate(cls, parts: Sequence[Blocks]) -> Blocks:
        """The blocks of all parts, which have one length, in order."""
        import torch

        return cls(torch.cat([p.ids for p in parts]), torch.cat([p.targets for p in parts]))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Blocks:
        """Select blocks."""
        return Blocks(self.ids[rows], self.targets[rows])

    @property
    def num_tokens(self) -> int:
        """The number of real targets of all blocks."""
        return int(self.targets.sum())

    @property
    def mask(self) -> Tensor:
        """(N, T) bool: which targets are real."""
        import torch

        return torch.arange(self.ids.shape[1] - 1, device=self.ids.device) < self.targets[:, None]


def pack_blocks(documents: Iterable[Sequence[int] | NDArray[np.int32]], length: int, separator: int) -> Blocks:
    """Pack documents into blocks of `length` input tokens; documents without tokens are left out.

    Raises `UserError` if no document has a token.

    >>> pack_blocks([[5, 6, 7], [8, 9]], length=4, separator=0).ids.tolist()
    [[0, 5, 6, 7, 0], [0, 8, 9, 0, 0]]
    """
    import torch

    if length < 1:
        raise UserError(f"a block of {length} tokens; it needs at least one")
    full = [document for document in documents if len(document)]
    if not full:
        raise UserError("no tokens to make blocks of: all documents are empty")
    end = np.array([separator])
    stream = np.concatenate([end, *(part for document in full for part in (document, end))]).astype(np.int64)
    predicted = len(stream) - 1
    n = -(-predicted // length)
    padded = np.full(n * length + 1, separator, dtype=np.int64)
    padded[: len(stream)] = stream
    windows = np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::length]  # (N, T + 1)
    targets = torch.full((n,), length, dtype=torch.int64)
    targets[-1] = predicted - (n - 1) * length
    return Blocks(torch.from_numpy(windows.copy()), targets)
