"""The control: every client draws from the same mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedfault.dealing.owners import check_request, even_sizes, group_positions
from fedfault.registry import register
from fedfault.types.corpus import Deal, Document, Partition


@register("partition")
def iid(*, min_samples: int = 1) -> Partition:
    """Every client draws from the same mixture of topics; sizes differ by one document at most.

    min_samples: documents that every client gets at least

    >>> documents = [Document("text", topic) for topic in "aaaabbbb"]
    >>> deal = iid()(documents, 3, np.random.default_rng(0))
    >>> ["".join(documents[i].topic for i in own) for own in deal.clients]
    ['abb', 'aab', 'ab']
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        n = len(documents)
        check_request(n, num_clients, min_samples)
        owner = np.repeat(np.arange(num_clients), even_sizes(n, num_clients))
        return Deal(group_positions(generator.permutation(owner), num_clients))

    return partition
