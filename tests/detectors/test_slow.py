"""Rounds to a target that controls set, on curves whose crossing is known."""

from __future__ import annotations

import math

import pytest

from fedfault.detectors.slow import SHARE, slow_convergence
from fedfault.diagnosis.calibration import Threshold, find_reached
from fedfault.diagnosis.detection import judge_readings
from fedfault.testing.histories import history

DETECTOR = slow_convergence()
SCALE = {"drop": 1.0, "rounds": 2.0}


def readings(losses, scale=SCALE):
    return DETECTOR.read(history(losses), scale)


def levels(losses, value: float):
    found, threshold = readings(losses), Threshold(value, 19, SCALE)
    return [judge_readings(DETECTOR, threshold, found[: i + 1]) for i in range(len(found))]


def test_rounds_to_the_target_by_hand():
    """From 5 the target is 4, which lies midway between 4.25 in round 2 and 3.75 in round 3."""
    found = readings([5.0, 4.5, 4.25, 3.75, 3.8])
    assert [r.statistic for r in found] == pytest.approx([1, 2, 2.5, 2.5])
    assert [r.effect for r in found] == pytest.approx([0.5, 1, 1.25, 1.25])
    # The slopes are -0.5, -0.25, -0.375
    assert found[1].evidence == pytest.approx(
        {"rounds": 2, "usual_rounds": 2, "gained": 0.75, "target": 1, "slope": -0.375}
    )


def test_a_target_once_reached_stays_reached():
    assert readings([5.0, 4.0, 6.0, 7.0])[-1].statistic == 1


def test_evaluations_that_are_rare_are_interpolated_in_rounds():
    assert readings([5.0, None, None, None, 3.0])[0].statistic == pytest.approx(2)


def test_the_statistic_of_a_run_is_censored_at_its_end():
    """Of two readings above a threshold, the lower one is the last round but one."""
    assert find_reached(DETECTOR, SCALE, history([5.0] * 11)) == 9
    assert find_reached(DETECTOR, SCALE, history([5.0, 4.5, 4.25, 3.75, 3.7])) == pytest.approx(2.5)


def test_the_slope_is_the_median_of_all_pairs_of_the_last_six():
    """One wild evaluation of six leaves it at the slope of the others, and what was before does not count."""
    losses = [9.0, 8.0, 3.0, 2.9, 2.8, 2.7, 9.0, 2.5]
    assert readings(losses)[-1].evidence["slope"] == pytest.approx(-0.1)
    assert "slope" not in readings([5.0, 4.9])[0].evidence


def test_targets_come_from_the_controls():
    """Improvements 2, 3, 4: the target is a share of 3, which straight lines over ten rounds reach after 30 s, 10 s, 7.5 s
    rounds, s the share; the first never does, if that is more than ten."""
    controls = [history([9 - gain * t / 10 for t in range(11)]) for gain in (2, 3, 4)]
    found = DETECTOR.learn_scale(controls)
    assert found["drop"] == pytest.approx(3 * SHARE)
    assert found["rounds"] == pytest.approx(10 * SHARE)


def test_controls_that_do_not_improve_set_no_target():
    for losses in ([5.0, 5.0, 5.0], [5.0, 6.0, 7.0], [5.0, math.nan, math.nan]):
        assert DETECTOR.learn_scale([history(losses)] * 3) == {}
    assert readings([5.0, 4.0], scale={}) == []


def test_late_is_an_alarm():
    assert levels([5 - 0.02 * t for t in range(7)], value=3.5) == ["ok"] * 3 + ["suspect", "alarm", "alarm"]


def test_late_but_not_by_the_floor_is_none():
    """Threshold 2.5: crossing in round 2.9 is later, but only 1.45 times the usual two rounds."""
    losses = [5.0, 4.9, 4.9, 3.9, 3.8, 3.7]
    assert 2.5 < readings(losses)[-1].statistic < DETECTOR.min_effect * 2
    assert set(levels(losses, value=2.5)) == {"ok"}


def test_losses_that_are_no_numbers_are_passed_over():
    assert [r.round for r in readings([5.0, math.nan, 4.5, 4.0])] == [2, 3]
    assert readings([5.0, math.inf, 4.5, 4.0])[-1].statistic == 3
    assert readings([math.nan, 4.0, 3.0]) == []
