"""Sign flip: the change that training gave, backwards."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedfault.registry import register
from fedfault.types.attack import Attack


@register("attack", cite=("li2019rsa",))
def sign_flip(*, factor: Annotated[float, Field(gt=0)] = 1.0) -> Attack:
    """Sign flip (Li et al., AAAI 2019): hostile clients send minus `factor` times their change.

    factor: how many times the client's change, backwards

    Reference: arXiv 1811.03761.
    """
    return Attack(forge=lambda got: -factor * got.own)
