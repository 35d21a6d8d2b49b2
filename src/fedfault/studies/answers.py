"""The answers to a study's hypotheses, by a rule that is stated beforehand.

For every contrast there is one difference a seed: arm minus other arm, of runs with the same split and the same cohorts.
With `higher` and the smallest effect that matters, `by`:

    p+  of the null hypothesis that the true mean difference is at most `by`
    p-  of the null hypothesis that it is at least `by`

`lower` is the same with signs turned; `equal` asks whether it lies within -by and +by, by two one-sided tests (Schuirmann,
1987). A claim about several contrasts holds if it holds for all: p+ is the largest of theirs (an intersection-union test),
p- the smallest times their number (Bonferroni). p = 2 min(p+, p-) is corrected by Holm over all hypotheses of the study. If
it is at most 0.05, the claim is supported (p+ is the smaller one) or refuted (p- is); else it is inconclusive. A difference
that goes the right way but is smaller than what matters is refuted too.

With `seeds: auto` the p-values are valid at every look (`anytime.py`), so that Holm's correction and the rule are the same,
and what is once answered stays so.

The interval of a difference comes from the same test, at 0.05 over the number of contrasts in the study (Bonferroni): all
of them hold their means together at a rate of 95 %. Holm asks for less, so an interval may reach a little over the bound
of a claim that is answered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedfault.compare.pairs import find_changed_content
from fedfault.errors import join_names
from fedfault.runs.recorded import RunData
from fedfault.stats import ALPHA, Test, choose_test, count_needed, holm, mean_interval, p_above, subtract
from fedfault.studies.outcomes import is_count, is_loss, measure_outcome
from fedfault.studies.study import Cell, Contrast, Hypothesis, Study

MOST = 500  # seeds: nobody will run more
GRAIN = 0.01  # of the smallest effect that matters: differences closer than that are the same
Verdict = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class SeedDifferences:
    """One contrast: its difference for every seed that has both runs, and the test that it is put to."""

    contrast: Contrast
    differences: Mapping[int, float]  # seed -> difference
    why_not: str  # in place of some or all of them
    test: Test
    alpha: float  # of its interval: how often it may miss the mean
    grain: float  # differences closer than that are the same

    @property
    def reach(self) -> float:
        """What no difference of counts can exceed."""
        return 2.0 if self.contrast.c is not None else 1.0 + abs(self.contrast.constant)

    @property
    def values(self) -> list[float]:
        """The differences in the order of the seeds."""
        return list(self.differences.values())

    @property
    def mean(self) -> float | None:
        """Mean difference; None without any, infinite where a run has diverged."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the mean difference by the same test, corrected for the number of contrasts in the study.

        None for fewer than two seeds, and where the test is never as sure as that with so few.
        """
        return mean_interval(self.values, self.alpha, self.test, self.reach, self.grain)

    def limit(self, seeds: Sequence[int]) -> SeedDifferences:
        """The same for some of the seeds."""
        return replace(self, differences={s: d for s, d in self.differences.items() if s in seeds})


@dataclass(frozen=True)
class Answer:
    """What became of a hypothesis."""

    hypothesis: Hypothesis
    verdict: Verdict
    p: float  # two-sided, of this hypothesis alone
    p_holm: float  # corrected for all hypotheses of the study
    test: Test
    found: tuple[SeedDifferences, ...]
    needed: int | None  # seeds that would answer it, if differences stay as they are; None: already answered, or MOST
    after: int | None = None  # seeds that it took, in a study that looks after each; None while it is open

    @property
    def decisive(self) -> SeedDifferences:
        """The contrast that the answer rests on: the one that refutes a claim most surely, or speaks most against it."""
        refuted = self.verdict == "refuted"

        def measure(f: SeedDifferences) -> tuple[float, float]:
            return _compute_p(self.hypothesis, f)[1] if refuted else 0.0, _measure_support(self.hypothesis, f)

        return min(self.found, key=measure)


def answer_hypotheses(study: Study, runs: Mapping[str, RunData], *, looks: bool = True) -> list[Answer]:
    """An answer to every hypothesis, from the runs that are there; without `looks`, not after how many seeds it came."""
    subtracted = [[_subtract_runs(study, h, c, runs) for c in h.contrasts] for h in study.hypotheses]
    return _answer(study, subtracted, looks and study.sequential)


def answer_listed(study: Study, listed: Sequence[Sequence[Mapping[int, float]]]) -> list[Answer]:
    """An answer to every hypothesis, from the differences by seed of each of its contrasts, as a report lists them."""
    return _answer(study, [[(each, "") for each in own] for own in listed], study.sequential)


def _answer(study: Study, listed: Sequence[Sequence[tuple[Mapping[int, float], str]]], looks: bool) -> list[Answer]:
    """Answers from the differences of every contrast, and why some seeds have none."""
    alpha = ALPHA / max(sum(len(h.contrasts) for h in study.hypotheses), 1)
    # A claim of equality can be refuted on two sides
    questions = sum(len(h.contrasts) * (2 if h.expect == "equal" else 1) for h in study.hypotheses)
    found = []
    for h, own in zip(study.hypotheses, listed, strict=True):
        test = pick_test(study, h.metric, questions)
        grain = GRAIN * h.by
        found.append(
            [SeedDifferences(c, d, why, test, alpha, grain) for c, (d, why) in zip(h.contrasts, own, strict=True)]
        )
    after = _find_looks(study, found) if looks else [None] * len(found)
    return [
        Answer(h, verdict, p, corrected, each[0].test, tuple(each), _count_seeds(h, each, verdict, len(found)), look)
        for h, each, (verdict, p, corrected), look in zip(
            study.hypotheses, found, _judge_all(study, found), after, strict=True
        )
    ]


def pick_test(study: Study, metric: str, questions: int) -> Test:
    """The test of a study's differences of a metric, where so many questions are asked together."""
    if is_count(metric):
        return "bets"
    return "mixture" if study.sequential else choose_test(len(study.seeds), questions)


