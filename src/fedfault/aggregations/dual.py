"""Dual adapters: one that all share beside one that each client keeps, as slices of the same factors."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.aggregations.blockwise import blockwise
from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.types.adapter import Layout
from fedfault.types.algorithm import Aggregation


@register("aggregation", cite=("yang2024feddpa", "bian2025fedalt"))
def dual(*, shared: Annotated[int, Field(ge=1)] | None = None) -> Aggregation:
    """Dual adapters (FedDPA, FedALT): the first ranks of every pair are averaged, the others never leave their client.

    B A = sum_j B_:j A_j is one adapter of rank `shared` and one of the other r_max - shared, side by side on the same input:
    the global and the local adapter of FedDPA (Yang et al., NeurIPS 2024, arXiv 2403.19211), trained together. shared: by
    default half of the ranks of each module. What is trained in full, such as a head, is averaged. FedDPA also weighs the
    two by how near an input is to the client's own, and FedALT (arXiv 2503.11880) by a router for each token, with what the
    others share frozen while a client trains; here both always count once. There is no global model: each client is scored
    with its own slices, and the scores of one model are those of the shared ones with the mean of all clients' own.

    shared: ranks of every pair that are averaged; null: half of each module's

    >>> from fedfault.types.adapter import Layout, Site
    >>> dual(shared=1).private(Layout.of([Site("q", "lora", (2, 1, 1)), Site("b", "full", (1,))])).tolist()
    [False, True, False, True, False]
    """

    def choose(layout: Layout) -> Tensor:
        kept = torch.zeros(layout.size, dtype=torch.bool)
        for site in layout.lora:
            r = site.shape[0]
            first = r // 2 if shared is None else shared
            if not 0 < first < r:
                raise UserError(
                    f"federation.aggregation=dual shares {first} of the {r} ranks of {site.name}, and each of the two "
                    "adapters needs one at least; raise model.lora.r_max, or lower shared"
                )
            pair = layout.pair(kept, site)
            pair.A[first:] = True
            pair.B[:, first:] = True
        return kept

    return replace(blockwise(), private=choose, traits=frozenset({"private"}))
