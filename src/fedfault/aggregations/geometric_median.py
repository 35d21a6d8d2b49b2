"""Geometric median (RFA): the point from which the sum of distances to all clients is smallest."""

from __future__ import annotations

from torch import Tensor

from fedfault.registry import register
from fedfault.robustness.changes import TRAITS, Space, find_distances, find_distances_from, find_gram, take_step
from fedfault.types.algorithm import Aggregation, Pooled, Uploads

SMOOTHING = 1e-6  # of distances, in units of the median distance between clients
STEPS, ENOUGH = 1000, 1e-9  # Weiszfeld's steps at most, and the length of one at which they end, in the same units


@register("aggregation", cite=("pillutla2022rfa",))
def geometric_median(*, space: Space = "factors") -> Aggregation:
    """RFA (Pillutla et al., IEEE TSP 2022): the geometric median of what clients send, by smoothed Weiszfeld steps.

    z = argmin_z sum_k |y_k - z|: any minority of hostile clients moves it by a bounded distance. Weiszfeld's weights
    c_k ~ 1 / |y_k - z| are iterated until they stand, where the paper stops after a few; they are the weights in the
    records. Clients count alike, whatever they say of their sizes (the paper weighs them). `space` as in krum.

    space: where changes are compared: the LoRA factors as they are, or their products, which are the change of the
      weights

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("geometric_median")  # any point between two: their mean, as in FedIT
    6.0

    Reference: arXiv 1912.13445.
    """

    def combine(got: Uploads) -> Pooled:
        return take_step(got, find_weights(find_gram(got, space)), space)

    return Aggregation(combine, traits=TRAITS[space], tolerates=lambda K: (K - 1) // 2, least=3)


def find_weights(G: Tensor) -> Tensor:
    """Weiszfeld's weights of points from their Gram matrix: (K, K) -> (K,), sum 1.

    >>> import torch
    >>> G = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # two are at one place
    >>> [round(c, 6) for c in find_weights(G).tolist()]
    [0.5, 0.5, 0.0]
    """
    apart = find_distances(G).sqrt().median(1).values  # of each point from the others: a minority cannot make it small
    unit = float(apart.median()) + 1e-30
    c = _share(1 / apart.clamp(min=SMOOTHING * unit))
    for _ in range(STEPS):
        before, c = c, _share(1 / find_distances_from(G, c).clamp(min=SMOOTHING * unit))
        if float((c - before) @ G @ (c - before)) < (ENOUGH * unit) ** 2:
            break
    return c


def _share(weight: Tensor) -> Tensor:
    return weight / weight.sum()
