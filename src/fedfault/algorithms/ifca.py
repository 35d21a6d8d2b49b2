"""IFCA: several models on the server; each client trains the one that fits its data best."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.algebra import mean
from fedfault.registry import register
from fedfault.seeds import torch_rng
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, Average, Message, State, Train, stands

APART = 0.01  # clusters start this far from each other: enough for losses to differ, little beside trained numbers

REFUSES = {
    "refactors": "the mean of models whose numbers have different meanings is no model to score",
    "folds": "all clusters share the frozen weights",
    "alternates": "the factor frozen for a round differs between clusters, and the server has one of each number",
    "private": "a client compares whole models, which the server has to send",
    "reweighs": "its weights would count clients of the other clusters",
    "robust": "it would count clients of the other clusters, which have no weight in this one",
    "prunes": "a slice that nobody in a cluster trains would come from another cluster",
    "unequal ranks": "a slice that nobody in a cluster trains would come from another cluster",
    "hides clients": "which of the models a client moves is sent as it is",
    "hides examples": "which of the models a client moves is sent as it is",
}


def start_cluster(x: Adapter, cluster: int) -> Adapter:
    """Where a cluster starts: cluster 0 at x, the others at x with B + 0.01 N(0, 1) and full sites times 1 + 0.01 N(0, 1).

    With B = 0 all would be the same function, and every client would choose cluster 0 for ever. The stream is named by x,
    so that another seed, which gives another A, gives other clusters.
    """
    if cluster == 0:
        return x
    flat = x.flat.cpu().clone()
    name = hashlib.blake2b(flat.numpy().tobytes()).hexdigest()
    for site in x.layout.sites:
        part = x.layout.pair(flat, site).B if site.kind == "lora" else x.layout.part(flat, site)
        noise = APART * torch.randn(part.shape, generator=torch_rng(0, "ifca", name, cluster, site.name))
        part.add_(noise if site.kind == "lora" else part * noise)
    return replace(x, flat=flat.to(x.flat))


def update_clusters(state: State, names: Sequence[str], got: Message, cluster: Tensor, average: Average) -> State:
    """The server's step in every cluster: the average over the clients (K,) that are in it; one without clients stays.

    The server's adapter becomes the mean of the clusters' models, each weighed by its clients of the round.
    """
    memory, weight = dict(state.memory), torch.zeros(len(names), dtype=torch.float64)
    for j, name in enumerate(names):
        n = got["n"] * (cluster == j)
        weight[j] = n.sum()
        if weight[j] > 0:
            memory[name] = average(got["x"], n)
    clusters = replace(state.adapter, flat=torch.stack([memory[name].flat for name in names]))
    return replace(state, adapter=mean(clusters, weight), memory=memory)


@register("algorithm", cite=("ghosh2020",))
def ifca(*, num_clusters: Annotated[int, Field(ge=1)] = 2) -> Algorithm:
    """IFCA (Ghosh et al., NeurIPS 2020): each client trains the cluster's model with the lowest loss on its data.

    Client: j = argmin_j f_i(x_j) on the same examples in every round, the lowest j of equals; y from x_j. Server:
    x_j <- sum_{i chose j} n_i y_i / sum_{i chose j} n_i; a cluster that nobody chose stays. All models go down, one comes
    up. One cluster is FedAvg. The server's adapter, which global scores are about, is the mean of the clusters' models,
    each weighed by the clients that chose it in the round; personal scores are about the model each client chose last.

    It depends on where clusters start: where all clients prefer the same one they may stay together. Try several seeds.

    num_clusters: models of the server, of which every client takes the best for it

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("ifca", rounds=50)  # each client has found a model of its own: near 0 and near 4
    [0.0155, 3.995]

    Reference: arXiv 2006.04088, algorithm 1 with model averaging.
    """
    names = [f"cluster_{j}" for j in range(num_clusters)]

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        choice = torch.stack([train.loss(got[name]) for name in names]).argmin(0)  # (K,)
        models = torch.stack([got[name].flat for name in names])  # (num_clusters, P)
        local = train(replace(got[names[0]], flat=models[choice.to(models.device)]))
        kept = replace(memory["choice"], flat=choice[:, None].to(memory["choice"].flat))
        return {"x": local.adapter, "choice": choice, "n": local.weight}, {"choice": kept}

    @stands()
    def server(state: State, got: Message, average: Average) -> State:
        return update_clusters(state, names, got, got["choice"], average)

    def personal(state: State) -> Adapter:
        models = torch.stack([state.memory[name].flat for name in names])
        chosen = models[state.clients["choice"].flat[:, 0].long()]  # (N, P)
        has_chosen = torch.tensor(state.stored, device=chosen.device)[:, None] > 0
        return replace(state.adapter, flat=torch.where(has_chosen, chosen, state.adapter.flat))

    return Algorithm(
        client,
        server,
        broadcast=lambda state: {name: state.memory[name] for name in names},
        init=lambda x: {name: start_cluster(x, j) for j, name in enumerate(names)},
        init_client=lambda x: {"choice": replace(x, flat=torch.zeros(1))},  # one number in place of P
        personal=personal,
        models=lambda state: state.memory,
        refuses=REFUSES,
    )
