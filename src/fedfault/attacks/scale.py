"""Scaled updates: a change that is many times as long, or goes the other way."""

from __future__ import annotations

from fedfault.registry import register
from fedfault.types.attack import Attack


@register("attack", cite=("bagdasaryan2020backdoor",))
def scale(*, factor: float = 10.0) -> Attack:
    """Scaled updates (Bagdasaryan et al., AISTATS 2020): hostile clients send `factor` times their change.

    With K clients of equal weight, factor K puts the attacker's model in the place of the average (model replacement).

    factor: how many times the client's change

    Reference: arXiv 1807.00459.
    """
    return Attack(forge=lambda got: factor * got.own)
