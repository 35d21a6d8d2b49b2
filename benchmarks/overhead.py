"""What does a round cost beside the clients' work? Processor time of the engine with trivial clients.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--clients 10] [--rounds 500]

Every client takes one step on a quadratic in 1,000 numbers; the time in the task, which stands for the model, is left out.
Prints the lowest median of 50 rounds in a row, the first tenth left out: other work on the machine makes some of them long.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import Quadratic, federation

WIDTH = 1000  # trained numbers
PART = 50  # rounds of a median


class Timed(Quadratic):
    """A quadratic that counts the seconds spent in it."""

    spent = 0.0

    def _time(self, call: Callable[..., Any], *args: Any) -> Any:
        began = time.process_time()
        found = call(*args)
        self.spent += time.process_time() - began
        return found

    def grad(self, *args: Any) -> Any:
        """See `Quadratic`."""
        return self._time(super().grad, *args)

    def evaluate(self, *args: Any) -> Any:
        """See `Quadratic`."""
        return self._time(super().evaluate, *args)


def measure_round(clients: int, num_rounds: int, algorithm: str) -> tuple[float, float]:
    """Measure milliseconds of a round outside and inside the task."""
    task = Timed([[1.0] * WIDTH] * clients, [[float(i)] * WIDTH for i in range(clients)], [8] * clients)
    fed = federation(task, algorithm, num_rounds=num_rounds, work={"steps": 1})
    engine, inside, began = [], [], time.process_time()
    for _ in rounds(fed, begin(fed)):
        total = time.process_time() - began
        engine.append(1e3 * (total - task.spent))
        inside.append(1e3 * task.spent)
        task.spent, began = 0.0, time.process_time()
    warm = num_rounds // 10
    return _find_lowest(engine[warm:]), _find_lowest(inside[warm:])


def _find_lowest(values: list[float]) -> float:
    return min(median(values[i : i + PART]) for i in range(0, max(1, len(values) - PART + 1), PART))


def main() -> None:
    """Measure, and print a line an algorithm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=500)
    args = parser.parse_args()
    for algorithm in ("fedavg", "fedprox", "scaffold", "feddyn"):
        engine, task = measure_round(args.clients, args.rounds, algorithm)
        print(f"{algorithm:<10} {engine:6.2f} ms a round, and {task:.2f} ms in the task")


if __name__ == "__main__":
    main()
