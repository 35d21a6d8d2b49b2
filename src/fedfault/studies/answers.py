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

The interval of a difference comes from the same test, at 0.05 over the number of contrasts in the study (Bonferroni): all
of them hold their means together at a rate of 95 %. Holm asks for less, so an interval may reach a little over the bound
of a claim that is answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedfault.runs.recorded import RunData
from fedfault.stats import ALPHA, Test, choose_test, count_needed, holm, mean_interval, p_above, subtract
from fedfault.studies.outcomes import is_count, measure_outcome
from fedfault.studies.study import Contrast, Hypothesis, Study

MOST = 500  # seeds: nobody will run more
Verdict = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class SeedDifferences:
    """One contrast: its difference for every seed that has both runs, and the test that it is put to."""

    contrast: Contrast
    differences: Mapping[int, float]  # seed -> difference
    why_not: str  # in place of some or all of them
    test: Test
    alpha: float  # of its interval: how often it may miss the mean

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
        return mean_interval(self.values, self.alpha, self.test)


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

    @property
    def decisive(self) -> SeedDifferences:
        """The contrast that speaks most against the claim: the whole of it rests on this one."""
        return min(self.found, key=lambda f: _measure_support(self.hypothesis, f))


def answer_hypotheses(study: Study, runs: Mapping[str, RunData]) -> list[Answer]:
    """An answer to every hypothesis, from the runs that are there."""
    contrasts = sum(len(h.contrasts) for h in study.hypotheses)
    test, alpha = choose_test(len(study.seeds), contrasts), ALPHA / max(contrasts, 1)
    tests: list[Test] = ["flips" if is_count(h.metric) else test for h in study.hypotheses]
    found = [
        [SeedDifferences(c, *_subtract_runs(study, h, c, runs), own, alpha) for c in h.contrasts]
        for h, own in zip(study.hypotheses, tests, strict=True)
    ]
    both = [_compute_ps(h, each, own) for h, each, own in zip(study.hypotheses, found, tests, strict=True)]
    ps = [min(1.0, 2 * min(pair)) for pair in both]
    verdicts = [_judge(pair, corrected) for pair, corrected in zip(both, holm(ps), strict=True)]
    return [
        Answer(h, verdict, p, corrected, own, tuple(each), _count_seeds(h, each, verdict, len(ps)))
        for h, verdict, each, own, p, corrected in zip(
            study.hypotheses, verdicts, found, tests, ps, holm(ps), strict=True
        )
    ]


def _count_seeds(h: Hypothesis, found: Sequence[SeedDifferences], verdict: Verdict, hypotheses: int) -> int | None:
    """Count the seeds that would answer a hypothesis that is left open, with a power of 0.8 and Holm's strictest level."""
    if verdict != "inconclusive":
        return None
    each = [count_needed(_orient(h, f), h.by, ALPHA / (2 * hypotheses), most=MOST) for f in found]
    return None if None in each else max(n for n in each if n is not None)


def _orient(h: Hypothesis, f: SeedDifferences) -> list[float]:
    """The differences so that the mean of what is claimed is above `by`, or below it for a claim of equality."""
    turn = h.expect == "lower" or (h.expect == "equal" and (f.mean or 0.0) < 0)
    return [-v for v in f.values] if turn else f.values


def _judge(pair: tuple[float, float], corrected: float) -> Verdict:
    if corrected > ALPHA:
        return "inconclusive"
    return "supported" if pair[0] < pair[1] else "refuted"


def _compute_ps(h: Hypothesis, found: Sequence[SeedDifferences], test: Test) -> tuple[float, float]:
    """p of the claim being false, p of the claim being true."""
    each = [_compute_p(h, f.values, test) for f in found]
    return max(p[0] for p in each), min(1.0, min(p[1] for p in each) * len(each))


def _compute_p(h: Hypothesis, d: Sequence[float], test: Test) -> tuple[float, float]:
    turned = [-x for x in d]
    if h.expect == "higher":
        return p_above(d, h.by, test), p_above(turned, -h.by, test)
    if h.expect == "lower":
        return p_above(turned, h.by, test), p_above(d, -h.by, test)
    within = max(p_above(d, -h.by, test), p_above(turned, -h.by, test))
    return within, min(1.0, 2 * min(p_above(d, h.by, test), p_above(turned, h.by, test)))


def _measure_support(h: Hypothesis, f: SeedDifferences) -> float:
    """How far a mean lies on the side of the claim."""
    if f.mean is None:
        return -math.inf
    return {"higher": f.mean, "lower": -f.mean, "equal": -abs(f.mean)}[h.expect]


def _subtract_runs(
    study: Study, h: Hypothesis, c: Contrast, runs: Mapping[str, RunData]
) -> tuple[dict[int, float], str]:
    """Subtract the metric of a contrast's runs: seed -> difference, and why some seeds have none."""
    found, lost = {}, []
    for i, seed in enumerate(study.seeds):
        get = _make_getter(study, h.metric, i, runs)
        a, b = get(c.a), c.constant if c.b is None else get(c.b)
        if c.c is not None and c.d is not None:
            a, b = _subtract(a, b), _subtract(get(c.c), get(c.d))
        d = _subtract(a, b)
        if d is None or math.isnan(d):
            lost.append(str(seed))
        else:
            found[seed] = d
    return found, f"{h.metric} is not there for seed {', '.join(lost)}" if lost else ""


def _make_getter(study: Study, metric: str, i: int, runs: Mapping[str, RunData]) -> Callable[[int], float | None]:
    def get(cell: int) -> float | None:
        run = runs.get(study.cells[cell].runs[i])
        return None if run is None or not run.over else measure_outcome(run, metric)

    return get


def _subtract(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else subtract(a, b)
