"""How sure a mean is: intervals, tests of paired differences, corrections for many hypotheses (Holm). Nowhere else.

A test is over seeds, each of which gave one difference. The question is always whether the true mean difference is above a
bound. Two p-values answer it:

    flips     exact permutation test: under the bound the signs of d - bound are exchangeable, so all 2^n of them are
              counted (Fisher 1935, section 21). It assumes nothing else, and its p is never below 2^-n.
    student   Student's t (1908): assumes normal differences, and can be sure from few seeds.

`choose_test` chooses between them by the number of pairs and of hypotheses alone, before any number is seen: flips wherever
they could lead to an answer after Holm's correction, else student. Flips also where the t-test does not hold: for
differences that are infinite (a run diverged), for counts (0 or 1 a run), and for fewer than five that are all the same.
Five or more that are all the same, like runs that all end at their best, leave no doubt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedfault.seeds import rng

LEAST = 5  # numbers for an interval: they can be drawn again in 126 ways, three only in 10
RESAMPLES = 9999  # scipy's default
ROUNDING = 1e-9  # nats: differences closer than that are the same, and the acceleration would be 0 / 0
ALPHA = 0.05
EXACT = 16  # pairs, up to which all signs are tried; 65,536 of them
DRAWS = 65_535  # signs drawn beyond that
Test = Literal["flips", "student"]


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval for the mean by the bias-corrected and accelerated bootstrap (Efron, 1987), the same at every call.

    The values are those of seeds, or of the clients or topics of one run; of other runs it says nothing then. It is too
    narrow for few values: None for fewer than `LEAST`. None too where a value is not finite.

    >>> mean_interval([0.3, 0.1, 0.2, 0.4])
    """
    if len(values) < LEAST or not np.isfinite(values).all():
        return None
    if np.ptp(values) < ROUNDING:
        return min(values), max(values)
    from scipy.stats import bootstrap

    found = bootstrap((np.asarray(values),), np.mean, n_resamples=RESAMPLES, rng=rng(0, "compare")).confidence_interval
    return float(found.low), float(found.high)


def nested_interval(values: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """95 % interval for the mean over seeds of the mean over clients, by a bootstrap in two stages; values: by seed.

    Seeds are drawn with replacement, and within each drawn one its clients: clients of a seed share a split and are not
    independent. Percentiles of 9,999 draws, the same at every call. With one seed it is about its clients alone. None with
    fewer than `LEAST` clients, and where a value is not finite.

    >>> nested_interval([[0.1, 0.3, 0.2]])
    """
    by_seed = [np.asarray(v, dtype=float) for v in values]
    if not by_seed or min(map(len, by_seed)) < LEAST or not all(np.isfinite(v).all() for v in by_seed):
        return None
    S, g = len(by_seed), rng(0, "mitigation")
    # (seed, draw, place)
    means = np.stack([v[g.integers(len(v), size=(RESAMPLES, S, len(v)))].mean(2) for v in by_seed])
    drawn = g.integers(S, size=(RESAMPLES, S))
    each = means[drawn, np.arange(RESAMPLES)[:, None], np.arange(S)].mean(1)
    low, high = np.percentile(each, (2.5, 97.5))
    return float(low), float(high)


def choose_test(pairs: int, hypotheses: int) -> Test:
    """The test of every hypothesis of a study.

    >>> choose_test(8, 6), choose_test(5, 6)
    ('flips', 'student')
    """
    return "flips" if hypotheses * 2 * 0.5**pairs <= ALPHA else "student"


def p_above(differences: Sequence[float], bound: float, test: Test) -> float:
    """p of the data if the true mean were no larger than the bound; 1 for fewer than two pairs."""
    d = np.asarray(differences, dtype=float) - bound
    if len(d) < 2 or np.isnan(d).any():
        return 1.0
    same = bool(np.isfinite(d).all() and np.ptp(d) < ROUNDING)
    if test == "flips" or not np.isfinite(d).all() or (same and len(d) < LEAST):
        return _flip_signs(d)
    if same:
        return 0.0 if d[0] > ROUNDING else 1.0
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(d, 0.0, alternative="greater").pvalue)


def _flip_signs(d: np.ndarray) -> float:
    d = _limit_infinite(d)
    n = len(d)
    if n <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        sums = signs @ d
    else:
        signs = rng(0, "flips", n).choice((1.0, -1.0), size=(DRAWS, n))
        sums = np.append(signs @ d, d.sum())
    return float(np.mean(sums >= d.sum() - ROUNDING * n))


def _limit_infinite(d: np.ndarray) -> np.ndarray:
    """Limit infinite differences to twice the largest finite one: the test then counts them as the largest."""
    finite = np.abs(d[np.isfinite(d)])
    most = 2 * (finite.max() if finite.size else 1.0) + 1.0
    clipped: np.ndarray = np.clip(d, -most, most)
    return clipped


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
