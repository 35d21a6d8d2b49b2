"""FedDyn: a linear term in every client's objective makes its own optimum agree with everybody's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from fedfault.algebra import check_mean, mean, zeros
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, Average, ExtraTerms, Message, State, Train, stands

REFUSES = {
    "refactors": "g_i and h are gradients with respect to those numbers and mean nothing for the next ones",
    "folds": "what it adds belongs to the plain average, and the server goes on from there by -h / alpha",
    "alternates": "the server would move the frozen factor too, by -h / alpha",
    "private": "h would sum up changes that never leave the clients",
    "reweighs": "the server's step holds for the plain mean of the cohort, which it is derived with",
    "robust": "the server's step holds for the plain mean of the cohort, which it is derived with",
    "prunes": "h sums up the changes of all clients, and a client has none beyond its rank",
    "unequal ranks": "h sums up the changes of all clients, and a client has none beyond its rank",
    "hides clients": "h sums up exact changes of the clients",
    "draws by size": "its means are plain, and would count large clients twice",
}


@register("algorithm", cite=("acar2021",))
def feddyn(*, alpha: Annotated[float, Field(gt=0)] = 0.01) -> Algorithm:  # Acar et al. 2021: grid 0.001, 0.01, 0.1
    """FedDyn (Acar et al., ICLR 2021): clients minimise f_i(y) - <g_i, y> + (alpha_i/2) |y - x|^2, g_i their last gradient.

    Client: y from K steps along grad f_i(y) - g_i + alpha_i (y - x);  g_i <- g_i - alpha_i (y - x). Server:
    h <- h - (alpha / N) sum_{i in S} (y_i - x);  x <- mean_{i in S} y_i - h / alpha. As in the authors' code, the means are
    plain and the weights n_i go into alpha_i = alpha (sum_j n_j / N) / n_i, which is alpha if all are equal.

    Where clients solve their problem exactly, g_i is the gradient of f_i at y_i, and rounds end at the optimum of
    sum_i p_i f_i with h = 0. Always h = sum_i p_i g_i over ALL clients. The mean of the clients' models is x + h / alpha.
    AdamW and few steps solve the problem roughly; where gradients are clipped, g_i is one that is clipped.

    alpha: the strength of the pull to the server's model, and of the correction by the clients before

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("feddyn")  # the mean 2.9, and once more the mean change -0.1 through h
    [2.8]
    >>> run_two_clients(("feddyn", {"alpha": 1.0}), rounds=60, steps=10, H=(1, 3))  # the optimum, as SCAFFOLD
    [3.0]

    Reference: arXiv 2111.04263, algorithm 1.
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        x, g = got["x"], memory["g"].flat  # g: (K, P)
        a = (alpha * got["mean_weight"] / train.weight)[:, None].to(g)  # (K, 1)
        local = train(x, ExtraTerms(gradient=lambda y, x, rows: a[rows] * (y - x) - g[rows]))
        g = g - a * (local.adapter.flat - x.flat)
        return {"x": local.adapter, "n": local.weight}, {"g": Adapter(x.layout, g)}

    @stands()
    def server(state: State, got: Message, average: Average) -> State:
        x, y, ones = state.adapter, got["x"], torch.ones_like(got["n"])
        h = state.memory["h"] - alpha * len(ones) / len(state.weights) * mean(y - x, ones)
        return replace(state, adapter=average(y, ones) - h * (1 / alpha), memory={"h": h})

    return Algorithm(
        client,
        server,
        broadcast=lambda state: {"x": state.adapter, "mean_weight": sum(state.weights) / len(state.weights)},
        init=lambda x: {"h": zeros(x)},
        init_client=lambda x: {"g": zeros(x)},
        wrong=lambda state: check_mean(state, "h", "g"),
        refuses=REFUSES,
    )
