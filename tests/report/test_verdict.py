"""The words of the verdict and of the findings."""

import dataclasses
import math

from fedfault.records import NO_ALARM, STATES, UNJUDGED, UNLEARNED
from fedfault.report.verdict import CLASSES, SIGNS, format_state, list_findings, read_verdict
from handmade import finding, make


def judged(**said):
    return read_verdict(dataclasses.replace(make(), metrics={"verdict": {"state": "degraded", **said}}))


def test_the_badge_is_the_state_and_a_table_says_since_when():
    assert judged(since=4).title == "Degraded"
    assert format_state({"state": "degraded", "since": 4}) == "degraded since round 4"
    assert format_state({"state": "degraded", "since": None}) == "degraded"
    assert read_verdict(make()) is None


def test_a_verdict_without_calibration_is_remarked_on_where_its_state_does_not_say_so():
    assert judged(calibration="packaged: quickstart").remark == ""
    assert judged(calibration=None).remark == "not calibrated"
    assert judged(state=NO_ALARM, calibration=None).remark == judged(state=UNJUDGED, calibration=None).remark == ""


def test_every_state_has_a_sign_and_a_class():
    assert set(SIGNS) == set(CLASSES) == set(STATES)
    assert len(set(SIGNS.values())) == len(set(CLASSES.values())) == len(STATES)


def test_a_run_that_did_not_learn_has_no_round_since_when():
    assert judged(state=UNLEARNED, since=3).title == "Did not learn"


def numbers(**more):
    run = make(findings=(finding(**more),))
    return list_findings(run)[0][0].numbers


def test_numbers_stand_with_their_threshold_and_what_is_behind_it():
    assert numbers() == "Statistic 4.25, threshold 1.5 from 19 control runs."
    assert numbers(controls=0) == "Statistic 4.25, threshold 1.5 from theory or convention."
    assert numbers(threshold=None, statistic=math.inf) == "No threshold was needed."
    assert numbers(evidence={"worst_client": 3.0, "gain": -0.25}).endswith("; worst client 3, gain −0.25.")


def test_sentences_begin_and_end_like_sentences():
    (line,), _ = list_findings(make(findings=(finding("no_federation", sentence="nobody federates."),)))
    assert (line.head, line.sentence) == ("Round 2 · no federation", "Nobody federates.")


def test_alarms_come_first_and_a_detector_once():
    found = (finding("a", 1, "suspect"), finding("b", 1, "suspect"), finding("b", 5), finding("b", 3))
    leading, others = list_findings(make(findings=found))
    assert [(line.level, line.head) for line in leading] == [("alarm", "Round 3 · b"), ("suspect", "Round 1 · a")]
    assert [line.head for line in others] == ["Round 1 · b", "Round 5 · b"]


def test_what_to_try_is_said_once_for_every_detector():
    run = dataclasses.replace(make(), findings=tuple(finding(round=n, advice=("training.lr lower",)) for n in (1, 2)))
    (leading,), (again,) = list_findings(run)
    assert leading.advice
    assert not again.advice
