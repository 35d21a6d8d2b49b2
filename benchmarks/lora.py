"""Two shapes of the federated LoRA literature on real text, with micro.

python benchmarks/lora.py grow      FedIT, FFA-LoRA and RoLoRA as clients grow at fixed total data
python benchmarks/lora.py exact     error of each aggregation per layer and round
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

from fedfault.config import load
from fedfault.metrics.aggregation import aggregation_error
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation
from fedfault.setup.experiment import Prepared, prepare
from fedfault.types.algorithm import Pooled, Uploads


def prepared(*settings: str) -> Prepared:
    return prepare(load(None, ["evaluation.general=none", *settings]).experiment)


def grow(args: argparse.Namespace) -> None:
    """Final loss by number of clients: all take part, each has total / N documents and works for the same steps."""
    print(f"| clients | {' | '.join(args.methods)} | (nats per token, mean and range of {args.seeds} seeds) |")
    print("|---" * (len(args.methods) + 2) + "|")
    for clients in args.clients:
        cells = []
        for method in args.methods:
            finals = []
            for seed in range(args.seeds):
                p = prepared(
                    f"data.dataset={args.dataset}",
                    f"data.partition={args.partition}",
                    f"federation.aggregation={method}",
                    f"federation.total_clients={clients}",
                    "federation.participation_rate=1.0",
                    f"federation.num_rounds={args.rounds}",
                    f"training.local_steps={args.steps}",
                    "training.batch_size=4",
                    f"training.lr={args.lr}",
                    f"model.lora.r_max={args.rank}",
                    f"evaluation.every={args.rounds}",
                    f"seed={seed}",
                )
                *_, (_, record) = rounds(p.federation, begin(p.federation))
                finals.append(record.scores["validation"].loss)
            cells.append(f"{statistics.fmean(finals):.3f} ({min(finals):.3f}–{max(finals):.3f})")
        print(f"| {clients} | {' | '.join(cells)} | |", flush=True)


def watched(fed: Federation, seen: list[dict[str, float]]) -> Federation:
    """The federation with the error of every average, by site, appended to `seen`."""

    def combine(got: Uploads) -> Pooled:
        pooled = fed.aggregation.combine(got)
        seen.append(aggregation_error(fed.task.layout, got.sent.flat, got.weight, pooled.adapter, pooled.fold)[1])
        return pooled

    return replace(fed, aggregation=replace(fed.aggregation, combine=combine))


def exact(args: argparse.Namespace) -> None:
    """Relative error of the aggregated weight change against the mean of the clients' changes, by layer and round."""
    for method in args.methods:
        p = prepared(
            f"federation.aggregation={method}",
            f"federation.num_rounds={args.rounds}",
            f"training.local_steps={args.steps}",
            f"evaluation.every={args.rounds}",
        )
        seen: list[dict[str, float]] = []
        fed = watched(p.federation, seen)
        for _ in rounds(fed, begin(fed)):
            pass
        print(f"\n{method}\n\n| layer | {' | '.join(f'round {t + 1}' for t in range(len(seen)))} |")
        print("|---" * (len(seen) + 1) + "|")
        for site in seen[0]:
            name = site.removeprefix("model.layers.").replace(".self_attn.", ": ")
            print(f"| {name} | {' | '.join(f'{errors[site]:.1e}' for errors in seen)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("grow")
    one.add_argument("--methods", nargs="+", default=["fedit", "ffa_lora", "rolora"])
    one.add_argument("--clients", nargs="+", type=int, default=[3, 12, 48])
    one.add_argument("--dataset", default="registers")
    one.add_argument("--partition", default="iid")
    one.add_argument("--rounds", type=int, default=8)
    one.add_argument("--steps", type=int, default=10)
    one.add_argument("--rank", type=int, default=2)
    one.add_argument("--lr", type=float, default=3e-3)
    one.add_argument("--seeds", type=int, default=2)
    one.set_defaults(run=grow)
    two = commands.add_parser("exact")
    two.add_argument("--methods", nargs="+", default=["fedit", "fedex_lora", "flora", "flexlora"])
    two.add_argument("--rounds", type=int, default=4)
    two.add_argument("--steps", type=int, default=10)
    two.set_defaults(run=exact)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
