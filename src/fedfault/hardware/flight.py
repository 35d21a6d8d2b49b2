"""Clients that come when they are done: who is at work on the simulated clock, and whose updates make the next round.

An asynchronous round is one update of the server's model. It waits for so many clients' work as its buffer holds; whoever
arrives before it is full makes room for another client, who is sent the model as it stands. Plain numbers: no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Literal, NamedTuple

from fedfault.scheduling import Memory

Staleness = Literal["constant", "polynomial", "hinge"]


@dataclass(frozen=True)
class Asynchrony:
    """How an asynchronous server takes updates in.

    mixes: FedAsync (Xie et al., arXiv 1903.03934), x <- (1 - a) x + a y with a = rate * discount, in the place of FedBuff
        (Nguyen et al., AISTATS 2022, arXiv 2106.06639), x <- x + rate * mean(discount * (y - what y started from))
    """

    buffer: int  # updates that make a round
    mixes: bool = False
    rate: float = 1.0
    staleness: Staleness = "polynomial"
    exponent: float = 0.5  # of the polynomial
    slope: float = 10.0  # of the hinge, and
    grace: int = 4  # the rounds in which it leaves the weight alone

    def discount(self, stale: int) -> float:
        """What an update counts whose model was `stale` rounds old: 1 for none, by the functions of Xie et al.

        >>> [Asynchrony(1, staleness=kind).discount(3) for kind in ("constant", "polynomial", "hinge")]
        [1.0, 0.5, 1.0]
        >>> round(Asynchrony(1, staleness="hinge").discount(5), 4)  # 1 / (10 (5 - 4) + 1)
        0.0909
        """
        if self.staleness == "polynomial":
            return float((1 + stale) ** -self.exponent)
        if self.staleness == "hinge" and stale > self.grace:
            return 1 / (self.slope * (stale - self.grace) + 1)
        return 1.0


@dataclass(frozen=True)
class Flight:
    """One client at work: the round whose model it was sent, the seconds of its parts, and when its update arrives."""

    client: int
    version: int
    down: float
    compute: float
    up: float
    due: float


class Gathered(NamedTuple):
    """What became of the clients by the end of a round."""

    arrived: list[Flight]  # in the order in which they came
    away: list[Flight]  # still at work
    now: float  # seconds since the run began


# (now, places, ids of busy clients) -> who was sent out
Send = Callable[[float, int, Collection[int]], Sequence[Flight]]
Wait = Callable[[float], float]  # now -> the moment at which somebody is there who can train


def gather(away: Sequence[Flight], now: float, buffer: int, places: int, send: Send, wait: Wait) -> Gathered:
    """Let clients arrive in the order in which they are done, until the buffer is full or nobody is left.

    Whoever arrives waits in the buffer, and takes part again after it. Of two that are due at once the one of the smaller
    id arrives first, so that the order of the list cannot matter.
    """
    left, arrived = list(away), list[Flight]()
    while len(arrived) < buffer:
        if len(left) < places:
            left += send(now, places - len(left), {one.client for one in (*left, *arrived)})
        if not left and not arrived and (later := wait(now)) > now:
            now = later
            continue
        if not left:
            break
        first = min(left, key=lambda one: (one.due, one.client))
        left.remove(first)
        arrived.append(first)
        now = max(now, first.due)
    return Gathered(arrived, left, now)


def write_flights(flights: Sequence[Flight]) -> Memory:
    """The clients at work as plain numbers, for a checkpoint."""
    columns = zip(*map(astuple, flights), strict=True) if flights else ()
    return {f.name: [float(v) for v in values] for f, values in zip(fields(Flight), columns, strict=False)}


def read_flights(memory: Memory) -> list[Flight]:
    """The clients at work, as `write_flights` left them."""
    if not memory:
        return []
    rows = zip(*(memory[f.name] for f in fields(Flight)), strict=True)
    return [Flight(int(client), int(version), *rest) for client, version, *rest in rows]
