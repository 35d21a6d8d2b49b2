"""FedNova: changes of clients that took unequal numbers of steps are made comparable before they are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.algorithms.fedavg import fedavg
from fedfault.algorithms.fedprox import proximal_gradient
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, Average, ExtraTerms, Message, State, Train, stands

REFUSES = {
    "refactors": "normalising rescales the way from x to the average, which needs both in the same numbers",
    "folds": "what it adds belongs to the plain average, and normalising takes a longer or shorter step",
    "reweighs": "normalising by steps holds for the weights p_k that it is derived with",
    "robust": "normalising by steps holds for the weighted mean, which it is derived with",
}


def accumulate_decay(tau: Tensor, decay: float) -> Tensor:
    """|a_i|_1 = 1 + decay + ... + decay^(tau_i - 1), the weight of all of a client's gradients: tau (K,) -> (K,) float64.

    Step k's gradient reaches y_i multiplied by decay^(tau_i - 1 - k), because the proximal term shrinks what was there
    before by 1 - lr mu; without it, decay is 1 and |a_i|_1 the number of steps.
    """
    tau = tau.clamp(min=1).long()  # a client without a step has moved nowhere: any weight will do
    powers = abs(decay) ** torch.arange(int(tau.max()), dtype=torch.float64)
    return powers.cumsum(0)[tau - 1]


@register("algorithm", cite=("wang2020fednova",))
def fednova(
    *,
    mu: Annotated[float, Field(ge=0)] = 0.0,  # plain local SGD, as in the paper's main experiments
    cap: Annotated[float, Field(ge=1)] = 10.0,  # with one step against thousands, one batch would move the whole model
) -> Algorithm:
    """FedNova (Wang et al., NeurIPS 2020): each client's change counts per step, so that long training has no louder voice.

    x <- x - tau_eff sum_i p_i (x - y_i) / |a_i|_1 with tau_eff = sum_i p_i |a_i|_1. |a_i|_1 is the number of
    steps of SGD; with `mu`, the weight of FedProx's proximal term, it is (1 - (1 - lr mu)^tau_i) / (lr mu). No client's
    change is scaled up more than `cap` times. With equal |a_i|_1 it is FedAvg; with unequal ones and lr -> 0 it tends to the
    optimum of sum_i p_i f_i, FedAvg to that of sum_i p_i tau_i f_i. For AdamW the number of steps is a heuristic: its
    changes are not sums of gradients.

    Where some clients own only a part of the adapter, all parts step by the factor of the whole cohort.

    mu: the weight of FedProx's proximal term; 0 is none
    cap: how many times a client's change may be scaled up at most

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("fednova", steps=None, sizes=(4, 8))  # 1 and 2 steps: 3 - 5/3 (1/3 * 0.3 / 1 - 2/3 * 0.19 / 2)
    [2.9389]

    Reference: arXiv 2007.07481.
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        local = train(got["x"], ExtraTerms(gradient=proximal_gradient(mu) if mu else None))
        a = accumulate_decay(local.num_steps, 1 - train.lr * mu if mu else 1.0)  # (K,)
        return {"x": local.adapter, "n": local.weight, "a": a}, memory

    @stands("alternates", "private", "prunes", "unequal ranks")
    def server(state: State, got: Message, average: Average) -> State:
        x, n, a = state.adapter, got["n"], got["a"]
        p = n / n.sum()
        tau_eff = (p * a).sum()
        scale = (tau_eff / a).clamp(max=cap)  # (K,) of each change y_i - x
        # x + sum_i p_i scale_i (y_i - x), as one average of the y_i and a step towards it
        step = float((p * scale).sum())
        return replace(state, adapter=replace(x, flat=torch.lerp(x.flat, average(got["x"], n * scale).flat, step)))

    refuses = {**REFUSES, "two rates": "with mu its normalisation reckons with one learning rate"} if mu else REFUSES
    return replace(fedavg(), client=client, server=server, refuses=refuses)
