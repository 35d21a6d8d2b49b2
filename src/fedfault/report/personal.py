"""Who gains and who loses by a model of its own: the sentences and the table beside their figure."""

from __future__ import annotations

from fedfault.measures.personal import MODELS, NAMES, average_models, collect_losses, pair_models
from fedfault.report.words import Table, format_count, format_interval, format_number
from fedfault.runs.recorded import RunData


def describe_personal(run: RunData) -> list[str]:
    """Say which models clients have, their mean losses, and of how many clients nothing can be said."""
    losses = collect_losses(run.personal)
    if not losses:
        return []
    averages = average_models([row for row in run.personal if row["loss"] is not None])
    each = ", ".join(f"{format_number(averages[name]['loss'])} with {NAMES[name]}" for name in MODELS if name in losses)
    said = [f"Mean loss on what the clients held back, in {run.unit}: {each}."]
    if silent := run.num_clients - len({k for own in losses.values() for k in own}):
        said.append(f"{format_count(silent, 'client')} held nothing back, or lost more than can be counted.")
    return said


def tabulate_personal(run: RunData) -> Table | None:
    """Tabulate every pair of a client's models: the mean difference of their losses, and who is better and worse off."""
    rows = [
        [
            f"{NAMES[p.model]} against {NAMES[p.than]}",
            format_number(p.mean, "+.3f"),
            format_interval(p.interval, "+.3f"),
            f"{p.better} of {len(p.differences)}",
            f"{p.worse} of {len(p.differences)}",
        ]
        for p in pair_models(run.personal)
    ]
    return (
        Table(("on the client's own texts", "mean difference", "95 % interval", "better off", "worse off"), rows)
        if rows
        else None
    )
