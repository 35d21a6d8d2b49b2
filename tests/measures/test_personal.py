"""Clients' models beside one another: differences by client, their interval, and who is better off."""

from __future__ import annotations

import pytest

from fedfault.measures.personal import average_models, pair_models

ROWS = [
    {"client": k, "model": model, "loss": loss, "metrics": {}}
    for model, losses in (("tuned", [1.0, 2.0, 4.0]), ("global", [1.5, 2.0, 3.0]), ("alone", [1.0, 1.0, None]))
    for k, loss in enumerate(losses)
]


def test_models_are_paired_by_client_and_a_tie_is_neither_better_nor_worse():
    first, alone, last = pair_models(ROWS)
    assert (first.model, first.than, first.differences) == ("tuned", "global", {0: -0.5, 1: 0.0, 2: 1.0})
    assert (first.better, first.worse, first.mean) == (1, 1, pytest.approx(0.5 / 3))
    assert (alone.model, alone.than, alone.differences) == ("tuned", "alone", {0: 0.0, 1: 1.0})
    assert (last.model, last.than, last.differences) == ("global", "alone", {0: 0.5, 1: 1.0})


def test_the_interval_is_student_s_over_clients():
    """0.5 +- 4.303 * 0.5 / sqrt 3 for -0.0, 0.5, 1.0: t of 0.975 with two degrees of freedom."""
    rows = [{"client": k, "model": "global", "loss": 1.0} for k in range(3)]
    rows += [{"client": k, "model": "own", "loss": 1.0 + 0.5 * k} for k in range(3)]
    assert pair_models(rows)[0].interval == pytest.approx((0.5 - 1.2421, 0.5 + 1.2421), abs=1e-3)


def test_a_lone_client_has_no_interval_and_no_models_no_pairs():
    rows = [{"client": 4, "model": model, "loss": 1.0} for model in ("global", "own")]
    assert pair_models(rows)[0].interval is None
    assert pair_models([]) == pair_models(rows[:1]) == []


def test_metrics_are_averaged_over_the_clients_that_have_them():
    rows = [
        {"client": 0, "model": "own", "loss": 1.0, "metrics": {"accuracy": 0.5}},
        {"client": 1, "model": "own", "loss": 2.0, "metrics": {}},
    ]
    assert average_models(rows) == {"own": {"loss": 1.5, "accuracy": 0.5}}
