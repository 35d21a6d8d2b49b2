"""Coordinate-wise median: every number becomes the median of what clients sent."""

from __future__ import annotations

from fedfault.registry import register
from fedfault.robustness.changes import TRAITS, Space
from fedfault.robustness.order import find_median, locate_values
from fedfault.types.algorithm import Aggregation


@register("aggregation", cite=("yin2018robust",))
def coordinate_median(*, space: Space = "factors") -> Aggregation:
    """Coordinate-wise median (Yin et al., ICML 2018): any minority of hostile clients cannot carry a number away.

    Clients count alike, whatever they say of their sizes. factors: of A and of B number by number, over the clients
    that have the slice, which is not the median of B A. products: of the changes of B A entry by entry, factorised
    anew at the rank of the server, of which d_out x d_in numbers a client are formed, one site at a time.

    space: where changes are compared: the LoRA factors as they are, or their products, which are the change of the
      weights

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("coordinate_median")  # of two the mean, as in FedIT
    6.0
    >>> combine_two_clients(("coordinate_median", {"space": "products"}))  # (2 * 1 + 4 * 3) / 2
    7.0

    Reference: arXiv 1803.01498.
    """
    return Aggregation(
        lambda got: locate_values(got, find_median, space),
        traits=TRAITS[space],
        tolerates=lambda K: (K - 1) // 2,
        least=3,
    )
