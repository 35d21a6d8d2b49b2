"""Ditto: every client also trains a model of its own, held back towards the server's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedfault.algorithms.fedavg import fedavg
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, ExtraTerms, Message, State, Train

REFUSES = {
    "hides clients": "every client's own model is kept, and written down as it is",
    "hides examples": "clients train twice in a round",
    "refactors": "what a client keeps is in numbers that mean something else in the next round",
    "folds": "what a client keeps belongs to frozen weights that have changed since",
    "alternates": "what a client keeps would train in the factor that is frozen for the round",
    "private": "a client has a model of its own already",
    "prunes": "what a client keeps has the rank that it began with",
    "unequal ranks": "what a client keeps is held back towards a model of which it has a part",
}


@register("algorithm", cite=("li2021ditto",))
def ditto(*, lam: Annotated[float, Field(ge=0)] = 0.1) -> Algorithm:
    """Ditto (Li et al., ICML 2021): FedAvg, and beside it a model v_k for every client that minimises F_k + lam/2 |v - x|^2.

    In each of its rounds a client trains v_k from where it stood, with lam (v_k - x) added to the gradient, x being what the
    server has just sent, and the server's model as in FedAvg. v_k never leaves the client, and starts as the server's first
    model. lam = 0 is training alone in the rounds that a client takes part in; a large one is the server's model. A round
    costs twice the steps; personal scores are those of the v_k.

    lam: how strongly a client's own model is held to the server's

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients(("ditto", {"lam": 0.0}), rounds=2)  # 3 - 0.3 - 0.27 and 3 + 0.1 + 0.09, as if they were alone
    [2.43, 3.19]

    Reference: arXiv 2012.04221, algorithm 1.
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        kept = memory["v"]
        x = got["x"].flat.expand_as(kept.flat)

        def pull(v: Tensor, start: Tensor, rows: Tensor) -> Tensor:
            back: Tensor = lam * (v - x[rows])  # (k, P)
            return back

        own = train(kept, ExtraTerms(gradient=pull) if lam else ExtraTerms())
        local = train(got["x"])  # the last one is what the records show
        return {"x": local.adapter, "n": local.weight}, {"v": own.adapter}

    def personal(state: State) -> Adapter | None:
        return state.clients.get("v")

    return replace(fedavg(), client=client, init_client=lambda x: {"v": x}, personal=personal, refuses=REFUSES)
