"""One topic a client, with a leak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.dealing.owners import check_request, group_positions, isolate_classes, note_sharing, number_topics, redeal
from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.types.corpus import Deal, Document, Partition


@register("partition")
def topic_isolation(*, leak: Annotated[float, Field(ge=0, le=1)] = 0.0, min_samples: int = 1) -> Partition:
    """Every client has one topic of its own; the share `leak` of all documents is dealt out at random.

    The T topics come in random order and client k gets topic k mod T; the clients of a topic share it evenly.
    Fewer clients than topics hold several topics each: topic t belongs to client t mod N.
    Then every client gives the share `leak` of its documents to a common pool, which is dealt out again evenly,
    so that `leak=0` is isolation, and `leak=1` is `iid` in law, sizes included. With topics of one size a client's
    documents come from the global mixture in exactly the share `leak`.

    leak: the share of all documents that is dealt out at random
    min_samples: documents that every client gets at least

    >>> documents = [Document("text", topic) for topic in "aaaabbbbcccc"]
    >>> for leak in (0, 0.5):
    ...     deal = topic_isolation(leak=leak)(documents, 3, np.random.default_rng(0))
    ...     print(*("".join(documents[i].topic for i in own) for own in deal.clients))
    cccc bbbb aaaa
    aacc bbbc aabc
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        n = len(documents)
        check_request(n, num_clients, min_samples)
        topics = number_topics("topic_isolation", [d.topic for d in documents], num_clients)
        held = np.bincount(topics)
        owner = redeal(isolate_classes(topics, num_clients, generator), num_clients, leak, generator)
        sizes = np.bincount(owner, minlength=num_clients)
        if sizes.min() < min_samples:
            fits = len(held) * int(held.min() // min_samples)
            ways = [f"at most {fits} clients (federation.total_clients)"] if fits else []
            ways += ["a larger leak", "partition iid or topic_skew"]
            raise UserError(
                f"topic_isolation: {n} documents in {len(held)} topics, the smallest of {held.min()}, cannot give "
                f"{num_clients} clients {min_samples} each of their own topic at leak {leak:g} (the smallest client "
                f"would have {sizes.min()}); what works: {', or '.join(ways)}"
            )
        return Deal(group_positions(owner, num_clients), notes=note_sharing("topic", len(held), num_clients))

    return partition
