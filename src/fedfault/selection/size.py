"""Clients drawn by size, and what each counts for then: the mean over cohorts is that over all clients.

A mean that is normalised over the cohort, sum_S n_k x_k / sum_S n_k, is biased where cohorts are drawn uniformly and sizes
differ: of nine clients of size 1 and one of 31, of which 3 are drawn, the large one is in 3 of 10 cohorts and counts 31/33
there, 0.28 on average, where its share of the data is 0.775. With inclusion probabilities pi_k that are proportional to
n_k, and 1 where that would be more, the weights n_k / pi_k sum to the same in every cohort, and the mean is unbiased.

Reference: Horvitz and Thompson, J. Am. Stat. Assoc. 47 (1952); Madow, Ann. Math. Stat. 20 (1949) for the systematic draw.
Sampling with replacement by size and a plain mean (MD sampling; Li et al., MLSys 2020) has the same expectation.
"""

from __future__ import annotations

import numpy as np

from fedfault.registry import register
from fedfault.scheduling import Candidates, Floats, Ints, Selection


@register("selection")
def size() -> Selection:
    """Larger clients more often, with the mean corrected for it: inclusion by size, weights n_k over its probability.

    >>> from fedfault.testing.cohorts import candidates
    >>> size().inclusion(candidates(size=[1, 1, 2, 12]).size, 2).tolist()
    [0.25, 0.25, 0.5, 1.0]
    """

    def choose(c: Candidates, g: np.random.Generator) -> Ints:
        return draw_systematically(find_inclusion(c.size, c.wanted), g.random())

    return Selection(choose, inclusion=find_inclusion, needs=frozenset({"size"}), traits=frozenset({"draws by size"}))


def find_inclusion(size: Floats, m: int) -> Floats:
    """Inclusion probabilities (n,) that sum to min(m, n): min(1, c size), with the c that makes it so.

    >>> find_inclusion(np.array([1.0, 1.0, 2.0, 12.0]), 2).tolist()
    [0.25, 0.25, 0.5, 1.0]
    """
    n = len(size)
    certain = np.zeros(n, dtype=bool)
    if m >= n:
        return np.ones(n)
    while True:  # who would be drawn more than once is drawn for certain, and the others share the places that are left
        rest = size[~certain].sum()
        pi = np.where(certain, 1.0, (m - certain.sum()) * size / rest)
        if not (more := (pi >= 1.0) & ~certain).any():
            return pi
        certain |= more


def draw_systematically(pi: Floats, start: float) -> Ints:
    """Draw positions by their inclusion probabilities (n,), sum(pi) of them and none twice; start: uniform in [0, 1).

    >>> draw_systematically(np.array([0.25, 0.25, 0.5, 1.0]), 0.4).tolist()
    [1, 3]
    """
    certain, others = np.flatnonzero(pi >= 1.0), np.flatnonzero(pi < 1.0)
    ends = np.cumsum(pi[others])
    places = start + np.arange(round(float(pi[others].sum())))
    drawn = others[np.searchsorted(ends, places, side="right").clip(max=len(others) - 1)] if len(places) else others[:0]
    found: Ints = np.sort(np.concatenate([certain, drawn]))
    return found
