"""A loss that rises and stays up, against losses that only look like it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedfault.detectors.divergence import LEAST, SIGMA, divergence
from fedfault.diagnosis.calibration import Threshold, learn_thresholds
from fedfault.diagnosis.detection import detect_failures, judge_readings
from fedfault.testing.histories import history

DETECTOR = divergence()
NATURAL = Threshold(DETECTOR.default_threshold, 0)


def readings(losses, **scale):
    return DETECTOR.read(history(losses), scale)


def levels(losses, threshold=NATURAL):
    found = readings(losses, **threshold.scale)
    return [judge_readings(DETECTOR, threshold, found[: i + 1]) for i in range(len(found))]


def test_the_sum_by_hand():
    """sigma 0.1: the steps are -10 - 0.5, 0.5 - 0.5, 1 - 0.5, 3 - 0.5, -5 - 0.5, and the sum never falls below zero."""
    found = readings([5.0, 4.0, 4.05, 4.1, 4.3, 3.5], sigma=0.1)
    assert [r.round for r in found] == [1, 2, 3, 4, 5]
    assert [r.statistic for r in found] == pytest.approx([0, 0, 0.5, 3.0, 0])
    assert [r.effect for r in found] == pytest.approx([0, 0.05, 0.1, 0.3, 0])
    assert found[3].evidence["rise"] == pytest.approx(0.3)


def test_a_smaller_noise_makes_the_same_rise_weigh_more():
    assert readings([4.0, 4.1], sigma=0.05)[-1].statistic == pytest.approx(1.5)
    assert readings([4.0, 4.1])[-1].statistic == pytest.approx(0.1 / SIGMA - 0.5)


def test_a_rise_that_stays_is_an_alarm_in_its_second_round():
    assert levels([5.0, 4.0, 4.5, 4.6, 4.7]) == ["ok", "suspect", "alarm", "alarm"]


def test_a_rise_below_the_floor_is_none_however_long_it_stays():
    under = 0.9 * DETECTOR.min_effect
    assert set(levels([5.0, 4.0, *[4.0 + under] * 20])) == {"ok"}
    assert readings([5.0, 4.0, *[4.0 + under] * 20])[-1].statistic > DETECTOR.default_threshold


def test_a_spike_that_comes_back_is_a_suspicion_only():
    assert levels([5.0, 4.0, 4.5, 3.9, 3.8, 3.7]) == ["ok", "suspect", "ok", "ok", "ok"]


def test_a_loss_that_is_no_number_is_an_alarm_at_once():
    for wrong in (math.nan, math.inf):
        assert levels([5.0, 4.0, wrong]) == ["ok", "alarm"]
        assert levels([wrong, wrong]) == ["alarm", "alarm"]
        found = readings([5.0, 4.0, wrong, 4.5])
        assert found[1].statistic == math.inf
        assert found[1].evidence == {"best": 4.0}
        assert found[2].effect == pytest.approx(0.5)  # the best value is remembered
        assert DETECTOR.explain(found[1]) == "the validation loss is not a finite number"


def test_a_run_has_failed_once_half_of_what_it_gained_is_given_back():
    """From 5 to 4 and back to 4.4 or 4.6; a run that never gained anything has failed too."""
    for end, failed in ((4.4, False), (4.6, True)):
        assert DETECTOR.is_failure(readings([5.0, 4.0, end])[-1]) is failed
    assert DETECTOR.is_failure(readings([5.0, 5.5])[-1])
    assert DETECTOR.is_failure(readings([5.0, 4.0, math.nan])[-1])


def test_sigma_is_the_scaled_median_residual_about_the_falling_fit():
    """5, 4, 4.2, 3 falls best as 5, 4.1, 4.1, 3: residuals 0, 0.1, 0.1, 0 in size."""
    one = history([5.0, 4.0, 4.2, 3.0])
    assert DETECTOR.learn_scale([one])["sigma"] == pytest.approx(1.4826 * 0.05)
    still = history([5.0, 4.0, 3.5, 3.0, 2.5])  # 0, 0.1, 0.1, 0 and five times 0: the median of all is 0
    assert DETECTOR.learn_scale([one, still])["sigma"] == LEAST
    assert DETECTOR.learn_scale([history([5.0, 4.0])]) == {"sigma": SIGMA}


def simulated(g, runs: int, sigma: float, rounds: int = 15):
    """Losses that fall without end, ever more slowly, and noise: (runs, rounds)."""
    return 4 + 3 * np.exp(-np.arange(rounds) / 5) + sigma * g.normal(size=(runs, rounds))


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.003, 0.02, 0.05])
def test_silent_on_falling_losses_with_noise_in_95_of_100_runs(sigma):
    """With the noise and the threshold of 19 such runs; ten calibrations, 60 fresh runs each."""
    g, alarms = np.random.default_rng(0), []
    for _ in range(10):
        controls = [history(losses) for losses in simulated(g, 19, sigma).tolist()]
        thresholds, _ = learn_thresholds(controls, {"divergence": DETECTOR})
        alarms += ["alarm" in levels(losses, thresholds["divergence"]) for losses in simulated(g, 60, sigma).tolist()]
    assert np.mean(alarms) <= 0.05


def test_silent_with_the_default_threshold_where_losses_fall_faster_than_they_tremble():
    """Steps of ten standard deviations: no later loss is above an earlier one but with probability 1e-12."""
    g = np.random.default_rng(0)
    for losses in 9 - 0.2 * np.arange(15) + 0.02 * g.normal(size=(100, 15)):
        assert {r.statistic for r in readings(losses.tolist())} == {0}


def with_updates(losses, lengths):
    """Losses, with the lengths of four clients' updates from round 1 on."""
    records = history(losses, clients=[{}, *[{k: {} for k in range(4)} for _ in losses[1:]]])
    return [
        replace(r, clients=tuple(replace(c, update_norm=own[c.client]) for c in r.clients))
        for r, own in zip(records, [(), *lengths], strict=True)
    ]


@pytest.mark.parametrize("last", [4.7, math.nan])
def test_a_client_whose_updates_are_far_longer_is_named_before_the_learning_rate(last):
    usual, long = (1.0, 1.2, 0.9, 1.1), (1.0, 1.2, 64.0, 1.1)
    found = detect_failures(with_updates([5.0, 4.0, 4.5, 4.6, last], [usual, long, usual, usual]), None)
    alarm = next(f for f in found if f.level == "alarm" and f.detector == "divergence")
    assert "in round 2 the update of client 2 was 55.7 times as long as the median one" in alarm.sentence
    assert alarm.advice[0].startswith("look at what the client")
    assert "training.lr at half" in alarm.advice


@pytest.mark.parametrize("lengths", [(1.0, 1.0, 9.9, 1.0), (math.nan,) * 4, (0.0, 0.0, 0.0, 5.0)])
def test_lengths_that_are_usual_or_not_known_name_nobody(lengths):
    found = detect_failures(with_updates([5.0, 4.0, 4.5, 4.6], [lengths] * 3), None)
    alarm = next(f for f in found if f.level == "alarm" and f.detector == "divergence")
    assert "client" not in alarm.sentence
    assert alarm.advice[0] == "training.lr at half"


def test_a_long_update_before_the_best_round_is_no_cause():
    long, usual = (1.0, 1.0, 64.0, 1.0), (1.0,) * 4
    found = detect_failures(with_updates([5.0, 4.0, 4.5, 4.6], [long, usual, usual]), None)
    assert all("client" not in f.sentence for f in found)
