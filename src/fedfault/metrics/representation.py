"""Hidden states of the model and of the round's clients: how far from the base, how alike, how many directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.measures.spectrum import centre_rows, cka, effective_rank, mean_cosines, mean_of_pairs, singular_values
from fedfault.registry import register
from fedfault.types.task import FinishedRound, Measurements, Probe, States

CLIENT_BLOCKS, CLIENTS = 4, 8  # what the clients are compared on, and how many of a cohort: these cost the most


@register("probe", order=5)
def representation(*, blocks: Annotated[int, Field(ge=1)] = 24) -> Probe:
    """Hidden states by layer, against the base and between clients: cosine, CKA; effective rank of states and embeddings.

    X (n, d) are the states of a model on `blocks` fixed held-out blocks, at the n positions that predict a target; layer 0
    is what enters the first block, layer L what leaves the L-th one, before the model's last norm. The mean row of each
    model is subtracted first: without that, a few directions that all states share make every cosine large.

    hidden_cosine/L      mean over positions of cos(h, h_base)
    cka/L                linear CKA of X and X_base, debiased where n < 4 d
    client_cosine/L      the same between the trained models of two clients of the round, mean over pairs, on four blocks;
    client_cka/L         of a cohort, the first eight clients
    hidden_rank          exp(H(s / sum s)), H the entropy, with the singular values s of X of the last layer; at most d
    embedding_rank       the same of the blocks' embeddings, each the mean of a block's last states
    embedding_cosine     mean cosine between two blocks' embeddings; their mean is not subtracted
    hidden_rank_base, embedding_rank_base    of the model before training, on the same blocks

    A model that has not moved has cosine and CKA 1. Ranks depend on the number of positions: read them against the base's.
    What is undefined, such as the cosine of a state that is zero, is left out.

    References: CKA: Kornblith et al., arXiv 1905.00414; effective rank: Roy and Vetterli, EUSIPCO 2007; the common
    direction: Ethayarajh, arXiv 1909.00512.

    blocks: held-out blocks that are read
    """

    def measure(m: FinishedRound) -> Measurements:
        now, base = m.task.states(m.after.adapter.flat[None], blocks), m.task.states(None, blocks)
        if now is None or base is None:
            return Measurements()
        both = [torch.cat(pair) for pair in zip(now.layers, base.layers, strict=True)]
        found = _compare_models(States(both, now.mask), "hidden_cosine", "cka")
        found |= {**_count_directions(now), **{f"{name}_base": v for name, v in _count_directions(base).items()}}
        del found["embedding_cosine_base"]
        return Measurements({name: v for name, v in (found | _compare_clients(m)).items() if math.isfinite(v)})

    return Probe(measure, sparse=True)


def _compare_clients(m: FinishedRound) -> dict[str, float]:
    """Cosine and CKA of the trained models of the first clients of the cohort; empty for one client."""
    flat = m.trained.adapter.flat[:CLIENTS]
    if len(flat) < 2:
        return {}
    with _fold_as_trained(m):
        states = m.task.states(flat, CLIENT_BLOCKS)
    return {} if states is None else _compare_models(states, "client_cosine", "client_cka")


@contextmanager
def _fold_as_trained(m: FinishedRound) -> Iterator[None]:
    """Give the task the frozen weights that the clients trained on, within the block."""
    if m.before.base is m.after.base:
        yield
        return
    m.task.fold(m.before.base)
    try:
        yield
    finally:
        m.task.fold(m.after.base)


def _compare_models(states: States, cosine: str, kernel: str) -> dict[str, float]:
    """Cosine and CKA of each layer under these names, means over pairs of models."""
    found = {}
    for i, layer in enumerate(states.layers):
        exact = centre_rows(select_positions(layer, states.mask))  # (k, n, d)
        X = (exact / exact.norm(dim=(1, 2), keepdim=True)).float()  # of norm one, as fourth powers would overflow
        found[f"{cosine}/{i}"] = mean_of_pairs(mean_cosines(X))
        found[f"{kernel}/{i}"] = mean_of_pairs(cka(X, debiased=X.shape[1] < 4 * X.shape[2]))
    return found


def _count_directions(states: States) -> Mapping[str, float]:
    """How many directions the last layer of one model fills, and the embeddings of blocks in it."""
    last = states.layers[-1][0]  # (blocks, T, d)
    real = states.mask.to(last.device)[..., None]
    embeddings = torch.where(real, last.float(), 0.0).sum(1) / real.sum(1)  # (blocks, d)
    return {
        "hidden_rank": effective_rank(singular_values(centre_rows(select_positions(last[None], states.mask)[0]))),
        "embedding_rank": effective_rank(singular_values(centre_rows(embeddings))),
        "embedding_cosine": mean_of_pairs(mean_cosines(embeddings[:, None])),
    }


def select_positions(layer: Tensor, mask: Tensor) -> Tensor:
    """The states (k, n, d) of the n positions where mask (blocks, T) is true, of a layer (k, blocks, T, d)."""
    return layer[:, mask.to(layer.device)]
