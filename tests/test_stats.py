"""Intervals and tests of paired differences, against counts by hand, limits and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy

from fedfault.stats import choose_test, count_needed, holm, mean_interval, p_above, subtract


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


def test_equal_differences_are_as_sure_as_their_number_allows():
    """They have no spread to go by: what is left is that all of them have the same sign."""
    assert p_above([0.2] * 5, 0.1, "student") == p_above([0.2] * 5, 0.1, "flips") == 1 / 32
    assert p_above([0.1] * 5, 0.1, "student") == p_above([0.05] * 5, 0.1, "student") == 1.0
    assert mean_interval([0.2] * 5) is None  # 1 - 2 / 32 is below 95 %
    assert mean_interval([0.2] * 6) == pytest.approx((0.2, 0.2))


def test_one_infinite_difference_outweighs_all_others():
    d = [math.inf, -5.0, -5.0, -5.0]
    assert p_above(d, 0.0, "student") == 8 / 16  # + for the first, anything for the others


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


def test_the_interval_is_students():
    d = [0.3, 0.1, 0.5, 0.2]
    theirs = scipy.stats.ttest_1samp(d, 0.0).confidence_interval(0.99)
    assert mean_interval(d, 0.01) == pytest.approx((theirs.low, theirs.high))


def test_two_values_have_an_interval_and_one_has_none():
    assert mean_interval([0.0, 0.2]) == pytest.approx((0.1 - 12.7062 * 0.1, 0.1 + 12.7062 * 0.1), abs=1e-4)
    assert mean_interval([0.1]) is mean_interval([]) is mean_interval([0.1, math.nan, 0.2]) is None


@pytest.mark.parametrize("test", ["student", "flips"])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("n", [6, 9, 20])
def test_an_interval_holds_just_the_bounds_that_the_test_does_not_reject(n, alpha, test):
    d = np.random.default_rng(n).normal(0.2, 1, n)
    found = mean_interval(d.tolist(), alpha, test)
    if found is None:
        assert test == "flips"
        assert alpha / 2 < 2**-n
        return
    for end, inside in zip(found, (1e-6, -1e-6), strict=True):
        for bound, rejected in ((end + inside, False), (end - inside, True)):
            p = min(p_above(d, bound, test), p_above(-d, -bound, test))
            assert (p <= alpha / 2) == rejected


def test_an_end_is_infinite_where_runs_diverge():
    low, high = mean_interval([math.inf, 0.5, 0.4, 0.3, 0.6, 0.7, 0.5])
    assert high == math.inf
    assert 0.3 <= low <= 0.5
    assert mean_interval([math.inf] * 7) == (math.inf, math.inf)
    assert mean_interval([-math.inf, 0.1, 0.2, 0.3, 0.2, 0.1, math.inf]) == (-math.inf, math.inf)


LAWS = {  # of paired differences, all with mean 0: as seeds give them, with heavy tails, and one-sided
    "normal": lambda g, size: g.normal(size=size),
    "t with 3 degrees": lambda g, size: g.standard_t(3, size=size),
    "Laplace": lambda g, size: g.laplace(size=size),
    "two points": lambda g, size: g.choice((-1.0, 1.0), size=size),
}


def cover(test: str, law: str, n: int, samples: int, alpha: float = 0.05) -> float:
    """The share of intervals that hold the true mean, among samples that have one."""
    draws = LAWS[law](np.random.default_rng([n, samples]), (samples, n))
    found = [mean_interval(d, alpha, test) for d in draws]
    held = [low - 1e-12 <= 0 <= high + 1e-12 for low, high in filter(None, found)]
    return sum(held) / len(held)


def least_share(rate: float, samples: int) -> float:
    """What a rate that is right falls short of once in 1,000 times."""
    return scipy.stats.binom.ppf(1e-3, samples, rate) / samples


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_an_interval_by_student_covers_normal_means(n):
    found = cover("student", "normal", n, 400)
    assert least_share(0.95, 400) <= found <= scipy.stats.binom.ppf(0.999, 400, 0.95) / 400


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [6, 8])
def test_an_interval_by_flips_covers_the_mean_of_any_symmetric_law(law, n):
    assert cover("flips", law, n, 400) >= least_share(0.95, 400)


@pytest.mark.long
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 13])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [2, 3, 5, 8, 11])
def test_intervals_cover(n, law, alpha):
    """2,000 samples. Student's is exact for normal differences only, and close for those with other tails but two points."""
    if 2 * 0.5**n <= alpha:
        assert cover("flips", law, n, 2000, alpha) >= least_share(1 - alpha, 2000)
    if law == "normal":
        assert cover("student", law, n, 2000, alpha) >= least_share(1 - alpha, 2000)
    elif law != "two points":
        assert cover("student", law, n, 2000, alpha) >= 1 - alpha - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10])
