"""Do calibrations serve every family of algorithms, on corpora that they have not seen: false alarms, and faults found?

    python benchmarks/families.py --corpus NAME KEY=VALUE ... [--corpus ...] [--seeds 20] [--faults 2] [--only FAMILY ...]

Fresh runs of `demos/base` with IID clients, of every family on every corpus, and runs of FedAvg with the faults of
benchmarks/faults.py. Each is judged twice: by the packaged calibration of its family, which is of the corpus `registers`
(`fedfault run` would refuse it here); and, as `detectors.calibration=auto` would, by controls of its own corpus: a healthy
run by all other healthy ones, a broken one by all of them. Every run is kept in RESULTS/CORPUS/FAMILY and not repeated.
Seeds come round by round: a stopped benchmark has about as many of each. Prints the tables of docs/metrics.md, with 95 %
Clopper-Pearson intervals.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rules import find_interval

from faults import FAULTS, HEALTHY, IID, OWN, Judged, alarms, judge_folder, train
from fedfault.diagnosis.calibration import PACKAGED, Calibration
from fedfault.diagnosis.verdict import judge_run
from fedfault.setup.experiment import Prepared

RESULTS = Path("results/families")
FEDAVG = "fedavg"
FAMILIES = {  # family -> its packaged calibration, and its settings
    FEDAVG: ("demos", ()),
    "fedprox": ("demos-fedprox", ("federation.algorithm=fedprox",)),
    "scaffold": ("demos-scaffold", ("federation.algorithm=scaffold",)),
    "fedadam": ("demos-fedadam", ("federation.algorithm=fedadam",)),
    "fedsa_lora": ("demos-fedsa_lora", ("federation.aggregation=fedsa_lora",)),
    "flexlora": (
        "demos-flexlora",
        ("federation.aggregation=flexlora", "federation.scheduler={name: fixed, ranks: [2, 4, 8]}"),
    ),
}


def find_alarms(judged: Sequence[Judged], packaged: Calibration | None = None) -> list[set[str]]:
    """The detectors that alarm in each run, by the packaged thresholds or by those that came with it."""
    return [set(alarms(run, packaged or own)) for _, run, own in judged]


def is_judged_apart(judged: Sequence[Judged]) -> bool:
    """Whether runs have thresholds of their own corpus: there are enough others for that."""
    return all(own.name == OWN for _, _, own in judged)


def format_rate(hits: Sequence[bool]) -> str:
    """`2/60 (0 % to 12 %)`; a dash for no runs."""
    if not hits:
        return "–"
    low, high = find_interval(sum(hits), len(hits))
    return f"{sum(hits)}/{len(hits)} ({100 * low:.0f} % to {100 * high:.0f} %)"


def format_detectors(found: Sequence[set[str]]) -> str:
    """Which detectors alarmed in how many runs."""
    return ", ".join(f"{name} {n}" for name, n in Counter(d for f in found for d in f).most_common()) or "none"


def print_healthy(corpora: Sequence[str], folder: Path) -> None:
    """Print the false alarms of every family, by corpus and in all."""
    print("\n| family | corpus | thresholds of registers | alarms of | thresholds of the corpus | alarms of |")
    print("|---|---|---:|---|---:|---|")
    for family, (name, _) in FAMILIES.items():
        file = PACKAGED / f"{name}.json"
        packaged = Calibration.load(file) if file.is_file() else None
        pooled: tuple[list[set[str]], list[set[str]]] = ([], [])
        for corpus in corpora:
            if not (judged := judge_folder(folder / corpus / family)[0]):
                continue
            found = find_alarms(judged, packaged), find_alarms(judged) if is_judged_apart(judged) else []
            pooled = (pooled[0] + found[0], pooled[1] + found[1])
            print(format_row(family, corpus, found))
        print(format_row(family, "**all**", pooled))


def format_row(family: str, corpus: str, judged: tuple[list[set[str]], list[set[str]]]) -> str:
    """A line of the table of false alarms."""
    cells = [family, corpus]
    for found in judged:
        cells += [format_rate([bool(f) for f in found]), format_detectors(found)]
    return f"| {' | '.join(cells)} |"


def print_faults(corpora: Sequence[str], folder: Path) -> None:
    """Print which faults are found in FedAvg's runs, of all corpora together."""
    print(
        "\n| run | what is broken | thresholds of registers | the right one | thresholds of the corpus | the right one "
        "| named as the cause |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    packaged = Calibration.load(PACKAGED / f"{FAMILIES[FEDAVG][0]}.json")
    broken = [one for corpus in corpora for one in judge_folder(folder / corpus / FEDAVG)[1]]
    for name, fault in FAULTS.items():
        runs = [one for one in broken if one[0] == name]
        if runs and is_judged_apart(runs):
            cells = [name, fault.about]
            for found in (find_alarms(runs, packaged), find_alarms(runs)):
                cells += [format_rate([bool(f) for f in found])]
                cells += [format_rate([bool(set(fault.expected) & f) for f in found])]
            causes = [judge_run(records, own)["causes"] for _, records, own in runs]
            cells += [format_rate([bool(set(fault.expected) & set(c)) for c in causes])]
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Run what is missing, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", action="append", required=True, metavar=("NAME", "KEY=VALUE"))
    parser.add_argument("--seeds", type=int, default=20, help="healthy runs of a family on a corpus")
    parser.add_argument("--faults", type=int, default=2, help="runs of a fault on a corpus")
    parser.add_argument("--only", nargs="*", choices=FAMILIES, help="without a name only the tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs' records")
    a = parser.parse_args()
    corpora = {name: settings for name, *settings in a.corpus}
    like: dict[str, Prepared | None] = dict.fromkeys(corpora)
    for seed in range(max(a.seeds, a.faults)):
        for corpus, data in corpora.items():
            for family, (_, settings) in FAMILIES.items():
                if a.only is not None and family not in a.only:
                    continue
                folder = a.results / corpus / family
                folder.mkdir(parents=True, exist_ok=True)
                todo = {IID: dataclasses.replace(HEALTHY[IID], settings=settings)} if seed < a.seeds else {}
                if family == FEDAVG and seed < a.faults:
                    todo |= FAULTS
                for name, fault in todo.items():
                    like[corpus] = train(name, fault, seed, like[corpus], folder, data)
    print_healthy(list(corpora), a.results)
    print_faults(list(corpora), a.results)


if __name__ == "__main__":
    main()
