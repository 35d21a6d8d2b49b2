"""From readings to levels, findings and the verdict, with detectors whose readings are what a test says."""

from __future__ import annotations

import math

import pytest

from fedfault.diagnosis import detection
from fedfault.diagnosis.calibration import Calibration, Threshold, summarise_run
from fedfault.diagnosis.detection import choose_threshold, detect_failures, judge_readings, judge_run
from fedfault.records import Detector, Finding, Reading
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.histories import broken_history, healthy, history
from fedfault.testing.toys import LowRank, federation

CALIBRATED = Calibration("made", {}, 19, 0.05, exact=True, config={})


def fake(values, effects=None, **changes) -> Detector:
    """A detector that reads values[t - 1] after round t; its threshold is 1, its least effect 0.5."""
    effects = effects or [1.0] * len(values)
    every = [Reading(t + 1, v, e, {"seen": v}) for t, (v, e) in enumerate(zip(values, effects, strict=True))]
    given = {
        "min_effect": 0.5,
        "min_std": 0.1,
        "default_threshold": 1.0,
        "advice": ("do something", "or something else"),
        **changes,
    }
    return Detector(
        lambda records, scale: every[: max(0, len(records) - 1)], lambda r: f"it reads {r.statistic:g}", **given
    )


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
    assert summarise_run(fake(values), {}, history([5.0] * (len(values) + 1))) == scalar


def test_one_reading_has_no_scalar():
    assert summarise_run(fake([3]), {}, history([5.0, 5.0])) is None
    assert summarise_run(fake([]), {}, []) is None


@pytest.mark.parametrize("values", [[1, 5, 2, 9], [9, 0, 0, 8, 1], [9, 0, 4], [3, 3, 3], [0, 7, 0, 0, 6, 0]])
def test_a_run_alarms_exactly_where_its_scalar_is_above_the_threshold(values):
    detector, records = fake(values), history([5.0] * (len(values) + 1))
    scalar = summarise_run(detector, {}, records)
    for threshold in (scalar - 0.5, scalar, scalar + 0.5):
        readings = detector.read(records, {})
        seen = {judge_readings(detector, Threshold(threshold, 0), readings[: i + 1]) for i in range(len(readings))}
        assert ("alarm" in seen) == (scalar > threshold)


@pytest.fixture
def known(monkeypatch):
    """Put these detectors in the place of the real ones."""

    def put(**detectors: Detector) -> None:
        monkeypatch.setattr(detection, "build_detectors", lambda: dict(sorted(detectors.items())))

    return put


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


def test_nothing_found_is_healthy(known):
    known(one=fake([0, 0]), two=fake([0, 2]))
    found = judge_run(RUN[:2], None)
    assert (found["state"], found["since"], found["causes"], found["over"]) == ("healthy", None, [], [])
    assert found["sentence"] == "No detector raised an alarm."
    assert judge_run(RUN[:3], None)["sentence"] == "No detector raised an alarm; suspected for a while: two."
    assert judge_run([], None)["state"] == "healthy"


def test_an_alarm_is_degraded_and_a_fatal_one_that_holds_failed(known):
    known(a=fake([0, 2, 2, 2, 2, 2]), b=fake([0] * 6))
    found = judge_run(RUN, None)
    assert (found["state"], found["since"], found["causes"], found["over"]) == ("degraded", 3, ["a"], [])
    assert found["sentence"] == "Since round 3 it reads 2."
    for least, state in ((2, "failed"), (3, "degraded")):  # the last reading decides
        known(a=fake([0, 4, 4, 4, 4, 2], is_failure=lambda last, least=least: last.statistic >= least))
        assert judge_run(RUN, None)["state"] == state


def test_an_alarm_that_is_over_by_the_end_does_not_fail_a_run(known):
    known(a=fake([2, 2, 0, 0, 0, 0], is_failure=lambda last: True), b=fake([0, 0, 0, 3, 3, 3]))
    found = judge_run(RUN, None)
    assert (found["state"], found["since"], found["causes"], found["over"]) == ("degraded", 2, ["a", "b"], ["a"])
    assert found["sentence"] == "Since round 2 it reads 2 (over by the end); then b (round 5)."


def test_a_verdict_s_sentence_is_of_the_first_alarm_and_names_the_others_once(known):
    known(slow_one=fake([0, 0, 2, 2, 0, 0]), a=fake([2, 2, 2, 2, 2, 2]), c=fake([0, 2, 2, 0, 2, 2]))
    assert judge_run(RUN, None)["sentence"] == "Since round 2 it reads 2; then c (round 3), slow one (round 4, over)."


def test_any_alarm_in_a_run_that_ends_above_its_start_is_a_failure(known):
    known(a=fake([2, 2, 2]))
    assert judge_run(history([5.0, 4.0, 3.0, 4.9]), None)["state"] == "degraded"
    assert judge_run(history([5.0, 4.0, 3.0, 5.1]), None)["state"] == "failed"
    assert judge_run(history([5.0, 4.0, 3.0, math.nan]), None)["state"] == "failed"


def test_a_verdict_says_how_sure_it_is():
    records = healthy()
    assert judge_run(records, None)["sure"].startswith("Not calibrated")
    found = judge_run(records, CALIBRATED)
    assert "19 IID control runs (made)" in found["sure"]
    assert "at most 5% of healthy runs" in found["sure"]
    assert (found["calibration"], found["controls"], found["alpha"]) == ("made", 19, 0.05)
    few = Calibration("few", {}, 5, 0.05, exact=False, config={})
    assert "extrapolated from only 5" in judge_run(records, few)["sure"]
    assert "at most" not in judge_run(records, few)["sure"]
    differing = judge_run(records, CALIBRATED, ["training.lr=0.1 (0.01)"])["sure"]
    assert differing.endswith("The controls differ in training.lr=0.1 (0.01).")


def test_a_run_that_breaks_in_every_way_has_failed_for_many_reasons():
    found = judge_run(broken_history(), None)
    assert found["state"] == "failed"
    assert {"divergence", "forgetting", "no_federation", "rank_collapse", "representation_collapse"} <= set(
        found["causes"]
    )
    assert found["sentence"].startswith("Since round")
    assert "nan" not in found["sentence"]


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
