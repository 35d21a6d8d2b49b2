"""The verdict: its words, what leads to each of them, and that it never knows more than was calibrated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedfault.diagnosis.calibration import Calibration, Threshold
from fedfault.diagnosis.detection import build_detectors
from fedfault.diagnosis.verdict import LATER, LEAST, _find_causes, judge_run
from fedfault.records import HEALTHY, NO_ALARM, UNJUDGED, UNLEARNED, RoundRecord, Score
from fedfault.testing.histories import broken_history, healthy, history
from handmade import finding
from judged import fake

RUN = history([5.0, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4])
CALIBRATED = Calibration("made", {"forgetting": Threshold(1.0, 19)}, 19, 0.05, exact=True, config={})
ONE = replace(CALIBRATED, thresholds={"one": Threshold(1.0, 19)})


def state_of(records, calibration=None) -> str:
    return judge_run(records, calibration)["state"]


def test_without_an_alarm_a_run_is_healthy_only_if_controls_say_so(known):
    known(one=fake([0, 0, 0]), two=fake([0, 0, 2]))
    found = judge_run(RUN[:3], ONE)
    assert (found["state"], found["since"], found["causes"], found["over"]) == (HEALTHY, None, [], [])
    assert found["sentence"] == "No detector raised an alarm."
    assert judge_run(RUN[:4], ONE)["sentence"] == "No detector raised an alarm; suspected at the end: two."
    found = judge_run(RUN[:2], None)
    assert (found["state"], found["calibration"]) == (NO_ALARM, None)
    assert found["sentence"] == "No detector raised an alarm, by conventional thresholds."


def test_a_suspicion_that_stands_at_the_end_is_told_from_one_that_is_over(known):
    known(one=fake([0, 2, 0, 0]), two=fake([0, 0, 0, 2]), three=fake([2, 0, 0, 0]))
    assert judge_run(RUN[:5], ONE)["sentence"] == (
        "No detector raised an alarm; suspected at the end: two; suspected for a while: three, one."
    )


def test_a_run_of_which_nothing_was_read_is_not_judged(known):
    known(one=fake([0]), silent=fake([0, 0], default_threshold=None))
    assert [state_of(RUN[:n], calibration) for n in (0, 1, 2) for calibration in (None, ONE)] == [
        *[UNJUDGED] * 4,
        *[NO_ALARM] * 2,
    ]
    found = judge_run(RUN[:1], None)
    assert (found["sentence"], found["calibration"]) == ("Nothing was measured that a detector reads.", None)
    known(silent=fake([0, 0], default_threshold=None))
    assert state_of([RoundRecord(t) for t in range(3)]) == UNJUDGED


def test_a_calibration_that_read_nothing_of_the_run_says_nothing(known):
    known(one=fake([]), two=fake([0, 0]))
    found = judge_run(RUN[:3], ONE)
    assert (found["state"], found["calibration"], found["controls"]) == (NO_ALARM, None, 0)
    assert "0 of the 1 detectors that the 19 controls calibrate had the 2 readings that an alarm takes" in found["sure"]


@pytest.mark.parametrize(
    ("often", "seldom", "state"), [(1, 1, HEALTHY), (2, 1, HEALTHY), (1, 2, NO_ALARM), (0, 3, NO_ALARM)]
)
def test_a_run_is_healthy_only_if_most_detectors_could_have_alarmed(known, often, seldom, state):
    names = {f"often{i}": fake([0, 0, 0]) for i in range(often)} | {f"seldom{i}": fake([0]) for i in range(seldom)}
    known(**names)
    found = judge_run(RUN[:4], replace(CALIBRATED, thresholds={name: Threshold(1.0, 19) for name in names}))
    assert (found["state"], found["sentence"]) == (state, "No detector raised an alarm.")
    ready = f"{often} of the {often + seldom} detectors that the 19 controls calibrate had the 2 readings"
    assert (ready in found["sure"]) == (seldom > 0)
    assert ("about 5 % of healthy runs" in found["sure"]) == (state == HEALTHY)


def test_detectors_of_which_the_controls_say_nothing_are_named(known):
    known(one=fake([0, 0, 0]), mean_one=fake([0, 0, 0]), silent=fake([]))
    assert judge_run(RUN[:4], ONE)["sure"].endswith("(1). Of mean one the controls say nothing.")


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


def scored(*losses: float, se: float | None = None, blocks: int | None = 40) -> list[RoundRecord]:
    return history(scores={"validation": [Score(v, 1000, se if t else None, blocks) for t, v in enumerate(losses)]})


@pytest.mark.parametrize("calibration", [None, ONE])
@pytest.mark.parametrize(
    ("losses", "se", "learned"),
    [
        ((5.0, 4.9, 4.9), None, True),
        ((5.0, 5.0, 5.0 - 1e-6), 1e-9, False),  # a learning rate of nearly nothing: sure, and too small to show
        ((5.0, 5.0, 5.0 - 1.1 * LEAST), None, True),
        ((5.0, 4.9, 4.9), 0.1, False),  # within its error
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


@pytest.mark.parametrize(("blocks", "errors"), [(2, 6.314), (3, 2.920), (8, 1.895), (1000, 1.646), (None, 1.645)])
def test_a_fall_goes_beyond_its_error_by_student_s_t_of_so_few_blocks(blocks, errors):
    """Quantiles of 95 % from a printed table; by the normal one, a run of two blocks learned by chance in 18 % of cases."""
    for share in (0.99, 1.01):
        found = judge_run(scored(5.0, 5.0, 5.0 - share * errors * 0.1, se=0.1, blocks=blocks), None)
        assert (found["state"] == UNLEARNED) == (share < 1)


def test_an_alarm_does_not_hide_that_nothing_was_learned(known):
    known(one=fake([2, 2]))
    found = judge_run(scored(5.0, 5.1, 5.0), None)
    assert found["state"] == UNLEARNED
    assert "Round 2: it reads 2. Severity 2.0 (1 is the threshold)." in found["sentence"]


def test_an_alarm_is_degraded_and_a_fatal_one_that_holds_failed(known):
    known(a=fake([0, 2, 2, 2, 2, 2]), b=fake([0] * 6))
    found = judge_run(RUN, None)
    assert (found["state"], found["since"], found["causes"], found["over"]) == ("degraded", 3, ["a"], [])
    assert found["sentence"].startswith("Round 3: it reads 2. Severity 2.0 ")
    assert (found["severity"], found["consequences"]) == (2.0, [])
    for least, state in ((2, "failed"), (3, "degraded")):  # the last reading decides
        known(a=fake([0, 4, 4, 4, 4, 2], is_failure=lambda last, least=least: last.statistic >= least))
        assert judge_run(RUN, None)["state"] == state


def test_an_alarm_that_is_over_by_the_end_does_not_fail_a_run(known):
    known(a=fake([2, 2, 0, 0, 0, 0], is_failure=lambda last: True), b=fake([0, 0, 0, 3, 3, 3]))
    found = judge_run(RUN, None)
    assert (found["state"], found["since"], found["causes"], found["over"]) == ("degraded", 2, ["a", "b"], ["a"])
    assert found["sentence"].startswith("Round 2, over by the end: it reads 2; then b (round 5). Severity 3.0")


def test_a_verdict_s_sentence_is_of_the_first_alarm_and_names_the_others_once(known):
    known(slow_one=fake([0, 0, 2, 2, 0, 0]), a=fake([2, 2, 2, 2, 2, 2]), c=fake([0, 2, 2, 0, 2, 2]))
    said = judge_run(RUN, None)["sentence"]
    assert said.startswith("Round 2: it reads 2; then c (round 3), slow one (round 4, over). Severity")


def test_any_alarm_in_a_run_that_ends_above_its_start_is_a_failure(known):
    known(a=fake([2, 2, 2]))
    assert judge_run(history([5.0, 4.0, 3.0, 4.9]), None)["state"] == "degraded"
    assert judge_run(history([5.0, 4.0, 3.0, 5.1]), None)["state"] == "failed"
    assert judge_run(history([5.0, 4.0, 3.0, math.nan]), None)["state"] == "failed"


def test_what_another_alarm_leads_to_is_a_consequence(known):
    """The loss swings first; what makes it swing is seen two rounds later, and is the cause all the same."""
    known(swing=fake([2, 2, 2, 2, 2, 2], leads_to=("slow",)), drift=fake([0, 0, 2, 2, 2, 2], leads_to=("swing", "slow")),
          slow=fake([0, 0, 0, 0, 2, 2]), apart=fake([0, 2, 2, 2, 2, 2]))  # fmt: skip
    found = judge_run(RUN, None)
    assert (found["since"], found["causes"], found["consequences"]) == (2, ["apart", "drift"], ["swing", "slow"])
    said = "Round 3: it reads 2; then drift (round 4); explained by these: swing (round 2), slow (round 6)."
    assert found["sentence"].startswith(said)


def test_of_two_that_lead_to_each_other_the_first_is_the_cause(known):
    def swings(a, b):
        known(a=fake(a, leads_to=("b",)), b=fake(b, leads_to=("a",)))
        return judge_run(RUN, None)["causes"]

    early, late = [2, 2, 2, 2, 2, 2], [0, 0, 2, 2, 2, 2]
    assert (swings(early, late), swings(late, early)) == (["a"], ["b"])


def test_of_a_circle_of_three_the_first_is_the_cause(known):
    alarm = [2, 2, 2, 2]
    known(a=fake(alarm, leads_to=("b",)), b=fake(alarm, leads_to=("c",)), c=fake(alarm, leads_to=("a",)))
    found = judge_run(history([5.0] * 4), None)
    assert (found["causes"], found["consequences"]) == (["a"], ["b", "c"])


def test_what_is_seen_long_after_explains_nothing(known):
    long = history([5.0 - 0.1 * t for t in range(14)])
    known(a=fake([2, 2] + [0] * 11), b=fake([0] * (1 + LATER) + [2] * (12 - LATER), leads_to=("a",)))
    assert judge_run(long, None)["causes"] == ["a", "b"]


def test_severity_is_the_distance_from_healthy_runs_beside_the_threshold_s(known):
    """Controls read 1 and 3, the threshold is 4, the worst reading 12: (12 - 2) / (4 - 2)."""
    known(one=fake([5, 12, 6]))
    made = replace(ONE, thresholds={"one": Threshold(4.0, 19, {}, (1.0, 3.0))})
    assert judge_run(RUN[:4], made)["severity"] == pytest.approx(5)
    known(one=fake([0, 0]))
    assert judge_run(RUN[:3], made)["severity"] == 0
    known(one=fake([math.inf]))
    assert judge_run(RUN[:2], None)["severity"] == math.inf


@pytest.mark.parametrize(
    ("alarms", "cause"),
    [
        ({"fairness_gap": 4, "oscillation": 4, "forgetting": 4, "divergence": 8}, "fairness_gap"),  # a client's noise
        ({"oscillation": 5, "stale_controls": 8, "divergence": 7, "forgetting": 4}, "stale_controls"),
        ({"no_federation": 1, "rank_collapse": 2, "slow_convergence": 10}, "no_federation"),
        ({"rank_collapse": 2, "forgetting": 3, "oscillation": 5}, "rank_collapse"),
        ({"oscillation": 5, "client_drift": 4, "negative_transfer": 2, "forgetting": 3}, "client_drift"),
        (
            {"divergence": 2, "forgetting": 2, "representation_collapse": 2, "fairness_gap": 4},
            "divergence",
        ),  # a high rate
        ({"slow_convergence": 10}, "slow_convergence"),
    ],
)
def test_of_the_alarms_that_faults_raise_the_right_one_is_the_cause(alarms, cause):
    """The sets of benchmarks/faults.py, by docs/metrics.md."""
    made = {name: finding(name, round) for name, round in sorted(alarms.items(), key=lambda item: item[1])}
    assert _find_causes(build_detectors(), made) == [cause]


def test_a_verdict_says_how_sure_it_is():
    records = healthy()
    assert judge_run(records, None)["sure"].startswith("Not calibrated: thresholds are conventions")
    found = judge_run(records, CALIBRATED)
    assert "19 IID control runs (made)" in found["sure"]
    assert "about 5 % of healthy runs" in found["sure"]
    assert (found["calibration"], found["controls"], found["alpha"]) == ("made", 19, 0.05)
    few = replace(CALIBRATED, name="few", controls=5, exact=False)
    assert "extrapolated from only 5" in judge_run(records, few)["sure"]
    assert "about" not in judge_run(records, few)["sure"]
    differing = judge_run(records, CALIBRATED, ["training.lr=0.1 (0.01)"])["sure"]
    assert differing.endswith("The controls differ in training.lr=0.1 (0.01).")


def test_a_run_that_breaks_in_every_way_has_failed_for_many_reasons():
    found = judge_run(broken_history(), None)
    assert found["state"] == "failed"
    everything = {*found["causes"], *found["consequences"]}
    assert {"divergence", "forgetting", "no_federation", "rank_collapse", "representation_collapse"} <= everything
    assert {"no_federation", "stale_controls"} <= set(found["causes"])
    assert "fairness_gap" in everything
    assert {"forgetting", "oscillation", "slow_convergence"}.isdisjoint(found["causes"])
    assert "(round 2" in found["sentence"]
    assert "nan" not in found["sentence"]
