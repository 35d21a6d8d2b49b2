"""A loss that goes up and down, against losses that fall, rise, stand still or tremble."""

from __future__ import annotations

import math

import pytest

from fedfault.detectors.oscillation import STILL, WARM_UP, WINDOW, oscillation
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import judge_readings
from fedfault.testing.histories import history

DETECTOR = oscillation()
NATURAL = Threshold(DETECTOR.default_threshold, 0)
PASSED = [9.0] * WARM_UP  # rounds that are passed over, whatever happens in them


def readings(losses, **probes):
    return DETECTOR.read(history([*PASSED, *losses], probes=probes), {})


def last_level(losses):
    return judge_readings(DETECTOR, NATURAL, readings(losses))


def test_by_hand():
    """5 4 5 4: path 3, way 1; about their line, which falls by 0.2 a round, the residuals are 0.2 -0.6 0.6 -0.2."""
    (found,) = readings([5.0, 4.0, 5.0, 4.0])
    assert found.round == WARM_UP + 3
    assert found.statistic == pytest.approx(math.log(3))
    assert found.evidence["path_over_way"] == pytest.approx(3)
    assert found.effect == pytest.approx(math.sqrt(0.8 / 2))  # two degrees of freedom are left of four


def test_losses_that_only_fall_or_only_rise_have_no_path_beside_their_way():
    for losses in ([5.0, 4.0, 3.5, 3.2, 3.1], [3.0, 4.0, 4.5, 7.0, 7.1]):
        assert [r.statistic for r in readings(losses)] == pytest.approx([0, 0], abs=1e-12)


def test_standing_still_is_not_divided_by():
    assert readings([4.0] * 4)[0].statistic == 0
    tremble = 0.4 * STILL
    assert readings([4.0, 4.0 + tremble, 4.0, 4.0 + tremble])[0].statistic == 0
    (found,) = readings([4.0, 4.0 + 3 * STILL, 4.0 - STILL, 4.0])  # path 8, way 0, three steps
    assert found.statistic == pytest.approx(math.log(8 / 3))


def test_the_first_evaluations_do_not_count():
    swings = DETECTOR.read(history([50.0] * WARM_UP + [4.0, 3.9, 3.8, 3.7]), {})
    assert swings[0].effect == pytest.approx(0, abs=1e-9)


def test_only_the_last_steps_count():
    early = readings([5.0, 4.0, 5.0, 4.0, *(3.9 - 0.1 * i for i in range(WINDOW + 1))])
    assert early[0].statistic > 1
    assert early[-1].statistic == pytest.approx(0, abs=1e-9)


def test_up_and_down_is_an_alarm():
    assert last_level([4.0, 4.5] * 4) == "alarm"


def test_up_and_down_by_less_than_the_floor_is_none():
    swing = DETECTOR.min_effect
    assert readings([4.0, 4.0 + swing] * 4)[-1].statistic > DETECTOR.default_threshold
    assert last_level([4.0, 4.0 + swing] * 4) == "ok"


def test_a_fall_with_noise_is_none():
    assert last_level([5.0, 4.3, 4.35, 3.8, 3.85, 3.3, 3.35, 2.9]) == "ok"


def test_a_ringing_server_is_told_by_the_cosine_of_its_updates():
    rounds = WARM_UP + 4
    found = readings([5.0, 4.0, 5.0, 4.0], round_cosine=[None, *[0.9] * WARM_UP, *[-0.5, -0.6, -0.7]])
    assert found[0].evidence["round_cosine"] == pytest.approx(-0.6)
    assert len(history([*PASSED, 5.0, 4.0, 5.0, 4.0])) == rounds
    assert "round_cosine" not in readings([5.0, 4.0, 5.0, 4.0])[0].evidence


def test_rounds_that_are_not_evaluated_are_not_steps():
    every = DETECTOR.read(history([9.0, None, 5.0, None, 4.0, None, 5.0, None, 4.0]), {})
    assert [(r.round, round(r.statistic, 9)) for r in every] == [(8, round(math.log(3), 9))]
