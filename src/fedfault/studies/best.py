"""What to use when: which choice on one axis is the best in every situation that the other axes make.

    best:
      algorithms:
        axis: algorithm                  # its values are compared with one another
        metric: final.validation.loss    # optional
        prefer: lower                    # lower (the default) or higher
        by: 0.01                         # a difference that is smaller does not matter
        where: {participation_rate: 0.3} # optional

In every situation each value of the axis is compared with the best one, which the same runs have to find: multiple
comparisons with the best, for values whose runs spread differently (Edwards and Hsu, 1983). With k values every
difference has an interval, paired by seed, at a level that holds the k - 1 differences from any one value together at 95
% (Bonferroni). A value may be the best if no other one is shown to be ahead of it. What another value loses against the
true best lies between the least and the most that it loses against those that may be the best. The true best is among
these whenever its own k - 1 intervals hold, so a whole row holds at a rate of 95 %. Situations are not corrected for one
another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedfault.report.words import NOTHING, Table, format_interval, format_number
from fedfault.stats import ALPHA, Test, count_needed, mean_interval
from fedfault.studies.answers import GRAIN, MOST, find_changed, pick_test
from fedfault.studies.results import COLUMNS, Results
from fedfault.studies.study import Best, Cell, Study, describe_choice

Shown = Literal["as good", "worse", "open"]
UNKNOWN = (-math.inf, math.inf)


@dataclass(frozen=True)
class Standing:
    """Where a value of the axis stands in a situation."""

    mean: float  # over the seeds that all values share, if they share any; NaN if a run has diverged
    loses: tuple[float, float]  # against the true best: at least 0, and at most infinity
    shown: Shown  # within `by` of the true best, further off, or neither
    needed: int | None  # seeds that would tell, if differences stay as they are; None: told already, or more than MOST
    diverged: int  # runs of it whose metric is not finite


@dataclass(frozen=True)
class Situation:
    """One choice on every axis but the compared one, with all values of that one, in its order."""

    choices: tuple[tuple[str, str], ...]  # axis, label
    ahead: str  # the value with the best mean
    standings: Mapping[str, Standing]

    @property
    def name(self) -> str:
        """The choices in words."""
        return ", ".join(describe_choice(axis, label) for axis, label in self.choices) or "all runs"


def find_best(r: Results, b: Best) -> list[Situation]:
    """Every situation in which two values of the axis at least have finished runs.

    Seeds whose runs saw other data, or another model, under the same settings are left out.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[str, Cell]] = {}
    for cell in r.study.cells:
        if b.axis in cell.choices and b.where.items() <= cell.choices.items():
            rest = tuple((axis, label) for axis, label in cell.choices.items() if axis != b.axis)
            groups.setdefault(rest, {})[cell.choices[b.axis]] = cell
    found = []
    for choices, cells in groups.items():
        mixed = {seed for i, seed in enumerate(r.study.seeds) if find_changed(cells.values(), i, r.runs)}
        alike = {
            label: {seed: v for seed, v in r.by_seed(cell, b.metric).items() if seed not in mixed}
            for label, cell in cells.items()
        }
        by_seed = {label: values for label, values in alike.items() if values}
        if len(by_seed) > 1 and any(_is_finite(values) for values in by_seed.values()):
            found.append(_compare_situation(r.study, b, choices, by_seed))
    return found


def _is_finite(values: Mapping[int, float]) -> bool:
    return all(map(math.isfinite, values.values()))


def _compare_situation(
    study: Study, b: Best, choices: tuple[tuple[str, str], ...], by_seed: Mapping[str, Mapping[int, float]]
) -> Situation:
    finite = {label: values for label, values in by_seed.items() if _is_finite(values)}
    means = _average_shared(finite)
    ahead = min(finite, key=lambda label: means[label] if b.prefer == "lower" else -means[label])
    others = len(by_seed) - 1
    pairs = _Pairs(finite, b, ALPHA / others, pick_test(study, b.metric, others))
    intervals = {(i, j): pairs.find_interval(i, j) for i in finite for j in finite}
    candidates = [j for j in finite if all(intervals[j, i][0] <= 0 for i in finite)] or [*finite]
    standings = {}
    for label, values in by_seed.items():
        if label not in finite:
            diverged = sum(not math.isfinite(v) for v in values.values())
            standings[label] = Standing(math.nan, (0.0, math.inf), "worse", None, diverged)
            continue
        lows, highs = zip(*(intervals[label, j] for j in candidates), strict=True)
        loses = max(0.0, min(lows)), max(0.0, *highs)
        shown: Shown = "worse" if loses[0] > b.by else "as good" if loses[1] < b.by else "open"
        # It would be as good as whatever is best, else worse than the one ahead
        near = abs(means[label] - means[ahead]) < b.by
        against = [j for j in candidates if j != label] if near else [ahead]
        needed = pairs.count_seeds(label, against) if shown == "open" else None
        standings[label] = Standing(means[label], loses, shown, needed, 0)
    return Situation(choices, ahead, standings)


