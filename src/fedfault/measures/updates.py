"""Measures of how the updates and gradients of clients lie to one another, from their inner products. Needs no torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SHOWN = 24  # clients of a cohort whose pairs are recorded one by one


@np.errstate(over="ignore", invalid="ignore")
def cosines(products: Any) -> np.ndarray:
    """Cosines (n, n) from inner products (n, n), NaN in rows and columns of zero norm.

    >>> cosines([[4.0, 3.0], [3.0, 9.0]]).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    products = np.asarray(products, dtype=np.float64)
    norm = np.sqrt(products.diagonal().clip(min=0))
    norm = np.where(norm > 0, norm, np.nan)
    found: np.ndarray = (products / norm[:, None] / norm[None, :]).clip(-1, 1)
    return found


@np.errstate(over="ignore", invalid="ignore")  # of updates that explode: what is not finite is left out
def update_metrics(products: Any) -> dict[str, float]:
    """How far client updates diverge, unweighted, from their inner products <D_i, D_j> (K, K).

    update_norm         |mean D|
    update_divergence   U1: mean_i |D_i - mean D| / |mean D|
    update_cosine       1 - U2: mean_i cos(D_i, mean D)
    pairwise_cosine     1 - U3: mean of cos(D_i, D_j) over i != j
    gradient_diversity  U4: sum |D_i|^2 / |sum D_i|^2, 1/K when all agree (Yin et al., arXiv 1706.05699)

    With one client only `update_norm` is defined; ratios over a zero norm are left out. At small batch sizes the cosines
    are near zero for IID clients too: compare with an IID run, not with one.
    """
    products = np.asarray(products, dtype=np.float64)
    K = len(products)
    norms = np.sqrt(products.diagonal().clip(min=0))
    to_mean, mean2 = products.mean(axis=1), float(products.mean())  # <D_i, mean D>, |mean D|^2
    found = {"update_norm": math.sqrt(max(mean2, 0.0))}
    if K > 1 and mean2 > 0 and bool((norms > 0).all()):
        apart = np.sqrt((norms**2 - 2 * to_mean + mean2).clip(min=0))
        unit = cosines(products)
        found["update_divergence"] = float(apart.mean()) / math.sqrt(mean2)
        found["update_cosine"] = float((to_mean / norms).mean()) / math.sqrt(mean2)
        found["pairwise_cosine"] = float((unit.sum() - unit.diagonal().sum()) / (K * (K - 1)))
        found["gradient_diversity"] = float((norms**2).sum()) / (K * K * mean2)
    return {name: value for name, value in found.items() if math.isfinite(value)}


@np.errstate(over="ignore", invalid="ignore")
def gradient_variance(products: Any, noise: Any) -> dict[str, float]:
    """How far clients' gradients vary, from two estimates g_i1, g_i2 of each at one point.

    products: <g_i1, g_j2> (K, K); noise: |g_i1 - g_i2|^2 (K,)

    drift_between   V_b = mean_i <g_i1, g_i2> - mean_{i != j} <g_i1, g_j2>, unbiased for the variance between clients
    drift_within    V_w = mean |g_i1 - g_i2|^2 / 2, the variance of one estimate
    gradient_norm_variance, gradient_norm_cv   over clients, of |grad f_i| = sqrt(max(<g_i1, g_i2>, 0))

    Nothing for fewer than two clients. Two whose gradients are 3 and -1, without noise: V_b = (9 + 1) / 2 - (-3).

    >>> gradient_variance([[9.0, -3.0], [-3.0, 1.0]], [0.0, 0.0])["drift_between"]
    8.0
    """
    products, noise = np.asarray(products, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    k = len(products)
    if k < 2:
        return {}
    norm = np.sqrt(products.diagonal().clip(min=0))
    own, whole = float(products.diagonal().sum()), float(products.sum())
    found = {
        "gradient_norm_variance": float(norm.var(ddof=1)),
        "drift_between": own / k - (whole - own) / (k * (k - 1)),
        "drift_within": float(noise.mean() / 2),
    }
    return found | ({"gradient_norm_cv": float(norm.std(ddof=1) / norm.mean())} if float(norm.mean()) > 0 else {})


def gradient_alignment(products: Any) -> dict[str, float]:
    """The cosine of the clients' mean update with the descent direction; empty where the gradient's length is not known.

    products: inner products (3, 3) of the mean update D and of the mean gradients g_1, g_2 of both halves. The cosine is
    -<D, g_1 + g_2> / 2 / |D| / |g| with |g|^2 = <g_1, g_2>, which is not known where it is no more than the squared noise of
    the mean of both halves, |g_1 - g_2|^2 / 4 on average. Above it the estimate can exceed a cosine's bounds by chance, and
    is cut at them.

    >>> gradient_alignment([[4.0, -4.0, -2.0], [-4.0, 5.0, 3.0], [-2.0, 3.0, 2.0]])  # D = (2, 0), g = (-2, 1), (-1, 1)
    {'gradient_alignment': 0.8660254037844387}
    """
    products = np.asarray(products, dtype=np.float64)
    length = float(products[1, 2])
    squared = length * float(products[0, 0])
    if not (squared > 0 and length > float(products[1, 1] + products[2, 2] - 2 * length) / 4):
        return {}
    cosine = -float(products[0, 1] + products[0, 2]) / 2 / math.sqrt(squared)
    return {"gradient_alignment": max(-1.0, min(1.0, cosine))}
