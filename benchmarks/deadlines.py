"""Rank schedulers of one budget under deadlines from tight to loose: accuracy, compliance, fairness, simulated time.

OMP_NUM_THREADS=1 python benchmarks/deadlines.py --out deadlines.json
OMP_NUM_THREADS=1 python benchmarks/deadlines.py --table deadlines.json --figure docs/deadlines.png

Twelve clients in three tiers classify the registers of English with `micro`; six take part in a round, late ones are
dropped. Runs of a seed share split, cohorts, batches and the head's first weights, so that differences are paired.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fedfault.config import load
from fedfault.records import RoundRecord
from fedfault.rounds.engine import begin, rounds
from fedfault.setup.experiment import Prepared, prepare
from fedfault.setup.federation import build_federation
from fedfault.tasks.base import CohortTask

SCHEDULERS = {
    "fixed": ["rank=8"],
    "cvx": ["r_bar=8"],
    "exact": ["r_bar=8"],
    "lite": ["r_bar=8"],
    "lite_star": ["r_bar=8"],
}
DEADLINES = {"tight": 18.0, "medium": 24.0, "loose": 36.0}  # the slow tier: 15 s with rank 2, 23.4 with 8, 34 with 16
PARTITIONS = {"iid": ["data.partition=iid"], "alpha 0.1": ["data.partition=topic_skew", "data.partition.alpha=0.1"]}
JOB = [
    "data.task_type=classification",
    "data.max_samples=960",
    "model.lora.r_max=16",
    "model.lora.r_min=2",
    "model.lora.alpha=32",
    "federation.total_clients=12",
    "federation.clients_per_round=6",
    "federation.participation_rate=null",
    "federation.aggregation=blockwise",
    "training.local_steps=5",
    "training.batch_size=8",
    "evaluation.max_blocks=24",
    "evaluation.every=2",
    "tiers={fast: {count: 4, bandwidth_up_mbps: 20}, medium: {count: 4, compute_factor: 0.7, bandwidth_up_mbps: 1}, "
    "slow: {count: 4, compute_factor: 0.15, bandwidth_up_mbps: 0.064}}",
    "clock.flops=1e10",
    *(f"metrics.{name}=false" for name in ("updates", "gradients", "ranks", "aggregation", "representation")),
    "metrics.attention=false",
]


def one_run(like: Prepared | None, settings: Sequence[str]) -> tuple[Prepared, list[RoundRecord]]:
    """A run on a prepared split where that has the same data, else on a new one."""
    exp = load("quickstart", [*JOB, *settings]).experiment
    same = like is not None and (like.config.data, like.config.seed) == (exp.data, exp.seed)
    if like is None or not same:
        like = prepare(exp, like=like)
    task = like.federation.task
    assert isinstance(task, CohortTask)  # all tiers train on one copy of the backbone
    fed = build_federation(exp, task)
    return like, [record for _, record in rounds(fed, begin(fed))]


def measured(records: Sequence[RoundRecord], seconds: float) -> dict[str, Any]:
    """What is kept of a run."""
    scored = [r for r in records if r.scores]
    own = [s.metrics["accuracy"] for name, s in scored[-1].scores.items() if name.startswith("client/")]
    clock = np.cumsum([r.probes.get("round_seconds", 0.0) for r in records])
    ran = [r for r in records if r.turns]
    return {
        "accuracy": scored[-1].scores["validation"].metrics["accuracy"],
        "p10": float(np.percentile(own, 10)),
        "compliance": float(np.mean([r.probes["compliance"] for r in ran])),
        "regret": float(np.mean([r.probes["regret"] for r in ran if "regret" in r.probes])),
        "excluded": float(np.mean([np.mean([t.fate == "excluded" for t in r.turns]) for r in ran])),
        "simulated": float(clock[-1]),
        "curve": [(float(clock[r.round]), r.scores["validation"].metrics["accuracy"]) for r in scored],
        "seconds": seconds,
    }


def study(seeds: int, num_rounds: int, out: Path) -> None:
    """Every cell, written after each run; cells that are there are not run again."""
    found = json.loads(out.read_text()) if out.is_file() else {}
    like: Prepared | None = None
    for seed, partition in itertools.product(range(seeds), PARTITIONS):
        for name, deadline in itertools.product(SCHEDULERS, DEADLINES):
            cell = f"{partition}/{seed}/{deadline}/{name}"
            if cell in found:
                continue
            options = [f"federation.scheduler.{option}" for option in SCHEDULERS[name]]
            settings = [*PARTITIONS[partition], f"seed={seed}", f"federation.scheduler={name}", *options]
            settings += [f"deadline.seconds={DEADLINES[deadline]}", f"federation.num_rounds={num_rounds}"]
            started = time.perf_counter()
            like, records = one_run(like, settings)
            found[cell] = measured(records, time.perf_counter() - started)
            out.write_text(json.dumps(found))
            print(cell, {k: v for k, v in found[cell].items() if k != "curve"}, flush=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval by Student's t."""
    x = np.array(values)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def complete(found: dict[str, Any]) -> list[str]:
    """The seeds of which every cell is there."""
    cells = list(itertools.product(PARTITIONS, DEADLINES, SCHEDULERS))
    seeds = sorted({cell.split("/")[1] for cell in found}, key=int)
    return [seed for seed in seeds if all(f"{p}/{seed}/{d}/{s}" in found for p, d, s in cells)]


