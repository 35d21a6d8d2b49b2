"""Do hostile clients stand out? How well three numbers of a round's updates tell them from honest ones, run by run.

    fedfault study robust
    python benchmarks/hostile.py results/robust

For every run of a study with attacks, and for those in which everybody is honest. A client's number is its mean over the
rounds; the area under the ROC curve is over all clients of a kind of run, where 0.5 is a coin:

    length      |log(norm of its update / median norm of the round)|
    direction   minus the median cosine between its update and the others'
    likeness    the largest cosine between its update and another one

`accused` is the share of honest clients, in runs in which all are honest, that stand out as far as half of the hostile ones
do: what it costs to take being different for being hostile.
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

NUMBERS = ("length", "direction", "likeness")
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
    attacks = "+".join(a["name"] for a in run.setting("attacks") or ()) or "honest"
    return attacks, str(run.setting("data", "partition", "name")), str(run.setting("federation", "aggregation", "name"))


def find_hostile_clients(run: RunData) -> set[int]:
    """The clients that the events of the run name."""
    told = [e for r in run.records for e in r.events if e.startswith("hostile clients: ")]
    parts = [part for e in told for part in e.removeprefix("hostile clients: ").split("; ")]
    return {int(k) for part in parts for k in part.partition(" by ")[2].split(", ")}


def measure_clients(run: RunData) -> dict[int, dict[str, float]]:
    """The three numbers of every client, means over the rounds."""
    seen: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in run.records:
        for client, found in measure_round(record).items():
            for name, value in found.items():
                seen[client][name].append(value)
    return {k: {name: statistics.fmean(values) for name, values in found.items()} for k, found in seen.items()}


def measure_round(record: RoundRecord) -> dict[int, dict[str, float]]:
    """The three numbers of the clients of one round."""
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
    return out


def find_area(hostile: list[float], honest: list[float]) -> float:
    """Area under the ROC curve: how often a hostile client has the larger number, ties half.

    >>> find_area([3.0, 1.0], [1.0, 0.0])
    0.875
    """
    wins = sum((a > b) + (a == b) / 2 for a in hostile for b in honest)
    return wins / (len(hostile) * len(honest))


def print_table(honest: dict[Kind, dict[str, list[float]]], hostile: dict[Kind, dict[str, list[float]]]) -> None:
    """A row for every kind of run with an attack: areas, and who is accused where everybody is honest."""
    print(f"| attack | partition | aggregation | {' | '.join(NUMBERS)} | accused by the best |")
    print("|---" * 7 + "|")
    for kind in sorted(hostile):
        areas = {name: find_area(hostile[kind][name], honest[kind][name]) for name in NUMBERS if honest[kind][name]}
        best = max(areas, key=lambda name: areas[name], default=NUMBERS[0])
        limit = statistics.median(hostile[kind][best])
        plain = honest.get(("honest", *kind[1:]), {}).get(best, [])
        accused = f"{sum(v >= limit for v in plain) / len(plain):.0%} ({best})" if plain else "-"
        print(f"| {' | '.join(kind)} | {' | '.join(f'{areas.get(n, math.nan):.2f}' for n in NUMBERS)} | {accused} |")


if __name__ == "__main__":
    main()
