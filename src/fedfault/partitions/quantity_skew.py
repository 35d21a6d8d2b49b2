"""Clients of unequal size that draw from the same mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedfault.dealing.owners import apportioned, check, grouped, log_dirichlet, shares
from fedfault.registry import register
from fedfault.types.corpus import Deal, Document, Partition

STEPS = "with local_epochs a client's steps grow with its size; with local_steps all take the same number"


@register("partition")
def quantity_skew(
    *,
    law: Literal["dirichlet", "lognormal"] = "dirichlet",
    alpha: Annotated[float, Field(ge=1e-9, le=1e9)] = 0.5,
    sigma: Annotated[float, Field(ge=0, le=20)] = 2.0,
    min_samples: int = 1,
) -> Partition:
    """Clients of unequal size, the same mixture of topics for all.

    dirichlet: sizes ~ Dir(alpha, ..., alpha); the smaller `alpha`, the more unequal. lognormal: sizes ~ exp(sigma z)
    with z standard normal, as FedProx has them with sigma 2. Every client gets `min_samples` beforehand and the sizes share
    out the rest, so that no draw is refused. Which documents a client gets is random.

    Reference: Li, Diao, Chen and He, ICDE 2022 (dirichlet); Li et al., MLSys 2020, appendix C.1 (lognormal).
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        n = len(documents)
        check(n, num_clients, min_samples)

        if law == "dirichlet":
            logs = log_dirichlet(np.full(num_clients, alpha), generator)
        else:
            logs = sigma * generator.standard_normal(num_clients)
        sizes = min_samples + apportioned(n - num_clients * min_samples, shares(logs))
        owner = generator.permutation(np.repeat(np.arange(num_clients), sizes))
        return Deal(grouped(owner, num_clients), notes=(STEPS,))

    return partition
