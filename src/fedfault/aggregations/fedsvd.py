"""FedSVD: clients train B, and the server turns A into the directions that the product has."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from fedfault.aggregations.blockwise import blockwise
from fedfault.algebra import fresh_factors, mask_factor, mean, svd, to_float64
from fedfault.registry import register
from fedfault.types.adapter import Pair
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("lee2025fedsvd",))
def fedsvd(*, every: Annotated[int, Field(ge=1)] = 1) -> Aggregation:
    """FedSVD (Lee et al., NeurIPS 2025): FFA-LoRA with an A that follows: B A = U S V^T, A <- V^T, B <- U S.

    Clients train B alone, so that the mean of the B_k is exact, as in ffa_lora. In every round, or every so many, the
    server factorises the product anew: the rows of A are orthonormal, and span what the model has learned instead of what
    was drawn. A component of size zero gets B = 0 and a new A. Clients send B and receive both factors.

    every: rounds between two decompositions

    >>> from fedfault.testing.toys import LowRank, federation, run_to_end
    >>> state, _ = run_to_end(federation(LowRank(), "fedavg", "fedsvd", num_rounds=2, work={"steps": 2}))
    >>> A, _ = state.adapter.layout.pair(state.adapter.flat, state.adapter.layout.sites[0])
    >>> [[round(abs(v), 4) for v in row] for row in (A @ A.mT).tolist()]
    [[1.0, 0.0], [0.0, 1.0]]

    Reference: arXiv 2505.12805.
    """

    def combine(got: Uploads) -> Pooled:
        layout, pooled = got.sent.layout, mean(got.sent, got.weight)
        A_now = blockwise().combine(got).adapter  # what nobody trained, of the clients that have it
        if got.round % every:  # in the mean, rows of A that a client lacks would count as zero
            in_A = mask_factor(layout, "A").to(pooled.flat.device)
            return Pooled(replace(pooled, flat=A_now.flat.where(in_A, pooled.flat)))
        flat = pooled.flat.clone()
        fresh_factors(layout, pooled.flat, "fedsvd", got.round, seed=got.seed)
        for site in layout.lora:
            A, B = layout.pair(to_float64(A_now.flat), site).A, layout.pair(to_float64(flat), site).B
            U, S, Vh = svd(Pair(A, B))
            n = int((max(site.shape) * torch.finfo(S.dtype).eps * S.max() < S).sum())
            kept = layout.pair(pooled.flat, site)
            kept.A[:n], kept.B[:, :n] = Vh[:n].to(kept.A), (U * S)[:, :n].to(kept.B)
        return Pooled(pooled)

    shrinks = "absent columns of B count as zero, which keeps the mean of products exact"
    return Aggregation(
        combine,
        trained=lambda layout, round: ~mask_factor(layout, "A"),
        traits=frozenset({"refactors"}),
        shrinks=shrinks,
    )
