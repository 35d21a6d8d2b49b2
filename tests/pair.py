"""One of two processes that train together, as `python pair.py FILE`; the first compares with training alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedfault.cli import run_guarded
from fedfault.config import load
from fedfault.parallel import distributed
from fedfault.rounds.engine import begin, rounds
from fedfault.setup.experiment import Prepared
from fedfault.setup.federation import build_federation

COMMON = [
    "federation.total_clients=5", "federation.clients_per_round=4", "federation.num_rounds=2", "training.batch_size=2",
    "training.local_steps=2", "model.max_length=16", "model.lora.r_max=4", "model.precision=fp32", "data.max_samples=60",
    "evaluation.max_blocks=4", "evaluation.general=none", "evaluation.every=2", "metrics.representation=false",
    "metrics.attention=false", "metrics.memory=false",
]  # fmt: skip
RUNS = {  # settings
    "fedavg": [],
    "fedprox": ["federation.algorithm=fedprox"],
    "scaffold": ["federation.algorithm=scaffold"],
    "ranks": [
        "federation.scheduler=lite", "federation.scheduler.r_bar=2", "federation.aggregation=blockwise",
        "tiers={fast: {count: 2}, slow: {count: 3, compute_factor: 0.5}}",
    ],
    "ifca": ["federation.algorithm=ifca"],
    "private factors": ["federation.aggregation=fedsa_lora"],
    "folded weights": ["federation.aggregation=fedex_lora"],
    "a lone client": ["federation.clients_per_round=1"],
}  # fmt: skip


def main() -> None:
    found, here = {}, counted()
    with distributed.lead_team() as others:
        p = others.prepare(load("quickstart", COMMON).experiment, lambda line: None)
        for name, settings in RUNS.items():
            exp = load("quickstart", [*COMMON, *settings]).experiment
            alone = replace(p, config=exp, federation=build_federation(exp, p.federation.task))
            found[name] = compared(alone, others) | {"trained here": here[:]}
            here.clear()
    Path(sys.argv[1]).write_text(json.dumps(found))


def counted() -> list[int]:
    """How many clients this process trains for the team, round by round."""
    found, plain = [], distributed.train_clients

    def train_clients(fed: Any, asked: Any) -> Any:
        found.append(len(asked.cohort.clients))
        return plain(fed, asked)

    distributed.train_clients = train_clients
    return found


def compared(alone: Prepared, others: distributed.Team) -> dict[str, Any]:
    """The same run in this process, and then by all."""
    task = alone.federation.task
    task.use_scorer(task.score)
    (one, before), (two, after) = (end(p) for p in (alone, others.spread(alone)))
    return {
        "adapter": same(one.adapter.flat, two.adapter.flat),
        "moved": not same(one.adapter.flat, task.init(0).flat),
        "memory": {name: same(a.flat, two.clients[name].flat) for name, a in one.clients.items()},
        "scores": {name: [score.loss, after.scores[name].loss] for name, score in before.scores.items()},
        "probes": {name: [value, after.probes[name]] for name, value in before.probes.items()},
        "bytes": [[r.bytes_up, r.bytes_down] for r in (before, after)],
    }


def end(p: Prepared) -> Any:
    """State and record of the last round."""
    return list(rounds(p.federation, begin(p.federation)))[-1]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-7)


if __name__ == "__main__":
    sys.exit(run_guarded(main))
