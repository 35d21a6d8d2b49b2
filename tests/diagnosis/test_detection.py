"""From readings to levels and findings, with detectors whose readings are what a test says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedfault.diagnosis.calibration import Calibration, Threshold, find_reached
from fedfault.diagnosis.detection import choose_threshold, detect_failures, judge_readings
from fedfault.errors import UserError
from fedfault.records import Finding, Reading
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.histories import history
from fedfault.testing.toys import LowRank, federation
from judged import fake


def levels(values, effects=None) -> list[str]:
    detector = fake(values, effects)
    readings = detector.read(history([5.0] * (len(values) + 1)), {})
    return [judge_readings(detector, Threshold(1.0, 0), readings[: i + 1]) for i in range(len(values))]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 2, 0, 0], ["ok", "suspect", "ok", "ok"]),
        ([0, 2, 2, 2], ["ok", "suspect", "alarm", "alarm"]),
        ([2, 0, 2, 0], ["suspect", "ok", "alarm", "ok"]),  # two of three, with a gap
        ([2, 0, 0, 2], ["suspect", "ok", "ok", "suspect"]),  # two of four
        ([2, 2, 0, 0, 2], ["suspect", "alarm", "ok", "ok", "suspect"]),
        ([1, 1, 1], ["ok", "ok", "ok"]),  # at the threshold is not above it
        ([0, math.inf, 0], ["ok", "alarm", "ok"]),
    ],
)
def test_two_of_the_last_three_raise_an_alarm(values, expected):
    assert levels(values) == expected


def test_a_statistic_counts_only_where_the_effect_reaches_its_minimum():
    assert levels([2, 2, 2], [0.4, 0.4, 0.4]) == ["ok", "ok", "ok"]
    assert levels([2, 2, 2], [0.4, 0.5, 0.5]) == ["ok", "suspect", "alarm"]


def test_no_reading_is_ok():
    assert judge_readings(fake([]), Threshold(1.0, 0), []) == "ok"


@pytest.mark.parametrize(
    ("values", "scalar"),
    [
        ([1, 5, 2, 9], 5),  # 5 and 9 are in one window of three, and both are at least 5
        ([9, 0, 0, 8, 1], 1),  # 9 and 8 are too far apart; 8 and 1 are not
        ([9, 0, 4], 4),
        ([1, 2], 1),
        ([math.inf, math.inf], math.inf),
    ],
)
def test_the_scalar_of_a_run_is_what_two_of_three_readings_reached(values, scalar):
    assert find_reached(fake(values), {}, history([5.0] * (len(values) + 1))) == scalar


def test_one_reading_has_no_scalar():
    assert find_reached(fake([3]), {}, history([5.0, 5.0])) is None
    assert find_reached(fake([]), {}, []) is None


@pytest.mark.parametrize("values", [[1, 5, 2, 9], [9, 0, 0, 8, 1], [9, 0, 4], [3, 3, 3], [0, 7, 0, 0, 6, 0]])
def test_a_run_alarms_exactly_where_its_scalar_is_above_the_threshold(values):
    detector, records = fake(values), history([5.0] * (len(values) + 1))
    scalar = find_reached(detector, {}, records)
    for threshold in (scalar - 0.5, scalar, scalar + 0.5):
        readings = detector.read(records, {})
        seen = {judge_readings(detector, Threshold(threshold, 0), readings[: i + 1]) for i in range(len(readings))}
        assert ("alarm" in seen) == (scalar > threshold)


def findings(records, calibration=None) -> list[tuple[str, int, str]]:
    return [(f.detector, f.round, f.level) for f in detect_failures(records, calibration)]


RUN = history([5.0, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4])


def test_a_finding_is_made_when_it_gets_worse_and_not_while_it_lasts(known):
    known(one=fake([2, 2, 2, 0, 2, 2]))
    assert findings(RUN) == [("one", 1, "suspect"), ("one", 2, "alarm"), ("one", 5, "alarm")]


def test_findings_come_in_order_of_rounds_alarms_first(known):
    known(a=fake([0, 2, 2]), b=fake([2, 2, 2]), c=fake([0, math.inf, 0]))
    assert findings(RUN[:4]) == [
        ("b", 1, "suspect"), ("b", 2, "alarm"), ("c", 2, "alarm"), ("a", 2, "suspect"), ("a", 3, "alarm"),
    ]  # fmt: skip


def test_a_finding_says_what_was_seen_and_what_it_was_compared_with(known):
    known(one=fake([2]))
    assert detect_failures(RUN[:2], None) == [
        Finding("one", 1, "suspect", "it reads 2", 2, 1.0, 0, {"seen": 2}, ("do something", "or something else"))
    ]
    (at_once,) = (known(one=fake([math.inf])), detect_failures(RUN[:2], None))[1]
    assert (at_once.threshold, at_once.level) == (None, "alarm")


def test_a_finding_survives_json(known):
    known(one=fake([2]))
    (finding,) = detect_failures(RUN[:2], None)
    assert Finding.from_json(finding.to_json()) == finding
    endless = Finding("one", 1, "alarm", "it is no number", math.inf, None, 0)
    assert math.isnan(Finding.from_json(endless.to_json()).statistic)


def test_thresholds_of_controls_go_before_default_ones(known):
    made = Calibration("made", {"a": Threshold(3.0, 19, {"sigma": 2.0})}, 19, 0.05, True, {})
    a, b = fake([2, 2]), fake([2, 2])
    known(a=a, b=b)
    assert choose_threshold("a", a, made) == made.thresholds["a"]
    assert choose_threshold("b", b, made) == choose_threshold("b", b, None) == Threshold(1.0, 0)
    assert {f.detector: f.controls for f in detect_failures(RUN[:3], made)} == {"b": 0}


def test_without_a_threshold_a_detector_is_silent(known):
    known(one=fake([9, 9], default_threshold=None))
    assert findings(RUN) == []


@pytest.mark.parametrize(
    "follow",
    [
        lambda records, scale: [Reading(r.round, 1.0, 1.0, {}) for r in records],  # a list
        lambda records, scale: (
            Reading(r.round, 1.0, 1.0, {}) for r in records if r.round != 1
        ),  # round 1 has no answer
        lambda records, scale: (None for r in records for _ in range(2)),  # every round has two
    ],
)
def test_a_detector_that_does_not_answer_every_record_once_is_named(known, follow):
    known(one=replace(fake([]), follow=follow))
    with pytest.raises(UserError, match=r"does not answer round .: .*yields a Reading or None for every record"):
        detect_failures(RUN, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "aggregation"),
    [("fedavg", "fedit"), ("fedavg", "flora"), ("fedavg", "fedsa_lora"), ("fedavg", "rolora"), ("fedavg", "fedex_lora"),
     ("fedadam", "fedit"), ("scaffold", "fedit"), ("ifca", "fedit")],
)  # fmt: skip
def test_methods_that_work_have_no_dead_adapter_and_no_server_that_stands_still(algorithm, aggregation):
    """What they do to the server's adapter differs: some reset it, some train half of it, some keep it at home."""
    probes = {name: build("probe", name) for name in ("updates", "ranks", "gradients")}
    fed = federation(LowRank(), algorithm, aggregation, num_rounds=5, probes=probes)
    records = [record for _, record in rounds(fed, begin(fed))]
    assert records[-1].scores["validation"].loss < records[0].scores["validation"].loss
    assert not {"rank_collapse", "no_federation"} & {f.detector for f in detect_failures(records, None)}
