"""Inner-product manipulation: the honest mean, backwards."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedfault.registry import register
from fedfault.types.attack import Attack, Changes


@register("attack", cite=("xie2020fall",))
def inner_product(*, factor: Annotated[float, Field(gt=0)] = 1.0) -> Attack:
    """Inner-product manipulation (Xie et al., UAI 2020): all hostile clients send minus `factor` times the honest mean.

    A small factor passes rules by distance, and may still turn the average round; the attacker knows all honest changes.

    factor: how many times the honest mean, backwards

    Reference: arXiv 1903.03936.
    """

    def forge(got: Changes) -> Tensor:
        seen = got.honest if len(got.honest) else got.own
        return (-factor * seen.mean(0)).where((got.own != 0).any(0), 0.0).expand(len(got.own), -1)

    return Attack(forge=forge)
