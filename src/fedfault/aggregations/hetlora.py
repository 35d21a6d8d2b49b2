"""HetLoRA: clients of unequal ranks, weighted by the norms of their updates, that prune themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedfault.algebra import inner, mask_lora, mean, to_float64
from fedfault.registry import register
from fedfault.types.adapter import Layout, Pair
from fedfault.types.algorithm import Aggregation, Pooled, Uploads

REFUSES = dict.fromkeys(
    ("pissa", "olora"), "clients are weighed and pruned by the size of B A, of which most would be a part of the base"
)


@register("aggregation", cite=("cho2024hetlora",))
def hetlora(
    *,
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99,  # the paper's: the last slice of ranks up to 100; 1: no pruning
    lam: Annotated[float, Field(ge=0)] = 0.01,  # of a public re-implementation; the paper searches it
    r_min: Annotated[int, Field(ge=1)] = 1,
    weighting: Literal["norm", "samples"] = "norm",
) -> Aggregation:
    """HetLoRA (Cho et al., EMNLP 2024): zero padding with weights by the norms of the updates, and ranks that shrink.

    A client of rank r also minimises lam |B[:, tail]| |A[tail, :]|, summed over the sites; its tail are the slices from
    floor(gamma r) on. If that product is smaller after training than before, the client gives the tail up, down to rank
    `r_min`, and sends the rest. The server averages A and B with weights S_k = |s B_k A_k|, zeros in absent slices (see
    zero_pad), and with p_k while all S_k are zero. Norms favour clients that drift: look at the weights in the records.
    What is trained in full is averaged with p_k, and so is everything with `weighting: samples`, which is FedIT bit for bit
    where ranks are equal.

    gamma: the share of the rank in front of the tail
    lam: the weight of the penalty on the tail
    r_min: the rank below which no tail is given up
    weighting: by what clients are averaged: the norm of their change, or their samples

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("hetlora")  # weights 2 / 14 and 12 / 14: (26 / 7) (19 / 7)
    10.0816

    Reference: arXiv 2401.06432.
    """

    def combine(got: Uploads) -> Pooled:
        pooled, layout = mean(got.sent, got.weight), got.sent.layout
        if weighting == "samples":
            return Pooled(pooled)
        S = product_norms(layout, got.sent.flat).cpu() * (got.weight > 0)  # (K,)
        if not bool(S.any()):
            return Pooled(pooled)
        flat = mean(got.sent, S).flat.where(mask_lora(layout).to(pooled.flat.device), pooled.flat)
        return Pooled(replace(pooled, flat=flat), weight=S)

    def penalty(layout: Layout, y: Tensor, ranks: Tensor) -> Tensor:
        out = torch.zeros_like(y)
        for site in layout.lora:
            A, B = select_tail(layout.pair(y, site), ranks, gamma)
            a, b = (factor.flatten(1).norm(dim=1)[:, None, None] for factor in (A, B))  # (k, 1, 1)
            slope = layout.pair(out, site)
            slope.A.copy_(lam * b * (A / a.clamp(min=1e-30)))  # d |B| |A| / dA = |B| A / |A|
            slope.B.copy_(lam * a * (B / b.clamp(min=1e-30)))
        return out

    def new_ranks(layout: Layout, received: Tensor, trained: Tensor, ranks: Tensor) -> Tensor:
        fell = tail_product(layout, trained, ranks, gamma) < tail_product(layout, received, ranks, gamma)
        pruned = torch.minimum(ranks, (gamma * ranks).floor().long().clamp(min=r_min))
        return pruned.where(fell.cpu(), ranks)

    return Aggregation(
        combine,
        penalty=penalty if lam else None,
        new_ranks=new_ranks if gamma < 1 else None,
        traits=frozenset({"reweighs"} if weighting == "norm" else ()) | frozenset({"prunes"} if gamma < 1 else ()),
        is_mean=weighting == "samples",
        shrinks="absent slices count as zero",
        refuses={} if weighting == "samples" and gamma == 1 and not lam else REFUSES,
    )


def product_norms(layout: Layout, flat: Tensor) -> Tensor:
    """S_k = |s B_k A_k| over all LoRA sites by the trace trick: flat (K, P) -> (K,) float64."""
    flat = to_float64(flat)
    pairs = {site: layout.pair(flat, site) for site in layout.lora}
    squares = (layout.scale(site) ** 2 * inner(pair, pair) for site, pair in pairs.items())
    return sum(squares, flat.new_zeros(len(flat))).clamp(min=0).sqrt()


def select_tail(pair: Pair, ranks: Tensor, gamma: float) -> Pair:
    """The pair with zeros outside of the slices floor(gamma r) <= j < r of clients of rank r: ranks (k,)."""
    j = torch.arange(pair.A.shape[1], device=ranks.device)
    inside = ((j >= (gamma * ranks).floor()[:, None]) & (j < ranks[:, None])).to(pair.A.device)  # (k, r)
    return Pair(pair.A * inside[:, :, None], pair.B * inside[:, None, :])


def tail_product(layout: Layout, flat: Tensor, ranks: Tensor, gamma: float) -> Tensor:
    """|B[:, tail]| |A[tail, :]| summed over the LoRA sites: flat (k, P) -> (k,)."""
    tails = [select_tail(layout.pair(flat, site), ranks, gamma) for site in layout.lora]
    return sum((A.flatten(1).norm(dim=1) * B.flatten(1).norm(dim=1) for A, B in tails), flat.new_zeros(len(flat)))
