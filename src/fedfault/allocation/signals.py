"""Signals from reports: a moving average for each client, and numbers that do not depend on their unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedfault.scheduling import Floats, Ints, Memory

SPREAD = 4.0  # a signal counts for a quarter to four times the cohort's median, so that one outlier does not take all


def to_arrays(memory: Memory) -> dict[str, Floats]:
    """Copy the memory to arrays (N,), to be changed in place."""
    return {name: np.array(values) for name, values in memory.items()}


def to_lists(m: Mapping[str, Floats]) -> Memory:
    """Copy arrays to lists, which JSON can hold."""
    return {name: values.tolist() for name, values in m.items()}


def start_average(name: str, num_clients: int) -> dict[str, list[float]]:
    """Start a moving average for each client: its value, and the number of observations in it, both zero."""
    return {name: [0.0] * num_clients, f"{name}_count": [0.0] * num_clients}


def update_average(m: dict[str, Floats], name: str, news: Iterable[tuple[int, float]], alpha: float) -> Ints:
    """Add new observations (client, x) to an average, in place: ema <- (1 - alpha) ema + alpha x. Returns the clients.

    The averages of other clients stay as they are: an old observation is never counted twice.
    """
    pairs = list(news)
    ids = np.array([client for client, _ in pairs], dtype=np.int64)
    m[name][ids] = (1 - alpha) * m[name][ids] + alpha * np.array([x for _, x in pairs])
    m[f"{name}_count"][ids] += 1
    return ids


def read_average(memory: Memory, name: str, clients: Ints, alpha: float) -> Floats:
    """Read the averages of some clients, (n,), corrected for their start at zero: ema / (1 - (1 - alpha)^count).

    A client that was never observed gets the median of those that were; if none was, all get zero.
    """
    ema, count = (np.array(memory[key])[clients] for key in (name, f"{name}_count"))
    seen = count > 0
    typical = float(np.median(ema[seen] / (1 - (1 - alpha) ** count[seen]))) if seen.any() else 0.0
    return np.where(seen, ema / (1 - (1 - alpha) ** np.where(seen, count, 1)), typical)


def divide_by_median(z: Floats) -> Floats:
    """Divide z by the median of its positive values and clip to [1/4, 4]; ones if none is positive. Has no unit.

    >>> divide_by_median(np.array([0.0, 2.0, 4.0, 100.0])).tolist()
    [0.25, 0.5, 1.0, 4.0]
    """
    positive = z[z > 0]
    if not positive.size:
        return np.ones_like(z)
    return np.clip(z / np.median(positive), 1 / SPREAD, SPREAD)
