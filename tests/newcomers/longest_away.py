"""Whoever was not there for the longest time comes next."""

import numpy as np

from fedfault.registry import register
from fedfault.scheduling import Selection


@register("selection")
def longest_away() -> Selection:
    """Clients in turn: those that were asked the longest ago, and before them those that never were."""
    return Selection(
        lambda c, g: np.argsort(c.last, kind="stable")[: c.wanted],
        needs=frozenset({"loss"}),  # when a client was last asked comes with it
        traits=frozenset({"draws by reports"}),
    )
