"""Every client draws from the same mixture."""

from __future__ import annotations

import numpy as np

from fedfault.partitions.owners import Ints, check, even_sizes, grouped
from fedfault.registry import register
from fedfault.types import Partition


@register("partition")
def iid(*, min_samples: int = 1) -> Partition:
    """Every client has the same number of documents, dealt out at random.

    `min_samples` is the least a client must have; sizes differ by one document at most.

    >>> [len(own) for own in iid()(np.zeros(7), 3, np.random.default_rng(0))]
    [3, 2, 2]
    """

    def partition(topics: Ints, num_clients: int, generator: np.random.Generator) -> list[Ints]:
        n = len(topics)
        check(n, num_clients, min_samples)
        owner = np.repeat(np.arange(num_clients), even_sizes(n, num_clients))
        return grouped(generator.permutation(owner), num_clients)

    return partition
