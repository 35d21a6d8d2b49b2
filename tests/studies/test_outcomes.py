"""Metrics by name, on runs made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedfault.errors import UserError
from fedfault.studies.outcomes import check_metric, measure_outcome
from handmade import finding, make
from planted import planted


def test_metrics_of_a_history_by_hand(tmp_path):
    run = planted(tmp_path, [5.0, 4.0, 3.0, 3.5, 3.1], state="degraded")
    assert measure_outcome(run, "gain") == pytest.approx(1.9)
    assert measure_outcome(run, "auc") == pytest.approx((4.5 + 3.5 + 3.25 + 3.3) / 4)
    assert measure_outcome(run, "swing") == pytest.approx((0.5 + 0.4) / 2)  # rounds 2 to 4
    assert measure_outcome(run, "rise") == pytest.approx(0.1)
    assert (measure_outcome(run, "failed"), measure_outcome(run, "unhealthy")) == (0.0, 1.0)
    assert measure_outcome(run, "final.validation.loss") == 3.1
    assert measure_outcome(run, "forgetting") is None


def test_a_diverged_run_has_an_infinite_loss(tmp_path):
    run = planted(tmp_path, [5.0, 4.0, math.nan], state="failed")
    assert {measure_outcome(run, metric) for metric in ("final.validation.loss", "rise", "auc")} == {math.inf}
    assert measure_outcome(run, "gain") == -math.inf
    assert measure_outcome(run, "failed") == 1.0


def test_probes_topics_and_alarms():
    run = make(
        probed=True,
        findings=(finding(), finding("client_drift", level="suspect")),
        metrics={"verdict": {"state": "failed"}},
    )
    assert measure_outcome(run, "probes.gradient_norm_mean") == pytest.approx((0.6 + 0.7 + 0.8) / 3)
    assert measure_outcome(run, "topic_swing") == pytest.approx(0.1)
    assert (measure_outcome(run, "alarm.divergence"), measure_outcome(run, "alarm.client_drift")) == (1.0, 0.0)
    # The mean of four clients after round 3
    assert measure_outcome(run, "client_loss") == pytest.approx(3.7 + 0.2 * 1.5)
    assert measure_outcome(run, "probes.unheard_of") is None


@pytest.mark.parametrize(
    "name",
    ["auc", "final.client/3.loss", "fairness.gains.worst", "probes.cka/2", "alarm.client_drift", "clock.seconds"],
)
def test_known_metrics(name):
    check_metric(name)


@pytest.mark.parametrize(
    "name", ["loss", "final.validation.los", "alarm.drft", "fairness.gains", "simulated_seconds", "probes.", 3]
)
def test_unknown_metrics_are_refused(name):
    with pytest.raises(UserError, match="metric"):
        check_metric(name)


def lost(run, **metrics):
    """The run, diverged: its metrics.json has null for what is not finite, and leaves out what follows from it."""
    final = {"validation": {"loss": None}, "client/0": {"loss": 3.0}, "client/1": {"loss": None}}
    return replace(run, metrics={"final": final, "forgetting": None, **metrics}, manifest={"status": "finished"})


@pytest.mark.parametrize(
    ("metric", "worst"),
    [
        ("forgetting", math.inf),
        ("backward_transfer.topic/news", math.inf),
        ("fairness.losses.worst", math.inf),
        ("fairness.losses.gap", math.inf),
        ("fairness.gains.sd", math.inf),
        ("fairness.gains.worst", -math.inf),
        ("fairness.gains.p50", -math.inf),
        ("time_to_target.round", math.inf),
        ("time_to_target.seconds", math.inf),
        ("time_to_target.simulated_seconds", None),  # there is no clock
        ("fairness.gains.jain", None),
    ],
)
def test_a_diverged_run_counts_at_the_worse_end_of_all_that_follows_from_its_losses(metric, worst):
    """They were missing, so that a study answered by the runs that had gone well."""
    run = lost(make(), backward_transfer={"topic/news": None}, fairness={}, time_to_target={"target": 0.9})
    assert measure_outcome(run, metric) == worst


@pytest.mark.parametrize("path", ["final.validation", "final.client/1", "personal.own"])
def test_correlations_and_margins_of_a_diverged_run_are_at_their_worst(path):
    """A margin is null then; a correlation is left out, or of `personal` the mean of the clients that went well."""
    first, second = path.split(".")
    for task, scores in (
        ("preference", {"reward_margin": None}),
        ("regression", {}),
        ("regression", {"pearson": 0.9, "spearman": 0.8}),
    ):
        run = replace(make(), config={"data": {"task_type": task}}, metrics={first: {second: {"loss": None, **scores}}})
        for name in ("reward_margin",) if task == "preference" else ("pearson", "spearman"):
            assert measure_outcome(run, f"{path}.{name}") == -math.inf


def test_a_correlation_is_missing_where_predictions_are_all_the_same_or_the_task_has_none():
    for task, loss in (("regression", 1.0), ("causal_lm", None)):
        run = replace(make(), config={"data": {"task_type": task}}, metrics={"final": {"validation": {"loss": loss}}})
        assert measure_outcome(run, "final.validation.pearson") is None


def test_what_a_run_did_not_measure_is_missing():
    run = replace(make(), metrics={"final": {"client/0": {"loss": 3.0}}}, manifest={"status": "running"})
    for metric in ("forgetting", "fairness.losses.worst", "time_to_target.round", "backward_transfer.topic/news"):
        assert measure_outcome(run, metric) is None
    on_its_way = replace(lost(make(), time_to_target={"target": 0.9}), manifest={"status": "running"})
    assert measure_outcome(on_its_way, "time_to_target.round") is None
