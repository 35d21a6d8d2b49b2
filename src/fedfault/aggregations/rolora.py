"""RoLoRA: odd rounds train B, even rounds A."""

from __future__ import annotations

from dataclasses import replace

from fedfault.aggregations.fedit import fedit
from fedfault.algebra import mask_factor
from fedfault.registry import register
from fedfault.types.algorithm import Aggregation


@register("aggregation", cite=("chen2025rolora",))
def rolora() -> Aggregation:
    """RoLoRA (Chen et al., NeurIPS 2025): odd rounds train and average B, even rounds A, which makes every round exact.

    While one factor is the same everywhere, the mean of the other gives the mean of B A. B comes first: at B = 0 the
    gradient of A is zero. What is trained in full (heads, biases) is trained in every round, since its mean is exact anyway.
    A round moves P_B or P_A numbers each way. A client of smaller rank counts with zeros in the slices that it does not have
    (see zero_pad), which keeps the mean of the products exact.

    >>> from fedfault.types.adapter import Layout, Site
    >>> layout = Layout.of([Site("w", "lora", (1, 2, 3))])
    >>> [rolora().trained(layout, t).tolist() for t in (1, 2)]  # of two numbers in A and three in B
    [[False, False, True, True, True], [True, True, False, False, False]]

    Reference: arXiv 2502.01755.
    """
    return replace(
        fedit(),
        trained=lambda layout, round: ~mask_factor(layout, "A" if round % 2 else "B"),
        traits=frozenset({"alternates"}),
        shrinks="absent slices of the trained factor count as zero, which keeps the mean of products exact",
    )
