"""FlexLoRA: the mean of the products, factorised anew."""

from __future__ import annotations

from fedfault.algebra import fresh_factors, mean, shares, stack, svd, write_factors
from fedfault.registry import register
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("bai2024flexlora",))
def flexlora() -> Aggregation:
    """FlexLoRA (Bai et al., NeurIPS 2024): the mean of B A by SVD, of which every client gets as much as its rank holds.

    sum_k p_k B_k A_k = U S V^T from the stacked factors, B = U S^1/2 and A = S^1/2 V^T. The server keeps the r_max largest
    components and a client of rank r trains the first r, the best approximation of that rank. What only clients of high rank
    have is averaged with zeros and decays by the round (rank collapse, arXiv 2602.13486).

    A component of size zero gets B = 0 and a new A: with both zero it would never train again.

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("flexlora")  # (2 * 1 + 4 * 3) / 2
    7.0

    Reference: arXiv 2402.11505.
    """

    def combine(got: Uploads) -> Pooled:
        layout, pooled = got.sent.layout, mean(got.sent, got.weight)  # the mean is for what is trained in full
        fresh_factors(layout, pooled.flat, "flexlora", got.round, seed=got.seed)
        for site in layout.lora:
            product = stack(layout.pair(got.sent.flat, site), shares(got.weight), got.ranks)
            write_factors(layout.pair(pooled.flat, site), *svd(product))
        return Pooled(pooled)

    shrinks = "the exact mean of what clients hold, and those of low rank hold a truncated model"
    return Aggregation(combine, traits=frozenset({"refactors"}), shrinks=shrinks)
