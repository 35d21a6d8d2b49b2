"""The bias of selections, on quadratics whose optimum is known: who is drawn how often, and where rounds end.

    python benchmarks/selection.py      # a minute of one thread

20 clients of unequal size with f_k(x) = |x - b_k|^2 / 2, of which 4 take part in each of 600 rounds of two steps. The mean
of the server's models of the last 400 rounds is where rounds end, up to the noise of the draw; the table has the mean of
five seeds.
"""

from __future__ import annotations

import argparse

import numpy as np

from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import Quadratic, federation

N, M, P, ROUNDS, BURN = 20, 4, 8, 600, 200
RULES: tuple[tuple[str, dict[str, object]], ...] = (
    ("uniform", {}),
    ("size", {}),
    ("power_of_choice", {"candidates": 6}),
    ("power_of_choice", {"candidates": 12}),
    ("loss", {}),
    ("oort", {"alpha": 0.0}),
)


def measure(name: str, options: dict[str, object], seed: int) -> tuple[float, float, float, float]:
    """Shares of the five clients farthest from the optimum and of the five nearest; distance of the end; worst loss."""
    g = np.random.default_rng(seed)
    b, sizes = g.normal(size=(N, P)) * g.uniform(0.5, 2.0, size=(N, 1)), g.integers(2, 20, size=N)
    task = Quadratic([[1.0] * P] * N, b.tolist(), sizes.tolist(), start=0.0)
    work = {"steps": 2, "lr": 0.05, "weighting": "samples"}
    fed = federation(
        task, cohort_size=M, num_rounds=ROUNDS, seed=seed, work=work, selection=build("selection", name, **options)
    )
    drawn, models = np.zeros(N), []
    for state, record in rounds(fed, begin(fed)):
        drawn[[c.client for c in record.clients]] += record.round > BURN
        models += [state.adapter.flat.numpy()] * (record.round > BURN)
    best = np.average(b, axis=0, weights=sizes)
    order, end = np.argsort(np.linalg.norm(b - best, axis=1)), np.mean(models, axis=0)
    share = drawn / (ROUNDS - BURN)
    worst = 0.5 * (np.linalg.norm(b - end, axis=1) ** 2).max()
    return share[order[-5:]].mean(), share[order[:5]].mean(), float(np.linalg.norm(end - best)), float(worst)


def main() -> None:
    """Print a row for every rule: the mean over five seeds."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| selection | in, five farthest | in, five nearest | distance from the optimum | largest loss |")
    print("|---|---:|---:|---:|---:|")
    for name, options in RULES:
        found = np.mean([measure(name, options, seed) for seed in range(5)], axis=0)
        shown = name + "".join(f", {key}={value}" for key, value in options.items())
        print(f"| {shown} | {found[0]:.2f} | {found[1]:.2f} | {found[2]:.2f} | {found[3]:.2f} |")


if __name__ == "__main__":
    main()
