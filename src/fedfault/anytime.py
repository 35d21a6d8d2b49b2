"""Tests of a mean that may be looked at after every value, and stopped at any time: e-processes.

An e-process of a null hypothesis is a number after each value that is 1 on average, or less, whenever one stops while the
null is true. It exceeds 1 / alpha at any time with a probability of alpha at most (Ville 1939), so that 1 over its largest
value so far is a p-value at every look (Ramdas, Grünwald, Vovk and Shafer 2023, Statistical Science 38(4)). Three of them,
each for a mean above a bound against one that is not:

    mixture  normal differences of unknown variance: the likelihood ratio of Student's t, averaged over effects delta =
             (mean - bound) / sd with a half-normal prior N+(0, PRIOR). It depends on the data by t alone, the right Haar
             prior on sd cancels, and it grows with t, so that a mean below the bound makes it smaller still (Lai 1976;
             Grünwald, de Heide and Koolen 2024, section 4; Wang and Ramdas 2025).
    signs    differences that have no spread yet (less than `grain`), or are infinite: how many exceed the bound, where each
             would by 1/2, averaged over probabilities from 1/2 to 1. It assumes a law that is symmetric about its mean.
    bets     differences within (-reach, reach), as those of counts are: the wealth of bets on `d > bound`, averaged over
             stakes (Waudby-Smith and Ramdas 2024, JRSS B 86(1), section 4). It assumes nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

ROUNDING = 1e-9  # nats: differences closer than that are the same,
RELATIVE = 1e-6  # and those closer than that times the largest: losses are in single precision
# Variance of the effect: mean differences are often 1 to 5 standard deviations, where 1 or 16 would cost two seeds more.
PRIOR = 4.0
STAKES = 50  # of the largest that cannot lose everything: 1/50, 2/50, ...
STEPS = 60  # bisections of an interval's end
Anytime = Literal["mixture", "bets"]


def have_no_spread(d: np.ndarray, grain: float = 0.0) -> np.ndarray:
    """Whether the first differences (n,), up to each, are all the same: closer than rounding, or than `grain`."""
    finite = np.where(np.isfinite(d), d, 0.0)
    least = np.maximum(max(ROUNDING, grain), RELATIVE * np.maximum.accumulate(np.abs(finite)))
    same: np.ndarray = np.maximum.accumulate(d) - np.minimum.accumulate(finite) <= least
    return same


def measure_evidence(d: np.ndarray, bound: float, test: Anytime, reach: float = 1.0, grain: float = 0.0) -> np.ndarray:
    """Logarithm of the e-process after each of the differences (n,): how much speaks for a mean above the bound.

    reach: for `bets`, what no difference exceeds. grain: differences closer than that are the same, for `mixture`.

    >>> measure_evidence(np.array([0.3, 0.1, 0.2, 0.4]), 0.0, "mixture").round(2)
    array([0.41, 0.75, 1.74, 2.33])
    """
    if test == "bets":
        return _bet(d, bound, reach)
    n = np.arange(1, len(d) + 1)
    y = d - bound
    finite = np.isfinite(y)
    safe = np.where(finite, y, 0.0)
    plain = weigh_mixture(n, np.cumsum(safe) / n, np.cumsum(safe**2))
    odd = have_no_spread(d, grain) | ~np.logical_and.accumulate(finite)
    return np.where(odd, _weigh_signs(y), plain) if odd.any() else plain


def weigh_mixture(n: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Logarithm of the mixture's e-value for a mean above 0, from numbers of values, their means and sums of squares."""
    from scipy.stats import t

    shrink = 1 + n * PRIOR
    squares = np.maximum(squares, 1e-300)
    # Sum of squares that the effect does not explain
    left = np.maximum(squares - n * mean**2 * (1 - 1 / shrink), 1e-300)
    two_sided = (n * (np.log(squares) - np.log(left)) - np.log(shrink)) / 2
    # Of the mean's posterior, which is Student's with n degrees of freedom
    place = mean * n * math.sqrt(PRIOR) / np.sqrt(shrink * left / n)
    found: np.ndarray = two_sided + math.log(2) + t.logcdf(place, n)
    return found


