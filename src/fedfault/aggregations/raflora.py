"""raFLoRA: FlexLoRA in which a slice is averaged over the clients that have it."""

from __future__ import annotations

import torch

from fedfault.algebra import fresh_factors, mean, shares, stack, svd, to_float64, write_factors
from fedfault.registry import register
from fedfault.types.adapter import Pair
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("wu2026raflora",))
def raflora() -> Aggregation:
    """raFLoRA (Wu et al., 2026): FlexLoRA whose slices of rank are averaged over their owners, so that none decays.

    With O_j the clients of rank above j, sum_j sum_{k in O_j} p_k / (sum_{O_j} p) B_k[:, j] A_k[j] = U S V^T,
    B = U S^1/2, A = S^1/2 V^T. FlexLoRA multiplies what only clients of high rank have by their share of the weight in every
    round, and so loses it (rank collapse); here a round without training changes nothing. With equal ranks it is FlexLoRA.

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("raflora")  # FlexLoRA: (2 * 1 + 4 * 3) / 2
    7.0
    >>> combine_two_clients("raflora", ranks=(1, 2))  # and 6 * 4 of the slice that one client has; FlexLoRA halves it
    31.0

    Reference: arXiv 2602.13486.
    """

    def combine(got: Uploads) -> Pooled:
        layout, pooled = got.sent.layout, mean(got.sent, got.weight)  # the mean is for what is trained in full
        fresh_factors(layout, pooled.flat, "raflora", got.round, seed=got.seed)
        p = shares(got.weight).cpu()
        for site in layout.lora:
            A, B = layout.pair(to_float64(got.sent.flat), site)
            owns = (torch.arange(A.shape[1]) < got.ranks[:, None]).double() * p[:, None]  # (K, r) p_k of the owners
            part = 1 / owns.sum(0).clamp(min=torch.finfo(owns.dtype).tiny)  # (r,)
            product = stack(Pair(A, B * part.to(B.device)), p, got.ranks)
            write_factors(layout.pair(pooled.flat, site), *svd(product))
        return Pooled(pooled)

    return Aggregation(combine, traits=frozenset({"refactors"}))
