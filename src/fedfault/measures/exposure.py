"""How well a model knows a secret, by its rank among others of the same law. Needs no torch."""

from __future__ import annotations

import math

import numpy as np

GUESSED = 1 / math.log(2)  # bits on average of a secret that a model does not know, among many others


def find_exposure(secret: float, others: np.ndarray) -> float:
    """Compute the exposure of a secret in bits from its loss and those of others: log2(m + 1) - log2(rank).

    rank = 1 + how many of the m others have a smaller loss, ties half. Of a secret that a model does not know the rank is
    uniform over 1 ... m + 1: an exposure of b bits or more then has a probability of about 2^-b, and the mean is 1.44 bits.

    >>> find_exposure(1.0, np.array([3.0, 2.0, 4.0])), find_exposure(2.5, np.array([3.0, 2.0, 4.0]))
    (2.0, 1.0)

    Reference: Carlini, Liu, Erlingsson, Kos & Song, The Secret Sharer, USENIX Security 2019, section 4.2, with a sample in
    the place of all secrets.
    """
    rank = 1 + float((others < secret).sum()) + float((others == secret).sum()) / 2
    return math.log2(len(others) + 1) - math.log2(rank)
