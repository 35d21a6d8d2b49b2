"""What the integrity checks cost: their share of a round's time, by timing each of them inside real rounds.

    python benchmarks/integrity.py                                   micro, 10 clients, 10 steps of batch 4
    python benchmarks/integrity.py --partial 2 --steps 4             the last two blocks trained in full

Every check is timed without what it calls (local training, the model's gradient, the aggregation). A round is timed without
evaluation. Numbers are medians over rounds after a first one that warms up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

PAIRS = [
    ("fedavg", "fedit"),
    ("fedprox", "fedit"),
    ("scaffold", "fedit"),
    ("fedavg", "rolora"),
    ("fedavg", "fedex_lora"),
]
VOCABULARY = 4000  # random token ids below this: every backbone has as many


class Clock:
    """Seconds spent in each function, less those in other timed functions that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*given, **more)
            finally:
                took = time.perf_counter() - began
                self.seconds[name] += took - self._inner.pop()
                self._inner[-1] += took

        return call


def main() -> None:
    args = parse()
    clock = Clock()
    install(clock)
    print(f"{args.model}, {args.clients} clients, {args.steps} steps of {args.batch} x {args.length} tokens, ", end="")
    print(f"{os.cpu_count()} cores")
    print("| algorithm | aggregation | P | s a round | checks, ms | share | the dearest |")
    print("|---|---|---|---|---|---|---|")
    for algorithm, aggregation in PAIRS[: 3 if args.partial else None]:
        print(row(args, clock, algorithm, aggregation), flush=True)


def install(clock: Clock) -> None:
    """Put a clock into every check, and into the work that checks wrap."""
    from fedfault.rounds import integrity, trainer

    places: list[tuple[Any, str]] = [(integrity.CheckedTrain, "__init__"), (integrity.CheckedTrain, "__call__")]
    places += [(integrity.EntryCheck, "grad"), (integrity.AnchoredPull, "__call__"), (integrity, "quarantine")]
    places += [(integrity, f"check_{what}") for what in ("sent", "frozen", "base", "state")]
    for owner, name in places:
        label = f"{owner.__name__.removeprefix('fedfault.')}.{name}"
        setattr(owner, name, clock.timed(label, getattr(owner, name)))
    trainer.Trainer.__call__ = clock.timed("work", trainer.Trainer.__call__)  # type: ignore[method-assign]
    anchored, checked = integrity.AnchoredPull.__init__, integrity.check_aggregation

    def pulls(self: Any, pull: Any) -> None:
        anchored(self, clock.timed("work", pull))

    integrity.AnchoredPull.__init__ = pulls  # type: ignore[method-assign]

    def timed(aggregation: Any) -> Any:
        inside = checked(replace(aggregation, combine=clock.timed("work", aggregation.combine)))
        return replace(inside, combine=clock.timed("checked", inside.combine))

    integrity.check_aggregation = timed


def row(args: argparse.Namespace, clock: Clock, algorithm: str, aggregation: str) -> str:
    from fedfault.registry import build
    from fedfault.rounds.engine import begin, run_round
    from fedfault.rounds.federation import Federation
    from fedfault.rounds.local import LocalWork

    task, size = opened(args)
    task.grad = clock.timed("work", task.grad)
    task.checksums = clock.timed("checksums", task.checksums)
    fed = Federation(
        task=task,
        algorithm=build("algorithm", algorithm),
        aggregation=build("aggregation", aggregation),
        work=LocalWork(epochs=None, steps=args.steps, batch_size=args.batch, lr=1e-3, max_grad_norm=1.0),
        total_clients=args.clients,
        cohort_size=args.clients,
        num_rounds=args.rounds + 1,
        clients_per_pass=size,
    )
    state, rounds, checks, parts = begin(fed), [], [], []
    for t in range(fed.num_rounds):
        clock.seconds.clear()
        state, record = run_round(fed, state)
        if t:
            parts.append({name: s for name, s in clock.seconds.items() if name != "work"})
            checks.append(sum(parts[-1].values()))
            rounds.append(record.seconds["train"] + record.seconds["aggregate"])
    dearest = max(parts[0], key=lambda name: statistics.median(p.get(name, 0.0) for p in parts))
    whole, spent = statistics.median(rounds), statistics.median(checks)
    share = statistics.median(c / r for c, r in zip(checks, rounds, strict=True))
    P = task.layout.size
    return f"| {algorithm} | {aggregation} | {P:,} | {whole:.2f} | {1e3 * spent:.1f} | {share:.2%} | {dearest} |"


def opened(args: argparse.Namespace) -> tuple[Any, int]:
    """A task of random tokens, and the clients of a pass."""
    import torch

    from fedfault.backbones.cohort import CohortModel
    from fedfault.backbones.load import load_backbone
    from fedfault.backbones.sites import lora_targets, partial_targets
    from fedfault.tasks.language import LanguageTask
    from fedfault.text.packing import Blocks

    model = load_backbone(args.model, precision="fp32").model
    targets = partial_targets(model, args.partial, []) if args.partial else lora_targets(model, None)
    g, T = torch.Generator().manual_seed(0), args.length
    n = args.steps * args.batch
    data = [
        Blocks(torch.randint(VOCABULARY, (n, T + 1), generator=g), torch.full((n,), T)) for _ in range(args.clients)
    ]
    sets = {"topic/random": Blocks(data[0].ids[:1], data[0].targets[:1])}
    task = LanguageTask(CohortModel(model, targets, r=args.rank, alpha=16), data, sets, {"topic/random": 1.0})
    return task, max(1, task.tokens_per_pass() // (args.batch * T))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path("micro")))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--partial", type=int, default=0, help="train the last N blocks in full")
    return parser.parse_args()


if __name__ == "__main__":
    main()
