"""The probe of how widely the attention heads look."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.registry import register
from fedfault.types.task import FinishedRound, Measurements, Probe

WEIGHTS = 4 * 128**2  # of a head that are asked for at most, so that long blocks are fewer


@register("probe", order=6)
def attention(*, blocks: Annotated[int, Field(ge=1)] = 4) -> Probe:
    """Attention entropy by layer, of the model and of the base: 0 where heads look at one token, 1 where at all alike.

    For a query that may look at n keys, H = -sum_j a_j log a_j, over log n: in a decoder itself and those before it, in an
    encoder all of its text. Queries with one key are skipped. It is a mean over heads, over queries that predict a target
    (of a labelled text over all), and over the first `blocks` held-out blocks, fewer when they are longer than 128 tokens.

    attention_entropy/L, attention_entropy_base/L    L from 1, of the L-th block

    There is nothing where the model gives no attention weights.

    blocks: held-out blocks that are read
    """

    def measure(m: FinishedRound) -> Measurements:
        known = m.task.states(None, blocks)
        if known is None:
            return Measurements()
        n = max(1, min(blocks, WEIGHTS // known.mask.shape[1] ** 2))
        now = m.task.attention(m.after.adapter.flat[None], n)
        base = None if now is None else m.task.attention(None, n)
        if now is None or base is None:
            return Measurements()
        found = {}
        for L, (weights, before) in enumerate(zip(now, base, strict=True), start=1):
            found[f"attention_entropy/{L}"] = entropy(weights, known.mask[:n])
            found[f"attention_entropy_base/{L}"] = entropy(before, known.mask[:n])
        return Measurements({name: v for name, v in found.items() if math.isfinite(v)})

    return Probe(measure, sparse=True, public=True)


def entropy(weights: Tensor, mask: Tensor) -> float:
    """Mean of H / log n over heads and the queries of two keys at least where mask (blocks, T) is true; NaN for none.

    weights: (blocks, heads, T, T), rows sum to one. Where nothing is after the diagonal, query t has n = t + 1 keys, else as
    many as there are true positions.

    One query looks at two keys alike, another at the first of three only:

    >>> weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])[None, None]
    >>> entropy(weights, torch.ones(1, 3, dtype=torch.bool))
    0.5
    """
    T, mask = weights.shape[-1], mask.to(weights.device)
    H = torch.special.entr(weights.float()).sum(-1)  # (blocks, heads, T)
    ahead = bool(weights.triu(1).any())
    # (blocks or 1, T or 1)
    keys = mask.sum(1, keepdim=True) if ahead else torch.arange(1, T + 1, device=H.device)[None]
    share = (H / keys.log()[:, None]).mean(1)
    return float(share[mask & (keys > 1)].mean())
