"""Measures of how evenly a model serves its clients, and of how much a topic gets worse again. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TAIL = 0.2  # of the clients, for the conditional value at risk


def measure_fairness(values: Sequence[float], *, gains: bool) -> dict[str, float]:
    """Measure the spread of a number per client: its loss L_i or, with `gains`, its gain G_i = L_i before training - now.

    worst           the largest loss, or the smallest gain
    p10, p50, p90   percentiles, linear between neighbours
    gap             max - min
    sd              standard deviation; the clients are the whole population, so divided by N
    cvar_20         mean over the worst 20 % of the clients, a client on the border counted by its part, and at least over
                    the worst one (Rockafellar and Uryasev, 2002)
    jain            (sum G)^2 / (N sum G^2): 1 when all gain the same, 1/N when one gains all; only for gains that are all
                    >= 0 and not all 0 (Jain et al., 1984)

    Domains differ in entropy, so gains say more than losses. Empty without clients, and where a value is not finite.

    >>> spread = measure_fairness([0.0, 0.1, 0.2, 0.3, 0.4], gains=True)
    >>> [round(spread[name], 3) for name in ("worst", "p50", "gap", "cvar_20", "jain")]
    [0.0, 0.2, 0.4, 0.0, 0.667]
    """
    x = np.asarray(values, dtype=float)
    if not x.size or not np.isfinite(x).all():
        return {}
    worst_first = np.sort(x) if gains else np.sort(x)[::-1]
    p10, p50, p90 = np.percentile(x, (10, 50, 90))
    found = {
        "worst": worst_first[0],
        "p10": p10,
        "p50": p50,
        "p90": p90,
        "gap": np.ptp(x),
        "sd": x.std(),
        "cvar_20": _tail_mean(worst_first, max(TAIL * len(x), 1.0)),
    }
    if gains and x.min() >= 0 and x.max() > 0:
        found["jain"] = x.sum() ** 2 / (len(x) * np.square(x).sum())
    return {name: float(value) for name, value in found.items()}


def _tail_mean(worst_first: np.ndarray, count: float) -> float:
    """Mean of the first `count` values, a number that need not be whole."""
    parts = np.clip(count - np.arange(len(worst_first)), 0.0, 1.0)
    return float(parts @ worst_first / count)


def backward_transfer(losses: Sequence[float]) -> list[float]:
    """L_t - min over s <= t of L_s: how much worse than at its best a topic is after each round t, never below 0.

    It is max_s a_s - a_t with a = -L. NaN where the loss is not finite; such losses are never the best.

    >>> backward_transfer([3.0, 2.0, 2.5])
    [0.0, 0.0, 0.5]
    """
    loss = np.asarray(losses, dtype=float)
    loss = np.where(np.isfinite(loss), loss, np.nan)
    given_back: list[float] = (loss - np.fmin.accumulate(loss)).tolist()
    return given_back
