"""The audit against the claim."""

from __future__ import annotations

import math

from fedfault.detectors.privacy import broken_privacy
from fedfault.testing.histories import history

DETECTOR = broken_privacy()


def read(claimed: list[float], proved: list[float]) -> list[float]:
    records = history(probes={"epsilon": [0.0, *claimed], "epsilon_audited": [None, *proved]})
    return [r.statistic for r in DETECTOR.read(records, {})]


def test_a_bound_below_the_claim_is_no_alarm():
    assert read([1.0, 1.5], [0.0, 1.25]) == [-1.0, -0.25]


def test_one_bound_above_the_claim_breaks_it_for_good():
    assert read([1.0, 1.5, 2.0], [0.5, 1.75, 0.5]) == [-0.5, math.inf, math.inf]


def test_runs_without_an_audit_are_not_judged():
    assert DETECTOR.read(history(probes={"epsilon": [0.0, 1.0]}), {}) == []