def _judge_all(study: Study, found: Sequence[Sequence[SeedDifferences]]) -> list[tuple[Verdict, float, float]]:
    """Verdict, p, and p corrected for all hypotheses, of each."""
    both = [compute_ps(h, each) for h, each in zip(study.hypotheses, found, strict=True)]
    ps = [min(1.0, 2 * min(pair)) for pair in both]
    return [(_judge(pair, corrected), p, corrected) for pair, p, corrected in zip(both, ps, holm(ps), strict=True)]


def _find_looks(study: Study, found: Sequence[Sequence[SeedDifferences]]) -> list[int | None]:
    """After how many seeds each hypothesis was answered, by looks after every seed."""
    first: list[int | None] = [None] * len(found)
    for count in range(2, len(study.seeds) + 1):
        seen = [[f.limit(study.seeds[:count]) for f in each] for each in found]
        for i, (verdict, _, _) in enumerate(_judge_all(study, seen)):
            if first[i] is None and verdict != "inconclusive":
                first[i] = max(len(f.values) for f in seen[i])
    return first


def _count_seeds(h: Hypothesis, found: Sequence[SeedDifferences], verdict: Verdict, hypotheses: int) -> int | None:
    """Count the seeds that would answer a hypothesis that is left open, with a power of 0.8 and Holm's strictest level.

    They would support it if the mean of every contrast is on the claimed side, and refute it by one that is not.
    """
    if verdict != "inconclusive" or not all(f.values for f in found):
        return None
    level = ALPHA / (2 * hypotheses)
    against = [f for f in found if not _is_as_claimed(h, f)]
    if not against:
        each = [_count_values(h, f, level) for f in found]
        return None if None in each else max(n for n in each if n is not None)
    strict = level / len(found) / (2 if h.expect == "equal" else 1)
    return min((n for f in against if (n := _count_values(h, f, strict)) is not None), default=None)


def _count_values(h: Hypothesis, f: SeedDifferences, level: float) -> int | None:
    """Count the seeds that tell a mean from what matters at a level: more than there are; None where MOST would not do."""
    both = h.expect == "equal" and _is_as_claimed(h, f)
    n = count_needed(_orient(h, f), h.by, level, most=MOST, test=f.test, reach=f.reach, grain=f.grain, within=both)
    least = math.ceil(-math.log2(level)) if f.test == "flips" else 0  # that can reach the level at all
    return None if n is None else max(n, least, len(f.values) + 1)


def _is_as_claimed(h: Hypothesis, f: SeedDifferences) -> bool:
    """Whether the mean difference is what is claimed."""
    return _measure_support(h, f) > (-h.by if h.expect == "equal" else h.by)


