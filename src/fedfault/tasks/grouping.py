"""Rows of different lengths without padding them to the longest.

In a step, each client's rows are sorted by length and go through the model a few columns at a time, each group only as
wide as its longest row:

    client 0   ab.    abc     abcdefgh        three passes of 2 x 3, 2 x 3 and 2 x 8 tokens
    client 1   a..    ab.     abcdef..        instead of 6 x 8
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedfault.types.task import Groups

PASS = 64  # what a training pass costs besides its tokens, in tokens: about 40 ms of MiniLM on one core
STRIDE = 2**16  # places of a row in its client's dropout stream: more than any text has tokens


def split_by_length(lengths: Tensor, most: int) -> Iterator[tuple[Tensor, int]]:
    """Split rows of these lengths (n,) into passes of at most `most` tokens: places (b,) and the longest length there.

    The longest rows go first; a row that is longer than `most` goes alone.
    """
    found, order = lengths.sort(descending=True, stable=True)
    at = 0
    while at < len(order):
        T = int(found[at])
        some = order[at : at + max(1, most // T)]
        yield some, T
        at += len(some)


def split_prompts(lengths: Sequence[int], answer: int, most: int) -> Iterator[list[int]]:
    """Split prompts of these lengths into groups that are answered side by side, `answer` tokens each: their places.

    A group takes a pass for every token by which its prompts differ, and for every token of an answer. So it ends where the
    next prompt is longer by more than an answer, or where its `most` tokens, answers included, would be passed.

    >>> list(split_prompts([20, 90, 8, 95], answer=12, most=1000))
    [[2, 0], [1, 3]]
    """
    group: list[int] = []
    last = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (lengths[i] - last > answer or (len(group) + 1) * (lengths[i] + answer) > most):
            yield group
            group = []
        group.append(i)
        last = lengths[i]
    if group:
        yield group


def place_tokens(columns: Tensor, T: int) -> Tensor:
    """Place the T tokens of columns (K, b) in their client's dropout stream, whatever the group: (K, b * T)."""
    return (columns[..., None] * STRIDE + torch.arange(T, device=columns.device)).flatten(1)


def group_columns(lengths: Tensor, most: int | None) -> list[Tensor]:
    """Group the columns of a batch (K, b) by length, so that as little padding as possible is computed.

    lengths: (K, B), 0 for rows that are not there. Each client's columns are sorted by length; where to cut is chosen so
    that tokens, padding included, and PASS for each group are fewest in all. A group has at most `most` tokens, unless a
    single column has more; None: one group, in order.
    """
    K = len(lengths)
    if most is None:
        return [torch.arange(lengths.shape[1]).expand(K, -1)]
    groups = plan_groups(lengths[None], most)
    return [columns for columns, _ in take_groups(lengths, groups)]


def plan_groups(lengths: Tensor, most: int | None) -> Groups:
    """Plan groups for the columns of several batches (S, K, B), each sorted by length; see `group_columns`."""
    _, K, B = lengths.shape
    widest = [w for w in lengths.sort(dim=2).values.amax((0, 1)).tolist() if w]  # of each column, ascending
    if most is None:
        return ((B, max(widest, default=1)),)
    B = len(widest)
    cost, cut = [0.0] * (B + 1), [0] * (B + 1)  # of the first j columns, and where their last group begins
    for j in range(1, B + 1):
        fits = [i for i in range(j) if i == j - 1 or K * (j - i) * widest[j - 1] <= most]
        cost[j], cut[j] = min((cost[i] + K * (j - i) * widest[j - 1] + PASS, i) for i in fits)
    ends, j = [], B
    while j:
        ends.append((j - cut[j], widest[j - 1]))
        j = cut[j]
    return tuple(reversed(ends))


def take_groups(lengths: Tensor, groups: Groups) -> Iterator[tuple[Tensor, int]]:
    """Yield the columns (K, b) of each group of a batch with these lengths (K, B), and the tokens that it is wide.

    The shortest columns stay out where groups have fewer. Nothing here looks at a number: no device is waited for.
    """
    order = lengths.sort(dim=1, stable=True).indices
    at = order.shape[1] - sum(b for b, _ in groups)
    for b, T in groups:
        yield order[:, at : at + b], T
        at += b
