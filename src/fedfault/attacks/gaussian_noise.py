"""Gaussian noise in the place of an update."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.registry import register
from fedfault.types.attack import Attack, Changes


@register("attack", cite=("blanchard2017krum",))
def gaussian_noise(*, factor: Annotated[float, Field(gt=0)] = 1.0) -> Attack:
    """Gaussian noise (Blanchard et al., NeurIPS 2017): a random direction, `factor` times as long as the client's change.

    factor: how many times as long as the client's change

    Reference: arXiv 1703.02757.
    """

    def forge(got: Changes) -> Tensor:
        noise = torch.randn(got.own.shape, generator=got.generator, dtype=got.own.dtype).to(got.own.device)
        noise = noise.where(got.own != 0, 0.0)  # what is not trained is not sent
        length = got.own.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True).clamp(min=1e-30)
        sent: Tensor = factor * length * noise
        return sent

    return Attack(forge=forge)