def _orient(h: Hypothesis, f: SeedDifferences) -> list[float]:
    """The differences so that the mean of what is claimed is above `by`, or below it for a claim of equality."""
    turn = h.expect == "lower" or (h.expect == "equal" and (f.mean or 0.0) < 0)
    return [-v for v in f.values] if turn else f.values


def _judge(pair: tuple[float, float], corrected: float) -> Verdict:
    if corrected > ALPHA:
        return "inconclusive"
    return "supported" if pair[0] < pair[1] else "refuted"


def compute_ps(h: Hypothesis, found: Sequence[SeedDifferences]) -> tuple[float, float]:
    """p of the data if the claim is false, and if it is true, each on one side and of this hypothesis alone."""
    each = [_compute_p(h, f) for f in found]
    return max(p[0] for p in each), min(1.0, min(p[1] for p in each) * len(each))


def _compute_p(h: Hypothesis, f: SeedDifferences) -> tuple[float, float]:
    def above(bound: float) -> float:
        return p_above(f.values, bound, f.test, f.reach, f.grain)

    def below(bound: float) -> float:
        return p_above([-x for x in f.values], -bound, f.test, f.reach, f.grain)

    if h.expect == "higher":
        return above(h.by), below(h.by)
    if h.expect == "lower":
        return below(-h.by), above(-h.by)
    return max(above(-h.by), below(h.by)), min(1.0, 2 * min(above(h.by), below(-h.by)))


def _measure_support(h: Hypothesis, f: SeedDifferences) -> float:
    """How far a mean lies on the side of the claim."""
    if f.mean is None:
        return -math.inf
    return {"higher": f.mean, "lower": -f.mean, "equal": -abs(f.mean)}[h.expect]


def _subtract_runs(
    study: Study, h: Hypothesis, c: Contrast, runs: Mapping[str, RunData]
) -> tuple[dict[int, float], str]:
    """Subtract the metric of a contrast's runs: seed -> difference, and why some seeds have none."""
    found, lost, apart = {}, [], {}
    if (units := _find_units(study, h, c, runs)) and len(units) > 1:
        return {}, f"losses in {join_names(units)}, which cannot be compared"
    for i, seed in enumerate(study.seeds):
        if changed := find_changed((study.cells[cell] for cell in c.cells), i, runs):
            apart[seed] = changed
            continue
        get = _make_getter(study, h.metric, i, runs)
        a, b = get(c.a), c.constant if c.b is None else get(c.b)
        if c.c is not None and c.d is not None:
            a, b = _subtract(a, b), _subtract(get(c.c), get(c.d))
        d = _subtract(a, b)
        if d is None or math.isnan(d):
            lost.append(str(seed))
        else:
            found[seed] = d
    if study.sequential:  # seeds after the last one were not needed
        lost = [seed for seed in lost if int(seed) < max(found, default=study.seeds[0])]
    why = [f"{h.metric} is missing for seed{'s' * (len(lost) > 1)} {', '.join(lost)}"] if lost else []
    why += [
        f"the {what} is not what it was when other runs of seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} were made"
        for what in sorted({what for each in apart.values() for what in each})
        if (seeds := [str(seed) for seed, each in apart.items() if what in each])
    ]
    return found, "; ".join(why)


def _find_units(study: Study, h: Hypothesis, c: Contrast, runs: Mapping[str, RunData]) -> list[str]:
    """The units of the losses that a contrast compares; none for what is no loss."""
    own = (runs.get(name) for cell in sorted(c.cells) for name in study.cells[cell].runs)
    return list(dict.fromkeys(run.unit for run in own if run is not None)) if is_loss(h.metric) else []


def find_changed(cells: Iterable[Cell], i: int, runs: Mapping[str, RunData]) -> list[str]:
    """What has other content in the run of the i-th seed of one cell than in that of another, under the same settings."""
    own = [runs[cell.runs[i]] for cell in cells if cell.runs[i] in runs]
    return sorted({what for a, b in itertools.pairwise(own) for what in find_changed_content(a, b)})


def _make_getter(study: Study, metric: str, i: int, runs: Mapping[str, RunData]) -> Callable[[int], float | None]:
    def get(cell: int) -> float | None:
        run = runs.get(study.cells[cell].runs[i])
        return None if run is None or not run.over else measure_outcome(run, metric)

    return get


def _subtract(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else subtract(a, b)
