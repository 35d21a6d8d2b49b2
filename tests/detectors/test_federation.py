"""A server that stands still while its clients train."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedfault.detectors.federation import MOVED, no_federation
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import detect_failures, judge_readings
from fedfault.metrics.ranks import ranks
from fedfault.metrics.updates import updates
from fedfault.records import counts_nobody
from fedfault.testing.histories import history
from fedfault.testing.toys import LowRank, federation, run_to_end

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


def weigh(record, *weights: float):
    clients = zip(record.clients, weights, strict=True)
    return replace(record, clients=tuple(replace(c, weight=weight) for c, weight in clients))


def test_a_server_that_stands_still_where_nobody_counts_says_nothing():
    one = history(probes={"server_norm": [0.0], "update_norm": [1.0]}, clients=[{0: {}, 1: {}}])[0]
    assert DETECTOR.read([weigh(one, 0.0, 0.0)], {}) == []
    assert [r.statistic for r in DETECTOR.read([weigh(one, 0.0, 1.0)], {})] == [math.inf]
    assert [r.statistic for r in DETECTOR.read([weigh(one, math.nan, math.nan)], {})] == [math.inf]  # not known


@pytest.mark.slow
def test_rounds_of_fltrust_without_the_trusted_client_are_no_failure():
    """Three of six clients a round: in six of twelve rounds nobody is trusted, and the model stays."""
    probes = {"updates": updates(), "ranks": ranks()}
    fed = federation(LowRank(), "fedavg", ("fltrust", {"trusted": 0}), num_rounds=12, cohort_size=3, probes=probes)
    _, records = run_to_end(fed)
    without = [r.round for r in records[1:] if 0 not in {c.client for c in r.clients}]
    assert [r.round for r in records if counts_nobody(r)] == without == [1, 4, 5, 7, 8, 12]
    assert not [f for f in detect_failures(records, None) if f.detector in ("no_federation", "rank_collapse")]
    assert records[-1].scores["validation"].loss < 0.2 * records[0].scores["validation"].loss
