"""What the server made of the clients' models, read off the numbers: the weights of its average. Needs no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedfault.errors import join_names

FITS = 0.01  # of the server's step, what weights may leave of it: files in half precision
CLEAR = 0.25  # of what weights that add up to 1 leave, others have to leave less: rounding is no excess
NONE = 0.01  # of a weight: as good as none
APART = 0.05  # between a client's shares in two factors, or between its share and the one that was told
SINGULAR = 1e-7  # of the largest: clients so much alike that nobody can tell their weights apart
STILL = 1e-12  # of the longest update, squared: a client that sent what it got
HALF = 0.5  # of its length: training takes no model that near to zero in a round
ENOUGH = 4  # numbers for each weight: fewer are fitted by whatever the server did


class Average(NamedTuple):
    """The server's model as `kept` times the one before plus the sum over clients of weight times model.

    weights: not a number for a client that sent what it got. excess: 0 for every average, whatever the learning rate of the
    server is.
    """

    weights: tuple[float, ...]
    excess: float = 0.0

    @property
    def step(self) -> float:
        """The sum of the weights."""
        return float(np.nansum(self.weights))

    @property
    def total(self) -> float:
        """The sum of the weights and of what is kept of the model before."""
        return 1 + self.excess

    @property
    def kept(self) -> float:
        """The weight of the model before."""
        return self.total - self.step

    def share(self, place: int) -> float:
        """The weight of a client over the sum of all; not a number where that is not known."""
        return self.weights[place] / self.step if self.step else np.nan

    @property
    def alone(self) -> int | None:
        """The place of the client that has all the weight among several."""
        shares = np.abs([self.share(k) for k in range(len(self.weights))])
        known = len(shares) > 1 and bool(np.isfinite(shares).all())
        return int(shares.argmax()) if known and np.sort(shares)[-2] < NONE else None


def solve_average(products: np.ndarray, clients: int, size: int) -> Average | None:
    """Solve for the weights by which the server has averaged; None where it did something else, or where nobody can tell.

    products: inner products of the K clients' updates, then of the server's, then, if it is known, of the model that they
    started from: without it an excess is not found. clients: K; size: how many numbers a model has.

    >>> first, second, start = np.eye(16)[:3]
    >>> rows = np.stack([first, second, (first + second - start) / 3, start])
    >>> found = solve_average(rows @ rows.T, 2, 16)
    >>> print(f"{found.weights[0]:.2f} {found.weights[1]:.2f}, in all {found.total:.2f}")
    0.33 0.33, in all 0.67
    """
    square = products.diagonal()
    if size < ENOUGH * len(products) or not np.isfinite(products).all() or not square[clients] > 0:
        return None
    moved = [k for k in range(clients) if square[k] > STILL * square[:clients].max()]
    start = [clients + 1] if len(products) > clients + 1 and square[-1] > 0 else []
    found, rest = _fit(products, moved, clients)
    if start and rest > FITS**2:
        found, other = _fit(products, [*moved, *start], clients)
        rest = other if other < CLEAR**2 * rest else math.inf
    if not rest <= FITS**2:
        return None
    weights = np.full(clients, np.nan)
    weights[moved] = found[: len(moved)]
    return Average(tuple(weights.tolist()), float(found[len(moved) :].sum()))


def _fit(products: np.ndarray, basis: Sequence[int], server: int) -> tuple[np.ndarray, float]:
    """The weights of some rows that come nearest to the server's update, and what they leave of its square.

    That is infinite where several weights come as near.
    """
    lengths = np.sqrt(products.diagonal()[list(basis)])
    if not len(basis):
        return lengths, math.inf
    unit = products[np.ix_(basis, basis)] / np.outer(lengths, lengths)
    values = np.linalg.eigvalsh(unit)
    if values[0] <= SINGULAR * values[-1]:
        return lengths, math.inf
    aim = products[list(basis), server] / lengths
    found = np.linalg.solve(unit, aim)
    rest = products[server, server] - 2 * found @ aim + found @ unit @ found
    return found / lengths, float(rest / products[server, server])


def sends_less(parts: Collection[np.ndarray], clients: int) -> bool:
    """Whether all clients sent less than half of every part that they got, as those do that send updates in its place.

    parts: inner products as `solve_average` takes them, with the model that they started from; of one that was zero nothing
    is known.
    """
    known = [one for one in parts if one[-1, -1] > 0]
    sent = [one.diagonal()[:clients] + 2 * one[:clients, -1] + one[-1, -1] for one in known]
    return bool(known) and all((own < HALF**2 * one[-1, -1]).all() for own, one in zip(sent, known, strict=True))


def measure_average(parts: Mapping[str, Average]) -> dict[str, float]:
    """What the averages of a round say of the server, as probes, by part of the model; empty without any.

    average_total   what the weights add up to, in the part in which that is furthest from 1, where the server keeps nothing
                    of the model before: 1 for every average
    average_split   how much a client's share in one factor is above that in another one
    average_step    the sum of the clients' weights, in the part in which it is least: below 0 the server goes backwards
    """
    if not parts:
        return {}
    totals = [one.total for one in parts.values() if one.excess and abs(one.kept) < NONE]
    shared = [np.array(one.weights) / one.step for part, one in parts.items() if _is_shared(part, one)]
    splits = [float(np.abs(a - b).max()) for a, b in itertools.combinations(shared, 2)]
    return {
        "average_total": max(totals, key=lambda total: abs(total - 1), default=1.0),
        "average_split": max((split for split in splits if split > APART), default=0.0),
        "average_step": min(one.step for one in parts.values()),
    }


def _is_shared(part: str, one: Average) -> bool:
    """Whether a factor was averaged over several clients, and not left with the server or with one of them."""
    return part.startswith("lora_") and one.step > NONE and one.alone is None and not np.isnan(one.weights).any()


def sends_updates(parts: Mapping[str, Average]) -> bool:
    """Whether what clients send is added to the model before, so that it is updates and no models."""
    return any(one.excess and one.step > NONE and abs(one.kept - 1) < NONE for one in parts.values())


def name_lone_client(parts: Mapping[str, Average]) -> int | None:
    """The place of the client whose model the server took alone, in all parts of which that is known."""
    found = {one.alone for one in parts.values()}
    return next(iter(found)) if len(found) == 1 else None


def compare_shares(average: Average | None, told: Sequence[float], names: Sequence[object]) -> str | None:
    """A sentence where the server did not weigh clients by the shares that were told; None where it did, or nobody knows."""
    if average is None or not average.step > NONE or np.isnan(average.weights).any():
        return None
    pairs = [(average.share(k), share / sum(told)) for k, share in enumerate(told)]
    odd = [
        f"client {name} by {own:.2f} and not by {share:.2f}"
        for name, (own, share) in zip(names, pairs, strict=True)
        if abs(own - share) > APART
    ]
    return f"the server weighs clients otherwise than by their shares: {join_names(odd, 4)}" if odd else None