def table(found: dict[str, Any]) -> str:
    """Means over the seeds; differences to `fixed` are paired by seed, with 95 % intervals."""
    seeds = complete(found)
    head = ("clients", "deadline", "scheduler", "accuracy", "against fixed", "p10 of clients", "on time", "left out")
    lines = [f"| {' | '.join(head)} | regret | seconds |", "|---" * (len(head) + 2) + "|"]
    for partition, deadline, name in itertools.product(PARTITIONS, DEADLINES, SCHEDULERS):
        runs = [found[f"{partition}/{seed}/{deadline}/{name}"] for seed in seeds]
        base = [found[f"{partition}/{seed}/{deadline}/fixed"] for seed in seeds]
        gap, half = interval([r["accuracy"] - b["accuracy"] for r, b in zip(runs, base, strict=True)])
        mean = {
            k: float(np.mean([r[k] for r in runs])) for k in ("accuracy", "p10", "compliance", "regret", "excluded")
        }
        against = "" if name == "fixed" else f"{gap:+.3f} ± {half:.3f}"
        lines.append(
            f"| {partition} | {deadline}, {DEADLINES[deadline]:g} s | {name} | {mean['accuracy']:.3f} | {against} | "
            f"{mean['p10']:.3f} | {mean['compliance']:.0%} | {mean['excluded']:.0%} | {mean['regret']:.2f} | "
            f"{np.mean([r['simulated'] for r in runs]):.0f} |"
        )
    return "\n".join(lines)


def figure(found: dict[str, Any], path: Path) -> None:
    """Accuracy against simulated seconds: thin for each seed, thick for their mean at the mean time of each round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    seeds = complete(found)
    fig, axes = plt.subplots(len(PARTITIONS), len(DEADLINES), figsize=(11, 6.2), sharey="row", layout="constrained")
    for (i, partition), (j, deadline) in itertools.product(enumerate(PARTITIONS), enumerate(DEADLINES)):
        ax = axes[i, j]
        for k, name in enumerate(SCHEDULERS):
            curves = np.array([found[f"{partition}/{seed}/{deadline}/{name}"]["curve"] for seed in seeds])
            for own in curves:
                ax.plot(*own.T, color=f"C{k}", lw=0.6, alpha=0.35)
            ax.plot(*curves.mean(0).T, color=f"C{k}", label=name, lw=2.2, ls="--" if name == "cvx" else "-")
        ax.set_ylim(0, 1)
        ax.set_title(f"{'IID' if partition == 'iid' else partition}, {deadline} deadline ({DEADLINES[deadline]:g} s)")
        ax.grid(alpha=0.3)
        if i == len(PARTITIONS) - 1:
            ax.set_xlabel("simulated seconds")
        if j == 0:
            ax.set_ylabel("validation accuracy")
    axes[0, 0].legend(loc="lower right")
    fig.savefig(path, dpi=110)


def main() -> None:
    """Run the study, or print its table and draw its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    if args.out:
        study(args.seeds, args.rounds, args.out)
    if args.table:
        found = json.loads(args.table.read_text())
        print(table(found))
        if args.figure:
            figure(found, args.figure)


if __name__ == "__main__":
    main()
