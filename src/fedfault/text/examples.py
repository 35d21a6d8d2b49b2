"""Labelled texts as rows of tokens: pairs of sentences become one row, and rows are cut at `model.max_length`.

a model's own special tokens   [CLS] it rains [SEP] it is wet [SEP]
a decoder                      <sep> it rains \\n it is wet                   the line break belongs to the second sentence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedfault.errors import UserError
from fedfault.text.tokens import BATCH, encode_texts

if TYPE_CHECKING:
    from torch import Tensor


class EncodedText(NamedTuple):
    """The tokens of one text, or of a pair of sentences."""

    ids: Sequence[int]
    second: int  # where the second sentence begins; the length where there is none


@dataclass(frozen=True)
class Examples:
    """N rows of tokens with a label each, which is the example's only target."""

    ids: Tensor  # (N, L) int64, padded on the right
    lengths: Tensor  # (N,) int64, how many tokens of each are real: the first ones, never none
    second: Tensor  # (N,) int64, where the second sentence begins; the length where there is none
    labels: Tensor  # (N,) classes in int64, or scores in float32

    @classmethod
    def from_rows(cls, rows: Sequence[EncodedText], labels: Sequence[float], padding: int = 0) -> Examples:
        """Pad rows to one length; labels that are all ints are classes, others are scores."""
        import torch

        lengths = torch.tensor([len(row.ids) for row in rows], dtype=torch.int64)
        ids = np.full((len(rows), max(map(int, lengths), default=1)), padding, dtype=np.int64)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row.ids)] = row.ids
        kind = torch.int64 if all(isinstance(label, int) for label in labels) else torch.float32
        second = torch.tensor([row.second for row in rows], dtype=torch.int64)
        return cls(torch.from_numpy(ids), lengths, second, torch.tensor(labels, dtype=kind))

    @classmethod
    def concatenate(cls, parts: Sequence[Examples]) -> Examples:
        """Put several together, padded to the longest row of them all."""
        import torch

        L = max((p.ids.shape[1] for p in parts), default=1)
        ids = torch.cat([torch.nn.functional.pad(p.ids, (0, L - p.ids.shape[1])) for p in parts])
        columns = ([getattr(p, name) for p in parts] for name in ("lengths", "second", "labels"))
        return cls(ids, *map(torch.cat, columns))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Examples:
        """Select rows, cut to the longest of them."""
        L = int(self.lengths[rows].max()) if len(self.lengths[rows]) else 1
        return Examples(self.ids[rows][:, :L], self.lengths[rows], self.second[rows], self.labels[rows])

    @property
    def mask(self) -> Tensor:
        """(N, L) bool: which tokens are real."""
        import torch

        return torch.arange(self.ids.shape[1]) < self.lengths[:, None]

    @property
    def num_tokens(self) -> int:
        """The number of targets: one an example."""
        return len(self)


def encode_pairs(
    texts: Sequence[tuple[str, str]], tokenizer: Any, length: int, separator: int | None
) -> list[EncodedText]:
    """Encode pairs of sentences to rows of at most `length` tokens; a lone sentence is a pair whose second is empty.

    separator: the token that a decoder's texts begin with; None for models with special tokens of their own. A pair that is
    too long loses tokens at the end of its longer sentence until both fit. Raises `UserError` if `length` has no room.
    """
    if separator is None:
        return _encode_with_special_tokens(texts, tokenizer, length)
    first = encode_texts(tokenizer, [a for a, _ in texts])
    second = encode_texts(tokenizer, [f"\n{b}" if b else "" for _, b in texts])
    return [_join_pair(list(a), list(b), length, separator) for a, b in zip(first, second, strict=True)]


def _join_pair(a: list[int], b: list[int], length: int, separator: int) -> EncodedText:
    """Put the separator and two sentences of tokens into one row of at most `length`.

    >>> _join_pair([5, 6, 7], [8], 4, 0)
    EncodedText(ids=[0, 5, 6, 8], second=3)
    """
    room = length - 1
    kept = min(len(a), max(room - len(b), room - room // 2))
    ids = [separator, *a[:kept], *b[: room - kept]]
    return EncodedText(ids, 1 + kept if b else len(ids))


def _encode_with_special_tokens(texts: Sequence[tuple[str, str]], tokenizer: Any, length: int) -> list[EncodedText]:
    if length <= tokenizer.num_special_tokens_to_add(pair=True):
        raise UserError(f"model.max_length={length} has no room for a pair of sentences; raise it")
    rows: list[EncodedText] = []
    pairs = any(b for _, b in texts)
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        found = tokenizer(
            [a for a, _ in some],
            [b for _, b in some] if pairs else None,
            truncation=True,
            max_length=length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        kinds = found.get("token_type_ids") or [[]] * len(some)
        rows += [
            EncodedText(ids, own.index(1) if 1 in own else len(ids))
            for ids, own in zip(found["input_ids"], kinds, strict=True)
        ]
    return rows
