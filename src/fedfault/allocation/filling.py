"""A budget of ranks shared out in proportion to scores, within bounds, to the last unit."""

from __future__ import annotations

import numpy as np

from fedfault.scheduling import Floats, Ints

SMALLEST = 1e-9  # score beside one of 1: below it a level might overflow
HALVINGS = 64  # of the interval that holds the level: more than a double has digits


def fill_budget(score: Floats, low: Ints, high: Ints, budget: int, clients: Ints) -> Ints:
    """Fill the budget with ranks (m,) near clip(level * score_i, l_i, u_i), at the level that uses it up: water-filling.

    Fractions are cut off and the units that are left go to the largest of them, ties to the larger score, then to the
    smaller id. Only proportions of scores count. Larger scores never get less within equal bounds, and a client whose own
    score falls never gets more. Scores must be >= 0, and sum l <= budget <= sum u; all zero counts as all equal.

    >>> fill_budget(np.array([3.0, 1.0, 1.0]), np.full(3, 1), np.full(3, 5), 10, np.arange(3)).tolist()
    [5, 3, 2]
    """
    if not len(score):
        return low
    # rounded, so that the last bit of a division does not decide between clients that should tie
    s = np.round(score / score.max(), 12).clip(SMALLEST) if score.max() > 0 else np.ones(len(score))
    x = _clip(_find_level(s, low.astype(np.float64), high.astype(np.float64), budget) * s, low, high)
    ranks: Ints = np.floor(x).astype(np.int64)
    order = np.lexsort((clients, -s, -np.round(x - ranks, 6)))
    order = order[ranks[order] < high[order]]
    ranks[order[: budget - ranks.sum()]] += 1
    return ranks


def round_shares(score: Floats, low: Ints, high: Ints, budget: int, clients: Ints) -> Ints:
    """Round clip(score_i / sum score * budget, l_i, u_i) to ranks (m,) and correct them to the budget, one unit at a time.

    Halves go to the even number. Units that are left go to the client of the largest score until it is at its bound, then
    to the next; units too many are taken from the smallest score in the same way; ties go by id. All zero counts as equal.

    >>> round_shares(np.array([3.0, 1.0, 1.0]), np.full(3, 1), np.full(3, 5), 10, np.arange(3)).tolist()
    [5, 3, 2]
    """
    if not len(score):
        return low
    share = score / score.sum() if score.sum() > 0 else np.full(len(score), 1 / len(score))
    ranks: Ints = np.clip(np.round(np.round(share * budget, 9)), low, high).astype(np.int64)
    largest_first = np.lexsort((clients, -score))
    while (left := budget - int(ranks.sum())) != 0:
        order, step = (largest_first, 1) if left > 0 else (largest_first[::-1], -1)
        free = order[(ranks < high)[order] if left > 0 else (ranks > low)[order]]
        ranks[free[0]] += step
    return ranks


def _find_level(s: Floats, low: Floats, high: Floats, budget: int) -> float:
    """Find the level at which sum_i clip(level * s_i, l_i, u_i) is the budget, by bisection."""
    below, above = 0.0, float((high / s).max())
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        if _clip(middle * s, low, high).sum() < budget:
            below = middle
        else:
            above = middle
    return above


def _clip(x: Floats, low: Floats | Ints, high: Floats | Ints) -> Floats:
    bounded: Floats = np.minimum(np.maximum(x, low), high)  # a third of the time of np.clip for a small cohort
    return bounded
