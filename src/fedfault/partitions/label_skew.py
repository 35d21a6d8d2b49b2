"""A fixed number of labels a client, whatever the client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.dealing.owners import Ints, check_request, even_sizes, group_positions, number_topics, shuffle_topics
from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.types.corpus import Deal, Document, Partition


@register("partition", cite=("li2022silos",))
def label_skew(*, labels_per_client: Annotated[int, Field(ge=1)] = 2, min_samples: int = 1) -> Partition:
    """Every client has documents of `labels_per_client` labels only; a label's clients share it evenly.

    The labels are the corpus's topics. Labels are handed out in rounds, so that the numbers of clients of two labels
    differ by one at most and no document is left over. Too few clients to cover all labels hold more of them each,
    which the notes say. All labels at every client is `iid` in law.

    labels_per_client: labels that each client has documents of
    min_samples: documents that every client gets at least

    >>> documents = [Document("text", label) for label in "aaaabbbbcccc"]
    >>> deal = label_skew(labels_per_client=2)(documents, 3, np.random.default_rng(0))
    >>> ["".join(documents[i].topic for i in own) for own in deal.clients]
    ['bbcc', 'aabb', 'aacc']

    Reference: the "#C = k" setting of Li, Diao, Chen and He, ICDE 2022; McMahan et al. (2017) deal shards instead.
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        n = len(documents)
        check_request(n, num_clients, min_samples)
        members = shuffle_topics(number_topics("label_skew", [d.topic for d in documents], num_clients), generator)
        K = len(members)
        if labels_per_client > K:
            raise UserError(
                f"label_skew: labels_per_client={labels_per_client}, but the documents have {K} label(s); "
                f"what works: at most {K}"
            )
        each = max(labels_per_client, -(-K // num_clients))
        holders = _choose_holders(K, num_clients, each, generator)
        owner = np.empty(n, dtype=np.int64)
        for own, clients in zip(members, holders, strict=True):
            owner[own] = np.repeat(clients, even_sizes(len(own), len(clients)))
        sizes = np.bincount(owner, minlength=num_clients)
        if sizes.min() < min_samples:
            raise UserError(
                f"label_skew: with {each} of {K} labels a client the smallest of {num_clients} clients gets {sizes.min()} "
                f"of {n} documents, not {min_samples} (the rarest label has {min(map(len, members))}); what works: fewer "
                "clients (federation.total_clients), more labels_per_client, or partition iid"
            )
        return Deal(group_positions(owner, num_clients), notes=_write_notes(labels_per_client, each, K))

    return partition


def _choose_holders(num_labels: int, num_clients: int, each: int, generator: np.random.Generator) -> list[Ints]:
    """Choose the clients of every label: `each` different labels a client, all labels used as evenly as can be."""
    uses = np.zeros(num_labels, dtype=np.int64)
    holders: list[list[int]] = [[] for _ in range(num_labels)]
    for client in generator.permutation(num_clients).tolist():
        least_used = np.lexsort((generator.random(num_labels), uses))[:each]
        uses[least_used] += 1
        for label in least_used.tolist():
            holders[label].append(client)
    return [generator.permutation(np.array(clients, dtype=np.int64)) for clients in holders]


def _write_notes(wanted: int, each: int, num_labels: int) -> tuple[str, ...]:
    if each > wanted:
        return (f"{each} labels a client instead of {wanted}: otherwise some of the {num_labels} labels had no client",)
    if each == num_labels:
        return (f"every client has all {num_labels} labels: this is an IID split",)
    return ()
