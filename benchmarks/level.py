"""How often do thresholds from control runs cry wolf on healthy runs?

    python benchmarks/level.py [--calibrations 300]

Eight detectors read a number of a run each, from laws that differ in their tails and in how detectors hang together; the
real detectors read made-up histories. Prints the table of docs/metrics.md: the share of healthy runs with any alarm, and the
range from the 5th to the 95th percentile of calibrations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fedfault.diagnosis.calibration import find_reached, learn_thresholds
from fedfault.diagnosis.detection import build_detectors
from fedfault.records import Detector, Reading
from fedfault.testing.histories import healthy

D = 8
Law = Callable[[np.random.Generator, int], np.ndarray]
LAWS: dict[str, Law] = {
    "normal": lambda g, n: g.normal(size=(n, D)),
    "Student's t, 2 degrees of freedom": lambda g, n: g.standard_t(2, size=(n, D)),
    "log-normal, sigma 1.5": lambda g, n: np.exp(1.5 * g.normal(size=(n, D))),
    "normal, correlation 0.9": lambda g, n: 0.9**0.5 * g.normal(size=(n, 1)) + 0.1**0.5 * g.normal(size=(n, D)),
    "half of the runs read zero": lambda g, n: np.maximum(g.normal(size=(n, D)), 0),
}


def make_reader(column: int) -> Detector:
    """A detector of runs whose records are rows of numbers: it reads one of them."""

    def follow(records: Any, scale: Mapping[str, float]) -> Iterator[Reading | None]:
        for t, row in enumerate(records, 1):
            yield Reading(t, row[column], 1.0, {})

    return Detector(
        follow, lambda r: "it differs", ("stop",), min_effect=0.0, min_std=1e-9, default_threshold=None,
    )  # fmt: skip


def measure_rates(draw: Law, m: int, calibrations: int) -> list[float]:
    """The rate of false alarms of each of so many calibrations of m controls, from 1,000 fresh runs."""
    g, known = np.random.default_rng(m), {f"d{j}": make_reader(j) for j in range(D)}
    rates = []
    for _ in range(calibrations):
        found, _ = learn_thresholds([[row, row] for row in draw(g, m).tolist()], known)
        cuts = np.array([found[name].value for name in known])
        rates.append(float((draw(g, 1000) > cuts).any(axis=1).mean()))
    return rates


def measure_real_rates(m: int, calibrations: int, pool: int = 200) -> list[float]:
    """The same of the real detectors: controls and 40 fresh runs are drawn from a pool of made-up histories."""
    g, known = np.random.default_rng(m), {n: d for n, d in build_detectors().items() if d.calibrated}
    runs, rates = [healthy(seed) for seed in range(pool)], []
    for _ in range(calibrations):
        drawn = g.permutation(pool)
        found, _ = learn_thresholds([runs[i] for i in drawn[:m]], known)
        fresh = [runs[i] for i in drawn[m : m + 40]]
        alarms = [any((find_reached(known[n], t.scale, r) or 0.0) > t.value for n, t in found.items()) for r in fresh]
        rates.append(float(np.mean(alarms)))
    return rates


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrations", type=int, default=300)
    calibrations = parser.parse_args().calibrations
    sizes = (19, 39, 99)
    print(f"| law of the statistics | {' | '.join(f'{m} controls' for m in sizes)} |\n|---|{'---:|' * len(sizes)}")
    for name, draw in LAWS.items():
        print(f"| {name} | {' | '.join(_format(measure_rates(draw, m, calibrations)) for m in sizes)} |", flush=True)
    real = _format(measure_real_rates(19, max(1, calibrations // 10)))
    print(f"| the real detectors on made-up histories | {real} | – | – |")


def _format(rates: list[float]) -> str:
    low, high = np.percentile(rates, (5, 95))
    return f"{np.mean(rates):.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
