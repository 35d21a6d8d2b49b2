"""Some clients write long texts, others short ones."""

import numpy as np

from fedfault.dealing.owners import check_request
from fedfault.registry import register
from fedfault.types.corpus import Deal, Partition


@register("partition")
def by_length(*, min_samples: int = 1) -> Partition:
    """Client 0 has the shortest texts, the last client the longest; sizes are equal."""

    def partition(documents, num_clients, generator):
        check_request(len(documents), num_clients, min_samples)
        chance = generator.permutation(len(documents))  # among texts of one length
        order = np.lexsort((chance, [len(d.text) for d in documents]))
        return Deal([np.sort(part) for part in np.array_split(order, num_clients)])

    return partition
