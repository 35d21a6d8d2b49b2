"""What differs between two configurations."""

from __future__ import annotations

from fedfault.config.changes import find_changes


def test_changes_of_a_configuration_are_told_by_dotted_key():
    before = {"seed": 1, "federation": {"algorithm": {"name": "fedprox", "mu": 0.1}, "num_rounds": 3}}
    after = {"seed": 1, "federation": {"algorithm": {"name": "fedavg"}, "num_rounds": 3}, "new": {"ranks": [1, 2]}}
    assert find_changes(before, after) == {
        "federation.algorithm.name": ["fedprox", "fedavg"],
        "federation.algorithm.mu": [0.1, None],
        "new.ranks": [None, [1, 2]],
    }
