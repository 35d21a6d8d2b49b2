"""Coordinate-wise trimmed mean: every number becomes the mean of what is left without its smallest and largest values."""

from __future__ import annotations

import functools
import math
from typing import Annotated

from pydantic import Field

from fedfault.registry import register
from fedfault.robustness.changes import TRAITS, Space
from fedfault.robustness.order import find_trimmed_mean, locate_values
from fedfault.types.algorithm import Aggregation


@register("aggregation", cite=("yin2018robust",))
def trimmed_mean(*, trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.2, space: Space = "factors") -> Aggregation:
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018): without the floor(trim K) smallest and largest values.

    It stands as many hostile clients as it cuts off at one end. Clients count alike, whatever they say of their sizes. Where
    ranks differ, K are the clients that have the slice. `space` as in coordinate_median.

    trim: the share of the values that is left out on either side
    space: where changes are compared: the LoRA factors as they are, or their products, which are the change of the
      weights

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("trimmed_mean")  # of two there is nothing to cut off: FedIT
    6.0

    Reference: arXiv 1803.01498.
    """
    located = functools.partial(find_trimmed_mean, trim=trim)
    return Aggregation(
        lambda got: locate_values(got, located, space),
        traits=TRAITS[space],
        tolerates=lambda K: math.floor(trim * K + 1e-9),
        least=math.ceil(1 / trim - 1e-9),
    )
