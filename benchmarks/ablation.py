"""Is what a verdict calls the cause the cause? Every fault is taken away when its detector has raised the alarm.

    python benchmarks/ablation.py [--seeds 1] [--only NAME ...]

The faults of benchmarks/faults.py on `demos/base`, and a fork of each at the round of the first right alarm, whose settings
or parts are mended (see CURES), as `fedfault fork` does it. By the packaged calibration: which detectors are in alarm at the
end, with the fault and without it. Prints the table of docs/metrics.md; ten minutes of a core.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from faults import FAULTS, Fault, alarms
from fedfault.config.loading import load
from fedfault.diagnosis.calibration import PACKAGED, Calibration
from fedfault.diagnosis.detection import Detection
from fedfault.records import Records
from fedfault.rounds.engine import begin, rounds
from fedfault.seeds import entropy
from fedfault.setup.experiment import Prepared, prepare

CURES: dict[str, tuple[str, ...]] = {  # settings of the fork; the others are cured by leaving out what was injected
    "lr_x20": ("training.lr=3e-3",),
    "lr_x10_skew": ("training.lr=3e-3",),
    "server_x2.5": ("federation.algorithm.server_lr=1.0",),
    "server_beta": ("federation.algorithm.beta=0.0",),
    "lr_/100": ("training.lr=3e-3",),
    "drift": ("training.local_steps=8",),
    "collapse": ("training.lr=3e-3",),  # its rank of 1 stays: an adapter cannot change its shape
}


def find_holding(records: Records, calibration: Calibration) -> set[str]:
    """The detectors that are in alarm at the end."""
    courses = Detection(calibration, records=records).courses
    return {name for name, course in courses.items() if course.state == "alarm"}


def try_cure(name: str, fault: Fault, seed: int, calibration: Calibration) -> tuple[int, set[str], set[str]] | None:
    """The round of the fork, and the alarms at the end with the fault and without it; None where it was not found."""
    settings = [*fault.settings, f"seed={entropy(seed, 'ablation', name) % 2**31}"]
    p = prepare(load("demos/base", settings).experiment)
    broken: Prepared = fault.inject(p)
    states, records = [], []
    for state, record in rounds(broken.federation, begin(broken.federation)):
        states.append(state)
        records.append(record)
    p.model.fold({})
    first = alarms(records, calibration)
    if not set(fault.expected) & set(first):
        return None
    fork = min(first[d] for d in fault.expected if d in first)
    cured = prepare(load("demos/base", [*settings, *CURES.get(name, ())]).experiment)
    healed = [*records[: fork + 1], *(record for _, record in rounds(cured.federation, states[fork]))]
    cured.model.fold({})
    return fork, find_holding(records, calibration), find_holding(healed, calibration)


def format_row(name: str, fault: Fault, tried: Sequence[tuple[int, set[str], set[str]] | None]) -> str:
    """A line of the table."""
    found = [one for one in tried if one is not None]
    sides = [ill for _, ill, _ in found], [well for _, _, well in found]
    counts = [Counter(d.replace("_", " ") for one in side for d in one) for side in sides]
    cells = [", ".join(f"{d} {n}" if len(found) > 1 else d for d, n in c.most_common()) or "none" for c in counts]
    at = ", ".join(str(t) for t, _, _ in found) or "not found"
    return f"| {name} | {fault.about} | {at} | {' | '.join(cells)} |"


def main() -> None:
    """Train every fault and its fork, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=FAULTS)
    a = parser.parse_args()
    calibration = Calibration.load(PACKAGED / "demos.json")
    print("| run | what is broken | fork at round | alarms at the end | at the end of the fork without the fault |")
    print("|---|---|---:|---|---|")
    for name, fault in FAULTS.items():
        if a.only is None or name in a.only:
            found = [try_cure(name, fault, seed, calibration) for seed in range(a.seeds)]
            print(format_row(name, fault, found), flush=True)


if __name__ == "__main__":
    main()
