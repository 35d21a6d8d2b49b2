"""Blockwise averaging: a slice of rank is averaged over the clients that have it."""

from __future__ import annotations

from dataclasses import replace

from fedfault.algebra import mask, mean
from fedfault.registry import register
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation")
def blockwise() -> Aggregation:
    """Blockwise averaging: slice j of A and B becomes its mean over the clients that have it, and over them only.

    With the owners O_j = {k: r_k > j}, A_j <- sum_{O_j} p_k A_kj / sum_{O_j} p_k, and B_:j alike; a slice without owners
    stays as it is. The weights of a slice sum to one, so averaging parameters and averaging changes are the same, and a
    round without training changes nothing. With equal ranks it is FedIT bit for bit; with unequal ones every block has
    FedIT's error. raFLoRA divides by the weight that contributed for the same reason (arXiv 2602.13486).

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("blockwise", ranks=(1, 2))  # 6 as FedIT, and 6 * 4 of the slice that one client has
    30.0
    """

    def combine(got: Uploads) -> Pooled:
        layout, x = got.before.layout, got.before.flat
        counts = got.weight > 0
        for rank in sorted(set(got.ranks[counts].tolist()), reverse=True):
            owners = counts & (got.ranks >= rank)  # (K,) more and more of them, who overwrite the slices that all share
            pooled = mean(replace(got.sent, flat=got.sent.flat[owners.to(x.device)]), got.weight[owners])
            below = mask(layout, got.ranks.new_tensor([rank]))[0].to(x.device)  # (P,)
            x = pooled.flat.where(below, x)
        return Pooled(replace(got.before, flat=x))

    return Aggregation(combine, is_mean=True)
