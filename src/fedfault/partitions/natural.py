"""Clients as the data has them: by author, site, genre or any other column."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from fedfault.dealing.owners import NeedsColumn, check_groups, check_request, group_positions, number_names
from fedfault.errors import UserError, join_names
from fedfault.registry import register
from fedfault.types.corpus import Deal, Document, Partition


@register("partition")
def natural(*, min_samples: int = 1) -> Partition:
    """Every group of the data (author, site, genre: data.group_column) is whole at one client.

    With as many clients as groups each client is a group. With fewer, groups are joined, the largest first and each to the
    client with the fewest documents (Graham 1969), which keeps sizes as even as whole groups allow.

    min_samples: documents that every client gets at least

    >>> documents = [Document("text", "topic", group=author) for author in ("Eve", "Bob", "Eve", "Ann", "Eve", "Bob")]
    >>> deal = natural()(documents, 2, np.random.default_rng(0))
    >>> [[documents[i].group for i in own] for own in deal.clients]
    [['Eve', 'Eve', 'Eve'], ['Bob', 'Ann', 'Bob']]
    >>> deal.names  # clients are called by their groups
    ('Eve', 'Ann, Bob')
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        n = len(documents)
        check_request(n, num_clients, min_samples)
        names = sorted({d.group for d in documents})
        if names == [""]:
            raise NeedsColumn(
                "natural: the documents have no groups; name a column of a table with data.group_column (text files have "
                "none), use a corpus that has groups (styles, glue/stsb, synthetic), or another partition",
                "group_column",
            )
        check_groups("natural", [d.group for d in documents], [d.text for d in documents])
        if len(names) < num_clients:
            raise UserError(
                f"natural: {len(names)} group(s) ({join_names(names)}) for {num_clients} clients; what works: "
                f"federation.total_clients={len(names)} or less, or style_skew with criterion=source, which splits groups"
            )
        group = number_names(d.group for d in documents)
        sizes = np.bincount(group)
        largest_first = sorted(range(len(names)), key=lambda g: (-sizes[g], names[g]))
        load = [(0, int(place), client) for client, place in enumerate(generator.permutation(num_clients))]
        heapq.heapify(load)
        client_of = np.empty(len(names), dtype=np.int64)
        for g in largest_first:
            held, place, client = heapq.heappop(load)
            client_of[g] = client
            heapq.heappush(load, (held + int(sizes[g]), place, client))
        clients = group_positions(client_of[group], num_clients)
        smallest = min(map(len, clients))
        if smallest < min_samples:
            enough = int((sizes >= min_samples).sum())
            raise UserError(
                f"natural: the smallest of {num_clients} clients has {smallest} documents, not {min_samples}; what works: "
                f"fewer clients (federation.total_clients; {enough} of {len(names)} groups have {min_samples} documents "
                f"by themselves), or min_samples of at most {smallest}"
            )
        owned = [[names[g] for g in own] for own in group_positions(client_of, num_clients)]
        note = f"{len(names)} groups at {num_clients} clients, each of them whole"
        return Deal(clients, notes=(note,), names=tuple(join_names(own, most=3) for own in owned))

    return partition
