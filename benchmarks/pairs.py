"""Every algorithm with every aggregation on the quickstart's data: what is refused and why, and what the others give.

python benchmarks/pairs.py > docs/pairs.md
"""

from __future__ import annotations

import argparse
import sys

from fedfault.backbones.load import say_nothing
from fedfault.clustering.remedy import fill_in_clusters
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.records import RoundRecord
from fedfault.registry import load_builders
from fedfault.rounds.engine import begin, rounds
from fedfault.setup.experiment import prepare

HEAD = """# Algorithms and aggregations

    python benchmarks/pairs.py {args}> docs/pairs.md

The quickstart (ten clients with one register each, three a round) with {rounds} rounds of {steps} steps and every
component's defaults; one seed, so that small differences mean nothing. Perplexity of the mixture before training:
{start:.1f}. Drift: the mean distance of client updates from their mean, over its length, in the last round. Error: of the
aggregated weight change against the mean of the clients' changes, relative, in the last round. Bytes: of one client in the
last round. Personal: perplexity of each client's own model on its held-out text, where clients have one.

| algorithm | aggregation | perplexity | personal | drift | error | bytes up | bytes down |
|---|---|---|---|---|---|---|---|"""


def row(algorithm: str, method: str, records: list[RoundRecord]) -> str:
    last = records[-1]
    personal = f"{last.scores['personal'].perplexity:.1f}" if "personal" in last.scores else "–"
    probes = [f"{last.probes[n]:.3f}" if n in last.probes else "–" for n in ("update_divergence", "aggregation_error")]
    up, down = (max(moved) for moved in zip(*((c.bytes_up, c.bytes_down) for c in last.clients), strict=True))
    cells = [
        algorithm,
        method,
        f"{last.scores['validation'].perplexity:.1f}",
        personal,
        *probes,
        f"{up:,}",
        f"{down:,}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    settings = [f"federation.num_rounds={args.rounds}", f"training.local_steps={args.steps}"]
    settings += [f"evaluation.every={args.rounds}", "evaluation.general=none", "evaluation.max_blocks=24"]
    settings += [f"metrics.{probe}=false" for probe in ("gradients", "representation", "attention", "memory")]
    refused, worse = [], []
    lent = None  # model and data are the same for all
    for algorithm in load_builders("algorithm"):
        for method in load_builders("aggregation"):
            pair = [f"federation.algorithm={algorithm}", f"federation.aggregation={method}"]
            try:
                p = prepare(load(None, [*settings, *pair]).experiment, like=lent)
                lent = lent or p
                fed = fill_in_clusters(p, say_nothing)[0].federation
            except UserError as refusal:
                refused.append(f"* {algorithm} + {method}: {str(refusal).partition(': ')[2]}")
                continue
            records = [record for _, record in rounds(fed, begin(fed))]
            start = records[0].scores["validation"].perplexity
            if (algorithm, method) == (
                next(iter(load_builders("algorithm"))),
                next(iter(load_builders("aggregation"))),
            ):
                print(HEAD.format(args=" ".join(sys.argv[1:]) + " " * bool(sys.argv[1:]), **vars(args), start=start))
            print(row(algorithm, method, records), flush=True)
            if not records[-1].scores["validation"].perplexity < start:
                worse.append(f"* {algorithm} + {method}")
    print("\nRefused, because the two do not go together:\n")
    print("\n".join(refused))
    print(
        "\nNo better than before training, in so short a run with these defaults:\n"
        if worse
        else "\nAll of them learn."
    )
    print("\n".join(worse))


if __name__ == "__main__":
    main()
