"""A round's adapters as changes of the weights: how clients and server have moved, and how B A is scaled. No torch."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fedfault.monitor.adapters import Collection, Upload
from fedfault.monitor.geometry import multiply_changes, multiply_part, multiply_steps
from fedfault.monitor.server import Average, sends_less, solve_average

ALONG = 0.9  # cosine of the server's weight change to the clients' mean from which their lengths are compared
EXACT = 0.05  # how near the ratio of the lengths has to be to alpha / r
ROUNDED = 1e-12  # of the squared length of adapters: what is left of equal ones when one is subtracted from the other
FROM_ZERO = (None, True, "gaussian")  # values of init_lora_weights with which B A is zero before training


def measure_updates(found: Collection, t: int) -> dict[str, Any]:
    """The inner products of the clients' updates in a round and the server's, as `Monitor.log` takes them.

    A client started from the server's adapter of the round before, or where there is none from the mean weight change of
    that round's clients; the first round from zero, if LoRA begins there. Empty where the start is not known. What is not
    finite has products and a norm that are no numbers.
    """
    now, after, whole = found.of(t), found.servers.get(t), [u.broken is None for u in found.sent(t)]
    lost = {"server_update": math.nan} if after and after.broken is not None else {}
    after = None if lost else after
    start = _find_start(found, t)
    if start is None or not (now or start):
        return lost
    every = [*now, *start, *([after] if after else [])]
    products = multiply_changes(every) + (multiply_part(every, list(every[0].rest)) if start else 0.0)
    K, S = len(now), len(start)
    moves = np.eye(len(every))[[*range(K), *([K + S] if after else [])]]
    if start:
        moves[:, K : K + S] -= 1 / S
    lengths, products = products.diagonal(), moves @ products @ moves.T
    still = products.diagonal() <= ROUNDED * lengths.max()
    products[still] = products[:, still] = 0.0
    norm = {"server_update": math.sqrt(max(products[K, K], 0.0))} if after else lost
    sent = np.full((len(whole), len(whole)), math.nan)
    sent[np.ix_(whole, whole)] = products[:K, :K]
    return {"products": sent, **norm}


def _find_start(found: Collection, t: int) -> Sequence[Upload] | None:
    """The adapters whose mean is where a round began: none where it is zero, None where it is not known."""
    before = [s for s in found.rounds if s < t]
    servers = [s for s in found.servers if (before[-1] if before else 0) <= s < t]
    if servers:
        last = found.servers[max(servers)]
        return [last] if last.broken is None else None
    if before:
        return found.of(before[-1]) or None
    first = found.sent(t)[0]
    zero = t <= 1 and not first.rest and first.config.get("init_lora_weights") in FROM_ZERO
    return [] if zero else None


def measure_averages(found: Collection, t: int, parts: Mapping[str, Sequence[str]]) -> tuple[dict[str, Average], bool]:
    """By what weights the server has averaged each part of the adapters in a round, where that is known.

    And whether all clients sent less than half of what they got. parts: the names of their tensors. Nothing is known
    without the server's adapter before or after the round, and for unequal ranks.
    """
    now, after, start = found.of(t), found.servers.get(t), _find_start(found, t)
    if after is None or after.broken is not None or not now or not start or start[0].client is not None:
        return {}, False
    every = [*now, after]
    if any(u.tensors[name].shape != one.shape for u in every for name, one in start[0].tensors.items()):
        return {}, False
    products = {part: multiply_steps(start[0], every, names) for part, names in parts.items()}
    sizes = {part: sum(start[0].tensors[name].size for name in names) for part, names in parts.items()}
    solved = {part: solve_average(one, len(now), sizes[part]) for part, one in products.items()}
    averages = {part: one for part, one in solved.items() if one is not None}
    return averages, sends_less(products.values(), len(now))


def place_servers(found: Collection) -> Collection:
    """Put the server's adapters behind the rounds that made them, with a note, where they are those that rounds began with.

    They are where each is a mean of what clients sent in the round before and not in its own, and clients end nearer to it
    than to the one before. Where clients started from the one before, a note says that the server is a round late.
    """
    steps = [(a, t) for a, t in itertools.pairwise(found.rounds) if {a, t} <= found.servers.keys()]
    broken = {u.round for u in found.broken if u.client is None}
    known = [(a, t) for a, t in steps if found.of(a) and found.of(t) and broken.isdisjoint((a, t))]
    if len(known) < 2 or any(_is_average(found, a, t, t) for a, t in known):
        return found
    if not all(_is_average(found, a, a, t) for a, t in known):
        return found
    if not all(_starts_from_own(found, a, t) for a, t in known):
        late = (
            "the server's adapter of a round is the mean of what clients sent in the round before: it is a round late"
        )
        return replace(found, notes=(*found.notes, late))
    first = found.rounds[0]
    moved = {a: replace(found.servers[t], round=a) for a, t in steps}
    if first > 0:
        moved[first - 1] = replace(found.servers[first], round=first - 1)
    note = (
        "the server's adapters are those that rounds began with, as each is the mean of what clients sent in the round "
        f"before: read so, and none is known after round {found.rounds[-1]}"
    )
    return replace(found, servers=dict(sorted(moved.items())), notes=(*found.notes, note))


def _is_average(found: Collection, before: int, sent: int, after: int) -> bool:
    """Whether the server's adapter of a round is an average of what clients sent in one, and of that of a round before."""
    start, clients, server = found.servers[before], found.of(sent), found.servers[after]
    names = list(start.tensors)
    if any(u.tensors[n].shape != start.tensors[n].shape for u in (*clients, server) for n in names):
        return False
    products, size = multiply_steps(start, [*clients, server], names), sum(one.size for one in start.tensors.values())
    return solve_average(products, len(clients), size) is not None


