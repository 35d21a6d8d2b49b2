"""Tensors of safetensors files as numpy arrays, read when they are asked for. Needs no torch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfault.errors import UserError

KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
         "U8": "<u1"}  # fmt: skip
LONGEST = 100_000_000  # bytes of a header, the limit of the format
LARGEST = float(np.finfo(np.float32).max)  # of numbers whose inner products, of four at a time, a float64 holds


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: where it lies and what it is."""

    file: Path
    name: str
    kind: str  # of KINDS
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def size(self) -> int:
        """Count its numbers."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The byte in the file behind it."""
        return self.start + self.size * np.dtype(KINDS[self.kind]).itemsize

    def read_bytes(self) -> bytes:
        """Read it as it lies in the file."""
        with self.file.open("rb") as f:
            f.seek(self.start)
            return f.read(self.end - self.start)

    def read(self) -> np.ndarray:
        """Read it as float64 of its shape."""
        return self._load().astype(np.float64).reshape(self.shape)

    def is_finite(self) -> bool:
        """Whether all its numbers are finite, and none is beyond what 32 bits hold."""
        raw = self._load()
        return bool(np.isfinite(raw).all()) and (self.kind != "F64" or bool((np.abs(raw) <= LARGEST).all()))

    def _load(self) -> np.ndarray:
        raw: np.ndarray = np.frombuffer(self.read_bytes(), dtype=KINDS[self.kind])
        return (raw.astype(np.uint32) << 16).view(np.float32) if self.kind == "BF16" else raw  # half of a float32


def list_tensors(file: Path) -> dict[str, Stored]:
    """List the tensors of a safetensors file by name. Raises `UserError` for a file that is damaged or is none."""
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST):
                raise ValueError("its header does not fit into it")
            head = json.loads(f.read(length))
        found = {name: _read_entry(file, name, one, 8 + length) for name, one in head.items() if name != "__metadata__"}
        _check_places(list(found.values()), size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged or no safetensors file: {error}; copy it again from where it came"
        ) from error
    if not found:
        raise UserError(f"{file} holds no tensors; was the adapter saved before it had any?")
    return found


def _read_entry(file: Path, name: str, about: dict[str, Any], behind: int) -> Stored:
    kind, shape, (start, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
    if kind not in KINDS:
        raise ValueError(f"{name} is of type {kind}, and known are {', '.join(KINDS)}")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ValueError(
            f"{name} has the shape {shape} and lies at {start} to {end}; these are whole numbers from 0 on"
        )
    found = Stored(file, name, kind, shape, behind + start)
    if found.end != behind + end:
        raise ValueError(f"{name} has {end - start} bytes, which is not a {kind} of the shape {shape}")
    return found


def _check_places(found: Sequence[Stored], size: int) -> None:
    """Raise `ValueError` for tensors that lie behind the end of the file or on the bytes of another one."""
    ordered = sorted(found, key=lambda tensor: (tensor.start, tensor.end))
    if ordered and ordered[-1].end > size:
        raise ValueError(f"it ends after {size} of {ordered[-1].end} bytes")
    for one, two in itertools.pairwise(ordered):
        if two.start < one.end:
            raise ValueError(f"{two.name} begins at byte {two.start}, and {one.name} before it ends at {one.end}")
