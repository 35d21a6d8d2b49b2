"""`seeds: auto`: one seed after another, until every hypothesis is answered or cannot be within the most seeds.

After each seed all hypotheses are judged by tests that may be looked at as often as one likes (`anytime.py`). Cells that no
open hypothesis is about take no more seeds. A hypothesis is given up when more seeds up to the most would not answer it even
if they were better for it, or worse for it, by as much as the mean of the seeds so far is likely to be off. Giving up cannot
make an answer wrong, it can only leave one out.

What is decided after a seed follows from the runs up to it alone, so that a study that was stopped goes on as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fedfault.anytime import extend
from fedfault.report.words import format_count
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData
from fedfault.saying import Say
from fedfault.stats import ALPHA
from fedfault.studies.answers import Answer, SeedDifferences, answer_hypotheses, compute_ps
from fedfault.studies.one import RunResult
from fedfault.studies.study import StudyPlan

FIRST = 3  # seeds that every cell is run with, so that its mean has an interval; no test is sure of anything before
PATIENCE = 4  # seeds before a hypothesis is given up: with fewer, the spread is hardly known
LIKELY = 0.95  # one-sided: how sure the mean of the seeds so far is to be no further off


def run_until_answered(plan: StudyPlan, execute: Callable[[list[str]], list[RunResult]], say: Say) -> list[RunResult]:
    """Run a study seed by seed; returns what became of every run that was needed.

    execute: makes the runs of these names, of which some may be there. A seed whose runs all fail ends the study.
    """
    study, results = plan.study, list[RunResult]()
    runs: dict[str, RunData] = {}
    cells, lost = set(range(len(study.cells))), set[str]()
    first = min(FIRST, len(study.seeds))
    for count in range(first, len(study.seeds) + 1):
        seeds = range(first) if count == first else range(count - 1, count)
        done = execute(list(dict.fromkeys(study.cells[i].runs[seed] for seed in seeds for i in sorted(cells))))
        results += done
        runs |= {one.name: read_run(plan.path(one.name)) for one in done if one.state != "failed"}
        if all(one.state == "failed" for one in done):
            return results
        still = find_open(answer_hypotheses(study.limit(count), runs, looks=False), len(study.seeds), lost)
        say(_describe_look(plan, count, [a.hypothesis.name for a in still], lost))
        cells = {i for a in still for c in a.hypothesis.contrasts for i in c.cells}
        if not still:
            return results
    return results


def find_open(answers: Sequence[Answer], most: int, lost: set[str]) -> list[Answer]:
    """The hypotheses that more seeds may answer; names of those that they cannot are added to `lost`."""
    waiting = [a for a in answers if a.verdict == "inconclusive"]
    for a in waiting:
        if min(len(f.values) for f in a.found) >= PATIENCE and not can_be_answered(a, most, ALPHA / len(waiting)):
            lost.add(a.hypothesis.name)
    return [a for a in waiting if a.hypothesis.name not in lost]


def can_be_answered(a: Answer, most: int, level: float) -> bool:
    """Whether seeds up to `most` may support or refute a hypothesis at this level of a test on both sides."""
    for towards in (True, False):
        ps = compute_ps(a.hypothesis, [_foresee(a, f, most, towards) for f in a.found])
        if 2 * min(ps) <= level:
            return True
    return False


def _foresee(a: Answer, f: SeedDifferences, most: int, towards: bool) -> SeedDifferences:
    """The differences with more to come, whose mean is as favourable to the claim, or to its contrary, as is likely."""
    mean, off = float(np.mean(f.values)), _find_margin(f.values)
    if not math.isfinite(mean):
        off = 0.0
    if a.hypothesis.expect == "equal":
        side = math.copysign(1.0, mean)
        mean = side * max(0.0, abs(mean) - off) if towards else side * (abs(mean) + off)
    else:
        mean += off if (a.hypothesis.expect == "higher") == towards else -off
    come = np.array(extend(f.values, most, mean))
    return replace(f, differences=dict(enumerate(np.clip(come, -f.reach, f.reach) if f.test == "bets" else come)))


def _find_margin(values: Sequence[float]) -> float:
    """How far the mean of the values may be off, by Student's t."""
    from scipy.stats import t

    d = np.asarray(values)
    if not np.isfinite(d).all():
        return 0.0
    return float(t.ppf(LIKELY, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))


def _describe_look(plan: StudyPlan, seeds: int, still: Sequence[str], lost: set[str]) -> str:
    given_up = f", {len(lost)} out of reach of {format_count(len(plan.study.seeds), 'seed')}" if lost else ""
    names = f": {', '.join(still)}" if still else ""
    open_ones = f"{len(still)} of {len(plan.study.hypotheses)} hypotheses open"
    return f"after {format_count(seeds, 'seed')}: {open_ones}{given_up}{names}"
