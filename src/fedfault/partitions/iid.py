"""The control: every client draws from the same mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedfault.dealing.owners import check, even_sizes, grouped
from fedfault.registry import register
from fedfault.types.corpus import Deal, Document, Partition


@register("partition")
def iid(*, min_samples: int = 1) -> Partition:
    """Every client draws from the same mixture of topics; sizes differ by one document at most.

    >>> deal = iid()([Document("text", "topic")] * 7, 3, np.random.default_rng(0))
    >>> [len(own) for own in deal.clients]
    [3, 2, 2]
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        n = len(documents)
        check(n, num_clients, min_samples)
        owner = np.repeat(np.arange(num_clients), even_sizes(n, num_clients))
        return Deal(grouped(generator.permutation(owner), num_clients))

    return partition
