"""How well a score tells texts that a model was trained on from others of the same law. Needs no torch."""

from __future__ import annotations

import numpy as np

FALSE = 0.01  # share of the other texts that may be taken for members (Carlini et al., S&P 2022)


def find_area(members: np.ndarray, others: np.ndarray) -> float:
    """Compute the area under the ROC curve: how often a member has the larger score, ties half; 0.5 says nothing.

    >>> find_area(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    ranks = np.searchsorted(np.sort(others), members, "left") + np.searchsorted(np.sort(others), members, "right")
    return float(ranks.mean() / (2 * len(others)))


def find_recall(members: np.ndarray, others: np.ndarray) -> float:
    """Compute the share of members that are found while at most 1 % of the others are taken for members.

    With fewer than 100 others that is none of them. Where nothing is known it is 1 % at most.

    >>> find_recall(np.array([5.0, 2.0, 9.0]), np.array([4.0, 1.0]))
    0.6666666666666666
    """
    allowed = int(FALSE * len(others))
    return float((members > np.sort(others)[len(others) - 1 - allowed]).mean())
