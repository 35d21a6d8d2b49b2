"""FedAvg: every other algorithm here is this one with a function replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import TRAITS, Algorithm, Average, Message, State, Train, stands


@register("algorithm", cite=("mcmahan2017",))
def fedavg() -> Algorithm:
    """FedAvg (McMahan et al., AISTATS 2017): clients train from x, the server averages what they send.

    x <- sum_k p_k y_k with p_k = n_k / sum_j n_j over the round's cohort (algorithm 1 of the paper, arXiv 1602.05629).

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

    return Algorithm(client, server)
