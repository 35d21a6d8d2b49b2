"""A lower bound of the rise of the loss on general English."""

from __future__ import annotations

import pytest

from fedfault.detectors.forgetting import forgetting
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import choose_threshold, judge_readings
from fedfault.testing.histories import history, paired_history

DETECTOR = forgetting()


def readings(changes, se=0.01):
    return DETECTOR.read(history(scores={"general": paired_history(changes, se)}), {})


def last_level(changes, se=0.01, value=0.1):
    return judge_readings(DETECTOR, Threshold(value, 19), readings(changes, se))


def test_the_bound_by_hand():
    found = readings([0.2, -0.1], se=0.1)
    assert [r.statistic for r in found] == pytest.approx([0.2 - 0.1645, -0.1 - 0.1645])
    assert [r.effect for r in found] == [r.statistic for r in found]
    assert found[0].evidence == pytest.approx({"change": 0.2, "lower_bound": 0.0355})


def test_without_controls_the_bound_is_that_of_so_few_blocks():
    """paired_history has 16 blocks, and Student's t 1.753 standard errors in the place of 1.645."""
    natural = choose_threshold("forgetting", DETECTOR, None)
    found = DETECTOR.read(history(scores={"general": paired_history([0.2], 0.1)}), natural.scale)
    assert found[0].statistic == found[0].effect == pytest.approx(0.2 - 0.1753, abs=1e-4)


def test_without_a_standard_error_the_change_is_the_bound():
    assert readings([0.2], se=None)[0].statistic == pytest.approx(0.2)


def test_an_untrained_model_has_forgotten_nothing():
    assert [(r.statistic, r.effect) for r in readings([0.0, 0.0], se=None)] == [(0, 0), (0, 0)]


def test_a_sure_rise_beyond_that_of_controls_is_an_alarm():
    assert last_level([0.15, 0.3, 0.4]) == "alarm"


def test_a_rise_that_is_not_sure_or_that_controls_show_too_is_none():
    assert last_level([0.15, 0.3, 0.4], se=0.2) == "ok"
    assert last_level([0.05, 0.08, 0.09]) == "ok"


def test_a_sure_rise_below_the_floor_is_none():
    rise = 0.9 * DETECTOR.min_effect
    assert last_level([rise] * 3, se=0.0001, value=0.001) == "ok"


def test_changes_are_since_the_untrained_model_or_not_known():
    late = history(scores={"general": [None, 4.0, 5.0]})
    assert DETECTOR.read(late, {}) == []
