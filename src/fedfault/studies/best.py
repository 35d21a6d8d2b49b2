"""What to use when: which choice on one axis is the best in every situation that the other axes make.

    best:
      algorithms:
        axis: algorithm                  # its values are compared with one another
        metric: final.validation.loss    # optional
        prefer: lower                    # lower (the default) or higher
        by: 0.01                         # a difference that is smaller does not matter
        where: {participation_rate: 0.3} # optional

In every situation all values of the axis are compared in pairs, seed by seed, and the intervals of all of these differences
hold together at a rate of 95 % (Bonferroni). So it does not matter that the best one was found from the same runs: these are
multiple comparisons with the best (Hsu, 1984) by way of all pairs. Situations are not corrected for one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedfault.report.words import NOTHING, Table, format_interval, format_number
from fedfault.stats import ALPHA, mean_interval, subtract
from fedfault.studies.answers import GRAIN, pick_test
from fedfault.studies.results import COLUMNS, Results
from fedfault.studies.study import Best, Cell, describe_choice


@dataclass(frozen=True)
class Rival:
    """How a value of the axis compares with the best one in a situation."""

    label: str
    worse: tuple[float, ...]  # by how much, seed by seed; above 0 is worse than the best
    interval: tuple[float, float] | None
    diverged: int = 0  # runs of it whose metric is not finite

    def compare(self, by: float) -> str:
        """`worse`, `as good` (within `by`) or `open`."""
        if self.diverged:
            return "worse"
        if self.interval is None:
            return "open"
        low, high = self.interval
        return "worse" if low > by else "as good" if high < by else "open"


@dataclass(frozen=True)
class Situation:
    """One choice on every axis but the compared one, with the best value there."""

    choices: tuple[tuple[str, str], ...]  # axis, label
    best: str
    mean: float
    rivals: tuple[Rival, ...]  # all others, in the order of the axis

    @property
    def name(self) -> str:
        """The choices in words."""
        return ", ".join(describe_choice(axis, label) for axis, label in self.choices) or "all runs"


def find_best(r: Results, b: Best) -> list[Situation]:
    """Every situation in which two values of the axis at least have finished runs."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, Cell]] = {}
    for cell in r.study.cells:
        if b.axis in cell.choices and b.where.items() <= cell.choices.items():
            rest = tuple((axis, label) for axis, label in cell.choices.items() if axis != b.axis)
            groups.setdefault(rest, {})[cell.choices[b.axis]] = cell
    found = [_compare_situation(r, b, choices, cells) for choices, cells in groups.items()]
    return [one for one in found if one is not None]


def _compare_situation(
    r: Results, b: Best, choices: tuple[tuple[str, str], ...], cells: dict[str, Cell]
) -> Situation | None:
    sign = 1.0 if b.prefer == "lower" else -1.0
    by_seed = {label: values for label, cell in cells.items() if (values := r.by_seed(cell, b.metric))}
    finite = {label: v for label, v in by_seed.items() if all(map(math.isfinite, v.values()))}
    if len(by_seed) < 2 or not finite:
        return None
    means = {label: float(np.mean([*values.values()])) for label, values in finite.items()}
    best = min(means, key=lambda label: sign * means[label])
    pairs = len(by_seed) * (len(by_seed) - 1) // 2
    test = pick_test(r.study, b.metric, pairs)
    rivals = []
    for label, values in by_seed.items():
        if label == best:
            continue
        if diverged := sum(not math.isfinite(v) for v in values.values()):
            rivals.append(Rival(label, (), None, diverged))
            continue
        worse = [sign * subtract(v, finite[best][seed]) for seed, v in values.items() if seed in finite[best]]
        rivals.append(Rival(label, tuple(worse), mean_interval(worse, ALPHA / pairs, test, grain=GRAIN * b.by)))
    return Situation(choices, best, means[best], tuple(rivals))


def tabulate_best(r: Results, b: Best) -> Table | None:
    """A situation a row: the best value, and which others are shown to be as good, shown to be worse, or left open."""
    situations = find_best(r, b)
    if not situations:
        return None
    first = r.study.axes[b.axis][0]
    columns = (
        "situation",
        "best",
        COLUMNS.get(b.metric, b.metric),
        f"ahead of {first} by",
        "as good",
        "worse",
        "open",
    )
    rows = [
        [
            s.name,
            s.best,
            format_number(s.mean),
            _format_against(s, first),
            *(_list_rivals(s, b.by, verdict) for verdict in ("as good", "worse", "open")),
        ]
        for s in situations
    ]
    return Table(columns, rows, text=(1, 4, 5, 6))


def _format_against(s: Situation, first: str) -> str:
    own = next((rival for rival in s.rivals if rival.label == first), None)
    if own is None:
        return NOTHING
    if not own.worse:
        return f"diverged in {own.diverged}"
    mean = format_number(float(np.mean(own.worse)), ".3f")
    return mean if own.interval is None else f"{mean} ({format_interval(own.interval, '.3f')})"


def _list_rivals(s: Situation, by: float, verdict: str) -> str:
    listed: Sequence[Rival] = [rival for rival in s.rivals if rival.compare(by) == verdict]
    some = [f"{rival.label} (diverged)" if rival.diverged else rival.label for rival in listed]
    return "; ".join(some) or NOTHING


def explain_best(b: Best) -> str:
    """How a table of the best is read, in words."""
    held = ", ".join(describe_choice(axis, label) for axis, label in b.where.items())
    return (
        f"Every {b.axis} against the best one in the same situation{f' ({held})' if held else ''}: mean differences of "
        f"{b.metric}, paired by seed. Within a row the intervals of all pairs hold together at a rate of 95 % (Bonferroni), "
        "so the choice of the best is allowed for; rows are not corrected for one another. As good: shown to be within "
        f"{b.by:g} of the best; worse: shown to be further off; open: the runs show neither."
    )
