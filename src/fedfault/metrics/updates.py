"""How much the clients of a round disagree, measured on weight changes (LoRA factors multiplied out)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedfault.algebra import gram
from fedfault.types import Layout


def update_metrics(layout: Layout, start: Tensor, flat: Tensor) -> tuple[dict[str, float], list[float]]:
    """Divergence of client updates D_i, unweighted: start (P,), flat (K, P) -> named numbers, and the K norms |D_i|.

    update_norm         |mean D|
    update_divergence   U1: mean_i |D_i - mean D| / |mean D|
    update_cosine       1 - U2: mean_i cos(D_i, mean D)
    pairwise_cosine     1 - U3: mean of cos(D_i, D_j) over i != j
    gradient_diversity  U4: sum |D_i|^2 / |sum D_i|^2, 1/K when all agree (Yin et al., arXiv 1706.05699)

    With one client only `update_norm` is defined; ratios over a zero norm are left out. At small batch sizes the cosines
    are near zero for IID clients too: compare with an IID run, not with one.
    """
    products = gram(layout, start, flat)  # (K, K)
    K = len(products)
    norms = products.diagonal().clamp(min=0).sqrt()
    to_mean, mean2 = products.mean(1), float(products.mean())  # <D_i, mean D>, |mean D|^2
    found = {"update_norm": math.sqrt(max(mean2, 0.0))}
    if K > 1 and mean2 > 0 and bool((norms > 0).all()):
        apart = (norms**2 - 2 * to_mean + mean2).clamp(min=0).sqrt()
        unit = products / norms[:, None] / norms[None, :]
        found["update_divergence"] = float(apart.mean()) / math.sqrt(mean2)
        found["update_cosine"] = float((to_mean / norms).mean()) / math.sqrt(mean2)
        found["pairwise_cosine"] = float((unit.sum() - unit.diagonal().sum()) / (K * (K - 1)))
        found["gradient_diversity"] = float((norms**2).sum()) / (K * K * mean2)
    finite = {name: value for name, value in found.items() if math.isfinite(value)}
    return finite, torch.nan_to_num(norms, nan=math.inf).tolist()
