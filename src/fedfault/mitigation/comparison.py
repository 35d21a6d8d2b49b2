"""Clusters beside other ways to train on the same data and budget: numbers of every client, paired by client and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfault.records import Records
from fedfault.stats import nested_interval

CLUSTERS = "clusters"  # the arm that the others are compared with
TITLES = {
    CLUSTERS: "a model a cluster",
    "vanilla": "one model for all",
    "ifca": "IFCA",
    "local": "each client alone",
    "central": "all data in one place",
}
Losses = Mapping[str, float]  # client -> held-out loss at the end, under the model that it uses


@dataclass(frozen=True)
class Arm:
    """One way to train, with a seed: what it did for every client, and what it cost."""

    losses: Losses
    gains: Losses  # since before training
    steps: int  # optimiser steps of all clients
    bytes: int  # up and down
    seconds: float

    @classmethod
    def of(cls, records: Records) -> Arm:
        """From the records of a run."""
        scored = [{n: s.loss for n, s in r.scores.items() if n.startswith("client/")} for r in records if r.scores]
        first, last = scored[0], scored[-1]
        return cls(
            losses={n.removeprefix("client/"): loss for n, loss in last.items()},
            gains={n.removeprefix("client/"): first[n] - loss for n, loss in last.items()},
            steps=sum(c.steps for r in records for c in r.clients),
            bytes=sum(r.bytes_up + r.bytes_down for r in records),
            seconds=sum(sum(r.seconds.values()) for r in records),
        )


Arms = Mapping[str, Mapping[int, Arm]]  # name -> seed -> what became of it


def differences(arms: Arms, other: str) -> dict[int, dict[str, float]]:
    """seed -> client -> loss with clusters minus loss with the other arm: below zero, clusters are better."""
    return {
        seed: {k: loss - arms[other][seed].losses[k] for k, loss in arm.losses.items()}
        for seed, arm in arms[CLUSTERS].items()
    }


def compared(arms: Arms, other: str) -> dict[str, Any]:
    """How clusters do beside another arm: mean difference, its interval, how many clients and seeds are better off."""
    by_seed = differences(arms, other)
    each = [d for own in by_seed.values() for d in own.values()]
    means = {seed: math.fsum(own.values()) / len(own) for seed, own in by_seed.items()}
    return {
        "mean": math.fsum(means.values()) / len(means),
        "interval": nested_interval([list(own.values()) for own in by_seed.values()]),
        "better": sum(d < 0 for d in each),
        "worse": sum(d > 0 for d in each),
        "clients": len(each),
        "by_seed": means,
    }


def summary(arms: Arms) -> dict[str, Any]:
    """The whole comparison as plain values; means over the clients of a seed, then over the seeds."""
    return {
        "arms": {name: _arm(list(by_seed.values())) for name, by_seed in arms.items()},
        "differences": {name: compared(arms, name) for name in arms if name != CLUSTERS},
        "losses": {name: {seed: dict(a.losses) for seed, a in by_seed.items()} for name, by_seed in arms.items()},
    }


def _arm(seeds: Sequence[Arm]) -> dict[str, float]:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return {
        "loss": mean([mean([*a.losses.values()]) for a in seeds]),
        "worst_client": mean([max(a.losses.values()) for a in seeds]),
        "smallest_gain": mean([min(a.gains.values()) for a in seeds]),
        "steps": mean([a.steps for a in seeds]),
        "bytes": mean([a.bytes for a in seeds]),
        "seconds": mean([a.seconds for a in seeds]),
    }