def test_a_true_null_is_rejected_at_the_level_and_a_false_one_with_the_power_of_student(n):
    g, shift = np.random.default_rng(n), 1.5
    test = choose_test(n, 1)
    nulls = [p_above(d, 0.0, test) for d in g.normal(size=(400, n))]
    assert np.mean(np.array(nulls) <= 0.05) <= scipy.stats.binom.ppf(0.999, 400, 0.05) / 400
    others = [p_above(d, 0.0, test) for d in g.normal(shift, size=(400, n))]
    power = 1 - scipy.stats.nct.cdf(scipy.stats.t.ppf(0.95, n - 1), n - 1, shift * math.sqrt(n))
    assert np.mean(np.array(others) <= 0.05) >= power - 0.06  # flips have a little less


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "alpha"), [(2.0, 0.05), (1.0, 0.01), (0.3, 0.05)])
def test_so_many_seeds_have_the_power_that_is_said_and_one_fewer_has_not(effect, alpha):
    """Against samples: values of mean `effect` and standard deviation 1, tested against 0."""
    values = effect + np.array([-1.0, 0.0, 1.0])
    n = count_needed(values, 0.0, alpha)
    g = np.random.default_rng(0)
    for size, enough in ((n, True), (max(2, round(0.7 * n)), False)):
        found = [p_above(d, 0.0, "student") <= alpha for d in g.normal(effect, size=(500, size))]
        assert (np.mean(found) >= 0.8 - 0.06) == enough


@pytest.mark.slow
@pytest.mark.parametrize(("by", "hypotheses"), [(0.5, 1), (0.83, 1), (1.2, 6)])
def test_so_many_seeds_show_that_a_mean_is_within_two_bounds_with_the_power_that_is_said(by, hypotheses):
    alpha = 0.025 / hypotheses
    values = np.array([-1.0, 0.0, 1.0])
    n = count_needed(values, by, alpha, within=True)
    assert n > count_needed(values, by, alpha)
    samples = np.random.default_rng(0).normal(0, 1, (600, n))
    found = [max(p_above(d, -by, "student"), p_above(-d, -by, "student")) <= alpha for d in samples]
    assert 0.75 < np.mean(found) < 0.88


def test_what_seeds_cannot_tell_is_not_promised():
    assert count_needed([0.1, -0.1, 0.1, -0.1], 0.0, 0.05) is None  # the mean is at the bound
    assert count_needed([0.2], 0.0, 0.05) is count_needed([0.2, math.inf], 0.0, 0.05) is None
    assert count_needed([0.2] * 5, 0.1, 0.05) == 5  # 1 / 32
    assert count_needed([0.1] * 5, 0.1, 0.05) is None
    assert count_needed([0.0] * 9, -0.02, 0.05, test="mixture") == 7  # signs that are looked at after each
    assert count_needed([0.0] * 9, 0.02, 0.05, test="mixture") == 7


@pytest.mark.parametrize(
    ("d", "bound", "grain"),
    [([0.5] * 4 + [0.5 + 1e-8], 0.0, 0.0), ([0, 0, 0, 0, 1e-6], -0.02, 2e-4), ([5.0] * 4 + [5.000001], 0.0, 0.0)],
)
def test_differences_without_a_spread_to_speak_of_are_no_surer_than_their_signs(d, bound, grain):
    assert p_above(d, bound, "student", grain=grain) == 1 / 32
    assert mean_interval(d, 0.05, grain=grain) is None
    assert p_above(d, bound, "mixture", grain=grain) == p_above([1.0] * 5, 0.0, "mixture")


@pytest.mark.parametrize(("rate", "bound"), [(0.1, 0.1), (0.2, 0.2), (0.5, 0.5), (0.05, 0.05)])
@pytest.mark.parametrize("n", [5, 6, 8, 10, 16])
def test_counts_of_a_fixed_number_of_runs_have_their_level(n, rate, bound):
    """One arm alarms in a share of runs, the other never: the difference is the bound itself, and not symmetric."""
    wrong = {"above": 0.0, "below": 0.0}
    for k in range(n + 1):
        d, chance = [1.0] * k + [0.0] * (n - k), math.comb(n, k) * rate**k * (1 - rate) ** (n - k)
        wrong["above"] += chance * (p_above(d, bound, "bets") <= 0.025)
        wrong["below"] += chance * (p_above([-v for v in d], -bound, "bets") <= 0.025)
    assert max(wrong.values()) <= 0.025
