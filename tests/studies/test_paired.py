"""The tests of paired differences, against counts by hand and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp

from fedfault.studies.paired import chosen_test, difference, holm, p_above


def test_flips_count_the_signs_that_give_as_large_a_sum():
    assert p_above([1.0, 2.0, 3.0], 0.0, "flips") == 1 / 8  # only +++ reaches 6
    assert p_above([1.0, -2.0, 3.0], 0.0, "flips") == 3 / 8  # sums >= 2: +++, -++, +-+
    assert p_above([-1.0, -2.0, -3.0], 0.0, "flips") == 1.0


def test_the_bound_moves_the_null():
    assert p_above([1.0, 2.0, 3.0], 2.0, "flips") == p_above([-1.0, 0.0, 1.0], 0.0, "flips") > 0.5


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.4])
def test_flips_agree_with_scipy(shift):
    d = np.random.default_rng(3).normal(shift, 1, 9)
    theirs = permutation_test((d,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf)
    assert p_above(d, 0.0, "flips") == pytest.approx(theirs.pvalue)


def test_many_pairs_are_drawn_and_never_give_zero():
    assert 0 < p_above([1.0] * 30, 0.0, "flips") < 1e-4


def test_student_is_students():
    d = [0.3, 0.1, 0.5, 0.2]
    assert p_above(d, 0.1, "student") == pytest.approx(ttest_1samp(d, 0.1, alternative="greater").pvalue)


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
    assert difference(math.inf, math.inf) == 0.0
    assert difference(math.inf, 3.0) == math.inf
    assert difference(3.0, math.inf) == -math.inf


def test_flips_are_used_only_where_they_could_answer():
    assert chosen_test(6, 1) == "flips"  # 2 / 64
    assert chosen_test(5, 1) == "student"  # 2 / 32 is above 0.05
    assert chosen_test(10, 25) == "flips"
    assert chosen_test(10, 26) == "student"


def test_holm_by_hand_and_in_any_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
