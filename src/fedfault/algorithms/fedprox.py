"""FedProx: local training that is held back towards where it started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from fedfault.algorithms.fedavg import fedavg
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, ExtraTerms, Message, Pull, Train


def proximal_gradient(mu: float) -> Pull:
    """The gradient of (mu / 2) |y - x|^2 with respect to y."""
    return lambda y, x, rows: mu * (y - x)  # (k, P)


@register("algorithm", cite=("li2020fedprox",))
def fedprox(
    *,
    mu: Annotated[float, Field(ge=0)] = 0.01,  # of the authors' grid 0.001, 0.01, 0.1, 1; they name no best
    mode: Literal["grad", "decoupled"] = "grad",
) -> Algorithm:
    """FedProx (Li et al., MLSys 2020): each client also minimises (mu/2) |y - x|^2, x being where it started.

    grad (the paper, eq. 2): y <- y - lr (g(y) + mu (y - x)); the proximal gradient is added to the clipped one. AdamW
    divides it by sqrt(v) like any gradient, so that mu no longer says how strong the pull is; decoupled does, as in
    decoupled weight decay: after the optimiser's step, y <- y - lr mu (y - x).

    On quadratics with K -> infinity steps, clients with curvature H_i and optimum b_i end rounds at the fixed point
    (sum_i p_i P_i)^-1 sum_i p_i P_i b_i with P_i = (H_i + mu)^-1 H_i: the mean of the b_i for mu -> 0, the optimum of the
    federation only for mu -> infinity. mu = 0 is FedAvg bit for bit. Partial work of slow clients counts.

    mu: the weight of the proximal term: how strongly a client is held to where it started; 0 is FedAvg
    mode: where the pull acts: in the gradient, as in the paper, or after the optimiser's step, like decoupled weight
      decay

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients(("fedprox", {"mu": 1.0}), steps=2)  # (2.7 - 0.24 + 3.1 + 0.08) / 2; FedAvg is at 2.81
    [2.82]

    Reference: arXiv 1812.06127.
    """
    pull = proximal_gradient(mu)
    held_back = ExtraTerms(gradient=pull) if mode == "grad" else ExtraTerms(step=pull)

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        local = train(got["x"], held_back)
        return {"x": local.adapter, "n": local.weight}, memory

    return replace(fedavg(), client=client) if mu else fedavg()
