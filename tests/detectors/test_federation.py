"""A server that stands still while its clients train."""

from __future__ import annotations

import math

import pytest

from fedfault.detectors.federation import MOVED, no_federation
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import judge_readings
from fedfault.testing.histories import history

DETECTOR = no_federation()
NATURAL = Threshold(DETECTOR.default_threshold, 0)


def readings(server, clients):
    return DETECTOR.read(history(probes={"server_norm": [None, *server], "update_norm": [None, *clients]}), {})


def test_by_hand():
    found = readings([0.5, 0.05, 1.0], [0.5, 0.5, 0.1])
    assert [r.statistic for r in found] == pytest.approx([0, 1, -1])
    assert found[1].evidence == {"server_update": 0.05, "client_update": 0.5}


def test_a_server_that_moves_by_less_than_a_thousandth_is_an_alarm():
    assert judge_readings(DETECTOR, NATURAL, readings([0.9 * MOVED] * 2, [1.0] * 2)) == "alarm"


def test_a_server_with_a_small_step_is_none():
    assert judge_readings(DETECTOR, NATURAL, readings([2 * MOVED] * 3, [1.0] * 3)) == "ok"


def test_a_server_that_does_not_move_at_all_is_an_alarm_at_once():
    found = readings([0.0], [1.0])
    assert found[0].statistic == math.inf
    assert judge_readings(DETECTOR, NATURAL, found) == "alarm"


def test_clients_that_did_not_move_have_nothing_to_lose():
    assert readings([0.0], [0.0]) == []
