"""What the adapters that clients sent say of the loop that made them: where clients started, and what moved. No torch.

Everything is computed from inner products of the adapters, one part of them (`lora_A`, `lora_B`, ...) at a time, and what is
said of a round depends on the rounds up to it only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedfault.seeds import rng

ORDERS = 999  # random orders that the order of the clients is compared with


@dataclass(frozen=True)
class Sent:
    """One part of the adapters that clients sent.

    products: (n, n), inner products; rounds and clients: (n,), whose they are, in order; kinds: (n,), equal for those that
    have the same shapes, and can be compared.
    """

    products: np.ndarray
    rounds: tuple[int, ...]
    clients: tuple[int, ...]
    kinds: tuple[str, ...]

    def until(self, round: int) -> Sent:
        """The same of the rounds up to one."""
        return self._take([i for i, t in enumerate(self.rounds) if t <= round])

    def once(self, marks: Sequence[str]) -> Sent:
        """The same with the first alone of those that are equal in a round; marks: (n,), the hash of each."""
        places = list(zip(self.rounds, marks, strict=True))
        first = {place: i for i, place in reversed([*enumerate(places)])}
        return self._take(sorted(first.values()))

    def _take(self, own: Sequence[int]) -> Sent:
        rounds, clients = (tuple(x[i] for i in own) for x in (self.rounds, self.clients))
        return Sent(self.products[np.ix_(own, own)], rounds, clients, tuple(self.kinds[i] for i in own))


class Apart(NamedTuple):
    """How much clients keep of what they sent last. kept: 0 where they start together, 1 where each goes on with its own.

    growth: of the variance between clients, from the middle round to this one.
    """

    kept: float
    growth: float


class Chain(NamedTuple):
    """How far clients start where the one before them ended: 0 not at all, 1 there; p: of a random order to look so, too."""

    share: float
    p: float


def measure_apart(sent: Sent) -> Apart | None:
    """Measure how much of its own last adapter each client still has; None where no two clients came twice.

    With e_i what client i sent minus the mean over clients, kept = sum <e_i now, e_i last> / sum |e_i last|^2. A common
    start takes e_i away, so that only what the client's data do again is left. Without one, e_i stays and noise is added
    to it, which makes the variance grow from round to round.
    """
    crossed = before = 0.0
    variance: list[float] = []
    for now, last in _pair_rounds(sent):
        found = np.zeros(3)
        for kind in set(sent.kinds):
            own = [k for k, i in enumerate(now) if sent.kinds[i] == kind == sent.kinds[last[k]]]
            if len(own) > 1:
                a, b = [now[k] for k in own], [last[k] for k in own]
                found += [_centred(sent.products, x, y) for x, y in ((a, b), (b, b), (a, a))]
        if found[1] > 0:
            crossed, before = crossed + found[0], before + found[1]
            variance = [*(variance or [found[1] / len(now)]), found[2] / len(now)]
    if not variance:
        return None
    middle = variance[(len(variance) - 1) // 2]
    return Apart(float(crossed / before), float(variance[-1] / middle) if middle > 0 else 1.0)


def _pair_rounds(sent: Sent) -> list[tuple[list[int], list[int]]]:
    """For each round the clients that had sent something before, and where that is: (now, last)."""
    latest: dict[int, int] = {}
    found = []
    for t in sorted(set(sent.rounds)):
        here = [i for i, round in enumerate(sent.rounds) if round == t]
        again = [i for i in here if sent.clients[i] in latest]
        found.append((again, [latest[sent.clients[i]] for i in again]))
        latest |= {sent.clients[i]: i for i in here}
    return [(now, last) for now, last in found if len(now) > 1]


def _centred(products: np.ndarray, rows: Sequence[int], columns: Sequence[int]) -> float:
    """The sum over clients of <x_i - mean x, y_i - mean y>."""
    block = products[np.ix_(rows, columns)]
    return float(np.trace(block) - block.sum() / len(rows))


def measure_chain(sent: Sent) -> Chain | None:
    """Measure how far clients start where the one before them ended; None with fewer than three of one shape in a round.

    Differences d_i between successive clients have <d_i, d_i+1> = -(1 - share) / 2 times their mean square, if a client
    starts that share of the way from the common start to the adapter of the one before. What a client does in every round
    is taken off first, and every adapter counts as long as the others, so that an order by topics or by the size of updates
    looks like any other, and no round outweighs the rest. p: over random orders of the clients of every round. A copy beside
    its original looks like a client that starts there: leave it out with `Sent.once`.
    """
    if not sent.rounds:
        return None
    places = list(zip(sent.rounds, sent.kinds, strict=True))
    who = list(zip(sent.clients, sent.kinds, strict=True))
    even = _level(_take_off_centres(sent.products, places), places)
    products = _make_unit(_take_off_centres(_take_off_habits(even, who), places))
    crossed, squared = np.zeros(ORDERS + 1), np.zeros(ORDERS + 1)
    for t, own in enumerate(_find_groups(places)):
        group = [i for i in own if products[i, i] > 0]
        if len(group) > 2:
            over = rng(0, "orders", t)
            orders = [np.array(group), *(over.permutation(group) for _ in range(ORDERS))]
            follow, length = _follow(products, np.stack(orders))
            crossed, squared = crossed + follow, squared + length
    if not squared.all():
        return None
    shares = 1 + 2 * crossed / squared
    return Chain(float(shares[0]), float((shares >= shares[0] - 1e-9).mean()))


def _take_off_habits(products: np.ndarray, who: Sequence[Hashable]) -> np.ndarray:
    """Inner products (n, n) of rows minus the mean of all rows of the same client, where it has more than one."""
    left = np.eye(len(who))
    for own in _find_groups(who):
        if len(own) > 1:
            left[np.ix_(own, own)] -= 1 / len(own)
    found: np.ndarray = left @ products @ left.T
    return found


def _take_off_centres(products: np.ndarray, places: Sequence[Hashable]) -> np.ndarray:
    """Inner products (n, n) of rows minus a mean of their round in which a row far from all others hardly counts.

    Rows have the weights 1 / |x_i - x_j|^2 with the row x_j that is nearest: equal ones where all go the same way from one
    start, and in a chain too. In the plain mean one long row would be a part of all others.
    """
    left = np.eye(len(places))
    for own in _find_groups(places):
        square = products.diagonal()[own]
        apart = square[:, None] + square[None] - 2 * products[np.ix_(own, own)]
        near = np.where(np.eye(len(own)) > 0, np.inf, apart).min(axis=1)
        least = 0.01 * float(np.median(near))  # of two that are equal
        weight = 1 / np.maximum(near, least) if least > 0 and len(own) > 1 else np.ones(len(own))
        left[np.ix_(own, own)] -= weight[None] / weight.sum()
    found: np.ndarray = left @ products @ left.T
    return found


def _find_groups(names: Sequence[Hashable]) -> list[list[int]]:
    """The positions of every name that is there."""
    found: dict[Hashable, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(name, []).append(i)
    return list(found.values())


def _level(products: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Inner products (n, n) of rows over the root of their group's mean square: no group outweighs the others."""
    square = products.diagonal().clip(min=0)
    size = np.full(len(groups), np.inf)
    for own in _find_groups(groups):
        size[own] = math.sqrt(square[own].mean()) or math.inf
    found: np.ndarray = products / size[:, None] / size[None, :]
    return found


