"""Remedies that detectors name, as settings of an experiment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedfault.config.schema import Experiment
from fedfault.diagnosis.detection import build_detectors
from fedfault.records import Multiply, Replace
from fedfault.session import remedies
from fedfault.session.remedies import apply_remedy, find_remedy


def experiment(**settings) -> Experiment:
    parts = {"training": settings.pop("training", {}), "federation": settings}
    return Experiment.model_validate(parts)


@pytest.mark.parametrize(
    ("exp", "cause", "settings"),
    [
        (experiment(training={"lr": 0.01}), "divergence", ["training.lr=0.005"]),
        (experiment(training={"lr": 0.01}), "forgetting", ["training.lr=0.005"]),
        (experiment(training={"lr": 0.01}), "oscillation", ["training.lr=0.005"]),
        (
            experiment(algorithm={"name": "fedavgm", "server_lr": 2.0}),
            "oscillation",
            ["federation.algorithm.server_lr=1.0"],
        ),
        (experiment(training={"local_steps": 6}), "slow_convergence", ["training.local_steps=12"]),
        (experiment(), "client_drift", ["federation.algorithm=scaffold"]),
        (experiment(algorithm="fedprox", training={"local_steps": 6}), "client_drift", ["training.local_steps=3"]),
        (experiment(algorithm="fedprox"), "client_drift", []),  # one epoch is the least
        (
            experiment(algorithm={"name": "scaffold", "option": "II"}),
            "stale_controls",
            ["federation.algorithm.option=I"],
        ),
        (experiment(algorithm={"name": "scaffold", "option": "I"}), "stale_controls", ["federation.algorithm=fedavg"]),
        (experiment(), "no_federation", []),
        (
            experiment(asynchronous={"name": "fedbuff"}, clients_per_round=4, algorithm="fedavg"),
            "client_drift",
            [],  # SCAFFOLD needs clients that start from one model, and one epoch is the least
        ),
        (
            experiment(aggregation="fedsa_lora", training={"local_steps": 6}),
            "client_drift",
            ["training.local_steps=3"],  # SCAFFOLD has nothing to correct a factor towards that stays at home
        ),
    ],
)
def test_each_alarm_has_its_remedy(exp, cause, settings):
    assert find_remedy(exp, [cause]) == settings


def test_the_first_alarm_with_a_remedy_is_answered():
    assert find_remedy(experiment(training={"lr": 0.01}), ["fairness_gap", "divergence"]) == ["training.lr=0.005"]


@pytest.mark.parametrize(
    ("remedy", "setting"),
    [
        (Multiply("federation.num_rounds", 0.3), "federation.num_rounds=4"),  # 12 times 0.3 is 3.6
        (Multiply("federation.num_rounds", 0.01), "federation.num_rounds=1"),
        (Multiply("training.local_steps", 2.0), None),  # null
        (Multiply("training.local_steps", 2.0, unset=5), "training.local_steps=10"),
        (Multiply("federation.algorithm.server_lr", 0.5), None),  # FedAvg has none
        (Replace("training.optimizer", "sgd"), "training.optimizer=sgd"),
        (Replace("training.optimizer", "adamw"), None),  # it is so already
        (Replace("training.optimizer", "adamw", old="sgd"), None),
        (Replace("federation.algorithm.option", "I"), None),  # FedAvg has none
        (Replace("federation.algorithm", "fedprox", old="fedavg"), "federation.algorithm=fedprox"),
    ],
)
def test_a_remedy_is_a_setting_only_where_it_is_a_change(remedy, setting):
    assert apply_remedy(Experiment(), remedy) == setting


def test_a_new_detector_brings_its_remedy_along(monkeypatch):
    new = replace(build_detectors()["no_federation"], remedies=(Replace("federation.weighting", "uniform"),))
    monkeypatch.setattr(remedies, "build_detectors", lambda: {"newcomer": new})
    assert find_remedy(Experiment(), ["newcomer"]) == ["federation.weighting=uniform"]
