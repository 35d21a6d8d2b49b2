"""Clients that come and go, and whose connections change: a CSV file of round, client, available, bandwidth."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfault.errors import UserError
from fedfault.scheduling import Floats

COLUMNS = ("round", "client", "available", "bandwidth")


class Change(NamedTuple):
    """A row: from this round on."""

    round: int
    client: int
    available: bool
    bandwidth: float  # Mbps in both directions; NaN for the tier's own


@dataclass(frozen=True)
class Trace:
    """The changes of N clients over time. A row holds until the client's next one; before its first a client is as its tier.

    >>> trace = Trace(2, (Change(3, 1, available=False, bandwidth=np.nan),))
    >>> trace.available(2).tolist(), trace.available(4).tolist()
    ([True, True], [True, False])
    """

    num_clients: int
    changes: tuple[Change, ...] = ()  # in the order of rounds

    def available(self, round: int) -> NDArray[np.bool_]:
        """Tell which clients can train in a round, (N,)."""
        there = np.ones(self.num_clients, dtype=bool)
        for change in self._until(round):
            there[change.client] = change.available
        return there

    def bandwidth(self, round: int) -> Floats:
        """Mbps of each client in a round, (N,); NaN for that of its tier."""
        mbps = np.full(self.num_clients, np.nan)
        for change in self._until(round):
            mbps[change.client] = change.bandwidth
        return mbps

    def _until(self, round: int) -> list[Change]:
        return [change for change in self.changes if change.round <= round]


def read_trace(path: Path, num_clients: int) -> Trace:
    """A trace from a CSV file with a header; rounds count from 1, `available` is 0 or 1, `bandwidth` Mbps or empty.

        round,client,available,bandwidth
        1,0,1,5.5
        4,0,0,

    Raises `UserError` with file and line for whatever else it finds.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f)
            header = reader.fieldnames or ()
            rows = [(f"{path}:{reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no trace can be read from it ({error}); it must be a CSV file") from None
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; a trace has the columns {','.join(COLUMNS)}")
    changes: dict[tuple[int, int], Change] = {}
    for place, row in rows:
        change = _read_change(row, place, num_clients)
        if changes.setdefault((change.round, change.client), change) is not change:
            raise UserError(f"{place}: a second row for client {change.client} in round {change.round}; leave one")
    return Trace(num_clients, tuple(sorted(changes.values(), key=lambda change: change.round)))


def _read_change(row: dict[str, str | None], place: str, num_clients: int) -> Change:
    cells = {name: (row[name] or "").strip() for name in COLUMNS}
    for name in ("round", "client"):
        if not (cells[name].isascii() and cells[name].isdecimal()):
            raise UserError(f"{place}: {name} is {cells[name]!r}; it must be a whole number")
    round, client = int(cells["round"]), int(cells["client"])
    if round < 1 or client >= num_clients:
        raise UserError(
            f"{place}: round {round}, client {client}; rounds count from 1, and clients are 0 to {num_clients - 1}"
        )
    if cells["available"] not in ("0", "1"):
        raise UserError(f"{place}: available is {cells['available']!r}; it must be 0 or 1")
    return Change(round, client, cells["available"] == "1", _read_bandwidth(cells["bandwidth"], place))


def _read_bandwidth(text: str, place: str) -> float:
    """Read a bandwidth; an empty cell is NaN."""
    try:
        mbps = float(text) if text else np.nan
    except ValueError:
        mbps = 0.0
    if text and not 0 < mbps < np.inf:
        raise UserError(
            f"{place}: bandwidth is {text!r}; it must be megabits a second above 0, or empty for the tier's own"
        )
    return mbps
