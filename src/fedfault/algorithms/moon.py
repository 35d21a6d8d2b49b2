"""MOON: a client's representations are to be closer to the server's model than to the client's own model of last time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from fedfault.algebra import zeros
from fedfault.algorithms.fedavg import fedavg
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, ExtraTerms, Message, Train

REFUSES = {
    "folds": "a client's previous adapter is no longer its previous model once the frozen weights have changed",
    "pairs": "its contrast is about one text an example",
    "accumulates": "its contrast is a mean over examples",
    "hides examples": "its contrast is about batches, and single examples are clipped",
}


def contrastive_loss(z: Tensor, z_global: Tensor, z_previous: Tensor, temperature: float) -> Tensor:
    """-log(e^{cos(z, z_g) / T} / (e^{cos(z, z_g) / T} + e^{cos(z, z_p) / T})): (k, B, d) each -> (k,), mean over the batch.

    Rows of padding, whose z is zero, do not count.

    >>> one = torch.tensor([[[1.0, 0.0]]])
    >>> contrastive_loss(one, one, one, 0.5).exp()
    tensor([2.])
    """
    near, far = (cosine_similarity(z, other, dim=-1) for other in (z_global, z_previous))  # (k, B)
    real = (z != 0).any(-1)
    return (softplus((far - near) / temperature) * real).sum(1) / real.sum(1).clamp(min=1)


@register("algorithm", cite=("li2021moon",))
def moon(
    *,
    mu: Annotated[float, Field(ge=0)] = 1.0,  # the authors' code; the paper tunes it over 0.1, 1, 5, 10
    temperature: Annotated[float, Field(gt=0)] = 0.5,  # Li et al. 2021, section 4.1
) -> Algorithm:
    """MOON (Li et al., CVPR 2021): local loss + mu times a contrast between the server's and the client's previous model.

    loss_con = -log(e^{cos(z, z_g) / T} / (e^{cos(z, z_g) / T} + e^{cos(z, z_p) / T})) with z, z_g and z_p the representation
    of an example under y, under the server's x and under what the client trained when it last took part. For a language
    model it is the mean of the last hidden states over target positions, without a projection head. When a client takes
    part for the first time, z_p = z_g: loss_con = log 2 has no gradient, and the round is FedAvg's. Each step costs two
    more forward passes.

    mu: the weight of the contrast
    temperature: the smaller, the sharper the contrast

    >>> here, before = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.0]]])
    >>> round(contrastive_loss(here, here, before, temperature=0.5).item(), 4)  # log(1 + e^-4): far from the previous model
    0.0181

    Reference: arXiv 2103.16257, equation 3.
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        before = memory["previous"].flat  # (K, P), zero until the client has taken part
        x = got["x"].flat.expand_as(before)
        previous = torch.where(before.any(1, keepdim=True), before, x)

        def contrast(z: Tensor, see: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
            return mu * contrastive_loss(z, see(x[rows]), see(previous[rows]), temperature)

        local = train(got["x"], ExtraTerms(loss=contrast))
        return {"x": local.adapter, "n": local.weight}, {"previous": local.adapter}

    return replace(
        fedavg(),
        client=client,
        init_client=lambda x: {"previous": zeros(x)},
        whole=frozenset({"previous"}),
        refuses=REFUSES,
    )
