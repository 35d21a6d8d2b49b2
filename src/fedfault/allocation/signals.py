"""What schedulers learn from reports: moving averages of each client, and numbers that do not depend on their unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedfault.scheduling import Floats, Ints, Memory

SPREAD = 4.0  # a signal counts for a quarter to four times the cohort's median, so that one outlier does not take all


def arrays(memory: Memory) -> dict[str, Floats]:
    """A copy of the memory to work on, (N,) each."""
    return {name: np.array(values) for name, values in memory.items()}


def lists(m: Mapping[str, Floats]) -> Memory:
    """Back to what JSON can hold."""
    return {name: values.tolist() for name, values in m.items()}


def average(name: str, num_clients: int) -> dict[str, list[float]]:
    """A moving average that has seen nothing: its value, and how many observations are in it."""
    return {name: [0.0] * num_clients, f"{name}_count": [0.0] * num_clients}


def averaged(m: dict[str, Floats], name: str, news: Iterable[tuple[int, float]], alpha: float) -> Ints:
    """Add a new observation of some clients, in place: ema <- (1 - alpha) ema + alpha x. Returns who they are.

    Clients without news keep what they have: an old observation is never counted twice.
    """
    pairs = list(news)
    ids = np.array([client for client, _ in pairs], dtype=np.int64)
    m[name][ids] = (1 - alpha) * m[name][ids] + alpha * np.array([x for _, x in pairs])
    m[f"{name}_count"][ids] += 1
    return ids


def current(memory: Memory, name: str, clients: Ints, alpha: float) -> Floats:
    """The averages of the clients, (n,), without the bias of their start: ema / (1 - (1 - alpha)^count).

    A client that was never observed is taken for the median of those that were; nobody observed gives zeros.
    """
    ema, count = (np.array(memory[key])[clients] for key in (name, f"{name}_count"))
    seen = count > 0
    typical = float(np.median(ema[seen] / (1 - (1 - alpha) ** count[seen]))) if seen.any() else 0.0
    return np.where(seen, ema / (1 - (1 - alpha) ** np.where(seen, count, 1)), typical)


def relative(z: Floats) -> Floats:
    """z over the median of its positive values, between 1/4 and 4; ones if none is positive. Free of the unit of z.

    >>> relative(np.array([0.0, 2.0, 4.0, 100.0])).tolist()
    [0.25, 0.5, 1.0, 4.0]
    """
    positive = z[z > 0]
    if not positive.size:
        return np.ones_like(z)
    return np.clip(z / np.median(positive), 1 / SPREAD, SPREAD)
