"""A round's adapters as changes of the weights: how clients and server have moved, and how B A is scaled. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfault.monitor.adapters import Collection, Upload
from fedfault.monitor.geometry import multiply_changes, multiply_part

ALONG = 0.9  # cosine of the server's weight change to the clients' mean from which their lengths are compared
EXACT = 0.05  # how near the ratio of the lengths has to be to alpha / r
ROUNDED = 1e-12  # of the squared length of adapters: what is left of equal ones when one is subtracted from the other
FROM_ZERO = (None, True, "gaussian")  # values of init_lora_weights with which B A is zero before training


def measure_updates(found: Collection, t: int) -> dict[str, Any]:
    """The inner products of the clients' updates in a round and the server's, as `Monitor.log` takes them.

    A client started from the server's adapter of the round before, or where there is none from the mean weight change of
    that round's clients; the first round from zero, if LoRA begins there. Empty where the start is not known.
    """
    now, after = found.of(t), found.servers.get(t)
    start = _find_start(found, t)
    if start is None:
        return {}
    every = [*now, *start, *([after] if after else [])]
    products = multiply_changes(every) + (multiply_part(every, list(now[0].rest)) if start else 0.0)
    K, S = len(now), len(start)
    moves = np.eye(len(every))[[*range(K), *([K + S] if after else [])]]
    if start:
        moves[:, K : K + S] -= 1 / S
    lengths, products = products.diagonal(), moves @ products @ moves.T
    still = products.diagonal() <= ROUNDED * lengths.max()
    products[still] = products[:, still] = 0.0
    norm = {"server_update": math.sqrt(max(products[K, K], 0.0))} if after else {}
    return {"products": products[:K, :K], **norm}


def _find_start(found: Collection, t: int) -> Sequence[Upload] | None:
    """The adapters whose mean is where a round began: none where it is zero, None where it is not known."""
    before = [s for s in found.rounds if s < t]
    servers = [s for s in found.servers if (before[-1] if before else 0) <= s < t]
    if servers:
        return [found.servers[max(servers)]]
    if before:
        return found.of(before[-1])
    first = found.of(t)[0]
    zero = t <= 1 and not first.rest and first.config.get("init_lora_weights") in FROM_ZERO
    return [] if zero else None


def measure_scale(found: Collection, t: int) -> float:
    """By what factor adapters of a round change the weights too much; 1 where there is no sign of that.

    By adapter_config.json: where the rank that it states is not that of the factors, or adapters of one rank are scaled
    unlike. By the numbers: where the server's weight change is that of the clients' mean, but alpha / r times as long or
    as short.
    """
    now, after = found.of(t), found.servers.get(t)
    every = [*now, *([after] if after else [])]
    signs = [u.misfit(site) for u in every for site in u.sites]
    for u in every:
        signs += [
            u.scale(site) / now[0].scale(site)
            for site in u.sites
            if (u.rank(site), u.stated_rank(site)) == (now[0].rank(site), now[0].stated_rank(site))
        ]
    signs += [_compare_lengths(now, after)] if after and now[0].sites else []
    return max(signs, key=lambda ratio: abs(math.log(ratio)), default=1.0)


def _compare_lengths(now: Sequence[Upload], after: Upload) -> float:
    """How long the server's weight change is over the clients' mean, where that is alpha / r or its inverse; else 1."""
    products, K = multiply_changes([*now, after]), len(now)
    mean2, to_mean, own2 = products[:K, :K].mean(), products[:K, K].mean(), products[K, K]
    if not (mean2 > 0 and own2 > 0 and to_mean > ALONG * math.sqrt(mean2 * own2)):
        return 1.0
    ratio, scale = float(to_mean / mean2), now[0].scale(next(iter(now[0].sites)))
    return ratio if any(abs(ratio / wrong - 1) < EXACT for wrong in (scale, 1 / scale) if wrong != 1) else 1.0
