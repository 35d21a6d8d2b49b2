"""Tasks that are answered right no longer, and answers that are all the same."""

from __future__ import annotations

import pytest

from fedfault.detectors.answers import answer_collapse, task_forgetting
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import judge_readings
from fedfault.records import Score, is_recorded
from fedfault.testing.histories import history


def answered(metric, **topics):
    """A history of a metric of the answers to each topic, from round 0 on."""
    scores = {f"topic/{name}": [Score(1.0, 50, metrics={metric: v}) for v in own] for name, own in topics.items()}
    return history(scores=scores)


def level(detector, records):
    return judge_readings(detector, Threshold(detector.default_threshold, 0), detector.read(records, {}))


def test_the_largest_fall_from_the_best_round_counts():
    found = task_forgetting().read(answered("exact_match", a=[0.1, 0.8, 0.7], b=[0.5, 0.6, 0.2]), {})
    assert [r.statistic for r in found] == pytest.approx([-0.1, 0.4])
    assert found[-1].evidence == pytest.approx({"topic/b": 0.4, "now": 0.2, "best": 0.6})


def test_a_forgotten_task_alarms_and_one_that_comes_back_does_not():
    assert level(task_forgetting(), answered("exact_match", a=[0.0, 0.9, 0.2, 0.1])) == "alarm"
    assert level(task_forgetting(), answered("exact_match", a=[0.0, 0.9, 0.2, 0.8])) == "ok"


def test_one_answer_to_everything_alarms_after_training_alone():
    """Before it a model that says nothing has collapsed to nothing, which is not the run's doing."""
    assert level(answer_collapse(), answered("one_answer", a=[0.9, 0.1, 0.1], b=[0.9, 0.0, 0.2])) == "ok"
    assert level(answer_collapse(), answered("one_answer", a=[0.0, 0.3, 0.4], b=[0.0, 0.6, 0.7])) == "alarm"
    assert answer_collapse().read(answered("one_answer", a=[0.9]), {}) == []


def test_one_task_of_many_may_get_one_answer_and_all_questions_may_not():
    """Eight questions of a task have one answer by chance; of all tasks together the commonest answer is rare."""
    one = answered("one_answer", a=[0.0, 0.9, 0.9], b=[0.0, 0.1, 0.1], c=[0.0, 0.2, 0.0])
    assert [r.statistic for r in answer_collapse().read(one, {})] == pytest.approx([0.4, 1.0 / 3])
    assert level(answer_collapse(), one) == "ok"
    pooled = [Score(1.0, 50, metrics={"one_answer": v}) for v in (0.0, 0.6, 0.7)]
    same = history(scores={"validation": pooled, "topic/a": [Score(1.0, 50, metrics={"one_answer": 0.1})] * 3})
    assert [r.statistic for r in answer_collapse().read(same, {})] == pytest.approx([0.6, 0.7])
    assert level(answer_collapse(), same) == "alarm"


def test_runs_without_answers_are_not_read():
    """Topics of language modelling have losses alone."""
    plain = history(scores={"topic/a": [1.0, 2.0]})
    for detector in (task_forgetting(), answer_collapse()):
        assert detector.read(plain, {}) == []
        assert not any(is_recorded(what, plain) for what in detector.reads)
        assert all(is_recorded(f"score/topic with {m}", answered(m, a=[0.1])) for m in ("exact_match", "one_answer"))
