"""How sure a mean is: intervals, tests of paired differences, corrections for many hypotheses (Holm). Nowhere else.

A test is over seeds, each of which gave one difference. The question is always whether the true mean difference is above a
bound. An interval holds the bounds that the same test, on both sides, does not reject, so that the two cannot disagree:

    student   Student's t (1908): assumes normal differences, and can be sure from two seeds on.
    flips     exact permutation test: under the bound the signs of d - bound are exchangeable, so all 2^n of them are
              counted (Fisher 1935, section 21). It assumes no more than that, and its p is never below 2^-n. Its interval
              has the means of subsets as its ends (Hartigan 1969), and there is none where 2^-n is above half the level.
              It takes a law that is symmetric about its mean.
    bets      for counts (0 or 1 a run), whose differences are not symmetric: `anytime.py`, for any law within bounds
    mixture   for a number of seeds that is found while they come (`seeds: auto`): `anytime.py`, for normal differences

`choose_test` chooses between the first two by the number of pairs and of questions alone, before any number is seen: flips
wherever they could lead to an answer after the correction for several, else student. Flips also where the t-test does
not hold: for differences that are infinite (a run diverged), and for those that are all the same, closer than rounding or
than a `grain`: from values without a spread nobody learns how far the next one may lie.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedfault import anytime
from fedfault.anytime import ROUNDING, have_no_spread
from fedfault.seeds import rng

ALPHA = 0.05
ONE_SIDED = 1.645  # standard errors that a normal mean is above the true one at a rate of ALPHA
EXACT = 16  # pairs, up to which all signs are tried; 65,536 of them
DRAWS = 65_535  # signs drawn beyond that
FAR = 1e6  # times the largest finite difference: what an infinite one counts as
Test = Literal["flips", "student", "mixture", "bets"]


def mean_interval(
    values: Sequence[float], alpha: float = ALPHA, test: Test = "student", reach: float = 1.0, grain: float = 0.0
) -> tuple[float, float] | None:
    """The interval for the mean that misses it at a rate of alpha at most; 95 % unless said otherwise.

    The values are those of seeds, or of the clients or topics of one run; of other runs it says nothing then. An end is
    infinite where runs have diverged. None for fewer than two values, a NaN, and where no interval is as sure as that.
    reach: for `bets`, what no value exceeds. grain: values closer than that are the same.

    >>> low, high = mean_interval([0.3, 0.1, 0.2, 0.4])
    >>> print(f"{low:.3f} to {high:.3f}")
    0.045 to 0.455
    """
    d = np.asarray(values, dtype=float)
    if len(d) < 2 or np.isnan(d).any():
        return None
    if test in ("mixture", "bets"):
        return anytime.find_interval(d, alpha, test, reach, grain)
    if _need_flips(d, test, grain):
        return _invert_flips(d, alpha)
    from scipy.stats import t

    half = float(t.ppf(1 - alpha / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
    return float(d.mean()) - half, float(d.mean()) + half


def choose_test(pairs: int, questions: int) -> Test:
    """The test of every difference of a study; `questions`: how many differences are asked about.

    >>> choose_test(8, 6), choose_test(5, 6)
    ('flips', 'student')
    """
    return "flips" if questions * 2 * 0.5**pairs <= ALPHA else "student"


def p_above(differences: Sequence[float], bound: float, test: Test, reach: float = 1.0, grain: float = 0.0) -> float:
    """p of the data if the true mean were no larger than the bound; 1 for fewer than two pairs."""
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or np.isnan(d).any():
        return 1.0
    if test in ("mixture", "bets"):
        return anytime.p_above(d, bound, test, reach, grain)
    if _need_flips(d, test, grain):
        means = _list_subset_means(d)
        return float(1 + (means <= bound + ROUNDING).sum()) / (1 + len(means))
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(d, bound, alternative="greater").pvalue)


def _need_flips(d: np.ndarray, test: Test, grain: float) -> bool:
    return test == "flips" or not np.isfinite(d).all() or bool(have_no_spread(d, grain)[-1])


def _list_subset_means(d: np.ndarray) -> np.ndarray:
    """The mean of every subset of differences (n,) but the empty one, or of 65,535 that are drawn.

    Turning the signs of a subset of d - bound leaves the sum as large or larger exactly where the subset's mean is at most
    the bound: a permutation test for every bound at once.
    """
    d, n = _limit_infinite(d), len(d)
    if n <= EXACT:
        subsets = np.array(list(itertools.product((0.0, 1.0), repeat=n)))[1:]
    else:
        subsets = rng(0, "flips", n).integers(2, size=(DRAWS, n)).astype(float)
        subsets = subsets[subsets.any(axis=1)]
    means: np.ndarray = subsets @ d / subsets.sum(axis=1)
    return means


def _invert_flips(d: np.ndarray, alpha: float) -> tuple[float, float] | None:
    """The bounds that two permutation tests at half of alpha each leave; None where no p can be that small."""
    means = np.sort(_list_subset_means(d))
    k = math.floor(alpha / 2 * (1 + len(means)) + ROUNDING)
    if k < 1:
        return None
    finite = d[np.isfinite(d)]
    # The mean of any subset with an infinite difference
    most = FAR * (np.abs(finite).max(initial=0.0) + 1) / (2 * len(d))
    low, high = (float(v) if abs(v) < most else math.copysign(math.inf, v) for v in (means[k - 1], means[-k]))
    return low, high


def _limit_infinite(d: np.ndarray) -> np.ndarray:
    """Limit infinite differences to so much that one outweighs all finite ones."""
    most = FAR * (np.abs(d[np.isfinite(d)]).max(initial=0.0) + 1.0)
    clipped: np.ndarray = np.clip(d, -most, most)
    return clipped


def count_needed(
    values: Sequence[float],
    bound: float,
    alpha: float,
    power: float = 0.8,
    most: int = 1000,
    test: Test = "student",
    reach: float = 1.0,
    grain: float = 0.0,
    *,
    within: bool = False,
) -> int | None:
    """How many values it would take to tell the mean from the bound, if mean and spread are those of the values at hand.

    By a t-test on one side at alpha, or `mixture`, which finds it with this power; where the values are all the same, by
    flips of signs, or by signs that are looked at after each. `within`: from -bound too, in the same sample.
    None where `most` would not do, for fewer than two values and for one that is not finite.

    >>> count_needed([0.3, 0.1, 0.2, 0.4], 0.0, 0.05)
    4
    """
    d = np.asarray(values, dtype=float)
    if len(d) < 2 or not np.isfinite(d).all():
        return None
    if have_no_spread(d, grain)[-1]:
        place = float(d.mean())
        if abs(place - bound) < ROUNDING:
            return None
        if test in ("mixture", "bets"):
            sign = 1.0 if place > bound else -1.0
            return anytime.count_same(sign * place, sign * bound, alpha, test, reach, most)
        return math.ceil(-math.log2(alpha))
    from scipy.stats import nct, t

    mean, spread = float(d.mean()), float(d.std(ddof=1))
    effects = [abs(mean - edge) / spread for edge in ((bound, -bound) if within else (bound,))]
    if test in ("mixture", "bets"):
        return anytime.count_needed(min(effects), alpha, 1 - (1 - power) / len(effects), most)

    def find_power(n: int) -> float:
        missed = (nct.cdf(t.ppf(1 - alpha, n - 1), n - 1, effect * math.sqrt(n)) for effect in effects)
        return 1 - float(sum(missed))

    if find_power(most) < power:
        return None
    low, high = 1, most  # too few, and enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if find_power(middle) >= power else (middle, high)
    return high


def score_normally(t: float, blocks: int) -> float:
    """The normal number that is as unlikely as a mean of so many blocks over its standard error, which is Student's t.

    >>> f"{score_normally(9.92, blocks=3):.2f} {score_normally(2.6, blocks=1000):.2f}"
    '2.58 2.59'
    """
    from scipy.special import ndtri, stdtr

    beyond = max(float(stdtr(blocks - 1, -abs(t))), 1e-300)
    return math.copysign(float(ndtri(beyond)), t)


def bound_below(mean: float, se: float, blocks: int | None) -> float:
    """The bound that a mean of so many blocks is below at a rate of ALPHA, by Student's t; None: so many that it is normal.

    >>> print(f"{bound_below(1.0, 0.1, blocks=3):.3f} {bound_below(1.0, 0.1, None):.3f}")
    0.708 0.836
    """
    from scipy.special import stdtrit

    return mean - se * (float(stdtrit(blocks - 1, 1 - ALPHA)) if blocks and blocks > 1 else ONE_SIDED)


def subtract(a: float, b: float) -> float:
    """Compute a - b where both may be infinite: two runs that have both diverged do not differ."""
    return 0.0 if math.isinf(a) and a == b else a - b


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm, 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    out, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = most
    return out
