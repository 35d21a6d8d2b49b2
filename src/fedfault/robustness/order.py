"""Order statistics number by number, over the clients that have the number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedfault.algebra import mask, to_float64
from fedfault.robustness.changes import Space, find_product_changes, refactor
from fedfault.types.adapter import Pair
from fedfault.types.algorithm import Pooled, Uploads

Located = Callable[[Tensor, Tensor], Tensor]  # (values in order (K, M), how many of them count (M,)) -> (M,)
BLOCK = 2**20  # numbers of a row that are sorted at a time


def locate_values(got: Uploads, located: Located, space: Space) -> Pooled:
    """Put every number at a location of what clients sent: of their values, or of the changes of products entry by entry.

    A number that no client has stays as it is.
    """
    layout, has = got.sent.layout, mask(got.sent.layout, got.ranks)
    blocks = zip(got.sent.flat.split(BLOCK, 1), has.split(BLOCK, 1), got.before.flat.split(BLOCK), strict=True)
    flat = torch.cat([_locate_values(*block, located) for block in blocks])
    pooled = replace(got.before, flat=flat.to(got.before.flat))
    if space == "products":
        products = {}
        for site in layout.lora:
            changes = find_product_changes(got, site).sort(0).values.flatten(1)  # (K, d_out d_in)
            A, B = layout.pair(to_float64(got.before.flat), site)
            everybody = torch.full((changes.shape[1],), len(got.ranks), device=changes.device)
            moved = B @ A + located(changes, everybody).view(B.shape[0], A.shape[1])
            products[site.name] = Pair(torch.eye(A.shape[1], dtype=moved.dtype, device=moved.device), moved)
        refactor(got, pooled, products)
    return Pooled(pooled)


def _locate_values(sent: Tensor, has: Tensor, before: Tensor, located: Located) -> Tensor:
    """Locate a block of numbers: sent and has (K, M), before (M,) -> (M,)."""
    values = to_float64(sent)
    has = has.to(values.device)
    n, ordered = has.sum(0), values.masked_fill(~has, torch.inf).sort(0).values  # absent ones come last
    return torch.where(n > 0, located(ordered, n.clamp(min=1)), to_float64(before))


def find_median(ordered: Tensor, n: Tensor) -> Tensor:
    """The median of the first n of every column, the mean of the two in the middle: (K, M), (M,) -> (M,).

    >>> find_median(torch.tensor([[1.0, 1.0], [2.0, 2.0], [9.0, torch.inf]]), torch.tensor([3, 2])).tolist()
    [2.0, 1.5]
    """
    return (ordered.gather(0, ((n - 1) // 2)[None]) + ordered.gather(0, (n // 2)[None]))[0] / 2


def find_trimmed_mean(ordered: Tensor, n: Tensor, trim: float) -> Tensor:
    """The mean of every column's first n without the floor(trim n) smallest and as many largest: (K, M), (M,) -> (M,).

    >>> find_trimmed_mean(torch.tensor([[0.0], [1.0], [2.0], [90.0]]), torch.tensor([4]), 0.25).tolist()
    [1.5]
    """
    cut = (trim * n + 1e-9).floor().long()  # 0.1 * 10 is one
    place = torch.arange(len(ordered), device=ordered.device)[:, None]
    kept = (place >= cut) & (place < n - cut)
    return ordered.where(kept, 0.0).sum(0) / kept.sum(0)