def _average_shared(by_seed: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """The mean of each over the seeds that all of them have; of its own where they share none."""
    shared = set.intersection(*(set(values) for values in by_seed.values()))
    return {
        label: float(np.mean([v for seed, v in values.items() if seed in shared or not shared]))
        for label, values in by_seed.items()
    }


@dataclass(frozen=True)
class _Pairs:
    """What the runs show about two values at a time."""

    by_seed: Mapping[str, Mapping[int, float]]  # finite ones
    asked: Best
    alpha: float  # of one interval
    test: Test

    def _subtract(self, label: str, other: str) -> list[float]:
        """By how much the first is worse than the other, for every seed that both have."""
        a, b = self.by_seed[label], self.by_seed[other]
        sign = 1.0 if self.asked.prefer == "lower" else -1.0
        return [sign * (v - b[seed]) for seed, v in a.items() if seed in b]

    def find_interval(self, label: str, other: str) -> tuple[float, float]:
        """Of the mean difference; of a value from itself it is known, of fewer than two seeds nothing is."""
        if label == other:
            return 0.0, 0.0
        grain = GRAIN * self.asked.by
        return mean_interval(self._subtract(label, other), self.alpha, self.test, grain=grain) or UNKNOWN

    def count_seeds(self, label: str, others: Sequence[str]) -> int | None:
        """Count the seeds after which the first would be told from `by` against each of the others, with a power of 0.8."""
        by, grain = self.asked.by, GRAIN * self.asked.by
        each = [
            count_needed(self._subtract(label, j), by, self.alpha / 2, most=MOST, test=self.test, grain=grain)
            for j in others
        ]
        return None if None in each else max(len(self.by_seed[label]) + 1, *(n for n in each if n is not None))


def tabulate_best(r: Results, b: Best) -> Table | None:
    """A situation a row: who is ahead, what the first value loses, and what is shown about every value."""
    situations = find_best(r, b)
    if not situations:
        return None
    first = r.study.axes[b.axis][0]
    columns = ("situation", "ahead", COLUMNS.get(b.metric, b.metric), f"{first} loses", "as good", "worse", "open")
    rows = [
        [
            s.name,
            s.ahead,
            format_number(s.standings[s.ahead].mean),
            _format_loss(s, first),
            *(_list_standings(s, shown) for shown in ("as good", "worse", "open")),
        ]
        for s in situations
    ]
    return Table(columns, rows, text=(1, 4, 5, 6))


def _format_loss(s: Situation, label: str) -> str:
    """What a value loses against the one ahead, and the interval of what it loses against the best in truth."""
    one = s.standings.get(label)
    if one is None:
        return NOTHING
    if one.diverged:
        return f"diverged in {one.diverged}"
    mean = format_number(abs(one.mean - s.standings[s.ahead].mean), ".3f")
    return mean if math.isinf(one.loses[1]) else f"{mean} ({format_interval(one.loses, '.3f')})"


def _list_standings(s: Situation, shown: Shown) -> str:
    return "; ".join(_describe(label, one) for label, one in s.standings.items() if one.shown == shown) or NOTHING


def _describe(label: str, one: Standing) -> str:
    if one.diverged:
        return f"{label} (diverged)"
    return label if one.needed is None else f"{label} ({one.needed})"


def explain_best(b: Best) -> str:
    """How a table of the best is read, in words."""
    held = ", ".join(describe_choice(axis, label) for axis, label in b.where.items())
    return (
        f"Every {b.axis} against the best one in the same situation{f' ({held})' if held else ''}: mean differences of "
        f"{b.metric}, paired by seed. Ahead: the best mean of these runs, which need not be the best in truth. What a value "
        "loses against the best in truth, whichever that is, has an interval, and those of a row hold together at a rate of "
        "95 % (multiple comparisons with the best: Edwards and Hsu, 1983); rows are not corrected for one another. As good: "
        f"shown to lose less than {b.by:g}; worse: shown to lose more; open: the runs show neither, in brackets how many "
        f"seeds would tell if differences stay as they are, where these are at most {MOST}."
    )
