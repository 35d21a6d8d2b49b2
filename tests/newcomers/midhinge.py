"""The middle of what clients send, number by number."""

from dataclasses import replace
from math import nan

import torch

from fedfault.algebra import mask
from fedfault.registry import register
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation")
def midhinge() -> Aggregation:
    """Midhinge: every number becomes the mean of the quartiles of the clients' numbers, whatever their weights."""

    def combine(got: Uploads) -> Pooled:
        has = mask(got.sent.layout, got.ranks).to(got.sent.flat.device)  # (K, P): absent slices have no vote
        quartiles = torch.tensor([0.25, 0.75]).to(got.sent.flat)
        x = got.sent.flat.masked_fill(~has, nan).nanquantile(quartiles, dim=0).mean(0)  # (P,)
        return Pooled(replace(got.before, flat=x.where(x.isfinite(), got.before.flat)))

    return Aggregation(combine, traits=frozenset({"robust"}), tolerates=lambda K: (K - 1) // 4)
