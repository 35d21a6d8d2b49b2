"""FFA-LoRA: A is frozen, so that the mean of B gives the mean of B A."""

from __future__ import annotations

from dataclasses import replace

from fedfault.aggregations.fedit import fedit
from fedfault.algebra import mask_factor
from fedfault.registry import register
from fedfault.types.algorithm import Aggregation


@register("aggregation", cite=("sun2024ffa",))
def ffa_lora() -> Aggregation:
    """FFA-LoRA (Sun et al., ICLR 2024): A stays as it was drawn, which makes the mean of the B_k exact.

    sum_k p_k B_k A_0 = (sum_k p_k B_k) A_0. A_0 follows from the seed and never travels: half of FedIT's bytes each way.
    What is trained in full (heads, biases) is averaged beside it. The paper searches larger learning rates than for LoRA: 5
    to 10 times is a start. A client of smaller rank counts with zeros in the columns of B that it does not have (see
    zero_pad), which keeps the mean of the products exact.

    >>> from fedfault.types.adapter import Layout, Site
    >>> layout = Layout.of([Site("w", "lora", (1, 2, 3))])
    >>> ffa_lora().trained(layout, 1).tolist()  # of two numbers in A and three in B
    [False, False, True, True, True]

    Reference: arXiv 2403.12313.
    """
    shrinks = "absent columns of B count as zero, which keeps the mean of products exact"
    return replace(fedit(), trained=lambda layout, round: ~mask_factor(layout, "A"), shrinks=shrinks)
