"""Clipping and Gaussian noise, by which one unit's part in a sum is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfault.algebra import widest
from fedfault.seeds import rng


def clip_rows(rows: Tensor, most: float) -> Tensor:
    """Scale rows (K, P) down to the norm `most`; one that is not finite contributes nothing.

    >>> clip_rows(torch.tensor([[3.0, 4.0], [0.3, 0.4], [float("nan"), 0.0]]), 1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000],
            [0.0000, 0.0000]])
    """
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=widest(rows.device))
    scaled = rows * (most / norm).clamp(max=1).to(rows)
    found: Tensor = scaled.where(norm.isfinite(), 0.0)
    return found


def draw_noise(size: int, std: float, secret: int, *stream: str | int) -> Tensor:
    """Draw (size,) independent Gaussian numbers, float64 on the CPU, that nobody without the secret can draw again."""
    return torch.from_numpy(rng(secret, "noise", *stream).standard_normal(size) * std)
