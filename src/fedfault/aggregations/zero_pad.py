"""Zero padding: a client of smaller rank takes part in the average with zeros in the slices that it does not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from fedfault.algebra import mask, mean
from fedfault.registry import register
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("cho2024hetlora",))
def zero_pad(*, pad: Literal["parameters", "deltas"] = "parameters") -> Aggregation:
    """Zero padding (of HetLoRA, Cho et al., EMNLP 2024): slices that a client does not have count as zero in the mean.

    parameters (the paper): A_j <- sum_{k has j} p_k A_kj, and B_:j alike. A round without any training still multiplies
    slice j of A and of B by rho_j, the weight of the clients that have it, so that B A decays with rho_j^2.
    deltas: absent changes count as zero instead, A_j <- A_j + sum_{k has j} p_k (A_kj - A_j). Nothing decays, but a step is
    rho_j times the mean step of the clients that have the slice.

    With equal ranks both are FedIT bit for bit. Reference: arXiv 2401.06432.

    pad: what is filled with zeros where ranks are unequal: the factors, or their change since the broadcast

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("zero_pad", ranks=(1, 2))  # 6 as FedIT, and (6 / 2) (4 / 2) of the slice that one client has
    12.0
    """

    def combine(got: Uploads) -> Pooled:
        sent = got.sent
        if pad == "deltas":  # a client without the slice stands for what the server has: its change is zero
            has = mask(sent.layout, got.ranks).to(sent.flat.device)  # (K, P)
            sent = replace(sent, flat=sent.flat.where(has, got.before.flat))
        return Pooled(mean(sent, got.weight))

    shrinks = "" if pad == "deltas" else "absent slices count as zero; pad=deltas is the way out"
    return Aggregation(combine, is_mean=True, shrinks=shrinks)
