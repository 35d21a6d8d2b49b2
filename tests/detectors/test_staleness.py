"""Control variates against gradients, and a bound that noise widens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedfault.detectors.staleness import ALIKE, LEAST, UNITS, stale_controls
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import judge_readings
from fedfault.testing.histories import history

DETECTOR = stale_controls()
NATURAL = Threshold(DETECTOR.default_threshold, 0)


def readings(rounds, ratio=1.0):
    """rounds: of every round the (error, spread, |gradient|) of its clients."""
    clients = [{}]
    for r in rounds:
        names = ("control_error", "control_spread", "gradient_norm", "control_age")
        clients.append({k: dict(zip(names, (*v, float(k)), strict=True)) for k, v in enumerate(r)})
    probes = {"control_ratio": [None, *[ratio] * len(rounds)]}
    return DETECTOR.read(history(clients=clients, probes=probes), {})


def test_the_ratio_by_hand():
    """(1 + 2 + 3 + 4) / (2 + 2 + 4 + 2) = 1 in the first round, (10 + 30) / (10 + 10) = 2 with the second."""
    first = [(1.0, 2.0, 1.0), (2.0, 2.0, 1.0), (3.0, 4.0, 1.0), (4.0, 2.0, 1.0)]
    found = readings([first, [(30.0, 10.0, 1.0)]])
    assert [r.evidence["rho"] for r in found] == pytest.approx([1, 2])
    assert found[0].evidence["mean_age"] == pytest.approx(1.5)
    assert all(r.statistic <= r.evidence["rho"] for r in found)


def test_the_bound_is_the_ratio_where_all_clients_agree():
    (found,) = readings([[(6.0, 2.0, 1.0), (9.0, 3.0, 1.0), (3.0, 1.0, 1.0), (12.0, 4.0, 1.0)]])
    assert found.statistic == pytest.approx(3)
    assert found.effect == pytest.approx(math.log(3))


def test_clients_that_hardly_differ_are_compared_with_a_share_of_their_gradient():
    (found,) = readings([[(0.5, 1e-9, 2.0)] * LEAST])
    assert found.evidence["rho"] == pytest.approx(0.5 / (ALIKE * 4))


def test_control_variates_of_clients_that_do_not_differ_are_compared_with_the_noise_of_a_batch():
    """IID clients: the error is that of c_i alone, and there is nothing to correct: (0.6 + 2) / (0 + 2), not 0.6 / 0."""
    own = {"gradient_norm": 1.0, "control_error": 0.6, "control_spread": 0.0, "control_age": 1.0}
    records = history(clients=[{}, *[dict.fromkeys(range(LEAST), own)] * 2], probes={"drift_within": [None, 2.0, 2.0]})
    found = DETECTOR.read(records, {})
    assert [r.evidence["rho"] for r in found] == pytest.approx([1.3, 1.3])
    assert judge_readings(DETECTOR, NATURAL, found) == "ok"


def test_a_few_control_variates_are_not_enough():
    assert readings([[(2.0, 1.0, 1.0)] * (LEAST - 1)]) == []


@pytest.mark.slow
def test_the_bound_is_below_the_truth_in_about_95_of_100_experiments():
    """E error = 2 E spread, both noisy, 60 clients; a percentile bootstrap is a little too sure, hence 8 and not 5 %."""
    g, above = np.random.default_rng(0), []
    for _ in range(200):
        noise = g.exponential(size=(2, 60))
        (found,) = readings([[(2 * a, b, 1.0) for a, b in noise.T.tolist()]])
        above.append(found.statistic > 2)
    assert np.mean(above) <= 0.08 + 4 * math.sqrt(0.08 * 0.92 / 200)


def test_control_variates_that_are_far_off_or_in_wrong_units_are_an_alarm():
    far = [(9.0, 1.0, 1.0)] * LEAST
    assert judge_readings(DETECTOR, NATURAL, readings([far, far])) == "alarm"
    worse = [(1.5, 1.0, 1.0)] * LEAST
    assert judge_readings(DETECTOR, NATURAL, readings([worse, worse], ratio=10.0)) == "alarm"


def test_control_variates_that_help_or_hurt_a_little_are_none():
    good, noisy = [(0.3, 1.0, 1.0)] * LEAST, [(1.5, 1.0, 1.0)] * LEAST
    assert judge_readings(DETECTOR, NATURAL, readings([good, good], ratio=10.0)) == "ok"
    assert judge_readings(DETECTOR, NATURAL, readings([noisy, noisy])) == "ok"


def test_one_client_that_is_far_off_does_not_make_it_sure():
    mixed = [(0.1, 1.0, 1.0)] * 9 + [(20.0, 1.0, 1.0)]
    (found,) = readings([mixed])
    assert found.evidence["rho"] > 1 > found.statistic


def test_wrong_units_are_named():
    """Momentum 0.9 makes steps, and what is made of them, ten times as large as gradients."""
    far = [(9.0, 1.0, 1.0)] * LEAST
    assert "10 times as large as gradients: wrong units" in DETECTOR.explain(readings([far], ratio=10.0)[0])
    assert "0.1 times as large" in DETECTOR.explain(readings([far], ratio=0.1)[0])
    for ratio in (0.9 * UNITS[1], 1.1 * UNITS[0]):
        assert "units" not in DETECTOR.explain(readings([far], ratio=ratio)[0])