def _starts_from_own(found: Collection, before: int, t: int) -> bool:
    """Whether the clients of a round end nearer to its server's adapter than to that of the round before."""
    clients, start, other = found.of(t), found.servers[t], found.servers[before]
    products = multiply_steps(start, [*clients, other], list(start.tensors))
    K, square = len(clients), products.diagonal()
    far = square[:K] - 2 * products[:K, K] + square[K]
    return bool(square[:K].sum() < far.sum())


def measure_scale(found: Collection, t: int) -> float:
    """By what factor adapters of a round change the weights too much; 1 where there is no sign of that.

    By adapter_config.json: see `find_odd`. By the numbers: where the server's weight change is that of the clients' mean,
    but alpha / r times as long or as short.
    """
    now, after = found.of(t), found.servers.get(t)
    signs = [odd.ratio for odd in find_odd(found, t)]
    if after is not None and after.broken is None and now and now[0].sites:
        signs.append(_compare_lengths(now, after, _find_start(found, t)))
    return max(signs, key=lambda ratio: abs(math.log(ratio)), default=1.0)


class Odd(NamedTuple):
    """An adapter whose adapter_config.json does not scale B A as it should: by what factor too much, and why."""

    upload: Upload
    ratio: float
    why: str


def find_odd(found: Collection, t: int) -> list[Odd]:
    """The adapters of a round that state another rank than their factors have, or scale B A unlike most of their rank."""
    every = [*found.sent(t), *([found.servers[t]] if t in found.servers else [])]
    odd: list[Odd] = []
    for site in every[0].sites:
        ranks = [(u.rank(site), u.stated_rank(site)) for u in every]
        scales = list(zip(ranks, [u.scale(site) for u in every], strict=True))
        usual = {rank: scale for (rank, scale), _ in reversed(Counter(scales).most_common())}
        for u, (rank, scale) in zip(every, scales, strict=True):
            if (ratio := u.misfit(site)) != 1:
                odd.append(Odd(u, ratio, f"factors of rank {rank[0]} where rank {rank[1]} is stated"))
            elif scale != usual[rank]:
                why = f"B A times {scale:g}, and times {usual[rank]:g} in others of its rank"
                odd.append(Odd(u, scale / usual[rank], why))
    return odd


def _compare_lengths(now: Sequence[Upload], after: Upload, start: Sequence[Upload] | None) -> float:
    """How long the server's weight change is over the clients' mean, where that is alpha / r or its inverse; else 1.

    Also 1 where the round started from zero: there a server's learning rate makes the change as much longer or shorter.
    """
    products, K = multiply_changes([*now, after, *(start or ())]), len(now)
    if start is not None and not products.diagonal()[K + 1 :].any():
        return 1.0
    mean2, to_mean, own2 = products[:K, :K].mean(), products[:K, K].mean(), products[K, K]
    if not (mean2 > 0 and own2 > 0 and to_mean > ALONG * math.sqrt(mean2 * own2)):
        return 1.0
    ratio, scale = float(to_mean / mean2), now[0].scale(next(iter(now[0].sites)))
    return ratio if any(abs(ratio / wrong - 1) < EXACT for wrong in (scale, 1 / scale) if wrong != 1) else 1.0
