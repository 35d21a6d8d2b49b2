"""What SCAFFOLD and FedDyn share: a variable of the server that is the weighted mean of one that every client keeps."""

from __future__ import annotations

import torch

from fedfault.types import State


def off_the_mean(state: State, server: str, clients: str) -> str | None:
    """A sentence if the server's variable is not sum_i p_i of the clients' over ALL clients, p_i = n_i / sum_j n_j.

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
