"""APFL: every client uses a mixture of the server's model and of one of its own, and learns how much of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.algorithms import ditto
from fedfault.algorithms.fedavg import fedavg
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, ExtraTerms, Message, State, Train

REFUSES = {**ditto.REFUSES, "unequal ranks": "what a client keeps is mixed with a model of which it has a part"}


@register("algorithm", cite=("deng2020apfl",))
def apfl(
    *,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,  # as much of one's own as of the others
    alpha_lr: Annotated[float, Field(ge=0)] = 0.1,  # some hundredths a round where gradients are clipped at 1
) -> Algorithm:
    """APFL (Deng, Kamani & Mahdavi, 2020): FedAvg for x, and a model v_k of each client that fits in a_k v_k + (1 - a_k) x.

    In each of its rounds a client trains v_k from where it stood to minimise F_k(a_k v_k + (1 - a_k) x), x being what the
    server has just sent: the gradient is a_k times that of F_k at the mixture. Then a_k goes down the mean of the round's
    gradients, a_k <- a_k - alpha_lr <grad F_k, v_k - x>, and stays within 0 and 1; x is trained as in FedAvg. In the paper
    the client's copy of x moves beside v_k in every local step; here x stays where it was sent while v_k trains, which with
    one local step is the same. v_k starts as the server's first model and never leaves its client. Personal scores are those
    of the mixtures with the server's new x, and the server's own for clients that have not taken part. A round costs twice
    the steps.

    alpha: share of a client's own model in its mixture at the start
    alpha_lr: how fast that share is learned; 0 keeps it

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients(("apfl", {"alpha": 1.0, "alpha_lr": 0.0}), rounds=2)  # nothing of x: as Ditto with lam=0
    [2.43, 3.19]

    Reference: arXiv 2003.13461, algorithm 1.
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        v, share = memory["v"], memory["alpha"].flat  # (K, P), (K, 1)
        x = got["x"].flat.expand_as(v.flat)

        def mix(y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return _mix(share[rows], y, x[rows]), share[rows]

        own = train(v, ExtraTerms(mixture=mix), mean_grad=True)
        assert own.mean_grad is not None
        slope = (own.mean_grad * (v.flat - x)).sum(1, keepdim=True)  # (K, 1) of F_k by a_k
        learned = replace(memory["alpha"], flat=(share - alpha_lr * slope).clamp(0.0, 1.0))
        local = train(got["x"])  # the last one is what the records show
        return {"x": local.adapter, "n": local.weight}, {"v": own.adapter, "alpha": learned}

    def personal(state: State) -> Adapter | None:
        if "v" not in state.clients:
            return None
        x = state.adapter.flat
        mixed = _mix(state.clients["alpha"].flat, state.clients["v"].flat, x)
        has_trained = torch.tensor(state.stored, device=x.device)[:, None] > 0
        return replace(state.adapter, flat=torch.where(has_trained, mixed, x))

    def init_client(x: Adapter) -> Mapping[str, Adapter]:
        return {"v": x, "alpha": replace(x, flat=x.flat.new_full((1,), alpha))}  # one number in place of P

    return replace(fedavg(), client=client, init_client=init_client, personal=personal, refuses=REFUSES)


def _mix(share: Tensor, own: Tensor, x: Tensor) -> Tensor:
    """share * own + (1 - share) * x: (k, 1), (k, P) and (k, P) or (P,) -> (k, P)."""
    return share * own + (1 - share) * x
