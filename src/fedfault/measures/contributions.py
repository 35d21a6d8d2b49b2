"""Shapley values of players from the values of coalitions: exact, or by permutations in antithetic pairs. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

Coalition = frozenset[int]  # of players 0 ... K - 1


class Design(NamedTuple):
    """The coalitions whose values a Shapley estimate needs."""

    players: int
    orders: Sequence[Sequence[int]]  # permutations, each followed by its reverse; none: all coalitions are valued
    coalitions: Sequence[Coalition]


def plan_coalitions(players: int, pairs: int, generator: np.random.Generator) -> Design:
    """Draw so many pairs of a permutation and its reverse; or take all coalitions, where these are no more.

    >>> len(plan_coalitions(3, 8, np.random.default_rng(0)).coalitions), len(plan_coalitions(3, 8, None).orders)
    (8, 0)
    """
    if 2**players <= 2 * pairs * (players - 1) + 2:
        sizes = range(players + 1)
        return Design(players, (), [frozenset(c) for n in sizes for c in combinations(range(players), n)])
    drawn = [generator.permutation(players).tolist() for _ in range(pairs)]
    orders = [order for one in drawn for order in (one, one[::-1])]
    needed = {frozenset(order[:n]): None for order in orders for n in range(players + 1)}
    return Design(players, orders, list(needed))


def find_shapley(design: Design, value: Mapping[Coalition, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the Shapley values of all players, (K, S), and their standard errors, of games with S values a coalition.

    phi_k is the mean over orders of the players of v(those before k, and k) - v(those before k). The values of a game sum to
    v(all) - v(none), whichever orders were drawn. A permutation and its reverse are one draw, as their errors mostly have
    opposite signs (Mitchell, Cooper, Frank & Holmes, JMLR 2022, section 4.1): the standard error is that of the mean of
    pairs, 0 where all coalitions are valued, and NaN for a single pair.

    >>> weight = np.array([1.0, 2.0, 4.0])
    >>> design = plan_coalitions(3, 4, np.random.default_rng(0))
    >>> value = {c: np.array([sum(weight[list(c)]) ** 2]) for c in design.coalitions}
    >>> find_shapley(design, value)[0].ravel().round(9).tolist()  # phi_k = w_k (w_1 + w_2 + w_3)
    [7.0, 14.0, 28.0]
    """
    if not design.orders:
        exact = _weigh_all(design.players, value)
        return exact, np.zeros_like(exact)
    marginal = np.array([_find_marginals(order, value) for order in design.orders])  # (2 pairs, K, S)
    each = marginal.reshape(-1, 2, *marginal.shape[1:]).mean(1)  # (pairs, K, S)
    error = each.std(0, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else np.full(each.shape[1:], math.nan)
    return each.mean(0), error


def _find_marginals(order: Sequence[int], value: Mapping[Coalition, np.ndarray]) -> np.ndarray:
    """What each player adds to those before it in an order, (K, S)."""
    reached = np.array([value[frozenset(order[:n])] for n in range(len(order) + 1)])
    out = np.empty_like(reached[1:])
    out[list(order)] = np.diff(reached, axis=0)
    return out


def _weigh_all(players: int, value: Mapping[Coalition, np.ndarray]) -> np.ndarray:
    """phi_k = sum over coalitions C without k of |C|! (K - |C| - 1)! / K! (v(C and k) - v(C)), (K, S)."""
    weight = [1 / (players * math.comb(players - 1, n)) for n in range(players)]
    return np.array(
        [sum(weight[len(c)] * (value[c | {k}] - own) for c, own in value.items() if k not in c) for k in range(players)]
    )
