"""Do hostile clients stand out? How well some numbers of a round's updates tell them from honest ones, run by run.

    fedfault study quiet
    python benchmarks/hostile.py results/quiet

For every run of a study with attacks, and for those in which everybody is honest. A client's number is its mean over the
rounds in which it was measured; the area under the ROC curve is over all clients of a kind of run, where 0.5 is a coin:

    length      |log(norm of its update / median norm of the round)|
    direction   minus the median cosine between its update and the others'
    likeness    the largest cosine between its update and another one
    harm        how much smaller the validation loss would be without its update (metrics.contributions=true)

Every number has two thresholds, each the smallest that at most 5 % of the clients of runs exceed in which all are honest: of
IID clients, and of clients of the same partition. `found` is the share of hostile clients above it. `accused` is the share
of honest clients of the partition, in runs in which all are honest, above the threshold of IID ones: being different taken
for being hostile.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from pathlib import Path

from fedfault.records import RoundRecord
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData

NUMBERS = ("length", "direction", "likeness", "harm")
FALSE = 0.05  # of the honest clients that a threshold comes from are above it
Kind = tuple[str, str, str]  # attack, partition, aggregation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path, help="folder of a finished study")
    honest: dict[Kind, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    hostile: dict[Kind, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder in sorted((parser.parse_args().study / "runs").iterdir()):
        if (folder / "metrics.json").is_file():
            run = read_run(folder)
            kind, bad = describe(run), find_hostile_clients(run)
            for client, found in measure_clients(run).items():
                for name, value in found.items():
                    (hostile if client in bad else honest)[kind][name].append(value)
    print_table(honest, hostile)


def describe(run: RunData) -> Kind:
    """The attack, the partition and the aggregation of a run; no attack is `honest`."""
    made = [f"{a['name']} x {a['factor']:g}" if "factor" in a else a["name"] for a in run.setting("attacks") or ()]
    attacks = " + ".join(made) or "honest"
    return attacks, str(run.setting("data", "partition", "name")), str(run.setting("federation", "aggregation", "name"))


def find_hostile_clients(run: RunData) -> set[int]:
    """The clients that the events of the run name."""
    told = [e for r in run.records for e in r.events if e.startswith("hostile clients: ")]
    parts = [part for e in told for part in e.removeprefix("hostile clients: ").split("; ")]
    return {int(k) for part in parts for k in part.partition(" by ")[2].split(", ")}


def measure_clients(run: RunData) -> dict[int, dict[str, float]]:
    """The numbers of every client, means over the rounds in which they were measured."""
    seen: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in run.records:
        for client, found in measure_round(record).items():
            for name, value in found.items():
                seen[client][name].append(value)
    return {k: {name: statistics.fmean(values) for name, values in found.items()} for k, found in seen.items()}


def measure_round(record: RoundRecord) -> dict[int, dict[str, float]]:
    """The numbers of the clients of one round."""
    cosines = record.matrices.get("update_cosine", ())
    if len(record.clients) < 3 or not cosines:
        return {}
    middle = statistics.median(c.update_norm for c in record.clients)
    out = {}
    for i, c in enumerate(record.clients):
        others = [v for j, v in enumerate(cosines[i]) if j != i and math.isfinite(v)]
        if others and c.update_norm > 0 and middle > 0:
            out[c.client] = {
                "length": abs(math.log(c.update_norm / middle)),
                "direction": -statistics.median(others),
                "likeness": max(others),
            }
            if (effect := c.probes.get("contribution/validation")) is not None:
                out[c.client]["harm"] = -effect
    return out


def find_area(hostile: list[float], honest: list[float]) -> float:
    """Area under the ROC curve: how often a hostile client has the larger number, ties half.

    >>> find_area([3.0, 1.0], [1.0, 0.0])
    0.875
    """
    wins = sum((a > b) + (a == b) / 2 for a in hostile for b in honest)
    return wins / (len(hostile) * len(honest))


def find_threshold(honest: list[float]) -> float:
    """The smallest value that at most 5 % of the honest clients are above.

    >>> find_threshold([float(i) for i in range(100)])
    94.0
    """
    return sorted(honest)[math.ceil((1 - FALSE) * len(honest)) - 1]


def print_table(honest: dict[Kind, dict[str, list[float]]], hostile: dict[Kind, dict[str, list[float]]]) -> None:
    """A row for every kind of run with an attack and every number: area, who is found, and who is accused."""
    print(
        "| attack | partition | aggregation | number | area | found, IID threshold | accused | found, own threshold |"
    )
    print("|---" * 8 + "|")
    for kind in sorted(hostile):
        attack, partition, rule = kind
        iid, same = honest.get(("honest", "iid", rule), {}), honest.get(("honest", partition, rule), {})
        for name in (n for n in NUMBERS if hostile[kind].get(n) and iid.get(n) and same.get(n)):
            bad, shares = hostile[kind][name], []
            for group, threshold in ((bad, iid), (same[name], iid), (bad, same)):
                limit = find_threshold(threshold[name])
                shares.append(f"{sum(v > limit for v in group) / len(group):.0%}")
            area = find_area(bad, honest[kind][name])
            print(f"| {attack} | {partition} | {rule} | {name} | {area:.2f} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
