"""Clients' changes as points of a space, and the step that a combination of them makes.

A rule that looks at distances and angles only needs the Gram matrix of the changes, and its result is the server's model
and c_k times the change of client k. In which numbers a change is measured is the `Space`:

    factors    y_k - x, number by number. (B Q)(Q^T A) is another point than B A, though it is the same model
    products   s (B_k A_k - B A) on a LoRA site, y_k - x on what is trained in full: the change of the model itself

Slices that a client does not have do not change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fedfault.algebra import WIDE, fresh_factors, gram, mask, stack, svd, to_float64, write_factors
from fedfault.types.adapter import Adapter, Pair, Site
from fedfault.types.algorithm import Pooled, Uploads

Space = Literal["factors", "products"]
TRAITS = {"factors": frozenset({"robust"}), "products": frozenset({"robust", "refactors"})}


def find_gram(got: Uploads, space: Space) -> Tensor:
    """Inner products of the clients' changes: (K, K) float64 on the CPU."""
    start = _expand_start(got)
    if space == "products":
        return gram(got.sent.layout, start, got.sent.flat).cpu()
    out = torch.zeros(len(start), len(start), dtype=torch.float64)
    for y, x in zip(_split(got.sent.flat), _split(start), strict=True):
        change = to_float64(y) - to_float64(x)
        out += (change @ change.T).cpu()
    return out


def find_distances(G: Tensor) -> Tensor:
    """Squared distances between points from their Gram matrix: (K, K) -> (K, K).

    >>> find_distances(torch.tensor([[1.0, 0.0], [0.0, 4.0]])).tolist()
    [[0.0, 5.0], [5.0, 0.0]]
    """
    return (G.diagonal()[:, None] + G.diagonal() - 2 * G).clamp(min=0)


def find_distances_from(G: Tensor, c: Tensor) -> Tensor:
    """Distances of the points from sum_k c_k times point k: Gram matrix (K, K), c (K,) -> (K,)."""
    return (G.diagonal() - 2 * G @ c + c @ G @ c).clamp(min=0).sqrt()


def take_step(got: Uploads, c: Tensor, space: Space) -> Pooled:
    """Go from the server's model by c_k times the change of each client k: c (K,) float64.

    Products are summed up exactly and factorised anew, at the layout's rank. The weights in the result are c.
    """
    x, start = to_float64(got.before.flat), _expand_start(got)
    parts = zip(_split(got.sent.flat), _split(start), strict=True)
    step = torch.cat([c.to(x.device) @ (to_float64(y) - to_float64(b)) for y, b in parts])
    pooled = replace(got.before, flat=(x + step.to(x.device)).to(got.before.flat))
    if space == "products":
        refactor(got, pooled, {s.name: _sum_products(got, c, s) for s in pooled.layout.lora})
    return Pooled(pooled, weight=c)


def refactor(got: Uploads, pooled: Adapter, products: dict[str, Pair]) -> None:
    """Write products (d_out, R) (R, d_in), by the name of their LoRA site, into an adapter (P,), in place.

    The largest components that the rank holds; one of size zero gets B = 0 and a new A, since with both zero it would never
    train again.
    """
    fresh_factors(pooled.layout, pooled.flat, "robust", got.round, seed=got.seed)
    for site in pooled.layout.lora:
        write_factors(pooled.layout.pair(pooled.flat, site), *svd(products[site.name]))


def find_product_changes(got: Uploads, site: Site) -> Tensor:
    """The changes B_k A_k - B A of a LoRA site, dense and without the scaling: (K, d_out, d_in) float64."""
    (A, B), (a, b) = (got.sent.layout.pair(to_float64(flat), site) for flat in (got.sent.flat, _expand_start(got)))
    return B @ A - b @ a


def _sum_products(got: Uploads, c: Tensor, site: Site) -> Pair:
    """B A + sum_k c_k (B_k A_k - B A) of a LoRA site as one product of (K + 1) r slices."""
    layout, r = got.sent.layout, site.shape[0]
    A, B = layout.pair(to_float64(got.before.flat), site)
    theirs = stack(layout.pair(got.sent.flat, site), c, got.ranks)
    kept = 1 - ((torch.arange(r) < got.ranks[:, None]).double() * c[:, None]).sum(0)  # (r,) of the server's slices
    return Pair(torch.cat([A, theirs.A]), torch.cat([B * kept.to(B.device), theirs.B], dim=1))


def _expand_start(got: Uploads) -> Tensor:
    """What each client started from, (K, P): the server's numbers, without the slices that it does not have."""
    has = mask(got.sent.layout, got.ranks).to(got.before.flat.device)
    return got.before.flat.where(has, got.before.flat.new_zeros(()))


def _split(flat: Tensor) -> tuple[Tensor, ...]:
    """Columns that are in float64 at a time."""
    parts: tuple[Tensor, ...] = flat.split(max(1, WIDE // max(1, len(flat))), dim=1)
    return parts
