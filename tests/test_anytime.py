"""E-processes against closed forms, numerical integrals, limits, and simulated looks after every value."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate
from scipy.stats import binom, nct, norm, t

from fedfault.anytime import PRIOR, count_needed, find_interval, measure_evidence, p_above, weigh_mixture
from fedfault.stats import mean_interval
from fedfault.stats import p_above as p_of_stats


@pytest.mark.parametrize("d", [[0.3, 0.1, 0.2, 0.4], [-0.3, 0.2], [-1.0, -1.1, -0.7, 0.2, -0.4]])
def test_the_mixture_is_the_likelihood_ratio_of_t_averaged_over_positive_effects(d):
    n, x = len(d), math.sqrt(len(d)) * np.mean(d) / np.std(d, ddof=1)
    prior = 2 * norm.pdf(np.linspace(0, 14, 7001), scale=math.sqrt(PRIOR))
    ratios = nct.pdf(x, n - 1, np.linspace(0, 14, 7001) * math.sqrt(n)) / t.pdf(x, n - 1)
    by_hand = integrate.simpson(ratios * prior, x=np.linspace(0, 14, 7001))
    assert math.exp(measure_evidence(np.array(d), 0.0, "mixture")[-1]) == pytest.approx(by_hand, rel=1e-3)


def test_the_mixture_knows_no_unit():
    d = np.array([0.3, 0.1, 0.2, 0.4])
    assert measure_evidence(d * 50, 5.0, "mixture") == pytest.approx(measure_evidence(d, 0.1, "mixture"))


def test_one_value_says_as_much_as_its_sign():
    """The mean of 2 q over probabilities q from 1/2 to 1 of a positive sign is 3/2, of a negative one 1/2."""
    assert np.exp(measure_evidence(np.array([0.2]), 0.0, "mixture")) == pytest.approx([1.5])
    assert np.exp(measure_evidence(np.array([-0.2]), 0.0, "mixture")) == pytest.approx([0.5])


def test_equal_differences_are_as_sure_as_their_signs():
    """2^5 times the mean of q^5 over q from 1/2 to 1, which is 2 (1 - 2^-6) / 6."""
    assert p_above(np.array([0.2] * 5), 0.1, "mixture") == pytest.approx(6 / (64 * (1 - 2**-6)))
    assert p_above(np.array([0.1] * 50), 0.1, "mixture") == 1.0


def test_runs_that_diverge_count_by_their_sign():
    found = measure_evidence(np.array([math.inf, 0.4, math.inf]), 0.1, "mixture")
    assert found == pytest.approx(measure_evidence(np.array([0.2] * 3), 0.1, "mixture"))
    assert find_interval(np.array([math.inf, 0.4, 0.5, 0.1] * 8), 0.05, "mixture")[1] > 0.5


def test_a_lone_stake_is_a_product_of_factors():
    d, stakes = np.array([1.0, 0.0, 1.0]), np.arange(1, 51) / 51 / 1.2
    by_hand = np.mean((1 + 0.8 * stakes) * (1 - 0.2 * stakes) * (1 + 0.8 * stakes))
    assert np.exp(measure_evidence(d, 0.2, "bets")[-1]) == pytest.approx(by_hand)


def test_bets_know_what_cannot_be():
    assert p_above(np.array([1.0] * 5), 1.0, "bets") == 1.0
    assert p_above(np.array([-1.0] * 5), -1.5, "bets") == 0.0
    low, high = find_interval(np.array([1.0] * 40), 0.05, "bets")
    assert 0.7 < low < high <= 1.0


@pytest.mark.parametrize("test", ["mixture", "bets"])
def test_an_interval_holds_just_the_bounds_that_no_look_rejects(test):
    g = np.random.default_rng(1)
    d = g.normal(0.2, 0.1, 12) if test == "mixture" else g.choice([0.0, 1.0], 40)
    low, high = find_interval(d, 0.05, test)
    for bound, rejected in ((low - 1e-6, True), (low + 1e-6, False)):
        assert (p_above(d, bound, test) <= 0.025) == rejected
    for bound, rejected in ((high + 1e-6, True), (high - 1e-6, False)):
        assert (p_above(-d, -bound, test) <= 0.025) == rejected
    assert mean_interval(d.tolist(), 0.05, test) == (low, high)
    assert p_of_stats(d.tolist(), 0.1, test) == p_above(d, 0.1, test)


@pytest.mark.slow
def test_more_values_never_take_evidence_or_an_interval_back():
    d = np.random.default_rng(4).normal(0.5, 1, 40)
    found = [find_interval(d[:n], 0.05, "mixture") for n in range(8, 41, 4)]
    assert all(a[0] <= b[0] + 1e-9 and b[1] <= a[1] + 1e-9 for a, b in itertools.pairwise(found))
    ps = [p_above(d[:n], 0.0, "mixture") for n in range(2, 41)]
    assert ps == sorted(ps, reverse=True)


def test_too_few_values_have_no_interval():
    assert find_interval(np.array([0.1, 0.2]), 0.05, "mixture") is None


def look(test: str, mean: float, looks: int, samples: int, bound: float = 0.0) -> np.ndarray:
    """Evidence (samples, looks) after each of many values."""
    g = np.random.default_rng([looks, samples])
    if test == "bets":
        draws = g.choice([-1.0, 0.0, 1.0], p=[0.25 - mean / 2, 0.5, 0.25 + mean / 2], size=(samples, looks))
        return np.stack([measure_evidence(d, bound, "bets") for d in draws])
    d, n = g.normal(mean, 1, (samples, looks)), np.arange(1, looks + 1)
    return weigh_mixture(n, np.cumsum(d - bound, 1) / n, np.cumsum((d - bound) ** 2, 1))


@pytest.mark.parametrize(("samples", "looks"), [(400, 40), pytest.param(20_000, 200, marks=pytest.mark.long)])
@pytest.mark.parametrize("test", ["mixture", "bets"])
@pytest.mark.parametrize("mean", [0.0, -0.2])
def test_looking_after_every_value_rejects_a_true_null_at_the_level_or_less(test, mean, samples, looks):
    most = look(test, mean, looks, min(samples, 4000) if test == "bets" else samples).max(axis=1)
    for alpha in (0.05, 0.05 / 26):
        assert (most >= -math.log(alpha)).mean() <= binom.ppf(0.999, len(most), alpha) / len(most)


@pytest.mark.long
@pytest.mark.parametrize("test", ["mixture", "bets"])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_intervals_hold_the_mean_at_all_looks_together(test, mean):
    """Two-sided, 30 looks: a mean that either side has rejected once is outside."""
    above = look(test, mean, 30, 4000, bound=mean).max(axis=1)
    below = look(test, -mean, 30, 4000, bound=-mean).max(axis=1)
    for one in (above, below):
        assert (one >= -math.log(0.025)).mean() <= binom.ppf(0.999, 4000, 0.025) / 4000


@pytest.mark.parametrize(
    ("samples", "effects"), [(300, [1.5]), pytest.param(8000, [0.5, 1, 2, 4], marks=pytest.mark.long)]
)
def test_so_many_values_as_are_said_have_about_the_power_that_is_said(samples, effects):
    for effect in effects:
        for alpha in (0.05, 0.05 / 26):
            n = count_needed(effect, alpha, 0.8, 1000)
            found = (look("mixture", effect, n, samples) >= -math.log(alpha)).any(axis=1).mean()
            assert 0.7 <= found <= 0.93


def test_what_values_cannot_tell_is_not_promised():
    assert count_needed(0.0, 0.05, 0.8, 1000) is count_needed(0.5, 0.05, 0.8, 30) is None
