"""What differs between two configurations."""

from __future__ import annotations

from fedfault.config.changes import MAY_CHANGE, find_changes, flatten_settings, hash_settings, take_settings
from fedfault.config.schema import Experiment


def test_changes_of_a_configuration_are_told_by_dotted_key():
    before = {"seed": 1, "federation": {"algorithm": {"name": "fedprox", "mu": 0.1}, "num_rounds": 3}}
    after = {"seed": 1, "federation": {"algorithm": {"name": "fedavg"}, "num_rounds": 3}, "new": {"ranks": [1, 2]}}
    assert find_changes(before, after) == {
        "federation.algorithm.name": ["fedprox", "fedavg"],
        "federation.algorithm.mu": [0.1, None],
        "new.ranks": [None, [1, 2]],
    }


def test_a_run_that_takes_over_what_may_change_keeps_the_hash_of_its_settings():
    began = Experiment().model_dump()
    others = {
        key: dict.fromkeys(value, "other") if isinstance(value, dict) else "other" for key, value in began.items()
    }
    now = take_settings(began, {**others, "new": 1}, MAY_CHANGE)
    assert hash_settings(now, MAY_CHANGE) == hash_settings(began, MAY_CHANGE)
    assert {key for key, value in flatten_settings(now).items() if value == "other"} == {
        "experiment_name",
        "device",
        "plugins",
        "personalise",
        "federation.num_rounds",
        *(f"logging.{name}" for name in began["logging"]),
    }
