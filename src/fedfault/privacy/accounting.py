"""What noise is worth: epsilon at a delta after some releases, and the noise that an epsilon needs, by `dp-accounting`.

A release is a sum to which every unit, a client or an example, contributes a vector of norm C at most, with Gaussian noise
of standard deviation z C on every number. Which units are in the sum is drawn anew for every release, and kept secret:

    poisson   each unit by itself with probability q. Neighbours differ by one unit that is added or removed. Counted by
              privacy loss distributions (Doroshenko et al., PETS 2022), an upper bound that is tight
    fixed     m of the n units, all subsets alike. Neighbours differ by one unit that is replaced, which moves the sum by
              2 C. Counted by Renyi divergences (Wang, Balle & Kasiviswanathan, AISTATS 2019), or without what sampling
              gains, where that is less: the Gaussian mechanism in closed form (Balle & Wang, ICML 2018). It is a bound
              because a round is that mechanism or, where the unit is not drawn, says nothing
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

from fedfault.errors import UserError

# Noise multipliers: epsilon is in the hundreds below, and nothing is learned above
LEAST_NOISE, MOST_NOISE = 0.3, 1000.0
TOLERANCE = 1e-3  # relative, of the noise that is solved for
NOTHING = 1e-12  # epsilon, in the place of 0, which has no logarithm

Sampling = Literal["poisson", "fixed"]


class Release(NamedTuple):
    """One noisy sum."""

    noise: float  # z: standard deviation over the largest norm C of a contribution
    drawn: int  # units of the sum, on average
    of: int  # units that they are drawn from
    sampling: Sampling


def find_epsilon(release: Release, times: int, delta: float) -> float:
    """Compute the epsilon of so many releases at a delta: an upper bound, infinite for noise below `LEAST_NOISE`.

    >>> round(find_epsilon(Release(1.0, 10, 10, "poisson"), times=1, delta=1e-5), 3)  # 4.377 by Balle & Wang's formula
    4.377
    """
    if times == 0:
        return 0.0
    if release.noise < LEAST_NOISE:
        return math.inf
    if release.sampling == "fixed":
        whole = _count_unsampled(2 * math.sqrt(times) / release.noise, delta)
        return whole if release.drawn >= release.of else min(whole, _count_by_renyi(release, times, delta))
    return _count_by_losses(release, times, delta)


@functools.lru_cache(maxsize=4096)
def _count_by_losses(release: Release, times: int, delta: float) -> float:
    composed = _find_loss_distribution(release.noise, release.drawn / release.of).self_compose(times)
    epsilon: float = composed.get_epsilon_for_delta(delta)
    return epsilon


@functools.lru_cache(maxsize=64)
def _find_loss_distribution(noise: float, q: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(noise, sampling_prob=q)


def _count_unsampled(mu: float, delta: float) -> float:
    """Solve delta = Phi(mu/2 - e/mu) - exp(e) Phi(-mu/2 - e/mu) for e: N(mu, 1) against N(0, 1), theorem 8 of Balle & Wang.

    So many releases of noise z to which a unit contributes d clips are one of mu = d sqrt(times) / z.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    def exceed(epsilon: float) -> float:
        lost: float = ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return lost - delta

    if exceed(0.0) <= 0:
        return 0.0
    enough = mu * (mu / 2 + math.sqrt(2 * math.log(1 / delta)))  # there Phi alone is below delta
    found: float = brentq(exceed, 0.0, enough, rtol=1e-9)
    return found


@functools.lru_cache(maxsize=4096)
def _count_by_renyi(release: Release, times: int, delta: float) -> float:
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    event = dp.SampledWithoutReplacementDpEvent(release.of, release.drawn, dp.GaussianDpEvent(release.noise / 2))
    accountant.compose(event, times)
    return float(accountant.get_epsilon(delta))  # it is numpy's, which no record takes


@functools.lru_cache(maxsize=256)
def find_noise(epsilon: float, delta: float, times: int, drawn: int, of: int, sampling: Sampling) -> float:
    """Find the smallest noise multiplier, to 0.1 %, with which so many releases cost no more than epsilon at a delta.

    Raises `UserError` where no noise up to `MOST_NOISE` does.
    """

    from scipy.optimize import brentq

    def spend(noise: float) -> float:
        return find_epsilon(Release(noise, drawn, of, sampling), times, delta)

    if (least := spend(MOST_NOISE)) > epsilon:
        raise UserError(
            f"privacy.epsilon={epsilon:g} is reached by no noise up to {MOST_NOISE:g} times the clip: {times} releases at "
            f"delta={delta:g} cost {least:.3g} even then; raise privacy.epsilon, or train for fewer rounds or steps"
        )
    if spend(LEAST_NOISE) <= epsilon:
        return LEAST_NOISE
    low, high = LEAST_NOISE, 1.0
    while spend(high) > epsilon:
        low, high = high, min(2 * high, MOST_NOISE)

    def overspend(x: float) -> float:
        return math.log(max(spend(math.exp(x)), NOTHING) / epsilon)  # a large delta alone may pay for all

    found = brentq(overspend, math.log(low), math.log(high), xtol=TOLERANCE / 4)
    noise = math.exp(found)
    while spend(noise) > epsilon:
        noise *= 1 + TOLERANCE / 2
    return noise


def check_installed() -> None:
    """Raise `UserError` where the accountant is not installed."""
    try:
        import dp_accounting  # noqa: F401
    except ImportError as e:
        raise UserError("privacy needs an accountant: pip install 'fedfault[privacy]' (dp-accounting)") from e
