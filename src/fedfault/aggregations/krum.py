"""Krum and multi-Krum: the clients whose nearest neighbours are nearest, and nobody else."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.registry import register
from fedfault.robustness.changes import TRAITS, Space, find_distances, find_gram, take_step
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("blanchard2017krum",))
def krum(
    *,
    hostile: Annotated[int, Field(ge=1)] = 1,
    chosen: Annotated[int, Field(ge=1)] = 1,  # 1: Krum; more: multi-Krum
    space: Space = "factors",
) -> Aggregation:
    """Krum (Blanchard et al., NeurIPS 2017): the update of the client whose K - f - 2 nearest neighbours are nearest.

    f is `hostile`, the number of clients that may send anything; K >= 2 f + 3 clients a round are needed. The score of a
    client is the sum of squared distances to its K - f - 2 nearest neighbours; multi-Krum takes the mean of the `chosen`
    clients of lowest score, at most K - f. Of equal scores, such as those of two nearest neighbours with K - f - 2 =
    1, the lower one is that of the client nearer to all. Clients count alike, whatever they say of their sizes, and
    those that are left out have weight 0 in the records: clients of rare data are left out as hostile ones are.
    Distances are between changes of factors, or of products B A (`space`), which do not depend on how a product is cut
    into factors.

    hostile: how many clients may send anything
    chosen: how many updates are averaged; 1 takes the most central one
    space: where changes are compared: the LoRA factors as they are, or their products, which are the change of the
      weights

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("krum")  # two clients are as near to each other: the first one, 2 * 1
    2.0

    Reference: arXiv 1703.02757.
    """

    def combine(got: Uploads) -> Pooled:
        K = len(got.ranks)
        best = rank_by_neighbours(find_distances(find_gram(got, space)), max(1, K - hostile - 2))
        best = best[: min(chosen, max(1, K - hostile))]
        c = torch.zeros(K, dtype=torch.float64)
        c[best] = 1 / len(best)
        return take_step(got, c, space)

    return Aggregation(
        combine,
        traits=TRAITS[space],
        tolerates=lambda K: max(0, min(hostile, (K - 3) // 2)),
        least=2 * hostile + 3,
    )


def rank_by_neighbours(distances: Tensor, neighbours: int) -> Tensor:
    """The clients by the sum of distances to so many nearest neighbours, then to all: (K, K) -> (K,) places, best first.

    >>> apart = [[0.0, 1.0, 4.0, 9.0], [1.0, 0.0, 2.0, 9.0], [4.0, 2.0, 0.0, 9.0], [9.0, 9.0, 9.0, 0.0]]
    >>> rank_by_neighbours(torch.tensor(apart), 1).tolist()
    [1, 0, 2, 3]
    """
    near = distances.sort(1).values  # the first one is the distance to itself
    score = near[:, 1 : 1 + neighbours].sum(1).float()  # rounded, so that equal ones are equal
    order = near.sum(1).argsort(stable=True)
    return order[score[order].argsort(stable=True)]