def _weigh_signs(y: np.ndarray) -> np.ndarray:
    """Logarithm of the e-value of the signs: 2^n times the mean of q^above (1 - q)^below over q from 1/2 to 1."""
    from scipy.special import betainc, betaln

    above, below = np.cumsum(y > ROUNDING), np.cumsum(y <= ROUNDING)
    tail = 1 - betainc(above + 1.0, below + 1.0, 0.5)
    found: np.ndarray = (above + below + 1) * math.log(2) + betaln(above + 1.0, below + 1.0) + np.log(tail)
    return found


def _bet(d: np.ndarray, bound: float, reach: float) -> np.ndarray:
    """Logarithm of the mean wealth of players who each bet a constant stake on `d > bound` every time."""
    if bound <= -reach or bound >= reach:  # known before any value
        return np.full(len(d), math.inf if bound < -reach else -math.inf)
    stakes = np.arange(1, STAKES + 1) / (STAKES + 1) / (reach + bound)  # the worst loss is reach + bound
    wealth = np.cumsum(np.log1p(stakes[:, None] * (d - bound)[None, :]), axis=1)
    most = wealth.max(axis=0)
    found: np.ndarray = most + np.log(np.exp(wealth - most).mean(axis=0))
    return found


def p_above(d: np.ndarray, bound: float, test: Anytime, reach: float = 1.0, grain: float = 0.0) -> float:
    """p, at every look, of the values so far if the true mean were no larger than the bound."""
    most = float(measure_evidence(d, bound, test, reach, grain).max(initial=0.0))
    return min(1.0, math.exp(-most))


def find_interval(
    d: np.ndarray, alpha: float, test: Anytime, reach: float = 1.0, grain: float = 0.0
) -> tuple[float, float] | None:
    """The bounds that no look so far has rejected: it holds the mean at all looks together at a rate of 1 - alpha.

    A confidence sequence, which only gets narrower. None as long as there is no end to it on either side, and where looks
    contradict one another, which with a rate of alpha they may.
    """
    low, high = (sign * _find_lowest(sign * d, alpha / 2, test, reach, grain) for sign in (1.0, -1.0))
    return None if low > high or (math.isinf(low) and math.isinf(high)) else (low, high)


def _find_lowest(d: np.ndarray, level: float, test: Anytime, reach: float, grain: float) -> float:
    """The largest bound that the mean is above at this level; -inf if there is none."""
    finite = d[np.isfinite(d)]
    size = float(np.abs(finite).max(initial=1e-6))
    low, high = (-reach, reach) if test == "bets" else (float(finite.min(initial=0.0)) - 1e3 * size, size)
    if test == "mixture" and p_above(d, low, test, grain=grain) > level:
        return -math.inf
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_above(d, middle, test, reach, grain) <= level else (low, middle)
    return low


def count_needed(effect: float, alpha: float, power: float, most: int) -> int | None:
    """About how many values it takes until `mixture` is sure at alpha, with this power; None where `most` would not do.

    effect: distance of the mean from the bound in standard deviations.

    >>> count_needed(2.0, 0.05, 0.8, 100), count_needed(0.5, 0.05, 0.8, 100)
    (6, 69)
    """
    from scipy.stats import norm

    n = np.arange(2, most + 1)
    mean = effect - norm.ppf(power) / np.sqrt(n)  # what as many samples as `power` exceed
    enough = weigh_mixture(n, mean, n - 1 + n * mean**2) >= -math.log(alpha)
    return int(n[enough.argmax()]) if enough.any() else None


def count_same(d: float, bound: float, alpha: float, test: Anytime, reach: float, most: int) -> int | None:
    """How many values that are all d it takes until they are surely above the bound; None where `most` would not do.

    >>> count_same(0.0, -0.02, 0.05, "mixture", 1.0, 100)
    7
    """
    enough = measure_evidence(np.full(most, d), bound, test, reach) >= -math.log(alpha)
    return int(enough.argmax()) + 1 if enough.any() else None


def extend(values: Sequence[float], total: int, mean: float) -> list[float]:
    """The values followed by as many as make `total`, of the same spread and with a mean of their own: what may come."""
    d = np.asarray(values, dtype=float)
    spread = float(d.std(ddof=1)) if len(d) > 1 and np.isfinite(d).all() else 0.0
    return [*values, *(mean + spread * (-1) ** i for i in range(total - len(d)))]
