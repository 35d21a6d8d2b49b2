"""FedRot-LoRA: factors are turned towards the server's before they are averaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedfault.algebra import mask, mean, to_float64
from fedfault.registry import register
from fedfault.types.adapter import Pair
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("zhang2026fedrot",))
def fedrot_lora(
    *,
    align: Literal["alternate", "A", "B"] = "alternate",
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0,  # 1: all the way; the paper softens it
) -> Aggregation:
    """FedRot-LoRA (Zhang et al., ICML 2026): FedIT of factors that are turned, B_k R_k and R_k^T A_k, which keeps B_k A_k.

    R_k = argmin |R^T A_k - A| over orthogonal R, where A is the server's from the start of the round (Procrustes: the polar
    factor of A_k A^T); or the same of B_k and B; `alternate` takes A in odd and B in even rounds. Below strength 1 the
    rotation is the one nearest to (1 - strength) I + strength R_k. It takes away the part of FedIT's error that comes of
    clients which write one update in unlike factors, and no other part; the probe `aggregation` measures what is left. A
    client of smaller rank is turned within its slices, and has no say in the others (zero_pad with pad=deltas).

    align: which factor decides the rotation: A, B, or each in every other round
    strength: how far factors are rotated: 1 all the way

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("fedrot_lora")  # of rank 1 there is nothing to turn but a sign: 6 as FedIT
    6.0

    Reference: arXiv 2602.23638.
    """

    def combine(got: Uploads) -> Pooled:
        layout, flat = got.sent.layout, to_float64(got.sent.flat).clone()
        before, by_A = to_float64(got.before.flat), align == "A" or (align == "alternate" and got.round % 2 == 1)
        for site in layout.lora:
            pair = layout.pair(flat, site)
            R = find_rotations(pair, layout.pair(before, site), got.ranks.to(flat.device), by_A, strength)
            pair.A.copy_(R.mT @ pair.A), pair.B.copy_(pair.B @ R)
        has = mask(layout, got.ranks).to(flat.device)  # absent changes count as zero
        pooled = mean(replace(got.sent, flat=flat.where(has, before)), got.weight)
        return Pooled(replace(pooled, flat=pooled.flat.to(got.before.flat)))

    return Aggregation(combine, traits=frozenset({"refactors"}))


def find_rotations(pair: Pair, server: Pair, ranks: Tensor, by_A: bool, strength: float) -> Tensor:
    """Find R_k for factors A (K, r, d_in), B (K, d_out, r), the server's and ranks (K,): (K, r, r), within each rank."""
    has = torch.arange(pair.A.shape[1], device=ranks.device) < ranks[:, None]  # (K, r)
    M = pair.A @ server.A.mT if by_A else pair.B.mT @ server.B
    M = M * has[:, None, :] * has[:, :, None]
    one = torch.eye(M.shape[1], dtype=M.dtype, device=M.device)
    size = M.norm(dim=(1, 2))[:, None, None]
    M = M + one * (~has).to(M)[:, None] + 1e-9 * size * one + (size == 0) * one  # nothing to turn to: as it is
    R = _find_nearest(M)
    return R if strength == 1 else _find_nearest((1 - strength) * one + strength * R)


def _find_nearest(M: Tensor) -> Tensor:
    """The orthogonal matrices nearest to M (K, r, r): the polar factors U V^T."""
    U, _, Vh = torch.linalg.svd(M)
    nearest: Tensor = U @ Vh
    return nearest
