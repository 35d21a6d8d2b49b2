"""Two runs that were scored on the same texts: differences unit by unit, and how sure their mean is."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fedfault.config.changes import find_changes, spell_value
from fedfault.runs.manifest import MONITORED
from fedfault.runs.recorded import RunData
from fedfault.stats import mean_interval

TOPIC_SETS = (  # what the texts that stand for a topic follow from
    "seed", "data.dataset.", "data.path", "data.text_columns", "data.columns", "data.topic_column", "data.group_column",
    "data.task_type",
    "model.name", "model.max_length", "model.chat_template", "training.loss_on", "evaluation.max_blocks",
)  # fmt: skip
CONTENT = {  # what has a fingerprint in the manifest -> what it is, and the settings that name it
    "corpus": ("corpus", ("data.",)),
    "model": ("model", ("model.",)),
    "chat_template": ("chat template", ("model.chat_template",)),
    "general": ("general text", ("evaluation.general",)),
    "trace": ("trace", ("clock.trace",)),
    "calibration": ("calibration", ("detectors.calibration",)),
}
CLIENT_SETS = (*TOPIC_SETS, "data.", "federation.total_clients")  # and what each client held back


@dataclass(frozen=True)
class Paired:
    """Losses of two runs on the same texts, unit by unit: clients by id, or topics."""

    # Unit -> (first run, other run), at the end
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    why_not: str = ""  # in place of numbers: why the runs are not paired
    apart: str = ""  # what shows that they are scored on other texts, `settings` or `lengths`; empty where nothing does
    interval: tuple[float, float] | None = None  # 95 % for `mean`; None for one unit, or where one is NaN

    @property
    def differences(self) -> dict[str, float]:
        """Loss of the other run minus the first one's, in nats per token: below zero, the other is better."""
        return {unit: b - a for unit, (a, b) in self.losses.items()}

    @property
    def mean(self) -> float:
        """Mean difference, every unit counted once; NaN where a loss is not finite."""
        return float(np.mean([*self.differences.values()])) if self.losses else math.nan


@dataclass(frozen=True)
class RunPair:
    """The first run of a comparison and one of the others."""

    first: RunData
    other: RunData
    clients: Paired
    topics: Paired


def explain_budgets(ranks: Mapping[str, float | None], schedulers: Collection[str]) -> list[str]:
    """Explain that rank schedulers are compared at unequal budgets; nothing where these are equal, to a twentieth.

    ranks: what is compared -> the mean LoRA rank that it trains with, None where that is not known; schedulers: their names.

    >>> explain_budgets({"a": 16.0, "b": 8.0}, ["fixed", "lite"])[0][:68]
    'Schedulers are compared at unequal budgets, mean rank 8 (b) to 16 (a'
    """
    known = sorted((rank, name) for name, rank in ranks.items() if rank is not None)
    if len(set(schedulers)) < 2 or not known or known[-1][0] <= 1.05 * known[0][0]:
        return []
    (least, one), (most, other) = known[0], known[-1]
    return [
        f"Schedulers are compared at unequal budgets, mean rank {least:.3g} ({one}) to {most:.3g} ({other}): differences in "
        "score, bytes and time may come from the budget; `fixed` with rank at the r_bar of the others has an equal one."
    ]


def pair_runs(first: RunData, other: RunData) -> RunPair:
    """Pair the scores of two runs on the clients and topics that both were scored on."""
    return RunPair(
        first,
        other,
        _pair_scores(first, other, "client/", CLIENT_SETS),
        _pair_scores(first, other, "topic/", TOPIC_SETS),
    )


def _pair_scores(a: RunData, b: RunData, prefix: str, same: tuple[str, ...]) -> Paired:
    if bool(a.manifest.get(MONITORED)) != bool(b.manifest.get(MONITORED)):
        return Paired(why_not="another program trained one of them, and nothing says on what it was scored")
    if why := _explain_apart(a, b, same):
        return Paired(why_not=why, apart="settings")
    names = [n for n in a.score_names(prefix) if n in set(b.score_names(prefix))]
    ends = a.end_losses(prefix), b.end_losses(prefix)
    losses = {n.removeprefix(prefix): (ends[0][n], ends[1][n]) for n in names}
    if not losses:
        return Paired(why_not="they were not scored in both runs")
    if wrong := [n for n in names if _count_tokens(a, n) != _count_tokens(b, n)]:
        return Paired(
            why_not=f"the texts of {wrong[0]} are {_count_tokens(a, wrong[0])} and {_count_tokens(b, wrong[0])} tokens long",
            apart="lengths",
        )
    return Paired(losses, interval=mean_interval([y - x for x, y in losses.values()]))


def _explain_apart(a: RunData, b: RunData, same: tuple[str, ...]) -> str:
    """Explain why two runs are scored on different texts; an empty text if they are not."""
    found = [
        f"{key} is {_format_value(old)} and {_format_value(new)}"
        for key, (old, new) in find_changes(a.config, b.config).items()
        if key.startswith(same)
    ]
    for what in ("corpus", "model"):
        old, new = (run.manifest.get(what, {}).get("fingerprint") for run in (a, b))
        if not found and old != new:
            found = [f"the {what} has changed (fingerprints {_format_value(old)} and {_format_value(new)})"]
    return ", ".join(found)


def find_changed_content(a: RunData, b: RunData) -> list[str]:
    """Which of corpus, model and further files is not the same in two runs though their settings name the same."""
    prints = [{what: run.manifest.get(what, {}).get("fingerprint") for what in CONTENT} for run in (a, b)]
    other = [what for what, one in prints[0].items() if None not in (one, prints[1][what]) and one != prints[1][what]]
    if not other:
        return []
    changed = [key for key in find_changes(a.config, b.config) if not key.startswith("data.partition")]
    named = [CONTENT[what] for what in other]
    return [name for name, settings in named if not any(key.startswith(settings) for key in changed)]


def _format_value(value: object) -> str:
    return "not set" if value is None else spell_value(value)


def _count_tokens(run: RunData, name: str) -> int:
    return next(r.scores[name].tokens for r in run.records if name in r.scores)


@dataclass(frozen=True)
class Comparison:
    """Two runs or more with the names that they have here; the first is paired with each of the others."""

    runs: tuple[RunData, ...]
    names: tuple[str, ...]

    @cached_property
    def pairs(self) -> list[RunPair]:
        """The first run and every other one, in order."""
        return [pair_runs(self.runs[0], other) for other in self.runs[1:]]


def compare_by_round(found: RunPair) -> list[tuple[int, list[float]]]:
    """Compare the clients in every round in which both runs scored them: rounds and differences; none if not paired."""
    names = [f"client/{k}" for k in found.clients.losses]
    first = {r.round: r.scores for r in found.first.records if names and names[0] in r.scores}
    return [
        (r.round, [r.scores[n].loss - first[r.round][n].loss for n in names])
        for r in found.other.records
        if r.round in first and all(n in r.scores and n in first[r.round] for n in names)
    ]
