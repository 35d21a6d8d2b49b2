"""What training the runs of a study as one cohort could gain: a client's step in the cohort of one run and of several.

OMP_NUM_THREADS=1 python benchmarks/studies.py [model.precision=auto ...]

Runs are alike but for their seed, so that their clients could share a pass. The ratio is the time of a client's step in
runs one after another over that in runs together; a study with `--jobs` has both cores busy in either case.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from fedfault.cli import run_guarded
from fedfault.config import load
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.trainer import Trainer
from fedfault.setup.experiment import prepare
from fedfault.tasks.base import CohortTask

STEPS = 5
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for `fedfault run`")
    own = ["federation.total_clients=40", "evaluation.general=none", "federation.participation_rate=1.0"]
    p = prepare(load("quickstart", [*own, *parser.parse_args().settings]).experiment)
    task = p.federation.task
    assert isinstance(task, CohortTask)
    m = p.config.model
    print(f"{m.name}, {p.backbone.precision}, {m.max_length} tokens: ms for a client's step, best of {REPEATS}")
    print("| clients a round | batch | one run | 2 runs | 4 runs | ratio |\n|---|---|---|---|---|---|")
    for clients, batch in ((1, 1), (1, 4), (3, 4), (10, 1), (10, 4)):
        work = replace(p.federation.work, epochs=None, steps=STEPS, batch_size=batch)
        alone, *together = (1000 * _step(task, work, clients * runs) for runs in (1, 2, 4))
        cells = " | ".join(f"{ms:.1f}" for ms in (alone, *together))
        print(f"| {clients} | {batch} | {cells} | {alone / min(together):.2f} |", flush=True)


def _step(task: CohortTask, work: LocalWork, clients: int) -> float:
    """Seconds for a step of one client in a cohort of that many."""
    best = float("inf")
    for _ in range(REPEATS):
        passes = Passes(task.clients_per_pass(work.batch_size))
        train = Trainer(task, work, seed=0, round=1, clients=range(clients), passes=passes)
        clock = time.perf_counter()
        train(task.init(0))
        best = min(best, (time.perf_counter() - clock) / (STEPS * clients))
    return best


if __name__ == "__main__":
    sys.exit(run_guarded(main))
