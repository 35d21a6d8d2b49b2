"""The verdict: its words, what leads to each of them, and that it never knows more than was calibrated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedfault.diagnosis.calibration import Calibration, Threshold
from fedfault.diagnosis.verdict import LEAST, judge_run
from fedfault.records import HEALTHY, NO_ALARM, UNLEARNED, RoundRecord, Score
from fedfault.testing.histories import broken_history, healthy, history
from judged import fake

RUN = history([5.0, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4])
CALIBRATED = Calibration("made", {"forgetting": Threshold(1.0, 19)}, 19, 0.05, exact=True, config={})
ONE = replace(CALIBRATED, thresholds={"one": Threshold(1.0, 19)})


def state_of(records, calibration=None) -> str:
    return judge_run(records, calibration)["state"]


def test_without_an_alarm_a_run_is_healthy_only_if_controls_say_so(known):
    known(one=fake([0, 0]), two=fake([0, 2]))
    found = judge_run(RUN[:2], ONE)
    assert (found["state"], found["since"], found["causes"], found["over"]) == (HEALTHY, None, [], [])
    assert found["sentence"] == "No detector raised an alarm."
    assert judge_run(RUN[:3], ONE)["sentence"] == "No detector raised an alarm; suspected for a while: two."
    found = judge_run(RUN[:2], None)
    assert (found["state"], found["calibration"]) == (NO_ALARM, None)
    assert found["sentence"] == "No detector raised an alarm, by conventional thresholds."
    assert state_of([]) == NO_ALARM


def test_a_calibration_that_read_nothing_of_the_run_says_nothing(known):
    known(one=fake([]), two=fake([0, 0]))
    found = judge_run(RUN[:3], ONE)
    assert (found["state"], found["calibration"], found["controls"]) == (NO_ALARM, None, 0)
    assert "has none of the numbers that the 19 controls were judged by" in found["sure"]


def test_what_matters_and_only_controls_could_judge_is_told(known):
    known(one=fake([0.4, 0.4]), two=fake([0.4, 0.4], effects=[0.1, 0.1]), three=fake([0.05, 0.05]))
    said = judge_run(RUN[:3], None)["sentence"]
    assert said.endswith("thresholds. Only control runs could say whether this is usual: it reads 0.4.")
    assert "usual" not in judge_run(RUN[:3], ONE)["sentence"]


def test_general_english_that_gets_worse_is_not_called_healthy():
    """+0.159 nats with an error of 0.014, and no controls of such runs."""
    scores = {"general": [Score(3.0, 1000), Score(3.1, 1000, 0.014, 40), Score(3.159, 1000, 0.014, 40)]}
    found = judge_run(history([5.0, 4.8, 4.7], scores=scores), None)
    assert found["state"] == NO_ALARM
    assert "the loss on general English has risen by 0.16 nats" in found["sentence"]


def scored(*losses: float, se: float | None = None) -> list[RoundRecord]:
    return history(scores={"validation": [Score(v, 1000, se if t else None, 40) for t, v in enumerate(losses)]})


@pytest.mark.parametrize("calibration", [None, ONE])
@pytest.mark.parametrize(
    ("losses", "se", "learned"),
    [
        ((5.0, 4.9), None, True),
        ((5.0, 5.0 - 1e-6), 1e-9, False),  # a learning rate of nearly nothing: sure, and too small to show
        ((5.0, 5.0 - 1.1 * LEAST), None, True),
        ((5.0, 4.9), 0.1, False),  # within its error
        ((5.0, 4.0, 5.0), None, False),
        ((5.0, 5.2), None, False),
    ],
)
def test_a_loss_that_has_not_fallen_beyond_its_error_is_not_learning(known, losses, se, learned, calibration):
    known(one=fake([0, 0]))
    found = judge_run(scored(*losses, se=se), calibration)
    expected = (NO_ALARM if calibration is None else HEALTHY) if learned else UNLEARNED
    assert found["state"] == expected
    assert ("has not fallen" in found["sentence"]) == (not learned)


def test_an_alarm_does_not_hide_that_nothing_was_learned(known):
    known(one=fake([2, 2]))
    found = judge_run(scored(5.0, 5.1, 5.0), None)
    assert found["state"] == UNLEARNED
    assert found["sentence"].endswith("Since round 2 it reads 2.")


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
    assert judge_run(records, None)["sure"].startswith("Not calibrated: thresholds are conventions")
    found = judge_run(records, CALIBRATED)
    assert "19 IID control runs (made)" in found["sure"]
    assert "at most 5% of healthy runs" in found["sure"]
    assert (found["calibration"], found["controls"], found["alpha"]) == ("made", 19, 0.05)
    few = replace(CALIBRATED, name="few", controls=5, exact=False)
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
