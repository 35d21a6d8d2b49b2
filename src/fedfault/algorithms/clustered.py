"""Clusters that are known before training: one federated model for each group of clients, side by side in one cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.algebra import mean
from fedfault.algorithms.ifca import REFUSES, update_clusters
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, Average, Message, State, Train, stands


@register("algorithm", cite=("sattler2021clustered", "rousseeuw1987"))
def clustered(
    *,
    clusters: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None,
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.0,
    encoder: str = "backbone",
) -> Algorithm:
    """FedAvg within given clusters of clients: each cluster has a model of its own.

    The list of clusters is read from the start again when it ends; one cluster is FedAvg bit for bit.
    Without any, a run finds them before its first round, by what an encoder makes of its clients' texts: the run's own
    backbone, minilm, or any model that `model.name` takes (docs/clustering.md). A client trains x_j, the model of its
    cluster j, and nobody else sees it: x_j <- sum_{i in j} n_i y_i / sum_{i in j} n_i over the clients of the round; a
    cluster without any stays. With shrinkage s every model then moves to the mean of the round's models,
    x_j <- (1 - s) x_j + s x: 0, the default, keeps clusters apart, 1 is FedAvg again. A cluster for each client is local
    training without a federation.

    Global scores are about the mean of the clusters' models, each weighed by all its clients; personal scores about the
    model of each client's cluster. A client is told its own once, and in a round one model goes down and one up.

    clusters: the cluster of clients 0, 1, ...; null: found before the first round
    shrinkage: how far every cluster's model moves to the mean of all: 0 not at all, 1 to one model
    encoder: what clients' texts are compared by: the backbone, or the name of a sentence encoder

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients(("clustered", {"clusters": [0, 1]}))  # 3 - 0.1 * 3 and 3 + 0.1 * 1, side by side
    [2.7, 3.1]
    >>> run_two_clients(("clustered", {"clusters": [0, 1], "shrinkage": 1.0}))  # FedAvg
    [2.9, 2.9]

    Reference: Sattler et al., arXiv 1910.01991, for one model a cluster; Mansour et al., arXiv 2002.10619.
    """
    places = clusters or [0]
    names = [f"cluster_{j}" for j in range(max(places) + 1)]

    def of(num_clients: int) -> Tensor:
        return torch.tensor([places[k % len(places)] for k in range(num_clients)])

    def personal(state: State) -> Adapter:
        models = torch.stack([state.memory[name].flat for name in names])
        return replace(state.adapter, flat=models[of(len(state.weights)).to(models.device)])  # (N, P)

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        local = train(got["x"])  # (K, P), each from the model of its cluster
        return {"x": local.adapter, "cluster": got["cluster"], "n": local.weight}, memory

    @stands()
    def server(state: State, got: Message, average: Average) -> State:
        after = update_clusters(state, names, got, got["cluster"], average)
        x, memory = after.adapter.flat, after.memory
        if shrinkage:
            memory = {name: replace(a, flat=a.flat.lerp(x, shrinkage)) for name, a in memory.items()}
        owned = torch.tensor(state.weights, dtype=torch.float64)
        weight = torch.zeros(len(names), dtype=torch.float64).index_add(0, of(len(owned)), owned)
        models = replace(after.adapter, flat=torch.stack([memory[name].flat for name in names]))
        return replace(after, adapter=mean(models, weight), memory=memory)

    return Algorithm(
        client,
        server,
        broadcast=lambda state: {"x": personal(state), "cluster": of(len(state.weights))},
        init=lambda x: dict.fromkeys(names, x),
        personal=personal,
        models=lambda state: state.memory,
        refuses={**REFUSES, "private": "what never leaves a client is no part of its cluster's model"},
    )
