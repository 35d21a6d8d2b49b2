"""Rules of thumb beside the detectors: what do they find, and how often do they cry wolf, on the same runs?

    python benchmarks/rules.py results/faults [MORE FOLDERS] [--figure docs/roc.png]

Reads the records that benchmarks/faults.py or families.py kept, of healthy runs (`fresh-...`) and of faults. Detectors judge
a run by the healthy ones of its folder where it has more than three, else by the packaged calibration `demos`; rules look
at the loss on validation data alone. Prints a table with 95 % Clopper-Pearson intervals. The figure has a curve for every
rule, drawn by moving its threshold; that of the detectors moves all thresholds together, in units of the distance from the
mean of the controls to the threshold, and leaves the least effects out, which the table asks for too.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from faults import Judged, alarms, judge_folder
from fedfault.diagnosis.calibration import Calibration, find_reached
from fedfault.diagnosis.detection import build_detectors
from fedfault.records import Records, get_validation_losses

SPIKE = 0.1  # of the loss of the evaluation before
RISING = 3  # evaluations in a row
Score = Callable[[Judged], float]  # the larger, the more suspicious


def find_spike(records: Records) -> float:
    """Find the largest rise from one evaluation to the next, as a share of the loss; infinite where a loss is no number."""
    losses = get_validation_losses(records)[1]
    if not all(map(math.isfinite, losses)):
        return math.inf
    return max((b / a - 1 for a, b in itertools.pairwise(losses)), default=0.0)


def count_rises(records: Records) -> float:
    """Count the evaluations in a row in which the loss rose, at most; a loss that is no number has risen."""
    longest = now = 0
    for a, b in itertools.pairwise(get_validation_losses(records)[1]):
        now = 0 if b <= a else now + 1
        longest = max(longest, now)
    return longest


def alarms_by_a_public_study(records: Records) -> bool:
    """The rules on the loss of a public study of federated failures, at any time: with their windows and thresholds.

    Divergence is five losses in a row each above the one before, by over 10 % in all; oscillation more than six turns within
    ten losses; slow convergence less than 1 % gained over twenty. Its fourth, drift of clients, is a distance in the units
    of one model's weights, and left out.
    """
    losses = get_validation_losses(records)[1]
    if not all(map(math.isfinite, losses)):
        return True
    steps = np.diff(losses)

    def windows(n: int) -> list[slice]:
        return [slice(i, i + n) for i in range(len(losses) - n + 1)]

    diverges = any((steps[w][:4] > 0).all() and losses[w][4] > 1.1 * losses[w][0] for w in windows(5))
    turns = steps[1:] * steps[:-1] < 0
    swings = any(turns[w][:8].sum() > 6 for w in windows(10))
    slow = any(losses[w][0] - losses[w][19] < 0.01 * losses[w][0] for w in windows(20))
    return diverges or swings or slow


def measure_distance(records: Records, calibration: Calibration) -> float:
    """How far the worst detector's number lies from the mean of the controls: 1 is at its threshold.

    A server that stands still is infinitely far, by `no_federation`, which has no threshold.
    """
    known, worst = build_detectors(), 0.0
    if "no_federation" in alarms(records, calibration):
        return math.inf
    for name, threshold in calibration.thresholds.items():
        value, mean = find_reached(known[name], threshold.scale, records), float(np.mean(threshold.seen))
        if value is not None:
            worst = max(worst, (value - mean) / (threshold.value - mean))
    return worst


def find_interval(k: int, n: int) -> tuple[float, float]:
    """The two-sided 95 % Clopper-Pearson interval of a proportion."""
    from scipy.stats import beta

    low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))
    return low, high


def print_table(healthy: Sequence[Judged], broken: Sequence[Judged]) -> None:
    """Print for every rule in which share of the healthy runs, and of the runs with a fault, it alarms."""
    verdicts: dict[str, Callable[[Judged], bool]] = {
        "the detectors": lambda run: bool(alarms(*run[1:])),
        f"the loss rises by over {SPIKE:.0%} at once": lambda run: find_spike(run[1]) > SPIKE,
        f"the loss rises {RISING} times in a row": lambda run: count_rises(run[1]) >= RISING,
        "a public study's thresholds": lambda run: alarms_by_a_public_study(run[1]),
    }
    print("| rule | healthy runs with an alarm | faults found |")
    print("|---|---:|---:|")
    for name, judge in verdicts.items():
        print(f"| {name} | {_count(healthy, judge)} | {_count(broken, judge)} |")


def _count(runs: Sequence[Judged], judge: Callable[[Judged], bool]) -> str:
    k, n = sum(map(judge, runs)), len(runs)
    low, high = find_interval(k, n)
    return f"{k}/{n} ({low:.0%} to {high:.0%})"


def trace_curve(healthy: Sequence[float], broken: Sequence[float]) -> tuple[list[float], list[float]]:
    """The shares of healthy and of broken runs whose score is at least the threshold, as that falls: a ROC curve."""
    cuts = sorted({*healthy, *broken}, reverse=True)
    x, y = ([0.0, *(sum(s >= cut for s in scores) / len(scores) for cut in cuts)] for scores in (healthy, broken))
    return x, y


def draw_curves(healthy: Sequence[Judged], broken: Sequence[Judged], file: Path) -> None:
    """Draw the curve of every rule, with its usual threshold as a point."""
    import matplotlib.pyplot as plt

    scores: dict[str, tuple[Score, float]] = {
        "detectors": (lambda run: measure_distance(*run[1:]), 1.0),
        "largest rise of the loss": (lambda run: find_spike(run[1]), SPIKE),
        "rises in a row": (lambda run: count_rises(run[1]), RISING),
    }
    fig, ax = plt.subplots(figsize=(4.6, 4.0), layout="constrained")
    for (name, (score, usual)), style in zip(scores.items(), ("-", "--", ":"), strict=True):
        good, bad = ([score(run) for run in runs] for runs in (healthy, broken))
        (line,) = ax.plot(*trace_curve(good, bad), style, label=name, drawstyle="steps-post")
        ax.plot(np.mean([s >= usual for s in good]), np.mean([s >= usual for s in bad]), "o", color=line.get_color())
    ax.set(xlabel=f"share of {len(healthy)} healthy runs with an alarm", ylabel=f"share of {len(broken)} faults found")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(loc="lower right", frameon=False)
    fig.savefig(file, dpi=110)


def main() -> None:
    """Print the table, and draw the figure where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="results of benchmarks/faults.py")
    parser.add_argument("--figure", type=Path)
    a = parser.parse_args()
    judged = [judge_folder(folder) for folder in a.folders]
    healthy, broken = ([run for sides in judged for run in sides[i]] for i in (0, 1))
    if not healthy or not broken:
        parser.error("no records of healthy runs, or none of faults, in these folders; run benchmarks/faults.py first")
    print_table(healthy, broken)
    if a.figure:
        draw_curves(healthy, broken, a.figure)


if __name__ == "__main__":
    main()
