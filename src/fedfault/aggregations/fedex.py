"""FedEx-LoRA: FedIT, and what it misses goes into the frozen weights."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.algebra import mean, shares, stack, svd, to_float64
from fedfault.registry import register
from fedfault.types.adapter import Pair
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("singhal2025fedex",))
def fedex_lora(
    *,
    residual_rank: Annotated[int, Field(ge=1)] | None = None,  # all of it: being exact is the point of the method
) -> Aggregation:
    """FedEx-LoRA (Singhal et al., ACL 2025): FedIT, and the error of averaging factors goes into the frozen weights.

    W0 <- W0 + s C with C = sum_k p_k B_k A_k - B A = sum_k p_k (B_k - B)(A_k - A), so that W0 + s B A is the exact mean. As
    the p_k (B_k - B) sum to zero, any one client's A_c may stand in for A: C = sum_{k != c} p_k (B_k - B)(A_k - A_c) travels
    as factors of rank (K - 1) r, or whole where that is less. `residual_rank` keeps only its largest components, an error
    of the norm of the others.

    It is the mean of the models that clients hold. Where ranks differ, those of low rank do not hold the other slices, which
    then shrink as in zero_pad.

    residual_rank: how many components of what the factors cannot hold go into the frozen weights; null: all

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("fedex_lora")  # 6 as FedIT, and (2 - 3)(1 - 2) / 2 + (4 - 3)(3 - 2) / 2 is folded
    7.0

    Reference: arXiv 2410.09432.
    """

    def combine(got: Uploads) -> Pooled:
        layout, pooled, sent = got.sent.layout, mean(got.sent, got.weight), to_float64(got.sent.flat)
        p = shares(got.weight).to(sent.device)
        c = int(got.ranks.argmin())  # where k has no slice, c has none either: A_k - A_c has the rank of A_k
        ranks = got.ranks.where(torch.arange(len(p)) != c, 0)
        fold = {}
        for site in layout.lora:
            A, B = layout.pair(sent, site)  # (K, r, d_in), (K, d_out, r)
            apart = B - torch.einsum("k,kij->ij", p, B)
            residual = stack(Pair(A - A[c], apart), layout.scale(site) * p, ranks)  # s C
            fold[site.name] = _keep_largest(residual, residual_rank, like=pooled.flat)
        return Pooled(pooled, fold)

    shrinks = "the exact mean of what clients hold, and those of low rank hold a truncated model"
    return Aggregation(combine, traits=frozenset({"folds"}), shrinks=shrinks)


def _keep_largest(pair: Pair, rank: int | None, like: Tensor) -> Pair:
    """The product's `rank` largest components, or all of it, in the numbers of `like`."""
    if rank is not None and rank < len(pair.A):
        U, S, Vh = svd(pair)
        pair = Pair(Vh[:rank], U[:, :rank] * S[:rank])
    return Pair(pair.A.to(like), pair.B.to(like))
