"""Counts bytes: the size of a message as it would cross the network for one client."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from torch import Tensor

from fedfault.types.adapter import Adapter, Pair
from fedfault.types.algorithm import Message

REGISTERED = ("n", "cluster")  # a client's weight and its cluster are agreed once, not sent with every message


def pack(message: Message, row: int | None = None, keep: Tensor | None = None) -> bytes:
    """Pack the payload of one client: arrays as raw little-endian numbers, scalars as 8 bytes, no names and no shapes.

    `row` picks a client from a message that is stacked over the cohort; `keep` (P,) says which numbers of an adapter are
    sent: frozen and private ones are not, nor those beyond the client's rank.
    """
    parts = []
    for name in sorted(set(message) - set(REGISTERED)):
        value = message[name]
        flat = value.flat if isinstance(value, Adapter) else value
        one = flat if row is None or not isinstance(flat, Tensor) else flat[row]
        if isinstance(value, Adapter) and keep is not None:
            one = one[keep]
        if isinstance(one, Tensor) and one.ndim:
            parts.append(one.detach().cpu().contiguous().numpy().tobytes())
        else:
            parts.append(struct.pack("<d", float(one)))
    return b"".join(parts)


def fold_size(fold: Mapping[str, Pair]) -> int:
    """Count the bytes of a change of the frozen weights: at each site two factors or the matrix, whichever is smaller."""
    total = 0
    for B, A in ((pair.B, pair.A) for pair in fold.values()):
        dense = B.shape[0] * A.shape[1]
        total += min(dense, B.numel() + A.numel()) * B.element_size()
    return total
