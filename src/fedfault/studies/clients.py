"""A study's clients one by one: how they end in every cell, and who is better off in one arm than in another.

It is told where a hypothesis is about `client_loss`. Two arms are paired by client and seed, where both runs score the very
same texts of every client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedfault.compare.pairs import pair_runs
from fedfault.report.words import NOTHING, Table, format_bytes, format_interval, format_number, format_seconds
from fedfault.runs.recorded import RunData
from fedfault.stats import mean_interval
from fedfault.studies.answers import SeedDifferences
from fedfault.studies.outcomes import CLIENTS, measure_outcome
from fedfault.studies.results import Results, format_mean, name_contrast
from fedfault.studies.study import Contrast


@dataclass(frozen=True)
class ClientDifferences:
    """One arm minus another, for every client of every seed: below zero, the client is better off in the first."""

    contrast: Contrast
    by_seed: Mapping[int, Mapping[str, float]]  # seed -> client -> difference of its held-out loss at the end

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval for `mean`, over the seeds, since clients of one share a split; over the clients of a lone seed."""
        return mean_interval(self.each if len(self.by_seed) == 1 else self._means)

    @property
    def each(self) -> list[float]:
        """All differences."""
        return [d for own in self.by_seed.values() for d in own.values()]

    @property
    def mean(self) -> float:
        """Mean over the clients of a seed, then over the seeds."""
        return sum(self._means) / len(self._means)

    @property
    def _means(self) -> list[float]:
        return [sum(own.values()) / len(own) for own in self.by_seed.values()]


def compare_clients(r: Results) -> list[ClientDifferences]:
    """Every contrast of two arms that a hypothesis about the clients' loss draws, each once."""
    drawn = [f for a in r.answers if a.hypothesis.metric == CLIENTS for f in a.found]
    once = {f.contrast: f for f in drawn if f.contrast.b is not None and f.contrast.c is None}
    found = [ClientDifferences(c, _pair_clients(r, f)) for c, f in once.items()]
    return [d for d in found if d.by_seed]


def _pair_clients(r: Results, f: SeedDifferences) -> dict[int, dict[str, float]]:
    c, found = f.contrast, {}
    assert c.b is not None
    for i, seed in enumerate(r.study.seeds):
        if seed in f.differences:
            a, b = (r.runs[r.study.cells[cell].runs[i]] for cell in (c.a, c.b))
            if own := pair_runs(b, a).clients.differences:
                found[seed] = own
    return found


def tabulate_clients(r: Results) -> Table | None:
    """A cell a row: how its clients end and what that took, means over seeds; None where no hypothesis is about clients."""
    if not any(a.hypothesis.metric == CLIENTS for a in r.answers):
        return None
    rows = [
        [
            cell.name,
            format_mean(r.values(cell, CLIENTS)),
            _format_mean([v for run in runs if (v := _find_worst(run)) is not None]),
            _format_mean([v for run in runs if (v := _find_least_gain(run)) is not None]),
            *_format_costs(runs),
        ]
        for cell in r.study.cells
        if (runs := r.of(cell))
    ]
    return Table(("cell", "clients' loss", "worst client", "smallest gain", "steps", "bytes", "time"), rows)


def _find_worst(run: RunData) -> float | None:
    """The largest loss of a client under the model that it uses in the end."""
    losses = run.end_losses("client/").values()
    return None if not losses else max(losses) if all(map(math.isfinite, losses)) else math.inf


def _find_least_gain(run: RunData) -> float | None:
    """What the client has gained that gained least: its loss before training minus that under the model that it uses."""
    before, after = run.records[0].scores if run.records else {}, run.end_losses("client/")
    gains = [before[name].loss - loss for name, loss in after.items() if name in before]
    return None if not gains else min(gains) if all(map(math.isfinite, gains)) else -math.inf


def _format_costs(runs: Sequence[RunData]) -> list[str]:
    """Optimiser steps of all clients, bytes up and down, seconds of the rounds: means over the runs of a cell."""
    steps = sum(c.steps for run in runs for record in run.records for c in record.clients)
    moved = sum(record.bytes_up + record.bytes_down for run in runs for record in run.records)
    spent = sum(measure_outcome(run, "seconds") or 0.0 for run in runs)
    traffic = NOTHING if all(run.centralised for run in runs) else format_bytes(moved / len(runs))
    return [f"{steps / len(runs):,.0f}", traffic, format_seconds(spent / len(runs))]


def _format_mean(values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return format_mean(values)
    return format_number(sum(values) / len(values)) if values else NOTHING


def tabulate_differences(r: Results, found: Sequence[ClientDifferences]) -> Table | None:
    """A contrast a row: the mean difference, its interval, and how many clients of all seeds are better and worse off."""
    rows = [
        [
            name_contrast(r.study, d.contrast),
            format_number(d.mean, "+.3f"),
            format_interval(d.interval, "+.3f"),
            f"{sum(x < 0 for x in d.each)} of {len(d.each)}",
            f"{sum(x > 0 for x in d.each)} of {len(d.each)}",
        ]
        for d in found
    ]
    return Table(("contrast", "mean difference", "95 % interval", "better off", "worse off"), rows) if rows else None


def tabulate_clusters(r: Results) -> Table | None:
    """The clusters that runs found in their clients' texts, and how these agree with the clients' main topics."""
    rows = [
        [cell.name, str(seed), str(about.get("sentence")), format_number(about.get("agreement"), ".2f")]
        for cell in r.study.cells
        for seed, name in zip(r.study.seeds, cell.runs, strict=True)
        if name in r.runs and (about := r.runs[name].clusters)
    ]
    return Table(("cell", "seed", "clusters", "agreement with topics"), rows, text=(2,)) if rows else None


def format_clients(r: Results) -> list[str]:
    """The same as text, a line a contrast."""
    table = tabulate_differences(r, compare_clients(r))
    return [
        f"clients       {name}: {mean} ({around}), {better} better off" if around != NOTHING
        else f"clients       {name}: {mean}, {better} better off"
        for name, mean, around, better, _ in (table.rows if table else ())
    ]  # fmt: skip
