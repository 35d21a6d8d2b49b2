"""What a comparison leaves behind for readers: a table in Markdown, the numbers as JSON, and the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfault.mitigation.comparison import CLUSTERS, TITLES, Arms
from fedfault.mitigation.figures import plot
from fedfault.records import finite
from fedfault.report.draw import png
from fedfault.report.theme import DARK, LIGHT, Theme
from fedfault.report.words import NOTHING, duration, number, size
from fedfault.runs.recorded import UNITS
from fedfault.storage import write_atomically

NO_NETWORK = ("local", "central")  # arms whose bytes would be those of an experiment, not of a method
BASIS = (
    "Held-out loss of every client under the model that it uses; means over the clients of a seed, then over the seeds. "
    "All ways to train have the same clients, texts, cohorts, batches and steps, in one place as many in all. "
    "Differences are paired by client and seed; below zero, clusters are better. The 95 % interval is a bootstrap over "
    "seeds and, within them, clients{lone}."
)


def write(root: Path, found: Mapping[str, Any], arms: Arms) -> Path:
    """comparison.json, comparison.md and plots/comparison.png, light and dark; returns the Markdown file."""
    unit = UNITS.get(found["task_type"], ("nats per token", "nats"))[0]
    write_atomically(root / "comparison.json", json.dumps(finite(dict(found)), indent=1, allow_nan=False) + "\n")
    (root / "plots").mkdir(exist_ok=True)
    for theme, ending in ((LIGHT, ""), (DARK, "-dark")):
        write_atomically(root / "plots" / f"comparison{ending}.png", _drawn(arms, unit, theme))
    write_atomically(root / "comparison.md", page(found, unit))
    return root / "comparison.md"


def _drawn(arms: Arms, unit: str, theme: Theme) -> bytes:
    figure = plot(arms, unit)(None, theme, False)
    assert figure is not None  # there is always a vanilla run to compare with
    return png(figure, 150)


def page(found: Mapping[str, Any], unit: str) -> str:
    """The comparison as Markdown."""
    seeds = list(found["clusters"])
    lone = "; with one seed it says nothing of other seeds" if len(seeds) == 1 else ""
    shrunk = f", shrunk to their mean by {found['shrinkage']:g}" if found["shrinkage"] else ""
    vanilla = f"“{TITLES['vanilla']}” is {found['algorithm']}; models of clusters are averaged by FedAvg{shrunk}"
    lines = [
        f"# {found['name']}: clusters of clients",
        "",
        f"    {found['command']}",
        "",
        f"Commit {found['commit'] or 'unknown'}, encoder {found['encoder']}, {vanilla}.",
        "",
        *_table(("seed", "clusters", "agreement with topics"), [_split(s, found["clusters"][s]) for s in seeds]),
        "",
        *_table(
            (f"trained as ({unit})", "loss", "worst client", "smallest gain", "clusters minus this", "95 % interval",
             "clients better off", "steps", "bytes", "time"),
            [_arm(name, found) for name in TITLES],
        ),
        "",
        BASIS.format(lone=lone),
        "",
        "![Differences of every client](plots/comparison.png)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _split(seed: int, clusters: Mapping[str, Any]) -> Sequence[str]:
    return [str(seed), clusters["sentence"], number(clusters["agreement"], ".2f")]


def _arm(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    own, versus = found["arms"][name], found["differences"].get(name)
    beside = [NOTHING] * 3 if name == CLUSTERS else _versus(versus)
    cost = [f"{own['steps']:,.0f}", NOTHING if name in NO_NETWORK else size(own["bytes"]), duration(own["seconds"])]
    return [TITLES[name], *(number(own[k]) for k in ("loss", "worst_client", "smallest_gain")), *beside, *cost]


def _versus(d: Mapping[str, Any]) -> Sequence[str]:
    between = NOTHING if d["interval"] is None else " to ".join(number(v, "+.3f") for v in d["interval"])
    return [number(d["mean"], "+.3f"), between, f"{d['better']} of {d['clients']}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
