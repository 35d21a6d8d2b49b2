"""FLTrust: a client that the server trusts says which updates count, and how far they go."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fedfault.registry import register
from fedfault.robustness.changes import TRAITS, Space, find_gram, take_step
from fedfault.types.algorithm import Aggregation, Pooled, Uploads


@register("aggregation", cite=("cao2021fltrust",))
def fltrust(*, trusted: Annotated[int, Field(ge=0)] = 0, space: Space = "factors") -> Aggregation:
    """FLTrust (Cao et al., NDSS 2021): updates count by their cosine to a trusted one, at its length; opposite ones do not.

    The trusted update is that of client `trusted`, where the paper has a server that trains on clean data of its own. While
    that client is honest, any number of hostile ones move the model by its length at most; if it is hostile, the model is
    its own. In a round without it nobody is trusted and the model stays: all weights in the records are 0. Honest clients
    whose data differ from the trusted one's are heard less. `space` as in krum.

    trusted: the number of the client whose update the others are compared with
    space: where changes are compared: the LoRA factors as they are, or their products, which are the change of the
      weights

    >>> from fedfault.testing.toys import combine_two_clients
    >>> combine_two_clients("fltrust")  # client 0 has A, B = 1, 2; the other one is cut to that length
    2.2164

    Reference: arXiv 2012.13995.
    """

    def combine(got: Uploads) -> Pooled:
        G = find_gram(got, space)
        ids = list(got.clients or range(len(G)))
        if trusted not in ids:
            return take_step(got, G.new_zeros(len(G)), space)
        root, norms = ids.index(trusted), G.diagonal().clamp(min=torch.finfo(G.dtype).tiny).sqrt()
        trust = (G[root] / norms / norms[root]).clamp(0, 1)
        trust[root] = 1.0
        return take_step(got, trust / trust.sum() * norms[root] / norms, space)

    return Aggregation(combine, traits=TRAITS[space], tolerates=lambda K: 0, trusted=trusted)
