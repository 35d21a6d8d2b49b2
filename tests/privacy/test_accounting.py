"""Epsilon against closed forms and a second accountant."""

from __future__ import annotations

import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from scipy import integrate, optimize, stats

from fedfault.errors import UserError
from fedfault.privacy.accounting import Release, find_epsilon, find_noise
from fedfault.records import RoundRecord

DELTA = 1e-5


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Balle & Wang, ICML 2018, theorem 8: of N(mu, 1) against N(0, 1)."""
    return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)


def gaussian_epsilon(noise: float, times: int) -> float:
    """T releases of noise z are one of noise z / sqrt(T)."""
    mu = math.sqrt(times) / noise
    return optimize.brentq(lambda e: gaussian_delta(e, mu) - DELTA, 0, 500)


def sampled_epsilon(noise: float, q: float) -> float:
    """One release of a Poisson sample, by integrating the hockey-stick divergence of both orders of the neighbours."""

    def delta(epsilon: float) -> float:
        def p(x: float) -> float:
            return (1 - q) * stats.norm.pdf(x, 0, noise) + q * stats.norm.pdf(x, 1, noise)

        def o(x: float) -> float:
            return stats.norm.pdf(x, 0, noise)

        ends = (-12 * noise, 12 * noise + 1)
        added = integrate.quad(lambda x: max(0.0, p(x) - math.exp(epsilon) * o(x)), *ends, limit=400, epsabs=1e-12)[0]
        removed = integrate.quad(lambda x: max(0.0, o(x) - math.exp(epsilon) * p(x)), *ends, limit=400, epsabs=1e-12)[0]
        return max(added, removed)

    return optimize.brentq(lambda e: delta(e) - DELTA, 1e-6, 30)


def renyi_epsilon(noise: float, q: float, times: int) -> float:
    accountant = RdpAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(noise)), times)
    return accountant.get_epsilon(DELTA)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "times"), [(1.0, 1), (0.7, 3), (4.0, 50)])
def test_without_sampling_it_is_the_closed_form_of_the_gaussian_mechanism(noise, times):
    found = find_epsilon(Release(noise, 10, 10, "poisson"), times, DELTA)
    assert found == pytest.approx(gaussian_epsilon(noise, times), rel=2e-3)


@pytest.mark.long
@pytest.mark.parametrize(("noise", "q"), [(1.0, 0.1), (0.6, 0.3)])
def test_one_poisson_sample_is_what_integration_gives(noise, q):
    found = find_epsilon(Release(noise, round(10 * q), 10, "poisson"), 1, DELTA)
    assert found == pytest.approx(sampled_epsilon(noise, q), rel=5e-3)


@pytest.mark.long
@pytest.mark.parametrize(("noise", "drawn", "times"), [(1.0, 1, 100), (0.8, 5, 12), (2.0, 9, 30)])
def test_loss_distributions_stay_just_below_the_renyi_accountant(noise, drawn, times):
    tight = find_epsilon(Release(noise, drawn, 10, "poisson"), times, DELTA)
    loose = renyi_epsilon(noise, drawn / 10, times)
    assert 0.7 * loose < tight < loose


def test_a_fixed_number_of_units_that_are_all_counts_as_replacing_one_of_them():
    """Replacing a unit moves the sum by twice the clip, so that noise z is worth z / 2."""
    for noise, times in ((4.0, 12), (1.0, 1), (0.5, 2), (300.0, 7)):
        found = find_epsilon(Release(noise, 10, 10, "fixed"), times, DELTA)
        assert found == pytest.approx(gaussian_epsilon(noise / 2, times), rel=1e-6)
    assert find_epsilon(Release(1000.0, 10, 10, "fixed"), 1, 0.01) == 0.0  # delta pays for all
    assert find_epsilon(Release(0.3, 10, 10, "fixed"), 10_000, 1e-9) == pytest.approx(666.7**2 / 2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "times"), [(1.0, 100), (3.0, 20)])
def test_drawing_fewer_never_costs_more_than_using_all(noise, times):
    spent = [find_epsilon(Release(noise, m, 100, "fixed"), times, DELTA) for m in (1, 10, 50, 90, 99, 100)]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(gaussian_epsilon(noise / 2, times), rel=1e-6)


@pytest.mark.slow
def test_drawing_one_of_ten_less_asks_for_no_more_noise():
    nine, ten = (find_noise(8.0, 1e-2, 20, m, 10, "fixed") for m in (9, 10))
    assert nine <= ten < 4.1


@pytest.mark.slow
def test_drawing_a_fixed_number_costs_less_than_using_all_and_more_than_the_poisson_sample():
    all_of_them, some, poisson = (
        find_epsilon(Release(4.0, drawn, 100, sampling), 12, DELTA)
        for drawn, sampling in ((100, "fixed"), (10, "fixed"), (10, "poisson"))
    )
    assert poisson < some < all_of_them


@pytest.mark.long
def test_epsilon_grows_with_releases_and_units_drawn_and_falls_with_noise():
    base = find_epsilon(Release(1.0, 3, 10, "poisson"), 5, DELTA)
    assert find_epsilon(Release(1.0, 3, 10, "poisson"), 6, DELTA) > base
    assert find_epsilon(Release(1.0, 4, 10, "poisson"), 5, DELTA) > base
    assert find_epsilon(Release(1.1, 3, 10, "poisson"), 5, DELTA) < base
    assert find_epsilon(Release(1.0, 3, 10, "poisson"), 0, DELTA) == 0.0


@pytest.mark.long
@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_the_noise_that_is_found_is_enough_and_hardly_more(sampling):
    noise = find_noise(2.0, 1e-3, 12, 3, 10, sampling)
    spent = [find_epsilon(Release(z, 3, 10, sampling), 12, 1e-3) for z in (noise, 0.99 * noise)]
    assert spent[0] <= 2.0 < spent[1]
    assert np.isfinite(spent).all()


@pytest.mark.parametrize("delta", [1e-2, 1e-5])
@pytest.mark.parametrize(("drawn", "times"), [(2, 1), (2, 5), (50, 5), (100, 5)])
def test_an_epsilon_is_a_number_that_records_take(drawn, times, delta):
    """A run with privacy.sampling=fixed ended in a traceback after its first round: its epsilon was one of numpy."""
    found = find_epsilon(Release(1.0, drawn, 100, "fixed"), times, delta)
    assert RoundRecord.from_json(RoundRecord(1, probes={"epsilon": found}).to_json()).probes == {"epsilon": found}


def test_an_epsilon_that_no_noise_reaches_is_refused_with_the_least_that_is():
    with pytest.raises(UserError, match=r"privacy.epsilon=0.001 is reached by no noise up to 1000 .* cost 0\.\d+ even"):
        find_noise(0.001, 1e-6, 100, 10, 10, "poisson")


@pytest.mark.long
def test_an_epsilon_so_small_that_a_large_delta_pays_for_all_has_a_noise_too():
    noise = find_noise(1e-4, 0.05, 2, 5, 10, "fixed")
    assert find_epsilon(Release(noise, 5, 10, "fixed"), 2, 0.05) <= 1e-4
