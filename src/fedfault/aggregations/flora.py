"""FLoRA: the clients' factors are stacked, and their product goes into the frozen weights."""

from __future__ import annotations

from fedfault.algebra import fresh_factors, mask_lora, mean, shares, stack
from fedfault.registry import register
from fedfault.types.adapter import Pair
from fedfault.types.algorithm import Aggregation, Pooled, Uploads

REFUSES = dict.fromkeys(
    ("gaussian", "pissa", "olora"), "every round starts from a new adapter, drawn as init=uniform does"
)


@register("aggregation", cite=("wang2024flora",))
def flora() -> Aggregation:
    """FLoRA (Wang et al., NeurIPS 2024): stacked factors add the exact mean of B A to the frozen weights.

    B = [s p_1 B_1 | ... | s p_K B_K] and A = [A_1; ...; A_K] for any ranks: W0 <- W0 + B A = W0 + s sum_k p_k B_k A_k. Every
    round starts from a new adapter, B = 0 and A drawn from the seed and the round, which need not travel. Down go the stacks
    of the rounds since a client last took part, sum_k P_{r_k} numbers each, or the whole matrices where that is less.

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("flora")  # (2 * 1 + 4 * 3) / 2, all of it folded
    7.0

    Reference: arXiv 2409.05976.
    """

    def combine(got: Uploads) -> Pooled:
        layout, pooled = got.sent.layout, mean(got.sent, got.weight)  # the mean is for what is trained in full
        ranks = got.ranks.where(got.weight > 0, 0)  # nothing is stacked of a client without weight
        fold, p = {}, shares(got.weight)
        for site in layout.lora:
            A, B = stack(layout.pair(got.sent.flat, site), layout.scale(site) * p, ranks)
            fold[site.name] = Pair(A.to(pooled.flat), B.to(pooled.flat))
        fresh_factors(layout, pooled.flat, "flora", got.round, seed=got.seed)
        return Pooled(pooled, fold)

    return Aggregation(combine, known=mask_lora, traits=frozenset({"refactors", "folds"}), refuses=REFUSES)
