"""Clients of unequal size that draw from the same mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedfault.dealing.owners import apportion, check_request, draw_log_dirichlet, group_positions, normalise_logs
from fedfault.registry import register
from fedfault.types.corpus import Deal, Document, Partition

STEPS = "with local_epochs a client's steps grow with its size; with local_steps all take the same number"


@register("partition", cite=("li2022silos",))
def quantity_skew(
    *,
    law: Literal["dirichlet", "lognormal"] = "dirichlet",
    alpha: Annotated[float, Field(ge=1e-9, le=1e9)] = 0.5,
    sigma: Annotated[float, Field(ge=0, le=20)] = 2.0,
    min_samples: int = 1,
) -> Partition:
    """Clients have unequal sizes and the same mixture of topics.

    dirichlet: sizes ~ Dir(alpha, ..., alpha); the smaller `alpha`, the more unequal. lognormal: sizes ~ exp(sigma z)
    with z standard normal, as FedProx has them with sigma 2. Every client gets `min_samples` beforehand and the sizes share
    out the rest, so that no draw is refused. Which documents a client gets is random.

    law: the distribution that sizes are drawn from
    alpha: of the Dirichlet distribution: the smaller, the more unequal
    sigma: of the log-normal distribution: the larger, the more unequal
    min_samples: documents that every client gets at least

    >>> documents = [Document("text", topic) for topic in "abababababab"]
    >>> deal = quantity_skew(alpha=0.1)(documents, 3, np.random.default_rng(0))
    >>> ["".join(documents[i].topic for i in own) for own in deal.clients]
    ['ababaa', 'baabb', 'b']

    Reference: Li, Diao, Chen and He, ICDE 2022 (dirichlet); Li et al., MLSys 2020, appendix C.1 (lognormal).
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        n = len(documents)
        check_request(n, num_clients, min_samples)

        if law == "dirichlet":
            logs = draw_log_dirichlet(np.full(num_clients, alpha), generator)
        else:
            logs = sigma * generator.standard_normal(num_clients)
        sizes = min_samples + apportion(n - num_clients * min_samples, normalise_logs(logs))
        owner = generator.permutation(np.repeat(np.arange(num_clients), sizes))
        return Deal(group_positions(owner, num_clients), notes=(STEPS,))

    return partition
