"""FoolsGold: clients whose updates point the same way share one vote."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfault.registry import register
from fedfault.robustness.changes import TRAITS, Space, find_gram, take_step
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("fung2020foolsgold",))
def foolsgold(*, space: Space = "factors") -> Aggregation:
    """FoolsGold (Fung et al., RAID 2020): weights that fall with the largest cosine to another client's update.

    Against many hostile clients with one aim (sybils), where honest clients differ. It bounds nothing that one hostile
    client does alone, and clients of like data lose their votes as sybils do. The cosines are those of the round,
    where the paper sums the updates of every client over the rounds. `space` as in krum.

    space: where changes are compared: the LoRA factors as they are, or their products, which are the change of the
      weights

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("foolsgold")  # two clients that point much the same way: equal votes
    6.0

    Reference: arXiv 1808.04866.
    """

    def combine(got: Uploads) -> Pooled:
        return take_step(got, weigh_by_cosine(find_gram(got, space)), space)

    return Aggregation(combine, traits=TRAITS[space], tolerates=lambda K: 0, least=2)


def weigh_by_cosine(G: Tensor) -> Tensor:
    """FoolsGold's weights from the Gram matrix of changes: (K, K) -> (K,), sum 1; equal where all would be zero.

    >>> weigh_by_cosine(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])).tolist()
    [1.0, 0.0, 0.0]
    """
    norms = G.diagonal().clamp(min=torch.finfo(G.dtype).tiny).sqrt()
    cosine = (G / norms[:, None] / norms).fill_diagonal_(-1.0)
    most = cosine.max(1).values.clamp(min=0)  # (K,)
    pardon = torch.where(most[:, None] < most, most[:, None] / most.clamp(min=torch.finfo(G.dtype).tiny), 1.0)
    weight = (1 - (cosine * pardon).max(1).values).clamp(0, 1)
    if len(G) == 1 or float(weight.max()) < 1e-9:
        return torch.full_like(norms, 1 / len(G))
    weight = (weight / weight.max()).clamp(max=0.99)
    weight = (torch.log(weight / (1 - weight)) + 0.5).clamp(0, 1)
    return weight / weight.sum()
