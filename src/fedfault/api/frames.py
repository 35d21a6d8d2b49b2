"""A recorded run as tables of pandas: a row a round, a client and round, or a finding. docs/python.md has the units."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fedfault.errors import UserError
from fedfault.records import RoundRecord
from fedfault.runs import clients
from fedfault.runs.manifest import MONITORED, OVER
from fedfault.runs.recorded import RunData

# Columns of a finding, beside advice
FINDING = ("round", "detector", "level", "sentence", "statistic", "threshold", "controls")


def tabulate_rounds(run: RunData) -> pd.DataFrame:
    """A row for every recorded round, by its number: losses of all evaluation sets, metrics of labels, cost, probes.

    Raises `UserError` for a run without records.
    """
    rows = []
    for r in _check_recorded(run):
        losses = {"loss" if name == "validation" else f"loss/{name}": s.loss for name, s in r.scores.items()}
        metrics = dict(r.scores["validation"].metrics) if "validation" in r.scores else {}
        cost = {
            "tokens": r.tokens,
            "bytes_up": r.bytes_up,
            "bytes_down": r.bytes_down,
            "seconds": sum(r.seconds.values()),
        }
        rows.append({"round": r.round, **losses, **metrics, **cost, **r.probes})
    return pd.DataFrame(rows).set_index("round")


def tabulate_clients(run: RunData) -> pd.DataFrame:
    """A row for every client that took part in a round, as in clients.parquet. Raises `UserError` without records."""
    _check_recorded(run)
    rows = clients.tabulate_clients(run)
    return pd.DataFrame(rows, columns=None if rows else ["round", "client"]).set_index(["round", "client"])


def tabulate_findings(run: RunData) -> pd.DataFrame:
    """A row for every finding in the order of the rounds; without rows where no detector found anything."""
    rows = [{**{name: getattr(f, name) for name in FINDING}, "advice": "; ".join(f.advice)} for f in run.findings]
    return pd.DataFrame(rows, columns=[*FINDING, "advice"])


def _check_recorded(run: RunData) -> tuple[RoundRecord, ...]:
    if not run.records and run.manifest.get(MONITORED):
        raise UserError(
            f"{run.folder} has no rounds yet: the program that trains has logged none; `Monitor.log` adds one"
        )
    if not run.records and run.notes:
        raise UserError(f"{run.folder} has no rounds: {' '.join(run.notes)}")
    if not run.records:
        again = f"ff.resume({str(run.folder)!r}) goes on"
        raise UserError(f"{run.folder} has no rounds yet: it was stopped before the first one; {again}")
    return run.records


def describe_stop(folder: Path, run: RunData, what: str) -> UserError:
    """The error for what only a finished run has, or for what another program's run never has."""
    if run.manifest.get(MONITORED):
        return UserError(f"{folder} has no {what}: {_explain_monitored(run, what)}")
    if run.status == "finished":
        return UserError(f"{folder} has no {what} any more; ff.resume({str(folder)!r}) writes it again")
    of = "" if run.rounds_planned is None else f" of {run.rounds_planned}"
    return UserError(
        f"{folder} has no {what} yet: {run.rounds_done}{of} rounds are recorded; ff.resume({str(folder)!r}) finishes the run"
    )


def _explain_monitored(run: RunData, what: str) -> str:
    """Why a run that another program trains does not have something."""
    if what == "adapter":
        return "another program trained it, and fedfault was told its numbers only; load the adapter that it has saved"
    if run.status in OVER:
        return "no loss was logged; `verdict`, `findings` and `rounds` have what was measured"
    return f"another program trains it, rounds logged so far: {len(run.records)}; `Monitor.finish` ends it"
