"""FedSA-LoRA: A is shared, B is not."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fedfault.aggregations.blockwise import blockwise
from fedfault.algebra import mask_factor, mask_lora
from fedfault.registry import register
from fedfault.types.adapter import Layout
from fedfault.types.algorithm import Aggregation


@register("aggregation", cite=("guo2025fedsa",))
def fedsa_lora(*, private_head: bool = False) -> Aggregation:
    """FedSA-LoRA (Guo et al., ICLR 2025): the A_k are averaged, every B_k stays with its client.

    No server ever sees a B, so there is no global model: each client is scored with its own B_k (zero before it first takes
    part), and the scores of one model are those of A with the mean of all clients' B_k, the non-participants' included.
    Made for clients that need different maps to the output; where all need the same one, B is better averaged too. With one
    client it is plain LoRA. A round moves P_A numbers each way. Where ranks differ, a row of A is averaged over the clients
    that have it. With `private_head` what is trained in full, a classifier's head, stays with its client as well.

    private_head: keep a classifier's head with its client, too

    >>> from fedfault.types.adapter import Layout, Site
    >>> layout = Layout.of([Site("w", "lora", (1, 2, 3))])
    >>> fedsa_lora().private(layout).tolist()  # of two numbers in A and three in B
    [False, False, True, True, True]

    Reference: arXiv 2410.01463.
    """

    def choose(layout: Layout) -> Tensor:
        own = mask_factor(layout, "B")
        return own | ~mask_lora(layout) if private_head else own

    return replace(blockwise(), private=choose, traits=frozenset({"private"}))
