"""FedIT: the factors are averaged separately."""

from __future__ import annotations

from fedfault.algebra import mean
from fedfault.registry import register
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("zhang2024fedit",))
def fedit() -> Aggregation:
    """FedIT (Zhang et al., ICASSP 2024): A and B are averaged separately, which is not the average of B A.

    A <- sum_k p_k A_k, B <- sum_k p_k B_k. The error is the weighted cross-covariance of the factors,
    sum_k p_k B_k A_k - B A = sum_k p_k (B_k - B)(A_k - A); zero for one client, or where all share a factor. Where ranks
    differ, absent slices count as zero (see zero_pad).

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("fedit")  # ((2 + 4) / 2) ((1 + 3) / 2); the mean of 2 * 1 and 4 * 3 is 7
    6.0

    Reference: arXiv 2305.05644.
    """

    def combine(got: Uploads) -> Pooled:
        return Pooled(mean(got.sent, got.weight))

    return Aggregation(combine, is_mean=True, shrinks="absent slices count as zero")