def _make_unit(products: np.ndarray) -> np.ndarray:
    """Cosines (n, n) from inner products; zero in rows and columns of zero length, as far as rounding lets us tell."""
    norm = np.sqrt(products.diagonal().clip(min=0))
    norm = np.where(norm > 1e-7 * max(float(norm.max()), 1e-300), norm, np.inf)
    found: np.ndarray = products / norm[:, None] / norm[None, :]
    return found


def _follow(products: np.ndarray, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each order (m, K) of clients: the sum of <d_i, d_i+1> over successive differences, and of their mean squares."""
    a, b, c = orders[:, :-2], orders[:, 1:-1], orders[:, 2:]
    square = products.diagonal()
    crossed = products[b, c] - square[b] - products[a, c] + products[a, b]  # <b - a, c - b>
    first = square[a] + square[b] - 2 * products[a, b]
    second = square[b] + square[c] - 2 * products[b, c]
    return crossed.sum(1), (first + second).sum(1) / 2


def find_moved(marks: Mapping[str, Sequence[str]], part: str) -> list[int]:
    """Which of a round's adapters have moved a part that stands still in most of them, by position; none where most move it.

    marks: the hash of every part, by adapter. Adapters that are equal in all parts did not train and do not count.
    """
    usual = find_usual(marks, part)
    return [] if usual is None else [i for i in _find_trained(marks) if marks[part][i] != usual]


def find_usual(marks: Mapping[str, Sequence[str]], part: str) -> str | None:
    """The hash that a part has in most of a round's adapters, see `find_moved`; None where most move it.

    One round says little: where B is 0, the first step of a client leaves A as it is.
    """
    trained = _find_trained(marks)
    if len(trained) < 3:
        return None
    (usual, count), *_ = Counter(marks[part][i] for i in trained).most_common(1)
    return usual if 2 * count > len(trained) else None


def _find_trained(marks: Mapping[str, Sequence[str]]) -> list[int]:
    whole = list(zip(*marks.values(), strict=True))
    return [i for i, mark in enumerate(whole) if whole.count(mark) == 1]
