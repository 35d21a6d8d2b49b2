"""Intervals and tests of paired differences, against counts by hand, limits and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy

from fedfault.stats import choose_test, holm, mean_interval, nested_interval, p_above, subtract


def test_flips_count_the_signs_that_give_as_large_a_sum():
    assert p_above([1.0, 2.0, 3.0], 0.0, "flips") == 1 / 8  # only +++ reaches 6
    assert p_above([1.0, -2.0, 3.0], 0.0, "flips") == 3 / 8  # sums >= 2: +++, -++, +-+
    assert p_above([-1.0, -2.0, -3.0], 0.0, "flips") == 1.0


def test_the_bound_moves_the_null():
    assert p_above([1.0, 2.0, 3.0], 2.0, "flips") == p_above([-1.0, 0.0, 1.0], 0.0, "flips") > 0.5


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.4])
def test_flips_agree_with_scipy(shift):
    d = np.random.default_rng(3).normal(shift, 1, 9)
    theirs = scipy.stats.permutation_test(
        (d,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert p_above(d, 0.0, "flips") == pytest.approx(theirs.pvalue)


def test_many_pairs_are_drawn_and_never_give_zero():
    assert 0 < p_above([1.0] * 30, 0.0, "flips") < 1e-4


def test_student_is_students():
    d = [0.3, 0.1, 0.5, 0.2]
    assert p_above(d, 0.1, "student") == pytest.approx(scipy.stats.ttest_1samp(d, 0.1, alternative="greater").pvalue)


@pytest.mark.parametrize("d", [[1.0, 1.0, 1.0], [math.inf, 0.5, 0.2]])
def test_where_student_says_nothing_flips_speak(d):
    assert p_above(d, 0.0, "student") == 1 / 8


def test_five_equal_differences_leave_no_doubt():
    assert p_above([0.2] * 5, 0.1, "student") == 0.0
    assert p_above([0.1] * 5, 0.1, "student") == p_above([0.05] * 5, 0.1, "student") == 1.0


@pytest.mark.parametrize("d", [[], [4.0], [1.0, math.nan]])
def test_without_two_pairs_nothing_is_known(d):
    assert p_above(d, 0.0, "flips") == p_above(d, 0.0, "student") == 1.0


def test_two_runs_that_diverged_do_not_differ():
    assert subtract(math.inf, math.inf) == 0.0
    assert subtract(math.inf, 3.0) == math.inf
    assert subtract(3.0, math.inf) == -math.inf


def test_flips_are_used_only_where_they_could_answer():
    assert choose_test(6, 1) == "flips"  # 2 / 64
    assert choose_test(5, 1) == "student"  # 2 / 32 is above 0.05
    assert choose_test(10, 25) == "flips"
    assert choose_test(10, 26) == "student"


def test_holm_by_hand_and_in_any_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_of_many_normal_differences_is_the_normal_one():
    values = np.random.default_rng(1).normal(0.3, 0.2, 400)
    low, high = mean_interval(values.tolist())
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.1 * half),
        pytest.approx(values.mean() + half, abs=0.1 * half),
    )
    assert mean_interval(values.tolist()) == (low, high)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2] * 7, (0.2, 0.2)),
        ([0.5 + 1e-16 * k for k in range(7)], (0.5, pytest.approx(0.5))),
        ([0.1, 0.2, 0.3, 0.4], None),
        ([0.1, 0.2, math.nan, 0.4, 0.5], None),
        ([0.1, 0.2, math.inf, 0.4, 0.5], None),
        ([], None),
    ],
)
def test_without_a_spread_the_interval_is_a_point_and_without_enough_numbers_there_is_none(values, expected):
    assert mean_interval(values) == expected


def test_the_nested_interval_holds_the_mean_and_is_the_same_at_every_call():
    low, high = nested_interval([[-0.5, 0.5, -0.5, -0.5, -0.5], [0.0, -0.5, -0.5, -0.5, -0.5]])
    assert -0.75 < low < -0.35 < high < 0.25
    assert (low, high) == nested_interval([[-0.5, 0.5, -0.5, -0.5, -0.5], [0.0, -0.5, -0.5, -0.5, -0.5]])


def test_seeds_that_differ_widen_the_interval():
    """Ten clients that differ by +-1, all of one seed or split by sign between two: means from -1 to 1 then."""
    together, split = nested_interval([[1.0, -1.0] * 5]), nested_interval([[1.0] * 5, [-1.0] * 5])
    assert -0.9 < together[0] < 0 < together[1] < 0.9
    assert split == (-1.0, 1.0)


def test_few_clients_and_lost_runs_have_no_nested_interval():
    assert nested_interval([[0.1] * 4]) is None
    assert nested_interval([[0.1] * 5, [0.1, 0.2, math.nan, 0.1, 0.3]]) is None
    assert nested_interval([]) is None
