"""The simulated clock in words and numbers: how long the run took, who was in time, what that cost which tier."""

from __future__ import annotations

from fedfault.measures.punctuality import (
    FATES,
    bytes_per_client_round,
    count_fates,
    has_work,
    is_in_time,
    measure_punctuality,
)
from fedfault.report import words
from fedfault.report.words import Table, Tile, format_bytes, format_count, format_number, format_seconds, format_share
from fedfault.runs.recorded import RunData


def describe_clock(run: RunData) -> list[str]:
    """Say in a few sentences how the simulated clock went; none where no clock was simulated."""
    if not (found := measure_punctuality(run.records)):
        return []
    rounds = sum(bool(r.turns) for r in run.records)
    said = [f"{format_count(rounds, 'round')} took {format_seconds(found['seconds'])} on the simulated clock."]
    busy = [r for r in run.records if has_work(r)]
    if busy and run.deadline is not None:
        lost = f", {format_count(found['dropped'], 'update')} dropped" if found["dropped"] else ""
        said.append(
            f"Deadline {run.deadline:g} s: {format_share(found['compliance'])} of the clients were done in time in the mean "
            f"round, all of them in {sum(map(is_in_time, busy))} of {format_count(len(busy), 'round')}{lost}."
        )
    if "regret" in found:
        said.append(
            f"Regret {format_number(found['regret'], '.2f')}: if all work were waited for, the mean round would be that "
            "many times as long as the shortest one with ranks of the same sum."
        )
    moved = bytes_per_client_round(run.records)
    each = ", ".join(f"{format_bytes(count)} {way}" for way, count in moved.items())
    return [*said, *([f"A client moves {each} in a round."] if each else [])]


def tabulate_tiers(run: RunData) -> Table | None:
    """Tabulate by tier how often clients were drawn, what became of them, and their mean rank; and of all tiers."""
    rows = measure_punctuality(run.records).get("by_tier", {})
    if not rows:
        return None
    if len(rows) > 1:
        rows = {**rows, "all": count_fates([t for r in run.records for t in r.turns])}
    met = [fate for fate in FATES if fate == "done" or any(row[fate] for row in rows.values())]
    columns = ("tier", "drawn", *(words.FATES[fate] for fate in met), "mean rank")
    counts = [[f"{row[name]:,}" for name in ("drawn", *met)] for row in rows.values()]
    means = [format_number(row.get("mean_rank"), ".1f") for row in rows.values()]
    return Table(columns, [[tier, *count, mean] for tier, count, mean in zip(rows, counts, means, strict=True)])


def make_tile(run: RunData) -> Tile | None:
    """Make the tile of the simulated time; with a deadline, it says which share of the clients was in time."""
    if not (found := measure_punctuality(run.records)):
        return None
    known = run.deadline is not None and "compliance" in found
    remark = (
        f"{format_share(found['compliance'])} of clients in time".replace(" %", "\u00a0%") if known else "all rounds"
    )
    return Tile("Simulated time", format_seconds(found["seconds"]), remark)
