"""Early warning: how many rounds before the loss alone says so does a detector raise its alarm?

    python benchmarks/faults.py --fresh 0 --seeds 3      # the runs, kept in results/faults
    python benchmarks/early.py [FOLDER ...]              # the table of docs/metrics.md

The loss alone says so in the first round in which an evaluation's validation loss is

    not a number,
    or over 10 % above that of the evaluation before, or above that before training,
    or has risen in three evaluations in a row:

what somebody sees who looks at the curve. Runs are judged by the healthy ones of their folder where it has more than three,
else by the packaged calibration `demos`. Reads records only, so that it takes seconds.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rules import RISING, SPIKE

from faults import FAULTS, RESULTS, Judged, alarms, judge_folder
from fedfault.records import Records, get_validation_losses


def find_round_of_loss(records: Records) -> int | None:
    """The first round in which the validation loss alone says that something is wrong; None if it never does."""
    rounds, losses = get_validation_losses(records)
    rises = 0
    for (_, before), (t, now) in itertools.pairwise(zip(rounds, losses, strict=True)):
        rises = rises + 1 if now > before else 0
        if not math.isfinite(now) or now > (1 + SPIKE) * before or now > losses[0] or rises >= RISING:
            return t
    return None


def format_row(name: str, runs: Sequence[Judged]) -> str:
    """A line of the table: rounds of first alarms, of any detector and of those that the fault is about, and of the loss."""
    fault = FAULTS[name]
    found = [alarms(records, calibration) for _, records, calibration in runs]
    first = [min(a.values(), default=None) for a in found]
    right = [min((a[d] for d in fault.expected if d in a), default=None) for a in found]
    told = [find_round_of_loss(records) for _, records, _ in runs]
    leads = [loss - alarm for loss, alarm in zip(told, first, strict=True) if loss is not None and alarm is not None]
    never = sum(loss is None for loss in told)
    lead = f"{np.median(leads):+.0f} ({min(leads):+d} to {max(leads):+d})" if leads else "–"
    cells = [
        name,
        fault.about,
        str(len(runs)),
        *map(_format_rounds, (first, right, told)),
        lead,
        f"{never}/{len(runs)}",
    ]
    return f"| {' | '.join(cells)} |"


def _format_rounds(rounds: Sequence[int | None]) -> str:
    known = [t for t in rounds if t is not None]
    return f"{np.median(known):.0f}" if known else "–"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[RESULTS], help="results of benchmarks/faults.py")
    folders = parser.parse_args().folders
    broken = [judged for folder in folders for judged in judge_folder(folder)[1]]
    head = (
        "run",
        "what is broken",
        "runs",
        "first alarm",
        "of the right one",
        "by the loss",
        "rounds ahead",
        "loss never tells",
    )
    print(f"| {' | '.join(head)} |\n|---|---|{'---:|' * (len(head) - 2)}")
    for name in FAULTS:
        if runs := [judged for judged in broken if judged[0] == name]:
            print(format_row(name, runs))


if __name__ == "__main__":
    main()
