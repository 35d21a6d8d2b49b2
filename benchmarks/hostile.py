"""Do hostile clients stand out? How well some numbers of a round's updates tell them from honest ones, run by run.

    fedfault study quiet
    python benchmarks/hostile.py results/quiet
    fedfault calibrate CONFIG --honest                    # the configuration of the study's honest clients of one partition
    python benchmarks/hostile.py results/quiet --honest results/NAME-honest

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

With `--honest` the detector `hostile_client` is asked, by the thresholds of these controls: in how many runs of the same
partition it is in alarm at the end, how many hostile clients its sentence then names, and how many honest ones, each with an
interval of 95 % (Wilson) that takes clients for independent. Of the controls themselves each is judged by the others.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedfault.detectors.hostile import NUMBERS, average_rounds
from fedfault.diagnosis.calibration import ALPHA, Calibration, Threshold, learn_thresholds
from fedfault.diagnosis.detection import Detection, build_detectors
from fedfault.records import Records
from fedfault.runs.files import read_records
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData

DETECTOR = "hostile_client"
FALSE = 0.05  # of the honest clients that a threshold comes from are above it
Kind = tuple[str, str, str]  # attack, partition, aggregation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path, help="folder of a finished study")
    parser.add_argument("--honest", type=Path, help="folder of honest controls, of `fedfault calibrate --honest`")
    given = parser.parse_args()
    runs = [read_run(f) for f in sorted((given.study / "runs").iterdir()) if (f / "metrics.json").is_file()]
    honest: dict[Kind, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    hostile: dict[Kind, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        kind, bad = describe(run), find_hostile_clients(run)
        for client, found in average_rounds(run.records).items():
            for name, value in found.items():
                (hostile if client in bad else honest)[kind][name].append(value)
    print_table(honest, hostile)
    if given.honest:
        print_named(runs, given.honest)


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


def name_clients(records: Records, thresholds: Mapping[str, Threshold]) -> set[int] | None:
    """The clients that `hostile_client` names at the end of a run; None where it is not in alarm."""
    seen = Detection(Calibration("controls", thresholds, 0, ALPHA, True, {}), records=records)
    course = seen.courses[DETECTOR]
    if course.state != "alarm":
        return None
    return {int(name.removeprefix("client ")) for name in course.last[-1].evidence if name.startswith("client ")}


def print_named(runs: Sequence[RunData], folder: Path) -> None:
    """A row for every kind of run of the controls' partition: alarms, hostile clients named, honest clients accused."""
    controls = [read_records(file)[0] for file in sorted(folder.glob("control-*.jsonl"))]
    of = Calibration.load(folder / "calibration.json").config["data"]["partition"]
    known = {DETECTOR: build_detectors()[DETECTOR]}
    learned, _ = learn_thresholds(controls, known, same_partition=True)
    named: dict[str, list[tuple[set[int] | None, set[int], int]]] = defaultdict(list)
    for i, records in enumerate(controls):
        rest, _ = learn_thresholds([*controls[:i], *controls[i + 1 :]], known, same_partition=True)
        named["honest controls, each by the others"].append(
            (name_clients(records, rest), set(), count_clients(records))
        )
    for run in runs:
        if run.setting("data", "partition") == of:
            kind = " x ".join(part for part in describe(run) if part != of["name"])
            named[kind].append(
                (name_clients(run.records, learned), find_hostile_clients(run), count_clients(run.records))
            )
    print("\n| runs | alarm | hostile named | honest accused |\n|---|---|---|---|")
    for kind, found in named.items():
        there, all_bad = [names or set() for names, _, _ in found], sum(len(bad) for _, bad, _ in found)
        right = sum(len(names & bad) for names, (_, bad, _) in zip(there, found, strict=True))
        wrong = sum(len(names - bad) for names, (_, bad, _) in zip(there, found, strict=True))
        good = sum(n for *_, n in found) - all_bad
        alarms = sum(names is not None for names, *_ in found)
        print(f"| {kind} | {alarms} of {len(found)} | {tell(right, all_bad)} | {tell(wrong, good)} |")


def count_clients(records: Records) -> int:
    """How many clients took part in a run."""
    return len({c.client for r in records for c in r.clients})


def tell(k: int, n: int) -> str:
    """k of n, with Wilson's interval.

    >>> tell(0, 10), tell(0, 0)
    ('0 of 10 (0% to 28%)', '–')
    """
    if not n:
        return "–"
    z, share = 1.959964, k / n
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((middle + way * half) / (1 + z * z / n) for way in (-1, 1))
    return f"{k} of {n} ({max(low, 0.0):.0%} to {min(high, 1.0):.0%})"


if __name__ == "__main__":
    main()
