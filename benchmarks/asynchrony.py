"""Synchronous and asynchronous servers by the simulated clock, on quadratics: how far from the optimum they are, and when.

    python benchmarks/asynchrony.py docs/asynchronous.png     # a minute of one thread

20 clients with f_k(x) = |x - b_k|^2 / 2 and noisy gradients, eight at work at once: half are fast (1 s for a round's work)
and half slow (5 s). Slow clients have optima of their own: b_k ~ N(1, 1) in each of 8 coordinates, and N(-1, 1) for fast
ones. Means of five seeds, the same for all servers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np

from fedfault.hardware.clock import Fleet, Line, Policy, Tier
from fedfault.hardware.flight import Asynchrony
from fedfault.hardware.plan import Hardware
from fedfault.measures.punctuality import elapsed_seconds
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation
from fedfault.testing.toys import Quadratic, federation

N, P, AT_WORK, SEEDS, UNTIL = 20, 8, 8, 5, 200.0
TIMES = (25.0, 50.0, 100.0, 200.0)


def make_hardware() -> Hardware:
    """Half of the clients need a second for a round's work, the others five."""
    return Hardware(
        fleet=Fleet.of((Tier("fast", N // 2), Tier("slow", N // 2, compute_factor=0.2)), N),
        scheduler=build("scheduler", "fixed"),
        steps=np.full(N, 10),
        tokens=np.full(N, 100.0),
        token_seconds=Line(0.01, 0.0),
        memory_mb=Line(1.0, 0.0),
        r_min=1,
        r_max=1,
    )


Change = Callable[[Federation], Federation]
SERVERS: dict[str, Change] = {
    "waits for all": lambda fed: fed,
    "deadline of 2 s, late work dropped": lambda fed: _set_deadline(fed, "drop"),
    "deadline of 2 s, partial work": lambda fed: _set_deadline(fed, "use_partial"),
    "FedBuff, 4 updates": lambda fed: replace(fed, asynchronous=Asynchrony(4)),
    "FedBuff, no discount": lambda fed: replace(fed, asynchronous=Asynchrony(4, staleness="constant")),
    "FedAsync": lambda fed: replace(fed, asynchronous=Asynchrony(1, mixes=True, rate=0.6)),
}


def _set_deadline(fed: Federation, policy: Policy) -> Federation:
    return replace(fed, hardware=replace(make_hardware(), deadline=2.0, policy=policy))


def run(change: Change, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulated seconds at the end of each round, and the distance from the optimum of the federation then."""
    g = np.random.default_rng(seed)
    b = g.normal(size=(N, P)) + np.where(np.arange(N) < N // 2, -1.0, 1.0)[:, None]
    task = Quadratic([[1.0] * P] * N, b.tolist(), [20] * N, noise=1.0, start=3.0)
    work = {"steps": 10, "lr": 0.03, "weighting": "uniform"}
    fed = federation(
        task, cohort_size=AT_WORK, num_rounds=10**6, seed=seed, work=work, hardware=make_hardware(), ranks=(1,) * N
    )
    best, found, records = (task.bt + task.e.mean(1)).mean(0), [], []
    fed = change(replace(fed, evaluate_every=10**6))
    for state, record in rounds(fed, begin(fed)):
        records.append(record)
        found.append(float((state.adapter.flat - best).norm()))
        if fed.hardware is not None and fed.hardware.read_clock(state.plans) >= UNTIL:
            break
    return np.array(list(elapsed_seconds(records).values())), np.array(found)


def main() -> None:
    """Print the table, and draw the figure into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path, nargs="?", default="asynchronous.png")
    file = parser.parse_args().figure
    mpl.use("agg")
    import matplotlib.pyplot as plt

    grid, fig = np.linspace(0, UNTIL, 201), plt.figure(figsize=(8, 4.2), layout="constrained")
    ax = fig.add_subplot()
    print(f"| server | {' | '.join(f'{t:g} s' for t in TIMES)} | rounds |\n|---|{'---:|' * (len(TIMES) + 1)}")
    for name, change in SERVERS.items():
        runs = [run(change, seed) for seed in range(SEEDS)]
        curves = np.stack([d[np.searchsorted(t, grid, side="right") - 1] for t, d in runs])  # the last round's model
        mean = curves.mean(0)
        ax.plot(grid, mean, label=name)
        shown = [f"{mean[np.searchsorted(grid, t)]:.2f}" for t in TIMES]
        print(f"| {name} | {' | '.join(shown)} | {np.mean([len(t) - 1 for t, _ in runs]):.0f} |")
    ax.set(xlabel="simulated seconds", ylabel="distance from the optimum", yscale="log", xlim=(0, UNTIL))
    ax.legend(frameon=False, fontsize=8)
    fig.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
