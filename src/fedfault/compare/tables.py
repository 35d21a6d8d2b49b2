"""The tables of a comparison: what the runs are and how they end, and the statistics of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.compare.pairs import Comparison, Paired
from fedfault.config.changes import NO_CAUSE, find_changes, spell_value
from fedfault.config.sections.data import METRICS
from fedfault.measures.fairness import measure_fairness
from fedfault.measures.punctuality import measure_punctuality
from fedfault.report.summary import measure_forgetting
from fedfault.report.verdict import format_state
from fedfault.report.words import (
    NOTHING,
    Table,
    format_bytes,
    format_interval,
    format_number,
    format_perplexity,
    format_seconds,
)
from fedfault.runs.outcome import find_best_round
from fedfault.runs.recorded import RunData

RESULTS = (
    "best round",
    "general English",
    "worst client",
    "gain p10",
    "gain p50",
    "gain p90",
    "bytes",
    "time",
)
CLOCK = ("simulated time", "in time")  # where any of the runs has simulated hardware


def find_differing(runs: Sequence[RunData]) -> list[str]:
    """Find the settings in which the runs are not all alike, by dotted key."""
    first = runs[0].config
    found = [key for run in runs[1:] for key in find_changes(first, run.config)]
    return [key for key in dict.fromkeys(found) if not key.startswith(NO_CAUSE)]


def tabulate_runs(c: Comparison) -> Table:
    """Tabulate the runs, one a row: the settings that differ, then how it ended."""
    keys = find_differing(c.runs)
    ranks = {run.mean_rank for run in c.runs}
    clocks = [measure_punctuality(run.records) for run in c.runs]
    scores = list(dict.fromkeys(map(choose_score, c.runs)))
    rows = [
        [
            name,
            *(format_setting(run, key) for key in keys),
            *_format_results(run, scores),
            *([format_number(run.mean_rank, ".3g")] if len(ranks) > 1 else ()),
            *(_format_clock(clock) if any(clocks) else ()),
            format_verdict(run),
        ]
        for name, run, clock in zip(c.names, c.runs, clocks, strict=True)
    ]
    results = (
        "final loss",
        *scores,
        *RESULTS,
        *(("mean rank",) if len(ranks) > 1 else ()),
        *(CLOCK if any(clocks) else ()),
        "verdict",
    )
    return Table(("run", *keys, *results), rows, text=(*range(1, len(keys) + 1), len(keys) + len(results)))


def choose_score(run: RunData) -> str:
    """Choose the score to show beside the loss: the first metric of labels, or the perplexity of what has none."""
    if not run.labelled:
        return "perplexity"
    return next(iter(run.metrics_measured or METRICS[str(run.setting("data", "task_type"))]))


def transpose(table: Table) -> Table:
    """Turn the rows of a table into columns."""
    columns, *rows = zip(table.columns, *table.rows, strict=True)
    return Table(columns, rows)


def format_setting(run: RunData, key: str) -> str:
    """Write a setting of a run by its dotted key; a dash where it is not set."""
    value = run.setting(*key.split("."))
    return NOTHING if value is None else spell_value(value)


def _format_results(run: RunData, scores: Sequence[str]) -> list[str]:
    _, losses = run.losses("validation")
    gains = run.gains()
    spread = measure_fairness([*gains[-1][1].values()], gains=True) if gains else {}
    moved = sum(r.bytes_up + r.bytes_down for r in run.records)
    return [
        format_number(losses[-1] if losses else None),
        *(_format_last_score(run, score) for score in scores),
        format_number(find_best_round(run.records), "d"),
        format_number(measure_forgetting(run), "+.3f"),
        _format_worst(run),
        *(format_number(spread.get(p), "+.2f") for p in ("p10", "p50", "p90")),
        NOTHING if run.centralised or not run.records else format_bytes(moved),
        format_seconds(sum(sum(r.seconds.values()) for r in run.records)) if run.records else NOTHING,
    ]


def _format_clock(found: Mapping[str, Any]) -> list[str]:
    """Write the simulated seconds, and the mean share of clients that were done by the deadline."""
    share = found.get("compliance")
    return [
        format_seconds(found["seconds"]) if found else NOTHING,
        NOTHING if share is None else f"{100 * share:.1f} %",
    ]


def _format_last_score(run: RunData, score: str) -> str:
    """Write perplexity or a metric of the final model; a dash where the run's task has no such score."""
    if score == "perplexity" and not run.labelled:
        return format_perplexity(next(reversed(run.losses("validation")[1]), None))
    return format_number(next(reversed(run.metric("validation", score)[1]), None))


def _format_worst(run: RunData) -> str:
    last = {n.removeprefix("client/"): run.losses(n)[1][-1] for n in run.score_names("client/")}
    if not last:
        return NOTHING
    if broken := [k for k, loss in last.items() if not math.isfinite(loss)]:
        return f"{len(broken)} not finite"
    worst = max(last, key=last.__getitem__)
    return f"{format_number(last[worst])} ({run.label_client(int(worst))})"


def format_verdict(run: RunData) -> str:
    """Write the state of a run and since when; a dash without a verdict."""
    said = run.metrics.get("verdict")
    return format_state(said) if said else NOTHING


def tabulate_pairs(c: Comparison) -> Table | None:
    """Tabulate the differences of the final losses of every pair, by clients and topics; None where no runs are paired."""
    rows = []
    for found, name in zip(c.pairs, c.names[1:], strict=True):
        for what, paired in (("clients", found.clients), ("topics", found.topics)):
            if paired.losses:
                rows.append([f"{name} − {c.names[0]}", what, *_format_pair(paired)])
    columns = (f"final loss, {c.runs[0].unit}", "over", "mean difference", "95 % interval", "lower for", "largest drop")
    return Table((*columns, "largest rise"), rows, text=(1,)) if rows else None


def _format_pair(paired: Paired) -> list[str]:
    each = paired.differences
    broken = [unit for unit, value in each.items() if not math.isfinite(value)]
    if broken:
        return [f"not finite for {len(broken)} of {len(each)}", *[NOTHING] * 4]
    low, high = min(each, key=each.__getitem__), max(each, key=each.__getitem__)
    return [
        format_number(paired.mean, "+.3f"),
        format_interval(paired.interval, "+.3f"),
        f"{sum(v < 0 for v in each.values())} of {len(each)}",
        f"{format_number(each[low], '+.3f')} ({low})" if each[low] < 0 else NOTHING,
        f"{format_number(each[high], '+.3f')} ({high})" if each[high] > 0 else NOTHING,
    ]
