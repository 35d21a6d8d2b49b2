"""Messages as arrays of numbers, as they cross the network: never pickles, and checked before they are used."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedfault.errors import UserError
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Message
from fedfault.wire import REGISTERED


class Refused(UserError):
    """Something that came over the network cannot be used; the message says why."""


def to_arrays(message: Message, keep: Tensor | None, row: int | None = None) -> ArrayRecord:
    """Write a message as arrays by name: of an adapter the numbers `keep` (P,), all for None, in its precision; scalars.

    `row` picks a client from a message that is stacked over a cohort. A client's weight is agreed when it joins.
    """
    out = {}
    for name in sorted(set(message) - set(REGISTERED)):
        value = message[name]
        flat = value.flat if isinstance(value, Adapter) else torch.as_tensor(value, dtype=torch.float64)
        one = flat if row is None else flat[row]
        if isinstance(value, Adapter) and keep is not None:
            one = one[keep.to(one.device)]
        out[name] = Array(one.detach().cpu().contiguous().numpy())
    return ArrayRecord(out)


def from_arrays(
    record: ArrayRecord, like: Adapter, keep: Tensor | None, kinds: Mapping[str, bool] | None = None
) -> dict[str, Adapter | float]:
    """Read the message in a record: adapters like `like` (P,) with zeros where nothing travels, and scalars.

    `kinds` says which names there have to be, and of each whether it is an adapter; None: any, told by their shape.
    Raises `Refused` unless names, sizes, types and shapes are exactly right and all numbers finite.
    """
    n = like.layout.size if keep is None else int(keep.sum())
    dtype = str(like.flat.dtype).removeprefix("torch.")
    found = {name: len(a.shape) == 1 for name, a in record.items()} if kinds is None else dict(kinds)
    if set(record) != set(found):
        raise Refused(f"has the arrays {sorted(record)}, not {sorted(found)}")
    out: dict[str, Adapter | float] = {}
    for name, adapter in found.items():
        values = read_numbers(name, record[name], (n,) if adapter else (), dtype if adapter else "float64")
        out[name] = replace(like, flat=_scatter(torch.from_numpy(values), like, keep)) if adapter else float(values)
    return out


def read_numbers(name: str, array: Array, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    """Read the numbers of an array; raises `Refused` unless its bytes are those of a numpy array of this shape and type.

    Nothing in it is interpreted: the header has to be the one that numpy writes, the length is compared before any copy.
    """
    came = f"{array.stype} of {array.dtype} {tuple(array.shape)}"
    if (array.stype, array.dtype, tuple(array.shape)) != ("numpy.ndarray", dtype, shape):
        raise Refused(f"{name!r} is {came}, not numpy.ndarray of {dtype} {shape}")
    header = _make_header(shape, dtype)
    size = len(header) + math.prod(shape) * np.dtype(dtype).itemsize
    if len(array.data) != size:
        raise Refused(f"{name!r} has {len(array.data):,} bytes, not the {size:,} of {dtype} {shape}")
    if not array.data.startswith(header):
        raise Refused(f"{name!r} has another header than numpy writes for {dtype} {shape}")
    out = np.frombuffer(array.data, dtype, offset=len(header)).reshape(shape).copy()
    if bad := int((~np.isfinite(out)).sum()):
        raise Refused(f"{name!r} is not finite in {bad:,} of {out.size:,} numbers")
    return out


def _make_header(shape: tuple[int, ...], dtype: str) -> bytes:
    stream = io.BytesIO()
    about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, about)
    return stream.getvalue()


def _scatter(values: Tensor, like: Adapter, keep: Tensor | None) -> Tensor:
    flat = torch.zeros_like(like.flat)
    flat[slice(None) if keep is None else keep.to(flat.device)] = values.to(flat.device)
    return flat
