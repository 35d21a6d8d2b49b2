"""Losses of a run from a csv file: a row a round, or a row for every round and client. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfault.errors import UserError, join_names, suggest
from fedfault.reading.files import list_numbered_rows

COLUMNS = {  # what may be there -> what it is
    "round": "its number; 0 is the model before training",
    "client": "whose held-out data; `server`: the mixture",
    "loss": "of the model that the server has after the round, nats per token or example",
    "general_loss": "the same on text that is not the federation's",
    "train_loss": "of the client's own training in the round",
    "examples": "by how much a client counts in the mean",
}
NEEDED = ("round", "loss")
SERVER = ("server", "global")  # names of the server in the place of a client's, also of its adapter
ABSENT = "-"  # a cell of an optional column where nothing was measured


@dataclass
class Losses:
    """What the file says of one round, by the names that `Monitor.log` has."""

    loss: float | None = None
    general_loss: float | None = None
    clients: dict[str, float] = field(default_factory=dict)
    train: dict[str, float] = field(default_factory=dict)
    examples: dict[str, float] = field(default_factory=dict)
    central: bool = False  # whether the run's losses of the mixture are those of the server's rows

    @property
    def mean(self) -> float | None:
        """The loss of the server's model: its own row, or where no round has one the mean over clients by their examples."""
        if self.central or not self.clients:
            return self.loss
        sizes = self.examples or dict.fromkeys(self.clients, 1.0)
        return sum(self.clients[k] * sizes[k] for k in sizes) / sum(sizes.values())


def read_losses(file: Path) -> dict[int, Losses]:
    """Read the losses by round, in order of rounds.

    A cell that is `nan` or `inf` is a loss that has diverged; one that is empty is an error, like text in the place of a
    number, a row that is there twice, and `examples` of some clients only where they make the mean. Raises `UserError`
    with the file and the line.
    """
    rows = list_numbered_rows(file)
    if not rows:
        raise UserError(
            f"{file} has no rows; the columns are {join_names(COLUMNS)}, and {join_names(NEEDED)} have to be there"
        )
    found: dict[int, Losses] = {}
    seen: dict[tuple[int, str], str] = {}
    _check_columns(file, rows)
    for place, row in rows:
        round = _read_round(place, row)
        client = _read_client(place, row)
        if (other := seen.setdefault((round, client), place)) != place:
            whose = f"client {client}" if client else "the server"
            raise UserError(f"{place}: round {round} of {whose} is there already, at {other}; leave one of the two out")
        _add(found.setdefault(round, Losses()), place, client, row)
    central = any(one.loss is not None for one in found.values())
    for one in found.values():
        one.central = central
    _check_examples(found, seen)
    return dict(sorted(found.items()))


def _check_columns(file: Path, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    first = rows[0][1]
    for name in NEEDED:
        if name not in first:
            raise UserError(
                f"{file} has no column {name!r}; it has {join_names(first)}, and the columns are {join_names(COLUMNS)}"
            )
    for place, row in rows:
        for name in row:
            if name not in COLUMNS:
                raise UserError(
                    f"{file if name in first else place}: no column {name!r} is known{suggest(name, COLUMNS)} "
                    f"(known: {', '.join(COLUMNS)})"
                )


def _read_client(place: str, row: Mapping[str, Any]) -> str:
    """The client of a row; empty for the server."""
    if "client" not in row:
        return ""
    value = "" if row["client"] is None else row["client"]
    name = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if not name:
        raise UserError(f"{place}: client is empty; write `server` for a loss of the mixture of all clients")
    return "" if name.lower() in SERVER else name


def _add(found: Losses, place: str, client: str, row: Mapping[str, Any]) -> None:
    loss = _read_cell(place, "loss", row)
    if not client:
        found.loss = loss
        _add_general(found, place, row)
        return
    if row.get("general_loss") is not None and str(row["general_loss"]).strip():  # may be empty: it is the server's
        _add_general(found, place, row)
    found.clients[client] = loss
    if (train := _read_optional(place, "train_loss", row)) is not None:
        found.train[client] = train
    if (examples := _read_optional(place, "examples", row)) is not None:
        if not (math.isfinite(examples) and examples > 0):
            raise UserError(f"{place}: examples is {row['examples']!r}, and should be a number above 0")
        found.examples[client] = examples


def _add_general(found: Losses, place: str, row: Mapping[str, Any]) -> None:
    """Take the loss on other text, which a table may repeat in all rows of a round: it is of the server's model."""
    value, known = _read_optional(place, "general_loss", row), found.general_loss
    if value is None:
        return
    if known is not None and value != known and not (math.isnan(value) and math.isnan(known)):
        raise UserError(
            f"{place}: general_loss is {value:g}, and {known:g} in another row of the round: it is of the one model "
            f"that the server has; write it once, in a row of client {SERVER[0]!r} or any other, and {ABSENT!r} elsewhere"
        )
    found.general_loss = value


def _check_examples(found: Mapping[int, Losses], places: Mapping[tuple[int, str], str]) -> None:
    """Raise `UserError` where clients whose mean is the loss of the mixture have examples and others have not."""
    means = [(t, k, k in one.examples) for t, one in found.items() if not one.central for k in one.clients]
    known, silent = ([places[t, k] for t, k, told in means if told == whether] for whether in (True, False))
    if known and silent:
        raise UserError(
            f"{silent[0]}: examples is not there, and it is at {known[0]}: by how much clients count in the mean has to be "
            "known of all of them in all rounds or of none; fill it in, or leave the column out"
        )


def _read_round(place: str, row: Mapping[str, Any]) -> int:
    number = _read_cell(place, "round", row)
    if not (math.isfinite(number) and number >= 0 and number == int(number)):
        raise UserError(f"{place}: round is {row['round']!r}; rounds are whole numbers from 0 on, 0 before training")
    return int(number)


def _read_cell(place: str, name: str, row: Mapping[str, Any]) -> float:
    value = row.get(name)
    if isinstance(value, bool):
        raise UserError(f"{place}: {name} is {str(value).lower()}, and should be a number")
    if value is None or not str(value).strip():
        raise UserError(
            f"{place}: {name} is empty; write `nan` for a number that has diverged (pandas: `to_csv(na_rep='nan')`)"
            + ("" if name in NEEDED else f", or {ABSENT!r} where nothing was measured")
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{place}: {name} is {str(value)[:40]!r}, which is no number") from None


def _read_optional(place: str, name: str, row: Mapping[str, Any]) -> float | None:
    absent = name not in row or str(row[name]).strip() == ABSENT
    return None if absent else _read_cell(place, name, row)
