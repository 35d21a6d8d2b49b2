"""Free riders: clients that send back what they got."""

from __future__ import annotations

from fedfault.registry import register
from fedfault.types.attack import Attack


@register("attack", cite=("lin2019freeriders",))
def free_rider() -> Attack:
    """Free riders (Lin et al., 2019): hostile clients do no work and send back the model that they got.

    They still count with their weight, so that the average goes less far. Reference: arXiv 1911.12560.
    """
    return Attack(forge=lambda got: 0 * got.own)
