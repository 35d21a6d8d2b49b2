"""What each client did to the model: the table and the sums behind its figure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from fedfault.report.words import NOTHING, Table, format_number
from fedfault.runs.recorded import RunData

MIXTURE, GENERAL = "validation", "general"


class Contribution(NamedTuple):
    """What one client did to one score in all measured rounds that it took part in."""

    rounds: int
    left_out: float  # sum over its rounds of how much larger the loss would be without its update
    shapley: float | None  # sum over its rounds
    error: float | None  # standard error of that: rounds are estimated one by one


def sum_contributions(run: RunData, score: str) -> Mapping[int, Contribution]:
    """Sum up over rounds what each client did to a score, by client; empty where nothing was measured."""
    rows = defaultdict(list)
    for row in run.contributions:
        if row["score"] == score:
            rows[row["client"]].append(row)
    found = {}
    for client, own in sorted(rows.items()):
        valued = [row for row in own if "shapley" in row]
        whole = bool(valued) and len(valued) == len(own)
        sure = whole and all("error" in row for row in valued)
        found[client] = Contribution(
            len(own),
            sum(row["left_out"] for row in own),
            sum(row["shapley"] for row in valued) if whole else None,
            math.sqrt(sum(row["error"] ** 2 for row in valued)) if sure else None,
        )
    return found


def tabulate_contributions(run: RunData) -> Table | None:
    """Tabulate what each client's updates did to the loss of the mixture, to general English and to what it held back."""
    mixture, general = sum_contributions(run, MIXTURE), sum_contributions(run, GENERAL)
    if not mixture:
        return None
    rows = [
        [
            run.label_client(client),
            str(own.rounds),
            format_number(own.left_out, "+.4f"),
            _format_shapley(own),
            format_number(general[client].left_out if client in general else None, "+.4f"),
            format_number(_find_own(run, client), "+.4f"),
        ]
        for client, own in mixture.items()
    ]
    columns = ["client", "rounds", "lowered the loss", "Shapley value", "general English", "its own held-out texts"]
    kept = [i for i in range(len(columns)) if i < 3 or any(row[i] != NOTHING for row in rows)]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _find_own(run: RunData, client: int) -> float | None:
    own = sum_contributions(run, f"client/{client}").get(client)
    return None if own is None else own.left_out


def _format_shapley(own: Contribution) -> str:
    error = f" ± {format_number(own.error, '.4f')}" if own.error else ""
    return format_number(own.shapley, "+.4f") + error
