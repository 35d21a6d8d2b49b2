"""pFedMe: what clients share is pulled towards models of their own, which are never far from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedfault.algorithms.fedavg import fedavg
from fedfault.algorithms.fedprox import proximal_gradient
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, ExtraTerms, Message, State, Train

REFUSES = {
    "hides clients": "every client's own model is kept, and written down as it is",
    "refactors": "what a client keeps is in numbers that mean something else in the next round",
    "folds": "what a client keeps belongs to frozen weights that have changed since",
    "alternates": "what a client keeps has a factor that others train in the next round",
    "private": "a client has a model of its own already",
    "prunes": "what a client keeps has the rank that it began with",
    "unequal ranks": "what a client keeps is held back towards a model of which it has a part",
}


@register("algorithm", cite=("dinh2020pfedme",))
def pfedme(
    *,
    lam: Annotated[float, Field(ge=0)] = 1.0,  # of a grid 0.1 to 15; the authors take 15 with steps of 0.005
    step: Annotated[float, Field(gt=0, le=1)] = 1.0,  # eta lam beta of the paper: with R = 1 they are one number
) -> Algorithm:
    """pFedMe (Dinh et al., NeurIPS 2020): own models theta_k = argmin F_k + lam/2 |theta - x|^2, towards which x moves.

    Clients find theta_k from x by their local steps, which is FedProx's training, and keep it as their own. They send
    x + step (theta_k - x), a step along the gradient lam (x - theta_k) of the Moreau envelope; the server averages. This is
    one local round (R = 1) of the paper's algorithm. Rounds end where sum_k p_k lam (x - theta_k) = 0: FedProx's end as
    well, so that what is new is the model of one's own; personal scores are those of the theta_k.

    lam: how strongly a client's own model is held to the server's
    step: how far what a client sends is from the server's model towards its own; 1 is its own

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("pfedme")  # own models after a step, where x has no pull yet: 3 - 0.1 * 3 and 3 + 0.1 * 1
    [2.7, 3.1]

    Reference: arXiv 2006.08848, algorithm 1.
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        x = got["x"]
        local = train(x, ExtraTerms(gradient=proximal_gradient(lam)) if lam else ExtraTerms())
        sent = local.adapter if step == 1 else replace(x, flat=x.flat + step * (local.adapter.flat - x.flat))
        return {"x": sent, "n": local.weight}, {"theta": local.adapter}

    def personal(state: State) -> Adapter | None:
        return state.clients.get("theta")

    return replace(fedavg(), client=client, init_client=lambda x: {"theta": x}, personal=personal, refuses=REFUSES)
