"""Conversations as examples of a language model: rows of tokens of different lengths with a mask of targets.

ids      5 6 7 8 9 .      lengths 5       the model reads 5 6 7 8 and writes 6 7 8 9
mask       . . x x .      targets 2       of these the response, 8 9, counts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedfault.text.conversing import EncodedConversation
from fedfault.text.packing import Blocks
from fedfault.text.tokens import encode_texts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """N rows of tokens, padded on the right; targets are `ids[:, 1:]` where `mask` is true."""

    ids: Tensor  # (N, T + 1) int64
    lengths: Tensor  # (N,) int64, how many tokens of each are real: the first ones, two at least
    mask: Tensor  # (N, T) bool

    @classmethod
    def from_rows(cls, rows: Sequence[EncodedConversation], most: int, padding: int = 0) -> Responses:
        """Put conversations into rows of at most `most` tokens; what is longer loses its end."""
        import torch

        lengths = torch.tensor([min(len(row.ids), most) for row in rows], dtype=torch.int64)
        L = max(map(int, lengths), default=2)
        ids = np.full((len(rows), L), padding, dtype=np.int64)
        mask = np.zeros((len(rows), L), dtype=bool)
        for i, row in enumerate(rows):
            n = min(len(row.ids), most)
            ids[i, :n], mask[i, :n] = row.ids[:n], row.mask[:n]
        return cls(torch.from_numpy(ids), lengths, torch.from_numpy(mask[:, 1:].copy()))

    @classmethod
    def from_blocks(cls, blocks: Blocks) -> Responses:
        """Put blocks of running text into rows, all of whose real targets count."""
        return cls(blocks.ids, blocks.targets + 1, blocks.mask)

    @classmethod
    def from_texts(cls, tokenizer: Any, texts: Sequence[str], separator: int) -> Responses:
        """Put whole texts into rows, each after a separator; all of their tokens count."""
        ids = [[separator, *row.tolist()] for row in encode_texts(tokenizer, texts)]
        return cls.from_rows([EncodedConversation(row, [True] * len(row)) for row in ids], max(map(len, ids)))

    @classmethod
    def concatenate(cls, parts: Sequence[Responses]) -> Responses:
        """Put several together, padded to the longest row of them all."""
        import torch

        L = max((p.ids.shape[1] for p in parts), default=2)
        ids, mask = (
            torch.cat([torch.nn.functional.pad(x, (0, L - p.ids.shape[1])) for p, x in pairs])
            for pairs in ([(p, p.ids) for p in parts], [(p, p.mask) for p in parts])
        )
        return cls(ids, torch.cat([p.lengths for p in parts]), mask)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Responses:
        """Select rows, cut to the longest of them."""
        lengths = self.lengths[rows]
        L = int(lengths.max()) if len(lengths) else 2
        return Responses(self.ids[rows][:, :L], lengths, self.mask[rows][:, : L - 1])

    @property
    def targets(self) -> Tensor:
        """(N,) int64, how many targets each row has."""
        return self.mask.sum(1)

    @property
    def num_tokens(self) -> int:
        """The number of targets of all rows."""
        return int(self.mask.sum())
