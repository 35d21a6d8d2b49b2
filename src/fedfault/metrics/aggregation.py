"""How far the aggregated model is from the mean of the clients' models."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedfault.algebra import inner, stack, wide
from fedfault.types import Adapter, Layout, Pair


def aggregation_error(
    layout: Layout, sent: Tensor, weight: Tensor, after: Adapter, fold: Mapping[str, Pair]
) -> tuple[float | None, dict[str, float]]:
    """|s B A + fold - E| / |E| with E = sum_k p_k s B_k A_k: over all LoRA sites together, and by site.

    sent (K, P) are the clients' adapters, `after` (P,) is what became of them and `fold` what the frozen weights got; all
    changes are relative to the frozen weights before the round. For FedIT it is the weighted cross-covariance of the
    factors, |s sum_k p_k (B_k - B)(A_k - A)| / |E|. Nothing of size d_out x d_in is formed: a site costs O((K r)^2 (d_in +
    d_out)), and anything below 1e-7 is rounding. Sites with E = 0 are left out; None where all are.
    """
    p = weight.double() / weight.double().sum()
    squares = {}
    for site in layout.lora:
        exact = stack(layout.pair(sent, site), layout.scaling * p, torch.full((len(p),), site.shape[0]))
        A, B = layout.pair(wide(after.flat), site)
        given = [Pair(wide(f.A), wide(f.B)) for f in (fold[site.name],)] if site.name in fold else []
        off = _sum(Pair(A, layout.scaling * B), *given, Pair(exact.A, -exact.B))
        squares[site.name] = (max(float(inner(off, off)), 0.0), float(inner(exact, exact)))
    by_site = {name: math.sqrt(e / size) for name, (e, size) in squares.items() if size > 0}
    error, size = (sum(column) for column in zip(*squares.values(), strict=True)) if squares else (0.0, 0.0)
    return (math.sqrt(error / size) if size > 0 else None), by_site


def _sum(*pairs: Pair) -> Pair:
    """The sum of products as one product."""
    return Pair(torch.cat([pair.A for pair in pairs]), torch.cat([pair.B for pair in pairs], dim=1))
