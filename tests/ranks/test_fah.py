"""The mean rank follows the rate of progress."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedfault.registry import build
from fedfault.scheduling import Report, Situation
from fedfault.testing.cohorts import situation

FAH, EXACT = build("scheduler", "fah"), build("scheduler", "exact")


def cohort(budget: int = 24) -> Situation:
    n = 3
    return Situation(2, 0, np.arange(n), np.full(n, 2), np.full(n, 16), budget, a=np.ones(n), b=np.ones(n))


def reports(gains, gains_below, seconds=10.0, seconds_below=9.0, rank=8) -> list[Report]:
    return [
        Report(i, rank, seconds, 100, gain=gain, gain_below=below, seconds_below=seconds_below)
        for i, (gain, below) in enumerate(zip(gains, gains_below, strict=True))
    ]


def mean_rank(told: list[Report], **options) -> float:
    scheduler = build("scheduler", "fah", **options)
    return sum(scheduler.assign(scheduler.observe({}, told), cohort()).ranks) / 3


def test_the_first_round_is_the_exact_one_at_the_budget():
    for seed in range(50):
        s = situation(seed)
        assert FAH.assign(FAH.init(12), s) == EXACT.assign({}, s)


def test_a_rank_that_is_hardly_missed_goes_down():
    """Gain 0.1 in 10 s or 0.099 in 9 s: 0.010 against 0.011 a second."""
    assert mean_rank(reports([0.1] * 3, [0.099] * 3)) == 7


def test_a_rank_that_is_worth_its_time_goes_up():
    """Gain 0.1 in 10 s or 0.05 in 9 s: 0.010 against 0.0056 a second."""
    assert mean_rank(reports([0.1] * 3, [0.05] * 3)) == 9


def test_steps_are_as_set():
    assert mean_rank(reports([0.1] * 3, [0.099] * 3), step_down=2.0) == 6
    assert mean_rank(reports([0.1] * 3, [0.05] * 3), step_up=3.0) == 11


def test_a_difference_within_its_noise_moves_nothing_unless_asked_to():
    """Differences 0.01, -0.01 and 0.002: mean 0.0007, standard error 0.006."""
    noisy = reports([0.1] * 3, [0.11, 0.09, 0.102], seconds_below=10.0)
    assert mean_rank(noisy) == 8
    assert mean_rank(noisy, confidence=0.0) == 7


def test_differences_are_paired_by_client():
    """Gains vary by a factor of ten between clients, losses of the cut are all 2 %: seen only in pairs."""
    gains = np.array([0.05, 0.2, 0.5])
    assert mean_rank(reports(gains, gains * 0.98, seconds_below=9.99), confidence=1.5) == 9


def test_the_round_takes_as_long_as_its_slowest_client():
    """The slowest would not be faster with a rank less, so nothing is won: 0.1 / 10 against 0.099 / 10."""
    told = [*reports([0.1] * 2, [0.099] * 2), Report(2, 8, 10.0, 100, gain=0.1, gain_below=0.099, seconds_below=10.0)]
    assert mean_rank(told) == 9


def test_without_the_cut_adapter_the_mean_rank_stays():
    assert mean_rank([Report(i, 8, 10.0, 100, gain=0.1) for i in range(3)]) == 8
    assert FAH.observe({}, []) == {}


@pytest.mark.parametrize(("rank", "below", "expected"), [(2, 0.099, 2), (16, 0.05, 16)])
def test_the_mean_rank_stays_within_bounds_and_does_not_wind_up(rank, below, expected):
    memory = {}
    for _ in range(12):
        given = FAH.assign(memory, cohort()).ranks[0]
        memory = FAH.observe(memory, reports([0.1] * 3, [below] * 3, rank=given))
    assert FAH.assign(memory, cohort()).ranks == (expected,) * 3
    assert abs(memory["mean_rank"][0] - rank) == 1


def test_clients_who_can_hold_less_say_nothing_of_the_mean_rank_of_others():
    """Three clients with memory for rank 2: r stays without gains to compare, and where more would be better."""
    memory = FAH.observe({}, reports([0.1] * 3, [0.05] * 3))
    assert memory == {"mean_rank": [9.0]}
    assert FAH.observe(memory, [Report(i, 2, 10.0, 100, gain=0.1) for i in range(3)]) == memory
    assert FAH.observe(memory, reports([0.1] * 3, [0.05] * 3, rank=2)) == memory
    assert FAH.observe(memory, reports([0.1] * 3, [0.099] * 3, rank=2)) == {"mean_rank": [8.0]}


def test_steps_smaller_than_a_rank_of_one_client_add_up():
    slow, memory = build("scheduler", "fah", step_down=0.1), {}
    for _ in range(20):
        given = slow.assign(memory, cohort()).ranks
        told = [replace(r, rank=k) for r, k in zip(reports([0.1] * 3, [0.099] * 3), given, strict=True)]
        memory = slow.observe(memory, told)
    assert memory["mean_rank"][0] == pytest.approx(6)
    assert sum(slow.assign(memory, cohort()).ranks) == 18


def test_its_needs_are_declared():
    assert FAH.needs_gain_below
    assert not EXACT.needs_gain_below
