"""One topic a client, with a leak."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.errors import UserError
from fedfault.partitions.owners import Ints, check, even_sizes, grouped, shuffled_topics
from fedfault.registry import register
from fedfault.types import Partition


@register("partition")
def topic_isolation(*, leak: Annotated[float, Field(ge=0, le=1)] = 0.0, min_samples: int = 1) -> Partition:
    """Every client has one topic of its own; the share `leak` of all documents is dealt out at random.

    The T topics come in random order and client k gets topic k mod T; the clients of a topic share it evenly.
    Fewer clients than topics hold several topics each: topic t belongs to client t mod N.
    Then every client gives the share `leak` of its documents to a common pool, which is dealt out again evenly,
    so that `leak=0` is isolation, and `leak=1` is `iid` in law, sizes included. With topics of one size a client's
    documents come from the global mixture in exactly the share `leak`.

    >>> isolated = topic_isolation()(np.array([0, 0, 1, 1]), 2, np.random.default_rng(0))
    >>> sorted(own.tolist() for own in isolated)
    [[0, 1], [2, 3]]
    """

    def partition(topics: Ints, num_clients: int, generator: np.random.Generator) -> list[Ints]:
        n = len(topics)
        check(n, num_clients, min_samples)
        members = shuffled_topics(topics, generator)
        order = generator.permutation(len(members))
        owner = np.empty(n, dtype=np.int64)
        pooled: list[Ints] = []
        for place, own in enumerate(members[k] for k in order):
            clients = np.arange(place % num_clients, num_clients, len(members))
            sizes = even_sizes(len(own), len(clients))
            owner[own] = np.repeat(clients, sizes)
            starts = np.cumsum(sizes) - sizes
            gives = np.rint(leak * sizes).astype(np.int64)
            within = np.arange(len(own)) - np.repeat(starts, sizes)  # a document's place at its client
            pooled.append(own[within < np.repeat(gives, sizes)])
        pool = np.concatenate(pooled)
        deal = np.repeat(np.arange(num_clients), even_sizes(len(pool), num_clients))
        owner[pool] = generator.permutation(deal)
        sizes = np.bincount(owner, minlength=num_clients)
        if sizes.min() < min_samples:
            smallest = min(map(len, members))
            fits = len(members) * (smallest // min_samples)
            ways = [f"at most {fits} clients (federation.total_clients)"] if fits else []
            ways += ["a larger leak", "partition iid or topic_skew"]
            raise UserError(
                f"topic_isolation: {n} documents in {len(members)} topics, the smallest of {smallest}, cannot give "
                f"{num_clients} clients {min_samples} each of their own topic at leak {leak:g} (the smallest client "
                f"would have {sizes.min()}); what works: {', or '.join(ways)}"
            )
        return grouped(owner, num_clients)

    return partition
