"""The middle of what clients send, number by number."""

from dataclasses import replace
from math import nan

from fedfault.algebra import mask
from fedfault.registry import register
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation")
def coordinate_median() -> Aggregation:
    """Coordinate median: every number becomes the median of the clients' numbers, whatever their weights."""

    def combine(got: Uploads) -> Pooled:
        has = mask(got.sent.layout, got.ranks).to(got.sent.flat.device)  # (K, P): absent slices have no vote
        x = got.sent.flat.masked_fill(~has, nan).nanquantile(0.5, dim=0)  # (P,)
        return Pooled(replace(got.before, flat=x.where(x.isfinite(), got.before.flat)))

    return Aggregation(combine, traits=frozenset({"robust"}))
