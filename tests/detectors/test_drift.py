"""Clients that pull apart, and what that costs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedfault.detectors.drift import PERMUTATIONS, REAL, ROUNDS, client_drift
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import judge_readings
from fedfault.testing.histories import history

DETECTOR = client_drift()
NATURAL = Threshold(DETECTOR.default_threshold, 0)


def readings(between, within, losses=(), alignment=None, halves=(), scale=()):
    probes = {"drift_between": [None, *between], "drift_within": [None, *within]}
    probes |= {} if alignment is None else {"gradient_alignment": [None, *alignment]}
    return DETECTOR.read(history(losses, probes=probes, matrices={"halves": [None, *halves]}), dict(scale))


def test_the_ratio_is_of_sums_over_the_rounds_so_far():
    """(3 - 1 + 4) / (5 + 5 + 10), then with 2 / 10; rounds with one client have no variance between clients."""
    found = readings([3.0, None, -1.0, 4.0, 2.0], [5.0, None, 5.0, 10.0, 10.0])
    assert ROUNDS == 3
    assert [r.round for r in found] == [4, 5]
    assert [r.statistic for r in found] == pytest.approx([0.3, 8 / 30])


def test_harm_is_the_alignment_that_is_missing_beside_the_controls():
    """Cosines 0.5, 0.1, 0.3 have the median 0.3; controls have 0.4: a quarter is gone."""
    found = readings([1.0] * 3, [1.0] * 3, alignment=[0.5, 0.1, 0.3], scale={"alignment": 0.4})
    assert found[0].effect == pytest.approx(0.25)
    assert found[0].evidence["turned_away"] == pytest.approx(0.25)
    assert "25 % less aligned" in DETECTOR.explain(found[0])


def test_the_usual_alignment_is_the_median_of_the_controls_medians():
    values = ([0.1, 0.2, 0.9], [0.4, 0.4, 0.4], [0.6, 0.5, 0.0])
    controls = [history(probes={"gradient_alignment": [None, *v]}) for v in values]
    assert DETECTOR.learn_scale(controls) == {"alignment": 0.4}
    against = [history(probes={"gradient_alignment": [None, -0.2]})]
    assert DETECTOR.learn_scale(against) == DETECTOR.learn_scale([history([5.0])]) == {}


def test_what_an_older_version_recorded_outside_the_bounds_of_a_cosine_is_left_out():
    controls = [history(probes={"gradient_alignment": [None, 0.4, 4.42, 0.4]})] * 3
    assert DETECTOR.learn_scale(controls) == {"alignment": 0.4}
    found = readings([1.0] * 3, [1.0] * 3, alignment=[0.3, 4.42, -1.7], scale={"alignment": 0.4})
    assert found[0].evidence["turned_away"] == pytest.approx(0.25)


def test_without_controls_harm_is_the_share_of_the_path_that_was_taken_back():
    """5 3 4 3.5: the way is 1.5, the path 2 + 1 + 0.5."""
    found = readings([1.0] * 3, [1.0] * 3, losses=[5.0, 3.0, 4.0, 3.5])
    assert found[0].evidence["taken_back"] == found[0].effect == pytest.approx(1 - 1.5 / 3.5)
    assert readings([1.0] * 3, [1.0] * 3, losses=[5.0, 4.0, 3.5, 3.0])[0].effect == 0


def test_clients_that_pull_apart_to_the_run_s_harm_are_an_alarm():
    found = readings([3.0] * 4, [5.0] * 4, losses=[5.0, 3.0, 4.0, 3.0, 4.0])
    assert judge_readings(DETECTOR, NATURAL, found) == "alarm"


def test_clients_that_pull_apart_without_harm_are_none():
    found = readings([3.0] * 4, [5.0] * 4, losses=[5.0, 4.0, 3.5, 3.0, 2.5])
    assert found[-1].statistic > DETECTOR.default_threshold
    assert judge_readings(DETECTOR, NATURAL, found) == "ok"


def test_harm_without_clients_that_pull_apart_is_none():
    slight = 0.9 * REAL
    found = readings([slight] * 4, [1.0] * 4, losses=[5.0, 3.0, 4.0, 3.0, 4.0])
    assert found[-1].effect == 0
    assert judge_readings(DETECTOR, Threshold(0.01, 19), found) == "ok"


def products(g, K: int, apart: float, P: int = 20):
    """<g_i1, g_j2> of clients whose gradients differ by `apart` times the noise of a half."""
    own = g.normal(size=P) + apart * g.normal(size=(K, P))
    first, second = own + g.normal(size=(2, K, P))
    return (first @ second.T).tolist()


@pytest.mark.slow
def test_the_exchange_of_halves_is_a_test_of_its_level():
    g, p = np.random.default_rng(0), []
    for _ in range(300):
        halves = [products(g, 6, 0.0) for _ in range(ROUNDS)]
        p.append(readings([0.0] * 3, [1.0] * 3, halves=halves)[0].evidence["p"])
    for alpha in (0.05, 0.2):
        assert np.mean(np.array(p) <= alpha) <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / 300)
    assert np.mean(p) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 300))


def test_the_exchange_of_halves_finds_clients_that_differ():
    g = np.random.default_rng(0)
    found = readings([0.0] * 3, [1.0] * 3, halves=[products(g, 6, 1.0) for _ in range(3)])
    assert found[0].evidence["p"] == pytest.approx(1 / (1 + PERMUTATIONS))


def test_clients_that_are_the_same_have_nothing_to_exchange():
    found = readings([0.0] * 3, [1.0] * 3, halves=[[[2.0] * 5] * 5] * 3)
    assert found[0].evidence["p"] == 1
    assert "p" not in readings([0.0] * 3, [1.0] * 3)[0].evidence
