"""A full cohort step of every algorithm against FedAvg's: what corrections, momenta and messages cost.

    python benchmarks/algorithms.py                                            FedAvg, FedProx, SCAFFOLD
    python benchmarks/algorithms.py --algorithms fedavg fednova fedadam --steps 1

Each algorithm runs whole rounds of the engine on the same data: broadcast, the local steps of all clients, the server, the
count of bytes, no evaluation. A round's seconds over its steps are one measurement. All run in one process and take turns,
in an order that is turned round every time; a ratio is the median over the pairs of neighbours, because machines drift.
The ratio of CPU seconds is the one to read where other programs run too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple

from cohort import blocks, matmul_rate, opened

from fedfault.registry import build
from fedfault.rounds.engine import begin, run_round
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork
from fedfault.tasks.language import LanguageTask
from fedfault.types.algorithm import State


class Seconds(NamedTuple):
    """A step of the whole cohort, on the clock and of all cores."""

    wall: float
    cpu: float


def main() -> None:
    args = parse()
    print(
        f"{args.model}, {args.clients} clients, {args.steps} steps a round of {args.batch} x {args.length} tokens, fp32"
    )
    print(f"{os.cpu_count()} cores, float32 matmul {matmul_rate():.0f} GFLOP/s")
    seconds = measured(args)
    base = seconds[args.algorithms[0]]
    print("| algorithm | ms a step | tokens/s | ratio | lowest - highest | CPU ratio | lowest - highest |")
    print("|---|---|---|---|---|---|---|")
    for name, own in seconds.items():
        print(row(name, own, base, args.clients * args.batch * args.length))


def row(name: str, own: list[Seconds], base: list[Seconds], tokens: int) -> str:
    """A table row: medians, and the ratios of measurements that were neighbours in time."""
    step = statistics.median(a.wall for a in own)
    wall = spread(a.wall / b.wall for a, b in zip(own, base, strict=True))
    cpu = spread(a.cpu / b.cpu for a, b in zip(own, base, strict=True))
    return f"| {name} | {1000 * step:.0f} | {tokens / step:,.0f} | {wall} | {cpu} |"


def spread(ratios: Iterable[float]) -> str:
    """Median, lowest and highest as two cells of a table."""
    lowest, *_, highest = found = sorted(ratios)
    return f"{statistics.median(found):.3f} | {lowest:.3f} - {highest:.3f}"


def measured(args: argparse.Namespace) -> dict[str, list[Seconds]]:
    """Seconds a step, a list for every algorithm; the first round of each is not counted."""
    feds = federations(args)
    states: dict[str, State] = {name: run_round(fed, begin(fed))[0] for name, fed in feds.items()}
    seconds: dict[str, list[Seconds]] = {name: [] for name in feds}
    for repetition in range(args.repeat):
        for name in list(feds)[:: 1 if repetition % 2 == 0 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            states[name], _ = run_round(feds[name], states[name])
            took = (time.perf_counter() - wall) / args.steps, (time.process_time() - cpu) / args.steps
            seconds[name].append(Seconds(*took))
    return seconds


def federations(args: argparse.Namespace) -> dict[str, Federation]:
    """One model and one set of data for all."""
    task = LanguageTask(opened(args, "fp32"), blocks(args, args.batch), {}, {}, cache_mb=0)
    work = LocalWork(
        epochs=None, steps=args.steps, batch_size=args.batch, lr=1e-3, optimizer=args.optimizer, max_grad_norm=1.0
    )
    size = min(args.clients, max(1, task.tokens_per_pass() // (args.batch * args.length)))
    return {
        name: Federation(
            task=task,
            algorithm=build("algorithm", name),
            aggregation=build("aggregation", "fedit"),
            work=work,
            total_clients=args.clients,
            cohort_size=args.clients,
            num_rounds=args.repeat + 2,  # the last one, which would be evaluated, is never reached
            evaluate_every=args.repeat + 2,
            clients_per_pass=size,
        )
        for name in args.algorithms
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--algorithms", nargs="+", default=["fedavg", "fedprox", "scaffold"], help="the first is the base"
    )
    parser.add_argument("--model", default="micro")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--repeat", type=int, default=8)
    parser.set_defaults(partial=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
