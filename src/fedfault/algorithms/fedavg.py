"""FedAvg: every other algorithm here is this one with a function replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import TRAITS, Algorithm, Average, Message, State, Train, stands

UNBIASED = {
    "refactors": "the difference to what the server had has no meaning there",
    "folds": "what it adds belongs to the mean, and unbiased=true takes another step",
    "reweighs": "unbiased=true has weights of its own too",
    "robust": "unbiased=true is about a weighted mean",
    "hides clients": "unbiased=true counts who was drawn",
    "asynchronous": "unbiased=true counts who was drawn for the round",
    "draws by size": "unbiased=true corrects for the same bias",
    "unequal ranks": "unbiased=true makes up for who is drawn in all numbers alike, and a slice is trained by some",
    "draws by reports": "unbiased=true divides by the chance with which each client is drawn",
}


@register("algorithm", cite=("mcmahan2017",))
def fedavg(
    *,
    unbiased: bool = False,  # the paper normalises over the cohort
) -> Algorithm:
    """FedAvg (McMahan et al., AISTATS 2017): clients train from x, the server averages what they send.

    x <- sum_k p_k y_k with p_k = n_k / sum_j n_j over the round's cohort (algorithm 1 of the paper, arXiv 1602.05629).
    Where sizes differ and only some clients are drawn, its mean over cohorts is not that over all clients: large clients
    count for less. unbiased=true takes x <- x + sum_k (p_k / pi_k) (y_k - x) instead, with p_k over all N clients and
    pi_k = m / N for the m of them that sent something (Horvitz and Thompson, 1952). Its steps vary more from round to round;
    federation.selection=size is unbiased too, and less so.

    unbiased: weigh each client by how rarely it is drawn, so that the mean over draws is that over all clients

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("fedavg")  # (3 - 0.1 * 3 + 3 + 0.1 * 1) / 2
    [2.9]
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        local = train(got["x"])  # (K, P)
        return {"x": local.adapter, "n": local.weight}, memory

    @stands(*TRAITS)
    def server(state: State, got: Message, average: Average) -> State:
        return replace(state, adapter=average(got["x"], got["n"]))

    @stands(*TRAITS.keys() - UNBIASED.keys())
    def unbiased_server(state: State, got: Message, average: Average) -> State:
        m, N, n = len(got["n"]), len(state.weights), sum(state.weights)
        scale = N / m * float(got["n"].sum()) / n  # of the step that is normalised over the cohort
        x = state.adapter
        return replace(state, adapter=x + scale * (average(got["x"], got["n"]) - x))

    return Algorithm(client, unbiased_server, refuses=UNBIASED) if unbiased else Algorithm(client, server)
