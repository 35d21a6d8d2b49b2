"""Centred clipping: clients move the model by no more than a radius each."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fedfault.registry import register
from fedfault.robustness.changes import TRAITS, Space, find_distances_from, find_gram, take_step
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("karimireddy2021history",))
def centred_clipping(
    *,
    radius: Annotated[float, Field(gt=0)] | None = None,  # None: the median distance from the centre
    steps: Annotated[int, Field(ge=1)] = 3,
    space: Space = "factors",
) -> Aggregation:
    """Centred clipping (Karimireddy et al., ICML 2021): v <- v + mean_k (y_k - v) min(1, radius / |y_k - v|).

    It starts from the server's model, where the paper starts from a momentum of the last round's result. The median distance
    as `radius` follows the scale of training, and holds while most clients are honest; a fixed one bounds what any number of
    clients does, and slows down training that needs longer steps. Clients count alike, whatever they say of their sizes.
    `space` as in krum.

    radius: how far an update may lie from the centre in a step; null: the median of the distances, the lower one of two in
      the middle
    steps: how often the centre is moved
    space: where changes are compared: the LoRA factors as they are, or their products, which are the change of the
      weights

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients(("centred_clipping", {"radius": 1e3}))  # nobody is that far: FedIT
    6.0

    Reference: arXiv 2012.10333.
    """

    def combine(got: Uploads) -> Pooled:
        G = find_gram(got, space)
        K, c = len(G), G.new_zeros(len(G))
        for _ in range(steps):
            apart = find_distances_from(G, c)
            most = float(apart.median()) if radius is None else radius
            share = (most / apart.clamp(min=torch.finfo(apart.dtype).tiny)).clamp(max=1) / K  # (K,) of y_k - v
            c = c * (1 - share.sum()) + share
        return take_step(got, c, space)

    return Aggregation(combine, traits=TRAITS[space], tolerates=lambda K: (K - 1) // 2, least=3)
