"""SCAFFOLD: control variates take the difference between a client's gradient and everybody's out of every local step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from fedfault.algebra import check_mean, mask, mean, zeros
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, Average, ExtraTerms, Message, State, Train, stands

REFUSES = {
    "refactors": "control variates are gradients with respect to those numbers and mean nothing for the next ones",
    "alternates": "the gradient of a factor that is frozen for a round is zero, which erases its control variate",
    "private": "a factor that stays at home has nothing to be corrected towards, and its gradient would leave the client",
    "prunes": "the control variate of a slice that a client has given up would stay in c for ever",
    "reweighs": "c has to weigh clients as the average of models does, or rounds end at the optimum of other weights",
    "draws by size": "c is an exact sum over all clients, and not an average that corrected weights could make up for",
    "robust": "c is a weighted mean and has to be about the same clients as the average of models",
    "hides clients": "the mean of the clients' control variates is sent as it is",
    "hides examples": "control variates are gradients of the clients' data, and are sent beside the models",
}


@register("algorithm", cite=("karimireddy2020",))
def scaffold(
    *,
    option: Literal["I", "II"] = "II",  # the paper's experiments: no further pass over the data
    server_lr: Annotated[float, Field(gt=0)] = 1.0,  # the paper's experiments
) -> Algorithm:
    """SCAFFOLD (Karimireddy et al., ICML 2020): every local gradient is corrected by c - c_i, so that clients do not drift.

    y <- y - lr (g_i(y) - c_i + c);  c_i+ = g_i(x) over all of the client's examples (option I), or the mean of the
    gradients along its path (option II), which for SGD is the paper's c_i - c + (x - y_i) / (K lr) and, unlike it, a
    gradient for AdamW too. Server: x <- x + server_lr sum_{i in S} p_i (y_i - x);  c <- c + sum_{i in S} p_i (c_i+ - c_i)
    with p_i over the cohort S for x and over ALL clients for c, the paper's 1/N if weighting is uniform.

    Fixed point: the optimum of sum_i p_i f_i whatever the number of steps, with c_i the gradient of f_i there and c = 0.
    Where the models were weighed by p_i but c by 1/N, it would be the optimum of the unweighted mean. The gradient is
    clipped before it is corrected, and c_i is made of clipped gradients. Where clients train with unequal ranks, c counts
    for each number those clients that train it.

    option: how a client's control variate is renewed: I by a pass over its examples, II by its path
    server_lr: the step of the server along the mean change

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("scaffold", rounds=60, steps=10, H=(1, 3))  # the optimum of (x^2 + 3 (x - 4)^2) / 4
    [3.0]
    >>> run_two_clients("fedavg", rounds=60, steps=10, H=(1, 3))
    [2.3948]

    Reference: arXiv 1910.06378, algorithm 1.
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        x, c, c_i = got["x"], got["c"], memory["c"]
        correction = c.flat - c_i.flat  # (K, P)
        corrected = ExtraTerms(gradient=lambda y, x, rows: correction[rows])
        local = train(x, corrected, mean_grad=option == "II")  # line 10
        c_new = train.gradient(x) if local.mean_grad is None else Adapter(x.layout, local.mean_grad)  # line 12
        return {"x": local.adapter, "dc": c_new - c_i, "n": local.weight}, {"c": c_new}  # lines 13, 14

    @stands("unequal ranks", *(("folds",) if server_lr == 1 else ()))
    def server(state: State, got: Message, average: Average) -> State:
        x, n = state.adapter, got["n"]
        share = float(n.sum()) / sum(state.weights)  # sum of p_i over the cohort
        x = replace(x, flat=torch.lerp(x.flat, average(got["x"], n).flat, server_lr))  # lines 16, 17
        return replace(state, adapter=x, memory={"c": state.memory["c"] + share * mean(got["dc"], n)})

    folds = "what it adds belongs to the plain average, and server_lr takes another step"
    return Algorithm(
        client,
        server,
        broadcast=lambda state: {"x": state.adapter, "c": _average_over_owners(state)},
        init=lambda x: {"c": zeros(x)},
        init_client=lambda x: {"c": zeros(x)},
        wrong=lambda state: check_mean(state, "c", "c"),
        refuses=REFUSES if server_lr == 1 else {**REFUSES, "folds": folds},
    )


@register("algorithm", cite=("karimireddy2020",))
def scaffold_update_space() -> Algorithm:
    """SCAFFOLD with control variates made of updates, as other libraries run it with Adam: NOT a correct SCAFFOLD.

    After the optimiser's step y <- y - lr (c - c_i), and c_i+ = c_i - c + (x - y_i) / (K lr), the mean of the optimiser's
    steps u_i in units of lr. With SGD this is `scaffold`. With AdamW rounds end where sum_i p_i u_i = 0; u_i is about the
    sign of the gradient, so that this is near the weighted median of the clients' optima in every coordinate, not the
    optimum of sum_i p_i f_i: the same bias as FedAvg's. It is here to be compared with.

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("scaffold_update_space", rounds=60, steps=10, H=(1, 3))  # with SGD it is SCAFFOLD
    [3.0]
    """

    def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
        x, c, c_i = got["x"], got["c"], memory["c"]
        correction = c.flat - c_i.flat  # (K, P)
        local = train(x, ExtraTerms(step=lambda y, x, rows: correction[rows]))
        length = local.num_steps[:, None].to(x.flat) * train.lr  # (K, 1)
        c_new = c_i - c + replace(x, flat=(x.flat - local.adapter.flat) / length)
        return {"x": local.adapter, "dc": c_new - c_i, "n": local.weight}, {"c": c_new}

    rates = "its control variates are steps in units of one learning rate"
    return replace(scaffold(), client=client, refuses={**REFUSES, "two rates": rates})


def _average_over_owners(state: State) -> Adapter:
    """c / (share of the clients, by weight, whose rank reaches a number): the mean over those that train it, (P,)."""
    c = state.memory["c"]
    ranks = sorted(set(state.ranks))
    p = [sum(n for n, r in zip(state.weights, state.ranks, strict=True) if r == rank) for rank in ranks]
    have = mask(c.layout, torch.tensor(ranks)).double()  # (distinct ranks, P)
    share = torch.tensor(p, dtype=torch.float64) @ have / sum(state.weights)
    return replace(c, flat=torch.where(share > 0, c.flat.cpu() / share, 0.0).to(c.flat))
