"""What the partitioners share: who owns each document, as lists by client, and requests that cannot be met."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedfault.errors import UserError

Ints = NDArray[np.int64]


def check(n: int, num_clients: int, min_samples: int) -> None:
    """`UserError` if no partition can give every client `min_samples` of `n` documents; says what would work."""
    if num_clients < 1:
        raise UserError(f"{num_clients} clients; there must be at least one")
    if min_samples < 1:
        raise UserError(f"min_samples={min_samples}; every client needs at least one document")
    if num_clients * min_samples > n:
        fits = n // min_samples
        ways = [f"at most {fits} clients (federation.total_clients)"] if fits else []
        ways += [f"min_samples of at most {n // num_clients}"] if min_samples > 1 and n >= num_clients else []
        ways += [f"at least {num_clients * min_samples} documents (data.max_samples)"]
        raise UserError(
            f"{n} documents cannot give {num_clients} clients {min_samples} each; what works: {', or '.join(ways)}"
        )


def grouped(key: Ints, num_groups: int) -> list[Ints]:
    """The positions of every key 0, 1, ..., in rising order: documents by client, if the keys are their clients.

    >>> [own.tolist() for own in grouped(np.array([1, 0, 1]), 3)]
    [[1], [0, 2], []]
    """
    ends = np.cumsum(np.bincount(key, minlength=num_groups))
    return np.split(np.argsort(key, kind="stable"), ends[:-1])


def shuffled_topics(topics: Ints, generator: np.random.Generator) -> list[Ints]:
    """The documents of every topic that occurs, (n_k,) each in random order."""
    names, topic = np.unique(topics, return_inverse=True)
    order = generator.permutation(len(topic))
    return [order[own] for own in grouped(topic[order], len(names))]


def even_sizes(n: int, parts: int) -> Ints:
    """`n` in `parts` sizes that differ by one at most, the larger first."""
    return n // parts + (np.arange(parts) < n % parts)
