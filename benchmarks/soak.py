"""Does a long run stay as it began? Memory, open files and processor time of one process, from outside it.

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--rounds 1000] [--clients 100] [--per-round 30] [SETTING=VALUE ...]

Runs `fedfault run` on `micro`, and looks at the process whenever a record is written.
Warm-up ends with the first picture of the live page, after 100 s, which loads fonts and a library for figures. Prints the
means of the first tenth of the rounds after it and of the last tenth, the ratio of both, and the memory of every tenth.
Needs Linux's /proc. The folder of the run is deleted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import NamedTuple

SMALL = (
    "training.local_steps=2", "training.batch_size=2", "model.max_length=16",
    "data.partition=iid", "evaluation.max_blocks=4", "evaluation.general_blocks=4", "evaluation.every=10",
)  # fmt: skip


WARM_UP = 110.0  # seconds


class Sample(NamedTuple):
    """What the process looks like after a round: MB of memory that is its own, open files, seconds of processor time.

    at: seconds since the start
    """

    memory: float
    files: int
    seconds: float
    at: float


def look_at(pid: int, since: float) -> Sample:
    """Look from outside at a process that began at `since`."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    seconds = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return Sample(
        int(anonymous.split()[1]) / 1024, len(os.listdir(f"/proc/{pid}/fd")), seconds, time.monotonic() - since
    )


def watch_run(command: list[str], records: Path) -> list[Sample]:
    """Start a run, and look at it after every round."""
    found: list[Sample] = []
    size, since = 0, time.monotonic()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            now = records.stat().st_size if records.exists() else 0
            if now > size:
                size = now
                found.append(look_at(process.pid, since))
            time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"the run ended with status {process.returncode}")
    return found


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--per-round", type=int, default=30)
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *SMALL, f"federation.num_rounds={args.rounds}", f"federation.total_clients={args.clients}",
            f"federation.clients_per_round={args.per_round}",
            "experiment_name=soak", f"logging.results_dir={folder}", *args.settings,
        ]  # fmt: skip
        command = [sys.executable, "-m", "fedfault", "run", "--quiet", "quickstart", *words]
        found = watch_run(command, Path(folder) / "soak" / "rounds.jsonl")
    found = found[:-1]  # what is done after the last round is none of it
    tenths = [found[i * len(found) // 10 : (i + 1) * len(found) // 10] for i in range(10)]
    warm = [part for part in tenths if part[0].at > WARM_UP]
    if len(warm) < 2:
        raise SystemExit(f"the run took {found[-1].at:.0f} s, and warm-up is {WARM_UP:g} s: give more --rounds")
    parts = warm[0], warm[-1]
    print(f"{len(found)} rounds seen, {args.clients} clients")
    rows = {
        "memory (MB)": [mean(s.memory for s in part) for part in parts],
        "open files": [mean(s.files for s in part) for part in parts],
        "seconds a round": [(part[-1].seconds - part[0].seconds) / (len(part) - 1) for part in parts],
    }
    for name, (first, last) in rows.items():
        print(f"{name:<16} {first:10.3f} {last:10.3f}   x {last / first:.3f}")
    print("memory by tenths", *(f"{mean(s.memory for s in part):.1f}" for part in tenths))


if __name__ == "__main__":
    main()
