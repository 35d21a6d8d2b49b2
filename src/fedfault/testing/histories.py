"""Histories of runs from plain numbers, for all that reads records only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedfault.records import ClientRecord, RoundRecord, Score

Matrix = list[list[float]]
CLIENTS = 6  # of the two runs below


def history(
    losses: Sequence[float | None] = (),
    *,
    scores: Mapping[str, Sequence[float | Score | None]] | None = None,
    probes: Mapping[str, Sequence[float | None]] | None = None,
    clients: Sequence[Mapping[int, Mapping[str, Any]]] = (),
    matrices: Mapping[str, Sequence[Matrix | None]] | None = None,
) -> list[RoundRecord]:
    """Rounds 0, 1, ... as long as the longest list; position t of every list belongs to round t, None is not measured.

    losses: of the mixture; scores: name -> losses or scores; probes: name -> numbers; clients: client -> its probes;
    matrices: name -> matrices.
    """
    scores, probes, matrices = {"validation": losses, **(scores or {})}, probes or {}, matrices or {}
    columns = [*scores.values(), *probes.values(), *matrices.values(), clients]
    return [
        RoundRecord(
            t,
            clients=tuple(client(k, **own) for k, own in (clients[t] if t < len(clients) else {}).items()),
            scores={name: s if isinstance(s, Score) else Score(s, 1000) for name, s in _at(scores, t).items()},
            probes=_at(probes, t),
            matrices={name: tuple(map(tuple, m)) for name, m in _at(matrices, t).items()},
        )
        for t in range(max(map(len, columns)))
    ]


def _at(columns: Mapping[str, Sequence[Any]], t: int) -> dict[str, Any]:
    """What was measured in round t."""
    return {name: c[t] for name, c in columns.items() if t < len(c) and c[t] is not None}


def client(k: int, steps: int = 5, **probes: float) -> ClientRecord:
    """Client k after a round of training."""
    return ClientRecord(k, 0.25, steps, 320, 4.0, 1.0, 0.1, 1000, 1000, probes=probes)


def paired_history(changes: Sequence[float], se: float, start: float = 4.0) -> list[Score]:
    """A loss before training, and what became of it after every round, each change with this standard error."""
    return [Score(start, 1000), *(Score(start + change, 1000, se, 16) for change in changes)]


def healthy(seed: int = 0, rounds: int = 12) -> list[RoundRecord]:
    """A run with everything that detectors read, as IID data would give it: losses fall and level off, with noise."""
    g = np.random.default_rng(seed)
    falls = 2 * np.exp(-np.arange(rounds + 1) / 3) - 2

    def near(value: float, sd: float) -> float:
        return float(value + sd * g.normal())

    def everyone(t: int) -> dict[int, dict[str, float]]:
        found = {"gradient_norm": (1, 0.1), "control_error": (0.3, 0.1), "control_spread": (1, 0.1)}
        ages = {"control_age": float(min(t, 2)), "control_norm": 1.0}
        return {k: {name: near(*v) for name, v in found.items()} | ages for k in range(CLIENTS)}

    usual = {
        "update_norm": (0.5, 0.01), "server_norm": (0.5, 0.01), "round_cosine": (0.3, 0.05), "drift_within": (2.0, 0.1),
        "gradient_alignment": (0.4, 0.05), "control_ratio": (1.0, 0.1), "hidden_rank": (20.0, 0.2),
        "hidden_rank_base": (21.0, 0.0), "embedding_cosine": (0.5, 0.01), "distinct_2": (0.7, 0.01),
        "effective_rank": (4.0, 0.1),
    }  # fmt: skip
    halves = [_halves(g) for _ in range(rounds)]
    probes = {name: [near(*v) for _ in range(rounds)] for name, v in usual.items()}
    probes["drift_between"] = [variance_between(h) for h in halves]
    exchange = {"kept_apart": 0.1, "spread_growth": 1.0, "chained": 0.1, "chained_p": 0.5, "frozen_moved": 0.0}
    average = {"average_total": 1.0, "average_split": 0.0, "average_step": 1.0}
    probes |= {name: [value] * rounds for name, value in {**exchange, "scale_ratio": 1.0, **average}.items()}
    own = {f"client/{k}": [near(v, 0.003) for v in falls[1:]] for k in range(CLIENTS)}
    scores = {name: paired_history(changes, 0.02) for name, changes in own.items()}
    scores["general"] = paired_history([near(0.02 * min(t, 5), 0.002) for t in range(1, rounds + 1)], 0.004)
    for task in ("a", "b"):
        answers = [{"exact_match": near(-0.45 * v, 0.05), "one_answer": near(0.1, 0.05)} for v in falls]
        scores[f"topic/{task}"] = [Score(5 + v, 1000, metrics=own) for v, own in zip(falls, answers, strict=True)]
    cosines = [_cosines(g, 0.5) for _ in range(rounds)]
    clients = [everyone(t) for t in range(1, rounds + 1)]
    return _measured([near(5 + v, 0.004) for v in falls], scores, probes, clients, halves, cosines)


def broken_history(wrong: float = math.nan, rounds: int = 12) -> list[RoundRecord]:
    """A run in which everything that a detector looks for goes wrong; from round 9 on its losses are `wrong`."""
    changes = [0.3 * t + (t % 2) if t < 9 else wrong for t in range(1, rounds + 1)]
    probes = {
        "epsilon": 1.0, "epsilon_audited": 3.0,
        "update_norm": 0.5, "server_norm": 0.0001, "round_cosine": -0.8, "drift_between": 20.0, "drift_within": 10.0,
        "gradient_alignment": 0.0, "control_ratio": 30.0, "hidden_rank": 2.0, "hidden_rank_base": 21.0,
        "embedding_cosine": 0.99, "distinct_2": 0.01, "kept_apart": 1.0, "spread_growth": 2.0, "chained": 1.0,
        "chained_p": 0.001, "frozen_moved": 2.0, "scale_ratio": 2.0, "average_total": 4.0, "average_split": 0.0,
        "average_step": 4.0,
    }  # fmt: skip
    own = {"control_error": 2000.0, "control_spread": 1.0, "control_norm": 30.0, "control_age": 3.0}
    everyone = {k: {"gradient_norm": 40.0 if k == 1 else 1.0, **own} for k in range(CLIENTS)}
    columns = {name: [v] * rounds for name, v in probes.items()}
    columns["effective_rank"] = [1.1 if t < 6 else 0.0 for t in range(1, rounds + 1)]
    names = ["general", *(f"client/{k}" for k in range(CLIENTS))]
    scores = {name: paired_history(changes, 0.01) for name in names}
    right = [0.9, 0.9, *[0.1] * (rounds - 1)]
    scores["topic/a"] = [Score(4.0, 1000, metrics={"exact_match": share, "one_answer": 0.9}) for share in right]
    losses = [4.0, *(4.0 + change for change in changes)]
    halves = (20 * np.eye(CLIENTS)).tolist()
    cosines = [_cosines(np.random.default_rng(0), -0.9)] * rounds
    return _measured(losses, scores, columns, [everyone] * rounds, [halves] * rounds, cosines)


def _measured(
    losses: Sequence[float],
    scores: Mapping[str, Sequence[Score]],
    probes: Mapping[str, Sequence[float]],
    clients: Sequence[Mapping[int, Mapping[str, Any]]],
    halves: Sequence[Matrix],
    cosines: Sequence[Matrix],
) -> list[RoundRecord]:
    """Probes, clients and matrices start in round 1."""
    columns = {name: [None, *values] for name, values in probes.items()}
    matrices = {"halves": [None, *halves], "update_cosine": [None, *cosines]}
    return history(losses, scores=scores, probes=columns, clients=[{}, *clients], matrices=matrices)


def _cosines(g: np.random.Generator, last: float) -> Matrix:
    """Cosines between updates of about a half, those of the last client about `last`."""
    half = np.triu(g.normal(0.5, 0.05, (CLIENTS, CLIENTS)), 1)
    half[:-1, -1] += last - 0.5
    products: Matrix = (half + half.T + np.eye(CLIENTS)).tolist()
    return products


def _halves(g: np.random.Generator) -> Matrix:
    """Inner products of halves of gradients that share a mean and differ by noise alone."""
    first, second = g.normal(0.3, 0.3, size=(2, CLIENTS, 20))
    products: Matrix = (first @ second.T).tolist()
    return products


def variance_between(halves: Matrix) -> float:
    """V_b = mean_i h_ii - mean_{i != j} h_ij."""
    h = np.array(halves)
    return float(h.diagonal().mean() - h[~np.eye(len(h), dtype=bool)].mean())
