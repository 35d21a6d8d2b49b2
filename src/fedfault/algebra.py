"""Arithmetic on adapters: averages in double precision, inner products of weight changes without forming them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fedfault.seeds import torch_rng
from fedfault.types.adapter import Adapter, Layout, Pair
from fedfault.types.algorithm import State

NO_FLOAT64 = ("mps",)  # devices that refuse it
WIDE = 2**24  # numbers of a cohort that are in float64 at a time: 128 MiB


def mean(x: Adapter, weight: Tensor) -> Adapter:
    """Weighted average over a cohort: flat (K, P), weight (K,) -> flat (P,), sum_k p_k x_k, p = weight / sum(weight).

    Accumulates in float64 and rounds once. Averages the parameters, not the changes: x + (y - x) is not y in floating
    point, so only this form gives back one client's parameters unchanged.

    >>> layout = Layout((), 1.0)
    >>> mean(Adapter(layout, torch.tensor([[1.0], [4.0]])), torch.tensor([2.0, 1.0])).flat
    tensor([2.])
    """
    columns = max(1, WIDE // max(1, len(x.flat)))
    parts = (to_float64(part) for part in x.flat.split(columns, dim=1))
    return Adapter(x.layout, torch.cat([(shares(weight).to(part.device) @ part).to(x.flat) for part in parts]))


def shares(weight: Tensor) -> Tensor:
    """p = weight / sum(weight) in float64: (K,) -> (K,)."""
    p: Tensor = weight.double() / weight.double().sum()
    return p


def widest(device: torch.device) -> torch.dtype:
    """The type to add many numbers up in on a device: float64, where it has that."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


def to_float64(flat: Tensor) -> Tensor:
    """Convert to float64, on the CPU where the device has none."""
    return (flat.cpu() if flat.device.type in NO_FLOAT64 else flat).double()


def place(kept: Tensor, device: torch.device) -> Tensor:
    """Put a tensor on a device; float64 stays on the CPU where the device has none."""
    return kept if kept.dtype == torch.float64 and device.type in NO_FLOAT64 else kept.to(device)


def zeros(x: Adapter) -> Adapter:
    """An adapter of zeros."""
    return Adapter(x.layout, torch.zeros_like(x.flat))


def mask(layout: Layout, ranks: Tensor) -> Tensor:
    """Mark the numbers that a client of a rank has: ranks (K,) -> (K, P) bool; first slices of A and B, and full sites."""
    columns = [torch.ones(len(ranks), 0, dtype=torch.bool)]
    for site in layout.sites:
        if site.kind == "full":
            columns.append(torch.ones(len(ranks), site.size, dtype=torch.bool))
        else:
            r, d_in, d_out = site.shape
            active = torch.arange(r) < ranks[:, None]  # (K, r)
            columns += [active.repeat_interleave(d_in, 1), active.repeat(1, d_out)]  # A (r, d_in), B (d_out, r)
    return torch.cat(columns, dim=1)


def mask_factor(layout: Layout, name: Literal["A", "B"]) -> Tensor:
    """Mark the numbers of the factor A, or B, of LoRA sites: (P,) bool."""
    out = torch.zeros(layout.size, dtype=torch.bool)
    for site in layout.sites:
        if site.kind == "lora":
            getattr(layout.pair(out, site), name).fill_(True)
    return out


def mask_lora(layout: Layout) -> Tensor:
    """Mark the numbers of LoRA sites: (P,) bool."""
    return mask_factor(layout, "A") | mask_factor(layout, "B")


def fresh_factors(layout: Layout, flat: Tensor, *stream: str | int, seed: int) -> None:
    """Write A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), as PEFT has it, and B = 0 into every LoRA site of flat (P,), in place.

    `stream` names the random stream, so that all who know the seed draw the same.
    """
    for site in layout.sites:
        if site.kind == "lora":
            A, B = layout.pair(flat, site)
            bound = 1 / math.sqrt(A.shape[-1])
            drawn = torch.empty(A.shape).uniform_(-bound, bound, generator=torch_rng(seed, *stream, site.name))
            A.copy_(drawn)
            B.zero_()


