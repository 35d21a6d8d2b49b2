"""What a message weighs: the bytes that would cross the network for one client."""

from __future__ import annotations

import struct

from torch import Tensor

from fedfault.types import Adapter, Message

REGISTERED = ("n",)  # a client's weight is agreed once when it joins, not sent with every message


def pack(message: Message, row: int | None = None) -> bytes:
    """The payload of one client: arrays as raw little-endian numbers, scalars as 8 bytes; names and shapes are agreed.

    `row` picks a client from a message that is stacked over the cohort.
    """
    parts = []
    for name in sorted(set(message) - set(REGISTERED)):
        value = message[name]
        flat = value.flat if isinstance(value, Adapter) else value
        one = flat if row is None or not isinstance(flat, Tensor) else flat[row]
        if isinstance(one, Tensor) and one.ndim:
            parts.append(one.detach().cpu().contiguous().numpy().tobytes())
        else:
            parts.append(struct.pack("<d", float(one)))
    return b"".join(parts)
