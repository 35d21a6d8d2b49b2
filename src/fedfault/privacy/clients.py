"""DP-FedAvg: the server learns of a round the noisy sum of clipped changes, and nothing else of any client."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fedfault.algebra import to_float64
from fedfault.privacy.audit import Canaries
from fedfault.privacy.budget import Budget
from fedfault.privacy.noise import clip_rows, draw_noise
from fedfault.seeds import rng
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.algorithm import Aggregation, Algorithm, Average, Message, State

RATE = 0.2  # of the clip, in the exponent (Andrew et al. 2021, section 3.1)
COUNT_NOISE = 20  # clients of a round for one standard deviation of the noisy count (ibid.)


def hide_clients(algorithm: Algorithm, aggregation: Aggregation, budget: Budget) -> Algorithm:
    """DP-FedAvg (McMahan et al., ICLR 2018, algorithm 1) around an algorithm whose server only uses its average.

    x <- x + (sum_{k in S} clip_C(y_k - x) + z C xi) / m with xi ~ N(0, I) over the numbers that are trained in the round,
    all clients alike, and m the clients that are drawn on average: the size of S is hidden too. What the algorithm's server
    makes of that average is post-processing. Where the clip adapts (Andrew et al., NeurIPS 2021), the noisy count of the
    changes within it is released too, and the sum has as much more noise as makes up for it:
    z_sum = (z^-2 - (2 s)^-2)^(-1/2), with s the noise of the count.
    """
    inner, (z, m, _, _) = algorithm.server, budget.release
    canaries = Canaries(budget)
    count_noise = max(m / COUNT_NOISE, z)
    z_sum = z if budget.adapt_to is None else (z**-2 - (2 * count_noise) ** -2) ** -0.5

    def server(state: State, got: Message, average: Average) -> State:
        x, t = state.adapter, state.round + 1
        C, moved = _read_clip(state, budget), aggregation.trained(x.layout, t)
        released: list[Tensor] = []  # the noisy sum, and how many more changes than half are within the clip

        def noisy_average(sent: Adapter, weight: Tensor) -> Adapter:
            if released:
                raise RuntimeError(
                    "the server's step asks for a second average of a round, which nobody has accounted for"
                )
            before = to_float64(x.flat)  # (P,)
            changes = to_float64(sent.flat) - before  # (K, P)
            total = clip_rows(changes, C).sum(0).cpu() + canaries.sum_drawn(x.layout.size, t, moved, C)
            total = _only(moved, total + draw_noise(len(total), z_sum * C, budget.secret, t))
            within = (changes.norm(dim=1).cpu() <= C).double() - 0.5  # (K,)
            released.extend((total, within.sum()))
            return replace(x, flat=(before + total.to(before.device) / m).to(x.flat))

        after = inner(state, {"x": got["x"], "n": torch.ones_like(got["n"])}, noisy_average)
        memory = {**after.memory, **canaries.score(state, released[0], t, moved)}
        if budget.adapt_to is not None:
            noise = count_noise * rng(budget.secret, "count", t).standard_normal()
            share = (float(released[1]) + noise) / m + 0.5
            memory["clip"] = _one_number(x.layout, C * math.exp(-RATE * (share - budget.adapt_to)))
        return replace(after, memory=memory)

    def init(x: Adapter) -> dict[str, Adapter]:
        clip = {} if budget.adapt_to is None else {"clip": _one_number(x.layout, budget.clip)}
        return {**algorithm.init(x), **clip, **canaries.init(x.layout)}

    return replace(algorithm, server=server, init=init)


def _read_clip(state: State, budget: Budget) -> float:
    return budget.clip if budget.adapt_to is None else float(state.memory["clip"].flat)


def _one_number(layout: Layout, value: float) -> Adapter:
    return Adapter(layout, torch.tensor([value], dtype=torch.float64))


def _only(moved: Tensor | None, flat: Tensor) -> Tensor:
    return flat if moved is None else flat.where(moved, 0.0)