def gram(layout: Layout, start: Tensor, flat: Tensor) -> Tensor:
    """Inner products of the clients' weight changes: start (P,) or (K, P), flat (K, P) -> (K, K) in float64.

    The change of client i is D_i = s (B_i A_i - B_0 A_0) on a LoRA site and y_i - x on a full one. It is never formed:
    <B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T)), so that a site costs O(K^2 r^2 (d_in + d_out)).
    """
    K = len(flat)
    starts = start[None] if start.ndim == 1 else start
    change = torch.zeros(K, K, dtype=torch.float64, device=to_float64(flat[:0]).device)
    for site in layout.sites:
        if site.kind == "full":
            part = (to_float64(layout.part(flat, site)) - to_float64(layout.part(starts, site))).flatten(1)
            change += part @ part.T
        else:
            # (K + 1, ...) or (2 K, ...)
            A, B = (
                to_float64(torch.cat(both))
                for both in zip(layout.pair(flat, site), layout.pair(starts, site), strict=True)
            )
            left = torch.einsum("ida,jdb->ijab", B, B)
            right = torch.einsum("iad,jbd->ijab", A, A)
            whole = layout.scale(site) ** 2 * (left * right).sum((-1, -2))  # <W_i, W_j>, starts included
            change += whole[:K, :K] - whole[K:, :K] - whole[:K, K:] + whole[K:, K:]
    return change


def inner(one: Pair, other: Pair) -> Tensor:
    """<B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T)): two products' inner product without forming them, batched, (...)."""
    return ((one.B.mT @ other.B) * (one.A @ other.A.mT)).sum((-2, -1))


def stack(pair: Pair, weight: Tensor, ranks: Tensor) -> Pair:
    """sum_k w_k B_k A_k as one product, in float64: A (K, r, d_in), B (K, d_out, r), weight (K,), ranks (K,) -> a `Pair`.

        B = [w_1 B_1 | w_2 B_2 | ...]  (d_out, R)      A = [A_1; A_2; ...]  (R, d_in)      R = sum of the ranks

    The weights are in B alone. Of client k only the first ranks_k slices are kept.
    """
    A, B = to_float64(pair.A), to_float64(pair.B)
    kept = (torch.arange(A.shape[1]) < ranks[:, None]).flatten().to(A.device)  # (K r,)
    B = B * weight.double().to(B.device)[:, None, None]
    return Pair(A.flatten(0, 1)[kept], B.transpose(0, 1).flatten(1)[:, kept])


def svd(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """U (d_out, n), S (n,), Vh (n, d_in) of B A, n = min(d_out, R, d_in), from the QR of the factors.

    Costs O(R^2 (d_in + d_out)); the product is never formed. The largest entry of every column of U is positive.
    """
    Qb, Rb = torch.linalg.qr(pair.B)
    Qa, Ra = torch.linalg.qr(pair.A.mT)
    u, S, vh = torch.linalg.svd(Rb @ Ra.mT, full_matrices=False)
    U, Vh = Qb @ u, vh @ Qa.mT
    sign = U.gather(0, U.abs().argmax(0, keepdim=True)).sign()[0]  # (n,)
    return U * sign, S, Vh * sign[:, None]


def write_factors(pair: Pair, U: Tensor, S: Tensor, Vh: Tensor) -> None:
    """Write the largest components of U S V^T into a pair of rank r, in place: B = U S^1/2, A = S^1/2 V^T.

    U (d_out, n), S (n,) falling, Vh (n, d_in). Of components that are zero up to rounding, and of those that r holds beyond
    n, B is set to zero and A stays as it is.
    """
    A, B = pair
    noise = S.max() * max(A.shape[-1], len(B)) * torch.finfo(S.dtype).eps
    n = min(int((noise < S).sum()), len(A))
    B.zero_()
    B[:, :n] = (U[:, :n] * S[:n].sqrt()).to(B)
    A[:n] = (S[:n].sqrt()[:, None] * Vh[:n]).to(A)


def check_mean(state: State, server: str, clients: str) -> str | None:
    """Say how the server's variable differs from sum_i p_i of the clients' over ALL clients, p_i = n_i / sum_j n_j, or None.

    Sums grow by rounding in every round: 0.1 % of the largest client's norm may be missing, and what rounding leaves of
    numbers that were of order one before they got small.
    """
    mine, theirs = state.memory[server].flat, state.clients[clients].flat  # (P,), (N, P)
    p = torch.tensor(state.weights, dtype=torch.float64) / sum(state.weights)
    gap = float((mine - p.to(theirs) @ theirs).norm())
    largest = float(theirs.norm(dim=1).max())
    if gap > 1e-3 * largest + 100 * torch.finfo(theirs.dtype).eps:
        return (
            f"the server's {server} is off the weighted mean of all clients' {clients} by a norm of {gap:.3g} after round "
            f"{state.round} (norm of the server's: {float(mine.norm()):.3g}, of the largest client's: {largest:.3g})"
        )
    return None
