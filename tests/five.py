"""Five experiments that differ in all that could disturb a number, as `python five.py FILE`: what comes out, as JSON.

Between them: dropout, unequal ranks, client memory, a head, changes of the frozen weights, factors that stay with clients.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedfault.config import load
from fedfault.rounds.federation import Federation
from fedfault.setup.experiment import Prepared, prepare
from fedfault.testing.toys import run_to_end
from small import SMALL

COMMON = [
    *SMALL,
    "federation.num_rounds=2",
    "metrics.gradients=true",
    "evaluation.general=none",
    "model.precision=fp32",
]
EXPERIMENTS = {
    "fedavg": [],
    "scaffold with dropout": ["federation.algorithm=scaffold", "model.lora.dropout=0.1"],
    "unequal ranks": [
        "federation.scheduler=lite", "federation.scheduler.r_bar=2", "federation.aggregation=blockwise",
        "tiers={fast: {count: 2}, slow: {count: 1, compute_factor: 0.5}}",
    ],
    "classification": ["data.task_type=classification", "federation.algorithm=fedprox"],
    "folded weights": ["federation.aggregation=fedex_lora", "training.optimizer=sgd"],
}  # fmt: skip


@lru_cache
def experiment(name: str) -> Prepared:
    """The experiment of this name, prepared once a process."""
    return prepare(load("quickstart", [*COMMON, *EXPERIMENTS[name]]).experiment)


def numbers(fed: Federation) -> dict[str, Any]:
    """The trained numbers, and the records without their seconds."""
    state, records = run_to_end(replace(fed))
    fed.task.fold({})
    return {
        "trained": state.adapter.flat.tolist(),
        "records": [{k: v for k, v in r.to_json().items() if k != "seconds"} for r in records],
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({name: numbers(experiment(name).federation) for name in EXPERIMENTS}))
