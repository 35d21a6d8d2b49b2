"""Clients that come and go, and whose connections change: a file of rounds, or days and nights of simulated time."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfault.errors import UserError
from fedfault.scheduling import Floats
from fedfault.seeds import rng

COLUMNS = ("round", "client", "available", "bandwidth")
MOST_DIGITS = 15  # of a round or a client


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

    def available(self, round: int, now: float = 0.0) -> NDArray[np.bool_]:
        """Tell which clients can train in a round, (N,), whatever the time."""
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


@dataclass(frozen=True)
class Diurnal:
    """Made-up days: a run begins at midnight, when most clients are there, and each is there once in a day.

    As phones that are idle, charged and on a free network mostly at night (Bonawitz et al., MLSys 2019, arXiv 1902.01046,
    section 9): each client's hours last 0.25 to 0.6 of a day, and their middle lies around midnight with a standard
    deviation of 0.1.

    >>> nights = Diurnal(1000, day=24.0, seed=0)
    >>> [round(float(nights.available(1, now).mean()), 1) for now in (0.0, 6.0, 12.0, 18.0)]
    [0.9, 0.4, 0.0, 0.4]
    """

    num_clients: int
    day: float  # seconds
    seed: int

    @cached_property
    def _hours(self) -> tuple[Floats, Floats]:
        """Where each client's hours begin, in days, and how long they are, (N,) each."""
        g = rng(self.seed, "diurnal")
        length = g.uniform(0.25, 0.6, size=self.num_clients)
        return g.normal(0.0, 0.1, size=self.num_clients) - length / 2, length

    def available(self, round: int, now: float) -> NDArray[np.bool_]:
        """Tell which clients are there `now`, (N,), whatever the round."""
        start, length = self._hours
        there: NDArray[np.bool_] = (now / self.day - start) % 1.0 < length
        return there

    def bandwidth(self, round: int) -> Floats:
        """NaN for every client, (N,): the bandwidth of its tier."""
        return np.full(self.num_clients, np.nan)

    def wait(self, now: float, able: NDArray[np.bool_]) -> float:
        """The first moment from `now` on at which one of the clients `able`, (N,), is there; `now` if there are none."""
        if not able.any() or (able & self.available(0, now)).any():
            return now
        until = (self._hours[0] - now / self.day) % 1.0  # days
        return now + (float(until[able].min()) + 1e-9) * self.day


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
    if twice := [name for name in COLUMNS if header.count(name) > 1]:
        raise UserError(
            f"{path}: {header.count(twice[0])} columns are called {twice[0]!r}; rename or remove all but one"
        )
    changes: dict[tuple[int, int], Change] = {}
    for place, row in rows:
        if None in row:
            raise UserError(
                f"{place}: more cells than the {len(header)} of the header; decimals are written with a point, as in 2.5"
            )
        change = _read_change(row, place, num_clients)
        if None in row.values():
            raise UserError(
                f"{place}: fewer cells than the {len(header)} of the header; an empty one has its comma too, as in 4,0,0,"
            )
        if changes.setdefault((change.round, change.client), change) is not change:
            raise UserError(f"{place}: a second row for client {change.client} in round {change.round}; leave one")
    return Trace(num_clients, tuple(sorted(changes.values(), key=lambda change: change.round)))


def _read_change(row: dict[str, str | None], place: str, num_clients: int) -> Change:
    cells = {name: (row[name] or "").strip() for name in COLUMNS}
    for name in ("round", "client"):
        if not (cells[name].isascii() and cells[name].isdecimal() and len(cells[name]) <= MOST_DIGITS):
            raise UserError(f"{place}: {name} is {cells[name]!r:.60}; it must be a whole number below 10^{MOST_DIGITS}")
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
