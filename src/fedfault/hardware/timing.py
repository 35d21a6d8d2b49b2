"""Estimates of a client's time from its rounds: t(r) = a + b r, by least squares that forget and that start from a model.

Pure numbers that a checkpoint can hold; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedfault.scheduling import Floats, Memory, Report

FORGET = 0.9  # of an observation is left after every round: half of its weight is gone after 7
RIDGE = 0.1  # observations that the model's a, and its b, count as: enough to decide what was not observed
SUMS = ("weight", "rank", "rank2", "seconds", "rank_seconds")


def init_sums(num_clients: int) -> Memory:
    """Start without observations: weighted sums of 1, r, r^2, t and r t for each client."""
    return {name: [0.0] * num_clients for name in SUMS}


def observe(memory: Memory, reports: Sequence[Report]) -> Memory:
    """The sums after a round: all clients forget, those with a report add it."""
    m = {name: FORGET * np.array(memory[name]) for name in SUMS}
    ids = [r.client for r in reports]
    ranks, seconds = (np.array([getattr(r, what) for r in reports], dtype=float) for what in ("rank", "seconds"))
    for name, news in zip(SUMS, (ranks**0, ranks, ranks**2, seconds, ranks * seconds), strict=True):
        m[name][ids] += news
    return {name: values.tolist() for name, values in m.items()}


def estimate(memory: Memory, a: Floats, b: Floats, r_max: int) -> tuple[Floats, Floats]:
    """a and b of every client, (N,) each, given those of the model:

    argmin over a', b' >= 0 of sum_t w_t (seconds_t - a' - b' r_t)^2 + RIDGE ((a' - a)^2 + r_max^2 (b' - b)^2)

    Recursive least squares in the form of sums: w_t = FORGET^age, age in rounds, so a client that is not seen any more goes
    back to the model, and one that was left out for a slow round gets another chance. With one rank only a + b r is
    identified, and the model decides how it splits.
    """
    w, x, xx, y, xy = (np.array(memory[name]) for name in SUMS)
    w, xx, y, xy = w + RIDGE, xx + RIDGE * r_max**2, y + RIDGE * a, xy + RIDGE * r_max**2 * b
    determinant = w * xx - x * x  # > 0: the ridge is
    a_free, b_free = (xx * y - x * xy) / determinant, (w * xy - x * y) / determinant
    flat, steep = b_free < 0, a_free < 0
    a_new = np.where(flat, y / w, np.where(steep, 0.0, a_free))
    b_new = np.where(flat, 0.0, np.where(steep, xy / xx, b_free))
    return a_new, b_new
