"""Dimensions that go missing, in hidden states and in the adapter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedfault.detectors.collapse import rank_collapse, representation_collapse
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import judge_readings
from fedfault.testing.histories import history

HIDDEN, ADAPTER = representation_collapse(), rank_collapse()


def hidden(ranks, base=20.0, **probes):
    names = {"hidden_rank": ranks, "hidden_rank_base": [base] * len(ranks), **probes}
    return HIDDEN.read(history(probes={name: [None, *v] for name, v in names.items()}), {})


def adapter(ranks, scale=(), steps=5):
    clients = [{0: {"steps": steps}}] * (len(ranks) + 1)
    return ADAPTER.read(history(probes={"effective_rank": [None, *ranks]}, clients=clients), dict(scale))


def test_hidden_ranks_by_hand():
    found = hidden([20.0, 10.0, 25.0])
    assert [r.statistic for r in found] == pytest.approx([0, math.log(2), -math.log(1.25)])
    assert [r.effect for r in found] == pytest.approx([0, 0.5, -0.25])
    assert found[1].evidence == {"rank_share": 0.5}


def test_embeddings_and_repetition_are_evidence_where_they_are_measured():
    found = hidden([10.0], embedding_cosine=[0.9], distinct_2=[0.1])
    assert found[0].evidence == {"rank_share": 0.5, "embedding_cosine": 0.9, "distinct_2": 0.1}


def test_half_the_dimensions_gone_is_an_alarm_and_a_tenth_is_none():
    default = Threshold(HIDDEN.default_threshold, 0)
    assert judge_readings(HIDDEN, default, hidden([19.0, 10.0, 9.0])) == "alarm"
    assert judge_readings(HIDDEN, default, hidden([19.0, 18.0, 18.0])) == "ok"


def test_a_loss_that_controls_never_show_is_none_below_the_floor():
    rank = 20 * (1 - 0.9 * HIDDEN.min_effect)
    assert judge_readings(HIDDEN, Threshold(0.01, 19), hidden([rank, rank])) == "ok"


def test_the_adapter_s_rank_by_hand():
    found = adapter([4.0, 2.0], scale={"rank": 4.0})
    assert [r.statistic for r in found] == pytest.approx([-math.log(4), -math.log(2)])
    assert [r.effect for r in found] == pytest.approx([0, 0.5])
    assert found[1].evidence == {"effective_rank": 2.0, "rank": 4.0}


def test_the_usual_rank_is_the_median_of_the_controls_at_their_end():
    controls = [history(probes={"effective_rank": [None, 9.0, rank]}) for rank in (3.0, 4.0, 6.0)]
    assert ADAPTER.learn_scale(controls) == {"rank": 4.0}
    assert ADAPTER.learn_scale([history([5.0, 4.0])]) == {}


def test_an_adapter_of_far_fewer_directions_than_the_controls_is_an_alarm():
    scale, threshold = {"rank": 4.0}, Threshold(-math.log(3.5), 19, {"rank": 4.0})
    assert judge_readings(ADAPTER, threshold, adapter([3.9, 2.0, 1.9], scale)) == "alarm"
    near = 4 * (1 - 0.9 * ADAPTER.min_effect)
    assert judge_readings(ADAPTER, threshold, adapter([near, near], scale)) == "ok"


def test_a_small_rank_is_no_alarm_by_itself():
    """An adapter of rank one has effective rank one in healthy runs too."""
    assert judge_readings(ADAPTER, Threshold(ADAPTER.default_threshold, 0), adapter([1.0, 1.0])) == "ok"


def test_a_dead_adapter_is_an_alarm_at_once():
    found = adapter([0.0])
    assert found[0].statistic == math.inf
    assert judge_readings(ADAPTER, Threshold(ADAPTER.default_threshold, 0), found) == "alarm"
    assert "dead" in ADAPTER.explain(found[0])


def test_an_adapter_that_nobody_trained_is_not_dead():
    assert adapter([0.0], steps=0) == []
    before_training = history(probes={"effective_rank": [0.0]}, clients=[{0: {}}])
    assert ADAPTER.read(before_training, {}) == []


def test_an_adapter_that_nobody_s_training_counts_for_is_not_dead():
    before, after = history(probes={"effective_rank": [None, 0.0]}, clients=[{}, {0: {}}])
    after = replace(after, clients=tuple(replace(c, weight=0.0) for c in after.clients))
    assert ADAPTER.read([before, after], {}) == []
