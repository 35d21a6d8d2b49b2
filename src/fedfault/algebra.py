"""Arithmetic on adapters: averages in double precision, inner products of weight changes without forming them."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfault.types import Adapter, Layout


def mean(x: Adapter, weight: Tensor) -> Adapter:
    """Weighted average over a cohort: flat (K, P), weight (K,) -> flat (P,), sum_k p_k x_k, p = weight / sum(weight).

    Accumulates in float64 and rounds once. Averages the parameters, not the changes: x + (y - x) is not y in floating
    point, so only this form gives back one client's parameters unchanged.

    >>> layout = Layout((), 1.0)
    >>> mean(Adapter(layout, torch.tensor([[1.0], [4.0]])), torch.tensor([2.0, 1.0])).flat
    tensor([2.])
    """
    flat = _wide(x.flat)
    p = (weight.double() / weight.double().sum()).to(flat.device)
    return Adapter(x.layout, (p @ flat).to(x.flat))


def _wide(flat: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none (mps)."""
    return (flat.cpu() if flat.device.type == "mps" else flat).double()


def gram(layout: Layout, start: Tensor, flat: Tensor) -> Tensor:
    """Inner products of the clients' weight changes: start (P,), flat (K, P) -> (K, K) in float64.

    The change of client i is D_i = s (B_i A_i - B_0 A_0) on a LoRA site and y_i - x on a full one. It is never formed:
    <B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T)), so that a site costs O(K^2 r^2 (d_in + d_out)).
    """
    both = _wide(torch.cat([flat, start[None]]))  # (K + 1, P), the starting point last
    change = torch.zeros(len(both), len(both), dtype=torch.float64, device=both.device)
    for site in layout.sites:
        if site.kind == "full":
            part = layout.part(both, site).flatten(1)
            part = part - part[-1]
            change += part @ part.T
        else:
            A, B = layout.pair(both, site)
            left = torch.einsum("ida,jdb->ijab", B, B)
            right = torch.einsum("iad,jbd->ijab", A, A)
            whole = layout.scaling**2 * (left * right).sum((-1, -2))  # <W_i, W_j>
            change += whole - whole[-1:] - whole[:, -1:] + whole[-1, -1]
    return change[:-1, :-1]
