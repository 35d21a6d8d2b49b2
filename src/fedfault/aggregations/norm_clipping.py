"""Norm clipping: the weighted mean of changes that are no longer than a bound."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fedfault.algebra import shares
from fedfault.registry import register
from fedfault.robustness.changes import TRAITS, Space, find_gram, take_step
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("sun2019backdoor",))
def norm_clipping(
    *,
    max_norm: Annotated[float, Field(gt=0)] | None = None,  # None: the median norm of the round's changes
    space: Space = "factors",
) -> Aggregation:
    """Norm clipping (Sun et al., 2019): x + sum_k p_k (y_k - x) min(1, max_norm / |y_k - x|).

    Nobody is left out, and hostile clients still pull where they want to, by a bounded length: enough against scaled
    updates, not against many clients that agree. The weights p_k are those that clients state. `space` as in krum.

    max_norm: how long an update may be; null: as long as the median of the round, the lower one of two in the middle
    space: where changes are compared: the LoRA factors as they are, or their products, which are the change of the
      weights

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients(("norm_clipping", {"max_norm": 1e3}))  # nobody is that long: FedIT
    6.0

    Reference: arXiv 1911.07963.
    """

    def combine(got: Uploads) -> Pooled:
        norms = find_gram(got, space).diagonal().clamp(min=0).sqrt()
        most = float(norms.median()) if max_norm is None else max_norm
        p = shares(got.weight).cpu()
        return take_step(got, p * (most / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1), space)

    return Aggregation(combine, traits=TRAITS[space], weighs=True, tolerates=lambda K: (K - 1) // 2, least=3)
