"""Seconds to learn from a round and to set the next ranks, and how long that round is beside the shortest possible one.

    python benchmarks/schedulers.py                      10 to 10,000 clients, all in the round
    python benchmarks/schedulers.py --clients 100 --rounds 20

Three tiers of hardware, ranks 2 to 16, the same budget of 8 a client for all but `fah`, which moves its own. Clients gain
most on the slow tier, so `lite` and `lite_star` choose longer rounds. T / T_exact is the mean of the rounds after the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np

from fedfault.hardware.clock import Fleet, Line, Load, Tier, compute_model_lines
from fedfault.registry import build, load_builders
from fedfault.scheduling import Allocation, Report, Scheduler, Situation

R_BAR, LOW, HIGH = 8, 2, 16
OPTIONS = {"fixed": {"rank": R_BAR}}


def federation(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and the usual gain of n clients on fast, medium and slow hardware, with unequal amounts of data."""
    fast, medium = 3 * n // 10, 3 * n // 10
    fleet = Fleet.of(
        [
            Tier("gpu_fast", fast, 1.0, bandwidth_up_mbps=100, bandwidth_down_mbps=500),
            Tier("gpu_medium", medium, 0.7, bandwidth_up_mbps=20, bandwidth_down_mbps=100),
            Tier("cpu_slow", n - fast - medium, 0.15, bandwidth_up_mbps=10, bandwidth_down_mbps=50),
        ],
        n,
    )
    g = np.random.default_rng(0)
    wire = Line(1e5, 2e6)  # bytes: queries and values of a 7 B model have 524,288 numbers a rank
    load = Load(g.uniform(3e3, 5e3, size=n), Line(1e-4, 4e-6), down=wire, up=wire)
    gain = g.uniform(0.02, 0.1, size=n) / fleet.compute_factor**0.5
    return *compute_model_lines(fleet, load), gain


def rounds(scheduler: Scheduler, n: int, num_rounds: int) -> tuple[list[float], list[float], list[float], set[str]]:
    """Seconds of observe and of assign, round times, and what was said."""
    a, b, gain = federation(n)
    memory, noise, said = scheduler.init(n), np.random.default_rng(1), set()
    learning, deciding, taken = [], [], []
    for t in range(1, num_rounds + 1):
        s = Situation(t, 0, np.arange(n), np.full(n, LOW), np.full(n, HIGH), R_BAR * n, a, b)
        began = time.perf_counter()
        given = scheduler.assign(memory, s)
        deciding.append(time.perf_counter() - began)
        reports = _reports(s, given, gain + noise.normal(0, 0.01, size=n))
        began = time.perf_counter()
        memory = scheduler.observe(memory, reports)
        learning.append(time.perf_counter() - began)
        taken.append(float(s.seconds(given.ranks).max()))
        said |= {event.partition(": ")[2] for event in given.events if "explores" not in event}
    return learning, deciding, taken, said


def _reports(s: Situation, given: Allocation, gain: np.ndarray) -> list[Report]:
    seconds = s.seconds(given.ranks)
    return [
        Report(i, r, float(x), 10_000, gain=float(y), gain_below=0.99 * float(y), seconds_below=float(x - slope))
        for i, (r, x, y, slope) in enumerate(zip(given.ranks, seconds, gain, s.b, strict=True))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores; medians over {args.rounds - 1} rounds after the first")
    print("| clients | scheduler | observe, ms | assign, ms | T, s | T / T_exact |")
    print("|---:|---|---:|---:|---:|---:|")
    for n in args.clients:
        _, _, shortest, _ = rounds(build("scheduler", "exact", r_bar=R_BAR), n, args.rounds)
        for name in load_builders("scheduler"):
            scheduler = build("scheduler", name, **OPTIONS.get(name, {"r_bar": R_BAR}))
            learning, deciding, taken, said = rounds(scheduler, n, args.rounds)
            observe, assign = (1e3 * statistics.median(spent[1:]) for spent in (learning, deciding))
            regret = statistics.mean(T / best for T, best in zip(taken[1:], shortest[1:], strict=True))
            notes = f"  {'; '.join(sorted(said))}" if said else ""
            print(
                f"| {n} | {name} | {observe:.1f} | {assign:.1f} | {statistics.mean(taken[1:]):.1f} | {regret:.3f} |{notes}",
                flush=True,
            )


if __name__ == "__main__":
    main()
